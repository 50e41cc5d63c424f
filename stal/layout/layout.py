"""A layout: the objects of a prompt with their boxes, what the boxes do not fulfil, and its JSON.

    layout = Layout.load("layout.json")
    layout.violated  # the relations that its boxes do not fulfil

Boxes are (x0, y0, x1, y1) as fractions of the canvas, x to the right, y downwards.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stal.checked_json import check_keys, dump_lines, dumps, number, short, typed
from stal.files import write_atomic
from stal.layout.coverage import (
    ELLIPSE,
    Box,
    Ellipse,
    Outline,
    Painted,
    check_polygon,
)
from stal.relations import GEOMETRY, PREDICATES, Statement

# Files without shapes are of version 1, which the first readers know.
VERSION = 2

# Where a centre may be: the share of this place, x, y, and the half axes, as fractions.
Contour = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class PlacedObject:
    """An object and its box.

    Attributes:
        phrase: the local description, e.g. "a red circle".
        noun: what it is.
        box: (x0, y0, x1, y1), fractions of the canvas.
        score: how sure the predictor is of the box; 1 where nothing was predicted.
        outline: what it covers of the box (`stal.layout.coverage`); all of it if None.
    """

    phrase: str
    noun: str
    box: Box
    score: float = 1.0
    outline: Outline | None = None

    def __post_init__(self) -> None:
        # Lists are welcome; equal boxes compare equal.
        object.__setattr__(self, "box", tuple(map(float, self.box)))


@dataclass(frozen=True)
class Layout:
    """The objects of a prompt with their boxes.

    Attributes:
        prompt: the whole text.
        objects: in the order of the prompt.
        relations: what the prompt states, (subject, predicate, object) with indices into objects;
            `violated` lists those that the boxes do not fulfil.
        aspect: width / height of the canvas.

    Raises:
        ValueError: a box outside [0, 1], empty or not finite; an outline that leaves its box; a
            relation of an object that is not there or with an unknown predicate; an aspect that is
            not positive.
    """

    prompt: str
    objects: tuple[PlacedObject, ...] = ()
    relations: tuple[Statement, ...] = ()
    aspect: float = 1.0

    def __post_init__(self) -> None:
        # Lists are welcome; equal layouts compare equal.
        object.__setattr__(self, "objects", tuple(self.objects))
        object.__setattr__(self, "relations", tuple((i, p, j) for i, p, j in self.relations))
        if not (math.isfinite(self.aspect) and self.aspect > 0):
            raise ValueError(f"aspect must be positive and finite, got {self.aspect}")
        for index, placed in enumerate(self.objects):
            _check_box(placed.box, f"objects[{index}].box")
            _check_outline(placed, f"objects[{index}].shape")
            if not math.isfinite(placed.score):
                raise ValueError(f"objects[{index}].score must be finite, got {placed.score}")
        check_relations(self.relations, len(self.objects))

    @property
    def violated(self) -> tuple[Statement, ...]:
        """The relations that the boxes do not fulfil, e.g. since others contradict them.

        "left of" compares the centres' x, "above" and "on" their y. Two boxes are "next to" each
        other when neither's centre lies over or under the other box; one has another on a side
        ("between") when they are so or lie as clearly above each other. What is inside another
        thing has its centre in that one's box; a single thing around another has that one's centre
        in its box; what touches, holds or hides another meets its box (these three to within 0.03
        of the canvas); what is "far from" or "outside" another does not. Depth is not checked, nor
        where several things around one are.

        Returns:
            A part of `relations`, in their order.
        """
        around = Counter(j for _, name, j in self.relations if GEOMETRY[name].contact == "around")
        return tuple(
            (i, name, j)
            for i, name, j in self.relations
            if not _holds(self.objects[i].box, name, self.objects[j].box, ring=around[j] > 1)
        )

    def say(self, relation: Statement) -> str:
        """A relation in words, e.g. "a red circle left of a blue square".

        Args:
            relation: (subject, predicate, object) with indices into the objects.
        """
        i, predicate, j = relation
        return f"{self.objects[i].phrase} {predicate} {self.objects[j].phrase}"

    def to_json(self) -> str:
        """The layout as JSON, an object a line; the format that `from_json` describes."""
        objects = [
            {"phrase": o.phrase, "noun": o.noun, "box": list(o.box), "score": o.score}
            | ({} if o.outline is None else {"shape": o.outline.to_json()})
            for o in self.objects
        ]
        shaped = any(o.outline is not None for o in self.objects)
        lines = [
            f'  "version": {VERSION if shaped else 1}',
            f'  "prompt": {dumps(self.prompt)}',
            f'  "objects": {dump_lines(objects)}',
            f'  "relations": {dump_lines(self.relations)}',
            f'  "aspect": {dumps(self.aspect)}',
        ]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Reads what `to_json` writes.

            {"version": 2, "prompt": str, "aspect": width / height,
             "objects": [{"phrase": str, "noun": str, "box": [x0, y0, x1, y1], "score": number,
                          "shape": SHAPE}],
             "relations": [[subject, "left of", object], ...]}

        "score" may be missing (1), and "shape" (the whole box), which version 1 does not have:
        "ellipse" (in the box), [[x, y], ...] (the corners of a polygon), or {"height": rows,
        "width": columns, "runs": [n, ...]}, cells of the canvas in reading order, in turn n that
        are not covered and n that are. A shape lies inside its box.

        Raises:
            ValueError: no such JSON; the message names the place.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"layout must be valid JSON, got {error.msg.lower()} in line {error.lineno},"
                f" column {error.colno}"
            ) from None
        except RecursionError:
            raise ValueError("layout must be valid JSON of this format, got deep nesting") from None
        check_keys(data, "layout", ("version", "prompt", "objects", "relations", "aspect"))
        version = data["version"]
        if isinstance(version, bool) or version not in (1, VERSION):
            raise ValueError(f"version must be 1 or {VERSION}, got {version!r}")
        optional = ("score",) if version == 1 else ("score", "shape")
        objects = []
        for index, item in enumerate(typed(data["objects"], list, "objects")):
            where = f"objects[{index}]"
            check_keys(item, where, ("phrase", "noun", "box"), optional=optional)
            box = typed(item["box"], list, f"{where}.box")
            if len(box) != 4:
                raise ValueError(f"{where}.box must be [x0, y0, x1, y1], got {box}")
            x0, y0, x1, y1 = (number(edge, f"{where}.box") for edge in box)
            objects.append(
                PlacedObject(
                    typed(item["phrase"], str, f"{where}.phrase"),
                    typed(item["noun"], str, f"{where}.noun"),
                    (x0, y0, x1, y1),
                    number(item.get("score", 1.0), f"{where}.score"),
                    _read_shape(item.get("shape"), (x0, y0, x1, y1), f"{where}.shape"),
                )
            )
        relations = []
        for index, item in enumerate(typed(data["relations"], list, "relations")):
            where = f"relations[{index}]"
            if len(typed(item, list, where)) != 3:
                raise ValueError(f"{where} must be [subject, predicate, object], got {item}")
            i, predicate, j = item
            typed(predicate, str, where)
            relations.append((typed(i, int, where), predicate, typed(j, int, where)))
        return cls(
            typed(data["prompt"], str, "prompt"),
            tuple(objects),
            tuple(relations),
            number(data["aspect"], "aspect"),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json` to a file; a failure leaves what was there before.

        Raises:
            OSError: the file cannot be written.
        """
        write_atomic(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Layout:
        """Reads a file that `save` wrote.

        Raises:
            ValueError: no such JSON; the message names the file and the place.
            OSError: the file cannot be read.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None


def _check_box(box: Box, where: str) -> None:
    if len(box) != 4:
        raise ValueError(f"{where} must be (x0, y0, x1, y1), got {box}")
    if not all(0.0 <= edge <= 1.0 for edge in box):  # NaN is outside
        raise ValueError(f"{where} must lie inside [0, 1], got {list(box)}")
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"{where} must have x0 < x1 and y0 < y1, got {list(box)}")


def _check_outline(placed: PlacedObject, where: str) -> None:
    if placed.outline is None:
        return
    x0, y0, x1, y1 = placed.outline.box
    a0, b0, a1, b1 = placed.box
    if min(x0 - a0, y0 - b0, a1 - x1, b1 - y1) < -1e-6:
        raise ValueError(
            f"{where} must lie inside its box {list(placed.box)}, got one that reaches"
            f" {[x0, y0, x1, y1]}"
        )


def _read_shape(value: Any, box: Box, where: str) -> Outline | None:
    if value is None:
        return None
    if value == ELLIPSE:
        _check_box(box, where.removesuffix("shape") + "box")
        return Ellipse(box)
    if isinstance(value, list):
        for k, corner in enumerate(value):
            if len(typed(corner, list, f"{where}[{k}]")) != 2:
                raise ValueError(f"{where}[{k}] must be [x, y], got {corner}")
        corners = [[number(x, f"{where}[{k}]") for x in c] for k, c in enumerate(value)]
        return check_polygon(corners, where)
    if not isinstance(value, dict):
        raise ValueError(
            f'{where} must be "{ELLIPSE}", a list of corners or painted cells, got {short(value)}'
        )
    check_keys(value, where, ("height", "width", "runs"))
    height, width = (typed(value[key], int, f"{where}.{key}") for key in ("height", "width"))
    runs = tuple(typed(n, int, f"{where}.runs") for n in typed(value["runs"], list, where))
    if min(height, width) < 1 or min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(
            f"{where}.runs must be lengths that add up to {height} x {width} cells, got {sum(runs)}"
        )
    if not any(runs[1::2]):
        raise ValueError(f"{where} must cover a cell, got none")
    return Painted(height, width, runs)


def check_relations(relations: Sequence[Statement], n: int) -> None:
    """Checks statements of n objects.

    Raises:
        ValueError: one names an object that is not there or has an unknown predicate.
    """
    for index, (i, predicate, j) in enumerate(relations):
        where = f"relations[{index}]"
        for end in (i, j):
            if not isinstance(end, int) or not 0 <= end < n:
                raise ValueError(
                    f"{where} must name two of the {n} objects by index from 0, got {end}"
                )
        if predicate not in PREDICATES:
            raise ValueError(
                f"{where} must have one of the predicates {', '.join(PREDICATES)},"
                f" got {predicate!r}"
            )


_MEETS = 0.03  # how far apart boxes that touch may be


def _holds(a: Box, predicate: str, b: Box, *, ring: bool) -> bool:
    """ring: several things are around b, each on a side of it."""
    # Twice the distances of the centres; 0 for equal boxes whatever the rounding.
    dx = (a[0] + a[2]) - (b[0] + b[2])
    dy = (a[1] + a[3]) - (b[1] + b[3])
    geometry = GEOMETRY[predicate]
    contact = geometry.contact
    if contact == "beside":
        apart = abs(dx) > max(a[2] - a[0], b[2] - b[0])
        return apart or (predicate == "between" and abs(dy) > max(a[3] - a[1], b[3] - b[1]))
    if (geometry.dx and dx * geometry.dx <= 0) or (geometry.dy and dy * geometry.dy <= 0):
        return False
    if contact == "inside" or (contact == "around" and not ring):
        x0, y0, x1, y1 = b if contact == "inside" else a
        return abs(dx) <= x1 - x0 + 2 * _MEETS and abs(dy) <= y1 - y0 + 2 * _MEETS
    gap = max(max(a[k], b[k]) - min(a[k + 2], b[k + 2]) for k in (0, 1))
    return gap > 0 if contact == "apart" else gap <= _MEETS or not contact or contact == "around"
