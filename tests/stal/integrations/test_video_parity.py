"""Regions in pipelines of Cosmos, Anima, Wan and Kandinsky equal a slow computation beside them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance
from torch import Tensor
from torch._dynamo.utils import counters

from stal.integrations.diffusers import disable, enable, prepare, regional_attention

from .slow_videos import Box, Errors, Prompt, Watch, received
from .videos import (
    ARGUMENTS,
    anima,
    cosmos2_text_to_image,
    cosmos25_predict,
    cosmos_text_to_world,
    draw,
    kandinsky5_text_to_image,
    kandinsky5_text_to_video,
    kandinsky5_transformer,
    kandinsky6,
    wan21,
    wan21_image_to_video,
    wan22,
    wan22_5b,
)

PROMPT = "a red cat on the castle"
PHRASES = ("a red cat", "the castle")
BOXES: tuple[Box, ...] = ((0.0, 0.1, 0.55, 1.0), (0.4, 0.2, 1.0, 0.9))
WEIGHTS = torch.tensor([[0.9, 0.5], [0.6, 0.8]])
LAYOUT = list(zip(PHRASES, BOXES, strict=True))
REGIONS = {"layout": LAYOUT, "weights": WEIGHTS, "aspect": 4 / 3}
SLOW = Prompt(PHRASES, BOXES, WEIGHTS)

each_pipeline = pytest.mark.parametrize("build", ARGUMENTS, ids=lambda build: build.__name__)


@cache
def built(build: Callable[..., Any]) -> Any:
    """One pipeline for all tests that leave it as it was."""
    return build()


def watched(pipe: Any, arguments: dict[str, Any], regions: Any, watch: Watch) -> Errors:
    """The errors of a call with regions."""
    prompt = arguments.get("prompt")
    with regional_attention(pipe, prompt, **regions), watch.watching() as errors:
        draw(pipe, arguments)
    return errors


def check(errors: Errors, calls: Sequence[bool]) -> None:
    """At most twice the error of diffusers' own attention; which calls had regions."""
    assert errors.calls == list(calls)
    assert errors.ours <= 2 * errors.plain


@each_pipeline
def test_guidance_in_two_calls_moves_away_from_the_empty_prompt(build: Callable[..., Any]) -> None:
    pipe, arguments = built(build), ARGUMENTS[build]
    before = draw(pipe, arguments)
    watch = Watch(pipe, arguments, [SLOW])
    with regional_attention(pipe, PROMPT, **REGIONS), watch.watching() as errors:
        picture = draw(pipe, arguments)
    check(errors, [True, False] * 2)
    assert (picture - before).abs().mean() > 0.01
    assert torch.equal(draw(pipe, arguments), before)


@each_pipeline
def test_strength_0_and_a_region_with_the_global_prompt_are_plain(
    build: Callable[..., Any],
) -> None:
    pipe, arguments = built(build), ARGUMENTS[build]
    watch = Watch(pipe, arguments, [], rule="plain")
    check(watched(pipe, arguments, {**REGIONS, "strength": 0}, watch), [False] * 4)
    whole = {"layout": [(PROMPT, (0, 0, 1, 1))], "aspect": 4 / 3, "weights": [[0.7], [1.0]]}
    check(watched(pipe, arguments, {**whole, "rule": "convex"}, watch), [False] * 4)


@pytest.mark.parametrize("build", [anima, wan21, kandinsky5_text_to_image, kandinsky6])
def test_convex(build: Callable[..., Any]) -> None:
    pipe, arguments = built(build), ARGUMENTS[build]
    watch = Watch(pipe, arguments, [SLOW], rule="convex")
    check(watched(pipe, arguments, {**REGIONS, "rule": "convex"}, watch), [True, False] * 2)


@pytest.mark.parametrize("build", [anima, cosmos2_text_to_image, wan21, kandinsky5_text_to_video])
def test_without_guidance_there_is_one_call_a_step(build: Callable[..., Any]) -> None:
    pipe, off = built(build), {"guidance_scale": 1.0}
    if build is anima:
        pipe, off = anima(), {}
        pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=1.0))
    arguments = {**ARGUMENTS[build], **off}
    watch = Watch(pipe, arguments, [SLOW], conditional=lambda call: True, steps=lambda call: call)
    check(watched(pipe, arguments, REGIONS, watch), [True] * 2)


def test_guidance_that_starts_and_stops_inside_a_run() -> None:
    pipe = anima()
    steps = [0, 1, 2, 2, 3, 3, 4]
    own = [True, True, True, False, True, False, True]
    weights = torch.linspace(1, 0.2, 5)[:, None] * torch.tensor([[1.0, 0.6]])
    arguments = {**ARGUMENTS[anima], "num_inference_steps": 5}
    slow = Prompt(PHRASES, BOXES, weights)
    watch = Watch(pipe, arguments, [slow], conditional=own.__getitem__, steps=steps.__getitem__)
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=4.0, start=0.4, stop=0.8))
    check(watched(pipe, arguments, {**REGIONS, "weights": weights}, watch), own)


def test_start_and_stop_go_on_across_the_two_denoisers_of_wan() -> None:
    pipe = built(wan22)
    arguments = {**ARGUMENTS[wan22], "num_inference_steps": 4, "guidance_scale_2": 3.0}
    weights = torch.tensor([[0.9, 0.0], [0.8, 0.5], [0.0, 0.7], [0.0, 0.4]])
    given = {**REGIONS, "start": [0, 0.25], "stop": [0.5, 1]}
    given["weights"] = torch.where(weights > 0, weights, 0.3)
    seen = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: seen.append(module))
        for module in (pipe.transformer, pipe.transformer_2)
    ]
    watch = Watch(pipe, arguments, [Prompt(PHRASES, BOXES, weights)])
    seen.clear()
    check(watched(pipe, arguments, given, watch), [True, False] * 4)
    for handle in handles:
        handle.remove()
    assert seen[0] is pipe.transformer
    assert seen[-1] is pipe.transformer_2


ROWS = [
    (cosmos2_text_to_image, "num_images_per_prompt"),
    (anima, "num_images_per_prompt"),
    (wan21, "num_videos_per_prompt"),
    (kandinsky5_text_to_image, "num_images_per_prompt"),
    (kandinsky6, "num_videos_per_prompt"),
]


@pytest.mark.parametrize(("build", "number"), ROWS)
def test_two_prompts_with_two_pictures_each(build: Callable[..., Any], number: str) -> None:
    prompts = [PROMPT, "a blue dog above a tree"]
    second = Prompt(("a blue dog",), ((0.3, 0.0, 0.8, 0.6),), torch.tensor([[1.0], [0.5]]))
    layouts = [LAYOUT, list(zip(second.phrases, second.boxes, strict=True))]
    pipe = built(build)
    alone = {**ARGUMENTS[build], "negative_prompt": "night"}
    arguments = {**alone, "prompt": prompts, "negative_prompt": ["night", "night"], number: 2}
    watch = Watch(pipe, alone, [SLOW, second])
    regions = {"layout": layouts, "weights": [WEIGHTS, second.weights], "aspect": 4 / 3}
    check(watched(pipe, arguments, regions, watch), [True, False] * 2)


@pytest.mark.parametrize(
    ("build", "number"),
    [(cosmos2_text_to_image, "num_images_per_prompt"), (wan21, "num_videos_per_prompt")],
)
def test_one_row_of_embeddings_for_two_pictures(build: Callable[..., Any], number: str) -> None:
    pipe = built(build)
    given, negative = (
        received(pipe, {**ARGUMENTS[build], "prompt": text})["encoder_hidden_states"]
        for text in (PROMPT, "night")
    )
    arguments = {name: v for name, v in ARGUMENTS[build].items() if not name.endswith("prompt")} | {
        "prompt_embeds": given,
        "negative_prompt_embeds": negative,
        number: 2,
    }
    watch = Watch(pipe, {**ARGUMENTS[build]}, [SLOW])
    check(watched(pipe, arguments, {**REGIONS, "prompt_embeds": given}, watch), [True, False] * 2)


@pytest.mark.parametrize("build", [anima, cosmos25_predict, wan21, kandinsky5_text_to_video])
def test_odd_numbers_of_tokens(build: Callable[..., Any]) -> None:
    arguments = {**ARGUMENTS[build], "height": 112, "width": 80}
    watch = Watch(built(build), arguments, [SLOW], grid=(7, 5))
    regions = {**REGIONS, "aspect": 5 / 7}
    check(watched(built(build), arguments, regions, watch), [True, False] * 2)


def test_wan_drops_the_last_row_and_column_of_odd_latents() -> None:
    pipe = built(wan21)
    pipe.scheduler.set_timesteps(2)
    text = received(pipe, ARGUMENTS[wan21])["encoder_hidden_states"]
    latents = torch.randn(1, 4, 2, 11, 15, generator=torch.Generator().manual_seed(0))
    watch = Watch(pipe, ARGUMENTS[wan21], [SLOW], grid=(5, 7))
    pipe.scheduler.set_timesteps(2)
    regions = {**REGIONS, "aspect": 15 / 11}
    with regional_attention(pipe, PROMPT, **regions), watch.watching() as errors:
        pipe.transformer(
            hidden_states=latents, timestep=pipe.scheduler.timesteps[:1], encoder_hidden_states=text
        )
    check(errors, [True])


def test_the_image_of_kandinsky_6_has_no_regions() -> None:
    pipe = built(kandinsky6)
    arguments = {**ARGUMENTS[kandinsky6], "image": ARGUMENTS[wan21_image_to_video]["image"]}
    watch = Watch(pipe, arguments, [SLOW], image_frames=1)
    check(watched(pipe, arguments, REGIONS, watch), [True, False] * 2)


def test_cosmos_25_knows_the_step_by_frames_that_are_not_given() -> None:
    pipe = built(cosmos25_predict)
    image = ARGUMENTS[wan21_image_to_video]["image"]
    arguments = {**ARGUMENTS[cosmos25_predict], "image": image}
    watch = Watch(pipe, arguments, [SLOW])
    check(watched(pipe, arguments, REGIONS, watch), [True, False] * 2)


HALF = [
    cosmos_text_to_world,
    cosmos2_text_to_image,
    cosmos25_predict,
    anima,
    wan21,
    wan22_5b,
    wan21_image_to_video,
    kandinsky5_text_to_image,
    kandinsky6,
]


@pytest.mark.parametrize("build", HALF)
def test_bfloat16(build: Callable[..., Any]) -> None:
    pipe, arguments = build(dtype=torch.bfloat16), ARGUMENTS[build]
    watch = Watch(pipe, arguments, [SLOW])
    check(watched(pipe, arguments, REGIONS, watch), [True, False] * 2)


# The default numbers of steps. In bfloat16 some of Cosmos 2 have one timestep, but for an index.
@pytest.mark.parametrize(
    ("build", "steps"),
    [
        (cosmos_text_to_world, 36),
        (cosmos2_text_to_image, 35),
        (cosmos25_predict, 36),
        (anima, 50),
        (wan22_5b, 50),
        (kandinsky5_text_to_image, 60),
    ],
)
def test_each_step_is_known_in_bfloat16(build: Callable[..., Any], steps: int) -> None:
    pipe = build(dtype=torch.bfloat16)
    arguments = {**ARGUMENTS[build], "num_inference_steps": steps}
    found = []
    with regional_attention(pipe, PROMPT, layout=LAYOUT[:1], aspect=4 / 3):
        state = pipe.transformer._diffusers_hook.get_hook("stal_regions").denoiser

        def stop(module: Any, inputs: Any, kwargs: Any, out: Any) -> Any:
            found.append(int(state.call.step))

        handle = pipe.transformer.register_forward_hook(stop, with_kwargs=True)
        draw(pipe, arguments)
        handle.remove()
    assert found == [step for step in range(steps) for _ in range(2)]


def test_either_call_may_be_the_first_one() -> None:
    pipe = built(wan21)
    own, other = (
        received(pipe, {**ARGUMENTS[wan21], "prompt": text})["encoder_hidden_states"]
        for text in (PROMPT, "night")
    )
    latents = torch.randn(1, 4, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(2)

    def step(texts: Sequence[Tensor]) -> list[Tensor]:
        t = pipe.scheduler.timesteps[:1]
        return [
            pipe.transformer(hidden_states=latents, timestep=t, encoder_hidden_states=text).sample
            for text in texts
        ]

    regions = prepare(pipe, PROMPT, **REGIONS)
    enable(pipe, regions)
    first, second = step([own, other])
    disable(pipe)
    enable(pipe, regions)
    reversed_second, reversed_first = step([other, own])
    disable(pipe)
    assert torch.equal(first, reversed_first)
    assert torch.equal(second, reversed_second)


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_other_prompts_are_refused_by_the_second_call(guidance_scale: float) -> None:
    pipe, calls = built(wan21), []
    count = pipe.transformer.register_forward_hook(lambda *given: calls.append(given))
    arguments = {**ARGUMENTS[wan21], "prompt": "a blue dog", "guidance_scale": guidance_scale}
    with (
        regional_attention(pipe, PROMPT, **REGIONS),
        pytest.raises(ValueError, match="pipe must be called with the prompts that its regions"),
    ):
        draw(pipe, arguments)
    count.remove()
    assert len(calls) == 1


def test_a_run_of_one_call_of_another_prompt_is_warned_of() -> None:
    """It may be the call without the prompt of a run with guidance."""
    pipe = built(wan21)
    one = {**ARGUMENTS[wan21], "num_inference_steps": 1, "guidance_scale": 1.0}
    for calls in (1, 2):
        warned = pytest.warns(UserWarning, match="called with other prompts .* no regions")
        with warned as found, regional_attention(pipe, PROMPT, **REGIONS | {"weights": None}):
            for _ in range(calls):
                draw(pipe, {**one, "prompt": "a blue dog"})
        assert len(found) == calls
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with regional_attention(pipe, PROMPT, **REGIONS | {"weights": None}):
            draw(pipe, one)


@pytest.mark.parametrize("build", [kandinsky5_text_to_image, kandinsky6, wan21])
def test_a_prompt_without_objects_is_drawn_plain(build: Callable[..., Any]) -> None:
    pipe, arguments = built(build), ARGUMENTS[build]
    plain = draw(pipe, arguments)
    with regional_attention(pipe, arguments["prompt"], layout=[], rule="convex"):
        # Another kernel rounds otherwise, which the decoder of videos amplifies.
        torch.testing.assert_close(draw(pipe, arguments), plain, rtol=0, atol=1e-3)


def test_kandinsky_refuses_embeddings_without_the_second_encoders() -> None:
    pipe = built(kandinsky5_text_to_image)
    with pytest.raises(ValueError, match="local_embeds and reference_embeds must be left out"):
        prepare(pipe, PROMPT, layout=LAYOUT, local_embeds=torch.zeros(2, 4, 16))


def test_kandinsky_refuses_tokens_in_blocks() -> None:
    pipe = kandinsky5_text_to_image()
    nabla = kandinsky5_transformer(torch.float32, attention_type="nabla")
    pipe.register_modules(transformer=nabla)
    with pytest.raises(NotImplementedError, match="nabla"):
        prepare(pipe, PROMPT, layout=LAYOUT)


@pytest.mark.parametrize("build", [wan21, anima])
def test_compiled_denoiser_has_one_graph_for_all_steps(build: Callable[..., Any]) -> None:
    pipe, arguments = build(), {**ARGUMENTS[build], "num_inference_steps": 4}
    enable(pipe, prepare(pipe, PROMPT, layout=LAYOUT, aspect=4 / 3))
    eager = draw(pipe, arguments)
    torch._dynamo.reset()
    counters.clear()
    pipe.transformer.compile(backend="eager", fullgraph=True)
    assert torch.equal(draw(pipe, arguments), eager)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.needs("accelerate")
@pytest.mark.parametrize("build", [wan21, kandinsky5_text_to_image])
def test_group_offloading(build: Callable[..., Any]) -> None:
    pipe, arguments = build(), ARGUMENTS[build]
    with regional_attention(pipe, PROMPT, **REGIONS):
        expected = draw(pipe, arguments)
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )
    plain = draw(pipe, arguments)
    with regional_attention(pipe, PROMPT, **REGIONS):
        assert torch.equal(draw(pipe, arguments), expected)
    assert torch.equal(draw(pipe, arguments), plain)


def test_boxes_are_of_pictures_of_the_pipelines_default_size() -> None:
    for build, aspect in ((wan21, 832 / 480), (kandinsky5_text_to_image, 1.0)):
        regions = prepare(built(build), PROMPT, layout=LAYOUT)
        assert regions.layouts[0].aspect == pytest.approx(aspect)
