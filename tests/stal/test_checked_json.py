"""JSON and numbers of other people's making: what is read, and in which words what is not."""

import json
import os
from fractions import Fraction

import numpy as np
import pytest
import torch

from stal.checked_json import is_integer, loads, number, read_json, scalar, typed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "in line 1, column 2"),
        ('{"a": 1, "b": {"a": 1, "c": 2, "a": 3}}', "two of the key 'a' in one object"),
        ("[" * 100_000, "deep nesting"),
        ("9" * 5000, "an integer of 5000 digits"),
        ("", "expecting value"),
    ],
    ids=["open", "twice", "deep", "digits", "empty"],
)
def test_what_is_no_json_is_told(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        loads(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=f"a.json must be JSON, got .*{message}"):
        read_json(tmp_path / "a.json")


def test_json_of_any_mark_and_encoding_is_read(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.json").write_text('{"a": "à"}', encoding=encoding)
        assert read_json(tmp_path / "a.json") == {"a": "à"}


def test_what_is_no_file_of_json_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in [("pipe", "got the pipe"), (".", "got the folder"), ("a", "no such file")]:
        with pytest.raises(ValueError, match=message):
            read_json(tmp_path / name)


INTEGERS = [5, np.int64(5), np.uint8(5), np.array(5), torch.tensor(5), torch.tensor(5).short()]
FLOATS = [2.5, np.float32(2.5), np.float16(2.5), np.array(2.5), torch.tensor(2.5), Fraction(5, 2)]
FLOATS += [np.longdouble(2.5), torch.tensor(2.5, dtype=torch.bfloat16, requires_grad=True)]


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_integers_of_every_kind_are_integers(value):
    assert is_integer(value)
    assert typed(value, int, "steps") == 5
    assert type(number(value, "x")) is float
    assert json.dumps(scalar(value)) == "5"


@pytest.mark.parametrize("value", FLOATS, ids=repr)
def test_numbers_of_every_kind_are_numbers(value):
    assert not is_integer(value)
    assert json.dumps(scalar(value)) == json.dumps(number(value, "x")) == "2.5"


@pytest.mark.parametrize(
    "value",
    [
        *(True, np.True_, torch.tensor(True), "5", b"5", None, 1j, np.complex64(1), [5]),
        *(np.array([5]), torch.tensor([5]), torch.empty((), device="meta"), np.datetime64(5, "D")),
    ],
    ids=repr,
)
def test_what_is_no_number_is_refused(value):
    assert not is_integer(value)
    with pytest.raises(ValueError, match="x must be a number, got"):
        number(value, "x")
    with pytest.raises(ValueError, match="x must be an integer, got"):
        typed(value, int, "x")


@pytest.mark.parametrize("value", [10**400, Fraction(10**400)])
def test_numbers_that_no_float_holds_are_refused(value):
    with pytest.raises(ValueError, match=r"x must be a (finite )?number, got"):
        number(value, "x")
