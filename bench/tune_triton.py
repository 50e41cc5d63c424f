"""Tiles for the Triton kernels: compiles candidates and, where there is a GPU, times them.

    python bench/tune_triton.py --write                            on the GPU that is there
    python bench/tune_triton.py --capability 90 --kernels forward  without one

From the table's tile (stal_kernels/backends/triton/tiles.json) and those of STARTS the search
changes one choice at a time (--changes 2: also two, some 400 tiles a round) and goes on from the
best, --rounds times. A candidate that spills registers, finds no room in shared memory or becomes
wrong code (Compiled.undefined) is out, at any of the lengths and forms in which the kernel is
shipped. On a GPU the fastest wins, and --write puts it into the table with the GPU's name. Once
--budget has passed, no more tiles are waited for and no other row begins: what has been found so
far counts. Without a GPU the figures to compare are printed (multiply-adds issued over useful ones,
instructions of the main loop, occupancy), and --write replaces only tiles that do not fit. Needs
torch and triton alone.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from functools import partial
from pathlib import Path
from typing import Any

import torch

# The checkout itself is what is tuned, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from timing import gpu_times

from stal_kernels.backends.triton.compile import (
    KERNELS,
    SHARED_MEMORY,
    Compiled,
    Variant,
    compile_variant,
    launch_of,
)
from stal_kernels.backends.triton.launches import run
from stal_kernels.backends.triton.tiles import TABLE, Tile, TileRow, rows

PRECISIONS = {"half": ("float16", "ieee"), "ieee": ("float32", "ieee"), "tf32": ("float32", "tf32")}
# The head_dim that stands for all up to a limit.
LIMITS = {40: 48, 64: 64, 80: 96, 128: 128, 160: 160, 256: 256}
CHOICES: tuple[dict[str, Any], ...] = (
    *({"block_q": q, "warps": w} for q in (16, 32, 64, 128) for w in (1, 2, 4, 8) if q <= 32 * w),
    *({"stages": n} for n in (1, 2, 3)),
    *({"widest": w} for w in ((128, 64), (64, 64), (64, 32), (32, 32), (32, 16), (16, 16))),
    *({"whole_row": n} for n in (0, 80, 128)),
    *({"key_tile": n} for n in (16, 32, 64)),
    *({"registers": n} for n in (None, 128, 168, 255)),
    *({"fold": fold} for fold in (True, False)),
)
_OWN = {"fold": False}
# Tiles that need more than two changes, by kernel and head_dim: on paper they hide more of a
# program's fixed cost, and compiled for compute capability 9.0 nothing of them is spilled.
STARTS: dict[tuple[str, int], tuple[dict[str, Any], ...]] = {
    ("forward", 40): tuple(
        {"block_q": 128, "warps": 8, "stages": 2, "widest": (128, 64), "registers": n, "fold": f}
        for n, f in ((128, True), (168, True), (168, False))
    ),
    ("forward", 64): tuple(
        {"block_q": 128, "warps": 8, "stages": s, "widest": (128, 64), "registers": n, **_OWN}
        for s, n in ((2, 128), (3, 128), (2, 168))
    ),
    ("forward", 128): (
        {"block_q": 128, "warps": 8, "widest": (128, 64), "key_tile": 64, "registers": 255},
    ),
    ("forward", 160): ({"block_q": 128, "warps": 8, "stages": 2, "widest": (64, 64)},),
    ("pixels", 128): ({"block_q": 128, "warps": 8, "widest": (64, 64), "whole_row": 128},),
    ("pixels", 160): (
        {"block_q": 128, "warps": 8, "stages": 2, "widest": (64, 64), "whole_row": 128},
    ),
}
# A tile that is this much faster replaces the table's: less is noise.
_GAIN = 0.97
# So many of the fastest are tried in all forms at a time.
_TRIED = 4

Results = dict[Tile, list[Compiled]]


def starts(kernel: str, head_dim: int, tile: Tile) -> list[Tile]:
    """Where the search begins: the table's tile and those of STARTS."""
    return [tile, *(tile._replace(**changes) for changes in STARTS.get((kernel, head_dim), ()))]


def neighbours(tile: Tile, changes: int = 1) -> Iterator[Tile]:
    """The tile itself and all that differ from it in one choice, or in up to `changes`."""
    seen = set()
    for count in range(changes + 1):
        for moves in itertools.combinations(CHOICES, count):
            changed = tile._replace(**{name: x for move in moves for name, x in move.items()})
            if changed not in seen:
                seen.add(changed)
                yield changed


def variants(row: TileRow, head_dim: int) -> list[Variant]:
    """The forms in which a row's kernel is shipped; the first is the one that is timed."""
    dtype, precision = PRECISIONS[row.precision]
    capability = row.capability * 10
    # Region, ragged, plan.
    forms: list[tuple[bool, bool, bool]] = [(False, False, False)]
    if row.region:
        forms = [(True, False, False), (True, True, False), (False, True, False)]
        forms += [(True, False, True)] * (row.kernel != "prompts")
    return [
        Variant(row.kernel, capability, head_dim, seqlen_k, dtype, region, ragged, precision, plan)
        for seqlen_k in (77, 300)
        for region, ragged, plan in forms
    ]


def attempt(variant: Variant, tile: Tile) -> Compiled | None:
    """None where the compiler refuses the tile."""
    try:
        return compile_variant(variant, tile)
    except Exception as error:  # Of many kinds: from Triton, LLVM and ptxas.
        lines = str(error).strip().splitlines() or [""]
        print(f"{variant!r} {tile}: {type(error).__name__} {lines[0][:120]}", file=sys.stderr)
        return None


class Compiler:
    """Compiles each form of each tile once. After `until`, of time.monotonic, it waits for none."""

    def __init__(self, pool: ProcessPoolExecutor, until: float = float("inf")) -> None:
        self.pool, self.until = pool, until
        self.jobs: dict[tuple[Variant, Tile], Future[Compiled | None]] = {}

    def fitting(self, row: TileRow, forms: Sequence[Variant], tiles: Sequence[Tile]) -> Results:
        """What became of the tiles that fit in every one of the forms."""
        # A tile after the other, so that those that are there when the time is up are complete.
        for tile, form in itertools.product(tiles, forms):
            if (form, tile) not in self.jobs:
                self.jobs[form, tile] = self.pool.submit(attempt, form, tile)
        results = {}
        for tile in tiles:
            compiled = [self._result(self.jobs[form, tile]) for form in forms]
            kept = [c for c in compiled if c is not None and c.fits(row.capability * 10)]
            if len(kept) == len(forms):
                results[tile] = kept
        return results

    def _result(self, job: Future[Compiled | None]) -> Compiled | None:
        """None too where it would come too late."""
        left = self.until - time.monotonic()
        try:
            return job.result(None if left == float("inf") else max(left, 0.0))
        except (OutOfTime, CancelledError):
            job.cancel()
            return None


def starting_tile(row: TileRow, head_dim: int) -> Tile:
    return next(tile for tile in row.tiles if head_dim <= tile.head_dim)


def ranked(row: TileRow, head_dim: int, results: Results, device: str) -> dict[Tile, float]:
    """Seconds of each tile on a GPU; without one, a figure to sort by. Lowest first."""
    if device == "cpu":
        costs = {t: max(c.issued for c in r) - 1e-3 * r[0].occupancy for t, r in results.items()}
    else:
        variant = variants(row, head_dim)[0]
        functions: dict[str, Callable[[], object]] = {}
        for i, tile in enumerate(results):
            launch = launch_of(variant, tile, device=device)
            functions[str(i)] = partial(run, launch, torch.device(device))
        timings = gpu_times(functions, rounds=10)
        costs = {tile: timings[str(i)].median for i, tile in enumerate(results)}
    return dict(sorted(costs.items(), key=lambda item: item[1]))


def tune(
    compiler: Compiler,
    row: TileRow,
    head_dim: int,
    *,
    rounds: int,
    device: str,
    changes: int = 1,
) -> tuple[Tile, bool]:
    """The tile for a head_dim, and whether it may replace the table's."""
    tile = first = starting_tile(row, head_dim)
    costs: dict[Tile, float] = {}
    for done in range(rounds):
        forms = variants(row, head_dim)
        begin = [] if done else starts(row.kernel, head_dim, tile)
        tiles = list(dict.fromkeys([*begin, *neighbours(tile, changes)]))
        if device == "cpu":
            results = compiler.fitting(row, forms, tiles)
            found = ranked(row, head_dim, results, device)
        else:
            # The other forms are compiled of what would win alone: the fastest few, or the next.
            results = compiler.fitting(row, forms[:1], tiles)
            ranking = ranked(row, head_dim, results, device)
            kept = compiler.fitting(row, forms[1:], [first])
            for i in range(0, len(ranking), _TRIED):
                batch = list(ranking)[i : i + _TRIED]
                kept |= compiler.fitting(row, forms[1:], batch)
                if any(t in kept for t in batch):
                    break
            found = {t: cost for t, cost in ranking.items() if t in kept}
        for candidate, cost in list(found.items())[:4]:
            compiled = results[candidate][0]
            mark = "*" if candidate == first else " "
            unit = f"{cost * 1e6:8.1f} us" if device != "cpu" else ""
            print(
                f"{mark} {row.kernel} {row.capability}.x {row.precision} region={row.region} "
                f"d{head_dim} {unit} issued {compiled.issued:.3f} loop {compiled.loop:.0f} "
                f"registers {compiled.registers} occupancy {compiled.occupancy:.2f} {candidate}",
                flush=True,
            )
        costs |= found
        best = next(iter(found), tile)
        if best == tile:
            break
        tile = best
    if first not in costs:
        # It does not fit, unless there was no time to see that it does.
        return tile, bool(costs) and time.monotonic() < compiler.until
    return tile, device != "cpu" and costs[tile] < _GAIN * costs[first]


def render(table: Sequence[TileRow]) -> str:
    """The table as JSON, a line a tile."""
    parts = []
    for row in table:
        head = json.dumps({k: v for k, v in row._asdict().items() if k != "tiles"})
        tiles = ",\n".join(f"  {json.dumps(_fields(tile))}" for tile in row.tiles)
        parts.append(f'{head[:-1]}, "tiles": [\n{tiles}]}}')
    return "[\n" + ",\n".join(parts) + "\n]\n"


def _fields(tile: Tile) -> dict[str, Any]:
    fields = tile._asdict()
    planned = dict(fields.pop("planned"))
    return {**fields, "planned": planned} if planned else fields


def merged(tiles: dict[int, Tile]) -> tuple[Tile, ...]:
    """One tile for neighbouring head_dims that have the same."""
    kept: list[Tile] = []
    for head_dim, tile in sorted(tiles.items()):
        limited = tile._replace(head_dim=LIMITS[head_dim])
        if kept and kept[-1][1:] == limited[1:]:
            kept.pop()
        kept.append(limited)
    return tuple(kept)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capability", type=int, choices=sorted(SHARED_MEMORY))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--head-dims", nargs="+", type=int, choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--rounds", type=int, default=1, help="choices changed one after another")
    parser.add_argument("--changes", type=int, default=1, choices=(1, 2), help="choices a change")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="replace tiles in the table")
    arguments = parser.parse_args()
    device, source, capability = "cpu", "cost model", arguments.capability
    if torch.cuda.is_available():
        device, source = "cuda", torch.cuda.get_device_name()
        present = 90 if torch.cuda.get_device_capability()[0] >= 9 else 80
        if capability not in (None, present):
            parser.error(f"--capability must be that of the GPU, {present}, got {capability}")
        capability = present
    elif capability is None:
        parser.error("--capability is needed where there is no GPU")

    start = time.monotonic()
    table = list(rows())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
        compiler = Compiler(pool, start + arguments.budget)
        chosen = {
            i: row
            for i, row in enumerate(table)
            if row.kernel in arguments.kernels
            and row.precision in arguments.precisions
            and row.capability * 10 == capability
        }
        for i, row in chosen.items():
            if time.monotonic() - start > arguments.budget:
                print(f"time used up: {row.kernel} {row.precision} region={row.region} not tuned")
                continue
            tiles = {d: starting_tile(row, d) for d in LIMITS}
            changed = False
            for head_dim in arguments.head_dims:
                tile, worth = tune(
                    compiler,
                    row,
                    head_dim,
                    rounds=arguments.rounds,
                    device=device,
                    changes=arguments.changes,
                )
                if worth:
                    tiles[head_dim], changed = tile, True
            if set(arguments.head_dims) != set(LIMITS):
                # Only a part of the row has the new source.
                own = " and ".join(dict.fromkeys((row.source, source)))
            else:
                own = source
            if device == "cuda" or changed:
                table[i] = row._replace(tiles=merged(tiles), source=own)
                if arguments.write:
                    TABLE.write_text(render(table), encoding="utf-8")


if __name__ == "__main__":
    main()
