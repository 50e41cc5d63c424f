"""What every backend may take for granted. A backend's own limits are in its `why_not`.

Shapes, dtypes and strides are checked once, before the operator is called, so that they are
traced away by torch.compile. Values of index tensors are checked inside the operator.
"""

import torch
from torch import Tensor

from stal_kernels import backends

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_SCALE = torch.finfo(torch.float32).max  # what kernels compute with
_Q = "(batch, heads, seqlen_q, head_dim)"
_KEYS = "(batch, prompts, heads, seqlen_k, head_dim)"
_TABLE = "(table, heads, seqlen_k, head_dim)"

# These run before every call, where each attribute of a tensor costs 0.1 to 0.2 us: what decides
# is read once, and loops and functions only find the words for what is wrong.


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
    q_shape, k_shape = q.shape, k.shape
    if len(q_shape) != 4:
        raise _wrong_shape("q", q, _Q)
    if len(k_shape) != 5:
        raise _wrong_shape("k", k, _KEYS)
    batch, heads, seqlen_q, head_dim = q_shape
    _, prompts, _, seqlen_k, _ = k_shape
    expected = (batch, prompts, heads, seqlen_k, head_dim)
    if k_shape != expected:
        raise _wrong_shape("k", k, _KEYS, expected)
    if v.shape != expected:
        raise _wrong_shape("v", v, _KEYS, expected)
    if weight.shape != (batch, prompts, seqlen_q):
        names = "(batch, prompts, seqlen_q)"
        raise _wrong_shape("weight", weight, names, (batch, prompts, seqlen_q))
    if heads == 0 or head_dim == 0:
        raise ValueError(f"q must have heads and head_dim of at least 1, got {tuple(q_shape)}")
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
    q_shape, k_shape, ids_shape = q.shape, k.shape, prompt_ids.shape
    if len(q_shape) != 4:
        raise _wrong_shape("q", q, _Q)
    if len(k_shape) != 4:
        raise _wrong_shape("k", k, _TABLE)
    if len(ids_shape) != 1:
        raise _wrong_shape("prompt_ids", prompt_ids, "(entries,)")
    batch, heads, seqlen_q, head_dim = q_shape
    table, _, seqlen_k, _ = k_shape
    (entries,) = ids_shape
    expected = (table, heads, seqlen_k, head_dim)
    if k_shape != expected:
        raise _wrong_shape("k", k, _TABLE, expected)
    if v.shape != expected:
        raise _wrong_shape("v", v, _TABLE, expected)
    if weight.shape != (entries, seqlen_q):
        raise _wrong_shape("weight", weight, "(entries, seqlen_q)", (entries, seqlen_q))
    if offsets.shape != (batch + 1,):
        raise _wrong_shape("offsets", offsets, "(batch + 1,)", (batch + 1,))
    if key_lengths is not None and key_lengths.shape != (table,):
        raise _wrong_shape("key_lengths", key_lengths, "(table,)", (table,))
    for name, tensor in (
        ("prompt_ids", prompt_ids),
        ("offsets", offsets),
        ("key_lengths", key_lengths),
    ):
        if tensor is None:
            continue
        if tensor.dtype != torch.int32:
            raise ValueError(f"{name} must be int32, got {_short(tensor.dtype)}; use .int()")
        if tensor.device != q.device:
            raise _wrong_device(name, tensor, q)
    if heads == 0 or head_dim == 0:
        raise ValueError(f"q must have heads and head_dim of at least 1, got {tuple(q_shape)}")
    _check_common(q, k, v, weight, region, scale, backend)


def check_values(
    prompt_ids: Tensor,
    offsets: Tensor,
    key_lengths: Tensor | None,
    batch: int,
    table: int,
    seqlen_k: int,
) -> None:
    """Raises ValueError unless the index tensors point into the table. Waits for a GPU.

    Args:
        prompt_ids: (entries,), each in 0 .. table - 1.
        offsets: (batch + 1,), ascending from 0 to entries.
        key_lengths: (table,), each in 0 .. seqlen_k; None: all are seqlen_k.
    """
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
    dtype, device = q.dtype, q.device
    if dtype not in _FLOATS:
        raise ValueError(f"q must be float16, bfloat16, float32 or float64, got {_short(dtype)}")
    if not (k.dtype == v.dtype == dtype):
        for name, tensor in (("k", k), ("v", v)):
            if tensor.dtype != dtype and not _autocast_unites(tensor, q):
                raise ValueError(
                    f"{name} must have q's dtype {_short(dtype)}, got {_short(tensor.dtype)}"
                )
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    if weight.dtype != wanted:
        raise ValueError(
            f"weight must be {_short(wanted)} when q is {_short(dtype)}, got {_short(weight.dtype)}"
        )
    if region is not None:
        if region.dtype != torch.bool:
            raise ValueError(f"region must be bool, got {_short(region.dtype)}")
        if region.shape != weight.shape:
            raise ValueError(
                f"region must have weight's shape {tuple(weight.shape)}, got {tuple(region.shape)}"
            )
        if region.device != device:
            raise _wrong_device("region", region, q)
    if not (k.device == v.device == weight.device == device):
        for name, tensor in (("k", k), ("v", v), ("weight", weight)):
            if tensor.device != device:
                raise _wrong_device(name, tensor, q)
    if not (q.stride()[-1] == k.stride()[-1] == v.stride()[-1] == 1):
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
                raise ValueError(
                    f"{name} must have a contiguous last dimension, got stride "
                    f"{tensor.stride(-1)}; use .contiguous()"
                )
    if scale is not None and not abs(scale) <= _LARGEST_SCALE:
        raise ValueError(f"scale must be finite in float32, got {scale}")
    if backend != "auto":
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


def _wrong_shape(
    name: str, tensor: Tensor, names: str, expected: tuple[int, ...] | None = None
) -> ValueError:
    sizes = "" if expected is None else f" = {expected}"
    return ValueError(f"{name} must have shape {names}{sizes}, got {tuple(tensor.shape)}")


def _wrong_device(name: str, tensor: Tensor, q: Tensor) -> ValueError:
    return ValueError(f"{name} must be on q's device {q.device}, got {tensor.device}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
