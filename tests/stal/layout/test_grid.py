"""Placement on a grid: what is stated holds, sizes, what the seed varies, what is refused."""

import math
from collections.abc import Iterable
from itertools import combinations
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stal.layout import Box, Layout, place
from stal.prompts import PREDICATES, Description, Object, Relation, parse
from stal.relations import GEOMETRY

ASPECTS = (0.25, 0.5, 1.0, 16 / 9, 4.0)


def things(n: int) -> tuple[Object, ...]:
    return tuple(Object(f"a thing {i}", f"thing {i}") for i in range(n))


def centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def disjoint(a: Box, b: Box) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def fulfils(a: Box, predicate: str, b: Box) -> bool:
    """The relation with disjoint extents along its axis: stronger than `Layout.violated` asks."""
    return {
        "left of": a[2] <= b[0],
        "right of": b[2] <= a[0],
        "above": a[3] <= b[1],
        "below": b[3] <= a[1],
        "next to": a[2] <= b[0] or b[2] <= a[0],
        "between": disjoint(a, b),
        "on": a[3] <= b[1],
    }.get(predicate, True)  # the others say nothing of disjoint boxes


def straight(a: Box, predicate: str, b: Box, aspect: float) -> bool:
    """Whether the second centre lies within 45 degrees of the axis, as fractions and as pixels."""
    (ax, ay), (bx, by) = centre(a), centre(b)
    dx, dy = abs(ax - bx), abs(ay - by)
    if predicate in ("above", "below"):
        return dx < dy and dx * aspect < dy
    return dy < dx and dy < dx * aspect


def consistent(relations: Iterable[Relation]) -> list[Relation]:
    """The relations that remain when one that contradicts those before it is dropped."""
    edges: dict[str, set[tuple[int, int]]] = {"x": set(), "y": set()}
    kept = []
    for r in relations:
        if r.predicate not in ("left of", "right of", "above", "below", "on"):
            beside = r.predicate in ("next to", "between")
            if r.subject != r.object or not beside:
                kept.append(r)
            continue
        axis = "x" if r.predicate in ("left of", "right of") else "y"
        edge = (r.subject, r.object)
        if r.predicate in ("right of", "below"):
            edge = edge[::-1]
        reached, stack = set(), [edge[1]]
        while stack:
            i = stack.pop()
            if i not in reached:
                reached.add(i)
                stack += [b for a, b in edges[axis] if a == i]
        if edge[0] not in reached:
            edges[axis].add(edge)
            kept.append(r)
    return kept


def check_placement(description: Description, layout: Layout) -> None:
    boxes = [placed.box for placed in layout.objects]
    assert [(o.phrase, o.noun) for o in layout.objects] == [
        (o.phrase, o.noun) for o in description.objects
    ]
    for a, b in combinations(boxes, 2):
        assert disjoint(a, b)
    kept = consistent(description.relations)
    for r in kept:
        assert fulfils(boxes[r.subject], r.predicate, boxes[r.object])
    stated = description.statements
    dropped = [s for s, r in zip(stated, description.relations, strict=True) if r not in kept]
    assert layout.relations == stated
    # What touches or holds another thing cannot do so on a grid.
    violated, dropped = (
        [s for s in group if GEOMETRY[s[1]].contact in ("", "beside")]
        for group in (layout.violated, dropped)
    )
    assert violated == dropped


@st.composite
def descriptions(draw_: st.DrawFn) -> Description:
    n = draw_(st.integers(0, 9))
    if n == 0:
        return Description("nothing")
    index = st.integers(0, n - 1)
    relation = st.builds(Relation, index, st.sampled_from(PREDICATES), index)
    return Description("a prompt", things(n), tuple(draw_(st.lists(relation, max_size=9))))


@settings(max_examples=60, deadline=None)
@given(descriptions(), st.floats(0.25, 4.0), st.integers(0, 5))
def test_placement_fulfils_whatever_is_not_contradictory(
    description: Description, aspect: float, seed: int
) -> None:
    check_placement(description, place(description, aspect=aspect, seed=seed))


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize(
    "text",
    [
        "a circle to the left of a square",
        "a circle right of a square",
        "a circle above a square",
        "a circle below a square",
        "a circle next to a square",
        "a circle above a square and a ring",
        "a star left of both the ring and the cross",
        "a circle is above a square, which is left of a ring",
        "a star with a ring above it and a cross below it",
        "a dog left of a cat and a bird above a horse",
        "a star between a ring and a cross with a dog above it",
    ],
)
def test_placement_stands_straight(text: str, aspect: float) -> None:
    description = parse(text)
    assert description.relations
    for seed in range(3):
        layout = place(description, aspect=aspect, seed=seed)
        check_placement(description, layout)
        for i, predicate, j in layout.relations:
            assert straight(layout.objects[i].box, predicate, layout.objects[j].box, aspect)


@pytest.mark.parametrize(
    ("text", "smallest", "largest"),
    [
        ("a circle", 0.5, 0.7),
        ("a circle and a star", 0.37, 0.46),
        ("a circle left of a star", 0.37, 0.46),
        ("a circle, a star and a ring", 0.28, 0.36),
        ("four rings", 0.28, 0.36),
        ("a ring above a star and a cross above a circle", 0.28, 0.36),
        ("nine rings", 0.18, 0.25),
        ("twenty rings", 0.12, 0.17),
    ],
)
def test_boxes_are_as_large_as_the_bundled_world_has_them(
    text: str, smallest: float, largest: float
) -> None:
    for seed in range(4):
        for placed in place(parse(text), seed=seed).objects:
            x0, y0, x1, y1 = placed.box
            assert smallest <= x1 - x0 <= largest
            assert x1 - x0 == pytest.approx(y1 - y0, abs=1e-3)


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 12, 20])
def test_unrelated_objects_fill_any_canvas(n: int, aspect: float) -> None:
    description = Description("things", things(n))
    layout = place(description, aspect=aspect, seed=n)
    check_placement(description, layout)
    for placed in layout.objects:
        x0, y0, x1, y1 = placed.box
        assert (x1 - x0) * aspect == pytest.approx(y1 - y0, rel=0.02)  # square in pixels
        assert (x1 - x0) * (y1 - y0) >= 0.17 / (n + 3)


@pytest.mark.parametrize("predicate", ["left of", "above"])
def test_chain_of_twenty_is_placed(predicate: str) -> None:
    relations = tuple(Relation(i, predicate, i + 1) for i in range(19))
    description = Description("a row", things(20), relations)
    layout = place(description)
    check_placement(description, layout)
    assert not layout.violated


def test_every_pair_related_on_both_axes_is_placed() -> None:
    # Only a diagonal fulfils this: the last resort of the search.
    relations = tuple(
        Relation(i, predicate, j)
        for i, j in combinations(range(8), 2)
        for predicate in ("left of", "below")
    )
    description = Description("a diagonal", things(8), relations)
    layout = place(description, aspect=2.0)
    check_placement(description, layout)
    assert not layout.violated


def test_hundreds_of_objects_are_placed() -> None:
    relations = tuple(Relation(i, PREDICATES[i % 5], i + 1) for i in range(0, 60, 2))
    description = Description("a crowd", things(300), relations)
    check_placement(description, place(description))


def test_seed_varies_the_free_choices_only() -> None:
    description = parse("a red circle left of a blue square, with a ring and a star")
    layouts = [place(description, seed=seed) for seed in range(8)]
    assert len({layout.objects for layout in layouts}) == 8
    assert place(description, seed=3) == layouts[3]
    for layout in layouts:
        check_placement(description, layout)


def test_seed_varies_the_arrangement_of_unrelated_objects() -> None:
    found = set()
    for seed in range(12):
        (ax, ay), (bx, by) = (
            centre(o.box) for o in place(parse("a dog, a cat"), seed=seed).objects
        )
        found.add((abs(ax - bx) > abs(ay - by), ax < bx, ay < by))
    assert {side_by_side for side_by_side, _, _ in found} == {True, False}
    assert len(found) >= 4


def test_contradiction_is_named_and_the_rest_holds() -> None:
    layout = place(parse("A red circle left of a blue square and a star above a ring. "
                         "The square is left of the circle."))  # fmt: skip
    assert layout.violated == ((1, "left of", 0),)
    assert [layout.say(relation) for relation in layout.violated] == [
        "a blue square left of a red circle"
    ]
    assert fulfils(layout.objects[2].box, "above", layout.objects[3].box)


def test_cycle_violates_its_last_relation() -> None:
    relations = tuple(Relation(i, "above", (i + 1) % 4) for i in range(4))
    layout = place(Description("a cycle", things(4), relations))
    assert layout.violated == ((3, "above", 0),)


def test_nothing_to_place_gives_an_empty_layout() -> None:
    layout = place(parse("an empty white scene"), aspect=2.0)
    assert layout == Layout("an empty white scene", (), (), 2.0)


@pytest.mark.parametrize("aspect", [0.0, -1.0, math.nan, math.inf, 1e-9, 65.0])
def test_placement_refuses_aspect(aspect: float) -> None:
    with pytest.raises(ValueError, match=r"aspect must lie in \[1/64, 64\], got"):
        place(parse("a dog"), aspect=aspect)


def test_placement_needs_no_description_of_a_parser() -> None:
    description = parse("a dog left of a cat")
    other = SimpleNamespace(
        text=description.text,
        objects=[SimpleNamespace(phrase=o.phrase, noun=o.noun) for o in description.objects],
        statements=((0, "left of", 1),),
    )
    assert place(other, seed=3) == place(description, seed=3)


def test_placement_refuses_a_relation_of_an_absent_object() -> None:
    description = Description("a dog", things(1), (Relation(0, "above", 1),))
    with pytest.raises(ValueError, match=r"relations\[0\] must name two of the 1 objects"):
        place(description)
