"""A model of ComfyUI that attends to regions: what is put on a clone of its ModelPatcher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stal.integrations.comfyui.dit import attend_in_forwards
from stal.integrations.comfyui.models import layers_of, row_of
from stal.integrations.comfyui.regional import Regional
from stal.integrations.comfyui.regions import Regions
from stal.integrations.comfyui.strengths import Strengths
from stal.integrations.comfyui.unet import attend_in_replacements

# Of our wrappers on a ModelPatcher.
KEY = "stal_regions"


def regional(model: Any, regions: Sequence[Regions], strengths: Strengths) -> Any:
    """A clone of a ModelPatcher whose cross-attention has regions; the model stays as it is.

    Args:
        model: ComfyUI's ModelPatcher.
        regions: image i of a batch has those at i modulo their number.
        strengths: how strongly they act.

    Raises:
        NotImplementedError: regions are unknown to its network.
        ValueError: it has no cross-attention, or regions already.
    """
    row = row_of(model)
    if model.get_wrappers("sampler_sample", KEY):
        raise ValueError(
            "model must have no regions yet, got one from Spatial-temporal attention: give one"
            " node all regions, or the model before the other"
        )
    state = Regional(row, regions, strengths)
    found = model.clone()
    attend = attend_in_replacements if row.patch is None else attend_in_forwards
    state.check = attend(found, state, layers_of(model.model.diffusion_model, row))
    for kind, wrapper in (("sampler_sample", state.sample), ("apply_model", state.apply)):
        found.add_wrapper_with_key(kind, KEY, wrapper)
    return found
