"""LoRA: small changes of the linear layers and convolutions of a model, from files of any trainer.

    layer(x) + scale * alpha / rank * up(down(x))      down: to rank channels, up: from them

Names in files are those of diffusers, of PEFT, or of kohya's scripts, which for XL count the UNet's
blocks as the original implementation does. What a file holds beyond LoRA is refused.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685; rsLoRA,
whose scale is alpha / sqrt(rank): Kalajdzievski, arXiv 2312.03732.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from stal.checked_json import loads, number, read_json, shown, typed
from stal.finite import check_finite
from stal.model.checkpoint import Components
from stal.model.tensors import load_safetensors, weight_files
from stal.model.unet import UNet

_Module = TypeVar("_Module", bound=nn.Module)

PARTS = ("unet", "text_encoder", "text_encoder_2")
_DOWN = ("lora_A", "lora_down", "lora.down", "lora_linear_layer.down")
_UP = ("lora_B", "lora_up", "lora.up", "lora_linear_layer.up")
_KEY = re.compile(rf"(.+?)[._]({'|'.join(map(re.escape, (*_DOWN, *_UP)))})(?:\.default)?\.weight")
_ALPHA = re.compile(r"(.+?)(?:\.lora|\.lora_linear_layer)?\.alpha")
# What is not LoRA, by a part of its keys.
_OTHERS = {
    **dict.fromkeys(("dora_scale", "lora_magnitude_vector"), "DoRA"),
    **dict.fromkeys(("hada_w", "hada_t"), "LoHa"),
    **dict.fromkeys(("lokr_w", "lokr_t"), "LoKr"),
    "lora_mid": "LoCon with a core",
    "oft_": "OFT",
}
# The original implementation's names within a resnet.
_OF_RESNETS = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


class Adapted(nn.Module):
    """A linear layer or convolution, or another such, with a LoRA on it: layer(x) + up(down(x)).

    Args:
        layer: which keeps its weights.
        down: (rank, in, ...), as the layer's weight but for rank.
        up: (out, rank, 1, 1), of a linear layer (out, rank), with the scale.
    """

    layer: nn.Module
    down: Tensor
    up: Tensor

    def __init__(self, layer: nn.Module, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("down", down)
        self.register_buffer("up", up)

    def forward(self, x: Tensor) -> Tensor:
        out, plain = self.layer(x), cast(Any, _plain(self))
        if isinstance(plain, nn.Conv2d):
            inner = F.conv2d(x, self.down, stride=plain.stride, padding=plain.padding)
            return cast(Tensor, out + F.conv2d(inner, self.up))
        return cast(Tensor, out + F.linear(F.linear(x, self.down), self.up))


def _plain(layer: nn.Module) -> nn.Module:
    while isinstance(layer, Adapted):
        layer = layer.layer
    return layer


@dataclass
class _Pair:
    """What a file says of one layer. name: the file's."""

    name: str
    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None


def adapted(components: Components, source: str | Path, *, scale: float) -> Components:
    """The networks with a LoRA on them; they share all weights with those that are given.

    Args:
        components: which stay as they are.
        source: a safetensors file, or a folder as diffusers (pytorch_lora_weights.safetensors) or
            PEFT (adapter_model.safetensors and adapter_config.json) save it.
        scale: multiplies what the LoRA adds; 0 adds nothing.

    Raises:
        ValueError: no such file, keys that are no LoRA's or of layers that the networks do not
            have, or tensors that do not go with their layer.
        NotImplementedError: another kind of adapter.
    """
    if not math.isfinite(number(scale, "scale")):
        raise ValueError(f"scale must be finite, got {scale}")
    source = Path(source)
    is_peft = (source / "adapter_config.json").is_file()
    name = "adapter_model" if is_peft else "pytorch_lora_weights"
    files = weight_files(source, name)
    tensors = load_safetensors(source, name=name)
    places, found = _places(components), dict[tuple[str, str], _Pair]()
    for layer, pair in _pairs(tensors, source).items():
        if layer not in places:
            raise ValueError(
                f"{source} must be of layers that the model has, got {shown(layer)}: it was trained"
                " for another model"
            )
        found[places[layer]] = pair
    configs = _configs(read_json(source / "adapter_config.json") if is_peft else None, files)
    changed: dict[str, Any] = {}
    for part in dict.fromkeys(part for part, _ in found):
        network = changed[part] = _shared(getattr(components, part))
        for (of, path), pair in found.items():
            if of == part:
                layer = network.get_submodule(path)
                strength = float(scale) * _strength(pair, path, configs.get(part, {}), source)
                network.set_submodule(path, _on(layer, pair, strength, source))
    return replace(components, **changed)


def _shared(network: _Module) -> _Module:
    """A copy whose tensors are those of the network: what is in the memo is not copied."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def _pairs(tensors: Mapping[str, Tensor], source: Path) -> dict[str, _Pair]:
    """By the file's name of a layer, what is on it; each with both halves."""
    pairs: dict[str, _Pair] = {}
    for key, tensor in tensors.items():
        if match := _KEY.fullmatch(key):
            pair = pairs.setdefault(_layer(match[1]), _Pair(match[1]))
            if match[2] in _DOWN:
                pair.down = tensor
            else:
                pair.up = tensor
        elif (match := _ALPHA.fullmatch(key)) and tensor.numel() == 1:
            pairs.setdefault(_layer(match[1]), _Pair(match[1])).alpha = tensor.item()
        else:
            kinds = [kind for part, kind in _OTHERS.items() if part in key]
            if kinds:
                raise NotImplementedError(
                    f"{source} must be a LoRA, got {shown(key)} of {kinds[0]}"
                )
            raise ValueError(
                f"{source} must hold LoRAs of linear layers and convolutions alone, got "
                f"{shown(key)}"
            )
    if not pairs:
        raise ValueError(f"{source} must hold a LoRA, got no tensors")
    for pair in pairs.values():
        if pair.down is None or pair.up is None:
            raise ValueError(f"{source} must hold both halves of each LoRA, got {shown(pair.name)}")
    return pairs


def _layer(name: str) -> str:
    """Without the processor that old versions of diffusers had LoRAs on."""
    before, processor, after = name.rpartition(".processor.")
    return f"{before}.{after}{'.0' * (after == 'to_out')}" if processor else name


def _places(components: Components) -> dict[str, tuple[str, str]]:
    """Network and path of each layer that a LoRA may be on, by every name of it in files."""
    places: dict[str, tuple[str, str]] = {}
    for part in PARTS:
        network = getattr(components, part)
        if network is not None:
            for path in _paths(network):
                for name in _names(part, path, network):
                    places[name] = part, path
    return places


def _paths(network: nn.Module) -> list[str]:
    inner = {each.layer for each in network.modules() if isinstance(each, Adapted)}
    return [
        path
        for path, each in network.named_modules()
        if isinstance(each, nn.Linear | nn.Conv2d | Adapted) and each not in inner
    ]


def _names(part: str, path: str, network: nn.Module) -> Iterable[str]:
    if isinstance(network, UNet):
        yield from (path, f"unet.{path}", f"base_model.model.{path}")
        for each in (path, *_original(path, network)):
            yield f"lora_unet_{each.replace('.', '_')}"
        return
    # transformers had everything in text_model before version 5.
    bare = path.removeprefix("text_model.")
    for each in (bare, f"text_model.{bare}"):
        yield f"{part}.{each}"
        of_kohya = ("te", "te1") if part == "text_encoder" else ("te2",)
        yield from (f"lora_{te}_{each.replace('.', '_')}" for te in of_kohya)
        if part == "text_encoder":
            yield f"base_model.model.{each}"


def _original(path: str, unet: UNet) -> list[str]:
    """The original implementation's name for a path of the UNet, if it has one."""
    names = _original_blocks(unet)
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        head = names.get(".".join(parts[:count]))
        if head is not None:
            return [".".join([head, *(_OF_RESNETS.get(each, each) for each in parts[count:])])]
    return []


def _original_blocks(unet: UNet) -> dict[str, str]:
    names = {"conv_in": "input_blocks.0.0", "conv_out": "out.2"}
    for i, theirs in ((1, 0), (2, 2)):
        names[f"time_embedding.linear_{i}"] = f"time_embed.{theirs}"
        names[f"add_embedding.linear_{i}"] = f"label_emb.0.{theirs}"

    def add(ours: str, theirs: str, block: Any, first: int) -> int:
        """Names what a level is made of; returns the number of what follows it."""
        for i in range(len(block.resnets)):
            names[f"{ours}.resnets.{i}"] = f"{theirs}.{first + i}.0"
            names[f"{ours}.attentions.{i}"] = f"{theirs}.{first + i}.1"
        return first + len(block.resnets)

    count = 1
    for level, block in enumerate(cast(Any, unet.down_blocks)):
        count = add(f"down_blocks.{level}", "input_blocks", block, count)
        if hasattr(block, "downsamplers"):
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{count}.0.op"
            count += 1
    names["mid_block.resnets.0"] = "middle_block.0"
    names["mid_block.attentions.0"] = "middle_block.1"
    names["mid_block.resnets.1"] = "middle_block.2"
    count = 0
    for level, block in enumerate(cast(Any, unet.up_blocks)):
        count = add(f"up_blocks.{level}", "output_blocks", block, count)
        if hasattr(block, "upsamplers"):
            last = 1 + (len(block.attentions) > 0)
            names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{count - 1}.{last}.conv"
    return names


def _configs(of_peft: Mapping[str, Any] | None, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """PEFT's settings of the LoRAs of each network, as far as anything says them."""
    if of_peft is not None:
        return {part: dict(of_peft) for part in PARTS}
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get("lora_adapter_metadata", "{}")
        record = typed(loads(text), dict, f"lora_adapter_metadata of {file}")
        for key, value in record.items():
            part, _, name = key.partition(".")
            found.setdefault(part, {})[name] = value
    return found


def _strength(pair: _Pair, path: str, config: Mapping[str, Any], source: Path) -> float:
    """alpha / rank, or what PEFT's settings have in its place."""
    rank = len(cast(Tensor, pair.down))
    if config.get("use_dora"):
        raise NotImplementedError(f"{source} must be a LoRA, got one with use_dora")
    alpha = pair.alpha
    if alpha is None and "lora_alpha" in config:
        alpha = number(config["lora_alpha"], f"lora_alpha of {source}")
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if path == pattern or path.endswith(f".{pattern}"):
                alpha = number(value, f"alpha_pattern of {source}")
    if alpha is None:
        return 1.0
    if not math.isfinite(alpha):
        raise ValueError(f"{source} must have finite alphas, got {alpha} at {shown(pair.name)}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _on(layer: nn.Module, pair: _Pair, strength: float, source: Path) -> Adapted:
    """The layer with a LoRA on it."""
    weight = cast(Tensor, _plain(layer).weight)
    down, up = (_of_kind(cast(Tensor, half), weight) for half in (pair.down, pair.up))
    rank = len(down)
    wanted = (rank, *weight.shape[1:]), (len(weight), rank, *[1] * (weight.ndim - 2))
    if rank == 0 or (down.shape, up.shape) != wanted:
        got = f"{tuple(down.shape)} and {tuple(up.shape)} at {shown(pair.name)}"
        rule = f"(rank, {', '.join(map(str, weight.shape[1:]))}) and ({len(weight)}, rank)"
        raise ValueError(f"{source} must have a LoRA of {rule} there, got {got}")
    halves = (half.to(weight) for half in (down, up.float() * strength))
    return Adapted(layer, *(check_finite(f"{source}", half, weight.dtype) for half in halves))


def _of_kind(half: Tensor, weight: Tensor) -> Tensor:
    """(a, b) as (a, b, 1, 1) where the weight is a convolution's, and the other way round."""
    if half.ndim == 2 and weight.ndim == 4:
        return half[:, :, None, None]
    if half.ndim == 4 and weight.ndim == 2 and half.shape[2:] == (1, 1):
        return half[:, :, 0, 0]
    return half
