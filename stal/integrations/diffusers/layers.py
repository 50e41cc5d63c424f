"""One cross-attention module of a denoiser, with the keys and values of its prompts.

The keys and values of local prompts depend on neither the latents nor the step: they are projected
when the module is first called in a run of the scheduler, which is when its weights are where they
are needed, and again when the weights have changed, by a LoRA's scale for instance. Those of the
batch's own prompts are kept as long as the denoiser is given the same tensor. Layers for which the
denoiser has no room left project at each call, as they would without regions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stal.attention import EntryMaps, blend
from stal.integrations.diffusers.halves import Halves
from stal.integrations.diffusers.registry import Registry

KeysValues = Callable[[Any, Tensor], tuple[Tensor, Tensor]]

LAYERS: Registry[Layer] = Registry()


class Clock:
    """The step of the latest call, (1,) int64, where compiled code can hand it on."""

    def __init__(self) -> None:
        self.step: Tensor = torch.zeros(1, dtype=torch.int64, device="cpu")


@dataclass(frozen=True)
class Attended:
    """What one layer's batch attends to: the op's CSR and the maps of its entries."""

    ids: Tensor
    offsets: Tensor
    maps: EntryMaps


class CallState(Protocol):
    """What a layer asks of the denoiser's current call, see `denoiser.Call`."""

    halves: Halves

    @property
    def run(self) -> object: ...
    def own_prompts(self, prompts: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]: ...
    def attended(self, tokens: int, frames: int, device: torch.device) -> Attended: ...


class DenoiserState(Protocol):
    """What a layer asks of its denoiser, see `denoiser.Denoiser`."""

    clock: Clock
    regions: Any
    projects_local: bool

    @property
    def call(self) -> CallState: ...
    def local_prompts(self, like: Tensor) -> Tensor: ...
    def joined(self, local: Tensor, own: Tensor) -> Tensor: ...
    def may_keep(self, before: int, now: int) -> bool: ...


class Layer:
    """What one module attends to.

    Args:
        denoiser: whose module it is; knows the step and the regions.
        attn: the module.
        keys_values: of the processor, from (module, prompts) to k and v.
    """

    def __init__(self, denoiser: DenoiserState, attn: nn.Module, keys_values: KeysValues) -> None:
        self.denoiser, self.attn = denoiser, attn
        self._keys_values = keys_values
        self.key = LAYERS.add(self)
        self._table: tuple[Tensor, Tensor] | None = None
        self._stamp: object = None
        self._local: Tensor | None = None
        self._seen: tuple[Tensor, int] | None = None
        self._scaling: list[tuple[dict[str, float], dict[str, float]]] = []

    def __call__(self, q: Tensor, prompts: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends to the batch's own prompts and to the local ones in their regions.

        Args:
            q: (batch, heads, n, head_dim).
            prompts: (batch, seqlen_k, width), what the module's processor was given.
            mask: what is added to the scores, (batch, 1, seqlen_k) or (batch, 1, 1, seqlen_k), or
                bool: which tokens count.

        Returns:
            The blended result, as q.
        """
        if torch.compiler.is_compiling():
            step = self.denoiser.clock.step
            return torch.ops.stal_diffusers.attend(q, prompts, mask, step, self.key)
        return self.attend(q, prompts, mask, keep=True)

    def attend(self, q: Tensor, prompts: Tensor, mask: Tensor | None, *, keep: bool) -> Tensor:
        """`__call__` outside of compiled code.

        keep: whether k and v of `prompts` may be kept while the tensor is the same.
        """
        call = self.denoiser.call
        frames = len(q) // call.halves.rows
        own, lengths = call.own_prompts(prompts, mask)
        seen = prompts if mask is None and keep and not _capturing(q) else None
        k, v = self._keys_and_values(own, seen, learns=_learns(q, own, self.attn))
        at = call.attended(q.shape[2], frames, q.device)
        return blend(q, k, v, at.ids, at.offsets, at.maps, key_lengths=lengths)

    def scale_adapters(self, scale: float) -> None:
        """What adapters are multiplied by in `attend_scaled` until this is called again.

        diffusers multiplies PEFT's numbers for the time of a call, and compiled code does not do so
        before the call is over.
        """
        self._scaling.clear()
        if scale != 1:
            for projection in _projections(self.attn):
                scaling = getattr(projection, "scaling", {})
                self._scaling.append((scaling, {name: scale * s for name, s in scaling.items()}))

    def attend_scaled(self, q: Tensor, prompts: Tensor, mask: Tensor | None) -> Tensor:
        """`attend` from within compiled code."""
        kept = [(scaling, dict(scaling)) for scaling, _ in self._scaling]
        for scaling, scaled in self._scaling:
            scaling.update(scaled)
        try:
            return self.attend(q, prompts, mask, keep=False)
        finally:
            for scaling, before in kept:
                scaling.update(before)

    def _keys_and_values(
        self, own: Tensor, seen: Tensor | None, *, learns: bool
    ) -> tuple[Tensor, Tensor]:
        """k, v of the local prompts and, after them, of the batch's own.

        seen: the tensor that own is of, if k and v may be kept while it is the same.
        learns: whether a gradient is recorded, for which k and v must stay as they are.
        """
        local = self.denoiser.local_prompts(own)
        if learns:
            return self._projected(local, own, joined=torch.cat(padded(local, own)))
        # Once a run in any case: weights may be written where torch does not count it.
        stamp = (self.denoiser.call.run, _stamp(self.attn), own.shape)
        fresh = self._table is None or stamp != self._stamp or self._local is not local
        if not fresh and self._table is not None and _same(self._seen, seen):
            return self._table
        with torch.inference_mode(False), torch.no_grad():
            table = self._table
            if fresh or table is None:
                table = self._projected(local, own, joined=self.denoiser.joined(local, own))
                before, now = (_bytes(each) for each in (self._table, table))
                self._table = table if self.denoiser.may_keep(before, now) else None
                self._stamp, self._local = stamp, local
            else:
                for whole, part in zip(table, self._project(padded(local, own)[1]), strict=True):
                    whole[len(local) :] = part
        kept = seen is not None and not seen.is_inference()
        self._seen = (seen, seen._version) if seen is not None and kept else None
        return table

    def _projected(self, local: Tensor, own: Tensor, *, joined: Tensor) -> tuple[Tensor, Tensor]:
        """k, v of both; joined: the two of them as one."""
        if not self.denoiser.regions.adapters:
            # Weights that are larger than what they are multiplied by are read once.
            return self._project(joined)
        first, second = padded(local, own)
        tables = [self._project(first, local=True), self._project(second)]
        k, v = (torch.cat(pair) for pair in zip(*tables, strict=True))
        return k, v

    def _project(self, prompts: Tensor, *, local: bool = False) -> tuple[Tensor, Tensor]:
        self.denoiser.projects_local = local
        try:
            return self._keys_values(self.attn, prompts)
        finally:
            self.denoiser.projects_local = False


def padded(local: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the longer one's number of tokens, (prompts, seqlen_k, width)."""
    most = max(local.shape[1], own.shape[1])
    first, second = (
        nn.functional.pad(each, (0, 0, 0, most - each.shape[1])) for each in (local, own)
    )
    return first, second


def _bytes(table: tuple[Tensor, Tensor] | None) -> int:
    return 0 if table is None else sum(each.nbytes for each in table)


def _capturing(q: Tensor) -> bool:
    """Whether a CUDA graph is recorded, which must project what its inputs hold when it runs."""
    return q.is_cuda and torch.cuda.is_current_stream_capturing()


def _same(kept: tuple[Tensor, int] | None, seen: Tensor | None) -> bool:
    return kept is not None and kept[0] is seen and kept[1] == kept[0]._version


def _projections(attn: Any) -> tuple[Any, Any]:
    """Of k and v, as most modules call them, or as Kandinsky's do."""
    return (attn.to_key, attn.to_value) if hasattr(attn, "to_key") else (attn.to_k, attn.to_v)


def _learns(q: Tensor, own: Tensor, attn: Any) -> bool:
    """Whether the op records a gradient."""
    return torch.is_grad_enabled() and (
        q.requires_grad
        or own.requires_grad
        or any(p.requires_grad for layer in _projections(attn) for p in layer.parameters())
    )


def _stamp(attn: Any) -> tuple[object, ...]:
    """Changes whenever what the module makes of a prompt does."""
    return tuple(part for layer in _projections(attn) for part in _state(layer))


def _state(projection: Any) -> tuple[object, ...]:
    adapters = getattr(projection, "lora_A", None)
    if adapters is None:
        return (_version(projection.weight), projection.weight.dtype)
    # A layer of PEFT: what is active, how strongly, and what is merged into the weight.
    return (
        _version(projection.base_layer.weight),
        projection.base_layer.weight.dtype,
        tuple(projection.active_adapters),
        tuple(projection.scaling.items()),
        tuple(projection.merged_adapters),
        projection.disable_adapters,
        *(_version(p) for p in projection.parameters()),
    )


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
