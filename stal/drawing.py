"""A drawing: from x, timestep, step and weights to the prediction, from noise to pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stal import sampler as samplers
from stal.attention import Blend, Blended, Plain, Prompts
from stal.layout import Layout
from stal.model.model import Model
from stal.noise import ImageNoise
from stal.sampler import Callback
from stal.schedule import Schedule
from stal.settings import Complete
from stal.torch_state import undisturbed

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Result:
    """What one prompt became.

    images: one PIL image a seed.
    layout: where the objects were to go.
    weights: (steps, objects) float32, the combination weights used.
    latents: (images, channels, height, width), what the sampler returned.
    settings: everything needed to make the pictures again, fit for JSON; "seeds" are None where
        the noise came from the caller's generators.
    """

    images: list[Image]
    layout: Layout
    weights: Tensor
    latents: Tensor = field(repr=False)
    settings: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Job:
    """One prompt to draw, with its (steps, objects) weights and the texts that its images attend
    to: the global prompt, the local ones, a reference."""

    prompt: str
    layout: Layout
    weights: Tensor
    texts: tuple[str, ...]


class Drawing:
    """Prompts that can be drawn again and again from the same noise, with other weights each time.

    Texts are encoded and their keys and values projected once. Made by `Pipeline.prepare`, which
    checks what it hands over.

    Args:
        model: the networks.
        jobs: what to draw, `settings.num_images` pictures of each.
        settings: how, with the steps and the sampler of the schedule.
        schedule: noise levels and timesteps.
        noise: of each image of the batch.

    Attributes:
        weights: one (steps, objects) float32 a prompt, where the drawing starts from.
        seeds: one an image; None where the noise comes from the caller's generators.
    """

    @undisturbed()
    def __init__(
        self,
        model: Model,
        jobs: Sequence[Job],
        settings: Complete,
        schedule: Schedule,
        noise: ImageNoise,
    ) -> None:
        self.model, self.jobs, self.settings = model, tuple(jobs), settings
        self.schedule, self._noise = schedule, noise
        self.weights, self.seeds = [job.weights for job in jobs], noise.seeds
        self._guided = settings.guidance_scale != 1
        self._attention, rows, pooled = _attention(model, jobs, settings, guided=self._guided)
        self._halves = _halves(self._attention, rows)
        own = None if pooled is None else pooled[rows]
        self._added = model.added_conditions(own, height=settings.height, width=settings.width)

    @undisturbed()
    def predict(
        self,
        x: Tensor,
        t: float | Tensor,
        step: int | Tensor,
        *weights: Tensor,
        unconditional: Tensor | None = None,
    ) -> Tensor:
        """e_0 + g (e - e_0): the guided prediction of one call of the UNet.

        Differentiable in x and weights. The networks compute in their own dtype, whatever the
        caller's autocast: for bfloat16, load them in it.

        Args:
            x: (images, channels, height, width), noisy latents in the model's dtype.
            t: timestep, a number or (images,).
            step: index of the sampler's transition that the weights are read at, a number or
                (images,): images of one batch may be at different steps.
            weights: (steps, objects) of each prompt; plain attention reads none.
            unconditional: what `self.unconditional` returned for x and t, so that the UNet runs on
                the conditional half of the batch alone.

        Returns:
            what the schedule's prediction_type says, in the shape of x.

        Raises:
            ValueError: timesteps or steps that are not one an image, a step outside the weights, or
                weights that do not go with the layouts.
        """
        if isinstance(t, Tensor) and t.numel() != 1 and t.shape != (len(x),):
            raise ValueError(
                f"t must be a number or ({len(x)},), one an image, got {tuple(t.shape)}"
            )
        apart, scale = unconditional is not None, self.settings.guidance_scale
        attention = self._halves[1] if apart and self._halves else self._attention
        each = [w for w in weights for _ in range(self.settings.num_images)]
        unet = self.model.unet
        attend = attention.at(step, each, keep_maps=not unet.gradient_checkpointing)
        both = self._guided and not apart
        added = self._added_of(slice(len(x), None)) if apart else self._added
        if both:
            x = torch.cat([x, x])
            t = torch.cat([t, t]) if isinstance(t, Tensor) and t.numel() > 1 else t
        prediction = unet(x, t, None, added, attention=attend)
        if both:
            unconditional, prediction = prediction.chunk(2)
        if unconditional is None:
            return prediction
        return unconditional + scale * (prediction - unconditional)

    @undisturbed()
    def unconditional(self, x: Tensor, t: float | Tensor) -> Tensor | None:
        """The prediction of the unconditional half of the batch alone, for `self.predict`.

        x, t: as there. None where there is no such half, or where it is what the weights move away
        from. Otherwise it does not depend on them, and whoever changes them at one step needs it
        only once.
        """
        if self._halves is None:
            return None
        added = self._added_of(slice(None, len(x)))
        return self.model.unet(x, t, None, added, attention=self._halves[0])

    def _added_of(self, part: slice) -> dict[str, Tensor] | None:
        return self._added and {name: value[part] for name, value in self._added.items()}

    def sample(
        self,
        weights: Sequence[Tensor] | None = None,
        *,
        predict: Callable[..., Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """The latents of every image, (images, channels, height, width), on the device.

        Args:
            weights: one (steps, objects) a prompt instead of `self.weights`. If one asks for a
                gradient, the trajectory is on the tape.
            predict: called instead of `self.predict`, with its arguments.
            callback: see `Pipeline.__call__`.

        Raises:
            ValueError: a prediction that is not finite, naming the step.
        """
        weights = self.weights if weights is None else weights
        call = predict or self.predict

        def denoise(x: Tensor, t: float, step: int) -> Tensor:
            return call(x, t, step, *weights)

        model, schedule, noise = self.model, self.schedule, self._noise
        noise.rewind()
        x = noise.initial(model.unet.config.in_channels, *self.cells).to(model.device, model.dtype)
        options = {"eta": self.settings.eta} if schedule.sampler == "ddim" else {}
        wanted = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
        with torch.set_grad_enabled(wanted):
            return samplers.by_name(schedule.sampler)(
                denoise, x, schedule, noise=noise, callback=callback, **options
            )

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of the latents."""
        unit = self.model.scale_factor
        return self.settings.height // unit, self.settings.width // unit

    def results(
        self,
        latents: Tensor,
        weights: Sequence[Tensor] | None = None,
        *,
        optimize: Sequence[dict[str, Any]] | None = None,
    ) -> list[Result]:
        """Latents as one result a prompt.

        Args:
            latents: (images, channels, height, width), as `sample` returns them.
            weights: what they were drawn with, if not with `self.weights`.
            optimize: of each prompt, how its weights were found, for its settings.
        """
        full, n = self.settings, self.settings.num_images
        images = self.model.decode(latents)
        results = []
        for i, (job, lam) in enumerate(
            zip(self.jobs, self.weights if weights is None else weights, strict=True)
        ):
            mine = slice(i * n, (i + 1) * n)
            record = record_of(self.model, job, full, self.seeds[mine], lam)
            if optimize is not None:
                record["optimize"] = optimize[i]
            results.append(Result(images[mine], job.layout, lam, latents[mine], record))
        return results


def record_of(
    model: Model, job: Job, settings: Complete, seeds: Sequence[int | None], weights: Tensor
) -> dict[str, Any]:
    """The settings of a result: all that makes its pictures again, fit for JSON."""
    loras = {"loras": [{"source": source, "scale": scale} for source, scale in model.loras]}
    return {
        "prompt": job.prompt,
        "model": model.name,
        **asdict(settings),
        "seeds": list(seeds),
        "dtype": str(model.dtype).removeprefix("torch."),
        "layout": json.loads(job.layout.to_json()),
        "weights": weights.tolist(),
        **(loras if model.loras else {}),
    }


def _attention(
    model: Model, jobs: Sequence[Job], settings: Complete, *, guided: bool
) -> tuple[Plain | Blended, list[int], Tensor | None]:
    """The attention, each batch element's own prompt (a row of the table), and XL's pooled
    embeddings of the table."""
    texts = [settings.negative_prompt, *(text for job in jobs for text in job.texts)]
    table = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    blends = [
        Blend(tuple(table[text] for text in job.texts), job.layout)
        for job in jobs
        for _ in range(settings.num_images)
    ]
    negative = table[settings.negative_prompt]
    rows = [negative] * len(blends) * guided + [blend.prompts[0] for blend in blends]
    embeddings, pooled = model.encode(list(table))
    prompts = Prompts(embeddings)
    if settings.attention == "plain":
        return Plain(prompts, rows), rows, pooled
    unconditional = negative if guided else None
    blended = Blended(
        prompts,
        blends,
        unconditional=unconditional,
        rule=settings.rule,
        background=settings.background,
    )
    return blended, rows, pooled


def _halves(attention: Plain | Blended, rows: Sequence[int]) -> tuple[Plain, Blended] | None:
    """The attention of each half of a guided batch, if neither half reads the other's.

    rows: of the table, each batch element's own prompt.
    """
    if not isinstance(attention, Blended) or attention.unconditional is None:
        return None
    if attention.rule == "guidance" and not attention.reference_is_prompt:
        return None
    conditional = Blended(
        attention.prompts,
        attention.blends,
        unconditional=None,
        rule=attention.rule,
        background=attention.background,
    )
    return Plain(attention.prompts, rows[: len(rows) // 2]), conditional
