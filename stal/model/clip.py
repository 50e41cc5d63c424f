"""CLIP as a judge: how well pictures, and crops of them, fit texts; differentiable in the pixels.

clip = load(pipe_folder / "clip")                          # transformers' CLIPModel layout
clip = load_open_clip("ViT-B-32", "laion2b_s34b_b79k")     # the optional extra "clip"
(clip.images(pixels) * clip.texts(["a red circle"])).sum(-1)   # cosine similarity
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stal.checked_json import read_json, shown
from stal.config_values import check_layers, real, reals
from stal.finite import NotFinite, check_finite
from stal.model.checkpoint import give_positions, load_tokenizer
from stal.model.part_configs import built, clip_values
from stal.model.tensors import Weights, load_safetensors, load_state
from stal.torch_state import undisturbed


@dataclass(frozen=True)
class Preprocessing:
    """What becomes of pictures before CLIP sees them.

    size: side of CLIP's square input in pixels.
    mean, std: of each channel, for pixels in [0, 1].
    interpolation: "bicubic" or "bilinear", antialiased.
    squash: whether the aspect is given up; otherwise the shorter side becomes `size` and the
        middle is cropped.
    rounds_up: whether the crop's odd pixel is rounded (torchvision) or cut off (transformers).
    """

    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    squash: bool = False
    rounds_up: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) in [0, 1] -> (n, 3, size, size), normalised."""
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < 1:
            raise ValueError(f"images must be (n, 3, height, width), got {tuple(images.shape)}")
        height, width = images.shape[-2:]
        short = min(height, width)
        sides = [
            self.size if self.squash else self.size * side // short for side in images.shape[-2:]
        ]
        if sides != [height, width]:
            images = F.interpolate(images, sides, mode=self.interpolation, antialias=True)
            # As of a picture of bytes: bicubic overshoots.
            images = images.clamp(0, 1)
        halves = [(side - self.size) / 2 for side in sides]
        top, left = (round(h) if self.rounds_up else math.floor(h) for h in halves)
        images = images[..., top : top + self.size, left : left + self.size]
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (images - mean) / std


class Clip:
    """Features of unit length; their product is the cosine similarity. No weight has a gradient.

    Args:
        encode_images: normalised (n, 3, size, size) -> (n, dim).
        encode_texts: texts -> (n, dim).
        preprocessing: how pictures become the input of encode_images.
        dtype, device: of the networks.
    """

    def __init__(
        self,
        encode_images: Callable[[Tensor], Tensor],
        encode_texts: Callable[[Sequence[str]], Tensor],
        preprocessing: Preprocessing,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self._encode_images, self._encode_texts = encode_images, encode_texts
        self.preprocessing, self.dtype, self.device = preprocessing, dtype, device
        self._texts: dict[str, Tensor] = {}

    @undisturbed()
    def images(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) in [0, 1] -> (n, dim), at least float32; differentiable.

        Raises:
            ValueError: images of another shape; `stal.finite.NotFinite`, features without a
                direction.
        """
        pixels = self.preprocessing(images.to(self.device)).to(self.dtype)
        return _unit(self._encode_images(pixels), "image", self.dtype)

    @undisturbed()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, dim), at least float32. Each text is encoded once.

        Raises:
            ValueError: CLIP has no tokens for a text, or not enough; `stal.finite.NotFinite`,
                features without a direction.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            with torch.no_grad():
                found = _unit(self._encode_texts(new), "text", self.dtype)
                self._texts.update(zip(new, found, strict=True))
        return torch.stack([self._texts[text] for text in texts])


def crops(
    image: Tensor,
    boxes: Sequence[tuple[float, float, float, float]],
    *,
    size: int,
    margin: float = 0.1,
) -> Tensor:
    """Each box of one picture, with some of its surroundings, as a square; differentiable.

    Args:
        image: (3, height, width) in [0, 1].
        boxes: (x0, y0, x1, y1), fractions of the canvas.
        size: side of the squares in pixels; the aspect of a box is given up.
        margin: widens a box on each side by this fraction of its own width and height, as far as
            the picture goes.

    Returns:
        (boxes, 3, size, size).
    """
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be a finite number >= 0, got {margin}")
    height, width = image.shape[-2:]
    parts = []
    for x0, y0, x1, y1 in boxes:
        dx, dy = margin * (x1 - x0), margin * (y1 - y0)
        left, top = (max(math.floor(v), 0) for v in ((x0 - dx) * width, (y0 - dy) * height))
        right, bottom = (math.ceil(v) for v in ((x1 + dx) * width, (y1 + dy) * height))
        part = image[None, :, top:bottom, left:right]
        part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
        parts.append(part)
    return torch.cat(parts) if parts else image.new_zeros(0, 3, size, size)


@undisturbed()
def load(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Clip:
    """Reads a `transformers.CLIPModel` folder.

    The tokenizer is in the folder or in `tokenizer` beside it.

    Raises:
        ValueError: there is no such folder, or a part is missing or another model's.
    """
    from transformers import CLIPConfig, CLIPModel

    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"clip must be a folder with a CLIP model, got {folder}: there is none")
    config_json = read_json(folder / "config.json")
    kind = config_json.get("model_type")
    if kind != "clip":
        raise ValueError(f"{folder} must hold a CLIP model (model_type clip), got {shown(kind)}")
    try:
        values = clip_values(config_json)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    weights = Weights.of(folder, name="model", dtype=dtype)
    parts = (values["text_config"], values["vision_config"])
    check_layers(sum(part["num_hidden_layers"] for part in parts), len(weights.shapes), folder)
    with torch.device("meta"):
        model: Any = built(lambda: CLIPModel(CLIPConfig(**values)), folder)
    weights.into(model, device=device, rename=lambda k: None if k.endswith("position_ids") else k)
    give_positions(model, device)
    model.eval().requires_grad_(False)
    config = model.config
    own = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    tokenizer: Any = load_tokenizer(folder if own else folder.parent / "tokenizer")
    longest = config.text_config.max_position_embeddings

    def encode_images(pixels: Tensor) -> Tensor:
        return model.visual_projection(model.vision_model(pixels).pooler_output)

    def encode_texts(texts: Sequence[str]) -> Tensor:
        for text, ids in zip(texts, tokenizer(list(texts), verbose=False).input_ids, strict=True):
            if len(ids) > longest:
                rule = f"be at most {longest} of CLIP's tokens"
                raise ValueError(f"text must {rule}, got {len(ids)}: {text!r}")
            # Between the marks of beginning and end, the end stands for what has no token.
            if tokenizer.unk_token_id in ids[1:-1] or max(ids) >= config.text_config.vocab_size:
                raise ValueError(f"text must consist of CLIP's tokens, got {text!r}")
        batch = tokenizer(
            list(texts), padding="max_length", max_length=longest, return_tensors="pt"
        )
        return model.text_projection(model.text_model(batch.input_ids.to(device)).pooler_output)

    preprocessing = _preprocessing(folder, config.vision_config.image_size)
    return Clip(encode_images, encode_texts, preprocessing, dtype=dtype, device=device)


@undisturbed()
def load_open_clip(
    architecture: str,
    pretrained: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Clip:
    """A model of open_clip.

    Args:
        architecture: e.g. "ViT-B-32".
        pretrained: a safetensors file, or the name of weights on the hub, then downloaded.

    Raises:
        ValueError: open_clip is not installed or does not know the model; a pickle file.
    """
    try:
        import open_clip
    except ImportError as error:
        fix = "pip install 'stal[clip]'"
        raise ValueError(f"clip must be a folder without open_clip; to have it: {fix}") from error
    if architecture not in open_clip.list_models():
        raise ValueError(f"architecture must be one that open_clip lists, got {architecture!r}")
    file = Path(pretrained)
    if file.suffix and not file.is_file() and file.parent != Path("."):
        raise ValueError(f"pretrained must be a file or a name of open_clip, got no {pretrained}")
    if file.is_file():
        model = open_clip.create_model(architecture, pretrained=None)
        load_state(model, load_safetensors(file), source=file)
    else:
        model = open_clip.create_model(architecture, pretrained=pretrained)
    model.to(device, dtype).eval().requires_grad_(False)
    tokenize = open_clip.get_tokenizer(architecture)
    wanted = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    side = wanted.size if isinstance(wanted.size, int) else wanted.size[0]
    preprocessing = Preprocessing(
        side,
        tuple(wanted.mean),
        tuple(wanted.std),
        wanted.interpolation if wanted.interpolation in ("bicubic", "bilinear") else "bicubic",
        squash=wanted.resize_mode == "squash",
        rounds_up=True,
    )

    def encode_texts(texts: Sequence[str]) -> Tensor:
        return model.encode_text(tokenize(list(texts)).to(device))

    return Clip(model.encode_image, encode_texts, preprocessing, dtype=dtype, device=device)


def _preprocessing(folder: Path, size: int) -> Preprocessing:
    path = folder / "preprocessor_config.json"
    values = read_json(path)
    # Numbers of PIL.Image.Resampling.
    modes = {2: "bilinear", 3: "bicubic"}
    sides = values.get("size") or {}
    try:
        mean, std = reals(values, "image_mean", 3), reals(values, "image_std", 3)
        if std is not None and min(std) <= 0:
            raise ValueError(f"image_std must be positive, got {std}")
        return Preprocessing(
            size,
            mean or (0.48145466, 0.4578275, 0.40821073),
            std or (0.26862954, 0.26130258, 0.27577711),
            modes.get(int(real(values, "resample", 3)), "bicubic"),
            squash=isinstance(sides, dict) and "height" in sides,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _unit(features: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Features of unit length. Raises NotFinite where they are not finite, or all 0."""
    check_finite(f"CLIP's {kind} features", features, dtype)
    if not bool(features.detach().any(-1).all()):
        raise NotFinite(f"CLIP's {kind} features must have a direction, got only zeros")
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
