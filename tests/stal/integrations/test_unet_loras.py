"""Keys and values of local prompts follow LoRAs, whatever is done to them within a context."""

import numpy as np
import pytest
import torch

from stal.integrations.diffusers import regional_attention
from tests.stal.integrations import unets
from tests.stal.integrations.unet_cases import LAYOUT, PROMPT, compare, draw

pytestmark = pytest.mark.needs("peft")


def regions(pipe):
    return regional_attention(pipe, PROMPT, layout=LAYOUT)


def with_loras():
    pipe = unets.stable_diffusion()
    for seed, name in enumerate(("first", "second")):
        state = unets.lora_state(pipe.unet, seed=seed)
        # Weak enough for the pictures not to be saturated.
        weak = {k: 0.3 * v if "lora_B" in k else v for k, v in state.items()}
        pipe.load_lora_weights(weak, adapter_name=name)
    pipe.set_adapters("first")
    return pipe


def fuse(pipe):
    pipe.fuse_lora(lora_scale=0.5)


CHANGES = {
    "another": lambda pipe: pipe.set_adapters("second"),
    "both": lambda pipe: pipe.set_adapters(["first", "second"], [0.6, 0.8]),
    "weaker": lambda pipe: pipe.set_adapters("first", 0.3),
    "disabled": lambda pipe: pipe.disable_lora(),
    "fused": fuse,
    "unloaded": lambda pipe: pipe.unload_lora_weights(),
    "deleted": lambda pipe: pipe.delete_adapters("first"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_within_is_as_one_before(change):
    pipe, fresh = with_loras(), with_loras()
    with regions(pipe):
        before = draw("sd1", pipe).pictures
        change(pipe)
        after = draw("sd1", pipe).pictures
    change(fresh)
    with regions(fresh):
        expected = draw("sd1", fresh).pictures
    assert np.array_equal(after, expected)
    assert np.abs(after - before).max() > 0.02


def test_unfusing_within_is_as_before_fusing():
    pipe = with_loras()
    with regions(pipe):
        before = draw("sd1", pipe).pictures
        pipe.fuse_lora()
        draw("sd1", pipe)
        pipe.unfuse_lora()
        # What is added and subtracted again is not what it was to the last bit.
        assert np.abs(draw("sd1", pipe).pictures - before).max() < 1e-2


def test_the_scale_of_one_call():
    pipe, fresh = with_loras(), with_loras()
    weak = {"cross_attention_kwargs": {"scale": 0.4}}
    with regions(pipe):
        before = draw("sd1", pipe).pictures
        scaled = draw("sd1", pipe, **weak).pictures
        assert np.array_equal(draw("sd1", pipe).pictures, before)
    with regions(fresh):
        assert np.array_equal(draw("sd1", fresh, **weak).pictures, scaled)
    fresh.set_adapters("first", 0.4)
    with regions(fresh):
        assert np.abs(draw("sd1", fresh).pictures - scaled).max() < 1e-3
    assert np.abs(before - scaled).max() > 0.02


def test_an_adapters_weight_that_changes_from_step_to_step(monkeypatch):
    """By the pipeline's own callback, in the middle of a drawing."""
    weights = torch.tensor([[0.9, 0.6], [0.5, 0.8]])

    def weaken(pipe, step, timestep, tensors):
        # Of the second step, and again as it was for the next drawing.
        pipe.set_adapters("first", 0.3 if step == 0 else 1.0)
        return tensors

    compare(
        "sd1",
        [LAYOUT],
        [weights],
        lambda pipe: regional_attention(pipe, PROMPT, layout=LAYOUT, weights=weights),
        monkeypatch,
        build=lambda dtype: with_loras().to(dtype),
        calls={"callback_on_step_end": weaken},
    )


def test_a_lora_loaded_within():
    pipe, fresh = unets.stable_diffusion(), unets.stable_diffusion()
    with regions(pipe):
        draw("sd1", pipe)
        pipe.load_lora_weights(unets.lora_state(pipe.unet), adapter_name="first")
        drawn = draw("sd1", pipe).pictures
    fresh.load_lora_weights(unets.lora_state(fresh.unet), adapter_name="first")
    with regions(fresh):
        assert np.array_equal(draw("sd1", fresh).pictures, drawn)


def test_a_dora():
    """Its scale is a quotient of norms of weights, so that no keys and values may be kept apart."""
    from peft import LoraConfig

    def build():
        pipe = unets.stable_diffusion()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LoraConfig(
                r=4,
                use_dora=True,
                init_lora_weights=False,
                target_modules=["to_q", "to_k", "to_v", "to_out.0"],
            )
            pipe.unet.add_adapter(config, adapter_name="dora")
        return pipe

    pipe, fresh = build(), build()
    with regions(pipe):
        before = draw("sd1", pipe).pictures
        pipe.set_adapters("dora", 0.4)
        after = draw("sd1", pipe).pictures
    fresh.set_adapters("dora", 0.4)
    with regions(fresh):
        assert np.array_equal(draw("sd1", fresh).pictures, after)
    assert np.abs(before - after).max() > 0.02


def test_weights_written_past_torchs_count():
    """As fuse_lora writes them: the same tensor of the same version holds other values."""
    pipe, fresh = unets.stable_diffusion(), unets.stable_diffusion()

    def change(pipe):
        for name, parameter in pipe.unet.named_parameters():
            if "attn2.to_k" in name:
                parameter.data.mul_(0.5)

    with regions(pipe):
        draw("sd1", pipe)
        change(pipe)
        after = draw("sd1", pipe).pictures
    change(fresh)
    with regions(fresh):
        assert np.array_equal(draw("sd1", fresh).pictures, after)
