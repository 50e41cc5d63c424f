"""Samplers against diffusers' schedulers, on a denoiser known in closed form.

diffusers rounds alphas_cumprod, the sigmas and (Euler, DPM-Solver++) the sample to float32, and a
first step from alpha_bar 1e-9 magnifies that by 1e5. Two comparisons therefore: of the algorithms
to 1e-9, with diffusers' modules made to compute in float64; and with diffusers as it is to 1e-5,
our schedule being given its float32 alphas_cumprod.
"""

import ast
import functools
import inspect
import math
import sys

import numpy as np
import pytest
import torch
from diffusers.schedulers import (
    scheduling_ddim,
    scheduling_dpmsolver_multistep,
    scheduling_euler_ancestral_discrete,
    scheduling_euler_discrete,
    scheduling_pndm,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import stal.budget
import stal.checked_json
import stal.files
import stal.finite
import stal.sampler
import stal.sampler_checks
import stal.schedule
from stal.sampler import SAMPLERS, by_name
from stal.schedule import (
    Schedule,
    alphas_cumprod_from_config,
    ddim_variance,
    denoised_and_eps,
    schedule_from_config,
)

# diffusers hands tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULERS = {
    "ddim": scheduling_ddim.DDIMScheduler,
    "plms": scheduling_pndm.PNDMScheduler,
    "dpm++2m": scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler,
    "euler": scheduling_euler_discrete.EulerDiscreteScheduler,
    "euler-ancestral": scheduling_euler_ancestral_discrete.EulerAncestralDiscreteScheduler,
}
SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "v_prediction")
STEPS = (1, 2, 7, 25, 50)
CONFIGS = {
    "linear": {"beta_schedule": "linear", "clip_sample": False, "skip_prk_steps": True},
    "scaled-linear": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "cosine": {
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "skip_prk_steps": True,
    },
    "trained-betas": {
        "trained_betas": [0.001 + 0.0002 * i for i in range(400)],
        "num_train_timesteps": 400,
        "clip_sample": False,
        "skip_prk_steps": True,
    },
}
SHAPE = (2, 3, 4, 5)

every_sampler = pytest.mark.parametrize("sampler", SCHEDULERS)
every_spacing = pytest.mark.parametrize("spacing", SPACINGS)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


class Float64:
    """A module whose float32 is float64."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return getattr(self.module, "float64" if name == "float32" else name)


@pytest.fixture
def diffusers_in_float64(monkeypatch):
    for scheduler in SCHEDULERS.values():
        module = inspect.getmodule(scheduler)
        monkeypatch.setattr(module, "torch", Float64(torch))
        monkeypatch.setattr(module, "np", Float64(np))


def scheduler_of(sampler, steps, config):
    scheduler = SCHEDULERS[sampler].from_config(config)
    scheduler.set_timesteps(steps)
    return scheduler


def normal(seed, shape=SHAPE, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mixture_model(alphas_cumprod: Tensor, prediction_type: str):
    """Exact prediction where every element of x_0 is -1 +- 0.3 (30%) or 0.8 +- 0.3 (70%)."""
    means, weights, deviation = (-1.0, 0.8), (0.3, 0.7), 0.3

    def model(x, t, step=None):
        low = int(t)
        high = min(low + 1, len(alphas_cumprod) - 1)
        a = torch.lerp(alphas_cumprod[low], alphas_cumprod[high], float(t) - low).to(x)
        variance = a * deviation**2 + 1 - a
        gaps = torch.stack([x - a.sqrt() * mean for mean in means])
        logits = torch.stack(
            [math.log(w) - gap**2 / (2 * variance) for w, gap in zip(weights, gaps, strict=True)]
        )
        x_0 = sum(
            share * (mean + a.sqrt() * deviation**2 / variance * gap)
            for share, mean, gap in zip(logits.softmax(0), means, gaps, strict=True)
        )
        eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        return eps if prediction_type == "epsilon" else a.sqrt() * eps - (1 - a).sqrt() * x_0

    return model


def diffusers_trajectory(sampler, scheduler, model, x, *, eta=0.0, noises=(), monkeypatch=None):
    """x after each transition, variance preserving: the loop of diffusers' pipelines."""
    if sampler == "euler-ancestral":
        drawn = iter(noises)
        monkeypatch.setattr(
            scheduling_euler_ancestral_discrete, "randn_tensor", lambda *args, **_: next(drawn)
        )
    trajectory = []
    x = x * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        options = {"eta": eta, "variance_noise": noises[i]} if eta > 0 else {}
        prediction = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(prediction, t, x, **options).prev_sample
        # The sigmas of DPM-Solver++ describe a sample that is variance preserving already.
        euler = sampler.startswith("euler")
        trajectory.append(x / (1 + scheduler.sigmas[i + 1] ** 2) ** 0.5 if euler else x)
    # PNDMScheduler makes the first transition twice.
    return trajectory[1:] if sampler == "plms" and len(trajectory) > 1 else trajectory


def our_trajectory(schedule, model, x, *, noises=(), **options):
    trajectory = []
    drawn = iter(noises)
    final = SAMPLERS[schedule.sampler](
        model,
        x,
        schedule,
        noise=lambda x: next(drawn),
        callback=lambda step, x, denoised: trajectory.append(x),
        **options,
    )
    assert torch.equal(final, trajectory[-1])
    return trajectory


def assert_same_trajectory(ours, theirs, tolerance):
    assert len(ours) == len(theirs)
    for step, (x, expected) in enumerate(zip(ours, theirs, strict=True)):
        error = (x - expected).norm() / expected.norm()
        assert error <= tolerance, f"step {step}: relative error {error:.1e}"


def compare_with_diffusers(
    sampler, steps, config, monkeypatch, *, tolerance=1e-9, eta=0.0, their_alphas=False
):
    scheduler = scheduler_of(sampler, steps, config)
    schedule = schedule_from_config(
        config,
        steps,
        sampler=sampler,
        alphas_cumprod=scheduler.alphas_cumprod if their_alphas else None,
    )
    model = mixture_model(schedule.alphas_cumprod, schedule.prediction_type)
    x = normal(0)
    noises = [normal(1 + i) for i in range(steps)]
    theirs = diffusers_trajectory(
        sampler, scheduler, model, x, eta=eta, noises=noises, monkeypatch=monkeypatch
    )
    options = {"eta": eta} if sampler == "ddim" else {}
    ours = our_trajectory(schedule, model, x, noises=noises, **options)
    assert_same_trajectory(ours, theirs, tolerance)


@pytest.mark.usefixtures("diffusers_in_float64")
@every_sampler
@every_spacing
@every_prediction
@pytest.mark.parametrize("config", CONFIGS)
def test_sampler_follows_diffusers_algorithm(sampler, spacing, prediction, config, monkeypatch):
    config = CONFIGS[config] | {"prediction_type": prediction, "timestep_spacing": spacing}
    for steps in STEPS:
        compare_with_diffusers(sampler, steps, config, monkeypatch)


@every_sampler
@every_spacing
@every_prediction
def test_sampler_follows_unmodified_diffusers(sampler, spacing, prediction, monkeypatch):
    config = CONFIGS["scaled-linear"]
    config = config | {"prediction_type": prediction, "timestep_spacing": spacing}
    for steps in STEPS:
        compare_with_diffusers(
            sampler, steps, config, monkeypatch, tolerance=1e-5, their_alphas=True
        )


@pytest.mark.usefixtures("diffusers_in_float64")
@every_spacing
@every_prediction
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("config", ["scaled-linear", "cosine"])
def test_ddim_with_noise_follows_diffusers(spacing, prediction, eta, config, monkeypatch):
    config = CONFIGS[config] | {"prediction_type": prediction, "timestep_spacing": spacing}
    for steps in STEPS:
        compare_with_diffusers("ddim", steps, config, monkeypatch, eta=eta)


@pytest.mark.usefixtures("diffusers_in_float64")
@every_prediction
@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("extra", [{}, {"clip_sample_range": 0.7}], ids=["to-1", "to-0.7"])
def test_ddim_clips_as_diffusers(prediction, eta, extra, monkeypatch):
    config = CONFIGS["scaled-linear"] | {"prediction_type": prediction, "clip_sample": True}
    compare_with_diffusers("ddim", 7, config | extra, monkeypatch, eta=eta)


@pytest.mark.usefixtures("diffusers_in_float64")
@pytest.mark.parametrize("sampler", [name for name in SCHEDULERS if name != "plms"])
def test_zero_terminal_snr_follows_diffusers(sampler, monkeypatch):
    config = CONFIGS["scaled-linear"] | {
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    for steps in STEPS:
        compare_with_diffusers(sampler, steps, config, monkeypatch)


def test_ddim_at_zero_terminal_snr_with_eta_1_is_finite():
    config = CONFIGS["scaled-linear"] | {
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    for steps in range(1, 40):
        schedule = schedule_from_config(config, steps, sampler="ddim")
        assert schedule.alpha_bar(schedule.timesteps[0]) == 0
        model = mixture_model(schedule.alphas_cumprod, "v_prediction")
        x = SAMPLERS["ddim"](model, normal(0), schedule, eta=1.0, noise=torch.randn_like)
        assert x.isfinite().all()


@pytest.mark.usefixtures("diffusers_in_float64")
@every_sampler
@every_spacing
@pytest.mark.parametrize("offset", [0, 1])
def test_timesteps_equal_diffusers(sampler, spacing, offset):
    config = CONFIGS["scaled-linear"] | {"timestep_spacing": spacing, "steps_offset": offset}
    for steps in [*range(1, 130), 200, 250, 333, 499, 500]:
        scheduler = scheduler_of(sampler, steps, config)
        schedule = schedule_from_config(config, steps, sampler=sampler)
        theirs = scheduler.timesteps.tolist()
        if sampler == "plms" and steps > 1:
            del theirs[1]
        # With trailing spacing and some numbers of steps diffusers has one more, a timestep -1.
        assert theirs[steps:] in ([], [-1])
        np.testing.assert_allclose(schedule.timesteps, theirs[:steps], rtol=1e-12, atol=0)
        if sampler not in ("ddim", "plms"):
            sigmas = scheduler.sigmas.tolist()
            np.testing.assert_allclose(schedule.sigmas[:-1], sigmas[:steps], rtol=1e-9)


@pytest.mark.usefixtures("diffusers_in_float64")
@pytest.mark.parametrize("zero_snr", [False, True], ids=["", "zero-snr"])
@pytest.mark.parametrize("config", CONFIGS)
def test_alphas_cumprod_equals_diffusers(config, zero_snr):
    config = CONFIGS[config] | {"rescale_betas_zero_snr": zero_snr}
    scheduler = SCHEDULERS["ddim"].from_config(config)
    torch.testing.assert_close(
        alphas_cumprod_from_config(config), scheduler.alphas_cumprod, rtol=1e-10, atol=1e-15
    )


@every_sampler
def test_missing_keys_take_the_defaults_of_the_sampler(sampler):
    schedule = schedule_from_config({}, 10, sampler=sampler)
    scheduler = scheduler_of(sampler, 10, {"skip_prk_steps": True})
    config = scheduler.config
    assert schedule.prediction_type == config.prediction_type
    assert schedule.timestep_spacing == config.timestep_spacing
    assert len(schedule.alphas_cumprod) == config.num_train_timesteps
    if sampler in ("ddim", "plms"):
        assert schedule.final_alpha_cumprod == pytest.approx(scheduler.final_alpha_cumprod.item())
    if sampler == "ddim":
        assert schedule.clip_sample_range == config.clip_sample_range


def test_values_that_a_live_scheduler_defaulted_to_are_not_taken_over():
    live = SCHEDULERS["ddim"].from_config(CONFIGS["scaled-linear"]).config
    assert live["timestep_spacing"] == "leading"
    theirs = scheduler_of("euler", 10, live).timesteps.tolist()
    assert schedule_from_config(live, 10, sampler="euler").timesteps == pytest.approx(theirs)


@every_sampler
def test_class_name_of_the_configuration_chooses_the_sampler(sampler):
    config = CONFIGS["scaled-linear"] | {"_class_name": SCHEDULERS[sampler].__name__}
    assert schedule_from_config(config, 5).sampler == sampler
    assert schedule_from_config(config, 5, sampler="euler").sampler == "euler"


def test_timestep_spacing_argument_overrides_the_configuration():
    config = CONFIGS["scaled-linear"] | {"timestep_spacing": "leading"}
    schedule = schedule_from_config(config, 4, sampler="ddim", timestep_spacing="trailing")
    assert schedule.timesteps == (999, 749, 499, 249)


def error_for_gaussian_data(sampler, prediction, steps):
    """Largest error of x_0 where the data is N(mean, deviation^2) and the model is exact.

    The probability flow then keeps the standardised x constant.
    """
    mean, deviation = 0.7, 0.5
    config = {"prediction_type": prediction, "clip_sample": False, "set_alpha_to_one": True}
    schedule = schedule_from_config(config, steps, sampler=sampler, timestep_spacing="leading")

    def model(x, t, step):
        a = schedule.alphas_cumprod[t]
        x_0 = mean + a.sqrt() * deviation**2 / (a * deviation**2 + 1 - a) * (x - a.sqrt() * mean)
        eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        return eps if prediction == "epsilon" else a.sqrt() * eps - (1 - a).sqrt() * x_0

    x = normal(0)
    a = schedule.alphas_cumprod[int(schedule.timesteps[0])]
    exact = mean + deviation * (x - a.sqrt() * mean) / (a * deviation**2 + 1 - a).sqrt()
    return (SAMPLERS[sampler](model, x, schedule) - exact).abs().max()


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpm++2m", "euler"])
@every_prediction
def test_four_times_the_steps_leave_a_quarter_of_the_error(sampler, prediction):
    few, many = (error_for_gaussian_data(sampler, prediction, steps) for steps in (40, 160))
    assert many < few / 3.5


@pytest.mark.parametrize(
    ("sampler", "prediction"),
    # PLMS combines v of different noise levels, as in diffusers, and is of first order then.
    [("plms", "epsilon"), ("dpm++2m", "epsilon"), ("dpm++2m", "v_prediction")],
)
def test_40_steps_of_second_order_beat_160_of_first(sampler, prediction):
    second = error_for_gaussian_data(sampler, prediction, 40)
    assert second < error_for_gaussian_data("ddim", prediction, 160)


@every_sampler
def test_one_step_from_an_exact_model_returns_its_denoised(sampler):
    # Every sampler that ends at alpha_bar 1 ends with its last estimate of x_0.
    config = CONFIGS["cosine"]
    schedule = schedule_from_config(config, 1, sampler=sampler, timestep_spacing="trailing")
    seen = []
    x = SAMPLERS[sampler](
        mixture_model(schedule.alphas_cumprod, "epsilon"),
        normal(0),
        schedule,
        noise=torch.randn_like,
        callback=lambda step, x, denoised: seen.append(denoised),
    )
    torch.testing.assert_close(x, seen[0], rtol=1e-9, atol=1e-9)


def linear_model(x, t, step):
    return 0.3 * x + 0.1


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_model_and_callback_get_the_index_of_the_transition(sampler, steps):
    schedule = schedule_from_config(CONFIGS["scaled-linear"], steps, sampler=sampler)
    calls, reports = [], []

    def model(x, t, step):
        calls.append((t, step))
        return linear_model(x, t, step)

    SAMPLERS[sampler](
        model,
        normal(0),
        schedule,
        noise=torch.randn_like,
        callback=lambda step, x, denoised: reports.append(step),
    )
    expected = list(zip(schedule.timesteps, range(steps), strict=True))
    if sampler == "plms" and steps > 1:
        expected.insert(1, (schedule.timesteps[1], 0))
    assert calls == expected
    assert reports == list(range(steps))
    assert schedule.steps == steps


@every_sampler
@every_prediction
def test_gradient_flows_through_the_whole_loop(sampler, prediction):
    config = CONFIGS["scaled-linear"] | {"prediction_type": prediction}
    schedule = schedule_from_config(config, 6, sampler=sampler)
    noises = [normal(1 + i, (2, 3)) for i in range(6)]

    def final(x, weights, model_of=lambda model: model):
        drawn = iter(noises)

        def model(x, t, step):
            return torch.tanh(weights[step] * x) + 0.1 * x

        options = {"eta": 0.5} if sampler == "ddim" else {}
        return SAMPLERS[sampler](
            model_of(model), x, schedule, noise=lambda x: next(drawn), **options
        )

    x = normal(0, (2, 3)).requires_grad_()
    weights = torch.linspace(0.2, 0.9, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(final, (x, weights))

    full = torch.autograd.grad(final(x, weights).sum(), (x, weights))
    with_checkpoints = final(
        x, weights, lambda model: functools.partial(checkpoint, model, use_reentrant=False)
    )
    recomputed = torch.autograd.grad(with_checkpoints.sum(), (x, weights))
    for gradient, expected in zip(recomputed, full, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@every_sampler
@every_prediction
def test_arithmetic_of_the_sampler_keeps_no_sample_for_backward(sampler, prediction):
    config = CONFIGS["scaled-linear"] | {"prediction_type": prediction}
    schedule = schedule_from_config(config, 6, sampler=sampler)
    saved: list[Tensor] = []
    x = normal(0).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        final = SAMPLERS[sampler](linear_model, x, schedule, noise=torch.randn_like)
    assert final.requires_grad
    # Constants are kept as tensors without dimensions.
    assert all(tensor.ndim == 0 for tensor in saved)


@pytest.mark.parametrize("sampler", ["ddim", "euler-ancestral"])
def test_noise_per_image_makes_a_batch_equal_to_its_images(sampler):
    schedule = schedule_from_config(CONFIGS["scaled-linear"], 8, sampler=sampler)
    model = mixture_model(schedule.alphas_cumprod, "epsilon")
    options = {"eta": 1.0} if sampler == "ddim" else {}

    def run(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def noise(x):
            draws = [torch.randn(SHAPE[1:], generator=g, dtype=x.dtype) for g in generators]
            return torch.stack(draws)

        x = noise(torch.empty(0, dtype=torch.float64))
        return SAMPLERS[sampler](model, x, schedule, noise=noise, **options)

    images = torch.cat([run([seed]) for seed in (3, 4, 5)])
    torch.testing.assert_close(run([3, 4, 5]), images, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(images[0], images[1])


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_only_at_the_model_and_the_end(sampler, dtype):
    schedule = schedule_from_config(CONFIGS["scaled-linear"], 25, sampler=sampler)
    prediction = normal(1).to(dtype)
    x = normal(0).to(dtype)

    def run(x):
        seen = []

        def model(x, t, step):
            seen.append(x.dtype)
            return prediction.to(x.dtype)

        def callback(step, x, denoised):
            seen.extend([x.dtype, denoised.dtype])

        noise = functools.partial(torch.full_like, fill_value=0.5)
        final = SAMPLERS[sampler](model, x, schedule, noise=noise, callback=callback)
        assert set(seen) == {x.dtype}
        return final

    half = run(x)
    assert half.dtype == dtype
    assert torch.equal(half, run(x.float()).to(dtype))


@every_sampler
def test_inputs_are_left_alone(sampler):
    schedule = schedule_from_config(CONFIGS["scaled-linear"], 5, sampler=sampler)
    x = normal(0)
    before = x.clone()
    outputs = []

    def model(x, t, step):
        outputs.append((y := linear_model(x, t, step), y.clone()))
        return y

    SAMPLERS[sampler](model, x, schedule, noise=torch.randn_like)
    assert torch.equal(x, before)
    assert all(torch.equal(y, copy) for y, copy in outputs)


@pytest.mark.parametrize("sampler", ["ddim", "euler-ancestral"])
def test_noise_is_not_drawn_for_a_transition_without_noise(sampler):
    schedule = schedule_from_config(CONFIGS["cosine"], 5, sampler=sampler)
    drawn = []

    def noise(x):
        drawn.append(x)
        return torch.zeros_like(x)

    options = {"eta": 1.0} if sampler == "ddim" else {}
    SAMPLERS[sampler](linear_model, normal(0), schedule, noise=noise, **options)
    assert len(drawn) == 4


def test_names_lead_to_samplers():
    assert list(SAMPLERS) == ["ddim", "plms", "dpm++2m", "euler", "euler-ancestral"]
    assert by_name("dpm++2m") is stal.sampler.dpm_solver_pp_2m
    with pytest.raises(ValueError, match=r"one of 'ddim', 'plms', .*, got 'heun'"):
        by_name("heun")


def test_samplers_import_nothing_but_torch_and_the_standard_library():
    sources = (
        *(stal.sampler, stal.sampler_checks, stal.schedule),
        *(stal.budget, stal.checked_json, stal.files, stal.finite),
    )
    modules = set()
    for node in (n for s in sources for n in ast.walk(ast.parse(inspect.getsource(s)))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            modules.add(module if module.startswith("stal") else module.split(".")[0])
    ours = {source.__name__ for source in sources}
    assert modules <= {"torch", "stal", *ours, *sys.stdlib_module_names}


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_denoised_and_eps_undo_the_forward_process(prediction_type):
    x_0, eps = normal(0).double(), normal(1).double()
    alpha_bar = 0.3
    a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    prediction = eps if prediction_type == "epsilon" else a * eps - s * x_0
    found = denoised_and_eps(prediction, a * x_0 + s * eps, alpha_bar, prediction_type)
    for ours, true in zip(found, (x_0, eps), strict=True):
        torch.testing.assert_close(ours, true, rtol=0, atol=1e-12)


def test_ddim_variance_at_eta_one_is_that_of_ddpm():
    # Ho et al. 2020, arXiv 2006.11239, equation 7: (1 - a_s)/(1 - a_t) beta_t.
    a_s, beta_t = 0.6, 0.25
    a_t = a_s * (1 - beta_t)
    assert math.isclose(ddim_variance(a_t, a_s, 1.0), (1 - a_s) / (1 - a_t) * beta_t)
    assert ddim_variance(a_t, a_s, 0.0) == 0
    assert ddim_variance(a_t, 1.0, 1.0) == 0


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({}, {"steps": 0}, r"steps must be an integer in \[1, 1000\], got 0"),
        ({}, {"steps": 1001}, r"steps must be .* got 1001"),
        ({}, {"steps": 2.5}, r"steps must be .* got 2.5"),
        ({}, {"steps": True}, r"steps must be .* got True"),
        ({"num_train_timesteps": 0}, {}, "num_train_timesteps must be a positive integer, got 0"),
        ({"beta_schedule": "sigmoid"}, {}, "beta_schedule must be one of .*, got 'sigmoid'"),
        ({"beta_start": -0.1}, {}, "beta_start and beta_end must be numbers"),
        ({"trained_betas": [0.1, 0.2]}, {}, "trained_betas must be num_train_timesteps = 1000"),
        ({"prediction_type": "sample"}, {}, "prediction_type must be one of .*, got 'sample'"),
        ({"timestep_spacing": "karras"}, {}, "timestep_spacing must be one of .*, got 'karras'"),
        ({}, {"timestep_spacing": ""}, "timestep_spacing must be one of .*, got ''"),
        ({"steps_offset": 0.5}, {}, "steps_offset must be an integer, got 0.5"),
        ({}, {"sampler": "heun"}, "sampler must be one of 'ddim', .*, got 'heun'"),
        ({}, {"sampler": None}, "sampler must be given, one of 'ddim', .* of None"),
        (
            {"_class_name": "UniPCMultistepScheduler"},
            {"sampler": None},
            "sampler must be given, .* of 'UniPCMultistepScheduler'",
        ),
        (
            {"steps_offset": 1, "timestep_spacing": "leading"},
            {"steps": 1000},
            r"timesteps must descend strictly within \[0, 999\], got \(1000, 999, .* fewer steps",
        ),
        ({}, {"sampler": "dpm++2m", "steps": 1000}, "timesteps must descend strictly"),
        ({"steps_offset": -1}, {}, "timesteps must descend strictly"),
        ({}, {"alphas_cumprod": torch.ones(3)}, r"alphas_cumprod must have shape \(1000,\)"),
        (
            {},
            {"alphas_cumprod": torch.linspace(1, 0, 1000)},
            r"alphas_cumprod must descend strictly within \[0, 1\)",
        ),
        (
            {},
            {"alphas_cumprod": torch.full((1000,), math.nan)},
            r"alphas_cumprod must descend strictly within \[0, 1\)",
        ),
        (
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            {},
            "prediction_type must be 'v_prediction'",
        ),
        ({"thresholding": True}, {}, "thresholding must be False for sampler 'ddim'"),
        (
            {"_class_name": "PNDMScheduler"},
            {"sampler": None},
            "skip_prk_steps must be True for sampler 'plms'",
        ),
        ({"rescale_betas_zero_snr": True}, {"sampler": "plms"}, "rescale_betas_zero_snr must be"),
        ({"use_karras_sigmas": True}, {"sampler": "euler"}, "use_karras_sigmas must be False"),
        ({"timestep_type": "continuous"}, {"sampler": "euler"}, "timestep_type must be 'discrete'"),
        ({"solver_order": 3}, {"sampler": "dpm++2m"}, "solver_order must be 2"),
        ({"variance_type": "learned"}, {"sampler": "dpm++2m"}, "variance_type must be null"),
    ],
)
def test_bad_configuration_is_refused(config, arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule_from_config(config, **{"steps": 10, "sampler": "ddim", **arguments})


def test_schedule_checks_its_own_fields():
    good = schedule_from_config({}, 3, sampler="ddim")
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    cases: list[tuple[dict, str]] = [
        ({"timesteps": ()}, "timesteps must descend"),
        ({"timesteps": (3, 3)}, "timesteps must descend"),
        ({"timesteps": (math.nan,)}, "timesteps must descend"),
        ({"alphas_cumprod": good.alphas_cumprod.float()}, "alphas_cumprod must be a float64"),
        ({"sampler": "heun"}, "sampler must be one of"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            Schedule(**{**fields, **change})


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_outside_0_to_1_is_refused(eta):
    schedule = schedule_from_config({}, 3, sampler="ddim")
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got"):
        SAMPLERS["ddim"](linear_model, normal(0), schedule, eta=eta, noise=torch.randn_like)


@pytest.mark.parametrize(
    ("sampler", "options"), [("ddim", {"eta": 0.2}), ("euler-ancestral", {})], ids=str
)
def test_stochastic_sampler_without_noise_is_refused(sampler, options):
    schedule = schedule_from_config({}, 3, sampler=sampler)
    with pytest.raises(ValueError, match="noise must be given to"):
        SAMPLERS[sampler](linear_model, normal(0), schedule, **options)


@every_sampler
def test_x_that_is_not_floating_point_is_refused(sampler):
    schedule = schedule_from_config({}, 3, sampler=sampler)
    for x in (torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.complex64), [1.0]):
        with pytest.raises(ValueError, match="x must be a floating point tensor, got"):
            SAMPLERS[sampler](linear_model, x, schedule, noise=torch.randn_like)


@every_sampler
def test_schedule_of_another_sampler_is_refused(sampler):
    other = "euler" if sampler == "ddim" else "ddim"
    schedule = schedule_from_config({}, 3, sampler=other)
    with pytest.raises(ValueError, match=rf"schedule must be .*, got '{other}'"):
        SAMPLERS[sampler](linear_model, normal(0), schedule, noise=torch.randn_like)


@every_sampler
@pytest.mark.parametrize(
    "returned",
    [
        pytest.param(lambda x: x[:1], id="shape"),
        pytest.param(lambda x: x.long(), id="dtype"),
        pytest.param(lambda x: (x,), id="tuple"),
    ],
)
def test_prediction_of_another_kind_is_refused(sampler, returned):
    schedule = schedule_from_config({}, 3, sampler=sampler)
    with pytest.raises(ValueError, match="model must return at step 1 a floating point tensor"):
        SAMPLERS[sampler](
            lambda x, t, step: returned(x) if step == 1 else x,
            normal(0),
            schedule,
            noise=torch.randn_like,
        )


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
@pytest.mark.parametrize("value", [math.nan, math.inf])
@every_sampler
def test_prediction_that_is_not_finite_is_refused_by_step(sampler, value, device):
    schedule = schedule_from_config({}, 4, sampler=sampler)
    last = []

    def model(x, t, step):
        last.append(step)
        y = 0.1 * x
        if step == 2:
            y[0, 0, 0, 0] = value
        return y

    message = rf"got NaN or infinity at step 2 \(timestep {schedule.timesteps[2]:g}\)"
    with pytest.raises(ValueError, match=message):
        SAMPLERS[sampler](model, normal(0).to(device), schedule, noise=torch.randn_like)
    assert last[-1] == (2 if device == "cpu" else 3)


@pytest.mark.parametrize("sampler", ["ddim", "euler-ancestral"])
def test_noise_of_another_shape_is_refused(sampler):
    schedule = schedule_from_config({}, 3, sampler=sampler)
    options = {"eta": 1.0} if sampler == "ddim" else {}
    with pytest.raises(ValueError, match="noise must return a floating point tensor of shape"):
        SAMPLERS[sampler](linear_model, normal(0), schedule, noise=lambda x: x[:1], **options)


# Every beta schedule and spacing, with few steps and with as many as there are.
ZERO_SNR = [
    (sampler, spacing, betas, steps)
    for sampler in ("euler", "euler-ancestral", "dpm++2m", "ddim")
    for spacing in ("leading", "trailing", "linspace")
    for betas in ("linear", "scaled_linear", "squaredcos_cap_v2")
    for steps in (1, 4, 50)
]


@pytest.mark.parametrize(("sampler", "spacing", "betas", "steps"), ZERO_SNR)
def test_zero_snr_has_diffusers_noise_levels(sampler, spacing, betas, steps):
    config = {
        "_class_name": SCHEDULERS[sampler].__name__,
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": spacing,
        "beta_schedule": betas,
    }
    theirs = SCHEDULERS[sampler].from_config(config)
    theirs.set_timesteps(steps)
    ours = schedule_from_config(config, steps)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps[:steps])
    if sampler != "ddim":
        # diffusers' float32 cancels where sigma is largest.
        np.testing.assert_allclose(ours.sigmas[:-1], theirs.sigmas[:-1], rtol=2e-3)


def test_zero_snr_as_many_steps_as_there_are_is_refused_where_noise_would_grow():
    config = {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    assert schedule_from_config(config, 1000, sampler="euler").sigmas[1] > 4096
    with pytest.raises(ValueError, match=r"noise levels must descend .*take fewer steps"):
        schedule_from_config(config, 1000, sampler="euler-ancestral")


def test_numbers_of_a_configuration_may_be_floats_or_null():
    plain = schedule_from_config({}, 5, sampler="ddim")
    config = {
        "num_train_timesteps": 1000.0,
        "steps_offset": 0.0,
        "beta_start": None,
        "beta_schedule": None,
        "timestep_spacing": None,
        "prediction_type": None,
        "clip_sample": None,
        "set_alpha_to_one": None,
        "_use_default_values": None,
    }
    same = schedule_from_config(config, 5, sampler="ddim")
    assert (same.timesteps, same.clip_sample_range) == (plain.timesteps, plain.clip_sample_range)
    assert torch.equal(same.alphas_cumprod, plain.alphas_cumprod)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_train_timesteps": 10**9}, "num_train_timesteps must be at most 100000"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps must be a positive integer"),
        ({"num_train_timesteps": math.nan}, "num_train_timesteps must be a positive integer"),
        ({"steps_offset": 10**30}, "timesteps must descend strictly within"),
        ({"beta_end": "0.02"}, "beta_end must be a number"),
        ({"beta_start": math.nan}, "must be numbers in"),
        ({"trained_betas": [math.nan] * 1000}, "trained_betas must be"),
        ({"trained_betas": 7}, "trained_betas must be"),
        ({"trained_betas": ["x"] * 1000}, "trained_betas must be a number"),
        ({"trained_betas": [10**400] * 1000}, "trained_betas must be a finite number"),
        ({"clip_sample_range": "x"}, "clip_sample_range must be a number"),
        ({"clip_sample_range": math.nan}, "clip_sample_range must be a positive number"),
        ({"prediction_type": ["epsilon"]}, "prediction_type must be one of"),
        ({"timestep_spacing": {}}, "timestep_spacing must be one of"),
        ({"_use_default_values": 5}, "_use_default_values must be names"),
    ],
)
def test_a_configuration_of_another_kind_is_refused_in_words(config, message):
    with pytest.raises(ValueError, match=message):
        schedule_from_config(config, 5, sampler="ddim")
