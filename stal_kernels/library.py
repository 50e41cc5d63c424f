"""The operator as torch knows it: schema, implementation, shapes, gradients, transforms, autocast.

Defined from Python, so that it exists even where no native library was built. Both forms of the
operator share it; prompt_ids and offsets are None in the dense one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._C import _functorch, _len_torch_dispatch_stack
from torch.autograd import forward_ad

from stal_kernels import backends
from stal_kernels.checks import (
    PACKED,
    PLAN,
    check_inputs,
    check_packable,
    check_sizes,
    check_three,
    wrong_three,
)
from stal_kernels.sources import check_unchanged

_Chosen = TypeVar("_Chosen", backends.Choice, backends.BackwardChoice)

_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor weight, Tensor? prompt_ids, Tensor? offsets, "
    "Tensor? region, Tensor? key_lengths, Tensor[]? plan, float scale"
)
# Kernels need a contiguous last dimension, so the compiler may not choose other strides.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_library = torch.library.Library("stal_kernels", "DEF")
_library.define(
    f"blended_attention({_ARGUMENTS}, bool validate, str backend, Tensor[]? packed=None) -> Tensor",
    tags=_TAGS,
)
_library.define(
    f"blended_attention_backward(Tensor dout, {_ARGUMENTS}, bool need_q, bool need_weight, "
    "bool need_kv, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(
    "pack(Tensor k, Tensor v, Tensor? key_lengths, str backend) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)

# Where torch's dispatcher takes a call when one of its tensors is of another layout.
_OTHER_LAYOUTS = (
    *("SparseCPU", "SparseCUDA", "SparseMeta"),
    *("SparseCsrCPU", "SparseCsrCUDA", "SparseCsrMeta"),
    *("NestedTensorCPU", "NestedTensorCUDA", "NestedTensorMeta"),
    *("QuantizedCPU", "QuantizedCUDA", "MkldnnCPU"),
)

_op = torch.ops.stal_kernels.blended_attention.default
_backward_op = torch.ops.stal_kernels.blended_attention_backward.default
_pack_op = torch.ops.stal_kernels.pack.default


def blended_attention(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, *others: Any, packed: Any = None
) -> Tensor:
    """Calls the operator with arguments that have passed checks.py.

    Args:
        q, k, v, weight: as in `blended_attention` or `blended_attention_ragged`.
        others: the rest of the schema: prompt_ids, offsets, region, key_lengths, plan, scale,
            validate, backend.
        packed: as in the schema.

    Returns:
        (batch, heads, seqlen_q, head_dim), dtype and memory layout of q.

    Raises:
        ValueError: a value of an index tensor is out of range, the plan is of another region, or
            the pack is of other keys or for another call.
        NotImplementedError: the named backend cannot run these inputs, or one of them has a
            forward-mode derivative.
    """
    if packed is not None:
        others = *others, packed
    if torch.compiler.is_compiling():
        return _op(q, k, v, weight, *others)
    if (transform := _functorch.peek_interpreter_stack()) is not None:
        if transform.key() == _functorch.TransformType.Functionalize:
            return _op(q, k, v, weight, *others)
        return _transformed(q, k, v, weight, *others)
    if packed is not None:
        check_unchanged(packed, k, v)
    if forward_ad._current_level >= 0:
        _refuse_tangents(q, k, v, weight)
    # The autograd layer of an operator that is defined from Python takes about as long as all else
    # in a small call. Where it would record nothing the call begins below it, which is all that
    # the layer itself would do. Modes and subclasses may hide tensors that require a gradient.
    if (
        type(q) is type(k) is type(v) is type(weight) is Tensor
        and not _len_torch_dispatch_stack()
        and not (
            torch.is_grad_enabled()
            and (q.requires_grad or k.requires_grad or v.requires_grad or weight.requires_grad)
        )
    ):
        with torch._C._AutoDispatchBelowAutograd():
            return _op(q, k, v, weight, *others)
    return _op(q, k, v, weight, *others)


def _refuse_layout(*_: Any) -> None:
    raise ValueError(
        "all tensors of a call must be dense (torch.strided) and not quantised, got one that is not"
    )


def _refuse_tangents(*tensors: Tensor) -> None:
    """Raises where a forward-mode derivative would silently be 0."""
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise _no_tangents()


def _no_tangents() -> NotImplementedError:
    return NotImplementedError(
        "blended_attention has no forward-mode derivative; use reverse mode (backward)"
    )


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    prompt_ids: Tensor | None,
    offsets: Tensor | None,
    region: Tensor | None,
    key_lengths: Tensor | None,
    plan: Sequence[Tensor] | None,
    scale: float,
    validate: bool,
    backend: str,
    packed: Sequence[Tensor] | None = None,
) -> Tensor:
    indices = prompt_ids, offsets, region, key_lengths
    inputs = backends.Inputs(q, k, v, weight, *indices, plan, scale, packed)
    choice = _checked(backends.choose, inputs, backend, validate or not q.is_cuda)
    out = _empty_like(q)
    choice.backend.forward(inputs, choice.level, out)
    return out


def _checked(
    choose: Callable[[backends.Inputs, str], _Chosen],
    inputs: backends.Inputs,
    backend: str,
    values: bool,
    dout: Tensor | None = None,
) -> _Chosen:
    """The backend of a call whose arguments nobody has checked, unless the backend does.

    values: whether values of index tensors and plans are checked too, in either pass, since they
    may have changed in between.
    """
    if inputs.plan is not None:
        check_three("plan", PLAN, inputs.plan, inputs.q)
    if inputs.packed is not None:
        check_three("packed", PACKED, inputs.packed, inputs.q)
    try:
        choice = choose(inputs, backend)
    except IndexError:  # it reads sizes that a tensor of few dimensions has not
        check_inputs(inputs, values=False)
        raise
    chosen = choice.backend
    if not chosen.CHECKS_ARGUMENTS or (values and not chosen.CHECKS_VALUES):
        check_inputs(inputs, values=values, dout=dout)
    return choice


def _fake_forward(q: Tensor, *others: Any) -> Tensor:
    check_sizes(backends.Inputs(q, *others[:9], *others[11:]))
    return _empty_like(q)


def pack(
    k: Tensor, v: Tensor, key_lengths: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Calls the operator that packs a table, with arguments that have passed checks.py.

    Args:
        k, v: (table, heads, seqlen_k, head_dim).
        key_lengths, backend: as in `blended_attention_ragged`.

    Returns:
        words, stamp, sample: see `backends.Inputs`. They have no gradient.

    Raises:
        ValueError: a length is out of range.
        NotImplementedError: the named backend cannot run calls with such keys.
    """
    return cast(tuple[Tensor, Tensor, Tensor], _pack_op(k, v, key_lengths, backend))


def _pack(
    k: Tensor, v: Tensor, key_lengths: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    check_packable(k, v, key_lengths, backend, dense=False)
    choice, packed = _empty_pack(k, backend)
    choice.backend.pack(k, v, key_lengths, choice.level, packed)
    return packed


def _fake_pack(
    k: Tensor, v: Tensor, key_lengths: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_pack(k, backend)[1]


def _empty_pack(k: Tensor, backend: str) -> tuple[backends.Choice, tuple[Tensor, Tensor, Tensor]]:
    """The backend that packs k, and a pack of zeros."""
    table, heads = k.shape[:2]
    # In a trace these are symbols, of which a number of words cannot be told.
    seqlen_k, head_dim = int(k.shape[2]), int(k.shape[3])
    choice = backends.choose_for(k.device, k.dtype, head_dim, seqlen_k, backend)
    words = choice.backend.packed_words(k.dtype, head_dim, seqlen_k, choice.level)
    return choice, (
        k.new_zeros(table, heads, words, dtype=torch.int32),
        k.new_zeros(table, backends.STAMP_SIZE, dtype=torch.int32),
        k.new_zeros(table, heads, 2, head_dim),
    )


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    prompt_ids: Tensor | None,
    offsets: Tensor | None,
    region: Tensor | None,
    key_lengths: Tensor | None,
    plan: Sequence[Tensor] | None,
    scale: float,
    need_q: bool,
    need_weight: bool,
    need_kv: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = backends.Inputs(q, k, v, weight, prompt_ids, offsets, region, key_lengths, plan, scale)
    choice = _checked(backends.choose_backward, inputs, backend, not q.is_cuda, dout)
    dq, dk, dv, dweight = _empty_gradients(q, k, v, weight, need_q, need_weight, need_kv)
    # The gradient of a sum is an expanded scalar.
    if dout.stride()[-1:] != (1,):
        dout = dout.contiguous()
    choice.backend.backward(
        inputs,
        choice.level,
        dout,
        dq if need_q else None,
        dweight if need_weight else None,
        dk if need_kv else None,
        dv if need_kv else None,
    )
    return dq, dk, dv, dweight


def _fake_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_q, need_weight, need_kv, _ = rest[-4:]
    check_sizes(backends.Inputs(q, k, v, weight, *rest[:6]), dout)
    return _empty_gradients(q, k, v, weight, need_q, need_weight, need_kv)


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, need_q: bool, need_weight: bool, need_kv: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, dweight; those that nobody needs have no element."""
    needed = ((q, need_q), (k, need_kv), (v, need_kv), (weight, need_weight))
    dq, dk, dv, dweight = (_empty_like(x) if need else x.new_empty(0) for x, need in needed)
    return dq, dk, dv, dweight


def _empty_like(x: Tensor) -> Tensor:
    """A dense tensor in x's memory layout, its last dimension contiguous."""
    out = torch.empty_like(x)
    if out.stride()[-1:] == (1,):
        return out
    # An expanded dimension leaves the order of the others to torch.
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# A list of tensors is no argument that autograd keeps or a transform unwraps: for them the three
# tensors of a plan, each None where there is none, take its place, and at the end of a forward
# pass those of a pack, which the backward pass does without. "Flat" arguments are such.


def _flat(name: str, three: Sequence[Tensor] | None) -> Sequence[Tensor | None]:
    if three is None:
        return None, None, None
    if len(three) != 3:
        raise wrong_three(name, three)
    return three


def _flat_forward(*arguments: Any) -> tuple[Any, ...]:
    tensors, plan, others, packed = arguments[:8], arguments[8], arguments[9:12], arguments[12:]
    return *tensors, *_flat("plan", plan), *others, *_flat("packed", packed[0] if packed else None)


def _of_operator(*flat: Any) -> tuple[Any, ...]:
    """The arguments of the operator, its dout and its pack left out."""
    tensors, plan, others = flat[:8], flat[8:11], flat[11:]
    return *tensors, None if plan[0] is None else plan, *others


def _of_forward(*flat: Any) -> tuple[Any, ...]:
    """The arguments of the operator."""
    packed = flat[14:]
    return *_of_operator(*flat[:14]), None if packed[0] is None else packed


def _setup_context(ctx: Any, flat: Sequence[Any]) -> None:
    *tensors, scale, _, backend = flat[:14]
    ctx.save_for_backward(*tensors)
    ctx.scale, ctx.backend = scale, backend


def _gradients(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    """Of all flat arguments."""
    need_q, need_k, need_v, need_weight = ctx.needs_input_grad[:4]
    needs = need_q, need_weight, need_k or need_v
    dq, dk, dv, dweight = _call_backward(dout, *ctx.saved_tensors, ctx.scale, *needs, ctx.backend)
    return (
        dq if need_q else None,
        dk if need_k else None,
        dv if need_v else None,
        dweight if need_weight else None,
        *[None] * 13,
    )


class _Recorded(torch.autograd.Function):
    """The operator where a gradient of it is recorded.

    As torch.library.register_autograd makes it, which takes every call apart and puts it together
    again as soon as the schema has a list.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *flat, below = arguments
        _setup_context(ctx, flat)
        with torch._C._AutoDispatchBelowAutograd():
            return cast(Tensor, _op.redispatch(below, *_of_forward(*flat)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, *gradients), None


def _record(keyset: Any, *arguments: Any) -> Tensor:
    """The autograd layer of the operator."""
    below = keyset & torch._C._after_autograd_keyset
    if torch.is_grad_enabled() and any(x.requires_grad for x in arguments[:4]):
        return cast(Tensor, _Recorded.apply(*_flat_forward(*arguments), below))
    with torch._C._AutoDispatchBelowAutograd():
        return cast(Tensor, _op.redispatch(below, *arguments))


def _record_nothing(keyset: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The autograd layer of the operator that packs."""
    below = keyset & torch._C._after_autograd_keyset
    with torch._C._AutoDispatchBelowAutograd():
        return cast(tuple[Tensor, Tensor, Tensor], _pack_op.redispatch(below, *arguments))


def _no_second_gradient(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "blended_attention can be differentiated once; for second derivatives use the loop over "
        "scaled_dot_product_attention in its docstring"
    )


def _call_backward(dout: Tensor, *flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if torch.compiler.is_compiling() or _functorch.peek_interpreter_stack() is None:
        return _backward_op(dout, *_of_operator(*flat))
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], _TransformedBackward.apply(dout, *flat))


def _vmap_forward(
    call: Callable[..., Tensor], info: Any, in_dims: tuple[Any, ...], *arguments: Any
) -> tuple[Tensor, int]:
    """The rule of vmap, of its arguments as they are or flat, its pack left out; `call` is the
    operator.

    The plan of one call is left out where many are folded into one, as its pack is: no result
    depends on them.
    """
    tensors, others = arguments[:8], arguments[-3:]
    batch = _size(tensors[0], in_dims[0])
    out = call(*_fold(info.batch_size, in_dims[:8], tensors, False), None, *others)
    return out.unflatten(0, (info.batch_size, batch)), 0


def _vmap_backward(
    call: Callable[..., tuple[Tensor, ...]],
    info: Any,
    in_dims: tuple[Any, ...],
    dout: Tensor,
    *arguments: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The rule of vmap, as `_vmap_forward`; `call` is the backward operator."""
    tensors, others, dims = arguments[:8], arguments[-5:], in_dims[1:9]
    needed = others[1], others[3], others[3], others[2]  # of dq, dk, dv, dweight
    leading = [_size(x, dim) for x, dim in zip(tensors[:4], dims[:4], strict=True)]
    folded = _fold(info.batch_size, dims, tensors, own_tables=others[3])
    gradients = call(_rows(dout, in_dims[0], info.batch_size), *folded, None, *others)
    return (
        tuple(
            x.unflatten(0, (info.batch_size, size)) if need else x
            for x, size, need in zip(gradients, leading, needed, strict=True)
        ),
        tuple(0 if need else None for need in needed),
    )


def _fold(
    count: int, dims: tuple[int | None, ...], tensors: tuple[Any, ...], own_tables: bool
) -> list[Any]:
    """The tensors of `count` calls as those of one, whose batch holds the batches of all.

    Args:
        dims: which dimension of each tensor counts the calls; None: it is that of every call.
        tensors: q, k, v, weight, prompt_ids, offsets, region, key_lengths.
        own_tables: ragged: each call has rows of k and v of its own, though they may be equal.
    """
    q, k, v, weight, prompt_ids, offsets, region, key_lengths = tensors
    if prompt_ids is None or offsets is None:
        return [
            None if x is None else _rows(x, dim, count)
            for x, dim in zip(tensors, dims, strict=True)
        ]
    own_tables = own_tables or any(dims[i] is not None for i in (1, 2, 7))
    table, entries = _size(k, dims[1]), _size(prompt_ids, dims[4])
    if count * max(table, entries) >= 2**31:
        got = f"{count} calls of {entries} entries and {table} rows"
        raise ValueError(f"prompt_ids and offsets must count all calls in int32, got {got}")
    call = torch.arange(count, dtype=torch.int32, device=q.device)[:, None]
    # A value out of range would be one of another call: -1 is refused as itself.
    ids = _front(prompt_ids, dims[4], count)
    ids = torch.where((ids >= 0) & (ids < table), ids + call * table * own_tables, -1)
    bounds = _front(offsets, dims[5], count)
    whole = (bounds[:, :1] == 0) & (bounds[:, -1:] == entries)
    bounds = torch.where(whole, bounds + call * entries, -1)
    tables = [
        _rows(x, dim, count) if own_tables and x is not None else x
        for x, dim in ((k, dims[1]), (v, dims[2]), (key_lengths, dims[7]))
    ]
    return [
        _rows(q, dims[0], count),
        *tables[:2],
        _rows(weight, dims[3], count),
        ids.flatten(),
        torch.cat([bounds.new_zeros(1), bounds[:, 1:].flatten()]),
        None if region is None else _rows(region, dims[6], count),
        tables[2],
    ]


def _size(x: Tensor, dim: int | None) -> int:
    """The first size of a tensor beside the dimension that counts the calls."""
    return x.shape[1 if dim == 0 else 0]


def _front(x: Tensor, dim: int | None, count: int) -> Tensor:
    """(count, ...)"""
    return x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)


def _rows(x: Tensor, dim: int | None, count: int) -> Tensor:
    """The first dimension times the number of calls, the last one contiguous."""
    x = _front(x, dim, count).flatten(0, 1)
    return x if x.stride(-1) == 1 else x.contiguous()


# torch.func differentiates no operator of a library, but it does these.


class _Transformed(torch.autograd.Function):
    """The operator inside a transform, of flat arguments."""

    @staticmethod
    def forward(*flat: Any) -> Tensor:
        return _op(*_of_forward(*flat))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _setup_context(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, *gradients)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        raise _no_tangents()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _vmap_forward(blended_attention, info, in_dims, *arguments[:14])


class _TransformedBackward(torch.autograd.Function):
    """The backward operator inside a transform, of flat arguments."""

    @staticmethod
    def forward(dout: Tensor, *flat: Any) -> tuple[Tensor, ...]:
        return _backward_op(dout, *_of_operator(*flat))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        _no_second_gradient(ctx)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        raise _no_tangents()

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], *arguments: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        def call(dout: Tensor, *folded: Any) -> tuple[Tensor, ...]:
            return _call_backward(dout, *folded[:8], *_flat("plan", folded[8]), *folded[9:])

        return _vmap_backward(call, info, in_dims, *arguments)


def _transformed(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    flat = _flat_forward(q, k, v, *rest)[3:]
    device_type = q.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return _cast_and_call(_Transformed.apply, device_type, q, k, v, *flat)
    return cast(Tensor, _Transformed.apply(q, k, v, *flat))


def _cast_and_call(
    call: Callable[..., Any], device_type: str, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> Tensor:
    """The rule of autocast; `call` is the operator."""
    dtype = torch.get_autocast_dtype(device_type)
    q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    with torch.autocast(device_type, enabled=False):
        return cast(Tensor, call(q, k, v, *rest))


def _cast_and_pack(
    device_type: str, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The rule of autocast: a pack is of what a call would compute with."""
    dtype = torch.get_autocast_dtype(device_type)
    k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (k, v))
    with torch.autocast(device_type, enabled=False):
        return cast(tuple[Tensor, Tensor, Tensor], _pack_op(k, v, *rest))


def _vmap_op(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    return _vmap_forward(_op, info, in_dims, *arguments[:12])


_library.impl("blended_attention", _forward, "CompositeExplicitAutograd")
_library.impl("blended_attention_backward", _backward, "CompositeExplicitAutograd")
_library.impl("pack", _pack, "CompositeExplicitAutograd")
for _key in _OTHER_LAYOUTS:
    _library.impl("pack", _refuse_layout, _key)
    _library.impl("blended_attention", _refuse_layout, _key)
    _library.impl("blended_attention_backward", _refuse_layout, _key)
# register_autocast would cast weight too.
_library.impl("blended_attention", partial(_cast_and_call, _op, "cpu"), "AutocastCPU")
_library.impl("blended_attention", partial(_cast_and_call, _op, "cuda"), "AutocastCUDA")
_library.impl("pack", partial(_cast_and_pack, "cpu"), "AutocastCPU")
_library.impl("pack", partial(_cast_and_pack, "cuda"), "AutocastCUDA")
torch.library.register_fake(_op, _fake_forward, lib=_library)
torch.library.register_fake(_backward_op, _fake_backward, lib=_library)
torch.library.register_fake(_pack_op, _fake_pack, lib=_library)
_library.impl("blended_attention", _record, "Autograd", with_keyset=True)
_library.impl("pack", _record_nothing, "Autograd", with_keyset=True)
torch.library.register_autograd(_backward_op, _no_second_gradient, lib=_library)
torch.library.register_vmap(_op, _vmap_op, lib=_library)
torch.library.register_vmap(_backward_op, partial(_vmap_backward, _backward_op), lib=_library)
