"""The tiny pipelines are fit to test with: repeatable, and ruled by their prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ModelMixin
from diffusers.pipelines.kandinsky6 import pipeline_kandinsky6_ti2va
from torch import nn

from .video_parts import KEY_NORMS
from .videos import ARGUMENTS, draw, kandinsky5_text_to_image, kandinsky5_text_to_video, kandinsky6

each_pipeline = pytest.mark.parametrize("build", ARGUMENTS, ids=lambda build: build.__name__)


def _denoisers(pipe: Any) -> list[nn.Module]:
    return [m for name, m in pipe.components.items() if name.startswith("transformer") and m]


def _cross_attentions(pipe: Any) -> list[nn.Module]:
    ends = ("attn2", "video_dec_block.cross_attention", "blocks.0.cross_attention")
    ends += ("blocks.1.cross_attention",)
    named = [pair for model in _denoisers(pipe) for pair in model.named_modules()]
    return [module for name, module in named if name.endswith(ends)]


@each_pipeline
def test_two_builds_draw_the_same_and_another_prompt_another_picture(
    build: Callable[..., Any],
) -> None:
    arguments = ARGUMENTS[build]
    picture = draw(build(), arguments)
    assert picture.shape[-3:] == (3, 96, 128)
    assert picture.std() > 0.1
    pipe = build()
    assert torch.equal(draw(pipe, arguments), picture)
    other = draw(pipe, arguments | {"prompt": "a blue dog with a tree"})
    assert (other - picture).abs().mean() > 0.05
    without = draw(pipe, arguments | {"negative_prompt": "night"})
    assert (without - picture).abs().mean() > 0.01


@each_pipeline
def test_cross_attention_rules_the_picture(build: Callable[..., Any]) -> None:
    pipe, arguments = build(), ARGUMENTS[build]
    picture = draw(pipe, arguments)
    modules = _cross_attentions(pipe)
    assert len(modules) == 2 * len(_denoisers(pipe))
    for module in modules:
        module.register_forward_hook(lambda module, inputs, out: torch.zeros_like(out))
    assert (draw(pipe, arguments) - picture).abs().mean() > 0.05


@each_pipeline
def test_cross_attention_is_far_from_uniform(build: Callable[..., Any]) -> None:
    pipe = build()
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], torch.Tensor]] = []
    for module in _cross_attentions(pipe):
        module.register_forward_hook(
            lambda module, inputs, named, out: calls.append((module, inputs, named, out)),
            with_kwargs=True,
        )
    draw(pipe, ARGUMENTS[build])
    recorded = list(calls)
    assert recorded
    for module, inputs, named, sharp in recorded:
        norms = [m for name, m in module.named_children() if name in KEY_NORMS]
        sharpness = [norm.weight.clone() for norm in norms]
        for norm in norms:
            norm.weight.zero_()
        uniform = module(*inputs, **named)
        for norm, weight in zip(norms, sharpness, strict=True):
            norm.weight.copy_(weight)
        assert (sharp - uniform).norm() > 0.5 * uniform.norm()


@each_pipeline
def test_no_weight_of_a_denoiser_is_zero(build: Callable[..., Any]) -> None:
    named = [pair for model in _denoisers(build()) for pair in model.named_parameters()]
    assert [name for name, weight in named if not weight.any()] == []


@each_pipeline
@pytest.mark.needs("accelerate")
def test_half_precision_is_what_from_pretrained_makes(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    wide, half = build(), build(dtype=torch.bfloat16)
    for name, model in wide.components.items():
        if isinstance(model, ModelMixin):
            model.save_pretrained(tmp_path / name)
            loaded = type(model).from_pretrained(tmp_path / name, torch_dtype=torch.bfloat16)
            built = half.components[name]
            assert built.dtype == torch.bfloat16
            expected = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
            found = {**dict(built.named_parameters()), **dict(built.named_buffers())}
            different = [
                key
                for key, weight in expected.items()
                if weight.dtype != found[key].dtype or not torch.equal(weight, found[key])
            ]
            assert different == []
    picture = draw(half, ARGUMENTS[build]).float()
    assert (picture - draw(wide, ARGUMENTS[build])).abs().mean() < 0.05


def test_kandinsky_cuts_where_the_prompt_begins() -> None:
    before = pipeline_kandinsky6_ti2va._PROMPT_TEMPLATE.split("{}")[0]
    tokens = kandinsky6().tokenizer.tokenizer(before).input_ids
    assert len(tokens) == pipeline_kandinsky6_ti2va._QWEN_CROP_START
    for pipe in (kandinsky5_text_to_video(), kandinsky5_text_to_image()):
        encoded, _, lengths = pipe.encode_prompt("a red cat")
        assert encoded.shape[1] == lengths[-1] == len(["a", "red", "cat", "<|im_end|>"])
