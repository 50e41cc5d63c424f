"""What the kernels are launched with. Device code: kernels.py.

Everything here depends on shapes, dtypes and strides alone, so that a call waits for nothing, can
be captured in a CUDA graph, and gives the same bits every time.
"""

import functools
import importlib
import itertools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stal_kernels.backends.contract import Inputs
from stal_kernels.backends.triton import direct
from stal_kernels.backends.triton.geometry import (
    Problem,
    View,
    ceil_div,
    input_strides,
    key_strides,
    problem_of,
    strides_of,
    view_of,
)
from stal_kernels.backends.triton.tiles import Tile, options_of

# Programs of prompt_gradients that are enough to fill any GPU so far (132 SMs), two on each.
_PROGRAMS = 264
_SUM_BLOCK = 1024
# Pixels of which a plan has one word of bits.
_WORD = 32


class Launch(NamedTuple):
    """One kernel launch: positional arguments, then constants and compiler options by name."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class Draft(NamedTuple):
    """A launch without its tensors: what it takes from sizes and strides.

    Drafts are kept, since a layer asks again at every step.
    """

    programs: int
    sizes: tuple[float, ...]
    options: dict[str, Any]


def forward_launch(
    inputs: Inputs, out: Tensor, capability: tuple[int, int], tile: Tile | None = None
) -> Launch:
    """The launch that writes out.

    Args:
        inputs: none of their sizes may be 0.
        out: as q.
        capability: compute capability of the GPU, (major, minor).
        tile: instead of the table's.
    """
    draft = _forward_draft(problem_of(inputs), view_of(out), capability, tile)
    return Launch(
        device_code().forward,
        draft.programs,
        (*_tensors(inputs), *_plan(inputs), out, *draft.sizes),
        draft.options,
    )


@functools.lru_cache(1024)
def _forward_draft(
    problem: Problem, out: View, capability: tuple[int, int], tile: Tile | None
) -> Draft:
    options = options_of("forward", problem, (out,), capability, tile)
    tiles = ceil_div(problem.seqlen_q, options["BLOCK_Q"])
    stride = options["STRIDE"]
    sizes = (
        problem.log2_scale,
        problem.prompts,
        problem.heads,
        problem.seqlen_q,
        problem.seqlen_k,
        tiles,
        ceil_div(problem.seqlen_q, _WORD),
        *itertools.chain(*input_strides(problem, stride)),
        *strides_of(out, stride),
    )
    return Draft(tiles * problem.heads * problem.batch, sizes, options)


def pixel_launch(
    inputs: Inputs,
    dout: Tensor,
    dq: Tensor | None,
    stats: tuple[Tensor, ...],
    capability: tuple[int, int],
    tile: Tile | None = None,
) -> Launch:
    """The launch that writes dq and what dweight, dk and dv are made of.

    Args:
        inputs, capability, tile: as in `forward_launch`.
        dout: as q.
        dq: as q; None: not asked for.
        stats: r; r, m and factor; or none of them. Each (heads, *weight.shape), float32: see
            kernels.py. Of m and factor not all is written.
    """
    like = None if dq is None else view_of(dq)
    draft = _pixel_draft(problem_of(inputs), view_of(dout), like, len(stats), capability, tile)
    absent = inputs.weight
    outputs = (dout if dq is None else dq, *stats, *[absent] * (3 - len(stats)))
    return Launch(
        device_code().pixel_gradients,
        draft.programs,
        (*_tensors(inputs), *_plan(inputs), dout, *outputs, *draft.sizes),
        draft.options,
    )


@functools.lru_cache(1024)
def _pixel_draft(
    problem: Problem,
    dout: View,
    dq: View | None,
    stats: int,
    capability: tuple[int, int],
    tile: Tile | None,
) -> Draft:
    options = {
        **options_of("pixels", problem, (dout,) if dq is None else (dout, dq), capability, tile),
        "WANT_DQ": dq is not None,
        "WANT_R": stats > 0,
        "WANT_ROWS": stats > 1,
    }
    tiles = ceil_div(problem.seqlen_q, options["BLOCK_Q"])
    stride = options["STRIDE"]
    sizes = (
        problem.log2_scale,
        problem.scale,
        problem.prompts,
        problem.heads,
        problem.entries,
        problem.seqlen_q,
        problem.seqlen_k,
        tiles,
        ceil_div(problem.seqlen_q, _WORD),
        *itertools.chain(*input_strides(problem, stride)),
        *strides_of(dout, stride),
        *strides_of(dout if dq is None else dq, stride),
    )
    return Draft(tiles * problem.heads * problem.batch, sizes, options)


def prompt_launches(
    inputs: Inputs,
    dout: Tensor,
    stats: tuple[Tensor, ...],
    dk: Tensor,
    dv: Tensor,
    capability: tuple[int, int],
    tile: Tile | None = None,
) -> list[Launch]:
    """The launches that write dk and dv, to be run in this order.

    Args:
        inputs, dout, capability, tile: as in `forward_launch` and `pixel_launch`.
        stats: r, m and factor, as `pixel_launch` wrote them.
        dk, dv: as k and v.
    """
    kernels, problem = device_code(), problem_of(inputs)
    views = view_of(dout), view_of(dk), view_of(dv)
    draft, parts, sums = _prompt_drafts(problem, *views, inputs.k.shape[0], capability, tile)
    written = [dout.new_empty(parts, dtype=torch.float32) if parts else x for x in (dk, dv)]
    q, k, v, _, *indices = _tensors(inputs)
    arguments = (q, k, v, *indices, dout, *stats, *written, *draft.sizes)
    launches = [Launch(kernels.prompt_gradients, draft.programs, arguments, draft.options)]
    for own, gradient, draft in zip(written, (dk, dv), sums, strict=False):
        ids = own if inputs.prompt_ids is None else inputs.prompt_ids
        arguments = (own, ids, gradient, *draft.sizes)
        launches.append(Launch(kernels.sum_parts, draft.programs, arguments, draft.options))
    return launches


@functools.lru_cache(1024)
def _prompt_drafts(
    problem: Problem,
    dout: View,
    dk: View,
    dv: View,
    table: int,
    capability: tuple[int, int],
    tile: Tile | None,
) -> tuple[Draft, tuple[int, ...], tuple[Draft, ...]]:
    """The kernel's draft, the shape of its parts (none: it writes dk and dv), and their sums'."""
    options = options_of("prompts", problem, (dout, dk, dv), capability, tile)
    stride = options["STRIDE"]
    tiles = ceil_div(problem.seqlen_q, options["BLOCK_Q"])
    key_tiles = ceil_div(problem.seqlen_k, sum(options["K_PIECES"]))
    programs = problem.entries * problem.heads * key_tiles
    size = problem.seqlen_k * problem.head_dim
    # The number of parts decides the order of the sum: it may depend on shapes only.
    per_split = ceil_div(tiles, min(tiles, ceil_div(_PROGRAMS, programs)))
    splits = ceil_div(tiles, per_split)
    parts: tuple[int, ...] = ()
    written_strides = [(0, *key_strides(x, stride)) for x in (dk, dv)]
    if problem.ragged or splits > 1:
        parts = (splits, problem.entries, problem.heads, problem.seqlen_k, problem.head_dim)
        in_prompt = problem.heads * size
        in_batch = 0 if problem.ragged else problem.prompts * in_prompt
        strides = (problem.entries * in_prompt, in_batch, in_prompt, size, problem.head_dim)
        written_strides = [tuple(x // stride for x in strides)] * 2
    q_and_k_and_v, _, region = input_strides(problem, stride)
    sizes = (
        problem.log2_scale,
        problem.scale,
        problem.batch,
        problem.prompts,
        problem.heads,
        problem.entries,
        problem.seqlen_q,
        problem.seqlen_k,
        key_tiles,
        splits,
        per_split,
        *q_and_k_and_v,
        *region,
        *strides_of(dout, stride),
        *written_strides[0],
        *written_strides[1],
    )
    draft = Draft(programs * splits, sizes, options)
    if not parts:
        return draft, parts, ()
    blocks = ceil_div(size, _SUM_BLOCK)
    rows = table if problem.ragged else problem.entries
    constants = {
        "HEAD_DIM": problem.head_dim,
        "RAGGED": problem.ragged,
        "BLOCK": _SUM_BLOCK,
        "num_warps": 4,
    }
    counts = (problem.prompts, problem.heads, problem.entries, splits, size, blocks)
    sums = (
        Draft(rows * problem.heads * blocks, (*counts, *key_strides(x, 1)), constants)
        for x in (dk, dv)
    )
    return draft, parts, tuple(sums)


def run(launch: Launch, device: torch.device) -> None:
    """Launches on the current stream of `device`, where the tensors are, and does not wait."""
    direct.launch(*launch, device)


def _plan(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The order and the tiles of a plan; one that is absent is never read."""
    if inputs.plan is None:
        return inputs.weight, inputs.weight
    order, tiles, _ = inputs.plan
    return order.contiguous(), tiles.contiguous()


def _tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """The input tensors of all kernels; one that is absent is never read."""
    q, k, v, weight, prompt_ids, offsets, region, key_lengths, *_ = inputs
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
