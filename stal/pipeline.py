"""From a prompt to pictures: parse, place, encode, sample with regional attention, decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stal.caller import warn
from stal.diffusers_names import hint_of, hinted
from stal.drawing import Drawing, Job, Result
from stal.fitting import fits, misfits, size_of_aspect, stretched, without_effect
from stal.layout.formats import LayoutLike, as_layout
from stal.layout.layout import Layout
from stal.layout.predictor import predict
from stal.model.model import Model
from stal.noise import ImageNoise
from stal.openmp import releasing_team
from stal.prompts import article, drawn_text, noun_of, parse
from stal.sampler import Callback
from stal.schedule import Schedule, schedule_from_config
from stal.settings import (
    Complete,
    Defaults,
    Settings,
    check_text,
    complete,
    reference_prompt,
    refers_to_prompt,
)
from stal.torch_state import undisturbed
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
    @hinted
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        loras: Iterable[tuple[str | Path, float]] = (),
    ) -> Pipeline:
        """Loads a model and its defaults.

        Args:
            model, dtype, device: see `Model.from_pretrained`.
            loras: the file and the scale of each LoRA to put on it, see `Model.with_lora`.

        Raises:
            As these two.
        """
        loaded = Model.from_pretrained(model, dtype=dtype, device=device)
        for source, scale in loras:
            loaded = loaded.with_lora(source, scale)
        return cls(loaded)

    def to(
        self,
        *to: str | int | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Pipeline:
        """Moves the networks to a device, into a dtype, or both, in any order; returns itself.

        As in diffusers: pipe.to("cuda"), pipe.to(torch.float16), pipe.to("cuda", torch.float16).
        The layout predictor is small and stays on the CPU in float32, so that a prompt has one
        layout everywhere. Drawings prepared before go with the networks as they were then.

        Raises:
            ValueError: no such device here, a dtype that networks do not compute in, or two of a
                kind.
        """
        dtypes = [each for each in (*to, dtype) if isinstance(each, torch.dtype)]
        devices = [each for each in to if not isinstance(each, torch.dtype)]
        devices += [] if device is None else [device]
        if len(dtypes) > 1 or len(devices) > 1:
            raise ValueError(f"to must be given one device and one dtype, got {to}")
        wanted: Any = devices[0] if devices else None
        self.model.to(device=wanted, dtype=dtypes[0] if dtypes else None)
        return self

    # Called where an attribute is not there, and only there: a dozen methods that exist only to
    # refuse would be listed as if they worked. Hidden from mypy, which would then know every name.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            hint = hint_of(name)
            own = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(f"{own}: {hint}" if hint else own)

    @hinted
    @releasing_team()
    def __call__(
        self,
        prompt: str,
        *,
        layout: LayoutLike | None = None,
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
            layout: where the objects go: a `Layout`, its JSON or what that holds, the path of a
                file that `stal.layout.formats.read_layout` reads, or (phrase, box) or (phrase,
                mask) pairs, a box being (x0, y0, x1, y1) in fractions of the picture; all that
                `stal.layout.formats.as_layout` takes; by default what
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
            height, width: of the picture in pixels, multiples of `pipe.model.scale_factor`; if
                both are None of the layout's aspect and the model's own area.
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
        drawing = self.prepare(
            [prompt], settings, layouts=[layout], weights=[weights], seed=seed, generator=generator
        )
        given = {"reference": reference, "background": background, "layout": layout}
        given["negative_prompt"] = negative_prompt
        for sentence in without_effect(given, drawing.settings):
            warn(sentence)
        return drawing.results(drawing.sample(callback=callback))[0]

    @hinted
    @releasing_team()
    def batch(
        self,
        prompts: Sequence[str],
        settings: Settings | None = None,
        *,
        layouts: Sequence[LayoutLike | None] | None = None,
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

    @hinted
    @undisturbed()
    def prepare(
        self,
        prompts: Sequence[str],
        settings: Settings | None = None,
        *,
        layouts: Sequence[LayoutLike | None] | None = None,
        weights: Sequence[Weights | None] | None = None,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Drawing:
        """What `batch` draws, ready to be drawn with any weights. Arguments and errors are its.

        Warns of layouts that do not go with their prompt or with the size, and of prompts without
        objects.
        """
        jobs, full, schedule = self.jobs(prompts, settings, layouts=layouts, weights=weights)
        noise = ImageNoise(len(jobs), full.num_images, seed, generator)
        return Drawing(self.model, jobs, full, schedule, noise)

    @hinted
    @undisturbed()
    def jobs(
        self,
        prompts: Sequence[str],
        settings: Settings | None = None,
        *,
        layouts: Sequence[LayoutLike | None] | None = None,
        weights: Sequence[Weights | None] | None = None,
    ) -> tuple[list[Job], Complete, Schedule]:
        """What `prepare` draws, how, and at which noise levels, before any network of the model
        runs. Arguments, errors and warnings are its."""
        full = complete(
            settings or Settings(),
            self.defaults,
            sample_size=self.model.unet.config.sample_size,
            unit=self.model.scale_factor,
        )
        _check_lists(prompts, layouts, weights)
        aspect = full.width / full.height
        given = [
            as_layout(layout, prompt=prompt, aspect=aspect, noun_of=noun_of, article=article)
            if layout is not None
            else None
            for prompt, layout in zip(prompts, layouts or [None] * len(prompts), strict=True)
        ]
        own = [each for each in given if each is not None]
        sized = self._sized(settings or Settings(), full, own)
        if sized is full:
            for sentence in (sentence for layout in own for sentence in stretched(layout, full)):
                warn(sentence)
        full = sized
        schedule = schedule_from_config(
            self.model.components.scheduler_config, full.steps, sampler=full.sampler
        )
        full = replace(full, sampler=schedule.sampler)
        if full.eta and schedule.sampler != "ddim":
            got = f"{full.eta} with {schedule.sampler}"
            raise ValueError(f"eta must be 0 for every sampler but ddim, got {got}")
        return self._jobs(prompts, full, given, weights), full, schedule

    def _sized(self, settings: Settings, full: Complete, layouts: Sequence[Layout]) -> Complete:
        """Where nobody gave a size, one of the layouts' aspect and about the model's own area."""
        aspects = {layout.aspect for layout in layouts}
        if settings.height is not None or settings.width is not None or len(aspects) != 1:
            return full
        if fits(layouts[0], height=full.height, width=full.width):
            return full
        levels = len(self.model.unet.config.block_out_channels)
        height, width = size_of_aspect(
            layouts[0].aspect,
            pixels=full.height * full.width,
            multiple=self.model.scale_factor * 2 ** (levels - 1),
        )
        return replace(full, height=height, width=width)

    def _jobs(
        self,
        prompts: Sequence[str],
        settings: Complete,
        layouts: Sequence[Layout | None],
        weights: Sequence[Weights | None] | None,
    ) -> list[Job]:
        """What to draw, each value checked."""
        plain = settings.attention == "plain"
        reference = refers_to_prompt(settings)
        jobs = []
        for i, prompt in enumerate(prompts):
            layout, description = layouts[i], parse(prompt)
            if layout is None:
                layout = predict(description, aspect=settings.width / settings.height)
            for index, placed in enumerate(layout.objects):
                check_text(f"objects[{index}].phrase of the layout", placed.phrase)
            if settings.attention != "plain":
                for sentence in misfits(prompt, layout, given=layouts[i] is not None):
                    warn(sentence)
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


def _check_lists(
    prompts: Sequence[str], layouts: Sequence[Any] | None, weights: Sequence[Any] | None
) -> None:
    """Raises ValueError unless these are prompts, and as many of the others if any."""
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
    for name, each in (("layouts", layouts), ("weights", weights)):
        if each is not None and len(each) != len(prompts):
            raise ValueError(f"{name} must be one a prompt ({len(prompts)}), got {len(each)}")
    for prompt in prompts:
        check_text("prompt", prompt)
        if not prompt.strip():
            raise ValueError(f"prompt must not be empty, got {prompt!r}")
