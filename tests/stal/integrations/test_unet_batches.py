"""Several prompts and pictures in one call of a pipeline around a UNet, and changing sizes."""

import numpy as np
import pytest
import torch

from stal.integrations.diffusers import regional_attention
from tests.stal.integrations import unets
from tests.stal.integrations.unet_cases import (
    LAYOUT,
    OTHER_LAYOUT,
    OTHER_PROMPT,
    PROMPT,
    compare,
    draw,
)

PROMPTS = [PROMPT, OTHER_PROMPT]
LAYOUTS = [LAYOUT, OTHER_LAYOUT]
WEIGHTS = [
    torch.tensor([[0.9, 0.6], [0.5, 0.8], [0.7, 0.3], [0.4, 0.9]]),
    torch.tensor([[0.3, 0.9, 0.5], [0.8, 0.2, 0.6], [0.9, 0.4, 0.7], [0.1, 0.8, 0.3]]),
]


def weights(name):
    return [each[: 4 if name == "img2img" else 2] for each in WEIGHTS]


@pytest.mark.parametrize(
    "name", ["sd1", "xl", "xl_turbo", "img2img", "pag", "instruct_pix2pix", "animate_diff"]
)
@pytest.mark.parametrize("rule", ["guidance", "convex"])
def test_prompts_with_other_layouts_and_two_images_each(name, rule, monkeypatch):
    """Each row of the batch is as the slow attention has it, which knows no batches."""
    calls = {"prompt": PROMPTS}
    # AnimateDiff draws one clip of a prompt.
    images = 1 if name == "animate_diff" else 2
    if images > 1:
        calls["num_images_per_prompt"] = images
    if name != "xl_turbo":
        calls["negative_prompt"] = ["a green knight", "a red star"]

    def regions(pipe):
        return regional_attention(pipe, PROMPTS, layout=LAYOUTS, weights=weights(name), rule=rule)

    compare(
        name, LAYOUTS, weights(name), regions, monkeypatch, rule=rule, images=images, calls=calls
    )


def test_a_prompt_without_objects_is_plain_among_others(monkeypatch):
    pipe = unets.stable_diffusion()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = draw("sd1", pipe, [PROMPT, OTHER_PROMPT], latents=latents)
    with regional_attention(pipe, PROMPTS, layout=[[], OTHER_LAYOUT]):
        drawn = draw("sd1", pipe, PROMPTS, latents=latents)
    change = np.abs(drawn.pictures - plain.pictures).reshape(2, -1).max(1)
    assert change[0] < 1e-3
    assert change[1] > 0.05


@pytest.mark.parametrize("name", unets.cases("sd1", "xl", "kolors"))
def test_embeddings_in_place_of_text_draw_the_same(name):
    pipe = unets.BUILDERS[name]()
    with regional_attention(pipe, PROMPT, layout=LAYOUT):
        expected = draw(name, pipe)

    def encoded(texts):
        options = {"num_images_per_prompt": 1, "do_classifier_free_guidance": True}
        return pipe.encode_prompt(texts, device=torch.device("cpu"), **options)

    prompt = encoded([PROMPT])
    local = encoded([phrase for phrase, _ in LAYOUT])[0]
    given = {"prompt_embeds": prompt[0], "negative_prompt_embeds": prompt[1]}
    if name != "sd1":
        given |= {"pooled_prompt_embeds": prompt[2], "negative_pooled_prompt_embeds": prompt[3]}
    encoders = pipe.text_encoder
    pipe.text_encoder = None
    with regional_attention(
        pipe,
        prompt_embeds=prompt[0],
        local_embeds=local,
        layout=LAYOUT,
        reference="unconditional",
    ):
        drawn = draw(name, pipe, None, **given)
    pipe.text_encoder = encoders
    assert np.abs(drawn.pictures - expected.pictures).max() < 1e-4


def test_embeddings_of_more_tokens_than_the_phrases(monkeypatch):
    """Prompts of 154 tokens, made of two pieces, beside local prompts of 77."""
    pipe = unets.stable_diffusion()
    prompt = pipe.encode_prompt([PROMPT, OTHER_PROMPT, ""], torch.device("cpu"), 1, False)[0]
    long = torch.cat([prompt[0], prompt[1]])[None]
    negative = torch.cat([prompt[2], prompt[2]])[None]
    given = {"prompt_embeds": long, "negative_prompt_embeds": negative}
    with regional_attention(pipe, PROMPT, prompt_embeds=long, layout=LAYOUT):
        drawn = draw("sd1", pipe, None, **given)
        assert np.abs(drawn.pictures - draw("sd1", pipe, None, **given).pictures).max() == 0
    with regional_attention(pipe, PROMPT, prompt_embeds=long, layout=LAYOUT, strength=0):
        zero = draw("sd1", pipe, None, **given)
    plain = draw("sd1", pipe, None, **given)
    assert np.abs(zero.pictures - plain.pictures).max() < 1e-4
    assert np.abs(drawn.pictures - plain.pictures).max() > 0.05


@pytest.mark.parametrize("name", ["sd1", "xl", "inpaint", "controlnet", "animate_diff"])
@pytest.mark.parametrize("size", [(72, 56), (40, 88)], ids=str)
def test_odd_sizes(name, size, monkeypatch):
    width, height = size

    def regions(pipe):
        return regional_attention(
            pipe, PROMPT, layout=LAYOUT, weights=WEIGHTS[0][:2], aspect=width / height
        )

    compare(
        name,
        [LAYOUT],
        [WEIGHTS[0][:2]],
        regions,
        monkeypatch,
        calls=unets.arguments(name, width=width, height=height),
        size=(height // 8, width // 8),
    )


def test_the_size_may_change_from_call_to_call():
    pipe = unets.stable_diffusion()
    sizes = [(64, 64), (72, 56), (64, 64), (128, 64)]
    with regional_attention(pipe, PROMPT, layout=LAYOUT):
        drawn = [draw("sd1", pipe, width=w, height=h).pictures for w, h in sizes]
    for (w, h), pictures in zip(sizes, drawn, strict=True):
        fresh = unets.stable_diffusion()
        with regional_attention(fresh, PROMPT, layout=LAYOUT):
            assert np.array_equal(draw("sd1", fresh, width=w, height=h).pictures, pictures)


def test_guidance_may_end_within_a_drawing():
    """The documented trick: a callback drops the unconditional half and its prompt."""
    pipe = unets.stable_diffusion()

    def stop(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    options = {
        "num_inference_steps": 4,
        "callback_on_step_end": stop,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    with regional_attention(pipe, PROMPT, layout=LAYOUT, rule="convex"):
        drawn = draw("sd1", pipe, **options)
    assert [len(x) for x in drawn.predicted] == [2, 2, 1, 1]
    plain = draw("sd1", pipe, **options)
    assert np.abs(drawn.predicted[2] - plain.predicted[2]).max() > 0.01
