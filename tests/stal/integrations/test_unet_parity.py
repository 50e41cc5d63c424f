"""Regions in pipelines around UNets equal attention written slowly in plain torch."""

import diffusers
import numpy as np
import pytest
import torch

from stal.integrations.diffusers import regional_attention
from stal.integrations.diffusers.models import MODELS
from tests.stal.integrations import tiny, unets
from tests.stal.integrations.unet_cases import (
    LAYOUT,
    PROMPT,
    assert_within_twice,
    compare,
    draw,
    noise_of_float32,
    steps_of,
)


@pytest.fixture(params=unets.CASES)
def name(request) -> str:
    return request.param


# Different at each step and object.
WEIGHTS = torch.tensor([[0.9, 0.6], [0.5, 0.8], [0.7, 0.3], [0.4, 0.9]])


@pytest.mark.parametrize(
    ("rule", "reference"),
    [("guidance", None), ("guidance", "an empty scene"), ("convex", None)],
    ids=["guidance", "guidance-prompt", "convex"],
)
def test_regions_equal_the_slow_attention(name, rule, reference, monkeypatch):
    weights = WEIGHTS[: steps_of(name)]

    def regions(pipe):
        return regional_attention(
            pipe, PROMPT, layout=LAYOUT, weights=weights, rule=rule, reference=reference
        )

    compare(
        name,
        [LAYOUT],
        [weights],
        regions,
        monkeypatch,
        reference=reference or "",
        rule=rule,
        to_prompt=reference is not None,
    )


@pytest.mark.parametrize("name", ["sd1", "xl"])
def test_a_background_is_pulled_to_its_prompt(name, monkeypatch):
    options = {"reference": "an empty scene", "background": 0.6}
    compare(
        name,
        [LAYOUT],
        [WEIGHTS[:2]],
        lambda pipe: regional_attention(
            pipe, PROMPT, layout=LAYOUT, weights=WEIGHTS[:2], **options
        ),
        monkeypatch,
        to_prompt=True,
        **options,
    )


def test_blocks_of_cross_attention_alone(monkeypatch):
    """Both attentions of a transformer block are then to the text."""

    def build(dtype):
        pipe = unets.stable_diffusion()
        config = dict(pipe.unet.config) | {"only_cross_attention": True}
        with tiny.seeded(0):
            pipe.unet = tiny.enliven(diffusers.UNet2DConditionModel.from_config(config))
        return pipe.to(dtype)

    compare(
        "sd1",
        [LAYOUT],
        [WEIGHTS[:2]],
        lambda pipe: regional_attention(pipe, PROMPT, layout=LAYOUT, weights=WEIGHTS[:2]),
        monkeypatch,
        build=build,
    )


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        # One region over everything, with the global prompt as its phrase.
        ([(PROMPT, (0.0, 0.0, 1.0, 1.0))], {"rule": "convex", "weights": [0.7]}),
        (LAYOUT, {"strength": 0.0}),
    ],
    ids=["convex", "guidance"],
)
def test_regions_that_change_nothing_equal_the_plain_pipeline(name, layout, options, monkeypatch):
    drawn = {}
    with noise_of_float32(monkeypatch):
        for dtype in (torch.float64, torch.float32):
            pipe = unets.BUILDERS[name](dtype=dtype)
            drawn[dtype] = draw(name, pipe, follow=drawn.get(torch.float64))
        exact, plain = drawn[torch.float64], drawn[torch.float32]
        with regional_attention(pipe, PROMPT, layout=layout, **options):
            ours = draw(name, pipe, follow=exact)
    assert_within_twice(ours, plain, exact)


def everything_of(module):
    """What must be there again, object by object."""
    return {
        name: dict(part.__dict__)
        | {"modules": dict(part._modules), "parameters": dict(part._parameters)}
        for name, part in module.named_modules()
    }


def test_leaving_restores_the_pipeline(name):
    pipe = unets.BUILDERS[name]()
    plain = draw(name, pipe)
    before = everything_of(pipe.unet)
    with regional_attention(pipe, PROMPT, layout=LAYOUT):
        drawn = draw(name, pipe)
    assert np.abs(drawn.pictures - plain.pictures).max() > 0.05
    after = everything_of(pipe.unet)
    assert after.keys() == before.keys()
    for module, attributes in before.items():
        assert after[module].keys() == attributes.keys(), module
        for key, value in attributes.items():
            now = after[module][key]
            same = isinstance(value, dict) and now.keys() == value.keys()
            same = same and all(now[k] is v for k, v in value.items())
            assert same or now is value or now == value, (module, key)
    assert np.array_equal(draw(name, pipe).pictures, plain.pictures)


def test_an_error_in_the_denoiser_leaves_no_trace():
    pipe = unets.stable_diffusion()
    plain = draw("sd1", pipe)
    with regional_attention(pipe, PROMPT, layout=LAYOUT), pytest.raises(RuntimeError):
        # One channel too many, found by the first convolution.
        draw("sd1", pipe, latents=torch.zeros(1, 5, 8, 8))
    assert "forward" not in pipe.unet.__dict__
    assert not hasattr(pipe.unet, "_diffusers_hook")
    assert np.array_equal(draw("sd1", pipe).pictures, plain.pictures)


def test_an_error_of_the_user_leaves_no_trace():
    pipe = unets.stable_diffusion_ip_adapter()
    before = everything_of(pipe.unet)
    with pytest.raises(KeyError), regional_attention(pipe, PROMPT, layout=LAYOUT):
        raise KeyError
    assert everything_of(pipe.unet) == before


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_class_of_each_row_is_one_of_diffusers(model):
    assert issubclass(getattr(diffusers, model.name), diffusers.ModelMixin)
