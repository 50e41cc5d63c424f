"""From a prompt to pictures: parse, place, encode, sample with regional attention, decode."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stal import sampler as samplers
from stal.attention import Blend, Blended, Plain, Prompts
from stal.checkpoint import Components, load_components, read_json, resolve
from stal.layout import Layout, place
from stal.prompts import parse
from stal.weights import MODES, RULES, Mode, Rule, as_weights, default_weights

if TYPE_CHECKING:
    from PIL.Image import Image

UNCONDITIONAL = "unconditional"
_WORD = re.compile(r"\w+")
Callback = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Defaults:
    """What a model is best used with. A folder states its own in `stal.json`.

    reference: what the rule "guidance" moves away from: "unconditional", as the released code
        does, or the text of a prompt.
    local_prompt: how an object's phrase becomes its local prompt; "{}" stands for the phrase.
    words: the words that the model knows; None where it was trained on open text.
    """

    steps: int = 50
    guidance_scale: float = 7.5
    reference: str = UNCONDITIONAL
    local_prompt: str = "{}"
    words: tuple[str, ...] | None = None

    @staticmethod
    def of(folder: Path) -> Defaults:
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
    sampler: str | None = None
    eta: float = 0.0
    steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str = ""
    num_images: int = 1


@dataclass(frozen=True)
class Result:
    """What one prompt became.

    images: one PIL image a seed.
    layout: where the objects were to go.
    weights: (steps, objects) float32, the combination weights used.
    latents: (images, channels, height, width), what the sampler returned.
    settings: everything needed to make the pictures again, fit for JSON.
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
        components: the networks, see `stal.checkpoint.load_components`.
        defaults: settings used where a call gives none.
        name: how the model was named, for the settings of a result.
    """

    def __init__(
        self, components: Components, *, defaults: Defaults | None = None, name: str = ""
    ) -> None:
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
            ValueError: the folder is no model that this package implements.
            OSError: the hub does not deliver.
        """
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
        layout: Layout | None = None,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images: int = 1,
        negative_prompt: str = "",
        attention: Mode = "spatial-temporal",
        rule: Rule = "guidance",
        reference: str | None = None,
        weights: Tensor | Sequence | None = None,
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
            layout: where the objects go; placed from the prompt's relations by default.
            seed: image i is drawn from the noise of seed + i, whatever the batch around it; or one
                seed an image.
            generator: CPU generators to draw the noise from instead of seeds, one an image.
            num_images: pictures to draw.
            negative_prompt: what the unconditional half attends to.
            attention: "plain" (one prompt, no layout), "spatial" (weights constant in time) or
                "spatial-temporal".
            rule: "guidance" (the released code) or "convex" (the paper), see `stal.weights`.
            reference: what the rule "guidance" moves away from: "unconditional" or a prompt; the
                model's default if None.
            weights: (steps, objects) or (objects,); by mode and rule if None.
            sampler: a name in `stal.sampler.SAMPLERS`; the one the model was saved with if None.
            eta: share of fresh noise of the sampler ddim, in [0, 1].
            steps: transitions of the sampler; the model's default if None.
            guidance_scale: classifier-free guidance; 1 switches it off.
            height, width: of the picture in pixels; the model's own size if None.
            callback: called as callback(step, x, denoised) after each transition, both
                (images, channels, height, width) latents; `pipe.decode(denoised)` is a preview.

        Raises:
            ValueError: an argument breaks its rule, before any network runs.
        """
        settings = Settings(
            attention=attention,
            rule=rule,
            reference=reference,
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
        layouts: Sequence[Layout | None] | None = None,
        weights: Sequence[Tensor | Sequence | None] | None = None,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback: Callback | None = None,
    ) -> list[Result]:
        """Draws several prompts in one batch, `settings.num_images` pictures of each.

        Image i of every prompt is drawn from the noise of seed + i; a list of seeds or generators
        has one for each image of the batch. layouts and weights are one a prompt. Gradients flow
        into weights that ask for them, through the latents of the results.
        """
        settings = self._complete(settings or Settings())
        self._check_prompts([*prompts, settings.negative_prompt])
        assert settings.steps is not None
        for name, values in (("layouts", layouts), ("weights", weights)):
            if values is not None and len(values) != len(prompts):
                raise ValueError(f"{name} must be one a prompt ({len(prompts)}), got {len(values)}")
        schedule = samplers.schedule_from_config(
            self.components.scheduler_config, settings.steps, sampler=settings.sampler
        )
        settings = replace(settings, sampler=schedule.sampler)
        noise = _Noise(len(prompts), settings.num_images, seed, generator)
        assert settings.height is not None
        assert settings.width is not None
        aspect = settings.width / settings.height
        jobs = []
        for i, prompt in enumerate(prompts):
            layout = layouts[i] if layouts is not None else None
            if not prompt.strip():
                raise ValueError("prompt must not be empty")
            layout = layout or place(parse(prompt), aspect=aspect, seed=0)
            given = weights[i] if weights is not None else None
            jobs.append(_Job(prompt, layout, self._weights(given, len(layout.objects), settings)))

        latents = self._sample(jobs, settings, schedule, noise, callback)
        images = self.decode(latents)
        results = []
        for i, job in enumerate(jobs):
            mine = slice(i * settings.num_images, (i + 1) * settings.num_images)
            record = {
                "prompt": job.prompt,
                "model": self.name,
                **asdict(settings),
                "seeds": noise.seeds[mine],
                "dtype": str(self.dtype).removeprefix("torch."),
                "layout": json.loads(job.layout.to_json()),
                "weights": job.weights.tolist(),
            }
            results.append(Result(images[mine], job.layout, job.weights, latents[mine], record))
        return results

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The text encoders' output.

        Returns:
            embeddings (texts, seqlen_k, width), and of Stable Diffusion XL the pooled embeddings
            (texts, projection), otherwise None.
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
            return embeddings, second.text_embeds

    def decode(self, latents: Tensor) -> list[Image]:
        """Latents (images, channels, height, width) as PIL images."""
        from PIL.Image import fromarray

        vae = self.components.vae
        with torch.no_grad():
            scaled = latents.detach() / vae.config.scaling_factor
            if getattr(vae.config, "shift_factor", None):
                scaled = scaled + vae.config.shift_factor
            # XL's autoencoder overflows in half precision and says so in its configuration.
            dtype = next(vae.parameters()).dtype
            if dtype == torch.float16 and vae.config.force_upcast:
                dtype = torch.float32
            pixels = vae.to(dtype).decode(scaled.to(dtype)).sample.float()
            levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return [fromarray(image) for image in levels.permute(0, 2, 3, 1).cpu().numpy()]

    def _complete(self, settings: Settings) -> Settings:
        """The settings with the model's defaults filled in, each value checked."""
        defaults, side = self.defaults, self.components.unet.config.sample_size
        size = side if isinstance(side, (tuple, list)) else (side, side)
        own = {
            "reference": defaults.reference,
            "steps": defaults.steps,
            "guidance_scale": defaults.guidance_scale,
            "height": size[0] * self.scale_factor,
            "width": size[1] * self.scale_factor,
        }
        settings = replace(
            settings, **{k: v for k, v in own.items() if getattr(settings, k) is None}
        )
        if settings.attention not in MODES:
            raise ValueError(
                f"attention must be one of {', '.join(MODES)}, got {settings.attention!r}"
            )
        if settings.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {settings.rule!r}")
        if settings.num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {settings.num_images}")
        if not math.isfinite(settings.guidance_scale or 0.0):
            raise ValueError(f"guidance_scale must be finite, got {settings.guidance_scale}")
        for name in ("height", "width"):
            value = getattr(settings, name)
            if value < self.scale_factor or value % self.scale_factor:
                near = max(round(value / self.scale_factor), 1) * self.scale_factor
                raise ValueError(
                    f"{name} must be a positive multiple of {self.scale_factor}, got {value}; "
                    f"{near} is the nearest"
                )
        return settings

    def _check_prompts(self, texts: Sequence[str]) -> None:
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

    def _weights(self, given: Tensor | Sequence | None, objects: int, settings: Settings) -> Tensor:
        assert settings.steps is not None
        if given is not None:
            return as_weights(given, steps=settings.steps, objects=objects)
        return default_weights(
            settings.steps,
            objects,
            mode=settings.attention,
            rule=settings.rule,
            reference_is_prompt=settings.reference != UNCONDITIONAL,
        )

    def _sample(
        self,
        jobs: Sequence[_Job],
        settings: Settings,
        schedule: samplers.Schedule,
        noise: _Noise,
        callback: Callback | None,
    ) -> Tensor:
        """The latents of every image of every job."""
        unet, scale = self.components.unet, settings.guidance_scale
        assert settings.height is not None
        assert settings.width is not None
        guided = scale != 1.0
        attention, rows, pooled = self._attention(jobs, settings, guided)
        added = None
        if pooled is not None:
            # XL is told the original size, the crop's corner and the target size.
            size = [settings.height, settings.width]
            ids = torch.tensor([[*size, 0, 0, *size]], dtype=self.dtype, device=self.device)
            added = {"text_embeds": pooled[rows], "time_ids": ids.expand(len(rows), -1)}

        def model(x: Tensor, t: float, step: int) -> Tensor:
            if isinstance(attention, Blended):
                attention.step = step
            prediction = unet(
                torch.cat([x, x]) if guided else x, t, None, added, attention=attention
            )
            if not guided:
                return prediction
            unconditional, conditional = prediction.chunk(2)
            return unconditional + scale * (conditional - unconditional)

        cells = (settings.height // self.scale_factor, settings.width // self.scale_factor)
        x = noise.initial(unet.config.in_channels, *cells).to(self.device, self.dtype)
        options = {"eta": settings.eta} if schedule.sampler == "ddim" else {}
        with torch.set_grad_enabled(any(job.weights.requires_grad for job in jobs)):
            return samplers.by_name(schedule.sampler)(
                model, x, schedule, noise=noise, callback=callback, **options
            )

    def _attention(
        self, jobs: Sequence[_Job], settings: Settings, guided: bool
    ) -> tuple[Plain | Blended, list[int], Tensor | None]:
        """The attention function, each batch element's own prompt (a row of the table), and XL's
        pooled embeddings of the table."""
        table: dict[str, int] = {}

        def row(text: str) -> int:
            return table.setdefault(text, len(table))

        negative = row(settings.negative_prompt)
        reference = [] if settings.reference == UNCONDITIONAL else [row(settings.reference or "")]
        if settings.rule == "convex":
            reference = []
        rows, blends = [], []
        for job in jobs:
            locals_ = [row(self.defaults.local_prompt.format(o.phrase)) for o in job.layout.objects]
            entries = (row(job.prompt), *locals_, *reference)
            rows += [entries[0]] * settings.num_images
            blends += [Blend(entries, job.layout, job.weights)] * settings.num_images
        if guided:
            rows = [negative] * len(rows) + rows
        embeddings, pooled = self.encode(list(table))
        if pooled is not None and self.components.force_zeros_for_empty_prompt and "" in table:
            zero = torch.arange(len(table), device=self.device) == table[""]
            embeddings = embeddings.masked_fill(zero[:, None, None], 0)
            pooled = pooled.masked_fill(zero[:, None], 0)
        prompts = Prompts(embeddings)
        if settings.attention == "plain":
            return Plain(prompts, rows), rows, pooled
        unconditional = negative if guided else None
        blended = Blended(prompts, blends, unconditional=unconditional, rule=settings.rule)
        return blended, rows, pooled

    def _tokens(self, tokenizer: Any, texts: Sequence[str]) -> Tensor:
        longest = tokenizer.model_max_length
        for text, ids in zip(texts, tokenizer(list(texts)).input_ids, strict=True):
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


@dataclass(frozen=True)
class _Job:
    """One prompt to draw, with its (steps, objects) weights."""

    prompt: str
    layout: Layout
    weights: Tensor


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
        if generator is not None:
            single = isinstance(generator, torch.Generator)
            self.generators = [generator] if single else list(generator)  # type: ignore[arg-type, list-item]
            self.seeds: list[int | None] = [None] * total
            given = len(self.generators)
        else:
            own = range(seed, seed + num_images) if isinstance(seed, int) else seed
            seeds = [*own] * prompts if isinstance(seed, int) else [*own]
            self.generators = [torch.Generator().manual_seed(s) for s in seeds]
            self.seeds = [*seeds]
            given = len(seeds)
        if given != total:
            raise ValueError(
                f"seed or generator must be one for each of {total} images, got {given}"
            )
        if any(g.device.type != "cpu" for g in self.generators):
            raise ValueError("generator must be on the CPU: noise is drawn there for every device")

    def initial(self, channels: int, height: int, width: int) -> Tensor:
        shape = (1, channels, height, width)
        return torch.cat([torch.randn(shape, generator=g) for g in self.generators])

    def __call__(self, x: Tensor) -> Tensor:
        return self.initial(*x.shape[1:]).to(x.device, x.dtype)


def bundled_model() -> Path:
    """The folder of the model that the package carries."""
    folder = Path(str(files("stal") / "assets" / "shapes"))
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"the package must carry its model, got no {folder}: install it again")
    return folder
