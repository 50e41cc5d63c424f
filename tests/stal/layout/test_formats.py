"""Layouts of language models and painted masks: what is read, and how failures are told."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from stal.layout import Layout, PlacedObject, formats, masks
from stal.prompts import article, noun_of

read_layout = partial(formats.read_layout, noun_of=noun_of, article=article)

CSS = """Prompt: a cat left of two polar bears
Layout:
cat {height: 40px; width: 16px; top: 10px; left: 0px; }
polar-bear1 {width: 16px; left: 32px; top: 8px; height: 32px}
polar-bear2 {width: 8px; left: 56px; top: 8px; height: 32px}
"""
LIST = """Objects: [('a green car', [0, 256, 256, 128]), ("a bowl [red]", [384, 0, 128, 512])]
Background prompt: a realistic scene
Negative prompt: none
"""
PAINTED = {
    "masks": "masks.png",
    "prompt": "a dog and a cat",
    "objects": [
        {"phrase": "a dog", "colour": "#ff0000"},
        {"phrase": "a fat cat", "noun": "cat", "colour": "#00FF00"},
    ],
    "relations": [[0, "left of", 1]],
}


@pytest.fixture
def write(tmp_path):
    def write(text, name="layout.txt"):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    return write


@pytest.fixture
def painted(tmp_path):
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[5:15, 4:12] = (255, 0, 0)
    pixels[5:10, 20:40] = (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "masks.png")
    return pixels


def test_own_format_is_read(write):
    layout = Layout("a dog", (PlacedObject("a dog", "dog", (0.1, 0.1, 0.5, 0.5)),))
    assert read_layout(write(layout.to_json())) == layout


def test_css_of_layoutgpt_is_read(write):
    layout = read_layout(write(CSS))
    assert layout.prompt == "a cat left of two polar bears"
    assert [(o.phrase, o.noun) for o in layout.objects] == [
        ("a cat", "cat"),
        ("a polar bear", "polar bear"),
        ("a polar bear", "polar bear"),
    ]
    assert layout.objects[0].box == (0.0, 10 / 64, 0.25, 50 / 64)
    assert layout.objects[1].box == (0.5, 0.125, 0.75, 0.625)


def test_list_of_llm_grounded_diffusion_is_read(write):
    layout = read_layout(write(LIST), prompt="a car")
    assert layout.prompt == "a car"
    assert [(o.phrase, o.noun, o.box) for o in layout.objects] == [
        ("a green car", "car", (0.0, 0.5, 0.5, 0.75)),
        ("a bowl [red]", "bowl", (0.75, 0.0, 1.0, 1.0)),
    ]


def test_nouns_and_articles_are_those_handed_in(write, painted):
    found = [
        formats.read_layout(write(text), noun_of=str.upper, article=str.title).objects[-1]
        for text in (CSS, LIST, PAINTED)
    ]
    assert [(o.phrase, o.noun) for o in found] == [
        ("Polar Bear polar bear", "POLAR BEAR POLAR BEAR"),
        ("a bowl [red]", "A BOWL [RED]"),
        ("a fat cat", "cat"),
    ]


def test_canvas_may_be_another(write):
    layout = read_layout(
        write("cat {width: 100px; height: 50px; left: 0px; top: 0px}"), canvas=(200, 100)
    )
    assert layout.objects[0].box == (0.0, 0.0, 0.5, 0.5)
    assert layout.aspect == 2.0


def test_painted_masks_are_read(write, painted):
    layout = read_layout(write(PAINTED))
    assert layout.aspect == 2.0
    assert layout.relations == ((0, "left of", 1),)
    assert [(o.noun, o.box) for o in layout.objects] == [
        ("dog", (0.1, 0.25, 0.3, 0.75)),
        ("cat", (0.5, 0.25, 1.0, 0.5)),
    ]
    found = masks(layout, 20, 40).numpy()
    np.testing.assert_allclose(found[0], painted[..., 0] == 255, atol=1e-6)
    assert masks(layout, 8, 8)[1].mean().item() == pytest.approx(100 / 800)
    assert Layout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat {width: 3px; height: 4px; left: 5px", "line 1 must be like"),
        ("\ncat {width: wide; height: 4px; left: 5px; top: 0}", "line 2 must have width in px"),
        ("cat {width: 3px; height: 4px}", "line 1 must have left, top, width, height, got width"),
        (
            "cat {width: 3; height: 4; left: 500; top: 0}",
            "line 1 must lie in the canvas of 64 x 64",
        ),
        ("cat {width: nan; height: 4; left: 0; top: 0}", "positive width and height, got nan"),
        ("3 {width: 3; height: 4; left: 0; top: 0}", "line 1 must name its object"),
        ("a { }", "line 1 must have left"),
        ("hello", "layout must be JSON, LayoutGPT's lines"),
        ("", "layout must be JSON, LayoutGPT's lines"),
        ("[('a', [0, 0, 1, 1])", "list must be closed by ]"),
        ("[('a', [0, 0, 1])]", "item 0 must be"),
        ("[('a', [0, 0, 0, 9])]", "item 0 must have a positive width"),
        ("[f(x)]", "list must be of pairs"),
        ("[3]", "item 0 must be"),
        ("[]", "layout must have an object, got none"),
        ("[('', [0, 0, 9, 9])]", "item 0 must be (phrase,"),
        (f"[('a', [0, 0, {'9' * 400}, 9])]", "item 0 must be (phrase,"),
        ("cat {width: 3; width: 4; left: 5; top: 0}", "line 1 must have one width, got two"),
        ("[('a', [0, 0, 900, 9])]", "item 0 must lie in the canvas of 512 x 512"),
        ('{"version": 3}', 'layout must have "objects"'),
        ('{"version": 1', "layout must be valid JSON"),
    ],
)
def test_bad_files_are_named_with_the_place(write, text, message):
    with pytest.raises(ValueError, match=r"layout\.txt: ") as caught:
        read_layout(write(text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_bytes_are_refused(tmp_path):
    (tmp_path / "layout.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="must be text in UTF-8"):
        read_layout(tmp_path / "layout.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": "none.png"}, "masks must be a picture, got 'none.png'"),
        ({"masks": 3}, "must name a PNG file"),
        ({"aspect": 1.0}, "masks must have the layout's aspect 1, got masks.png of 40 x 20"),
        ({"aspect": "wide"}, "aspect must be a positive number"),
        ({"aspect": 10**400}, "aspect must be a positive number"),
        ({"masks": "a\0b"}, "masks must be a picture, got 'a\\x00b'"),
        ({"background": "black"}, 'background must be like "#ff0000"'),
        ({"background": "#ffffff"}, "#ffffff only, got #000000 at (0, 0)"),
        ({"objects": [{"phrase": "a dog"}]}, 'objects[0].colour must be like "#ff0000", got None'),
        ({"objects": [{"colour": "#ff0000"}]}, 'objects[0] must have a "phrase"'),
        (
            {"objects": [{"phrase": "a dog", "colour": "#0000ff"}]},
            "objects[0].colour must be in masks.png, got no pixel of #0000ff",
        ),
        ({"objects": [PAINTED["objects"][0]] * 2}, "objects[1].colour must be its own"),
        ({"objects": [PAINTED["objects"][0]]}, "got #00ff00 at (20, 5)"),
        ({"size": 3}, 'must not have "size"'),
        ({"relations": [[0, "left of", 9]]}, "relations[0]"),
        ({"relations": 5}, "relations must be a list, got 5"),
        ({"relations": [1]}, "relations[0] must be a list, got 1"),
        ({"relations": [[0, "left of"]]}, "relations[0] must be [subject, predicate, object]"),
        ({"prompt": 5}, "prompt must be a string, got 5"),
        (
            {"objects": [{**PAINTED["objects"][0], "noun": 5}, PAINTED["objects"][1]]},
            "objects[0].noun must be a string, got 5",
        ),
        (
            {"objects": [{**PAINTED["objects"][0], "size": 5}]},
            'objects[0] must not have "size"',
        ),
    ],
)
def test_bad_masks_are_named(write, painted, change, message):
    with pytest.raises(ValueError, match=r"layout\.txt: ") as caught:
        read_layout(write({**PAINTED, **change}))
    assert message in str(caught.value)


def test_canvas_is_checked(write):
    with pytest.raises(ValueError, match="canvas must be positive"):
        read_layout(write(CSS), canvas=(0, 64))


@pytest.mark.parametrize(
    "value",
    [
        {"objects": [{"phrase": "a cat", "box": [0, 0, 0.5, np.float32(0.5)]}], "relations": None},
        {"version": None, "objects": [{"phrase": "a cat", "noun": None, "box": [0, 0, 0.5, 0.5]}]},
        [{"phrase": "a cat", "box": (0, 0, 0.5, 0.5)}],
        {"a cat": (0, 0, 0.5, 0.5)},
        [("a cat", [0, 0, 0.5, 0.5])],
    ],
    ids=["what JSON holds", "null", "objects", "by phrase", "pairs"],
)
def test_a_layout_has_many_forms_in_python(value):
    layout = formats.as_layout(value, prompt="", aspect=1.0, noun_of=noun_of, article=article)
    assert [(o.phrase, o.noun, o.box) for o in layout.objects] == [
        ("a cat", "cat", (0.0, 0.0, 0.5, 0.5))
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"objects": 3}, "objects must be a list, got 3"),
        ({"objects": [object()]}, "layout must be what JSON can hold, got"),
        ([{"phrase": "a cat"}], r"layout\[0\] must be a pair"),
        ({"version": 2}, r"layout\[0\] must"),
    ],
)
def test_what_is_no_layout_in_python_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        formats.as_layout(value, prompt="", aspect=1.0, noun_of=noun_of, article=article)


OWN_LIST = [
    {"phrase": "a cat", "box": [0.1, 0.2, 0.5, 0.9]},
    {"phrase": "a fat dog", "box": [0, 0, 1, 1]},
]
SHAPED = [{"phrase": "a cat", "noun": "tabby", "box": [0.1, 0.2, 0.5, 0.9], "shape": "ellipse"}]


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "\n {} \n"])
def test_a_list_of_our_objects_is_read(write, around):
    layout = read_layout(write(around.replace("{}", json.dumps(OWN_LIST))), prompt="a cat")
    assert [(o.phrase, o.noun, o.box) for o in layout.objects] == [
        ("a cat", "cat", (0.1, 0.2, 0.5, 0.9)),
        ("a fat dog", "dog", (0.0, 0.0, 1.0, 1.0)),
    ]
    assert (layout.prompt, layout.aspect) == ("a cat", 1.0)
    assert read_layout(write(OWN_LIST), canvas=(300, 100)).aspect == 3.0


def test_a_list_of_our_objects_keeps_their_shapes(write):
    as_value = formats.as_layout(SHAPED, prompt="", aspect=1.0, noun_of=noun_of, article=article)
    for layout in (read_layout(write(SHAPED)), as_value):
        (cat,) = layout.objects
        assert (cat.noun, cat.outline.to_json()) == ("tabby", "ellipse")


def test_a_language_models_objects_stay_in_pixels(write):
    objects = [{"phrase": "a cat", "box": [64, 128, 64, 64]}]
    assert read_layout(write(objects)).objects[0].box == (0.125, 0.25, 0.25, 0.375)
    # As on a canvas of one by one, which is the way to say that fractions are meant.
    fractions = [{"phrase": "a cat", "box": [0.25, 0.25, 0.5, 0.75]}]
    assert read_layout(write(fractions)).objects[0].box == (0.25, 0.25, 0.5, 0.75)
    assert read_layout(write(fractions), canvas=(1, 1)).objects[0].box == (0.25, 0.25, 0.75, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [0.5, 0.2, 0.1, 0.9]}, "objects[0].box must have x0 < x1 and y0 < y1"),
        ({"box": [-0.5, 0.2, 0.1, 0.9]}, "objects[0].box must lie inside [0, 1]"),
        ({"box": [0.1, 0.2, 0.9]}, "objects[0].box must be [x0, y0, x1, y1]"),
        ({"score": "high"}, "objects[0].score must be a number"),
        ({"shape": "star", "box": [0, 0, 90, 90]}, 'objects[0].shape must be "ellipse"'),
        ({"noun": "cat", "box": [0, 0, 90, 90]}, "objects[0].box must lie inside [0, 1]"),
    ],
)
def test_a_bad_list_of_our_objects_is_named_with_the_place(write, change, message):
    with pytest.raises(ValueError, match=r"layout\.txt: ") as caught:
        read_layout(write([OWN_LIST[0] | change, OWN_LIST[1]]))
    assert message in str(caught.value)


def test_a_list_of_our_objects_may_be_a_text():
    text = json.dumps(OWN_LIST + SHAPED)
    layout = formats.as_layout(text, prompt="p", aspect=2.0, noun_of=noun_of, article=article)
    assert [o.noun for o in layout.objects] == ["cat", "dog", "tabby"]
    assert (layout.prompt, layout.aspect) == ("p", 2.0)


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "\n {} \n"])
def test_a_text_of_phrases_and_boxes_is_what_it_holds(around):
    options = {"prompt": "p", "aspect": 2.0, "noun_of": noun_of, "article": article}
    text = around.replace("{}", json.dumps(OWN_LIST))
    layout = formats.as_layout(text, **options)
    assert layout == formats.as_layout(OWN_LIST, **options)
    assert [(o.noun, o.box) for o in layout.objects] == [
        ("cat", (0.1, 0.2, 0.5, 0.9)),
        ("dog", (0.0, 0.0, 1.0, 1.0)),
    ]
    assert (layout.prompt, layout.aspect) == ("p", 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"phrase": "a cat", "box": [64, 128, 64, 64]}]', "must have its box in fractions of"),
        ('[{"phrase": "a cat"}]', r"layout\[0\] must be a pair"),
        ("[1, 2]", "layout must be JSON or a file that can be read, got"),
    ],
)
def test_a_text_that_holds_no_layout_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        formats.as_layout(text, prompt="", aspect=1.0, noun_of=noun_of, article=article)


@pytest.mark.parametrize("stated", [{}, {"aspect": None}, {"aspect": 0.5}], ids=str)
@pytest.mark.parametrize("objects", [OWN_LIST, SHAPED], ids=["boxes", "shapes"])
def test_our_json_has_the_aspect_that_it_states_or_else_the_one_given(write, stated, objects):
    data = {"objects": objects, **stated}
    options = {"prompt": "", "noun_of": noun_of, "article": article}
    for value in (data, json.dumps(data), write(data)):
        for given, aspect in (({}, 2.0), ({"canvas": (300, 100)}, 3.0)):
            layout = formats.as_layout(value, aspect=2.0, **given, **options)
            assert layout.aspect == (stated.get("aspect") or aspect)
    for given, aspect in (({}, 1.0), ({"canvas": (300, 100)}, 3.0)):
        assert read_layout(write(data), **given).aspect == (stated.get("aspect") or aspect)


def test_a_usual_canvas_is_stated(write, painted):
    options = {"prompt": "", "aspect": 1.5, "noun_of": noun_of, "article": article}
    for text, aspect in ((CSS, 1.0), (LIST, 1.0), (PAINTED, 2.0)):
        assert formats.as_layout(write(text), **options).aspect == aspect
