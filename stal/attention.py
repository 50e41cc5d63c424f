"""Cross-attention functions for the `attention` argument of `stal.unet`: the only caller of the op.

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
from stal.weights import Rule, weight_maps
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

    def check(self, index: int) -> int:
        if not 0 <= index < len(self.embeddings):
            raise ValueError(
                f"prompt must be a row of the table of {len(self.embeddings)}, got {index}"
            )
        return index


@dataclass(frozen=True)
class Blend:
    """What one conditional image attends to.

    prompts: rows of the table: the global prompt, one local prompt an object of the layout and,
        if the reference is a prompt, the reference.
    layout: where the objects are.
    weights: (steps, objects) float32; gradients flow into it.
    """

    prompts: tuple[int, ...]
    layout: Layout
    weights: Tensor


class Plain:
    """Attention to one prompt a batch element: softmax(scale q k^T) v."""

    def __init__(self, prompts: Prompts, batch: Sequence[int]) -> None:
        self.prompts = prompts
        device = prompts.embeddings.device
        rows = [prompts.check(row) for row in batch]
        self.ids = torch.tensor(rows, dtype=torch.int32, device=device)
        self.offsets = torch.arange(len(rows) + 1, dtype=torch.int32, device=device)

    def __call__(
        self, name: str, q: Tensor, module: AttentionModule, height: int, width: int
    ) -> Tensor:
        k, v = self.prompts.project(name, module)
        # One prompt with weight 1, stored once for all pixels.
        weight = q.new_ones((), dtype=torch.float32).expand(len(self.ids), height * width)
        return blended_attention_ragged(q, k, v, weight, self.ids, self.offsets, scale=module.scale)


class Blended:
    """Spatial-temporal attention (arXiv 2304.03869, Section 3.2).

    The global prompt everywhere, local prompts inside their regions.
    `step` is the index of the sampler's transition and is set before each call of the UNet.

    Args:
        prompts: the table.
        blends: what each conditional image attends to.
        unconditional: table row of the empty or negative prompt. With it the batch is
            (unconditional half, conditional half) and the first half attends to that row alone;
            without it (no classifier-free guidance) the batch is the conditional images.
        rule: see `stal.weights.weight_maps`.
    """

    def __init__(
        self,
        prompts: Prompts,
        blends: Sequence[Blend],
        *,
        unconditional: int | None,
        rule: Rule = "guidance",
    ) -> None:
        self.prompts, self.blends, self.rule = prompts, tuple(blends), rule
        self.unconditional = unconditional
        self.step = 0
        self.reference_is_prompt = False
        for blend in self.blends:
            objects = len(blend.layout.objects)
            extra = len(blend.prompts) - 1 - objects
            if extra not in (0, 1) or (extra and rule == "convex"):
                raise ValueError(
                    f"prompts must be the global one and {objects} local ones (and a reference "
                    f"under the rule guidance), got {len(blend.prompts)}"
                )
            if blend.weights.ndim != 2 or blend.weights.shape[1] != objects:
                raise ValueError(
                    f"weights must be (steps, {objects}), got {tuple(blend.weights.shape)}"
                )
            self.reference_is_prompt = bool(extra)
        if len({len(b.prompts) - len(b.layout.objects) for b in self.blends}) > 1:
            raise ValueError("blends must all have a reference prompt or none")
        if rule == "guidance" and not self.reference_is_prompt and unconditional is None:
            raise ValueError(
                "the unconditional reference needs classifier-free guidance (guidance_scale > 1): "
                "without it name a reference prompt, e.g. reference='an empty scene'"
            )
        alone = [] if unconditional is None else [(unconditional,)] * len(self.blends)
        entries = [*alone, *(blend.prompts for blend in self.blends)]
        device = prompts.embeddings.device
        rows = [prompts.check(row) for element in entries for row in element]
        lengths = torch.tensor([0, *(len(element) for element in entries)])
        self.ids = torch.tensor(rows, dtype=torch.int32, device=device)
        self.offsets = lengths.cumsum(0).to(device, torch.int32)
        self._masks: dict[tuple[int, int], list[Tensor]] = {}
        self._maps: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor | None]] = {}
        self._maps_step = -1

    def __call__(
        self, name: str, q: Tensor, module: AttentionModule, height: int, width: int
    ) -> Tensor:
        k, v = self.prompts.project(name, module)
        weight, region, away = self._at(height, width)
        out = blended_attention_ragged(
            q, k, v, weight, self.ids, self.offsets, region=region, scale=module.scale
        )
        if away is None:
            return out
        unconditional, conditional = out.chunk(2)
        conditional = torch.addcmul(conditional, away.to(out.dtype), unconditional, value=-1)
        return torch.cat([unconditional, conditional])

    def _at(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """weight, region: (entries, n), and what to subtract: (images, 1, n, 1) or None."""
        if self._maps_step != self.step:
            self._maps.clear()
            self._maps_step = self.step
        if (height, width) not in self._maps:
            self._maps[height, width] = self._build(height, width)
        return self._maps[height, width]

    def _build(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor | None]:
        device = self.prompts.embeddings.device
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

    After a call of the UNet, `probabilities[name]` is (batch, heads, height, width, tokens).
    """

    def __init__(self, prompts: Prompts, batch: Sequence[int], tokens: Sequence[int]) -> None:
        self.prompts = prompts
        self.batch = [prompts.check(row) for row in batch]
        self.tokens = list(tokens)
        bad = [t for t in self.tokens if not 0 <= t < prompts.embeddings.shape[1]]
        if bad:
            raise ValueError(
                f"tokens must be below seqlen_k = {prompts.embeddings.shape[1]}, got {bad}"
            )
        self.probabilities: dict[str, Tensor] = {}

    def __call__(
        self, name: str, q: Tensor, module: AttentionModule, height: int, width: int
    ) -> Tensor:
        k, v = (table[self.batch] for table in self.prompts.project(name, module))
        a = torch.softmax(module.scale * (q @ k.transpose(-1, -2)).float(), dim=-1)
        self.probabilities[name] = a[..., self.tokens].unflatten(2, (height, width))
        return a.to(v.dtype) @ v
