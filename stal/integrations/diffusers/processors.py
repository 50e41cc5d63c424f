"""Attention processors that blend prompts in their regions, where diffusers' attend to one.

Each does what the processor of diffusers does whose place it takes, with one call of the op instead
of one of scaled_dot_product_attention. What it attends to is its layer's (`layers.Layer`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stal.integrations.diffusers.layers import Layer


class RegionalProcessor:
    """For `diffusers.models.attention_processor.Attention`, as AttnProcessor2_0.

    Also with normalised q and k, and with rotary embeddings of q alone, which text does not have.

    Args:
        layer: what the module attends to.
        original: the processor whose place this takes.
    """

    def __init__(self, layer: Layer, original: Any) -> None:
        self.layer, self.original = layer, original

    # The names of the arguments are those that diffusers' modules look for before they pass them.
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        q = self.queries(attn, self.pixels(attn, hidden_states, temb))
        out = self.layer(q, encoder_hidden_states, attention_mask)
        return self.finish(attn, join_heads(out), hidden_states)

    @staticmethod
    def pixels(attn: Any, hidden_states: Tensor, temb: Tensor | None) -> Tensor:
        """(batch, pixels, channels), normalised where the module does that itself."""
        x = hidden_states
        if attn.spatial_norm is not None:
            x = attn.spatial_norm(x, temb)
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        return x

    @staticmethod
    def queries(attn: Any, x: Tensor) -> Tensor:
        """q (batch, heads, pixels, head_dim) of x (batch, pixels, channels)."""
        q = split_heads(attn.to_q(x), attn.heads)
        return q if attn.norm_q is None else attn.norm_q(q)

    @staticmethod
    def finish(attn: Any, out: Tensor, residual: Tensor) -> Tensor:
        """What the module returns of the attention's result (batch, pixels, channels).

        residual: what the module was given, (batch, pixels, channels) or (batch, channels, height,
            width).
        """
        out = attn.to_out[1](attn.to_out[0](out))
        if residual.ndim == 4:
            out = out.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor

    @staticmethod
    def keys_values(attn: Any, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (prompts, heads, seqlen_k, head_dim) of prompts (prompts, seqlen_k, width)."""
        if attn.norm_cross is not None:
            prompts = attn.norm_encoder_hidden_states(prompts)
        k, v = (split_heads(layer(prompts), attn.heads) for layer in (attn.to_k, attn.to_v))
        return (k if attn.norm_k is None else attn.norm_k(k)), v


def output(attn: Any, x: Tensor) -> Tensor:
    """What `to_out` makes of attention's result, (batch, heads, n, head_dim)."""
    return attn.to_out[1](attn.to_out[0](join_heads(x)))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(batch, n, heads * head_dim) to (batch, heads, n, head_dim), a view."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(batch, heads, n, head_dim) to (batch, n, heads * head_dim)."""
    return x.transpose(1, 2).flatten(2)
