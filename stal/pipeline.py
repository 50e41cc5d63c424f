"""From a prompt to pictures: parse, place, encode, sample with regional attention, decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stal.drawing import Drawing, Job, Result
from stal.layout import Layout
from stal.layout.predictor import predict
from stal.model.model import Model
from stal.noise import ImageNoise
from stal.prompts import drawn_text, parse
from stal.sampler import Callback
from stal.schedule import schedule_from_config
from stal.settings import (
    Complete,
    Defaults,
    Settings,
    check_text,
    complete,
    reference_prompt,
    refers_to_prompt,
)
from stal.weights import Mode, Rule, as_weights, default_weights

# Numbers (steps, objects) or (objects,), or what makes them of a number of steps and of objects.
Weights = Tensor | Sequence | Callable[[int, int], Tensor]


class Pipeline:
    """A text-to-image model with spatial-temporal attention (arXiv 2304.03869).

        pipe = stal.Pipeline.from_pretrained()
        result = pipe("a red circle to the left of a blue square", seed=0)
        result.images[0].save("circle.png")

    Args:
        model: the networks.
        defaults: settings used where a call gives none; those of the model's folder if None.

    Raises:
        ValueError: the folder's `stal.json` holds other settings.
    """

    def __init__(self, model: Model, *, defaults: Defaults | None = None) -> None:
        if defaults is None:
            defaults = Defaults() if model.folder is None else Defaults.of(model.folder)
        self.model, self.defaults = model, defaults

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Pipeline:
        """Loads a model and its defaults. Arguments and errors are `Model.from_pretrained`'s."""
        return cls(Model.from_pretrained(model, dtype=dtype, device=device))

    def __call__(
        self,
        prompt: str,
        *,
        layout: Layout | str | None = None,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images: int = 1,
        negative_prompt: str = "",
        attention: Mode = "spatial-temporal",
        rule: Rule = "guidance",
        reference: str | None = None,
        background: float | None = None,
        weights: Weights | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        callback: Callback | None = None,
    ) -> Result:
        """Draws one prompt.

        Args:
            prompt: the global description D; its noun phrases are the local ones.
            layout: where the objects go, a `Layout` or its JSON; by default what
                `stal.layout.predictor.predict` gives for the prompt.
            seed: image i is drawn from the noise of seed + i, whatever the batch around it; or one
                seed an image.
            generator: CPU generators to draw the noise from instead of seeds, one an image.
            num_images: pictures to draw.
            negative_prompt: what the unconditional half attends to.
            attention: "plain" (one prompt, no layout), "spatial" (weights constant in time) or
                "spatial-temporal".
            rule: "guidance" (the released code) or "convex" (the paper), see `stal.weights`.
            reference: what the rule "guidance" moves away from: "unconditional" or a prompt, with
                "{}" where the background that `prompt` states belongs, as in "an empty scene {}"
                ("an empty scene on a black background"); the model's default if None.
            background: how much what lies outside all regions is pulled to the reference prompt,
                as a multiple of the mean weight; the model's default if None, 0 where the
                reference is no prompt.
            weights: (steps, objects) or (objects,), or a function weights(steps, objects), such as
                those of `stal.weights.files`; by attention and rule if None.
            sampler: a name in `stal.sampler.SAMPLERS`; the one the model was saved with if None.
            eta: share of fresh noise of the sampler ddim, in [0, 1].
            steps: transitions of the sampler; the model's default if None.
            guidance_scale: classifier-free guidance; 1 switches it off, and the unconditional
                reference with it.
            height, width: of the picture in pixels, multiples of `pipe.model.scale_factor`; the
                model's own size if None.
            callback: called as callback(step, x, denoised) after each transition, both latents
                (images, channels, height, width); `pipe.model.decode(denoised)` is a preview.

        Raises:
            ValueError: an argument breaks its rule, before any network runs.
        """
        settings = Settings(
            attention=attention,
            rule=rule,
            reference=reference,
            background=background,
            sampler=sampler,
            eta=eta,
            steps=steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            negative_prompt=negative_prompt,
            num_images=num_images,
        )
        return self.batch(
            [prompt],
            settings,
            layouts=[layout],
            weights=[weights],
            seed=seed,
            generator=generator,
            callback=callback,
        )[0]

    def batch(
        self,
        prompts: Sequence[str],
        settings: Settings | None = None,
        *,
        layouts: Sequence[Layout | str | None] | None = None,
        weights: Sequence[Weights | None] | None = None,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback: Callback | None = None,
    ) -> list[Result]:
        """Draws several prompts in one batch, `settings.num_images` pictures of each.

        Image i of every prompt is drawn from the noise of seed + i; a list of seeds or generators
        has one for each image of the batch. Gradients flow into weights that ask for them, through
        the latents of the results.

        Args:
            prompts: the global descriptions, at least one.
            settings: how to draw all of them; the model's defaults if None.
            layouts, weights: one a prompt, each as in `__call__`; None as there.
            seed, generator, callback: as in `__call__`.

        Returns:
            One result a prompt, with its num_images pictures.

        Raises:
            ValueError: an argument breaks its rule, before any network runs.
        """
        drawing = self.prepare(
            prompts,
            settings,
            layouts=layouts,
            weights=weights,
            seed=seed,
            generator=generator,
        )
        return drawing.results(drawing.sample(callback=callback))

    def prepare(
        self,
        prompts: Sequence[str],
        settings: Settings | None = None,
        *,
        layouts: Sequence[Layout | str | None] | None = None,
        weights: Sequence[Weights | None] | None = None,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Drawing:
        """What `batch` draws, ready to be drawn with any weights. Arguments and errors are its."""
        full = complete(
            settings or Settings(),
            self.defaults,
            sample_size=self.model.unet.config.sample_size,
            unit=self.model.scale_factor,
        )
        schedule = schedule_from_config(
            self.model.components.scheduler_config, full.steps, sampler=full.sampler
        )
        full = replace(full, sampler=schedule.sampler)
        if full.eta and schedule.sampler != "ddim":
            got = f"{full.eta} with {schedule.sampler}"
            raise ValueError(f"eta must be 0 for every sampler but ddim, got {got}")
        jobs = self._jobs(prompts, full, layouts, weights)
        noise = ImageNoise(len(jobs), full.num_images, seed, generator)
        return Drawing(self.model, jobs, full, schedule, noise)

    def _jobs(
        self,
        prompts: Sequence[str],
        settings: Complete,
        layouts: Sequence[Layout | str | None] | None,
        weights: Sequence[Weights | None] | None,
    ) -> list[Job]:
        """What to draw, each value checked."""
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
        for name, each in (("layouts", layouts), ("weights", weights)):
            if each is not None and len(each) != len(prompts):
                raise ValueError(f"{name} must be one a prompt ({len(prompts)}), got {len(each)}")
        plain = settings.attention == "plain"
        reference = refers_to_prompt(settings)
        jobs = []
        for i, prompt in enumerate(prompts):
            check_text("prompt", prompt)
            if not prompt.strip():
                raise ValueError(f"prompt must not be empty, got {prompt!r}")
            layout, description = layouts[i] if layouts is not None else None, parse(prompt)
            if layout is None:
                layout = predict(description, aspect=settings.width / settings.height)
            elif not isinstance(layout, Layout):
                layout = Layout.from_json(layout)
            given: Weights | None = weights[i] if weights is not None else None
            steps, objects = settings.steps, len(layout.objects)
            if given is None:
                lam = default_weights(
                    steps,
                    objects,
                    mode=settings.attention,
                    rule=settings.rule,
                    reference_is_prompt=reference,
                )
            else:
                values = given(steps, objects) if callable(given) else given
                lam = as_weights(values, steps=steps, objects=objects, rule=settings.rule)
            if plain and bool((lam != 0).any()):
                raise ValueError("weights must be 0 with plain attention, which blends nothing")
            local = [self.defaults.local_prompt.replace("{}", o.phrase) for o in layout.objects]
            away = reference_prompt(settings.reference, description.background)
            texts = (drawn_text(prompt), *local, *[away] * reference)
            jobs.append(Job(prompt, layout, lam, texts[:1] if plain else texts))
        self._check_words([settings.negative_prompt, *(t for job in jobs for t in job.texts)])
        return jobs

    def _check_words(self, texts: Iterable[str]) -> None:
        strange, known = self.defaults.unknown_words(texts), self.defaults.words
        if strange and known is not None:
            raise ValueError(
                f"prompt must use words that this model knows, got {', '.join(strange)}; "
                f"it knows: {', '.join(known)}"
            )
