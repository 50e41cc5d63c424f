"""What cannot be taught regions, said by name before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from stal.integrations.diffusers.models import MODELS, Row

# Where pipelines keep what denoises.
_NAMES = ("unet", "transformer", "transformer_2")
# Hooks that move or cast weights and leave attention alone.
_HARMLESS = frozenset(
    {
        "group_offloading",
        "layer_execution_tracker",
        "lazy_prefetch_group_offloading",
        "lazy_leafs",
        "layerwise_casting",
        "peft_autocast_disable",
    }
)
# The hook of a denoiser that has regions.
HOOK = "stal_regions"
# Their pixels attend to text and pixels at once, so that regions are another kind of attention.
_JOINT = (
    "AuraFlow",
    "Bria",
    "Chroma",
    "CogVideoX",
    "CogView3Plus",
    "CogView4",
    "Flux",
    "HiDream",
    "HunyuanVideo",
    "Lumina2",
    "Mochi",
    "OmniGen",
    "QwenImage",
    "SD3",
    "ZImage",
)


def denoisers_of(pipe: Any) -> list[tuple[nn.Module, Row]]:
    """The denoisers of a pipeline with their rows, out of torch.compile's wrappers.

    Raises:
        NotImplementedError: there is none, or one without a row or that its row refuses.
    """
    found = []
    for name in _NAMES:
        module = getattr(pipe, name, None)
        if module is None:
            continue
        module = getattr(module, "_orig_mod", module)
        model = next(
            (MODELS[c.__name__] for c in type(module).__mro__ if c.__name__ in MODELS), None
        )
        if model is None:
            kind = type(module).__name__
            joint = kind.startswith(_JOINT)
            why = ", whose attention is over text and pixels together: use one of these"
            raise NotImplementedError(
                f"pipe must have a denoiser of {', '.join(MODELS)}, got {kind} as {name}"
                f"{why if joint else ''}"
            )
        reason = model.refused(module)
        if reason:
            raise NotImplementedError(reason)
        found.append((module, model))
    if not found:
        raise NotImplementedError(
            f"pipe must be a pipeline of diffusers with {' or '.join(_NAMES)}, got"
            f" {type(pipe).__name__}"
        )
    return found


def check_pipe(pipe: Any) -> list[tuple[nn.Module, Row]]:
    """The denoisers of a pipeline with their rows, each of which can be taught regions.

    One that has regions is passed over: its processors are theirs.

    Raises:
        NotImplementedError: as `denoisers_of` and `attention_of`.
    """
    found = denoisers_of(pipe)
    for denoiser, model in found:
        registry = getattr(denoiser, "_diffusers_hook", None)
        if registry is None or registry.get_hook(HOOK) is None:
            attention_of(denoiser, model)
    return found


def attention_of(denoiser: nn.Module, model: Row) -> list[tuple[str, Any]]:
    """The modules of a denoiser that have a processor and attend to the text, with their names.

    Raises:
        NotImplementedError: as `check_denoiser` and `check_processor`.
    """
    everything = list(denoiser.named_modules())
    check_denoiser(denoiser, everything)
    found = [
        (name, module)
        for name, module in everything
        # Of the class: a module looks for what it lacks in three dictionaries.
        if hasattr(type(module), "set_processor") and model.is_cross_attention(name, module)
    ]
    for name, module in found:
        check_processor(name, module, model)
    return found


def check_denoiser(denoiser: Any, modules: Sequence[tuple[str, nn.Module]]) -> None:
    """Raises NotImplementedError if something skips, caches or splits attention.

    modules: all of the denoiser, by name.
    """
    if getattr(denoiser, "_parallel_config", None) is not None:
        raise NotImplementedError(
            "pipe must run on one device, got context or tensor parallelism: load the denoiser"
            " without parallel_config"
        )
    for name, module in modules:
        registry = module.__dict__.get("_diffusers_hook")
        strange = sorted(set(registry.hooks) - _HARMLESS) if registry is not None else []
        if strange:
            raise NotImplementedError(
                f"pipe must compute attention in every call, got the hook {strange[0]} on"
                f" {name or type(denoiser).__name__}: call disable_cache() or remove the hook"
            )


def check_processor(name: str, module: Any, model: Row) -> None:
    """Raises NotImplementedError if a module's processor computes something else than the row's."""
    processor = type(module.get_processor()).__name__
    # `Attention` says that it is fused also after unfuse_qkv_projections(); its processor decides.
    fused = getattr(module, "fused_projections", False) and hasattr(module, "unfuse_projections")
    if fused or processor.startswith("Fused"):
        raise NotImplementedError(
            f"pipe must have its projections apart, got fused ones in {name}: call"
            " unfuse_qkv_projections()"
        )
    if processor.startswith("Sliced"):
        raise NotImplementedError(
            f"pipe must not slice attention, got {processor} in {name}: call"
            " disable_attention_slicing(); one call of the op needs less memory"
        )
    if "AddedKV" in processor:
        raise NotImplementedError(
            f"pipe must have cross-attention to the text alone, got {processor} in {name}, as in"
            " DeepFloyd IF and Kandinsky 2.2, whose pixels attend to text and pixels together"
        )
    if processor not in model.processors:
        known = ", ".join(sorted(model.processors))
        plain = "AttnProcessor2_0"
        other = f"set {plain}()" if plain in model.processors else "load the denoiser anew"
        raise NotImplementedError(
            f"pipe must have attention processors of {known}, got {processor} in {name}: remove"
            f" what set it, or {other}"
        )
