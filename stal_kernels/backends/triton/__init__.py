"""Triton kernels on NVIDIA GPUs: what they are launched with. Device code: kernels.py.

Everything here depends on shapes, dtypes and strides alone, so that a call waits for nothing, can
be captured in a CUDA graph, and gives the same bits every time.
"""

import contextlib
import functools
import importlib
import itertools
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stal_kernels.backends import Inputs

LEVELS: tuple[str, ...] = ()
DEVICES: tuple[str, ...] = ("cuda",)

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_CAPABILITY = (8, 0)


@functools.cache
def missing(level: str) -> str:
    """Why Triton kernels cannot run on this machine; "" if they can."""
    try:
        interpreted = _interpreted()
    except (ImportError, OSError, RuntimeError) as error:
        return f"triton is missing: {error}"
    if not interpreted and not torch.cuda.is_available():
        return "triton is missing a GPU: torch.cuda.is_available() is False"
    return ""


def why_not(
    device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int | None
) -> list[str]:
    """Reasons why such tensors are none of its business."""
    reasons = []
    if device.type == "cuda":
        reasons += _against_gpu(device.index)
    elif device.type != "cpu" or missing("") or not _interpreted():
        reasons.append(
            "triton needs tensors on a CUDA GPU, or on the CPU with TRITON_INTERPRET=1, "
            f"got {device}"
        )
    if dtype not in _DTYPES:
        reasons.append(f"triton needs float16, bfloat16 or float32, got {dtype}")
    if head_dim % 8 or head_dim > 256:
        reasons.append(
            f"triton needs a head_dim that is a multiple of 8 and at most 256, got {head_dim}"
        )
    return reasons


def forward(inputs: Inputs, level: str, out: Tensor) -> None:
    if _is_empty(inputs):
        out.zero_()
    else:
        run(forward_launch(inputs, out, _capability(out.device)), out.device)


def backward(
    inputs: Inputs,
    level: str,
    dout: Tensor,
    dq: Tensor | None,
    dweight: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
) -> None:
    if _is_empty(inputs):
        for gradient in (dq, dweight, dk, dv):
            if gradient is not None:
                gradient.zero_()
        return
    device, capability = dout.device, _capability(dout.device)
    # r of each row and head becomes dweight; dk and dv need m and factor too.
    count = 3 if dk is not None else 1 if dweight is not None else 0
    shape = (count, dout.shape[1], *inputs.weight.shape)
    stats = dout.new_empty(shape, dtype=torch.float32).unbind()
    run(pixel_launch(inputs, dout, dq, stats, capability), device)
    if dweight is not None:
        torch.sum(stats[0], 0, out=dweight)
    if dk is not None and dv is not None:
        for launch in prompt_launches(inputs, dout, stats, dk, dv, capability):
            run(launch, device)


# ---- launches ----


class Launch(NamedTuple):
    """One kernel launch: positional arguments, then constants and compiler options by name."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class Plan(NamedTuple):
    """What a launch takes from sizes and strides; kept, since a layer asks again at every step."""

    programs: int
    sizes: tuple[float, ...]
    options: dict[str, Any]


def forward_launch(
    inputs: Inputs, out: Tensor, capability: tuple[int, int], tile: "Tile | None" = None
) -> Launch:
    plan = _forward_plan(_geometry(inputs), _layout(out), capability, tile)
    return Launch(
        _kernels().forward, plan.programs, (*_tensors(inputs), out, *plan.sizes), plan.options
    )


@functools.lru_cache(1024)
def _forward_plan(
    g: "Geometry", out: "Layout", capability: tuple[int, int], tile: "Tile | None"
) -> Plan:
    options = _options("forward", g, (out,), capability, tile)
    tiles = _ceil_div(g.seqlen_q, options["BLOCK_Q"])
    stride = options["STRIDE"]
    sizes = (
        g.log2_scale,
        g.prompts,
        g.heads,
        g.seqlen_q,
        g.seqlen_k,
        tiles,
        *itertools.chain(*_input_strides(g, stride)),
        *_strides(out, stride),
    )
    return Plan(tiles * g.heads * g.batch, sizes, options)


def pixel_launch(
    inputs: Inputs,
    dout: Tensor,
    dq: Tensor | None,
    stats: tuple[Tensor, ...],
    capability: tuple[int, int],
    tile: "Tile | None" = None,
) -> Launch:
    like = None if dq is None else _layout(dq)
    plan = _pixel_plan(_geometry(inputs), _layout(dout), like, len(stats), capability, tile)
    absent = inputs.weight
    outputs = (dout if dq is None else dq, *stats, *[absent] * (3 - len(stats)))
    return Launch(
        _kernels().pixel_gradients,
        plan.programs,
        (*_tensors(inputs), dout, *outputs, *plan.sizes),
        plan.options,
    )


@functools.lru_cache(1024)
def _pixel_plan(
    g: "Geometry",
    dout: "Layout",
    dq: "Layout | None",
    stats: int,
    capability: tuple[int, int],
    tile: "Tile | None",
) -> Plan:
    options = {
        **_options("pixels", g, (dout,) if dq is None else (dout, dq), capability, tile),
        "WANT_DQ": dq is not None,
        "WANT_R": stats > 0,
        "WANT_ROWS": stats > 1,
    }
    tiles = _ceil_div(g.seqlen_q, options["BLOCK_Q"])
    stride = options["STRIDE"]
    sizes = (
        g.log2_scale,
        g.scale,
        g.prompts,
        g.heads,
        g.entries,
        g.seqlen_q,
        g.seqlen_k,
        tiles,
        *itertools.chain(*_input_strides(g, stride)),
        *_strides(dout, stride),
        *_strides(dout if dq is None else dq, stride),
    )
    return Plan(tiles * g.heads * g.batch, sizes, options)


def prompt_launches(
    inputs: Inputs,
    dout: Tensor,
    stats: tuple[Tensor, ...],
    dk: Tensor,
    dv: Tensor,
    capability: tuple[int, int],
    tile: "Tile | None" = None,
) -> list[Launch]:
    kernels, g = _kernels(), _geometry(inputs)
    layouts = _layout(dout), _layout(dk), _layout(dv)
    plan, parts, sums = _prompt_plans(g, *layouts, inputs.k.shape[0], capability, tile)
    written = [dout.new_empty(parts, dtype=torch.float32) if parts else x for x in (dk, dv)]
    q, k, v, _, *indices = _tensors(inputs)
    arguments = (q, k, v, *indices, dout, *stats, *written, *plan.sizes)
    launches = [Launch(kernels.prompt_gradients, plan.programs, arguments, plan.options)]
    for own, gradient, plan in zip(written, (dk, dv), sums, strict=False):
        ids = own if inputs.prompt_ids is None else inputs.prompt_ids
        arguments = (own, ids, gradient, *plan.sizes)
        launches.append(Launch(kernels.sum_parts, plan.programs, arguments, plan.options))
    return launches


@functools.lru_cache(1024)
def _prompt_plans(
    g: "Geometry",
    dout: "Layout",
    dk: "Layout",
    dv: "Layout",
    table: int,
    capability: tuple[int, int],
    tile: "Tile | None",
) -> tuple[Plan, tuple[int, ...], tuple[Plan, ...]]:
    """The kernel's plan, the shape of its parts (none: it writes dk and dv), and their sums'."""
    options = _options("prompts", g, (dout, dk, dv), capability, tile)
    stride = options["STRIDE"]
    tiles = _ceil_div(g.seqlen_q, options["BLOCK_Q"])
    key_tiles = _ceil_div(g.seqlen_k, sum(options["K_PIECES"]))
    programs = g.entries * g.heads * key_tiles
    # The number of parts decides the order of the sum: it may depend on shapes only.
    per_split = _ceil_div(tiles, min(tiles, _ceil_div(_PROGRAMS, programs)))
    splits = _ceil_div(tiles, per_split)
    parts: tuple[int, ...] = ()
    written_strides = [(0, *_key_strides(x, stride)) for x in (dk, dv)]
    if g.ragged or splits > 1:
        parts = (splits, g.entries, g.heads, g.seqlen_k, g.head_dim)
        in_prompt = g.heads * g.seqlen_k * g.head_dim
        in_batch = 0 if g.ragged else g.prompts * in_prompt
        strides = (g.entries * in_prompt, in_batch, in_prompt, g.seqlen_k * g.head_dim, g.head_dim)
        written_strides = [tuple(x // stride for x in strides)] * 2
    q_and_k_and_v, _, region = _input_strides(g, stride)
    sizes = (
        g.log2_scale,
        g.scale,
        g.batch,
        g.prompts,
        g.heads,
        g.entries,
        g.seqlen_q,
        g.seqlen_k,
        key_tiles,
        splits,
        per_split,
        *q_and_k_and_v,
        *region,
        *_strides(dout, stride),
        *written_strides[0],
        *written_strides[1],
    )
    plan = Plan(programs * splits, sizes, options)
    if not parts:
        return plan, parts, ()
    size = g.seqlen_k * g.head_dim
    blocks = _ceil_div(size, _SUM_BLOCK)
    rows = table if g.ragged else g.entries
    constants = {
        "HEAD_DIM": g.head_dim,
        "RAGGED": g.ragged,
        "BLOCK": _SUM_BLOCK,
        "num_warps": 4,
    }
    counts = (g.prompts, g.heads, g.entries, splits, size, blocks)
    sums = (
        Plan(rows * g.heads * blocks, (*counts, *_key_strides(x, 1)), constants) for x in (dk, dv)
    )
    return plan, parts, tuple(sums)


def run(launch: Launch, device: torch.device) -> None:
    # Triton launches on the current device.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        launch.kernel[(launch.programs,)](*launch.arguments, **launch.options)


def _tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """The input tensors of all kernels; one that is absent is never read."""
    q, k, v, weight, prompt_ids, offsets, region, key_lengths, _ = inputs
    absent = weight
    if prompt_ids is None or offsets is None:
        return q, k, v, weight, absent if region is None else region, absent, absent, absent
    return (
        q,
        k,
        v,
        weight,
        absent if region is None else region,
        prompt_ids.contiguous(),
        offsets.contiguous(),
        absent if key_lengths is None else key_lengths.contiguous(),
    )


def _is_empty(inputs: Inputs) -> bool:
    return 0 in (inputs.q.numel(), inputs.weight.numel(), inputs.k.shape[-2])


# ---- sizes and strides ----


class Layout(NamedTuple):
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Geometry(NamedTuple):
    """All of a call that a launch depends on but addresses. precision: see `Row`."""

    q: Layout
    k: Layout
    v: Layout
    weight: Layout
    region: Layout | None
    ragged: bool
    has_lengths: bool
    scale: float
    dtype: torch.dtype
    precision: str

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def heads(self) -> int:
        return self.q.shape[1]

    @property
    def seqlen_q(self) -> int:
        return self.q.shape[2]

    @property
    def head_dim(self) -> int:
        return self.q.shape[3]

    @property
    def seqlen_k(self) -> int:
        return self.k.shape[-2]

    @property
    def prompts(self) -> int:
        return 1 if self.ragged else self.weight.shape[1]

    @property
    def entries(self) -> int:
        return self.weight.shape[0] * self.prompts

    @property
    def log2_scale(self) -> float:
        # A scale of 0 must not turn the -inf of a key that does not exist into NaN.
        return max(abs(self.scale) * math.log2(math.e), 2.0**-100)


def _layout(x: Tensor) -> Layout:
    return Layout(x.shape, x.stride())


def _full_precision() -> bool:
    """Whether products of float32 must not round their factors."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was also set for one of torch's backends, and differently
        newer = torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]
        return bool(newer != "tf32")


def _geometry(inputs: Inputs) -> Geometry:
    q, k, v, weight, _, offsets, region, key_lengths, scale = inputs
    precision = "half"
    if q.dtype == torch.float32:
        precision = "ieee" if _full_precision() else "tf32"
    return Geometry(
        _layout(q),
        _layout(k),
        _layout(v),
        _layout(weight),
        None if region is None else _layout(region),
        offsets is not None,
        key_lengths is not None,
        scale,
        q.dtype,
        precision,
    )


def _strides(x: Layout, divisor: int = 1) -> tuple[int, ...]:
    """Strides of all dimensions but the last; that of a dimension of size 1 may be anything."""
    pairs = zip(x.shape[:-1], x.strides[:-1], strict=True)
    return tuple(0 if size == 1 else stride // divisor for size, stride in pairs)


def _key_strides(x: Layout, divisor: int) -> tuple[int, ...]:
    """Strides b, p, h, l of k, v and their gradients; a table has no b."""
    return _strides(x, divisor) if len(x.shape) == 5 else (0, *_strides(x, divisor))


def _input_strides(g: Geometry, divisor: int) -> tuple[tuple[int, ...], ...]:
    """Strides of q, k and v, of weight, of region."""
    region = g.weight if g.region is None else g.region
    table = (0,) if g.ragged else ()
    matrices = (
        *_strides(g.q, divisor),
        *_key_strides(g.k, divisor),
        *_key_strides(g.v, divisor),
    )
    return matrices, (*table, *g.weight.strides), (*table, *region.strides)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# ---- choices ----

# Programs of prompt_gradients that are enough to fill any GPU so far (132 SMs), two on each.
_PROGRAMS = 264
_SUM_BLOCK = 1024


class Tile(NamedTuple):
    """How a kernel is cut and compiled for head_dims up to `head_dim`."""

    head_dim: int
    block_q: int
    warps: int
    stages: int
    widest: tuple[int, int] = (128, 64)  # pieces of head_dim, of keys
    whole_row: int = 128  # more keys than this come in tiles
    key_tile: int = 64
    registers: int | None = None  # of a thread; None: the compiler weighs them against occupancy


class Row(NamedTuple):
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
def rows() -> tuple[Row, ...]:
    """The table of tiles, which bench/tune_triton.py writes."""
    found = json.loads(TABLE.read_text(encoding="utf-8"))
    for row in found:
        row["tiles"] = tuple(Tile(**{**t, "widest": tuple(t["widest"])}) for t in row["tiles"])
    return tuple(Row(**row) for row in found)


def tile_of(kernel: str, g: Geometry, capability: tuple[int, int]) -> Tile:
    """The table's choice. What decides is registers, since a warp works on 16 rows or more."""
    skips = g.region is not None or g.has_lengths
    key = kernel, min(capability[0], 9), g.precision, skips
    (row,) = (row for row in rows() if row[:4] == key)
    return next(tile for tile in row.tiles if g.head_dim <= tile.head_dim)


def _options(
    kernel: str,
    g: Geometry,
    others: tuple[Layout, ...],
    capability: tuple[int, int],
    tile: Tile | None,
) -> dict[str, Any]:
    """Constants and compiler options of a kernel."""
    tile = tile or tile_of(kernel, g, capability)
    strides = [abs(stride) for x in (g.q, g.k, g.v, *others) for stride in _strides(x)]
    tiled = g.seqlen_k > tile.whole_row
    options = {
        "HEAD_DIM": g.head_dim,
        "D_PIECES": pieces(g.head_dim, tile.widest[0]),
        "K_PIECES": pieces(tile.key_tile if tiled else g.seqlen_k, tile.widest[1]),
        "RAGGED": g.ragged,
        "HAS_REGION": g.region is not None,
        "HAS_LENGTHS": g.has_lengths,
        "NEGATIVE": g.scale < 0,
        # A row of 8 elements is 16 bytes or more: the compiler may load it whole.
        "STRIDE": 8 if all(stride % 8 == 0 for stride in strides) else 1,
        # A tile of pixels has at most 128 rows.
        "WIDE": max(strides) * max(128, g.seqlen_k) >= 2**31,
        "PRECISION": "tf32" if g.precision == "tf32" else "ieee",
        "BLOCK_Q": tile.block_q,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "maxnreg": tile.registers,
    }
    return options if kernel == "prompts" else {**options, "TILED": tiled}


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


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else _CAPABILITY


@functools.cache
def _against_gpu(index: int) -> list[str]:
    if torch.version.cuda is None:
        return ["triton kernels are for NVIDIA GPUs, this torch is built for others"]
    major, minor = torch.cuda.get_device_capability(index)
    if (major, minor) < _CAPABILITY:
        return [f"triton needs a compute capability of 8.0 or more, got {major}.{minor}"]
    return []


def _interpreted() -> bool:
    """Whether Triton runs kernels in Python on the CPU; its own variable, read at its import."""
    import triton

    return not isinstance(_kernels().forward, triton.JITFunction)


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("stal_kernels.backends.triton.kernels")
