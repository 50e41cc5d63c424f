"""What an engine is asked to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stal.drawing import Job
from stal.layout.formats import LayoutLike
from stal.pipeline import Weights
from stal.schedule import Schedule
from stal.settings import Complete, Settings


@dataclass(frozen=True)
class Request:
    """One prompt to draw; fields are as the arguments of `stal.Pipeline`'s call.

    prompt: the global description.
    settings: how to draw it; None in it stands for the model's default.
    layout: where the objects go, by default what is predicted for the prompt.
    weights: (steps, objects) or (objects,), or a function of both numbers; by attention and rule
        if None.
    seed: picture i is drawn from the noise of seed + i; or one seed a picture.
    lora: a name of the engine's `loras`; None is the model alone.
    optimize: refused unless it is None: an engine draws without gradients. Weights that
        `stal.optimize` has found are handed over as `weights`.
    """

    prompt: str
    settings: Settings = field(default_factory=Settings)
    layout: LayoutLike | None = None
    weights: Weights | None = None
    seed: int | Sequence[int] = 0
    lora: str | None = None
    optimize: str | None = None


@dataclass(frozen=True, eq=False)
class CheckedRequest:
    """A request with each value checked and nothing left open.

    seeds: one a picture, `settings.num_images` of them.
    lora: see `Request`.
    """

    job: Job
    settings: Complete
    schedule: Schedule
    seeds: tuple[int, ...]
    lora: str | None = None

    @property
    def guided(self) -> bool:
        return self.settings.guidance_scale != 1

    @property
    def texts(self) -> tuple[str, ...]:
        """What its pictures attend to; then, if guided, what their unconditional rows do."""
        return (*self.job.texts, *[self.settings.negative_prompt] * self.guided)
