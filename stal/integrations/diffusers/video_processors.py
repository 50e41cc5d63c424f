"""Attention processors of video transformers: Cosmos and Anima, Wan, Kandinsky."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from stal.integrations.diffusers.dit_processors import WideNormProcessor
from stal.integrations.diffusers.processors import (
    RegionalProcessor,
    join_heads,
    output,
    split_heads,
)

# Of the keys that Wan's processors get the last so many are text, the others the image's.
WAN_TEXT = 512


class CosmosProcessor(RegionalProcessor):
    """As CosmosAttnProcessor2_0, and where there is an image as CosmosAttnProcessor2_5.

    Pixels attend to the image with queries of their own, everywhere alike.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        text, image = encoder_hidden_states, None
        if isinstance(text, tuple):
            text, image = text
        mask, image_mask = attention_mask, None
        if isinstance(mask, tuple):
            mask, image_mask = mask
        q = attn.norm_q(split_heads(attn.to_q(hidden_states), attn.heads))
        out = self.layer(q, text, mask)
        if image is not None:
            q = attn.q_img_norm(split_heads(attn.q_img(hidden_states), attn.heads))
            k = attn.k_img_norm(split_heads(attn.k_img(image), attn.heads))
            v = split_heads(attn.v_img(image), attn.heads)
            out = out + F.scaled_dot_product_attention(q, k, v, attn_mask=image_mask)
        return output(attn, out)


class WanProcessor(WideNormProcessor):
    """As WanAttnProcessor: q and k are normalised across heads; image tokens come before the text.

    Pixels attend to the image with the queries that they attend to the text with, everywhere alike.
    """

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        text, image = encoder_hidden_states, None
        if attn.add_k_proj is not None:
            tokens = text.shape[1] - WAN_TEXT
            image, text = text[:, :tokens], text[:, tokens:]
        q = split_heads(attn.norm_q(attn.to_q(hidden_states)), attn.heads)
        out = self.layer(q, text, attention_mask)
        if image is not None:
            k = split_heads(attn.norm_added_k(attn.add_k_proj(image)), attn.heads)
            v = split_heads(attn.add_v_proj(image), attn.heads)
            out = out + F.scaled_dot_product_attention(q, k, v)
        return output(attn, out)


class Kandinsky5Processor(RegionalProcessor):
    """As Kandinsky5AttnProcessor, whose q and k are normalised in single precision."""

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        rotary_emb: Any = None,
        sparse_params: Any = None,
    ) -> Tensor:
        q = split_heads(attn.to_query(hidden_states), attn.num_heads)
        q = attn.query_norm(q.float()).type_as(q)
        return attn.out_layer(join_heads(self.layer(q, encoder_hidden_states)))

    @staticmethod
    def keys_values(attn: Any, prompts: Tensor) -> tuple[Tensor, Tensor]:
        k = split_heads(attn.to_key(prompts), attn.num_heads)
        v = split_heads(attn.to_value(prompts), attn.num_heads)
        return attn.key_norm(k.float()).type_as(k), v


class Kandinsky6Processor(RegionalProcessor):
    """As Kandinsky6AttnProcessor, whose text has a mask."""

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        rotary_emb: Any = None,
        rotary_emb_kv: Any = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        q = attn.query_norm(split_heads(attn.to_query(hidden_states), attn.num_heads))
        return attn.out_layer(join_heads(self.layer(q, encoder_hidden_states, attn_mask)))

    @staticmethod
    def keys_values(attn: Any, prompts: Tensor) -> tuple[Tensor, Tensor]:
        k = split_heads(attn.to_key(prompts), attn.num_heads)
        return attn.key_norm(k), split_heads(attn.to_value(prompts), attn.num_heads)
