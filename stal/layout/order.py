"""What must come before what along an axis, by what is stated.

along_x, along_y = orders_of([(0, "left of", 1)], 2, lambda i, j: True)
along_x.sequence  # [0, 1]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stal.relations import GEOMETRY, Statement


@dataclass
class Order:
    """What must come before what along one axis: a directed graph without cycles.

    Attributes:
        edges: (i, j) where i comes before j.
        sequence: all objects by index, each before what it must come before.
        reach: reach[i][j] is the length of the longest path from i to j.
        before: of each object, the length of the longest path to it.
        after: of each object, the length of the longest path from it.
    """

    edges: list[tuple[int, int]]
    sequence: list[int]
    reach: list[dict[int, int]]
    before: list[int]
    after: list[int]


def orders_of(
    relations: Sequence[Statement], n: int, left_first: Callable[[int, int], bool]
) -> tuple[Order, Order]:
    """The orders along x and y; a relation that would close a cycle is left out.

    Args:
        relations: statements of n objects.
        n: how many objects there are.
        left_first: of two objects "next to" or "far from" each other, whether the first shall be
            the left one.

    Returns:
        The order along x, from left to right, and the one along y, from top to bottom.
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
