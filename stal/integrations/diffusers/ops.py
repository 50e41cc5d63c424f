"""What compiled code calls: torch.compile does not look inside, so no step makes it compile again.

Each finds its Python object by a number in a tensor, which the compiler makes no part of the code.
The order of the calls is in the data: the others take the step that `begin` returns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stal.integrations.diffusers.denoiser import DENOISERS
from stal.integrations.diffusers.layers import LAYERS
from stal.integrations.diffusers.loras import GATES

# A CUDA graph would repeat the step that it was recorded at.
_TAGS: Any = [torch.Tag.cudagraph_unsafe] if hasattr(torch.Tag, "cudagraph_unsafe") else []


@torch.library.custom_op("stal_diffusers::begin", mutates_args=(), tags=_TAGS)
def begin(
    key: Tensor, timestep: Tensor, prompts: Tensor, size: list[int], lora_scale: float
) -> Tensor:
    """`Denoiser.begin` of the denoiser with this number, and `Denoiser.scale_adapters`."""
    frames, height, width = size
    denoiser = DENOISERS[key]
    step = denoiser.begin(timestep, prompts, (frames, height, width))
    denoiser.scale_adapters(lora_scale)
    # An output must not be the caller's tensor.
    return step.clone()


@begin.register_fake
def _(key: Tensor, timestep: Tensor, prompts: Tensor, size: list[int], lora_scale: float) -> Tensor:
    return prompts.new_empty((1,), dtype=torch.int64)


@torch.library.custom_op("stal_diffusers::attend", mutates_args=(), tags=_TAGS)
def attend(q: Tensor, prompts: Tensor, mask: Tensor | None, step: Tensor, key: Tensor) -> Tensor:
    """`Layer.attend_scaled` of the layer with this number, at the step that `begin` returned."""
    return LAYERS[key].attend_scaled(q, prompts, mask)


@attend.register_fake
def _(q: Tensor, prompts: Tensor, mask: Tensor | None, step: Tensor, key: Tensor) -> Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("stal_diffusers::within", mutates_args=(), tags=_TAGS)
def within(out: Tensor, step: Tensor, key: Tensor) -> Tensor:
    """`RegionGate.within` of the gate with this number, at the step that `begin` returned."""
    return GATES[key].within(out)


@within.register_fake
def _(out: Tensor, step: Tensor, key: Tensor) -> Tensor:
    return torch.empty_like(out)
