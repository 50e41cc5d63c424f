"""What cannot be done with a pipeline around a UNet is said in one sentence, before it is begun."""

from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.hooks import (
    FasterCacheConfig,
    PyramidAttentionBroadcastConfig,
    apply_faster_cache,
    apply_pyramid_attention_broadcast,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from stal.integrations.diffusers import disable, enable, prepare, regional_attention
from stal.integrations.diffusers.models import MODELS
from stal.integrations.diffusers.refusals import _JOINT, check_processor
from tests.stal.integrations import unets
from tests.stal.integrations.unet_cases import (
    LAYOUT,
    OTHER_LAYOUT,
    OTHER_PROMPT,
    PROMPT,
    draw,
)


@pytest.fixture
def pipe():
    return unets.stable_diffusion()


def regions(pipe, **options):
    return regional_attention(pipe, PROMPT, layout=LAYOUT, **options)


def refuses(pipe, message, error=NotImplementedError):
    """Entering fails with this, and nothing is changed."""
    before = dict(pipe.unet.attn_processors)
    with pytest.raises(error, match=message), regions(pipe):
        pass
    after = pipe.unet.attn_processors
    assert all(after[name] is processor for name, processor in before.items())


def test_a_layout_of_another_prompt_is_warned_of(pipe):
    layout = prepare(pipe, OTHER_PROMPT).layouts[0]
    message = "the layout is of another prompt, .*: its objects are drawn into"
    with pytest.warns(UserWarning, match=message):
        prepare(pipe, PROMPT, layout=layout)


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
@pytest.mark.parametrize("prompt", [OTHER_PROMPT, [PROMPT, OTHER_PROMPT], [OTHER_PROMPT] * 3])
def test_another_prompt_than_prepared(pipe, prompt, guidance_scale):
    message = "pipe must be called with the prompts that its regions were prepared for, 'a red"
    with regions(pipe), pytest.raises(ValueError, match=message):
        draw("sd1", pipe, prompt, guidance_scale=guidance_scale)


@pytest.mark.parametrize(
    "prompt", [PROMPT, [OTHER_PROMPT, PROMPT], [PROMPT, OTHER_PROMPT, PROMPT], [PROMPT, PROMPT]]
)
def test_other_prompts_than_the_two_prepared(pipe, prompt):
    message = "pipe must be called with the prompts that its regions were prepared for, .* and .*"
    layouts = [LAYOUT, OTHER_LAYOUT]
    with regional_attention(pipe, [PROMPT, OTHER_PROMPT], layout=layouts):
        with pytest.raises(ValueError, match=message):
            draw("sd1", pipe, prompt)
        draw("sd1", pipe, [PROMPT, OTHER_PROMPT])


def test_prompts_encoded_otherwise():
    pipe = unets.stable_diffusion_xl()
    with regions(pipe), pytest.raises(ValueError, match="encode= if they are encoded otherwise"):
        draw("xl", pipe, clip_skip=1)
    with regions(pipe, encode={"clip_skip": 1}):
        draw("xl", pipe, clip_skip=1)


def test_an_empty_phrase(pipe):
    with pytest.raises(ValueError, match="phrase"):
        prepare(pipe, PROMPT, layout=[("", (0, 0, 1, 1))])


def many(count):
    return [("a red circle", (i / count, 0.0, (i + 1) / count, 1.0)) for i in range(count)]


@pytest.mark.parametrize("count", [17, 255])
def test_many_regions_work(pipe, count):
    with regional_attention(pipe, PROMPT, layout=many(count)):
        drawn = draw("sd1", pipe)
    assert np.abs(drawn.pictures - draw("sd1", pipe).pictures).max() > 0.02


def test_256_regions_are_refused(pipe):
    with pytest.raises(ValueError, match="must have at most 255 objects, got 256"):
        prepare(pipe, PROMPT, layout=many(256))


def test_a_layout_of_another_aspect_is_warned_of_once(pipe):
    with regions(pipe), pytest.warns(UserWarning, match=r"is stretched to 16 x 8 latents") as seen:
        draw("sd1", pipe, width=128)
    assert len([w for w in seen if "stretched" in str(w.message)]) == 1


def test_strings_without_a_text_encoder(pipe):
    embeds = pipe.encode_prompt([PROMPT], torch.device("cpu"), 1, False)[0]
    pipe.text_encoder = None
    message = "prompt_embeds and local_embeds must be given, .* the pipeline has no text encoder"
    with pytest.raises(ValueError, match=f"{message}, got text: '{PROMPT}'"):
        prepare(pipe, PROMPT, layout=LAYOUT)
    with pytest.raises(ValueError, match=f"{message}, got text: 'a red circle', 'a blue square'"):
        prepare(pipe, PROMPT, prompt_embeds=embeds, layout=LAYOUT)
    with pytest.raises(ValueError, match=f"{message}, got text: ''"):
        prepare(pipe, prompt_embeds=embeds, local_embeds=embeds.repeat(2, 1, 1), layout=LAYOUT)
    prepare(
        pipe,
        prompt_embeds=embeds,
        local_embeds=embeds.repeat(2, 1, 1),
        layout=LAYOUT,
        reference_embeds=embeds,
    )


def test_embeddings_of_other_shapes(pipe):
    embeds = pipe.encode_prompt([PROMPT], torch.device("cpu"), 1, False)[0]
    for options, message in (
        ({"prompt_embeds": embeds[0]}, r"prompt_embeds must be a \(prompts, tokens, width\)"),
        ({"local_embeds": embeds}, "local_embeds must be of 2 objects of the layout, got 1"),
        ({"local_embeds": embeds[..., :8].repeat(2, 1, 1)}, "must have the width of prompt_emb"),
        ({"prompt_embeds": embeds.repeat(2, 1, 1)}, "prompt_embeds must be of 1 prompts, got 2"),
        ({"reference_embeds": embeds.repeat(2, 1, 1)}, "reference_embeds must be of 1 prompts"),
        ({"reference_embeds": [embeds] * 2}, "reference_embeds must be a list of 1, one a prompt"),
        ({"reference_embeds": ()}, r"reference_embeds must be a \(prompts, tokens, width\)"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(pipe, PROMPT, layout=LAYOUT, **options)


def test_nesting(pipe):
    with regions(pipe):
        first = draw("sd1", pipe).pictures
        with (
            pytest.raises(ValueError, match="pipe must have no regions yet, got one that has"),
            regions(pipe),
        ):
            pass
        assert np.array_equal(draw("sd1", pipe).pictures, first)


def test_disable_without_regions_does_nothing(pipe):
    plain = draw("sd1", pipe).pictures
    disable(pipe)
    enable(pipe, prepare(pipe, PROMPT, layout=LAYOUT))
    disable(pipe)
    disable(pipe)
    assert np.array_equal(draw("sd1", pipe).pictures, plain)


def test_attention_slicing(pipe):
    pipe.enable_attention_slicing()
    refuses(pipe, r"pipe must not slice attention, got SlicedAttnProcessor in .*disable_attention")
    pipe.disable_attention_slicing()
    with regions(pipe):
        draw("sd1", pipe)


def test_fused_projections(pipe):
    pipe.fuse_qkv_projections()
    refuses(pipe, r"pipe must have its projections apart, .* call unfuse_qkv_projections\(\)")
    pipe.unfuse_qkv_projections()
    with regions(pipe):
        draw("sd1", pipe)


def test_processors_of_others(pipe):
    class Custom(AttnProcessor2_0):
        pass

    pipe.unet.set_attn_processor(Custom())
    refuses(
        pipe,
        r"pipe must have attention processors of AttnProcessor, .* got Custom in down_.*: remove"
        r" what set it, or set AttnProcessor2_0\(\)$",
    )


def test_processors_of_others_where_the_row_does_not_know_the_plain_one():
    class Custom:
        pass

    module = SimpleNamespace(get_processor=Custom)
    message = (
        "^pipe must have attention processors of WanAttnProcessor, WanAttnProcessor2_0, got Custom"
        " in blocks.0.attn2: remove what set it, or load the denoiser anew$"
    )
    with pytest.raises(NotImplementedError, match=message):
        check_processor("blocks.0.attn2", module, MODELS["WanTransformer3DModel"])


def test_the_older_processor_is_replaced_too(pipe):
    with regions(pipe):
        expected = draw("sd1", pipe).pictures
    shared = AttnProcessor()
    pipe.unet.set_attn_processor(shared)
    with regions(pipe):
        drawn = draw("sd1", pipe).pictures
    assert np.abs(drawn - expected).max() < 1e-4
    assert all(processor is shared for processor in pipe.unet.attn_processors.values())


def test_processors_replaced_within(pipe):
    message = "pipe must keep its attention processors while regions are enabled, got Sliced"
    with regions(pipe):
        pipe.enable_attention_slicing()
        with pytest.raises(ValueError, match=message):
            draw("sd1", pipe)
    # What somebody else has put there stays.
    kinds = {type(p).__name__ for p in pipe.unet.attn_processors.values()}
    assert kinds == {"SlicedAttnProcessor"}


def test_a_denoiser_replaced_within_is_restored(pipe):
    old, other = pipe.unet, unets.stable_diffusion().unet
    before = dict(old.attn_processors)
    with regions(pipe):
        pipe.unet = other
        draw("sd1", pipe)
    assert all(old.attn_processors[name] is p for name, p in before.items())
    assert not hasattr(old, "_diffusers_hook")


@pytest.mark.parametrize("build", [unets.kandinsky_2_2_unet, unets.deepfloyd_if_unet])
def test_added_keys(pipe, build):
    """By name, and not for what their pipelines lack of text encoders."""
    state, unet = prepare(pipe, PROMPT, layout=LAYOUT), build()
    other = SimpleNamespace(unet=unet, scheduler=None, text_encoder=None)
    before = dict(unet.attn_processors)
    message = "pipe must have cross-attention to the text alone, got AttnAddedKVProcessor2_0 in"
    for refused in (lambda: prepare(other, PROMPT, layout=LAYOUT), lambda: enable(other, state)):
        with pytest.raises(NotImplementedError, match=message):
            refused()
    assert all(unet.attn_processors[name] is p for name, p in before.items())


def test_what_cannot_have_regions_is_said_before_anything_is_encoded(pipe, monkeypatch):
    pipe.enable_attention_slicing()
    monkeypatch.setattr(pipe, "encode_prompt", None)
    with pytest.raises(NotImplementedError, match="pipe must not slice attention, got Sliced"):
        prepare(pipe, PROMPT, layout=LAYOUT)


def test_regions_are_prepared_while_others_are_enabled(pipe):
    with regions(pipe):
        state = prepare(pipe, OTHER_PROMPT, layout=OTHER_LAYOUT)
    enable(pipe, state)
    draw("sd1", pipe, OTHER_PROMPT)
    disable(pipe)


def cached_by_pyramid(unet):
    config = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2,
        cross_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(unet, config)


def cached_by_faster(unet):
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_block_identifiers=("transformer_blocks",),
        unconditional_batch_skip_range=None,
        current_timestep_callback=lambda: 500,
    )
    apply_faster_cache(unet, config)


@pytest.mark.parametrize("cache", [cached_by_pyramid, cached_by_faster])
def test_caches_of_attention(pipe, cache):
    cache(pipe.unet)
    refuses(pipe, "pipe must compute attention in every call, got the hook (pyramid|faster)")


@pytest.mark.parametrize(
    "name",
    [
        "FluxTransformer2DModel",
        "SD3Transformer2DModel",
        "QwenImageTransformer2DModel",
        "ZImageTransformer2DModel",
    ],
)
def test_joint_attention_is_named(name):
    pipe = SimpleNamespace(transformer=object.__new__(getattr(diffusers, name)), scheduler=None)
    torch.nn.Module.__init__(pipe.transformer)
    message = (
        f"got {name} as transformer, whose attention is over text and pixels together: use one of"
        " these$"
    )
    for entry in (prepare, enable):
        with pytest.raises(NotImplementedError, match=message):
            entry(pipe, PROMPT)


@pytest.mark.parametrize("prefix", _JOINT)
def test_names_of_joint_attention_are_of_diffusers_and_have_no_row(prefix):
    assert any(name.startswith(prefix) and "Transformer" in name for name in dir(diffusers))
    assert not any(name.startswith(prefix) for name in MODELS)


def test_a_denoiser_without_a_row_and_none():
    pipe = SimpleNamespace(unet=torch.nn.Linear(1, 1))
    with pytest.raises(NotImplementedError, match=r"UNetMotionModel.*, got Linear as unet$"):
        prepare(pipe, PROMPT)
    with pytest.raises(NotImplementedError, match=r"with unet or transformer .*, got SimpleName"):
        prepare(SimpleNamespace(), PROMPT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": float("inf")}, "strength must be finite"),
        ({"start": -0.1}, r"start must be a share of the steps, in \[0, 1\], got -0.1"),
        ({"stop": (0.5, 2.0)}, r"stop must be a share of the steps, in \[0, 1\], got 2.0"),
        ({"strength": (1.0, 1.0, 1.0)}, "strength must be a number, or one for each of 2 regions"),
        ({"rule": "other"}, "rule must be one of"),
        ({"background": 1.0}, "background must be 0 unless"),
        ({"weights": [1.0, float("nan")]}, "weights must be finite"),
        ({"weights": [1.0, 1.0, 1.0]}, r"weights must be \(steps, objects\)"),
    ],
    ids=str,
)
def test_dials_out_of_range(pipe, options, message):
    with pytest.raises(ValueError, match=message), regions(pipe, **options):
        draw("sd1", pipe)
    assert "forward" not in pipe.unet.__dict__


def test_a_reference_in_the_unconditional_half_needs_one(pipe):
    message = "reference must be a prompt, e.g. 'an empty scene', where the unconditional half"
    with regions(pipe, reference="unconditional"):
        draw("sd1", pipe)
        with pytest.raises(ValueError, match=message):
            draw("sd1", pipe, guidance_scale=1.0)
