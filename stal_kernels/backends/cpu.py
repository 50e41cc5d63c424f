"""The C++ library (csrc/cpu), one set of kernels per instruction level."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stal_kernels.backends import Inputs

LEVELS = (
    "amx",
    "avx512_bf16",
    "avx512",
    "avx2",
    "neon",
    "portable",
    # Models of instructions in plain arithmetic, for tests on machines without them: slow.
    "avx512_bf16_model",
    "amx_model",
)
DEVICES: tuple[str, ...] = ("cpu",)

_FOLDER = Path(__file__).parent.parent
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@functools.cache
def missing(level: str) -> str:
    """Why the library, or one of its levels, cannot run on this machine; "" if it can."""
    try:
        library = _library()
    except (ImportError, OSError, RuntimeError) as error:
        return f"cpu is missing: {error}"
    if not level:
        return ""
    reason = library.why_not(level)
    return f"cpu:{level} is missing: {reason}" if reason else ""


def why_not(
    device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int | None
) -> list[str]:
    """Reasons why such tensors are none of its business."""
    reasons = []
    if device.type != "cpu":
        reasons.append(f"cpu needs tensors on the CPU, got {device}")
    if dtype not in _DTYPES:
        reasons.append(f"cpu needs float16, bfloat16 or float32, got {dtype}")
    if head_dim % 8 or head_dim > 256:
        reasons.append(
            f"cpu needs a head_dim that is a multiple of 8 and at most 256, got {head_dim}"
        )
    return reasons


def forward(inputs: Inputs, level: str, out: Tensor) -> None:
    _library().forward(*_settings(inputs, level), *_arguments(inputs), out)


def backward(
    inputs: Inputs,
    level: str,
    dout: Tensor,
    dq: Tensor | None,
    dweight: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
) -> None:
    _library().backward(*_settings(inputs, level), dout, *_arguments(inputs), dq, dweight, dk, dv)


def _settings(inputs: Inputs, level: str) -> tuple[str, int, float, bool]:
    bf16_products = inputs.q.dtype == torch.float32 and _bf16_allowed()
    return level or _best_level(), torch.get_num_threads(), inputs.scale, bf16_products


def _bf16_allowed() -> bool:
    # "high" would allow three products of bfloat16 for one of float32, which take longer on AMD
    # Zen 5 (530 GFLOP/s against 265) and are not built for AMX.
    try:
        return torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:  # it was also set for one of torch's backends, and differently
        newer = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
        return bool(newer == "bf16")


def _arguments(inputs: Inputs) -> tuple[Tensor | None, ...]:
    q, k, v, weight, prompt_ids, offsets, region, key_lengths, _ = inputs
    if prompt_ids is None or offsets is None:
        return q, k, v, weight, None, None, region, None
    if key_lengths is not None:
        key_lengths = key_lengths.contiguous()
    return q, k, v, weight, prompt_ids.contiguous(), offsets.contiguous(), region, key_lengths


@functools.cache
def _best_level() -> str:
    library = _library()
    return next(level for level in library.levels() if not library.why_not(level))


@functools.cache
def _library() -> Any:
    names = [_FOLDER / f"libstal_kernels.{suffix}" for suffix in ("so", "dylib")]
    path = next((name for name in names if name.exists()), None)
    if path is None:
        reason = _FOLDER / "not_built.txt"
        if reason.exists():
            raise RuntimeError(f"it was not built: {reason.read_text(encoding='utf-8').strip()}")
        raise RuntimeError(
            f"{names[0]} does not exist; in a checkout run `python setup.py build_ext --inplace`"
        )
    # Imported late: before torch 2.11 this import compiles an add-on.
    import tvm_ffi

    return tvm_ffi.load_module(path)
