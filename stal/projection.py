"""Boxes moved, and shrunk where they must be, until they fulfil what a prompt states.

Every statement is a few half-spaces on the difference of two centres,

    normal . (c_j - c_i) >= offset + k_i . s_i + k_j . s_j

with centres c and sizes s as (x, y) fractions of the canvas. All that are broken are projected on
at once and the moves averaged (Cimmino's method); boxes that still collide shrink a little a round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stal.layout import Box, Statement, orders_of
from stal.relations import GEOMETRY, NOWHERE, Side

Array = NDArray[np.float64]

_GAP = 0.02  # between boxes of which one comes before the other
_FAR = 0.15  # between boxes that are "far from" each other
# The centres of "a left of b" differ along y by at most this share of what they differ along x.
_SLOPE = 0.8
_ROUNDS, _FREE_ROUNDS, _SHRINK, _TOLERANCE = 100, 15, 0.96, 1e-3
_SMALLEST, _LARGEST = 0.04, 0.96


@dataclass(frozen=True)
class _HalfSpaces:
    """Arrays with one row a half-space; `hard` ones are the stated orders themselves."""

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    normal: Array  # (rows, 2)
    offset: Array  # (rows,)
    k_i: Array  # (rows, 2)
    k_j: Array  # (rows, 2)

    def shortfall(self, centre: Array, size: Array) -> Array:
        rhs = self.offset + (self.k_i * size[self.i] + self.k_j * size[self.j]).sum(1)
        return rhs - (self.normal * (centre[self.j] - centre[self.i])).sum(1)


_Row = tuple[int, int, tuple[float, float], float, tuple[float, float], tuple[float, float]]


def _stack(rows: Sequence[_Row]) -> _HalfSpaces:
    i, j, normal, offset, k_i, k_j = zip(*rows, strict=True) if rows else ((),) * 6
    return _HalfSpaces(
        np.array(i, dtype=np.int64),
        np.array(j, dtype=np.int64),
        np.array(normal, dtype=float).reshape(-1, 2),
        np.array(offset, dtype=float),
        np.array(k_i, dtype=float).reshape(-1, 2),
        np.array(k_j, dtype=float).reshape(-1, 2),
    )


def _on(axis: int, value: float) -> tuple[float, float]:
    return (value, 0.0) if axis == 0 else (0.0, value)


def _within(i: int, j: int, share_i: float, share_j: float) -> list[_Row]:
    """|c_j - c_i| <= share_i s_i + share_j s_j along both axes."""
    return [
        (i, j, _on(axis, sign), 0.0, _on(axis, -share_i), _on(axis, -share_j))
        for axis in (0, 1)
        for sign in (1.0, -1.0)
    ]


def project(
    boxes: Sequence[Box],
    relations: Sequence[Statement],
    *,
    aspect: float = 1.0,
    fixed: Mapping[int, Box] | None = None,
    sides: Sequence[Side] = (),
) -> list[Box]:
    """The boxes, changed until the relations hold.

    "left of", "above" and their kin order two centres, within 39 degrees of straight in pixels and
    in fractions of the canvas, and keep the boxes apart; what is "on" a thing touches it; what is
    inside lies inside; "behind" and "in front of" overlap but do not hide. All other boxes are
    kept apart, all lie in the canvas, and objects with a place on the canvas ("in the top left
    corner") have their centre in that third of it. Relations that contradict earlier ones are left
    out. If straight lines cannot be had, the orders alone are kept; if nothing is found in 100
    rounds, they are kept by a row and a column of its own for each box. Only fixed boxes and
    contradictions leave relations that `stal.layout.Layout.violated` lists.

    Args:
        boxes: (x0, y0, x1, y1), fractions of the canvas; they may leave it.
        relations: (subject, predicate, object) with indices into boxes.
        aspect: width / height of the canvas.
        fixed: boxes, by index, that stay exactly as given.
        sides: an object's position on the canvas, as `stal.prompts.Object.position`; or none.

    Returns:
        Boxes inside the canvas.
    """
    fixed = fixed or {}
    n = len(boxes)
    if n == 0:
        return []
    edges = np.array([fixed.get(i, box) for i, box in enumerate(boxes)], dtype=float)
    free = np.array([i not in fixed for i in range(n)])
    centre, size = (edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]
    size = np.where(free[:, None], size.clip(_SMALLEST, _LARGEST), size)
    low, high = _bounds(sides or [NOWHERE] * n)
    orders = orders_of(relations, n, lambda i, j: bool(centre[i, 0] <= centre[j, 0]))
    befores = [order.edges for order in orders]
    for straight in (True, False):
        rows, related = _rows(relations, befores, aspect, straight)
        done, found = _settle(centre, size, free, rows, related, (low, high))
        if done:
            break
    centre, size = found
    if not done and not fixed:
        # A row and a column of its own for each box fulfil every order.
        ranks = [{i: rank for rank, i in enumerate(order.sequence)} for order in orders]
        centre = np.array([[(rank[i] + 0.5) / n for rank in ranks] for i in range(n)])
        size = np.minimum(size, 0.9 / n)
    out = np.concatenate((centre - size / 2, centre + size / 2), axis=1).clip(0.0, 1.0)
    return [
        fixed[i] if i in fixed else (float(x0), float(y0), float(x1), float(y1))
        for i, (x0, y0, x1, y1) in enumerate(out.round(6))
    ]


def _bounds(sides: Sequence[Side]) -> tuple[Array, Array]:
    """The part of the canvas, a third a side, in which each centre must lie."""
    thirds = {-1: (0.0, 1 / 3), 0: (1 / 3, 2 / 3), 1: (2 / 3, 1.0), None: (0.0, 1.0)}
    both = np.array([[thirds[side[0]], thirds[side[1]]] for side in sides])
    return both[:, :, 0], both[:, :, 1]


def _rows(
    relations: Sequence[Statement],
    befores: Sequence[Sequence[tuple[int, int]]],
    aspect: float,
    straight: bool,
) -> tuple[_HalfSpaces, dict[frozenset[int], float]]:
    """The half-spaces, and the pairs that need no keeping apart (-1) or more than usual."""
    contact = {frozenset((i, j)): GEOMETRY[name].contact for i, name, j in relations}
    ordered = [{frozenset(edge) for edge in edges} for edges in befores]
    rows: list[_Row] = []
    for axis, edges in enumerate(befores):
        # What is straight in pixels and in fractions both.
        slope = _SLOPE * min(1.0, aspect if axis == 0 else 1 / aspect)
        for i, j in edges:
            pair = frozenset((i, j))
            touching = contact.get(pair) == "touching" and axis == 1
            k = _on(axis, 0.45 if touching else 0.5)
            rows.append((i, j, _on(axis, 1.0), _GAP, k, k))
            if touching:
                rows.append((i, j, _on(axis, -1.0), -_GAP, _on(axis, -0.5), _on(axis, -0.5)))
                half = _on(0, -0.4)
                rows += [(i, j, _on(0, sign), 0.0, half, half) for sign in (1.0, -1.0)]
            if straight and pair not in ordered[1 - axis]:
                for sign in (1.0, -1.0):
                    normal = (slope, sign) if axis == 0 else (sign, slope)
                    rows.append((i, j, normal, 0.0, (0.0, 0.0), (0.0, 0.0)))
    related = dict.fromkeys(ordered[0] | ordered[1], -1.0)
    for i, name, j in relations:
        pair = frozenset((i, j))
        kind = GEOMETRY[name].contact
        if pair in related or i == j:
            continue
        if kind == "inside":
            rows += _within(i, j, -0.5, 0.5)
        elif kind == "around":
            rows += _within(i, j, 0.5, -0.5)
        elif kind == "overlapping":
            rows += _within(i, j, 0.4, 0.4)
        elif kind == "touching":
            rows += _within(i, j, 0.5, 0.5)
            continue
        elif kind == "apart":
            related[pair] = _FAR
            continue
        else:
            continue
        related[pair] = -1.0
    return _stack(rows), related


def _settle(
    centre: Array,
    size: Array,
    free: NDArray[np.bool_],
    rows: _HalfSpaces,
    related: Mapping[frozenset[int], float],
    bounds: tuple[Array, Array],
) -> tuple[bool, tuple[Array, Array]]:
    """Whether everything is fulfilled, and the centres and sizes at the end."""
    n = len(centre)
    centre, size = centre.copy(), size.copy()
    first, second = np.triu_indices(n, 1)
    gaps = np.array(
        [related.get(frozenset(p), 0.0) for p in zip(first.tolist(), second.tolist(), strict=True)]
    )
    first, second, gaps = first[gaps >= 0], second[gaps >= 0], gaps[gaps >= 0]
    # What shall lie inside another is no larger than 0.8 of it.
    inner = rows.k_i.sum(1) * rows.k_j.sum(1) < 0
    inside = rows.k_i.sum(1)[inner] > 0
    small = np.where(inside, rows.i[inner], rows.j[inner])
    large = np.where(inside, rows.j[inner], rows.i[inner])
    for index, container in zip(small, large, strict=True):
        if free[index]:
            size[index] = np.minimum(size[index], 0.8 * size[container])
    move = free.astype(float)
    for round_ in range(_ROUNDS):
        low = np.maximum(bounds[0], size / 2)
        high = np.maximum(np.minimum(bounds[1], 1 - size / 2), low)
        low = np.minimum(low, 1 - size / 2)
        centre = np.where(free[:, None], centre.clip(low, high), centre)
        # Two boxes collide where they meet along both axes; the easier way out is taken.
        delta = centre[second] - centre[first]
        depth = (size[first] + size[second]) / 2 + gaps[:, None] - np.abs(delta)
        axis = depth.argmin(1)
        each = np.arange(len(axis))
        hit = (depth[each, axis] > _TOLERANCE).nonzero()[0]
        sign = np.where(delta[hit, axis[hit]] >= 0, 1.0, -1.0)
        away = np.zeros((len(hit), 2))
        away[np.arange(len(hit)), axis[hit]] = sign

        short = rows.shortfall(centre, size)
        bad = (short > _TOLERANCE).nonzero()[0]
        i = np.concatenate((rows.i[bad], first[hit]))
        j = np.concatenate((rows.j[bad], second[hit]))
        normal = np.concatenate((rows.normal[bad], away))
        lack = np.concatenate((short[bad], depth[hit, axis[hit]]))
        mass = move[i] + move[j]
        if not (mass > 0).any():
            return not len(mass), (centre, size)
        push = normal * (lack / (normal**2).sum(1) / np.maximum(mass, 1.0))[:, None]
        total, count = np.zeros((n, 2)), np.zeros((n, 1))
        np.add.at(total, i, -push * move[i, None])
        np.add.at(total, j, push * move[j, None])
        np.add.at(count, i, 1.0)
        np.add.at(count, j, 1.0)
        centre = centre + 1.5 * total / np.maximum(count, 1.5)
        if round_ >= _FREE_ROUNDS:
            moved = (count[:, 0] > 0) & free
            size[moved] = np.maximum(size[moved] * _SHRINK, np.minimum(_SMALLEST, size[moved]))
    return False, (centre.clip(size / 2, 1 - size / 2), size)
