"""Which backend computes a call.

A backend is a module or package in this folder that has what `Backend` lists, a row in
`_AUTO_ORDER` and one in `_module`. It is imported when it is first asked for. It imports neither
another backend nor anything but torch and what it calls.
"""

import functools
import os
import warnings
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# auto takes the first of these that is for the device and has no reason against it.
_AUTO_ORDER = ("cpu", "triton", "reference")
VARIABLE = "STAL_KERNELS_BACKEND"
# What all fast backends compute; float64 has none by design.
_FAST_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Inputs(NamedTuple):
    """The arguments of one call, which have passed checks.py.

    q: (batch, heads, seqlen_q, head_dim).
    k, v: (batch, prompts, heads, seqlen_k, head_dim), ragged (table, heads, seqlen_k, head_dim).
    weight: (batch, prompts, seqlen_q), ragged (entries, seqlen_q), as region.
    prompt_ids, offsets: (entries,) and (batch + 1,), int32; both None in the dense form.
    key_lengths: (table,), int32, or None; ragged only.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    weight: Tensor
    prompt_ids: Tensor | None
    offsets: Tensor | None
    region: Tensor | None
    key_lengths: Tensor | None
    scale: float


class Backend(Protocol):
    """What a backend has.

    LEVELS: names that may follow "<backend>:".
    DEVICES: types of device that auto uses it for; none: all.
    """

    LEVELS: tuple[str, ...]
    DEVICES: tuple[str, ...]

    def missing(self, level: str) -> str:
        """Why it, or one of its levels, cannot run on this machine; "" if it can."""

    def why_not(
        self, device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int | None
    ) -> list[str]:
        """Reasons why it cannot run a call with such q and k; seqlen_k None: unknown.

        Nothing else may decide, since choices are kept.
        """

    def forward(self, inputs: Inputs, level: str, out: Tensor) -> None:
        """Writes all of out, which has the shape, dtype and device of q.

        Args:
            level: one of LEVELS that `missing` has nothing against; "": the best one.
            out: any strides with a contiguous last dimension.
        """

    def backward(
        self,
        inputs: Inputs,
        level: str,
        dout: Tensor,
        dq: Tensor | None,
        dweight: Tensor | None,
        dk: Tensor | None,
        dv: Tensor | None,
    ) -> None:
        """Writes all of the gradients that are not None.

        Args:
            level: as in `forward`.
            dout: gradient of the output, shape, dtype and device of q.
            dq, dweight, dk, dv: shape, dtype and device of q, weight, k, v; dk and dv are both
                there or neither. Any strides with a contiguous last dimension, as dout.
        """


class Choice(NamedTuple):
    """A backend and its level, "" for the best one."""

    backend: Backend
    level: str


@functools.cache
def names() -> tuple[str, ...]:
    """All values of `backend` but "auto", levels included."""
    result: list[str] = []
    for name in _AUTO_ORDER:
        result += [name, *(f"{name}:{level}" for level in _module(name).LEVELS)]
    return tuple(result)


def check_name(backend: str, variable: str = "backend") -> None:
    """Raises ValueError unless `backend` is "auto" or one of `names()`."""
    if backend == "auto" or backend in _AUTO_ORDER:
        return
    # Levels are known to modules that a trace may not import; the call itself asks again.
    if not torch.compiler.is_compiling() and backend not in names():
        raise ValueError(f"{variable} must be one of auto, {', '.join(names())}, got {backend!r}")


def why_not(backend: str, q: Tensor | None = None, k: Tensor | None = None) -> list[str]:
    """Reasons why a backend cannot run; empty when it can.

    Args:
        backend: "reference", "cpu", "triton", or a level such as "cpu:avx512".
        q, k: tensors of a call. Without them only the machine is asked.

    Returns:
        A sentence for each reason: what the machine lacks, then what these tensors break.

    Raises:
        ValueError: there is no such backend.

    >>> why_not("cpu", torch.zeros(1, 1, 64, 36))
    ['cpu needs a head_dim that is a multiple of 8 and at most 256, got 36']
    """
    check_name(backend)
    if backend == "auto":
        raise ValueError(f"backend must be one of {', '.join(names())}, got 'auto'")
    if q is None:
        missing = _missing(backend)
        return [missing] if missing else []
    return _against(backend, q.device, q.dtype, q.shape[-1], None if k is None else k.shape[-2])


def fast_limits(backend: str, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Reasons of the fast backends against a call, as far as they have them in common."""
    reasons = []
    if dtype not in _FAST_DTYPES:
        reasons.append(f"{backend} needs float16, bfloat16 or float32, got {dtype}")
    if head_dim % 8 or head_dim > 256:
        reasons.append(
            f"{backend} needs a head_dim that is a multiple of 8 and at most 256, got {head_dim}"
        )
    return reasons


def choose(inputs: Inputs, backend: str) -> Choice:
    """The backend and level that compute a call.

    Raises:
        NotImplementedError: the named backend cannot run these inputs.
        ValueError: the environment variable names no backend.
    """
    q, k = inputs.q, inputs.k
    if backend == "auto" and (value := os.environ.get(VARIABLE)):
        check_name(value, VARIABLE)
        backend = value
    return _choose(backend, q.device, q.dtype, q.shape[-1], k.shape[-2])


# Kept by all that may decide; what is missing from a machine stays missing.
@functools.lru_cache(1024)
def _choose(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int
) -> Choice:
    check_name(backend)
    if backend != "auto":
        if reasons := _against(backend, device, dtype, head_dim, seqlen_k):
            raise NotImplementedError(f"backend {backend} cannot run this: {'; '.join(reasons)}")
        name, _, level = backend.partition(":")
        return Choice(_module(name), level)
    reasons = []
    for name in _AUTO_ORDER:
        module = _module(name)
        if module.DEVICES and device.type not in module.DEVICES:
            continue
        found = _against(name, device, dtype, head_dim, seqlen_k)
        if not found:
            if name == "reference" and dtype in _FAST_DTYPES:
                _warn_slow("; ".join(reasons) or f"no fast backend is for {device.type} tensors")
            return Choice(module, "")
        reasons += found
    raise NotImplementedError("; ".join(reasons))


def _against(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int | None
) -> list[str]:
    missing = _missing(backend)
    reasons = _module(backend.partition(":")[0]).why_not(device, dtype, head_dim, seqlen_k)
    return [missing, *reasons] if missing else reasons


@functools.cache
def _missing(backend: str) -> str:
    name, _, level = backend.partition(":")
    return _module(name).missing(level)


@functools.cache
def _module(name: str) -> Backend:
    # Spelled out, so that mypy compares each with the contract.
    if name == "cpu":
        from stal_kernels.backends import cpu

        return cpu
    if name == "triton":
        from stal_kernels.backends import triton

        return triton
    from stal_kernels.backends import reference

    return reference


@functools.cache
def _warn_slow(reasons: str) -> None:
    warnings.warn(
        f"blended_attention runs on the slow reference backend: {reasons} "
        "(backend='reference' asks for it without this warning)",
        stacklevel=2,
    )
