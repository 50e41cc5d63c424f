"""Masks as values of Python: tensors, arrays and pictures in memory as the regions of a layout."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from stal import budget
from stal.layout import Layout, hard_masks, masks
from stal.layout.formats import as_layout
from stal.prompts import article, noun_of

CELLS = np.zeros((8, 12), dtype=bool)
CELLS[2:5, 3:11] = True
CELLS[7, 0] = True
BOX = (0.0, 0.25, 11 / 12, 1.0)
FLOATS = CELLS.astype(np.float32)
BYTES = (CELLS * 255).astype(np.uint8)


def read(value, *, aspect=1.5, prompt="p", **options):
    return as_layout(
        value, prompt=prompt, aspect=aspect, noun_of=noun_of, article=article, **options
    )


def mask_of(mask, **options):
    (placed,) = read([("a cat", mask)], **options).objects
    return placed.outline


KINDS = {
    "bool array": CELLS,
    "0 and 1": CELLS.astype(np.int64),
    "0 to 255": BYTES,
    "int32 to 255": BYTES.astype(np.int32),
    "float32": FLOATS,
    "float16": FLOATS.astype(np.float16),
    "float64": FLOATS.astype(np.float64),
    "big endian": FLOATS.astype(">f4"),
    "columns first": np.asfortranarray(FLOATS),
    "every second": np.repeat(CELLS, 2, axis=1)[:, ::2],
    "read only": np.frombuffer(BYTES.tobytes(), dtype=np.uint8).reshape(8, 12),
    "(1, h, w)": CELLS[None],
    "(1, 1, h, w)": CELLS[None, None],
    "tensor": torch.from_numpy(CELLS),
    "tensor of bytes": torch.from_numpy(BYTES),
    "bfloat16": torch.from_numpy(FLOATS).bfloat16(),
    "half": torch.from_numpy(FLOATS).half(),
    "double": torch.from_numpy(FLOATS).double(),
    "with gradient": torch.from_numpy(FLOATS).requires_grad_(),
    "transposed": torch.from_numpy(FLOATS.T.copy()).T,
    "tensor (1, 1, h, w)": torch.from_numpy(FLOATS)[None, None],
    "picture of bits": Image.fromarray(CELLS),
    "grey picture": Image.fromarray(BYTES),
    "picture in RGB": Image.fromarray(BYTES).convert("RGB"),
    "picture of floats": Image.fromarray(FLOATS),
    "picture of integers": Image.fromarray(BYTES.astype(np.int32)),
    "thresholds": np.where(CELLS, 0.5, np.nextafter(0.5, 0)),
    "thresholds of bytes": np.where(CELLS, 128, 127).astype(np.uint8),
}


@pytest.mark.filterwarnings("ignore:layout.0. is a soft mask")
@pytest.mark.parametrize("mask", KINDS.values(), ids=KINDS)
def test_a_mask_is_the_cells_that_it_covers(mask):
    layout = read([("a red cat", mask)])
    (cat,) = layout.objects
    assert (cat.phrase, cat.noun, cat.box) == ("a red cat", "cat", BOX)
    np.testing.assert_array_equal(cat.outline.cells, CELLS)
    np.testing.assert_array_equal(masks(layout, 8, 12)[0].numpy() > 0.5, CELLS)
    assert (layout.prompt, layout.aspect) == ("p", 1.5)
    assert Layout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_a_mask_may_be_on_any_device(device):
    np.testing.assert_array_equal(mask_of(torch.from_numpy(FLOATS).to(device)).cells, CELLS)


def test_masks_and_boxes_go_together():
    forms = (
        [("a cat", FLOATS), ("a dog", (0, 0, 0.5, 0.5))],
        {"a cat": FLOATS, "a dog": (0, 0, 0.5, 0.5)},
        [{"phrase": "a cat", "mask": FLOATS}, {"phrase": "a dog", "box": (0, 0, 0.5, 0.5)}],
        (each for each in [("a cat", FLOATS), ("a dog", torch.tensor([0, 0, 0.5, 0.5]))]),
    )
    for form in forms:
        cat, dog = read(form).objects
        np.testing.assert_array_equal(cat.outline.cells, CELLS)
        assert (dog.outline, dog.box) == (None, (0.0, 0.0, 0.5, 0.5))


STACK = np.stack([CELLS, ~CELLS, np.ones_like(CELLS)])


@pytest.mark.parametrize(
    "stack",
    [STACK, torch.from_numpy(STACK), torch.from_numpy(STACK)[:, None].float(), list(STACK)],
    ids=["array", "tensor", "(k, 1, h, w)", "list"],
)
def test_a_stack_of_masks_goes_with_phrases(stack):
    layout = read({"phrases": ["a cat", "a dog", "grass"], "masks": stack})
    assert [o.phrase for o in layout.objects] == ["a cat", "a dog", "grass"]
    for placed, cells in zip(layout.objects, STACK, strict=True):
        np.testing.assert_array_equal(placed.outline.cells, cells)
    assert layout.prompt == "p"
    assert read({"phrases": ["a cat"], "masks": stack[:1], "prompt": "q"}).prompt == "q"


def test_masks_may_overlap_and_leave_cells_uncovered():
    layout = read([("a cat", CELLS), ("a hat", CELLS), ("a dog", np.roll(CELLS, 1))])
    assert hard_masks(layout, 8, 12).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("height", "width", "aspect"),
    [
        *((64, 96, 1.5), (64, 97, 1.5), (64, 95, 1.5), (65, 96, 1.5), (63, 96, 1.5), (1, 1, 1.5)),
        *((333, 500, 1.5), (96, 64, 2 / 3), (97, 64, 2 / 3), (10, 99, 10)),
    ],
)
def test_a_mask_has_the_canvas_aspect_to_within_a_cell(height, width, aspect):
    outline = mask_of(np.ones((height, width), dtype=bool), aspect=aspect)
    assert (outline.height, outline.width) == (height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 100), (66, 96), (96, 64), (1, 64)])
def test_a_mask_of_another_aspect_is_refused(height, width):
    with pytest.raises(ValueError, match=r"layout\[0\] must have the canvas's aspect 1.5, got a m"):
        mask_of(np.ones((height, width), dtype=bool))
    message = (
        f"a mask of another aspect, {width} x {height}: resize it, or give the picture's size"
        r" \(height and width of stal.Pipeline\) or its aspect=width / height$"
    )
    with pytest.raises(ValueError, match=message):
        mask_of(np.ones((height, width), dtype=bool))


def test_the_canvas_that_is_given_is_the_one_of_masks():
    assert read([("a cat", CELLS)], aspect=1.0, canvas=(300, 200)).aspect == 1.5


@pytest.mark.parametrize("aspect", [0.0, -1.0, float("nan")])
def test_a_canvas_without_an_aspect_is_refused(aspect):
    with pytest.raises(ValueError, match="aspect must be positive"):
        mask_of(CELLS, aspect=aspect)


class NoArray:
    shape = (8, 12)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("not here")


def damaged():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120), np.uint8)).save(
        buffer, "PNG"
    )
    return Image.open(io.BytesIO(buffer.getvalue()[:500]))


NAN = FLOATS.copy()
NAN[0, 0] = np.nan
BAD = {
    "NaN": (NAN, "must be a mask of numbers, got NaN"),
    "infinity": (np.where(CELLS, np.inf, 0), r"of numbers in \[0, 1\], got 0.0 to inf"),
    "above 1": (FLOATS * 255, r"must be a mask of numbers in \[0, 1\], got 0.0 to 255.0"),
    "below 0": (FLOATS - 1, r"must be a mask of numbers in \[0, 1\], got -1.0 to 0.0"),
    "negative": (-CELLS.astype(int), "of numbers in 0 and 1, or 0 to 255, got -1 to 0"),
    "above 255": (BYTES.astype(int) * 257, "of numbers in 0 and 1, or 0 to 255, got 0 to 65535"),
    "numbers of objects": (CELLS * 3, "cover a cell at least half, got a mask of numbers up to 3"),
    "empty": (FLOATS * 0, "must cover a cell, got an empty mask"),
    "faint": (FLOATS * 0.3, "must cover a cell at least half, got a mask of numbers up to 0.3"),
    "complex": (FLOATS.astype(complex), "must be a mask of bools or numbers, got complex128"),
    "texts": (np.full((8, 12), "a"), "must be a mask of bools or numbers, got <U1"),
    "objects": (np.full((8, 12), None), "must be a mask of bools or numbers, got object"),
    "stack": (STACK, r"got \(3, 8, 12\): give a stack as {\"phrases\""),
    "five": (CELLS[None, None, None], r"of shape \(h, w\), .* got \(1, 1, 1, 8, 12\)$"),
    "channels last": (CELLS[..., None], r"of shape \(h, w\), .* got \(8, 12, 1\)"),
    "no cells": (CELLS[:, :0], "must be a mask with cells, got 8 x 0"),
    "no value": (torch.ones(8, 12, device="meta"), "must be a mask that can be read, got Cannot"),
    "sparse": (torch.ones(8, 12).to_sparse(), "must be a mask that can be read, got"),
    "colours": (
        Image.new("RGB", (12, 8), (255, 0, 0)),
        "in black, white and grey, got a picture in RGB: choose a channel",
    ),
    "transparency": (Image.new("RGBA", (12, 8)), "got a picture in RGBA: choose a channel"),
    "palette": (Image.fromarray(BYTES).convert("P"), "got a picture in P: choose a channel"),
    "damaged picture": (damaged(), "must be a mask that can be read, got"),
    "no array": (NoArray(), "must be a mask that can be read, got not here"),
    "too wide": (
        np.broadcast_to(np.bool_(True), (1, budget.MOST_MASK_SIDE + 1)),
        "must be a mask with sides of at most 16384",
    ),
    "huge": (
        np.broadcast_to(np.float32(1), (12_000, 16_000)),
        f"at most {budget.MOST_MASK_CELLS} cells, got 16000 x 12000",
    ),
    "noise": (
        np.random.default_rng(0).random((1000, 1500)) < 0.5,
        r"must be a mask of few areas: runs must be at most \d+, got \d+",
    ),
}


@pytest.mark.parametrize(("mask", "message"), BAD.values(), ids=BAD)
def test_a_mask_that_is_none_is_refused_with_its_place(mask, message):
    with pytest.raises(ValueError, match=rf"^layout\[1\] .*{message}") as caught:
        read([("a dog", CELLS), ("a cat", mask)])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"phrases": ["a"], "masks": STACK}, "masks must be one a phrase, got 3 for 1 phrases"),
        ({"phrases": "abc", "masks": STACK}, "phrases must be a list, got 'abc'"),
        ({"phrases": ["a", "", "b"], "masks": STACK}, r"masks\[1\] must be a pair"),
        ({"phrases": ["a", 3, "b"], "masks": STACK}, r"masks\[1\] must be a pair"),
        ({"phrases": ["a"] * 8, "masks": CELLS}, r"masks must be of shape \(k, h, w\), got \(8, 1"),
        ({"phrases": ["a"], "masks": CELLS[None] * 0}, r"masks\[0\] must cover a cell"),
        ({"phrases": ["a"], "masks": None}, r"masks must be a tensor \(k, h, w\) or a list, got N"),
        ({"phrases": ["a"], "masks": ["x"]}, r"masks\[0\] must have a box or a mask, got the text"),
        (
            {"phrases": ["a"], "masks": CELLS[None], "size": 3},
            'must not have "size" beside "masks"',
        ),
        ({"phrases": ["a"], "masks": CELLS[None], "prompt": 3}, "prompt must be a string, got 3"),
        ({"phrases": ["a"] * 1001, "masks": STACK}, "phrases must be at most 1000, got 1001"),
        (STACK, r"layout must name what its masks are of, .* got an array \(3, 8, 12\)"),
        (torch.ones(3, 8, 12), r"layout must name what its masks are of"),
        (Image.fromarray(BYTES), "layout must be a Layout, its JSON, a path or"),
        ([("", CELLS)], r"layout\[0\] must be a pair \(phrase, .* or \(phrase, mask\), got"),
        ([CELLS], r"layout\[0\] must be a pair"),
        ([("a cat", CELLS, 1)], r"layout\[0\] must be a pair"),
        ([("a cat", CELLS[0])], r"layout\[0\] must be a number, got False"),
        ([("a cat", CELLS.tolist())], r"layout\[0\] must be a number"),
        ((("a cat", CELLS) for _ in iter(int, 1)), "objects must be at most 1000, got 1001"),
    ],
    ids=range(20),
)
def test_what_goes_with_no_phrase_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        read(value)


def test_a_soft_mask_is_read_with_a_warning():
    ramp = np.linspace(0, 1, 12)[None].repeat(8, 0)
    with pytest.warns(UserWarning, match=r"^layout\[0\] is a soft mask, of which a layout keeps"):
        outline = mask_of(ramp)
    np.testing.assert_array_equal(outline.cells, ramp >= 0.5)
    with pytest.warns(UserWarning, match=r"keeps the 48 of 88 cells"):
        mask_of((ramp * 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_smoothed_edges_are_no_soft_mask(kind):
    large = Image.fromarray(BYTES).resize((240, 160), Image.Resampling.NEAREST)
    smooth = np.asarray(large.resize((70, 47), Image.Resampling.BOX))
    assert ((smooth > 0) & (smooth < 255)).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask_of(smooth / 255 if kind == "float" else smooth)


def test_a_mask_is_left_as_it_is():
    mask = torch.from_numpy(FLOATS.copy()).requires_grad_()
    before = mask.detach().clone()
    outline = mask_of(mask)
    with torch.no_grad():
        mask.zero_()
    np.testing.assert_array_equal(outline.cells, before > 0)
