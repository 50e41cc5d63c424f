"""Puts regions on a pipeline's attention modules, and takes them off again without a trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stal.caller import warn
from stal.checked_json import short
from stal.integrations.diffusers import ops  # noqa: F401  registers what compiled code calls
from stal.integrations.diffusers.adapters import LorasOf, check_adapters
from stal.integrations.diffusers.denoiser import Denoiser, room_of
from stal.integrations.diffusers.inputs import Inputs
from stal.integrations.diffusers.layers import Layer
from stal.integrations.diffusers.loras import RegionLoras
from stal.integrations.diffusers.models import IP_ADAPTERS, Row
from stal.integrations.diffusers.refusals import HOOK, attention_of, denoisers_of
from stal.integrations.diffusers.regions import (
    Dial,
    Embeddings,
    Regions,
    RegionsOf,
    WeightsOf,
    prepare,
)
from stal.weights import Rule


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
    canvas: tuple[float, float] | None = None,
    prompt_embeds: Embeddings | None = None,
    local_embeds: Embeddings | Sequence[Embeddings] | None = None,
    reference_embeds: Embeddings | list[Embeddings] | None = None,
    encode: Mapping[str, Any] | None = None,
) -> Within:
    """Within, the pipeline's pictures of `prompt` obey a layout; afterwards it is as before.

        with regional_attention(pipe, "a cat left of a dog"):
            image = pipe("a cat left of a dog", num_inference_steps=30).images[0]

    Args:
        pipe: a pipeline of diffusers whose denoiser has a row in `models.MODELS`.
        others: as in `prepare`.

    Returns:
        What `with` takes, again and again if need be; it gives the `Regions`.

    Raises:
        ValueError, NotImplementedError: where `with` begins, as in `prepare` and `enable`, before
            anything is changed.
    """
    prepared = partial(
        prepare,
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
        canvas=canvas,
        prompt_embeds=prompt_embeds,
        local_embeds=local_embeds,
        reference_embeds=reference_embeds,
        encode=encode,
    )
    return Within(pipe, prepared)


class Within(AbstractContextManager[Regions]):
    """A pipeline's regions for as long as `with` lasts.

    Args:
        pipe: the pipeline.
        prepared: gives them; called where `with` begins.
    """

    def __init__(self, pipe: Any, prepared: Callable[[], Regions]) -> None:
        self._pipe, self._prepared = pipe, prepared
        self._denoisers: list[nn.Module] = []
        self._entered = False

    def __enter__(self) -> Regions:
        self._entered = True
        denoisers = [denoiser for denoiser, _ in denoisers_of(self._pipe)]
        regions = self._prepared()
        enable(self._pipe, regions)
        self._denoisers = denoisers
        return regions

    def __exit__(self, *error: object) -> None:
        # Of these, whatever the pipeline has by now.
        _take_off(self._denoisers)

    def __del__(self) -> None:
        if not self._entered and not sys.is_finalizing():
            warn("regional_attention does nothing without `with`: use it, or prepare and enable")


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
    if not isinstance(regions, Regions):
        raise ValueError(f"regions must be what prepare gives, got {short(regions)}")
    check_adapters(pipe, regions.adapters)
    targets = []
    for denoiser, model in found:
        if _patched(denoiser) is not None:
            raise ValueError(
                "pipe must have no regions yet, got one that has: leave the inner context, or"
                " disable(pipe) first"
            )
        targets.append((denoiser, model, attention_of(denoiser, model)))
    room = room_of(pipe, [denoiser for denoiser, _, _ in targets])
    for denoiser, model, modules in targets:
        _put_on(Denoiser(pipe, denoiser, model, regions, room=room), modules)


def disable(pipe: Any) -> None:
    """Puts back the processors that the pipeline had, the very same objects.

    A processor that somebody else has replaced meanwhile stays. Without regions nothing happens.
    """
    _take_off([denoiser for denoiser, _ in denoisers_of(pipe)])


def _put_on(state: Denoiser, modules: Sequence[tuple[str, Any]]) -> None:
    for _, module in modules:
        original = module.get_processor()
        kind = _kind_of(state.model, original)
        layer = Layer(state, module, kind.keys_values)
        state.processors.append((module, kind(layer, original)))
    names = [name for name, _ in modules]
    loras = RegionLoras(state, names) if state.regions.adapters else None
    hook = _hook_of(state, loras)
    from diffusers.hooks import HookRegistry

    HookRegistry.check_if_exists_or_initialize(state.module).register_hook(hook, HOOK)
    for module, processor in state.processors:
        module.set_processor(processor)
    if loras is not None:
        loras.put_on()


def _kind_of(model: Row, original: Any) -> Any:
    """The class that takes the place of a processor."""
    if type(original).__name__ not in IP_ADAPTERS:
        return model.processor
    from stal.integrations.diffusers.ip_adapter import RegionalIPAdapterProcessor

    return RegionalIPAdapterProcessor


def _take_off(denoisers: Sequence[nn.Module]) -> None:
    states = []
    for denoiser in denoisers:
        hook = _patched(denoiser)
        if hook is None:
            continue
        states.append(hook.denoiser)
        for module, processor in hook.denoiser.processors:
            if module.processor is processor:
                module.set_processor(processor.original)
        if hook.loras is not None:
            hook.loras.take_off()
        _remove_hook(denoiser)
    # At last, for a warning may be an error.
    for state in states:
        state.end_run()


def _hook_of(state: Denoiser, loras: RegionLoras | None) -> Any:
    from diffusers.hooks import ModelHook

    class RegionsHook(ModelHook):
        """Tells the state of each call of the denoiser. Traced by torch.compile."""

        def __init__(self) -> None:
            super().__init__()
            self.denoiser, self.loras = state, loras
            self.had_registry = "_diffusers_hook" in state.module.__dict__
            self.had_forward = "forward" in state.module.__dict__
            self.had_offload = hasattr(state.module, "_hf_hook")

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            if loras is not None and torch.compiler.is_compiling():
                loras.activate()
            begin_call(state, state.model.inputs(args, kwargs), _lora_scale(state.model, kwargs))
            return args, kwargs

    return RegionsHook()


def _lora_scale(model: Row, kwargs: Mapping[str, Any]) -> float:
    """What diffusers multiplies adapters by in a call."""
    given = kwargs.get(model.scales_adapters)
    return 1.0 if given is None else float(given.get("scale", 1.0))


def begin_call(state: Denoiser, inputs: Inputs, lora_scale: float) -> None:
    """Begins a call, also where torch.compile traces it."""
    timestep = inputs.timestep
    if not isinstance(timestep, Tensor):
        timestep = torch.tensor(timestep, dtype=torch.float32, device="cpu")
    if torch.compiler.is_compiling():
        begin = torch.ops.stal_diffusers.begin
        state.clock.step = begin(state.key, timestep, inputs.prompts, list(inputs.size), lora_scale)
    else:
        state.clock.step = state.begin(timestep, inputs.prompts, inputs.size)


def _patched(denoiser: nn.Module) -> Any:
    registry = getattr(denoiser, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(HOOK)


def _remove_hook(denoiser: Any) -> None:
    registry = denoiser._diffusers_hook
    hook, outer = registry.get_hook(HOOK), denoiser.forward
    registry.remove_hook(HOOK, recurse=False)
    if hasattr(denoiser, "_hf_hook") and not hook.had_offload:
        # accelerate has wrapped what it found, and calls it by this name.
        denoiser._old_forward, denoiser.forward = denoiser.forward, outer
        hook.had_forward = True
    if registry.hooks:
        return
    # As it was: with the forward of its class unless somebody, accelerate for one, had put another.
    if not hook.had_forward:
        denoiser.__dict__.pop("forward", None)
    if not hook.had_registry:
        del denoiser._diffusers_hook
