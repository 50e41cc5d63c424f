"""What the tests of regions in UNet pipelines share: one drawing, and what is known of each row.

How the rows of a batch lie is written down here, pipeline by pipeline, and not asked of anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.stal.integrations import unets
from tests.stal.integrations.slow import Box, Prompt, Row, Slow, linear_keys_values, slow_attention

PROMPT = "a red circle to the left of a blue square"
BOXES: tuple[Box, ...] = ((0.05, 0.1, 0.5, 0.8), (0.4, 0.3, 0.95, 1.0))
LAYOUT = tuple(zip(("a red circle", "a blue square"), BOXES, strict=True))
# Another number of regions, for a second prompt.
OTHER_PROMPT = "a green triangle, a yellow star and a red square"
OTHER_LAYOUT = (
    ("a green triangle", (0.0, 0.0, 0.45, 0.5)),
    ("a yellow star", (0.5, 0.1, 1.0, 0.6)),
    ("a red square", (0.2, 0.55, 0.8, 1.0)),
)
STEPS = 2

# Which parts of a guided batch are of the prompts.
PARTS: dict[str, tuple[bool, ...]] = {
    "xl_turbo": (True,),
    "lcm": (True,),
    "instruct_pix2pix": (True, False, False),
    "pag": (False, True, True),
}
# Strength 0.6 leaves the last 2 of 4 steps.
FIRST_STEP = {"img2img": 2, "xl_refiner": 2}
FRAMES = {"animate_diff": 3}


@dataclass
class Drawn:
    """pictures: (n, height, width, 3); predicted: what the denoiser gave in each call."""

    pictures: np.ndarray
    predicted: list[Tensor] = field(default_factory=list)


def steps_of(name: str) -> int:
    """How many steps to ask a pipeline for."""
    return 4 if name in FIRST_STEP else STEPS


def draw(
    name: str, pipe: Any, prompt: Any = PROMPT, *, follow: Drawn | None = None, **changes: Any
) -> Drawn:
    """A drawing of a pipeline from `unets.BUILDERS`.

    follow: a drawing whose predictions the pipeline gets in place of its denoiser's, so that
        rounding errors of one call do not grow in the next ones.
    changes: to what the pipeline is called with; what is None is left out.
    """
    arguments: dict[str, Any] = {
        "num_inference_steps": steps_of(name),
        "generator": torch.Generator().manual_seed(0),
        "output_type": "np",
        **unets.arguments(name),
        **changes,
    }
    arguments = {key: value for key, value in arguments.items() if value is not None}
    if prompt is not None:
        arguments["prompt"] = prompt
    predicted: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> Any:
        predicted.append(output[0].detach().clone())
        if follow is None:
            return output
        right = follow.predicted[len(predicted) - 1].to(output[0].dtype)
        return (right,) if isinstance(output, tuple) else type(output)(sample=right)

    hook = pipe.unet.register_forward_hook(keep)
    try:
        result = pipe(**arguments)
    finally:
        hook.remove()
    pictures = result.frames[0] if name in FRAMES else result.images
    assert np.isfinite(pictures).all()
    return Drawn(pictures, predicted)


@contextmanager
def noise_of_float32(monkeypatch: Any) -> Any:
    """Within, noise of float64 is that of float32."""
    randn = torch.randn

    def rounded(*size: Any, dtype: Any = None, **options: Any) -> Tensor:
        return randn(*size, dtype=torch.float32, **options).to(dtype or torch.float32)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", rounded)
        yield


def parts_of(name: str, *, guided: bool = True) -> tuple[bool, ...]:
    """Which parts of a batch are of the prompts."""
    return PARTS.get(name, (False, True)) if guided else (True,)


def rows_of(parts: Sequence[bool], *, prompts: int = 1, images: int = 1, frames: int = 1) -> Any:
    """The batch's rows: parts, prompts, images, frames, the last ones fastest."""
    rows = []
    lost = parts.index(False) if False in parts else None
    block = prompts * images * frames
    for own in parts:
        for i in range(block):
            away = None if lost is None or not own else lost * block + i
            rows.append(Row(i // (images * frames) if own else None, away))
    return rows


def encoded(pipe: Any, texts: Sequence[str]) -> Tensor:
    """(texts, tokens, width), what the pipeline's processors receive of them."""
    encode = getattr(pipe, "encode_prompt", None) or pipe._encode_prompt
    with torch.no_grad():
        found = encode(
            list(texts),
            device=torch.device("cpu"),
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        embeds = found if isinstance(found, Tensor) else found[0]
        if pipe.unet.config.encoder_hid_dim_type == "text_proj":
            embeds = pipe.unet.encoder_hid_proj(embeds)
        elif getattr(pipe.unet, "text_encoder_hid_proj", None) is not None:
            embeds = pipe.unet.text_encoder_hid_proj(embeds)
    return embeds


def prompt_of(pipe: Any, layout: Any, weights: Tensor, reference: str = "") -> Prompt:
    """What the slow attention attends to for one prompt."""
    phrases, boxes = zip(*layout, strict=True)
    return Prompt(boxes, list(encoded(pipe, phrases)), weights, encoded(pipe, [reference])[0])


def levels(height: int, width: int) -> Any:
    """Tokens to (1, height, width) of a level of a UNet."""

    def grid(tokens: int) -> tuple[int, int, int]:
        h, w = height, width
        while h * w != tokens:
            assert h * w > tokens
            h, w = -(-h // 2), -(-w // 2)
        return 1, h, w

    return grid


def slow_drawing(
    name: str,
    pipe: Any,
    prompts: Sequence[Prompt],
    *,
    rule: str = "guidance",
    background: float = 0.0,
    parts: Sequence[bool] | None = None,
    to_prompt: bool = False,
    images: int = 1,
    steps: Sequence[int] | None = None,
    size: tuple[int, int] = (8, 8),
    **arguments: Any,
) -> Drawn:
    """`draw` with the slow attention.

    parts: as in `rows_of`; those of the pipeline's guidance if None.
    to_prompt: whether the rule moves away from the reference prompt.
    steps: of each call; one after the other if None.
    size: (height, width) of the latents.
    """
    rows = rows_of(
        parts_of(name) if parts is None else parts,
        prompts=len(prompts),
        images=images,
        frames=FRAMES.get(name, 1),
    )
    if to_prompt:
        rows = [Row(row.prompt) for row in rows]
    if steps is None:
        steps = range(FIRST_STEP.get(name, 0), steps_of(name))
    slow = Slow(
        prompts,
        rows=lambda call: rows,
        steps=steps,
        grid=levels(*size),
        keys_values=linear_keys_values,
        rule=rule,
        background=background,
    )
    with slow_attention(pipe.unet, slow):
        drawn = draw(name, pipe, **arguments)
    assert slow.calls == len(steps)
    return drawn


def compare(
    name: str,
    layouts: Sequence[Any],
    weights: Sequence[Tensor],
    regions: Any,
    monkeypatch: Any,
    *,
    build: Any = None,
    reference: str = "",
    dtype: torch.dtype = torch.float32,
    calls: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Asserts that each call of the denoiser under `regions(pipe)` equals the slow attention.

    Args:
        layouts, weights: of the slow attention, one a prompt.
        regions: from the pipeline to a context in which it has regions.
        build: makes the pipeline of a dtype; that of the name if None.
        reference: the reference prompt.
        calls: arguments of all drawings.
        options: of `slow_drawing`.
    """
    calls = dict(calls or {})
    drawn = {}
    with noise_of_float32(monkeypatch):
        for each in (torch.float64, dtype):
            pipe = (build or unets.BUILDERS[name])(dtype=each)
            prompts = [
                prompt_of(pipe, layout, lam, reference)
                for layout, lam in zip(layouts, weights, strict=True)
            ]
            follow = drawn.get(torch.float64)
            drawn[each] = slow_drawing(name, pipe, prompts, follow=follow, **options, **calls)
        with regions(pipe):
            ours = draw(name, pipe, follow=drawn[torch.float64], **calls)
    assert_within_twice(ours, drawn[dtype], drawn[torch.float64])


def assert_within_twice(actual: Drawn, plain: Drawn, exact: Drawn) -> None:
    """The twice-eager rule for what the denoiser gave in all calls together.

    Errors against float64 are at most twice those of plain PyTorch, which counts as no closer than
    the rounding of the exact result to the dtype. The largest of many is a matter of chance: four
    times.
    """
    unit = torch.finfo(plain.predicted[0].dtype).eps / 2
    shapes = [[tuple(x.shape) for x in drawn.predicted] for drawn in (actual, plain, exact)]
    assert shapes[0] == shapes[1] == shapes[2]
    mine, theirs, right = (
        torch.cat([x.flatten().double() for x in drawn.predicted])
        for drawn in (actual, plain, exact)
    )
    error, allowed, rounding = (mine - right).abs(), (theirs - right).abs(), right.abs() * unit
    for rule, of, times in (("root mean square", _rms, 2), ("largest", torch.max, 4)):
        most = times * max(of(allowed), of(rounding))
        assert of(error) <= most, f"{rule} error {of(error):.3g}, allowed {most:.3g}"


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
