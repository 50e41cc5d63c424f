import pytest
import torch

from stal_kernels import backends, why_not


def backend_params() -> list:
    """Every backend and level. One that this CPU lacks is skipped; one that is not built fails."""
    return [pytest.param(name, id=name.replace(":", "-")) for name in backends.names()]


@pytest.fixture(params=backend_params())
def backend(request) -> str:
    reasons = why_not(request.param)
    if any("this CPU lacks" in reason for reason in reasons):
        pytest.skip("; ".join(reasons))
    assert not reasons, reasons
    return request.param


@pytest.fixture(autouse=True)
def _restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
