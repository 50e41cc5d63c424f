"""Combination weights that CLIP agrees with (arXiv 2304.03869, section 3.3).

    drawing = pipe.prepare([prompt], Settings(attention="spatial"))
    found = trajectory(drawing, clip.load(folder), RELEASED)
    drawing.results(found.latents, found.weights)

`trajectory` differentiates through all steps of the sampler, `online` looks at one step at a time
while a picture is drawn, `schedule` fits a few numbers to many prompts once and for all.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from stal.caller import warn
from stal.checked_json import is_integer, number, scalar
from stal.drawing import Drawing
from stal.finite import NotFinite
from stal.model.clip import Clip, crops
from stal.runs import read_run, write_run
from stal.schedule import Schedule, denoised_and_eps
from stal.torch_state import undisturbed
from stal.weights.files import VERSION, WeightSchedule, knots_to_weights


@dataclass(frozen=True)
class Options:
    """How to optimise. The defaults are those of the paper's released code.

    epochs: drawings of the whole trajectory, each followed by an update but the last.
    lr: learning rate of Adam.
    crop_weight: weight of the crops' sum in the loss.
    margin: of a crop, see `stal.model.clip.crops`.
    patience: epochs without a better loss after which a run stops.
    """

    epochs: int = 3
    lr: float = 0.005
    crop_weight: float = 5.0
    margin: float = 0.1
    patience: int = 10

    def __post_init__(self) -> None:
        for name in ("epochs", "patience"):
            value = scalar(getattr(self, name))
            if not is_integer(value) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
            object.__setattr__(self, name, value)
        for name in ("lr", "crop_weight", "margin"):
            value = number(getattr(self, name), name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
            object.__setattr__(self, name, value)


# Constant weights 5/K against the unconditional half are where that code starts from:
# Settings(attention="spatial", reference="unconditional").
RELEASED = Options()


@dataclass(frozen=True)
class Outcome:
    """What an optimisation found.

    weights: the best (steps, objects) of each prompt.
    latents: (images, channels, height, width), drawn with them.
    trace: of each prompt, one record an epoch: loss, whole, crops (the loss's two terms).
    """

    weights: list[Tensor]
    latents: Tensor = field(repr=False)
    trace: list[list[dict[str, float]]] = field(repr=False)


def clip_loss(clip: Clip, images: Tensor, drawing: Drawing, options: Options) -> Tensor:
    """(prompts, 2): 1 - cos(image, D), and sum_i of 1 - cos(crop_i, "a photo of " + L_i).

    images (images, 3, height, width) in [0, 1]; of several images of a prompt the mean is taken.
    """
    n, size = drawing.settings.num_images, clip.preprocessing.size
    features = clip.images(images)
    rows = []
    for i, job in enumerate(drawing.jobs):
        mine = slice(i * n, (i + 1) * n)
        whole = 1 - (features[mine] * clip.texts(job.texts[:1])).sum(-1).mean()
        objects = job.layout.objects
        if not objects:
            rows.append(torch.stack([whole, torch.zeros_like(whole)]))
            continue
        texts = clip.texts([f"a photo of {item.phrase}" for item in objects])
        boxes = [item.box for item in objects]
        parts = [crops(one, boxes, size=size, margin=options.margin) for one in images[mine]]
        similar = (clip.images(torch.cat(parts)).unflatten(0, (n, -1)) * texts).sum(-1)
        rows.append(torch.stack([whole, (1 - similar).sum(1).mean()]))
    return torch.stack(rows)


def differentiable(
    function: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """predict(x, t, step, *weights) that keeps its inputs alone and is computed again backwards.

    A trajectory's tape then holds x_t of each step, and one UNet call's activations at a time.
    """

    def predict(x: Tensor, t: float, step: int, *weights: Tensor) -> Tensor:
        return _Recomputed.apply(lambda x, *w: function(x, t, step, *w), x, *weights)

    return predict


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        pairs = zip(ctx.saved_tensors, needed, strict=True)
        inputs = [tensor.detach().requires_grad_(need) for tensor, need in pairs]
        with torch.enable_grad():
            out = ctx.function(*inputs)
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        grads = iter(torch.autograd.grad(out, wanted, dout, allow_unused=True))
        return (None, *(next(grads) if need else None for need in needed))


@undisturbed()
@torch.enable_grad()
def trajectory(
    drawing: Drawing,
    clip: Clip,
    options: Options = RELEASED,
    *,
    path: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Outcome:
    """Adam on weights[step, object] through the whole trajectory; exact for every sampler.

    loss = (1 - cos(image, D)) + crop_weight * sum_i (1 - cos(crop_i, "a photo of " + L_i)), for
    each prompt. Where the released code keeps the last weights, the best are kept. The noise is
    the drawing's in every epoch. Prompts of a batch do not touch each other.

    Args:
        drawing: where to start from, see `Pipeline.prepare`.
        path: weights file, written after each epoch; if it is there, the run goes on from it.
        quiet: without a progress bar.

    Raises:
        ValueError: plain attention; a file of another run; no epoch has a finite loss.
    """
    _check_blended(drawing)
    weights = [w.detach().clone().requires_grad_() for w in drawing.weights]
    adam = torch.optim.Adam(weights, lr=options.lr)
    best = [w.detach().clone() for w in weights]
    trace: list[list[dict[str, float]]] = [[] for _ in weights]
    key = {**_key(drawing), "options": asdict(options)}
    record = None if path is None else read_run(path, key)
    if record is not None:
        _resume(record, adam, weights, best, trace)
    latents: Tensor | None = None
    predict = differentiable(drawing.predict)
    done = len(trace[0])
    bar = tqdm(range(done, options.epochs), desc="trajectory", disable=quiet, leave=False)
    for epoch in bar:
        if all(_is_stale(rows, options.patience) for rows in trace):
            break
        try:
            drawn = drawing.sample(weights, predict=predict)
            terms = clip_loss(clip, drawing.model.pixels(drawn), drawing, options)
            loss = terms[:, 0] + options.crop_weight * terms[:, 1]
            _check_finite("loss", loss)
            adam.zero_grad()
            if epoch + 1 < options.epochs:
                loss.sum().backward()
                for w in weights:
                    if w.grad is not None:
                        _check_finite("gradient", w.grad, axis="step")
        except NotFinite as error:
            where = f"{error} (epoch {epoch})"
            if not trace[0]:
                raise NotFinite(f"{where}; there are no better weights to keep") from error
            warn(f"{where}; the best weights before it are kept")
            break
        n = drawing.settings.num_images
        drawn = drawn.detach()
        latents = torch.zeros_like(drawn) if latents is None and epoch == 0 else latents
        parts = terms.tolist()
        whole, cropped = terms.mean(0).tolist()
        bar.set_postfix(loss=loss.mean().item(), whole=whole, crops=cropped)
        for i, (value, rows) in enumerate(zip(loss.tolist(), trace, strict=True)):
            if value < min((row["loss"] for row in rows), default=math.inf):
                best[i].copy_(weights[i].detach())
                if latents is not None:
                    latents[i * n : (i + 1) * n] = drawn[i * n : (i + 1) * n]
            rows.append({"loss": value, "whole": parts[i][0], "crops": parts[i][1]})
        if epoch + 1 < options.epochs:
            adam.step()
            _project(weights, drawing)
        if path is not None:
            write_run(path, key, _state(adam, weights, best, trace))
    if latents is None:  # resumed
        latents = drawing.sample(best)
    return Outcome(best, latents, trace)


@undisturbed()
@torch.no_grad()
def online(
    drawing: Drawing,
    clip: Clip,
    options: Options = RELEASED,
    *,
    every: int = 2,
    until: float = 0.5,
    updates: int = 1,
    radius: float = 0.5,
) -> Outcome:
    """Chooses each step's weights during a single drawing.

    At every n-th step of the first `until` of all, the prediction's estimate of x_0 is decoded and
    scored, and the weights of this step and the `every - 1` after it are moved down the loss's
    gradient: `updates` times by radius/updates in the largest component, so that none moves
    farther than radius (the trust region). The drawing's weights are where they start from.

    Raises:
        ValueError: plain attention, or a number that breaks its rule.
    """
    _check_blended(drawing)
    for name, value in (("every", every), ("updates", updates)):
        if not is_integer(value) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if not 0 <= until <= 1 or not 0 <= radius < math.inf:
        raise ValueError(f"until must lie in [0, 1] and radius be >= 0, got {until} and {radius}")
    weights = [w.detach().clone() for w in drawing.weights]
    trace: list[list[dict[str, float]]] = [[] for _ in weights]
    seen: set[int] = set()

    def predict(x: Tensor, t: float, step: int, *weights: Tensor) -> Tensor:
        due = step % every == 0 and step < until * drawing.schedule.steps
        unconditional = None
        if due and step not in seen:  # PLMS calls twice in step 0
            seen.add(step)
            unconditional = drawing.unconditional(x, t)
            for _ in range(updates):
                adjust(x, t, step, unconditional)
        return drawing.predict(x, t, step, *weights, unconditional=unconditional)

    def adjust(x: Tensor, t: float, step: int, unconditional: Tensor | None) -> None:
        leaves = [w.clone().requires_grad_() for w in weights]
        with torch.enable_grad():
            prediction = drawing.predict(x, t, step, *leaves, unconditional=unconditional)
            images = drawing.model.pixels(_denoised(prediction, x, t, drawing.schedule))
            terms = clip_loss(clip, images, drawing, options)
            loss = terms[:, 0] + options.crop_weight * terms[:, 1]
            grads = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
        parts = terms.tolist()
        for i, (w, grad, value) in enumerate(zip(weights, grads, loss.tolist(), strict=True)):
            row = {"loss": value, "whole": parts[i][0], "crops": parts[i][1]}
            trace[i].append({"step": step, **row})
            if grad is None or not w.numel():
                continue
            if not grad.isfinite().all():
                rule = f"gradient must be finite, got NaN or infinity at step {step}"
                warn(f"{rule}: prompt {i} keeps its weights there")
                continue
            move = grad[step] / grad[step].abs().max().clamp(min=1e-12)
            w[step : step + every] -= radius / updates * move
        _project(weights, drawing)

    return Outcome(weights, drawing.sample(weights, predict=predict), trace)


@undisturbed()
@torch.enable_grad()
def schedule(
    drawings: Sequence[Drawing],
    clip: Clip,
    options: Options,
    *,
    start: WeightSchedule,
    path: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> tuple[WeightSchedule, list[float]]:
    """One schedule for many prompts: Adam on the knots of each number of objects.

    Args:
        drawings: batches of prompts; each epoch goes through all, with an update after each. The
            prompts of a batch may differ in their number of objects.
        start: where to start from.
        path: file of the run, written after each epoch; if it is there, the run goes on from it.
        quiet: without a progress bar.

    Returns:
        the mean of the knots over the updates of the last half of the epochs, and the mean loss
        of each epoch. The mean is steadier than any one update's, whose loss is of one batch.

    Raises:
        ValueError: plain attention, no drawings, a file of another run, or a loss that is not
            finite.
    """
    if not drawings:
        raise ValueError("drawings must hold at least one batch, got none")
    for drawing in drawings:
        _check_blended(drawing)
    values = {n: _floats(v).requires_grad_() for n, v in sorted(start.knots.items())}
    adam = torch.optim.Adam(values.values(), lr=options.lr)
    sums, updates = {n: torch.zeros_like(v) for n, v in values.items()}, 0
    losses: list[float] = []
    key = {
        "version": VERSION,
        "drawings": [_key(drawing) for drawing in drawings],
        "options": asdict(options),
        "start": start.to_json()["knots"],
    }
    record = None if path is None else read_run(path, key)
    if record is not None:
        losses, updates = record["losses"], record["updates"]
        for i, n in enumerate(values):
            _restore(adam, values[n], record["values"][i], record["moments"][i])
            sums[n] = _floats(record["sums"][i])
    whole = WeightSchedule({n: tuple(v.tolist()) for n, v in values.items()})
    for epoch in tqdm(range(len(losses), options.epochs), desc="schedule", disable=quiet):
        total = []
        for i, drawing in enumerate(drawings):
            weights = [
                knots_to_weights(values[whole.group(w.shape[1])], *w.shape) for w in drawing.weights
            ]
            drawn = drawing.sample(weights, predict=differentiable(drawing.predict))
            terms = clip_loss(clip, drawing.model.pixels(drawn), drawing, options)
            loss = (terms[:, 0] + options.crop_weight * terms[:, 1]).mean()
            _check_finite(f"loss in epoch {epoch}, batch {i},", loss)
            adam.zero_grad()
            loss.backward()
            for n, v in values.items():
                if v.grad is not None:
                    _check_finite(f"gradient of {n} objects' knots", v.grad, axis="knot")
            adam.step()
            _project(list(values.values()), drawing)
            total.append(loss.item())
            if 2 * epoch >= options.epochs - 1:
                updates += 1
                for n, v in values.items():
                    sums[n] += v.detach()
        losses.append(sum(total) / len(total))
        if path is not None:
            state = {
                "losses": losses,
                "updates": updates,
                "values": [v.tolist() for v in values.values()],
                "moments": [_moments(adam, v) for v in values.values()],
                "sums": [sums[n].tolist() for n in values],
            }
            write_run(path, key, state)
    return WeightSchedule({n: tuple((s / updates).tolist()) for n, s in sums.items()}), losses


def _denoised(prediction: Tensor, x: Tensor, t: float, schedule: Schedule) -> Tensor:
    """The estimate of x_0 at a timestep of the schedule."""
    sigma = schedule.sigmas[schedule.timesteps.index(t)]
    alpha_bar = 1 / (1 + sigma**2)
    return denoised_and_eps(prediction, x, alpha_bar, schedule.prediction_type)[0]


def _check_blended(drawing: Drawing) -> None:
    if drawing.settings.attention == "plain":
        raise ValueError("attention must not be plain, which has no weights to optimise")


def _check_finite(name: str, values: Tensor, *, axis: str = "prompt") -> None:
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        index = f" in {axis} {int(bad[0][0])}" if bad.shape[1] else ""
        raise NotFinite(f"{name} must be finite, got NaN or infinity{index}")


def _is_stale(rows: Sequence[dict[str, float]], patience: int) -> bool:
    losses = [row["loss"] for row in rows]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _project(weights: Sequence[Tensor], drawing: Drawing) -> None:
    """The convex rule has weights in [0, 1]."""
    if drawing.settings.rule == "convex":
        for w in weights:
            w.data.clamp_(0, 1)


def _key(drawing: Drawing) -> dict[str, Any]:
    """What a weights file's run must agree with."""
    return {
        "version": VERSION,
        "model": drawing.model.name,
        "prompts": [job.prompt for job in drawing.jobs],
        "layouts": [json.loads(job.layout.to_json()) for job in drawing.jobs],
        "settings": asdict(drawing.settings),
        "seeds": drawing.seeds,
    }


def _state(
    adam: torch.optim.Adam,
    weights: Sequence[Tensor],
    best: Sequence[Tensor],
    trace: Sequence[list[dict[str, float]]],
) -> dict[str, Any]:
    """What a weights file has beside its key; the best weights are what `load_weights` reads."""
    state = {
        "weights": [w.tolist() for w in weights],
        "moments": [_moments(adam, w) for w in weights],
    }
    return {"weights": [b.tolist() for b in best], "trace": trace, "state": state}


def _resume(
    record: Mapping[str, Any],
    adam: torch.optim.Adam,
    weights: Sequence[Tensor],
    best: Sequence[Tensor],
    trace: list[list[dict[str, float]]],
) -> None:
    state = record["state"]
    for i, w in enumerate(weights):
        best[i].copy_(_floats(record["weights"][i]).reshape(w.shape))
        _restore(adam, w, state["weights"][i], state["moments"][i])
    trace[:] = record["trace"]


def _moments(adam: torch.optim.Adam, parameter: Tensor) -> dict[str, Any]:
    return {name: value.tolist() for name, value in adam.state[parameter].items()}


def _floats(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _restore(
    adam: torch.optim.Adam, parameter: Tensor, value: list, moments: dict[str, Any]
) -> None:
    parameter.data.copy_(_floats(value).reshape(parameter.shape))
    if moments:
        adam.state[parameter].update({k: _floats(v) for k, v in moments.items()})
