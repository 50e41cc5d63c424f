"""Prompts with boxes, of Ideogram 4 and FLUX 3: what is read, and how failures are told."""

import copy
import json
import re
import warnings

import pytest

from stal.layout import formats
from stal.prompts import article, noun_of

ENGLISH = {"noun_of": noun_of, "article": article}

# As BuildJsonPromptIdeogram of ComfyUI's comfy_extras/nodes_json_prompt.py writes it, with the
# elements of CreateBoundingBoxes (comfy_extras/nodes_bounding_boxes.py).
CAPTION = {
    "high_level_description": "A golden retriever riding a skateboard down a sunny sidewalk.",
    "style_description": {
        "aesthetics": "warm, playful",
        "lighting": "bright afternoon sunlight",
        "photo": "eye-level, 85mm lens",
        "medium": "photograph",
        "color_palette": ["#F5C542", "#87CEEB"],
    },
    "compositional_deconstruction": {
        "background": "A sidewalk lined with green hedges.",
        "elements": [
            {"type": "obj", "bbox": [200, 300, 800, 900], "desc": "A golden retriever"},
            {
                "type": "text",
                "bbox": [50, 80, 150, 920],
                "text": "GOOD\nBOY",
                "desc": "Bold cream lettering",
                "color_palette": ["#FFFFFF"],
            },
        ],
    },
}
DOG = ("A golden retriever", "retriever", (0.3, 0.2, 0.9, 0.8))
LETTERS = ('the text "GOOD BOY", Bold cream lettering', (0.08, 0.05, 0.92, 0.15))
# As reconcile_boxes of diffusers' modular_pipelines/flux3/prompt_upsampler.py writes it.
TABLE = [
    {"id": "table_1", "bbox": [500, 0, 1000, 750], "desc": "a wicker table"},
    {"id": "polar_bear_2", "bbox": [100, 250, 600, 500], "desc": ""},
    {"id": "En_Text_1", "bbox": [0, 0, 100, 500], "desc": 'a sign that reads "TEA", in serif type'},
]
SAID = "A photo of a wicker table <table_1> and a polar bear <polar_bear_2>. A sign <En_Text_1>."
TABLE_BOXES = [
    ("a wicker table", (0.0, 0.5, 0.75, 1.0)),
    ("a polar bear", (0.25, 0.1, 0.5, 0.6)),
    ('a sign that reads "TEA", in serif type', (0.0, 0.0, 0.5, 0.1)),
]


@pytest.fixture
def read(tmp_path):
    """Of a file, and of the same as a value and as a text, which must agree."""

    def read(data, *, text=None, **options):
        text = json.dumps(data) if text is None else text
        path = tmp_path / "prompt.json"
        path.write_text(text, encoding="utf-8")
        layout = formats.read_layout(path, **ENGLISH, **options)
        python = {"prompt": options.pop("prompt", ""), "aspect": 1.0, **ENGLISH, **options}
        assert formats.as_layout(text, **python) == layout
        if data is not None:
            assert formats.as_layout(data, **python) == layout
        return layout

    return read


def placed(layout):
    return [(o.phrase, o.box) for o in layout.objects]


def changed(**changes):
    """The caption with a first element that is another."""
    caption = copy.deepcopy(CAPTION)
    element = caption["compositional_deconstruction"]["elements"][0]
    for key, value in changes.items():
        element[key] = value
    return caption


@pytest.mark.parametrize("wrapped", [lambda c: c, lambda c: {"json_prompt": c, "seed": 3}])
def test_a_caption_of_ideogram_is_read(read, wrapped):
    layout = read(wrapped(CAPTION))
    assert layout.prompt == CAPTION["high_level_description"]
    dog = layout.objects[0]
    assert (dog.phrase, dog.noun, dog.box) == DOG
    assert placed(layout)[1] == LETTERS
    assert (layout.aspect, layout.relations) == (1.0, ())


@pytest.mark.parametrize(
    ("around", "prompt"),
    [
        ("```json\n{}\n```", CAPTION["high_level_description"]),
        ("Here is the caption:\n\n{}\n\nIt follows the schema.", CAPTION["high_level_description"]),
        ("﻿\n{}", CAPTION["high_level_description"]),
        ("<think>a bbox: [1]</think>{}", CAPTION["high_level_description"]),
    ],
    ids=["fence", "prose", "byte order mark", "reasoning"],
)
def test_a_caption_in_an_answer_is_read(read, around, prompt):
    layout = read(None, text=around.replace("{}", json.dumps(CAPTION, indent=1)))
    assert layout.prompt == prompt
    assert placed(layout)[1] == LETTERS


def test_elements_without_a_caption_are_read(read):
    elements = CAPTION["compositional_deconstruction"]["elements"]
    for data in (elements, {"elements": elements, "high_level_description": "A dog."}):
        assert placed(read(data))[1] == LETTERS
    assert placed(read(elements[1])) == [LETTERS]


def test_a_table_of_flux_is_read_with_its_caption(read):
    layout = read(None, text=f"{SAID} {json.dumps(TABLE, ensure_ascii=False)}")
    assert layout.prompt == "A photo of a wicker table and a polar bear. A sign."
    assert placed(layout) == TABLE_BOXES
    assert placed(read(TABLE)) == TABLE_BOXES


def test_a_mark_that_is_no_id_stays_in_the_prompt(read):
    assert read(None, text=f"a <b> <table_1> {json.dumps(TABLE)}").prompt == "a <b>"


def test_what_introduces_a_table_is_no_prompt(read):
    layout = read(None, text=f"Here is the table:\n{json.dumps(TABLE)}", prompt="tea")
    assert layout.prompt == "tea"


def test_boxes_for_flux_may_be_fractions(read):
    # As `boxes` of diffusers' Flux3 pipelines takes them, with other arguments of the call.
    layout = read({"prompt": "a cat", "boxes": [{"desc": "a cat", "bbox": [0.5, 0, 1, 0.25]}]})
    assert layout.prompt == "a cat"
    assert placed(layout) == [("a cat", (0.0, 0.5, 0.25, 1.0))]


def test_of_an_edit_the_target_counts(read):
    rows = [
        {"id": "van_1", "from": "ref_image_0", "src_bbox": [0, 0, 9, 9], "tgt_bbox": None}
        | {"desc": "a van"},
        {"id": "cup_1", "from": "ref_image_0", "src_bbox": [0, 0, 100, 100]}
        | {"tgt_bbox": [500, 0, 1000, 500], "desc": "a cup"},
        {"id": "hat_1", "from": "target", "src_bbox": None, "tgt_bbox": [0, 0, 100, 100]}
        | {"desc": "a hat"},
    ]
    with pytest.warns(UserWarning, match=r"leaves out what has no box: elements\[0\]$"):
        layout = read(rows)
    assert placed(layout) == [("a cup", (0, 0.5, 0.5, 1)), ("a hat", (0, 0, 0.1, 0.1))]


def test_elements_of_elements_follow_them(read):
    inner = {"type": "obj", "desc": "A red collar", "bbox": [500, 400, 550, 600]}
    group = {"elements": [inner, {"desc": "A bone", "bbox": [0, 0, 10, 10]}]}
    layout = read(changed(children=[inner, group]))
    assert [o.phrase for o in layout.objects] == [
        *(DOG[0], "A red collar", "A red collar", "A bone", LETTERS[0])
    ]


def test_what_has_no_box_is_left_out_with_a_warning(read):
    where = r"compositional_deconstruction\.elements\[0\]"
    missing = changed()
    del missing["compositional_deconstruction"]["elements"][0]["bbox"]
    for caption in (changed(bbox=None), missing):
        with pytest.warns(UserWarning, match=f"leaves out what has no box: {where}$"):
            assert placed(read(caption)) == [LETTERS]


def test_a_whole_caption_is_read_without_a_warning(read):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(CAPTION)


@pytest.mark.parametrize(
    ("ratio", "aspect"),
    [("16:9", 16 / 9), ("3x4", 0.75), ("2048x1024", 2.0), (" 1 : 2 ", 0.5), ("auto", 1.0)],
)
def test_the_aspect_is_the_one_that_is_said(read, ratio, aspect):
    assert read({"aspect_ratio": ratio, **CAPTION}).aspect == aspect
    assert read({"aspect_ratio": ratio, "json_prompt": CAPTION}).aspect == aspect
    assert read({"aspect_ratio": ratio, **CAPTION}, canvas=(300, 100)).aspect == 3.0


def test_a_target_canvas_is_an_aspect_and_no_prompt(read):
    layout = read(None, text=f"TARGET CANVAS: 16:9\n{SAID} {json.dumps(TABLE)}")
    assert layout.aspect == 16 / 9
    assert layout.prompt.startswith("A photo of")


def test_a_value_without_an_aspect_has_the_pictures():
    layout = formats.as_layout(CAPTION, prompt="x", aspect=1.5, **ENGLISH)
    assert layout.aspect == 1.5
    layout = formats.as_layout(TABLE, prompt="x", aspect=1.5, **ENGLISH)
    assert (layout.prompt, layout.aspect) == ("x", 1.5)


ELEMENT = "compositional_deconstruction.elements[0]"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(bbox=[800, 300, 200, 900]), f"{ELEMENT}.bbox must be [y0, x0, y1, x1] with y0"),
        (changed(bbox=[200, 900, 800, 300]), "with y0 < y1, x0 < x1, got [200.0, 900.0, 800.0"),
        (changed(bbox=[200, 300, 200, 900]), "with y0 < y1, x0 < x1"),
        (changed(bbox=[0, 0, 1024, 900]), f"{ELEMENT}.bbox must lie inside 0 to 1000, got [0.0"),
        (changed(bbox=[-1, 0, 100, 900]), f"{ELEMENT}.bbox must lie inside 0 to 1000"),
        (changed(bbox=[0.1, 0, 0.5, 0.9]), "must be on a grid of 0 to 1000, got fractions"),
        (changed(bbox=[1, 2, 3]), f"{ELEMENT}.bbox must be [y0, x0, y1, x1], got [1, 2, 3]"),
        (changed(bbox="1, 2, 3, 4"), f"{ELEMENT}.bbox must be [y0, x0, y1, x1], got '1, 2"),
        (changed(bbox={"x": 1}), f"{ELEMENT}.bbox must be [y0, x0, y1, x1]"),
        (changed(bbox=["1", 2, 3, 4]), f"{ELEMENT}.bbox must be a number, got '1'"),
        (changed(bbox=[True, 2, 3, 4]), f"{ELEMENT}.bbox must be a number, got True"),
        (changed(bbox=[float("nan"), 2, 3, 4]), f"{ELEMENT}.bbox must be of finite numbers"),
        (changed(bbox=[0, 0, 10**400, 4]), f"{ELEMENT}.bbox must be a finite number"),
        (changed(bbox=[0, 0, 1e400, 4]), f"{ELEMENT}.bbox must be of finite numbers"),
        (changed(desc=3), f"{ELEMENT}.desc must be a string, got 3"),
        (changed(desc=" "), f'{ELEMENT} must have a "desc" that says what it is'),
        (changed(desc="x" * 5001), f"{ELEMENT} must have at most 5000 characters"),
        (changed(label="a dog"), f'{ELEMENT} must have no "label" beside "bbox" and "desc"'),
        (changed(children=3), f"{ELEMENT}.children must be a list of elements, got 3"),
        (changed(children=["x"]), f'{ELEMENT}.children[0] must be an object with a "bbox"'),
        ({"high_level_description": "A dog."}, "elements must be a list of elements, got None"),
        ({"compositional_deconstruction": []}, "elements must be a list of elements, got None"),
        ({"compositional_deconstruction": {"elements": []}}, "must have an element, got none"),
        (
            {"compositional_deconstruction": {"elements": [{"type": "obj", "desc": "a dog"}]}},
            f'must have an element with a "bbox", got none: {ELEMENT}',
        ),
        ({**CAPTION, "high_level_description": 3}, "prompt must be a string, got 3"),
        ({**CAPTION, "aspect_ratio": "wide"}, "aspect_ratio must be like 16:9, got 'wide'"),
        ({**CAPTION, "aspect_ratio": "0:9"}, "aspect_ratio must be like 16:9, got '0:9'"),
        ({**CAPTION, "aspect_ratio": 1.5}, "aspect_ratio must be like 16:9, got 1.5"),
        ([*TABLE[:1], {"id": "a_1", "bbox": [0, 0, 0.5, 0.5]}], "elements[1].bbox must be on a"),
        ([{"id": "obj_1", "bbox": [0, 0, 500, 500]}], 'elements[0] must have a "desc"'),
        (TABLE[:1] * 1001, "elements must have at most 1000 elements"),
        ([*TABLE, 3], 'elements[3] must be an object with a "bbox", got 3'),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_not_read_is_told(tmp_path, data, message):
    (tmp_path / "prompt.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"prompt\.json: ") as caught:
        formats.read_layout(tmp_path / "prompt.json", **ENGLISH)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match=re.escape(message)):
        formats.as_layout(data, prompt="", aspect=1.0, **ENGLISH)


def test_broken_json_is_told_by_its_place(tmp_path):
    text = json.dumps(CAPTION)
    for broken in (text[:-5], text.replace('"desc"', '"bbox"', 1)):
        (tmp_path / "prompt.json").write_text(broken)
        with pytest.raises(ValueError, match=r"layout must be valid JSON, got"):
            formats.read_layout(tmp_path / "prompt.json", **ENGLISH)


def test_deep_nesting_is_refused():
    element = {"desc": "a dog", "bbox": [0, 0, 9, 9]}
    element["children"] = [element]
    with pytest.raises(ValueError, match="elements must have few levels, got deep nesting"):
        formats.as_layout([element], prompt="", aspect=1.0, **ENGLISH)
    text = '[{"desc": "a", "bbox": ' + "[" * 100_000
    with pytest.raises(ValueError, match="got deep nesting"):
        formats.as_layout(text, prompt="", aspect=1.0, **ENGLISH)


def test_a_language_models_list_stays_one(tmp_path):
    (tmp_path / "answer.txt").write_text('[{"id": 1, "label": "a cat", "bbox": [64, 128, 64, 64]}]')
    layout = formats.read_layout(tmp_path / "answer.txt", **ENGLISH)
    assert placed(layout) == [("a cat", (0.125, 0.25, 0.25, 0.375))]
