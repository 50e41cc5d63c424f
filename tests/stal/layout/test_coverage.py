"""Masks and outlines: exact areas at every resolution, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stal.layout import Box, Layout, PlacedObject, hard_masks, masks, place
from stal.layout.coverage import Ellipse, Painted, Polygon, cell_shares, check_polygon
from stal.prompts import parse

BOX = (0.13, 0.2, 0.87, 0.71)
L_SHAPE = Polygon(((0.1, 0.1), (0.5, 0.1), (0.5, 0.6), (0.9, 0.6), (0.9, 0.9), (0.1, 0.9)))
RING = np.zeros((37, 23), dtype=bool)
RING[5:30, 4:20] = True
RING[10:20, 8:15] = False
OUTLINES = {
    "ellipse": (Ellipse(BOX), math.pi / 4 * 0.74 * 0.51),
    "triangle": (Polygon(((0.05, 0.9), (0.4, 0.1), (0.95, 0.7))), 0.325),
    "concave": (L_SHAPE, 0.4 * 0.8 + 0.4 * 0.3),
    "painted": (Painted.from_cells(RING), (25 * 16 - 70) / (37 * 23)),
}
SIZES = [(1, 1), (8, 8), (16, 24), (7, 13), (64, 64)]


def layout_of(outline):
    return Layout("", (PlacedObject("a thing", "thing", outline.box, 1.0, outline),))


def one(box: Box) -> Layout:
    return Layout("a dog", (PlacedObject("a dog", "dog", box),))


@given(st.from_type(Layout), st.integers(1, 20), st.integers(1, 20))
def test_masks_conserve_area(layout: Layout, height: int, width: int) -> None:
    found = masks(layout, height, width)
    assert found.shape == (len(layout.objects), height, width)
    assert found.dtype == torch.float32
    assert ((found >= 0) & (found <= 1)).all()
    for mask, placed in zip(found, layout.objects, strict=True):
        x0, y0, x1, y1 = placed.box
        area = (x1 - x0) * (y1 - y0) * height * width
        assert mask.double().sum().item() == pytest.approx(area, rel=1e-6, abs=1e-12)
        assert mask.max() > 0


def test_masks_are_the_share_of_each_cell() -> None:
    found = masks(one((0.25, 0.125, 0.875, 0.5)), 4, 4)[0]
    rows = torch.tensor([0.5, 1.0, 0.0, 0.0])
    columns = torch.tensor([0.0, 1.0, 1.0, 0.5])
    assert torch.equal(found, rows[:, None] * columns)


def test_masks_of_the_whole_canvas_are_one_at_any_size() -> None:
    for size in ((1, 1), (3, 7), (64, 48)):
        assert torch.equal(masks(one((0.0, 0.0, 1.0, 1.0)), *size), torch.ones(1, *size))


@pytest.mark.parametrize(
    "box",
    [
        (0.5, 0.5, math.nextafter(0.5, 1), math.nextafter(0.5, 1)),
        (math.nextafter(1, 0), 0.3, 1.0, 0.3 + 1e-12),
        (0.0, 0.0, 5e-324, 5e-324),
        (0.1, 0.1, 0.1 + 1e-9, 0.9),
    ],
    ids=["middle", "edge", "denormal", "sliver"],
)
def test_masks_never_vanish(box: Box) -> None:
    for size in (1, 8, 64):
        found = masks(one(box), size, size)
        assert (found > 0).any()
        row, column = divmod(int(found.argmax()), size)
        assert row <= box[3] * size <= row + size
        assert column / size <= box[2]
        assert (column + 1) / size >= box[0]


def test_coarser_masks_are_means_of_finer_ones() -> None:
    layout = place(parse("a dog left of a cat and a bird"), aspect=1.5, seed=1)
    fine = masks(layout, 48, 32)
    coarse = fine.reshape(-1, 12, 4, 8, 4).mean((2, 4))
    torch.testing.assert_close(masks(layout, 12, 8), coarse)


def test_masks_of_no_object_are_empty() -> None:
    assert masks(Layout("nothing"), 8, 4).shape == (0, 8, 4)


@pytest.mark.parametrize(("height", "width", "name"), [(0, 4, "height"), (4, -1, "width")])
def test_masks_refuse_a_grid_without_cells(height: int, width: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got"):
        masks(one((0.0, 0.0, 1.0, 1.0)), height, width)


@pytest.mark.parametrize(("outline", "area"), OUTLINES.values(), ids=OUTLINES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_masks_conserve_the_area_of_outlines(outline, area, height, width):
    found = masks(layout_of(outline), height, width)
    assert found.mean().item() == pytest.approx(area, rel=1e-5)
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize(("outline", "area"), OUTLINES.values(), ids=OUTLINES)
def test_coarse_cells_are_means_of_fine_ones(outline, area):
    fine = cell_shares(outline, 48, 32)
    coarse = fine.reshape(8, 6, 8, 4).mean((1, 3))
    np.testing.assert_allclose(cell_shares(outline, 8, 8), coarse, atol=1e-12)


@pytest.mark.parametrize("outline", [Ellipse(BOX), OUTLINES["triangle"][0], L_SHAPE])
def test_coverage_equals_counted_points(outline):
    from PIL import Image, ImageDraw

    side, cells = 1600, 8
    image = Image.new("1", (side, side))
    pen = ImageDraw.Draw(image)
    if isinstance(outline, Ellipse):
        pen.ellipse([edge * side for edge in outline.box], fill=1)
    else:
        pen.polygon([(x * side, y * side) for x, y in outline.corners], fill=1)
    counted = np.asarray(image, dtype=float)
    counted = counted.reshape(cells, side // cells, cells, side // cells).mean((1, 3))
    np.testing.assert_allclose(cell_shares(outline, cells, cells), counted, atol=0.02)


def test_a_polygon_equals_the_box_that_it_is():
    x0, y0, x1, y1 = BOX
    corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    box = masks(Layout("", (PlacedObject("a thing", "thing", BOX),)), 9, 5)
    for each in (corners, corners[::-1]):
        torch.testing.assert_close(masks(layout_of(Polygon(each)), 9, 5), box)


@settings(max_examples=60, deadline=None)
@example([(0.0, 0.0), (0.0, 0.0), (1e-12, 1.0)])
@example([(0.3, 0.2), (0.3 + 1e-11, 0.9), (0.3 + 2e-11, 0.1)])
@example([(0.0, 0.5), (1.0, 0.5 + 1e-300), (0.5, 0.5)])
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=3))
def test_triangles_conserve_their_area(corners):
    (ax, ay), (bx, by), (cx, cy) = corners
    area = abs((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)) / 2
    found = cell_shares(Polygon(tuple(corners)), 16, 12)
    assert found.mean() == pytest.approx(area, abs=1e-9)


def test_painted_cells_come_back():
    for cells in (RING, ~RING, np.ones((2, 3), dtype=bool)):
        painted = Painted.from_cells(cells)
        np.testing.assert_array_equal(painted.cells, cells)
        np.testing.assert_allclose(cell_shares(painted, *cells.shape), cells, atol=1e-12)


def test_painted_cells_are_counted_from_their_runs():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.1, 0.5, 0.98, 1.0):
        cells = rng.random((12, 20)) < share
        cells[rng.integers(12), rng.integers(20)] = True
        painted = Painted.from_cells(cells)
        rows, columns = (np.flatnonzero(cells.any(axis)) for axis in (1, 0))
        box = (columns[0] / 20, rows[0] / 12, (columns[-1] + 1) / 20, (rows[-1] + 1) / 12)
        assert painted.box == box
        for height, width in ((12, 20), (6, 5), (3, 1)):
            blocks = cells.reshape(height, 12 // height, width, 20 // width).mean((1, 3))
            np.testing.assert_allclose(cell_shares(painted, height, width), blocks, atol=1e-12)


def test_hard_masks_leave_no_object_without_a_cell():
    tiny = PlacedObject("a dot", "dot", (0.501, 0.501, 0.502, 0.502))
    half = PlacedObject("a field", "field", (0.0, 0.0, 1.0, 0.5))
    found = hard_masks(Layout("", (tiny, half)), 8, 8)
    assert found.dtype == torch.bool
    assert found[0].nonzero().tolist() == [[4, 4]]
    assert found[1].sum() == 32


@pytest.mark.parametrize("outline", [each for each, _ in OUTLINES.values()], ids=OUTLINES)
def test_layouts_with_shapes_come_back_from_json(outline):
    layout = layout_of(outline)
    assert '"version": 2' in layout.to_json()
    assert Layout.from_json(layout.to_json()) == layout


def test_layouts_without_shapes_stay_of_version_1():
    assert '"version": 1' in Layout("", (PlacedObject("a thing", "thing", BOX),)).to_json()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('"circle"', "must be \"ellipse\", a list of corners or painted cells, got 'circle'"),
        ("[[0, 0], [1, 1]]", r"must have at least 3 corners, got 2"),
        ("[[0, 0], [1, 1], [1]]", r"\[2\] must be \[x, y\], got \[1\]"),
        ("[[0, 0], [1, 1], [2, 0]]", r"must lie inside \[0, 1\], got the corner \[2.0, 0.0\]"),
        ("[[0, 0], [0.5, 0.5], [1, 1]]", "must have an area, got none"),
        ("[[0, 0], [1, 1], [1, 0], [0, 1]]", "must not cross itself, got edges 0 and 2"),
        ('{"height": 2, "width": 2, "runs": [1, 1]}', "add up to 2 x 2 cells, got 2"),
        ('{"height": 2, "width": 2, "runs": [4]}', "must cover a cell, got none"),
        ('{"height": 2, "width": 2, "runs": [3, 1], "x": 1}', 'must not have "x"'),
        ('{"height": 0, "width": 2, "runs": []}', "add up to 0 x 2"),
        ("3", "must be"),
        ("[[0.6, 0.1], [1, 0.1], [1, 1]]", "must lie inside its box"),
    ],
)
def test_shapes_that_are_none_are_named(shape, message):
    text = (
        '{"version": 2, "prompt": "", "aspect": 1, "relations": [], "objects":'
        f' [{{"phrase": "a", "noun": "a", "box": [0, 0, 0.9, 1], "shape": {shape}}}]}}'
    )
    with pytest.raises(ValueError, match=r"objects\[0\].shape.*" + message):
        Layout.from_json(text)


def test_version_1_has_no_shapes():
    text = layout_of(Ellipse(BOX)).to_json().replace('"version": 2', '"version": 1')
    with pytest.raises(ValueError, match=r'objects\[0\] must not have "shape"'):
        Layout.from_json(text)


def test_polygon_check_returns_the_polygon():
    assert check_polygon(L_SHAPE.corners, "shape") == L_SHAPE
