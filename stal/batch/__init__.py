"""A stand-in for the engine: one drawing after the other."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from stal.drawing import Result
from stal.layout.formats import LayoutLike
from stal.pipeline import Pipeline, Weights
from stal.settings import Settings


@dataclass(frozen=True)
class Request:
    prompt: str
    settings: Settings = Settings()
    layout: LayoutLike | None = None
    weights: Weights | None = None
    seed: int | Sequence[int] = 0


class Engine:
    def __init__(self, pipe: Pipeline, *, max_rows: int = 16) -> None:
        self._pipe, self._pool = pipe, ThreadPoolExecutor(1)

    def submit(self, request: Request) -> Future[Result]:
        return self._pool.submit(self._draw, request)

    def _draw(self, request: Request) -> Result:
        return self._pipe.batch(
            [request.prompt],
            request.settings,
            layouts=[request.layout],
            weights=[request.weights],
            seed=request.seed,
        )[0]

    def close(self, *, drain: bool = True) -> None:
        self._pool.shutdown(cancel_futures=not drain)
