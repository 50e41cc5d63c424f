"""BoxDiff: latents move until each object's noun is attended to in its box, and only there.

Source: Xie et al., "BoxDiff: Text-to-Image Synthesis with Training-Free Box-Constrained
Diffusion", ICCV 2023, arXiv 2307.10816: the inner-box, outer-box and corner constraints.
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
from stal.evaluation.baselines.tokens import named_in, noun_token
from stal.layout import Box, Layout
from stal.pipeline import Pipeline
from stal.settings import Settings
from stal.torch_state import undisturbed


@undisturbed()
def boxdiff(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    layouts: Sequence[Layout | None],
    seeds: Sequence[int],
    settings: Settings,
    descent: Descent | None = None,
    top: float = 0.2,
    corner: int = 1,
    side: int | None = None,
    sharpness: float = 100.0,
    sigma: float = 0.5,
) -> list[Result]:
    """Latents descend the constraints of `loss`; see there. No objects is the plain model.

    Args:
        layouts: the boxes; None places the objects by the prompt.
        descent: when latents move, and how far; size 0 is the plain model. As released if None,
            but for small latents with the size tuned for them.
        top, corner: share of the cells of a box that count, and cells around a box's corners. The
            released configuration has 0.8 and 6, for maps of 16 x 16; not tuned.
        side: of the attention maps; a quarter of the latents' side but at least 8 if None: 16 for
            Stable Diffusion as in the paper, 8 for the bundled model. Not tuned.
        sharpness, sigma: of the maps, see `stal.evaluation.baselines.latents.token_maps`.

    Raises:
        ValueError: the sampler is plms, or a layout has an object that its prompt does not name.
    """
    drawing = plain_drawing(pipe, prompts, layouts=layouts, seeds=seeds, settings=settings)
    denoiser = Denoiser(drawing.model, drawing.settings, prompts)
    rows = [denoiser.rows[prompt] for prompt in prompts]
    placed = [tokens_and_boxes(pipe, job.texts[0], job.layout) for job in drawing.jobs]
    cells = side or default_side(drawing)

    def losses(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        maps = attention_maps(denoiser, x, t, rows, side=cells)
        pairs = []
        for a, mine in zip(maps, placed, strict=True):
            if not mine:
                pairs.append((0 * a.sum(), 0 * a.sum()))
                continue
            images = token_maps(a, [token for token, _ in mine], sharpness=sharpness, sigma=sigma)
            pairs.append(loss(images, [box for _, box in mine], top=top, corner=corner))
        reach, total = zip(*pairs, strict=True)
        return torch.stack(reach), torch.stack(total)

    if not any(placed):
        return drawing.results(drawing.sample())
    predict = moving(drawing, descend(drawing, losses, descent or default_descent(drawing)))
    return drawing.results(drawing.sample(predict=predict))


def tokens_and_boxes(pipe: Pipeline, prompt: str, layout: Layout) -> list[tuple[int, Box]]:
    """Each object's noun token and box, without those that the text encoder cuts off."""
    tokenizer, items = pipe.model.components.tokenizer, layout.objects
    tokens = [noun_token(tokenizer, prompt, span) for span in named_in(prompt, items)]
    pairs = zip(tokens, items, strict=True)
    return [(token, item.box) for token, item in pairs if token is not None]


def loss(images: Tensor, boxes: Sequence[Box], *, top: float, corner: int) -> tuple[Tensor, Tensor]:
    """The largest inner-box constraint, and the sum of all constraints.

    With A the map of an object's noun and M its box, an object's constraints are

        inner box   1 - the mean of the largest `top` of the box's cells of A M
        outer box   the mean of the largest `top` of the other cells of A (1 - M)
        corners     for rows and for columns, the mean over the axis of |max A - max M| where the
                    axis is at most `corner` cells from an end of the box, 0 elsewhere; the maxima
                    are over the other axis

    Boxes are rounded to whole cells, at least one.

    Args:
        images: (objects, height, width), the maps.
        boxes: one an object, fractions of the canvas.
    """
    inner, rest = [], []
    for a, box in zip(images, boxes, strict=True):
        ends = [_cells(box[axis], box[axis + 2], a.shape[1 - axis]) for axis in (0, 1)]
        (x0, x1), (y0, y1) = ends
        inside = torch.zeros_like(a)
        inside[y0:y1, x0:x1] = 1
        inner.append(1 - _largest(a[y0:y1, x0:x1], top))
        rest.append(_largest(a[inside == 0], top))
        for axis, (low, high) in enumerate(ends):
            cells = torch.arange(a.shape[1 - axis], dtype=torch.long, device=a.device)
            near = ((cells - low).abs() <= corner) | ((cells - high).abs() <= corner)
            rest.append(((a.amax(axis) - inside.amax(axis)).abs() * near).mean())
    within = torch.stack(inner)
    return within.max(), within.sum() + torch.stack(rest).sum()


def _cells(low: float, high: float, n: int) -> tuple[int, int]:
    start = min(max(round(low * n), 0), n - 1)
    return start, min(max(round(high * n), start + 1), n)


def _largest(values: Tensor, share: float) -> Tensor:
    """The mean of the largest share of the values, at least one; 0 of none."""
    if not values.numel():
        return values.sum()
    return values.flatten().topk(max(int(share * values.numel()), 1)).values.mean()
