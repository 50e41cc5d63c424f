"""The rows of a prompts file drawn on many machines, by Ray Data.

    from_items   the numbers of the shards that are not done: a million prompts pass no driver
    map_batches  an engine an actor, on a core or a GPU of its own, which reads the rows of a shard,
                 draws them and writes the pictures, then the index
    iter_rows    how many rows each shard had, for whoever waits

Every machine sees the prompts file and the output folder under the same path, has stal installed,
and the model. A shard that was done is not drawn again, whoever asks for it: a task that Ray runs
again after a worker or a node was lost finds the index, or what the lost one had drawn until then.

`ray.data.checkpoint.CheckpointConfig` is not used. It keeps the ids of rows whose output a sink of
Ray has written; here the index of a shard says that, and holds after kill -9 of everything too.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ray
from ray.data import ActorPoolStrategy, DataContext

from stal.runs import COMMAND, held
from stal.shards.rows import PromptRow, read_rows
from stal.shards.run import WINDOW, Run, Task
from stal.shards.shard import OpenShard

if TYPE_CHECKING:
    from stal.batch import Engine

# Seconds in which a worker that Ray believes lost is gone.
_PATIENCE = 120.0


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Within, there is a cluster: the one at an address, a new "local" one, or whichever runs."""
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Drawer:
    """How a worker draws.

    Attributes:
        task: see there.
        model: see `Pipeline.from_pretrained`.
        dtype, device: as torch calls them.
        max_rows: pictures of one batch, at most.
        loras: see `Pipeline.from_pretrained`.
    """

    task: Task
    model: str | None
    dtype: str
    device: str
    max_rows: int
    loras: tuple[tuple[str, float], ...] = ()

    def engine(self) -> Engine:
        """A new engine. Raises ValueError if the settings are none, or the folder is not seen."""
        import torch

        from stal.batch import Engine
        from stal.pipeline import Pipeline
        from stal.shards.requests import check_settings

        folder = self.task.place.folder
        if not (folder / COMMAND).exists():
            raise ValueError(f"output must be a folder that every machine sees, got {folder}")
        dtype = getattr(torch, self.dtype)
        pipe = Pipeline.from_pretrained(
            self.model, dtype=dtype, device=self.device, loras=self.loras
        )
        check_settings(pipe, self.task.settings)
        return Engine(pipe, max_rows=self.max_rows)


def draw(prompts: Path, drawer: Drawer, *, total: int, workers: int) -> Iterator[int]:
    """Draws the shards that are not done, and gives the number of rows of each that is then.

    Args:
        prompts: a file, which was read before without an error.
        drawer: how.
        total: rows of the file.
        workers: actors, each with an engine.

    Raises:
        ValueError: settings that no row could be drawn with, or a machine does not see the folder.
        OSError: the disk is full, or the like.
        ray.exceptions.RayError: a worker raised another error, or cannot be started.
    """
    DataContext.get_current().enable_progress_bars = False
    size, done = drawer.task.shard_size, drawer.task.place.done()
    left = [{"shard": number} for number in range(-(-total // size)) if number not in done]
    if not left:
        return
    # A block each, so that Ray hands out, and tells of, one shard at a time.
    drawn = ray.data.from_items(left, override_num_blocks=len(left)).map_batches(
        _Worker,
        fn_constructor_args=(prompts.resolve(), _anywhere(drawer)),
        compute=ActorPoolStrategy(size=workers),
        batch_size=1,
        num_cpus=1,
        num_gpus=1 if drawer.device.startswith("cuda") else None,
    )
    for row in drawn.iter_rows():
        if row["error"]:
            _raise(row)
        yield int(row["rows"])


def _anywhere(drawer: Drawer) -> Drawer:
    """With paths that are the same whatever folder a process is in."""
    place = replace(drawer.task.place, folder=drawer.task.place.folder.resolve())
    is_folder = drawer.model is not None and Path(drawer.model).exists()
    model = str(Path(drawer.model or "").resolve()) if is_folder else drawer.model
    loras = tuple((str(Path(source).resolve()), scale) for source, scale in drawer.loras)
    return replace(drawer, task=replace(drawer.task, place=place), model=model, loras=loras)


def _raise(row: Mapping[str, Any]) -> NoReturn:
    """Raises here what a worker caught: of Ray it would come as many lines."""
    if row["errno"]:
        raise OSError(int(row["errno"]), row["error"], row["file"])
    raise ValueError(row["error"])


class _Worker:
    """What an actor is: an engine, and shards drawn with it one after the other.

    Shards come in ascending order, but for those of a lost worker: the file is read on from the
    last one.
    """

    def __init__(self, prompts: Path, drawer: Drawer) -> None:
        self._prompts, self._drawer = prompts, drawer
        self._engine: Engine | None = None
        self._shards: Iterator[tuple[int, Iterator[PromptRow]]] = iter(())
        self._last = -1

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Draws a shard. Gives the number of its rows, and the error if there was one."""
        (number,) = map(int, batch["shard"])
        answer: dict[str, list[Any]] = {"rows": [0], "error": [""], "errno": [0], "file": [""]}
        try:
            rows = self._read(number)
            self._draw(number, rows)
            answer["rows"] = [len(rows)]
        except OSError as error:
            answer["error"], answer["errno"] = [error.strerror or str(error)], [error.errno or 0]
            answer["file"] = [str(error.filename or "")]
        except ValueError as error:
            answer["error"] = [str(error)]
        return answer

    def _read(self, number: int) -> list[PromptRow]:
        size = self._drawer.task.shard_size
        if self._last == -1 or number <= self._last:
            rows = read_rows(self._prompts)
            self._shards = itertools.groupby(rows, lambda row: row.number // size)
        self._last = number
        for found, rows in self._shards:
            if found == number:
                return list(rows)
        raise ValueError(f"prompts must not change while they are drawn, got {self._prompts}")

    def _draw(self, number: int, rows: Iterable[PromptRow]) -> None:
        place = self._drawer.task.place
        if place.index(number).exists():
            OpenShard.discard(place, number)  # of a worker that was lost before it did
            return
        if self._engine is None:
            self._engine = self._drawer.engine()
        with held(place.partial(number), patience=_PATIENCE):
            # Whoever held it may have finished it meanwhile.
            if place.index(number).exists():
                OpenShard.discard(place, number)
            else:
                Run(self._drawer.task, self._engine, WINDOW * self._drawer.max_rows).draw(rows)
