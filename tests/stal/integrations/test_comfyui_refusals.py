"""Models, latents and samplers that one may meet in ComfyUI: refused by name, or they work."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stal.integrations.comfyui.nodes import region_prompts
from stal.integrations.comfyui.run import Run
from stal.layout import masks
from tests.stal.integrations import comfy_models as tiny
from tests.stal.integrations.comfy_models import LATENT, OTHER_BOXES, near

pytestmark = [pytest.mark.xdist_group("comfyui"), pytest.mark.usefixtures("comfyui")]


def test_a_model_without_cross_attention_is_refused() -> None:
    model = tiny.sd15(
        transformer_depth=[0, 0],
        transformer_depth_output=[0] * 4,
        transformer_depth_middle=-1,
        use_spatial_transformer=True,
    )
    with pytest.raises(ValueError, match="model must have cross-attention to its prompt, got Base"):
        tiny.regional(model)


@pytest.mark.parametrize(
    ("kind", "network", "message"),
    [
        ("Flux", "Flux", r"got Flux \(Flux\), whose attention is over text and pixels together"),
        ("SD3", "OpenAISignatureMMDITWrapper", "text and pixels together"),
        ("HunyuanDiT", "HunYuanDiT", r"must be one of Stable Diffusion 1.x.* got HunyuanDiT"),
        ("SVD_img2vid", "UNetModel", "must attend to text, got SVD_img2vid"),
    ],
)
def test_other_models_are_refused_by_name(
    kind: str, network: str, message: str, models: Callable[[str], Any]
) -> None:
    """The names are those of ComfyUI's classes; models of that size are not made here."""
    import comfy.model_base

    model = models("sd15").clone()
    model.model = object.__new__(getattr(comfy.model_base, kind))
    torch.nn.Module.__init__(model.model)
    model.model.diffusion_model = type(network, (torch.nn.Module,), {})()
    with pytest.raises(NotImplementedError, match=message):
        tiny.regional(model)


def test_masks_are_for_latents_of_any_size(models: Callable[[str], Any]) -> None:
    masks = torch.zeros(1, 50, 50)
    masks[0, :25] = 1
    (by_mask,) = region_prompts(tiny.Clip(), "a red cat", masks=masks)
    box = {"x": 0, "y": 0, "width": 120, "height": 60, "label": "a red cat"}
    for side in (16, 18):
        latent = torch.zeros(1, 4, side, side)
        drawn = [
            tiny.sample(tiny.regional(models("sd15"), given), latent, steps=2)
            for given in (by_mask, tiny.regions([box]))
        ]
        assert near(*drawn)


def test_masks_of_another_aspect_are_stretched_with_a_warning(models: Callable[[str], Any]) -> None:
    masks = torch.zeros(1, 32, 64)
    masks[0, :16] = 1
    (given,) = region_prompts(tiny.Clip(), "a cat", masks=masks)
    with pytest.warns(UserWarning, match=r"aspect \(width / height\) 2 and are stretched to 16"):
        tiny.sample(tiny.regional(models("sd15"), given), LATENT, steps=2)


def test_a_hundred_boxes(models: Callable[[str], Any]) -> None:
    boxes = [
        {"x": 12 * i, "y": 12 * j, "width": 12, "height": 12, "label": f"a thing {10 * i + j}"}
        for i, j in itertools.product(range(10), range(10))
    ]
    drawn = tiny.sample(tiny.regional(models("sd15"), tiny.regions(boxes)), LATENT, steps=2)
    assert drawn.isfinite().all()
    assert not near(drawn, tiny.sample(models("sd15"), LATENT, steps=2), 0.1)


@pytest.mark.parametrize(
    "sampler",
    ["heun", "dpm_2", "dpmpp_sde", "euler_cfg_pp", "euler_ancestral", "dpmpp_2m_cfg_pp", "uni_pc"],
)
def test_samplers_that_call_the_model_between_steps_work(
    sampler: str, models: Callable[[str], Any]
) -> None:
    model = tiny.regional(models("sd15"))
    drawn = tiny.sample(model, LATENT, sampler_name=sampler, cfg=1.5)
    assert drawn.isfinite().all()
    assert torch.equal(drawn, tiny.sample(model, LATENT, sampler_name=sampler, cfg=1.5))


def test_a_sampler_that_goes_back_has_the_weights_of_the_noise(
    models: Callable[[str], Any],
) -> None:
    """As restart sampling: the same noise level is the same step, whenever it is visited."""
    import comfy.samplers

    results = []

    def restart(model: Any, noise: Tensor, sigmas: Tensor, extra_args: Any, **named: Any) -> Tensor:
        for sigma in (sigmas[0], sigmas[2], sigmas[0], sigmas[1], sigmas[2]):
            results.append(model(noise, sigma.expand(len(noise)), **extra_args))
        return noise

    guider = comfy.samplers.CFGGuider(tiny.regional(models("sd15")))
    guider.set_conds(tiny.conditioning(1), tiny.conditioning(2))
    guider.set_cfg(4.0)
    sigmas = torch.tensor([14.6, 7.0, 2.0, 0.0])
    noise = torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(0))
    guider.sample(noise, LATENT, comfy.samplers.KSAMPLER(restart), sigmas, disable_pbar=True)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[4])


def test_a_conditioning_for_an_area_has_the_regions_that_lie_there(
    models: Callable[[str], Any],
) -> None:
    """The lower half of the latents alone is as latents of that half with its part of a mask."""
    masks = torch.zeros(1, 16, 16)
    masks[0, 8:, :8] = 1
    (whole,) = region_prompts(tiny.Clip(), "a cat", masks=masks)
    (half,) = region_prompts(tiny.Clip(), "a cat", masks=masks[:, 8:])
    seen: list[Tensor] = []

    def keep(arguments: Any) -> Tensor:
        seen.append(arguments["cond_denoised"])
        return arguments["input"] - arguments["cond_denoised"]

    noise = torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(0))
    positive = tiny.conditioning(1, area=(8, 16, 8, 0))
    for given, latent, text in ((whole, noise, positive), (half, noise[:, :, 8:], None)):
        model = tiny.regional(models("sd15"), given)
        model.set_model_sampler_cfg_function(keep)
        tiny.sample(
            model,
            torch.zeros_like(latent),
            noise=latent,
            positive=text or tiny.conditioning(1),
            steps=1,
        )
    assert near(seen[0][:, :, 8:], seen[1])


def test_tiles_are_refused_with_what_to_do(models: Callable[[str], Any]) -> None:
    """Some nodes cut the latents themselves, and nobody says where a part lies."""
    model = tiny.regional(models("sd15"))

    def halves(apply: Any, arguments: Any) -> Tensor:
        parts = (arguments["input"][..., :8], arguments["input"][..., 8:])
        each = [apply(part, arguments["timestep"], **arguments["c"]) for part in parts]
        return torch.cat(each, dim=-1)

    model.set_model_unet_function_wrapper(halves)
    with pytest.raises(ValueError, match=r"whole latents .* 16 x 16, got a part of them, 16 x 8"):
        tiny.sample(model, LATENT)


def test_a_call_past_comfyuis_samplers_is_refused(models: Callable[[str], Any]) -> None:
    import comfy.model_management

    model = tiny.regional(models("wan"))
    comfy.model_management.load_models_gpu([model])
    with pytest.raises(ValueError, match="must be sampled by ComfyUI's samplers"):
        model.model.apply_model(
            torch.zeros(1, 16, 1, 8, 8), torch.ones(1), c_crossattn=torch.zeros(1, 7, tiny.WIDTH)
        )


def test_without_guidance_regions_are_as_in_the_half_of_a_guided_run(
    models: Callable[[str], Any],
) -> None:
    """What they move away from is a prompt of their own, not the unconditional half."""
    alone = tiny.regional(models("sd15"))
    guided = alone.clone()
    guided.set_model_sampler_cfg_function(lambda given: given["input"] - given["cond_denoised"])
    expected = tiny.sample(guided, LATENT, steps=2)
    assert near(tiny.sample(alone, LATENT, steps=2, cfg=1.0), expected)


def test_a_controlnet_sees_the_whole_prompt(models: Callable[[str], Any]) -> None:
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    config = dict(models("sd15").model.model_config.unet_config)
    for name in ("out_channels", "transformer_depth_output", "use_temporal_attention"):
        config.pop(name, None)
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, device="cpu", operations=comfy.ops.disable_weight_init
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))

    def drawn(model: Any) -> Tensor:
        hint = torch.ones(1, 3, 128, 128) / 2
        held = control.copy().set_cond_hint(hint, 1.0, (0.0, 1.0))
        positive = tiny.conditioning(1, control=held, control_apply_to_uncond=True)
        return tiny.sample(model, LATENT, positive=positive, steps=2)

    idle = tiny.regional(models("sd15"), strength=0.0)
    plain = drawn(models("sd15"))
    assert torch.equal(drawn(idle), plain)
    assert not near(plain, tiny.sample(models("sd15"), LATENT, steps=2), 0.01)
    both = drawn(tiny.regional(models("sd15")))
    assert not near(both, plain, 0.01)
    assert not near(both, tiny.sample(tiny.regional(models("sd15")), LATENT, steps=2), 0.01)


@pytest.mark.parametrize("name", ["wan", "cosmos"])
def test_windows_of_frames_have_the_same_regions(name: str, models: Callable[[str], Any]) -> None:
    """ComfyUI's context windows call a video's network with some of its frames."""
    import comfy.context_windows

    latent = torch.zeros(1, 16, 4, 8, 8)
    model = tiny.regional(models(name))
    model.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("pyramid"),
        context_length=2,
        context_overlap=1,
        context_stride=1,
        closed_loop=False,
        dim=2,
    )
    drawn = tiny.sample(model, latent, steps=2)
    idle = tiny.regional(models(name), strength=0.0)
    idle.model_options["context_handler"] = model.model_options["context_handler"]
    assert drawn.isfinite().all()
    assert not near(drawn, tiny.sample(idle, latent, steps=2), 0.01)


def test_a_conditioning_for_an_area_leaves_the_other_half_alone(
    models: Callable[[str], Any],
) -> None:
    seen: list[Tensor] = []

    def keep(arguments: Any) -> Tensor:
        seen.append(arguments["uncond_denoised"])
        found: Tensor = arguments["input"] - arguments["cond_denoised"]
        return found

    for model in (models("sd15").clone(), tiny.regional(models("sd15"))):
        model.set_model_sampler_cfg_function(keep)
        tiny.sample(model, LATENT, positive=tiny.conditioning(1, area=(8, 16, 8, 0)), steps=1)
    assert near(seen[1], seen[0])


def test_inpainting_models_have_regions() -> None:
    model = tiny.sd15(in_channels=9)
    drawn = tiny.sample(tiny.regional(model), LATENT, steps=1)
    assert drawn.isfinite().all()
    assert not near(drawn, tiny.sample(model, LATENT, steps=1), 0.01)


def test_windows_over_the_batch_keep_each_picture_its_regions(models: Callable[[str], Any]) -> None:
    import comfy.context_windows

    two = tiny.regions(OTHER_BOXES, earlier=tiny.regions())
    latent = LATENT.expand(6, -1, -1, -1)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    model = tiny.regional(models("sd15"), two)
    # As many noise levels as pictures: ComfyUI 0.3.75 compares both, one with one.
    whole = tiny.sample(model, latent, noise=noise, steps=5)
    model.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("flat"),
        context_length=3,
        context_overlap=0,
        context_stride=1,
        closed_loop=False,
        dim=0,
    )
    assert near(tiny.sample(model, latent, noise=noise, steps=5), whole)


def test_a_part_with_an_odd_side_has_its_place_at_the_deepest_level() -> None:
    (regions,) = tiny.regions()
    run: Any = SimpleNamespace(
        regions=(regions,),
        size=(1, 64, 64),
        prompts=SimpleNamespace(embeds=torch.zeros(1)),
        _coverage={},
    )
    # Each level halves, and rounds up: 21 rows are 11, 6 and 3.
    found = Run.coverage(run, 0, (1, 21, 64), (1, 3, 8), (43, 0))
    assert torch.equal(found[:, 0].unflatten(1, (3, 8)), masks(regions.layout, 8, 8)[:, 5:])
