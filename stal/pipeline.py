"""From a prompt to pictures: parse, place, encode, sample with regional attention, decode."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stal import sampler as samplers
from stal.attention import Blend, Blended, Plain, Prompts, check_reference
from stal.checked_json import read_json
from stal.layout import Layout
from stal.layout.predictor import predict
from stal.model.checkpoint import Components, load_components, resolve
from stal.prompts import Description, parse
from stal.weights import (
    MODES,
    RULES,
    Mode,
    Rule,
    as_weights,
    check_background,
    default_weights,
)

if TYPE_CHECKING:
    from PIL.Image import Image

UNCONDITIONAL = "unconditional"
_WORD = re.compile(r"\w+")
Callback = Callable[[int, Tensor, Tensor], None]
# Numbers (steps, objects) or (objects,), or what makes them of a number of steps and of objects.
Weights = Tensor | Sequence | Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Defaults:
    """What a model is best used with. A folder states its own in `stal.json`.

    steps, guidance_scale: see `Pipeline`.
    reference: what the rule "guidance" moves away from: "unconditional", as the released code
        does, or the text of a prompt; "{}" in it stands for the background that the prompt to draw
        states ("on a black background"), or for nothing.
    background: of the rule "guidance" with a reference prompt, see `stal.weights.weight_maps`.
    local_prompt: how an object's phrase becomes its local prompt; "{}" stands for the phrase.
    words: the words that the model knows; None where it was trained on open text.
    """

    steps: int = 50
    guidance_scale: float = 7.5
    reference: str = UNCONDITIONAL
    background: float = 0.0
    local_prompt: str = "{}"
    words: tuple[str, ...] | None = None

    @staticmethod
    def of(folder: Path) -> Defaults:
        """The defaults of a model folder. Raises ValueError if its `stal.json` holds others."""
        path = folder / "stal.json"
        if not path.is_file():
            return Defaults()
        values = read_json(path)
        unknown = set(values) - set(Defaults.__dataclass_fields__)
        if unknown:
            raise ValueError(f"{path} must hold known settings, got {', '.join(sorted(unknown))}")
        if values.get("words") is not None:
            values["words"] = tuple(values["words"])
        return Defaults(**values)


@dataclass(frozen=True)
class Settings:
    """How to draw, whatever the prompt; None stands for the model's default. See `Pipeline`."""

    attention: Mode = "spatial-temporal"
    rule: Rule = "guidance"
    reference: str | None = None
    background: float | None = None
    sampler: str | None = None
    eta: float = 0.0
    steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str = ""
    num_images: int = 1


@dataclass(frozen=True)
class _Complete(Settings):
    """Settings that leave nothing open but the sampler."""

    reference: str = UNCONDITIONAL
    background: float = 0.0
    steps: int = 0
    guidance_scale: float = 0.0
    height: int = 0
    width: int = 0


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


class Pipeline:
    """A text-to-image model with spatial-temporal attention (arXiv 2304.03869).

        pipe = stal.Pipeline.from_pretrained()
        result = pipe("a red circle to the left of a blue square", seed=0)
        result.images[0].save("circle.png")

    Args:
        components: the networks, see `stal.model.checkpoint.load_components`.
        defaults: settings used where a call gives none.
        name: how the model was named, for the settings of a result.

    Raises:
        ValueError: the UNet does not denoise the autoencoder's latents, as for inpainting.
    """

    def __init__(
        self, components: Components, *, defaults: Defaults | None = None, name: str = ""
    ) -> None:
        channels = components.vae.config.latent_channels
        unet = components.unet.config
        if (unet.in_channels, unet.out_channels) != (channels, channels):
            raise ValueError(
                f"unet must read and predict the vae's {channels} latent channels, got a UNet of "
                f"{unet.in_channels} input and {unet.out_channels} output channels"
            )
        self.components = components
        self.defaults = defaults or Defaults()
        self.name = name

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Pipeline:
        """Loads a model.

        Args:
            model: None for the bundled model of coloured shapes; a diffusers folder; or the name
                of a model on the hub, which is then downloaded unless it is in the cache.
            dtype, device: where and in which precision the networks run.

        Raises:
            ValueError: the folder is no model that this package implements, or the machine has no
                such device.
            OSError: the hub does not deliver.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device must be available, got {device}: {reason}") from error
        folder = bundled_model() if model is None else resolve(model)
        components = load_components(folder, dtype=dtype, device=device)
        return cls(components, defaults=Defaults.of(folder), name=str(model or ""))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.components.unet.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.components.unet.parameters()).device

    @property
    def scale_factor(self) -> int:
        """Pixels along a side of one latent cell."""
        return 2 ** (len(self.components.vae.config.block_out_channels) - 1)

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
            height, width: of the picture in pixels, multiples of `scale_factor`; the model's own
                size if None.
            callback: called as callback(step, x, denoised) after each transition, both
                (images, channels, height, width) latents; `pipe.decode(denoised)` is a preview.

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
        has one for each image of the batch. layouts and weights are one a prompt. Gradients flow
        into weights that ask for them, through the latents of the results.

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
        full = self._complete(settings or Settings())
        schedule = samplers.schedule_from_config(
            self.components.scheduler_config, full.steps, sampler=full.sampler
        )
        full = replace(full, sampler=schedule.sampler)
        if full.eta and schedule.sampler != "ddim":
            got = f"{full.eta} with {schedule.sampler}"
            raise ValueError(f"eta must be 0 for every sampler but ddim, got {got}")
        jobs = self._jobs(prompts, full, layouts, weights)
        noise = _Noise(len(jobs), full.num_images, seed, generator)
        return Drawing(self, jobs, full, schedule, noise)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The text encoders' output.

        Returns:
            embeddings (texts, seqlen_k, width), and of Stable Diffusion XL the pooled embeddings
            (texts, projection), otherwise None. XL's base model wants zeros for the empty text.
        """
        c = self.components
        with torch.no_grad():
            ids = self._tokens(c.tokenizer, texts)
            if c.text_encoder_2 is None:
                return c.text_encoder(ids).last_hidden_state, None
            first = c.text_encoder(ids, output_hidden_states=True)
            second = c.text_encoder_2(self._tokens(c.tokenizer_2, texts), output_hidden_states=True)
            # XL was trained on the last layer but one of both.
            embeddings = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
            pooled = second.text_embeds
            if c.force_zeros_for_empty_prompt:
                empty = torch.tensor([text == "" for text in texts], device=self.device)
                embeddings = embeddings.masked_fill(empty[:, None, None], 0)
                pooled = pooled.masked_fill(empty[:, None], 0)
            return embeddings, pooled

    def added_conditions(
        self, pooled: Tensor | None, *, height: int, width: int
    ) -> dict[str, Tensor] | None:
        """What Stable Diffusion XL is told besides the text; None for other models.

        pooled: (batch, projection) of `encode`, of each batch element's own text.
        height, width: of the picture in pixels; it is said to be original and not cropped.
        """
        if pooled is None:
            return None
        # The original size, the crop's corner and the target size.
        ids = torch.tensor(
            [[height, width, 0, 0, height, width]], dtype=self.dtype, device=self.device
        )
        return {"text_embeds": pooled, "time_ids": ids.expand(len(pooled), -1)}

    def decode(self, latents: Tensor) -> list[Image]:
        """Latents (images, channels, height, width) as PIL images."""
        from PIL.Image import fromarray

        with torch.no_grad():
            levels = (self.pixels(latents) * 255).round().to(torch.uint8)
        return [fromarray(image) for image in levels.permute(0, 2, 3, 1).cpu().numpy()]

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents as (images, 3, height, width) in [0, 1], at least float32; differentiable."""
        vae = self.components.vae
        scaled = latents / vae.config.scaling_factor
        if getattr(vae.config, "shift_factor", None):
            scaled = scaled + vae.config.shift_factor
        dtype = next(vae.parameters()).dtype
        if dtype == torch.float16 and vae.config.force_upcast:
            # XL's autoencoder overflows in half precision and says so in its configuration.
            dtype = torch.float32
            vae.to(dtype)
        pixels = vae.decode(scaled.to(dtype)).sample
        return (pixels.to(torch.promote_types(dtype, torch.float32)) / 2 + 0.5).clamp(0, 1)

    def _complete(self, settings: Settings) -> _Complete:
        """The settings with the model's defaults filled in, each value checked."""
        defaults, side = self.defaults, self.components.unet.config.sample_size
        rows, columns = side if isinstance(side, (tuple, list)) else (side, side)
        own: dict[str, Any] = {
            "reference": defaults.reference,
            "steps": defaults.steps,
            "guidance_scale": defaults.guidance_scale,
            "height": rows and rows * self.scale_factor,
            "width": columns and columns * self.scale_factor,
        }
        given = {k: v for k, v in asdict(settings).items() if v is not None}
        full = _Complete(**own | given)
        if settings.background is None and _refers_to_prompt(full):
            full = replace(full, background=defaults.background)
        _check_settings(full, self.scale_factor)
        return full

    def _jobs(
        self,
        prompts: Sequence[str],
        settings: _Complete,
        layouts: Sequence[Layout | str | None] | None,
        weights: Sequence[Weights | None] | None,
    ) -> list[_Job]:
        """What to draw, each value checked."""
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
        for name, each in (("layouts", layouts), ("weights", weights)):
            if each is not None and len(each) != len(prompts):
                raise ValueError(f"{name} must be one a prompt ({len(prompts)}), got {len(each)}")
        plain = settings.attention == "plain"
        reference = _refers_to_prompt(settings)
        jobs = []
        for i, prompt in enumerate(prompts):
            _check_text("prompt", prompt)
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
            away = reference_prompt(settings.reference, description)
            texts = (prompt, *local, *[away] * reference)
            jobs.append(_Job(prompt, layout, lam, texts[:1] if plain else texts))
        self._check_words([settings.negative_prompt, *(t for job in jobs for t in job.texts)])
        return jobs

    def _check_words(self, texts: Sequence[str]) -> None:
        """Refuses words that the model was never shown."""
        if self.defaults.words is None:
            return
        known = set(self.defaults.words)
        strange = [w for text in texts for w in _WORD.findall(text.lower()) if w not in known]
        if strange:
            got = ", ".join(dict.fromkeys(strange))
            raise ValueError(
                f"prompt must use words that this model knows, got {got}; "
                f"it knows: {', '.join(self.defaults.words)}"
            )

    def _attention(
        self, jobs: Sequence[_Job], settings: _Complete, guided: bool
    ) -> tuple[Plain | Blended, list[int], Tensor | None]:
        """The attention function, each batch element's own prompt (a row of the table), and XL's
        pooled embeddings of the table."""
        texts = [settings.negative_prompt, *(text for job in jobs for text in job.texts)]
        table = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        blends = [
            Blend(tuple(table[text] for text in job.texts), job.layout, job.weights)
            for job in jobs
            for _ in range(settings.num_images)
        ]
        negative = table[settings.negative_prompt]
        rows = [negative] * len(blends) * guided + [blend.prompts[0] for blend in blends]
        embeddings, pooled = self.encode(list(table))
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

    def _tokens(self, tokenizer: Any, texts: Sequence[str]) -> Tensor:
        longest = tokenizer.model_max_length
        whole = tokenizer(list(texts), verbose=False).input_ids
        for text, ids in zip(texts, whole, strict=True):
            if len(ids) > longest:
                warnings.warn(
                    f"the model reads {longest} tokens, the end of this prompt of {len(ids)} is "
                    f"lost: {text!r}",
                    stacklevel=2,
                )
        ids = tokenizer(
            list(texts),
            padding="max_length",
            max_length=longest,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return ids.to(self.device)


def reference_prompt(template: str, description: Description) -> str:
    """The reference's text, with the background that a prompt states in the place of "{}"."""
    return " ".join(template.replace("{}", description.background).split())


def _refers_to_prompt(settings: Settings) -> bool:
    return settings.reference != UNCONDITIONAL and settings.rule != "convex"


def _check_settings(settings: _Complete, unit: int) -> None:
    for name, allowed in (("attention", MODES), ("rule", RULES)):
        value = getattr(settings, name)
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    for name in ("steps", "num_images", "height", "width"):
        value = getattr(settings, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    for name in ("height", "width"):
        value = getattr(settings, name)
        if value % unit:
            near = max(round(value / unit), 1) * unit
            raise ValueError(
                f"{name} must be a multiple of {unit}, got {value}; {near} is the nearest"
            )
    for name in ("guidance_scale", "eta", "background"):
        value = getattr(settings, name)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
    if not 0 <= settings.eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {settings.eta}")
    for name in ("negative_prompt", "reference"):
        _check_text(name, getattr(settings, name))
    if settings.attention != "plain":
        rule, prompt = settings.rule, _refers_to_prompt(settings)
        guided = settings.guidance_scale != 1
        check_reference(rule, reference_is_prompt=prompt, guided=guided)
        check_background(settings.background, rule=rule, reference_is_prompt=prompt)


def _check_text(name: str, text: object) -> None:
    # Half a surrogate pair, as an undecodable command line gives it, is no text to a tokenizer.
    if not isinstance(text, str) or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"{name} must be a text of valid Unicode, got {text!r}")


@dataclass(frozen=True)
class _Job:
    """One prompt to draw, with its (steps, objects) weights and the texts that its images attend
    to: the global prompt, the local ones, a reference."""

    prompt: str
    layout: Layout
    weights: Tensor
    texts: tuple[str, ...]


class Drawing:
    """Prompts that can be drawn again and again from the same noise, with other weights each time.

    Arguments are checked, texts encoded and their keys and values projected once. Made by
    `Pipeline.prepare`.

    weights: one (steps, objects) float32 a prompt, where the drawing starts from.
    """

    def __init__(
        self,
        pipe: Pipeline,
        jobs: Sequence[_Job],
        settings: _Complete,
        schedule: samplers.Schedule,
        noise: _Noise,
    ) -> None:
        self.pipe, self.jobs, self.settings = pipe, tuple(jobs), settings
        self.schedule, self._noise = schedule, noise
        self.weights, self.seeds = [job.weights for job in jobs], noise.seeds
        self._guided = settings.guidance_scale != 1
        self._attention, rows, pooled = pipe._attention(jobs, settings, self._guided)
        self._halves = _halves(self._attention, rows)
        own = None if pooled is None else pooled[rows]
        self._added = pipe.added_conditions(own, height=settings.height, width=settings.width)

    def predict(
        self,
        x: Tensor,
        t: float,
        step: int,
        *weights: Tensor,
        unconditional: Tensor | None = None,
    ) -> Tensor:
        """The guided prediction of one call of the UNet; differentiable in x and weights.

        unconditional: what `self.unconditional` returned for x and t, so that the UNet runs on the
            conditional half of the batch alone.
        """
        apart, scale = unconditional is not None, self.settings.guidance_scale
        attention = self._halves[1] if apart and self._halves else self._attention
        if isinstance(attention, Blended):
            each = [w for w in weights for _ in range(self.settings.num_images)]
            attention.blends = tuple(
                replace(blend, weights=w) for blend, w in zip(attention.blends, each, strict=True)
            )
            attention.step = step
            attention.keep_maps = not self.pipe.components.unet.gradient_checkpointing
        both = self._guided and not apart
        added = self._added_of(slice(len(x), None)) if apart else self._added
        inputs = torch.cat([x, x]) if both else x
        prediction = self.pipe.components.unet(inputs, t, None, added, attention=attention)
        if both:
            unconditional, prediction = prediction.chunk(2)
        if unconditional is None:
            return prediction
        return unconditional + scale * (prediction - unconditional)

    def unconditional(self, x: Tensor, t: float) -> Tensor | None:
        """The prediction of the unconditional half of the batch alone, for `self.predict`.

        None where there is no such half, or where it is what the weights move away from. Otherwise
        it does not depend on them, and whoever changes them at one step needs it only once.
        """
        if self._halves is None:
            return None
        added = self._added_of(slice(None, len(x)))
        return self.pipe.components.unet(x, t, None, added, attention=self._halves[0])

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
        """
        weights = self.weights if weights is None else weights
        call = predict or self.predict

        def model(x: Tensor, t: float, step: int) -> Tensor:
            return call(x, t, step, *weights)

        pipe, schedule, noise = self.pipe, self.schedule, self._noise
        unit, settings = pipe.scale_factor, self.settings
        cells = (settings.height // unit, settings.width // unit)
        noise.rewind()
        channels = pipe.components.unet.config.in_channels
        x = noise.initial(channels, *cells).to(pipe.device, pipe.dtype)
        options = {"eta": settings.eta} if schedule.sampler == "ddim" else {}
        wanted = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
        with torch.set_grad_enabled(wanted):
            return samplers.by_name(schedule.sampler)(
                model, x, schedule, noise=noise, callback=callback, **options
            )

    def results(
        self,
        latents: Tensor,
        weights: Sequence[Tensor] | None = None,
        *,
        optimize: Sequence[dict[str, Any]] | None = None,
    ) -> list[Result]:
        """Latents as one result a prompt; `optimize` goes into each one's settings."""
        full, n = self.settings, self.settings.num_images
        images = self.pipe.decode(latents)
        results = []
        for i, (job, lam) in enumerate(
            zip(self.jobs, self.weights if weights is None else weights, strict=True)
        ):
            mine = slice(i * n, (i + 1) * n)
            record = {
                "prompt": job.prompt,
                "model": self.pipe.name,
                **asdict(full),
                "seeds": self.seeds[mine],
                "dtype": str(self.pipe.dtype).removeprefix("torch."),
                "layout": json.loads(job.layout.to_json()),
                "weights": lam.tolist(),
            }
            if optimize is not None:
                record["optimize"] = optimize[i]
            results.append(Result(images[mine], job.layout, lam, latents[mine], record))
        return results


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


class _Noise:
    """Standard normal noise drawn image by image on the CPU, so that a picture does not depend on
    the batch around it."""

    def __init__(
        self,
        prompts: int,
        num_images: int,
        seed: int | Sequence[int],
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> None:
        total = prompts * num_images
        self.seeds: list[int | None] = [None] * total
        if generator is None:
            seeds = _seeds(seed, prompts, num_images)
            self.seeds = [*seeds]
            self.generators = [torch.Generator().manual_seed(s) for s in seeds]
        elif isinstance(generator, torch.Generator):
            self.generators = [generator]
        else:
            self.generators = list(generator)
        if len(self.generators) != total:
            name = "seed" if generator is None else "generator"
            raise ValueError(
                f"{name} must be one for each of {total} images, got {len(self.generators)}"
            )
        if any(g.device.type != "cpu" for g in self.generators):
            raise ValueError("generator must be on the CPU: noise is drawn there for every device")
        self._states = [g.get_state() for g in self.generators]

    def rewind(self) -> None:
        """Back to the first draw: the same noise again."""
        for generator, state in zip(self.generators, self._states, strict=True):
            generator.set_state(state)

    def initial(self, channels: int, height: int, width: int) -> Tensor:
        shape = (1, channels, height, width)
        return torch.cat([torch.randn(shape, generator=g) for g in self.generators])

    def __call__(self, x: Tensor) -> Tensor:
        return self.initial(*x.shape[1:]).to(x.device, x.dtype)


def _seeds(seed: int | Sequence[int], prompts: int, num_images: int) -> list[int]:
    try:
        if isinstance(seed, Iterable):
            seeds = [operator.index(s) for s in seed]
        else:
            seeds = [operator.index(seed) + i for i in range(num_images)] * prompts
    except TypeError:
        raise ValueError(f"seed must be an integer or one an image, got {seed!r}") from None
    for value in seeds:
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"seed must lie in [-2**63, 2**64), got {value}")
    return seeds


@contextlib.contextmanager
def enough_memory(device: str, fix: str) -> Iterator[None]:
    """Raises MemoryError, which says what to do, where torch finds no memory within."""
    try:
        yield
    except RuntimeError as error:
        # On a CPU torch raises no class of its own.
        lacking = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not lacking:
            raise
        raise MemoryError(f"{device} must have more free memory: {fix}") from error


def bundled_model() -> Path:
    """The folder of the model that the package carries."""
    folder = Path(str(files("stal") / "assets" / "shapes"))
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"the package must carry its model, got no {folder}: install it again")
    return folder


def clip_folder(pipe: Pipeline) -> Path:
    """Where a model that brings its own CLIP has it: the folder clip beside its networks."""
    return (resolve(pipe.name) if pipe.name else bundled_model()) / "clip"
