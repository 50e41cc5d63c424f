"""Regions in pipelines around UNets equal attention written slowly in plain torch."""

import numpy as np
import pytest
import torch

from stal.integrations.diffusers import regional_attention
from tests.stal.integrations import unets
from tests.stal.integrations.unet_cases import (
    LAYOUT,
    PROMPT,
    assert_within_twice,
    draw,
    noise_of_float32,
    prompt_of,
    slow_drawing,
    steps_of,
)


@pytest.fixture(params=unets.BUILDERS)
def name(request) -> str:
    if request.param == "kolors":
        pytest.importorskip("sentencepiece")
    return request.param


def some_weights(steps, objects, *, rule="guidance", seed=0):
    """Different at each step and object; beyond 1 under "guidance"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.rand(steps, objects) * (1 if rule == "convex" else 2)


@pytest.mark.parametrize(
    ("rule", "reference"),
    [("guidance", None), ("guidance", "an empty scene"), ("convex", None)],
    ids=["guidance", "guidance-prompt", "convex"],
)
def test_regions_equal_the_slow_attention(name, rule, reference, monkeypatch):
    weights = some_weights(steps_of(name), len(LAYOUT), rule=rule)
    to_prompt = reference is not None
    drawn = {}
    with noise_of_float32(monkeypatch):
        for dtype in (torch.float64, torch.float32):
            pipe = unets.BUILDERS[name](dtype=dtype)
            prompt = prompt_of(pipe, LAYOUT, weights, reference or "")
            drawn[dtype] = slow_drawing(name, pipe, [prompt], rule=rule, to_prompt=to_prompt)
        plain = draw(name, pipe)
        with regional_attention(
            pipe, PROMPT, layout=LAYOUT, weights=weights, rule=rule, reference=reference
        ):
            ours = draw(name, pipe)
    exact, slow = drawn[torch.float64], drawn[torch.float32]
    assert len(ours.predicted) == len(exact.predicted)
    assert_within_twice(ours.predicted[0], slow.predicted[0], exact.predicted[0])
    assert_within_twice(ours.pictures, slow.pictures, exact.pictures)
    assert np.abs(ours.pictures - plain.pictures).max() > 0.05
