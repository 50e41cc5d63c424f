"""Exact intervals of shares."""

import pytest

from stal.evaluation.intervals import interval


def test_interval_is_exact() -> None:
    assert interval(0, 10)[0] == 0.0
    assert interval(0, 10)[1] == pytest.approx(1 - 0.025 ** (1 / 10))
    assert interval(0, 0) == (0.0, 1.0)
