"""Tiny pipelines draw, the same each time, and their pictures depend on the prompt."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import (
    Attention,
    AttnAddedKVProcessor2_0,
    IPAdapterAttnProcessor2_0,
)

from tests.stal.integrations import tiny, unets

PROMPT = "a red circle to the left of a blue square"
STEPS = 3


@pytest.fixture(params=unets.CASES)
def name(request) -> str:
    return request.param


def draw(name, pipe, prompt=PROMPT, **changes):
    """Pictures as (n, height, width, 3) in [0, 1]; AnimateDiff's frames in n."""
    arguments = unets.arguments(name) | changes
    generator = torch.Generator().manual_seed(0)
    result = pipe(
        prompt, num_inference_steps=STEPS, generator=generator, output_type="np", **arguments
    )
    pictures = result.frames[0] if name == "animate_diff" else result.images
    assert np.isfinite(pictures).all()
    return pictures


def cross_attentions(pipe):
    return {
        name: module
        for name, module in pipe.unet.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    }


def test_two_builds_are_equal(name):
    first, second = unets.BUILDERS[name](), unets.BUILDERS[name]()
    for part, module in first.components.items():
        if isinstance(module, torch.nn.Module):
            torch.testing.assert_close(
                second.components[part].state_dict(), module.state_dict(), rtol=0, atol=0
            )
    assert np.array_equal(draw(name, first), draw(name, second))


def test_the_picture_depends_on_the_prompt(name):
    pipe = unets.BUILDERS[name]()
    change = np.abs(draw(name, pipe) - draw(name, pipe, "a green knight"))
    assert change.mean() > 0.02
    assert change.max() > 0.2


def test_attention_is_far_from_uniform(name):
    """The largest probability of a pixel, on average, is several times one over the tokens."""
    pipe = unets.BUILDERS[name]()
    layers = cross_attentions(pipe)
    peaks = {}

    def record(layer, module):
        def hook(to_k, inputs, k):
            q = module.head_to_batch_dim(queries.pop(layer))
            scores = module.get_attention_scores(q, module.head_to_batch_dim(k))
            peaks[layer] = scores.amax(-1).mean() * scores.shape[-1]

        return hook

    queries = {}
    for layer, module in layers.items():
        module.to_q.register_forward_hook(
            lambda to_q, inputs, q, layer=layer: queries.__setitem__(layer, q)
        )
        module.to_k.register_forward_hook(record(layer, module))
    draw(name, pipe)
    assert peaks.keys() == layers.keys()
    assert min(peaks.values()) > 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_pipelines_draw_in_any_dtype(name, dtype):
    pipe = unets.BUILDERS[name](dtype=dtype)
    assert pipe.unet.dtype == dtype
    draw(name, pipe)


def test_odd_latents_are_drawn(name):
    pipe = unets.BUILDERS[name]()
    pictures = draw(name, pipe, **unets.arguments(name, width=72, height=56))
    assert pictures.shape[1:] == (56, 72, 3)


@pytest.mark.parametrize("name", ["sd1", "xl"])
def test_a_saved_folder_draws_the_same(name, tmp_path):
    pipe = unets.BUILDERS[name]()
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    # Weights lie elsewhere in memory, and sums are rounded otherwise: by less than a level.
    assert np.abs(draw(name, loaded) - draw(name, pipe)).max() < 1 / 255


def test_controlnets_and_adapters_count():
    for name in ("controlnet", "xl_controlnet"):
        pipe = unets.BUILDERS[name]()
        change = draw(name, pipe) - draw(name, pipe, controlnet_conditioning_scale=0.0)
        assert np.abs(change).mean() > 0.01
    pipe = unets.BUILDERS["adapter"]()
    change = draw("adapter", pipe) - draw("adapter", pipe, adapter_conditioning_scale=0.0)
    assert np.abs(change).mean() > 0.01


def test_an_ip_adapter_sits_on_cross_attention_and_its_picture_counts():
    pipe = unets.stable_diffusion_ip_adapter()
    for module in cross_attentions(pipe).values():
        assert isinstance(module.processor, IPAdapterAttnProcessor2_0)
        assert module.processor.scale == [0.6]
    other = draw("ip_adapter", pipe, ip_adapter_image=tiny.image(1))
    assert np.abs(draw("ip_adapter", pipe) - other).mean() > 0.01


@pytest.mark.needs("peft")
def test_a_lora_changes_the_picture_and_goes_without_a_trace():
    pipe = unets.stable_diffusion()
    plain = draw("sd1", pipe)
    pipe.load_lora_weights(unets.lora_state(pipe.unet), adapter_name="first")
    pipe.load_lora_weights(unets.lora_state(pipe.unet, seed=1), adapter_name="second")
    pictures = []
    for adapter in ("first", "second"):
        pipe.set_adapters(adapter)
        pictures.append(draw("sd1", pipe))
    assert np.abs(pictures[0] - plain).mean() > 0.02
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.02
    pipe.unload_lora_weights()
    assert np.array_equal(draw("sd1", pipe), plain)


@pytest.mark.parametrize(
    ("build", "channels", "conditions"),
    [
        (unets.kandinsky_2_2_unet, 4, {"image_embeds": torch.ones(2, 32)}),
        (unets.deepfloyd_if_unet, 3, {}),
    ],
)
def test_unets_with_added_keys_predict(build, channels, conditions):
    with tiny.seeded(0):
        sample, text = torch.randn(2, channels, 8, 8), torch.randn(2, 5, 32)
    unet = build()
    added = [p for p in unet.attn_processors.values() if isinstance(p, AttnAddedKVProcessor2_0)]
    assert added
    predicted = unet(sample, 7, text, added_cond_kwargs=conditions).sample
    assert predicted.shape == (2, 2 * channels, 8, 8)
    assert predicted.isfinite().all()
    assert torch.equal(build()(sample, 7, text, added_cond_kwargs=conditions).sample, predicted)
