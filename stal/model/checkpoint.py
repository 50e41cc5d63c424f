"""Reading diffusers folders: safetensors only, every weight accounted for, errors in one sentence.

stable-diffusion/
    model_index.json                        the class of the pipeline and of each part
    unet/, vae/                             config.json, diffusion_pytorch_model.safetensors
    text_encoder/, text_encoder_2/ (XL)     config.json, model.safetensors
    tokenizer/, tokenizer_2/ (XL)
    scheduler/scheduler_config.json
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from stal.checked_json import as_whole, first_line, read_json, short, shown
from stal.config_values import check_layers, flag
from stal.model.part_configs import autoencoder_layers, autoencoder_values, built, text_values
from stal.model.tensors import Weights, refuse_pickle
from stal.model.unet import UNet
from stal.model.unet_config import UNetConfig
from stal.torch_state import undisturbed

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

_T = TypeVar("_T")

# The parts of each pipeline, and the class that is implemented; None where only files are read.
SD_PARTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": None,
    "scheduler": None,
}
XL_PARTS = {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": None}
PIPELINES: dict[str, dict[str, str | None]] = {
    "StableDiffusionPipeline": SD_PARTS,
    "StableDiffusionXLPipeline": SD_PARTS | XL_PARTS,
}


@dataclass(frozen=True)
class Components:
    """A diffusers folder in memory: modules in evaluation mode, their weights without gradient."""

    pipeline_class: str  # "StableDiffusionPipeline" or "StableDiffusionXLPipeline"
    unet: UNet
    vae: Any  # diffusers.AutoencoderKL, which has no types
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    tokenizer_2: CLIPTokenizer | None  # XL only, as text_encoder_2
    text_encoder_2: CLIPTextModelWithProjection | None
    scheduler_config: dict[str, Any]
    # Of XL: a negative prompt that is not given is encoded as zeros, not as the empty prompt.
    force_zeros_for_empty_prompt: bool


def resolve(name_or_folder: str | Path) -> Path:
    """The local folder of a model: an existing folder as it is, otherwise a hub name "owner/model".

    A hub name is downloaded into huggingface_hub's cache, or found there: weights in safetensors
    (the full-precision ones, or else those of a variant), JSON and text files of the parts that
    are used.

    Raises ValueError if it is neither, OSError if the hub does not deliver.
    """
    name, path = str(name_or_folder), Path(name_or_folder).expanduser()
    if name and path.is_dir():
        return path
    if path.is_file():
        refuse_pickle([path], path)
        fix = "convert it with diffusers' from_single_file(file).save_pretrained(folder)"
        raise ValueError(f"model must be a diffusers folder, got the file {path}: {fix}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        rule = "be an existing folder or a hub name owner/model"
        raise ValueError(f"model must {rule}, got {name!r}")

    from huggingface_hub import snapshot_download

    def download(allow: Iterable[str], ignore: Iterable[str]) -> Path:
        try:
            return Path(snapshot_download(name, allow_patterns=[*allow], ignore_patterns=[*ignore]))
        except Exception as error:  # the hub's own, and those of two HTTP libraries
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise OSError(f"{name!r} is no local folder, and the hub gave: {reason}") from error

    parts = SD_PARTS | XL_PARTS
    files = ["model_index.json"]
    files += [f"{part}/*.{suffix}" for part in parts for suffix in ("safetensors", "json", "txt")]
    folder = download(files, ["*.fp16*", "*.bf16*", "*.non_ema*"])
    models = [part for part in parts if (folder / part / "config.json").is_file()]
    for variant in (".fp16", ".bf16", ""):
        lacking = [part for part in models if not any((folder / part).glob("*.safetensors"))]
        if not lacking:
            break
        kinds = ("safetensors", "json")
        wanted = [f"{part}/*{variant}*.{kind}" for part in lacking for kind in kinds]
        folder = download(wanted, ["*.non_ema*"] if variant else [])
    return folder


@undisturbed()
def load_components(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Components:
    """Reads a Stable Diffusion 1.x, 2.x or XL folder; `resolve` gives it for a hub name.

    Every floating-point weight is converted to dtype, whatever the files hold. Weights are frozen:
    gradients reach inputs and the attention argument, not them.

    Raises ValueError if the folder, or a part of it, is not what this package implements.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder = Path(folder)
    index = read_model_index(folder)
    is_xl = "text_encoder_2" in PIPELINES[index["_class_name"]]
    text_encoder_2 = tokenizer_2 = None
    if is_xl:
        tokenizer_2 = load_tokenizer(folder / "tokenizer_2")
        text_encoder_2 = load_text_encoder(
            folder / "text_encoder_2", CLIPTextModelWithProjection, dtype=dtype, device=device
        )
        _limit(tokenizer_2, text_encoder_2)
    network = load_unet(folder / "unet", dtype=dtype, device=device)
    text_encoder = load_text_encoder(
        folder / "text_encoder", CLIPTextModel, dtype=dtype, device=device
    )
    tokenizer = load_tokenizer(folder / "tokenizer")
    _limit(tokenizer, text_encoder)
    return Components(
        pipeline_class=index["_class_name"],
        unet=network.requires_grad_(False),
        vae=_load_vae(folder / "vae", dtype, device),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        tokenizer_2=tokenizer_2,
        text_encoder_2=text_encoder_2,
        scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json"),
        force_zeros_for_empty_prompt=is_xl and flag(index, "force_zeros_for_empty_prompt", True),
    )


def read_model_index(folder: str | Path) -> dict[str, Any]:
    """model_index.json of a folder whose pipeline, and every part of it, is implemented.

    Raises ValueError otherwise, naming what is not.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        is_part = (folder.parent / "model_index.json").is_file()
        hint = "; give the folder above it" if is_part else ""
        rule = "be a diffusers folder (one that holds model_index.json)"
        raise ValueError(f"model must {rule}, got {folder}{hint}")
    index = read_json(folder / "model_index.json")
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in PIPELINES:
        known, got = " or ".join(PIPELINES), shown(pipeline)
        raise ValueError(f"model must be a {known}, got {got} in {folder}")
    for part, class_name in PIPELINES[pipeline].items():
        entry = index.get(part)  # [library, class], or null
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found is None or found != (class_name or found):
            rule = f"be of class {class_name}" if class_name else "be present"
            got = short(entry)
            raise ValueError(f"{part} must {rule} in model_index.json of {folder}, got {got}")
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} must hold the folder {part}, which its index names")
    return index


@undisturbed()
def load_unet(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> UNet:
    """Reads config.json and the safetensors weights in the folder of a UNet, "unet" in diffusers'.

    In evaluation mode, trainable. Raises ValueError if the architecture is not implemented or the
    weights are not exactly its weights.
    """
    folder = Path(folder)
    config = _named(folder, UNetConfig.from_dict)
    weights = Weights.of(folder, dtype=dtype)
    check_layers(config.layers, len(weights.shapes), folder)
    with torch.device("meta"):
        unet = built(lambda: UNet(config), folder)
    weights.into(unet, device=device)
    return unet.eval()


def _named(folder: Path, read: Callable[[Mapping[str, Any]], _T]) -> _T:
    """What read makes of a part's config.json, whose folder its errors name."""
    config = read_json(folder / "config.json")
    try:
        return read(config)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error


def _load_vae(folder: Path, dtype: torch.dtype, device: str | torch.device) -> Any:
    from diffusers import AutoencoderKL

    values = _named(folder, autoencoder_values)
    weights = Weights.of(folder, dtype=dtype)
    check_layers(autoencoder_layers(values), len(weights.shapes), folder)
    with torch.device("meta"):
        vae: Any = built(lambda: AutoencoderKL(**values), folder)
    # Autoencoders of Stable Diffusion 1.x name the projections of their attention differently.
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    pattern = re.compile(r"\.(query|key|value|proj_attn)\.")
    weights.into(
        vae, device=device, rename=lambda key: pattern.sub(lambda m: f".{old[m[1]]}.", key)
    )
    return vae.eval().requires_grad_(False)


def load_text_encoder(
    folder: Path,
    model_class: Any,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Any:
    """A text encoder of `transformers`, in evaluation mode, its weights without gradient.

    transformers 5 saves `CLIPTextModel` without the prefix "text_model.", 4 with it. Raises
    ValueError if the folder holds no such encoder.
    """
    from transformers import CLIPTextConfig

    values = _named(folder, text_values)
    weights = Weights.of(folder, name="model", dtype=dtype)
    check_layers(values["num_hidden_layers"], len(weights.shapes), folder)
    with torch.device("meta"):
        model = built(lambda: model_class(CLIPTextConfig(**values)), folder)
    names, prefix = set(model.state_dict()), "text_model."

    def rename(key: str) -> str | None:
        if key.endswith("embeddings.position_ids"):  # a constant that transformers once saved
            return None
        spellings = (key, key.removeprefix(prefix), prefix + key)
        return next((s for s in spellings if s in names), key)

    weights.into(model, device=device, rename=rename)
    give_positions(model, device)
    return model.eval().requires_grad_(False)


def give_positions(model: nn.Module, device: str | torch.device) -> None:
    """Makes what `transformers` counts positions by: no weight, so still on the meta device."""
    for module in model.modules():
        old = getattr(module, "position_ids", None)
        if isinstance(old, Tensor):
            count = old.shape[-1]
            positions = torch.arange(count, dtype=torch.int64, device=device)
            module.position_ids = positions.expand(1, -1)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer, which pads with the end's mark where its files name nothing.

    Its model_max_length is what the files say, see `prompt_length`.
    Raises ValueError if the folder holds no such tokenizer.
    """
    from transformers import CLIPTokenizer

    # Without these transformers makes an empty vocabulary and says nothing.
    if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
        raise ValueError(f"{folder} must hold tokenizer.json or vocab.json, got neither")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever transformers and tokenizers make of a broken file
        got = first_line(error)
        raise ValueError(f"{folder} must hold a CLIP tokenizer, got {got}") from error
    if not isinstance(tokenizer.model_max_length, (int, float)):
        got = short(tokenizer.model_max_length)
        raise ValueError(f"model_max_length must be a number in {folder}, got {got}")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"{folder} must hold a tokenizer with an eos_token, got none")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _limit(tokenizer: CLIPTokenizer, encoder: Any) -> None:
    """Whoever reads a tokenizer's model_max_length finds one that makes sense."""
    positions = encoder.config.max_position_embeddings
    tokenizer.model_max_length = prompt_length(tokenizer, positions)


def prompt_length(tokenizer: Any, positions: int) -> int:
    """Tokens of a prompt: as many as the tokenizer says where it says a number that makes sense.

    Many say none, which transformers turns into 10^30, or more than the encoder has positions.
    """
    said = as_whole(tokenizer.model_max_length)
    # Between the marks of beginning and end there is a word.
    makes_sense = isinstance(said, int) and not isinstance(said, bool) and 3 <= said <= positions
    return said if makes_sense else positions
