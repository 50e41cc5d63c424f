"""Scenes composed from the table of everyday things, for the layout predictor to learn from.

A scene has a few things that stand, hang or fly, and what they hold, wear, sit on, carry or hide;
`stal.layout.stage`, with chance, sets it, and it is described by what holds of it.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from stal.layout import Layout, PlacedObject
from stal.layout.stage import box_of, parts_of, stage
from stal.prompts.scene import SHOTS, Scene, scene_of
from stal.prompts.things import Thing, things
from stal.prompts.words import ANIMALS, PEOPLE, article
from stal.relations import NOWHERE, Side, Statement
from stal.training.layout_data import LayoutExample, side_of

_SHOT = 0.35  # of scenes with a kind of shot
_SAID = 0.9  # of what holds of two things by what one does to the other
_PEOPLE = ("person", "man", "woman", "child", "boy", "girl")


@dataclass
class _Cast:
    """The things of a scene and what is to hold of them."""

    rng: random.Random
    nouns: list[str] = field(default_factory=list)
    relations: list[Statement] = field(default_factory=list)

    def add(
        self, known: Sequence[Thing], name: str = "", other: int = 0, *, of: bool = True
    ) -> int:
        """One of these things, that is in a relation to another, or the other to it."""
        self.nouns.append(self.rng.choice(known).noun)
        i = len(self.nouns) - 1
        if name:
            self.relations.append((i, name, other) if of else (other, name, i))
        return i


@cache
def _known() -> tuple[dict[str, list[Thing]], dict[str, list[Thing]]]:
    """The things that are met in a setting, and those that rest on something."""
    by_setting: dict[str, list[Thing]] = defaultdict(list)
    by_rest: dict[str, list[Thing]] = defaultdict(list)
    for thing in things().values():
        by_rest[thing.rests_on].append(thing)
        for setting in thing.settings:
            by_setting[setting].append(thing)
    return by_setting, by_rest


def compose(n: int, *, seed: int) -> list[LayoutExample]:
    """n scenes of one to about seven everyday things; equal seeds, equal scenes."""
    rng = random.Random(seed)
    return [_compose_one(rng) for _ in range(n)]


def _compose_one(rng: random.Random) -> LayoutExample:
    by_setting, by_rest = _known()
    setting = rng.choice(sorted(by_setting))
    here = [each for each in by_setting[setting] if each.rests_on not in ("land", "far", "body")]
    cast = _Cast(rng)
    for _ in range(rng.choice((1, 1, 2, 2, 2, 3, 3, 4))):
        people = setting in ("street", "room", "field", "stage") and rng.random() < 0.3
        chosen = [things()[noun] for noun in _PEOPLE] if people else here
        _furnish(cast, cast.add(chosen), here, by_rest)
        if len(cast.nouns) > 5:
            break
    _surround(cast, by_setting[setting], by_rest)
    if rng.random() < 0.15:
        cast.nouns += [cast.nouns[0]] * rng.randint(1, 3)
    return _described(cast, rng)


def _furnish(
    cast: _Cast, root: int, here: Sequence[Thing], by_rest: dict[str, list[Thing]]
) -> None:
    """What a thing holds, wears, sits on, bears, has under it or before it."""
    rng, noun = cast.rng, cast.nouns[root]
    (part,) = parts_of([(noun, noun)], [], Scene())
    if noun in PEOPLE:
        if rng.random() < 0.25:
            cast.add(by_rest["hand"], "held by", root)
        if rng.random() < 0.2:
            cast.add(by_rest["body"], "worn by", root)
        if rng.random() < 0.25:
            cast.add([things()[each] for each in _SEATS], "on", root, of=False)
    elif part.noun in _TABLES and rng.random() < 0.7:
        for _ in range(rng.choice((1, 1, 2, 3))):
            cast.add(by_rest["table"], "on", root)
        if rng.random() < 0.25:
            cast.add([things()["dog"], things()["cat"], things()["chair"]], "below", root)
    elif part.thing.rests_on == "flat":
        for _ in range(rng.choice((1, 1, 2))):
            cast.add(here, "on", root)
    elif part.thing.rests_on in ("ground", "table") and rng.random() < 0.3:
        if rng.random() < 0.5:
            cast.add(by_rest["flat"], "on", root, of=False)
        else:
            cast.add(
                by_rest["ground"] if part.thing.rests_on == "ground" else here, "on", root, of=False
            )
    if rng.random() < 0.12:
        cast.add(here, rng.choice(("behind", "in front of")), root)
    if rng.random() < 0.08:
        cast.add(by_rest["air"], "above", root)
    if rng.random() < 0.05:
        cast.add(here, rng.choice(("inside", "above", "below", "touching")), root)


_SEATS = ("chair", "bench", "sofa", "horse", "bicycle", "rock", "bed", "throne", "motorcycle")
_TABLES = ("table", "desk", "counter", "shelf", "nightstand", "workbench", "bar", "tray")


def _surround(cast: _Cast, here: Sequence[Thing], by_rest: dict[str, list[Thing]]) -> None:
    """A stretch of ground under a scene, scenery or the sky behind it."""
    rng = cast.rng
    land = [each for each in here if each.rests_on == "land"]
    if land and rng.random() < 0.25:
        cast.add(land, "on" if rng.random() < 0.5 else "", 0, of=False)
    if rng.random() < 0.08:
        cast.add(by_rest["far"], "behind" if rng.random() < 0.7 else "", 0)
    if rng.random() < 0.06:
        cast.add(by_rest["sky"])


def _described(cast: _Cast, rng: random.Random) -> LayoutExample:
    """The scene as it is set, with what holds of it."""
    aspect = math.exp(rng.uniform(math.log(0.5), math.log(2.0))) if rng.random() < 0.6 else 1.0
    nouns, n = cast.nouns, len(cast.nouns)
    scene = scene_of("", nouns)
    alive = nouns[0] in PEOPLE or nouns[0] in ANIMALS
    if rng.random() < _SHOT:
        shots = [
            shot for shot in SHOTS if alive or shot not in ("portrait", "headshot", "full body")
        ]
        scene = Scene(rng.choice(shots), scene.setting)
    sides: list[Side] = [NOWHERE] * n
    if rng.random() < 0.15:
        sides[rng.randrange(n)] = (rng.choice((-1, 1)), None, None)
    if n > 1 and rng.random() < 0.1:
        sides[rng.randrange(1, n)] = (None, None, -1)
    phrases = tuple((f"{article(noun)} {noun}", noun) for noun in nouns)
    found = stage(phrases, cast.relations, scene, aspect=aspect, sides=sides, rng=rng)
    boxes = [box_of(z) for z in found]
    _order_twins(nouns, boxes)
    relations = [each for each in cast.relations if rng.random() < _SAID]
    related = {frozenset((i, j)) for i, _, j in cast.relations}
    for i in range(n - 1):
        name = side_of(boxes[i], boxes[i + 1])
        beside = name in ("left of", "right of") and frozenset((i, i + 1)) not in related
        if name and beside and rng.random() < 0.25:
            relations.append((i, "next to" if rng.random() < 0.4 else name, i + 1))
    clipped = [tuple(min(1.0, max(0.0, edge)) for edge in box) for box in boxes]
    objects = [PlacedObject("", "", (a, b, c, d)) for a, b, c, d in clipped]
    wrong = Layout("", tuple(objects), tuple(relations), aspect).violated
    return LayoutExample(
        phrases,
        tuple(each for each in relations if each not in wrong),
        tuple(each.box for each in objects),
        aspect,
        0,
        scene,
        tuple(sides),
    )


def _order_twins(nouns: Sequence[str], boxes: list[tuple[float, float, float, float]]) -> None:
    """Things of one noun come from left to right, as the predictor expects them; in place."""
    for noun in set(nouns[1:]) & set(nouns[:1]):
        places = [i for i, each in enumerate(nouns) if each == noun]
        group = sorted((boxes[i] for i in places), key=lambda box: box[0] + box[2])
        for i, box in zip(places, group, strict=True):
            boxes[i] = box
