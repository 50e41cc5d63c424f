"""The threads that help one that computes, its team, let go when it has nothing more to compute.

GNU's OpenMP, on which torch runs on Linux, has a thread that waits for the others of its team spin
for milliseconds, or for a microsecond and then sleep where the process has more threads in teams
than there are cores. Teams that have nothing to do are counted too. So whoever draws in a thread
of its own is slowed down by every other thread that has ever computed, until that one lets go of
its team; docs/engine.md has figures.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

_SOFT = 1  # omp_pause_soft: settings such as the number of threads stay


def release_team() -> None:
    """Ends the team of the calling thread, whose next parallel loop starts another one.

    Without effect where torch runs on another OpenMP, and within a parallel loop.
    """
    pause = _pause()
    if pause is not None:
        pause(_SOFT)


@contextmanager
def releasing_team() -> Iterator[None]:
    """`release_team` at the end, as a decorator of functions too."""
    try:
        yield
    finally:
        release_team()


@cache
def _pause() -> Callable[[int], int] | None:
    """omp_pause_resource_all of GNU's OpenMP 5.0, that of others stops more than a team."""
    try:
        process = ctypes.CDLL(None)
        _ = process.GOACC_wait  # which only GNU's has
        pause = process.omp_pause_resource_all
    except (OSError, TypeError, AttributeError):
        return None
    pause.argtypes, pause.restype = [ctypes.c_int], ctypes.c_int
    return pause
