"""Puts regions on a pipeline's attention modules, and takes them off again without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stal.integrations.diffusers import ops  # noqa: F401  registers what compiled code calls
from stal.integrations.diffusers.adapters import LorasOf, check_adapters
from stal.integrations.diffusers.denoiser import Denoiser
from stal.integrations.diffusers.layers import Layer
from stal.integrations.diffusers.loras import RegionLoras
from stal.integrations.diffusers.models import Inputs, Model
from stal.integrations.diffusers.refusals import check_denoiser, check_processor, denoisers_of
from stal.integrations.diffusers.regions import (
    Dial,
    Embeddings,
    Regions,
    RegionsOf,
    WeightsOf,
    prepare,
)
from stal.weights import Rule

_HOOK = "stal_regions"


@contextmanager
def regional_attention(
    pipe: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    layout: RegionsOf = None,
    weights: WeightsOf = None,
    rule: Rule = "guidance",
    reference: str | None = None,
    background: float = 0.0,
    strength: Dial = 1.0,
    start: Dial = 0.0,
    stop: Dial = 1.0,
    loras: LorasOf = None,
    aspect: float | None = None,
    prompt_embeds: Embeddings | None = None,
    local_embeds: Embeddings | Sequence[Embeddings] | None = None,
    reference_embeds: Embeddings | None = None,
    encode: Mapping[str, Any] | None = None,
) -> Iterator[Regions]:
    """Within, the pipeline's pictures of `prompt` obey a layout; afterwards it is as before.

        with regional_attention(pipe, "a cat left of a dog"):
            image = pipe("a cat left of a dog", num_inference_steps=30).images[0]

    Args:
        pipe: a pipeline of diffusers whose denoiser has a row in `models.MODELS`.
        others: as in `prepare`.

    Raises:
        ValueError, NotImplementedError: as in `prepare` and `enable`, before anything is changed.
    """
    denoisers_of(pipe)
    regions = prepare(
        pipe,
        prompt,
        layout=layout,
        weights=weights,
        rule=rule,
        reference=reference,
        background=background,
        strength=strength,
        start=start,
        stop=stop,
        loras=loras,
        aspect=aspect,
        prompt_embeds=prompt_embeds,
        local_embeds=local_embeds,
        reference_embeds=reference_embeds,
        encode=encode,
    )
    enable(pipe, regions)
    try:
        yield regions
    finally:
        disable(pipe)


def enable(pipe: Any, regions: Regions) -> None:
    """Teaches a pipeline regions until `disable(pipe)`.

    Args:
        pipe: a pipeline of diffusers.
        regions: what `prepare` made for it; may be enabled again and again.

    Raises:
        ValueError: the pipeline has regions already.
        NotImplementedError: the denoiser has no row in the table, or something on it computes
            attention in a way that this does not know, or an adapter of the regions cannot act in
            them; the message names it. Nothing is changed.
    """
    found = denoisers_of(pipe)
    check_adapters(pipe, regions.adapters)
    plans = []
    for denoiser, model in found:
        check_denoiser(denoiser, model)
        if _patched(denoiser) is not None:
            raise ValueError(
                "pipe must have no regions yet, got one that has: leave the inner context, or"
                " disable(pipe) first"
            )
        modules = list(_cross_attention(denoiser, model))
        for name, module in modules:
            check_processor(name, module, model)
        plans.append((denoiser, model, modules))
    for denoiser, model, modules in plans:
        _put_on(Denoiser(pipe, denoiser, model, regions), modules)


def disable(pipe: Any) -> None:
    """Puts back the processors that the pipeline had, the very same objects.

    A processor that somebody else has replaced meanwhile stays. Without regions nothing happens.
    """
    for denoiser, _ in denoisers_of(pipe):
        hook = _patched(denoiser)
        if hook is None:
            continue
        for module, processor in hook.denoiser.processors:
            if module.processor is processor:
                module.set_processor(processor.original)
        if hook.loras is not None:
            hook.loras.take_off()
        _remove_hook(denoiser)


def _cross_attention(denoiser: nn.Module, model: Model) -> Iterator[tuple[str, Any]]:
    for name, module in denoiser.named_modules():
        has_processor = hasattr(module, "set_processor") and hasattr(module, "get_processor")
        if has_processor and model.is_cross_attention(name, module):
            yield name, module


def _put_on(state: Denoiser, modules: Sequence[tuple[str, Any]]) -> None:
    for _, module in modules:
        kind, original = state.model.processor, module.get_processor()
        layer = Layer(state, module, kind.keys_values, None)
        state.processors.append((module, kind(layer, original)))
    names = [name for name, _ in modules]
    loras = RegionLoras(state, names) if state.regions.adapters else None
    hook = _hook_of(state, loras)
    from diffusers.hooks import HookRegistry

    HookRegistry.check_if_exists_or_initialize(state.module).register_hook(hook, _HOOK)
    for module, processor in state.processors:
        module.set_processor(processor)
    if loras is not None:
        loras.put_on()


def _hook_of(state: Denoiser, loras: RegionLoras | None) -> Any:
    from diffusers.hooks import ModelHook

    class RegionsHook(ModelHook):
        """Tells the state of each call of the denoiser. Traced by torch.compile."""

        def __init__(self) -> None:
            super().__init__()
            self.denoiser, self.loras = state, loras

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            if loras is not None and torch.compiler.is_compiling():
                loras.activate()
            tell(state, state.model.inputs(args, kwargs))
            return args, kwargs

    return RegionsHook()


def tell(state: Denoiser, inputs: Inputs) -> None:
    """Begins a call, also where torch.compile traces it."""
    timestep = inputs.timestep
    if not isinstance(timestep, Tensor):
        timestep = torch.tensor(timestep, dtype=torch.float32, device="cpu")
    if torch.compiler.is_compiling():
        begin = torch.ops.stal_diffusers.begin
        state.clock.step = begin(state.key, timestep, inputs.prompts, list(inputs.size))
    else:
        state.clock.step = state.begin(timestep, inputs.prompts, inputs.size)


def _patched(denoiser: nn.Module) -> Any:
    registry = getattr(denoiser, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(_HOOK)


def _remove_hook(denoiser: Any) -> None:
    registry = denoiser._diffusers_hook
    registry.remove_hook(_HOOK, recurse=False)
    if not registry.hooks:
        # As it was: with no registry, and with the forward of its class.
        del denoiser._diffusers_hook
        denoiser.__dict__.pop("forward", None)
