"""The networks of ComfyUI that can be given regions, and the names of those that cannot."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

# (frames, height, width) in latent cells, or in tokens.
Size: TypeAlias = tuple[int, int, int]

# Their prompt is a picture, encoded by CLIP.
_OF_PICTURES = ("SVD_img2vid", "SV3D_u", "SV3D_p", "Stable_Zero123")
# Their pixels attend to text and pixels at once.
_JOINT = frozenset(
    {
        "AuraFlow",
        "Chroma",
        "ChromaRadiance",
        "Flux",
        "Flux2",
        "HiDream",
        "HunyuanImage21",
        "HunyuanVideo",
        "HunyuanVideo15",
        "Kandinsky5",
        "Lumina2",
        "Mochi",
        "Omnigen2",
        "QwenImage",
        "SD3",
        "ZImage",
    }
)


@dataclass(frozen=True)
class Row:
    """One kind of network.

    Attributes:
        name: what people call the models that have it.
        layers: of a cross-attention layer's path in the network, as a regular expression.
        context: from (network, prompts as the network gets them) to what its layers get.
        patch: (frames, height, width) of a token in latent cells; None of a UNet, which says the
            size of each level itself.
    """

    name: str
    layers: str
    context: Callable[[Any, Tensor], Tensor] = lambda network, prompts: prompts
    patch: Callable[[Any], Size] | None = None

    def grid(self, network: Any, size: Size) -> Size:
        """The tokens of latents of a size; those at an edge may reach past it."""
        assert self.patch is not None
        frames, height, width = (
            -(-side // length) for side, length in zip(size, self.patch(network), strict=True)
        )
        return frames, height, width


def _patch_of_cosmos(network: Any) -> Size:
    return network.patch_temporal, network.patch_spatial, network.patch_spatial


# The class of a model's diffusion_model, exactly.
MODELS = {
    "UNetModel": Row(
        "Stable Diffusion 1.x, 2.x and XL",
        r"(input|middle|output)_block.*\.transformer_blocks\.\d+\.attn2",
    ),
    "MiniTrainDIT": Row(
        "Cosmos-Predict2",
        r"blocks\.\d+\.cross_attn",
        patch=_patch_of_cosmos,
    ),
    "Anima": Row(
        "Anima",
        r"blocks\.\d+\.cross_attn",
        patch=_patch_of_cosmos,
    ),
    "WanModel": Row(
        "Wan 2.1 and 2.2",
        r"blocks\.\d+\.cross_attn",
        context=lambda network, prompts: network.text_embedding(prompts),
        patch=lambda network: tuple(network.patch_size),
    ),
    "LTXVModel": Row(
        "LTX-Video",
        r"transformer_blocks\.\d+\.attn2",
        context=lambda network, prompts: (
            prompts if network.caption_projection is None else network.caption_projection(prompts)
        ),
        patch=lambda network: (1, 1, 1),
    ),
}


def row_of(model: Any) -> Row:
    """The row of a ModelPatcher's network.

    Raises:
        NotImplementedError: it has none, or its prompts are pictures.
        ValueError: it has no cross-attention.
    """
    inner, network = model.model, model.model.diffusion_model
    known = ", ".join(dict.fromkeys(row.name for row in MODELS.values()))
    kinds = [each.__name__ for each in type(inner).__mro__]
    if any(kind in _OF_PICTURES for kind in kinds):
        raise NotImplementedError(
            f"model must attend to text, got {kinds[0]}, whose prompt is a picture: use {known}"
        )
    row = MODELS.get(type(network).__name__)
    if row is None:
        why = ", whose attention is over text and pixels together" if _JOINT & {*kinds} else ""
        raise NotImplementedError(
            f"model must be one of {known}, got {kinds[0]} ({type(network).__name__}){why}"
        )
    if not layers_of(network, row):
        raise ValueError(
            f"model must have cross-attention to its prompt, got {kinds[0]} without any"
        )
    return row


def layers_of(network: nn.Module, row: Row) -> dict[str, nn.Module]:
    """The cross-attention layers of a network by their path in it."""
    wanted = re.compile(row.layers)
    return {name: each for name, each in network.named_modules() if wanted.fullmatch(name)}
