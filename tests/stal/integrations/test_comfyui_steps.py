"""Which step a noise level belongs to, and how strongly regions act at it; without ComfyUI."""

from __future__ import annotations

import pytest
import torch

from stal.integrations.comfyui.steps import Steps
from stal.integrations.comfyui.strengths import Strengths

WHOLE = [10.0, 8.0, 6.0, 4.0, 2.0, 0.0]


def even(share: float) -> float:
    """A schedule from 10 to 0 whose levels are at even distances."""
    return 10 * (1 - share)


def test_steps_are_the_positions_of_their_levels() -> None:
    steps = Steps(WHOLE, even)
    assert steps.count == 5
    assert [steps.at(level) for level in WHOLE[:-1]] == [0, 1, 2, 3, 4]


def test_a_level_between_two_steps_belongs_to_the_first() -> None:
    """Samplers of the second order and stochastic ones evaluate there."""
    steps = Steps(WHOLE, even)
    assert [steps.at(level) for level in (9.9, 7.1, 0.5, 11.0)] == [0, 1, 4, 0]
    # In whatever order: restarts go back up.
    assert [steps.at(level) for level in (4.0, 8.0, 4.0)] == [3, 1, 3]


@pytest.mark.parametrize(
    ("sigmas", "count", "first"),
    [
        (WHOLE[2:], 5, 2),  # image to image
        (WHOLE[:4], 5, 0),  # the first of two samplers
        (WHOLE[2:5], 5, 2),
        ([9.8, 7.3, 4.9, 2.4, 0.0], 4, 0),  # begins a little later, as ComfyUI's ddim_uniform
        ([0.0, 5.0, 10.0], 2, 0),  # adds noise
    ],
    ids=["end", "beginning", "middle", "whole", "up"],
)
def test_steps_that_a_run_leaves_out_are_counted(
    sigmas: list[float], count: int, first: int
) -> None:
    steps = Steps(sigmas, even)
    assert (steps.count, steps.at(sigmas[0])) == (count, first)


def test_a_run_has_a_step() -> None:
    with pytest.raises(ValueError, match="sigmas must be of at least one step"):
        Steps([1.0], even)


def test_start_and_stop_are_shares_of_the_steps() -> None:
    lam = Strengths(strength=2.0, start=0.25, stop=0.75, weights="1, 0.5").of(4, 2)
    assert lam.tolist() == [[0, 0], [2, 1], [2, 1], [0, 0]]


def test_lists_of_weights_are_for_any_number_of_steps() -> None:
    given = Strengths(weights="[[1, 0.5], [0, 0]]")
    assert given.of(2, 2).tolist() == [[1, 0.5], [0, 0]]
    assert given.of(3, 2).tolist() == [[1, 0.5], [0.5, 0.25], [0, 0]]
    assert torch.equal(given.of(1, 2), torch.tensor([[1, 0.5]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0.6, "stop": 0.5}, "start and stop must be"),
        ({"strength": float("nan")}, "strength must be finite"),
        ({"rule": "other"}, "rule must be one of"),
        ({"mode": "other"}, "mode must be one of"),
        ({"weights": "high, low"}, "weights must be numbers"),
        ({"weights": "[1, 2"}, "weights must be numbers"),
    ],
)
def test_bad_settings_are_refused_at_once(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Strengths(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["1, 2, 3", "[[1], [2]]"])
def test_weights_of_another_number_of_regions_are_refused(weights: str) -> None:
    with pytest.raises(ValueError, match="weights must be"):
        Strengths(weights=weights).of(4, 2)


def test_strength_must_not_leave_what_the_rule_allows() -> None:
    with pytest.raises(ValueError, match="weights times strength"):
        Strengths(strength=2.0, rule="convex").of(4, 2)
