"""Layouts: what is refused, what is violated, JSON, files."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stal.layout import Ellipse, Layout, Painted, PlacedObject, Polygon, place
from stal.prompts import noun_of, parse


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


@given(st.from_type(Layout))
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


def test_json_by_hand_may_say_no_more_than_phrases_and_boxes() -> None:
    text = '{"objects": [{"phrase": "a red dog", "box": [0, 0, 0.5, 1]}]}'
    layout = Layout.from_json(text, noun_of=noun_of)
    assert layout == Layout("", (PlacedObject("a red dog", "dog", (0.0, 0.0, 0.5, 1.0)),))
    assert Layout.from_json(text).objects[0].noun == "a red dog"
    shaped = text.replace("1]", '1], "shape": "ellipse"')
    assert Layout.from_json(shaped).objects[0].outline == Ellipse((0.0, 0.0, 0.5, 1.0))


BAD_JSON = {
    "empty": ("", r"layout must be valid JSON, got .* in line 1, column 1"),
    "truncated": (document()[:-20], r"layout must be valid JSON, got .* in line 1, column \d+"),
    "deep": ("[" * 100_000, r"layout must be valid JSON"),
    "no object": ("[]", r"layout must be an object, got \[\]"),
    "null": ("null", r"layout must be an object, got None"),
    "no objects": (document(objects=None), r'layout must have "objects", got "version"'),
    "version": (document(version=3), r"version must be 1 or 2, got 3"),
    "version, text": (document(version="1"), r"version must be 1 or 2, got '1'"),
    "version, true": (document(version=True), r"version must be 1 or 2, got True"),
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


def test_import_needs_neither_torch_nor_pil() -> None:
    code = "import sys, stal.layout; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbers_of_numpy_and_torch_make_an_equal_layout() -> None:
    plain = Layout(
        "two dogs",
        (
            PlacedObject("a dog", "dog", (0.0, 0.0, 0.5, 1.0), 0.5),
            PlacedObject("a dog", "dog", (0.5, 0.0, 1.0, 1.0), 1.0, Ellipse((0.5, 0.0, 1.0, 1.0))),
            PlacedObject("a cat", "cat", (0.0, 0.0, 1.0, 1.0), 1.0, Painted(1, 2, (1, 1))),
            PlacedObject(
                "a fox",
                "fox",
                (0.0, 0.0, 1.0, 1.0),
                1.0,
                Polygon(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))),
            ),
        ),
        ((0, "left of", 1),),
        2.0,
    )
    ends = torch.tensor([0.5, 0, 1, 1])
    found = Layout(
        "two dogs",
        [
            PlacedObject("a dog", "dog", np.float32([0, 0, 0.5, 1]), np.float16(0.5)),  # type: ignore[arg-type]
            PlacedObject("a dog", "dog", ends, np.array(1), Ellipse(ends)),  # type: ignore[arg-type]
            PlacedObject(
                "a cat",
                "cat",
                [np.int64(0), 0, np.uint8(1), torch.tensor(1)],  # type: ignore[arg-type]
                1,
                Painted(np.int32(1), torch.tensor(2), np.array([1, 1])),  # type: ignore[arg-type]
            ),
            PlacedObject("a fox", "fox", (0, 0, 1, 1), 1, Polygon(np.eye(3)[[2, 0, 1], :2])),  # type: ignore[arg-type]
        ],  # type: ignore[arg-type]
        [[np.int64(0), "left of", torch.tensor(1)]],  # type: ignore[arg-type]
        np.float32(2),  # type: ignore[arg-type]
    )
    assert found == plain
    assert found.to_json() == plain.to_json()
    assert Layout.from_json(found.to_json()) == plain


DOG = PlacedObject("a dog", "dog", (0.0, 0.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlacedObject("a", "a", 5), r"box must be \(x0, y0, x1, y1\), got 5"),
        (lambda: PlacedObject("a", "a", (0, 0, True, 1)), "box must be a number, got True"),
        (lambda: PlacedObject("a", "a", ("0", 0, 1, 1)), "box must be a number, got '0'"),
        (lambda: Layout("", [PlacedObject("a", "a", (0, 1))]), r"objects\[0\].box must be \(x0"),
        (lambda: Layout("", [(0, 0, 1, 1)]), r"objects\[0\] must be a PlacedObject, got \(0"),
        (lambda: Layout("", [DOG], [(0, "left of")]), "relations must be of"),
        (lambda: Layout("", [DOG], [0]), "relations must be of"),
        (lambda: Layout("", [DOG], [(True, "left of", 0)]), r"relations\[0\] must name two"),
        (lambda: Layout("", [DOG], [(0, ["above"], 0)]), r"relations\[0\] must have one of"),
        (lambda: Layout("", [DOG], aspect=np.nan), "aspect must be positive and finite"),
        (lambda: Layout("", [DOG], aspect="1"), "aspect must be a number, got '1'"),
        (lambda: Layout(5), "prompt must be a string, got 5"),
        (lambda: Layout("", [DOG] * 1001), "objects must be at most 1000, got 1001"),
        (lambda: Layout("", [DOG], [(0, "above", 0)] * 10001), "relations must be at most 10000"),
        (
            lambda: Layout("", [PlacedObject("a" * 5001, "a", DOG.box)]),
            r"objects\[0\].phrase must have at most 5000 characters, got 5001",
        ),
        (lambda: Painted(2, 2, (0, 5)), "runs must be lengths that add up to 2 x 2 cells, got 5"),
        (lambda: Painted(2, 2.0, (4,)), "width must be an integer, got 2.0"),
        (lambda: Painted(20000, 20000, (0, 4 * 10**8)), "height and width must be at most 16384"),
        (lambda: Painted(8192, 8192, (0, 1 << 26)), "and at most 33554432 cells together"),
        (lambda: Painted(1024, 1024, (2,) * (1 << 19) + (0,)), "runs must be at most 524288"),
        (lambda: Ellipse((0, 0, 0, 1)), "box must have x0 < x1"),
    ],
)
def test_what_makes_no_layout_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('"box": [0, 0, 1, 1], "box": [0, 0, 1, 1]', "two of the key 'box' in one object"),
        (f'"box": [0, 0, 1, {"9" * 5000}]', "got an integer of 5000 digits"),
        ('"box": [0, 0, 1, 1e400]', r"objects\[0\].box must lie inside"),
        ('"box": [0, 0, 1, Infinity]', r"objects\[0\].box must lie inside"),
        ('"box": [0, 0, 1, 1], "shape": [[0, 0], [1, 0], [0, NaN]]', "must lie inside"),
        (
            f'"box": [0, 0, 1, 1], "shape": {[[0, 0]] * 10001}',
            r"objects\[0\].shape must have at most 10000 corners, got 10001",
        ),
        (
            '"box": [0, 0, 1, 1],'
            ' "shape": {"height": 20000, "width": 20000, "runs": [0, 400000000]}',
            r"objects\[0\].shape.height and width must be at most 16384",
        ),
        (
            f'"box": [0, 0, 1, 1], "shape": {{"height": {"9" * 999}, "width": 1, "runs": [0, 1]}}',
            r"objects\[0\].shape.height and width must be at most",
        ),
    ],
)
def test_json_that_asks_for_too_much_is_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Layout.from_json(f'{{"objects": [{{"phrase": "a dog", {change}}}]}}')
    assert len(str(caught.value)) < 300


def test_corners_are_counted_over_all_objects() -> None:
    around = [k / 6000 * math.tau for k in range(6000)]
    ring = Polygon(tuple((0.5 + 0.4 * math.cos(a), 0.5 + 0.4 * math.sin(a)) for a in around))
    placed = PlacedObject("a dog", "dog", (0.0, 0.0, 1.0, 1.0), outline=ring)
    assert len(Layout("", (placed,)).objects) == 1
    with pytest.raises(ValueError, match="corners of all shapes must be at most 10000, got 12000"):
        Layout("", (placed, placed))


def test_cells_are_counted_over_all_objects() -> None:
    painted = Painted(4096, 8192, (0, 1 << 25))
    placed = PlacedObject("a dog", "dog", (0.0, 0.0, 1.0, 1.0), outline=painted)
    assert len(Layout("", (placed,) * 32).objects) == 32
    with pytest.raises(ValueError, match="cells of all shapes must be at most 1073741824, got"):
        Layout("", (placed,) * 33)
