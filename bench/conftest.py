"""Options of `pytest bench`, see test_speed.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "instead of a few cases all of bench_blended_attention.py with this in their name"
    parser.addoption("--cases", default="", metavar="TEXT", help=text)
