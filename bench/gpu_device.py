"""The step `device` of gpu_check.py: rates of the GPU, and what any kernel pays."""

from dataclasses import asdict
from functools import partial

import torch
from gpu_work import FIRST, SHAPES, TINY, Work, nvidia_smi
from rivals import first_line
from timing import Timing, gpu_times


def device(work: Work) -> None:
    """Facts about the GPU, and what any kernel pays: an empty one, and q read and out written."""
    if work.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        work.know(
            gpu=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            multiprocessors=properties.multi_processor_count,
            cuda=torch.version.cuda,
            clocks=nvidia_smi("clocks.sm,clocks.mem,clocks.max.sm,driver_version"),
        )
        work.know(
            **{
                "memory GB": round(properties.total_memory / 1e9, 1),
                "L2 MB": round(properties.L2_cache_size / 1e6, 1),
            }
        )
        work.doing("copy rate")
        work.know(**{"copy GB/s": round(_copy_rate() / 1e9)})
        work.doing("rate of matrix products")
        work.know(**{"gemm TFLOP/s": round(_gemm_rate() / 1e12)})
        work.know(**{"clocks under load": _clocks_under_load()})
    for programs in (1, 32768 if work.device == "cuda" else 2):
        work.doing("empty kernel")
        try:
            from empty_kernel import run as empty

            found = work.timed({"": partial(empty, programs, torch.zeros(1, device=work.device))})
            _floor(work, f"empty kernel, {programs} programs", found[""])
        except Exception as error:  # Of Triton's making or of its absence.
            _floor(work, f"empty kernel, {programs} programs", None, note=first_line(error))
    shapes = {"tiny": TINY} if work.dry_run else SHAPES
    for label in ("tiny",) if work.dry_run else FIRST:
        work.doing(f"copy of {label}")
        shape = shapes[label]
        size = shape.batch, shape.heads, shape.seqlen_q, shape.head_dim
        q = torch.randn(size, device=work.device).to(work.dtype)
        out = torch.empty_like(q)
        found = work.timed({"": partial(torch.neg, q, out=out)})
        _floor(work, f"q -> out, {label}", found[""], moved=2 * q.numel() * q.itemsize)


def _floor(
    work: Work, what: str, timing: Timing | None, *, moved: float | None = None, note: str = ""
) -> None:
    rate = moved / timing.median / 1e9 if moved and timing else None
    copy = work.facts.get("copy GB/s")
    work.row(
        "floors",
        what=what,
        **{
            "ms median (p20-p80)": str(timing or ""),
            "GB/s": f"{rate:.3g}" if rate else "",
            "of copy": f"{rate / copy:.0%}" if rate and copy else "",
            "note": note,
            "_seconds": timing and asdict(timing),
        },
    )


def _copy_rate() -> float:
    """Bytes read and written a second by an elementwise kernel over 2 GiB.

    In a CUDA graph a plain copy is left to the driver, whose way need not be the fastest.
    """
    source = torch.zeros(2**29, device="cuda")
    target = torch.empty_like(source)
    seconds = gpu_times({"copy": lambda: torch.neg(source, out=target)})["copy"].median
    return 2 * source.numel() * source.itemsize / seconds


def _gemm_rate(n: int = 8192) -> float:
    """FLOP/s of a square bfloat16 product."""
    a = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
    return 2 * n**3 / gpu_times({"gemm": lambda: a @ a})["gemm"].median


def _clocks_under_load() -> str:
    """What the GPU says of its clocks with a second of matrix products queued."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(700):
        a @ a
    clocks = nvidia_smi("clocks.sm,clocks.mem,power.draw,temperature.gpu")
    torch.cuda.synchronize()
    return clocks
