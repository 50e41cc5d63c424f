"""What every backend may take for granted. A backend's own limits are in its `why_not`.

Shapes, dtypes and strides are checked before the operator is called, so that they are traced away
by torch.compile, and once more inside it, where nothing is known about the caller; values of index
tensors and plans are checked there alone. A backend that does all of that itself is not checked
twice.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from stal_kernels import backends
from stal_kernels.order import TILE_ROWS, dense_offsets, tiles_of

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_SCALE = torch.finfo(torch.float32).max  # what kernels compute with
_Q = "(batch, heads, seqlen_q, head_dim)"
_KEYS = "(batch, prompts, heads, seqlen_k, head_dim)"
_TABLE = "(table, heads, seqlen_k, head_dim)"
PLAN = ("plan's order", "plan's tiles", "plan's region")
PACKED = ("packed's words", "packed's stamp", "packed's sample")
_MAKERS = {"plan": "stal_kernels.plan", "packed": "stal_kernels.pack"}

# These run before every call, where each attribute of a tensor costs 0.1 to 0.2 us: what decides
# is read once, and loops and functions only find the words for what is wrong.


def check_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    region: Tensor | None,
    plan: Sequence[Tensor] | None,
    scale: float | None,
    backend: str,
    packed: Sequence[Tensor] | None = None,
    strides: bool = True,
) -> None:
    """Raises ValueError unless the arguments are valid for `blended_attention`."""
    if not (
        isinstance(q, Tensor)
        and isinstance(k, Tensor)
        and isinstance(v, Tensor)
        and isinstance(weight, Tensor)
    ):
        raise _no_tensor(q=q, k=k, v=v, weight=weight)
    try:
        q_shape, k_shape, v_shape, weight_shape = q.shape, k.shape, v.shape, weight.shape
    except RuntimeError:  # a nested tensor has none
        raise _wrong_layout(q=q, k=k, v=v, weight=weight) from None
    if len(q_shape) != 4:
        raise _wrong_shape("q", q, _Q)
    if len(k_shape) != 5:
        raise _wrong_shape("k", k, _KEYS)
    batch, heads, seqlen_q, head_dim = q_shape
    _, prompts, _, seqlen_k, _ = k_shape
    expected = (batch, prompts, heads, seqlen_k, head_dim)
    if k_shape != expected:
        raise _wrong_shape("k", k, _KEYS, expected)
    if v_shape != expected:
        raise _wrong_shape("v", v, _KEYS, expected)
    if weight_shape != (batch, prompts, seqlen_q):
        names = "(batch, prompts, seqlen_q)"
        raise _wrong_shape("weight", weight, names, (batch, prompts, seqlen_q))
    if heads == 0 or head_dim == 0:
        raise ValueError(f"q must have heads and head_dim of at least 1, got {tuple(q_shape)}")
    _check_common(q, k, v, weight, region, plan, scale, backend, packed, strides)


def check_ragged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    prompt_ids: Tensor,
    offsets: Tensor,
    region: Tensor | None,
    key_lengths: Tensor | None,
    plan: Sequence[Tensor] | None,
    scale: float | None,
    backend: str,
    packed: Sequence[Tensor] | None = None,
    strides: bool = True,
) -> None:
    """Raises ValueError unless the arguments are valid for `blended_attention_ragged`."""
    if not (
        isinstance(q, Tensor)
        and isinstance(k, Tensor)
        and isinstance(v, Tensor)
        and isinstance(weight, Tensor)
        and isinstance(prompt_ids, Tensor)
        and isinstance(offsets, Tensor)
    ):
        raise _no_tensor(q=q, k=k, v=v, weight=weight, prompt_ids=prompt_ids, offsets=offsets)
    try:
        q_shape, k_shape, v_shape, weight_shape = q.shape, k.shape, v.shape, weight.shape
        ids_shape, offsets_shape = prompt_ids.shape, offsets.shape
    except RuntimeError:  # a nested tensor has none
        tensors = {"q": q, "k": k, "v": v, "weight": weight}
        raise _wrong_layout(**tensors, prompt_ids=prompt_ids, offsets=offsets) from None
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
    if v_shape != expected:
        raise _wrong_shape("v", v, _TABLE, expected)
    if weight_shape != (entries, seqlen_q):
        raise _wrong_shape("weight", weight, "(entries, seqlen_q)", (entries, seqlen_q))
    if offsets_shape != (batch + 1,):
        raise _wrong_shape("offsets", offsets, "(batch + 1,)", (batch + 1,))
    if key_lengths is not None:
        if not isinstance(key_lengths, Tensor):
            raise _no_tensor(key_lengths=key_lengths)
        if key_lengths.is_nested:
            raise _wrong_layout(key_lengths=key_lengths)
        if key_lengths.shape != (table,):
            raise _wrong_shape("key_lengths", key_lengths, "(table,)", (table,))
    device = q.device
    for name, tensor in (
        ("prompt_ids", prompt_ids),
        ("offsets", offsets),
        ("key_lengths", key_lengths),
    ):
        if tensor is not None:
            _check_index(name, tensor, device, "q")
    if heads == 0 or head_dim == 0:
        raise ValueError(f"q must have heads and head_dim of at least 1, got {tuple(q_shape)}")
    _check_common(q, k, v, weight, region, plan, scale, backend, packed, strides)


def check_sizes(inputs: backends.Inputs, dout: Tensor | None = None) -> None:
    """Raises ValueError unless all tensors of a call have the shape, dtype and device they must.

    dout: of a backward pass. Strides are left out: in a trace they are not final.
    """
    q, k, v, weight, prompt_ids, offsets, region, key_lengths, plan, _, packed = inputs
    if prompt_ids is not None and offsets is not None:
        table = prompt_ids, offsets, region, key_lengths, plan
        check_ragged(q, k, v, weight, *table, None, "auto", packed, strides=False)
    elif prompt_ids is not None or offsets is not None:
        raise _ids_alone()
    elif key_lengths is not None:
        raise ValueError("key_lengths must come with prompt_ids, got it alone")
    else:
        check_dense(q, k, v, weight, region, plan, None, "auto", packed, strides=False)
    alike = [("k", k), ("v", v)]
    if packed is not None:
        alike.append((PACKED[2], packed[2]))
    if dout is not None:
        alike.append(("dout", dout))
        if dout.shape != q.shape:
            raise _wrong_shape("dout", dout, _Q, tuple(q.shape))
        if dout.device != q.device:
            raise _wrong_device("dout", dout, q)
    for name, tensor in alike:
        # Autocast has done its work by now.
        if tensor.dtype != q.dtype:
            raise _wrong_dtype(name, tensor, q)


def check_inputs(inputs: backends.Inputs, *, values: bool, dout: Tensor | None = None) -> None:
    """Raises ValueError unless a backend may rely on what it is handed: `backends.Inputs`.

    Args:
        values: check those of index tensors and plans too, which waits for a GPU.
        dout: of a backward pass.
    """
    check_sizes(inputs, dout)
    q, k, v, _, prompt_ids, offsets, region, key_lengths, plan, scale, _ = inputs
    _check_strides(q=q, k=k, v=v)
    if not abs(scale) <= _LARGEST_SCALE:
        raise ValueError(f"scale must be finite in float32, got {scale}")
    if values and prompt_ids is not None and offsets is not None:
        check_values(prompt_ids, offsets, key_lengths, k.shape[0], k.shape[-2])
    if values and plan is not None and region is not None:
        _check_plan_values(plan, region, offsets)


def check_values(
    prompt_ids: Tensor,
    offsets: Tensor,
    key_lengths: Tensor | None,
    table: int,
    seqlen_k: int,
) -> None:
    """Raises ValueError unless the index tensors point into the table. Waits for a GPU.

    Args:
        prompt_ids: (entries,), each in 0 .. table - 1.
        offsets: (batch + 1,), ascending from 0 to entries.
        key_lengths: (table,), each in 0 .. seqlen_k; None: all are seqlen_k.
    """
    _check_offsets(offsets, prompt_ids.shape[0])
    for e, prompt in enumerate(prompt_ids.tolist()):
        if not 0 <= prompt < table:
            raise ValueError(
                f"prompt_ids must be in 0 .. {table - 1} (rows of k), got {prompt} at entry {e}"
            )
    if key_lengths is not None:
        _check_lengths(key_lengths, seqlen_k)


def check_plannable(region: Tensor, prompt_ids: Tensor | None, offsets: Tensor | None) -> None:
    """Raises ValueError unless the arguments are valid for `plan`, on the CPU their values too."""
    if not isinstance(region, Tensor):
        raise _no_tensor(region=region)
    if region.is_nested or region.layout != torch.strided:
        raise _wrong_layout(region=region)
    if region.dtype != torch.bool:
        raise ValueError(f"region must be bool, got {_short(region.dtype)}")
    if prompt_ids is None and offsets is None:
        if region.dim() != 3:
            raise _wrong_shape("region", region, "(batch, prompts, seqlen_q)")
        return
    if prompt_ids is None or offsets is None:
        raise _ids_alone()
    if region.dim() != 2:
        raise _wrong_shape("region", region, "(entries, seqlen_q)")
    entries = region.shape[0]
    for name, tensor in (("prompt_ids", prompt_ids), ("offsets", offsets)):
        if not isinstance(tensor, Tensor):
            raise _no_tensor(**{name: tensor})
        if tensor.is_nested:
            raise _wrong_layout(**{name: tensor})
        _check_index(name, tensor, region.device, "region")
    if prompt_ids.shape != (entries,):
        raise _wrong_shape("prompt_ids", prompt_ids, "(entries,)", (entries,))
    if offsets.dim() != 1 or offsets.shape[0] == 0:
        raise _wrong_shape("offsets", offsets, "(batch + 1,)")
    if region.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_offsets(offsets, entries)


def check_packable(
    k: Tensor, v: Tensor, key_lengths: Tensor | None, backend: str, dense: bool = True
) -> None:
    """Raises ValueError unless the arguments are valid for `pack`, on the CPU their values too.

    dense: whether k and v may be those of the dense form.
    """
    for name, tensor in (("k", k), ("v", v), ("key_lengths", key_lengths)):
        if not isinstance(tensor, Tensor) and (tensor is not None or name != "key_lengths"):
            raise _no_tensor(**{name: tensor})
        if tensor is not None and (tensor.is_nested or tensor.layout != torch.strided):
            raise _wrong_layout(**{name: tensor})
    if k.dim() != 4 and not (dense and k.dim() == 5):
        raise _wrong_shape("k", k, f"{_KEYS} or {_TABLE}" if dense else _TABLE)
    if v.shape != k.shape:
        raise _wrong_shape("v", v, "of k", tuple(k.shape))
    heads, head_dim = k.shape[-3], k.shape[-1]
    if heads == 0 or head_dim == 0:
        raise ValueError(f"k must have heads and head_dim of at least 1, got {tuple(k.shape)}")
    if k.dtype not in _FLOATS:
        raise ValueError(f"k must be float16, bfloat16, float32 or float64, got {_short(k.dtype)}")
    if v.dtype != k.dtype and not _autocast_unites(v, k):
        raise ValueError(f"v must have k's dtype {_short(k.dtype)}, got {_short(v.dtype)}")
    if v.device != k.device:
        raise ValueError(f"v must be on k's device {k.device}, got {v.device}")
    _check_strides(k=k, v=v)
    if key_lengths is not None:
        if k.dim() == 5:
            raise ValueError(f"key_lengths must come with a table {_TABLE}, got {tuple(k.shape)}")
        if key_lengths.shape != k.shape[:1]:
            raise _wrong_shape("key_lengths", key_lengths, "(table,)", tuple(k.shape[:1]))
        _check_index("key_lengths", key_lengths, k.device, "k")
        if key_lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_lengths(key_lengths, k.shape[-2])
    if backend != "auto":
        backends.check_name(backend)


def check_three(argument: str, names: Sequence[str], three: Sequence[Tensor], q: Tensor) -> None:
    """Raises ValueError unless a plan, or a pack, is three dense tensors on q's device.

    The dispatcher, which sees to it for the other tensors of a call, looks at none in a list.
    """
    if len(three) != 3:
        raise wrong_three(argument, three)
    for name, tensor in zip(names, three, strict=True):
        if tensor.is_nested or tensor.layout != torch.strided:
            raise _wrong_layout(**{name: tensor})
        if tensor.device != q.device:
            raise _wrong_device(name, tensor, q)


def wrong_three(argument: str, three: Any) -> ValueError:
    """The error of a plan, or a pack, that is not three tensors."""
    got = type(three).__name__
    if isinstance(three, (tuple, list)):
        got += f" of {len(three)}"
        other = next((x for x in three if not isinstance(x, Tensor)), None)
        got += "" if other is None else f" with {type(other).__name__} in it"
    maker = _MAKERS[argument]
    return ValueError(f"{argument} must be the three tensors that {maker} returns, got {got}")


def _is_three(three: Any) -> bool:
    return isinstance(three, (tuple, list)) and all(isinstance(x, Tensor) for x in three)


def _check_packed(packed: Sequence[Tensor], k: Tensor, q: Tensor) -> None:
    """Raises ValueError unless a pack has the shapes, dtypes and device of one of such keys."""
    if not _is_three(packed):
        raise wrong_three("packed", packed)
    check_three("packed", PACKED, packed, q)
    words, stamp, sample = packed
    *leading, heads, _, head_dim = k.shape
    for name, tensor in ((PACKED[0], words), (PACKED[1], stamp)):
        if tensor.dtype != torch.int32:
            raise ValueError(f"{name} must be int32, got {_short(tensor.dtype)}")
    if words.shape[:-1] != (*leading, heads):
        shape = f"(.., heads, words) = {(*leading, heads)} and any number"
        raise ValueError(f"{PACKED[0]} must have shape {shape}, got {tuple(words.shape)}")
    size = (*leading, backends.STAMP_SIZE)
    if stamp.shape != size:
        raise _wrong_shape(PACKED[1], stamp, f"(.., {backends.STAMP_SIZE})", size)
    size = (*leading, heads, 2, head_dim)
    if sample.shape != size:
        raise _wrong_shape(PACKED[2], sample, "(.., heads, 2, head_dim)", size)
    if sample.dtype != q.dtype and not _autocast_unites(sample, q):
        raise _wrong_dtype(PACKED[2], sample, q)


def _check_plan(plan: Sequence[Tensor], region: Tensor | None, q: Tensor) -> None:
    """Raises ValueError unless a plan has the shapes, dtypes and device of one of such a region."""
    if region is None:
        raise ValueError("plan must come with region, got it alone")
    if not _is_three(plan):
        raise wrong_three("plan", plan)
    check_three("plan", PLAN, plan, q)
    batch, seqlen_q = q.shape[0], q.shape[2]
    tiles = -(-seqlen_q // TILE_ROWS)
    for name, tensor, dtype, names, shape in zip(
        PLAN,
        plan,
        (torch.int32, torch.int64, torch.bool),
        ("(batch, seqlen_q)", "(batch, ceil(seqlen_q / 32))", "of region"),
        ((batch, seqlen_q), (batch, tiles), region.shape),
        strict=True,
    ):
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {_short(dtype)}, got {_short(tensor.dtype)}")
        if tensor.shape != shape:
            raise _wrong_shape(name, tensor, names, tuple(shape))


def _check_plan_values(plan: Sequence[Tensor], region: Tensor, offsets: Tensor | None) -> None:
    """Raises ValueError unless a plan is of this region. Waits for a GPU."""
    order, tiles, planned = plan
    entries = region.flatten(0, -2)
    changed = (planned.flatten(0, -2) != entries).any(1)
    if changed.any():
        raise ValueError(
            "plan's region must equal region, of which the plan is made, got another at entry "
            f"{int(changed.nonzero()[0])}"
        )
    rows = torch.arange(order.shape[1], dtype=order.dtype, device=order.device)
    wrong = (order.sort(dim=1).values != rows).any(1)
    if wrong.any():
        raise ValueError(
            f"plan's order must hold each of the rows 0 .. {len(rows) - 1} of an element once, got "
            f"others at element {int(wrong.nonzero()[0])}"
        )
    if offsets is None:
        offsets = dense_offsets(region.shape[0], region.shape[1], region.device)
    wrong = (tiles_of(order, entries, offsets) != tiles).any(1)
    if wrong.any():
        raise ValueError(
            "plan's tiles must be those of its order and region, got others at element "
            f"{int(wrong.nonzero()[0])}"
        )


def _check_offsets(offsets: Tensor, entries: int) -> None:
    """Raises ValueError unless offsets ascend from 0 to the number of entries. Waits for a GPU."""
    bounds = offsets.tolist()
    if bounds[0] != 0:
        raise ValueError(f"offsets must begin at 0, got {bounds[0]}")
    for b in range(len(bounds) - 1):
        if bounds[b] > bounds[b + 1]:
            raise ValueError(
                f"offsets must ascend, got {bounds[b]} before {bounds[b + 1]} at element {b}"
            )
    if bounds[-1] != entries:
        raise ValueError(f"offsets must end at the number of entries {entries}, got {bounds[-1]}")


def _check_lengths(key_lengths: Tensor, seqlen_k: int) -> None:
    """Raises ValueError unless each is in 0 .. seqlen_k. Waits for a GPU."""
    for t, length in enumerate(key_lengths.tolist()):
        if not 0 <= length <= seqlen_k:
            raise ValueError(
                f"key_lengths must be in 0 .. {seqlen_k} (seqlen_k), got {length} at row {t}"
            )


def _check_index(name: str, tensor: Tensor, device: torch.device, owner: str) -> None:
    """Raises ValueError unless it is int32, on the device of `owner`."""
    if tensor.dtype != torch.int32:
        raise ValueError(f"{name} must be int32, got {_short(tensor.dtype)}; use .int()")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {owner}'s device {device}, got {tensor.device}")


def _check_common(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    region: Tensor | None,
    plan: Sequence[Tensor] | None,
    scale: float | None,
    backend: str,
    packed: Sequence[Tensor] | None,
    strides: bool,
) -> None:
    dtype, device = q.dtype, q.device
    if dtype not in _FLOATS:
        raise ValueError(f"q must be float16, bfloat16, float32 or float64, got {_short(dtype)}")
    if not (k.dtype == v.dtype == dtype):
        for name, tensor in (("k", k), ("v", v)):
            if tensor.dtype != dtype and not _autocast_unites(tensor, q):
                raise _wrong_dtype(name, tensor, q)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    if weight.dtype != wanted:
        raise ValueError(
            f"weight must be {_short(wanted)} when q is {_short(dtype)}, got {_short(weight.dtype)}"
        )
    if region is not None:
        if not isinstance(region, Tensor):
            raise _no_tensor(region=region)
        if region.is_nested:
            raise _wrong_layout(region=region)
        if region.dtype != torch.bool:
            raise ValueError(f"region must be bool, got {_short(region.dtype)}")
        if region.shape != weight.shape:
            raise ValueError(
                f"region must have weight's shape {tuple(weight.shape)}, got {tuple(region.shape)}"
            )
        if region.device != device:
            raise _wrong_device("region", region, q)
    if plan is not None:
        _check_plan(plan, region, q)
    if packed is not None:
        _check_packed(packed, k, q)
    if not (k.device == v.device == weight.device == device):
        for name, tensor in (("k", k), ("v", v), ("weight", weight)):
            if tensor.device != device:
                raise _wrong_device(name, tensor, q)
    try:
        contiguous = not strides or q.stride()[-1] == k.stride()[-1] == v.stride()[-1] == 1
    except RuntimeError:  # some layouts have none
        contiguous = False
    if not contiguous:
        _check_strides(q=q, k=k, v=v)
    if scale is not None:
        if not isinstance(scale, (float, int, Real, torch.SymFloat, torch.SymInt)):
            raise ValueError(f"scale must be a number, got {type(scale).__name__}")
        if not abs(scale) <= _LARGEST_SCALE:
            raise ValueError(f"scale must be finite in float32, got {scale}")
    if backend != "auto":
        backends.check_name(backend)


def _check_strides(**tensors: Tensor) -> None:
    # A transform has strides of its own, which the operator makes right or refuses.
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise _wrong_layout(**{name: tensor})
        if tensor.stride(-1) != 1 and tensor.shape[-1] != 1 and not wrapped(tensor):
            raise ValueError(
                f"{name} must have a contiguous last dimension, got stride "
                f"{tensor.stride(-1)}; use .contiguous()"
            )


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


def _ids_alone() -> ValueError:
    return ValueError("prompt_ids must come with offsets, got one of them alone")


def _no_tensor(**arguments: Any) -> ValueError:
    name, value = next((n, x) for n, x in arguments.items() if not isinstance(x, Tensor))
    return ValueError(f"{name} must be a tensor, got {type(value).__name__}")


def _wrong_layout(**tensors: Tensor) -> ValueError:
    name, layout = next(
        (name, "a nested one" if x.is_nested else _short(x.layout))
        for name, x in tensors.items()
        if x.is_nested or x.layout != torch.strided
    )
    return ValueError(f"{name} must be a dense tensor (torch.strided), got {layout}")


def _wrong_dtype(name: str, tensor: Tensor, q: Tensor) -> ValueError:
    return ValueError(f"{name} must have q's dtype {_short(q.dtype)}, got {_short(tensor.dtype)}")


def _wrong_device(name: str, tensor: Tensor, q: Tensor) -> ValueError:
    return ValueError(f"{name} must be on q's device {q.device}, got {tensor.device}")


def _short(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")
