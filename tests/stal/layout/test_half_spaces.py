"""Statements as half-spaces."""

import numpy as np
import pytest

from stal.layout.half_spaces import GAP, TOLERANCE, half_spaces_of
from stal.layout.order import orders_of
from stal.layout.projection import project
from stal.prompts import PREDICATES

SAME = (0.3, 0.3, 0.7, 0.7)


def stated(relations, n):
    orders = orders_of(relations, n, lambda i, j: True)
    return half_spaces_of(relations, orders, 1.0, True)


def centres_and_sizes(boxes):
    edges = np.array(boxes)
    return (edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]


@pytest.mark.parametrize("name", PREDICATES)
def test_projected_boxes_lack_nothing(name):
    half_spaces, _ = stated([(0, name, 1)], 2)
    found = centres_and_sizes(project([SAME, SAME], [(0, name, 1)]))
    assert half_spaces.shortfall(*found).max(initial=0.0) <= TOLERANCE + 1e-6  # of rounding


def test_what_comes_before_another_keeps_apart_and_straight():
    half_spaces, related = stated([(0, "left of", 1)], 2)
    centre, size = np.array([[0.2, 0.5], [0.8, 0.5]]), np.full((2, 2), 0.2)
    # The first row is the order: 0.6 between the centres, of which 0.2 + GAP are needed.
    assert half_spaces.shortfall(centre, size)[0] == pytest.approx(0.2 + GAP - 0.6)
    assert (half_spaces.shortfall(centre, size) <= 0).all()
    centre[1, 1] = 1.2
    assert (half_spaces.shortfall(centre, size) > 0).any()
    assert related == {frozenset((0, 1)): -1.0}


def test_a_box_within_another_may_grow_until_it_fills_it():
    half_spaces, _ = stated([(0, "worn by", 1)], 2)
    assert half_spaces.inner.all()
    centre, size = np.full((2, 2), 0.5), np.array([[0.1, 0.1], [0.4, 0.4]])
    assert half_spaces.largest(0, centre, size) == pytest.approx(4.0, rel=0.05)
    assert half_spaces.largest(1, centre, size) == np.inf
