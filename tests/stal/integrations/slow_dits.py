"""Regional attention in diffusion transformers once more, slow and by another way.

A denoiser's calls are recorded while a pipeline draws and then made again, where after each module
of cross-attention its output is replaced by a blend of outputs of that very module, called once a
prompt and row as diffusers left it. Blending after the output projection is the same as before,
since the weights of a pixel sum to 1. What a phrase is to the module is what the plain pipeline
hands on when it is called with the phrase as its prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

# Of a denoiser's arguments, those that are of the prompts; all go by keyword.
_TEXT = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "text_embedding_mask",
    "encoder_hidden_states_t5",
    "text_embedding_mask_t5",
    "audio_encoder_hidden_states",
    "audio_encoder_attention_mask",
)

Box = tuple[float, float, float, float]
# Of one module: the keys' text and its mask, one row.
Received = dict[str, Tensor]


@dataclass
class Recorded:
    """One call of a denoiser."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor


class _Enough(Exception):
    """Ends a pipeline's call."""


@contextmanager
def recording(module: nn.Module) -> Iterator[list[Recorded]]:
    """The calls of a denoiser or of one module of it, in their order."""
    calls: list[Recorded] = []

    def keep(_: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        out = out if isinstance(out, Tensor) else out[0]
        calls.append(Recorded(args, dict(kwargs), out.clone()))

    hook = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def text_of(denoiser: nn.Module, draw: Callable[[], Any]) -> dict[str, Tensor]:
    """The prompt's row of what the plain pipeline hands to its denoiser."""
    found: dict[str, Tensor] = {}

    def take(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        found.update({k: kwargs[k][-1:] for k in _TEXT if kwargs.get(k) is not None})
        raise _Enough

    hook = denoiser.register_forward_pre_hook(take, with_kwargs=True)
    try:
        draw()
    except _Enough:
        return found
    finally:
        hook.remove()
    raise AssertionError("the pipeline does not call its denoiser")


def coverage(boxes: Sequence[Box], height: int, width: int) -> Tensor:
    """(objects, height * width) float64: the share of each cell inside a box."""
    out = torch.zeros(len(boxes), height, width, dtype=torch.float64)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        for y in range(height):
            for x in range(width):
                across = min(x1 * width, x + 1) - max(x0 * width, x)
                down = min(y1 * height, y + 1) - max(y0 * height, y)
                out[i, y, x] = max(across, 0) * max(down, 0)
    return out.flatten(1)


@dataclass(frozen=True)
class Blend:
    """What one row of a batch attends to, at one step.

    phrases: indices of texts; the reference prompt's is last, if the rule moves away from one.
    weights: of each phrase but the reference.
    coverage: (objects, n).
    unconditional: the row whose output the rule moves away from instead.
    """

    rule: str
    phrases: tuple[int, ...]
    weights: Tensor
    coverage: Tensor
    unconditional: int | None = None
    background: float = 0.0

    def of(self, alone: Tensor, own: Tensor, others: Sequence[Tensor]) -> Tensor:
        """(n, channels).

        alone: (batch, n, channels) of the plain model; own: this row of it; others: of phrases.
        """
        lam = self.weights.to(own)[:, None] * self.coverage.to(own)
        if self.rule == "convex":
            lam = lam / lam.sum(0).clamp(min=1)
            return own + sum(w[:, None] * (a - own) for w, a in zip(lam, others, strict=True))
        away = others[-1] if self.unconditional is None else alone[self.unconditional]
        locals_ = others[: len(lam)]
        out = own + sum(w[:, None] * (a - away) for w, a in zip(lam, locals_, strict=True))
        if self.background:
            bare = (1 - self.coverage.to(own).sum(0)).clamp(min=0) * self.weights.to(own).mean()
            out = out + self.background * bare[:, None] * (away - own)
        return out


def again(
    denoiser: nn.Module,
    call: Recorded,
    texts: Sequence[dict[str, Tensor]],
    blends: Sequence[Blend | None],
    dtype: torch.dtype,
) -> Tensor:
    """A recorded call in this dtype, with regions.

    Args:
        denoiser: as diffusers left it.
        call: the recorded one.
        texts: of the phrases, as `text_of` gives them.
        blends: of each row of the batch; None is plain.
    """
    denoiser = copy.deepcopy(denoiser).to(dtype)
    modules = attentions(denoiser)
    args, kwargs, texts = _cast((call.args, call.kwargs, list(texts)), dtype)
    used = {p for blend in blends if blend is not None for p in blend.phrases}
    received = {
        p: _received(denoiser, modules, args, kwargs | _rows(texts[p], kwargs)) for p in used
    }

    def blended(module: Any, given: tuple, named: dict[str, Any], out: Tensor) -> Tensor:
        return _blended(Recorded(given, named, out), module, blends, received)

    hooks = [m.register_forward_hook(blended, with_kwargs=True) for m in modules]
    try:
        with torch.no_grad():
            return denoiser(*args, **kwargs)[0]
    finally:
        for hook in hooks:
            hook.remove()


def attention_again(
    module: nn.Module,
    call: Recorded,
    texts: Sequence[Received],
    blends: Sequence[Blend | None],
    dtype: torch.dtype,
) -> Tensor:
    """A recorded call of one module of cross-attention in this dtype, with regions.

    texts: what the module gets of the phrases, as `received` gives it.
    """
    module = copy.deepcopy(module).to(dtype)
    args, kwargs, given = _cast((call.args, call.kwargs, list(texts)), dtype)
    with torch.no_grad():
        plain = Recorded(args, kwargs, module.forward(*args, **kwargs))
        return _blended(plain, module, blends, {p: {module: t} for p, t in enumerate(given)})


def received(
    denoiser: nn.Module, call: Recorded, text: dict[str, Tensor]
) -> dict[nn.Module, Received]:
    """What each module of cross-attention gets of a text."""
    return _received(
        denoiser, attentions(denoiser), call.args, call.kwargs | _rows(text, call.kwargs)
    )


def attentions(denoiser: nn.Module) -> list[nn.Module]:
    """The modules that attend to the text and to nothing else."""
    return [m for name, m in denoiser.named_modules() if name.endswith(".attn2")]


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return tree_map(
        lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, values
    )


def _blended(
    plain: Recorded,
    module: Any,
    blends: Sequence[Blend | None],
    received: Mapping[int, Mapping[nn.Module, Received]],
) -> Tensor:
    """The output of a module, from what it gives without regions."""
    rows = []
    for row, blend in enumerate(blends):
        if blend is None:
            rows.append(plain.out[row])
            continue
        x = plain.args[0][row : row + 1]
        others = [module.forward(x, **plain.kwargs | received[p][module])[0] for p in blend.phrases]
        rows.append(blend.of(plain.out, plain.out[row], others))
    return torch.stack(rows)


def _rows(text: dict[str, Tensor], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """A text for all rows of a call."""
    return {k: v.expand(len(kwargs[k]), *v.shape[1:]).contiguous() for k, v in text.items()}


@torch.no_grad()
def _received(
    denoiser: nn.Module, modules: Sequence[nn.Module], args: tuple, kwargs: dict[str, Any]
) -> dict[nn.Module, Received]:
    """What each module gets of a text."""
    found: dict[nn.Module, Received] = {}

    def take(module: nn.Module, given: tuple, named: dict[str, Any]) -> None:
        names = ("encoder_hidden_states", "attention_mask")
        found[module] = {k: named[k][-1:] for k in names if named.get(k) is not None}

    hooks = [m.register_forward_pre_hook(take, with_kwargs=True) for m in modules]
    try:
        denoiser(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return found
