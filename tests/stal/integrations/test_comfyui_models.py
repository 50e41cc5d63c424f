"""Regions in ComfyUI beside what else a model there may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stal.attention import Blend, Blended, Prompts
from stal.integrations.comfyui.regional import Regional
from tests.stal.integrations import comfy_models as tiny
from tests.stal.integrations.comfy_models import LATENT, OTHER_BOXES, near

pytestmark = [pytest.mark.xdist_group("comfyui"), pytest.mark.usefixtures("comfyui")]

NETWORKS = {"sd15": LATENT, "wan": torch.zeros(1, 16, 1, 16, 16)}


class Module:
    """A layer of ComfyUI as `stal.attention` asks for it."""

    def __init__(self, layer: Any) -> None:
        self.to_k, self.to_v, self.heads = layer.to_k, layer.to_v, layer.heads
        self.scale = layer.dim_head**-0.5


def test_a_unet_attends_as_our_own_pipeline(models: Callable[[str], Any]) -> None:
    model, given = models("sd15"), tiny.regions(clip=tiny.Clip(tokens=7))
    found = tiny.regional(model, given)
    options = found.model_options["transformer_options"]["patches_replace"]["attn2"]
    seen = []

    def watched(key: Any, replace: Any) -> Any:
        def attend(q: Tensor, k: Tensor, v: Tensor, extra: Any) -> Tensor:
            out = replace(q, k, v, extra)
            seen.append((key, q.clone(), extra["activations_shape"], out.clone()))
            return out

        return attend

    state = tiny.state_of(found)
    state.check = lambda options, objects: None
    for key, replace in list(options.items()):
        options[key] = watched(key, replace)
    positive, negative = tiny.conditioning(1), tiny.conditioning(2)
    tiny.sample(found, LATENT, positive=positive, negative=negative, steps=2)
    assert len(seen) == 2 * 7
    (regions,) = given
    texts = [positive, negative, *([[*each]] for each in (*regions.local, regions.reference))]
    # Our own table has prompts of one length.
    table = Prompts(torch.cat([text[0][0] for text in texts]))
    ours = Blended(table, [Blend((0, 2, 3, 4), regions.layout)], unconditional=1)
    weights = state.strengths.of(2, 2)
    network = model.model.diffusion_model
    layers = {
        ("input", 1, 0): network.input_blocks[1],
        ("input", 3, 0): network.input_blocks[3],
        ("middle", 0, 0): network.middle_block,
        **{("output", i, 0): network.output_blocks[i] for i in range(4)},
    }
    for index, (key, q, (_, _, height, width), out) in enumerate(seen):
        module = Module(layers[key][1].transformer_blocks[0].attn2)
        attention = ours.at(index // 7, [weights])
        apart = q.unflatten(2, (module.heads, -1)).transpose(1, 2)
        expected = attention(str(key), apart, module, height, width)
        joined = expected.transpose(1, 2).flatten(2)
        assert (out - joined).abs().max() <= 1e-6 * joined.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_local_keys_are_those_of_a_prompt_that_says_the_phrase(
    name: str, models: Callable[[str], Any]
) -> None:
    """What the network makes of a phrase as its whole prompt."""
    given = tiny.regions()
    phrase = given[0].local[0]
    theirs: list[Tensor] = []

    def keep(function: Any, q: Any, k: Any, v: Any, *more: Any, **named: Any) -> Any:
        if k.shape[1] == phrase[0].shape[1]:  # of text
            theirs.append(k.clone())
        return function(q, k, v, *more, **named)

    model = models(name).clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = keep
    tiny.sample(model, NETWORKS[name], positive=[list(phrase)], cfg=1.0, steps=1)
    found = tiny.regional(models(name), given)
    ours = []
    for layer in tiny.state_of(found).layers.values():
        local = layer.local
        layer.local = lambda *a, local=local, **n: ours.append(local(*a, **n)) or ours[-1]
    tiny.sample(found, NETWORKS[name], cfg=1.0, steps=1)
    assert len(ours) == len(theirs) > 1
    for (k, _), expected in zip(ours, theirs, strict=True):
        joined = k[:1, :, : expected.shape[1]].transpose(1, 2).flatten(2)
        assert near(joined, expected, 1e-5)


def test_images_of_a_batch_are_as_alone(models: Callable[[str], Any]) -> None:
    model = models("sd15")
    one, other = tiny.regions(), tiny.regions(OTHER_BOXES)
    both = tiny.regions(OTHER_BOXES, earlier=one)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, 16, 16, generator=generator)
    drawn = tiny.sample(tiny.regional(model, both), torch.zeros(3, 4, 16, 16), noise=noise)
    for index, given in enumerate((one, other, one)):
        own = noise[index : index + 1]
        alone = tiny.sample(tiny.regional(model, given), LATENT, noise=own)
        assert near(drawn[index : index + 1], alone)
    assert not near(alone, tiny.sample(tiny.regional(model, other), LATENT, noise=own), 0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_halves_in_calls_of_their_own_change_nothing(
    name: str, models: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.regional(models(name))
    together = tiny.sample(model, NETWORKS[name])
    rows = []
    call = Regional.apply

    def watched(self: Any, executor: Any, x: Tensor, *more: Any, **named: Any) -> Any:
        rows.append(len(x))
        return call(self, executor, x, *more, **named)

    monkeypatch.setattr(Regional, "apply", watched)
    monkeypatch.setattr(model.model, "memory_required", lambda *a, **n: 1e15)
    apart = tiny.sample(tiny.regional(models(name)), NETWORKS[name])
    assert set(rows) == {1}
    assert near(apart, together)


def test_a_second_pass_of_another_size_starts_where_the_first_would_be(
    models: Callable[[str], Any],
) -> None:
    """Hires-fix: the model is the same, the latents are larger, half of the steps are left out."""
    model = tiny.regional(models("sd15"), weights="[[9, 9], [9, 9], [0, 0], [0, 0]]")
    first = tiny.sample(model, LATENT, steps=4, scheduler="sgm_uniform")
    larger = torch.nn.functional.interpolate(first, scale_factor=1.5)
    arguments: dict[str, Any] = {"steps": 2, "denoise": 0.5, "scheduler": "sgm_uniform"}
    second = tiny.sample(model, larger, **arguments)
    # Of its four steps the last two are drawn, in which these weights are 0.
    assert torch.equal(second, tiny.sample(models("sd15"), larger, **arguments))
    always = tiny.regional(models("sd15"), weights="1, 1")
    assert not near(tiny.sample(always, larger, **arguments), second, 0.01)


@pytest.mark.parametrize("rule", ["guidance", "convex"])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_attention_override_is_called_for_the_whole_prompt(
    name: str, rule: Any, models: Callable[[str], Any]
) -> None:
    """Such as another kernel; it may be put on the model before or after regions."""
    expected = tiny.sample(tiny.regional(models(name), rule=rule), NETWORKS[name])
    lengths = []

    def override(function: Any, q: Any, k: Any, v: Any, *more: Any, **named: Any) -> Any:
        lengths.append(k.shape[-2])
        return function(q, k, v, *more, **named)

    for before in (True, False):
        model = models(name).clone()
        model = model if before else tiny.regional(model, rule=rule)
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        model = tiny.regional(model, rule=rule) if before else model
        lengths.clear()
        assert near(tiny.sample(model, NETWORKS[name]), expected)
        assert 7 in lengths  # the tokens of the prompt


def replacement(scale: float) -> Any:
    """A node's replacement of attn2 that multiplies what it should give."""

    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        return scale * optimized_attention(q, k, v, heads=extra["n_heads"])

    return replace


BLOCKS = [("input", 1), ("input", 3), ("middle", 0), *(("output", i) for i in range(4))]


def test_a_replacement_that_is_there_gives_the_whole_prompts_attention(
    models: Callable[[str], Any],
) -> None:
    model = models("sd15")
    results = []
    for scale in (1.0, 0.5):
        other = model.clone()
        for block in BLOCKS:
            other.set_model_attn2_replace(replacement(scale), *block)
        results.append(tiny.sample(tiny.regional(other), LATENT))
    assert near(results[0], tiny.sample(tiny.regional(model), LATENT))
    assert not near(results[1], results[0], 0.01)


@pytest.mark.parametrize("key", [("input", 1, 0), ("input", 1)])
def test_a_second_regional_node_after_ours_is_refused(
    key: tuple[Any, ...], models: Callable[[str], Any]
) -> None:
    model = tiny.regional(models("sd15"))
    with pytest.raises(ValueError, match="model must have no regions yet"):
        tiny.regional(model)
    model.set_model_attn2_replace(replacement(1.0), *key)
    with pytest.raises(ValueError, match=r"replacement of attn2 .* before Spatial-temporal"):
        tiny.sample(model, LATENT)


def test_an_object_patch_in_the_place_of_ours_is_refused(models: Callable[[str], Any]) -> None:
    model = tiny.regional(models("wan"))
    name = "diffusion_model.blocks.1.cross_attn.forward"
    model.add_object_patch(name, lambda x, *more, **named: x)
    with pytest.raises(ValueError, match=r"object patch .*blocks\.1\.cross_attn"):
        tiny.sample(model, NETWORKS["wan"])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_lora_reaches_local_prompts_whenever_it_is_loaded(
    name: str, models: Callable[[str], Any]
) -> None:
    layer = "attn2.to_v" if name == "sd15" else "cross_attn.v"
    weights = models(name).model.state_dict()
    keys = [key for key in weights if key.endswith(f"{layer}.weight")]
    assert len(keys) > 1
    # ComfyUI's form of a difference of weights.
    patches = {key: ("diff", (torch.full_like(weights[key], 0.1),)) for key in keys}
    before = models(name).clone()
    before.add_patches(patches, 1.0)
    after = tiny.regional(models(name)).clone()
    after.add_patches(patches, 1.0)
    drawn = tiny.sample(tiny.regional(before), NETWORKS[name])
    assert torch.equal(tiny.sample(after, NETWORKS[name]), drawn)
    assert not near(drawn, tiny.sample(tiny.regional(models(name)), NETWORKS[name]), 0.01)


def test_a_lora_hook_that_starts_later_reaches_local_prompts(
    models: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI's hooks patch weights in the middle of a run."""
    import comfy.hooks

    weights = models("sd15").model.state_dict()
    keys = [key for key in weights if key.endswith("attn2.to_v.weight")]
    patches = {key: ("diff", (torch.full_like(weights[key], 0.1),)) for key in keys}

    def drawn(model: Any) -> Tensor:
        group = comfy.hooks.HookGroup()
        hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=1.0)
        hook.weights, hook.need_weight_init = patches, False
        group.add(hook)
        keyframes = comfy.hooks.HookKeyframeGroup()
        keyframes.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.0))
        keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.5))
        group.set_keyframes_on_hooks(keyframes)
        positive = tiny.conditioning(1, hooks=group)
        return tiny.sample(model, LATENT, steps=4, positive=positive, cfg=1.0)

    found = drawn(tiny.regional(models("sd15")))
    # As if the keys and values of the first step were kept.
    monkeypatch.setattr(Regional, "weights_may_change", False)
    assert not near(found, drawn(tiny.regional(models("sd15"))), 1e-3)


def test_copies_of_a_model_share_its_state(models: Callable[[str], Any]) -> None:
    """ComfyUI copies a model's options with every node that changes it, weights not included."""
    model = tiny.regional(models("sd15"))
    copy = model.clone().clone()
    ours, theirs = (
        each.model_options["transformer_options"]["patches_replace"]["attn2"]
        for each in (model, copy)
    )
    assert ours is not theirs
    assert all(theirs[key] is patch for key, patch in ours.items())
    assert torch.equal(tiny.sample(copy, LATENT), tiny.sample(model, LATENT))


def test_nothing_is_kept_after_a_run(models: Callable[[str], Any]) -> None:
    model = tiny.regional(models("sd15"))
    tiny.sample(model, LATENT)
    state = tiny.state_of(model)
    assert all(layer._kept is None for layer in state.layers.values())
    with pytest.raises(ValueError, match="must be sampled by ComfyUI's samplers"):
        _ = state.call
