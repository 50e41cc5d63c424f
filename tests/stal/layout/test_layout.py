"""Layouts: placement, JSON, masks, drawing."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stal.layout import Box, Layout, PlacedObject, draw, masks, place
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


def test_moved_box_violates_its_relation() -> None:
    layout = place(parse("a dog left of a cat"))
    assert not layout.violated
    swapped = Layout(
        layout.prompt,
        (
            PlacedObject("a dog", "dog", layout.objects[1].box),
            PlacedObject("a cat", "cat", layout.objects[0].box),
        ),
        layout.relations,
        layout.aspect,
    )
    assert swapped.violated == ((0, "left of", 1),)


def test_nothing_to_place_gives_an_empty_layout() -> None:
    layout = place(parse("an empty white scene"), aspect=2.0)
    assert layout == Layout("an empty white scene", (), (), 2.0)


@pytest.mark.parametrize("aspect", [0.0, -1.0, math.nan, math.inf, 1e-9, 65.0])
def test_placement_refuses_aspect(aspect: float) -> None:
    with pytest.raises(ValueError, match=r"aspect must lie in \[1/64, 64\], got"):
        place(parse("a dog"), aspect=aspect)


def test_placement_refuses_a_relation_of_an_absent_object() -> None:
    description = Description("a dog", things(1), (Relation(0, "above", 1),))
    with pytest.raises(ValueError, match=r"relations\[0\] must name two of the 1 objects"):
        place(description)


# JSON


def boxes_() -> st.SearchStrategy[Box]:
    edges = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda e: e[0] != e[1])
    return st.builds(
        lambda x, y: (min(x), min(y), max(x), max(y)),
        edges,
        edges,
    )


@st.composite
def layouts(draw_: st.DrawFn) -> Layout:
    text = st.text(st.characters(), max_size=12)  # lone surrogates too
    placed = st.builds(
        PlacedObject, text, text, boxes_(), st.floats(allow_nan=False, allow_infinity=False)
    )
    objects = draw_(st.lists(placed, max_size=5))
    relations: list[tuple[int, str, int]] = []
    if objects:
        index = st.integers(0, len(objects) - 1)
        relations = draw_(
            st.lists(st.tuples(index, st.sampled_from(PREDICATES), index), max_size=4)
        )
    aspect = draw_(st.floats(1e-3, 1e3))
    return Layout(draw_(text), tuple(objects), tuple(relations), aspect)


@given(layouts())
def test_json_round_trip_is_exact(layout: Layout) -> None:
    text = layout.to_json()
    assert Layout.from_json(text) == layout
    assert text.encode("utf-8").decode("utf-8") == text


def test_json_has_the_documented_keys() -> None:
    layout = Layout(
        "a dog left of a cat",
        (
            PlacedObject("a dog", "dog", (0.0, 0.25, 0.5, 0.75)),
            PlacedObject("a cat", "cat", (0.5, 0.25, 1.0, 0.75), 0.5),
        ),
        ((0, "left of", 1),),
        1.5,
    )
    assert json.loads(layout.to_json()) == {
        "version": 1,
        "prompt": "a dog left of a cat",
        "objects": [
            {"phrase": "a dog", "noun": "dog", "box": [0.0, 0.25, 0.5, 0.75], "score": 1.0},
            {"phrase": "a cat", "noun": "cat", "box": [0.5, 0.25, 1.0, 0.75], "score": 0.5},
        ],
        "relations": [[0, "left of", 1]],
        "aspect": 1.5,
    }


def test_lists_and_integers_make_an_equal_layout() -> None:
    loose = Layout(
        "a dog",
        [PlacedObject("a dog", "dog", [0, 0, 1, 1])],  # type: ignore[arg-type]
        [[0, "next to", 0]],  # type: ignore[arg-type]
    )
    strict = Layout(
        "a dog", (PlacedObject("a dog", "dog", (0.0, 0.0, 1.0, 1.0)),), ((0, "next to", 0),)
    )
    assert loose == strict
    assert hash(loose) == hash(strict)


def document(**changes: object) -> str:
    base: dict[str, object] = {
        "version": 1,
        "prompt": "a dog",
        "objects": [{"phrase": "a dog", "noun": "dog", "box": [0.1, 0.2, 0.3, 0.4], "score": 1}],
        "relations": [],
        "aspect": 1,
    }
    base.update(changes)
    return json.dumps({key: value for key, value in base.items() if value is not None})


def with_object(**changes: object) -> str:
    return document(
        objects=[{"phrase": "a dog", "noun": "dog", "box": [0.1, 0.2, 0.3, 0.4], **changes}]
    )


def test_json_score_may_be_missing() -> None:
    assert Layout.from_json(with_object()).objects[0].score == 1.0


BAD_JSON = {
    "empty": ("", r"layout must be valid JSON, got .* in line 1, column 1"),
    "truncated": (document()[:-20], r"layout must be valid JSON, got .* in line 1, column \d+"),
    "deep": ("[" * 100_000, r"layout must be valid JSON"),
    "no object": ("[]", r"layout must be an object, got \[\]"),
    "null": ("null", r"layout must be an object, got None"),
    "no version": (document(version=None), r'layout must have "version", got "prompt"'),
    "version": (document(version=3), r"version must be 1 or 2, got 3"),
    "version, text": (document(version="1"), r"version must be 1 or 2, got '1'"),
    "version, true": (document(version=True), r"version must be 1 or 2, got True"),
    "no prompt": (document(prompt=None), r'layout must have "prompt"'),
    "prompt": (document(prompt=3), r"prompt must be a string, got 3"),
    "unknown key": (document(boxes=[]), r'layout must not have "boxes", only "version", "prompt"'),
    "aspect 0": (document(aspect=0), r"aspect must be positive and finite, got 0"),
    "aspect NaN": (document(aspect=math.nan), r"aspect must be positive and finite, got nan"),
    "aspect text": (document(aspect="16:9"), r"aspect must be a number, got '16:9'"),
    "objects": (document(objects={}), r"objects must be a list, got \{\}"),
    "object": (document(objects=["a dog"]), r"objects\[0\] must be an object, got 'a dog'"),
    "no box": (document(objects=[{"phrase": "a", "noun": "a"}]), r'objects\[0\] must have "box"'),
    "phrase": (with_object(phrase=1), r"objects\[0\]\.phrase must be a string, got 1"),
    "typo": (
        with_object(scores=1),
        r'objects\[0\] must not have "scores", only "phrase", "noun", "box", "score"',
    ),
    "box outside": (
        with_object(box=[0.1, 0.2, 1.5, 0.4]),
        r"objects\[0\]\.box must lie inside \[0, 1\], got \[0\.1, 0\.2, 1\.5, 0\.4\]",
    ),
    "box negative": (with_object(box=[-0.1, 0, 1, 1]), r"objects\[0\]\.box must lie inside"),
    "box NaN": (with_object(box=[0.1, math.nan, 0.3, 0.4]), r"objects\[0\]\.box must lie inside"),
    "box infinite": (with_object(box=[0, 0, math.inf, 1]), r"objects\[0\]\.box must lie inside"),
    "box huge": (with_object(box=[0, 0, 10**400, 1]), r"objects\[0\]\.box must be a finite number"),
    "box empty": (
        with_object(box=[0.3, 0.2, 0.3, 0.4]),
        r"objects\[0\]\.box must have x0 < x1 and y0 < y1, got",
    ),
    "box reversed": (with_object(box=[0.3, 0.4, 0.1, 0.2]), r"must have x0 < x1 and y0 < y1"),
    "box short": (with_object(box=[0, 1]), r"objects\[0\]\.box must be \[x0, y0, x1, y1\]"),
    "box text": (with_object(box="0 0 1 1"), r"objects\[0\]\.box must be a list"),
    "box of text": (
        with_object(box=[0, 0, "1", 1]),
        r"objects\[0\]\.box must be a number, got '1'",
    ),
    "box of truth": (with_object(box=[0, 0, True, 1]), r"box must be a number, got True"),
    "score": (with_object(score="high"), r"objects\[0\]\.score must be a number, got 'high'"),
    "score NaN": (with_object(score=math.nan), r"objects\[0\]\.score must be finite, got nan"),
    "relation": (document(relations=["left of"]), r"relations\[0\] must be a list"),
    "relation short": (document(relations=[[0, 0]]), r"relations\[0\] must be \[subject, "),
    "relation index": (
        document(relations=[[0, "left of", 1]]),
        r"relations\[0\] must name two of the 1 objects by index from 0, got 1",
    ),
    "relation negative": (document(relations=[[-1, "above", 0]]), r"relations\[0\] .* got -1"),
    "relation half": (document(relations=[[0.5, "above", 0]]), r"must be an integer, got 0\.5"),
    "relation word": (
        document(relations=[[0, "astride", 0]]),
        r"relations\[0\] must have one of the predicates left of, .* got 'astride'",
    ),
    "relation number": (document(relations=[[0, 7, 0]]), r"relations\[0\] must be a string, got 7"),
}


@pytest.mark.parametrize(("text", "message"), list(BAD_JSON.values()), ids=list(BAD_JSON))
def test_bad_json_names_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout.from_json(text)


@given(st.integers(0, 400))
def test_truncated_json_is_refused(length: int) -> None:
    text = place(parse("a dog left of a cat")).to_json().rstrip()
    if length < len(text):
        with pytest.raises(ValueError, match=r"layout must be valid JSON"):
            Layout.from_json(text[:length])


def test_save_and_load_give_the_layout_back(tmp_path: Path) -> None:
    layout = place(parse("un café à gauche du 猫"), aspect=0.5)
    path = tmp_path / "layout.json"
    path.write_text("old")
    layout.save(path)
    assert Layout.load(path) == layout
    assert Layout.load(str(path)) == layout
    assert "café" in path.read_text(encoding="utf-8")
    assert os.listdir(tmp_path) == ["layout.json"]


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "layout.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        place(parse("a dog")).save(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["layout.json"]


def test_save_into_an_absent_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        place(parse("a dog")).save(tmp_path / "absent" / "layout.json")


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(document(version=3))
    with pytest.raises(ValueError, match=r"broken\.json: version must be 1 or 2, got 3"):
        Layout.load(path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"broken\.json: "):
        Layout.load(path)
    with pytest.raises(FileNotFoundError):
        Layout.load(tmp_path / "absent.json")


# Masks


def one(box: Box) -> Layout:
    return Layout("a dog", (PlacedObject("a dog", "dog", box),))


@given(layouts(), st.integers(1, 20), st.integers(1, 20))
def test_masks_conserve_area(layout: Layout, height: int, width: int) -> None:
    found = masks(layout, height, width)
    assert found.shape == (len(layout.objects), height, width)
    assert found.dtype == torch.float32
    assert ((found >= 0) & (found <= 1)).all()
    for mask, placed in zip(found, layout.objects, strict=True):
        x0, y0, x1, y1 = placed.box
        area = (x1 - x0) * (y1 - y0) * height * width
        assert mask.double().sum().item() == pytest.approx(area, rel=1e-6, abs=1e-12)
        assert mask.max() > 0


def test_masks_are_the_share_of_each_cell() -> None:
    found = masks(one((0.25, 0.125, 0.875, 0.5)), 4, 4)[0]
    rows = torch.tensor([0.5, 1.0, 0.0, 0.0])
    columns = torch.tensor([0.0, 1.0, 1.0, 0.5])
    assert torch.equal(found, rows[:, None] * columns)


def test_masks_of_the_whole_canvas_are_one_at_any_size() -> None:
    for size in ((1, 1), (3, 7), (64, 48)):
        assert torch.equal(masks(one((0.0, 0.0, 1.0, 1.0)), *size), torch.ones(1, *size))


@pytest.mark.parametrize(
    "box",
    [
        (0.5, 0.5, math.nextafter(0.5, 1), math.nextafter(0.5, 1)),
        (math.nextafter(1, 0), 0.3, 1.0, 0.3 + 1e-12),
        (0.0, 0.0, 5e-324, 5e-324),
        (0.1, 0.1, 0.1 + 1e-9, 0.9),
    ],
    ids=["middle", "edge", "denormal", "sliver"],
)
def test_masks_never_vanish(box: Box) -> None:
    for size in (1, 8, 64):
        found = masks(one(box), size, size)
        assert (found > 0).any()
        row, column = divmod(int(found.argmax()), size)
        assert row <= box[3] * size <= row + size
        assert column / size <= box[2]
        assert (column + 1) / size >= box[0]


def test_coarser_masks_are_means_of_finer_ones() -> None:
    layout = place(parse("a dog left of a cat and a bird"), aspect=1.5, seed=1)
    fine = masks(layout, 48, 32)
    coarse = fine.reshape(-1, 12, 4, 8, 4).mean((2, 4))
    torch.testing.assert_close(masks(layout, 12, 8), coarse)


def test_masks_of_no_object_are_empty() -> None:
    assert masks(Layout("nothing"), 8, 4).shape == (0, 8, 4)


@pytest.mark.parametrize(("height", "width", "name"), [(0, 4, "height"), (4, -1, "width")])
def test_masks_refuse_a_grid_without_cells(height: int, width: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got"):
        masks(one((0.0, 0.0, 1.0, 1.0)), height, width)


# Drawing


def test_drawing_leaves_the_picture_alone_and_marks_the_boxes() -> None:
    image = Image.new("RGB", (512, 512), "white")
    before = image.tobytes()
    found = draw(one((0.25, 0.25, 0.75, 0.75)), image)
    assert image.tobytes() == before
    assert (found.size, found.mode) == ((512, 512), "RGB")
    white = (255, 255, 255)
    assert found.getpixel((129, 380)) != white  # left edge
    assert found.getpixel((382, 300)) != white  # right edge
    assert found.getpixel((300, 382)) != white  # lower edge
    assert found.getpixel((300, 300)) == white
    assert found.getpixel((40, 40)) == white


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (256, 256)),
        ((100, 50), (600, 300)),
        ((1024, 512), (1024, 512)),
        ((7, 5), (364, 260)),
    ],
)
def test_drawing_enlarges_small_pictures(size: tuple[int, int], expected: tuple[int, int]) -> None:
    layout = place(parse("a red circle left of a blue square"), aspect=size[0] / size[1])
    assert draw(layout, Image.new("RGB", size)).size == expected
    assert draw(layout, Image.new("RGB", size), min_side=1).size == size


def test_drawing_gives_each_object_its_own_colour_and_label() -> None:
    layout = place(parse("a dog, a cat, a bird and a horse"), seed=2)
    image = Image.new("RGB", (512, 512), (128, 128, 128))
    pictures = {draw(Layout(layout.prompt, layout.objects[:n]), image).tobytes() for n in range(5)}
    assert len(pictures) == 5
    colours = draw(layout, image).getcolors(maxcolors=1 << 20)
    assert colours is not None
    large = {colour for count, colour in colours if count > 200}
    assert len(large - {(128, 128, 128), (0, 0, 0), (255, 255, 255)}) >= 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_drawing_takes_any_mode(mode: str) -> None:
    assert draw(one((0.1, 0.1, 0.9, 0.9)), Image.new(mode, (64, 64))).mode == "RGB"


@settings(max_examples=25, deadline=None)
@given(layouts(), st.integers(1, 80), st.integers(1, 80), st.sampled_from([1, 100]))
def test_drawing_takes_any_layout(layout: Layout, width: int, height: int, side: int) -> None:
    found = draw(layout, Image.new("RGB", (width, height)), min_side=side)
    assert min(found.size) >= side
    assert found.width * height == found.height * width


def test_drawing_shortens_a_long_phrase() -> None:
    layout = Layout("text", (PlacedObject("word " * 500, "word", (0.9, 0.9, 1.0, 1.0)),))
    found = draw(layout, Image.new("RGB", (256, 256), "white"))
    assert found.getpixel((255, 10)) == (255, 255, 255)
    assert found.getpixel((20, 231)) != (255, 255, 255)


def test_import_needs_neither_torch_nor_pil() -> None:
    code = "import sys, stal.layout; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
