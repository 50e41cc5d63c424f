"""The boxes in workflows of ComfyUI: what is read, and how failures are told."""

import copy
import json
import re
import warnings

import pytest

from stal.layout import formats
from stal.prompts import article, noun_of

ENGLISH = {"noun_of": noun_of, "article": article}

# As "Export (API)" writes the example "area composition" of ComfyUI: nodes.py.
AREAS = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 8,
            "model": ["4", 0],
            "positive": ["12", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
        "_meta": {"title": "KSampler"},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
    "5": {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 1024, "height": 512, "batch_size": 1},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a landscape", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "8": {"class_type": "CLIPTextEncode", "inputs": {"text": "night,\n stars", "clip": ["4", 1]}},
    "9": {"class_type": "CLIPTextEncode", "inputs": {"text": ["20", 0], "clip": ["4", 1]}},
    "20": {"class_type": "PrimitiveString", "inputs": {"value": "a sunset"}},
    "10": {
        "class_type": "ConditioningSetArea",
        "inputs": {"width": 1024, "height": 256, "x": 0, "y": 0, "strength": 1}
        | {"conditioning": ["8", 0]},
    },
    "11": {
        "class_type": "ConditioningSetAreaPercentage",
        "inputs": {"width": 0.25, "height": 0.5, "x": 0.75, "y": 0.5, "strength": 1}
        | {"conditioning": ["19", 0]},
    },
    "19": {
        "class_type": "ConditioningSetAreaStrength",
        "inputs": {"strength": 1, "conditioning": ["9", 0]},
    },
    "12": {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["13", 0], "conditioning_2": ["6", 0]},
    },
    "13": {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["10", 0], "conditioning_2": ["11", 0]},
    },
}
PLACED = [("night, stars", (0.0, 0.0, 1.0, 0.5)), ("a sunset", (0.75, 0.5, 1.0, 1.0))]
EDITOR = {
    "1": {
        "class_type": "CreateBoundingBoxes",
        "inputs": {
            "width": 1024,
            "height": 512,
            "editor_state": [
                {"x": 0, "y": 0, "width": 512, "height": 512}
                | {"metadata": {"type": "obj", "text": "", "desc": "a cat", "palette": []}}
            ],
        },
    },
    "2": {"class_type": "BuildJsonPromptIdeogram", "inputs": {"element": ["1", 2]}},
}


def read(data, tmp_path, **options):
    """Of a file, and of the same as a value and as a text, which must agree."""
    (tmp_path / "workflow.json").write_text(json.dumps(data))
    layout = formats.read_layout(tmp_path / "workflow.json", **ENGLISH, **options)
    for value in (data, json.dumps(data)):
        python = {"prompt": "", "aspect": 1.0, **ENGLISH, **options}
        assert formats.as_layout(value, **python) == layout
    return layout


def placed(layout):
    return [(o.phrase, o.box) for o in layout.objects]


def changed(node, *, without=(), **inputs):
    found = copy.deepcopy(AREAS)
    found[node]["inputs"] |= inputs
    for name in without:
        del found[name]
    return found


@pytest.mark.parametrize("data", [AREAS, {"prompt": AREAS, "client_id": "x"}], ids=["", "sent"])
def test_areas_are_read_with_the_words_they_lead_back_to(tmp_path, data):
    layout = read(data, tmp_path)
    assert placed(layout) == PLACED
    assert layout.aspect == 2.0


def test_boxes_of_the_editor_are_read(tmp_path):
    layout = read(EDITOR, tmp_path)
    assert (placed(layout), layout.aspect) == ([("a cat", (0.0, 0.0, 0.5, 1.0))], 2.0)


def test_boxes_that_the_editor_is_given_as_a_text_are_read(tmp_path):
    data = copy.deepcopy(EDITOR)
    inputs = data["1"]["inputs"]
    inputs |= {"bboxes": json.dumps(inputs["editor_state"]), "editor_state": []}
    assert placed(read(data, tmp_path)) == [("a cat", (0.0, 0.0, 0.5, 1.0))]


def test_text_boxes_of_gligen_are_read(tmp_path):
    data = changed("3", without=("10", "11", "12", "13"), positive=["30", 0])
    data["30"] = {
        "class_type": "GLIGENTextBoxApply",
        "inputs": {"conditioning_to": ["6", 0], "text": "a cat", "clip": ["4", 1]}
        | {"width": 512, "height": 256, "x": 512, "y": 256},
    }
    assert placed(read(data, tmp_path)) == [("a cat", (0.5, 0.5, 1.0, 1.0))]


def test_an_area_of_the_negative_prompt_is_left_out_with_a_warning(tmp_path):
    data = changed("3", negative=["11", 0])
    data["13"]["inputs"]["conditioning_2"] = ["6", 0]
    with pytest.warns(UserWarning, match="leaves out what is of the negative prompt: node 11$"):
        assert placed(read(data, tmp_path)) == PLACED[:1]
    # A node that hands both prompts on in turn, as ControlNetApplyAdvanced does.
    data["40"] = {
        "class_type": "ControlNetApplyAdvanced",
        "inputs": {"positive": ["12", 0], "negative": ["11", 0], "strength": 1.0},
    }
    data["3"]["inputs"] |= {"positive": ["40", 0], "negative": ["40", 1]}
    with pytest.warns(UserWarning, match="leaves out what is of the negative prompt: node 11$"):
        assert placed(read(data, tmp_path)) == PLACED[:1]


def test_areas_in_percent_need_no_canvas(tmp_path):
    data = changed("13", without=("5", "10"), conditioning_1=["6", 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layout = read(data, tmp_path)
    assert (placed(layout), layout.aspect) == (PLACED[1:], 1.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed("3", without=("5",)), "node 10 must lie in a canvas that is named"),
        (changed("5", width=["9", 0]), "node 10 must lie in a canvas that is named"),
        (changed("10", x=["5", 0]), "node 10.x must be a number, got that of another node"),
        (changed("10", x="0"), "node 10 must be a number, got '0'"),
        (changed("10", x=2000), "node 10 must lie in the canvas of 1024 x 512, got [2000"),
        (changed("11", x=0.9), "node 11 must lie inside [0, 1], got [0.9, 0.5, 1.15, 1.0]"),
        (changed("11", x=None), "node 11.x must be a number, got None"),
        (changed("10", conditioning=["99", 0]), "node 10 must lead back to a text, got ['99', 0]"),
        (changed("10", conditioning=["10", 0]), "node 10 must lead back to a text, got"),
        (changed("10", conditioning=["12", 0]), "node 10 must lead back to a text, got"),
        (changed("8", text=""), "node 10 must lead back to a text, got None"),
        (changed("8", text="x" * 5001), "node 10 must have at most 5000 characters, got 5001"),
        (changed("3", positive=["6", 0], negative=["12", 0]), "an area of the positive prompt"),
        ({**AREAS, **EDITOR}, "must have one layout, got 1 nodes CreateBoundingBoxes and 2 with"),
        ({"1": EDITOR["1"], "2": EDITOR["1"]}, "must have one layout, got 2 nodes Create"),
        ({"6": AREAS["6"]}, "must have one layout, got 0 nodes CreateBoundingBoxes and 0 with"),
        ({"nodes": [], "links": [], "version": 0.4}, "API format, got the format of the page"),
        (
            {"a\nb": {"class_type": "CreateBoundingBoxes", "inputs": {"bboxes": "[1"}}},
            "node 'a\\nb'.bboxes must be JSON, got",
        ),
        (
            {"1": {"class_type": "CreateBoundingBoxes", "inputs": {"bboxes": ["2", 0]}}},
            "node 1.bboxes must be boxes, got those of another node: save its output",
        ),
        (
            {"1": {"class_type": "CreateBoundingBoxes", "inputs": {"width": 64}}},
            "node 1.boxes must have a box like",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:the layout leaves out")
def test_what_is_not_read_is_told(tmp_path, data, message):
    (tmp_path / "workflow.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"workflow\.json: ") as caught:
        formats.read_layout(tmp_path / "workflow.json", **ENGLISH)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match=re.escape(message)):
        formats.as_layout(data, prompt="", aspect=1.0, **ENGLISH)


def test_a_canvas_that_differs_from_the_latents_is_refused(tmp_path):
    assert placed(read(AREAS, tmp_path, canvas=(1024, 512))) == PLACED
    with pytest.raises(ValueError, match="canvas must be the one that is named, 1024 x 512"):
        read(AREAS, tmp_path, canvas=(512, 512))
