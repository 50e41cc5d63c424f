"""Values that a sample gives, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval; NaN where nothing was counted."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(successes: int, trials: int) -> tuple[float, float]:
    """The exact (Clopper-Pearson) 95% interval of a share; (0, 1) of no trials."""
    from scipy.stats import binomtest

    if trials == 0:
        return 0.0, 1.0
    low, high = binomtest(successes, trials).proportion_ci(method="exact")
    return float(low), float(high)


def share_cell(successes: int, trials: int) -> str:
    """A share as a cell of a table: "4/5 80.0% [28.4%, 99.5%]", or "-" of no trials."""
    if trials == 0:
        return "-"
    low, high = interval(successes, trials)
    return f"{successes}/{trials} {successes / trials:.1%} [{low:.1%}, {high:.1%}]"
