"""Trains the bundled shapes model: VAE, then text encoder and UNet together, then CLIP.

Each stage trains on scenes drawn on the spot. The batch of a step follows from the seed and the
step's number alone, so a killed run resumes from its last checkpoint as if nothing had happened.
Checkpoints are safetensors, replaced atomically; the finished model is an ordinary diffusers
folder in half precision.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from stal.shapes.captions import caption, words
from stal.shapes.scenes import (
    BACKGROUND_NAMES,
    IMAGE_SIZE,
    MAX_OBJECTS,
    SHAPES,
    Scenes,
    draw_scenes,
    render,
)

STAGES = ("vae", "unet", "clip")
MAX_TOKENS = 40
# Stages draw their scenes from disjoint ranges of seeds.
_SEED_RANGE = 10_000_000


@dataclass(frozen=True)
class Plan:
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


def train(
    output: Path,
    *,
    stages: tuple[str, ...] = STAGES,
    plan: Plan | None = None,
    seed: int = 0,
    start: Path | None = None,
) -> None:
    """Trains the named stages in order and writes the model folder.

    Args:
        output: folder for checkpoints (`output/checkpoints`) and the model (`output/model`).
        stages: which of STAGES to train; "unet" needs a trained "vae".
        plan: steps and batch sizes.
        seed: seed of scenes, captions and initial weights.
        start: a model folder made by this function whose tokenizer and VAE are taken over and
            whose text encoder and UNet the stage "unet" begins with, unless it has a checkpoint.

    Raises:
        ValueError: an unknown stage, a stage whose input is missing, a checkpoint of another seed
            in `output`, or a start of another architecture or together with the stage "vae".
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"stages must be among {', '.join(STAGES)}, got {', '.join(unknown)}")
    if start is not None and "vae" in stages:
        raise ValueError("stages must not hold vae with start, whose UNet goes with its own vae")
    plan = plan or Plan()
    model = output / "model"
    model.mkdir(parents=True, exist_ok=True)
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
        _train_vae(output, plan, seed)
    if "unet" in stages:
        if not (model / "vae" / "config.json").is_file():
            raise ValueError(f"stage unet needs a trained vae in {model / 'vae'}: train it first")
        _train_unet(output, plan, seed, start)
    if "clip" in stages:
        _train_clip(output, plan, seed)


def write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer to which every word of the world is one token; other words fall apart."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    pairs = _merges(words())
    vocabulary = [*letters, *(f"{c}</w>" for c in letters), *(a + b for a, b in pairs)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    merges: Any = pairs  # declared as strings
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )
    broken = [word for word in words() if len(tokenizer(word).input_ids) != 3]
    assert not broken, f"words of several tokens: {broken}"
    tokenizer.save_pretrained(folder)


def _merges(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Byte pair encoding until each word is one symbol: the most frequent pair first, equals in
    alphabetical order (the trainer of `tokenizers` leaves that order to chance)."""
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in texts]
    merges = []
    while counts := Counter(pair for symbols in split for pair in pairwise(symbols)):
        first, second = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((first, second))
        for symbols in split:
            for i in range(len(symbols) - 1):
                if symbols[i : i + 2] == [first, second]:
                    symbols[i : i + 2] = [first + second]
    return merges


def _load_tokenizer(output: Path) -> Callable[[list[str]], Tensor]:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(output / "model" / "tokenizer", local_files_only=True)

    def tokenize(texts: list[str]) -> Tensor:
        return tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids

    return tokenize


def _step_seed(seed: int, stage: str, step: int) -> int:
    return (seed * len(STAGES) + STAGES.index(stage) + 1) * _SEED_RANGE + step


class _Run:
    """One stage's loop: progress, learning rate, averaged weights, checkpoints."""

    def __init__(
        self,
        stage: str,
        output: Path,
        modules: dict[str, nn.Module],
        *,
        steps: int,
        plan: Plan,
        seed: int,
        ema_decay: float | None = None,
    ) -> None:
        self.stage, self.steps, self.plan, self.seed = stage, steps, plan, seed
        self.path = output / "checkpoints" / f"{stage}.safetensors"
        self.modules = nn.ModuleDict(modules)
        self.average = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}
        self.ema_decay = ema_decay
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.start = 0
        if self.path.is_file():
            self._resume()

    def loop(self) -> Iterator[int]:
        """Yields the number of each step; saves now and then and at the end."""
        saved = time.monotonic()
        bar = tqdm(range(self.start, self.steps), initial=self.start, total=self.steps)
        for step in bar:
            bar.set_description(self.stage)
            yield step
            bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
            if time.monotonic() - saved > self.plan.save_every_s or step + 1 == self.steps:
                self._save(step + 1)
                saved = time.monotonic()

    def update(self, step: int, loss: Tensor) -> None:
        """One step of Adam: warm-up over 200 steps, then half a cosine down to a fiftieth."""
        warm = min(1.0, (step + 1) / 200)
        fall = 0.51 + 0.49 * torch.cos(torch.tensor(torch.pi * step / self.steps)).item()
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * warm * fall
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        # A running mean of the recent losses.
        value = loss.item()
        self.loss = 0.98 * getattr(self, "loss", value) + 0.02 * value
        # The average forgets the first steps quickly, then slows down to its final decay.
        decay = 0.0 if self.ema_decay is None else min(self.ema_decay, (step + 1) / (step + 10))
        now = self.modules.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [now[k] for k in self.average], 1 - decay)

    def averaged(self, name: str) -> dict[str, Tensor]:
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.average.items() if k.startswith(prefix)}

    def _save(self, step: int) -> None:
        tensors = {f"model.{k}": v for k, v in self.modules.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": v for k, v in state.items()}
        tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
        metadata = {"step": str(step), "seed": str(self.seed)}
        _save_atomic(tensors, self.path, metadata=metadata)

    def _resume(self) -> None:
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata()
        if metadata.get("seed") != str(self.seed):
            raise ValueError(
                f"seed must be {metadata.get('seed')} to go on from {self.path}, got {self.seed}: "
                "train another seed in another folder"
            )
        self.start = int(metadata["step"])
        tensors = load_file(self.path)

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


def _save_atomic(
    tensors: dict[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None
) -> None:
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=metadata)
    os.replace(partial, path)


def _write_half(folder: Path, module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Saves a model folder in half precision, replaced as a whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.load_state_dict(weights)
    module.half().save_pretrained(partial)  # type: ignore[operator]
    module.float().load_state_dict(before)
    config = json.loads((partial / "config.json").read_text())
    if "dtype" in config:
        # transformers would keep half precision where diffusers casts up: one pipeline, two types.
        config["dtype"] = "float32"
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _train_vae(output: Path, plan: Plan, seed: int) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )
    vae.to(memory_format=torch.channels_last)
    run = _Run(
        "vae", output, {"vae": vae}, steps=plan.vae_steps, plan=plan, seed=seed, ema_decay=0.998
    )
    for step in run.loop():
        image, generator = _vae_batch(plan.vae_batch, _step_seed(seed, "vae", step))
        posterior = vae.encode(image).latent_dist
        # A little noise on the latents makes the decoder forgive the UNet's own errors.
        latents = posterior.mean + 0.05 * torch.randn(posterior.mean.shape, generator=generator)
        error = vae.decode(latents).sample - image
        kl = posterior.mean.square().mean()
        run.update(step, error.abs().mean() + 2 * error.square().mean() + 1e-3 * kl)
    if run.start < plan.vae_steps:
        # Latents of an earlier VAE are not this one's.
        _latents_file(output).unlink(missing_ok=True)
    vae.load_state_dict(run.averaged("vae"))
    with torch.no_grad():
        image, _ = _vae_batch(plan.vae_check, _step_seed(seed, "vae", plan.vae_steps))
        latents = vae.encode(image).latent_dist.mean
        error = (vae.decode(latents).sample - image).square().mean() / 4
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    print(f"vae: {10 * torch.log10(1 / error):.1f} dB, latents of standard deviation 1 after")
    print(f"     scaling by {vae.config.scaling_factor}, mean {latents.mean((0, 2, 3)).tolist()}")
    _write_half(output / "model" / "vae", vae, run.averaged("vae"))


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
    _save_atomic({"latents": latents}, path, metadata={"scenes": digest})
    return latents


def _digest(scenes: Scenes) -> str:
    """What tells one draw of scenes from another."""
    digest = hashlib.sha256()
    for field in fields(Scenes):
        digest.update(getattr(scenes, field.name).numpy().tobytes())
    return digest.hexdigest()


def _text_config(vocab_size: int, end: int, *, width: int = 128) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )


def _vocabulary(output: Path) -> tuple[int, int]:
    """Size of the vocabulary and the number of its end-of-text token."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(output / "model" / "tokenizer", local_files_only=True)
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    return len(tokenizer), tokenizer.eos_token_id


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        # Without effect under this spacing, but diffusers warns about 0.
        steps_offset=1,
    )


def _unet_and_text_encoder(output: Path) -> tuple[nn.Module, nn.Module]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    text_encoder = CLIPTextModel(_text_config(*_vocabulary(output)))
    unet: Any = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=4,
        # Self-attention at 16x16 would take most of the time of a step.
        only_cross_attention=(True, False, False),
        norm_num_groups=16,
    )
    unet.to(memory_format=torch.channels_last)
    return unet, text_encoder


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
    unet, text_encoder = _unet_and_text_encoder(output)
    average = load_file(output / "checkpoints" / "unet.safetensors")
    model = output / "model"
    for name, module in (("unet", unet), ("text_encoder", text_encoder)):
        prefix = f"average.{name}."
        weights = {k.removeprefix(prefix): v for k, v in average.items() if k.startswith(prefix)}
        _write_half(model / name, module, weights)
    _scheduler().save_pretrained(model / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (model / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    defaults = {
        "background": 0.6,
        "guidance_scale": 3.0,
        "reference": "an empty scene {}",
        "steps": 25,
        "words": words(),
    }
    (model / "stal.json").write_text(json.dumps(defaults, indent=2) + "\n")


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


def _train_unet(output: Path, plan: Plan, seed: int, start: Path | None) -> None:
    scenes = draw_scenes(plan.unet_scenes, seed=_step_seed(seed, "unet", 0))
    scheduler = _scheduler()
    torch.manual_seed(seed)
    unet, text_encoder = _unet_and_text_encoder(output)
    modules = {"unet": unet, "text_encoder": text_encoder}
    if start is not None:
        _load_start(unet, text_encoder, start)
    run = _Run(
        "unet",
        output,
        modules,
        steps=plan.unet_steps,
        plan=plan,
        seed=seed,
        ema_decay=plan.ema_decay,
    )
    data = _latents(output, scenes, _step_seed(seed, "unet", 0))
    tokenize = _load_tokenizer(output)
    shares = _shares(scenes)

    for step in run.loop():
        batch_seed = _step_seed(seed, "unet", step)
        generator = torch.Generator().manual_seed(batch_seed)
        rng = random.Random(batch_seed)
        rows = torch.multinomial(shares, plan.unet_batch, replacement=True, generator=generator)
        texts = [
            "" if rng.random() < plan.caption_dropout else caption(scenes, int(row), rng)
            for row in rows
        ]
        x0 = data[rows].float().contiguous(memory_format=torch.channels_last)
        noise = torch.randn(x0.shape, generator=generator)
        noisy = torch.rand(len(rows), generator=generator) < plan.noisy_share
        low = torch.where(noisy, plan.noisy_from, 0)
        high = torch.where(noisy, scheduler.config.num_train_timesteps, plan.noisy_from)
        t = (low + (high - low) * torch.rand(len(rows), generator=generator)).long()
        x = scheduler.add_noise(x0, noise, t)
        target = scheduler.get_velocity(x0, noise, t)
        embeddings = text_encoder(tokenize(texts)).last_hidden_state
        run.update(step, F.mse_loss(unet(x, t, embeddings).sample, target))

    export_unet(output)


def _train_clip(output: Path, plan: Plan, seed: int) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    torch.manual_seed(seed)
    vocab_size, end = _vocabulary(output)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    text = _text_config(vocab_size, end)
    clip = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    )
    run = _Run(
        "clip", output, {"clip": clip}, steps=plan.clip_steps, plan=plan, seed=seed, ema_decay=0.998
    )
    tokenize = _load_tokenizer(output)
    for step in run.loop():
        image, texts = clip_batch(plan.clip_batch, _step_seed(seed, "clip", step))
        result = clip(input_ids=tokenize(texts), pixel_values=2 * image - 1)
        logits = result.logits_per_text
        # Pictures that share a caption are no negatives of each other.
        same = torch.tensor([[a == b for b in texts] for a in texts])
        target = same.float() / same.sum(1, keepdim=True)
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)
        run.update(step, loss / 2)
    folder = output / "model" / "clip"
    _write_half(folder, clip, run.averaged("clip"))
    (folder / "preprocessor_config.json").write_text(json.dumps(_CLIP_INPUT, indent=2) + "\n")


# Pictures of any size are squashed to the input's, and scaled to [-1, 1].
_CLIP_INPUT = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "resample": 2,
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


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
