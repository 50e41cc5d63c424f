"""Samplers for latent diffusion, as free functions over one interface.

The forward process is x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps with eps ~ N(0, I).
A sampler starts from unit Gaussian noise and follows it back to x_0:

    schedule = schedule_from_config(json.load(file), steps=25)    # of stal.schedule
    x_0 = by_name(schedule.sampler)(model, torch.randn(1, 4, 64, 64), schedule)

All samplers take the same arguments.

model     model(x, t, step) -> prediction, as `schedule.prediction_type` says, in the shape of x.
          x: noisy samples in the dtype of the initial x, variance preserving (as the forward
          process above gives them); t: timestep, int or (Euler with linspace spacing) float;
          step: index of the transition, 0 <= step < schedule.steps. PLMS calls the model twice in
          step 0.
x         (batch, ...) floating point, unit Gaussian noise for every sampler.
noise     noise(x) -> standard normal tensor in the shape of x, needed by stochastic samplers. It is
          not called for a transition that adds no noise.
callback  callback(step, x, denoised) after each transition: the new x, variance preserving, and the
          estimate of x_0 that led to it, both in the dtype of the initial x; not to be modified.

They return the final x in the dtype of the initial x. Between model calls half precision x is kept
in float32. Nothing is detached or modified in place, so a gradient flows through the whole loop;
the samplers' own arithmetic keeps no tensor of the size of x for it (but for DDIM's clamp), so that
a model function that checkpoints itself leaves only its inputs in memory.

An argument that breaks these rules raises ValueError, and so does a prediction of another shape or
with a NaN or infinity in it, naming the step: at once on the CPU; on an accelerator, where reading
a value waits for the device, when the loop has been queued.

Below, a sampler is written as a generator that yields x, t and step where it wants the model's
prediction, and `checked` makes the function of it. The generator with the same checks is
`ddim.steps(x, schedule, ...)`, for whoever calls the model for several trajectories at once:

    running = ddim.steps(x, schedule)
    x, t, step = next(running)
    x, t, step = running.send(model(x, t, step))    # until StopIteration, whose value is x_0

Each sampler reproduces the diffusers scheduler named in its docstring, created `from_config` of the
same configuration.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from stal.sampler_checks import Callback, NoiseFunction, Sampler, Steps, checked
from stal.schedule import Schedule, ddim_variance, denoised_and_eps, require_one_of

# Weights of the latest output of the model and of those before it, by their number.
_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@checked("ddim")
def ddim(
    x: Tensor,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    noise: NoiseFunction | None = None,
    callback: Callback | None = None,
) -> Steps:
    """x_s = sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) eps + sigma z, a = alpha_bar, from t to s < t.

    sigma^2 = eta^2 (1 - a_s)/(1 - a_t) (1 - a_t/a_s); z is drawn by `noise`. eta 0 is
    deterministic, eta 1 is ancestral sampling (DDPM). s is t - `schedule.stride`, not the next
    timestep, as in diffusers' DDIMScheduler; with `schedule.clip_sample_range` x_0 is clamped but
    eps is not derived anew.

    Raises: ValueError for eta outside [0, 1] or without the noise that it needs.
    Source: Song, Meng and Ermon 2021, arXiv 2010.02502, equations 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    if eta > 0 and noise is None:
        raise ValueError(f"noise must be given to ddim where eta > 0, got None with eta {eta}")
    for step, t in enumerate(schedule.timesteps):
        a_t, a_s = schedule.alpha_bar(t), schedule.alpha_bar(t - schedule.stride)
        prediction = yield x, t, step
        denoised, eps = denoised_and_eps(prediction, x, a_t, schedule.prediction_type)
        if schedule.clip_sample_range is not None:
            denoised = denoised.clamp(-schedule.clip_sample_range, schedule.clip_sample_range)
        variance = ddim_variance(a_t, a_s, eta)
        # Where a_t is 0 and eta 1 the difference is 0 but for rounding.
        x = math.sqrt(a_s) * denoised + math.sqrt(max(0.0, 1 - a_s - variance)) * eps
        if noise is not None and variance > 0:
            x = x + math.sqrt(variance) * noise(x)
        if callback is not None:
            callback(step, x, denoised)
    return x


@checked("plms")
def plms(
    x: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseFunction | None = None,
    callback: Callback | None = None,
) -> Steps:
    """x_s = sqrt(a_s) x_0 + sqrt(1 - a_s) eps with the prediction of a linear multistep method.

    The prediction is the Adams-Bashforth combination of the last four outputs of the model, with
    2, 3 and 4 terms in steps 1, 2 and 3 on. Step 0 averages the outputs at both ends of the
    transition, so n > 1 steps call the model n + 1 times. As in diffusers' PNDMScheduler with
    skip_prk_steps, alpha_bar in step 0 is taken at the second timestep and one stride above it, and
    outputs are combined before v is converted to eps. The latter makes the method one of first
    order, hardly better than DDIM: prefer another sampler for v-prediction. Draws no noise.

    Source: Liu et al. 2022, arXiv 2202.09778; the step from t to s is equation 9 in another form.
    The start is that of Stable Diffusion instead of the paper's Runge-Kutta steps.
    """

    def transfer(x: Tensor, prediction: Tensor, t: float) -> tuple[Tensor, Tensor]:
        a_t, a_s = schedule.alpha_bar(t), schedule.alpha_bar(t - schedule.stride)
        denoised, eps = denoised_and_eps(prediction, x, a_t, schedule.prediction_type)
        return math.sqrt(a_s) * denoised + math.sqrt(1 - a_s) * eps, denoised

    outputs: list[Tensor] = []
    for step, t in enumerate(schedule.timesteps):
        outputs = [(yield x, t, step), *outputs[:3]]
        if step == 0 and schedule.steps > 1:
            x_s, _ = transfer(x, outputs[0], t)
            s = schedule.timesteps[1]
            prediction = (outputs[0] + (yield x_s, s, step)) / 2
            t = s + schedule.stride
        else:
            weights = _ADAMS_BASHFORTH[len(outputs) - 1]
            terms = (w * output for w, output in zip(weights, outputs, strict=True))
            prediction = functools.reduce(torch.add, terms)
        x, denoised = transfer(x, prediction, t)
        if callback is not None:
            callback(step, x, denoised)
    return x


@checked("dpm++2m")
def dpm_solver_pp_2m(
    x: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseFunction | None = None,
    callback: Callback | None = None,
) -> Steps:
    """x_t = sigma_t/sigma_s x_s - alpha_t (e^-h - 1) D, from noise level s to the next one, t.

    D = (1 + 1/(2r)) x_0(x_s) - 1/(2r) x_0(the sample before x_s), alpha = sqrt(alpha_bar),
    sigma = sqrt(1 - alpha_bar), h = lambda_t - lambda_s with lambda = log(alpha/sigma), r = (the h
    before)/h. The first transition has no sample before and the last no finite h: D = x_0(x_s).
    diffusers: DPMSolverMultistepScheduler with its default options. Draws no noise.

    Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2 (DPM-Solver++(2M)).
    """
    ratios = schedule.sigmas  # sigma/alpha = e^-lambda
    before = None
    for step, t in enumerate(schedule.timesteps):
        ratio_s, ratio_t = ratios[step], ratios[step + 1]
        alpha_s, alpha_t = 1 / math.hypot(1, ratio_s), 1 / math.hypot(1, ratio_t)
        prediction = yield x, t, step
        denoised, _ = denoised_and_eps(prediction, x, alpha_s**2, schedule.prediction_type)
        d = denoised
        if before is not None and ratio_t > 0:
            r = math.log(ratios[step - 1] / ratio_s) / math.log(ratio_s / ratio_t)
            d = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * before
        e_minus_h = ratio_t / ratio_s
        x = e_minus_h * alpha_t / alpha_s * x - alpha_t * (e_minus_h - 1) * d
        before = denoised
        if callback is not None:
            callback(step, x, denoised)
    return x


@checked("euler")
def euler(
    x: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseFunction | None = None,
    callback: Callback | None = None,
) -> Steps:
    """x_{i+1} = x_i + (sigma_{i+1} - sigma_i) d_i with d_i = (x_i - x_0(x_i))/sigma_i = eps.

    Here x = x_0 + sigma eps. The model sees x/sqrt(1 + sigma^2), which is variance preserving with
    alpha_bar = 1/(1 + sigma^2). diffusers: EulerDiscreteScheduler with its default options. Draws
    no noise.

    Source: Karras et al. 2022, arXiv 2206.00364, algorithm 1 without its second order correction.
    """
    sigmas = schedule.sigmas
    x = schedule.init_noise_sigma * x
    for step, t in enumerate(schedule.timesteps):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        x_vp = x / math.hypot(1, sigma)
        prediction = yield x_vp, t, step
        denoised, d = denoised_and_eps(
            prediction, x_vp, 1 / (1 + sigma**2), schedule.prediction_type
        )
        x = x + (sigma_next - sigma) * d
        if callback is not None:
            callback(step, x / math.hypot(1, sigma_next), denoised)
    return x


@checked("euler-ancestral")
def euler_ancestral(
    x: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseFunction | None = None,
    callback: Callback | None = None,
) -> Steps:
    """x_{i+1} = x_i + (sigma_down - sigma_i) d_i + sigma_up z, with d_i as in `euler`.

    sigma_up^2 = sigma_{i+1}^2 (sigma_i^2 - sigma_{i+1}^2)/sigma_i^2 and
    sigma_down^2 = sigma_{i+1}^2 - sigma_up^2; z is drawn by `noise`, but not for the last
    transition, where sigma_up is 0. diffusers: EulerAncestralDiscreteScheduler.

    Raises: ValueError without noise.
    Source: crowsonkb/k-diffusion, `sample_euler_ancestral`.
    """
    if noise is None:
        raise ValueError("noise must be given to euler_ancestral, got None")
    sigmas = schedule.sigmas
    x = schedule.init_noise_sigma * x
    for step, t in enumerate(schedule.timesteps):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        sigma_down = sigma_next**2 / sigma
        sigma_up = math.sqrt(sigma_next**2 - sigma_down**2)
        x_vp = x / math.hypot(1, sigma)
        prediction = yield x_vp, t, step
        denoised, d = denoised_and_eps(
            prediction, x_vp, 1 / (1 + sigma**2), schedule.prediction_type
        )
        x = x + (sigma_down - sigma) * d
        if sigma_up > 0:
            x = x + sigma_up * noise(x)
        if callback is not None:
            callback(step, x / math.hypot(1, sigma_next), denoised)
    return x


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "ddim": ddim,
        "plms": plms,
        "dpm++2m": dpm_solver_pp_2m,
        "euler": euler,
        "euler-ancestral": euler_ancestral,
    }
)


def by_name(name: str) -> Sampler:
    """The sampler of that name in SAMPLERS. Raises: ValueError that lists the names."""
    require_one_of("sampler", name, SAMPLERS)
    return SAMPLERS[name]
