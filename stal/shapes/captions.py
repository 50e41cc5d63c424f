"""Captions of scenes in varied wordings.

Most captions name everything. Some name only a part of the objects and say so by "with"
("a picture with a red circle"): these teach the model what a description of one region means.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from stal.shapes.scenes import BACKGROUND_NAMES, COLOUR_NAMES, SHAPES, Scenes

LEFT = ("to the left of", "left of", "on the left of", "on the left side of")
RIGHT = ("to the right of", "right of", "on the right of", "on the right side of")
ABOVE = ("above", "over", "on top of")
BELOW = ("below", "under", "beneath", "underneath")
WORDINGS = {"left of": LEFT, "right of": RIGHT, "above": ABOVE, "below": BELOW}

_PREFIXES = ("a photo of", "a picture of", "an image of", "a drawing of")
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_PARTIAL_SHARE = 0.10
# Two centres farther apart along one axis than along the other by this much (fraction of the
# side) are clearly beside or above each other.
_CLEAR = 0.05

EMPTY_CAPTIONS = ("an empty scene", "an empty {} scene", "an empty {} background", "nothing")


def words() -> tuple[str, ...]:
    """Every word that captions use, sorted."""
    text = [*COLOUR_NAMES, *BACKGROUND_NAMES, *SHAPES, *(f"{shape}s" for shape in SHAPES)]
    text += ["crosses", "a", "an", "the", "and", "with", "on", "in", "is", "at", "of", "to"]
    text += [*_PREFIXES, *_NUMBERS.values(), *EMPTY_CAPTIONS, "background", "grey", "one"]
    text += [wording for wordings in WORDINGS.values() for wording in wordings]
    found = {word for phrase in text for word in phrase.replace("{}", "").split()}
    return tuple(sorted(found - {"crosss"}))


def relation_between(scenes: Scenes, scene: int, i: int, j: int) -> str | None:
    """Where object i clearly lies as seen from object j, or None."""
    dx = float(scenes.x[scene, i] - scenes.x[scene, j])
    dy = float(scenes.y[scene, i] - scenes.y[scene, j])
    if abs(abs(dx) - abs(dy)) < _CLEAR:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def caption(
    scenes: Scenes, scene: int, rng: random.Random, *, partial_share: float = _PARTIAL_SHARE
) -> str:
    """A caption of one scene.

    Args:
        scenes, scene: the batch and the index in it.
        rng: the source of all choices.
        partial_share: chance that a scene of two or more objects is described in part.
    """
    count = int(scenes.count[scene])
    background = BACKGROUND_NAMES[int(scenes.background[scene])]
    if count == 0:
        return rng.choice(EMPTY_CAPTIONS).format(background)
    order = list(range(count))
    rng.shuffle(order)
    if count > 1 and rng.random() < partial_share:
        named = order[: rng.randint(1, count - 1)]
        return f"a picture with {listing(scenes, scene, named, rng)}"

    text = described(scenes, scene, order, rng)
    if rng.random() < 0.25:
        text = f"{rng.choice(_PREFIXES)} {text}"
    if rng.random() < (0.25 if background == "white" else 0.8):
        text += f" on a {background} background"
    if rng.random() < 0.04:
        text = " ".join(word for word in text.split() if word not in ("a", "an"))
    return text


def described(scenes: Scenes, scene: int, order: Sequence[int], rng: random.Random) -> str:
    """All the objects, with a relation or two where one holds clearly (three times out of five)."""
    if len(order) == 1 or rng.random() < 0.4:
        return listing(scenes, scene, order, rng)
    first = _related(scenes, scene, order[0], order[1], rng)
    if first is None:
        return listing(scenes, scene, order, rng)
    rest = order[2:]
    if not rest:
        return first
    if len(rest) == 2:
        second = _related(scenes, scene, rest[0], rest[1], rng)
        if second is not None and rng.random() < 0.5:
            return f"{first} and {second}"
    return f"{first}, with {listing(scenes, scene, rest, rng)}"


def _related(scenes: Scenes, scene: int, i: int, j: int, rng: random.Random) -> str | None:
    relation = relation_between(scenes, scene, i, j)
    if relation is None:
        return None
    wording = rng.choice(WORDINGS[relation])
    return f"{scenes.phrase(scene, i)} {wording} {scenes.phrase(scene, j)}"


def listing(scenes: Scenes, scene: int, order: Sequence[int], rng: random.Random) -> str:
    """ "a red circle, a blue square and two green stars"; twins are mostly counted."""
    phrases = [scenes.phrase(scene, i) for i in order]
    merged: list[str] = []
    for phrase in dict.fromkeys(phrases):
        times = phrases.count(phrase)
        if times > 1 and rng.random() < 0.7:
            merged.append(f"{_NUMBERS[times]} {plural(phrase.split(' ', 1)[1])}")
        else:
            merged.extend([phrase] * times)
    if len(merged) == 1:
        return merged[0]
    last = " with " if len(merged) == 2 and rng.random() < 0.2 else " and "
    return ", ".join(merged[:-1]) + last + merged[-1]


def plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"
