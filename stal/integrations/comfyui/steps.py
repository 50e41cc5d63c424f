"""Which step of the sampler a noise level belongs to, in whatever order a sampler visits them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stal.checked_json import short

# A schedule whose first level is one step below the largest noise, as ComfyUI's ddim_uniform, is
# whole.
_ONE_STEP = 1


class Steps:
    """The transitions of one run, numbered within the schedule that the run is a part of.

    A run may leave out the beginning of its schedule, as image to image does, or the end, as the
    first of two samplers does. Of these, steps are counted as long as the run's own.

    Args:
        sigmas: the noise levels of the run; transition i leads from the i-th to the next.
        sigma_at: from a share of the whole schedule in [0, 1] to the noise level there, ComfyUI's
            `percent_to_sigma`.

    Attributes:
        count: of the whole schedule.

    Raises:
        ValueError: fewer than two noise levels.
    """

    def __init__(self, sigmas: Sequence[float], sigma_at: Callable[[float], float]) -> None:
        if len(sigmas) < 2:
            raise ValueError(f"sigmas must be of at least one step, got {short(list(sigmas))}")
        self._sigmas = list(sigmas)
        own = len(sigmas) - 1
        # A run may also add noise, from a low level to a high one.
        begin, end = (_share_at(level, sigma_at) for level in (max(sigmas), min(sigmas)))
        covered = max(end - begin, 1 / 1000)
        before, after = (round(own * share / covered) for share in (begin, 1 - end))
        self._first = before if before > _ONE_STEP else 0
        self.count = self._first + own + after

    def at(self, sigma: float) -> int:
        """The step that begins at a noise level, or that leads past it."""
        pairs = list(zip(self._sigmas, self._sigmas[1:], strict=False))
        apart = [abs(begin - sigma) for begin, _ in pairs]
        nearest = apart.index(min(apart))
        if apart[nearest] <= 1e-5 * max(sigma, 1e-5):
            return self._first + nearest
        between = (i for i, pair in enumerate(pairs) if min(pair) < sigma < max(pair))
        return self._first + next(between, nearest)


def _share_at(sigma: float, sigma_at: Callable[[float], float]) -> float:
    """The share of the schedule that is over at a noise level; `sigma_at` falls."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if float(sigma_at(middle)) > sigma:
            low = middle
        else:
            high = middle
    return high if sigma > 0 else 1.0
