"""Samplers for latent diffusion, as free functions over one interface.

The forward process is x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps with eps ~ N(0, I).
A sampler starts from unit Gaussian noise and follows it back to x_0:

    schedule = schedule_from_config(json.load(file), steps=25)    # scheduler_config.json
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

Each sampler reproduces the diffusers scheduler named in its docstring, created `from_config` of the
same configuration.
"""

from __future__ import annotations

import functools
import itertools
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Model = Callable[[Tensor, float, int], Tensor]
Noise = Callable[[Tensor], Tensor]
Callback = Callable[[int, Tensor, Tensor], None]
Sampler = Callable[..., Tensor]
_S = TypeVar("_S", bound=Sampler)

_PREDICTION_TYPES = ("epsilon", "v_prediction")
_SPACINGS = ("leading", "trailing", "linspace")

_SCHEDULER_CLASSES = MappingProxyType(
    {
        "ddim": "DDIMScheduler",
        "plms": "PNDMScheduler",
        "dpm++2m": "DPMSolverMultistepScheduler",
        "euler": "EulerDiscreteScheduler",
        "euler-ancestral": "EulerAncestralDiscreteScheduler",
    }
)

# Options that change the algorithm of a diffusers scheduler, with the values under which it is the
# algorithm implemented here. An option that its scheduler does not have is absent: diffusers
# ignores it, e.g. use_karras_sigmas in DDIM.
_IMPLEMENTED: Mapping[str, Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "ddim": {"thresholding": (False,)},
        # PNDMScheduler would ignore rescale_betas_zero_snr and use noise levels that the model was
        # not trained on.
        "plms": {"rescale_betas_zero_snr": (False,), "skip_prk_steps": (True,)},
        "dpm++2m": {
            # The further values are those of other solvers, which DPMSolverMultistepScheduler
            # replaces by the first.
            "algorithm_type": ("dpmsolver++", "deis"),
            "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
            "solver_order": (2,),
            "final_sigmas_type": ("zero",),
            "lambda_min_clipped": (-math.inf,),
            "thresholding": (False,),
            "use_beta_sigmas": (False,),
            "use_exponential_sigmas": (False,),
            "use_flow_sigmas": (False,),
            "use_karras_sigmas": (False,),
            "use_lu_lambdas": (False,),
            "variance_type": (),
        },
        "euler": {
            "final_sigmas_type": ("zero",),
            "interpolation_type": ("linear",),
            "timestep_type": ("discrete",),
            "use_beta_sigmas": (False,),
            "use_exponential_sigmas": (False,),
            "use_karras_sigmas": (False,),
        },
        "euler-ancestral": {},
    }
)


# Weights of the latest output of the model and of those before it, by their number.
_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True, eq=False)
class Schedule:
    """Noise levels and timesteps of one sampling run; built by `schedule_from_config`.

    sampler               name of the sampler that the timesteps are meant for
    prediction_type       "epsilon": the model predicts eps; "v_prediction": it predicts
                          v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
    alphas_cumprod        (num_train_timesteps,) float64 on the CPU, alpha_bar of each training
                          timestep, strictly descending within [0, 1)
    timesteps             timestep of each transition, strictly descending
    timestep_spacing      the rule that chose them
    final_alpha_cumprod   alpha_bar that the last transition of DDIM and PLMS leads to
    clip_sample_range     DDIM clamps its estimate of x_0 to +- this; None leaves it as it is

    Raises ValueError where a field breaks these rules, and where the first timestep has alpha_bar 0
    (zero terminal signal-to-noise ratio) and the sampler would divide by it.
    """

    sampler: str
    prediction_type: str
    alphas_cumprod: Tensor = field(repr=False)
    timesteps: tuple[float, ...]
    timestep_spacing: str
    final_alpha_cumprod: float = 1.0
    clip_sample_range: float | None = None

    def __post_init__(self) -> None:
        _require_one_of("sampler", self.sampler, _SCHEDULER_CLASSES)
        _require_one_of("prediction_type", self.prediction_type, _PREDICTION_TYPES)
        _require_one_of("timestep_spacing", self.timestep_spacing, _SPACINGS)
        a, t = self.alphas_cumprod, self.timesteps
        if a.ndim != 1 or a.dtype != torch.float64 or a.device.type != "cpu":
            raise ValueError(
                "alphas_cumprod must be a float64 vector on the CPU, "
                f"got {a.dtype} of shape {tuple(a.shape)} on {a.device}"
            )
        # Written so that a NaN fails.
        if not (len(a) and a[0] < 1 and a[-1] >= 0 and bool((a[1:] < a[:-1]).all())):
            raise ValueError(
                "alphas_cumprod must descend strictly within [0, 1), "
                f"got {reprlib.repr(a.tolist())}"
            )
        inside = len(t) > 0 and len(a) > t[0] and t[-1] >= 0
        if not inside or any(later >= earlier for earlier, later in itertools.pairwise(t)):
            raise ValueError(
                f"timesteps must descend strictly within [0, {len(a) - 1}], got {reprlib.repr(t)}; "
                "take fewer steps or another timestep_spacing"
            )
        divides = self.prediction_type == "epsilon" or self.sampler not in ("ddim", "plms")
        if divides and a[math.ceil(t[0])] == 0:
            raise ValueError(
                "prediction_type must be 'v_prediction' and sampler 'ddim' or 'plms' where "
                f"alphas_cumprod is 0 at the first timestep {t[0]}, "
                f"got {self.prediction_type!r} and {self.sampler!r}"
            )

    @property
    def steps(self) -> int:
        """Number of transitions."""
        return len(self.timesteps)

    @property
    def stride(self) -> int:
        """Timesteps that DDIM and PLMS advance in one transition.

        diffusers advances by num_train_timesteps // steps even where trailing or linspace spacing
        puts the next timestep elsewhere.
        """
        return len(self.alphas_cumprod) // self.steps

    def alpha_bar(self, t: float) -> float:
        """alpha_bar of an integer timestep; below 0 that of the final image."""
        return float(self.alphas_cumprod[int(t)]) if t >= 0 else self.final_alpha_cumprod

    @property
    def sigmas(self) -> tuple[float, ...]:
        """sigma = sqrt((1 - alpha_bar) / alpha_bar) of each timestep, then 0: steps + 1 values.

        Between two training timesteps sigma is interpolated linearly in t.
        """
        grid = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt().tolist()
        sigmas = []
        for t in self.timesteps:
            low = int(t)
            high = min(low + 1, len(grid) - 1)
            sigmas.append(grid[low] + (t - low) * (grid[high] - grid[low]))
        return (*sigmas, 0.0)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that Euler starts from.

        As in diffusers only leading spacing counts the unit variance of the data.
        """
        sigma = self.sigmas[0]
        return math.hypot(1, sigma) if self.timestep_spacing == "leading" else sigma


def alphas_cumprod_from_config(config: Mapping[str, Any]) -> Tensor:
    """alpha_bar_t = prod_{i <= t} (1 - beta_i) of a diffusers scheduler_config.json.

    beta_schedule: "linear" in beta; "scaled_linear", linear in sqrt(beta); "squaredcos_cap_v2",
    alpha_bar = cos^2((t/T + 0.008) / 1.008 * pi/2) with beta <= 0.999; or `trained_betas`. With
    `rescale_betas_zero_snr` sqrt(alpha_bar) is shifted and scaled so that its last value is 0 and
    its first stays (Lin et al. 2023, arXiv 2305.08891, algorithm 1). Missing keys take the defaults
    of diffusers.

    Returns: (num_train_timesteps,) float64. diffusers computes the same in float32.
    Raises: ValueError for an unknown beta_schedule or a beta outside (0, 1].
    """
    config = _without_defaulted(config)
    count = _num_train_timesteps(config)
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
    elif (kind := config.get("beta_schedule", "linear")) == "squaredcos_cap_v2":
        t = torch.arange(count + 1, dtype=torch.float64) / count
        alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    else:
        _require_one_of("beta_schedule", kind, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        power = 2 if kind == "scaled_linear" else 1
        ends = [config.get("beta_start", 0.0001), config.get("beta_end", 0.02)]
        if not all(isinstance(end, (int, float)) and 0 < end <= 1 for end in ends):
            raise ValueError(f"beta_start and beta_end must be numbers in (0, 1], got {ends}")
        start, end = (end ** (1 / power) for end in ends)
        betas = torch.linspace(start, end, count, dtype=torch.float64) ** power
    if betas.shape != (count,) or not bool(((betas > 0) & (betas <= 1)).all()):
        raise ValueError(
            f"trained_betas must be num_train_timesteps = {count} numbers in (0, 1], "
            f"got {reprlib.repr(betas.tolist())}"
        )
    alphas_cumprod = (1 - betas).cumprod(0)
    if config.get("rescale_betas_zero_snr", False):
        root = alphas_cumprod.sqrt()
        alphas_cumprod = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return alphas_cumprod


def schedule_from_config(
    config: Mapping[str, Any],
    steps: int,
    *,
    sampler: str | None = None,
    timestep_spacing: str | None = None,
    alphas_cumprod: Tensor | None = None,
) -> Schedule:
    """The schedule that the sampler's diffusers scheduler has after `from_config`, `set_timesteps`.

    As in diffusers a missing key takes the default of the scheduler of `sampler`, which is
    not always that of the scheduler that wrote the configuration: timestep_spacing is "leading" for
    DDIM and PLMS and "linspace" for the others, set_alpha_to_one is true for DDIM and false for
    PLMS, clip_sample is true for DDIM. With T = num_train_timesteps and n = steps the spacings are

                   ddim, plms            euler, euler-ancestral   dpm++2m
        leading    i (T // n) + offset   the same                 (i + 1) (T // (n + 1)) + offset
        linspace   round(i (T-1)/(n-1))  not rounded              round((i + 1) (T-1)/n)
        trailing   round((i + 1) T/n) - 1 for all

    for i from n - 1 down to 0 (Lin et al. 2023, arXiv 2305.08891, table 2).

    config            contents of scheduler_config.json
    steps             number of transitions, 1 <= steps <= num_train_timesteps
    sampler           a name in SAMPLERS; None takes the one that config's _class_name stands for
    timestep_spacing  "leading", "trailing" or "linspace" instead of config's
    alphas_cumprod    (num_train_timesteps,) instead of what config's betas give

    Raises: ValueError for anything outside these rules, and for a configuration that makes the
    diffusers scheduler another algorithm than the sampler (e.g. Karras sigmas, thresholding).
    """
    sampler = _sampler_of_config(config) if sampler is None else sampler
    _require_one_of("sampler", sampler, _SCHEDULER_CLASSES)
    config = _without_defaulted(config)
    count = _num_train_timesteps(config)
    if not _is_integer(steps) or not 1 <= steps <= count:
        raise ValueError(f"steps must be an integer in [1, {count}], got {steps!r}")
    if config.get("_class_name") == "PNDMScheduler":
        # That class's default. Configurations of other schedulers have no say in PLMS's warm-up.
        config.setdefault("skip_prk_steps", False)
    for option, values in _IMPLEMENTED[sampler].items():
        value = config.get(option)
        if value is not None and value not in values:
            raise ValueError(
                f"{option} must be {' or '.join(map(repr, values)) or 'null'} for sampler "
                f"{sampler!r}, which implements nothing else, got {value!r}"
            )
    offset = config.get("steps_offset", 0)
    if not _is_integer(offset):
        raise ValueError(f"steps_offset must be an integer, got {offset!r}")
    by_alpha_bar = sampler in ("ddim", "plms")
    spacing = timestep_spacing
    if spacing is None:
        spacing = config.get("timestep_spacing", "leading" if by_alpha_bar else "linspace")

    a = alphas_cumprod_from_config(config) if alphas_cumprod is None else alphas_cumprod
    if a.shape != (count,):
        raise ValueError(f"alphas_cumprod must have shape ({count},), got {tuple(a.shape)}")
    a = a.detach().to("cpu", torch.float64, copy=True)
    if not by_alpha_bar and config.get("rescale_betas_zero_snr", False):
        # Keeps the first sigma finite, at 4096; the number is diffusers'.
        a[-1] = 2**-24

    to_one = not by_alpha_bar or config.get("set_alpha_to_one", sampler == "ddim")
    clip = sampler == "ddim" and config.get("clip_sample", True)
    return Schedule(
        sampler=sampler,
        prediction_type=config.get("prediction_type", "epsilon"),
        alphas_cumprod=a,
        timesteps=_timesteps(sampler, spacing, steps, count, offset),
        timestep_spacing=spacing,
        final_alpha_cumprod=1.0 if to_one else float(a[0]),
        clip_sample_range=config.get("clip_sample_range", 1.0) if clip else None,
    )


def _timesteps(
    sampler: str, spacing: str, steps: int, count: int, offset: int
) -> tuple[float, ...]:
    """Timesteps from the noisiest down, by the table in `schedule_from_config`."""
    _require_one_of("timestep_spacing", spacing, _SPACINGS)
    if spacing == "trailing":
        # numpy.arange(count, 0, -count / steps), whose increment is this difference: its rounding
        # decides ties, e.g. at 48 steps. diffusers' own array has one timestep too many, -1, where
        # the last element does not round to exactly 0 (61 steps).
        increment = (count - count / steps) - count
        return tuple(round(count + i * increment) - 1 for i in range(steps))
    # DPMSolverMultistepScheduler spaces steps + 1 points and leaves out the lowest.
    skip = 1 if sampler == "dpm++2m" else 0
    points = steps + skip
    indices = range(points - 1, skip - 1, -1)
    if spacing == "leading":
        return tuple(i * (count // points) + offset for i in indices)
    distance = (count - 1) / max(1, points - 1)
    if sampler in ("euler", "euler-ancestral"):
        return tuple(min(i * distance, count - 1) for i in indices)
    return tuple(round(i * distance) for i in indices)


def _without_defaulted(config: Mapping[str, Any]) -> dict[str, Any]:
    """config without the values that the scheduler object holding it merely defaulted to."""
    defaulted = config.get("_use_default_values", ())
    return {option: value for option, value in config.items() if option not in defaulted}


def _num_train_timesteps(config: Mapping[str, Any]) -> int:
    count = config.get("num_train_timesteps", 1000)
    if not _is_integer(count) or count < 1:
        raise ValueError(f"num_train_timesteps must be a positive integer, got {count!r}")
    return count


def _sampler_of_config(config: Mapping[str, Any]) -> str:
    written_by = config.get("_class_name")
    for sampler, class_name in _SCHEDULER_CLASSES.items():
        if class_name == written_by:
            return sampler
    raise ValueError(
        f"sampler must be given, one of {', '.join(map(repr, _SCHEDULER_CLASSES))}, "
        f"for a configuration of {written_by!r}"
    )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _sampler(name: str) -> Callable[[_S], _S]:
    """Surrounds the mathematics of a sampler by what all of them do, see the module's docstring.

    Inside, x and what model and noise return are at least float32 and of checked shape.
    """

    def decorate(sample: _S) -> _S:
        @functools.wraps(sample)
        def checked(
            model: Model,
            x: Tensor,
            schedule: Schedule,
            *,
            noise: Noise | None = None,
            callback: Callback | None = None,
            **options: float,
        ) -> Tensor:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                got: object = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"x must be a floating point tensor, got {got}")
            if not isinstance(schedule, Schedule) or schedule.sampler != name:
                got = schedule.sampler if isinstance(schedule, Schedule) else schedule
                raise ValueError(
                    f"schedule must be schedule_from_config(..., sampler={name!r}), got {got!r}"
                )
            dtype, working_dtype = x.dtype, torch.promote_types(x.dtype, torch.float32)
            finite: list[tuple[int, float, Tensor]] = []

            def predict(x: Tensor, t: float, step: int) -> Tensor:
                prediction = model(x.to(dtype), t, step)
                _require_like(x, prediction, f"model must return at step {step}")
                finite.append((step, t, prediction.detach().isfinite().all()))
                if x.device.type == "cpu":
                    _require_finite(finite[-1:])
                return prediction.to(working_dtype)

            def draw(x: Tensor) -> Tensor:
                assert noise is not None
                drawn = noise(x)
                _require_like(x, drawn, "noise must return")
                return drawn.to(x)

            def report(step: int, x: Tensor, denoised: Tensor) -> None:
                assert callback is not None
                callback(step, x.to(dtype), denoised.to(dtype))

            x = sample(
                predict,
                x.to(working_dtype),
                schedule,
                noise=None if noise is None else draw,
                callback=None if callback is None else report,
                **options,
            )
            _require_finite(finite)
            return x.to(dtype)

        return cast(_S, checked)

    return decorate


def _require_like(x: Tensor, value: object, what: str) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != x.shape:
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value)
        raise ValueError(f"{what} a floating point tensor of shape {tuple(x.shape)}, got {got}")


def _require_finite(finite: list[tuple[int, float, Tensor]]) -> None:
    for step, t, flag in finite:
        if not flag:
            raise ValueError(
                f"model must return finite predictions, got NaN or infinity at step {step} "
                f"(timestep {t:g})"
            )


def _denoised_and_eps(
    prediction: Tensor, x: Tensor, alpha_bar: float, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """Estimates of x_0 and eps, where x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

    Source: Salimans and Ho 2022, arXiv 2202.00512, for v.
    """
    a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    if prediction_type == "epsilon":
        return (x - s * prediction) / a, prediction
    return a * x - s * prediction, s * x + a * prediction


@_sampler("ddim")
def ddim(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
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
        prediction = model(x, t, step)
        denoised, eps = _denoised_and_eps(prediction, x, a_t, schedule.prediction_type)
        if schedule.clip_sample_range is not None:
            denoised = denoised.clamp(-schedule.clip_sample_range, schedule.clip_sample_range)
        variance = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        # Where a_t is 0 and eta 1 the difference is 0 but for rounding.
        x = math.sqrt(a_s) * denoised + math.sqrt(max(0.0, 1 - a_s - variance)) * eps
        if noise is not None and variance > 0:
            x = x + math.sqrt(variance) * noise(x)
        if callback is not None:
            callback(step, x, denoised)
    return x


@_sampler("plms")
def plms(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
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
        denoised, eps = _denoised_and_eps(prediction, x, a_t, schedule.prediction_type)
        return math.sqrt(a_s) * denoised + math.sqrt(1 - a_s) * eps, denoised

    outputs: list[Tensor] = []
    for step, t in enumerate(schedule.timesteps):
        outputs = [model(x, t, step), *outputs[:3]]
        if step == 0 and schedule.steps > 1:
            x_s, _ = transfer(x, outputs[0], t)
            s = schedule.timesteps[1]
            prediction = (outputs[0] + model(x_s, s, step)) / 2
            t = s + schedule.stride
        else:
            weights = _ADAMS_BASHFORTH[len(outputs) - 1]
            terms = (w * output for w, output in zip(weights, outputs, strict=True))
            prediction = functools.reduce(torch.add, terms)
        x, denoised = transfer(x, prediction, t)
        if callback is not None:
            callback(step, x, denoised)
    return x


@_sampler("dpm++2m")
def dpm_solver_pp_2m(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
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
        prediction = model(x, t, step)
        denoised, _ = _denoised_and_eps(prediction, x, alpha_s**2, schedule.prediction_type)
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


@_sampler("euler")
def euler(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
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
        prediction = model(x_vp, t, step)
        denoised, d = _denoised_and_eps(
            prediction, x_vp, 1 / (1 + sigma**2), schedule.prediction_type
        )
        x = x + (sigma_next - sigma) * d
        if callback is not None:
            callback(step, x / math.hypot(1, sigma_next), denoised)
    return x


@_sampler("euler-ancestral")
def euler_ancestral(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
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
        prediction = model(x_vp, t, step)
        denoised, d = _denoised_and_eps(
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
    _require_one_of("sampler", name, SAMPLERS)
    return SAMPLERS[name]
