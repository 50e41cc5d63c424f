"""Cross-attention functions for the UNet's `attention` argument: the only caller of the op.

Each is called as `attention(name, q, module, height, width)` with q of shape
(batch, heads, height * width, head_dim) and returns a tensor like q. Prompts are one table for the
whole batch; their keys and values depend on neither latents nor step and are projected once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from stal.layout import Layout, masks
from stal.torch_state import undisturbed
from stal.weights import Rule, check_background, check_reference, check_weights, weight_maps
from stal_kernels import blended_attention_ragged, pack, plan


class AttentionModule(Protocol):
    """What these functions use of the UNet's attention layer."""

    heads: int
    scale: float
    to_k: nn.Module
    to_v: nn.Module


# A call of more pixels takes as long with a pack as without; at 32 x 32 a pack saves 3 to 6% of it,
# at 8 x 8 a third (AVX2, AMD Zen 3, six prompts of 77 keys).
_MOST_PIXELS_PACKED = 2048

# The op's, see `stal_kernels.plan` and `stal_kernels.pack`.
Plan = tuple[Tensor, Tensor, Tensor]
Pack = tuple[Tensor, Tensor, Tensor]

# (layer name, q, attention module, height, width) -> the attention's result, shaped like q
AttentionFunction = Callable[[str, Tensor, AttentionModule, int, int], Tensor]


class Prompts:
    """A table of encoded prompts, with each layer's keys and values kept once projected.

    Args:
        embeddings: (table, seqlen_k, width), the text encoder's output for each prompt.
    """

    def __init__(self, embeddings: Tensor) -> None:
        if embeddings.ndim != 3:
            raise ValueError(
                f"embeddings must be (table, seqlen_k, width), got {tuple(embeddings.shape)}"
            )
        self.embeddings = embeddings
        self._projected: dict[str, tuple[Tensor, Tensor]] = {}
        self._packed: dict[str, tuple[str, Pack]] = {}

    def project(self, name: str, module: AttentionModule) -> tuple[Tensor, Tensor]:
        """k, v: (table, heads, seqlen_k, head_dim). No gradient flows into the prompts."""
        if name not in self._projected:
            with undisturbed(), torch.no_grad():
                k, v = (
                    layer(self.embeddings).unflatten(-1, (module.heads, -1)).transpose(1, 2)
                    for layer in (module.to_k, module.to_v)
                )
            self._projected[name] = (k, v)
        return self._projected[name]

    def pack(self, name: str, module: AttentionModule, pixels: int) -> Pack | None:
        """The op's pack of what `project` returns, made once.

        None where calls of so many pixels have no use for it: on a GPU, and under autocast, which
        casts k and v.
        """
        k, v = self.project(name, module)
        if (
            pixels > _MOST_PIXELS_PACKED
            or k.device.type != "cpu"
            or torch.is_autocast_enabled("cpu")
        ):
            return None
        precision = float32_precision()  # that of the calls, for which the pack is made
        if name not in self._packed or self._packed[name][0] != precision:
            with undisturbed(), torch.no_grad():
                self._packed[name] = (precision, pack(k, v))
        return self._packed[name][1]

    def check(self, row: int) -> int:
        """The row. Raises ValueError if the table has no such row."""
        if not 0 <= row < len(self.embeddings):
            raise ValueError(f"prompt must be one of {len(self.embeddings)} rows, got {row}")
        return row


@dataclass(frozen=True)
class Blend:
    """What one conditional image attends to.

    prompts: table rows of the global prompt, of one local prompt an object of the layout and, if
        the reference is a prompt, of the reference.
    layout: where the objects are.
    """

    prompts: tuple[int, ...]
    layout: Layout


@dataclass(frozen=True)
class EntryMaps:
    """What the pixels of a whole batch attend to at one resolution and step.

    An entry is one prompt of one batch element, as in the op.

    weight: (entries, n), at least float32.
    region: (entries, n) bool, where a prompt exists at all.
    away: (images, n), the multiple of an unconditional element's result that each conditional one
        loses, or None.
    conditional: where the conditional elements begin, `images` consecutive ones at each place.
    unconditional: where those begin whose results they lose.
    plan: the op's, of region, or None.
    """

    weight: Tensor
    region: Tensor
    away: Tensor | None = None
    conditional: tuple[int, ...] = ()
    unconditional: int = 0
    plan: Plan | None = None


def plan_of(region: Tensor, ids: Tensor, offsets: Tensor) -> Plan | None:
    """The op's plan of regions that all layers of a resolution and all steps share.

    None on the CPU: there the op sorts the pixels of boxes itself in less than 0.5% of a call.

    Args:
        region: (entries, n) bool.
        ids, offsets: of `stal_kernels.blended_attention_ragged`.
    """
    if not region.is_cuda:
        return None
    # Kept tensors must do where gradients are asked for.
    with undisturbed(), torch.no_grad():
        return plan(region, ids, offsets)


def blend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ids: Tensor,
    offsets: Tensor,
    maps: EntryMaps,
    *,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    packed: Pack | None = None,
) -> Tensor:
    """One call of the op, and what conditional elements lose of the unconditional ones' results.

    Args:
        q, k, v, ids, offsets, scale, key_lengths, packed: of
            `stal_kernels.blended_attention_ragged`.
        maps: what the pixels attend to.

    Returns:
        (batch, heads, n, head_dim), as q.
    """
    weight = maps.weight.to(_at_least_float32(q))
    out = blended_attention_ragged(
        q,
        k,
        v,
        weight,
        ids,
        offsets,
        region=maps.region,
        key_lengths=key_lengths,
        plan=maps.plan,
        packed=packed,
        scale=scale,
    )
    if maps.away is None:
        return out
    away = maps.away[:, None, :, None].to(out.dtype)
    # In place, unless a gradient needs what is overwritten.
    lost = out.clone() if out.requires_grad or away.requires_grad else out
    unconditional = out[maps.unconditional : maps.unconditional + len(away)]
    for first in maps.conditional:
        lost[first : first + len(away)].addcmul_(away, unconditional, value=-1)
    return lost


class Plain:
    """Attention to one prompt a batch element: softmax(scale q k^T) v.

    Args:
        prompts: the table.
        batch: table row of each batch element's prompt.
    """

    def __init__(self, prompts: Prompts, batch: Sequence[int]) -> None:
        self.prompts = prompts
        self.ids, self.offsets = _csr(prompts, [[row] for row in batch])

    def at(
        self, step: int | Tensor, weights: Sequence[Tensor], *, keep_maps: bool = True
    ) -> AttentionFunction:
        """What one call of the UNet uses: the same at every step, whatever the weights."""
        return self

    def __call__(
        self, name: str, q: Tensor, module: AttentionModule, height: int, width: int
    ) -> Tensor:
        _check_batch(q, self.offsets)
        k, v = self.prompts.project(name, module)
        # One prompt with weight 1, stored once for all pixels.
        weight = q.new_ones((), dtype=_at_least_float32(q)).expand(len(self.ids), height * width)
        return blended_attention_ragged(
            q,
            k,
            v,
            weight,
            self.ids,
            self.offsets,
            packed=self.prompts.pack(name, module, height * width),
            scale=module.scale,
        )


class Blended:
    """Spatial-temporal attention (arXiv 2304.03869): the global prompt everywhere, local prompts
    inside their regions, blended as `stal.weights.weight_maps` says.

        attention = Blended(prompts, blends, unconditional=0)
        unet(x, t, None, attention=attention.at(step, weights))

    Args:
        prompts: the table.
        blends: what each conditional image attends to.
        unconditional: table row of the empty or negative prompt. With it the batch is
            (unconditional half, conditional half) and the first half attends to that row alone;
            without it (no classifier-free guidance) the batch is the conditional images.
        rule, background: see `stal.weights.weight_maps`.

    Raises:
        ValueError: a row outside the table, prompts that do not go with a layout, the rule
            "guidance" without a reference, or a background without a reference prompt.
    """

    def __init__(
        self,
        prompts: Prompts,
        blends: Sequence[Blend],
        *,
        unconditional: int | None,
        rule: Rule = "guidance",
        background: float = 0.0,
    ) -> None:
        self.prompts, self.blends, self.rule = prompts, tuple(blends), rule
        self.unconditional, self.background = unconditional, background
        self.reference_is_prompt = _check_blends(self.blends, rule)
        guided = unconditional is not None
        check_reference(rule, reference_is_prompt=self.reference_is_prompt, guided=guided)
        check_background(background, rule=rule, reference_is_prompt=self.reference_is_prompt)
        alone = [(unconditional,)] * len(self.blends) if unconditional is not None else []
        self.ids, self.offsets = _csr(prompts, [*alone, *(b.prompts for b in self.blends)])
        self._masks: dict[tuple[int, int], list[Tensor]] = {}
        self._plans: dict[tuple[int, int], Plan | None] = {}

    def at(
        self, step: int | Tensor, weights: Sequence[Tensor], *, keep_maps: bool = True
    ) -> AttentionFunction:
        """What one call of the UNet uses; asked for again where gradients or weights are new.

        Args:
            step: index into the weights, the same for all images, or (images,): images of one
                batch may be at different steps.
            weights: of each conditional image, (steps, objects) float32 on the CPU; gradients flow
                into them. Images may have different numbers of steps.
            keep_maps: whether the maps of a resolution are built once for all its layers. Where a
                layer is computed again on the way back, it must build what it built the first
                time: then not.

        Raises:
            ValueError: not one step and one tensor of weights an image, a step outside the
                weights, weights that do not go with a layout or that the rule does not allow.
        """
        steps = _steps(step, len(self.blends))
        if len(weights) != len(self.blends):
            raise ValueError(
                f"weights must be one for each of {len(self.blends)} images, got {len(weights)}"
            )
        for blend, each, index in zip(self.blends, weights, steps, strict=True):
            objects = len(blend.layout.objects)
            if each.ndim != 2 or each.shape[1] != objects:
                raise ValueError(
                    f"weights must be (steps, objects) = (any, {objects}) for this layout, "
                    f"got {tuple(each.shape)}"
                )
            if not 0 <= index < len(each):
                raise ValueError(f"step must lie in [0, {len(each)}), got {index}")
            check_weights(each.detach()[index : index + 1], rule=self.rule, first_step=index)
        return _AtStep(self, steps, tuple(weights), keep_maps)

    def masks(self, height: int, width: int, device: torch.device) -> list[Tensor]:
        """Each image's (objects, height, width) coverage, made once for all steps."""
        if (height, width) not in self._masks:
            self._masks[height, width] = [
                masks(blend.layout, height, width).to(device) for blend in self.blends
            ]
        return self._masks[height, width]

    def plan(self, height: int, width: int, region: Tensor) -> Plan | None:
        """Of the regions of a resolution, which are the same at all steps: made once."""
        if (height, width) not in self._plans:
            self._plans[height, width] = plan_of(region, self.ids, self.offsets)
        return self._plans[height, width]


class _AtStep:
    """`Blended` with each image's step and (steps, objects) weights."""

    def __init__(
        self, blended: Blended, steps: list[int], weights: tuple[Tensor, ...], keep_maps: bool
    ) -> None:
        self._blended, self._steps, self._weights = blended, steps, weights
        self._keep_maps = keep_maps
        self._maps: dict[tuple[int, int], EntryMaps] = {}

    def __call__(
        self, name: str, q: Tensor, module: AttentionModule, height: int, width: int
    ) -> Tensor:
        blended = self._blended
        _check_batch(q, blended.offsets)
        k, v = blended.prompts.project(name, module)
        maps = self._maps.get((height, width))
        if maps is None:
            maps = self._build(height, width, q.device)
            if self._keep_maps:
                self._maps[height, width] = maps
        packed = blended.prompts.pack(name, module, height * width)
        return blend(q, k, v, blended.ids, blended.offsets, maps, scale=module.scale, packed=packed)

    def _build(self, height: int, width: int, device: torch.device) -> EntryMaps:
        blended = self._blended
        covered = blended.masks(height, width, device)
        maps = [
            weight_maps(
                mask,
                each[step].to(device),
                rule=blended.rule,
                reference_is_prompt=blended.reference_is_prompt,
                background=blended.background,
            )
            for mask, each, step in zip(covered, self._weights, self._steps, strict=True)
        ]
        alone = 0 if blended.unconditional is None else len(blended.blends)
        ones = torch.ones(alone, height * width, dtype=torch.float32, device=device)
        weight = torch.cat([ones, *(m.weight for m in maps)])
        region = torch.cat([ones.bool(), *(m.region for m in maps)])
        away = [m.unconditional for m in maps if m.unconditional is not None]
        return EntryMaps(
            weight,
            region,
            torch.stack(away) if away else None,
            (alone,),
            plan=blended.plan(height, width, region),
        )


class Recording:
    """Plain attention in plain torch that keeps what the softmax gave to chosen tokens.

    After a call of the UNet, `probabilities[name]` is (batch, heads, height, width, tokens), at
    least float32; gradients flow through it.

    Args:
        prompts: the table.
        batch: table row of each batch element's prompt.
        tokens: positions in the prompt, in the order of the last dimension.
    """

    def __init__(self, prompts: Prompts, batch: Sequence[int], tokens: Sequence[int]) -> None:
        self.prompts = prompts
        self.batch = [prompts.check(row) for row in batch]
        self.tokens = list(tokens)
        seqlen_k = prompts.embeddings.shape[1]
        bad = [t for t in self.tokens if not 0 <= t < seqlen_k]
        if bad:
            raise ValueError(f"tokens must be in 0 .. {seqlen_k - 1} (seqlen_k), got {bad[0]}")
        self.probabilities: dict[str, Tensor] = {}

    def __call__(
        self, name: str, q: Tensor, module: AttentionModule, height: int, width: int
    ) -> Tensor:
        dtype = _at_least_float32(q)
        k, v = (table[self.batch].to(dtype) for table in self.prompts.project(name, module))
        a = torch.softmax(module.scale * q.to(dtype) @ k.mT, dim=-1)
        self.probabilities[name] = a[..., self.tokens].unflatten(2, (height, width))
        return (a @ v).to(q.dtype)


def _check_blends(blends: Sequence[Blend], rule: Rule) -> bool:
    """Whether the reference is a prompt of each image."""
    if not blends:
        raise ValueError("blends must hold at least one image, got none")
    extras = set()
    for blend in blends:
        objects = len(blend.layout.objects)
        extra = len(blend.prompts) - 1 - objects
        if extra not in ((0,) if rule == "convex" else (0, 1)):
            more = "" if rule == "convex" else " (and a reference)"
            raise ValueError(
                f"prompts must be the global one and {objects} local ones{more}, one an object of "
                f"the layout, got {len(blend.prompts)}"
            )
        extras.add(extra)
    if len(extras) > 1:
        raise ValueError("blends must all have a reference prompt or none, got both kinds")
    return extras == {1}


def _steps(step: int | Tensor, images: int) -> list[int]:
    """The step of each image."""
    if isinstance(step, Tensor):
        integers = step.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        if integers and step.shape in ((), (images,)):
            return step.expand(images).tolist()
        got = f"{step.dtype} of shape {tuple(step.shape)}"
    else:
        if hasattr(step, "__index__") and not isinstance(step, bool):
            return [operator.index(step)] * images
        got = repr(step)
    raise ValueError(f"step must be an integer or ({images},) integers, one an image, got {got}")


def _csr(prompts: Prompts, entries: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """`csr`, of rows that the table has."""
    rows = [[prompts.check(row) for row in element] for element in entries]
    return csr(rows, prompts.embeddings.device)


def csr(entries: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The op's prompt_ids and offsets from the table rows that each batch element attends to."""
    ids = torch.tensor([row for e in entries for row in e], dtype=torch.int32, device=device)
    lengths = torch.tensor([0, *map(len, entries)], dtype=torch.int64, device="cpu")
    return ids, lengths.cumsum(0).to(device, torch.int32)


def _check_batch(q: Tensor, offsets: Tensor) -> None:
    batch = len(offsets) - 1
    if len(q) != batch:
        raise ValueError(f"q must have a batch of {batch}, both halves if guided, got {len(q)}")


def float32_precision() -> str:
    """How calls of now may round float32 products; a pack serves those of one setting."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was also set for one of torch's backends, and differently
        return ""


def _at_least_float32(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)
