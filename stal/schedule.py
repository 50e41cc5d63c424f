"""Timesteps and noise levels of a sampling run, as the diffusers scheduler of a sampler has them.

The forward process is x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps with eps ~ N(0, I).

    schedule = schedule_from_config(json.load(file), steps=25)    # scheduler_config.json
    schedule.timesteps, schedule.sigmas
"""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from stal.budget import MOST_TRAIN_TIMESTEPS
from stal.checked_json import as_whole, is_integer, number, scalar, short

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


# What diffusers' Euler and DPM-Solver have for a last alpha_bar of 0, so that sigma stays finite,
# at 4096. That may be less noise than the timestep before it has.
LAST_ALPHA_BAR = 2.0**-24


@dataclass(frozen=True, eq=False)
class Schedule:
    """Noise levels and timesteps of one sampling run; built by `schedule_from_config`.

    sampler               name of the sampler that the timesteps are meant for
    prediction_type       "epsilon": the model predicts eps; "v_prediction": it predicts
                          v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
    alphas_cumprod        (num_train_timesteps,) float64 on the CPU, alpha_bar of each training
                          timestep, strictly descending within [0, 1); the last one alone may be
                          `LAST_ALPHA_BAR`, whatever the one before it
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
        require_one_of("sampler", self.sampler, _SCHEDULER_CLASSES)
        require_one_of("prediction_type", self.prediction_type, _PREDICTION_TYPES)
        require_one_of("timestep_spacing", self.timestep_spacing, _SPACINGS)
        a, t = self.alphas_cumprod, self.timesteps
        if a.ndim != 1 or a.dtype != torch.float64 or a.device.type != "cpu":
            raise ValueError(
                "alphas_cumprod must be a float64 vector on the CPU, "
                f"got {a.dtype} of shape {tuple(a.shape)} on {a.device}"
            )
        # Written so that a NaN fails.
        falling = a[:-1] if len(a) > 1 and a[-1] == LAST_ALPHA_BAR else a
        descends = bool((falling[1:] < falling[:-1]).all())
        if not (len(a) and a[0] < 1 and falling[-1] >= 0 and descends):
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

        sigmas = self.sigmas if self.sampler == "euler-ancestral" else ()
        if any(later >= earlier for earlier, later in itertools.pairwise(sigmas)):
            raise ValueError(
                "noise levels must descend for sampler 'euler-ancestral', got "
                f"{reprlib.repr(sigmas)}; take fewer steps"
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


def denoised_and_eps(
    prediction: Tensor, x: Tensor, alpha_bar: float, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """Estimates of x_0 and eps, where x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

    prediction, x: of one shape; alpha_bar: of the noise level of x, above 0 for "epsilon";
    prediction_type: "epsilon" or "v_prediction", see `Schedule`.

    Source: Salimans and Ho 2022, arXiv 2202.00512, for v.
    """
    a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    if prediction_type == "epsilon":
        return (x - s * prediction) / a, prediction
    return a * x - s * prediction, s * x + a * prediction


def ddim_variance(alpha_bar_t: float, alpha_bar_s: float, eta: float) -> float:
    """eta^2 (1 - a_s)/(1 - a_t) (1 - a_t/a_s), a = alpha_bar: of the fresh noise from t to s.

    Source: Song, Meng and Ermon 2021, arXiv 2010.02502, equation 16.
    """
    return eta**2 * (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)


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
        given = config["trained_betas"]
        if hasattr(given, "tolist"):  # of a scheduler object
            given = given.tolist()
        if not isinstance(given, (list, tuple)) or len(given) != count:
            rule = f"be num_train_timesteps = {count} numbers in (0, 1]"
            raise ValueError(f"trained_betas must {rule}, got {reprlib.repr(given)}")
        each = [number(beta, "trained_betas") for beta in given]
        betas = torch.tensor(each, dtype=torch.float64, device="cpu")
    elif (kind := config.get("beta_schedule", "linear")) == "squaredcos_cap_v2":
        t = torch.arange(count + 1, dtype=torch.float64, device="cpu") / count
        alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    else:
        require_one_of("beta_schedule", kind, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        power = 2 if kind == "scaled_linear" else 1
        defaults = {"beta_start": 0.0001, "beta_end": 0.02}
        ends = [
            number(own if (end := config.get(name)) is None else end, name)
            for name, own in defaults.items()
        ]
        if not all(0 < end <= 1 for end in ends):
            raise ValueError(f"beta_start and beta_end must be numbers in (0, 1], got {ends}")
        start, end = (end ** (1 / power) for end in ends)
        betas = torch.linspace(start, end, count, dtype=torch.float64, device="cpu") ** power
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
    require_one_of("sampler", sampler, _SCHEDULER_CLASSES)
    config = _without_defaulted(config)
    count = _num_train_timesteps(config)
    steps = scalar(steps)
    if not is_integer(steps) or not 1 <= steps <= count:
        raise ValueError(f"steps must be an integer in [1, {count}], got {short(steps)}")
    if config.get("_class_name") == "PNDMScheduler":
        # That class's default. Configurations of other schedulers have no say in PLMS's warm-up.
        config.setdefault("skip_prk_steps", False)
    for option, values in _IMPLEMENTED[sampler].items():
        value = config.get(option)
        if value is not None and value not in values:
            raise ValueError(
                f"{option} must be {' or '.join(map(repr, values)) or 'null'} for sampler "
                f"{sampler!r}, which implements nothing else, got {short(value)}"
            )
    offset = as_whole(config.get("steps_offset", 0))
    if not is_integer(offset):
        raise ValueError(f"steps_offset must be an integer, got {short(offset)}")
    by_alpha_bar = sampler in ("ddim", "plms")
    spacing = timestep_spacing
    if spacing is None:
        spacing = config.get("timestep_spacing", "leading" if by_alpha_bar else "linspace")

    a = alphas_cumprod_from_config(config) if alphas_cumprod is None else alphas_cumprod
    if a.shape != (count,):
        raise ValueError(f"alphas_cumprod must have shape ({count},), got {tuple(a.shape)}")
    a = a.detach().to("cpu", torch.float64, copy=True)
    if not by_alpha_bar and config.get("rescale_betas_zero_snr", False):
        a[-1] = LAST_ALPHA_BAR

    to_one = not by_alpha_bar or config.get("set_alpha_to_one", sampler == "ddim")
    clip = sampler == "ddim" and config.get("clip_sample", True)
    return Schedule(
        sampler=sampler,
        prediction_type=config.get("prediction_type", "epsilon"),
        alphas_cumprod=a,
        timesteps=_timesteps(sampler, spacing, steps, count, offset),
        timestep_spacing=spacing,
        final_alpha_cumprod=1.0 if to_one else float(a[0]),
        clip_sample_range=_clip_range(config) if clip else None,
    )


def _timesteps(
    sampler: str, spacing: str, steps: int, count: int, offset: int
) -> tuple[float, ...]:
    """Timesteps from the noisiest down, by the table in `schedule_from_config`."""
    require_one_of("timestep_spacing", spacing, _SPACINGS)
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


def _clip_range(config: Mapping[str, Any]) -> float:
    value = number(config.get("clip_sample_range", 1.0), "clip_sample_range")
    if not 0 < value < math.inf:
        raise ValueError(f"clip_sample_range must be a positive number, got {value}")
    return value


def _without_defaulted(config: Mapping[str, Any]) -> dict[str, Any]:
    """config without the values that the scheduler object holding it merely defaulted to, and
    without null, which stands for a default too."""
    defaulted = config.get("_use_default_values") or ()
    if not isinstance(defaulted, (list, tuple)):
        raise ValueError(f"_use_default_values must be names, got {short(defaulted)}")
    return {
        option: value
        for option, value in config.items()
        if option not in defaulted and value is not None
    }


def _num_train_timesteps(config: Mapping[str, Any]) -> int:
    count = as_whole(config.get("num_train_timesteps", 1000))
    if not is_integer(count) or count < 1:
        raise ValueError(f"num_train_timesteps must be a positive integer, got {short(count)}")
    if count > MOST_TRAIN_TIMESTEPS:
        most = MOST_TRAIN_TIMESTEPS
        raise ValueError(f"num_train_timesteps must be at most {most}, got {short(count)}")
    return count


def _sampler_of_config(config: Mapping[str, Any]) -> str:
    written_by = config.get("_class_name")
    for sampler, class_name in _SCHEDULER_CLASSES.items():
        if class_name == written_by:
            return sampler
    raise ValueError(
        f"sampler must be given, one of {', '.join(map(repr, _SCHEDULER_CLASSES))}, "
        f"for a configuration of {short(written_by)}"
    )


def require_one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raises ValueError that lists the allowed values unless value is one of them."""
    allowed = tuple(allowed)
    if value not in allowed:
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"{name} must be one of {names}, got {short(value)}")
