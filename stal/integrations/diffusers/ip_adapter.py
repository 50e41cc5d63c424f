"""Regions under an IP-Adapter, which adds attention to pictures to that to the text.

A module of its own, since its class is one of diffusers' and they are imported with it.
"""

from __future__ import annotations

from typing import Any

from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from stal.integrations.diffusers.layers import Layer
from stal.integrations.diffusers.processors import RegionalProcessor, join_heads, split_heads


class RegionalIPAdapterProcessor(IPAdapterAttnProcessor2_0):
    """As `RegionalProcessor`; pictures are attended to in the whole image, as without regions.

    Of the class that `set_ip_adapter_scale` looks for, and with the original's weights and scales
    themselves: what is set while regions are enabled stays, and names in a state_dict are the same.

    Args:
        layer: what the module attends to.
        original: the IP-Adapter's processor whose place this takes.
    """

    keys_values = staticmethod(RegionalProcessor.keys_values)

    def __init__(self, layer: Layer, original: Any) -> None:
        nn.Module.__init__(self)
        self.layer = layer
        # As an attribute the original would be a submodule, and its weights there twice.
        self._original = (original,)
        self.hidden_size, self.num_tokens = original.hidden_size, original.num_tokens
        self.cross_attention_dim = original.cross_attention_dim
        self.to_k_ip, self.to_v_ip = original.to_k_ip, original.to_v_ip
        self.train(original.training)

    @property
    def original(self) -> Any:
        """The processor whose place this takes."""
        return self._original[0]

    @property
    def scale(self) -> list[Any]:
        """How much each adapter counts, a number, or a list with one a picture."""
        return self.original.scale

    @scale.setter
    def scale(self, scale: list[Any]) -> None:
        self.original.scale = scale

    # The class of diffusers has a scale besides, which it does not use.
    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        ip_adapter_masks: Any = None,
    ) -> Tensor:
        text, pictures = encoder_hidden_states
        x = RegionalProcessor.pixels(attn, hidden_states, temb)
        q = RegionalProcessor.queries(attn, x)
        out = join_heads(self.layer(q, text, attention_mask))
        masks = self._masks(ip_adapter_masks, pictures)
        for i, (tokens, mask) in enumerate(zip(pictures, masks, strict=True)):
            out = self._add(out, attn, q, i, tokens, mask)
        return RegionalProcessor.finish(attn, out, hidden_states)

    def _masks(self, masks: Any, pictures: list[Tensor]) -> list[Tensor | None]:
        """One (1, images, height, width) for each adapter, or None."""
        if masks is None:
            return [None] * len(pictures)
        # A tensor is (adapters, 1, height, width).
        each = list(masks.unsqueeze(1)) if isinstance(masks, Tensor) else list(masks)
        if len(each) != len(pictures):
            raise ValueError(
                f"ip_adapter_masks must be one for each of {len(pictures)} adapters,"
                f" got {len(each)}"
            )
        for index, (mask, tokens) in enumerate(zip(each, pictures, strict=True)):
            images, scale = tokens.shape[1], self.scale[index]
            if mask is not None and not (
                isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[1] == images
            ):
                got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
                raise ValueError(
                    f"ip_adapter_masks[{index}] must be (1, {images}, height, width), one mask a"
                    f" picture, got {got}"
                )
            if mask is not None and isinstance(scale, list) and len(scale) != images:
                raise ValueError(
                    f"the scale of IP-Adapter {index} must be one for each of {images} pictures,"
                    f" got {len(scale)}"
                )
        return each

    def _add(
        self, out: Tensor, attn: Any, q: Tensor, index: int, tokens: Tensor, mask: Tensor | None
    ) -> Tensor:
        """out with what one adapter adds.

        out: (batch, n, channels); tokens: (batch, images, tokens, width), or with those of all
            images in a row.
        """
        scale = self.scale[index]
        if not (any(scale) if isinstance(scale, list) else scale):
            return out
        if mask is None:
            return out + scale * self._seen(attn, q, index, tokens)
        for image in range(mask.shape[1]):
            strength = scale[image] if isinstance(scale, list) else scale
            seen = self._seen(attn, q, index, tokens[:, image])
            inside = IPAdapterMaskProcessor.downsample(mask[:, image], *seen.shape)
            out = out + strength * (seen * inside.to(seen))
        return out

    def _seen(self, attn: Any, q: Tensor, index: int, tokens: Tensor) -> Tensor:
        """(batch, n, channels): attention to one adapter's tokens."""
        k, v = (
            split_heads(layer(tokens).flatten(1, -2), attn.heads)
            for layer in (self.to_k_ip[index], self.to_v_ip[index])
        )
        return join_heads(F.scaled_dot_product_attention(q, k, v))
