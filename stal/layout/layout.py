"""Where each object goes: boxes on the canvas, their masks, their JSON, a picture of them.

    layout = place(parse("a red circle to the left of a blue square"))
    masks(layout, 16, 16)  # (objects, 16, 16): M_i, the share of each cell that box i covers

Boxes are (x0, y0, x1, y1) as fractions of the canvas, x to the right, y downwards.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stal.checked_json import check_keys, dump_lines, dumps, number, short, typed
from stal.files import write_atomic
from stal.layout.coverage import (
    ELLIPSE,
    Ellipse,
    Outline,
    Painted,
    Polygon,
    check_polygon,
    coverage,
)
from stal.prompts import Description
from stal.relations import GEOMETRY, PREDICATES

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# Files without shapes are of version 1, which the first readers know.
VERSION = 2

Box = tuple[float, float, float, float]
Statement = tuple[int, str, int]
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
        _check_relations(self.relations, len(self.objects))

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
        """
        around = Counter(j for _, name, j in self.relations if GEOMETRY[name].contact == "around")
        return tuple(
            (i, name, j)
            for i, name, j in self.relations
            if not _holds(self.objects[i].box, name, self.objects[j].box, ring=around[j] > 1)
        )

    def say(self, relation: Statement) -> str:
        """A relation in words, e.g. "a red circle left of a blue square"."""
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
        """Writes `to_json` to a file; a failure leaves what was there before."""
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


def _check_relations(relations: Sequence[Statement], n: int) -> None:
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


# Side of a box, as a share of the square root of the canvas area, by number of objects; from five
# on _CROWD / sqrt(objects). These are the sizes that the bundled world has.
_SIDES = (0.0, 0.60, 0.425, 0.325, 0.325)
_CROWD = 0.66
_SIZE_JITTER = 0.06
# The largest share of its cell that a box takes: neighbours keep a gap.
_FILL = 0.92
# How far the whole arrangement strays from the middle of the canvas, as a share of the room that
# is left, and a box from the middle of its cell, as a share of its own side.
_SHIFT = 0.7
_STRAY = 0.06


def place(description: Description, *, aspect: float = 1.0, seed: int = 0) -> Layout:
    """Places the objects of a description so that its relations hold.

    The boxes are square in pixels, disjoint, and lie on a grid of which each box takes a cell;
    positions go in half cells. "left of" and "right of" order the x of two boxes and keep their
    x-extents apart, at the same height where that is possible; "above", "on" and "below" likewise
    in y; "next to" is left or right of; what is "between" two others has the first of them on its
    left if nothing else is said of the three, and what is "far from" another has a side of it. The
    other relations of `stal.relations` speak of overlap, contact and depth, which disjoint boxes
    cannot show: they are ignored, and their objects are placed like unrelated ones, in free cells.
    A relation that contradicts earlier ones is left out and the rest holds. `Layout.violated` lists
    what was left out, and contact that is missing.

    Args:
        description: what `stal.prompts.parse` gives.
        aspect: width / height of the canvas.
        seed: varies what the description leaves open; equal seeds give equal layouts.

    Raises:
        ValueError: aspect is not in [1/64, 64]; a relation names an object that is not there.
    """
    if not 1 / 64 <= aspect <= 64:
        raise ValueError(f"aspect must lie in [1/64, 64], got {aspect}")
    n = len(description.objects)
    relations = description.statements
    _check_relations(relations, n)
    if n == 0:
        return Layout(description.text, (), (), aspect)
    rng = random.Random(seed)

    def left_first(i: int, j: int) -> bool:
        sides = [True, False]
        rng.shuffle(sides)
        return sides[0]

    # The canvas has area 1.
    canvas = (math.sqrt(aspect), 1 / math.sqrt(aspect))
    cap = _SIDES[n] if n < len(_SIDES) else _CROWD / math.sqrt(n)

    best: _Arrangement | None = None
    tries = 24 if n <= 8 else 8 if n <= 40 else 1
    for attempt in range(tries):
        orders = orders_of(relations, n, left_first)
        grids = _grids(n, orders, canvas, cap)
        found = _arrange(orders, grids[attempt % len(grids)], canvas, cap, rng)
        if found is not None and (best is None or found.cost < best.cost):
            best = found
    if best is None:
        # A row and a column of its own for each object, in an order that every relation allows.
        ranks = [{i: rank for rank, i in enumerate(order.sequence)} for order in orders]
        cells = [(2 * ranks[0][i], 2 * ranks[1][i]) for i in range(n)]
        best = _Arrangement(cells, (n, n), 0.0)
    boxes = _boxes(best, canvas, cap, rng)
    objects = tuple(
        PlacedObject(thing.phrase, thing.noun, box)
        for thing, box in zip(description.objects, boxes, strict=True)
    )
    return Layout(description.text, objects, relations, aspect)


@dataclass
class Order:
    """What must come before what along one axis: a directed graph without cycles.

    `reach[i][j]` is the length of the longest path from i to j, `before[i]` that of the longest
    path to i and `after[i]` from i.
    """

    edges: list[tuple[int, int]]
    sequence: list[int]
    reach: list[dict[int, int]]
    before: list[int]
    after: list[int]


@dataclass
class _Arrangement:
    cells: list[tuple[int, int]]  # by object: (column, row) in half cells
    grid: tuple[int, int]  # columns, rows
    cost: float


def orders_of(
    relations: Sequence[Statement], n: int, left_first: Callable[[int, int], bool]
) -> tuple[Order, Order]:
    """The orders along x and y; a relation that would close a cycle is left out.

    Args:
        relations: statements of n objects.
        left_first: of two objects "next to" or "far from" each other, whether the first shall be
            the left one.
    """
    next_of: tuple[list[set[int]], list[set[int]]] = (
        [set() for _ in range(n)],
        [set() for _ in range(n)],
    )

    def add(axis: int, first: int, second: int) -> bool:
        stack, seen = [second], {second}
        while stack:
            i = stack.pop()
            if i == first:
                return False
            stack += next_of[axis][i] - seen
            seen |= next_of[axis][i]
        next_of[axis][first].add(second)
        return True

    for i, predicate, j in relations:
        geometry = GEOMETRY[predicate]
        for axis, sign in enumerate((geometry.dx, geometry.dy)):
            if sign:
                add(axis, *((i, j) if sign < 0 else (j, i)))
    # What is far from a thing is still on the same ground.
    beside = [r for r in relations if GEOMETRY[r[1]].contact in ("beside", "apart")]
    beside = [r for r in beside if r[0] != r[2]]
    flanked: set[int] = set()  # what has something on its left already
    for i, predicate, j in beside:
        related = next_of[0][i] & {j} | next_of[0][j] & {i}
        if predicate == "between":
            related |= next_of[1][i] & {j} | next_of[1][j] & {i}
        if related:
            continue
        sides = [(i, j), (j, i)]
        if predicate != "between":
            if not left_first(i, j):
                sides.reverse()
        elif i not in flanked:
            sides.reverse()
            flanked.add(i)
        if not add(0, *sides[0]):
            add(0, *sides[1])
    return _order(next_of[0]), _order(next_of[1])


def _order(next_of: Sequence[set[int]]) -> Order:
    n = len(next_of)
    incoming = [0] * n
    for following in next_of:
        for j in following:
            incoming[j] += 1
    sequence = [i for i in range(n) if incoming[i] == 0]
    for i in sequence:
        for j in sorted(next_of[i]):
            incoming[j] -= 1
            if incoming[j] == 0:
                sequence.append(j)
    reach: list[dict[int, int]] = [{} for _ in range(n)]
    before, after = [0] * n, [0] * n
    for i in reversed(sequence):
        for j in next_of[i]:
            for k, length in [(j, 0), *reach[j].items()]:
                reach[i][k] = max(reach[i].get(k, 0), length + 1)
            after[i] = max(after[i], after[j] + 1)
    for i in sequence:
        for j in next_of[i]:
            before[j] = max(before[j], before[i] + 1)
    edges = [(i, j) for i in range(n) for j in sorted(next_of[i])]
    return Order(edges, sequence, reach, before, after)


def _side(grid: tuple[int, int], canvas: tuple[float, float], cap: float) -> float:
    return min(cap, _FILL * min(canvas[0] / grid[0], canvas[1] / grid[1]))


def _grids(
    n: int, orders: tuple[Order, Order], canvas: tuple[float, float], cap: float
) -> list[tuple[int, int]]:
    """Grids (columns, rows) that may hold the objects, those with the largest boxes first."""
    least = [max(order.before) + 1 for order in orders]
    tight = {(c, max(least[1], -(-n // c))) for c in range(least[0], max(n, least[0]) + 1)}
    roomy = {(c + dc, r + dr) for c, r in tight for dc in (0, 1) for dr in (0, 1)}
    return sorted(roomy, key=lambda grid: (-_side(grid, canvas, cap), grid))[:8]


def _arrange(
    orders: tuple[Order, Order],
    grid: tuple[int, int],
    canvas: tuple[float, float],
    cap: float,
    rng: random.Random,
) -> _Arrangement | None:
    """Gives each object a place on the grid: greedily in random order, then improved one by one."""
    n = len(orders[0].before)
    cell = (canvas[0] / grid[0], canvas[1] / grid[1])
    pairs: list[list[tuple[int, int, bool]]] = [[] for _ in range(n)]  # (axis, other, diagonal)
    both = {frozenset(e) for e in orders[0].edges} & {frozenset(e) for e in orders[1].edges}
    for axis, order in enumerate(orders):
        for i, j in order.edges:
            diagonal = frozenset((i, j)) in both
            pairs[i].append((axis, j, diagonal))
            pairs[j].append((axis, i, diagonal))

    places: dict[int, tuple[int, int]] = {}
    taken: Counter[tuple[int, int]] = Counter()

    def put(i: int, at: tuple[int, int], sign: int = 1) -> None:
        for dx in (-1, 0, 1):
            for dy in (-1, 0, 1):
                taken[at[0] + dx, at[1] + dy] += sign
        if sign > 0:
            places[i] = at
        else:
            del places[i]

    def window(i: int, axis: int) -> range:
        order = orders[axis]
        low, high = 2 * order.before[i], 2 * (grid[axis] - 1 - order.after[i])
        for j, at in places.items():
            if i in order.reach[j]:
                low = max(low, at[axis] + 2 * order.reach[j][i])
            elif j in order.reach[i]:
                high = min(high, at[axis] - 2 * order.reach[i][j])
        return range(low, high + 1)

    def cost(i: int, at: tuple[int, int]) -> float:
        """How far the object is from standing straight beside those that it is related to."""
        # Half cells waste room: whole ones if all else is equal.
        total = 0.1 * (at[0] % 2 + at[1] % 2)
        for axis, j, diagonal in pairs[i]:
            if j not in places:
                continue
            along = abs(places[j][axis] - at[axis])
            across = abs(places[j][1 - axis] - at[1 - axis])
            total += 0.05 * (along - 2 + across)
            # Straight means within 45 degrees, both in pixels and in fractions of the canvas.
            pixels = cell[1 - axis] / cell[axis]
            fractions = grid[axis] / grid[1 - axis]
            total += not diagonal and across * max(pixels, fractions) > 0.8 * along
        return total

    def settle(i: int) -> bool:
        free = [
            (cost(i, (x, y)), rng.random(), (x, y))
            for x in window(i, 0)
            for y in window(i, 1)
            if not taken[x, y]
        ]
        if free:
            put(i, min(free)[2])
        return bool(free)

    related = [i for i in range(n) if pairs[i]]
    rng.shuffle(related)
    for i in related:
        if not settle(i):
            return None
    for _ in range(2):
        for i in related:
            put(i, places[i], -1)
            settle(i)
    spare = [(2 * x, 2 * y) for x in range(grid[0]) for y in range(grid[1])]
    rng.shuffle(spare)
    for i in range(n):
        if i in places:
            continue
        while spare and taken[spare[-1]]:
            spare.pop()
        if spare:
            put(i, spare.pop())
        elif not settle(i):
            return None
    total = 0.02 * rng.random()  # equals are chosen by the seed
    total += sum(cost(i, places[i]) for i in range(n))
    total += 2 * math.log(cap / _side(grid, canvas, cap))
    return _Arrangement([places[i] for i in range(n)], grid, total)


def _boxes(
    arrangement: _Arrangement, canvas: tuple[float, float], cap: float, rng: random.Random
) -> list[Box]:
    """Boxes of slightly varied size and place, as fractions of the canvas."""
    grid = arrangement.grid
    largest = _side(grid, canvas, cap * (1 + _SIZE_JITTER))
    sides = [largest * rng.uniform(1 - 2 * _SIZE_JITTER, 1) for _ in arrangement.cells]
    edges: list[list[tuple[float, float]]] = []
    for axis in (0, 1):
        cell = canvas[axis] / grid[axis]
        stray = min(_STRAY * largest, 0.45 * (cell - largest))
        centres = [
            (at[axis] / 2 + 0.5) * cell + rng.uniform(-stray, stray) for at in arrangement.cells
        ]
        low = min(c - s / 2 for c, s in zip(centres, sides, strict=True))
        high = max(c + s / 2 for c, s in zip(centres, sides, strict=True))
        # From the middle of the canvas into the room that is left.
        room = canvas[axis] - (high - low)
        shift = room * (0.5 + _SHIFT * rng.uniform(-0.5, 0.5)) - low
        # Enough digits that rounding closes no gap.
        digits = 4 - min(0, math.floor(math.log10((cell - largest) / canvas[axis]) + 1))
        edges.append(
            [
                (
                    round(max(0.0, (c + shift - s / 2) / canvas[axis]), digits),
                    round(min(1.0, (c + shift + s / 2) / canvas[axis]), digits),
                )
                for c, s in zip(centres, sides, strict=True)
            ]
        )
    return [(x0, y0, x1, y1) for (x0, x1), (y0, y1) in zip(*edges, strict=True)]


def masks(layout: Layout, height: int, width: int) -> Tensor:
    """The soft coverage M_i of each object on a grid.

        M[i, y, x] = area of (object i ∩ cell (y, x)) / area of a cell

    An object is its outline, or its box. The mean of M[i] is its area as a fraction of the canvas,
    exactly but for rounding. One whose coverage is too small for float32 still has one cell above
    0: no object vanishes. `hard_masks` are the same as true or false.

    Args:
        layout: boxes as fractions of the canvas.
        height, width: size of the grid in cells.

    Returns:
        (objects, height, width) float32 on the CPU, in [0, 1]; computed in float64.

    Raises:
        ValueError: height or width is not positive.
    """
    import torch

    for name, cells in (("height", height), ("width", width)):
        if cells < 1:
            raise ValueError(f"{name} must be positive, got {cells}")
    boxes = torch.tensor([o.box for o in layout.objects], dtype=torch.float64).reshape(-1, 4)

    def covered(low: Tensor, high: Tensor, cells: int) -> Tensor:
        start = torch.arange(cells, dtype=torch.float64)
        low, high = low[:, None] * cells, high[:, None] * cells
        return (torch.minimum(high, start + 1) - torch.maximum(low, start)).clamp(min=0)

    rows = covered(boxes[:, 1], boxes[:, 3], height)
    columns = covered(boxes[:, 0], boxes[:, 2], width)
    out = rows[:, :, None] * columns[:, None, :]
    for i, placed in enumerate(layout.objects):
        if placed.outline is not None:
            out[i] = torch.from_numpy(coverage(placed.outline, height, width))
    out = out.float()
    for i in (out.amax(dim=(1, 2)) == 0).nonzero().flatten().tolist():
        x0, y0, x1, y1 = layout.objects[i].box
        row, column = int((y0 + y1) / 2 * height), int((x0 + x1) / 2 * width)
        out[i, min(row, height - 1), min(column, width - 1)] = torch.finfo(torch.float32).tiny
    return out


def hard_masks(layout: Layout, height: int, width: int) -> Tensor:
    """The cells that each object covers by half or more, or else the one that it covers most.

    Args:
        layout: boxes as fractions of the canvas.
        height, width: size of the grid in cells.

    Returns:
        (objects, height, width) bool on the CPU; each object has at least one cell.

    Raises:
        ValueError: height or width is not positive.
    """
    soft = masks(layout, height, width)
    most = soft.flatten(1).amax(1)[:, None, None]
    return (soft >= 0.5) | ((most < 0.5) & (soft == most))


# Distinct on light and dark pictures and for colour-blind eyes (Okabe and Ito's set, reordered).
_COLOURS = ("#e69f00", "#0072b2", "#cc79a7", "#009e73", "#d55e00", "#56b4e9", "#f0e442")


def draw(layout: Layout, image: Image, *, min_side: int = 256) -> Image:
    """Draws the boxes with their phrases on a copy of a picture.

    Args:
        layout: boxes as fractions of the canvas.
        image: the picture, of any mode and size.
        min_side: a picture whose shorter side is below this many pixels is enlarged by a whole
            factor, so that the phrases can be read; 1 keeps the size.

    Returns:
        A new RGB picture.
    """
    from PIL import Image as pil_image
    from PIL import ImageDraw, ImageFont

    short = min(image.size)
    factor = max(1, -(-min_side // short))
    out = image.convert("RGB").resize(
        (image.width * factor, image.height * factor), pil_image.Resampling.NEAREST
    )
    width, height = out.size
    short *= factor
    line = max(1, round(short / 128))
    font = ImageFont.load_default(size=max(10, round(short / 22)))
    pen = ImageDraw.Draw(out)
    corners = [
        (
            min(round(x0 * width), width - 1),
            min(round(y0 * height), height - 1),
            max(round(x1 * width) - 1, 0),
            max(round(y1 * height) - 1, 0),
        )
        for x0, y0, x1, y1 in (placed.box for placed in layout.objects)
    ]
    for index, (x0, y0, x1, y1) in enumerate(corners):
        x1, y1 = max(x0, x1), max(y0, y1)
        halo = (x0 - 1, y0 - 1, x1 + 1, y1 + 1)
        colour = _COLOURS[index % len(_COLOURS)]
        outline = layout.objects[index].outline
        if isinstance(outline, Polygon):
            points = [(x * width, y * height) for x, y in (*outline.corners, outline.corners[0])]
            pen.line(points, fill="black", width=line + 2, joint="curve")
            pen.line(points, fill=colour, width=line, joint="curve")
            continue
        trace = pen.ellipse if isinstance(outline, Ellipse) else pen.rectangle
        trace(halo, outline="black", width=line + 2)
        trace((x0, y0, x1, y1), outline=colour, width=line)
    labels: list[tuple[int, int, int, int]] = []
    for index, (placed, (x0, y0, _, _)) in enumerate(zip(layout.objects, corners, strict=True)):
        text = _label(placed.phrase, lambda text: font.getlength(text) + 2 * line <= width)
        _, top, _, bottom = font.getbbox("Ag|")
        label_width = min(width, math.ceil(font.getlength(text)) + 2 * line)
        label_height = math.ceil(bottom - top) + 2 * line
        x = max(0, min(x0, width - label_width))
        y = max(0, min(y0, height - label_height))
        # Below the labels that are in the way, if there is room.
        for other in sorted(labels, key=lambda box: box[1]):
            meets = (
                x < other[2]
                and other[0] < x + label_width
                and y < other[3]
                and (other[1] < y + label_height)
            )
            if meets and other[3] + label_height <= height:
                y = other[3]
        labels.append((x, y, x + label_width, y + label_height))
        colour = _COLOURS[index % len(_COLOURS)]
        pen.rectangle((x, y, x + label_width - 1, y + label_height - 1), fill=colour)
        pen.text((x + line, y + line - top), text, fill=_ink(colour), font=font)
    return out


def sketch(layout: Layout, *, side: int = 512, contours: Sequence[Sequence[Contour]] = ()) -> Image:
    """Draws a layout on blank paper: boxes, phrases, and an arrow a relation.

    An arrow points from the subject to the object of a relation, whose name it bears; red ones are
    `Layout.violated`.

    Args:
        layout: boxes as fractions of the canvas.
        side: the longer side in pixels.
        contours: of each object, ellipses in which its centre may be, drawn the stronger the
            likelier (`stal.layout.predictor.LayoutPredictor.contours`).

    Returns:
        A new RGB picture.
    """
    from PIL import Image as pil_image
    from PIL import ImageColor, ImageDraw, ImageFont

    width = max(1, round(side * min(1.0, layout.aspect)))
    height = max(1, round(side * min(1.0, 1 / layout.aspect)))
    paper = pil_image.new("RGB", (width, height), (250, 250, 250))
    for index, ellipses in enumerate(contours):
        shade = ImageColor.getrgb(_COLOURS[index % len(_COLOURS)])
        # Faint ones first.
        for share, x, y, rx, ry in sorted(ellipses):
            cloud = pil_image.new("L", (width, height))
            box = [(x - rx) * width, (y - ry) * height, (x + rx) * width, (y + ry) * height]
            ImageDraw.Draw(cloud).ellipse(box, fill=round(90 * share), outline=round(200 * share))
            paper.paste(shade, mask=cloud)
    out = draw(layout, paper, min_side=1)
    pen = ImageDraw.Draw(out)
    font = ImageFont.load_default(size=max(10, side // 32))
    violated = set(layout.violated)
    for relation in layout.relations:
        i, predicate, j = relation
        colour = "#d00000" if relation in violated else "#404040"
        ends = []
        for x0, y0, x1, y1 in (layout.objects[i].box, layout.objects[j].box):
            ends.append(((x0 + x1) / 2 * width, (y0 + y1) / 2 * height))
        (ax, ay), (bx, by) = ends
        pen.line((ax, ay, bx, by), fill=colour, width=2)
        length = math.hypot(bx - ax, by - ay)
        if length > 0:
            ux, uy = (bx - ax) / length * side / 40, (by - ay) / length * side / 40
            wings = ((bx - ux - uy / 2, by - uy + ux / 2), (bx - ux + uy / 2, by - uy - ux / 2))
            pen.polygon(((bx, by), *wings), fill=colour)
        middle = ((ax + bx) / 2, (ay + by) / 2)
        halo = (250, 250, 250)
        pen.text(middle, predicate, colour, font, "mb", stroke_width=2, stroke_fill=halo)
    return out


def _label(phrase: str, fits: Callable[[str], bool]) -> str:
    """The phrase on one line, shortened until it fits."""
    text = " ".join(phrase.encode("utf-8", "replace").decode().split())
    if fits(text):
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle] + "…") else (low, middle - 1)
    return text[:low] + "…"


def _ink(colour: str) -> str:
    """Black or white, whichever is read better on the colour (luma of ITU-R BT.601)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"
