"""What the kernels are launched with. Device code: kernels.py.

Everything here depends on shapes, dtypes and strides alone, so that a call waits for nothing, can
be captured in a CUDA graph, and gives the same bits every time.
"""

import contextlib
import functools
import importlib
import itertools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stal_kernels.backends import Inputs
from stal_kernels.backends.triton.geometry import (
    Geometry,
    Layout,
    ceil_div,
    geometry_of,
    input_strides,
    key_strides,
    layout_of,
    strides_of,
)
from stal_kernels.backends.triton.tiles import Tile, options_of

# Programs of prompt_gradients that are enough to fill any GPU so far (132 SMs), two on each.
_PROGRAMS = 264
_SUM_BLOCK = 1024


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
    inputs: Inputs, out: Tensor, capability: tuple[int, int], tile: Tile | None = None
) -> Launch:
    plan = _forward_plan(geometry_of(inputs), layout_of(out), capability, tile)
    return Launch(
        device_code().forward, plan.programs, (*_tensors(inputs), out, *plan.sizes), plan.options
    )


@functools.lru_cache(1024)
def _forward_plan(g: Geometry, out: Layout, capability: tuple[int, int], tile: Tile | None) -> Plan:
    options = options_of("forward", g, (out,), capability, tile)
    tiles = ceil_div(g.seqlen_q, options["BLOCK_Q"])
    stride = options["STRIDE"]
    sizes = (
        g.log2_scale,
        g.prompts,
        g.heads,
        g.seqlen_q,
        g.seqlen_k,
        tiles,
        *itertools.chain(*input_strides(g, stride)),
        *strides_of(out, stride),
    )
    return Plan(tiles * g.heads * g.batch, sizes, options)


def pixel_launch(
    inputs: Inputs,
    dout: Tensor,
    dq: Tensor | None,
    stats: tuple[Tensor, ...],
    capability: tuple[int, int],
    tile: Tile | None = None,
) -> Launch:
    like = None if dq is None else layout_of(dq)
    plan = _pixel_plan(geometry_of(inputs), layout_of(dout), like, len(stats), capability, tile)
    absent = inputs.weight
    outputs = (dout if dq is None else dq, *stats, *[absent] * (3 - len(stats)))
    return Launch(
        device_code().pixel_gradients,
        plan.programs,
        (*_tensors(inputs), dout, *outputs, *plan.sizes),
        plan.options,
    )


@functools.lru_cache(1024)
def _pixel_plan(
    g: Geometry,
    dout: Layout,
    dq: Layout | None,
    stats: int,
    capability: tuple[int, int],
    tile: Tile | None,
) -> Plan:
    options = {
        **options_of("pixels", g, (dout,) if dq is None else (dout, dq), capability, tile),
        "WANT_DQ": dq is not None,
        "WANT_R": stats > 0,
        "WANT_ROWS": stats > 1,
    }
    tiles = ceil_div(g.seqlen_q, options["BLOCK_Q"])
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
        *itertools.chain(*input_strides(g, stride)),
        *strides_of(dout, stride),
        *strides_of(dout if dq is None else dq, stride),
    )
    return Plan(tiles * g.heads * g.batch, sizes, options)


def prompt_launches(
    inputs: Inputs,
    dout: Tensor,
    stats: tuple[Tensor, ...],
    dk: Tensor,
    dv: Tensor,
    capability: tuple[int, int],
    tile: Tile | None = None,
) -> list[Launch]:
    kernels, g = device_code(), geometry_of(inputs)
    layouts = layout_of(dout), layout_of(dk), layout_of(dv)
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
    g: Geometry,
    dout: Layout,
    dk: Layout,
    dv: Layout,
    table: int,
    capability: tuple[int, int],
    tile: Tile | None,
) -> tuple[Plan, tuple[int, ...], tuple[Plan, ...]]:
    """The kernel's plan, the shape of its parts (none: it writes dk and dv), and their sums'."""
    options = options_of("prompts", g, (dout, dk, dv), capability, tile)
    stride = options["STRIDE"]
    tiles = ceil_div(g.seqlen_q, options["BLOCK_Q"])
    key_tiles = ceil_div(g.seqlen_k, sum(options["K_PIECES"]))
    programs = g.entries * g.heads * key_tiles
    # The number of parts decides the order of the sum: it may depend on shapes only.
    per_split = ceil_div(tiles, min(tiles, ceil_div(_PROGRAMS, programs)))
    splits = ceil_div(tiles, per_split)
    parts: tuple[int, ...] = ()
    written_strides = [(0, *key_strides(x, stride)) for x in (dk, dv)]
    if g.ragged or splits > 1:
        parts = (splits, g.entries, g.heads, g.seqlen_k, g.head_dim)
        in_prompt = g.heads * g.seqlen_k * g.head_dim
        in_batch = 0 if g.ragged else g.prompts * in_prompt
        strides = (g.entries * in_prompt, in_batch, in_prompt, g.seqlen_k * g.head_dim, g.head_dim)
        written_strides = [tuple(x // stride for x in strides)] * 2
    q_and_k_and_v, _, region = input_strides(g, stride)
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
        *strides_of(dout, stride),
        *written_strides[0],
        *written_strides[1],
    )
    plan = Plan(programs * splits, sizes, options)
    if not parts:
        return plan, parts, ()
    size = g.seqlen_k * g.head_dim
    blocks = ceil_div(size, _SUM_BLOCK)
    rows = table if g.ragged else g.entries
    constants = {
        "HEAD_DIM": g.head_dim,
        "RAGGED": g.ragged,
        "BLOCK": _SUM_BLOCK,
        "num_warps": 4,
    }
    counts = (g.prompts, g.heads, g.entries, splits, size, blocks)
    sums = (
        Plan(rows * g.heads * blocks, (*counts, *key_strides(x, 1)), constants) for x in (dk, dv)
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


@functools.cache
def device_code() -> ModuleType:
    """The module of the kernels; the first call imports triton."""
    return importlib.import_module("stal_kernels.backends.triton.kernels")
