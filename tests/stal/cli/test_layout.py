"""`stal layout`, and `stal generate --layout FILE`: what they write, how they fail."""

import json
from pathlib import Path

import pytest
from PIL import Image

from stal import picture
from stal.layout import Layout

TWO = "a red circle to the left of a blue square"


def test_layout_writes_a_picture_and_json(run, tmp_path):
    code, out, err = run("layout", TWO, "--output", "a.png", "--json", "a.json", "--aspect", "16:9")
    assert (code, out, err) == (0, "a.png\n", "")
    layout = Layout.load("a.json")
    assert [o.noun for o in layout.objects] == ["circle", "square"]
    assert layout.aspect == pytest.approx(16 / 9)
    assert layout.violated == ()
    with Image.open("a.png") as image:
        assert image.size == (512, 288)
    assert Layout.from_json(json.dumps(picture.read_record("a.png")["layout"])) == layout


def test_samples_are_numbered_and_differ(run):
    code, out, _ = run("layout", TWO, "--output", "a.png", "--json", "a.json", "--samples", 3)
    assert (code, out.split()) == (0, ["a-0.png", "a-1.png", "a-2.png"])
    assert len({Layout.load(f"a-{i}.json").objects for i in range(3)}) == 3


def test_a_file_of_prompts_gives_a_line_each(run, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{TWO}\n\na dog\nnothing\n")
    code, _, err = run("layout", "--prompts", "prompts.txt", "--json", "out.jsonl")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [TWO, "a dog", "nothing"]
    assert [len(line["objects"]) for line in lines] == [2, 1, 0]
    assert lines[0]["relations"] == [[0, "left of", 1]]


def test_contradictions_are_named(run):
    text = "A dog is left of a cat. The cat is left of the dog."
    code, _, err = run("layout", text, "--json", "a.json")
    assert code == 0
    assert err == "stal: cannot hold: a cat left of a dog\n"
    Path("prompts.txt").write_text(f"a dog\n{text}\n", encoding="utf-8-sig")
    code, _, err = run("layout", "--prompts", "prompts.txt", "--json", "a.jsonl")
    assert (code, err) == (0, "stal: prompt 2: cannot hold: a cat left of a dog\n")
    assert json.loads(Path("a.jsonl").read_text().splitlines()[0])["prompt"] == "a dog"


def test_the_file_of_prompts_is_not_written_over(run):
    Path("prompts.txt").write_text("a dog\n")
    code, _, err = run("layout", "--prompts", "prompts.txt", "--json", "prompts.txt")
    assert (code, "another file than prompts" in " ".join(err.split())) == (1, True)
    assert Path("prompts.txt").read_text() == "a dog\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give one, or a file"),
        ((TWO,), 1, "output must be given"),
        ((TWO, "--output", "a.jpg"), 1, "must be a PNG file"),
        ((TWO, "--output", "no/a.png"), 1, "existing folder"),
        ((TWO, "--output", "a.png", "--aspect", "wide"), 1, "aspect must be like 16:9"),
        ((TWO, "--output", "a.png", "--aspect", "1:0"), 1, "aspect must be like 16:9"),
        ((TWO, "--output", "a.png", "--aspect", "16:"), 1, "aspect must be like 16:9"),
        ((TWO, "--output", "a.png", "--aspect", "1:100"), 1, "aspect must lie in"),
        ((TWO, "--output", "a.png", "--json", "a.png"), 1, "json must be another file"),
        ((TWO, "--output", "a.png", "--model", "none"), 1, "none"),
        (("--prompts", "none.txt"), 1, "prompts must come with --json"),
        (("--prompts", "none.txt", "--json", "a.jsonl"), 1, "none.txt"),
    ],
)
def test_layout_refuses(run, tmp_path, arguments, code, message):
    found, _, err = run("layout", *arguments)
    assert found == code
    assert message in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


def test_generate_draws_in_a_layout_of_a_language_model(run, tmp_path):
    lines = [
        f"{name} {{width: 20px; height: 20px; left: {x}px; top: 9px}}"
        for name, x in (("red circle", 2), ("blue square", 40))
    ]
    (tmp_path / "a.css").write_text("\n".join(lines))
    options = ("--layout", "a.css", "--output", "a.png", "--steps", 1, "--quiet")
    code, _, err = run("generate", TWO, *options)
    assert (code, err) == (0, "")
    objects = picture.read_record("a.png")["layout"]["objects"]
    assert [each["phrase"] for each in objects] == ["a red circle", "a blue square"]
    assert objects[0]["box"][0] == 2 / 64
    assert run("generate", TWO, *options, "--canvas", "128x128")[0] == 0
    assert picture.read_record("a.png")["layout"]["objects"][0]["box"][0] == 2 / 128


@pytest.mark.parametrize(
    ("text", "canvas", "message"),
    [
        ("cat {width: 20px}", "64x64", "a.css: line 1 must have left, top, width, height"),
        ("cat", "64x64", "a.css: layout must be JSON"),
        ("cat", "64", "canvas must be like 512x512, got '64'"),
    ],
)
def test_generate_refuses_other_layouts(run, tmp_path, text, canvas, message):
    (tmp_path / "a.css").write_text(text)
    code, _, err = run("generate", TWO, "--layout", "a.css", "--canvas", canvas)
    assert (code, err.count("\n")) == (1, 1)
    assert message in err


# A caption of Ideogram 4, see tests/stal/layout/test_box_prompts.py.
CAPTION = {
    "aspect_ratio": "2:1",
    "high_level_description": TWO,
    "compositional_deconstruction": {
        "background": "white",
        "elements": [
            {"type": "obj", "bbox": [250, 0, 750, 250], "desc": "a red circle"},
            {"type": "obj", "bbox": [250, 750, 750, 1000], "desc": "a blue square"},
            {"type": "obj", "desc": "a shadow"},
        ],
    },
}
LEFT_OUT = r"leaves out what has no box: compositional_deconstruction\.elements\[2\]$"


def test_generate_draws_in_the_layout_of_another_model(run, tmp_path):
    (tmp_path / "caption.json").write_text(json.dumps(CAPTION))
    options = ("--layout", "caption.json", "--output", "a.png", "--steps", 1, "--quiet")
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert run("generate", *options)[0] == 0
    record = picture.read_record("a.png")
    assert record["prompt"] == TWO
    assert [each["box"] for each in record["layout"]["objects"]] == [
        [0, 0.25, 0.25, 0.75],
        [0.75, 0.25, 1, 0.75],
    ]
    with Image.open("a.png") as image:
        assert image.width == 2 * image.height


def test_a_layout_of_another_program_is_drawn_and_rewritten(run, tmp_path):
    (tmp_path / "caption.json").write_text(json.dumps(CAPTION))
    options = ("--layout", "caption.json", "--output", "a.png", "--json", "a.json")
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert run("layout", *options) == (0, "a.png\n", "")
    layout = Layout.load("a.json")
    assert [(o.phrase, o.noun) for o in layout.objects] == [
        ("a red circle", "circle"),
        ("a blue square", "square"),
    ]
    assert (layout.prompt, layout.aspect) == (TWO, 2.0)
    with Image.open("a.png") as image:
        assert image.size == (512, 256)
    assert Layout.from_json(json.dumps(picture.read_record("a.png")["layout"])) == layout
    # What was rewritten is read again.
    assert run("layout", "--layout", "a.json", "--json", "b.json") == (0, "", "")
    assert Layout.load("b.json") == layout


def test_boxes_in_pixels_are_drawn_with_their_canvas_and_a_prompt(run, tmp_path):
    box = {"x": 64, "y": 0, "width": 64, "height": 64, "label": "cat", "score": 0.9}
    (tmp_path / "boxes.json").write_text(json.dumps([[box]]))
    code, _, err = run("layout", "--layout", "boxes.json", "--json", "a.json")
    assert (code, "give canvas=(width, height), --canvas 1024x768" in err) == (1, True)
    options = ("--layout", "boxes.json", "--json", "a.json", "--canvas", "256x128")
    assert run("layout", "a cat", *options) == (0, "", "")
    layout = Layout.load("a.json")
    assert (layout.prompt, layout.aspect) == ("a cat", 2.0)
    assert layout.objects[0].box == (0.25, 0.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "output must be given"),
        (("--output", "a.png", "--samples", 3), "samples must come without --layout"),
        (("--output", "a.png", "--seed", 3), "seed must come without --layout"),
        (("--output", "a.png", "--aspect", "2:1"), "aspect must come without --layout"),
        (("--json", "a.json", "--prompts", "a.txt"), "prompts must come without --layout"),
        (("--json", "caption.json"), "json must be another file than layout"),
        (("--json", "a.json", "--canvas", "64"), "canvas must be like 512x512, got '64'"),
    ],
)
def test_a_layout_is_not_predicted_and_drawn_at_once(run, tmp_path, arguments, message):
    (tmp_path / "caption.json").write_text(json.dumps(CAPTION))
    code, _, err = run("layout", "--layout", "caption.json", *arguments)
    assert code == 1
    assert message in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["caption.json"]


def test_a_canvas_is_one_of_a_layout(run):
    code, _, err = run("layout", TWO, "--output", "a.png", "--canvas", "64x64")
    assert (code, "canvas must come with --layout" in err) == (1, True)
