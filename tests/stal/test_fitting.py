"""Sizes of layouts."""

import pytest

from stal.fitting import size_of_aspect
from stal.layout import place
from stal.prompts import parse

TWO = "a red circle to the left of a blue square"


@pytest.mark.parametrize(
    ("aspect", "multiple", "size"),
    [
        (1.0, 16, (64, 64)),
        (16 / 9, 16, (48, 80)),
        (9 / 16, 16, (80, 48)),
        (2.0, 4, (44, 88)),
        (1e9, 16, (16, 512)),
        (1e-9, 16, (512, 16)),
        (1.0, 512, (512, 512)),
    ],
)
def test_a_size_has_the_aspect_and_about_the_area(aspect, multiple, size):
    assert size_of_aspect(aspect, pixels=64 * 64, multiple=multiple) == size


def test_a_layout_given_as_json_gives_the_size_too(pipe):
    layout = place(parse(TWO), aspect=2.0)
    result = pipe(TWO, layout=layout.to_json(), steps=1)
    assert result.images[0].size == (24, 12)


def test_layouts_of_two_aspects_get_the_models_size(pipe):
    layouts = [place(parse(TWO), aspect=a) for a in (1.0, 2.0)]
    with pytest.warns(UserWarning, match=r"\(width / height\) of 2 and is stretched to 16 x 16"):
        drawing = pipe.prepare([TWO] * 2, layouts=layouts)
    assert drawing.cells == (8, 8)
