"""What of a denoiser's call matters to regions: its prompts, timestep and size, and how its tokens
are pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

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


def argument(args: Sequence[Any], kwargs: Mapping[str, Any], name: str, position: int) -> Any:
    """An argument of a denoiser's forward, however it was passed."""
    return kwargs[name] if name in kwargs else args[position]


def unet_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    sample = argument(args, kwargs, "sample", 0)
    frames = sample.shape[2] if sample.ndim == 5 else 1
    return Inputs(
        argument(args, kwargs, "encoder_hidden_states", 2),
        argument(args, kwargs, "timestep", 1),
        (frames, sample.shape[-2], sample.shape[-1]),
    )


def picture_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    """PixArt and Sana."""
    return _of_picture(args, kwargs, prompts=1, timestep=2)


def hunyuan_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    """Rows are recognised by BERT's text; T5's is another argument."""
    return _of_picture(args, kwargs, prompts=2, timestep=1)


def _of_picture(
    args: Sequence[Any], kwargs: Mapping[str, Any], *, prompts: int, timestep: int
) -> Inputs:
    """Of latents (batch, channels, height, width) and arguments at these positions."""
    sample = argument(args, kwargs, "hidden_states", 0)
    return Inputs(
        argument(args, kwargs, "encoder_hidden_states", prompts),
        argument(args, kwargs, "timestep", timestep),
        (1, sample.shape[-2], sample.shape[-1]),
    )


def ltx_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    """The timestep of a token of a given frame is 0, of the others it is the largest."""
    return _packed(args, kwargs, prompts=1, timestep=2, size=4)


def ltx2_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    return _packed(args, kwargs, prompts=2, timestep=4, size=10)


def _packed(
    args: Sequence[Any], kwargs: Mapping[str, Any], *, prompts: int, timestep: int, size: int
) -> Inputs:
    """Of latents that are a row of tokens, whose size is said in three arguments."""
    names = ("num_frames", "height", "width")
    frames, height, width = (argument(args, kwargs, n, size + i) for i, n in enumerate(names))
    return Inputs(
        argument(args, kwargs, "encoder_hidden_states", prompts),
        argument(args, kwargs, "timestep", timestep),
        (frames, height, width),
    )


def video_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    """Cosmos and Wan, whose latents are (batch, channels, frames, height, width).

    A timestep may be one a frame, (batch, 1, frames, 1, 1), where that of given frames is another
    one: they come first; or one a token, (batch, tokens), where that of given frames is 0.
    """
    sample = argument(args, kwargs, "hidden_states", 0)
    timestep = argument(args, kwargs, "timestep", 1)
    prompts = argument(args, kwargs, "encoder_hidden_states", 2)
    return Inputs(
        prompts[0] if isinstance(prompts, tuple) else prompts,
        timestep[:, :, -1] if timestep.ndim == 5 else timestep,
        (sample.shape[2], sample.shape[3], sample.shape[4]),
    )


def kandinsky5_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    return _channels_last(args, kwargs, 2)


def kandinsky6_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    """Without the frame that a given image is, which comes last."""
    inputs = _channels_last(args, kwargs, 3)
    if kwargs.get("visual_token_type_ids") is None:
        return inputs
    frames, height, width = inputs.size
    return Inputs(inputs.prompts, inputs.timestep, (frames - 1, height, width))


def _channels_last(args: Sequence[Any], kwargs: Mapping[str, Any], timestep: int) -> Inputs:
    """Of latents (batch, frames, height, width, channels); timestep: position of the argument."""
    sample = argument(args, kwargs, "hidden_states", 0)
    return Inputs(
        argument(args, kwargs, "encoder_hidden_states", 1),
        argument(args, kwargs, "timestep", timestep),
        (sample.shape[1], sample.shape[2], sample.shape[3]),
    )


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


def patched(size: Size, tokens: int) -> Size:
    """The grid of a transformer with so many tokens, each a square of latents in one frame."""
    frames, height, width = size
    for side in range(1, max(height, width) + 1):
        grid = frames, height // side, width // side
        if grid[0] * grid[1] * grid[2] == tokens:
            return grid
    raise ValueError(
        f"attention must be over squares of {frames} x {height} x {width} latents (frames, height,"
        f" width), got {tokens} tokens"
    )


def squares_of_two(size: Size, tokens: int) -> Size:
    """Tokens are squares of 2 x 2 latents; those past the grid are a given image's."""
    frames, height, width = size[0], size[1] // 2, size[2] // 2
    if tokens not in (frames * height * width, (frames + 1) * height * width):
        raise ValueError(
            f"attention must be over 2 x 2 squares of {frames} x {size[1]} x {size[2]} latents"
            f" (frames, height, width), got {tokens} tokens"
        )
    return frames, height, width
