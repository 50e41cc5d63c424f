"""Boxes on a grid, with nothing learned, so that what a description states of them holds.

place(parse("a red circle to the left of a blue square"))
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stal.checked_json import number, typed
from stal.layout.coverage import Box
from stal.layout.layout import Layout, PlacedObject, check_relations
from stal.layout.order import Order, orders_of
from stal.relations import Statement

# Side of a box, as a share of the square root of the canvas area, by number of objects; from five
# on _CROWD / sqrt(objects). These are the sizes that the bundled world has.
_LENGTHS = (0.0, 0.60, 0.425, 0.325, 0.325)
_CROWD = 0.66
_SIZE_JITTER = 0.06
# The largest share of its cell that a box takes: neighbours keep a gap.
_FILL = 0.92
# How far the whole arrangement strays from the middle of the canvas, as a share of the room that
# is left, and a box from the middle of its cell, as a share of its own side.
_SHIFT = 0.7
_STRAY = 0.06


class Named(Protocol):
    """A thing: its local description and its noun."""

    @property
    def phrase(self) -> str: ...
    @property
    def noun(self) -> str: ...


class Placeable(Protocol):
    """What `place` reads of a `stal.prompts.Description`."""

    @property
    def text(self) -> str: ...
    @property
    def objects(self) -> Sequence[Named]: ...
    @property
    def statements(self) -> tuple[Statement, ...]: ...


def place(description: Placeable, *, aspect: float = 1.0, seed: int = 0) -> Layout:
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
        description: what `stal.prompts.parse` gives, or another text with objects and statements.
        aspect: width / height of the canvas.
        seed: varies what the description leaves open; equal seeds give equal layouts.

    Returns:
        A layout with the description's objects and statements, in order.

    Raises:
        ValueError: aspect is not in [1/64, 64]; a relation names an object that is not there.
    """
    aspect, seed = number(aspect, "aspect"), typed(seed, int, "seed")
    if not 1 / 64 <= aspect <= 64:
        raise ValueError(f"aspect must lie in [1/64, 64], got {aspect}")
    n = len(description.objects)
    relations = description.statements
    check_relations(relations, n)
    if n == 0:
        return Layout(description.text, (), (), aspect)
    rng = random.Random(seed)

    def left_first(i: int, j: int) -> bool:
        sides = [True, False]
        rng.shuffle(sides)
        return sides[0]

    # The canvas has area 1.
    canvas = (math.sqrt(aspect), 1 / math.sqrt(aspect))
    cap = _LENGTHS[n] if n < len(_LENGTHS) else _CROWD / math.sqrt(n)

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
class _Arrangement:
    cells: list[tuple[int, int]]  # by object: (column, row) in half cells
    grid: tuple[int, int]  # columns, rows
    cost: float


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


class _Board:
    """A grid and the objects that stand on it, which one more object has to fit between.

    Attributes:
        places: by object, the column and row of its cell in half cells.
    """

    def __init__(
        self,
        orders: tuple[Order, Order],
        grid: tuple[int, int],
        canvas: tuple[float, float],
        rng: random.Random,
    ) -> None:
        self.orders, self.grid, self.rng = orders, grid, rng
        self.cell = (canvas[0] / grid[0], canvas[1] / grid[1])
        self.places: dict[int, tuple[int, int]] = {}
        self._taken: Counter[tuple[int, int]] = Counter()
        # By object: (axis, other, whether they are related on both axes).
        self._pairs: list[list[tuple[int, int, bool]]] = [[] for _ in orders[0].before]
        both = {frozenset(e) for e in orders[0].edges} & {frozenset(e) for e in orders[1].edges}
        for axis, order in enumerate(orders):
            for i, j in order.edges:
                diagonal = frozenset((i, j)) in both
                self._pairs[i].append((axis, j, diagonal))
                self._pairs[j].append((axis, i, diagonal))

    def is_related(self, i: int) -> bool:
        return bool(self._pairs[i])

    def is_free(self, at: tuple[int, int]) -> bool:
        return not self._taken[at]

    def put(self, i: int, at: tuple[int, int]) -> None:
        self._count(at, 1)
        self.places[i] = at

    def lift(self, i: int) -> None:
        self._count(self.places.pop(i), -1)

    def _count(self, at: tuple[int, int], sign: int) -> None:
        for dx in (-1, 0, 1):
            for dy in (-1, 0, 1):
                self._taken[at[0] + dx, at[1] + dy] += sign

    def settle(self, i: int) -> bool:
        """Puts an object on its best free place, if there is one; equals are chosen by chance."""
        free = [
            (self.cost(i, (x, y)), self.rng.random(), (x, y))
            for x in self._window(i, 0)
            for y in self._window(i, 1)
            if not self._taken[x, y]
        ]
        if free:
            self.put(i, min(free)[2])
        return bool(free)

    def _window(self, i: int, axis: int) -> range:
        """The half cells along an axis that the orders leave to an object."""
        order = self.orders[axis]
        low, high = 2 * order.before[i], 2 * (self.grid[axis] - 1 - order.after[i])
        for j, at in self.places.items():
            if i in order.reach[j]:
                low = max(low, at[axis] + 2 * order.reach[j][i])
            elif j in order.reach[i]:
                high = min(high, at[axis] - 2 * order.reach[i][j])
        return range(low, high + 1)

    def cost(self, i: int, at: tuple[int, int]) -> float:
        """How far the object is from standing straight beside those that it is related to."""
        # Half cells waste room: whole ones if all else is equal.
        total = 0.1 * (at[0] % 2 + at[1] % 2)
        for axis, j, diagonal in self._pairs[i]:
            if j not in self.places:
                continue
            along = abs(self.places[j][axis] - at[axis])
            across = abs(self.places[j][1 - axis] - at[1 - axis])
            total += 0.05 * (along - 2 + across)
            # Straight means within 45 degrees, both in pixels and in fractions of the canvas.
            pixels = self.cell[1 - axis] / self.cell[axis]
            fractions = self.grid[axis] / self.grid[1 - axis]
            total += not diagonal and across * max(pixels, fractions) > 0.8 * along
        return total


def _arrange(
    orders: tuple[Order, Order],
    grid: tuple[int, int],
    canvas: tuple[float, float],
    cap: float,
    rng: random.Random,
) -> _Arrangement | None:
    """Gives each object a place on the grid: greedily in random order, then improved one by one."""
    n = len(orders[0].before)
    board = _Board(orders, grid, canvas, rng)
    related = [i for i in range(n) if board.is_related(i)]
    rng.shuffle(related)
    for i in related:
        if not board.settle(i):
            return None
    for _ in range(2):
        for i in related:
            board.lift(i)
            board.settle(i)
    spare = [(2 * x, 2 * y) for x in range(grid[0]) for y in range(grid[1])]
    rng.shuffle(spare)
    for i in range(n):
        if i in board.places:
            continue
        while spare and not board.is_free(spare[-1]):
            spare.pop()
        if spare:
            board.put(i, spare.pop())
        elif not board.settle(i):
            return None
    total = 0.02 * rng.random()  # equals are chosen by the seed
    total += sum(board.cost(i, board.places[i]) for i in range(n))
    total += 2 * math.log(cap / _side(grid, canvas, cap))
    return _Arrangement([board.places[i] for i in range(n)], grid, total)


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
