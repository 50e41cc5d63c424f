"""Latents that follow the gradient of a loss of attention maps while a sampler runs.

What Attend-and-Excite and BoxDiff share: when latents move and how far (Chefer et al., arXiv
2301.13826, Algorithm 1), and the attention maps that their losses look at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stal.attention import Recording
from stal.drawing import Drawing
from stal.evaluation.baselines.denoiser import Denoiser
from stal.schedule import Schedule, ddim_variance

# move(x, t, step) -> x: latents, at least float32, before a call of the UNet.
Move = Callable[[Tensor, float, int], Tensor]
# losses(x, t) -> reach, loss: both (images,); see `descend`.
Losses = Callable[[Tensor, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Descent:
    """When latents move, and how far.

    In step s of n they go x - size_s grad loss, size_s = size sqrt(1 - (1 - decay) s / (n - 1)).

    size, decay: 20 and 0.5 in the released code of both methods.
    share: of the steps, from the first on, in which latents move; 0.5 there.
    thresholds: (share of the steps, attention) pairs: in that step the descent is repeated until
        every object has this much attention; at 0, 10 and 20 of 50 steps there.
    repeats: at most; 20 there.
    """

    size: float = 20.0
    decay: float = 0.5
    share: float = 0.5
    thresholds: tuple[tuple[float, float], ...] = ((0.0, 0.05), (0.2, 0.5), (0.4, 0.8))
    repeats: int = 20


# As released, for latents of 64 x 64.
RELEASED = Descent()
# For the bundled model's 16 x 16. Prompts of the development split (24 with 2 objects, 24 with 3),
# share of pictures wholly right at 2, 3 objects; the plain model's on 32 of each is 41%, 28%:
#     size                2          5          10
#     attend-and-excite   46%, 29%   42%, 42%   50%, 25%
#     boxdiff             67%, 54%   62%, 58%   58%, 17%
# With 20, on 12 of those with 2 objects, 42% and 33% (5: 67% and 58%).
SMALL = Descent(size=5.0)


def moving(drawing: Drawing, move: Move) -> Callable[..., Tensor]:
    """A `predict` for `Drawing.sample` with latents moved before each call of the UNet.

    A sampler is handed predictions and keeps its own x. All but PLMS are of the form

        x_next = ratio x + f(the estimates of x_0) + noise,

    so the moved latents y and the sampler's x differ by an offset that shrinks by `ratio` in each
    transition and is 0 in the end. y - x is kept here, and the prediction that is returned is the
    one that gives the sampler, at its x, the x_0 estimated at y.

    Raises:
        ValueError: the sampler is PLMS, which mixes predictions instead of estimates of x_0.
    """
    levels = _levels(drawing.schedule, drawing.settings.eta)
    is_epsilon = drawing.schedule.prediction_type == "epsilon"
    offset: Tensor | None = None

    def predict(x: Tensor, t: float, step: int, *weights: Tensor) -> Tensor:
        nonlocal offset
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        y = exact
        if step and offset is not None:
            y = exact + levels[step - 1][2] * offset
        y = move(y, t, step)
        offset = y - exact
        alpha, sigma, _ = levels[step]
        prediction = drawing.predict(y.to(x.dtype), t, step, *weights)
        # eps = (x - alpha x_0) / sigma; v = (alpha x - x_0) / sigma.
        return prediction - (1 if is_epsilon else alpha) / sigma * offset.to(prediction.dtype)

    return predict


def _levels(schedule: Schedule, eta: float) -> list[tuple[float, float, float]]:
    """alpha, sigma (of x = alpha x_0 + sigma eps) and ratio of each transition."""
    if schedule.sampler == "plms":
        raise ValueError("sampler must be another than plms where latents move, e.g. ddim")
    levels = []
    if schedule.sampler == "ddim":
        for t in schedule.timesteps:
            a_t, a_s = schedule.alpha_bar(t), schedule.alpha_bar(t - schedule.stride)
            variance = ddim_variance(a_t, a_s, eta)
            ratio = math.sqrt(max(0.0, 1 - a_s - variance) / (1 - a_t))
            levels.append((math.sqrt(a_t), math.sqrt(1 - a_t), ratio))
        return levels
    for now, then in itertools.pairwise(schedule.sigmas):
        norm = math.hypot(1, now)
        down = then**2 / now if schedule.sampler == "euler-ancestral" else then
        levels.append((1 / norm, now / norm, down / now * norm / math.hypot(1, then)))
    return levels


def descend(drawing: Drawing, losses: Losses, options: Descent) -> Move:
    """A move of `moving`: latents follow the gradient of each image's loss.

    Args:
        drawing: has the steps.
        losses: gives each image's reach, 1 minus the least attention of its objects, and its loss.
            In a step with a threshold an image's latents follow the gradient of its reach until it
            is at most 1 - threshold; then, as in every step of the share, they once follow that of
            the loss.
        options: when they move, and how far.
    """
    steps = drawing.schedule.steps
    targets = {round(share * steps): 1 - value for share, value in options.thresholds}

    def gradient(x: Tensor, t: float, which: int) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            values = losses(x, t)
            # Images do not see each other, so the sum has each one's own gradient.
            grad = torch.autograd.grad(values[which].sum(), x)[0]
        return values[0].detach(), grad

    def move(x: Tensor, t: float, step: int) -> Tensor:
        size = options.size * math.sqrt(1 - (1 - options.decay) * step / max(steps - 1, 1))
        if size == 0:
            return x
        for _ in range(options.repeats if step in targets else 0):
            reach, grad = gradient(x, t, 0)
            short = reach > targets[step]
            if not bool(short.any()):
                break
            x = x - size * short[:, None, None, None] * grad
        if step < options.share * steps:
            x = x - size * gradient(x, t, 1)[1]
        return x

    return move


def attention_maps(
    denoiser: Denoiser, x: Tensor, t: float, rows: Sequence[int], *, side: int
) -> Tensor:
    """A: (images, height, width, seqlen_k), the mean over heads and layers of one resolution.

    Args:
        denoiser: the UNet, asked without guidance.
        x: latents (images, channels, height, width); the maps are differentiable in them.
        t: the timestep.
        rows: the table row of each image's text.
        side: of the square grid whose number of cells is nearest to that resolution's.
    """
    tokens = range(denoiser.embeddings.shape[1])
    recording = Recording(denoiser.prompts, rows, tokens)
    denoiser(x, t, rows, recording)
    maps = recording.probabilities.values()
    cells = {a.shape[2] * a.shape[3] for a in maps}
    nearest = min(cells, key=lambda n: (abs(n - side**2), n))
    chosen = [a.mean(1) for a in maps if a.shape[2] * a.shape[3] == nearest]
    return torch.stack(chosen).mean(0)


def default_descent(drawing: Drawing) -> Descent:
    """SMALL for latents of at most 32 cells along a side, else RELEASED."""
    return SMALL if min(drawing.cells) <= 32 else RELEASED


def default_side(drawing: Drawing) -> int:
    """A quarter of the latents' shorter side, 16 for Stable Diffusion's 64, but at least 8."""
    return max(min(drawing.cells) // 4, 8)


def token_maps(maps: Tensor, tokens: Sequence[int], *, sharpness: float, sigma: float) -> Tensor:
    """(tokens, height, width): what pixels give to some tokens of one image.

    maps (height, width, seqlen_k) become softmax(sharpness A) over all tokens but the first and
    the last, as in the released code, and are smoothed by a Gaussian of 3 x 3 cells.
    """
    shared = (sharpness * maps[..., 1:-1]).softmax(-1)
    images = torch.stack([shared[..., token - 1] for token in tokens])
    line = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float32, device="cpu")
    line = torch.exp(-0.5 * (line / sigma) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    mode = "reflect" if min(images.shape[1:]) > 1 else "replicate"
    padded = F.pad(images[:, None], (1, 1, 1, 1), mode=mode)
    return F.conv2d(padded, kernel.to(images)[None, None])[:, 0]
