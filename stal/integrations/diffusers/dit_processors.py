"""Attention processors of diffusion transformers: see `processors`.

Their modules have no residual and no rescaling of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stal.integrations.diffusers.processors import RegionalProcessor, output, split_heads


class RotaryProcessor(RegionalProcessor):
    """As HunyuanAttnProcessor2_0: q, and not the text's k, has a rotary embedding."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        from diffusers.models.embeddings import apply_rotary_emb

        q: Any = split_heads(attn.to_q(hidden_states), attn.heads)
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if image_rotary_emb is not None:
            q = apply_rotary_emb(q, image_rotary_emb)
        out = self.layer(q, encoder_hidden_states, attention_mask)
        return output(attn, out)


class WideNormProcessor(RegionalProcessor):
    """As SanaAttnProcessor2_0, LTXVideoAttnProcessor and LTX2AudioVideoAttnProcessor.

    q and k are normalised over all heads at once, and LTX-2's heads may be gated. None of the three
    gives rotary embeddings to attention to text.
    """

    # LTX passes its arguments by position, in this order.
    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: Any = None,
        key_rotary_emb: Any = None,
    ) -> Tensor:
        q = attn.to_q(hidden_states)
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        out = self.layer(split_heads(q, attn.heads), encoder_hidden_states, attention_mask)
        gates = getattr(attn, "to_gate_logits", None)
        if gates is not None:
            # (batch, n, heads), of what q is of.
            gate = 2 * torch.sigmoid(gates(hidden_states))
            out = out * gate.transpose(1, 2)[..., None]
        return output(attn, out)

    @staticmethod
    def keys_values(attn: Any, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (prompts, heads, seqlen_k, head_dim) of prompts (prompts, seqlen_k, width)."""
        k, v = attn.to_k(prompts), attn.to_v(prompts)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        return split_heads(k, attn.heads), split_heads(v, attn.heads)
