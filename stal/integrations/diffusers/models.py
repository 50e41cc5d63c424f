"""The denoisers of diffusers that can be taught regions: one row a class.

To add one: say in a row of `MODELS` how its pipelines encode a prompt, which of its modules are
cross-attention to the text, how their tokens are pixels, and which processor computes what its own
one does; then add a tiny random model of it to the tests, which run through the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from stal.integrations.diffusers.dit_processors import RotaryProcessor, WideNormProcessor
from stal.integrations.diffusers.dit_text import (
    by_connectors,
    by_encode_prompt_with_mask,
    by_two_encoders,
    joined_texts,
    projected_caption,
    text_of_bert,
)
from stal.integrations.diffusers.encoded import Encoded, by_encode_prompt
from stal.integrations.diffusers.inputs import (
    Inputs,
    Size,
    halved,
    hunyuan_inputs,
    kandinsky5_inputs,
    kandinsky6_inputs,
    ltx2_inputs,
    ltx_inputs,
    patched,
    picture_inputs,
    squares_of_two,
    unet_inputs,
    video_inputs,
)
from stal.integrations.diffusers.layers import Layer
from stal.integrations.diffusers.processors import RegionalProcessor
from stal.integrations.diffusers.video_processors import (
    CosmosProcessor,
    Kandinsky5Processor,
    Kandinsky6Processor,
    WanProcessor,
)
from stal.integrations.diffusers.video_text import (
    by_cosmos,
    by_encode_prompt_512,
    by_kandinsky5,
    by_kandinsky6,
    cosmos_projection,
    cosmos_timesteps,
    kandinsky5_text,
    kandinsky6_text,
    wan_projection,
)


class Processor(Protocol):
    """What takes the place of a processor of diffusers, and keeps it as `original`."""

    original: Any

    def __init__(self, layer: Layer, original: Any) -> None: ...
    @staticmethod
    def keys_values(attn: Any, prompts: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Row:
    """How one class of denoisers is taught regions.

    Attributes:
        name: the class in diffusers.
        since: the first version of diffusers that this row was tried with.
        used_by: what users call it, for the documentation.
        inputs: from a call's positional and keyword arguments. Traced by torch.compile.
        grid: (latents' size, tokens) to (frames, height, width) of so many tokens.
        is_cross_attention: of a module with a processor and its name.
        processor: the class that takes the place of `processors`.
        processors: names of diffusers' classes that compute the same without regions.
        encode: (pipeline, texts, options) to what the denoiser receives of them.
        context: (denoiser, embeds) to what its processors receive of them.
        received: (pipeline, what encode gives or the caller gives instead) to what the denoiser
            receives, if the pipeline does something in between.
        recognised: (denoiser, what it receives of prompts) to the part that `Inputs.prompts` is.
        at_each_step: (denoiser, local prompts, timestep) to what its processors receive of them,
            where that is another at each step; instead of `context`.
        timesteps: of a pipeline's scheduler, as the denoiser receives them.
        scales_adapters: the argument of a call in which the scale of adapters comes, "" if none.
        calls: whether both halves of guidance come in one call or each in its own.
        videos: whether it draws videos, over whose frames regions may move.
        refused: why this one of the class cannot be taught regions; "" if it can.
        note: what users should know, for the documentation.
    """

    name: str
    since: str
    used_by: str
    inputs: Callable[[Sequence[Any], Mapping[str, Any]], Inputs]
    grid: Callable[[Size, int], Size]
    is_cross_attention: Callable[[str, nn.Module], bool]
    processor: type[Processor]
    processors: frozenset[str]
    encode: Callable[[Any, Sequence[str], Mapping[str, Any]], Encoded] = by_encode_prompt
    context: Callable[[Any, Tensor], Tensor] = lambda denoiser, embeds: embeds
    received: Callable[[Any, Encoded], Encoded] = lambda pipe, encoded: encoded
    recognised: Callable[[Any, Tensor], Tensor] = lambda denoiser, embeds: embeds
    at_each_step: Callable[[Any, Encoded, Tensor], Tensor] | None = None
    timesteps: Callable[[Any], Tensor] = lambda pipe: pipe.scheduler.timesteps
    scales_adapters: str = "attention_kwargs"
    calls: Literal["one", "two"] = "one"
    videos: bool = False
    refused: Callable[[Any], str] = lambda denoiser: ""
    note: str = ""


def _unet_context(unet: Any, embeds: Tensor) -> Tensor:
    """Kolors' UNet projects the text encoder's width to its own."""
    # Where an IP-Adapter's projection has taken its place.
    projection = getattr(unet, "text_encoder_hid_proj", None)
    if projection is None and unet.config.encoder_hid_dim_type == "text_proj":
        projection = unet.encoder_hid_proj
    return embeds if projection is None else projection(embeds)


def _attends_elsewhere(name: str, module: nn.Module) -> bool:
    return bool(getattr(module, "is_cross_attention", False))


def _sana_timesteps(pipe: Any) -> Tensor:
    """Times a scale; of SanaSprint angles, of which the last one is not drawn at."""
    timesteps = pipe.scheduler.timesteps
    if type(pipe.scheduler).__name__ == "SCMScheduler":
        angles = timesteps[:-1]
        return torch.sin(angles) / (torch.cos(angles) + torch.sin(angles))
    return timesteps * pipe.transformer.config.timestep_scale


def _refused_ltx2(denoiser: Any) -> str:
    if not getattr(denoiser.config, "cross_attn_mod", False):
        return ""
    return (
        "pipe must have a denoiser whose text is the same in all blocks and steps, got LTX-2.3"
        " (cross_attn_mod): use LTX-2"
    )


def _is_attn2(name: str, module: nn.Module) -> bool:
    return name.rpartition(".")[2] == "attn2"


def _refused_kandinsky5(denoiser: Any) -> str:
    if denoiser.config.attention_type != "nabla":
        return ""
    return (
        "pipe must have tokens in the order of rows, got Kandinsky 5 with attention_type 'nabla',"
        " whose tokens are in blocks of 8 x 8: use one of the models of 5 seconds"
    )


def _is_kandinsky5_text(name: str, module: nn.Module) -> bool:
    return name.startswith("visual_transformer_blocks.") and name.endswith(".cross_attention")


def _is_kandinsky6_text(name: str, module: nn.Module) -> bool:
    """Not sound's attention to its text, nor that of pixels and sound to each other."""
    return name.endswith(".video_dec_block.cross_attention")


STANDARD = frozenset({"AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor"})
# In their place comes `ip_adapter.RegionalIPAdapterProcessor`, whatever the row's class.
IP_ADAPTERS = frozenset(
    {"IPAdapterAttnProcessor", "IPAdapterAttnProcessor2_0", "IPAdapterXFormersAttnProcessor"}
)

_ROWS = (
    Row(
        name="UNet2DConditionModel",
        since="0.35",
        used_by="Stable Diffusion 1.x, 2.x, XL (base, refiner, Turbo), LCM, Kolors, inpainting,"
        " img2img, ControlNet, T2I-Adapter, IP-Adapter, InstructPix2Pix, PAG",
        inputs=unet_inputs,
        grid=halved,
        is_cross_attention=_attends_elsewhere,
        processor=RegionalProcessor,
        processors=STANDARD | IP_ADAPTERS,
        context=_unet_context,
        scales_adapters="cross_attention_kwargs",
        note="a ControlNet has cross-attention of its own, which stays plain; pictures of an"
        " IP-Adapter are attended to in the whole image, or where ip_adapter_masks say",
    ),
    Row(
        name="UNetMotionModel",
        since="0.35",
        used_by="AnimateDiff",
        inputs=unet_inputs,
        grid=halved,
        is_cross_attention=_attends_elsewhere,
        processor=RegionalProcessor,
        processors=STANDARD | IP_ADAPTERS,
        scales_adapters="cross_attention_kwargs",
        videos=True,
        note="frames lie in the batch; motion modules attend to no text",
    ),
    Row(
        name="PixArtTransformer2DModel",
        since="0.42",
        used_by="PixArt-alpha, PixArt-Sigma",
        inputs=picture_inputs,
        grid=patched,
        is_cross_attention=_is_attn2,
        processor=RegionalProcessor,
        processors=STANDARD,
        encode=by_encode_prompt_with_mask,
        context=projected_caption,
        scales_adapters="",
    ),
    Row(
        name="SanaTransformer2DModel",
        since="0.42",
        used_by="Sana, Sana-Sprint",
        inputs=picture_inputs,
        grid=patched,
        is_cross_attention=_is_attn2,
        processor=WideNormProcessor,
        processors=frozenset({"SanaAttnProcessor2_0"}),
        encode=by_encode_prompt_with_mask,
        context=projected_caption,
        timesteps=_sana_timesteps,
        note="local prompts too are encoded behind the instruction that the pipeline gives; Sprint"
        " has no unconditional half, so that the rule moves away from a prompt",
    ),
    Row(
        name="HunyuanDiT2DModel",
        since="0.42",
        used_by="HunyuanDiT",
        inputs=hunyuan_inputs,
        grid=patched,
        is_cross_attention=_is_attn2,
        processor=RotaryProcessor,
        processors=frozenset({"HunyuanAttnProcessor2_0"}),
        encode=by_two_encoders,
        context=joined_texts,
        recognised=text_of_bert,
        note="the time embedding too has the prompt in it, which regions leave alone; embeddings"
        " instead of text are those of `dit_text.two_texts`",
    ),
    Row(
        name="LTXVideoTransformer3DModel",
        since="0.42",
        used_by="LTX-Video: text to video, image to video",
        inputs=ltx_inputs,
        grid=patched,
        is_cross_attention=_is_attn2,
        processor=WideNormProcessor,
        processors=frozenset({"LTXVideoAttnProcessor"}),
        encode=by_encode_prompt_with_mask,
        context=projected_caption,
        videos=True,
    ),
    Row(
        name="LTX2VideoTransformer3DModel",
        since="0.42",
        used_by="LTX-2",
        inputs=ltx2_inputs,
        grid=patched,
        is_cross_attention=_is_attn2,
        processor=WideNormProcessor,
        processors=frozenset({"LTX2AudioVideoAttnProcessor"}),
        encode=by_encode_prompt_with_mask,
        context=projected_caption,
        received=by_connectors,
        videos=True,
        refused=_refused_ltx2,
        note="regions act in the calls without guidance's negative half too; attention of the sound"
        " to the text is left alone, since sound has no place; LTX-2.3 modulates the text in each"
        " block and step and is refused",
    ),
    Row(
        name="CosmosTransformer3DModel",
        since="0.36",
        used_by="Anima, Cosmos Predict 1, 2, 2.5, Cosmos Transfer 2.5",
        inputs=video_inputs,
        grid=patched,
        is_cross_attention=_attends_elsewhere,
        processor=CosmosProcessor,
        processors=frozenset({"CosmosAttnProcessor2_0", "CosmosAttnProcessor2_5"}),
        encode=by_cosmos,
        context=cosmos_projection,
        timesteps=cosmos_timesteps,
        calls="two",
        videos=True,
        note="a ControlNet of Transfer follows the global prompt; Anima is a ModularPipeline",
    ),
    Row(
        name="WanTransformer3DModel",
        since="0.35",
        used_by="Wan 2.1, 2.2 (A14B, TI2V-5B): text to video, image to video",
        inputs=video_inputs,
        grid=patched,
        is_cross_attention=_attends_elsewhere,
        processor=WanProcessor,
        processors=frozenset({"WanAttnProcessor", "WanAttnProcessor2_0"}),
        encode=by_encode_prompt_512,
        context=wan_projection,
        calls="two",
        videos=True,
        note="the two denoisers of 2.2 share the steps and their weights",
    ),
    Row(
        name="Kandinsky5Transformer3DModel",
        since="0.36",
        used_by="Kandinsky 5: text to video, text to image",
        inputs=kandinsky5_inputs,
        grid=patched,
        is_cross_attention=_is_kandinsky5_text,
        processor=Kandinsky5Processor,
        processors=frozenset({"Kandinsky5AttnProcessor"}),
        encode=by_kandinsky5,
        at_each_step=kandinsky5_text,
        calls="two",
        videos=True,
        refused=_refused_kandinsky5,
        note="local prompts are text alone: with CLIP's embedding they go through the denoiser's"
        " text blocks at each step",
    ),
    Row(
        name="Kandinsky6Transformer3DModel",
        since="0.42",
        used_by="Kandinsky 6: text or image to video with sound",
        inputs=kandinsky6_inputs,
        grid=squares_of_two,
        is_cross_attention=_is_kandinsky6_text,
        processor=Kandinsky6Processor,
        processors=frozenset({"Kandinsky6AttnProcessor"}),
        encode=by_kandinsky6,
        at_each_step=kandinsky6_text,
        calls="two",
        videos=True,
        note="as Kandinsky 5; sound and a given image follow the global prompt",
    ),
)
MODELS: Mapping[str, Row] = {row.name: row for row in _ROWS}
