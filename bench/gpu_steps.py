"""The steps of bench/gpu_check.py, each run in a process of its own.

A step is a function of a `Work`, through which its rows go to the report one by one. It stops by
itself when `Work.left` is nearly 0: what it would do then, its process is killed for.
"""

import contextlib
import csv
import itertools
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as OutOfTime
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from bench_blended_attention import PASSES, eager, loop, one_sdpa, ours, present, ratio, rival
from cost_model import predicted_ms
from cost_model import work as work_of
from regions import with_regions
from rivals import COMPILED, READY, Reference, first_line, prepared
from step_batching import StepBatch, random_requests
from timing import Timing, captured, gpu_times, interleave
from tune_triton import neighbours, starting_tile, starts

from stal_kernels import blended_attention, blended_attention_ragged, plan
from stal_kernels.backends import Inputs
from stal_kernels.backends.triton.compile import KERNELS, Compiled, Variant, compile_variant
from stal_kernels.backends.triton.launches import Launch, forward_launch, pixel_launch, run
from stal_kernels.backends.triton.tiles import Tile, TileRow, rows
from stal_kernels.testing import CASES, Case, Example, assert_within_twice_plain, example, results

# After the name of a backend that is given a plan of the regions.
PLANNED = ", plan"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# A dtype and what torch.set_float32_matmul_precision allows its products to be.
NUMBERS = {name: (dtype, "highest") for name, dtype in DTYPES.items()}
NUMBERS["tf32"] = (torch.float32, "high")

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
# Timed with more numbers of prompts; the others with 1 and 4.
DETAILED = ("sd15-64x64",)
# The formula is compiled anew for every shape, which takes half a minute.
COMPILED_FORMULA = ("sd15-64x64 p1", "sd15-64x64 p4")
# A step each. Without regions the keys and values of all prompts are needed everywhere.
RIVALS = (
    ("large-d64", 4, "layout"),
    ("sd15-64x64", 4, "layout"),
    ("large-d64", 4, "none"),
    ("sd15-64x64", 4, "none"),
    ("large-d64", 1, "none"),
    ("large-d128", 4, "layout"),
)
TINY_RIVALS = (("tiny", 2, "layout"),)
# Where other tiles are timed: kernel, shape, prompts, region.
TILED = (
    ("forward", "large-d64", 4, "none"),
    ("forward", "large-d64", 1, "none"),
    ("forward", "sd15-64x64", 4, "none"),
    ("forward", "large-d64", 4, "layout"),
    ("forward", "sd15-64x64", 4, "layout"),
    ("pixels", "sd15-16x16", 4, "none"),
    ("forward", "d128-k256", 4, "none"),
)
PROFILED = (("large-d64", 4, "none"), ("sd15-64x64", 4, "layout"))
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
        return interleave(functions, rounds=3, sample_s=1e-6)

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


# ---- device ----


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


def nvidia_smi(query: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"


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


# ---- correctness ----


def correctness(work: Work) -> None:
    """The case table in every dtype, over several processes: compiling takes most of the time."""
    scores = [c.seqlen_q * c.seqlen_k * c.prompts * c.heads for c in CASES]
    small = [i for i, count in enumerate(scores) if count <= 5_000]
    indices = small if work.dry_run else list(range(len(CASES)))
    numbers = ("float32",) if work.dry_run else tuple(NUMBERS)
    (backend,) = work.backends
    tasks = [(name, index) for name in numbers for index in indices]
    failures: dict[str, list[str]] = {name: [] for name in numbers}
    done: Counter[str] = Counter()
    work.doing(f"{len(tasks)} cases")

    def note(name: str, failure: str) -> None:
        done[name] += 1
        failures[name] += [failure] if failure else []

    if work.dry_run:
        for name, index in tasks:
            if work.left() > 0:
                work.doing(f"{CASES[index]!r}, {name}")
                note(name, check_case(backend, name, work.device, index))
    else:
        processes = pool(workers())
        jobs = {processes.submit(check_case, backend, n, work.device, i): n for n, i in tasks}
        try:
            for job in as_completed(jobs, timeout=max(0.0, work.left())):
                note(jobs[job], _failure(job))
        except OutOfTime:
            processes.shutdown(wait=False, cancel_futures=True)
    for name in numbers:
        result, detail = "ok", f"{len(indices)} cases, forward and all gradients"
        if failures[name]:
            result = "FAILED"
            detail = f"{len(failures[name])} of {done[name]} cases: {'; '.join(failures[name])}"
        elif done[name] < len(indices):
            result = "FAILED"
            detail = f"time for {done[name]} of {len(indices)} cases, which are right"
        row = {"check": f"correctness {name}", "result": result, "detail": detail}
        work.row("checks", backend=backend, **row)


def _failure(job: Future[str]) -> str:
    error = job.exception()
    return job.result() if error is None else f"{type(error).__name__} {first_line(error)}"


def check_case(backend: str, numbers: str, device: str, index: int) -> str:
    """What is wrong with a case of the table; "" if nothing is."""
    dtype, precision = NUMBERS[numbers]
    torch.set_float32_matmul_precision(precision)
    plain = "plain tf32" if numbers == "tf32" else "plain"
    draws = 3 if device == "cuda" else 1
    try:
        case = CASES[index]
        assert_within_twice_plain(case, backend, dtype, draws=draws, device=device, plain=plain)
    except Exception as error:  # Each failing case is reported by name.
        return f"{CASES[index]!r}: {type(error).__name__} {first_line(error)}"
    return ""


# ---- tiles of the Triton kernels ----


def tiles(work: Work) -> None:
    """The tiles from which bench/tune_triton.py begins, and two-change moves from the table's."""
    if "triton" not in work.backends:
        return
    if work.dry_run:
        for region in ("none", "layout"):
            _time_tiles(work, "forward", *case_of("tiny", 2, region), (8, 0), {})
        return
    target = divmod(capability(), 10)
    chosen = [(kernel, *case_of(*rest)) for kernel, *rest in TILED]
    processes = pool(workers())
    jobs: dict[int, dict[Tile, Future[Compiled]]] = {}
    for i, (kernel, _, case) in enumerate(chosen):
        candidates = candidate_tiles(kernel, case, target[0])
        jobs[i] = {t: processes.submit(ready_tile, kernel, case, target, t) for t in candidates}
    for i, (kernel, name, case) in enumerate(chosen):
        if work.left() < 5:
            work.not_run("tiles", f"{kernel} {name} and later: time used up")
            break
        guarded(work, f"tiles of {kernel} {name}", _time_tiles, kernel, name, case, target, jobs[i])
    processes.shutdown(wait=False, cancel_futures=True)


def tile_row(kernel: str, case: Case, major: int, precision: str = "half") -> TileRow:
    key = kernel, major, precision, case.region is not None
    (row,) = (row for row in rows() if row[:4] == key)
    return row


# What the two-change moves of a GPU check are made of; tune_triton --changes 2 tries all.
_MOVES = ("block_q", "warps", "registers")


def candidate_tiles(kernel: str, case: Case, major: int) -> list[Tile]:
    """The table's tile, then those to be tried against it."""
    row = tile_row(kernel, case, major)
    tile = starting_tile(row, case.head_dim)
    twice = (
        t
        for t in neighbours(tile, changes=2)
        if t.block_q == 128 and t.warps == 8 and t.registers in (None, 128, 168)
    )
    only = [t for t in twice if t._replace(**{n: getattr(tile, n) for n in _MOVES}) == tile]
    return list(dict.fromkeys([*starts(kernel, case.head_dim, tile), *only]))


def tile_launch(
    kernel: str, e: Example, target: tuple[int, int], tile: Tile
) -> tuple[Launch, torch.Tensor]:
    """The launch of an example, and what it writes: out or dq."""
    scale = e.q.shape[-1] ** -0.5
    inputs = Inputs(e.q, e.k, e.v, e.weight, None, None, e.region, None, e.plan, scale)
    written = torch.empty_like(e.q)
    if kernel == "forward":
        return forward_launch(inputs, written, target, tile), written
    stats = e.weight.new_empty((1, e.q.shape[1], *e.weight.shape)).unbind()
    return pixel_launch(inputs, e.dout, written, stats, target, tile), written


def ready_tile(kernel: str, case: Case, target: tuple[int, int], tile: Tile) -> Compiled:
    """Compiles a tile in a process of its own, so that the one that times it finds it on disk."""
    number = 10 * target[0] + target[1]
    region = case.region is not None
    variant = Variant(kernel, number, case.head_dim, case.seqlen_k, DTYPE_OF_TIMES, region)
    compiled = compile_variant(variant, tile)
    if compiled.fits(number):
        e = large_example(case, DTYPES[DTYPE_OF_TIMES], "meta")
        launch, _ = tile_launch(kernel, e, target, tile)
        # Where it fails, the process that times the tile compiles it, or says why not.
        with contextlib.suppress(Exception):
            launch.kernel.warmup(*launch.arguments, grid=(launch.programs,), **launch.options)
    return compiled


def _time_tiles(
    work: Work,
    kernel: str,
    name: str,
    case: Case,
    target: tuple[int, int],
    jobs: dict[Tile, Future[Compiled]],
) -> None:
    work.doing(f"tiles of {kernel} {name}")
    e = large_example(case, work.dtype, work.device)
    reference = Reference(e)
    table = starting_tile(
        tile_row(kernel, case, target[0], "ieee" if work.dry_run else "half"), case.head_dim
    )
    functions: dict[Tile, Callable[[], object]] = {}
    registers: dict[Tile, int | str] = {}
    notes: dict[Tile, str] = {}
    for tile in jobs or (table, table._replace(block_q=16)):
        work.doing(f"{tile} of {kernel} {name}")
        try:
            if jobs:
                compiled = jobs[tile].result(max(0.0, work.left()))
                registers[tile] = compiled.registers
                if not compiled.fits(10 * target[0] + target[1]):
                    notes[tile] = f"does not fit: {compiled}"
                    continue
            launch, written = tile_launch(kernel, e, target, tile)
            run(launch, e.q.device)
            used = reference.error_used(written, "out" if kernel == "forward" else "dq")
        except Exception as error:  # Of many kinds: from Triton, LLVM, ptxas and the GPU.
            notes[tile] = f"{type(error).__name__}: {first_line(error)}"
            finish(work)
            continue
        if used > 1:
            notes[tile] = f"wrong: {used:.2f} times the error that is allowed"
        else:
            functions[tile] = partial(run, launch, e.q.device)
    found = work.timed({str(i): f for i, f in enumerate(functions.values())})
    timings = dict(zip(functions, found.values(), strict=True))
    for tile in [*sorted(timings, key=lambda t: timings[t].median), *notes]:
        timing = timings.get(tile)
        work.row(
            "tiles",
            kernel=kernel,
            case=name,
            tile=", ".join(f"{k} {v}" for k, v in tile._asdict().items() if k != "head_dim"),
            **{
                "in table": "yes" if tile == table else "",
                "registers used": registers.get(tile, ""),
                "ms median (p20-p80)": str(timing or ""),
                "x table's": ratio(timings[table], timing) if timing and table in timings else "",
                "note": notes.get(tile, ""),
                "_tile": tile._asdict(),
                "_seconds": timing and asdict(timing),
            },
        )


# ---- checks of single properties ----


def machine_code(work: Work) -> None:
    """Looks for code that is known to be wrong (`compile.undefined_registers`).

    Runs of the case table need not show it: what a register holds by chance decides.
    """
    if "triton" not in work.backends:
        return
    if work.dry_run:
        work.not_run("machine code", "the interpreter has none")
    else:
        work.check("machine code", "triton", partial(_machine_code, work))


def _machine_code(work: Work) -> str:
    variants = [
        Variant(kernel, capability(), head_dim, 77, dtype, region, ragged)
        for kernel in KERNELS
        for head_dim in (40, 64, 72, 80, 128, 160)
        for dtype in ("float16", "bfloat16")
        for region, ragged in ((False, False), (True, False), (False, True))
    ]
    processes, wrong, done = pool(workers()), [], 0
    jobs = {processes.submit(compile_variant, v): v for v in variants}
    try:
        for job in as_completed(jobs, timeout=max(0.0, work.left())):
            done += 1
            wrong += [repr(jobs[job])] if job.result().undefined else []
    except OutOfTime:
        processes.shutdown(wait=False, cancel_futures=True)
    assert not wrong, f"{len(wrong)} of {done} read what nothing wrote: {', '.join(wrong)}"
    assert done == len(variants), f"time for {done} of {len(variants)} kernels, which are right"
    return f"{done} kernels, none reads a register that nothing wrote"


def determinism(work: Work) -> None:
    for backend in work.backends:
        work.check("determinism", backend, partial(_determinism, work, backend))


def _determinism(work: Work, backend: str) -> str:
    repeats = 1 if work.dry_run else 100
    ragged = Case(batch=4, heads=2, seqlen_q=65, prompts=3, ragged=True)
    blobs = Case(batch=2, heads=2, seqlen_q=130, prompts=4, region="blobs")
    for case in (ragged, blobs):
        if work.dry_run:
            case = Case(**{**vars(case), "heads": 1, "seqlen_q": 20, "seqlen_k": 9, "head_dim": 8})
        e = example(case, _half(work), work.device)
        first = results(e, backend)
        for _ in range(repeats):
            again = results(e, backend)
            different = [name for name in first if not torch.equal(first[name], again[name])]
            assert not different, f"{case!r}: {', '.join(different)} changed from call to call"
    return f"{repeats} repeats bit-identical, gradients too"


def _on_gpu(work: Work, name: str, run: Callable[[Work, str], str]) -> None:
    """A check of each backend that only a GPU can run."""
    if work.device == "cpu":
        work.not_run(name, "needs a GPU")
        return
    for backend in work.backends:
        work.check(name, backend, partial(run, work, backend))


def _half(work: Work) -> torch.dtype:
    return torch.float32 if work.device == "cpu" else torch.float16


def cuda_graph(work: Work) -> None:
    _on_gpu(work, "cuda graph", _cuda_graph)


def _cuda_graph(work: Work, backend: str) -> str:
    """Captures forward and backward, replays on other values, compares with a direct call."""
    case = Case(batch=4, heads=2, seqlen_q=65, prompts=3, ragged=True)
    e = example(case, torch.float16, work.device)
    assert e.prompt_ids is not None
    assert e.offsets is not None
    prompt_ids, offsets = e.prompt_ids, e.offsets
    kept: dict[str, torch.Tensor] = {}

    def call() -> None:
        # Without validate=True: it would read the indices on the host, which capture forbids.
        out = blended_attention_ragged(
            e.q,
            e.k,
            e.v,
            e.weight,
            prompt_ids,
            offsets,
            key_lengths=e.key_lengths,
            backend=backend,
        )
        grads = torch.autograd.grad(out, e.floats(), e.dout)
        kept.update(zip(("out", "dq", "dk", "dv", "dweight"), (out, *grads), strict=True))

    graph = captured(call)
    with torch.no_grad():
        for x in e.floats():
            x.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    direct = results(e, backend)
    different = [name for name in direct if not torch.equal(direct[name], kept[name])]
    assert not different, f"{', '.join(different)} differ between replay and call"
    return "forward and all gradients captured and replayed on new values"


def step_batching(work: Work) -> None:
    for backend in work.backends:
        work.check("step batching", backend, partial(_step_batching, work, backend))


def _step_batching(work: Work, backend: str) -> str:
    """Captures the operator on the buffers of examples/step_batching.py, then replays it.

    On the CPU it is called where a GPU replays it.
    """
    batch = StepBatch(rows=4, entries=8, dtype=_half(work), device=work.device, backend=backend)
    kept: dict[str, torch.Tensor] = {}

    def call() -> None:
        kept["out"] = batch.attend()

    batch.pack()
    replay = captured(call).replay if work.device == "cuda" else call
    waiting = random_requests()
    counts: list[int] = []
    while waiting or any(batch.requests):
        while waiting and batch.join(waiting[0]):
            del waiting[0]
        batch.pack()
        replay()
        out, direct = kept["out"], batch.attend()
        assert torch.equal(out, direct), f"step {len(counts)} differs between replay and call"
        there = [request is not None for request in batch.requests]
        drawn = out.flatten(1).any(1).tolist()
        assert drawn == there, f"step {len(counts)} must draw the rows {there}, got {drawn}"
        counts.append(batch.advance(out))
    how = "replayed" if work.device == "cuda" else "called"
    return f"{len(counts)} steps of {min(counts)} to {max(counts)} rows {how}, empty rows are 0"


def compiled(work: Work) -> None:
    for backend in work.backends:
        work.check("torch.compile", backend, partial(_compiled, work, backend))


def _compiled(work: Work, backend: str) -> str:
    size = {"seqlen_q": 20, "seqlen_k": 9, "head_dim": 8} if work.dry_run else {"seqlen_q": 65}
    e = example(Case(heads=2, region="blobs", **size), _half(work), work.device)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return blended_attention(*tensors, region=e.region, backend=backend)

    out = torch.compile(function, fullgraph=True)(*e.floats())
    grads = torch.autograd.grad(out, e.floats(), e.dout)
    direct = results(e, backend)
    for name, actual in zip(("out", "dq", "dk", "dv", "dweight"), (out, *grads), strict=True):
        assert torch.equal(actual, direct[name]), f"{name} differs from the call without compile"
    return "fullgraph, forward and all gradients equal"


_SANITIZED = """
import torch
from stal_kernels.testing import Case, example, results
for case in (Case(batch=2, heads=2, seqlen_q=33, region="blobs"),
             Case(batch=4, heads=1, seqlen_q=17, seqlen_k=130, prompts=3, ragged=True)):
    results(example(case, torch.float16, "cuda"), "{backend}")
torch.cuda.synchronize()
"""


def sanitizer(work: Work) -> None:
    _on_gpu(work, "compute-sanitizer", _sanitizer)


def tool(name: str) -> str:
    """The path of one of CUDA's programs."""
    path = shutil.which(name) or f"/usr/local/cuda/bin/{name}"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name} is not on PATH nor in /usr/local/cuda/bin")
    return path


def _sanitizer(work: Work, backend: str) -> str:
    command = [tool("compute-sanitizer"), "--tool", "memcheck", "--error-exitcode", "7"]
    # PyTorch's own pool would hide reads behind the end of a tensor.
    environment = {**_environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [*command, sys.executable, "-c", _SANITIZED.format(backend=backend)],
        capture_output=True,
        text=True,
        timeout=max(1.0, work.left()),
        env=environment,
    )
    text = (done.stdout + done.stderr).strip()
    assert done.returncode == 0, f"exit code {done.returncode}: {' '.join(text.split())[-500:]}"
    return text.splitlines()[-1].strip("= ")


def _environment() -> dict[str, str]:
    """That of a Python that finds what this one found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


# ---- times ----


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


def times(work: Work) -> None:
    """The shapes that say most; one row a function."""
    _times(work, ("tiny",) if work.dry_run else FIRST)


def rest(work: Work) -> None:
    """The other shapes, until the time is used up."""
    _times(work, () if work.dry_run else [label for label in SHAPES if label not in FIRST])


def _times(work: Work, labels: Sequence[str]) -> None:
    for name, case in timed_cases(labels):
        if work.left() < min(5.0, 0.1 * work.seconds):
            work.not_run("times", f"{name} and later: time used up")
            return
        guarded(work, f"times of {name}", _time_case, name, case)


def timed_cases(labels: Sequence[str]) -> Iterator[tuple[str, Case]]:
    every = ("none", "disjoint", "bands", "layout")
    asked: list[tuple[str, int, tuple[str, ...]]] = [
        (n, count, every) for n in labels for count in (1, 2 if n == "tiny" else 4)
    ]
    asked += [(n, count, ("none", "layout")) for n in labels if n in DETAILED for count in (2, 8)]
    for label, prompts, regions in asked:
        shape = TINY if label == "tiny" else SHAPES[label]
        for suffix, case in with_regions(shape, prompts, regions):
            yield f"{label} {suffix}", case


def _time_case(work: Work, name: str, case: Case) -> None:
    work.doing(f"times of {name}")
    e = large_example(case, work.dtype, work.device)
    reference = Reference(e)
    scores = case.batch * case.heads * case.seqlen_q * case.seqlen_k * case.prompts
    for pass_name in ("forward", "dq+dweight"):
        wanted = PASSES[pass_name][1]
        functions = {
            "loop": rival(loop, e, wanted),
            "one SDPA": rival(one_sdpa, e, wanted),
            **checked(work, e, reference, wanted),
        }
        # Its scores in memory: beyond some GB they tell nothing.
        if scores * work.dtype.itemsize < 4e9:
            functions = {"eager": rival(eager, e, wanted), **functions}
        if name in COMPILED_FORMULA and pass_name == "forward":
            torch.compiler.reset()
            functions["compiled"] = rival(torch.compile(eager, dynamic=False), e, wanted)
        work.doing(f"{pass_name} of {name}")
        found = work.timed(functions)
        time_rows(work, name, case, pass_name, found, list(found))


def checked(
    work: Work, e: Example, reference: Reference, wanted: str
) -> dict[str, Callable[[], object]]:
    """Our backends by name, whose first result has been compared with plain PyTorch's.

    With regions each comes again with a plan of them.
    """
    functions = {}
    examples = {"": e} if e.region is None else {"": e, PLANNED: replace(e, plan=plan(e.region))}
    for backend, (mark, each) in itertools.product(work.backends, examples.items()):
        name = f"{backend}{mark}"
        function = functions[name] = ours(backend, each, wanted)
        made: Any = function()
        used = reference.error_used(made[0], "dq") if wanted else reference.error_used(made)
        assert used <= 1, f"{name} makes {used:.2f} times the error that is allowed"
    return functions


def time_rows(
    work: Work,
    name: str,
    case: Case,
    pass_name: str,
    found: dict[str, Timing],
    shown: Iterable[str],
    notes: dict[str, str] | None = None,
) -> None:
    """Adds the rows of some of the functions that were timed together.

    notes: why others were not, by name.
    """
    factor, wanted = PASSES[pass_name]
    pairs = case.batch * case.heads * case.seqlen_q * case.seqlen_k * case.head_dim
    dtype_name = "float32" if work.dry_run else DTYPE_OF_TIMES
    labels = {"case": name, "dtype": dtype_name, "pass": pass_name}
    predicted = predicted_ms(case, dtype_name, wanted, work.facts.get("gpu", "none"))
    moved = work_of(case, work.dtype.itemsize, wanted).bytes
    gemm, copy = (work.facts.get(fact) for fact in ("gemm TFLOP/s", "copy GB/s"))
    for function in shown:
        timing = found[function]
        flops = factor * pairs * (1 if function.startswith("one SDPA") else present(case))
        rate, bandwidth = flops / timing.median, moved / timing.median / 1e9
        is_ours = function.removesuffix(PLANNED) in work.backends
        others = ("eager", "loop", "one SDPA", *work.backends)
        work.row(
            "times",
            **labels,
            backend=function,
            **{
                "ms median (p20-p80)": str(timing),
                **{f"x {o}": ratio(found[o], timing) if o in found else "" for o in others},
                "TFLOP/s": f"{rate / 1e12:.3g}",
                "of gemm": f"{rate / 1e12 / gemm:.0%}" if gemm else "",
                # Of what the fused kernels have to move: others move more.
                "GB/s": f"{bandwidth:.3g}" if is_ours else "",
                "of copy": f"{bandwidth / copy:.0%}" if is_ours and copy else "",
                "predicted ms": _range(predicted) if is_ours else "",
                "note": "",
                "_seconds": asdict(timing),
                "_beside": {n: asdict(t) for n, t in found.items() if n not in shown},
            },
        )
    for function, note in (notes or {}).items():
        work.row("times", **labels, backend=function, note=note, _seconds=None)


def _range(bounds: tuple[float, float] | None) -> str:
    return f"{bounds[0]:.3g}-{bounds[1]:.3g}" if bounds else ""


def rivals(label: str, prompts: int, region: str, work: Work) -> None:
    """Libraries' kernels beside ours; those that are compiled first come last."""
    name, case = case_of(label, prompts, region)
    guarded(work, f"rivals: {name}", _time_rivals, name, case)


def _time_rivals(work: Work, name: str, case: Case) -> None:
    work.doing(f"rivals: {name}")
    e = large_example(case, work.dtype, work.device)
    reference = Reference(e)
    known = {
        "loop": rival(loop, e, ""),
        "one SDPA": rival(one_sdpa, e, ""),
        **checked(work, e, reference, ""),
    }
    for group in (READY, COMPILED):
        functions, reasons = prepared(
            group, e, reference, lambda rival: work.doing(f"{rival} of {name}")
        )
        work.doing(f"{', '.join(functions)} of {name}")
        found = work.timed({**known, **functions}) if functions else {}
        time_rows(work, name, case, "forward", found, functions, reasons)


# ---- where the time goes ----

# Kernels of a forward pass, as the profiler calls them.
KERNEL_NAMES = {"triton": "forward"}
_PROFILED = """
import torch
from gpu_steps import DTYPES, DTYPE_OF_TIMES, case_of, large_example
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
        env=_environment(),
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


def host_time(work: Work) -> None:
    """Microseconds that the calling thread spends on a call of the smallest shape."""
    for backend in work.backends:
        work.check("host time", backend, partial(_host_time, work, backend))


def _host_time(work: Work, backend: str) -> str:
    case = TINY if work.dry_run else Case(seqlen_q=64, head_dim=40, prompts=1)
    e = example(case, _half(work), work.device)
    functions: dict[str, Callable[[], object]] = {
        "one SDPA": rival(one_sdpa, e, ""),
        backend: ours(backend, e, ""),
        f"{backend}, gradient recorded": lambda: e.run(backend),
    }
    calls = 3 if work.dry_run else 200
    shown = []
    for name, function in functions.items():
        function()
        samples = []
        for _ in range(5):
            finish(work)
            start = time.perf_counter()
            for _ in range(calls):
                function()
            samples.append((time.perf_counter() - start) / calls)
        micros = statistics.median(samples) * 1e6
        work.row("host", call=name, **{"host us": f"{micros:.1f}"})
        shown.append(f"{name} {micros:.1f} us")
    return ", ".join(shown)
