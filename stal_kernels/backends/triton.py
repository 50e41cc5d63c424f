"""Triton kernels on NVIDIA GPUs: what they are launched with. Device code: triton_kernels.py.

Everything here depends on shapes, dtypes and strides alone, so that a call waits for nothing, can
be captured in a CUDA graph, and gives the same bits every time.
"""

import contextlib
import functools
import importlib
import itertools
import math
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


def why_not(q: Tensor, k: Tensor | None) -> list[str]:
    """Reasons why these tensors are none of its business."""
    reasons = []
    if q.device.type == "cuda":
        reasons += _against_gpu(q.device.index)
    elif q.device.type != "cpu" or missing("") or not _interpreted():
        reasons.append(
            "triton needs tensors on a CUDA GPU, or on the CPU with TRITON_INTERPRET=1, "
            f"got {q.device}"
        )
    if q.dtype not in _DTYPES:
        reasons.append(f"triton needs float16, bfloat16 or float32, got {q.dtype}")
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        reasons.append(
            f"triton needs a head_dim that is a multiple of 8 and at most 256, got {q.shape[-1]}"
        )
    return reasons


def forward(inputs: Inputs, level: str, out: Tensor) -> None:
    if _is_empty(inputs):
        out.zero_()
    else:
        _run(forward_launch(inputs, out, _capability(out.device)), out.device)


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
    _run(pixel_launch(inputs, dout, dq, stats, capability), device)
    if dweight is not None:
        torch.sum(stats[0], 0, out=dweight)
    if dk is not None and dv is not None:
        for launch in prompt_launches(inputs, dout, stats, dk, dv, capability):
            _run(launch, device)


# ---- launches ----


class Launch(NamedTuple):
    """One kernel launch: positional arguments, then constants and compiler options by name."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]


def forward_launch(inputs: Inputs, out: Tensor, capability: tuple[int, int]) -> Launch:
    q, heads, seqlen_q = inputs.q, inputs.q.shape[1], inputs.q.shape[2]
    options = _options("forward", inputs, (out,), capability)
    tiles = _ceil_div(seqlen_q, options["BLOCK_Q"])
    stride = options["STRIDE"]
    arguments = (
        *_tensors(inputs),
        out,
        _log2_scale(inputs),
        _prompts(inputs),
        heads,
        seqlen_q,
        inputs.k.shape[-2],
        tiles,
        *itertools.chain(*_input_strides(inputs, stride)),
        *_strides(out, stride),
    )
    return Launch(_kernels().forward, tiles * heads * q.shape[0], arguments, options)


def pixel_launch(
    inputs: Inputs,
    dout: Tensor,
    dq: Tensor | None,
    stats: tuple[Tensor, ...],
    capability: tuple[int, int],
) -> Launch:
    batch, heads, seqlen_q, _ = dout.shape
    options = _options("pixels", inputs, (dout,) if dq is None else (dout, dq), capability)
    options = {
        **options,
        "WANT_DQ": dq is not None,
        "WANT_R": len(stats) > 0,
        "WANT_ROWS": len(stats) > 1,
    }
    tiles = _ceil_div(seqlen_q, options["BLOCK_Q"])
    stride = options["STRIDE"]
    arguments = (
        *_tensors(inputs),
        dout,
        dout if dq is None else dq,
        *stats,
        *[inputs.weight] * (3 - len(stats)),
        _log2_scale(inputs),
        inputs.scale,
        _prompts(inputs),
        heads,
        _entries(inputs),
        seqlen_q,
        inputs.k.shape[-2],
        tiles,
        *itertools.chain(*_input_strides(inputs, stride)),
        *_strides(dout, stride),
        *_strides(dout if dq is None else dq, stride),
    )
    return Launch(_kernels().pixel_gradients, tiles * heads * batch, arguments, options)


def prompt_launches(
    inputs: Inputs,
    dout: Tensor,
    stats: tuple[Tensor, ...],
    dk: Tensor,
    dv: Tensor,
    capability: tuple[int, int],
) -> list[Launch]:
    batch, heads, seqlen_q, head_dim = dout.shape
    entries, seqlen_k = _entries(inputs), inputs.k.shape[-2]
    ragged = inputs.offsets is not None
    options = _options("prompts", inputs, (dout, dk, dv), capability)
    stride = options["STRIDE"]
    tiles = _ceil_div(seqlen_q, options["BLOCK_Q"])
    key_tiles = _ceil_div(seqlen_k, sum(options["K_PIECES"]))
    programs = entries * heads * key_tiles
    # The number of parts decides the order of the sum: it may depend on shapes only.
    per_split = _ceil_div(tiles, min(tiles, _ceil_div(_PROGRAMS, programs)))
    splits = _ceil_div(tiles, per_split)
    written, written_strides = [dk, dv], [(0, *_key_strides(x, stride)) for x in (dk, dv)]
    if ragged or splits > 1:
        shape = (splits, entries, heads, seqlen_k, head_dim)
        written = [dout.new_empty(shape, dtype=torch.float32) for _ in range(2)]
        sizes = [heads * seqlen_k * head_dim, seqlen_k * head_dim, head_dim]
        in_batch = [0 if ragged else inputs.k.shape[1] * sizes[0], *sizes]
        written_strides = [tuple(x // stride for x in (entries * sizes[0], *in_batch))] * 2
    q, k, v, _, *indices = _tensors(inputs)
    q_and_k_and_v, _, region = _input_strides(inputs, stride)
    arguments = (
        q,
        k,
        v,
        *indices,
        dout,
        *stats,
        *written,
        _log2_scale(inputs),
        inputs.scale,
        batch,
        _prompts(inputs),
        heads,
        entries,
        seqlen_q,
        seqlen_k,
        key_tiles,
        splits,
        per_split,
        *q_and_k_and_v,
        *region,
        *_strides(dout, stride),
        *written_strides[0],
        *written_strides[1],
    )
    kernels = _kernels()
    launches = [Launch(kernels.prompt_gradients, programs * splits, arguments, options)]
    if written[0] is not dk:
        rows = inputs.k.shape[0] if ragged else entries
        blocks = _ceil_div(seqlen_k * head_dim, _SUM_BLOCK)
        for parts, gradient in zip(written, (dk, dv), strict=True):
            sums = (
                parts,
                parts if inputs.prompt_ids is None else inputs.prompt_ids,
                gradient,
                _prompts(inputs),
                heads,
                entries,
                splits,
                seqlen_k * head_dim,
                blocks,
                *_key_strides(gradient, 1),
            )
            constants = {
                "HEAD_DIM": head_dim,
                "RAGGED": ragged,
                "BLOCK": _SUM_BLOCK,
                "num_warps": 4,
            }
            launches.append(Launch(kernels.sum_parts, rows * heads * blocks, sums, constants))
    return launches


def _run(launch: Launch, device: torch.device) -> None:
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


def _prompts(inputs: Inputs) -> int:
    return inputs.weight.shape[1] if inputs.offsets is None else 1


def _entries(inputs: Inputs) -> int:
    shape = inputs.weight.shape
    return shape[0] * shape[1] if inputs.offsets is None else shape[0]


def _strides(x: Tensor, divisor: int = 1) -> tuple[int, ...]:
    """Strides of all dimensions but the last; that of a dimension of size 1 may be anything."""
    pairs = zip(x.shape[:-1], x.stride()[:-1], strict=True)
    return tuple(0 if size == 1 else stride // divisor for size, stride in pairs)


def _key_strides(x: Tensor, divisor: int) -> tuple[int, ...]:
    """Strides b, p, h, l of k, v and their gradients; a table has no b."""
    return _strides(x, divisor) if x.dim() == 5 else (0, *_strides(x, divisor))


def _input_strides(inputs: Inputs, divisor: int) -> tuple[tuple[int, ...], ...]:
    """Strides of q, k and v, of weight, of region."""
    weight = inputs.weight.stride()
    region = weight if inputs.region is None else inputs.region.stride()
    table = () if inputs.offsets is None else (0,)
    matrices = (
        *_strides(inputs.q, divisor),
        *_key_strides(inputs.k, divisor),
        *_key_strides(inputs.v, divisor),
    )
    return matrices, (*table, *weight), (*table, *region)


def _log2_scale(inputs: Inputs) -> float:
    # A scale of 0 must not turn the -inf of a key that does not exist into NaN.
    return max(abs(inputs.scale) * math.log2(math.e), 2.0**-100)


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


# Few registers: sixteen keys at a time, walked twice where whole rows are asked for.
_LEAN = Tile(256, 64, 4, 1, (32, 16), 0, 16, 255)
_LEAN_TWO_WARPS = Tile(96, 32, 2, 1, (32, 16), 0, 16, 255)
_SMALL_TWO_WARPS = Tile(48, 64, 2, 1, (32, 32), 0, 32, 255)

# Rows by kernel, major compute capability, bits of the dtype and whether there is a region.
# From the cost model and the compiled code: none has been measured on a GPU yet. What decides is
# registers, since a warp works on no fewer than 16 rows.
_TILES = {
    ("forward", 8, 16, False): (
        Tile(64, 64, 4, 2),
        Tile(96, 128, 8, 1, (32, 32), key_tile=32),
        Tile(128, 64, 4, 2, (64, 64), key_tile=16),
        Tile(256, 128, 8, 1, (32, 16), key_tile=16),
    ),
    ("forward", 8, 16, True): (
        Tile(64, 64, 4, 2, key_tile=32),
        Tile(256, 128, 8, 1, (32, 32), key_tile=16),
    ),
    ("forward", 9, 16, False): (
        Tile(64, 64, 4, 2),
        Tile(128, 64, 4, 2, key_tile=32),
        Tile(256, 64, 4, 2, (64, 64), key_tile=16),
    ),
    ("forward", 9, 16, True): (Tile(64, 64, 4, 2), Tile(256, 64, 4, 2, (32, 64), key_tile=32)),
    ("pixels", 8, 16, False): (Tile(64, 64, 4, 2, (32, 32), key_tile=32, registers=255), _LEAN),
    ("pixels", 8, 16, True): (Tile(64, 64, 4, 2, (32, 16), key_tile=32, registers=255), _LEAN),
    ("pixels", 9, 16, False): (Tile(128, 64, 4, 2, key_tile=32), _LEAN),
    ("pixels", 9, 16, True): (
        Tile(64, 64, 4, 2, key_tile=32),
        _LEAN._replace(block_q=128, warps=8),
    ),
    ("prompts", 8, 16, False): (
        _SMALL_TWO_WARPS,
        Tile(64, 32, 4, 2, whole_row=80, key_tile=16),
        _LEAN_TWO_WARPS,
        _LEAN,
    ),
    ("prompts", 8, 16, True): (_SMALL_TWO_WARPS._replace(head_dim=64), _LEAN),
    ("prompts", 9, 16, False): (
        _SMALL_TWO_WARPS,
        Tile(64, 64, 4, 2, whole_row=80),
        _LEAN_TWO_WARPS,
        _LEAN,
    ),
    ("prompts", 9, 16, True): (
        Tile(48, 64, 4, 1, (32, 32), 0, 32),
        Tile(64, 64, 4, 2, whole_row=80),
        _LEAN_TWO_WARPS,
        _LEAN,
    ),
}
# float32 has no tensor cores in full precision; rows serve every capability.
_FLOAT32 = {
    "forward": (
        Tile(128, 32, 4, 1, (32, 16), 0, 16, 255),
        Tile(256, 16, 4, 1, (32, 16), 0, 16, 255),
    ),
    # Above 64 a few registers are still spilled (8 bytes a thread at 160).
    "pixels": (
        Tile(64, 32, 8, 1, (32, 16), 0, 16, 255),
        Tile(256, 16, 8, 1, (32, 16), 0, 16, 255),
    ),
    "prompts": (Tile(256, 32, 4, 1, (32, 16), 0, 16, 255),),
}


def _options(
    kernel: str, inputs: Inputs, others: tuple[Tensor, ...], capability: tuple[int, int]
) -> dict[str, Any]:
    q, k, v = inputs.q, inputs.k, inputs.v
    strides = [stride for x in (q, k, v, *others) for stride in _strides(x)]
    return _resolved(
        kernel,
        q.dtype,
        q.shape[-1],
        k.shape[-2],
        inputs.offsets is not None,
        inputs.region is not None,
        inputs.key_lengths is not None,
        inputs.scale < 0,
        # A row of 8 elements is 16 bytes or more: the compiler may load it whole.
        8 if all(stride % 8 == 0 for stride in strides) else 1,
        # A tile of pixels has at most 128 rows.
        max(abs(stride) for stride in strides) * max(128, k.shape[-2]) >= 2**31,
        capability,
    )


@functools.cache
def _resolved(
    kernel: str,
    dtype: torch.dtype,
    head_dim: int,
    seqlen_k: int,
    ragged: bool,
    has_region: bool,
    has_lengths: bool,
    negative: bool,
    stride: int,
    wide: bool,
    capability: tuple[int, int],
) -> dict[str, Any]:
    """Constants and compiler options of a kernel. Callers do not change the dictionary."""
    key = kernel, min(capability[0], 9), dtype.itemsize * 8, has_region
    tile = next(row for row in _TILES.get(key, _FLOAT32[kernel]) if head_dim <= row.head_dim)
    tiled = seqlen_k > tile.whole_row
    options = {
        "HEAD_DIM": head_dim,
        "D_PIECES": pieces(head_dim, tile.widest[0]),
        "K_PIECES": pieces(tile.key_tile if tiled else seqlen_k, tile.widest[1]),
        "RAGGED": ragged,
        "HAS_REGION": has_region,
        "HAS_LENGTHS": has_lengths,
        "NEGATIVE": negative,
        "STRIDE": stride,
        "WIDE": wide,
        # tf32 would need tiles of its own: its operands take twice the registers of float16.
        "PRECISION": "ieee",
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
    return importlib.import_module("stal_kernels.triton_kernels")
