"""Where each word of a prompt was looked at, in one denoising step of a finished drawing.

The step is computed again, alone, with plain attention to the prompt, which `stal.attention`
records: a drawing on its way is not slowed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO

import torch
from torch import Tensor
from torch.nn import functional as F

from stal.attention import Prompts, Recording
from stal.batch import Result
from stal.model.checkpoint import prompt_length
from stal.model.model import Model
from stal.noise import ImageNoise
from stal.prompts import drawn_text
from stal.schedule import schedule_from_config
from stal.torch_state import undisturbed


def words_of(model: Model, prompt: str) -> list[tuple[str, list[int]]]:
    """The words that the model reads of a prompt, each with the places of its tokens."""
    c, text = model.components, drawn_text(prompt)
    longest = prompt_length(c.tokenizer, c.text_encoder.config.max_position_embeddings)
    read = c.tokenizer(
        text, return_offsets_mapping=True, truncation=True, max_length=longest, verbose=False
    )
    spans = list(enumerate(read["offset_mapping"]))
    found = []
    for word in re.finditer(r"\S+", text):
        a, b = word.span()
        tokens = [k for k, (i, j) in spans if i < j and i < b and j > a]
        if tokens:
            found.append((word[0], tokens))
    return found


@undisturbed()
@torch.no_grad()
def heat(model: Model, result: Result, latents: Tensor | None, step: int) -> Tensor:
    """(words, height, width) uint8: the mean over layers and heads of what the softmax gives to a
    word's tokens, its largest value as 255; of the first picture.

    Args:
        model: that drew it.
        result: the drawing.
        latents: (1, channels, height, width) that the step begins with; None for step 0, which
            begins with noise.
        step: whose timestep.
    """
    settings = result.settings
    height, width = (settings[side] // model.scale_factor for side in ("height", "width"))
    if latents is None:
        noise = ImageNoise(1, 1, settings["seeds"][0], None)
        latents = noise.initial(model.unet.config.in_channels, height, width)
    schedule = schedule_from_config(
        model.components.scheduler_config, settings["steps"], sampler=settings["sampler"]
    )
    words = words_of(model, settings["prompt"])
    embeddings, pooled = model.encode([drawn_text(settings["prompt"])])
    tokens = [token for _, each in words for token in each]
    recording = Recording(Prompts(embeddings), [0], tokens)
    added = model.added_conditions(pooled, height=settings["height"], width=settings["width"])
    x = latents.to(model.device, model.dtype)
    model.unet(x, schedule.timesteps[step], None, added, attention=recording)
    layers = [
        F.interpolate(given.mean(1).permute(0, 3, 1, 2), (height, width), mode="bilinear")[0]
        for given in recording.probabilities.values()
    ]
    each = torch.stack(layers).mean(0).split([len(own) for _, own in words])
    maps = torch.stack([own.mean(0) for own in each])
    largest = maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
    return (maps / largest * 255).round().to("cpu", torch.uint8)


def as_png(levels: Tensor, size: Sequence[int]) -> bytes:
    """Levels (height, width) uint8 as a grey PNG of (width, height) pixels."""
    from PIL.Image import Resampling, fromarray

    buffer = BytesIO()
    fromarray(levels.numpy()).resize((size[0], size[1]), Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()
