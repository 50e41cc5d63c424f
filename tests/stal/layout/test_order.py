"""What must come before what along an axis."""

import pytest

from stal.layout.order import orders_of


def first(i, j):
    return True


def last(i, j):
    return False


def test_paths_are_the_longest_ones():
    stated = [(0, "left of", 1), (2, "right of", 1), (0, "left of", 2), (3, "above", 0)]
    across, down = orders_of(stated, 4, first)
    assert across.edges == [(0, 1), (0, 2), (1, 2)]
    assert [i for i in across.sequence if i != 3] == [0, 1, 2]
    assert across.reach == [{1: 1, 2: 2}, {2: 1}, {}, {}]
    assert across.before == [0, 1, 2, 0]
    assert across.after == [2, 1, 0, 0]
    assert down.edges == [(3, 0)]


@pytest.mark.parametrize("name", ["next to", "far from"])
def test_the_side_is_asked_for_where_none_is_stated(name):
    assert orders_of([(0, name, 1)], 2, first)[0].edges == [(0, 1)]
    assert orders_of([(0, name, 1)], 2, last)[0].edges == [(1, 0)]
    assert orders_of([(1, "left of", 0), (0, name, 1)], 2, first)[0].edges == [(1, 0)]


def test_what_is_between_two_has_the_first_on_its_left():
    stated = [(0, "between", 1), (0, "between", 2)]
    assert orders_of(stated, 3, last)[0].sequence == [1, 0, 2]


def test_what_closes_a_cycle_is_left_out():
    stated = [(0, "above", 1), (1, "above", 2), (2, "above", 0), (0, "left of", 2)]
    across, down = orders_of(stated, 3, first)
    assert across.edges == [(0, 2)]
    assert down.edges == [(0, 1), (1, 2)]
