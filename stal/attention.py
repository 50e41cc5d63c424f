"""Cross-attention functions for the UNet's `attention` argument: the only caller of the op.

Each is called as `attention(name, q, module, height, width)` with q of shape
(batch, heads, height * width, head_dim) and returns a tensor like q. Prompts are one table for the
whole batch; their keys and values depend on neither latents nor step and are projected once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from stal.layout import Layout, masks
from stal.weights import Rule, check_background, check_weights, weight_maps
from stal_kernels import blended_attention_ragged


class AttentionModule(Protocol):
    """What these functions use of the UNet's attention layer."""

    heads: int
    scale: float
    to_k: nn.Module
    to_v: nn.Module


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

    def project(self, name: str, module: AttentionModule) -> tuple[Tensor, Tensor]:
        """k, v: (table, heads, seqlen_k, head_dim). No gradient flows into the prompts."""
        if name not in self._projected:
            with torch.no_grad():
                k, v = (
                    layer(self.embeddings).unflatten(-1, (module.heads, -1)).transpose(1, 2)
                    for layer in (module.to_k, module.to_v)
                )
            self._projected[name] = (k, v)
        return self._projected[name]

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
    weights: (steps, objects) float32; gradients flow into it.
    """

    prompts: tuple[int, ...]
    layout: Layout
    weights: Tensor


class Plain:
    """Attention to one prompt a batch element: softmax(scale q k^T) v.

    Args:
        prompts: the table.
        batch: table row of each batch element's prompt.
    """

    def __init__(self, prompts: Prompts, batch: Sequence[int]) -> None:
        self.prompts = prompts
        self.ids, self.offsets = _csr(prompts, [[row] for row in batch])

    def __call__(
        self, name: str, q: Tensor, module: AttentionModule, height: int, width: int
    ) -> Tensor:
        k, v = self.prompts.project(name, module)
        # One prompt with weight 1, stored once for all pixels.
        weight = q.new_ones((), dtype=_at_least_float32(q)).expand(len(self.ids), height * width)
        return blended_attention_ragged(q, k, v, weight, self.ids, self.offsets, scale=module.scale)


class Blended:
    """Spatial-temporal attention (arXiv 2304.03869): the global prompt everywhere, local prompts
    inside their regions, blended as `stal.weights.weight_maps` says.

    `step`, the index of the sampler's transition, is set before each call of the UNet. The maps of
    a resolution are built once a step, or, without `keep_maps`, at each layer: where a layer is
    computed again on the way back, it must build what it built the first time.

    Args:
        prompts: the table.
        blends: what each conditional image attends to.
        unconditional: table row of the empty or negative prompt. With it the batch is
            (unconditional half, conditional half) and the first half attends to that row alone;
            without it (no classifier-free guidance) the batch is the conditional images.
        rule, background: see `stal.weights.weight_maps`.

    Raises:
        ValueError: a row outside the table, prompts or weights that do not go with a layout,
            weights that the rule does not allow, the rule "guidance" without a reference, or a
            background without a reference prompt.
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
        self._maps: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor | None]] = {}
        self.keep_maps = True
        self.step = 0

    @property
    def step(self) -> int:
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        steps = len(self.blends[0].weights)
        if not 0 <= step < steps:
            raise ValueError(f"step must be below the {steps} steps of the weights, got {step}")
        self._step = step
        # Also if the step is the same: an optimiser changes the weights between two calls.
        self._maps.clear()

    def __call__(
        self, name: str, q: Tensor, module: AttentionModule, height: int, width: int
    ) -> Tensor:
        k, v = self.prompts.project(name, module)
        if self.keep_maps and (height, width) in self._maps:
            maps = self._maps[height, width]
        else:
            maps = self._maps[height, width] = self._build(height, width, q.device)
        weight, region, away = maps
        weight = weight.to(_at_least_float32(q))
        out = blended_attention_ragged(
            q, k, v, weight, self.ids, self.offsets, region=region, scale=module.scale
        )
        if away is None:
            return out
        unconditional, conditional = out.chunk(2)
        conditional = torch.addcmul(conditional, away.to(out.dtype), unconditional, value=-1)
        return torch.cat([unconditional, conditional])

    def _build(
        self, height: int, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """weight, region: (entries, n), and what to subtract: (images, 1, n, 1) or None."""
        if (height, width) not in self._masks:
            self._masks[height, width] = [
                masks(blend.layout, height, width).to(device) for blend in self.blends
            ]
        maps = [
            weight_maps(
                mask,
                blend.weights[self.step].to(device),
                rule=self.rule,
                reference_is_prompt=self.reference_is_prompt,
                background=self.background,
            )
            for mask, blend in zip(self._masks[height, width], self.blends, strict=True)
        ]
        alone = 0 if self.unconditional is None else len(self.blends)
        ones = torch.ones(alone, height * width, device=device)
        weight = torch.cat([ones, *(m.weight for m in maps)])
        region = torch.cat([ones.bool(), *(m.region for m in maps)])
        away = [m.unconditional for m in maps if m.unconditional is not None]
        return weight, region, torch.stack(away)[:, None, :, None] if away else None


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


def check_reference(rule: Rule, *, reference_is_prompt: bool, guided: bool) -> None:
    """Raises ValueError if the rule "guidance" has nothing to move away from."""
    if rule == "guidance" and not reference_is_prompt and not guided:
        raise ValueError(
            "reference must be a prompt, e.g. 'an empty scene', without classifier-free guidance "
            "(guidance_scale 1), got the unconditional half, which is then not computed"
        )


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
        steps = len(blends[0].weights)
        if blend.weights.shape != (steps, objects):
            raise ValueError(
                f"weights must be (steps, objects) = {(steps, objects)} for this layout, "
                f"got {tuple(blend.weights.shape)}"
            )
        check_weights(blend.weights, rule=rule)
    if len(extras) > 1:
        raise ValueError("blends must all have a reference prompt or none, got both kinds")
    return extras == {1}


def _csr(prompts: Prompts, entries: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The op's prompt_ids and offsets from the table rows that each batch element attends to."""
    device = prompts.embeddings.device
    rows = [prompts.check(row) for element in entries for row in element]
    lengths = torch.tensor([0, *(len(element) for element in entries)])
    ids = torch.tensor(rows, dtype=torch.int32, device=device)
    return ids, lengths.cumsum(0).to(device, torch.int32)


def _at_least_float32(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)
