"""Ways to run a command that its tests share."""

from pathlib import Path

import pytest

from stal.pipeline import Pipeline


@pytest.fixture
def run_lines(run):
    """run_lines(*arguments) -> exit code, lines of stdout, lines of stderr; in tmp_path."""

    def call(*arguments):
        code, out, err = run(*arguments)
        return code, out.splitlines(), err.splitlines()

    return call


@pytest.fixture
def failure(run_lines):
    """failure(*arguments) -> the one line of a command that exits with 1 and leaves no trace."""

    def call(*arguments):
        before = {p: p.read_bytes() if p.is_file() else None for p in Path().rglob("*")}
        code, out, err = run_lines(*arguments)
        assert (code, out) == (1, [])
        assert len(err) == 1
        assert before == {p: p.read_bytes() if p.is_file() else None for p in Path().rglob("*")}
        assert err[0].startswith("stal: ")
        return err[0].removeprefix("stal: ")

    return call


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model is an error of the test."""

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Pipeline, "from_pretrained", load)
