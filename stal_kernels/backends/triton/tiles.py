"""How a kernel is cut and compiled for a call: the table of tiles, and what follows from it."""

import functools
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from stal_kernels.backends.triton.geometry import Problem, View, strides_of


class Tile(NamedTuple):
    """How a kernel is cut and compiled for head_dims up to `head_dim`.

    block_q: pixels of a program, or of one step of it.
    warps: of a program.
    stages: of the compiler's software pipeline.
    widest: pieces of head_dim, of keys.
    whole_row: more keys than this come in tiles, of key_tile keys each.
    registers: of a thread, with up to 80 keys, all at once; more are compiled with as many as they
        need. None: the compiler weighs them against occupancy.
    fold: of "forward" without regions, with keys all at once: the weight goes into the factors of
        the second product, instead of its result, which needs an accumulator of its own.
    planned: what differs with a plan, which takes registers of its own: names and values.
    """

    head_dim: int
    block_q: int
    warps: int
    stages: int
    widest: tuple[int, int] = (128, 64)
    whole_row: int = 128
    key_tile: int = 64
    registers: int | None = None
    fold: bool = True
    planned: tuple[tuple[str, Any], ...] = ()


class TileRow(NamedTuple):
    """Tiles of one kernel, in the order of head_dim.

    kernel: "forward", "pixels" or "prompts".
    capability: major compute capability, 8 or 9; later ones take the last.
    precision: of products: "half" (float16, bfloat16), or for float32 "ieee" or "tf32".
    region: whether there are regions or lengths, so that prompts may be skipped.
    source: "cost model" if nothing has been measured, otherwise the GPU.
    """

    kernel: str
    capability: int
    precision: str
    region: bool
    source: str
    tiles: tuple[Tile, ...]


TABLE = Path(__file__).with_name("tiles.json")


@functools.cache
def rows() -> tuple[TileRow, ...]:
    """The table of tiles, which bench/tune_triton.py writes."""
    found = json.loads(TABLE.read_text(encoding="utf-8"))
    for row in found:
        row["tiles"] = tuple(map(_tile, row["tiles"]))
    return tuple(TileRow(**row) for row in found)


def _tile(fields: dict[str, Any]) -> Tile:
    """A tile of the file, in which tuples are lists; planned is one, or an object."""
    planned = _tuples(dict(fields.get("planned", ())))
    return Tile(**{**_tuples(fields), "planned": tuple(planned.items())})


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}


def tile_of(kernel: str, problem: Problem, capability: tuple[int, int]) -> Tile:
    """The table's choice. What decides is registers, since a warp works on 16 rows or more."""
    skips = problem.region is not None or problem.has_lengths
    key = kernel, min(capability[0], 9), problem.precision, skips
    (row,) = (row for row in rows() if row[:4] == key)
    return next(tile for tile in row.tiles if problem.head_dim <= tile.head_dim)


def options_of(
    kernel: str,
    problem: Problem,
    others: tuple[View, ...],
    capability: tuple[int, int],
    tile: Tile | None,
) -> dict[str, Any]:
    """Constants and compiler options of a kernel, by name.

    Args:
        kernel: "forward", "pixels" or "prompts".
        others: the matrices of rows of head_dim that it has beside q, k and v.
        tile: instead of the table's.
    """
    full = problem.precision == "ieee"
    # Gradients of wide rows in full precision have no registers for a plan, and make no use of it.
    no_room = kernel == "pixels" and full and problem.head_dim > 64
    planned = problem.planned and kernel != "prompts" and not no_room
    if tile is None:
        tile = tile_of(kernel, problem, capability)
        if planned and full:
            # Without a plan they fill all registers; with one some would be spilled.
            tile = tile._replace(block_q=max(8, tile.block_q // 2))
    if planned:
        tile = tile._replace(**dict(tile.planned))
    strides = [
        abs(stride) for x in (problem.q, problem.k, problem.v, *others) for stride in strides_of(x)
    ]
    tiled = problem.seqlen_k > tile.whole_row
    many = tiled or problem.seqlen_k > 80
    # A tile of pixels has at most 128 rows, which with a plan lie anywhere.
    rows = max(128, problem.seqlen_k, problem.seqlen_q if planned else 0)
    keys = tile.key_tile if tiled else problem.seqlen_k
    k_pieces = pieces(keys, tile.widest[1])
    options = {
        "HEAD_DIM": problem.head_dim,
        "D_PIECES": pieces(problem.head_dim, tile.widest[0]),
        "K_PIECES": k_pieces,
        "FULL": 0 if problem.has_lengths else full_pieces(problem.seqlen_k, k_pieces),
        "RAGGED": problem.ragged,
        "HAS_REGION": problem.region is not None,
        "HAS_LENGTHS": problem.has_lengths,
        "NEGATIVE": problem.scale < 0,
        # A row of 8 elements is 16 bytes or more: the compiler may load it whole.
        "STRIDE": 8 if all(stride % 8 == 0 for stride in strides) else 1,
        "WIDE": max(strides) * rows >= 2**31,
        "PRECISION": "tf32" if problem.precision == "tf32" else "ieee",
        "BLOCK_Q": tile.block_q,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        # With a plan the compiler's own choice spills a few.
        "maxnreg": 255 if planned or (tile.registers and many) else tile.registers,
    }
    if kernel == "prompts":
        return options
    if kernel == "forward":
        options["FOLD"] = tile.fold
    same = problem.k.strides[-2] == problem.v.strides[-2]
    return {**options, "TILED": tiled, "SAME": same, "HAS_PLAN": planned}


def full_pieces(keys: int, k_pieces: tuple[int, ...]) -> int:
    """How many pieces of a tile have all their keys, from the first on, in each tile of `keys`.

    >>> full_pieces(77, (32, 32, 16)), full_pieces(256, (64,)), full_pieces(300, (64,))
    (2, 1, 0)
    """
    last = (keys - 1) % sum(k_pieces) + 1
    return sum(end <= last for end in itertools.accumulate(k_pieces))


def pieces(size: int, widest: int = 128) -> tuple[int, ...]:
    """At most two powers of two of 16 or more with the smallest sum that holds `size`.

    Those wider than `widest` are cut further.

    >>> [pieces(size) for size in (40, 77, 80, 128, 160)]
    [(32, 16), (64, 16), (64, 16), (128,), (128, 32)]
    """
    main = 1 << max(size.bit_length() - 1, 4)
    tail = max(16, 1 << (size - main - 1).bit_length()) if size > main else 0
    two = (2 * main,) if tail >= main else (main, tail) if tail else (main,)
    return tuple(min(piece, widest) for piece in two for _ in range(max(1, piece // widest)))
