"""Which step of the sampler a timestep begins, whatever the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def steps_of(
    scheduler: Any, timesteps: Sequence[float], levels: Sequence[float]
) -> tuple[list[tuple[float, int]], int]:
    """The index of the sampler's transition by what the denoiser is called with.

    A timestep may be there twice: Heun's second evaluation of a step is at the level where the next
    one begins, and PNDM repeats its second timestep; which of them it is `repeats_step` says. Where
    a scheduler has one timestep a step, those that rounding makes equal are still steps of their
    own: integers of Karras' levels, and levels in bfloat16.

    Args:
        scheduler: after its `set_timesteps`.
        timesteps, levels: its timesteps, and as the denoiser receives them.

    Returns:
        Levels with their index, in the order of the run, and the number of transitions.

    Raises:
        NotImplementedError: PNDM with Runge-Kutta steps.
    """
    runge_kutta = getattr(scheduler, "prk_timesteps", None)
    if runge_kutta is not None and len(runge_kutta):
        raise NotImplementedError(
            "scheduler must evaluate each step once or twice, got PNDM with Runge-Kutta steps: make"
            " it with from_config(scheduler.config, skip_prk_steps=True)"
        )
    if getattr(scheduler, "order", 1) == 2:
        # Two evaluations for each transition but the last.
        found = {level: index // 2 for index, level in enumerate(levels)}
        return list(found.items()), (len(levels) + 1) // 2
    if len(levels) == getattr(scheduler, "num_inference_steps", None):
        return [(level, index) for index, level in enumerate(levels)], len(levels)
    pairs = dict.fromkeys(zip(timesteps, levels, strict=False))
    return [(level, index) for index, (_, level) in enumerate(pairs)], len(pairs)


def step_index(scheduler: Any) -> int:
    """How many steps a scheduler says it has taken; 0 if it does not say."""
    step = getattr(scheduler, "_step_index", None)
    return int(step if step is not None else getattr(scheduler, "_begin_index", None) or 0)


def repeats_step(scheduler: Any) -> bool:
    """Whether the next call evaluates the step of the call before once more.

    So does PNDM's second call, and every second one of schedulers of the second order.
    """
    second = getattr(scheduler, "state_in_first_order", True) is False
    return second or getattr(scheduler, "counter", None) == 1
