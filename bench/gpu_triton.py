"""Steps of gpu_check.py about the Triton kernels alone: other tiles, and wrong machine code."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, as_completed
from concurrent.futures import TimeoutError as OutOfTime
from dataclasses import asdict
from functools import partial

import torch
from bench_blended_attention import ratio
from gpu_work import (
    DTYPE_OF_TIMES,
    DTYPES,
    Work,
    capability,
    case_of,
    finish,
    guarded,
    large_example,
    pool,
    workers,
)
from rivals import Reference, first_line
from tune_triton import neighbours, starting_tile, starts

from stal_kernels.backends import Inputs
from stal_kernels.backends.triton.compile import KERNELS, Compiled, Variant, compile_variant
from stal_kernels.backends.triton.launches import Launch, forward_launch, pixel_launch, run
from stal_kernels.backends.triton.tiles import Tile, TileRow, rows
from stal_kernels.testing import Case, Example

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
