"""Boxes moved, and shrunk where they must be, until they fulfil what a prompt states.

Of a scene whose things are known (`stal.layout.stage`) boxes may overlap, but none may hide
another, and what moves is what the predictor is least sure of.

Every statement is a few half-spaces on the difference of two centres (`stal.layout.half_spaces`).
All that are broken are projected on at once and the moves averaged (Cimmino's method). At first
only centres move; then a box also takes a part of what is lacking by scaling, s = t s_0 with
t <= 1. At the end each box grows again as far as its neighbours let it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stal.layout.half_spaces import GAP, TOLERANCE, HalfSpaces, half_spaces_of
from stal.layout.order import Order, orders_of
from stal.relations import GEOMETRY, NOWHERE, Side, Statement

if TYPE_CHECKING:
    from stal.layout.coverage import Array, Box
    from stal.layout.stage import Part

_ROUNDS, _FREE_ROUNDS = 100, 20
# Every so many rounds a search is given up that this many times the last ones' progress, up to the
# last round, would not end well.
_LOOK, _HOPE = 10, 2.0
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
# Of two things that nothing relates, how much of the smaller one the other may cover along an
# axis; the same of two of a plural, and of two that one thing bears.
_COVERED, _TWINS, _SEATED = 0.5, 0.25, 0.1
# A thing of less than this share of another's area, whose foot is no more than this higher, stands
# before it.
_SMALL, _STEP = 0.5, 0.05
_MOBILITY = 4.0  # the most and, inversely, the least that one box moves for another
_NEAR = 0.06  # how near the corner, or the middle, what is "in the corner" starts
_SMALLEST, _LARGEST = 0.04, 0.96


def project(
    boxes: Sequence[Box],
    relations: Sequence[Statement],
    *,
    aspect: float = 1.0,
    fixed: Mapping[int, Box] | None = None,
    sides: Sequence[Side] = (),
    parts: Sequence[Part] = (),
    deviations: Sequence[tuple[float, float]] = (),
) -> list[Box]:
    """The boxes, changed until the relations hold.

    "left of", "above" and their kin order two centres, within 39 degrees of straight in pixels and
    in fractions of the canvas, and keep the boxes apart; what is "on" a thing touches it, side by
    side with what else is on it; what is inside lies inside; several things around one have a side
    of it each; "behind" and "in front of" overlap but do not hide, the farther one higher; what is
    held overlaps its holder, no higher than the middle unless more is stated.
    All other boxes are kept apart, or where the scene is known are not hidden by each other; all
    lie in the canvas, and objects with a place on the canvas
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
        parts: what each thing does, as `stal.layout.stage.parts_of` has it; none where boxes show
            no scene.
        deviations: (x, y) of the predictor's density about each centre, the metric in which boxes
            move least; or none.

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
    own = _Own(free, _mobility(deviations, n), bounds, *_covering(parts, centre, size), bool(parts))
    _to_corners(sides, centre, size, free)
    across = centre[:, 0].copy()
    relations = _rings(relations, across, scene=bool(parts))
    roots = across[_roots(relations, n)]
    flat = {i for i, part in enumerate(parts) if part.is_flat}
    rows = [each for each in relations if each[2] not in flat]
    _lay_out(rows, centre, size, free)
    relations += _neighbours(rows, across)
    likely = _likely(parts, relations)
    tries = [(likely, True, own)] if likely else []
    tries += [([], True, own), ([], False, own)]
    if parts:
        # Rather hidden than not where it is said to be.
        tries.append(([], False, replace(own, open=np.ones_like(own.open))))
    for taken, straight, own in tries:
        said = [*relations, *taken]
        orders = orders_of(said, n, lambda i, j: (roots[i], across[i]) <= (roots[j], across[j]))
        stated = partial(half_spaces_of, said, orders, aspect, straight, parts=parts)
        spaces, related = stated()
        found = _search(centre, size, own, spaces, related)
        if found is not None:
            break
    if found is not None:
        moved = not np.array_equal(found[0], centre) and not parts
        centre, size = _loosened(*found, size, own, stated, orders) if moved else found
    elif fixed:
        _, centre, size = _settle(centre[None], size, own, spaces, related, patient=True)
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


@dataclass(frozen=True)
class _Own:
    """What is known of boxes beside their centres and sizes.

    Attributes:
        free: (boxes,) bool, which may change.
        mobility: (boxes, 2), the variances of the centres, in a unit of their mean.
        bounds: the least and the greatest centres, (boxes, 2) each.
        cover: (boxes, boxes), how much of the smaller of two may be covered along an axis.
        open: (boxes, boxes) bool, the pairs that may cover each other wholly.
        scene: whether boxes show a scene, which is not scattered for larger boxes.
    """

    free: NDArray[np.bool_]
    mobility: Array
    bounds: tuple[Array, Array]
    cover: Array
    open: NDArray[np.bool_]
    scene: bool


def _mobility(deviations: Sequence[tuple[float, float]], n: int) -> Array:
    if not deviations:
        return np.ones((n, 2))
    variance = np.array(deviations, dtype=float) ** 2
    return (variance / variance.mean()).clip(1 / _MOBILITY, _MOBILITY)


def _covering(parts: Sequence[Part], centre: Array, size: Array) -> tuple[Array, NDArray[np.bool_]]:
    """How far two boxes may cover each other, and which may do so wholly.

    A thing that is much larger is not hidden by one that stands before it, nor by what it bears.
    """
    n = len(centre)
    cover, open_ = np.zeros((n, n)), np.zeros((n, n), dtype=bool)
    if not parts:
        return cover, open_
    area, foot = size.prod(1), centre[:, 1] + size[:, 1] / 2
    chains = [_chain(parts, i) for i in range(n)]
    for i, j in combinations(range(n), 2):
        a, b = parts[i], parts[j]
        seated = a.bearer is not None and a.bearer == b.bearer and a.how == b.how == "on"
        twins = a.noun == b.noun and a.bearer == b.bearer
        cover[i, j] = _SEATED if seated else _TWINS if twins else _COVERED
        small, large = (i, j) if area[i] < area[j] else (j, i)
        before = area[small] < _SMALL * area[large] and foot[small] >= foot[large] - _STEP
        scenery = "land" in (a.thing.rests_on, b.thing.rests_on) or "around" in (a.how, b.how)
        open_[i, j] = scenery or i in chains[j] or j in chains[i] or (before and not twins)
    return cover + cover.T, open_ | open_.T


def _chain(parts: Sequence[Part], i: int) -> list[int]:
    """What bears a thing, what bears that, and so on."""
    chain: list[int] = []
    bearer = parts[i].bearer
    while bearer is not None:
        chain.append(bearer)
        bearer = parts[bearer].bearer
    return chain


def _likely(parts: Sequence[Part], relations: Sequence[Statement]) -> list[Statement]:
    """What bears things by what is known of them, where nothing is said of both."""
    known = {frozenset((i, j)) for i, _, j in relations}
    return [
        (i, "on" if part.how == "on" else "held by", part.bearer)
        for i, part in enumerate(parts)
        if part.how in ("on", "held")
        and part.bearer is not None
        and frozenset((i, part.bearer)) not in known
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


def _rings(relations: Sequence[Statement], across: Array, *, scene: bool) -> list[Statement]:
    """Where several things are around one, each has a side of it.

    scene: whether they only meet it, since chairs before and behind a table hide parts of it.
    """
    rings: dict[int, list[int]] = {}
    for i, name, j in relations:
        if GEOMETRY[name].contact == "around" and i != j:
            rings.setdefault(j, []).append(i)
    sides = {}
    for j, ring in rings.items():
        ring.sort(key=lambda i: (across[i], i))
        for rank, i in enumerate(ring if ring[1:] else ()):
            ends = {0: "left of", len(ring) - 1: "right of"}
            side = ends.get(rank, ("above", "below")[rank % 2])
            sides[i, j] = "touching" if scene else side
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
    own: _Own,
    stated: Callable[[float], tuple[HalfSpaces, dict[frozenset[int], float]]],
    orders: Sequence[Order],
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
        spread = _spread(centre, sizes, own, rows, related, room)
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
    own: _Own,
    rows: HalfSpaces,
    related: Mapping[frozenset[int], float],
) -> tuple[Array, Array] | None:
    """Centres and sizes that fulfil everything, near to the given ones; None if none are found.

    A box that is wedged between others that want to meet would have to vanish. Where one shrinks
    more than the crowd explains, it starts again elsewhere, and the best of a few tries is kept.
    """
    crowd = min(1.0, math.sqrt(_FULL / max(float(size.prod(1).sum()), 1e-9)))
    enough = 0.7 * crowd
    free = own.free
    full = _fitted(size, free, rows)
    done, first, scaled = _settle(centre[None], size, own, rows, related, enough=enough)
    kept = np.sqrt(scaled.prod(1) / full.prod(1))
    stuck = free & (kept < enough) if done else free
    if not stuck.any() or (done and own.scene):
        return (first, scaled) if done else None
    elsewhere = np.random.default_rng(0).uniform(*own.bounds, size=(_STARTS - 1, *centre.shape))
    starts = np.where(stuck[:, None], elsewhere, centre)
    again, other, shrunk = _settle(starts, size, own, rows, related, enough=enough, origin=centre)
    found = [(first, scaled)] * done + [(other, shrunk)] * again

    def cost(new: tuple[Array, Array]) -> float:
        lost = 1 - np.sqrt(new[1].prod(1) / full.prod(1))
        return float((lost**2).sum() + ((new[0] - centre) ** 2 / own.mobility).sum())

    return min(found, key=cost, default=None)


def _spread(
    centre: Array,
    size: Array,
    own: _Own,
    rows: HalfSpaces,
    related: Mapping[frozenset[int], float],
    room: float,
) -> tuple[Array, Array] | None:
    """Centres of boxes of these sizes with `room` between them; None if none are found.

    A box inside another one comes back no larger than that allows.

    Boxes in one line get there sooner from all over the canvas; where it is too short for them,
    they only leave the line from another start.
    """
    if (size + room).prod(1).sum() > _CROWDED and not rows.inner.any():
        return None
    free, rng = own.free, np.random.default_rng(0)
    starts = [centre, np.where(free[:, None], _stretched(centre, size, room), centre)]
    for trial in range(_SPREAD_STARTS - 2):
        near = centre + rng.normal(0.0, _JITTER, centre.shape)
        elsewhere = rng.uniform(*own.bounds)
        starts.append(np.where(free[:, None], near if trial % 2 else elsewhere, centre))
    done, new, kept = _settle(np.stack(starts), size, own, rows, related, room)
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
    own: _Own,
    rows: HalfSpaces,
    related: Mapping[frozenset[int], float],
    room: float = 0.0,
    enough: float = 1.0,
    origin: Array | None = None,
    *,
    patient: bool = False,
) -> tuple[bool, Array, Array]:
    """Whether everything is fulfilled, and the centres and sizes at the end.

    centre: (starts, boxes, 2), each of which is settled on its own, all at once, until one
        fulfils everything and those before it have nothing left that can move; of these the one
        counts that shrinks least and is nearest to `origin`, or to the first start.
    room: more than 0 keeps boxes so far apart, and a third of that from the border of the canvas,
        and leaves their sizes alone.
    enough: the scale with which no box is too small; others go on while one is.
    patient: goes on where nothing will be fulfilled, for what comes nearer to it.
    """
    (starts, n, _), free, mobility = centre.shape, own.free, own.mobility
    origin = centre[0] if origin is None else origin
    full = _fitted(size, free, rows)
    first, second, gaps = _kept_apart(n, related, room, own)
    cover = own.cover[first, second][:, None]
    # The half-spaces, then the pairs to be kept apart, each with its two boxes.
    i, j = np.concatenate((rows.i, first)), np.concatenate((rows.j, second))
    stated = len(rows.i)
    move_i, move_j = free[i].astype(float), free[j].astype(float)
    # (boxes, rows): which rows a box is an end of, and which way it moves for one.
    ends_i, ends_j = (np.arange(n)[:, None] == end for end in (i, j))
    ends = (ends_i | ends_j).astype(float)
    ways = ends_j * move_j - ends_i * move_i
    moves = move_i[:, None] * mobility[i] + move_j[:, None] * mobility[j]  # (rows, 2)
    movable = (moves > 0).any(1)
    normal = np.zeros((starts, len(i), 2))
    normal[:, :stated] = rows.normal
    stretch_i, stretch_j = np.zeros_like(normal), np.zeros_like(normal)
    stretch_i[:, :stated], stretch_j[:, :stated] = rows.k_i, rows.k_j
    scale = np.ones((starts, n))
    smallest = np.minimum(1.0, _SMALLEST / full.min(1))

    rounds, seen = _SPREAD_ROUNDS if room else _ROUNDS, np.full(starts, np.inf)
    for round_ in range(rounds):
        give = 0.0 if room or round_ < _FREE_ROUNDS else 1 / _STIFFNESS
        if round_ == 0 or give:
            size = full * scale[:, :, None]
            low, high = _limits(size, free, own.bounds, room)
            least = rows.least(size)
            smaller = np.minimum(size[:, first], size[:, second])
            reach = (size[:, first] + size[:, second]) / 2 + gaps[:, None] - cover * smaller
        centre = np.minimum(np.maximum(centre, low), high)
        delta = centre[:, j] - centre[:, i]
        depth, normal[:, stated:] = _collisions(delta[:, stated:], reach)
        short = least - (rows.normal * delta[:, :stated]).sum(-1)
        lack = np.concatenate((short, depth), axis=1)
        bad = lack > TOLERANCE
        done = np.logical_not(bad.any(1))
        rest = (bad & movable).any(1)
        if not rest.any() or (done & (scale >= enough).all(1))[: rest.argmax()].any():
            break
        if round_ % _LOOK == 0 and not patient:
            worst = lack.max(1, initial=0.0)
            if round_ > _FREE_ROUNDS:
                progress = _HOPE * (seen - worst) / _LOOK * (rounds - round_)
                if (done | (worst - progress > TOLERANCE)).all():
                    break
            seen = worst
        norm = (normal**2 * moves).sum(-1)
        if give:
            # What a box's scale adds to what is lacking.
            stretch_i[:, stated:] = stretch_j[:, stated:] = np.abs(normal[:, stated:]) / 2
            rate_i = move_i * (stretch_i * full[i]).sum(-1)
            rate_j = move_j * (stretch_j * full[j]).sum(-1)
            norm = norm + give * (rate_i**2 + rate_j**2)
        step = np.where(bad, lack, 0.0) / np.maximum(norm, 1e-9)
        often = 1.5 / np.maximum(bad @ ends.T, 1.5)
        centre = centre + (ways @ (normal * step[:, :, None])) * mobility * often[:, :, None]
        if give:
            shrunk = (step * rate_i) @ ends_i.T + (step * rate_j) @ ends_j.T
            scale = (scale - give * shrunk * often).clip(smallest, 1.0)
    cost = ((1 - scale) ** 2).sum(1) + ((centre - origin) ** 2 / mobility).sum((1, 2))
    best = int(np.where(done, cost, np.inf).argmin())
    centre, size = centre[best], full * scale[best][:, None]
    if not done[best]:
        return False, centre.clip(size / 2, 1 - size / 2), size
    _grow(centre, size, full, free, rows, (first, second, gaps))
    return True, centre, size


def _kept_apart(
    n: int, related: Mapping[frozenset[int], float], room: float, own: _Own
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """The pairs of n boxes that are kept apart, first and second, and how far."""
    first, second = np.triu_indices(n, 1)
    gaps = np.array(
        [related.get(frozenset(p), room) for p in zip(first.tolist(), second.tolist(), strict=True)]
    )
    kept = (gaps >= 0) & ~own.open[first, second]
    return first[kept], second[kept], gaps[kept]


def _collisions(delta: Array, reach: Array) -> tuple[Array, Array]:
    """How deep boxes collide, (starts, pairs), and which way out, (starts, pairs, 2).

    Two boxes collide where they meet along both axes; the easier way out is taken.

    delta: (starts, pairs, 2), from the first centre to the second.
    reach: (starts, pairs, 2), at what distances they no longer meet.
    """
    depth = reach - np.abs(delta)
    across = depth[:, :, 0] <= depth[:, :, 1]
    way = np.where(delta >= 0, 1.0, -1.0)
    way[:, :, 0] *= across
    way[:, :, 1] *= ~across
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
