"""What all samplers do around their mathematics: precision, and checks of what they are handed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor

from stal.finite import NotFinite, way_out
from stal.schedule import Schedule

ModelFunction = Callable[[Tensor, float, int], Tensor]
NoiseFunction = Callable[[Tensor], Tensor]
Callback = Callable[[int, Tensor, Tensor], None]
Sampler = Callable[..., Tensor]
_S = TypeVar("_S", bound=Sampler)


def checked(name: str) -> Callable[[_S], _S]:
    """Surrounds the mathematics of a sampler by what all of them do, see `stal.sampler`.

    Inside, x and what model and noise return are at least float32 and of checked shape.
    """

    def decorate(sample: _S) -> _S:
        @functools.wraps(sample)
        def sampler(
            model: ModelFunction,
            x: Tensor,
            schedule: Schedule,
            *,
            noise: NoiseFunction | None = None,
            callback: Callback | None = None,
            **options: float,
        ) -> Tensor:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                got: object = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"x must be a floating point tensor, got {got}")
            if not isinstance(schedule, Schedule) or schedule.sampler != name:
                got = schedule.sampler if isinstance(schedule, Schedule) else schedule
                raise ValueError(
                    f"schedule must be schedule_from_config(..., sampler={name!r}), got {got!r}"
                )
            dtype, working_dtype = x.dtype, torch.promote_types(x.dtype, torch.float32)
            finite: list[tuple[int, float, Tensor]] = []

            def predict(x: Tensor, t: float, step: int) -> Tensor:
                prediction = model(x.to(dtype), t, step)
                _require_like(x, prediction, f"model must return at step {step}")
                finite.append((step, t, prediction.detach().isfinite().all()))
                if x.device.type == "cpu":
                    _require_finite(finite[-1:], dtype)
                return prediction.to(working_dtype)

            def draw(x: Tensor) -> Tensor:
                assert noise is not None
                drawn = noise(x)
                _require_like(x, drawn, "noise must return")
                return drawn.to(x)

            def report(step: int, x: Tensor, denoised: Tensor) -> None:
                assert callback is not None
                callback(step, x.to(dtype), denoised.to(dtype))

            x = sample(
                predict,
                x.to(working_dtype),
                schedule,
                noise=None if noise is None else draw,
                callback=None if callback is None else report,
                **options,
            )
            _require_finite(finite, dtype)
            return x.to(dtype)

        return cast(_S, sampler)

    return decorate


def _require_like(x: Tensor, value: object, what: str) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != x.shape:
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value)
        raise ValueError(f"{what} a floating point tensor of shape {tuple(x.shape)}, got {got}")


def _require_finite(finite: list[tuple[int, float, Tensor]], dtype: torch.dtype) -> None:
    for step, t, flag in finite:
        if not flag:
            raise NotFinite(
                f"model must return finite predictions, got NaN or infinity at step {step} "
                f"(timestep {t:g}){way_out(dtype)}"
            )
