"""What the documents show runs, and gives what they say."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stal.layout.formats import as_layout, read_layout
from stal.pipeline import Pipeline
from stal.prompts import article, noun_of

DOCS = Path(__file__).parents[2] / "docs"
MODEL, LAYOUT = DOCS / "model.md", DOCS / "layout.md"


@pytest.mark.skipif(not MODEL.exists(), reason="needs a checkout")
@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle to the left of a blue square",
        "a green star",
        "a red ring, a yellow cross and a blue star on a black background",
    ],
)
def test_a_loop_of_ones_own_draws_what_the_pipeline_draws(monkeypatch, tmp_path, prompt):
    loop = re.search(r"```python\n(.*?)```", MODEL.read_text(encoding="utf-8"), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(re.sub('prompt = ".*"', f"prompt = {prompt!r}", loop), scope)
    assert scope["prompt"] == prompt
    drawn = Pipeline.from_pretrained()(prompt, background=0.0).images[0]
    own = np.asarray(Image.open("own.png")).astype(int)
    assert np.abs(own - np.asarray(drawn).astype(int)).max() <= 1
    assert own.std() > 20


def tables():
    """Those of examples in the page of layouts, each a text of rows."""
    text = LAYOUT.read_text(encoding="utf-8") if LAYOUT.exists() else ""
    return re.findall(r"\| what \| example \|\n\|---\|---\|\n((?:\|.*\n)+)", text)


def examples(table):
    """(what, example) of each row."""
    return re.findall(r"^\| (.*) \| `([^|\n]*)` \|$", table, re.MULTILINE)


ENGLISH = {"noun_of": noun_of, "article": article}
FILES, VALUES = map(examples, tables() or ["", ""])


@pytest.mark.skipif(not LAYOUT.exists(), reason="needs a checkout")
@pytest.mark.parametrize(("what", "example"), FILES, ids=[what for what, _ in FILES])
def test_each_layout_file_that_is_shown_places_a_cat_in_the_same_box(tmp_path, what, example):
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[8:, 4:8] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "masks.png")
    (tmp_path / "layout.txt").write_text(example, encoding="utf-8")
    canvas = re.search(r"--canvas (\d+)x(\d+)", what)
    size = None if canvas is None else (int(canvas[1]), int(canvas[2]))
    layout = read_layout(tmp_path / "layout.txt", canvas=size, **ENGLISH)
    assert [(o.phrase, o.box) for o in layout.objects] == [("a cat", (0.25, 0.5, 0.5, 1.0))]


@pytest.mark.skipif(not LAYOUT.exists(), reason="needs a checkout")
@pytest.mark.parametrize(("what", "example"), VALUES, ids=[what for what, _ in VALUES])
def test_each_layout_in_python_that_is_shown_places_a_cat_in_the_same_box(what, example):
    mask = np.zeros((16, 16), dtype=bool)
    mask[8:, 4:8] = True
    canvas = re.search(r"canvas=\((\d+), (\d+)\)", what)
    size = None if canvas is None else (int(canvas[1]), int(canvas[2]))
    value = eval(example, {"mask": mask})
    layout = as_layout(value, prompt="", aspect=1.0, canvas=size, **ENGLISH)
    assert [(o.phrase, o.box) for o in layout.objects] == [("a cat", (0.25, 0.5, 0.5, 1.0))]


@pytest.mark.skipif(not LAYOUT.exists(), reason="needs a checkout")
def test_every_layout_that_is_shown_is_tried():
    assert [len(FILES), len(VALUES)] == [table.count("\n") for table in tables()]


@pytest.mark.skipif(not LAYOUT.exists(), reason="needs a checkout")
def test_masks_and_boxes_in_the_page_of_layouts_are_drawn():
    (example,) = re.findall(
        r"```python\n(mask = .*?)```", LAYOUT.read_text(encoding="utf-8"), re.DOTALL
    )
    drawn = []
    pipe = Pipeline.from_pretrained()
    exec(example, {"np": np, "pipe": lambda *args, **named: drawn.append(pipe(*args, **named))})
    (result,) = drawn
    ring, square = result.layout.objects
    assert ring.outline.cells.sum() == 40 * 28
    assert (square.outline, square.box) == (None, (0.5, 0.4, 1.0, 1.0))
