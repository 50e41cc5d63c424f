"""Every way to draw that the evaluation compares, by name, on the same model and noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from stal.drawing import Result
from stal.evaluation.baselines.attend_and_excite import attend_and_excite
from stal.evaluation.baselines.boxdiff import boxdiff
from stal.evaluation.baselines.composable import composable
from stal.evaluation.baselines.multidiffusion import multidiffusion
from stal.evaluation.baselines.structured import structured
from stal.layout import Layout
from stal.layout.predictor import predict
from stal.model.clip import Clip, load
from stal.model.model import clip_folder
from stal.optimize import RELEASED, Options, online, trajectory
from stal.pipeline import Pipeline, Weights
from stal.prompts import parse
from stal.settings import UNCONDITIONAL, Settings
from stal.weights import falling_weights

# Best on the bundled model against the unconditional half, of constants from 0.1 to 1.5 and falls
# from 0.5 to 3, on 210 prompts of other seeds than those of the evaluation.
CONSTANT, FALL = 0.5, 0.8
_RELEASED_RULE: dict[str, Any] = {
    "rule": "guidance",
    "reference": UNCONDITIONAL,
    "background": None,
}

# method(pipe, prompts, layouts=..., seeds=..., settings=...), see `draw`.
Method = Callable[..., list[Result]]


def _with(weights: Weights | None = None, **changes: Any) -> Method:
    """The pipeline itself, with some settings changed, and weights(steps, objects) if given."""

    def method(
        pipe: Pipeline,
        prompts: Sequence[str],
        *,
        layouts: Sequence[Layout | None],
        seeds: Sequence[int],
        settings: Settings,
    ) -> list[Result]:
        changed = replace(settings, **changes)
        given = [weights] * len(prompts)
        return pipe.batch(prompts, changed, layouts=layouts, weights=given, seed=list(seeds))

    return method


def _constant(steps: int, objects: int) -> Tensor:
    return torch.full((steps, objects), CONSTANT, dtype=torch.float32)


def _everywhere(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    layouts: Sequence[Layout | None],
    seeds: Sequence[int],
    settings: Settings,
) -> list[Result]:
    """Weights that change over the steps and no regions: each object's is the whole canvas."""
    placed = [layouts[i] or predict(parse(prompt)) for i, prompt in enumerate(prompts)]
    whole = [
        replace(each, objects=tuple(replace(o, box=(0.0, 0.0, 1.0, 1.0)) for o in each.objects))
        for each in placed
    ]
    changed = replace(settings, attention="spatial-temporal", rule="guidance")
    results = pipe.batch(prompts, changed, layouts=whole, seed=list(seeds))
    return [replace(r, layout=layout) for r, layout in zip(results, placed, strict=True)]


def _optimised(options: Options | None, **changes: Any) -> Method:
    """The pipeline with weights that the model's own CLIP chose: by `stal.optimize.trajectory`
    with options, by `online` without."""

    def method(
        pipe: Pipeline,
        prompts: Sequence[str],
        *,
        layouts: Sequence[Layout | None],
        seeds: Sequence[int],
        settings: Settings,
    ) -> list[Result]:
        changed = replace(settings, rule="guidance", **changes)
        drawing = pipe.prepare(prompts, changed, layouts=layouts, seed=list(seeds))
        clip = _clip(pipe)
        if options is None:
            found, done = online(drawing, clip), {"mode": "online"}
        else:
            found, done = trajectory(drawing, clip, options), {"mode": "trajectory"}
            done |= asdict(options)
        records = [{**done, "trace": rows} for rows in found.trace]
        return drawing.results(found.latents, found.weights, optimize=records)

    return method


def _clip(pipe: Pipeline) -> Clip:
    return _load(clip_folder(pipe.model), str(pipe.model.device))


@lru_cache(maxsize=1)
def _load(folder: Path, device: str) -> Clip:
    return load(folder, device=device)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "plain": _with(attention="plain"),
        # Tuned on the bundled model, for which the second, as released, is far too strong.
        "composable": partial(composable, parts=0.15, whole=0.85, local_prompt="a picture with {}"),
        "composable-released": composable,
        "structured": structured,
        "attend-and-excite": attend_and_excite,
        "multidiffusion": multidiffusion,
        "boxdiff": boxdiff,
        "spatial": _with(attention="spatial", rule="guidance"),
        "spatial-temporal": _with(attention="spatial-temporal", rule="guidance"),
        "convex": _with(attention="spatial", rule="convex", background=None),
        "unconditional": _with(attention="spatial", **_RELEASED_RULE),
        # The same with the constant and the fall that are best on the bundled model.
        "unconditional-tuned": _with(_constant, attention="spatial", **_RELEASED_RULE),
        "unconditional-falling": _with(
            partial(falling_weights, FALL), attention="spatial-temporal", **_RELEASED_RULE
        ),
        "temporal": _everywhere,
        "online": _optimised(None, attention="spatial-temporal"),
        "trajectory": _optimised(Options(lr=0.1), attention="spatial-temporal"),
        "trajectory-8": _optimised(Options(epochs=8, lr=0.1), attention="spatial-temporal"),
        "trajectory-released": _optimised(
            RELEASED, attention="spatial", reference=UNCONDITIONAL, background=None
        ),
    }
)

# Those that `_optimised` makes.
NEED_CLIP = frozenset(name for name in METHODS if name.startswith(("online", "trajectory")))


def draw(
    method: str,
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    layouts: Sequence[Layout | None],
    seeds: Sequence[int],
    settings: Settings,
) -> list[Result]:
    """Draws one image of each prompt, image i from the noise of seeds[i] whatever the method.

    Args:
        method: a name in METHODS.
        layouts: one a prompt; None stands for the predictor's.
        settings: how to draw; the method overrides its attention, and rule and reference where
            they are what the method is.

    Returns:
        One result a prompt. Its settings name the method.

    Raises:
        ValueError: an unknown method, or what `Pipeline.batch` refuses.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if settings.num_images != 1:
        raise ValueError(
            f"settings.num_images must be 1, got {settings.num_images}; repeat the prompt instead"
        )
    results = METHODS[method](pipe, prompts, layouts=layouts, seeds=seeds, settings=settings)
    return [replace(r, settings={"method": method, **r.settings}) for r in results]
