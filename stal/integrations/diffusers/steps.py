"""Which step of the sampler a timestep begins, whatever the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def steps_of(scheduler: Any, levels: Sequence[float]) -> tuple[dict[float, int], int]:
    """The index of the sampler's transition by what the denoiser is called with.

    A timestep may be there twice: Heun's second evaluation of a step is at the level where the next
    one begins, PNDM repeats its second timestep, and integers of Karras' levels coincide at the
    last steps, which are then told apart no more: the first one's index counts.

    Args:
        scheduler: after its `set_timesteps`.
        levels: its timesteps as the denoiser receives them.

    Returns:
        The index by level, in the order of the levels, and the number of transitions.
    """
    if getattr(scheduler, "order", 1) == 2:
        # Two evaluations for each transition but the last.
        return {level: index // 2 for index, level in enumerate(levels)}, (len(levels) + 1) // 2
    found: dict[float, int] = {}
    alone = len(levels) == getattr(scheduler, "num_inference_steps", None)
    for index, level in enumerate(levels):
        found.setdefault(level, index if alone else len(found))
    return found, len(levels) if alone else len(found)
