"""Which backend computes a call."""

import functools
import os
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from stal_kernels.backends.contract import FAST_DTYPES, Backend, ForwardBackend, Inputs

# auto takes the first of these that is for the device and has no reason against it.
_ORDER = ("cpu", "cuda", "triton", "reference")
# The file in bench/results of a run on a GPU in which every check of backend cuda passed; None:
# there was none yet, and auto leaves cuda out.
CUDA_RESULT: str | None = None
# What computes the gradients of calls by a backend that has no backward pass.
_GRADIENTS_BY = {"cuda": "triton"}
VARIABLE = "STAL_KERNELS_BACKEND"


class Choice(NamedTuple):
    """A backend and its level, "" for the best one."""

    backend: ForwardBackend
    level: str


class BackwardChoice(NamedTuple):
    """As `Choice`, for a backward pass."""

    backend: Backend
    level: str


@functools.cache
def names() -> tuple[str, ...]:
    """All values of `backend` but "auto", levels included."""
    result: list[str] = []
    for name in _ORDER:
        result += [name, *(f"{name}:{level}" for level in _module(name).LEVELS)]
    return tuple(result)


def check_name(backend: str, variable: str = "backend") -> None:
    """Raises ValueError unless `backend` is "auto" or one of `names()`."""
    if backend == "auto" or backend in _ORDER:
        return
    # Levels are known to modules that a trace may not import; the call itself asks again.
    if not torch.compiler.is_compiling() and backend not in names():
        raise ValueError(f"{variable} must be one of auto, {', '.join(names())}, got {backend!r}")


def why_not(backend: str, q: Tensor | None = None, k: Tensor | None = None) -> list[str]:
    """Reasons why a backend cannot run; empty when it can.

    Args:
        backend: "reference", "cpu", "cuda", "triton", or a level such as "cpu:avx512".
        q, k: tensors of a call, of which the last dimensions count. Without them only the machine
            is asked.

    Returns:
        A sentence for each reason: what the machine lacks, then what these tensors break.

    Raises:
        ValueError: there is no such backend, or q or k is no tensor of a call.

    >>> why_not("cpu", torch.zeros(1, 1, 64, 36))
    ['cpu needs a head_dim that is a multiple of 8 and at most 256, got 36']
    """
    check_name(backend)
    if backend == "auto":
        raise ValueError(f"backend must be one of {', '.join(names())}, got 'auto'")
    if q is None:
        missing = _missing(backend)
        return [missing] if missing else []
    for name, tensor, least in (("q", q, 1), ("k", k, 2)):
        if tensor is None and name == "k":
            continue
        if not isinstance(tensor, Tensor) or tensor.dim() < least:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a tensor of {least} dimensions or more, got {got}")
    return _against(backend, q.device, q.dtype, q.shape[-1], None if k is None else k.shape[-2])


def is_proven(backend: str) -> bool:
    """Whether it ran where it is meant to run; auto chooses no other."""
    return backend != "cuda" or CUDA_RESULT is not None


def choose(inputs: Inputs, backend: str) -> Choice:
    """The backend and level that compute a call.

    Raises:
        NotImplementedError: the named backend cannot run these inputs.
        ValueError: the environment variable names no backend.
    """
    q, k = inputs.q, inputs.k
    return choose_for(q.device, q.dtype, q.shape[-1], k.shape[-2], backend)


def choose_for(
    device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int, backend: str
) -> Choice:
    """As `choose`, of a call with such q and k."""
    return _choose(_named(backend), device, dtype, head_dim, seqlen_k)


def choose_backward(inputs: Inputs, backend: str) -> BackwardChoice:
    """The backend and level that compute the gradients of a call; raises as `choose`."""
    q, k = inputs.q, inputs.k
    return _choose_backward(_named(backend), q.device, q.dtype, q.shape[-1], k.shape[-2])


def _named(backend: str) -> str:
    if backend == "auto" and (value := os.environ.get(VARIABLE)):
        check_name(value, VARIABLE)
        return value
    return backend


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
    return Choice(_module(_first(_ORDER, device, dtype, head_dim, seqlen_k)), "")


@functools.lru_cache(1024)
def _choose_backward(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int
) -> BackwardChoice:
    check_name(backend)
    if backend == "auto":
        order = tuple(name for name in _ORDER if name not in _GRADIENTS_BY)
        return BackwardChoice(_differentiable(_first(order, device, dtype, head_dim, seqlen_k)), "")
    name, _, level = backend.partition(":")
    of = _GRADIENTS_BY.get(name)
    computing = of or backend
    if reasons := _against(computing, device, dtype, head_dim, seqlen_k):
        role = f", which computes the gradients of {name}," if of else ""
        raise NotImplementedError(
            f"backend {computing}{role} cannot run this: {'; '.join(reasons)}"
        )
    return BackwardChoice(_differentiable(of or name), "" if of else level)


def _first(
    order: tuple[str, ...], device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int
) -> str:
    """The one that auto takes."""
    reasons: list[str] = []
    for name in order:
        devices = _module(name).DEVICES
        if not is_proven(name) or (devices and device.type not in devices):
            continue
        found = _against(name, device, dtype, head_dim, seqlen_k)
        if not found:
            if name == "reference" and dtype in FAST_DTYPES:
                _warn_slow("; ".join(reasons) or f"no fast backend is for {device.type} tensors")
            return name
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
def _module(name: str) -> ForwardBackend:
    if name == "cuda":
        from stal_kernels.backends import cuda

        return cuda
    return _differentiable(name)


@functools.cache
def _differentiable(name: str) -> Backend:
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
