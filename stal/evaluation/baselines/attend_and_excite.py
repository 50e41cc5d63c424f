"""Attend-and-Excite: latents move until every object's noun is attended to somewhere.

Source: Chefer, Alaluf, Vinker, Wolf and Cohen-Or, "Attend-and-Excite: Attention-Based Semantic
Guidance for Text-to-Image Diffusion Models", SIGGRAPH 2023, arXiv 2301.13826, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stal.drawing import Result
from stal.evaluation.baselines.denoiser import Denoiser, plain_drawing
from stal.evaluation.baselines.latents import (
    Descent,
    attention_maps,
    default_descent,
    default_side,
    descend,
    moving,
    token_maps,
)
from stal.evaluation.baselines.tokens import noun_token
from stal.layout import Layout
from stal.pipeline import Pipeline
from stal.prompts import parse
from stal.settings import Settings
from stal.torch_state import undisturbed


@undisturbed()
def attend_and_excite(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    layouts: Sequence[Layout | None],
    seeds: Sequence[int],
    settings: Settings,
    descent: Descent | None = None,
    side: int | None = None,
    sharpness: float = 100.0,
    sigma: float = 0.5,
) -> list[Result]:
    """Latents descend max_s (1 - max_n A_s[n]) over the nouns s of the objects.

    A_s is the attention of all pixels n to the noun's token, smoothed; see `loss`. A prompt without
    objects is the plain model.

    Args:
        layouts: not looked at, only handed on with the results.
        descent: when latents move, and how far; size 0 is the plain model. As released if None,
            but for small latents with the size tuned for them.
        side: of the attention maps; a quarter of the latents' side but at least 8 if None: 16 for
            Stable Diffusion as in the paper, 8 for the bundled model. Not tuned.
        sharpness, sigma: of the maps, see `stal.evaluation.baselines.latents.token_maps`.

    Raises:
        ValueError: the sampler is plms.
    """
    drawing = plain_drawing(pipe, prompts, layouts=layouts, seeds=seeds, settings=settings)
    denoiser = Denoiser(drawing.model, drawing.settings, prompts)
    rows = [denoiser.rows[prompt] for prompt in prompts]
    nouns = [nouns_of(pipe, prompt) for prompt in prompts]
    cells = side or default_side(drawing)

    def losses(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        maps = attention_maps(denoiser, x, t, rows, side=cells)
        each = torch.stack(
            [
                loss(a, tokens, sharpness=sharpness, sigma=sigma)
                for a, tokens in zip(maps, nouns, strict=True)
            ]
        )
        return each, each

    if not any(nouns):
        return drawing.results(drawing.sample())
    predict = moving(drawing, descend(drawing, losses, descent or default_descent(drawing)))
    return drawing.results(drawing.sample(predict=predict))


def nouns_of(pipe: Pipeline, prompt: str) -> list[int]:
    """Token positions of the objects' nouns, without those that the text encoder cuts off."""
    tokenizer = pipe.model.components.tokenizer
    found = [noun_token(tokenizer, prompt, item.span) for item in parse(prompt).objects]
    return [token for token in dict.fromkeys(found) if token is not None]


def loss(maps: Tensor, tokens: Sequence[int], *, sharpness: float, sigma: float) -> Tensor:
    """max_s (1 - max_n A_s[n]) of one image's maps (height, width, seqlen_k); 0 without tokens."""
    if not tokens:
        return 0 * maps.sum()
    a = token_maps(maps, tokens, sharpness=sharpness, sigma=sigma)
    return (1 - a.amax((1, 2))).max()
