"""Layouts that move."""

from typing import Any

import pytest
import torch

from stal.layout import Ellipse, Keyframes, Layout, Painted, PlacedObject, masks

CAT = ("a cat", "cat")
DOG = ("a dog", "dog")


def _layout(*boxes: Any, aspect: float = 1.0) -> Layout:
    names = zip((CAT, DOG), boxes, strict=False)
    return Layout("a cat and a dog", tuple(PlacedObject(*n, box) for n, box in names), (), aspect)


LEFT = _layout((0.0, 0.0, 0.2, 0.5), (0.5, 0.5, 1.0, 1.0))
RIGHT = _layout((0.6, 0.2, 1.0, 0.8), (0.5, 0.5, 1.0, 1.0))


def test_boxes_move_in_straight_lines_and_rest_outside() -> None:
    middle = _layout((0.2, 0.0, 0.4, 0.5), (0.0, 0.0, 0.5, 0.5))
    moving = Keyframes([LEFT, middle, RIGHT], [0.2, 0.6, 0.8])
    for moment, layout in ((-1, LEFT), (0, LEFT), (0.2, LEFT), (0.6, middle), (0.8, RIGHT)):
        assert moving.at_moment(moment) == layout
    assert moving.at_moment(1.0) == RIGHT
    boxes = [placed.box for placed in moving.at_moment(0.3).objects]
    assert boxes[0] == pytest.approx((0.05, 0.0, 0.25, 0.5))
    assert boxes[1] == pytest.approx((0.375, 0.375, 0.875, 0.875))
    assert moving.at_moment(0.7).objects[0].box == pytest.approx((0.4, 0.1, 0.7, 0.65))


def test_masks_are_those_of_each_frame() -> None:
    moving = Keyframes((LEFT, RIGHT), (0.0, 1.0))
    found = moving.masks(5, 6, 7)
    assert found.shape == (2, 5, 6, 7)
    for frame in range(5):
        x = frame / 4
        area = (0.2 + 0.2 * x) * (0.5 + 0.1 * x)
        assert float(found[0, frame].mean()) == pytest.approx(area, abs=1e-6)
        assert torch.equal(found[:, frame], masks(moving.at_moment(x), 6, 7))
    assert torch.equal(found[1], found[1, :1].expand(5, 6, 7))
    assert torch.equal(moving.masks(1, 6, 7)[:, 0], masks(LEFT, 6, 7))


def test_one_layout_rests() -> None:
    resting = Keyframes((LEFT,), (0.5,))
    assert {resting.at_moment(t) for t in (0.0, 0.5, 1.0)} == {LEFT}
    assert (resting.prompt, resting.objects, resting.aspect) == (LEFT.prompt, LEFT.objects, 1.0)


def test_ellipses_move_with_their_boxes_and_other_shapes_rest() -> None:
    cells = Painted(2, 2, (0, 1, 3))
    painted = PlacedObject(*DOG, (0.0, 0.0, 0.5, 0.5), outline=cells)

    def at(*box: float) -> Layout:
        ellipse = PlacedObject(*CAT, box, outline=Ellipse(box))
        return Layout("", (ellipse, painted))

    moving = Keyframes((at(0, 0, 0.5, 0.5), at(0.5, 0.5, 1, 1)), (0, 1))
    half = moving.at_moment(0.5).objects
    assert half[0].outline == Ellipse((0.25, 0.25, 0.75, 0.75))
    assert half[1] == painted


@pytest.mark.parametrize(
    ("layouts", "at", "says"),
    [
        ((), (), "at least one Layout, got none"),
        (("a cat",), (0,), "at least one Layout, got 'a cat'"),
        (5, (0,), "layouts must be a list, got 5"),
        ((LEFT, RIGHT), (0,), "a moment for each of 2 layouts, got 1"),
        ((LEFT, RIGHT), (0, 0), r"ascend in \[0, 1\], got \[0.0, 0.0\]"),
        ((LEFT, RIGHT), (0.5, 1.5), "ascend in"),
        ((LEFT, RIGHT), (float("nan"), 1), "ascend in"),
        ((LEFT, RIGHT), ("soon", 1), "at must be a number"),
        ((LEFT, _layout((0, 0, 1, 1))), (0, 1), r"layouts\[1\] must have the phrases of the first"),
        ((LEFT, _layout((0, 0, 1, 1), (0, 0, 1, 1), aspect=2)), (0, 1), r"\[1\].aspect must be"),
    ],
    ids=[
        "none",
        "no layout",
        "no list",
        "count",
        "same",
        "outside",
        "nan",
        "text",
        "phrases",
        "as",
    ],
)
def test_bad_keyframes_are_refused(layouts: Any, at: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Keyframes(layouts, at)


def test_a_shape_that_changes_is_refused() -> None:
    box = (0.0, 0.0, 0.5, 0.5)
    ellipse = Layout("", (PlacedObject(*CAT, box, outline=Ellipse(box)),))
    with pytest.raises(ValueError, match=r"objects\[0\] of all layouts .* got Ellipse, box"):
        Keyframes((ellipse, _layout(box)), (0, 1))


def test_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="frames must be positive, got 0"):
        Keyframes((LEFT,), (0,)).masks(0, 2, 2)
