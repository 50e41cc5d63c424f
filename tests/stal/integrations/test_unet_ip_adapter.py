"""Regions under an IP-Adapter: its scale, masks, weights and names are what they were."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor2_0,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
)

from stal.integrations.diffusers import disable, enable, prepare, regional_attention
from tests.stal.integrations import tiny, unets
from tests.stal.integrations.unet_cases import LAYOUT, PROMPT, compare, draw

NAME = "ip_adapter"
WEIGHTS = torch.tensor([[0.9, 0.6], [0.5, 0.8]])


def regions(pipe):
    return regional_attention(pipe, PROMPT, layout=LAYOUT, weights=WEIGHTS)


def masks(width=64, height=64):
    """(1, 1, height, width): one picture of one adapter, in the left part."""
    inside = torch.zeros(1, 1, height, width)
    inside[..., : width // 4] = 1
    return [inside]


@pytest.mark.parametrize("size", [(64, 64), (72, 56)], ids=str)
def test_masks_of_pictures_are_kept(size, monkeypatch):
    width, height = size
    calls = {
        "cross_attention_kwargs": {"ip_adapter_masks": masks(width, height)},
        "width": width,
        "height": height,
    }
    compare(
        NAME,
        [LAYOUT],
        [WEIGHTS],
        regions,
        monkeypatch,
        calls=calls,
        size=(height // 8, width // 8),
    )


def test_a_masked_picture_counts_where_it_is():
    pipe = unets.stable_diffusion_ip_adapter()
    with regions(pipe):
        everywhere = draw(NAME, pipe)
        left = draw(NAME, pipe, cross_attention_kwargs={"ip_adapter_masks": masks()})
    assert np.abs(everywhere.pictures - left.pictures).max() > 0.05


def test_bad_masks_are_refused():
    pipe = unets.stable_diffusion_ip_adapter()
    with regions(pipe):
        for bad, message in (
            ([*masks(), *masks()], "ip_adapter_masks must be one for each of 1 adapters, got 2"),
            ([torch.zeros(64, 64)], r"ip_adapter_masks\[0\] must be \(1, 1, height, width\)"),
        ):
            with pytest.raises(ValueError, match=message):
                draw(NAME, pipe, cross_attention_kwargs={"ip_adapter_masks": bad})


def test_the_scale_is_set_within_and_stays(monkeypatch):
    pipe = unets.stable_diffusion_ip_adapter()
    with regions(pipe):
        before = draw(NAME, pipe)
        pipe.set_ip_adapter_scale(0.1)
        after = draw(NAME, pipe)
    assert np.abs(before.pictures - after.pictures).max() > 0.02
    fresh = unets.stable_diffusion_ip_adapter()
    fresh.set_ip_adapter_scale(0.1)
    assert np.array_equal(draw(NAME, pipe).pictures, draw(NAME, fresh).pictures)
    with regions(fresh):
        assert np.array_equal(draw(NAME, fresh).pictures, after.pictures)


def test_a_scale_of_0_is_as_without_the_adapter():
    pipe = unets.stable_diffusion_ip_adapter()
    with regions(pipe):
        pipe.set_ip_adapter_scale(0.0)
        without = draw(NAME, pipe)
    pipe.unload_ip_adapter()
    with regions(pipe):
        unloaded = draw("sd1", pipe)
    assert np.array_equal(without.pictures, unloaded.pictures)


def test_names_and_weights_are_the_same_within():
    pipe = unets.stable_diffusion_ip_adapter()
    before = pipe.unet.state_dict()
    with regions(pipe):
        within = pipe.unet.state_dict()
        assert within.keys() == before.keys()
        assert all(within[k].data_ptr() == v.data_ptr() for k, v in before.items())
        kinds = [type(p) for p in pipe.unet.attn_processors.values()]
        assert sum(issubclass(kind, IPAdapterAttnProcessor2_0) for kind in kinds) == 7


def test_the_older_processor_is_replaced_too():
    pipe = unets.stable_diffusion_ip_adapter()
    with regions(pipe):
        expected = draw(NAME, pipe)
    older = {}
    for name, processor in pipe.unet.attn_processors.items():
        if isinstance(processor, IPAdapterAttnProcessor2_0):
            old = IPAdapterAttnProcessor(processor.hidden_size, 32, (4,), scale=[0.6])
            old.load_state_dict(processor.state_dict())
            older[name] = old
        else:
            older[name] = AttnProcessor2_0()
    pipe.unet.set_attn_processor(dict(older))
    with regions(pipe):
        drawn = draw(NAME, pipe)
    assert np.array_equal(drawn.pictures, expected.pictures)
    assert all(p is older[name] for name, p in pipe.unet.attn_processors.items())


def test_unloading_the_adapter_within_is_refused_at_the_next_call():
    pipe = unets.stable_diffusion_ip_adapter()
    enable(pipe, prepare(pipe, PROMPT, layout=LAYOUT))
    pipe.unload_ip_adapter()
    message = "pipe must keep its attention processors while regions are enabled, got AttnProc"
    with pytest.raises(ValueError, match=message):
        draw("sd1", pipe)
    disable(pipe)
    draw("sd1", pipe)
    with regions(pipe):
        draw("sd1", pipe)


def with_adapters(name, scales):
    """A pipeline with so many adapters."""
    pipe = unets.BUILDERS[name]()
    with tiny.seeded(3):
        pipe.register_modules(
            image_encoder=tiny.image_encoder(), feature_extractor=tiny.image_processor()
        )
        states = [unets.ip_adapter_state(pipe.unet, image_width=24) for _ in scales]
    blanks = [""] * len(scales)
    pipe.load_ip_adapter(states, subfolder=blanks, weight_name=blanks, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(scales)
    return pipe


@pytest.mark.parametrize("name", unets.cases("xl", "kolors", "animate_diff"))
def test_an_adapter_of_other_pipelines(name, monkeypatch):
    """Of Kolors it takes the place of what projects the text."""
    calls = {"ip_adapter_image": tiny.image(0)}

    def build(dtype):
        return with_adapters(name, [0.6]).to(dtype)

    compare(name, [LAYOUT], [WEIGHTS], regions, monkeypatch, build=build, calls=calls)


def test_two_adapters(monkeypatch):
    def build(dtype):
        return with_adapters("sd1", [0.7, 0.4]).to(dtype)

    calls = {"ip_adapter_image": [tiny.image(0), tiny.image(1)]}
    compare("sd1", [LAYOUT], [WEIGHTS], regions, monkeypatch, build=build, calls=calls)


def test_two_pictures_of_one_adapter_in_masks_of_their_own(monkeypatch):
    def build(dtype):
        pipe = with_adapters("sd1", [0.6])
        pipe.set_ip_adapter_scale([[0.7, 0.4]])
        return pipe.to(dtype)

    halves = torch.zeros(1, 2, 64, 64)
    halves[:, 0, :, :32] = 1
    halves[:, 1, :, 32:] = 1
    calls = {
        "ip_adapter_image": [[tiny.image(0), tiny.image(1)]],
        "cross_attention_kwargs": {"ip_adapter_masks": [halves]},
    }
    compare("sd1", [LAYOUT], [WEIGHTS], regions, monkeypatch, build=build, calls=calls)
