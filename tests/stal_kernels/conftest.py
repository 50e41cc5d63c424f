import pytest
import torch

from stal_kernels import backends, why_not
from stal_kernels.backends import cpu


def _must_run(backend: str) -> str:
    """Skips a level that this CPU lacks; one that is not built is a failure."""
    reasons = why_not(backend)
    if any("this CPU lacks" in reason for reason in reasons):
        pytest.skip("; ".join(reasons))
    assert not reasons, reasons
    return backend


@pytest.fixture(params=backends.names(), ids=lambda name: name.replace(":", "-"))
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
