"""Triton kernels on NVIDIA GPUs: launches.py, geometry.py and tiles.py say how, kernels.py what.

direct.py hands them to the driver.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from stal_kernels.backends.contract import Inputs, fast_limits
from stal_kernels.backends.triton import launches

LEVELS: tuple[str, ...] = ()
DEVICES: tuple[str, ...] = ("cuda",)
CHECKS_ARGUMENTS = False
CHECKS_VALUES = False

_CAPABILITY = (8, 0)


def missing(level: str) -> str:
    """Why Triton kernels cannot run on this machine; "" if they can."""
    try:
        interpreted = _interpreted()
    except (ImportError, OSError, RuntimeError) as error:
        return f"triton is missing: {error}"
    if not interpreted and not torch.cuda.is_available():
        return "triton is missing a GPU: torch.cuda.is_available() is False"
    return ""


def why_not(
    device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int | None
) -> list[str]:
    """As `Backend.why_not`: the device and its capability, the dtype, head_dim."""
    reasons = []
    if device.type == "cuda":
        reasons += _against_gpu(device.index)
    elif device.type != "cpu" or missing("") or not _interpreted():
        reasons.append(
            "triton needs tensors on a CUDA GPU, or on the CPU with TRITON_INTERPRET=1, "
            f"got {device}"
        )
    return reasons + fast_limits("triton", dtype, head_dim)


def packed_words(dtype: torch.dtype, head_dim: int, seqlen_k: int, level: str) -> int:
    """None: it reads K and V as they are."""
    return 0


def pack(
    k: Tensor, v: Tensor, key_lengths: Tensor | None, level: str, packed: Sequence[Tensor]
) -> None:
    """Writes nothing, as `packed_words` says."""


def forward(inputs: Inputs, level: str, out: Tensor) -> None:
    """As `Backend.forward`, on the current stream; level is not read."""
    if _is_empty(inputs):
        out.zero_()
    else:
        launches.run(launches.forward_launch(inputs, out, _capability(out.device)), out.device)


def backward(
    inputs: Inputs,
    level: str,
    dout: Tensor,
    dq: Tensor | None,
    dweight: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
) -> None:
    """As `Backend.backward`, on the current stream; level is not read."""
    if _is_empty(inputs):
        for gradient in (dq, dweight, dk, dv):
            if gradient is not None:
                gradient.zero_()
        return
    device, capability = dout.device, _capability(dout.device)
    # r of each row and head becomes dweight; dk and dv need m and factor too.
    count = 3 if dk is not None else 1 if dweight is not None else 0
    shape = (count, dout.shape[1], *inputs.weight.shape)
    stats = dout.new_empty(shape, dtype=torch.float32).unbind()
    launches.run(launches.pixel_launch(inputs, dout, dq, stats, capability), device)
    if dweight is not None:
        torch.sum(stats[0], 0, out=dweight)
    if dk is not None and dv is not None:
        for launch in launches.prompt_launches(inputs, dout, stats, dk, dv, capability):
            launches.run(launch, device)


def _is_empty(inputs: Inputs) -> bool:
    return 0 in (inputs.q.numel(), inputs.weight.numel(), inputs.k.shape[-2])


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else _CAPABILITY


@functools.cache
def _against_gpu(index: int) -> list[str]:
    if torch.version.cuda is None:
        return ["triton kernels are for NVIDIA GPUs, this torch is built for others"]
    major, minor = torch.cuda.get_device_capability(index)
    if (major, minor) < _CAPABILITY:
        return [f"triton needs a compute capability of 8.0 or more, got {major}.{minor}"]
    return []


def _interpreted() -> bool:
    """Whether Triton runs kernels in Python on the CPU; its own variable, read at its import."""
    import triton

    return not isinstance(launches.device_code().forward, triton.JITFunction)
