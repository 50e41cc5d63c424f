"""Boxes moved, and shrunk where they must be, until they fulfil what a prompt states.

Every statement is a few half-spaces on the difference of two centres (`stal.layout.half_spaces`).
All that are broken are projected on at once and the moves averaged (Cimmino's method). At first
only centres move; then a box also takes a part of what is lacking by scaling, s = t s_0 with
t <= 1. At the end each box grows again as far as its neighbours let it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stal.layout.half_spaces import GAP, TOLERANCE, HalfSpaces, half_spaces_of
from stal.layout.order import Order, orders_of
from stal.relations import GEOMETRY, NOWHERE, Side, Statement

if TYPE_CHECKING:
    from stal.layout.coverage import Array, Box

_ROUNDS, _FREE_ROUNDS = 100, 20
# (dt)^2 counts this many times as much as (dc)^2: of what two boxes of 0.3 lack, a third is taken
# by scaling.
_STIFFNESS = 0.05
# Between boxes that were moved, the first that the canvas has; with whole sizes if it can be.
_ROOMS = (0.16, 0.12, 0.05)
_CROWDED = 1.3  # no room is looked for if boxes with it take this many canvases
# Looking for that room: starts, rounds of each, and how far starts stray.
_SPREAD_STARTS, _SPREAD_ROUNDS, _JITTER = 8, 40, 0.25
_MANY = 4  # from so many things on one, they are laid out in a row,
_SEAT = 0.11  # and it is widened to so much for each
_STARTS, _FULL = 4, 0.5  # tries, and the share of the canvas that boxes can take without a squeeze
_SWEEPS, _GROWTH = 12, 1.15  # of growing again, and how much at most in one
_NEAR = 0.06  # how near the corner, or the middle, what is "in the corner" starts
_SMALLEST, _LARGEST = 0.04, 0.96


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
    in fractions of the canvas, and keep the boxes apart; what is "on" a thing touches it, side by
    side with what else is on it; what is inside lies inside; several things around one have a side
    of it each; "behind" and "in front of" overlap but do not hide, the farther one higher; what is
    held overlaps its holder, no higher than the middle unless more is stated.
    All other boxes are kept apart, all lie in the canvas, and objects with a place on the canvas
    ("on the left") have their centre in that third of it, or in the upper half where they are in
    the background and the lower in the foreground; what is in a corner or in the middle is near it
    where nothing else is in the way. Relations that contradict earlier ones are left out. Boxes
    that had to move keep more than the least distance where the canvas has the room.
    If straight lines cannot be had, the orders alone are kept; if nothing is found in 100
    rounds, they are kept by a row and a column of its own for each box, which may not touch what
    they should. `stal.layout.Layout.violated` lists all that does not hold in the end.

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
    sides = sides or [NOWHERE] * n
    bounds = _bounds(sides)
    _to_corners(sides, centre, size, free)
    across = centre[:, 0].copy()
    relations = _rings(relations, across)
    roots = across[_roots(relations, n)]
    _lay_out(relations, centre, size, free)
    relations += _neighbours(relations, across)
    orders = orders_of(relations, n, lambda i, j: (roots[i], across[i]) <= (roots[j], across[j]))
    for straight in (True, False):
        stated = partial(half_spaces_of, relations, orders, aspect, straight)
        rows, related = stated()
        found = _search(centre, size, free, rows, related, bounds)
        if found is not None:
            break
    if found is not None:
        moved = not np.array_equal(found[0], centre)
        centre, size = _loosened(*found, size, free, stated, orders, bounds) if moved else found
    elif fixed:
        _, centre, size = _settle(centre[None], size, free, rows, related, bounds)
    else:
        # A row and a column of its own for each box fulfil every order.
        ranks = [{i: rank for rank, i in enumerate(order.sequence)} for order in orders]
        centre = np.array([[(rank[i] + 0.5) / n for rank in ranks] for i in range(n)])
        size = np.minimum(size, 0.9 / n)
    out = np.concatenate((centre - size / 2, centre + size / 2), axis=1).clip(0.0, 1.0)
    return [
        fixed[i] if i in fixed else (float(x0), float(y0), float(x1), float(y1))
        for i, (x0, y0, x1, y1) in enumerate(out.round(6))
    ]


def _to_corners(sides: Sequence[Side], centre: Array, size: Array, free: NDArray[np.bool_]) -> None:
    """Moves what is in a corner, or in the middle, near to it, in place."""
    for index in free.nonzero()[0].tolist():
        x, y, _ = sides[index]
        if x is not None and y is not None:
            near = size[index] / 2 + _NEAR
            for axis, side in enumerate((x, y)):
                ends = [(0.5 - _NEAR, 0.5 + _NEAR), (1 - near[axis], 1.0), (0.0, near[axis])][side]
                centre[index, axis] = centre[index, axis].clip(*ends)


def _rings(relations: Sequence[Statement], across: Array) -> list[Statement]:
    """Where several things are around one, each has a side of it."""
    rings: dict[int, list[int]] = {}
    for i, name, j in relations:
        if GEOMETRY[name].contact == "around" and i != j:
            rings.setdefault(j, []).append(i)
    sides = {}
    for j, ring in rings.items():
        ring.sort(key=lambda i: (across[i], i))
        for rank, i in enumerate(ring if ring[1:] else ()):
            ends = {0: "left of", len(ring) - 1: "right of"}
            sides[i, j] = ends.get(rank, ("above", "below")[rank % 2])
    return [
        (i, sides.get((i, j), name) if GEOMETRY[name].contact == "around" else name, j)
        for i, name, j in relations
    ]


def _lay_out(
    relations: Sequence[Statement], centre: Array, size: Array, free: NDArray[np.bool_]
) -> None:
    """Puts many things on one in a row on it, in place; they do not find there by themselves."""
    borne: dict[int, list[int]] = {}
    for i, name, j in relations:
        if name == "on" and free[i] and i != j:
            borne.setdefault(j, []).append(i)
    for j, group in borne.items():
        if len(group) < _MANY:
            continue
        group.sort(key=lambda i: (centre[i, 0], i))
        if free[j]:
            size[j, 0] = max(size[j, 0], min(_LARGEST, _SEAT * len(group)))
            centre[j, 0] = centre[j, 0].clip(size[j, 0] / 2, 1 - size[j, 0] / 2)
        seat = size[j, 0] / len(group)
        if seat < 2 * GAP:
            continue
        size[group] *= min(1.0, 0.95 * (seat - GAP) / float(size[group, 0].max()))
        centre[group, 0] = centre[j, 0] + (np.arange(len(group)) + 0.5 - len(group) / 2) * seat
        centre[group, 1] = centre[j, 1] - size[j, 1] / 2 - size[group, 1] / 2


def _roots(relations: Sequence[Statement], n: int) -> list[int]:
    """What each thing is in or on, or is held by, and so on to the last of them.

    It stands on that one's side of others.
    """
    within = {}
    for i, name, j in relations:
        contact = GEOMETRY[name].contact
        if contact == "inside" or name in ("on", "held by"):
            within[i] = j
        elif contact == "around":
            within[j] = i
    roots = list(range(n))
    for _ in range(n):
        roots = [within.get(root, root) for root in roots]
    return roots


def _neighbours(relations: Sequence[Statement], across: Array) -> list[Statement]:
    """What is on one thing stands side by side, in the order that it has along x."""
    known = {frozenset((i, j)) for i, _, j in relations}
    borne: dict[int, set[int]] = {}
    for i, name, j in relations:
        if name == "on":
            borne.setdefault(j, set()).add(i)
    return [
        (i, "next to", j)
        for group in borne.values()
        for i, j in pairwise(sorted(group, key=lambda i: (across[i], i)))
        if frozenset((i, j)) not in known
    ]


def _loosened(
    centre: Array,
    size: Array,
    whole: Array,
    free: NDArray[np.bool_],
    stated: Callable[[float], tuple[HalfSpaces, dict[frozenset[int], float]]],
    orders: Sequence[Order],
    bounds: tuple[Array, Array],
) -> tuple[Array, Array]:
    """Centres and sizes with the most room between boxes that there is, or else the given ones.

    What had to be moved apart does not stop at the first touch.

    whole: the sizes that boxes had before they were found; they are tried first.
    stated: the half-spaces that keep so much room.
    """
    tries = [(whole, room) for room in _ROOMS] if (size < 0.99 * whole).any() else []
    for sizes, room in [*tries, *((size, room) for room in _ROOMS)]:
        if any(_length(order, sizes[:, k], room) > 1 for k, order in enumerate(orders)):
            continue
        rows, related = stated(room)
        spread = _spread(centre, sizes, free, rows, related, bounds, room)
        if spread is not None:
            return spread
    return centre, size


def _length(order: Order, size: Array, room: float) -> float:
    """How much of an axis its longest chain of boxes takes, with room between and around them."""
    ends, chains = list(size), [0.0]
    for i in reversed(order.sequence):
        behind = [ends[j] for j in order.reach[i]]
        if behind:
            ends[i] = size[i] + room + max(behind)
            chains.append(ends[i] + 2 * room / 3 - len(size) * TOLERANCE)
    return float(max(ends + chains))


def _bounds(sides: Sequence[Side]) -> tuple[Array, Array]:
    """The part of the canvas, a third a side, in which each centre must lie."""
    thirds = {-1: (0.0, 1 / 3), 0: (1 / 3, 2 / 3), 1: (2 / 3, 1.0), None: (0.0, 1.0)}
    # What is far away stands higher in a picture than what is near.
    halves = {-1: (0.0, 0.5), 0: (0.0, 1.0), 1: (0.5, 1.0), None: (0.0, 1.0)}
    both = np.array(
        [[thirds[x], halves[depth] if y is None else thirds[y]] for x, y, depth in sides]
    )
    return both[:, :, 0], both[:, :, 1]


def _search(
    centre: Array,
    size: Array,
    free: NDArray[np.bool_],
    rows: HalfSpaces,
    related: Mapping[frozenset[int], float],
    bounds: tuple[Array, Array],
) -> tuple[Array, Array] | None:
    """Centres and sizes that fulfil everything, near to the given ones; None if none are found.

    A box that is wedged between others that want to meet would have to vanish. Where one shrinks
    more than the crowd explains, it starts again elsewhere, and the best of a few tries is kept.
    """
    crowd = min(1.0, math.sqrt(_FULL / max(float(size.prod(1).sum()), 1e-9)))
    enough = 0.7 * crowd
    full = _fitted(size, free, rows)
    done, first, scaled = _settle(centre[None], size, free, rows, related, bounds, enough=enough)
    kept = np.sqrt(scaled.prod(1) / full.prod(1))
    stuck = free & (kept < enough) if done else free
    if not stuck.any():
        return (first, scaled) if done else None
    elsewhere = np.random.default_rng(0).uniform(*bounds, size=(_STARTS - 1, *centre.shape))
    starts = np.where(stuck[:, None], elsewhere, centre)
    again, other, shrunk = _settle(
        starts, size, free, rows, related, bounds, enough=enough, origin=centre
    )
    found = [(first, scaled)] * done + [(other, shrunk)] * again

    def cost(new: tuple[Array, Array]) -> float:
        lost = 1 - np.sqrt(new[1].prod(1) / full.prod(1))
        return float((lost**2).sum() + ((new[0] - centre) ** 2).sum())

    return min(found, key=cost, default=None)


def _spread(
    centre: Array,
    size: Array,
    free: NDArray[np.bool_],
    rows: HalfSpaces,
    related: Mapping[frozenset[int], float],
    bounds: tuple[Array, Array],
    room: float,
) -> tuple[Array, Array] | None:
    """Centres of boxes of these sizes with `room` between them; None if none are found.

    A box inside another one comes back no larger than that allows.

    Boxes in one line get there sooner from all over the canvas; where it is too short for them,
    they only leave the line from another start.
    """
    if (size + room).prod(1).sum() > _CROWDED and not rows.inner.any():
        return None
    rng = np.random.default_rng(0)
    starts = [centre, np.where(free[:, None], _stretched(centre, size, room), centre)]
    for trial in range(_SPREAD_STARTS - 2):
        near = centre + rng.normal(0.0, _JITTER, centre.shape)
        elsewhere = rng.uniform(*bounds)
        starts.append(np.where(free[:, None], near if trial % 2 else elsewhere, centre))
    done, new, kept = _settle(np.stack(starts), size, free, rows, related, bounds, room)
    return (new, kept) if done else None


def _stretched(centre: Array, size: Array, room: float) -> Array:
    """The same arrangement, over the whole canvas."""
    border = size.max(0) / 2 + room / 3
    low, span = centre.min(0), np.ptp(centre, axis=0)
    wider = (span > _NEAR) & (span < 1 - 2 * border)
    return np.where(
        wider, border + (centre - low) / np.maximum(span, _NEAR) * (1 - 2 * border), centre
    )


def _settle(
    centre: Array,
    size: Array,
    free: NDArray[np.bool_],
    rows: HalfSpaces,
    related: Mapping[frozenset[int], float],
    bounds: tuple[Array, Array],
    room: float = 0.0,
    enough: float = 1.0,
    origin: Array | None = None,
) -> tuple[bool, Array, Array]:
    """Whether everything is fulfilled, and the centres and sizes at the end.

    centre: (starts, boxes, 2), each of which is settled on its own, all at once, until one
        fulfils everything and those before it have nothing left that can move; of these the one
        counts that shrinks least and is nearest to `origin`, or to the first start.
    room: more than 0 keeps boxes so far apart, and a third of that from the border of the canvas,
        and leaves their sizes alone.
    enough: the scale with which no box is too small; others go on while one is.
    """
    starts, n, _ = centre.shape
    origin = centre[0] if origin is None else origin
    full = _fitted(size, free, rows)
    first, second, gaps = _kept_apart(n, related, room)
    # The half-spaces, then the pairs to be kept apart, each with its two boxes.
    i, j = np.concatenate((rows.i, first)), np.concatenate((rows.j, second))
    stated = len(rows.i)
    move_i, move_j = free[i].astype(float), free[j].astype(float)
    # (boxes, rows): which rows a box is an end of, and which way it moves for one.
    ends_i, ends_j = (np.arange(n)[:, None] == end for end in (i, j))
    ends = (ends_i | ends_j).astype(float)
    ways = ends_j * move_j - ends_i * move_i
    moves = move_i + move_j
    normal = np.zeros((starts, len(i), 2))
    normal[:, :stated] = rows.normal
    stretch_i, stretch_j = np.zeros_like(normal), np.zeros_like(normal)
    stretch_i[:, :stated], stretch_j[:, :stated] = rows.k_i, rows.k_j
    scale = np.ones((starts, n))
    smallest = np.minimum(1.0, _SMALLEST / full.min(1))

    for round_ in range(_SPREAD_ROUNDS if room else _ROUNDS):
        give = 0.0 if room or round_ < _FREE_ROUNDS else 1 / _STIFFNESS
        if round_ == 0 or give:
            size = full * scale[:, :, None]
            low, high = _limits(size, free, bounds, room)
            least = rows.least(size)
            reach = (size[:, first] + size[:, second]) / 2 + gaps[:, None]
        centre = np.minimum(np.maximum(centre, low), high)
        delta = centre[:, j] - centre[:, i]
        depth, normal[:, stated:] = _collisions(delta[:, stated:], reach)
        short = least - (rows.normal * delta[:, :stated]).sum(-1)
        lack = np.concatenate((short, depth), axis=1)
        bad = lack > TOLERANCE
        done = np.logical_not(bad.any(1))
        rest = (bad & (moves > 0)).any(1)
        if not rest.any() or (done & (scale >= enough).all(1))[: rest.argmax()].any():
            break
        norm = (normal**2).sum(-1) * moves
        if give:
            # What a box's scale adds to what is lacking.
            stretch_i[:, stated:] = stretch_j[:, stated:] = np.abs(normal[:, stated:]) / 2
            rate_i = move_i * (stretch_i * full[i]).sum(-1)
            rate_j = move_j * (stretch_j * full[j]).sum(-1)
            norm = norm + give * (rate_i**2 + rate_j**2)
        step = np.where(bad, lack, 0.0) / np.maximum(norm, 1e-9)
        often = 1.5 / np.maximum(bad @ ends.T, 1.5)
        centre = centre + (ways @ (normal * step[:, :, None])) * often[:, :, None]
        if give:
            shrunk = (step * rate_i) @ ends_i.T + (step * rate_j) @ ends_j.T
            scale = (scale - give * shrunk * often).clip(smallest, 1.0)
    cost = ((1 - scale) ** 2).sum(1) + ((centre - origin) ** 2).sum((1, 2))
    best = int(np.where(done, cost, np.inf).argmin())
    centre, size = centre[best], full * scale[best][:, None]
    if not done[best]:
        return False, centre.clip(size / 2, 1 - size / 2), size
    _grow(centre, size, full, free, rows, (first, second, gaps))
    return True, centre, size


def _kept_apart(
    n: int, related: Mapping[frozenset[int], float], room: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """The pairs of n boxes that are kept apart, first and second, and how far."""
    first, second = np.triu_indices(n, 1)
    gaps = np.array(
        [related.get(frozenset(p), room) for p in zip(first.tolist(), second.tolist(), strict=True)]
    )
    return first[gaps >= 0], second[gaps >= 0], gaps[gaps >= 0]


def _collisions(delta: Array, reach: Array) -> tuple[Array, Array]:
    """How deep boxes collide, (starts, pairs), and which way out, (starts, pairs, 2).

    Two boxes collide where they meet along both axes; the easier way out is taken.

    delta: (starts, pairs, 2), from the first centre to the second.
    reach: (starts, pairs, 2), at what distances they no longer meet.
    """
    depth = reach - np.abs(delta)
    across = depth[:, :, 0] <= depth[:, :, 1]
    away = np.where(delta >= 0, 1.0, -1.0)
    way = np.stack((away[:, :, 0] * across, away[:, :, 1] * ~across), axis=-1)
    return depth.min(-1), way


def _fitted(size: Array, free: NDArray[np.bool_], rows: HalfSpaces) -> Array:
    """The sizes, but what shall lie inside another is no larger than 0.8 of it."""
    size = size.copy()
    inner = rows.inner
    inside = rows.k_i.sum(1)[inner] > 0
    small = np.where(inside, rows.i[inner], rows.j[inner])
    large = np.where(inside, rows.j[inner], rows.i[inner])
    for index, container in zip(small, large, strict=True):
        if free[index]:
            size[index] = np.minimum(size[index], 0.8 * size[container])
    return size


def _limits(
    size: Array, free: NDArray[np.bool_], bounds: tuple[Array, Array], room: float
) -> tuple[Array, Array]:
    """Between what the centres of the free boxes must lie."""
    border = np.minimum(size / 2 + room / 3, 0.5)
    low = np.maximum(bounds[0], border)
    high = np.maximum(np.minimum(bounds[1], 1 - border), low)
    low = np.minimum(low, 1 - border)
    return np.where(free[:, None], low, -np.inf), np.where(free[:, None], high, np.inf)


def _grow(
    centre: Array,
    size: Array,
    full: Array,
    free: NDArray[np.bool_],
    rows: HalfSpaces,
    apart: tuple[NDArray[np.int64], NDArray[np.int64], Array],
) -> None:
    """Scales boxes about their centres, in place, up to their full size or what is in the way."""
    first, second, gaps = apart
    for _ in range(_SWEEPS):
        small = (free & (size[:, 0] < 0.999 * full[:, 0])).nonzero()[0]
        grown = False
        for index in small.tolist():
            mine = (first == index) | (second == index)
            other = np.where(first[mine] == index, second[mine], first[mine])
            room = np.abs(centre[other] - centre[index]) - size[other] / 2
            room = ((room - gaps[mine, None] + TOLERANCE) * 2 / size[index]).max(1)
            limits = (
                _GROWTH,
                full[index, 0] / size[index, 0],
                rows.largest(index, centre, size),
                room.min(initial=np.inf),
                (2 * np.minimum(centre[index], 1 - centre[index]) / size[index]).min(),
            )
            by = float(min(limits))
            if by > 1.001:
                size[index] *= by
                grown = True
        if not grown:
            return
