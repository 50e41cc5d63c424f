"""Regions in a transformer of ComfyUI: an object patch on the forward of each cross-attention.

The forward stays the network's own. It is handed options in which the attention function is ours,
and it is asked for the keys and values of local prompts in the same way, so that what a network
does to them, such as normalising, need not be known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stal.integrations.comfyui.layers import Layer, heads_apart
from stal.integrations.comfyui.regional import Regional

_OVERRIDE = "optimized_attention_override"


def attend_in_forwards(
    model: Any, state: Regional, layers: Mapping[str, nn.Module]
) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Patches the forward of each layer of a ModelPatcher.

    Returns:
        `Regional.check`.
    """
    ours: dict[str, Callable[..., Tensor]] = {}
    for path, module in layers.items():
        name = f"diffusion_model.{path}.forward"
        state.layers[name] = Layer()
        forward = _Forward(state, state.layers[name], module, model.get_model_object(name))
        # A function, since a module's forward is one.
        ours[name] = forward.patched
        model.add_object_patch(name, ours[name])

    def check(options: dict[str, Any], objects: dict[str, Any]) -> None:
        for name, patch in ours.items():
            if objects.get(name) is not patch:
                raise ValueError(
                    "model must keep the attention of Spatial-temporal attention, got an object"
                    f" patch from another node on {name}: put that node before Spatial-temporal"
                    " attention, or take one of them out"
                )

    return check


class _Forward:
    """What takes the place of a cross-attention's forward.

    Args:
        state: the model's regions.
        layer: what this one attends to.
        module, original: the cross-attention, and the forward whose place this takes.
    """

    def __init__(
        self, state: Regional, layer: Layer, module: Any, original: Callable[..., Tensor]
    ) -> None:
        self.state, self.layer, self.original = state, layer, original
        self._has_picture = hasattr(module, "k_img")
        # Of the attention calls in one forward, the one to the text; those before are to a picture.
        self._text = 0

    def patched(self, x: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        call = self.state.call
        if not call.acts:
            return self.original(x, context, *args, **kwargs)
        options = kwargs.get("transformer_options")
        if options is None:
            raise NotImplementedError(
                "ComfyUI must hand transformer_options to the attention of this model, got a"
                " version that does not: update ComfyUI"
            )
        before, run = options.get(_OVERRIDE), call.run
        done = 0

        def project(prompts: Tensor) -> tuple[Tensor, Tensor]:
            return self._ask(prompts, x, context, args, kwargs)

        local = self.layer.local(run, project, may_change=self.state.weights_may_change)

        def attend(
            function: Any, q: Any, k: Any, v: Any, heads: int, mask: Any = None, **named: Any
        ) -> Any:
            nonlocal done
            done += 1

            def own() -> Any:
                if before is None:
                    return function(q, k, v, heads, mask=mask, **named)
                return before(
                    function, q, k, v, heads, mask=mask, **{**named, "transformer_options": options}
                )

            if done - 1 != self._text:
                return own()
            apart = named.get("skip_reshape", False)
            parts = (each if apart else heads_apart(each, heads) for each in (q, k, v))
            return self.layer(
                call,
                run.row.grid(run.network, call.size),
                *parts,
                local=local,
                own=None if before is None and mask is None else own,
                scale=named.get("scale"),
            )

        out = self.original(
            x, context, *args, **{**kwargs, "transformer_options": {**options, _OVERRIDE: attend}}
        )
        if done <= self._text:
            raise NotImplementedError(
                "ComfyUI must call its attention function with transformer_options for this model,"
                " got a version that does not: update ComfyUI"
            )
        return out

    def _ask(
        self,
        prompts: Tensor,
        x: Tensor,
        context: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """k, v that the forward makes of prompts (prompts, seqlen_k, width)."""
        seen: list[tuple[Tensor, Tensor]] = []

        def keep(
            function: Any, q: Any, k: Any, v: Any, heads: int, mask: Any = None, **named: Any
        ) -> Any:
            if named.get("skip_reshape", False):
                seen.append((k, v))
                return q.transpose(1, 2).flatten(2)
            seen.append((heads_apart(k, heads), heads_apart(v, heads)))
            return q

        count = len(prompts)
        picture = kwargs.get("context_img_len") if self._has_picture else None
        if picture is not None:
            shown = context[:1, :picture].expand(count, -1, -1)
            prompts = torch.cat([shown.to(prompts), prompts], dim=1)
        options = {**kwargs["transformer_options"], _OVERRIDE: keep}
        kwargs = {**kwargs, "transformer_options": options}
        if "mask" in kwargs:
            kwargs["mask"] = None
        self.original(x[:1, :1].expand(count, -1, -1), prompts, *args, **kwargs)
        self._text = len(seen) - 1
        return seen[-1]
