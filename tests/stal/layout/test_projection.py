"""The projection: what is stated holds, and what cannot hold is named."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stal.layout import Layout, PlacedObject
from stal.layout.projection import project
from stal.prompts import PREDICATES
from stal.relations import NOWHERE

SAME = (0.3, 0.3, 0.7, 0.7)


def layout_of(boxes, relations, aspect=1.0):
    objects = tuple(PlacedObject("a thing", "thing", box) for box in boxes)
    return Layout("", objects, tuple(relations), aspect)


def meet(a, b):
    return min(a[2], b[2]) - max(a[0], b[0]) > 0.01 and min(a[3], b[3]) - max(a[1], b[1]) > 0.01


@pytest.mark.parametrize("predicate", PREDICATES)
def test_projection_fulfils_every_predicate_from_equal_boxes(predicate):
    layout = layout_of(
        project([SAME, SAME], [(0, predicate, 1)]),
        [(0, predicate, 1)],
    )
    assert layout.violated == ()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(-0.2, 1.2)] * 2, *[st.floats(0.01, 1.5)] * 2), min_size=2, max_size=4
    ),
    st.permutations(range(4)),
    st.sampled_from(["left of", "right of", "above", "below"]),
    st.sampled_from([0.5, 1.0, 16 / 9]),
)
def test_projection_fulfils_chains_from_any_boxes(z, order, predicate, aspect):
    boxes = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in z]
    order = [i for i in order if i < len(boxes)]
    relations = [(i, predicate, j) for i, j in itertools.pairwise(order)]
    layout = layout_of(project(boxes, relations, aspect=aspect), relations, aspect)
    assert layout.violated == ()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(0.0, 1.0)] * 2, *[st.floats(0.05, 0.8)] * 2), min_size=2, max_size=5
    ),
    st.permutations(range(5)),
    st.permutations(range(5)),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), max_size=6),
)
def test_projection_fulfils_whatever_some_arrangement_fulfils(z, across, down, pairs):
    boxes = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in z]
    relations = []
    for i, j, horizontal in pairs:
        if i != j and max(i, j) < len(boxes):
            rank, names = (
                (across, ("left of", "right of")) if horizontal else (down, ("above", "below"))
            )
            relations.append((i, names[rank[i] > rank[j]], j))
    assert layout_of(project(boxes, relations), relations).violated == ()


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


@pytest.mark.parametrize(
    ("boxes", "relations", "least"),
    [
        # The third lies where the other two have to touch.
        (
            [(0.11, 0.21, 0.27, 0.57), (0.12, 0.49, 0.51, 0.87), (0.03, 0.57, 0.46, 0.76)],
            [(0, "on", 1)],
            0.7,
        ),
        ([(0.0, 0.3, 0.4, 0.7), (0.5, 0.3, 0.9, 0.7)], [(0, "right of", 1)], 0.95),
        ([(0.2, 0.2, 0.6, 0.6)] * 3, [(0, "left of", 1), (1, "left of", 2)], 0.55),
    ],
    ids=["wedged", "swapped", "in a row"],
)
def test_boxes_shrink_no_more_than_they_must(boxes, relations, least):
    found = project(boxes, relations)
    assert layout_of(found, relations).violated == ()
    assert min(area(new) / area(old) for new, old in zip(found, boxes, strict=True)) > least


def test_scaled_boxes_keep_their_shape():
    found = project([(0.2, 0.1, 0.6, 0.9)] * 4, [])
    assert all((y1 - y0) / (x1 - x0) == pytest.approx(2.0, rel=1e-3) for x0, y0, x1, y1 in found)


@pytest.mark.parametrize("relations", [[], [(0, "left of", 1)], [(0, "above", 1), (2, "below", 0)]])
@pytest.mark.parametrize("centres", ["at one place", "in a column", "in two rows"])
def test_four_boxes_keep_their_size_where_the_canvas_has_the_room(centres, relations):
    ways = {
        "at one place": [(0.5, 0.5)] * 4,
        "in a column": [(0.5, 0.2), (0.5, 0.5), (0.5, 0.8), (0.4, 0.5)],
        "in two rows": [(0.25, 0.3), (0.75, 0.3), (0.5, 0.3), (0.5, 0.5)],
    }
    boxes = [(x - 0.18, y - 0.18, x + 0.18, y + 0.18) for x, y in ways[centres]]
    found = project(boxes, relations)
    assert layout_of(found, relations).violated == ()
    assert not any(meet(found[i], found[j]) for i in range(4) for j in range(i))
    assert all(area(box) == pytest.approx(0.36**2, rel=1e-3) for box in found)


def test_what_is_inside_a_thing_stands_where_the_thing_does():
    relations = [(0, "inside", 1), (0, "next to", 2), (1, "next to", 2)]
    boxes = [(0.0, 0.4, 0.2, 0.6), (0.5, 0.3, 0.8, 0.7), (0.2, 0.3, 0.5, 0.7)]
    found = project(boxes, relations)
    assert layout_of(found, relations).violated == ()
    assert found[0][0] >= found[2][2]
    assert min(area(new) / area(old) for new, old in zip(found, boxes, strict=True)) > 0.3


def test_what_is_held_in_the_left_hand_overlaps_its_holder():
    relations = [(0, "held by", 1), (0, "left of", 1)]
    cup, man = project([(0.7, 0.4, 0.8, 0.5), (0.3, 0.1, 0.6, 0.9)], relations)
    assert layout_of([cup, man], relations).violated == ()
    assert meet(cup, man)


def test_what_is_held_is_no_higher_than_the_middle_of_its_holder():
    relations = [(0, "held by", 1), (0, "above", 2)]
    boxes = [(0.4, 0.2, 0.6, 0.4), (0.3, 0.1, 0.7, 0.9), (0.4, 0.6, 0.6, 0.8)]
    book, man, vase = project(boxes, relations)
    assert layout_of([book, man, vase], relations).violated == ()
    assert book[1] + book[3] >= man[1] + man[3]


def test_what_is_held_is_lifted_where_more_is_said():
    relations = [(0, "held by", 1), (0, "above", 2), (2, "above", 1)]
    layout = layout_of(project([SAME] * 3, relations), relations)
    assert layout.violated == ((0, "held by", 1),)  # there is no way to hold it up there


@pytest.mark.parametrize(
    ("predicate", "box"),
    [
        ("inside", (0.0, 0.1, 0.2, 0.3)),
        ("around", (0.0, 0.1, 0.2, 0.3)),
        ("on", (0.4, 0.0, 0.6, 0.2)),
        ("held by", (0.0, 0.4, 0.2, 0.6)),
        ("behind", (0.0, 0.4, 0.2, 0.6)),
        ("touching", (0.0, 0.4, 0.2, 0.6)),
        ("far from", (0.4, 0.3, 0.6, 0.5)),
    ],
)
def test_contact_that_is_missing_is_named(predicate, box):
    relations = [(0, predicate, 1)]
    boxes = [box, (0.3, 0.3, 0.7, 0.7)]
    assert layout_of(boxes, relations).violated == tuple(relations)
    assert layout_of(project(boxes, relations), relations).violated == ()


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_several_things_around_one_are_on_its_sides(count):
    relations = [(i, "around", count) for i in range(count)]
    boxes = [(x, 0.4, x + 0.15, 0.55) for x in (0.1, 0.3, 0.5, 0.7, 0.8)[:count]]
    *ring, middle = project([*boxes, (0.4, 0.4, 0.6, 0.6)], relations)
    assert layout_of([*ring, middle], relations).violated == ()
    assert not any(meet(each, middle) for each in ring)
    assert min(each[0] for each in ring) < middle[0]
    assert max(each[2] for each in ring) > middle[2]


@pytest.mark.parametrize("count", [4, 8])
def test_many_things_find_room_on_one(count):
    relations = [(i, "on", count) for i in range(count)]
    *borne, table = project([(0.3, 0.2, 0.5, 0.4)] * count + [(0.3, 0.5, 0.7, 0.8)], relations)
    assert layout_of([*borne, table], relations).violated == ()
    assert len({round(box[3], 2) for box in borne}) == 1


def test_more_things_than_a_narrow_one_can_bear_keep_their_sizes_positive():
    relations = [(i, "on", 4) for i in range(4)]
    boxes = project([SAME] * 5, relations, fixed={4: (0.45, 0.4, 0.52, 0.9)})
    assert all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in boxes)


def test_what_is_behind_stands_higher_unless_more_is_said():
    boxes = [(0.3, 0.5, 0.6, 0.9), (0.3, 0.4, 0.6, 0.8)]
    for predicate, far in (("behind", 0), ("in front of", 1)):
        found = project(boxes, [(0, predicate, 1)])
        assert found[far][1] + found[far][3] < found[1 - far][1] + found[1 - far][3]
    relations = [(0, "behind", 1), (1, "above", 0)]
    assert layout_of(project(boxes, relations), relations).violated in ((), (relations[0],))


def test_who_rides_a_thing_stands_on_its_side_of_others():
    relations = [(0, "on", 1), (0, "next to", 2), (1, "next to", 2)]
    boxes = [(0.1, 0.1, 0.3, 0.4), (0.7, 0.4, 1.0, 0.8), (0.4, 0.3, 0.6, 0.7)]
    assert layout_of(project(boxes, relations), relations).violated == ()


@pytest.mark.parametrize("things", [2, 3, 4])
def test_things_on_one_thing_stand_side_by_side_over_it(things):
    boxes = [(0.2, 0.1 * i, 0.5, 0.1 * i + 0.3) for i in range(things)] + [(0.1, 0.5, 0.8, 0.9)]
    relations = [(i, "on", things) for i in range(things)]
    *borne, table = project(boxes, relations)
    assert layout_of([*borne, table], relations).violated == ()
    for x0, y0, x1, y1 in borne:
        assert table[0] < (x0 + x1) / 2 < table[2]
        assert y0 < table[1] < y1 + 0.05
    borne.sort()
    assert all(a[2] <= b[0] for a, b in itertools.pairwise(borne))


def test_the_background_is_the_upper_half_of_the_canvas():
    boxes = [(0.1, 0.6, 0.4, 0.9), (0.6, 0.1, 0.9, 0.4)]
    far, near = project(boxes, [], sides=[(None, None, -1), (None, None, 1)])
    assert far[1] + far[3] <= 1.01
    assert near[1] + near[3] >= 0.99


def test_what_a_bowl_holds_is_seen_over_its_rim():
    fruit, bowl = project([(0.4, 0.5, 0.6, 0.7), (0.2, 0.4, 0.7, 0.7)], [(0, "inside", 1)])
    assert fruit[1] + fruit[3] < bowl[1] + bowl[3]


def test_relations_lie_within_45_degrees():
    (a, b) = project([(0.1, 0.0, 0.3, 0.2), (0.2, 0.8, 0.4, 1.0)], [(0, "left of", 1)])
    dx, dy = (b[0] + b[2] - a[0] - a[2]), abs(b[1] + b[3] - a[1] - a[3])
    assert dx > dy


def test_unrelated_boxes_are_kept_apart():
    boxes = project([SAME, SAME, SAME], [])
    assert not any(meet(boxes[i], boxes[j]) for i in range(3) for j in range(i))


def test_what_is_inside_lies_inside():
    inner, outer = project([(0.0, 0.0, 0.9, 0.9), (0.5, 0.5, 0.9, 0.9)], [(0, "inside", 1)])
    assert all(outer[k] - 0.01 <= inner[k] for k in (0, 1))
    assert all(inner[k] <= outer[k] + 0.01 for k in (2, 3))


def test_what_is_behind_overlaps_but_is_seen():
    behind, front = project([(0.0, 0.4, 0.2, 0.6), (0.7, 0.4, 0.9, 0.6)], [(0, "behind", 1)])
    assert meet(behind, front)


def test_fixed_boxes_stay_and_others_go_around_them():
    fixed = (0.1, 0.1, 0.5, 0.5)
    kept, moved = project([SAME, (0.0, 0.2, 0.3, 0.4)], [(0, "left of", 1)], fixed={0: fixed})
    assert kept == fixed
    assert moved[0] >= fixed[2]


def test_a_contradiction_is_named_and_the_rest_holds():
    relations = [(0, "left of", 1), (1, "left of", 0), (2, "above", 0)]
    layout = layout_of(project([SAME] * 3, relations), relations)
    assert layout.violated == ((1, "left of", 0),)


def test_a_place_on_the_canvas_is_kept():
    ((x0, y0, x1, y1),) = project([SAME], [], sides=[(-1, 1, None)])
    assert (x0 + x1) / 2 <= 0.34
    assert (y0 + y1) / 2 >= 0.66


def test_what_is_in_a_corner_is_near_it():
    ((_, y0, x1, _),) = project([(0.35, 0.35, 0.65, 0.65)], [], sides=[(1, -1, None)])
    assert x1 > 0.93
    assert y0 < 0.07


def test_what_is_beyond_a_corner_still_has_room():
    relations, sides = [(0, "left of", 1)], [NOWHERE, (-1, -1, None)]
    star, moon = boxes = project([SAME, SAME], relations, sides=sides)
    assert layout_of(boxes, relations).violated == ()
    assert star[2] <= moon[0]
    assert moon[0] + moon[2] <= 0.67


def test_boxes_that_fulfil_everything_do_not_move():
    boxes = [(0.1, 0.4, 0.3, 0.6), (0.6, 0.4, 0.8, 0.6)]
    assert project(boxes, [(0, "left of", 1)]) == boxes
    assert project([], []) == []
