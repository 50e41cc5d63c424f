"""Ids and numbers in other people's files: read as they come, or named with their place."""

import json

import pytest

from stal.checked_json import integer
from stal.evaluation.labelled import read_counting, read_spatial
from stal.evaluation.prompt_files import read_cases
from stal.training.layout_data import read_coco, read_nsr1k

SPATIAL = {
    "image_id": 7,
    "prompt": "a dog to the left of a car",
    "obj1": ["dog", [0.1, 0.4, 0.2, 0.2]],
    "obj2": ["car", [0.5, 0.3, 0.4, 0.4]],
    "relation": "left",
    "type": "template",
}
COUNTING = {"prompt": "two dogs", "num_object": [["dog", 2]], "sub-type": "single"}


@pytest.mark.parametrize("value", [7, "7", " 7 ", 7.0])
def test_integers_may_be_written_in_several_ways(value):
    assert integer(value, "id") == 7


@pytest.mark.parametrize("value", ["a", "", None, True, 7.5, [7], "7.5", float("inf"), "9" * 5000])
def test_what_is_no_integer_is_named(value):
    with pytest.raises(ValueError, match="id must be an integer, got"):
        integer(value, "id")


@pytest.mark.parametrize(
    ("read", "item", "message"),
    [
        (
            read_spatial,
            {**SPATIAL, "image_id": "a7"},
            "item 0: image_id must be an integer, got 'a",
        ),
        (read_spatial, {**SPATIAL, "obj1": []}, "item 0: obj1 and obj2 must be lists"),
        (read_spatial, {**SPATIAL, "relation": "of"}, "item 0: relation must be a known one"),
        (read_spatial, {**SPATIAL, "prompt": 5}, "item 0: prompt must be a text"),
        (read_nsr1k, {**SPATIAL, "image_id": "a7"}, "item 0: image_id must be an integer"),
        (read_nsr1k, {**SPATIAL, "image_id": None}, "item 0: image_id must be an integer"),
        (read_counting, {**COUNTING, "num_object": [["dog", "two"]]}, "num_object must be an int"),
        (read_counting, {**COUNTING, "num_object": ["dog"]}, "num_object must be pairs"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_odd_items_are_named(tmp_path, read, item, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([item]))
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}"):
        read(path)


def test_ids_written_as_texts_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{**SPATIAL, "image_id": "7"}]))
    assert read_spatial(path)[0].image == read_nsr1k(path)[0].image == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2]}, r"annotation 0 must have a bbox \[x, y, w, h\], got \[1, 2\]"),
        ({"bbox": None}, "annotation 0 must have a bbox"),
        ({"image_id": "b"}, "must be in COCO's format, got KeyError"),
    ],
    ids=str,
)
def test_odd_annotations_are_named(tmp_path, change, message):
    thing = {"image_id": 7, "category_id": 1, "bbox": [20, 40, 40, 20], **change}
    data = {
        "images": [{"id": 7, "width": 200, "height": 100}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [thing],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        read_coco(path, None)
    data["annotations"] = [{**thing, "image_id": 7, "bbox": [20, 40, 40, 20]}]
    for image, expected in (
        ({"id": "x", "width": 2, "height": 1}, "id of an image must be an integer, got 'x'"),
        ({"id": 7, "width": 0, "height": 1}, "image 7 must have a width and a height"),
    ):
        path.write_text(json.dumps({**data, "images": [image]}))
        with pytest.raises(ValueError, match=expected):
            read_coco(path, None)


def test_captions_may_have_any_id(tmp_path):
    path = tmp_path / "a.json"
    ids = [1, 1, "1", None, [1], {"a": 1}]
    items = [{"image_id": i, "caption": f"a cat {n}"} for n, i in enumerate(ids)]
    path.write_text(json.dumps({"annotations": items}))
    assert len(read_cases(str(path))) == 5


def test_too_many_prompts_of_the_shapes_world_are_refused():
    with pytest.raises(ValueError, match="prompts must be like shapes:100"):
        read_cases("shapes:1000000000")
