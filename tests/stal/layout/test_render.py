"""Drawn layouts, and pictures beside others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stal.layout import Box, Layout, PlacedObject, draw, place, render, sketch
from stal.layout.coverage import Painted
from stal.prompts import parse

PROMPT = "a red circle to the left of a blue square"


def checkered(width=16, height=12) -> Image.Image:
    pixels = np.indices((height, width)).sum(0) % 2 * 255
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def one(box: Box) -> Layout:
    return Layout("a dog", (PlacedObject("a dog", "dog", box),))


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


def test_drawing_traces_masks_along_their_edge():
    cells = np.zeros((8, 8), dtype=bool)
    cells[2:6, 2:4] = cells[4:6, 2:7] = True  # an L
    painted = Painted.from_cells(cells)
    layout = Layout("a dog", (PlacedObject("a dog", "dog", painted.box, outline=painted),))
    found = draw(layout, Image.new("RGB", (512, 512), "white"))
    white = (255, 255, 255)
    assert found.getpixel((254, 200)) != white  # the right edge of the upright
    assert found.getpixel((350, 257)) != white  # the upper edge of the foot
    assert found.getpixel((446, 300)) != white
    assert found.getpixel((350, 130)) == white  # where a box would have its edge
    assert found.getpixel((200, 320)) == white  # inside


@pytest.mark.parametrize("function", [sketch, lambda layout: draw(layout, checkered())])
def test_what_is_no_layout_is_refused(function):
    with pytest.raises(ValueError, match=r"layout must be a Layout, such as regions\.layouts"):
        function((one((0, 0, 1, 1)),))


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
@given(st.from_type(Layout), st.integers(1, 80), st.integers(1, 80), st.sampled_from([1, 100]))
def test_drawing_takes_any_layout(layout: Layout, width: int, height: int, side: int) -> None:
    found = draw(layout, Image.new("RGB", (width, height)), min_side=side)
    assert min(found.size) >= side
    assert found.width * height == found.height * width


def test_drawing_shortens_a_long_phrase() -> None:
    layout = Layout("text", (PlacedObject("word " * 500, "word", (0.9, 0.9, 1.0, 1.0)),))
    found = draw(layout, Image.new("RGB", (256, 256), "white"))
    assert found.getpixel((255, 10)) == (255, 255, 255)
    assert found.getpixel((20, 231)) != (255, 255, 255)


@pytest.mark.parametrize("size", [(16, 16), (16, 40), (48, 8)], ids=str)
def test_compare_shows_layout_plain_and_ours(size):
    plain, ours = Image.new("RGB", size, "red"), Image.new("RGB", size, "lime")
    layout = place(parse(PROMPT), aspect=size[0] / size[1])
    out = render.compare(plain, ours, layout, prompt=PROMPT, attention="spatial", width=240)
    height = round(240 * size[1] / size[0])
    assert out.width == 3 * 240 + 4 * 10
    assert out.height > height
    assert out.mode == "RGB"
    pixels = np.asarray(out)
    # Panels lie where nothing is drawn over them: their lower left corners.
    row = 240 // 9 + height - 2
    corners = [pixels[row, 10 + i * 250 + 1].tolist() for i in range(3)]
    assert corners == [[250, 250, 250], [255, 0, 0], [0, 255, 0]]
    # Boxes are drawn over the layout and ours, not over plain.
    area = pixels[240 // 9 : 240 // 9 + height]
    assert (area[:, 260:500] == [255, 0, 0]).all()
    assert not (area[:, 510:750] == [0, 255, 0]).all()
    # Titles above, the prompt below.
    assert (pixels[: 240 // 9 - 2] == 0).any()
    assert (pixels[240 // 9 + height + 2 :] == 0).any()


def test_compare_wraps_a_long_prompt():
    image, layout = checkered(), place(parse(PROMPT))
    heights = [
        render.compare(image, image, layout, prompt=prompt, attention="spatial").height
        for prompt in ("", PROMPT, " and ".join([PROMPT] * 20), "x" * 500)
    ]
    assert heights[0] < heights[1] < heights[2]
    assert heights[1] == heights[3]
