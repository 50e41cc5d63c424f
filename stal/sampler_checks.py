"""What all samplers do around their mathematics: precision, and checks of what they are handed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from stal.finite import NotFinite, way_out
from stal.schedule import Schedule

ModelFunction = Callable[[Tensor, float, int], Tensor]
NoiseFunction = Callable[[Tensor], Tensor]
Callback = Callable[[int, Tensor, Tensor], None]
# Yields x, t, step; is sent the prediction for them; returns the final x.
Steps = Generator[tuple[Tensor, float, int], Tensor, Tensor]


class Sampler(Protocol):
    """A sampler as `stal.sampler` describes it.

    steps: the same as a generator steps(x, schedule, *, noise, callback, ...) that yields what the
        model would be called with and is sent the prediction, for whoever serves several at once.
    """

    steps: Callable[..., Steps]

    def __call__(
        self,
        model: ModelFunction,
        x: Tensor,
        schedule: Schedule,
        *,
        noise: NoiseFunction | None = None,
        callback: Callback | None = None,
        **options: float,
    ) -> Tensor: ...


def checked(name: str) -> Callable[[Callable[..., Steps]], Sampler]:
    """Makes a sampler of its mathematics: surrounds them by what all samplers do.

    Inside, x and what is sent or drawn are at least float32 and of checked shape.
    """

    def decorate(rule: Callable[..., Steps]) -> Sampler:
        def steps(
            x: Tensor,
            schedule: Schedule,
            *,
            noise: NoiseFunction | None = None,
            callback: Callback | None = None,
            **options: float,
        ) -> Steps:
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

            def draw(x: Tensor) -> Tensor:
                assert noise is not None
                drawn = noise(x)
                _require_like(x, drawn, "noise must return")
                return drawn.to(x)

            def report(step: int, x: Tensor, denoised: Tensor) -> None:
                assert callback is not None
                callback(step, x.to(dtype), denoised.to(dtype))

            inner = rule(
                x.to(working_dtype),
                schedule,
                noise=None if noise is None else draw,
                callback=None if callback is None else report,
                **options,
            )
            sent: Any = None
            while True:
                try:
                    x, t, step = inner.send(sent)
                except StopIteration as stop:
                    x = stop.value
                    break
                prediction = yield x.to(dtype), t, step
                _require_like(x, prediction, f"model must return at step {step}")
                finite.append((step, t, prediction.detach().isfinite().all()))
                if x.device.type == "cpu":
                    _require_finite(finite[-1:], dtype)
                sent = prediction.to(working_dtype)
            _require_finite(finite, dtype)
            return x.to(dtype)

        def sampler(model: ModelFunction, x: Tensor, schedule: Schedule, **options: Any) -> Tensor:
            running, prediction = steps(x, schedule, **options), cast(Any, None)
            while True:
                try:
                    arguments = running.send(prediction)
                except StopIteration as stop:
                    return cast(Tensor, stop.value)
                prediction = model(*arguments)

        signature = inspect.signature(rule)
        first = inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        made = cast(Any, sampler)
        made.__name__, made.__qualname__ = rule.__name__, rule.__qualname__
        made.__doc__, made.__module__ = rule.__doc__, rule.__module__
        made.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])
        made.steps = steps
        return cast(Sampler, made)

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
