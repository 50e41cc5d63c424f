"""How strongly regions act at which step, as the node's widgets say it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stal.checked_json import loads, number, short
from stal.weights import MODES, RULES, Mode, Rule, as_weights, check_weights, default_weights
from stal.weights.files import at_steps


@dataclass(frozen=True)
class Strengths:
    """Weights over the steps.

    Attributes:
        strength: multiplies the weights; 0 is the plain model under "guidance".
        start, stop: the shares of the steps from which and before which regions act.
        rule, mode: see `stal.weights.weight_maps` and `stal.weights.default_weights`.
        weights: instead of the mode's: numbers, one a region, "1.2, 0.8", or lists of such from
            the first step to the last, "[[1.2, 0.8], [0, 0]]", on straight lines from each to the
            next where the steps are others than the lists; "" is none.

    Raises:
        ValueError: one of them breaks its rule.
    """

    strength: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    rule: Rule = "guidance"
    mode: Mode = "spatial-temporal"
    weights: str = ""

    def __post_init__(self) -> None:
        for name, allowed in (("rule", RULES), ("mode", MODES)):
            if getattr(self, name) not in allowed:
                got = short(getattr(self, name))
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {got}")
        if not math.isfinite(number(self.strength, "strength")):
            raise ValueError(f"strength must be finite, got {self.strength}")
        if not 0 <= number(self.start, "start") <= number(self.stop, "stop") <= 1:
            raise ValueError(
                f"start and stop must be shares of the steps, start <= stop, in [0, 1], got"
                f" {self.start:g} and {self.stop:g}"
            )
        _read(self.weights)

    def of(self, steps: int, objects: int) -> Tensor:
        """(steps, objects) float32.

        Raises:
            ValueError: weights of another shape, or that the rule does not allow.
        """
        given = _read(self.weights)
        if given is None:
            lam = default_weights(
                steps, objects, mode=self.mode, rule=self.rule, reference_is_prompt=True
            )
        else:
            rows = len(given) if given and isinstance(given[0], list) else 1
            lam = as_weights(given, steps=rows, objects=objects, rule=self.rule)
            lam = at_steps(lam, steps)
        # float64, so that a share of the steps that is a step begins with it.
        at = torch.arange(steps, dtype=torch.float64, device="cpu")[:, None] / steps
        acts = (at >= self.start - 1e-6) & (at < self.stop - 1e-6)
        lam = torch.where(acts, lam * self.strength, 0.0)
        try:
            check_weights(lam, rule=self.rule)
        except ValueError as error:
            raise ValueError(f"weights times strength: {error}") from None
        return lam


def _read(text: str) -> list[Any] | None:
    """The numbers, or lists of them, that a widget holds."""
    text = text.strip()
    if not text:
        return None
    try:
        found = loads(text if text[0] == "[" else f"[{text}]")
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError(
            "weights must be numbers, one a region, like 1.2, 0.8, or lists of such, one a step,"
            f" got {short(text)}"
        )
    return found
