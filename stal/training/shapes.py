"""Trains the bundled shapes model: VAE, then text encoder and UNet together, then CLIP.

Each stage trains on scenes drawn on the spot. The batch of a step follows from the seed and the
step's number alone, so a killed run resumes from its last checkpoint as if nothing had happened.
Checkpoints are safetensors, replaced atomically; the finished model is an ordinary diffusers
folder in half precision.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from stal import torch_state
from stal.caller import warn
from stal.files import write_atomic
from stal.runs import held, read_checkpoint, write_checkpoint
from stal.shapes.captions import caption
from stal.shapes.scenes import (
    BACKGROUND_NAMES,
    IMAGE_SIZE,
    MAX_OBJECTS,
    SHAPES,
    Scenes,
    draw_scenes,
    render,
)
from stal.training.shapes_model import (
    new_clip,
    new_scheduler,
    new_unet_and_text_encoder,
    new_vae,
    tokenizer_of,
    write_clip_input,
    write_half,
    write_index,
    write_tokenizer,
)

STAGES = ("vae", "unet", "clip")
# Stages draw their scenes from disjoint ranges of seeds.
_SEED_RANGE = 10_000_000


@dataclass(frozen=True)
class ShapesRecipe:
    """How long and how wide to train.

    vae_check: pictures that the latents' scale is measured on.
    unet_scenes: scenes that the batches of the UNet are drawn from.
    ema_decay: of the running average of the UNet's weights, which is what is kept.
    caption_dropout: share of empty captions.
    noisy_share: share of the UNet's samples whose timestep is at least noisy_from. There shapes
        and places are decided; what is left to do after that is soon learnt.
    save_every_s: seconds between two checkpoints.
    """

    vae_steps: int = 1500
    vae_batch: int = 16
    vae_check: int = 512
    unet_steps: int = 20000
    unet_batch: int = 32
    unet_scenes: int = 65536
    clip_steps: int = 1500
    clip_batch: int = 128
    learning_rate: float = 1e-3
    ema_decay: float = 0.9995
    caption_dropout: float = 0.1
    noisy_share: float = 0.8
    noisy_from: int = 400
    save_every_s: float = 120.0


@torch_state.training()
def train(
    output: Path,
    *,
    stages: tuple[str, ...] = STAGES,
    recipe: ShapesRecipe | None = None,
    seed: int = 0,
    start: Path | None = None,
) -> None:
    """Trains the named stages in order and writes the model folder.

    Args:
        output: folder for checkpoints (`output/checkpoints`) and the model (`output/model`).
        stages: which of STAGES to train; "unet" needs a trained "vae".
        recipe: steps and batch sizes.
        seed: seed of scenes, captions and initial weights.
        start: a model folder made by this function whose tokenizer and VAE are taken over and
            whose text encoder and UNet the stage "unet" begins with, unless it has a checkpoint.

    Raises:
        ValueError: an unknown stage, a stage whose input is missing, a checkpoint of another seed,
            recipe or start in `output`, or a start of another architecture or together with the
            stage "vae".
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"stages must be among {', '.join(STAGES)}, got {', '.join(unknown)}")
    if start is not None and "vae" in stages:
        raise ValueError("stages must not hold vae with start, whose UNet goes with its own vae")
    recipe = recipe or ShapesRecipe()
    with held(output):
        _train(output, stages, recipe, seed, start)


def _train(
    output: Path, stages: tuple[str, ...], recipe: ShapesRecipe, seed: int, start: Path | None
) -> None:
    model = output / "model"
    model.mkdir(exist_ok=True)
    (output / "checkpoints").mkdir(exist_ok=True)
    if start is not None:
        for part in ("tokenizer", "vae"):
            if not (start / part).is_dir():
                raise ValueError(f"start must be a model folder, got no {start / part}")
            if not (model / part).is_dir():
                shutil.copytree(start / part, model / part)
    if not (model / "tokenizer" / "tokenizer.json").is_file():
        write_tokenizer(model / "tokenizer")
    if "vae" in stages:
        _train_vae(output, recipe, seed)
    if "unet" in stages:
        if not (model / "vae" / "config.json").is_file():
            raise ValueError(f"stage unet needs a trained vae in {model / 'vae'}: train it first")
        _train_unet(output, recipe, seed, start)
    if "clip" in stages:
        _train_clip(output, recipe, seed)


def _step_seed(seed: int, stage: str, step: int) -> int:
    return (seed * len(STAGES) + STAGES.index(stage) + 1) * _SEED_RANGE + step


class _Run:
    """One stage's loop: progress, learning rate, averaged weights, checkpoints."""

    def __init__(
        self,
        stage: str,
        output: Path,
        modules: dict[str, nn.Module],
        recipe: ShapesRecipe,
        steps: int,
        *,
        seed: int,
        ema_decay: float,
        start: Path | None = None,
    ) -> None:
        self.stage, self.steps, self.recipe = stage, steps, recipe
        self.path = output / "checkpoints" / f"{stage}.safetensors"
        self.modules = nn.ModuleDict(modules)
        # Of parameters and buffers, by name.
        self.average = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}
        self.ema_decay = ema_decay
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        own = {k: v for k, v in asdict(recipe).items() if k.startswith(stage)}
        self.identity = {"seed": str(seed), "recipe": repr(own), "start": _digest_of(start)}
        self.start, found = 0, read_checkpoint(self.path, self.identity)
        if found is not None:
            self.start, tensors = found
            self._restore(tensors)
        self.loss = 0.0  # a running mean of the recent ones

    def loop(self) -> Iterator[int]:
        """Yields the number of each step; saves now and then and at the end."""
        saved = time.monotonic()
        if self.start >= self.steps:
            fix = f"delete {self.path} to train it again"
            warn(f"stage {self.stage} is finished and not trained: {fix}")
        bar = tqdm(range(self.start, self.steps), initial=self.start, total=self.steps)
        for step in bar:
            bar.set_description(self.stage)
            yield step
            bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
            if time.monotonic() - saved > self.recipe.save_every_s or step + 1 == self.steps:
                write_checkpoint(self.path, self.identity, step + 1, self._state())
                saved = time.monotonic()

    def update(self, step: int, loss: Tensor) -> None:
        """One step of Adam: warm-up over 200 steps, then half a cosine down to a fiftieth."""
        warm = min(1.0, (step + 1) / 200)
        fall = 0.51 + 0.49 * torch.cos(torch.tensor(torch.pi * step / self.steps)).item()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * warm * fall
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.loss += (loss.item() - self.loss) * (0.02 if step > self.start else 1.0)
        # The average forgets the first steps quickly, then slows down to its final decay.
        decay = min(self.ema_decay, (step + 1) / (step + 10))
        now = self.modules.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [now[k] for k in self.average], 1 - decay)

    def averaged(self, name: str) -> dict[str, Tensor]:
        """The averaged weights of one module, by name."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.average.items() if k.startswith(prefix)}

    def _state(self) -> dict[str, Tensor]:
        tensors = {f"model.{k}": v for k, v in self.modules.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": v for k, v in state.items()}
        return {k: v.detach().clone().contiguous() for k, v in tensors.items()}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.modules.load_state_dict(part("model."))
        self.average = part("average.")
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part("adam.").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _digest_of(start: Path | None) -> str:
    """Tells the models apart that a run may begin with."""
    if start is None:
        return ""
    files = sorted((start / "unet").glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _train_vae(output: Path, recipe: ShapesRecipe, seed: int) -> None:
    torch.manual_seed(seed)
    vae = new_vae()
    run = _Run("vae", output, {"vae": vae}, recipe, recipe.vae_steps, seed=seed, ema_decay=0.998)
    for step in run.loop():
        image, generator = _vae_batch(recipe.vae_batch, _step_seed(seed, "vae", step))
        posterior = vae.encode(image).latent_dist
        # A little noise on the latents makes the decoder forgive the UNet's own errors.
        latents = posterior.mean + 0.05 * torch.randn(posterior.mean.shape, generator=generator)
        error = vae.decode(latents).sample - image
        kl = posterior.mean.square().mean()
        run.update(step, error.abs().mean() + 2 * error.square().mean() + 1e-3 * kl)
    if run.start < recipe.vae_steps:
        # Latents of an earlier VAE are not this one's.
        _latents_file(output).unlink(missing_ok=True)
    vae.load_state_dict(run.averaged("vae"))
    with torch.no_grad():
        image, _ = _vae_batch(recipe.vae_check, _step_seed(seed, "vae", recipe.vae_steps))
        latents = vae.encode(image).latent_dist.mean
        error = (vae.decode(latents).sample - image).square().mean() / 4
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    print(f"vae: {10 * torch.log10(1 / error):.1f} dB, latents of standard deviation 1 after")
    print(f"     scaling by {vae.config.scaling_factor}, mean {latents.mean((0, 2, 3)).tolist()}")
    write_half(output / "model" / "vae", vae, run.averaged("vae"))


def _vae_batch(n: int, seed: int) -> tuple[Tensor, torch.Generator]:
    image = 2 * render(draw_scenes(n, seed=seed), seed=seed) - 1
    return image.to(memory_format=torch.channels_last), torch.Generator().manual_seed(seed)


def _latents_file(output: Path) -> Path:
    return output / "checkpoints" / "latents.safetensors"


def _latents(output: Path, scenes: Scenes, seed: int) -> Tensor:
    """The scaled latents of the training scenes: (n, 4, 16, 16) float16, computed once."""
    from diffusers import AutoencoderKL

    path = _latents_file(output)
    digest = _digest(scenes)
    if path.is_file():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("scenes") == digest:
                return file.get_tensor("latents")
    vae = AutoencoderKL.from_pretrained(output / "model" / "vae", local_files_only=True)
    parts = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(scenes), 256), desc="latents"):
            image = 2 * render(scenes[start : start + 256], seed=seed + start) - 1
            mean = vae.encode(image.to(memory_format=torch.channels_last)).latent_dist.mean
            parts.append((mean * vae.config.scaling_factor).half().contiguous())
    latents = torch.cat(parts)
    write_atomic(path, save({"latents": latents}, {"scenes": digest}))
    return latents


def _digest(scenes: Scenes) -> str:
    """What tells one draw of scenes from another."""
    digest = hashlib.sha256()
    for field in fields(Scenes):
        digest.update(getattr(scenes, field.name).numpy().tobytes())
    return digest.hexdigest()


def _load_start(unet: nn.Module, text_encoder: nn.Module, start: Path) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    for module, kind, part in (
        (unet, UNet2DConditionModel, "unet"),
        (text_encoder, CLIPTextModel, "text_encoder"),
    ):
        loaded = kind.from_pretrained(start / part, local_files_only=True, use_safetensors=True)
        weights = loaded.float().state_dict()
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        if shapes != {name: tensor.shape for name, tensor in module.state_dict().items()}:
            raise ValueError(
                f"start must hold the architecture that is trained, got {start / part}"
            )
        module.load_state_dict(weights)


def export_unet(output: Path) -> None:
    """Writes the model folder from the last checkpoint of stage "unet", finished or not."""
    unet, text_encoder = new_unet_and_text_encoder(output / "model")
    average = load_file(output / "checkpoints" / "unet.safetensors")
    model = output / "model"
    for name, module in (("unet", unet), ("text_encoder", text_encoder)):
        prefix = f"average.{name}."
        weights = {k.removeprefix(prefix): v for k, v in average.items() if k.startswith(prefix)}
        write_half(model / name, module, weights)
    write_index(model)


def _shares(scenes: Scenes) -> Tensor:
    """How often the UNet sees each scene: what is rare or hard more often. (n,) float32."""
    rare = {"white": 1.0, "gray": 3.0, "black": 3.0, "beige": 3.0}
    background = torch.tensor([rare[name] for name in BACKGROUND_NAMES])[scenes.background]
    there = torch.arange(scenes.shape.shape[1]) < scenes.count[:, None]
    often = {"star": 1.6, "cross": 1.6, "ring": 1.3}
    hard = torch.tensor([often.get(name, 1.0) for name in SHAPES])[scenes.shape]
    # Singles are what local prompts are made of.
    count = torch.where((scenes.count == 1) | (scenes.count == MAX_OBJECTS), 1.5, 1.0)
    return background * count * torch.where(there, hard, 1.0).amax(1)


def _train_unet(output: Path, recipe: ShapesRecipe, seed: int, start: Path | None) -> None:
    scenes = draw_scenes(recipe.unet_scenes, seed=_step_seed(seed, "unet", 0))
    scheduler = new_scheduler()
    torch.manual_seed(seed)
    unet, text_encoder = new_unet_and_text_encoder(output / "model")
    modules = {"unet": unet, "text_encoder": text_encoder}
    if start is not None:
        _load_start(unet, text_encoder, start)
    decay = recipe.ema_decay
    run = _Run(
        "unet", output, modules, recipe, recipe.unet_steps, seed=seed, ema_decay=decay, start=start
    )
    data = _latents(output, scenes, _step_seed(seed, "unet", 0))
    tokenize = tokenizer_of(output / "model")
    shares = _shares(scenes)

    for step in run.loop():
        batch_seed = _step_seed(seed, "unet", step)
        generator = torch.Generator().manual_seed(batch_seed)
        rng = random.Random(batch_seed)
        rows = torch.multinomial(shares, recipe.unet_batch, replacement=True, generator=generator)
        texts = [
            "" if rng.random() < recipe.caption_dropout else caption(scenes, int(row), rng)
            for row in rows
        ]
        x0 = data[rows].float().contiguous(memory_format=torch.channels_last)
        noise = torch.randn(x0.shape, generator=generator)
        noisy = torch.rand(len(rows), generator=generator) < recipe.noisy_share
        low = torch.where(noisy, recipe.noisy_from, 0)
        high = torch.where(noisy, scheduler.config.num_train_timesteps, recipe.noisy_from)
        t = (low + (high - low) * torch.rand(len(rows), generator=generator)).long()
        x = scheduler.add_noise(x0, noise, t)
        target = scheduler.get_velocity(x0, noise, t)
        embeddings = text_encoder(tokenize(texts)).last_hidden_state
        run.update(step, F.mse_loss(unet(x, t, embeddings).sample, target))

    export_unet(output)


def _train_clip(output: Path, recipe: ShapesRecipe, seed: int) -> None:
    torch.manual_seed(seed)
    clip = new_clip(output / "model")
    modules = {"clip": clip}
    run = _Run("clip", output, modules, recipe, recipe.clip_steps, seed=seed, ema_decay=0.998)
    tokenize = tokenizer_of(output / "model")
    for step in run.loop():
        image, texts = clip_batch(recipe.clip_batch, _step_seed(seed, "clip", step))
        result = clip(input_ids=tokenize(texts), pixel_values=2 * image - 1)
        logits = result.logits_per_text
        # Pictures that share a caption are no negatives of each other.
        same = torch.tensor([[a == b for b in texts] for a in texts])
        target = same.float() / same.sum(1, keepdim=True)
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)
        run.update(step, loss / 2)
    folder = output / "model" / "clip"
    write_half(folder, clip, run.averaged("clip"))
    write_clip_input(folder)


def clip_batch(n: int, seed: int) -> tuple[Tensor, list[str]]:
    """Half whole scenes with full captions, half crops of one object with its own description."""
    rng = random.Random(seed)
    half = n // 2
    whole = draw_scenes(half, seed=seed)
    texts = [caption(whole, i, rng, partial_share=0.0) for i in range(half)]
    single = draw_scenes(n - half, seed=seed + _SEED_RANGE // 2, counts=(1, 2, 3, 4))
    crops = []
    for i, picture in enumerate(render(single, seed=seed)):
        x0, y0, x1, y1 = single.box(i, 0)
        margin = rng.uniform(0.0, 0.25) * (x1 - x0)
        left, top = (max(round((v - margin) * IMAGE_SIZE), 0) for v in (x0, y0))
        right, bottom = (min(round((v + margin) * IMAGE_SIZE), IMAGE_SIZE) for v in (x1, y1))
        crop = picture[None, :, top:bottom, left:right]
        size = (IMAGE_SIZE, IMAGE_SIZE)
        crops.append(F.interpolate(crop, size, mode="bilinear", antialias=True))
        phrase = single.phrase(i, 0)
        texts.append(f"a photo of {phrase}" if rng.random() < 0.5 else phrase)
    return torch.cat([render(whole, seed=seed), *crops]), texts
