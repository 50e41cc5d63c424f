"""Warnings that name the caller's line, however deep below it they arise."""

from __future__ import annotations

import sys
import warnings

# Ours, and what stands between our functions or calls them: decorators, progress bars, pipelines.
_PASSED_OVER = ("stal", "contextlib", "torch", "tqdm", "diffusers", "accelerate")


def warn(message: str) -> None:
    """`warnings.warn` as if the line outside of `stal` that led here had called it."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _PASSED_OVER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
