"""The denoisers of diffusers that can be taught regions: one row a class.

To add one: say in a row of `MODELS` how its pipelines encode a prompt, which of its modules are
cross-attention to the text, how their tokens are pixels, and which processor computes what its own
one does; then add a tiny random model of it to the tests, which run through the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from stal.integrations.diffusers.encoded import Encoded, by_encode_prompt
from stal.integrations.diffusers.processors import RegionalProcessor

# (frames, height, width) in latent cells, or in tokens.
Size: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Inputs:
    """What of a denoiser's arguments matters here.

    prompts: (rows, seqlen_k, width), the encoded prompts.
    timestep: a number, or a tensor whose largest value is the timestep.
    size: of the latents.
    """

    prompts: Tensor
    timestep: Tensor | float
    size: Size


@dataclass(frozen=True)
class Model:
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
        timesteps: of a scheduler, as the denoiser receives them.
        calls: whether both halves of guidance come in one call or each in its own.
        note: what users should know, for the documentation.
    """

    name: str
    since: str
    used_by: str
    inputs: Callable[[Sequence[Any], Mapping[str, Any]], Inputs]
    grid: Callable[[Size, int], Size]
    is_cross_attention: Callable[[str, nn.Module], bool]
    processor: type[RegionalProcessor]
    processors: frozenset[str]
    encode: Callable[[Any, Sequence[str], Mapping[str, Any]], Encoded] = by_encode_prompt
    context: Callable[[Any, Tensor], Tensor] = lambda denoiser, embeds: embeds
    timesteps: Callable[[Any], Tensor] = lambda scheduler: scheduler.timesteps
    calls: Literal["one", "two"] = "one"
    note: str = ""


def argument(args: Sequence[Any], kwargs: Mapping[str, Any], name: str, position: int) -> Any:
    """An argument of a denoiser's forward, however it was passed."""
    return kwargs[name] if name in kwargs else args[position]


def halved(size: Size, tokens: int) -> Size:
    """The level of a UNet that has so many pixels: each halves both sides, rounding up."""
    frames, height, width = size
    while height * width > tokens and (height > 1 or width > 1):
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != tokens:
        raise ValueError(
            f"attention must be over the pixels of a level of {size[1]} x {size[2]} latents,"
            f" got {tokens} tokens"
        )
    return frames, height, width


def _unet_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    sample = argument(args, kwargs, "sample", 0)
    frames = sample.shape[2] if sample.ndim == 5 else 1
    return Inputs(
        argument(args, kwargs, "encoder_hidden_states", 2),
        argument(args, kwargs, "timestep", 1),
        (frames, sample.shape[-2], sample.shape[-1]),
    )


def _unet_context(unet: Any, embeds: Tensor) -> Tensor:
    """Kolors' UNet projects the text encoder's width to its own."""
    # Where an IP-Adapter's projection has taken its place.
    projection = getattr(unet, "text_encoder_hid_proj", None)
    if projection is None and unet.config.encoder_hid_dim_type == "text_proj":
        projection = unet.encoder_hid_proj
    return embeds if projection is None else projection(embeds)


def _attends_elsewhere(name: str, module: nn.Module) -> bool:
    return bool(getattr(module, "is_cross_attention", False))


STANDARD = frozenset({"AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor"})
# In their place comes `ip_adapter.RegionalIPAdapterProcessor`, whatever the row's class.
IP_ADAPTERS = frozenset(
    {"IPAdapterAttnProcessor", "IPAdapterAttnProcessor2_0", "IPAdapterXFormersAttnProcessor"}
)

_ROWS = (
    Model(
        name="UNet2DConditionModel",
        since="0.35",
        used_by="Stable Diffusion 1.x, 2.x, XL (base, refiner, Turbo), LCM, Kolors, inpainting,"
        " img2img, ControlNet, T2I-Adapter, IP-Adapter, InstructPix2Pix, PAG",
        inputs=_unet_inputs,
        grid=halved,
        is_cross_attention=_attends_elsewhere,
        processor=RegionalProcessor,
        processors=STANDARD | IP_ADAPTERS,
        context=_unet_context,
        note="a ControlNet has cross-attention of its own, which stays plain; pictures of an"
        " IP-Adapter are attended to in the whole image",
    ),
    Model(
        name="UNetMotionModel",
        since="0.35",
        used_by="AnimateDiff",
        inputs=_unet_inputs,
        grid=halved,
        is_cross_attention=_attends_elsewhere,
        processor=RegionalProcessor,
        processors=STANDARD | IP_ADAPTERS,
        note="frames lie in the batch; motion modules attend to no text",
    ),
)
MODELS: Mapping[str, Model] = {row.name: row for row in _ROWS}
