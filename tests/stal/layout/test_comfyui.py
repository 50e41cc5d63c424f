"""ComfyUI's bounding boxes and areas: what is read, and how failures are told."""

import json
import re

import numpy as np
import pytest

from stal.layout import formats
from stal.prompts import article, noun_of

ENGLISH = {"noun_of": noun_of, "article": article}

# As the widget of CreateBoundingBoxes keeps them, comfy_extras/nodes_bounding_boxes.py, and
# Comfy-Org/ComfyUI pull request 14537: list[{x, y, width, height, metadata: {type, text, desc,
# palette}}].
EDITOR = [
    {
        "x": 64,
        "y": 128,
        "width": 64,
        "height": 64,
        "metadata": {"type": "obj", "text": "", "desc": "a red cat", "palette": ["#ff0000"]},
    },
    {
        "x": 256,
        "y": 0,
        "width": 256,
        "height": 128,
        "metadata": {"type": "text", "text": "OPEN", "desc": "neon letters", "palette": []},
    },
]
PLACED = [
    ("a red cat", (0.125, 0.5, 0.25, 0.75)),
    ('the text "OPEN", neon letters', (0.5, 0.0, 1.0, 0.5)),
]
# As nodes that detect things give them, a list an image, comfy_extras/nodes_sdpose.py (DrawBBoxes).
DETECTED = [[{"x": 64.0, "y": 128.0, "width": 64.0, "height": 64.0, "label": "cat", "score": 0.9}]]
CAT = [("cat", (0.125, 0.5, 0.25, 0.75))]
CANVAS = (512, 256)


@pytest.fixture
def read(tmp_path):
    """Of a file, and of the same as a value and as a text, which must agree."""

    def read(data, **options):
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        layout = formats.read_layout(path, **ENGLISH, **options)
        for value in (data, json.dumps(data)):
            python = {"prompt": "", "aspect": 1.0, **ENGLISH, **options}
            assert formats.as_layout(value, **python) == layout
        return layout

    return read


def placed(layout):
    return [(o.phrase, o.box) for o in layout.objects]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (EDITOR, PLACED),
        ([EDITOR], PLACED),
        ([EDITOR, EDITOR], PLACED),
        ([[], EDITOR], PLACED),
        (EDITOR[0], PLACED[:1]),
        (DETECTED, CAT),
        (DETECTED[0], CAT),
        ([{"x": 64, "y": 128, "width": 64, "height": 64, "label": "cat"}], CAT),
        ([{"text": "cat", "area": [8, 8, 16, 8]}], CAT),
    ],
    ids=["boxes", "frame", "same frames", "empty frame", "box", "found", "flat", "label", "cells"],
)
def test_boxes_lie_in_the_canvas_that_is_given(read, data, found):
    layout = read(data, canvas=CANVAS)
    assert placed(layout) == found
    assert (layout.prompt, layout.aspect) == ("", 2.0)
    with pytest.raises(ValueError, match=r"must lie in a canvas that is named, as it is in pixels"):
        read(data)


@pytest.mark.parametrize(
    "data",
    [
        {"width": 512, "height": 256, "editor_state": EDITOR},
        {"dims": [512, 256], "input_bboxes": EDITOR},
        {"canvas_width": 512, "canvas_height": 256, "bboxes": [EDITOR]},
        {"canvas": {"width": 512, "height": 256}, "boxes": EDITOR},
        {"canvas": [512, 256], "bboxes": EDITOR},
        {"dims": [512, 256], "editor_state": [], "input_bboxes": EDITOR},
    ],
    ids=["node", "page", "pose", "canvas", "sides", "not drawn"],
)
def test_boxes_lie_in_the_canvas_that_their_data_name(read, data):
    for options in ({}, {"canvas": CANVAS}):
        layout = read(data, **options)
        assert placed(layout) == PLACED
        assert layout.aspect == 2.0
    with pytest.raises(
        ValueError, match="canvas must be the one that is named, 512 x 256, got 64 x 64"
    ):
        read(data, canvas=(64, 64))


def test_an_area_in_percent_needs_no_canvas(read):
    # As ConditioningSetAreaPercentage of nodes.py has it: ("percentage", height, width, y, x).
    layout = read([{"text": "a cat", "area": ["percentage", 0.25, 0.125, 0.5, 0.87]}])
    assert placed(layout) == [("a cat", (0.87, 0.5, 0.995, 0.75))]
    layout = read([{"text": "a cat", "area": ["percentage", 0.1, 0.9, 0.2, 0.1]}])
    assert layout.objects[0].box[2] == 1.0


def test_a_box_of_a_node_goes_with_a_phrase():
    box = {"x": 64, "y": 128, "width": np.int64(64), "height": 64}
    for value in ([("a cat", box)], {"a cat": box}, [{"phrase": "a cat", "box": box}]):
        layout = formats.as_layout(value, prompt="p", aspect=1.0, canvas=CANVAS, **ENGLISH)
        assert placed(layout) == [("a cat", (0.125, 0.5, 0.25, 0.75))]
        assert (layout.prompt, layout.aspect) == ("p", 2.0)
        with pytest.raises(ValueError, match=r"layout\[0\] must lie in a canvas that is named"):
            formats.as_layout(value, prompt="p", aspect=1.0, **ENGLISH)


def test_a_language_models_boxes_have_their_usual_canvas(tmp_path):
    text = json.dumps([{"name": "a cat", "x": 64, "y": 128, "width": 64, "height": 64}])
    (tmp_path / "answer.txt").write_text(text)
    layout = formats.read_layout(tmp_path / "answer.txt", **ENGLISH)
    assert placed(layout) == [("a cat", (0.125, 0.25, 0.25, 0.375))]


BOX = {"x": 64, "y": 128, "width": 64, "height": 64, "label": "cat", "score": 0.9}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{**BOX, "x": 600}], "boxes[0] must lie in the canvas of 512 x 256, got [600.0, 128.0,"),
        ([BOX, {**BOX, "width": 0}], "boxes[1] must have a positive width and height, got 0 and"),
        ([{**BOX, "width": -64}], "boxes[0] must have a positive width and height"),
        ([{**BOX, "y": "128"}], "boxes[0] must be a number, got '128'"),
        ([{**BOX, "y": None}], "boxes[0] must be a number, got None"),
        ([{**BOX, "y": True}], "boxes[0] must be a number, got True"),
        ([{**BOX, "y": float("nan")}], "boxes[0] must be of finite numbers"),
        ([{**BOX, "y": 1e400}], "boxes[0] must be of finite numbers"),
        ([{**BOX, "y": 10**400}], "boxes[0] must be a finite number"),
        ([BOX, {"x": 1, "score": 1}], 'boxes[1] must say what is in it, as "label", "text"'),
        ([BOX, {"x": 1, "label": "dog"}], 'boxes[1] must have "y", got'),
        ([{**BOX, "label": " "}], 'boxes[0] must say what is in it, as "label"'),
        ([{**BOX, "label": "x" * 5001}], "boxes[0] must have at most 5000 characters"),
        ([{**BOX, "x": 0.1, "y": 0, "width": 0.5, "height": 1}], "pixels of 512 x 256, got fract"),
        ([BOX, 3], "boxes[1] must be a box, got 3"),
        ([BOX] * 1001, "boxes must be at most 1000, got 1001"),
        ([[BOX], [{**BOX, "x": 0}]], "boxes must be of one frame, got 2 that differ: give one"),
        ({"editor_state": []}, 'editor_state must have a box like {"x": 0, "y": 0, "width": 64,'),
        ({"editor_state": 3}, "editor_state must have a box like"),
        ({"dims": [0, 5], "bboxes": [BOX]}, "width and height must be positive, got (0.0, 5.0)"),
        ({"dims": ["a", 5], "bboxes": [BOX]}, "width must be a number, got 'a'"),
        ([{"label": "a cat", "area": [1, 2, 3]}], "boxes[0].area must be [height, width, y, x]"),
        ([{"label": "a cat", "area": "all"}], "boxes[0].area must be [height, width, y, x]"),
        (
            [{"label": "a cat", "area": ["percentage", 1.0, 0.5, 0, 0.6]}],
            "boxes[0].area must lie inside [0, 1], got [0.6, 0.0, 1.1, 1.0]",
        ),
        (
            [{"label": "a cat", "area": ["percentage", "1", 0.5, 0, 0.6]}],
            "boxes[0].area must be a number, got '1'",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_not_read_is_told(tmp_path, data, message):
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"boxes\.json: ") as caught:
        formats.read_layout(tmp_path / "boxes.json", canvas=CANVAS, **ENGLISH)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match=re.escape(message)):
        formats.as_layout(data, prompt="", aspect=1.0, canvas=CANVAS, **ENGLISH)
