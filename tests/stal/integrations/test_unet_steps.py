"""Regions know the step, whatever the scheduler: the slow attention counts calls instead."""

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    KDPM2AncestralDiscreteScheduler,
    PNDMScheduler,
)

from stal.integrations.diffusers import enable, prepare, regional_attention
from stal.integrations.diffusers.steps import steps_of
from stal_kernels import plan
from tests.stal.integrations import tiny, unets
from tests.stal.integrations.unet_cases import (
    LAYOUT,
    PROMPT,
    compare,
    draw,
)

FOUR = [0, 1, 2, 3]
# The second evaluation of a step of Heun's, and of PNDM's first, is where the next one begins.
CALLS = dict.fromkeys(tiny.SCHEDULERS, FOUR) | {
    "pndm": [0, 0, 1, 2, 3],
    "heun": [0, 0, 1, 1, 2, 2, 3],
}
# Strength 0.5 of four steps leaves two. PNDM begins at the repeated timestep and evaluates twice.
LATE = {name: [2, 3] for name in tiny.SCHEDULERS} | {
    "pndm": [1, 1, 3],
    "heun": [2, 2, 3],
}


# At no two steps alike, and large, so that a wrong step is seen.
WEIGHTS = torch.tensor([[1.5, 0.2], [0.1, 1.2], [0.9, 0.5], [0.4, 1.4]])


def compare_steps(name, scheduler, steps, monkeypatch, *, scales=1.0, more=None, **options):
    """The drop-in equals the slow attention at these steps of its calls.

    more: what the pipeline is called with.
    scales: (4, objects), what the slow attention's weights are multiplied by for `options`.
    """

    def build(dtype):
        pipe = unets.BUILDERS[name](dtype=dtype)
        pipe.scheduler = tiny.scheduler(scheduler)
        return pipe

    calls = {"num_inference_steps": 4} | ({"strength": 0.5} if name == "img2img" else {})
    calls |= more or {}
    compare(
        name,
        [LAYOUT],
        [WEIGHTS * torch.tensor(scales)],
        lambda pipe: regional_attention(pipe, PROMPT, layout=LAYOUT, weights=WEIGHTS, **options),
        monkeypatch,
        build=build,
        steps=steps,
        calls=calls,
    )


@pytest.mark.parametrize("scheduler", tiny.SCHEDULERS)
def test_each_call_of_the_denoiser_is_at_its_step(scheduler, monkeypatch):
    compare_steps("sd1", scheduler, CALLS[scheduler], monkeypatch)


@pytest.mark.parametrize("scheduler", tiny.SCHEDULERS)
def test_steps_that_begin_late_are_counted_from_the_first_of_all(scheduler, monkeypatch):
    compare_steps("img2img", scheduler, LATE[scheduler], monkeypatch)


def test_steps_that_end_early(monkeypatch):
    """XL's base leaves the last half of the steps to the refiner."""
    compare_steps("xl", "euler", [0, 1], monkeypatch, more={"denoising_end": 0.5})


def test_a_refiner_begins_where_the_base_ended(monkeypatch):
    compare_steps("xl_refiner", "euler", [2, 3], monkeypatch, more={"denoising_start": 0.5})


@pytest.mark.parametrize("scheduler", ["euler", "lcm"])
def test_timesteps_of_the_users_own(scheduler, monkeypatch):
    own = {"timesteps": [959, 500, 200, 99] if scheduler == "euler" else [979, 499, 199, 99]}
    compare_steps("sd1", scheduler, FOUR, monkeypatch, more=own)


@pytest.mark.parametrize("name", unets.cases("sd1", "xl", "kolors"))
def test_start_stop_and_strength_of_each_region(name, monkeypatch):
    scales = [[0.0, 2.0], [0.5, 2.0], [0.5, 0.0], [0.5, 0.0]]
    compare_steps(
        name,
        "euler",
        FOUR,
        monkeypatch,
        scales=scales,
        strength=(0.5, 2.0),
        start=(0.25, 0.0),
        stop=(1.0, 0.5),
    )


@pytest.mark.parametrize("scheduler", ["pndm", "heun"])
def test_start_and_stop_are_shares_of_the_steps_not_of_the_calls(scheduler, monkeypatch):
    scales = [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    compare_steps(
        "sd1", scheduler, CALLS[scheduler], monkeypatch, scales=scales, start=0.25, stop=0.75
    )


def test_a_scheduler_may_be_replaced_within(monkeypatch):
    pipe = unets.stable_diffusion()
    with regional_attention(pipe, PROMPT, layout=LAYOUT):
        draw("sd1", pipe)
        pipe.scheduler = tiny.scheduler("heun")
        replaced = draw("sd1", pipe, num_inference_steps=4)
    fresh = unets.stable_diffusion()
    fresh.scheduler = tiny.scheduler("heun")
    with regional_attention(fresh, PROMPT, layout=LAYOUT):
        expected = draw("sd1", fresh, num_inference_steps=4)
    assert (replaced.pictures == expected.pictures).all()


@pytest.mark.parametrize("reference", [None, "unconditional"])
def test_regions_are_planned_once_a_resolution(reference, monkeypatch):
    """As on a GPU. On the CPU the op refuses a plan of another step's regions, were there any."""
    pipe, made = unets.stable_diffusion(), []

    def drawn():
        with regional_attention(pipe, PROMPT, layout=LAYOUT, reference=reference):
            return draw("sd1", pipe).pictures

    def counted(region, ids, offsets):
        made.append(plan(region, ids, offsets))
        return made[-1]

    expected = drawn()
    monkeypatch.setattr("stal.integrations.diffusers.denoiser.plan_of", counted)
    assert (drawn() == expected).all()
    assert sorted(region.shape[1] for _, _, region in made) == [4, 16, 64]


def test_karras_levels_that_coincide_as_integers_are_steps_of_their_own():
    """50 steps of DPM++ 2M take weights of 50 steps, though timestep 1 is there twice."""
    config = tiny.scheduler("dpm").config
    scheduler = DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True)
    scheduler.set_timesteps(50)
    levels = scheduler.timesteps.tolist()
    assert len(set(levels)) < 50
    assert steps_of(scheduler, levels, levels) == (list(zip(levels, range(50), strict=True)), 50)


def test_kdpm2_evaluates_twice_in_a_step():
    scheduler = KDPM2AncestralDiscreteScheduler()
    scheduler.set_timesteps(5)
    levels = scheduler.timesteps.tolist()
    steps, count = steps_of(scheduler, levels, levels)
    assert count == 5
    assert [dict(steps)[level] for level in levels] == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_runge_kutta_steps_of_pndm_are_refused_by_name():
    pipe = unets.stable_diffusion()
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=False)
    message = r"got PNDM with Runge-Kutta steps: make it with .*skip_prk_steps=True"
    with (
        regional_attention(pipe, PROMPT, layout=LAYOUT),
        pytest.raises(NotImplementedError, match=message),
    ):
        draw("sd1", pipe, num_inference_steps=4)


def test_weights_of_another_number_of_steps_are_refused():
    pipe = unets.stable_diffusion()
    with regional_attention(pipe, PROMPT, layout=LAYOUT, weights=torch.ones(5, 2)):
        message = r"weights must be \(steps, objects\) = \(2, 2\) or .* got \(5, 2\)"
        with pytest.raises(ValueError, match=message):
            draw("sd1", pipe)
        draw("sd1", pipe, num_inference_steps=5)


def test_a_timestep_that_is_not_the_schedulers_is_refused():
    pipe = unets.stable_diffusion()
    regions = prepare(pipe, PROMPT, layout=LAYOUT)
    enable(pipe, regions)
    pipe.scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match=r"timestep must be one of scheduler.timesteps, got 150"):
        pipe.unet(torch.zeros(1, 4, 8, 8), 150, regions.prompts.embeds)
