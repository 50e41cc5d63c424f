"""When what was read or placed is what a label says."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from stal.layout import Box
from stal.prompts import Description, Object
from stal.relations import GEOMETRY

_INVERSE = {"in front of": "behind", "behind": "in front of"}
_SAME = {"television": "tv", "hair dryer": "hair drier", "hairdryer": "hair drier", "sofa": "couch"}


def candidates(name: str, things: Sequence[Object], *, loosely: bool) -> list[int]:
    """The parsed objects that a label may mean: by `resembles` if loosely, else by `matches`."""
    if loosely:
        return resembles(name, things)
    return [index for index, thing in enumerate(things) if matches(name, thing)]


def matches(name: str, thing: Object) -> bool:
    """Whether a parsed object is the labelled one: same noun, and every attribute of the label."""
    words, noun = _same(name), _same(thing.noun)
    have = _same(thing.phrase).split()
    return (words == noun or words.endswith(f" {noun}")) and set(words.split()) <= set(have)


def _same(name: str) -> str:
    name = name.lower()
    for word, other in _SAME.items():
        name = re.sub(rf"\b{word}\b", other, name)
    return name


def resembles(name: str, things: Sequence[Object]) -> list[int]:
    """NSR-1K's own rule: the closest noun by `difflib`, and all objects of that noun."""
    close = difflib.get_close_matches(name, [thing.noun for thing in things])[:1]
    return [index for index, thing in enumerate(things) if thing.noun in close]


def states(found: Description, i: int, predicate: str, j: int) -> bool:
    """Whether "i predicate j" is stated or follows from what is stated.

    "a left of b" follows from "b right of a", and from a chain of these; "a next to b" from either
    side; of what is between two things, the first lies to the left. i and j are indices into
    `found.objects`; predicate is a value of `stal.evaluation.labelled.PREDICATE_OF`.
    """
    if i == j:
        return False
    if predicate in ("left of", "right of", "above", "below"):
        first, second = (i, j) if predicate in ("left of", "above") else (j, i)
        following = _orders(found)[predicate in ("above", "below")]
        seen, stack = {first}, [first]
        while stack:
            for k in following.get(stack.pop(), set()) - seen:
                seen.add(k)
                stack.append(k)
        return second in seen
    stated = set(found.statements)
    if predicate == "next to":
        names = ("next to", "left of", "right of", "between", "touching")
        return any((a, name, b) in stated for name in names for a, b in ((i, j), (j, i)))
    return (i, predicate, j) in stated or (j, _INVERSE[predicate], i) in stated


def _orders(found: Description) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """What comes directly after what along x and y."""
    after: tuple[dict[int, set[int]], dict[int, set[int]]] = ({}, {})
    flanked: set[int] = set()
    for r in found.relations:
        geometry = GEOMETRY[r.predicate]
        for axis, sign in enumerate((geometry.dx, geometry.dy)):
            if sign:
                first, second = (r.subject, r.object) if sign < 0 else (r.object, r.subject)
                after[axis].setdefault(first, set()).add(second)
        if r.predicate == "between":
            first, second = (r.subject, r.object) if r.subject in flanked else (r.object, r.subject)
            after[0].setdefault(first, set()).add(second)
            flanked.add(r.subject)
    return after


def lies(a: Box, predicate: str, b: Box) -> bool:
    """Whether a relation holds between the centres of two boxes.

    "next to" holds if the centres lie beside each other within 45 degrees, as NSR-1K has it. Depth
    cannot be seen from boxes: "behind" and "in front of" always hold. a and b are boxes
    (x0, y0, x1, y1), fractions of the canvas.
    """
    dx = (a[0] + a[2]) - (b[0] + b[2])
    dy = (a[1] + a[3]) - (b[1] + b[3])
    if predicate == "next to":
        return abs(dx) > abs(dy)
    geometry = GEOMETRY[predicate]
    return dx * geometry.dx > 0 if geometry.dx else dy * geometry.dy > 0 if geometry.dy else True


def in_cone(a: Box, predicate: str, b: Box) -> bool:
    """NSR-1K's rule: the centre of a lies within 45 degrees of where it should, seen from b's.

    a and b are boxes (x0, y0, x1, y1), fractions of the canvas.
    """
    dx = (a[0] + a[2]) - (b[0] + b[2])
    dy = (a[1] + a[3]) - (b[1] + b[3])
    if predicate == "next to":
        return abs(dx) > abs(dy)
    geometry = GEOMETRY[predicate]
    if geometry.dx:
        return dx * geometry.dx > abs(dy)
    return dy * geometry.dy > abs(dx) if geometry.dy else True
