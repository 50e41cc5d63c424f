import os
from dataclasses import replace

import pytest
import torch

from stal_kernels import backends, why_not
from stal_kernels.backends import choice, cpu

# On the CPU Triton needs its interpreter, which it chooses for good when it is imported:
# test_triton.py runs a process with it, and in that process the backend is triton alone.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
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


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter():
    """Leaves out what takes three quarters of the interpreter's time.

    It prepares triton.language anew for each function that it enters, which a launch does for all
    functions of the kernel's module, and computes sums and products of integers again in 64 bits:
    only test_addresses_beyond_32_bits_are_right has any that are too large for 32.
    """
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    original, prepared = interpreter._patch_lang, {"stal_kernels.backends.triton.kernels"}

    def call(self, *args, **kwargs):
        if self.fn.__module__ not in prepared:
            prepared.add(self.fn.__module__)
            original(self.fn)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        builder = interpreter.interpreter_builder
        patch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
        yield
