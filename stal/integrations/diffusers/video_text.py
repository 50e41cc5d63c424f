"""Text and time of video transformers: Cosmos and Anima, Wan, Kandinsky.

How their pipelines encode prompts, what of it reaches attention, and at which times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stal.integrations.diffusers.encoded import Encoded


def by_encode_prompt_512(pipe: Any, texts: Sequence[str], options: Mapping[str, Any]) -> Encoded:
    """What `pipe.encode_prompt` gives first, of as many tokens as a call of the pipeline asks for.

    Padding counts: it is attended to.
    """
    found = pipe.encode_prompt(
        list(texts),
        device=pipe._execution_device,
        do_classifier_free_guidance=False,
        **{"max_sequence_length": 512, **options},
    )
    return Encoded(found[0])


def by_cosmos(pipe: Any, texts: Sequence[str], options: Mapping[str, Any]) -> Encoded:
    """Of Anima what its conditioner makes of Qwen's embeddings and T5's tokens."""
    if not hasattr(pipe, "text_conditioner"):
        return by_encode_prompt_512(pipe, texts, options)
    from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep

    found = AnimaTextEncoderStep.encode_prompt(
        components=pipe, prompt=list(texts), prepare_unconditional_embeds=False, **options
    )
    embeds = pipe.text_conditioner(
        source_hidden_states=found["qwen_prompt_embeds"],
        target_input_ids=found["t5_input_ids"],
        target_attention_mask=found["t5_attention_mask"],
        source_attention_mask=found["qwen_attention_mask"],
    )
    return Encoded(embeds.to(pipe.transformer.dtype))


def cosmos_projection(transformer: Any, embeds: Tensor) -> Tensor:
    """Cosmos 2.5 projects the width of all of Qwen's layers to its own."""
    if not transformer.config.use_crossattn_projection:
        return embeds
    return transformer.crossattn_proj(embeds.to(transformer.dtype))


def cosmos_timesteps(pipe: Any) -> Tensor:
    """Cosmos 1: of the scheduler; Anima: a share; 2.5: sigma; 2: sigma / (sigma + 1)."""
    scheduler = pipe.scheduler
    if hasattr(pipe, "text_conditioner"):
        rounded = scheduler.timesteps.to(pipe.transformer.dtype)
        return rounded / scheduler.config.num_train_timesteps
    if type(scheduler).__name__ == "EDMEulerScheduler":
        return scheduler.timesteps
    sigmas = scheduler.sigmas[: len(scheduler.timesteps)]
    return sigmas if type(pipe).__name__.startswith("Cosmos2_5") else sigmas / (sigmas + 1)


def wan_projection(transformer: Any, embeds: Tensor) -> Tensor:
    return transformer.condition_embedder.text_embedder(embeds.to(transformer.dtype))


def by_kandinsky5(pipe: Any, texts: Sequence[str], options: Mapping[str, Any]) -> Encoded:
    """Qwen's embeddings, as long as the longest text, and CLIP's of all of it."""
    embeds, pooled, ends = pipe.encode_prompt(list(texts), device=pipe._execution_device, **options)
    positions = torch.arange(embeds.shape[1], device=embeds.device)
    return Encoded(embeds, positions < ends.diff().to(embeds.device)[:, None], pooled)


def by_kandinsky6(pipe: Any, texts: Sequence[str], options: Mapping[str, Any]) -> Encoded:
    embeds, pooled, mask, *_ = pipe.encode_prompt(
        list(texts), device=pipe._execution_device, do_classifier_free_guidance=False, **options
    )
    return Encoded(embeds, mask, pooled)


def kandinsky5_text(transformer: Any, local: Encoded, timestep: Tensor) -> Tensor:
    return _modulated(
        local,
        timestep,
        dtype=transformer.dtype,
        embed=transformer.text_embeddings,
        time=transformer.time_embeddings,
        pool=transformer.pooled_text_embeddings,
        rotary=lambda positions: transformer.text_rope_embeddings(positions)[None],
        blocks=transformer.text_transformer_blocks,
    )


def kandinsky6_text(transformer: Any, local: Encoded, timestep: Tensor) -> Tensor:
    return _modulated(
        local,
        timestep,
        dtype=transformer.dtype,
        embed=transformer.video_text_embeddings,
        time=transformer.video_time_embeddings,
        pool=transformer.video_pooled_text_embeddings,
        rotary=transformer.video_text_rope_embeddings,
        blocks=transformer.video_text_transformer_blocks,
    )


def _modulated(
    local: Encoded,
    timestep: Tensor,
    *,
    dtype: torch.dtype,
    embed: Any,
    time: Any,
    pool: Any,
    rotary: Any,
    blocks: Any,
) -> Tensor:
    """(local prompts, seqlen_k, width), padded with zeros: the denoiser's own way to its text.

    Each prompt goes it alone, since tokens attend to each other and padding would take part.
    """
    embeds, lengths = local.compact()
    if not len(embeds):
        return embed(embeds.to(timestep.device, dtype))
    pooled = local.pooled
    assert pooled is not None  # prepare looks after it
    found = []
    for index, length in enumerate([embeds.shape[1]] * len(embeds) if lengths is None else lengths):
        x = embed(embeds[index : index + 1, : int(length)].to(timestep.device, dtype))
        t = time(timestep.flatten()[:1]) + pool(pooled[index : index + 1].to(x.device, dtype))
        angles = rotary(torch.arange(x.shape[1], device=x.device))
        for block in blocks:
            x = block(x, t, angles)
        found.append(nn.functional.pad(x, (0, 0, 0, embeds.shape[1] - x.shape[1])))
    return torch.cat(found)
