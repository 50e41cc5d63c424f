"""What a caller may have changed in torch for work of his own, kept away from ours.

Everything in `stal` names the dtype of the tensors that it makes; what else torch takes from its
surroundings, a thread's modes, is set aside by a decorator on whatever computes:

    @undisturbed()
    def encode(texts): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock

import torch

# A thread may enter twice.
_TRAINING = RLock()
_AUTOCAST_DEVICES = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Runs what is within without the caller's autocast, inference mode and default device.

    The networks run in the dtype that they were loaded in, new tensors lie on the CPU unless
    said otherwise, and tensors made here can be part of a gradient later. Whether gradients are
    recorded stays as it is. All of it holds for this thread alone. As a decorator it is for
    functions, not for generators, whose body runs later.
    """
    with ExitStack() as stack:
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.is_inference_mode_enabled():
            recorded = torch.is_grad_enabled()
            stack.enter_context(torch.inference_mode(False))
            # Which switches gradients on.
            stack.enter_context(torch.set_grad_enabled(recorded))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def training() -> Iterator[None]:
    """`undisturbed` with gradients, in float32, with a random state of its own.

    For what makes and trains modules of libraries, which take torch's default dtype; that is the
    whole process's and not the thread's, so other threads see float32 meanwhile, and one that
    wants to train too waits.
    """
    with _TRAINING, undisturbed(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
