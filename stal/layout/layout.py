"""A layout: the objects of a prompt with their boxes, what the boxes do not fulfil, and its JSON.

    layout = Layout.load("layout.json")
    layout.violated  # the relations that its boxes do not fulfil

Boxes are (x0, y0, x1, y1) as fractions of the canvas, x to the right, y downwards.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stal import budget
from stal.checked_json import check_keys, dump_lines, dumps, is_integer, loads, number, short, typed
from stal.files import load_text, write_atomic
from stal.layout.coverage import (
    ELLIPSE,
    Box,
    Ellipse,
    Outline,
    Painted,
    Polygon,
    check_box,
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

    Raises:
        ValueError: the box is not of numbers.
    """

    phrase: str
    noun: str
    box: Box
    score: float = 1.0
    outline: Outline | None = None

    def __post_init__(self) -> None:
        # Lists and numbers of every kind are welcome; equal boxes compare equal.
        try:
            box = tuple(number(edge, "box") for edge in self.box)
        except TypeError:
            raise ValueError(f"box must be (x0, y0, x1, y1), got {short(self.box)}") from None
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "score", number(self.score, "score"))


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
            not positive; more objects, corners or relations than `stal.budget` allows.
    """

    prompt: str
    objects: tuple[PlacedObject, ...] = ()
    relations: tuple[Statement, ...] = ()
    aspect: float = 1.0

    def __post_init__(self) -> None:
        # Lists and numbers of every kind are welcome; equal layouts compare equal.
        typed(self.prompt, str, "prompt")
        if not isinstance(self.objects, Iterable):
            raise ValueError(f"objects must be a list of PlacedObject, got {short(self.objects)}")
        object.__setattr__(self, "objects", tuple(self.objects))
        object.__setattr__(self, "relations", _triples(self.relations))
        object.__setattr__(self, "aspect", number(self.aspect, "aspect"))
        if not (math.isfinite(self.aspect) and self.aspect > 0):
            raise ValueError(f"aspect must be positive and finite, got {self.aspect}")
        _check_count("objects", len(self.objects), budget.MOST_OBJECTS)
        _check_count("relations", len(self.relations), budget.MOST_RELATIONS)
        outlines = [o.outline for o in self.objects if isinstance(o, PlacedObject)]
        corners = sum(len(o.corners) for o in outlines if isinstance(o, Polygon))
        _check_count("corners of all shapes", corners, budget.MOST_CORNERS)
        cells = sum(o.height * o.width for o in outlines if isinstance(o, Painted))
        _check_count("cells of all shapes", cells, budget.MOST_LAYOUT_CELLS)
        for index, placed in enumerate(self.objects):
            where = f"objects[{index}]"
            if not isinstance(placed, PlacedObject):
                raise ValueError(f"{where} must be a PlacedObject, got {short(placed)}")
            check_phrase(placed.phrase, f"{where}.phrase")
            typed(placed.noun, str, f"{where}.noun")
            check_box(placed.box, f"{where}.box")
            _check_outline(placed, f"{where}.shape")
            if not math.isfinite(placed.score):
                raise ValueError(f"{where}.score must be finite, got {placed.score}")
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
    def from_json(
        cls, text: str, *, noun_of: Callable[[str], str] | None = None, aspect: float = 1.0
    ) -> Layout:
        """Reads what `to_json` writes, and what is written by hand.

            {"version": 2, "prompt": str, "aspect": width / height,
             "objects": [{"phrase": str, "noun": str, "box": [x0, y0, x1, y1], "score": number,
                          "shape": SHAPE}],
             "relations": [[subject, "left of", object], ...]}

        "objects" and of each "phrase" and "box" must be there. Without the others the prompt is
        "", a score is 1 and there are no relations; a noun is that of the phrase,
        and a shape the whole box. A file that says "version": 1 has no shapes. They are
        "ellipse" (in the box), [[x, y], ...] (the corners of a polygon), or {"height": rows,
        "width": columns, "runs": [n, ...]}, cells of the canvas in reading order, in turn n that
        are not covered and n that are. A shape lies inside its box.

        Args:
            text: the JSON.
            noun_of: from a phrase to its noun; `stal.prompts.noun_of`. Without it the noun that is
                not there is the phrase.
            aspect: where the JSON states none.

        Raises:
            ValueError: no such JSON; the message names the place.
        """
        try:
            data = loads(text)
        except ValueError as error:
            raise ValueError(f"layout must be valid JSON, got {error}") from None
        optional = ("version", "prompt", "relations", "aspect")
        keys = ("version", "prompt", "objects", "relations", "aspect")
        check_keys(data, "layout", keys, optional=optional)
        data = {key: value for key, value in data.items() if value is not None}
        version = data.get("version", VERSION)
        if isinstance(version, bool) or version not in (1, VERSION):
            raise ValueError(f"version must be 1 or {VERSION}, got {short(version)}")
        objects = typed(data.get("objects"), list, "objects")
        _check_count("objects", len(objects), budget.MOST_OBJECTS)
        return cls(
            typed(data.get("prompt", ""), str, "prompt"),
            tuple(
                _read_object(item, f"objects[{index}]", version, noun_of)
                for index, item in enumerate(objects)
            ),
            read_relations(data.get("relations", [])),
            number(data.get("aspect", aspect), "aspect"),
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
            return cls.from_json(load_text(path, name="layout"))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"{name} must be at most {most}, got {count}")


def _read_object(
    item: Any, where: str, version: int, noun_of: Callable[[str], str] | None
) -> PlacedObject:
    optional = ("noun", "score") if version == 1 else ("noun", "score", "shape")
    check_keys(item, where, ("phrase", "noun", "box"), optional=optional)
    item = {key: value for key, value in item.items() if value is not None}
    phrase = check_phrase(item.get("phrase"), f"{where}.phrase")
    noun = item["noun"] if "noun" in item else find_noun(phrase, noun_of)
    box = typed(item.get("box"), list, f"{where}.box")
    if len(box) != 4:
        raise ValueError(f"{where}.box must be [x0, y0, x1, y1], got {short(box)}")
    x0, y0, x1, y1 = (number(edge, f"{where}.box") for edge in box)
    return PlacedObject(
        phrase,
        typed(noun, str, f"{where}.noun"),
        (x0, y0, x1, y1),
        number(item.get("score", 1.0), f"{where}.score"),
        _read_shape(item.get("shape"), (x0, y0, x1, y1), f"{where}.shape"),
    )


def find_noun(phrase: str, noun_of: Callable[[str], str] | None) -> str:
    """The noun of a phrase from elsewhere; the phrase where nobody knows English."""
    return phrase if noun_of is None else noun_of(phrase[: budget.MOST_NOUN_CHARS])


def check_phrase(value: Any, where: str) -> str:
    """The value. Raises ValueError unless it is a text, and not too long to be one's."""
    phrase = typed(value, str, where)
    if len(phrase) > budget.MOST_PHRASE_CHARS:
        raise ValueError(
            f"{where} must have at most {budget.MOST_PHRASE_CHARS} characters, got {len(phrase)}"
        )
    return phrase


def read_relations(value: Any) -> tuple[Statement, ...]:
    """The relations of a layout's JSON. Raises ValueError, naming the place, if it has none."""
    relations = []
    for index, item in enumerate(typed(value, list, "relations")):
        where = f"relations[{index}]"
        if len(typed(item, list, where)) != 3:
            raise ValueError(f"{where} must be [subject, predicate, object], got {short(item)}")
        i, predicate, j = item
        typed(predicate, str, where)
        relations.append((typed(i, int, where), predicate, typed(j, int, where)))
    return tuple(relations)


def _triples(relations: Sequence[Statement]) -> tuple[Statement, ...]:
    """The relations as tuples, their integers Python's."""
    try:
        each = [(i, predicate, j) for i, predicate, j in relations]
    except (TypeError, ValueError):
        raise ValueError(
            f"relations must be of (subject, predicate, object), got {short(relations)}"
        ) from None
    return tuple(
        (int(i) if is_integer(i) else i, predicate, int(j) if is_integer(j) else j)
        for i, predicate, j in each
    )


def _check_outline(placed: PlacedObject, where: str) -> None:
    if placed.outline is None:
        return
    x0, y0, x1, y1 = placed.outline.box
    a0, b0, a1, b1 = placed.box
    if not min(x0 - a0, y0 - b0, a1 - x1, b1 - y1) >= -1e-6:  # NaN is outside
        raise ValueError(
            f"{where} must lie inside its box {list(placed.box)}, got one that reaches"
            f" {[x0, y0, x1, y1]}"
        )


def _read_shape(value: Any, box: Box, where: str) -> Outline | None:
    if value is None:
        return None
    if value == ELLIPSE:
        return Ellipse(check_box(box, where.removesuffix("shape") + "box"))
    if isinstance(value, list):
        for k, corner in enumerate(value):
            if len(typed(corner, list, f"{where}[{k}]")) != 2:
                raise ValueError(f"{where}[{k}] must be [x, y], got {short(corner)}")
        corners = [[number(x, f"{where}[{k}]") for x in c] for k, c in enumerate(value)]
        return check_polygon(corners, where)
    if not isinstance(value, dict):
        raise ValueError(
            f'{where} must be "{ELLIPSE}", a list of corners or painted cells, got {short(value)}'
        )
    check_keys(value, where, ("height", "width", "runs"))
    typed(value["runs"], list, f"{where}.runs")
    try:
        painted = Painted(**value)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
    if not any(painted.runs[1::2]):
        raise ValueError(f"{where} must cover a cell, got none")
    return painted


def check_relations(relations: Sequence[Statement], n: int) -> None:
    """Checks statements of n objects.

    Raises:
        ValueError: one names an object that is not there or has an unknown predicate.
    """
    for index, (i, predicate, j) in enumerate(relations):
        where = f"relations[{index}]"
        for end in (i, j):
            if not is_integer(end) or not 0 <= end < n:
                raise ValueError(
                    f"{where} must name two of the {n} objects by index from 0, got {short(end)}"
                )
        if not isinstance(predicate, str) or predicate not in PREDICATES:
            raise ValueError(
                f"{where} must have one of the predicates {', '.join(PREDICATES)},"
                f" got {short(predicate)}"
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
