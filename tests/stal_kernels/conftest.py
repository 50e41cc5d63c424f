import os

import pytest
import torch

from stal_kernels import backends, why_not
from stal_kernels.backends import choice, cpu
from stal_kernels.testing import quicken_interpreter

# On the CPU Triton needs its interpreter, which it chooses for good when it is imported:
# test_triton.py runs a process with it, and in that process the backend is triton alone.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    quicken_interpreter()
CPU_BACKENDS = tuple(name for name in backends.names() if name not in ("cuda", "triton"))
BACKENDS = ("triton",) if INTERPRETED else CPU_BACKENDS


def _must_run(backend: str) -> str:
    """Skips a level that this CPU lacks; one that is not built is a failure."""
    reasons = why_not(backend)
    if any("this CPU lacks" in reason for reason in reasons):
        pytest.skip("; ".join(reasons))
    assert not reasons, reasons
    return backend


@pytest.fixture(params=BACKENDS, ids=lambda name: name.replace(":", "-"))
def backend(request) -> str:
    return _must_run(request.param)


@pytest.fixture(params=cpu.LEVELS)
def level(request) -> str:
    _must_run(f"cpu:{request.param}")
    return request.param


@pytest.fixture(autouse=True)
def _restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _forget_choices():
    """Choices and warnings that a process keeps belong to one test."""
    kept = (choice._choose, choice._choose_backward, choice._missing, choice._warn_slow)
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()
