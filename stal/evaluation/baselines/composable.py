"""Composable Diffusion: the objects of a prompt as a conjunction of scores.

Source: Liu, Li, Du, Torralba and Tenenbaum, "Compositional Visual Generation with Composable
Diffusion Models", ECCV 2022, arXiv 2206.01714: concept conjunction (AND) of section 4 and
Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stal.drawing import Result
from stal.evaluation.baselines.denoiser import Denoiser, plain_drawing
from stal.layout import Layout
from stal.pipeline import Pipeline
from stal.prompts import parse
from stal.settings import Settings
from stal.torch_state import undisturbed


@undisturbed()
def composable(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    layouts: Sequence[Layout | None],
    seeds: Sequence[int],
    settings: Settings,
    parts: float = 1.0,
    whole: float = 0.0,
    local_prompt: str | None = None,
) -> list[Result]:
    """e = e_0 + g [ whole (e_D - e_0) + parts sum_i (e_i - e_0) ], g the guidance scale.

    e_D is the prediction for the prompt, e_i for the phrase of object i, e_0 for the negative
    prompt. The paper has the parts alone, each with the weight of a guidance scale (7.5 in the
    released Stable Diffusion script): the defaults. What relates the objects is then lost, and to a
    model of complete captions a phrase of one object also says that there is no other. Equal
    phrases count once; a prompt without objects is its own only part.

    Args:
        layouts: not looked at, only handed on with the results.
        parts, whole: weights in units of the guidance scale; parts 0, whole 1 is the plain model.
        local_prompt: how a phrase becomes its text, "{}" stands for it; the model's own if None.

    Raises:
        ValueError: settings of several images a prompt, or what `Pipeline.prepare` refuses.

    Tuned on the bundled model and 32 prompts each with 2 and 3 objects of the development split;
    pictures wholly right, where the plain model has 41%, 28%:

        parts, whole   1, 0   0.5, 0.5   0.3, 0.5   0.15, 0.85   0.3, 0.7 with   0.15, 0.85 with
        2 objects        0%      3%        16%         41%            31%              31%
        3 objects        0%      0%         0%          9%            19%              28%

    "with" is the local_prompt "a picture with {}". No weight of the parts helps this model.
    """
    drawing = plain_drawing(pipe, prompts, layouts=layouts, seeds=seeds, settings=settings)
    template = pipe.defaults.local_prompt if local_prompt is None else local_prompt
    terms: list[tuple[int, str, float]] = []  # image, text, weight
    for i, prompt in enumerate(prompts):
        phrases = dict.fromkeys(item.phrase for item in parse(prompt).objects)
        local = [(i, template.replace("{}", p), parts) for p in phrases]
        terms += [(i, prompt, whole), *local] if phrases else [(i, prompt, 1.0)]
    terms = [term for term in terms if term[2]]
    denoiser = Denoiser(drawing.model, drawing.settings, [text for _, text, _ in terms])
    images, rows = [i for i, _, _ in terms], [denoiser.rows[text] for _, text, _ in terms]
    shape = (len(terms), 1, 1, 1)
    weights = torch.tensor([w for *_, w in terms], dtype=pipe.model.dtype, device=pipe.model.device)

    def predict(x: Tensor, t: float, step: int, *_: Tensor) -> Tensor:
        return denoiser.composed(x, t, images, rows, weights.view(shape))

    return drawing.results(drawing.sample(predict=predict))
