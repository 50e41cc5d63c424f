"""How diffusion transformers get their text: from the pipeline, and on to cross-attention.

What a pipeline does between its text encoder and the denoiser, and a denoiser between its input and
its attention, is done here for local prompts, by the same modules.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stal.integrations.diffusers.encoded import Encoded

# Arguments of a pipeline's call that change how it encodes a prompt. `encode_prompt` has other
# defaults than the call: no instruction for Sana, no cleaning of the text.
_OF_CALL = ("clean_caption", "complex_human_instruction", "max_sequence_length")


def by_encode_prompt_with_mask(
    pipe: Any, texts: Sequence[str], options: Mapping[str, Any]
) -> Encoded:
    """What `pipe.encode_prompt` gives first, with the mask beside it, as the pipeline's call does.

    options: what the caller of the pipeline sets otherwise than by default.
    """
    call = inspect.signature(type(pipe).__call__).parameters
    known = inspect.signature(pipe.encode_prompt).parameters
    arguments = {name: call[name].default for name in _OF_CALL if name in call and name in known}
    if "do_classifier_free_guidance" in known:
        arguments["do_classifier_free_guidance"] = False
    arguments["device"] = pipe._execution_device
    found = pipe.encode_prompt(list(texts), **arguments | dict(options))
    return Encoded(found[0], found[1] > 0)


def projected_caption(denoiser: Any, embeds: Tensor) -> Tensor:
    """PixArt, Sana, LTX: the denoiser's own projection; Sana's with a norm after it."""
    if getattr(denoiser, "caption_projection", None) is not None:
        embeds = denoiser.caption_projection(embeds)
    norm = getattr(denoiser, "caption_norm", None)
    return embeds if norm is None else norm(embeds)


def by_connectors(pipe: Any, encoded: Encoded) -> Encoded:
    """LTX-2: what its connectors make of the text encoder's layers for the video.

    They fill what a text leaves of its tokens with registers, which count as well.
    """
    if not len(encoded.embeds):
        width = pipe.transformer.config.caption_channels
        return Encoded(encoded.embeds[..., :1].expand(-1, -1, width))
    side = getattr(getattr(pipe, "tokenizer", None), "padding_side", "left")
    mask = encoded.counted().to(torch.int64)
    embeds, _, counted = pipe.connectors(encoded.embeds, mask, padding_side=side)
    return Encoded(embeds, None if bool((counted > 0).all()) else counted > 0)


def by_two_encoders(pipe: Any, texts: Sequence[str], options: Mapping[str, Any]) -> Encoded:
    """HunyuanDiT: BERT's and T5's tokens, see `two_texts`."""
    parts = []
    for index, length in enumerate((77, 256)):
        embeds, _, mask, _ = pipe.encode_prompt(
            list(texts),
            device=pipe._execution_device,
            dtype=pipe.transformer.dtype,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
            text_encoder_index=index,
            **options,
        )
        parts += [embeds, mask]
    return Encoded(two_texts(*parts))


def two_texts(bert: Tensor, bert_mask: Tensor, t5: Tensor, t5_mask: Tensor) -> Tensor:
    """The two texts of HunyuanDiT as one tensor, which `prepare` takes as embeddings.

    Args:
        bert, t5: (prompts, tokens, width), as the pipeline's `encode_prompt` gives them.
        bert_mask, t5_mask: (prompts, tokens), which of the tokens count.

    Returns:
        (prompts, tokens of both, width + 1): the wider one's width, zeros where the other has
        none, and last whether a token counts. Attention reads those that do not as well: the
        denoiser puts its own padding there.
    """
    width = max(bert.shape[2], t5.shape[2])
    both = []
    for embeds, mask in ((bert, bert_mask), (t5, t5_mask)):
        padded = nn.functional.pad(embeds, (0, width - embeds.shape[2]))
        both.append(torch.cat([padded, mask[..., None].to(padded)], dim=2))
    return torch.cat(both, dim=1)


def text_of_bert(denoiser: Any, embeds: Tensor) -> Tensor:
    """(prompts, tokens, width): of `two_texts`, what HunyuanDiT takes as encoder_hidden_states."""
    return embeds[:, : denoiser.config.text_len, : denoiser.config.cross_attention_dim]


def joined_texts(denoiser: Any, embeds: Tensor) -> Tensor:
    """HunyuanDiT: of `two_texts`, the two in a row with the denoiser's padding after each."""
    bert = text_of_bert(denoiser, embeds)
    t5 = embeds[:, bert.shape[1] :, : denoiser.config.cross_attention_dim_t5]
    text = torch.cat([bert, denoiser.text_embedder(t5)], dim=1)
    return torch.where(embeds[..., -1:] > 0.5, text, denoiser.text_embedding_padding)
