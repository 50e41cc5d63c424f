"""The operator as torch knows it: schema, implementation, shapes, gradients, autocast.

Defined from Python, so that it exists even where no native library was built. Both forms of the
operator share it; prompt_ids and offsets are None in the dense one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stal_kernels import backends
from stal_kernels.checks import check_values

_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor weight, Tensor? prompt_ids, Tensor? offsets, "
    "Tensor? region, Tensor? key_lengths, float scale"
)
# Kernels need a contiguous last dimension, so the compiler may not choose other strides.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_library = torch.library.Library("stal_kernels", "DEF")
_library.define(
    f"blended_attention({_ARGUMENTS}, bool validate, str backend) -> Tensor", tags=_TAGS
)
_library.define(
    f"blended_attention_backward(Tensor dout, {_ARGUMENTS}, bool need_q, bool need_weight, "
    "bool need_kv, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)

_op = torch.ops.stal_kernels.blended_attention.default
_backward_op = torch.ops.stal_kernels.blended_attention_backward.default


def blended_attention(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, *others: Any) -> Tensor:
    """Calls the operator with arguments that have passed checks.py.

    Args:
        q, k, v, weight: as in `blended_attention` or `blended_attention_ragged`.
        others: the rest of the schema: prompt_ids, offsets, region, key_lengths, scale, validate,
            backend.

    Returns:
        (batch, heads, seqlen_q, head_dim), dtype and memory layout of q.

    Raises:
        ValueError: a value of an index tensor is out of range.
        NotImplementedError: the named backend cannot run these inputs, or one of them has a
            forward-mode derivative.
    """
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        _refuse_tangents(q, k, v, weight)
    if torch.compiler.is_compiling() or (
        torch.is_grad_enabled()
        and (q.requires_grad or k.requires_grad or v.requires_grad or weight.requires_grad)
    ):
        return _op(q, k, v, weight, *others)
    # The autograd layer of an operator that is defined from Python takes about as long as all else
    # in a small call. Where it would record nothing the call begins below it, which is all that
    # the layer itself would do.
    with torch._C._AutoDispatchBelowAutograd():
        return _op(q, k, v, weight, *others)


def _refuse_tangents(*tensors: Tensor) -> None:
    """Raises where a forward-mode derivative would silently be 0."""
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
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
    scale: float,
    validate: bool,
    backend: str,
) -> Tensor:
    if offsets is not None and prompt_ids is not None and (validate or not offsets.is_cuda):
        check_values(prompt_ids, offsets, key_lengths, q.shape[0], k.shape[0], k.shape[-2])
    inputs = backends.Inputs(q, k, v, weight, prompt_ids, offsets, region, key_lengths, scale)
    choice = backends.choose(inputs, backend)
    out = _empty_like(q)
    choice.backend.forward(inputs, choice.level, out)
    return out


def _fake_forward(q: Tensor, *_: Any) -> Tensor:
    return _empty_like(q)


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
    scale: float,
    need_q: bool,
    need_weight: bool,
    need_kv: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = backends.Inputs(q, k, v, weight, prompt_ids, offsets, region, key_lengths, scale)
    choice = backends.choose(inputs, backend)
    dq, dk, dv, dweight = _empty_gradients(q, k, v, weight, need_q, need_weight, need_kv)
    # The gradient of a sum is an expanded scalar.
    if dout.stride(-1) != 1:
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
    if out.stride()[-1] == 1:
        return out
    # An expanded dimension leaves the order of the others to torch.
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, scale, _, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.scale, ctx.backend = scale, backend


def _gradients(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    need_q, need_k, need_v, need_weight = ctx.needs_input_grad[:4]
    dq, dk, dv, dweight = _backward_op(
        dout,
        *ctx.saved_tensors,
        ctx.scale,
        need_q,
        need_weight,
        need_k or need_v,
        ctx.backend,
    )
    return (
        dq if need_q else None,
        dk if need_k else None,
        dv if need_v else None,
        dweight if need_weight else None,
        *[None] * 7,
    )


def _no_second_gradient(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "blended_attention can be differentiated once; for second derivatives use the loop over "
        "scaled_dot_product_attention in its docstring"
    )


def _under_autocast(device_type: str) -> Any:
    def cast_and_call(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
        with torch.autocast(device_type, enabled=False):
            return _op(q, k, v, *rest)

    return cast_and_call


_library.impl("blended_attention", _forward, "CompositeExplicitAutograd")
_library.impl("blended_attention_backward", _backward, "CompositeExplicitAutograd")
# register_autocast would cast weight too.
_library.impl("blended_attention", _under_autocast("cpu"), "AutocastCPU")
_library.impl("blended_attention", _under_autocast("cuda"), "AutocastCUDA")
torch.library.register_fake(_op, _fake_forward, lib=_library)
torch.library.register_fake(_backward_op, _fake_backward, lib=_library)
torch.library.register_autograd(_op, _gradients, setup_context=_setup_context, lib=_library)
torch.library.register_autograd(_backward_op, _no_second_gradient, lib=_library)
