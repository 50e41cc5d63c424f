"""The relations that a prompt can state: one table from word forms to a relation to its geometry.

    find("on top of the table".split(), 0)  # "above", ends at 3, its object follows

To teach the grammar a wording, add it to its row of `TABLE`. Sides ("to the far left of", "in the
top right corner") are read word by word instead: see `SIDES`. Verbs that state a relation ("a man
holding a cup") are in `VERBS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stal.words import (
    FEET,
    POSSESSIVES,
    THE_CANVAS,
    is_boundary,
    is_known_verb,
)


@dataclass(frozen=True)
class Geometry:
    """What a relation says of the boxes of its subject a and its object b.

    Attributes:
        dx: sign of a's centre minus b's along x; 0 where nothing is said.
        dy: the same along y, which points downwards: -1 is above.
        contact: "beside" (apart along x, at one height), "apart", "touching", "overlapping",
            "inside" (a within b), "around" (b within a), or "" where nothing is said.
        depth: 1 where a hides a part of b, -1 where b hides a part of a, else 0.
    """

    dx: int = 0
    dy: int = 0
    contact: str = ""
    depth: int = 0


@dataclass(frozen=True)
class Row:
    """A relation: its name, its geometry, and its word forms, separated by " | ".

    `forms` stand between subject and object ("a under b"), `reversed_forms` between object and
    subject ("b contains a" is a inside b).
    """

    name: str
    geometry: Geometry
    forms: str = ""
    reversed_forms: str = ""


TABLE = (
    Row("left of", Geometry(dx=-1)),
    Row("right of", Geometry(dx=1)),
    Row(
        "above",
        Geometry(dy=-1),
        "above | over | atop | on top of | on the top of | at the top of | higher than | up above",
    ),
    Row(
        "below",
        Geometry(dy=1),
        "below | under | underneath | under neath | beneath | lower than | on the bottom of"
        " | at the bottom of | at the feet of | at the foot of | down from | down below | down",
    ),
    Row(
        "next to",
        Geometry(contact="beside"),
        "next to | beside | besides | near | near to | nearby to | near by | close to | by"
        " | alongside | adjacent to | side by side with | on side of | on the side of"
        " | at the side of | to the side of | by the side of | on either side of | on both sides of"
        " | on each side of"
        " | at | next | past | along | adjoining | in the vicinity of",
    ),
    Row(
        "between",
        Geometry(contact="beside"),
        "between | in between | sandwiched between | flanked by | in the middle between",
    ),
    Row(
        "on",
        Geometry(dy=-1, contact="touching", depth=1),
        "on | onto | upon | up on",
        "topped with | topped by | covered with | covered in | laden with | loaded with",
    ),
    Row(
        "inside",
        Geometry(contact="inside", depth=1),
        "in | inside | inside of | into | within | among | amongst | amid | in the middle of"
        " | in the center of | in the centre of | part of | a part of | nestled in",
        "contains | contain | contained | containing | consists of | consisting of | has as a part"
        " | filled with | full of | stuffed with",
    ),
    Row(
        "around",
        Geometry(contact="around", depth=-1),
        "around | all around | surrounding | surrounds | encircling | enclosing | encloses",
        "surrounded by | enclosed by | encircled by | ringed by",
    ),
    Row(
        "behind",
        Geometry(contact="overlapping", depth=-1),
        "behind | at the back of | in back of | in the back of | hidden by | hidden behind"
        " | beyond | obscured by | occluded by | blocked by | covered by",
        "obscuring | occluding | blocking | covering",
    ),
    Row(
        "in front of",
        Geometry(contact="overlapping", depth=1),
        "in front of | at the front of | ahead of | before",
    ),
    Row(
        "touching",
        Geometry(contact="touching"),
        "touching | against | up against | leaning against | leaning on | attached to"
        " | connected to | joined to | tied to | chained to | at the edge of | on the edge of",
    ),
    Row("held by", Geometry(contact="overlapping", depth=1), "held by | carried by"),
    Row("worn by", Geometry(contact="inside", depth=1), "worn by"),
    Row(
        "far from",
        Geometry(contact="apart"),
        "far from | far away from | away from | across from | across | opposite to | opposite of"
        " | opposite | on the other side of | on the opposite side of | across the street from",
    ),
    Row(
        "outside",
        Geometry(contact="apart"),
        "outside | outside of | out of | off | off of | detached from | disconnected from"
        " | separated from | separate from",
    ),
    # A box shows neither where a thing looks nor along what line it lies.
    Row(
        "facing",
        Geometry(),
        "facing | looking at | looks at | look at | looked at | toward | towards | facing toward"
        " | up at | down at | over at | staring at | gazing at | peering at | glaring at"
        " | pointing at | aiming at | waving at | smiling at | laughing at | shouting at"
        " | howling at | barking at | hissing at | growling at | roaring at",
    ),
    Row("facing away from", Geometry(), "facing away from | looking away from"),
    Row("parallel to", Geometry(), "parallel to | congruent to | congruent with | congruent"),
    Row("perpendicular to", Geometry(), "perpendicular to"),
)
GEOMETRY = {row.name: row.geometry for row in TABLE}
PREDICATES = tuple(GEOMETRY)

# Verbs whose subject and object stand in a relation: stem -> (relation, whether it holds of the
# verb's object first).
VERBS = {
    "hold": ("held by", True),
    "held": ("held by", True),
    "carry": ("held by", True),
    "grip": ("held by", True),
    "clutch": ("held by", True),
    "cradle": ("held by", True),
    "wear": ("worn by", True),
    "wore": ("worn by", True),
    "ride": ("on", False),
    "rode": ("on", False),
    "straddle": ("on", False),
    "surround": ("around", False),
    "enclose": ("around", False),
    "touch": ("touching", False),
    "face": ("facing", False),
}

_FORMS: dict[tuple[str, ...], tuple[str, bool]] = {
    tuple(form.split()): (row.name, reverse)
    for row in TABLE
    for forms, reverse in ((row.forms, False), (row.reversed_forms, True))
    for form in forms.split(" | ")
    if form
}
_LONGEST_FORM = max(map(len, _FORMS))
# Words of place that can do without an object: "the bird below".
_BARE = frozenset({("above",), ("below",), ("underneath",), ("beneath",), ("inside",), ("behind",)})
# ... and that never have one: "a car parked lower on the hill", but "a lower shelf".
_COMPARED = {"higher": "above", "lower": "below", "overhead": "above"}

# Sides of the canvas or of another object: (x, y, depth), each -1, 0, 1 or None where it says
# nothing; depth 1 is the foreground.
Side = tuple[int | None, int | None, int | None]
NOWHERE: Side = (None, None, None)
SIDES: dict[str, Side] = {
    "left": (-1, None, None),
    "leftmost": (-1, None, None),
    "left-hand": (-1, None, None),
    "right": (1, None, None),
    "rightmost": (1, None, None),
    "right-hand": (1, None, None),
    "top": (None, -1, None),
    "upper": (None, -1, None),
    "bottom": (None, 1, None),
    "lower": (None, 1, None),
    "middle": (0, 0, None),
    "center": (0, 0, None),
    "centre": (0, 0, None),
    "background": (None, None, -1),
    "distance": (None, None, -1),
    "foreground": (None, None, 1),
}
_SIDE_NAMES = {(0, -1): "left of", (0, 1): "right of", (1, -1): "above", (1, 1): "below"}
_INTENSIFIERS = (
    "right",
    "just",
    "directly",
    "immediately",
    "partly",
    "slightly",
    "far",
    "close",
    "high",
)


@dataclass(frozen=True)
class Place:
    """Words of place: which relations they state and what these are relative to.

    Attributes:
        end: the position after them.
        names: relations, none for a place on the canvas that is on no side ("in the middle").
        reference: "object" (a noun phrase or pronoun follows), a possessive pronoun ("to its
            left"), or "canvas" ("on the left": of the picture, or of what the sentence is about).
        side: of the canvas.
        reverse: whether the object of the words is the relation's subject.
        bare: whether they can do without an object ("the bird below").
    """

    end: int
    names: tuple[str, ...]
    reference: str = "object"
    side: Side = NOWHERE
    reverse: bool = False
    bare: bool = False


def side_names(side: Side) -> tuple[str, ...]:
    """The relations that a side states: ("left of", "above") for the upper left."""
    return tuple(_SIDE_NAMES[axis, value] for axis, value in enumerate(side) if value and axis < 2)


def find(tokens: Sequence[str], i: int) -> Place | None:
    """The words of place that begin at position i; the longest wins."""
    start = i
    while i < len(tokens) and tokens[i] in _INTENSIFIERS:
        i += 1  # "right next to", "directly above"
    form = _form(tokens, start) or (_form(tokens, i) if i > start else None)
    side = _side(tokens, start) or (_side(tokens, i) if i > start else None)
    if side is not None and (form is None or side.end >= form.end):
        return side
    return form


def _form(tokens: Sequence[str], i: int) -> Place | None:
    at, whose, part = [*tokens[i : i + 3], "", "", ""][:3]
    if at == "at" and whose in POSSESSIVES and part in FEET:
        return Place(i + 3, ("below",), whose)  # "at his feet"
    for length in range(min(_LONGEST_FORM, len(tokens) - i), 0, -1):
        words = tuple(tokens[i : i + length])
        if words in _FORMS:
            name, reverse = _FORMS[words]
            return Place(i + length, (name,), reverse=reverse, bare=words in _BARE)
    if at in _COMPARED and is_boundary(tokens, i + 1):
        return Place(i + 1, (_COMPARED[at],), bare=True)
    return None


def _side(tokens: Sequence[str], i: int) -> Place | None:
    """ "[to|on|at|in] [the|its] left [side] [of]" and its kin."""
    n = len(tokens)
    start = i
    preposition = i < n and tokens[i] in ("to", "on", "at", "in", "from", "toward", "towards")
    i += preposition
    whose = tokens[i] if i < n and (tokens[i] == "the" or tokens[i] in POSSESSIVES) else ""
    i += bool(whose)
    while i < n and tokens[i] in ("far", "immediate", "very", "extreme", "direct"):
        i += 1
    side: list[int | None] = [None, None, None]
    first = i
    while i < n:
        parts = tokens[i].split("-") if tokens[i] not in SIDES else [tokens[i]]
        if not all(part in SIDES for part in parts):
            break
        for part in parts:
            middle = SIDES[part] == SIDES["middle"] and side != [None] * 3  # "top centre"
            side = [
                old if new is None or (middle and old is not None) else new
                for old, new in zip(side, SIDES[part], strict=True)
            ]
        i += 1
    if i == first:
        return None
    corner = side[2] is not None
    if tokens[i : i + 2] == ["hand", "side"]:
        i += 1
    while i < n and tokens[i] in ("side", "corner", "half", "part", "edge", "area"):
        corner |= tokens[i] != "side"
        i += 1
    where: Side = (side[0], side[1], side[2])
    names = side_names(where)
    if i < n and tokens[i] == "of":
        after = i + 1 + (tokens[i + 1 : i + 2] in (["the"], ["a"], ["an"], ["this"]))
        if tokens[after : after + 1] and tokens[after] in THE_CANVAS and preposition:
            return Place(after + 1, names, "canvas", where)
        if names and not corner:
            # "the top of the stairs" is a part; "on the top of the box" is a place.
            if preposition or side[0] in (-1, 1):
                return Place(i + 1, names)
            return None
        if side[2] is None and not corner:
            return None
    if i < n and tokens[i] == "to" and names and not preposition:
        return Place(i + 1, names)  # "left to the cow"
    if i < n and tokens[i] == "from":
        return None
    if not is_boundary(tokens, i) and not is_known_verb(tokens[i]):
        return None  # "in the left hand", "on the top shelf"
    if whose in POSSESSIVES:
        if tokens[start] == "in":
            names = ("held by",)  # "in her right", which is a hand
        return Place(i, names, whose) if preposition and names else None
    if preposition or (start == first and side[0]):
        return Place(i, names, "canvas", where)
    return None
