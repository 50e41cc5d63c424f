"""What every backend may take for granted. A backend's own limits are in its `why_not`.

Shapes, dtypes and strides are checked once, before the operator is called, so that they are
traced away by torch.compile. Values of index tensors are checked inside the operator.
"""

import math

import torch
from torch import Tensor

from stal_kernels import backends

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    region: Tensor | None,
    scale: float | None,
    backend: str,
) -> None:
    """Raises ValueError unless the arguments are valid for `blended_attention`."""
    _check_rank("q", q, "(batch, heads, seqlen_q, head_dim)")
    _check_rank("k", k, "(batch, prompts, heads, seqlen_k, head_dim)")
    batch, heads, seqlen_q, head_dim = q.shape
    prompts, seqlen_k = k.shape[1], k.shape[3]
    names = "(batch, prompts, heads, seqlen_k, head_dim)"
    for name, tensor in (("k", k), ("v", v)):
        _check_shape(name, tensor, names, (batch, prompts, heads, seqlen_k, head_dim))
    _check_shape("weight", weight, "(batch, prompts, seqlen_q)", (batch, prompts, seqlen_q))
    _check_common(q, k, v, weight, region, scale, backend)


def check_ragged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    prompt_ids: Tensor,
    offsets: Tensor,
    region: Tensor | None,
    key_lengths: Tensor | None,
    scale: float | None,
    backend: str,
) -> None:
    """Raises ValueError unless the arguments are valid for `blended_attention_ragged`."""
    _check_rank("q", q, "(batch, heads, seqlen_q, head_dim)")
    _check_rank("k", k, "(table, heads, seqlen_k, head_dim)")
    _check_rank("prompt_ids", prompt_ids, "(entries,)")
    batch, heads, seqlen_q, head_dim = q.shape
    table, seqlen_k = k.shape[0], k.shape[2]
    entries = prompt_ids.shape[0]
    names = "(table, heads, seqlen_k, head_dim)"
    for name, tensor in (("k", k), ("v", v)):
        _check_shape(name, tensor, names, (table, heads, seqlen_k, head_dim))
    _check_shape("weight", weight, "(entries, seqlen_q)", (entries, seqlen_q))
    _check_shape("offsets", offsets, "(batch + 1,)", (batch + 1,))
    indices = [("prompt_ids", prompt_ids), ("offsets", offsets)]
    if key_lengths is not None:
        _check_shape("key_lengths", key_lengths, "(table,)", (table,))
        indices.append(("key_lengths", key_lengths))
    for name, tensor in indices:
        if tensor.dtype != torch.int32:
            raise ValueError(f"{name} must be int32, got {_short(tensor.dtype)}; use .int()")
        _check_device(name, tensor, q)
    _check_common(q, k, v, weight, region, scale, backend)


def check_values(
    prompt_ids: Tensor,
    offsets: Tensor,
    key_lengths: Tensor | None,
    batch: int,
    table: int,
    seqlen_k: int,
) -> None:
    """Raises ValueError unless the index tensors point into the table. Waits for a GPU."""
    entries = prompt_ids.shape[0]
    bounds = offsets.tolist()
    if bounds[0] != 0:
        raise ValueError(f"offsets must begin at 0, got {bounds[0]}")
    for b in range(batch):
        if bounds[b] > bounds[b + 1]:
            raise ValueError(
                f"offsets must ascend, got {bounds[b]} before {bounds[b + 1]} at element {b}"
            )
    if bounds[-1] != entries:
        raise ValueError(f"offsets must end at the number of entries {entries}, got {bounds[-1]}")
    for e, prompt in enumerate(prompt_ids.tolist()):
        if not 0 <= prompt < table:
            raise ValueError(
                f"prompt_ids must be in 0 .. {table - 1} (rows of k), got {prompt} at entry {e}"
            )
    for t, length in enumerate(key_lengths.tolist() if key_lengths is not None else ()):
        if not 0 <= length <= seqlen_k:
            raise ValueError(
                f"key_lengths must be in 0 .. {seqlen_k} (seqlen_k), got {length} at row {t}"
            )


def _check_common(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    region: Tensor | None,
    scale: float | None,
    backend: str,
) -> None:
    if q.shape[1] == 0 or q.shape[3] == 0:
        raise ValueError(f"q must have heads and head_dim of at least 1, got {tuple(q.shape)}")
    if q.dtype not in _FLOATS:
        raise ValueError(f"q must be float16, bfloat16, float32 or float64, got {_short(q.dtype)}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype and not _autocast_unites(tensor, q):
            raise ValueError(
                f"{name} must have q's dtype {_short(q.dtype)}, got {_short(tensor.dtype)}"
            )
    wanted = torch.float64 if q.dtype == torch.float64 else torch.float32
    if weight.dtype != wanted:
        raise ValueError(
            f"weight must be {_short(wanted)} when q is {_short(q.dtype)}, "
            f"got {_short(weight.dtype)}"
        )
    if region is not None:
        if region.dtype != torch.bool:
            raise ValueError(f"region must be bool, got {_short(region.dtype)}")
        if region.shape != weight.shape:
            raise ValueError(
                f"region must have weight's shape {tuple(weight.shape)}, got {tuple(region.shape)}"
            )
        _check_device("region", region, q)
    for name, tensor in (("k", k), ("v", v), ("weight", weight)):
        _check_device(name, tensor, q)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
            raise ValueError(
                f"{name} must have a contiguous last dimension, got stride {tensor.stride(-1)}; "
                "use .contiguous()"
            )
    if scale is not None and not abs(scale) < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    backends.check_name(backend)


def _autocast_unites(tensor: Tensor, q: Tensor) -> bool:
    # Autocast leaves float64 alone.
    half_or_single = _FLOATS[:3]
    device = q.device.type
    return (
        tensor.dtype in half_or_single
        and q.dtype in half_or_single
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    )


def _check_rank(name: str, tensor: Tensor, names: str) -> None:
    if tensor.dim() != len(names.split(", ")):
        raise ValueError(f"{name} must have shape {names}, got {tuple(tensor.shape)}")


def _check_shape(name: str, tensor: Tensor, names: str, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {names} = {shape}, got {tuple(tensor.shape)}")


def _check_device(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.device != q.device:
        raise ValueError(f"{name} must be on q's device {q.device}, got {tensor.device}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
