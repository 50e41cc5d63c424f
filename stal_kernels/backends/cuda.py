"""The CUDA library (csrc/cuda): the forward pass on Hopper GPUs; choice.py says whose gradients."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stal_kernels import native
from stal_kernels.backends.contract import Inputs

LEVELS: tuple[str, ...] = ()
DEVICES: tuple[str, ...] = ("cuda",)
CHECKS_ARGUMENTS = True
CHECKS_VALUES = False

_FOLDER = Path(__file__).parent.parent
_CAPABILITY = (9, 0)
_DTYPES = (torch.float16, torch.bfloat16)
_HEAD_DIMS = (40, 64, 80, 128, 160)
_MOST_KEYS = 80
_ALIGNMENT = 16  # bytes
_NO_PLAN = (None, None, None)


def missing(level: str) -> str:
    """Why the library cannot run on this machine; "" if it can."""
    try:
        reason = _library().missing()
    except (ImportError, OSError, RuntimeError) as error:
        return f"cuda is missing: {error}"
    if reason:
        return f"cuda is missing: {reason}"
    if not torch.cuda.is_available():
        return "cuda is missing a GPU: torch.cuda.is_available() is False"
    return ""


def why_not(
    device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int | None
) -> list[str]:
    """As `Backend.why_not`: all of them count, and the GPU's compute capability."""
    reasons = []
    if device.type != "cuda":
        reasons.append(f"cuda needs tensors on a CUDA GPU, got {device}")
    elif not missing("") and (capability := _capability(device)) != _CAPABILITY:
        reasons.append(
            "cuda needs a GPU of compute capability 9.0, got {}.{}; use triton".format(*capability)
        )
    if dtype not in _DTYPES:
        reasons.append(f"cuda needs float16 or bfloat16, got {dtype}; use triton")
    if head_dim not in _HEAD_DIMS:
        reasons.append(
            f"cuda needs a head_dim of 40, 64, 80, 128 or 160, got {head_dim}; use triton"
        )
    if seqlen_k is not None and seqlen_k > _MOST_KEYS:
        reasons.append(f"cuda needs a seqlen_k of at most {_MOST_KEYS}, got {seqlen_k}; use triton")
    return reasons


def packed_words(dtype: torch.dtype, head_dim: int, seqlen_k: int, level: str) -> int:
    """None: it reads K and V as they are."""
    return 0


def pack(
    k: Tensor, v: Tensor, key_lengths: Tensor | None, level: str, packed: Sequence[Tensor]
) -> None:
    """Writes nothing, as `packed_words` says."""


def forward(inputs: Inputs, level: str, out: Tensor) -> None:
    """As `Backend.forward`, on the current stream; level is not read.

    Of q, k and v, those whose address or strides are no multiples of 16 bytes are copied.
    """
    try:
        launched = _launch(inputs, out)
    except ValueError:
        aligned = [_aligned(x) for x in inputs[:3]]
        if all(a is x for a, x in zip(aligned, inputs[:3], strict=True)):
            raise
        q, k, v = aligned
        launched = _launch(inputs._replace(q=q, k=k, v=v), out)
    if not launched:
        out.zero_()


def _launch(inputs: Inputs, out: Tensor) -> bool:
    """False if one of the sizes is 0, where nothing is launched."""
    prompt_ids, offsets, key_lengths = inputs.prompt_ids, inputs.offsets, inputs.key_lengths
    order, tiles, planned = _NO_PLAN if inputs.plan is None else inputs.plan
    launched: bool = _library().forward(
        _stream(out.device),
        inputs.scale,
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.weight,
        prompt_ids if prompt_ids is None else prompt_ids.contiguous(),
        offsets if offsets is None else offsets.contiguous(),
        inputs.region,
        key_lengths if key_lengths is None else key_lengths.contiguous(),
        order,
        tiles if tiles is None else tiles.contiguous(),
        planned,
        out,
    )
    return launched


def _aligned(x: Tensor) -> Tensor:
    step = _ALIGNMENT // x.element_size()
    strides = [s for s, size in zip(x.stride(), x.shape, strict=True) if size > 1][:-1]
    if x.data_ptr() % _ALIGNMENT == 0 and all(stride % step == 0 for stride in strides):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _stream(device: torch.device) -> int:
    # What torch.cuda.current_stream wraps into an object, which takes ten times as long.
    stream: int = torch._C._cuda_getCurrentRawStream(device.index)
    return stream


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def _library() -> Any:
    return native.load(_FOLDER, "libstal_kernels_cuda")
