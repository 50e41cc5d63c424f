"""Regional attention as plainly as it can be computed, beside a pipeline that is being watched.

Of each call of the denoiser a plain copy says what its cross-attention would receive of each local
prompt: the copy is called with what the plain pipeline gives its denoiser for that prompt. Then
diffusers' own processor attends to one prompt at a time, and the results are summed by the
formulas of `weight_maps`. Since the weights of a pixel sum to 1, the output projection and what is
attended to beside the text may come before the sum.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .videos import draw

Box = tuple[float, float, float, float]


@dataclass
class Prompt:
    """What the pictures of one prompt attend to beside it.

    boxes: (x0, y0, x1, y1) of each phrase, shares of the picture.
    weights: (steps, phrases).
    """

    phrases: Sequence[str]
    boxes: Sequence[Box]
    weights: Tensor
    reference: str = ""


@dataclass
class Errors:
    """Largest errors against float64, over all calls of all modules."""

    ours: float = 0.0
    plain: float = 0.0
    calls: list[bool] = field(default_factory=list)  # whether each call had regions


class _Stop(Exception):
    pass


class Watch:
    """A pipeline whose cross-attention is computed slowly too.

    Args:
        pipe: without regions.
        arguments: of the calls that are watched.
        prompts: of the batch.
        rule: "guidance", "convex", or "plain" for diffusers' own result.
        conditional: which calls of the denoisers, of all together, are of the prompts.
        steps: of each call, the row of the weights.
        grid: (height, width) of the tokens of a frame.
        image_frames: how many of the last frames are a given image, not of the picture.
    """

    def __init__(
        self,
        pipe: Any,
        arguments: Mapping[str, Any],
        prompts: Sequence[Prompt],
        *,
        rule: str = "guidance",
        conditional: Callable[[int], bool] = lambda call: call % 2 == 0,
        steps: Callable[[int], int] = lambda call: call // 2,
        grid: tuple[int, int] = (6, 8),
        image_frames: int = 0,
    ) -> None:
        self.pipe, self.prompts, self.rule = pipe, prompts, rule
        self.conditional, self.steps, self.grid = conditional, steps, grid
        self.image_frames = image_frames
        self.denoisers = {
            name: module
            for name, module in pipe.components.items()
            if name.startswith("transformer") and module is not None
        }
        self.plain = {name: copy.deepcopy(m).eval() for name, m in self.denoisers.items()}
        self.exact = {name: copy.deepcopy(m).double() for name, m in self.plain.items()}
        alone = {name: v for name, v in arguments.items() if not name.endswith("prompt_embeds")}
        self.texts = {
            text: received(pipe, {**alone, "prompt": text})
            for prompt in prompts
            for text in (*prompt.phrases, prompt.reference)
        }
        self.call = -1
        self.seen: dict[str, Any] = {}
        self.alone: dict[str, Any] = {}

    @contextmanager
    def watching(self) -> Iterator[Errors]:
        """Within, every result of cross-attention is compared."""
        self.call, errors, handles = -1, Errors(), []
        for name, denoiser in self.denoisers.items():
            handles.append(
                denoiser.register_forward_pre_hook(self._begin(name, errors), with_kwargs=True)
            )
            for path, module in cross_attention(denoiser):
                hook = self._compare(name, path, errors)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
        try:
            yield errors
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, name: str, errors: Errors) -> Callable[..., None]:
        def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.call += 1
            own = self.conditional(self.call) and self.rule != "plain"
            errors.calls.append(own)
            if own:
                for text, given in self.texts.items():
                    self.seen[text] = reaches(self.plain[name], kwargs, given)
                    # Text layers may make much of a last bit, and of how many rows there are.
                    alone = reaches(self.plain[name], first_row(kwargs), given)
                    self.alone[text] = repeated_text(alone, len(kwargs["hidden_states"]))

        return begin

    def _compare(self, name: str, path: str, errors: Errors) -> Callable[..., None]:
        plain = self.plain[name].get_submodule(path)
        exact = self.exact[name].get_submodule(path)

        def compare(module: Any, args: Any, kwargs: dict[str, Any], out: Tensor) -> None:
            expected = self._slow(exact, args, kwargs, torch.float64)
            eager = self._slow(plain, args, kwargs, out.dtype)
            errors.ours = max(errors.ours, (out.double() - expected).abs().max().item())
            errors.plain = max(errors.plain, (eager.double() - expected).abs().max().item())

        return compare

    def _slow(self, attn: Any, args: Any, kwargs: dict[str, Any], dtype: torch.dtype) -> Tensor:
        args, kwargs = cast(args, dtype), cast(kwargs, dtype)
        out = attn(*args, **kwargs)
        if self.rule == "plain" or not self.conditional(self.call):
            return out
        x = args[0]
        rows = []
        for row in range(len(x)):
            prompt = self.prompts[row * len(self.prompts) // len(x)]
            lam = prompt.weights[self.steps(self.call)].to(dtype)

            def to(text: str, row: int = row) -> Tensor:
                seen = self.seen if dtype == torch.float64 else self.alone
                known = cast(seen[text], dtype)
                return attn(x, **known)[row]

            away, local = to(prompt.reference), [to(phrase) for phrase in prompt.phrases]
            covered = [area(box, *self.grid, like=x) for box in prompt.boxes]
            # Constant over frames; those of a given image have no regions.
            tokens = [m.repeat(x.shape[1] // len(m) - self.image_frames) for m in covered]
            tokens = [nn.functional.pad(m, (0, x.shape[1] - len(m)))[:, None] for m in tokens]
            parts = [v * m for v, m in zip(lam, tokens, strict=True)]
            if self.rule == "convex":
                total = torch.stack(parts).sum(0).clamp(min=1)
                away, parts = out[row], [part / total for part in parts]
            blended = out[row]
            for part, result in zip(parts, local, strict=True):
                blended = blended + part * (result - away)
            rows.append(blended)
        return torch.stack(rows)


def cross_attention(denoiser: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules in which pixels attend to text, by name."""
    ends = (".attn2", ".video_dec_block.cross_attention")
    return [
        (name, module)
        for name, module in denoiser.named_modules()
        if name.endswith(ends)
        or (name.startswith("visual_") and name.split(".")[2:] == ["cross_attention"])
    ]


def received(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a pipeline gives its denoiser first."""
    return stopped(pipe.transformer, lambda: draw(pipe, arguments))


def stopped(module: nn.Module, run: Callable[[], Any]) -> dict[str, Any]:
    """The arguments of the first call of a module, which ends the run."""
    found: dict[str, Any] = {}

    def stop(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found.update(kwargs, **({"encoder_hidden_states": args[1]} if len(args) > 1 else {}))
        raise _Stop

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        run()
    except _Stop:
        return found
    finally:
        handle.remove()
    raise AssertionError("the module was not called")


def reaches(denoiser: nn.Module, call: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What of a prompt reaches cross-attention if the denoiser is called with it instead.

    call: the arguments of the call; given: those of a call with that prompt.
    """
    rows = len(call["hidden_states"])
    names = ("encoder_hidden_states", "pooled_projections", "encoder_attention_mask")
    changed = {name: repeated(given[name], rows) for name in names if name in given}
    text = call["encoder_hidden_states"]
    if isinstance(text, tuple):
        changed["encoder_hidden_states"] = changed["encoder_hidden_states"][0], text[1]
    if "text_rope_pos" in given:
        changed["text_rope_pos"] = given["text_rope_pos"]
    _, first = cross_attention(denoiser)[0]
    return stopped(first, lambda: denoiser(**call | changed))


def repeated(value: Any, rows: int) -> Any:
    if isinstance(value, tuple):
        return tuple(repeated(each, rows) for each in value)
    return None if value is None else value[:1].expand(rows, *value.shape[1:])


def cast(value: Any, dtype: torch.dtype) -> Any:
    """All tensors of floating point, however deep, in another dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(cast(each, dtype) for each in value)
    if isinstance(value, dict):
        return {name: cast(each, dtype) for name, each in value.items()}
    return value


def first_row(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a denoiser, of the first row of its batch alone."""
    rows = len(call["hidden_states"])
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    return call | {
        name: call[name][:1]
        for name in names
        if isinstance(call.get(name), Tensor) and call[name].ndim and len(call[name]) == rows
    }


def repeated_text(known: dict[str, Any], rows: int) -> dict[str, Any]:
    """What reaches cross-attention of one row, for so many."""
    text = known["encoder_hidden_states"]
    if isinstance(text, Tensor) and len(text) == 1:
        return known | {"encoder_hidden_states": text.expand(rows, *text.shape[1:])}
    return known


def area(box: Box, height: int, width: int, *, like: Tensor) -> Tensor:
    """(height * width,), the share of each cell that a box covers."""
    x0, y0, x1, y1 = box
    sides = []
    for first, last, cells in ((y0, y1, height), (x0, x1, width)):
        edges = torch.arange(cells + 1, dtype=torch.float64).clamp(first * cells, last * cells)
        sides.append(edges.diff())
    return torch.outer(*sides).flatten().to(like)
