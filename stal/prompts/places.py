"""Words of place, found in a text: which relation of `stal.relations.TABLE` they state.

    find("on top of the table".split(), 0)  # "above", ends at 3, its object follows

Sides ("to the far left of", "in the top right corner") are read word by word: see `SIDES`. Verbs
that state a relation ("a man holding a cup") are in `VERBS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stal.prompts.words import (
    FEET,
    POSSESSIVES,
    POSTURES,
    PRONOUNS,
    THE_CANVAS,
    is_boundary,
    is_known_verb,
    looks_like_participle,
    verb_stem,
    word_at,
)
from stal.relations import NOWHERE, TABLE, Side, side_names

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
    "cross": ("on", False),
    "drive": ("inside", False),
    "drove": ("inside", False),
    "read": ("held by", True),
    "push": ("touching", False),
    "pull": ("touching", False),
    "play": ("touching", False),
    "hug": ("touching", False),
    "kick": ("touching", False),
    "planting": ("touching", False),
    "walk": ("next to", True),
    "surround": ("around", False),
    "enclose": ("around", False),
    "touch": ("touching", False),
    "face": ("facing", False),
}
# What follows is said of who does it: "reading a book on a rug".
ACTS = frozenset(("read", "push", "pull", "play", "hug", "kick", "walk"))
HAS = frozenset(("has", "have", "had", "having"))

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

# Sides of the canvas or of another object, by their words.
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
_MOST_IN_A_ROW = 6  # intensifiers or sides


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


def stated_by(verb: str) -> tuple[str, bool] | None:
    """What a verb, in any form, states of its subject and object, as `VERBS` does; or None."""
    return VERBS.get(verb if verb in VERBS else verb_stem(verb) or "")


def holds(verb: str) -> bool:
    """Whether the subject of a verb has or holds its object."""
    return verb in HAS or (stated_by(verb) or ("",))[0] == "held by"


def is_agent(tokens: Sequence[str], i: int) -> bool:
    """Whether "by" at position i is of no place: "driven by a man", but not "parked by a car"."""
    if tokens[i] != "by" or i == 0:
        return False
    before = tokens[i - 1]
    passive = is_known_verb(before) or looks_like_participle(before)
    return passive and not before.endswith("ing") and before not in POSTURES


def is_by_pronoun(tokens: Sequence[str], place: Place) -> bool:
    """Whether a place is relative to what a pronoun means: "behind it", "to her left"."""
    own = word_at(tokens, place.end) in PRONOUNS | POSSESSIVES
    return place.reference not in ("object", "canvas") or (place.reference == "object" and own)


def find(tokens: Sequence[str], i: int) -> Place | None:
    """The words of place that begin at position i, the longest; None if none do."""
    start = i
    while i < min(len(tokens), start + _MOST_IN_A_ROW) and tokens[i] in _INTENSIFIERS:
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
    degrees = ("far", "immediate", "very", "extreme", "direct")
    while i < min(n, start + _MOST_IN_A_ROW) and tokens[i] in degrees:
        i += 1
    side: list[int | None] = [None, None, None]
    first = i
    while i < min(n, first + _MOST_IN_A_ROW):
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
