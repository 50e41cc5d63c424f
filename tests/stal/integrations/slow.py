"""Regional attention as plainly as it can be written: one image, one prompt, one call of
scaled_dot_product_attention at a time, summed by the formulas of `weight_maps`.

It shares nothing with `stal.integrations`: who attends to what, which step a call of the denoiser
is at and which of its rows belong together is what a test says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Box = tuple[float, float, float, float]
# (frames, height, width) of so many tokens.
Grid = Callable[[int], tuple[int, int, int]]


@dataclass(frozen=True)
class Prompt:
    """What the pictures of one prompt attend to beside it.

    boxes: (x0, y0, x1, y1) of its objects, fractions of the picture.
    local: of each object (tokens, width), as processors receive them; tokens that count alone.
    weights: (steps, objects).
    reference: (tokens, width), what the rule "guidance" moves away from where a row names none.
    """

    boxes: Sequence[Box]
    local: Sequence[Tensor]
    weights: Tensor
    reference: Tensor | None = None


@dataclass(frozen=True)
class Row:
    """One element of the batch.

    prompt: whose picture it is; None of what attends to its own prompt alone.
    unconditional: the row whose result the rule "guidance" moves away from.
    """

    prompt: int | None = None
    unconditional: int | None = None


def area(boxes: Sequence[Box], height: int, width: int, like: Tensor) -> Tensor:
    """(objects, height * width), the share of each cell that a box covers."""
    covered = []
    for x0, y0, x1, y1 in boxes:
        sides = []
        for first, last, cells in ((y0, y1, height), (x0, x1, width)):
            edges = torch.arange(cells + 1, dtype=torch.float64).clamp(first * cells, last * cells)
            sides.append(edges.diff())
        covered.append(torch.outer(*sides).flatten())
    return torch.stack(covered).to(like)


class Slow:
    """Who attends to what in each call of a denoiser.

    Args:
        prompts: of the batch.
        rows: of each call of the denoiser.
        steps: of each call of the denoiser, the index into the weights.
        rule: "guidance" or "convex".
        background: of what no region covers, under "guidance".
        grid: see `Grid`.
        keys_values: (module, (prompts, tokens, width)) to k and v (prompts, heads, tokens, d).
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        rows: Callable[[int], Sequence[Row]],
        steps: Sequence[int],
        grid: Grid,
        keys_values: Callable[[Any, Tensor], tuple[Tensor, Tensor]],
        rule: str = "guidance",
        background: float = 0.0,
    ) -> None:
        self.prompts, self.rows, self.steps, self.grid = prompts, rows, steps, grid
        self.keys_values, self.rule, self.background = keys_values, rule, background
        self.calls = 0

    @contextmanager
    def counting(self, denoiser: nn.Module) -> Iterator[None]:
        """Within, calls of the denoiser are counted."""

        def count(module: nn.Module, inputs: Any) -> None:
            self.calls += 1

        hook = denoiser.register_forward_pre_hook(count)
        try:
            yield
        finally:
            hook.remove()

    def attend(
        self, attn: Any, q: Tensor, text: Tensor, mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """(batch, heads, n, d): q attends to the text and, in regions, to the local prompts.

        text: (batch, tokens, width); mask: broadcastable to (batch, heads, n, tokens).
        options: of scaled_dot_product_attention.
        """
        call = self.calls - 1

        def to(q: Tensor, prompt: Tensor, mask: Tensor | None = None) -> Tensor:
            k, v = self.keys_values(attn, prompt)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)

        rows = self.rows(call)
        assert len(rows) == len(q)
        alone = [
            to(q[i : i + 1], text[i : i + 1], None if mask is None else mask[i : i + 1])
            for i in range(len(q))
        ]
        out = []
        for i, row in enumerate(rows):
            if row.prompt is None:
                out.append(alone[i])
                continue
            prompt = self.prompts[row.prompt]
            lam = prompt.weights[self.steps[call]].to(q)
            frames, height, width = self.grid(q.shape[2])
            covered = area(prompt.boxes, height, width, q).repeat(1, frames)[:, None, :, None]
            local = [to(q[i : i + 1], embeds[None].to(q)) for embeds in prompt.local]
            if self.rule == "convex":
                total = sum(x * m for x, m in zip(lam, covered, strict=True))
                each = [x * m / total.clamp(min=1) for x, m in zip(lam, covered, strict=True)]
                blended = (1 - sum(each)) * alone[i]
                out.append(blended + sum(w * a for w, a in zip(each, local, strict=True)))
                continue
            if row.unconditional is not None:
                away = alone[row.unconditional]
            else:
                assert prompt.reference is not None
                away = to(q[i : i + 1], prompt.reference[None].to(q))
            uncovered = (1 - covered.sum(0)).clamp(min=0)
            blended = alone[i] + self.background * lam.mean() * uncovered * (away - alone[i])
            for x, m, a in zip(lam, covered, local, strict=True):
                blended = blended + x * m * (a - away)
            out.append(blended)
        return torch.cat(out)


def linear_keys_values(attn: Any, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Of a `diffusers.models.attention_processor.Attention` that normalises nothing."""
    k, v = attn.to_k(prompts), attn.to_v(prompts)
    return tuple(x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (k, v))


class SlowProcessor:
    """A processor for the cross-attention of UNets, with an IP-Adapter's pictures if it has one."""

    def __init__(self, slow: Slow, pictures: Any = None) -> None:
        self.slow, self.pictures = slow, pictures

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        ip_adapter_masks: Any = None,
    ) -> Tensor:
        assert attention_mask is None
        q = attn.to_q(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        text, pictures = encoder_hidden_states, []
        if isinstance(text, tuple):
            text, pictures = text
        out = self.slow.attend(attn, q, text).transpose(1, 2).flatten(2)
        for i, tokens in enumerate(pictures):
            out = out + self._picture(attn, q, i, tokens, ip_adapter_masks)
        return attn.to_out[1](attn.to_out[0](out))

    def _picture(self, attn: Any, q: Tensor, i: int, tokens: Tensor, masks: Any) -> Tensor:
        """What an adapter adds: tokens (batch, images, tokens, width)."""
        k, v = self.pictures.to_k_ip[i], self.pictures.to_v_ip[i]
        scale, total = self.pictures.scale[i], 0

        def seen(tokens: Tensor) -> Tensor:
            each = [
                x(tokens).flatten(1, -2).unflatten(2, (attn.heads, -1)).transpose(1, 2)
                for x in (k, v)
            ]
            return F.scaled_dot_product_attention(q, *each).transpose(1, 2).flatten(2)

        if masks is None:
            return scale * seen(tokens)
        _, height, width = self.slow.grid(q.shape[2])
        for image in range(tokens.shape[1]):
            mask = F.interpolate(masks[i][:, image][None].float(), (height, width), mode="bicubic")
            strength = scale[image] if isinstance(scale, list) else scale
            total = total + strength * seen(tokens[:, image]) * mask.flatten()[:, None].to(q)
        return total


@contextmanager
def slow_attention(denoiser: Any, slow: Slow, processor: Any = SlowProcessor) -> Iterator[None]:
    """Within, the cross-attention of a UNet is `slow`.

    processor: (slow, the processor in whose place it is put) to a processor.
    """
    modules = [m for m in denoiser.modules() if getattr(m, "is_cross_attention", False)]
    originals = [m.processor for m in modules]
    for module, original in zip(modules, originals, strict=True):
        module.set_processor(processor(slow, original))
    try:
        with slow.counting(denoiser):
            yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.set_processor(original)
