"""What is stated of boxes, as half-spaces on the differences of two centres.

    normal . (c_j - c_i) >= offset + k_i . s_i + k_j . s_j

with centres c and sizes s as (x, y) fractions of the canvas; a statement is a few of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stal.layout.order import Order
from stal.relations import GEOMETRY, Statement

if TYPE_CHECKING:
    from stal.layout.coverage import Array
    from stal.layout.stage import Part

GAP = 0.02  # between boxes of which one comes before the other
TOLERANCE = 1e-3  # what may be lacking of a half-space that counts as fulfilled
_FAR = 0.15  # between boxes that are "far from" each other
# The centres of "a left of b" differ along y by at most this share of what they differ along x.
_SLOPE = 0.8
_SINK = 0.08  # how much deeper than usual a thing may sit in what bears it, as a share of that one


@dataclass(frozen=True)
class HalfSpaces:
    """Arrays with one row a half-space.

    Attributes:
        i, j: (rows,) int64, the two boxes by index.
        normal: (rows, 2) float64.
        offset: (rows,) float64.
        k_i, k_j: (rows, 2) float64.
    """

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    normal: Array
    offset: Array
    k_i: Array
    k_j: Array

    @property
    def inner(self) -> NDArray[np.bool_]:
        """Which rows speak of a box within another: (rows,) bool."""
        return self.k_i.sum(1) * self.k_j.sum(1) < 0

    def least(self, size: Array) -> Array:
        """The right-hand sides for sizes (..., boxes, 2): (..., rows)."""
        i, j = size[..., self.i, :], size[..., self.j, :]
        return self.offset + (self.k_i * i + self.k_j * j).sum(-1)

    def shortfall(self, centre: Array, size: Array) -> Array:
        """What each row lacks for centres and sizes (boxes, 2): (rows,), above 0 where broken."""
        return self.least(size) - (self.normal * (centre[self.j] - centre[self.i])).sum(1)

    def largest(self, index: int, centre: Array, size: Array) -> float:
        """By what factor box `index` may be scaled, for centres and sizes (boxes, 2)."""
        rate = ((self.i == index)[:, None] * self.k_i + (self.j == index)[:, None] * self.k_j) @ (
            size[index]
        )
        room = rate - self.shortfall(centre, size) + TOLERANCE
        grows = rate > 1e-9
        return float((room[grows] / rate[grows]).min(initial=np.inf))


_HalfSpace = tuple[int, int, tuple[float, float], float, tuple[float, float], tuple[float, float]]


def _stack(rows: Sequence[_HalfSpace]) -> HalfSpaces:
    i, j, normal, offset, k_i, k_j = zip(*rows, strict=True) if rows else ((),) * 6
    return HalfSpaces(
        np.array(i, dtype=np.int64),
        np.array(j, dtype=np.int64),
        np.array(normal, dtype=float).reshape(-1, 2),
        np.array(offset, dtype=float),
        np.array(k_i, dtype=float).reshape(-1, 2),
        np.array(k_j, dtype=float).reshape(-1, 2),
    )


def _on(axis: int, value: float) -> tuple[float, float]:
    return (value, 0.0) if axis == 0 else (0.0, value)


def _within(i: int, j: int, share_i: float, share_j: float) -> list[_HalfSpace]:
    """|c_j - c_i| <= share_i s_i + share_j s_j along both axes."""
    return [
        (i, j, _on(axis, sign), 0.0, _on(axis, -share_i), _on(axis, -share_j))
        for axis in (0, 1)
        for sign in (1.0, -1.0)
    ]


def half_spaces_of(
    relations: Sequence[Statement],
    orders: Sequence[Order],
    aspect: float,
    straight: bool,
    room: float = 0.0,
    parts: Sequence[Part] = (),
) -> tuple[HalfSpaces, dict[frozenset[int], float]]:
    """The half-spaces of statements, and which pairs are kept apart otherwise than the rest.

    Args:
        relations: (subject, predicate, object) with indices of boxes.
        orders: `stal.layout.order.orders_of` these.
        aspect: width / height of the canvas.
        straight: whether what comes before another thing along an axis stands straight beside it.
        room: between boxes of which one comes before the other, if more than `GAP`.
        parts: what each thing does in the scene: who is on a bench sits in it, and what is under
            a table is seen between its legs. Without, boxes only touch.

    Returns:
        The half-spaces, and by pair of boxes how far they are kept apart: -1 for not at all.
    """
    rows = _of_orders(relations, orders, aspect, straight, room, parts)
    ordered = {frozenset(edge) for order in orders for edge in order.edges}
    related = dict.fromkeys(ordered, -1.0)
    for i, name, j in relations:
        pair = frozenset((i, j))
        kind = GEOMETRY[name].contact
        if pair in related or i == j:
            continue
        if kind == "inside":
            rows += _within(i, j, -0.5, 0.5)
            if name == "inside":
                # What a bowl or a bed holds is seen over its rim.
                nothing = (0.0, 0.0)
                rows.append((i, j, (0.0, 1.0), 0.0, nothing, (0.0, 0.05)))
                rows += [(i, j, (s, _SLOPE), 0.0, nothing, nothing) for s in (1.0, -1.0)]
        elif kind == "around":
            rows += _within(i, j, 0.5, -0.5)
        elif kind == "overlapping":
            distant = bool(parts) and "far" in (parts[i].thing.rests_on, parts[j].thing.rests_on)
            rows += _within(i, j, *((0.5, 0.5) if distant else (0.4, 0.4)))
            far, near = (i, j) if GEOMETRY[name].depth < 0 else (j, i)
            if straight and name != "held by" and far not in orders[1].reach[near]:
                # What is farther away stands higher in a picture.
                rows.append((far, near, (0.0, 1.0), 0.0, (0.0, 0.05), (0.0, 0.05)))
            if name == "held by" and j not in orders[1].reach[i]:
                # A hand is at the height of the holder's middle, or hangs below it.
                rows.append((j, i, (0.0, 1.0), 0.0, (0.0, 0.05), (0.0, 0.0)))
        elif kind == "touching":
            rows += _within(i, j, *((0.42, 0.42) if parts else (0.5, 0.5)))
            if not parts:
                continue
        elif kind == "apart":
            related[pair] = _FAR
            continue
        else:
            continue
        related[pair] = -1.0
    return _stack(rows), related


def _of_orders(
    relations: Sequence[Statement],
    orders: Sequence[Order],
    aspect: float,
    straight: bool,
    room: float,
    parts: Sequence[Part],
) -> list[_HalfSpace]:
    """Those of the pairs of which one comes before the other."""
    contact = {
        frozenset((i, j)): GEOMETRY[name].contact
        for i, name, j in relations
        if GEOMETRY[name].contact
    }
    ordered = [{frozenset(edge) for edge in order.edges} for order in orders]
    under = {
        frozenset((i, j))
        for i, name, j in relations
        if parts and name == "below" and parts[j].is_canopy
    }
    touched = Counter(j for i, name, j in relations if GEOMETRY[name].contact == "touching")
    rows: list[_HalfSpace] = []
    for axis, order in enumerate(orders):
        # What is straight in pixels and in fractions both.
        slope = _SLOPE * min(1.0, aspect if axis == 0 else 1 / aspect)
        for i, j in order.edges:
            pair = frozenset((i, j))
            touching = contact.get(pair) == "touching" and axis == 1
            overlapping = contact.get(pair) == "overlapping" or (axis == 1 and pair in under)
            k = _on(axis, 0.1 if overlapping else 0.45 if touching else 0.5)
            if axis == 1 and parts and not touching and parts[i].is_up:
                k = _on(axis, 0.2)
            gap = GAP if touching or overlapping else max(GAP, room)
            lies = touching and bool(parts) and parts[j].is_flat
            if touching and parts:
                seat = _on(axis, 0.5 - parts[j].sink - _SINK)
                rows.append((i, j, _on(axis, 1.0), 0.0, _on(axis, 0.5), seat))
                k = _on(axis, 0.0)
            rows.append((i, j, _on(axis, 1.0), gap, k, k))
            if overlapping:
                rows += _within(i, j, 0.4, 0.4)
            if touching:
                rows.append((i, j, _on(axis, -1.0), -GAP, _on(axis, -0.5), _on(axis, -0.5)))
                # With its middle well over it; where that cannot be had, with an end.
                own, its = (_on(0, 0.0), _on(0, -0.3)) if straight else (_on(0, -0.4), _on(0, -0.4))
                rows += [(i, j, _on(0, sign), 0.0, own, its) for sign in (1.0, -1.0)]
            together = lies or (touching and touched[j] > 1)
            if straight and not together and pair not in ordered[1 - axis]:
                for sign in (1.0, -1.0):
                    normal = (slope, sign) if axis == 0 else (sign, slope)
                    rows.append((i, j, normal, 0.0, (0.0, 0.0), (0.0, 0.0)))
    return rows
