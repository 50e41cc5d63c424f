"""Where a scene would have its things, by what is known of them: the first guess of every box.

    stage([("a cat", "cat"), ("a table", "table")], [(0, "on", 1)], Scene("", "indoors"))

One camera looks at one ground. What stands on the ground has its foot the lower in the picture and
is the larger, the nearer it is; everything else rests on something, hangs or flies. The same
procedure, with chance, composes the scenes that the layout predictor learns from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stal.layout.coverage import Box
from stal.layout.order import Order, orders_of
from stal.prompts.scene import Scene
from stal.prompts.things import Thing, is_kind, thing_of, worn_at
from stal.prompts.words import ANIMALS, PEOPLE, is_plural, singular_noun, word_set
from stal.relations import NOWHERE, Side, Statement

# Where ground and sky meet, from the top, as shares of the canvas.
_HORIZON = {
    "": 0.45,
    "indoors": 0.58,
    "street": 0.42,
    "landscape": 0.45,
    "sea": 0.4,
    "table": 0.2,
    "underwater": 0.5,
}
_SHOT_HORIZON = {"aerial": -0.4, "from below": 0.75}
_FLOOR = 0.95  # the foot of what is nearest
# 1 / distance, by what it changes for what is behind, and of what is in the distance.
_NEAR, _BEHIND, _DISTANT = 0.85, 0.6, 0.12
_FAR_SIZE = 0.6  # sizes go with this power of it
_MANY = 5  # from so many things on a flat one, they lie in three rows
_RAISED = 0.3  # of what is more empty over a scene than under it, by what it is raised
# ... and with this one of sizes in metres, down to that share of the largest thing's, and then with
# that one.
_FLATTERY, _SMALL, _TINY_FLATTERY = 0.6, 1 / 20, 0.35
# How large the first thing is in a kind of shot, least and most: shares of the canvas's side.
_SUBJECT = {
    "": (0.36, 0.85),
    "headshot": (0.9, 0.95),
    "portrait": (0.85, 0.9),
    "close-up": (0.72, 0.9),
    "macro": (0.65, 0.9),
    "full body": (0.8, 0.9),
    "wide": (0.2, 0.38),
    "aerial": (0.2, 0.45),
    "still life": (0.42, 0.7),
    "from below": (0.6, 0.95),
}
# How far below the top of what bears a thing its foot is, as a share of that one's height.
_SEATS = word_set(
    "bench chair sofa couch armchair bed throne swing hammock stool horse pony donkey camel"
    " elephant bicycle bike motorcycle motorbike scooter boat canoe kayak rowboat raft sled sleigh"
    " wheelchair stroller carriage cart wagon cushion pillow unicorn dragon bear cow lily"
)
_SINKS = {"flat": 0.5, "land": 0.45, "seat": 0.4, "alive": 0.15, "": 0.12}
# What is under them is seen between their legs, or under their roof.
_CANOPIES = word_set(
    "table desk bench chair bed tree oak pine willow palm maple birch bridge umbrella arch gate"
    " tent stool counter countertop couch sofa balcony pier gazebo canopy awning bar piano"
)
# What bears things that nothing is said of.
_SURFACES = word_set(
    "table desk counter countertop shelf shelves bookshelf tray nightstand dresser windowsill"
    " cabinet workbench tablecloth stove platter plate bar altar"
)
FLOATING = ("space", "underwater", "sky")  # settings without a ground
_UP = ("air", "sky", "wall", "ceiling")

Z = tuple[float, float, float, float]  # cx, cy, log w, log h


@dataclass
class Part:
    """What a thing does in a scene.

    Attributes:
        thing: what is known of it, or what is taken for granted of any thing.
        known: whether it is known.
        noun: the last word of its noun, in the singular.
        alive: a person or an animal.
        many: an uncounted plural.
        bearer: the thing, by index, that its place depends on; or None.
        how: how it does: "on", "inside", "held", "worn", "over", "under", "behind", "before",
            "around" or "touching"; "" without a bearer.
    """

    thing: Thing
    known: bool
    noun: str
    alive: bool
    many: bool
    bearer: int | None = None
    how: str = ""

    @property
    def sink(self) -> float:
        """How far below its top the foot of what is on it is, as a share of its height."""
        if self.thing.rests_on in ("flat", "land"):
            return _SINKS[self.thing.rests_on]
        if self.noun in _SEATS:
            return _SINKS["seat"]
        return _SINKS["alive" if self.alive else ""]

    @property
    def is_flat(self) -> bool:
        """Whether things lie anywhere on it, not only at its top."""
        return self.thing.rests_on in ("flat", "land")

    @property
    def is_up(self) -> bool:
        """Whether it hangs or flies."""
        return self.thing.rests_on in _UP

    @property
    def is_canopy(self) -> bool:
        """Whether what is under it is seen within its outline."""
        return self.noun in _CANOPIES


def parts_of(
    phrases: Sequence[tuple[str, str]], relations: Sequence[Statement], scene: Scene
) -> list[Part]:
    """What each thing does.

    Args:
        phrases: (phrase, noun) an object.
        relations: (subject, predicate, object) with indices into phrases.
        scene: of the picture.
    """
    known = [thing_of(noun, phrase) for phrase, noun in phrases]
    extents = [t.extent for t in known if t and t.rests_on not in ("far", "land", "sky")]
    usual = math.exp(sum(map(math.log, extents)) / len(extents)) if extents else 0.6
    parts = []
    for (_, noun), thing in zip(phrases, known, strict=True):
        head = singular_noun(noun).split(" ")[-1]
        alive = head in PEOPLE or head in ANIMALS or is_kind(head)
        size = (0.6, 1.7) if alive else (usual, usual)
        anything = Thing(noun, *size, 0.0, "ground", ())
        many = is_plural(noun.split(" ")[-1]) and head != noun.split(" ")[-1]
        parts.append(Part(thing or anything, thing is not None, head, alive, many))
    if scene.setting != "flat":
        for i, name, j in relations:
            _bear(parts, i, name, j, floats=scene.setting in FLOATING)
        _bear_likely(parts)
    return parts


_HOW = {
    "on": "on",
    "inside": "inside",
    "held by": "held",
    "worn by": "worn",
    "above": "over",
    "below": "under",
    "behind": "behind",
    "in front of": "before",
    "around": "around",
    "touching": "touching",
}


def _bear(parts: Sequence[Part], i: int, name: str, j: int, *, floats: bool = False) -> None:
    """Lets the place of one of two related things depend on the other's."""
    how = _HOW.get(name, "")
    if how == "under" and not parts[j].is_canopy:
        i, j, how = j, i, "over"  # what is low bears what is high
    lifted = parts[j].thing.rests_on in _UP and parts[i].thing.rests_on not in _UP
    if how == "over" and lifted and not floats:
        return
    if how == "touching" and parts[i].alive and not parts[j].alive:
        i, j = j, i
    if how == "touching" and parts[i].thing.rests_on == "hand":
        how = "held"
    if how == "before" and parts[i].bearer is None and parts[j].bearer is None:
        i, j, how = j, i, "behind"
    if not how or parts[i].bearer is not None or parts[i].thing.rests_on in ("land", "far"):
        return
    k: int | None = j
    while k is not None:
        if k == i:
            return
        k = parts[k].bearer
    parts[i].bearer, parts[i].how = j, how


def _bear_likely(parts: Sequence[Part]) -> None:
    """What belongs on a table, or in a hand, is there if the scene has one, unless more is said."""
    surfaces = [j for j, part in enumerate(parts) if part.noun in _SURFACES]
    borne = {part.bearer for part in parts if part.how == "on"}
    free = [j for j in surfaces if j not in borne] or surfaces
    loose = [
        i
        for i, part in enumerate(parts)
        if part.bearer is None and part.thing.rests_on == "table" and i not in surfaces
    ]
    for rank, i in enumerate(loose):
        if free:
            _bear(parts, i, "on", free[rank % len(free)])
    for i, part in enumerate(parts):
        people = [j for j in range(i) if parts[j].noun in PEOPLE]
        if part.bearer is None and part.thing.rests_on == "hand" and people:
            _bear(parts, i, "held by", people[-1])


def stage(
    phrases: Sequence[tuple[str, str]],
    relations: Sequence[Statement],
    scene: Scene,
    *,
    aspect: float = 1.0,
    sides: Sequence[Side] = (),
    rng: random.Random | None = None,
) -> list[Z]:
    """(cx, cy, log w, log h) of every thing, fractions of the canvas; relations need not hold.

    Args:
        phrases: (phrase, noun) an object.
        relations: (subject, predicate, object) with indices into phrases.
        scene: of the picture.
        aspect: width / height of the canvas.
        sides: an object's position on the canvas, as `stal.prompts.Object.position`; or none.
        rng: chance, for scenes to learn from; without, the middle of what it gives.
    """
    n = len(phrases)
    if scene.setting == "flat":
        side = math.log((0.0, 0.6, 0.42, 0.34, 0.32)[n] if n < 5 else 0.66 / math.sqrt(n))
        across, down = -math.log(aspect) / 2, math.log(aspect) / 2
        return [(0.5, 0.5, min(0.0, side + across), min(0.0, side + down))] * n
    parts = parts_of(phrases, relations, scene)
    return _Stage(parts, relations, scene, aspect, sides or [NOWHERE] * n, rng).boxes()


class _Stage:
    """One scene that is being set.

    Attributes:
        near: of each thing, 1 / its distance.
        size: of each thing, width and height.
        box: centre and size of what is placed already.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        relations: Sequence[Statement],
        scene: Scene,
        aspect: float,
        sides: Sequence[Side],
        rng: random.Random | None,
    ) -> None:
        self.parts, self.relations, self.scene = parts, relations, scene
        self.sides, self.rng, self.n = sides, rng, len(parts)
        self.stretch = (1 / math.sqrt(aspect), math.sqrt(aspect))
        self.horizon = _SHOT_HORIZON.get(scene.shot, _HORIZON.get(scene.setting, 0.45))
        self.horizon += self._error(0.06)
        self.floats = scene.setting in FLOATING
        grounded = [p.thing.rests_on not in (*_UP, "far", "land") for p in parts]
        self.alone = not any(grounded)  # what hangs or flies is the subject itself
        self.near = self._depths()
        self.size = self._sizes()
        self.box: dict[int, list[float]] = {}

    def _error(self, deviation: float) -> float:
        return self.rng.gauss(0, deviation) if self.rng else 0.0

    def _depths(self) -> list[float]:
        near = [min(1.1, max(0.5, _NEAR + self._error(0.08))) for _ in self.parts]
        for i, (_, _, depth) in enumerate(self.sides):
            if depth is not None:
                near[i] = 1.0 if depth > 0 else _DISTANT
        for _ in range(2):
            for i, part in enumerate(self.parts):
                if part.bearer is None:
                    continue
                by = {"behind": _BEHIND, "before": 1 / _BEHIND}.get(part.how, 1.0)
                if self.sides[i][2] is None:
                    near[i] = min(1.1, near[part.bearer] * by)
        return near

    def _sizes(self) -> list[tuple[float, float]]:
        """Widths and heights, in shares of the canvas."""
        parts, shot = self.parts, self.scene.shot
        counted = [
            p
            for p in parts
            if p.thing.rests_on not in ("far", "land", "sky") and p.how not in ("inside", "worn")
        ]
        largest = max((p.thing.extent for p in counted), default=1.0)
        view = 0.95 if largest >= 8 else 0.85 if largest >= 3 else 0.7 if self.n == 1 else 0.6
        sizes = []
        for i, part in enumerate(parts):
            w, h = self._shape(part)
            extent = max(w, h)
            side = view * _share(extent / largest) * self.near[i] ** _FAR_SIZE
            if part.thing.rests_on == "sky":
                side = min(0.75, 0.1 * extent**0.5)
                side *= 1.6 if self.scene.setting == "space" or self.n == 1 else 1.0
            elif part.thing.rests_on == "far":
                side = 0.95
                h = 0.38 * w
            elif part.thing.rests_on == "land":
                side, h = 1.0, 0.42 * w
            many = 1.5 if part.many and part.thing.rests_on not in ("far", "land") else 1.0
            side *= math.exp(self._error(0.12))
            sizes.append([many * side * w / extent, many**0.3 * side * h / extent])
        self._fit_subject(sizes, shot)
        return [
            (
                max(0.03, min(0.98, w * self.stretch[0])),
                max(0.03, min(0.98, h * self.stretch[1])),
            )
            for w, h in sizes
        ]

    def _shape(self, part: Part) -> tuple[float, float]:
        """Width and height as they are seen, in metres."""
        w, h = part.thing.width, part.thing.height
        if part.thing.rests_on == "flat":
            h = max(h, 0.4 * w)
        bust = self.scene.shot in ("portrait", "headshot") and part.alive
        bust |= self.scene.shot == "close-up" and part.noun in PEOPLE
        if bust and h > w:
            w = 0.72 * h  # the upper part
        elif part.noun in PEOPLE and part.how == "on":
            w, h = 1.25 * w, 0.85 * h  # they sit
        return w * math.exp(self._error(0.08)), h * math.exp(self._error(0.05))

    def _fit_subject(self, sizes: list[list[float]], shot: str) -> None:
        """Scales a scene so that its subject is as large as the shot has it, in place."""
        known = [i for i in range(self.n) if self.parts[i].thing.rests_on not in ("far", "land")]
        if not known:
            return
        subject = known[0]
        while self.parts[subject].how in ("inside", "worn"):
            subject = self.parts[subject].bearer or 0
        if shot == "macro":
            bearer = self.parts[subject].bearer
            subject = max(
                (subject, subject if bearer is None else bearer), key=lambda i: max(sizes[i])
            )
        low, high = _SUBJECT[shot]
        if not shot and self.parts[subject].thing.rests_on in _UP and self.n > 1:
            low, high = 0.15, 0.42  # it hangs or flies over more
        side = max(sizes[subject])
        scale = min(max(side, low), high) / side
        for i in range(self.n):
            kept = self.parts[i].thing.rests_on in ("far", "land", "sky") or (
                self.near[i] <= _DISTANT and scale > 1
            )
            kept &= i != subject
            if not kept:
                extent = scale * max(sizes[i])
                most = 0.95 if i == subject or self.parts[i].thing.extent >= 8 else 0.85
                by = min(1.0, most / extent) * scale
                sizes[i] = [by * sizes[i][0], by * sizes[i][1]]

    # Places

    def boxes(self) -> list[Z]:
        roots = [i for i in range(self.n) if self.parts[i].bearer is None]
        x = self._across(roots)
        for i in roots:
            self._put(i, x[i], self._root_y(i))
        left = [i for i in range(self.n) if i not in self.box]
        while left:
            for i in [i for i in left if self.parts[i].bearer in self.box]:
                self._put_borne(i)
            left = [i for i in left if i not in self.box]
        lift, found = self._lift(), []
        for i in range(self.n):
            cx, cy, w, h = self.box[i]
            cy -= lift
            low, high = min(w / 2, 0.5), max(1 - w / 2, 0.5)
            cx = min(max(cx + self._error(0.04), low), high)
            cy = min(max(cy + self._error(0.02), min(h / 2, 0.5)), max(1 - h / 2, 0.5))
            found.append((cx, cy, math.log(w), math.log(h)))
        return found

    def _lift(self) -> float:
        """How far a scene with nothing in its upper part is raised: pictures are cut to fit."""
        high = any(p.thing.rests_on in (*_UP, "far", "land") for p in self.parts)
        if high or any(y is not None for _, y, _ in self.sides):
            return 0.0
        top = min(y - h / 2 for _, y, _, h in self.box.values())
        foot = max(y + h / 2 for _, y, _, h in self.box.values())
        return _RAISED * max(0.0, top - (1 - foot))

    def _put(self, i: int, x: float, y: float) -> None:
        side_x, side_y, _ = self.sides[i]
        if side_x is not None:
            x = (0.5, 0.8, 0.2)[side_x]
        if side_y is not None and not (side_x == 0 and side_y == 0):
            y = (0.5, 0.8, 0.2)[side_y]
        w, h = self.size[i]
        self.box[i] = [x, y, w, h]

    def _foot(self, near: float) -> float:
        return self.horizon + (_FLOOR - self.horizon) * min(near, 1.05)

    def _root_y(self, i: int) -> float:
        """The centre's height of what depends on nothing else."""
        part, (_, h) = self.parts[i], self.size[i]
        rests = part.thing.rests_on
        if rests == "land":
            return 1 - h / 2 if self.horizon < 0.6 else 0.8
        if rests == "far":
            return self.horizon + 0.04 - h / 2
        if (self.alone or self.floats) and rests not in ("sky", "ceiling"):
            return 0.5 + self._error(0.08)
        if self.floats:
            below = any((p.bearer, p.how) == (i, "over") for p in self.parts)
            return 0.85 if below else 0.3
        if self.alone:
            return 0.4
        if rests == "ceiling":
            return h / 2 + 0.01
        if rests in _UP:
            return {"wall": 0.3, "air": 0.27, "sky": 0.18}[rests] + self._error(0.05)
        if self.scene.shot in ("portrait", "headshot") and part.alive:
            return 1 - h / 2
        if self.scene.shot in ("close-up", "macro") and i == 0:
            return 0.53
        if self.scene.shot == "aerial":
            return 0.5 + self._error(0.2)
        return min(self._foot(self.near[i]), 1.0) - h / 2

    def _across(self, roots: Sequence[int]) -> dict[int, float]:
        """x of what depends on nothing else: side by side, in an order that relations allow."""
        order, _ = orders_of(self.relations, self.n, lambda i, j: i <= j)
        low = [i for i in roots if self.parts[i].thing.rests_on not in (*_UP, "land", "far")]
        high = [i for i in roots if self.parts[i].thing.rests_on in _UP]
        x = dict.fromkeys(roots, 0.5)
        for group in (low, high) if low else (high,):
            x.update(self._spread(self._sequence(group, order)))
        if low and len(high) == 1 and self.parts[high[0]].thing.rests_on in ("air", "sky"):
            x[high[0]] = 0.68
        return x

    def _sequence(self, group: Sequence[int], order: Order) -> list[int]:
        """The group from left to right, the first of it in the middle if that is open."""
        preferred = [*group[1::2], *group[:1], *group[2::2]] if group[2:] else [*group]
        if self.rng and self.rng.random() < 0.25:
            self.rng.shuffle(preferred)
        rank = {i: k for k, i in enumerate(preferred)}
        whole = self._whole
        later: dict[int, set[int]] = {i: set() for i in group}
        for i, j in order.edges:
            a, b = whole(i), whole(j)
            if a in later and b in later and a != b:
                later[a].add(b)
        found: list[int] = []
        while len(found) < len(group):
            open_ = [
                i
                for i in group
                if i not in found
                and not any(i in later[j] for j in group if j not in found and j != i)
            ] or [i for i in group if i not in found]
            found.append(min(open_, key=rank.__getitem__))
        return found

    def _whole(self, i: int) -> int:
        while True:
            bearer = self.parts[i].bearer
            if bearer is None:
                return i
            i = bearer

    def _spread(self, row: Sequence[int]) -> dict[int, float]:
        if not row:
            return {}
        widths = [self.size[i][0] for i in row]
        if len(row) == 1:
            return {row[0]: 0.5 + self._error(0.1)}
        room = 0.94 - sum(widths)
        first, last = 0.03 + widths[0] / 2, 0.97 - widths[-1] / 2
        if room > 0:
            gap = min(0.12, room / (len(row) - 1))
            at = 0.5 - (sum(widths) + gap * (len(row) - 1)) / 2
            centres = []
            for w in widths:
                centres.append(at + w / 2)
                at += w + gap
        else:
            first, last = min(first, 0.4), max(last, 0.6)
            centres = [first + (last - first) * k / (len(row) - 1) for k in range(len(row))]
        return dict(zip(row, centres, strict=True))

    def _put_borne(self, i: int) -> None:
        part = self.parts[i]
        j = part.bearer
        assert j is not None
        x, y, w, h = self.box[j]
        own_w, own_h = self.size[i]
        if part.how in ("inside", "under"):
            own_w, own_h = self._within(i, (0.7 * w, 0.6 * h if part.how == "under" else 0.75 * h))
        if part.how == "worn":
            self._wear(i, j)
            return
        if part.how == "on" and self.parts[j].thing.rests_on == "flat":
            # A tray is wider than what lies on it.
            least = min(0.98, 1.3 * sum(self.size[k][0] for k in self._row(i)))
            if least > w:
                h = min(0.6, h * least / w)
                w = least
                x = min(max(x, w / 2), 1 - w / 2)
                self.box[j] = [x, y, w, h]
        top, foot = y - h / 2, y + h / 2
        place: dict[str, Callable[[], tuple[float, float]]] = {
            "on": lambda: (
                self._seat(i, j),
                top + self.parts[j].sink * h - own_h / 2,
            ),
            "inside": lambda: (self._seat(i, j), y - 0.05 * h),
            "held": lambda: (x + 0.42 * w, y + 0.02 * h + self._error(0.03)),
            "over": lambda: (self._seat(i, j), self._over_y(i, top)),
            "under": lambda: (self._seat(i, j), foot + 0.02 - own_h / 2),
            "behind": lambda: (self._beside(i, j), self._behind_y(i, j)),
            "before": lambda: (
                self._beside(i, j),
                max(min(self._foot(self.near[i]), 1.0), min(1.0, foot + 0.06)) - own_h / 2,
            ),
            "around": lambda: (x, y),
            "touching": lambda: (self._next(i, j), foot - own_h / 2),
        }
        ring = self._row(i) if part.how == "around" else []
        if ring[1:]:
            self._put(i, *self._in_ring(i, j, ring.index(i)))
            return
        across, down = place[part.how]()
        row = self._row(i)
        if part.how == "on" and len(row) >= _MANY and self.parts[j].is_flat:
            down += (row.index(i) % 3 - 1) * 0.3 * h  # they lie in rows
        self._put(i, across, down)
        if part.how == "around":
            self.box[i][2:] = [min(0.98, max(own_w, 1.3 * w)), min(0.98, max(own_h, 1.2 * h))]

    def _row(self, i: int) -> list[int]:
        """All that depend on the same thing in the same way."""
        own = (self.parts[i].bearer, self.parts[i].how)
        return [k for k in range(self.n) if (self.parts[k].bearer, self.parts[k].how) == own]

    def _in_ring(self, i: int, j: int, rank: int) -> tuple[float, float]:
        """Where the rank-th of several things around one is: on its sides, behind or before it."""
        x, y, w, h = self.box[j]
        own_w, own_h = self.size[i]
        foot = y + h / 2
        aside = 0.4 * (w + own_w)
        shift = 0.25 * w * (1 if rank % 4 == 2 else -1)
        across, down = [(-aside, 0.0), (aside, 0.0), (shift, -0.08), (shift, 0.06)][rank % 4]
        return x + across, foot + down - own_h / 2

    def _within(self, i: int, most: tuple[float, float]) -> tuple[float, float]:
        """The size of a thing, scaled down to what it is in or under."""
        w, h = self.size[i]
        scale = min(1.0, most[0] / w, most[1] / h)
        self.size[i] = (scale * w, scale * h)
        return self.size[i]

    def _wear(self, i: int, j: int) -> None:
        x, y, w, h = self.box[j]
        worn, wearer = self.parts[i].thing, self.parts[j].thing
        own_w, own_h = 0.6 * w, 0.2 * h
        if self.parts[i].known:
            own_w = min(w, w * worn.width / wearer.width)
            own_h = min(0.8 * h, h * worn.height / max(wearer.height, worn.height))
        share = worn_at(self.parts[i].noun)
        at = y - h / 2 + (0.4 if share is None else share) * h
        self.size[i] = (max(0.03, own_w), max(0.03, own_h))
        self._put(i, x, max(at, y - h / 2 + own_h / 2))

    def _seat(self, i: int, j: int) -> float:
        """x among those that the same thing bears in the same way."""
        row = self._row(i)
        x, _, w, _ = self.box[j]
        if len(row) == 1:
            return x + self._error(0.1 * w)
        order, _ = orders_of(self.relations, self.n, lambda a, b: a <= b)
        row = self._sequence(row, order)
        reach = max(w, min(0.9, 1.05 * sum(self.size[k][0] for k in row)))
        return x + reach * ((row.index(i) + 0.5) / len(row) - 0.5)

    def _beside(self, i: int, j: int) -> float:
        """x of what is behind or in front: to one side, so that both are seen."""
        x, _, w, _ = self.box[j]
        own = self.size[i][0]
        if abs(own - w) > 0.3 or max(own, w) > 0.8:
            return min(max(x + 0.1, own / 2), 1 - own / 2)
        row = [
            k for k in range(self.n) if (self.parts[k].bearer, self.parts[k].how[:1]) == (j, "b")
        ]
        sign = 1 if row.index(i) % 2 == 0 else -1
        if x > 0.55 or (self.rng and self.rng.random() < 0.5):
            sign = -sign
        return x + sign * 0.45 * (w + own) / 2

    def _over_y(self, i: int, top: float) -> float:
        """The height of what is above a thing: hung or flying things are as high as ever."""
        half = self.size[i][1] / 2
        rests = self.parts[i].thing.rests_on
        high = self._root_y(i) if rests in _UP and not self.floats else 1.0
        j = self.parts[i].bearer
        if j is not None and self.parts[j].thing.rests_on in ("far", "land"):
            return min(high, self.box[j][1] - 0.1, 0.3)
        return min(high, top - 0.04 - half)

    def _behind_y(self, i: int, j: int) -> float:
        """The height of what is behind: its foot is farther up the ground."""
        _, y, _, h = self.box[j]
        own_h = self.size[i][1]
        rests = self.parts[i].thing.rests_on
        if rests in ("far", *_UP):
            return self._root_y(i)
        foot = min(max(self._foot(self.near[i]), y + 0.1 * h), y + h / 2 - 0.04)
        return min(foot - own_h / 2, y - 0.03)

    def _next(self, i: int, j: int) -> float:
        x, _, w, _ = self.box[j]
        return x + (1 if x <= 0.5 else -1) * 0.47 * (w + self.size[i][0])


def _share(ratio: float) -> float:
    """How large a thing is in pictures, for what it is of the largest one, in metres."""
    ratio = min(1.0, ratio)
    return max(ratio, _SMALL) ** _FLATTERY * min(1.0, ratio / _SMALL) ** _TINY_FLATTERY


def box_of(z: Z) -> Box:
    """(x0, y0, x1, y1) of (cx, cy, log w, log h)."""
    cx, cy, w, h = z[0], z[1], math.exp(z[2]) / 2, math.exp(z[3]) / 2
    return cx - w, cy - h, cx + w, cy + h
