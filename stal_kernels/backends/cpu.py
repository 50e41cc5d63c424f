"""The C++ library (csrc/cpu), one set of kernels per instruction level."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stal_kernels import native
from stal_kernels.backends.contract import Inputs, fast_limits

LEVELS: tuple[str, ...] = (
    "amx",
    "avx512_bf16",
    "avx512",
    "avx2",
    "neon",
    "portable",
    # Models of instructions in plain arithmetic, for tests on machines without them: slow.
    "avx512_bf16_model",
    "amx_model",
)
DEVICES: tuple[str, ...] = ("cpu",)
CHECKS_ARGUMENTS = True
CHECKS_VALUES = True

_FOLDER = Path(__file__).parent.parent
_NONE = (None, None, None)  # in place of a plan or a pack


def missing(level: str) -> str:
    """Why the library, or one of its levels, cannot run on this machine; "" if it can."""
    try:
        library = _library()
    except (ImportError, OSError, RuntimeError) as error:
        return f"cpu is missing: {error}"
    if not level:
        return ""
    reason = library.why_not(level)
    return f"cpu:{level} is missing: {reason}" if reason else ""


def why_not(
    device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int | None
) -> list[str]:
    """As `Backend.why_not`: the device, the dtype, head_dim."""
    elsewhere = [] if device.type == "cpu" else [f"cpu needs tensors on the CPU, got {device}"]
    return elsewhere + fast_limits("cpu", dtype, head_dim)


def packed_words(dtype: torch.dtype, head_dim: int, seqlen_k: int, level: str) -> int:
    """As `Backend.packed_words`."""
    level, name = level or _best_level(), str(dtype).removeprefix("torch.")
    return int(_library().packed_words(level, name, _bf16_products(dtype), seqlen_k, head_dim))


def pack(
    k: Tensor, v: Tensor, key_lengths: Tensor | None, level: str, packed: Sequence[Tensor]
) -> None:
    """As `Backend.pack`, on torch's number of threads."""
    _library().pack(
        level or _best_level(),
        torch.get_num_threads(),
        _bf16_products(k.dtype),
        k,
        v,
        key_lengths if key_lengths is None else key_lengths.contiguous(),
        *packed,
    )


# Spelled out twice: unpacking what a third function returns would cost a small call 0.2 us of 10.
def forward(inputs: Inputs, level: str, out: Tensor) -> None:
    """As `Backend.forward`, on torch's number of threads."""
    q, k, v, weight, prompt_ids, offsets, region, key_lengths, plan, scale, packed = inputs
    order, tiles, planned = _NONE if plan is None else plan
    words, stamp, sample = _NONE if packed is None else packed
    _library().forward(
        level or _best_level(),
        torch.get_num_threads(),
        scale,
        _bf16_products(q.dtype),
        q,
        k,
        v,
        weight,
        prompt_ids if prompt_ids is None else prompt_ids.contiguous(),
        offsets if offsets is None else offsets.contiguous(),
        region,
        key_lengths if key_lengths is None else key_lengths.contiguous(),
        order,
        tiles,
        planned,
        words,
        stamp,
        sample,
        out,
    )


def backward(
    inputs: Inputs,
    level: str,
    dout: Tensor,
    dq: Tensor | None,
    dweight: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
) -> None:
    """As `Backend.backward`, on torch's number of threads."""
    q, k, v, weight, prompt_ids, offsets, region, key_lengths, plan, scale, _ = inputs
    order, tiles, planned = _NONE if plan is None else plan
    _library().backward(
        level or _best_level(),
        torch.get_num_threads(),
        scale,
        _bf16_products(q.dtype),
        dout,
        q,
        k,
        v,
        weight,
        prompt_ids if prompt_ids is None else prompt_ids.contiguous(),
        offsets if offsets is None else offsets.contiguous(),
        region,
        key_lengths if key_lengths is None else key_lengths.contiguous(),
        order,
        tiles,
        planned,
        dq,
        dweight,
        dk,
        dv,
    )


def _bf16_products(dtype: torch.dtype) -> bool:
    if dtype != torch.float32:
        return False
    # "high" would allow three products of bfloat16 for one of float32, which take longer on AMD
    # Zen 5 (530 GFLOP/s against 265) and are not built for AMX.
    try:
        return torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:  # it was also set for one of torch's backends, and differently
        newer = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
        return bool(newer == "bf16")


@functools.cache
def _best_level() -> str:
    library = _library()
    return next(level for level in library.levels() if not library.why_not(level))


@functools.cache
def _library() -> Any:
    return native.load(_FOLDER, "libstal_kernels")
