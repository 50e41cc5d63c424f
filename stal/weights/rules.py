"""Combination weights: from weights[step, object] to a weight and a region for every pixel.

Symbols: M_i(n) in [0, 1] is the soft coverage of object i's region at pixel n, lam_i the object's
weight at this step, D the global prompt, L_i the local prompts, A_p the attention to prompt p.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Rule = Literal["guidance", "convex"]
Mode = Literal["plain", "spatial", "spatial-temporal"]
RULES: tuple[str, ...] = get_args(Rule)
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class WeightMaps:
    """What one image's pixels attend to at one resolution and step.

    weight: (prompts, height * width) float32, in the order D, L_1..L_K and, if the reference is a
        prompt, the reference.
    region: (prompts, height * width) bool, where a prompt exists at all.
    unconditional: (height * width,) float32, the multiple of the unconditional half's attention
        output to subtract, or None.
    """

    weight: Tensor
    region: Tensor
    unconditional: Tensor | None


def weight_maps(
    masks: Tensor,
    lam: Tensor,
    *,
    rule: Rule = "guidance",
    reference_is_prompt: bool = False,
    background: float = 0.0,
) -> WeightMaps:
    """Weights and regions of one image.

    guidance (the released code of the paper): w_D = 1, w_i = lam_i M_i, reference
    -sum_i lam_i M_i, that is out = A_D + sum_i lam_i M_i (A_i - A_reference). lam is unbounded.

    background (ours, not in the paper): what no region covers, M_0 = max(0, 1 - sum_i M_i), is an
    object too, described by the reference prompt and moved away from D, which would put more of
    its objects there: out gains lam_0 M_0 (A_reference - A_D), lam_0 = background * mean_i lam_i.

    convex (the paper, Figure 2: the weights of a pixel sum to 1): s = sum_i lam_i M_i,
    w_i = lam_i M_i / max(1, s), w_D = 1 - sum_i w_i, with lam_i in [0, 1], which `check_weights`
    looks after. There is no reference.

    Args:
        masks: (objects, height, width) float32 in [0, 1], the soft coverage M.
        lam: (objects,) float32, this step's weights; gradients flow into it.
        rule: "guidance" or "convex".
        reference_is_prompt: under "guidance", whether the reference is one more prompt of the
            same image (True) or the unconditional half of the batch (False, as released).
        background: multiple of the mean weight that the background has; 0 unless the reference
            is a prompt.

    Returns:
        The maps. Regions depend on the masks (and on whether background is 0) alone, whatever lam.

    Raises:
        ValueError: an unknown rule, shapes that do not match, or a background without a reference
            prompt to describe it.
    """
    _require("rule", rule, RULES)
    if masks.ndim != 3 or lam.shape != masks.shape[:1]:
        raise ValueError(
            "masks must be (objects, height, width) and lam (objects,), got "
            f"{tuple(masks.shape)} and {tuple(lam.shape)}"
        )
    check_background(background, rule=rule, reference_is_prompt=reference_is_prompt)
    masks = masks.flatten(1)  # (objects, n)
    local = lam[:, None] * masks
    total = local.sum(dim=0, keepdim=True)  # (1, n)
    everywhere = torch.ones_like(total, dtype=torch.bool)
    inside = masks > 0
    if rule == "convex":
        local = local / total.clamp(min=1.0)
        weight = torch.cat([1 - local.sum(dim=0, keepdim=True), local])
        return WeightMaps(weight, torch.cat([everywhere, inside]), None)
    outside = torch.zeros_like(total)
    if background and len(lam):
        uncovered = (1 - masks.to(lam.dtype).sum(dim=0, keepdim=True)).clamp(min=0)
        outside = background * lam.mean() * uncovered
    weight = torch.cat([1 - outside, local])
    region = torch.cat([everywhere, inside])
    if not reference_is_prompt:
        return WeightMaps(weight, region, total.squeeze(0))
    reference = everywhere if background else inside.any(dim=0, keepdim=True)
    return WeightMaps(torch.cat([weight, outside - total]), torch.cat([region, reference]), None)


def default_weights(
    steps: int,
    objects: int,
    *,
    mode: Mode = "spatial-temporal",
    rule: Rule = "guidance",
    reference_is_prompt: bool = False,
) -> Tensor:
    """The weights used where nobody gives any: (steps, objects) float32.

    spatial-temporal: with K objects lam falls linearly from 1.9 - 1.5 / K to 0 over the steps
    ("convex": from 1 to 0). One object needs little, since D describes it and nothing else: on the
    bundled model a single one is right less often the larger lam is.
    spatial: constant; under "guidance" 5/K against the unconditional half (the released code's
    start) and 0.8 against a reference prompt, the best constant of those tried on the bundled
    model (0.6 to 1.3); under "convex" 0.7.
    plain: zero.

    Raises:
        ValueError: steps below 1, a negative number of objects, or an unknown mode or rule.
    """
    if steps < 1 or objects < 0:
        raise ValueError(f"steps must be positive and objects >= 0, got {steps} and {objects}")
    _require("mode", mode, MODES)
    _require("rule", rule, RULES)
    if mode == "plain":
        return torch.zeros(steps, objects, dtype=torch.float32, device="cpu")
    if mode == "spatial":
        constant = 0.7 if rule == "convex" else 0.8 if reference_is_prompt else 5 / max(objects, 1)
        return torch.full((steps, objects), constant, dtype=torch.float32, device="cpu")
    start = 1.0 if rule == "convex" else 1.9 - 1.5 / max(objects, 1)
    return falling_weights(start, steps, objects)


def falling_weights(start: float, steps: int, objects: int) -> Tensor:
    """Weights that fall linearly from start to 0: (steps, objects) float32."""
    fall = 1 - torch.arange(steps, dtype=torch.float32, device="cpu") / max(steps - 1, 1)
    return (start * fall)[:, None].repeat(1, objects)


def as_weights(
    weights: Tensor | Sequence, *, steps: int, objects: int, rule: Rule = "guidance"
) -> Tensor:
    """The caller's weights as (steps, objects) float32; (objects,) means constant in time.

    Raises:
        ValueError: no numbers, another shape, or values that `check_weights` refuses.
    """
    try:
        if not isinstance(weights, Tensor):
            weights = torch.tensor(weights, dtype=torch.float32, device="cpu")
        tensor = weights.to(torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        got = reprlib.repr(weights)
        raise ValueError(f"weights must be a tensor or lists of numbers, got {got}") from error
    if tensor.shape == (objects,):
        tensor = tensor.expand(steps, objects)
    if tensor.shape != (steps, objects):
        raise ValueError(
            f"weights must be (steps, objects) = {(steps, objects)} or (objects,) = {(objects,)}, "
            f"got {tuple(tensor.shape)}"
        )
    check_weights(tensor, rule=rule)
    return tensor


def check_weights(weights: Tensor, *, rule: Rule, first_step: int = 0) -> None:
    """Raises ValueError unless weights (steps, objects) are finite, and in [0, 1] if "convex".

    first_step: the step of the first row, for the message.
    """
    _require("rule", rule, RULES)
    good, limits = weights.isfinite(), "finite"
    if rule == "convex":
        good, limits = (weights >= 0) & (weights <= 1), "in [0, 1] under the rule convex"
    if not bool(good.all()):
        step, index = (~good).nonzero()[0].tolist()
        value = weights[step, index].item()
        where = f"at step {first_step + step}, object {index}"
        raise ValueError(f"weights must be {limits}, got {value} {where}")


def check_reference(rule: Rule, *, reference_is_prompt: bool, guided: bool) -> None:
    """Raises ValueError if the rule is unknown, or is "guidance" with nothing to move away from."""
    _require("rule", rule, RULES)
    if rule == "guidance" and not reference_is_prompt and not guided:
        raise ValueError(
            "reference must be a prompt, e.g. 'an empty scene', without classifier-free guidance "
            "(guidance_scale 1), got the unconditional half, which is then not computed"
        )


def check_background(background: float, *, rule: Rule, reference_is_prompt: bool) -> None:
    """Raises ValueError unless background is 0, or positive and there is a prompt for it."""
    if not 0 <= background < math.inf:
        raise ValueError(f"background must be a finite number >= 0, got {background}")
    if background and not (rule == "guidance" and reference_is_prompt):
        raise ValueError(
            "background must be 0 unless the rule is guidance and the reference a prompt, which "
            f"then describes it, got {background}"
        )


def _require(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
