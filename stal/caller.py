"""Warnings that name the caller's line, however deep below it they arise; and those of one call."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

# Ours, and what stands between our functions or calls them: decorators, progress bars, pipelines.
_PASSED_OVER = ("stal", "contextlib", "torch", "tqdm", "diffusers", "accelerate")


def warn(message: str) -> None:
    """`warnings.warn` as if the line outside of `stal` that led here had called it."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _PASSED_OVER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


@contextmanager
def caught() -> Iterator[list[str]]:
    """What this thread warns users of within; other threads warn as before.

    One thread of the process at a time may be within.
    """
    found: list[str] = []
    mine = threading.get_ident()
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if threading.get_ident() != mine:
                before(message, category, filename, lineno, file, line)
            elif category is UserWarning:
                found.append(str(message))

        warnings.showwarning = show
        warnings.simplefilter("always", UserWarning)
        yield found
