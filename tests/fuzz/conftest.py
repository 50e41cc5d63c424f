"""What everybody may hand to us is answered or refused in words: no crash, no traceback of ours,
no more than 1 GB and no more than 10 s of computing.

`pytest` runs a few examples of each harness, the same ones every time; `pytest tests/fuzz
--fuzz-seconds 600` draws new ones for so long.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis.strategies import SearchStrategy

_MOST_BYTES = 1 << 30
_MOST_SECONDS = 10.0

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def _resident(which: str) -> int:
    """VmRSS or VmHWM, its peak, in bytes; 0 where the system does not tell."""
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(which):
                return int(line.split()[1]) * 1024
    return 0


@contextmanager
def _limits() -> Iterator[None]:
    with suppress(OSError):
        _CLEAR.write_text("5")  # the peak begins anew
    before, began = _resident("VmRSS"), time.process_time()
    yield
    # Time of this process alone: a busy machine changes nothing.
    seconds, grown = time.process_time() - began, _resident("VmHWM") - before
    assert seconds < _MOST_SECONDS, f"took {seconds:.1f} s of computing"
    assert grown < _MOST_BYTES, f"took {grown / 2**20:.0f} MB"


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """fuzz(check, strategy, examples=N): check(drawn) must return, within the limits.

    `check` catches what may be raised; anything else fails. A run that dies leaves its last
    example in `last_example.txt` of the test's folder.
    """
    seconds = request.config.getoption("--fuzz-seconds")

    def run(check: Callable[[Any], None], strategy: SearchStrategy, *, examples: int) -> None:
        def limited(drawn: Any) -> None:
            if seconds:
                (tmp_path / "last_example.txt").write_text(repr(drawn), errors="backslashreplace")
            with _limits():
                check(drawn)

        settings = hypothesis.settings(
            max_examples=examples if not seconds else max(examples, 500),
            derandomize=not seconds,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        ends = time.monotonic() + seconds
        while True:
            settings(hypothesis.given(strategy)(limited))()
            if time.monotonic() >= ends:
                break

    return run
