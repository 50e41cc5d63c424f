"""MultiDiffusion: one diffusion process a region, fused after every step.

Source: Bar-Tal, Yariv, Lipman and Dekel, "MultiDiffusion: Fusing Diffusion Paths for Controlled
Image Generation", ICML 2023, arXiv 2302.08113: region-based generation with bootstrapping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stal.drawing import Drawing, Result
from stal.evaluation.baselines.denoiser import Denoiser, plain_drawing
from stal.layout import Layout, hard_masks
from stal.pipeline import Pipeline
from stal.prompts import parse
from stal.settings import UNCONDITIONAL, Settings, reference_prompt
from stal.torch_state import undisturbed


@undisturbed()
def multidiffusion(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    layouts: Sequence[Layout | None],
    seeds: Sequence[int],
    settings: Settings,
    strength: float = 1.0,
    bootstrap: float = 0.4,
    background: str | None = None,
) -> list[Result]:
    """e = (1 - strength) e_D + strength sum_i M_i e_i / sum_i M_i, i = 0 the background, 1..K.

    e_i is the guided prediction for the phrase of object i, M_i its box on the latents' cells (1
    where a box covers at least half a cell, and in the cell that it covers most), M_0 what no box
    covers; e_D is that for the whole prompt. Fusing predictions is fusing the steps of the
    samplers, which are linear in them.

    In the first steps object i is predicted in front of a plain colour, x M_i + (1 - M_i) b with b
    the noised latents of a random colour, so that it is drawn whole inside its box.

    Args:
        layouts: the boxes; None places the objects by the prompt. No objects is the plain model.
        strength: 1 in the paper; 0 is the plain model.
        bootstrap: share of the steps, 20 of 50 in the released code.
        background: the text of what no box covers, "{}" in it as in `Pipeline`'s reference; the
            model's own reference if it is a prompt ("an empty scene {}"), else the whole prompt, if
            None.

    Raises:
        ValueError: settings of several images a prompt, or what `Pipeline.prepare` refuses.

    Tried on the bundled model and prompts of the development split with 2 objects, of which the
    plain model draws 31% of the first 16 and 41% of the first 32 wholly right: bootstrap 0 and 0.2
    give 0% and 19% (of 16), 0.4 and 0.6 34% and 12% (of 32), strength 0.5 31% (of 16). The paper's
    values stay. Objects are lost where boxes are small.
    """
    drawing = plain_drawing(pipe, prompts, layouts=layouts, seeds=seeds, settings=settings)
    own = pipe.defaults.reference
    around = background if background is not None else own if own != UNCONDITIONAL else None
    terms = _terms(drawing, pipe.defaults.local_prompt, strength=strength, around=around)
    denoiser = Denoiser(drawing.model, drawing.settings, [term.text for term in terms])
    images, rows = [term.image for term in terms], [denoiser.rows[term.text] for term in terms]
    share, seen = (
        torch.stack(maps)[:, None].to(pipe.model.device, pipe.model.dtype)
        for maps in ([term.share for term in terms], [term.seen for term in terms])
    )
    index = torch.tensor(images, dtype=torch.long, device=pipe.model.device)
    first = round(bootstrap * drawing.schedule.steps) if bool((seen == 0).any()) else 0
    colours = _colours(drawing) if first else None
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    noise: Tensor | None = None

    def predict(x: Tensor, t: float, step: int, *_: Tensor) -> Tensor:
        nonlocal noise
        if colours is None or step >= first:
            return denoiser.composed(x, t, images, rows, share)
        noise = x if noise is None else noise
        # Each image picks by itself, so that it does not depend on the batch around it.
        picks = [
            int(torch.randint(len(colours), (), generator=generators[i], device="cpu"))
            for i in images
        ]
        alpha_bar = drawing.schedule.alpha_bar(t)
        plain = math.sqrt(alpha_bar) * colours[picks] + math.sqrt(1 - alpha_bar) * noise[index]
        each = denoiser.guided(seen * x[index] + (1 - seen) * plain, t, rows)
        return torch.zeros_like(x).index_add(0, index, share * each)

    return drawing.results(drawing.sample(predict=predict))


class _Term(NamedTuple):
    """A text in one image: its (height, width) share of the prediction, and which latents it sees
    while the others are a plain colour."""

    image: int
    text: str
    share: Tensor
    seen: Tensor


def _terms(
    drawing: Drawing, local_prompt: str, *, strength: float, around: str | None
) -> list[_Term]:
    """The terms of every image, without those whose share is 0 everywhere.

    around: the text of what no box covers, the whole prompt if None.
    """
    terms: list[_Term] = []
    everywhere = torch.ones(drawing.cells, dtype=torch.float32, device="cpu")
    for i, job in enumerate(drawing.jobs):
        boxes = hard_masks(job.layout, *drawing.cells).float()
        if not len(boxes):
            terms.append(_Term(i, job.texts[0], everywhere, everywhere))
            continue
        parts = torch.cat([(1 - boxes.sum(0, keepdim=True)).clamp(min=0), boxes])
        shares = strength * parts / parts.sum(0)
        stated = parse(job.prompt).background
        rest = job.texts[0] if around is None else reference_prompt(around, stated)
        terms.append(_Term(i, job.texts[0], (1 - strength) * everywhere, everywhere))
        terms.append(_Term(i, rest, shares[0], everywhere))
        for item, share, box in zip(job.layout.objects, shares[1:], boxes, strict=True):
            text = local_prompt.replace("{}", item.phrase)
            terms.append(_Term(i, text, share, box))
    return [term for term in terms if bool(term.share.any())]


def _colours(drawing: Drawing, count: int = 20) -> Tensor:
    """The latents of pictures of one random colour each, the same in every call."""
    generator = torch.Generator("cpu").manual_seed(0)
    levels = torch.rand(count, 3, 1, 1, generator=generator, dtype=torch.float32, device="cpu")
    pictures = levels.expand(-1, -1, drawing.settings.height, drawing.settings.width)
    return torch.cat([drawing.model.latents(picture[None]) for picture in pictures])
