"""Test prompts of the shapes world, and whether a picture shows what its prompt says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from stal.layout import Layout, PlacedObject
from stal.prompts import parse
from stal.shapes.captions import caption
from stal.shapes.detector import Detection
from stal.shapes.scenes import COLOUR_NAMES, draw_scenes


@dataclass(frozen=True)
class Case:
    """A prompt and the layout of the scene that it was written for ("true layout")."""

    prompt: str
    layout: Layout


@dataclass(frozen=True)
class Verdict:
    """What is right in one picture.

    found: objects of the prompt that are there, with colour and shape.
    placed: of those, the ones whose centre lies in the object's box.
    objects: objects of the prompt.
    relations: whether every stated relation holds between the centres of objects that are there.
    extra: detections that belong to no object of the prompt.
    """

    found: int
    placed: int
    objects: int
    relations: bool
    extra: int

    @property
    def correct(self) -> bool:
        """Wholly right: every object, every stated relation, nothing else."""
        return self.found == self.objects and self.relations and not self.extra


def draw_cases(n: int, *, objects: int, seed: int, held_out: bool = True) -> list[Case]:
    """n prompts that name every object of a scene of different objects.

    They are of the test split, whose combinations of two or more objects training never saw, or
    with held_out False of the training split.
    """
    rng = random.Random(seed)
    cases: list[Case] = []
    while len(cases) < n:
        scenes = draw_scenes(n, seed=rng.getrandbits(30), counts=(objects,), held_out=held_out)
        for scene in range(len(scenes)):
            phrases = [scenes.phrase(scene, i) for i in range(objects)]
            text = caption(scenes, scene, rng, partial_share=0.0)
            if len(set(phrases)) < objects:
                continue
            description = parse(text)
            named = [o.phrase for o in description.objects]
            if sorted(named) != sorted(phrases):
                raise AssertionError(f"{text!r} was read as {named}")
            boxes = tuple(
                PlacedObject(o.phrase, o.noun, scenes.box(scene, phrases.index(o.phrase)))
                for o in description.objects
            )
            relations = description.statements
            cases.append(Case(text, Layout(text, boxes, relations)))
    return cases[:n]


def judge(detections: Sequence[Detection], layout: Layout) -> Verdict:
    """Compares a picture's detections with the objects, boxes and relations of a layout.

    Of several that an object could be, the one nearest to its box counts; "next to" always holds
    between objects that are there.
    """
    left = list(detections)
    matched: list[Detection | None] = []
    for item in layout.objects:
        x0, y0, x1, y1 = item.box
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        same = [d for d in left if _is(d, item.phrase)]
        best = min(same, key=lambda d: _distance(d.centre, middle), default=None)
        if best is not None:
            left.remove(best)
        matched.append(best)
    placed = 0
    for item, found in zip(layout.objects, matched, strict=True):
        if found is not None:
            x0, y0, x1, y1 = item.box
            placed += x0 <= found.centre[0] <= x1 and y0 <= found.centre[1] <= y1
    return Verdict(
        found=sum(found is not None for found in matched),
        placed=placed,
        objects=len(matched),
        relations=all(_holds(matched[i], name, matched[j]) for i, name, j in layout.relations),
        extra=len(left),
    )


def _is(detection: Detection, phrase: str) -> bool:
    """Whether it has the shape that the phrase ends with, and the colour if it names one."""
    words = phrase.split()
    colours = [word for word in words if word in COLOUR_NAMES]
    return words[-1:] == [detection.shape] and colours in ([], [detection.colour])


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2


def _holds(subject: Detection | None, predicate: str, other: Detection | None) -> bool:
    if subject is None or other is None:
        return False
    dx = subject.centre[0] - other.centre[0]
    dy = subject.centre[1] - other.centre[1]
    return {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}.get(
        predicate, True
    )
