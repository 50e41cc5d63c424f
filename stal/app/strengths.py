"""Strengths as people set them, as weights of the method.

    weights[step, i] = peak * strength_i * curve(t),  t = step / (steps - 1),

where start_i <= t < stop_i, or stop_i is 1; otherwise 0. peak is the first of the weights that the
method has where nobody gives any, so that strength 1 from start to stop along the mode's own curve
gives those.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from stal.app.problems import Problem
from stal.app.schema import RegionStrength, Strengths
from stal.weights import Mode, Rule, default_weights


def weights_of(
    strengths: Strengths,
    *,
    steps: int,
    objects: int,
    mode: Mode,
    rule: Rule,
    reference_is_prompt: bool,
) -> Tensor:
    """(steps, objects) float32.

    strengths: without regions all objects have strength 1; without a curve it is the mode's.
    mode, rule, reference_is_prompt: as in `stal.weights.default_weights`.

    Raises: Problem for regions that are not one an object, or a curve whose times do not ascend.
    """
    weights = default_weights(
        steps, objects, mode=mode, rule=rule, reference_is_prompt=reference_is_prompt
    )
    regions = strengths.regions
    if regions is None:
        regions = [RegionStrength()] * objects
    if len(regions) != objects:
        rule_ = f"weights.regions must be one for each of {objects} objects, got {len(regions)}"
        raise Problem(400, rule_, param="weights")
    times = [step / max(steps - 1, 1) for step in range(steps)]
    if strengths.curve is not None and objects and mode != "plain":
        heights = torch.tensor(_along(strengths.curve, times), dtype=torch.float32, device="cpu")
        weights = heights[:, None] * weights[0]
    shares = [[_share(region, t) for region in regions] for t in times]
    return weights * torch.tensor(shares, dtype=torch.float32, device="cpu").view(steps, objects)


def _share(region: RegionStrength, t: float) -> float:
    during = region.start <= t < region.stop or (region.stop == 1 and region.start <= t)
    return region.strength if during else 0.0


def _along(curve: Sequence[Sequence[float]], times: Sequence[float]) -> list[float]:
    """The heights of a line through the knots (t, w); constant before the first, after the last."""
    for (t0, _), (t1, _) in pairwise(curve):
        if t1 <= t0:
            rule = f"weights.curve must have ascending times, got {t1} after {t0}"
            raise Problem(400, rule, param="weights")
    return [_height(curve, t) for t in times]


def _height(curve: Sequence[Sequence[float]], t: float) -> float:
    if t <= curve[0][0]:
        return curve[0][1]
    for (t0, w0), (t1, w1) in pairwise(curve):
        if t <= t1:
            return w0 + (t - t0) / (t1 - t0) * (w1 - w0)
    return curve[-1][1]
