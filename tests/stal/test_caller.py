"""Warnings name the line of whoever called us."""

import contextlib

import pytest

from stal.settings import Settings

NOTHING = "above"


@pytest.mark.parametrize(
    "draw",
    [
        lambda pipe: pipe(NOTHING, steps=1),
        lambda pipe: pipe.batch([NOTHING], Settings(steps=1)),
        lambda pipe: pipe.prepare([NOTHING], Settings(steps=1)),
        lambda pipe: pipe("a red circle", steps=1, attention="plain", reference="an empty scene"),
    ],
    ids=["call", "batch", "prepare", "no effect"],
)
def test_a_warning_names_the_callers_line(pipe, draw):
    with pytest.warns(UserWarning, match="plain attention") as told:
        draw(pipe)
    assert {each.filename for each in told} == {__file__}


def test_a_decorator_of_the_callers_own_is_no_line_of_his(pipe):
    @contextlib.contextmanager
    def anything():
        yield

    draw = anything()(pipe.prepare)
    with pytest.warns(UserWarning, match="no object was found") as told:
        draw([NOTHING], Settings(steps=1))
    assert told[0].filename == __file__
