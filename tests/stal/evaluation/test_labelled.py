"""Labelled sets of prompts: what is read, and what is refused."""

import json
from pathlib import Path

import pytest

from stal.evaluation.labelled import Labelled, read_captions, read_gpt, read_spatial


def test_gpt_blocks_are_read(gpt: Path) -> None:
    assert read_gpt(gpt) == [
        Labelled(
            "The silver bed is left of the couch.",
            ("silver bed", "couch"),
            (("silver bed", "left of", "couch"),),
            kind="2 objects",
        ),
        Labelled(
            "A dog is above a cat.",
            ("dog", "cat", "zebra"),
            (("dog", "above", "cat"), ("cat", "right of", "dog")),
            kind="3 objects",
        ),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Objects: a, b\nSentence: a b\n", "blocks of Objects, Relation and Sentence"),
        ("Objects: a\nRelation: a astride b\nSentence: a\n", "got 'a astride b'"),
    ],
)
def test_other_blocks_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gpt.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_gpt(path)


@pytest.mark.parametrize("text", ["[1]", "{}", '[{"prompt": "a"}]', "[", "null"])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nsr1k.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"nsr1k.json must be"):
        read_spatial(path)


def test_captions_of_other_forms_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text(
        "The hot dog is at the left side of the bed.\nA day out\na cat on side of a pig\n"
    )
    assert [case.relations for case in read_captions(path)] == [
        (("hot dog", "left of", "bed"),),
        (("cat", "next to", "pig"),),
    ]


def test_captions_end_at_line_ends_alone(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a red\u2028cat left of a big\x0cdog\r\na cup above a bed\n", encoding="utf-8")
    names = [each.objects for each in read_captions(path)]
    assert names == [("red\u2028cat", "big\x0cdog"), ("cup", "bed")]


@pytest.mark.parametrize(
    "change", [{"image_id": "x"}, {"obj1": 3}, {"obj2": []}, {"relation": []}, {"prompt": 3}]
)
def test_spatial_items_of_other_kinds_are_refused(tmp_path: Path, change: dict) -> None:
    item = {"prompt": "", "obj1": ["a"], "obj2": ["b"], "relation": "left", "type": ""}
    path = tmp_path / "spatial.json"
    path.write_text(json.dumps([{**item, **change}]))
    with pytest.raises(ValueError, match="item 0"):
        read_spatial(path)
