"""What a picture shows of its prompt, and what many pictures say of a method.

    judge(detections, case.objects, case.relations, boxes)     # one picture -> Verdict
    estimate(counts), difference(counts, other)                # many -> a share with its interval

Every metric is a ratio of two sums over pictures (`Metric.counts`). Intervals are bootstrapped over
prompts, which are drawn with all their seeds: pictures of one prompt are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stal.evaluation.intervals import Estimate
from stal.layout import Box
from stal.prompts import Object
from stal.relations import GEOMETRY, Statement

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True)
class Detection:
    """Something that a detector saw.

    Attributes:
        noun: what it is, in the prompt's word.
        attributes: what was seen of it, e.g. ("red",).
        box: (x0, y0, x1, y1), fractions of the canvas.
        score: in [0, 1].
    """

    noun: str
    attributes: tuple[str, ...]
    box: Box
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Verdict:
    """Counts of one picture.

    Attributes:
        objects: objects of the prompt.
        found: of those, the ones that are there with all their attributes.
        nouns: those that are there, whatever their attributes.
        attributed: objects that have attributes.
        attributed_nouns: of those, the ones that are there, whatever their attributes.
        bound: of those, the ones that have all their attributes.
        swapped: attributed objects that are there without their attributes, with another object's.
        boxed: objects that the layout has a box for.
        placed: of those, the ones that are found with their centre in the box.
        relations: stated relations that two centres decide: left of, right of, above, below, on.
        relations_seen: of those, the ones whose two objects are found.
        relations_hold: of those, the ones that hold between the centres.
        extra: detections that are no object of the prompt, rightly coloured or not.
    """

    objects: int
    found: int
    nouns: int
    attributed: int
    attributed_nouns: int
    bound: int
    swapped: int
    boxed: int
    placed: int
    relations: int
    relations_seen: int
    relations_hold: int
    extra: int

    @property
    def correct(self) -> bool:
        """Wholly right: every object, every relation that centres decide, nothing else."""
        complete = self.found == self.objects and self.relations_hold == self.relations
        return complete and not self.extra


def judge(
    detections: Sequence[Detection],
    objects: Sequence[Object],
    relations: Sequence[Statement],
    boxes: Sequence[Box | None],
) -> Verdict:
    """Compares a picture's detections with what its prompt names.

    Each object takes one detection of its noun that has all its attributes, those with more
    attributes first; of several the nearest to its box, without a box the surest. What is still
    missing then takes a detection of its noun with other attributes. An uncounted plural ("several
    birds") is there if one is, and takes all that are.

    Args:
        detections: what was seen.
        objects, relations: see `stal.evaluation.prompt_files.PromptCase`.
        boxes: where each object should be, (x0, y0, x1, y1) as fractions of the canvas, or None.
    """
    left = list(detections)
    whole: list[Detection | None] = [None] * len(objects)
    loose: list[Detection | None] = [None] * len(objects)
    order = sorted(range(len(objects)), key=lambda i: -len(objects[i].attributes))
    for taken, exact in ((whole, True), (loose, False)):
        for i in order:
            if whole[i] is not None:
                continue
            wanted = set(objects[i].attributes) if exact else set()
            same = [d for d in left if d.noun == objects[i].noun and wanted <= set(d.attributes)]
            if not same:
                continue
            taken[i] = best = min(same, key=lambda d: _rank(d, boxes[i]))
            for used in same if objects[i].count != (1, 1) else [best]:
                left.remove(used)

    attributed = [i for i, thing in enumerate(objects) if thing.attributes]
    stated = [r for r in relations if _decides(r[1])]
    seen = [(a, name, b) for i, name, j in stated if (a := whole[i]) and (b := whole[j])]
    return Verdict(
        objects=len(objects),
        found=sum(each is not None for each in whole),
        nouns=sum(bool(a or b) for a, b in zip(whole, loose, strict=True)),
        attributed=len(attributed),
        attributed_nouns=sum(bool(whole[i] or loose[i]) for i in attributed),
        bound=sum(whole[i] is not None for i in attributed),
        swapped=sum(_swapped(loose[i], i, objects) for i in attributed),
        boxed=sum(box is not None for box in boxes),
        placed=sum(
            d is not None and box is not None and _inside(d.centre, box)
            for d, box in zip(whole, boxes, strict=True)
        ),
        relations=len(stated),
        relations_seen=len(seen),
        relations_hold=sum(_holds(a.centre, name, b.centre) for a, name, b in seen),
        extra=len(left),
    )


def _rank(detection: Detection, box: Box | None) -> float:
    if box is None:
        return -detection.score
    x, y = detection.centre
    return (x - (box[0] + box[2]) / 2) ** 2 + (y - (box[1] + box[3]) / 2) ** 2


def _inside(point: tuple[float, float], box: Box) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _swapped(detection: Detection | None, i: int, objects: Sequence[Object]) -> bool:
    """Whether it shows an attribute of another object that object i does not have."""
    if detection is None:
        return False
    others = {word for j, thing in enumerate(objects) if j != i for word in thing.attributes}
    return bool(set(detection.attributes) & (others - set(objects[i].attributes)))


def _decides(predicate: str) -> bool:
    return bool(GEOMETRY[predicate].dx or GEOMETRY[predicate].dy)


def _holds(a: tuple[float, float], predicate: str, b: tuple[float, float]) -> bool:
    geometry = GEOMETRY[predicate]
    dx, dy = a[0] - b[0], a[1] - b[1]
    return (not geometry.dx or dx * geometry.dx > 0) and (not geometry.dy or dy * geometry.dy > 0)


@dataclass(frozen=True)
class Metric:
    """A column of the summary.

    Attributes:
        name: in files.
        title: in tables.
        counts: a row of `results.jsonl` -> numerator and denominator.
        percent: whether it is a share of things that are or are not.
    """

    name: str
    title: str
    counts: Callable[[Mapping[str, Any]], tuple[float, float]]
    percent: bool = True


def _share(part: str, of: str) -> Callable[[Mapping[str, Any]], tuple[float, float]]:
    return lambda row: (row["verdict"][part], row["verdict"][of])


def _mean(column: str) -> Callable[[Mapping[str, Any]], tuple[float, float]]:
    return lambda row: (0.0, 0.0) if row[column] is None else (row[column], 1.0)


def _correct(row: Mapping[str, Any]) -> tuple[float, float]:
    # A prompt in which no object was found says nothing of a picture.
    return (float(row["correct"]), 1.0) if row["verdict"]["objects"] else (0.0, 0.0)


def _local(row: Mapping[str, Any]) -> tuple[float, float]:
    scores = row["clip_local"] or []
    return sum(scores), float(len(scores))


METRICS = (
    Metric("correct", "all correct", _correct),
    Metric("recall", "objects found", _share("found", "objects")),
    Metric("nouns", "whatever attributes", _share("nouns", "objects")),
    Metric("placed", "in place", _share("placed", "boxed")),
    Metric("binding", "attributes bound", _share("bound", "attributed_nouns")),
    Metric("swaps", "attributes swapped", _share("swapped", "attributed")),
    Metric("extra", "something extra", lambda row: (float(row["verdict"]["extra"] > 0), 1.0)),
    Metric("relations", "relations", _share("relations_hold", "relations")),
    Metric(
        "relations_given_found",
        "relations, both found",
        _share("relations_hold", "relations_seen"),
    ),
    Metric("background", "background", _mean("background")),
    Metric("clip_global", "CLIP global", _mean("clip_global"), percent=False),
    Metric("clip_local", "CLIP local", _local, percent=False),
    Metric("seconds", "s/image", _mean("seconds"), percent=False),
    Metric("memory_mb", "MB/image", _mean("memory_mb"), percent=False),
)


def estimate(counts: NDArray[Any], *, percent: bool = True) -> Estimate:
    """A ratio of sums, with the percentile interval of a bootstrap over prompts.

    Args:
        counts: (prompts, 2), numerator and denominator of each prompt with all its seeds.
        percent: a share of things that are or are not. Where all prompts agree on none or all, a
            bootstrap has no width; the interval is then the exact one of that many independent
            prompts.
    """
    import numpy as np

    counts = np.asarray(counts, dtype=float)
    totals = counts.sum(0)
    if not totals[1]:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(totals[0] / totals[1])
    if percent and value in (0.0, 1.0):
        edge = 0.025 ** (1 / np.count_nonzero(counts[:, 1]))
        return Estimate(value, *((0.0, 1 - edge) if value == 0 else (edge, 1.0)))
    low, high = _quantiles(_ratios(counts))
    return Estimate(value, low, high)


def difference(counts: NDArray[Any], other: NDArray[Any]) -> Estimate:
    """A method's ratio minus another's on the same prompts and seeds, drawn together.

    Args:
        counts, other: (prompts, 2) each, the same prompts in the same order.

    Raises:
        ValueError: they are of different numbers of prompts.
    """
    import numpy as np

    counts, other = np.asarray(counts, dtype=float), np.asarray(other, dtype=float)
    if counts.shape != other.shape:
        raise ValueError(f"other must be of {len(counts)} prompts, got {len(other)}")
    totals = counts.sum(0), other.sum(0)
    if not (totals[0][1] and totals[1][1]):
        return Estimate(math.nan, math.nan, math.nan)
    value = float(totals[0][0] / totals[0][1] - totals[1][0] / totals[1][1])
    # The same prompts are drawn for both.
    low, high = _quantiles(_ratios(counts) - _ratios(other))
    return Estimate(value, low, high)


def _ratios(counts: NDArray[Any]) -> NDArray[Any]:
    """The ratio in each of RESAMPLES draws of prompts with replacement; NaN for one of nothing."""
    import numpy as np

    sums = _draws(len(counts)) @ counts.astype(np.float32)
    with np.errstate(invalid="ignore"):
        return sums[:, 0] / sums[:, 1]


@lru_cache(maxsize=8)
def _draws(n: int) -> NDArray[Any]:
    """How often each of n prompts is drawn: (RESAMPLES, n). Small integers, exact in float32."""
    import numpy as np

    rng = np.random.default_rng(0)
    draws = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(RESAMPLES))
    return np.stack([draw.astype(np.float32) for draw in draws])


def _quantiles(draws: NDArray[Any]) -> tuple[float, float]:
    import numpy as np

    draws = draws[~np.isnan(draws)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
