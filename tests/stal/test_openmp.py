"""Threads let go of the ones that help them, so that others are not slowed down by idle ones."""

import os
import threading
import time

import pytest
import torch

from stal import openmp
from stal.batch import Engine, Request
from stal.openmp import release_team, releasing_team
from stal.settings import Settings

gnu = pytest.mark.skipif(openmp._pause() is None, reason="torch runs on another OpenMP")


@pytest.fixture
def two_threads():
    """torch with two threads, of which the second is the main thread's team."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    release_team()
    yield
    release_team()
    torch.set_num_threads(before)


def compute():
    torch.ones(1 << 20).exp_()


def threads():
    """Of the process, by the number that the system has for each."""
    return set(os.listdir("/proc/self/task"))


def new(before, expected, patience=10.0):
    """The threads that came since, at the latest when they are as many as expected: one that was
    told to end needs a moment."""
    end = time.monotonic() + patience
    while len(found := threads() - before) != expected and time.monotonic() < end:
        time.sleep(0.01)
    return found


@gnu
def test_team_ends_and_comes_back(two_threads):
    before = threads()
    for _ in range(2):
        compute()
        assert len(new(before, 1)) == 1
        release_team()
        assert not new(before, 0)
    assert torch.get_num_threads() == 2


@gnu
def test_team_of_another_thread_stays(two_threads):
    before = threads()
    compute()
    thread = threading.Thread(target=release_team)
    thread.start()
    thread.join()
    assert len(new(before, 1)) == 1


@gnu
def test_decorated_function_lets_go_when_it_raises(two_threads):
    before = threads()

    @releasing_team()
    def fails():
        compute()
        assert len(new(before, 1)) == 1
        raise KeyError("within")

    with pytest.raises(KeyError, match="within"):
        fails()
    assert not new(before, 0)


@gnu
def test_idle_engine_has_no_team(two_threads, pipe):
    before = threads()
    with Engine(pipe, max_rows=2) as engine:
        request = Request("a red circle", Settings(steps=2), seed=0)
        for result in engine.map([request] * 3):
            assert result.images
        own = {str(thread.native_id) for thread in engine._loop._threads}
        assert new(before, len(own)) == own
    assert not new(before, 0)


def test_without_gnus_openmp_nothing_is_called(monkeypatch):
    monkeypatch.setattr(openmp, "_pause", lambda: None)
    release_team()


@pytest.mark.parametrize("missing", ["GOACC_wait", "omp_pause_resource_all"])
def test_library_without_the_functions_is_left_alone(monkeypatch, missing):
    class Library:
        def __init__(self, name):
            pass

        def __getattr__(self, name):
            if name == missing:
                raise AttributeError(name)
            return None

    openmp._pause.cache_clear()
    monkeypatch.setattr(openmp.ctypes, "CDLL", Library)
    try:
        assert openmp._pause() is None
    finally:
        openmp._pause.cache_clear()
