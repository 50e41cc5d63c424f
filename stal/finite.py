"""NaN and infinity, seen where they arise."""

from __future__ import annotations

import torch
from torch import Tensor


class NotFinite(ValueError):
    """What a network, or a file, gave holds NaN or infinity."""


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; without a mask of the size of values."""
    if not values.numel():
        return True
    # Extremes are NaN where any value is.
    low, high = torch.aminmax(values.detach())
    return bool(low.isfinite() & high.isfinite())


def check_finite(part: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values. Raises NotFinite, naming the part that gave them, unless all are finite.

    dtype: that the part computes in; half precision overflows where float32 does not.
    """
    if not is_finite(values):
        raise NotFinite(f"{part} must be finite, got NaN or infinity{way_out(dtype)}")
    return values


def way_out(dtype: torch.dtype) -> str:
    """The end of a message on values that are not finite: what to do about it."""
    if dtype == torch.float16:
        return " in float16, which overflows above 65504: load the model in float32 or bfloat16"
    if dtype == torch.bfloat16:
        return " in bfloat16: load the model in float32"
    return f" in {str(dtype).removeprefix('torch.')}: its weights or its input are at fault"
