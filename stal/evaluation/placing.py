"""Ways of placing, compared by the labelled relations that hold between the boxes, end to end.

    ways = placers(None)
    placement_table([("gpt", read_gpt(path), False)], ways)

Random boxes and these projected need no learning; the predictor is taken as it is and projected.
NSR-1K's sets are scored by their own rule (`in_cone`, the first object that resembles the name).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stal.echo import markdown_table
from stal.evaluation.agreement import candidates, in_cone, lies
from stal.evaluation.intervals import share_cell
from stal.evaluation.labelled import Labelled
from stal.layout import Layout, PlacedObject, place
from stal.layout.predictor import LayoutPredictor
from stal.layout.projection import project
from stal.prompts import Description, parse
from stal.training.layout import FOLDS

# Layouts of prompts, given also the ids of the pictures that they describe.
Placer = Callable[[Sequence[Description], Sequence[int]], list[Layout]]


def placers(
    model: Path | None,
    *,
    folds: Path | None = None,
    ablation: Path | None = None,
    seed: int = 0,
) -> dict[str, Placer]:
    """Ways of placing, by name: baselines without learning, then predictors.

    Args:
        model: folder of one predictor for all prompts; the bundled one if None.
        folds, ablation: folders of predictors by fold, used instead of it; see `load_folds`.
        seed: of random boxes.

    Raises:
        ValueError: model and folds are both given, or a folder is of another fold.
        OSError: a predictor cannot be read.
    """
    if model is not None and folds is not None:
        raise ValueError(f"model must not be given with folds, got {model}")
    predictors = [LayoutPredictor.load(model)] if folds is None else load_folds(folds)
    others = [] if ablation is None else load_folds(ablation)
    ways: dict[str, Placer] = {
        "random boxes": lambda many, _: [_scattered(each, seed) for each in many],
        "projection alone": lambda many, _: [_projected(_scattered(each, seed)) for each in many],
        "grid (place)": lambda many, _: [place(each) for each in many],
    }
    if others:
        ways["no relative objective, not projected"] = _predicted(others, projected=False)
        ways["no relative objective"] = _predicted(others, projected=True)
    ways["predictor, not projected"] = _predicted(predictors, projected=False)
    ways["predictor"] = _predicted(predictors, projected=True)
    return ways


def _scattered(found: Description, seed: int) -> Layout:
    """Random boxes, which follow from the seed and the text."""
    rng = random.Random(f"{seed} {found.text}")
    objects = []
    for each in found.objects:
        w, h = rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5)
        x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
        objects.append(PlacedObject(each.phrase, each.noun, (x, y, x + w, y + h)))
    return Layout(found.text, tuple(objects), found.statements)


def _projected(layout: Layout) -> Layout:
    boxes = project([each.box for each in layout.objects], layout.relations)
    pairs = zip(layout.objects, boxes, strict=True)
    return replace(layout, objects=tuple(replace(each, box=box) for each, box in pairs))


def _predicted(by_fold: Sequence[LayoutPredictor], *, projected: bool) -> Placer:
    """Each picture is placed by the predictor of its fold, its id modulo their number."""

    def way(many: Sequence[Description], images: Sequence[int]) -> list[Layout]:
        out: dict[int, Layout] = {}
        for fold, predictor in enumerate(by_fold):
            mine = [k for k, image in enumerate(images) if image % len(by_fold) == fold]
            found = predictor.predict([many[k] for k in mine], projected=projected)
            out.update((k, each[0]) for k, each in zip(mine, found, strict=True))
        return [out[k] for k in range(len(many))]

    return way


def load_folds(folder: Path) -> list[LayoutPredictor]:
    """The predictors in folder/0 .. folder/4, each of which `train-layout --fold` wrote.

    Raises:
        ValueError: a predictor holds out another fold than its folder is named after.
        OSError: one cannot be read.
    """
    found = []
    for fold in range(FOLDS):
        predictor = LayoutPredictor.load(folder / str(fold))
        if predictor.metadata.get("fold") != str(fold):
            raise ValueError(
                f"{folder / str(fold)} must hold out fold {fold}, got"
                f" {predictor.metadata.get('fold')}: train it with --fold {fold}"
            )
        found.append(predictor)
    return found


def placed(
    cases: Sequence[Labelled], placer: Placer, *, loosely: bool = False, engine: str = "grammar"
) -> dict[str, tuple[int, int]]:
    """By kind of prompt, labelled relations that hold between the boxes, and all of them.

    A relation of an object that was not found does not hold.

    Args:
        cases: what `stal.evaluation.labelled` reads.
        placer: one of `placers`.
        loosely: score as NSR-1K does.
        engine: of `stal.prompts.parse`.
    """
    counts: dict[str, tuple[int, int]] = {}
    for start in range(0, len(cases), 64):
        part = cases[start : start + 64]
        found = [parse(case.prompt, engine=engine) for case in part]
        # Prompts of no picture are spread over the folds.
        images = [case.image or start + k for k, case in enumerate(part)]
        for case, description, layout in zip(part, found, placer(found, images), strict=True):
            right = sum(
                _holds(relation, description, layout, loosely) for relation in case.relations
            )
            old = counts.get(case.kind, (0, 0))
            counts[case.kind] = (old[0] + right, old[1] + len(case.relations))
    return counts


def _holds(
    relation: tuple[str, str, str], found: Description, layout: Layout, loosely: bool
) -> bool:
    first, predicate, second = relation
    one, other = (candidates(name, found.objects, loosely=loosely) for name in (first, second))
    pairs = [(i, j) for i in one for j in other if i != j]
    boxes = [each.box for each in layout.objects]
    if loosely:
        return any(in_cone(boxes[i], predicate, boxes[j]) for i, j in pairs[:1])
    return any(lies(boxes[i], predicate, boxes[j]) for i, j in pairs)


def placement_table(
    sets: Sequence[tuple[str, Sequence[Labelled], bool]],
    ways: dict[str, Placer],
    *,
    engine: str = "grammar",
) -> str:
    """Relations that hold between boxes, end to end, a row a way of placing: Markdown.

    Args:
        sets: (name, cases, whether to score as NSR-1K does); one of several kinds that is scored
            so has a column for each, every other one for all.
        ways: see `placers`.
        engine: of `stal.prompts.parse`.
    """
    cells: dict[str, list[str]] = {way: [] for way in ways}
    head: list[str] = []
    for name, cases, loosely in sets:
        apart = loosely and len({case.kind for case in cases}) > 1
        kinds = sorted({case.kind for case in cases}) if apart else []
        head += [f"{name}, {kind}" for kind in kinds] or [name]
        for way, placer in ways.items():
            counts = placed(cases, placer, loosely=loosely, engine=engine)
            columns = [counts[kind] for kind in kinds] or [
                (sum(a for a, _ in counts.values()), sum(b for _, b in counts.values()))
            ]
            cells[way] += [share_cell(*column) for column in columns]
    return "\n".join(markdown_table(["", *head], [[way, *row] for way, row in cells.items()]))
