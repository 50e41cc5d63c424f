"""The adapters of a pipeline, as PEFT keeps them, and a gate before what one of them adds."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from stal.checked_json import short
from stal.integrations.diffusers.refusals import denoisers_of

# From phrases of a layout to adapters' names; of several prompts a list with one for each.
Loras: TypeAlias = "Mapping[str, str | Sequence[str]]"
LorasOf: TypeAlias = "Loras | Sequence[Loras | None] | None"

_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
# Layers of PEFT that add what `lora_B` gives to nothing that has pixels.
_STRANGE = frozenset({"Embedding", "MultiheadAttention", "ParamWrapper"})


def adapters_of(given: Loras | None, phrases: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The adapters of each phrase of a layout.

    Raises:
        ValueError: a phrase that the layout does not have, or no name of an adapter.
    """
    if given is None:
        return ((),) * len(phrases)
    if not isinstance(given, Mapping):
        raise ValueError(f"loras must map phrases to adapters, got {short(given)}")
    found: dict[Any, tuple[str, ...]] = {}
    for phrase, value in given.items():
        if phrase not in phrases:
            known = ", ".join(map(short, dict.fromkeys(phrases))) or "which has none"
            raise ValueError(
                f"loras must be of phrases of the layout, {known}, got {short(phrase)}"
            )
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, Sequence) or not all(isinstance(n, str) and n for n in names):
            raise ValueError(
                f"loras of {short(phrase)} must be an adapter's name or a list of such, got"
                f" {short(value)}"
            )
        found[phrase] = tuple(dict.fromkeys(names))
    return tuple(found.get(phrase, ()) for phrase in phrases)


def check_adapters(pipe: Any, names: Collection[str]) -> None:
    """Raises if a pipeline does not have these adapters, or one cannot act in a region alone.

    Raises:
        ValueError: PEFT is not installed, an adapter is not loaded, or all are disabled.
        NotImplementedError: an adapter is fused, is no LoRA or DoRA, acts on motion modules, or
            the denoiser works on parts of the pixels at a time.
    """
    if not names:
        return
    if importlib.util.find_spec("peft") is None:
        raise ValueError("peft must be installed for loras: pip install peft")
    denoisers = [denoiser for denoiser, _ in denoisers_of(pipe)]
    layers = [each for part in (*denoisers, *_encoders_of(pipe)) for each in tuner_layers(part)]
    loaded = sorted({name for _, layer in layers for name in _names_in(layer)})
    for name in names:
        if name not in loaded:
            known = ", ".join(map(short, loaded)) or "of which there are none"
            raise ValueError(
                f"loras must name adapters that are loaded, {known}, got {short(name)}: call"
                f" load_lora_weights(..., adapter_name={short(name)})"
            )
    for path, layer in layers:
        for name in set(names) & _names_in(layer):
            _check_layer(path, layer, name)
    for denoiser in denoisers:
        for path, module in denoiser.named_modules():
            if getattr(module, "_chunk_size", None) is not None:
                raise NotImplementedError(
                    f"pipe must not split feed-forward layers with loras, got {path}: call"
                    " disable_forward_chunking()"
                )


def _check_layer(path: str, layer: Any, name: str) -> None:
    check_acts(path, layer, name)
    called = f"{short(name)} on {path}"
    variant = getattr(layer, "lora_variant", {}).get(name)
    is_dora = name in getattr(layer, "lora_magnitude_vector", {})
    if (
        name not in getattr(layer, "lora_B", {})
        or type(layer).__name__ in _STRANGE
        or (variant is not None and not is_dora)
    ):
        kind = type(layer if variant is None else variant).__name__
        raise NotImplementedError(
            "loras must be LoRA or DoRA of linear layers and convolutions, whose output is known"
            f" pixel by pixel, got {called}, a {kind}: call set_adapters() for the whole picture"
        )
    if "motion_modules" in path.split("."):
        raise NotImplementedError(
            f"loras must not be of motion modules, whose batch is the pixels, got {called}: call"
            " set_adapters() for the whole picture"
        )


def check_acts(path: str, layer: Any, name: str) -> None:
    """Raises unless a layer adds what an adapter gives; asked of each layer in each call."""
    if not layer.merged_adapters and not layer.disable_adapters:
        return
    called = f"{short(name)} on {path}"
    if layer.merged_adapters:
        fused = ", ".join(map(short, layer.merged_adapters))
        raise NotImplementedError(
            f"loras must be of adapters on weights without fused ones, got {called}, into which"
            f" {fused} is fused: call unfuse_lora()"
        )
    raise ValueError(f"pipe must have its adapters enabled, got {called}: call enable_lora()")


def tuner_layers(module: nn.Module) -> list[tuple[str, Any]]:
    """The modules with adapters within one, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, m) for name, m in module.named_modules() if isinstance(m, BaseTunerLayer)]


def has_adapter(layer: Any, name: str) -> bool:
    """Whether a layer of PEFT has an adapter of this name."""
    return name in _names_in(layer)


def _names_in(layer: Any) -> set[str]:
    """The adapters that a layer of PEFT has."""
    return {name for part in layer.adapter_layer_names for name in getattr(layer, part, ())}


def _encoders_of(pipe: Any) -> list[nn.Module]:
    found = (getattr(pipe, name, None) for name in _ENCODERS)
    return [module for module in found if isinstance(module, nn.Module)]


class Gate:
    """Takes the place of a module's forward and lets through a share of what it gives.

    The module is the last one of an adapter on a layer: `lora_B`, or what holds DoRA's magnitudes.
    """

    def __init__(self, layer: Any, adapter: str) -> None:
        magnitudes = getattr(layer, "lora_magnitude_vector", {})
        self.module: Any = (magnitudes if adapter in magnitudes else layer.lora_B)[adapter]
        self.adapter, self.forward = adapter, self.module.forward
        self._had = "forward" in self.module.__dict__
        # A method, since a module's forward is one.
        self._put = self._through

    def _through(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.share(self.forward(*args, **kwargs))

    def share(self, out: Tensor) -> Tensor:
        """What of the module's output acts."""
        raise NotImplementedError

    def put_on(self) -> None:
        self.module.forward = self._put

    def take_off(self) -> None:
        """The forward that was there, unless somebody has put another one before this."""
        if self.module.__dict__.get("forward") is not self._put:
            return
        if self._had:
            self.module.forward = self.forward
        else:
            del self.module.forward


class Muted(Gate):
    """Lets nothing through: in text encoders, which know no regions."""

    lifted = False

    def share(self, out: Tensor) -> Tensor:
        return out if self.lifted else torch.zeros_like(out)


def muted(pipe: Any, adapters: Sequence[str]) -> list[Muted]:
    """Gates for adapters in a pipeline's text encoders, not yet put on.

    There are none where another denoiser of the pipeline has brought them.
    """
    gates = [
        Muted(layer, name)
        for encoder in _encoders_of(pipe)
        for _, layer in tuner_layers(encoder)
        for name in adapters
        if has_adapter(layer, name)
    ]
    return [gate for gate in gates if _mutes(gate.module) is None]


def _mutes(module: nn.Module) -> Muted | None:
    """The gate that a module's forward is, if it is one of a text encoder."""
    gate = getattr(module.__dict__.get("forward"), "__self__", None)
    return gate if isinstance(gate, Muted) else None


@contextmanager
def speaking(pipe: Any, every: Sequence[str], adapters: Sequence[str]) -> Iterator[None]:
    """Within, of the adapters of regions these act in the text encoders and no other.

    every: the adapters of all regions; what else is active stays so.
    """
    if not every:
        yield
        return
    kept, lifted = [], []
    for encoder in _encoders_of(pipe):
        for _, layer in tuner_layers(encoder):
            kept.append((layer, layer._active_adapter))
            others = [name for name in layer.active_adapters if name not in every]
            # Not through set_adapter, which also says which weights learn.
            layer._active_adapter = [*others, *adapters]
        for module in encoder.modules():
            gate = _mutes(module)
            if gate is not None and gate.adapter in adapters:
                gate.lifted = True
                lifted.append(gate)
    try:
        yield
    finally:
        for layer, active in kept:
            layer._active_adapter = active
        for gate in lifted:
            gate.lifted = False
