"""Sizes and strides of a call, as far as a launch depends on them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stal_kernels.backends.contract import Inputs


class View(NamedTuple):
    """How a tensor lies in memory, in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Problem(NamedTuple):
    """All of a call that a launch depends on but addresses. precision: see `TileRow`."""

    q: View
    k: View
    v: View
    weight: View
    region: View | None
    ragged: bool
    has_lengths: bool
    planned: bool
    scale: float
    dtype: torch.dtype
    precision: str

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def heads(self) -> int:
        return self.q.shape[1]

    @property
    def seqlen_q(self) -> int:
        return self.q.shape[2]

    @property
    def head_dim(self) -> int:
        return self.q.shape[3]

    @property
    def seqlen_k(self) -> int:
        return self.k.shape[-2]

    @property
    def prompts(self) -> int:
        return 1 if self.ragged else self.weight.shape[1]

    @property
    def entries(self) -> int:
        return self.weight.shape[0] * self.prompts

    @property
    def log2_scale(self) -> float:
        # A scale of 0 must not turn the -inf of a key that does not exist into NaN.
        return max(abs(self.scale) * math.log2(math.e), 2.0**-100)


def view_of(x: Tensor) -> View:
    """Shape and strides of a tensor."""
    return View(x.shape, x.stride())


def _full_precision() -> bool:
    """Whether products of float32 must not round their factors."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was also set for one of torch's backends, and differently
        newer = torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]
        return bool(newer != "tf32")


def problem_of(inputs: Inputs) -> Problem:
    """What a launch takes from these inputs and from torch's float32 precision of now."""
    q, k, v, weight, _, offsets, region, key_lengths, plan, scale, _ = inputs
    precision = "half"
    if q.dtype == torch.float32:
        precision = "ieee" if _full_precision() else "tf32"
    return Problem(
        view_of(q),
        view_of(k),
        view_of(v),
        view_of(weight),
        None if region is None else view_of(region),
        offsets is not None,
        key_lengths is not None,
        plan is not None,
        scale,
        q.dtype,
        precision,
    )


def strides_of(x: View, divisor: int = 1) -> tuple[int, ...]:
    """Strides over `divisor` of all dimensions but the last; that of a size of 1, which may be
    anything, is 0.
    """
    pairs = zip(x.shape[:-1], x.strides[:-1], strict=True)
    return tuple(0 if size == 1 else stride // divisor for size, stride in pairs)


def key_strides(x: View, divisor: int) -> tuple[int, ...]:
    """Strides b, p, h, l of k, v and their gradients; a table has no b."""
    return strides_of(x, divisor) if len(x.shape) == 5 else (0, *strides_of(x, divisor))


def input_strides(problem: Problem, divisor: int) -> tuple[tuple[int, ...], ...]:
    """Strides of q, k and v, of weight, of region, in the order of the kernels' arguments.

    Those of q, k and v are divided by `divisor`. In the ragged form a stride b that only the dense
    one has is 0.
    """
    region = problem.weight if problem.region is None else problem.region
    table = (0,) if problem.ragged else ()
    matrices = (
        *strides_of(problem.q, divisor),
        *key_strides(problem.k, divisor),
        *key_strides(problem.v, divisor),
    )
    return matrices, (*table, *problem.weight.strides), (*table, *region.strides)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
