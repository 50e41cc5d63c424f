"""Steps of gpu_check.py about the CUDA kernels alone, before anything else relies on them.

A kernel that hangs or writes where it must not spoils its own step: each has a process and a limit.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from bench_blended_attention import loop, one_sdpa, rival
from gpu_times import checked, time_rows
from gpu_work import Work, case_of, environment, guarded, large_example, tool
from rivals import Reference, error_used

from stal_kernels import why_not
from stal_kernels.testing import Case, example, plain_attention

BACKEND = "cuda"
_TOOLS = ("memcheck", "synccheck")
# A tile of 64 rows and less, and more; one key, a part of the last eight and all 80; more prompts
# than shared memory holds; rows that are no multiple of anything.
TINY = (
    Case(heads=1, seqlen_q=64, prompts=1),
    Case(heads=1, seqlen_q=1, seqlen_k=1, prompts=1),
    Case(batch=2, heads=3, seqlen_q=65, seqlen_k=80, prompts=4),
    Case(heads=2, seqlen_q=200, seqlen_k=73, prompts=9, layout="projection"),
    Case(batch=2, heads=1, seqlen_q=130, seqlen_k=16, prompts=4, region="blobs"),
    Case(heads=2, seqlen_q=256, prompts=5, region="boxes", planned=True),
    Case(heads=1, seqlen_q=96, prompts=3, region="empty", scale=-0.3),
    Case(batch=4, heads=2, seqlen_q=65, prompts=3, ragged=True),
    Case(batch=3, heads=1, seqlen_q=70, seqlen_k=40, region="blobs", ragged=True, planned=True),
)
HEAD_DIMS = (40, 64, 80, 128, 160)
# Against Triton and SDPA: shape, prompts, region.
COMPARED = (
    ("large-d64", 4, "none"),
    ("large-d64", 4, "boxes"),
    ("large-d64", 1, "none"),
    ("large-d40", 4, "none"),
    ("large-d40", 4, "boxes"),
    ("large-d128", 4, "none"),
    ("large-d128", 4, "boxes"),
    ("sd15-64x64", 4, "boxes"),
)


def against() -> list[str]:
    """Why there is nothing to check; empty if there is."""
    try:
        return why_not(BACKEND)
    except ValueError as error:  # This checkout has no such backend.
        return [str(error)]


def correctness(work: Work) -> None:
    """The forward pass at sizes that take no time, head_dim by head_dim."""
    for head_dim in HEAD_DIMS:
        check = partial(_correctness, work, head_dim)
        work.check(f"tiny, head_dim {head_dim}", BACKEND, check)


def _correctness(work: Work, head_dim: int) -> str:
    cases = [replace(case, head_dim=head_dim) for case in TINY]
    most = 0.0
    for dtype in (torch.float16, torch.bfloat16):
        for case in cases:
            work.doing(f"{case!r}, {dtype}")
            used = share_used(case, dtype, BACKEND, work.device)
            assert used <= 1, f"{case!r}, {dtype}: {used:.2f} times the error that is allowed"
            most = max(most, used)
    return f"{2 * len(cases)} calls, {most:.2f} of the error that is allowed"


def share_used(case: Case, dtype: torch.dtype, backend: str, device: str) -> float:
    """The larger share of the error allowed (`rivals.error_used`) that a forward pass makes."""
    e = example(case, dtype, device)
    with torch.no_grad():
        out = e.run(backend)
        right, plain = plain_attention(e.to(torch.float64)), plain_attention(e)
    # Where no prompt exists all three are 0.
    return error_used(out, plain, right) if right.any() else float(out.any())


_SANITIZED = """
import torch
import gpu_cuda
for head_dim in {head_dims}:
    for case in gpu_cuda.TINY[1:]:
        case = gpu_cuda.replace(case, head_dim=head_dim)
        gpu_cuda.share_used(case, torch.float16, gpu_cuda.BACKEND, "cuda")
torch.cuda.synchronize()
"""


def sanitizer(work: Work) -> None:
    """Reads and writes out of bounds, and barriers that are used wrongly."""
    for name in _TOOLS:
        work.check(f"compute-sanitizer {name}", BACKEND, partial(_sanitizer, work, name))


def _sanitizer(work: Work, name: str) -> str:
    command = [tool("compute-sanitizer"), "--tool", name, "--error-exitcode", "7"]
    done = subprocess.run(
        [*command, sys.executable, "-c", _SANITIZED.format(head_dims=(40, 64, 160))],
        capture_output=True,
        text=True,
        timeout=max(1.0, work.left()),
        # PyTorch's own pool would hide reads behind the end of a tensor.
        env={**environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    text = (done.stdout + done.stderr).strip()
    assert done.returncode == 0, f"exit code {done.returncode}: {' '.join(text.split())[-500:]}"
    return text.splitlines()[-1].strip("= ")


def times(work: Work) -> None:
    """Beside Triton, one SDPA and the loop, forward."""
    for label, prompts, region in COMPARED:
        name, case = case_of(label, prompts, region)
        if work.left() < 4:
            work.not_run("cuda against triton", f"{name} and later: time used up")
            return
        guarded(work, f"cuda against triton: {name}", _times, name, case)


def _times(work: Work, name: str, case: Case) -> None:
    work.doing(f"cuda against triton: {name}")
    e = large_example(case, work.dtype, work.device)
    beside = replace(work, backends=(BACKEND, *["triton"] * (not why_not("triton"))))
    functions: dict[str, Callable[[], object]] = {
        "loop": rival(loop, e, ""),
        "one SDPA": rival(one_sdpa, e, ""),
        **checked(beside, e, Reference(e), ""),
    }
    found = work.timed(functions)
    time_rows(beside, name, case, "forward", found, list(found))
