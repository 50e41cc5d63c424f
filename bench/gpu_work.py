"""What the steps of bench/gpu_check.py share: what they are told, and what they time.

A step is a function of a `Work`, through which its rows go to the report one by one. It stops by
itself when `Work.left` is nearly 0: what it would do then, its process is killed for.
"""

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from regions import with_regions
from rivals import first_line
from timing import Timing, gpu_times, interleave

from stal_kernels import plan
from stal_kernels.testing import Case, Example, example

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


SHAPES = {
    "sd15-64x64": Case(batch=2, heads=8, seqlen_q=4096, head_dim=40),
    "sdxl-64x64": Case(batch=2, heads=10, seqlen_q=4096, head_dim=64),
    # q of four times the second-level cache: the case that the peak rates are judged on.
    "large-d64": Case(batch=64, heads=8, seqlen_q=4096, head_dim=64),
    "large-d128": Case(batch=32, heads=8, seqlen_q=4096, head_dim=128),
    "sd15-16x16": Case(batch=2, heads=8, seqlen_q=256, head_dim=160),
    "d128-k256": Case(batch=2, heads=16, seqlen_q=4096, seqlen_k=256, head_dim=128),
    "sd15-32x32": Case(batch=2, heads=8, seqlen_q=1024, head_dim=80),
    "sdxl-32x32": Case(batch=2, heads=20, seqlen_q=1024, head_dim=64),
    "large-d40": Case(batch=80, heads=8, seqlen_q=4096, head_dim=40),
    "sd15-8x8": Case(batch=2, heads=8, seqlen_q=64, head_dim=160),
    "d128-k512": Case(batch=2, heads=12, seqlen_q=4096, seqlen_k=512, head_dim=128),
    "video": Case(batch=2, heads=12, seqlen_q=32760, seqlen_k=512, head_dim=128),
}


TINY = Case(heads=1, seqlen_q=25, seqlen_k=9, head_dim=8)


# Timed first; the others with what time is left.
FIRST = ("sd15-64x64", "sdxl-64x64", "large-d64", "large-d128")


DTYPE_OF_TIMES = "bfloat16"


@dataclass
class Work:
    """What a step is told, and where its rows go.

    backends: whom it is about.
    facts: of the machine, as far as they are known.
    deadline: of time.monotonic; seconds: from its start until then.
    """

    backends: tuple[str, ...]
    device: str
    dry_run: bool
    facts: dict[str, Any]
    seconds: float
    deadline: float
    sender: Connection

    def row(self, table: str, **cells: Any) -> None:
        """Adds a row to a table of the report; cells whose names begin with _ are not shown."""
        self.sender.send((table, cells))

    def doing(self, text: str) -> None:
        """Tells what would be to blame if nothing more came."""
        self.sender.send(("doing", {"text": text}))

    def know(self, **facts: Any) -> None:
        self.facts |= facts
        self.sender.send(("machine", facts))

    def check(self, name: str, backend: str, run: Callable[[], str]) -> None:
        """Runs one check; its result is what `run` returns, or the error that it raises."""
        self.doing(f"{name} {backend}")
        try:
            result, detail = "ok", run()
        except Exception as error:  # A check that breaks must not hide the ones after it.
            result, detail = "FAILED", f"{type(error).__name__}: {first_line(error, 600)}"
            traceback.print_exc()
        self.row("checks", check=name, backend=backend, result=result, detail=detail)

    def not_run(self, name: str, reason: str, *backends: str) -> None:
        for backend in backends or self.backends:
            self.row("checks", check=name, backend=backend, result="not run", detail=reason)

    def left(self) -> float:
        """Seconds until the step should end, with time to end it."""
        return self.deadline - time.monotonic() - min(15.0, 0.1 * self.seconds)

    def timed(self, functions: dict[str, Callable[[], object]]) -> dict[str, Timing]:
        if self.device == "cuda":
            return gpu_times(functions)
        return interleave(functions, rounds=1, sample_s=0)  # the interpreter's time tells nothing

    @property
    def dtype(self) -> torch.dtype:
        """Of what is timed."""
        return torch.float32 if self.dry_run else DTYPES[DTYPE_OF_TIMES]


def workers() -> int:
    return min(14, os.cpu_count() or 1)


def pool(processes: int) -> ProcessPoolExecutor:
    """Processes that may use a GPU, of their own contexts."""
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


def capability() -> int:
    """That which has tiles in the table: 80 or 90."""
    return 90 if torch.cuda.get_device_capability()[0] >= 9 else 80


def case_of(label: str, prompts: int, region: str) -> tuple[str, Case]:
    """The name and the case of a shape."""
    shape = TINY if label == "tiny" else SHAPES[label]
    ((suffix, case),) = with_regions(shape, prompts, [region])
    return f"{label} {suffix}", case


def large_example(case: Case, dtype: torch.dtype, device: str) -> Example:
    """Like `example` of a dense case, drawn on the device: gigabytes take seconds on the CPU."""

    def normal(*shape: int, to: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=to)

    q_shape = (case.batch, case.heads, case.seqlen_q, case.head_dim)
    key_shape = (case.batch, case.prompts, case.heads, case.seqlen_k, case.head_dim)
    weight = normal(case.batch, case.prompts, case.seqlen_q, to=torch.float32)
    small = Case(**{**vars(case), "batch": 1, "heads": 1, "seqlen_k": 1, "head_dim": 8})
    region = example(small, torch.float32).region
    if region is not None:
        region = region.to(device).expand(weight.shape)
    q, k, v, dout = normal(*q_shape), normal(*key_shape), normal(*key_shape), normal(*q_shape)
    made = plan(region) if region is not None and case.planned else None
    return Example(q, k, v, weight, dout, None, None, region, None, made, None)


def half(work: Work) -> torch.dtype:
    return torch.float32 if work.device == "cpu" else torch.float16


def on_gpu(work: Work, name: str, run: Callable[[Work, str], str]) -> None:
    """A check of each backend that only a GPU can run."""
    if work.device == "cpu":
        work.not_run(name, "needs a GPU")
        return
    for backend in work.backends:
        work.check(name, backend, partial(run, work, backend))


def finish(work: Work) -> None:
    """Waits for the GPU; raises where an error has spoiled all later calls."""
    if work.device == "cuda":
        torch.cuda.synchronize()


def guarded(work: Work, what: str, function: Callable[..., None], *arguments: Any) -> None:
    """Calls function(work, *arguments); what it raises becomes a row, and the next may begin."""
    try:
        function(work, *arguments)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        work.not_run(what, "out of memory")
    except Exception as error:
        traceback.print_exc()
        detail = f"{type(error).__name__}: {first_line(error, 600)}"
        backend = ", ".join(work.backends)
        work.row("checks", check=what, backend=backend, result="FAILED", detail=detail)
        finish(work)


def nvidia_smi(query: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"


def tool(name: str) -> str:
    """The path of one of CUDA's programs."""
    path = shutil.which(name) or f"/usr/local/cuda/bin/{name}"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name} is not on PATH nor in /usr/local/cuda/bin")
    return path


def environment() -> dict[str, str]:
    """That of a Python that finds what this one found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
