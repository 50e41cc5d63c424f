"""Steps of gpu_check.py that run NVIDIA's programs: compute-sanitizer and Nsight Compute."""

import csv
import re
import subprocess
import sys
from functools import partial

from gpu_work import Work, case_of, environment, on_gpu, tool

PROFILED = (("large-d64", 4, "none"), ("sd15-64x64", 4, "layout"))


_SANITIZED = """
import torch
from stal_kernels.testing import Case, example, results
for case in (Case(batch=2, heads=2, seqlen_q=33, region="blobs"),
             Case(batch=4, heads=1, seqlen_q=17, seqlen_k=130, prompts=3, ragged=True)):
    results(example(case, torch.float16, "cuda"), "{backend}")
torch.cuda.synchronize()
"""


def sanitizer(work: Work) -> None:
    on_gpu(work, "compute-sanitizer", _sanitizer)


def _sanitizer(work: Work, backend: str) -> str:
    command = [tool("compute-sanitizer"), "--tool", "memcheck", "--error-exitcode", "7"]
    # PyTorch's own pool would hide reads behind the end of a tensor.
    variables = {**environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [*command, sys.executable, "-c", _SANITIZED.format(backend=backend)],
        capture_output=True,
        text=True,
        timeout=max(1.0, work.left()),
        env=variables,
    )
    text = (done.stdout + done.stderr).strip()
    assert done.returncode == 0, f"exit code {done.returncode}: {' '.join(text.split())[-500:]}"
    return text.splitlines()[-1].strip("= ")


# Kernels of a forward pass, as the profiler calls them.
KERNEL_NAMES = {"triton": "forward", "cuda": "forward"}


_PROFILED = """
import torch
from gpu_work import DTYPES, DTYPE_OF_TIMES, case_of, large_example
name, case = case_of({label!r}, {prompts}, {region!r})
e = large_example(case, DTYPES[DTYPE_OF_TIMES], "cuda")
for _ in range(4):
    e.run("{backend}")
torch.cuda.synchronize()
"""


_SECTIONS = (
    "LaunchStats",
    "Occupancy",
    "SchedulerStats",
    "WarpStateStats",
    "MemoryWorkloadAnalysis",
    "SpeedOfLight",
)


# Of the several hundred that those sections count.
_METRICS = re.compile(
    r"gpu__time_duration\.sum|launch__registers_per_thread$|launch__waves|"
    r"sm__warps_active\.avg\.pct|smsp__issue_active|smsp__warps_eligible|"
    r"smsp__average_warps?_latency_issue_stalled|smsp__average_warps_issue_stalled.*_per_issue|"
    r"lts__t_sectors(_op_read)?\.sum$|lts__t_sector_hit_rate|lts__throughput\.avg\.pct|"
    r"dram__bytes(_read|_write)?\.sum$|dram__throughput\.avg\.pct|"
    r"sm__(inst_executed_)?pipe_tensor.*pct|sm__throughput\.avg\.pct"
)


def profile(work: Work) -> None:
    """What Nsight Compute counts of the forward kernel: issue, stalls, second-level cache."""
    if work.device == "cpu":
        work.not_run("profile", "needs a GPU")
        return
    for backend in work.backends:
        for label, prompts, region in PROFILED:
            name, _ = case_of(label, prompts, region)
            check = partial(_profile, work, backend, name, label, prompts, region)
            work.check(f"profile of {name}", backend, check)


def _profile(work: Work, backend: str, name: str, label: str, prompts: int, region: str) -> str:
    if backend not in KERNEL_NAMES:
        raise NotImplementedError(f"KERNEL_NAMES must say what the kernel of {backend} is called")
    fields = {"label": label, "prompts": prompts, "region": region, "backend": backend}
    # The clocks are left alone: the machine may be another's too.
    command = [tool("ncu"), "--clock-control", "none", "--csv", "--page", "raw"]
    command += ["--kernel-name", KERNEL_NAMES[backend], "--launch-skip", "2", "--launch-count", "1"]
    command += [x for section in _SECTIONS for x in ("--section", section)]
    done = subprocess.run(
        [*command, sys.executable, "-c", _PROFILED.format(**fields)],
        capture_output=True,
        text=True,
        timeout=max(1.0, work.left()),
        env=environment(),
    )
    found = profiled(done.stdout)
    last = " ".join((done.stdout + done.stderr).split())[-300:]
    assert found, f"exit code {done.returncode}, no counters: {last}"
    for metric, (unit, value) in found.items():
        work.row(
            "profile", case=name, backend=backend, metric=metric, value=f"{value} {unit}".strip()
        )
    return f"{len(found)} counters"


def profiled(text: str) -> dict[str, tuple[str, str]]:
    """Unit and value by metric, of those in _METRICS, from the raw page as CSV."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if len(lines) < 3:
        return {}
    names, units, values = csv.reader(lines[:3])
    return {
        name: (unit, value)
        for name, unit, value in zip(names, units, values, strict=True)
        if _METRICS.match(name)
    }
