"""Regions in a UNet of ComfyUI: replacements of attn2."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from stal.integrations.comfyui.layers import Layer, heads_apart
from stal.integrations.comfyui.regional import Regional

# (input | middle | output, block, transformer)
Key = tuple[str, int, int]
Replacement = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]

_PATH = re.compile(r"(\w+)_blocks?\.(\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)\.attn2")


def attend_in_replacements(
    model: Any, state: Regional, layers: Mapping[str, nn.Module]
) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Puts a replacement on each layer of a ModelPatcher.

    One that is there computes the attention to the whole prompt; local prompts are added.

    Returns:
        `Regional.check`.
    """
    options = model.model_options.get("transformer_options", {})
    before = dict(options.get("patches_replace", {}).get("attn2", {}))
    ours: dict[Key, Replacement] = {}
    for path, module in layers.items():
        key = _key_of(path)
        state.layers[key] = Layer()
        previous = before.get(key, before.get(key[:2]))
        ours[key] = _replacement(state, state.layers[key], module, previous)
        model.set_model_attn2_replace(ours[key], *key)

    def check(options: dict[str, Any], objects: dict[str, Any]) -> None:
        now = options.get("patches_replace", {}).get("attn2", {})
        for key in {**ours, **now}:
            if now.get(key) is not ours.get(key, before.get(key)):
                raise ValueError(
                    "model must keep the attention of Spatial-temporal attention, got a"
                    f" replacement of attn2 from another node at {key}: put that node before"
                    " Spatial-temporal attention, or take one of them out"
                )

    return check


def _key_of(path: str) -> Key:
    found = _PATH.fullmatch(path)
    assert found is not None
    name, block, transformer = found.groups()
    # The middle block's number in ComfyUI's options is not that of its module.
    return name, 0 if name == "middle" else int(block), int(transformer)


def _replacement(
    state: Regional, layer: Layer, module: Any, previous: Replacement | None
) -> Replacement:
    """A function: ComfyUI copies objects in a model's options, and what they refer to."""

    def replace(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        heads = options["n_heads"]

        def own() -> Tensor:
            if previous is not None:
                return previous(q, k, v, options)
            from comfy.ldm.modules.attention import optimized_attention

            precision = options.get("attn_precision")
            found: Tensor = optimized_attention(
                q, k, v, heads, attn_precision=precision, transformer_options=options
            )
            return found

        def project(prompts: Tensor) -> tuple[Tensor, Tensor]:
            key, value = (heads_apart(to(prompts), heads) for to in (module.to_k, module.to_v))
            return key, value

        call = state.call
        if not call.acts:
            return own()
        height, width = options["activations_shape"][-2:]
        chained = previous is not None or "optimized_attention_override" in options
        return layer(
            call,
            (1, height, width),
            *(heads_apart(each, heads) for each in (q, k, v)),
            local=layer.local(call.run, project, may_change=state.weights_may_change),
            own=own if chained else None,
        )

    return replace
