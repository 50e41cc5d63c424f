"""Every way to draw that the evaluation compares, by name, on the same model and noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from stal.evaluation.baselines.attend_and_excite import attend_and_excite
from stal.evaluation.baselines.boxdiff import boxdiff
from stal.evaluation.baselines.composable import composable
from stal.evaluation.baselines.multidiffusion import multidiffusion
from stal.evaluation.baselines.structured import structured
from stal.layout import Layout
from stal.pipeline import UNCONDITIONAL, Pipeline, Result, Settings

# method(pipe, prompts, layouts=..., seeds=..., settings=...), see `draw`.
Method = Callable[..., list[Result]]


def _with(**changes: Any) -> Method:
    """The pipeline itself, with some settings changed."""

    def method(
        pipe: Pipeline,
        prompts: Sequence[str],
        *,
        layouts: Sequence[Layout | None],
        seeds: Sequence[int],
        settings: Settings,
    ) -> list[Result]:
        changed = replace(settings, **changes)
        return pipe.batch(prompts, changed, layouts=layouts, seed=list(seeds))

    return method


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
        "unconditional": _with(
            attention="spatial", rule="guidance", reference=UNCONDITIONAL, background=None
        ),
    }
)

# What looks at the layout; the others only hand it on with their results.
USES_LAYOUT = frozenset(METHODS) - {
    "plain",
    "composable",
    "composable-released",
    "structured",
    "attend-and-excite",
}


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
        layouts: one a prompt; None places its objects by the prompt.
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
