"""The rows of a prompts file drawn on many machines, by Ray Data.

    read         a block a shard, by the machines themselves: a million prompts pass no driver
    map_batches  an engine an actor, on a core or a GPU of its own
    write        by the actor: the pictures of a shard, then its index

Every machine sees the prompts file and the output folder under the same path, has stal installed,
and the model. A shard that was done is not drawn again, whoever asks for it: a task that Ray runs
again after a worker or a node was lost finds the index, or what the lost one had drawn until then.

`ray.data.checkpoint.CheckpointConfig` is not used. It keeps the ids of rows whose output a sink of
Ray has written; here the index of a shard says that, and holds after kill -9 of everything too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from stal.runs import COMMAND, held
from stal.shards.rows import PromptRow, read_rows
from stal.shards.run import WINDOW, Job, Run
from stal.shards.shard import OpenShard

if TYPE_CHECKING:
    from stal.batch import Engine

# Seconds in which a worker that Ray believes lost is gone.
_PATIENCE = 120.0
# Parts of the prompts file, which are read one by one, for each worker.
_PARTS = 4


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Within, there is a cluster: the one at an address, a new "local" one, or whichever runs."""
    ray.init(address=address, log_to_driver=False, logging_level="warning")
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Drawer:
    """How a worker draws.

    Attributes:
        job: see there.
        model: see `Pipeline.from_pretrained`.
        dtype, device: as torch calls them.
        max_rows: pictures of one batch, at most.
    """

    job: Job
    model: str | None
    dtype: str
    device: str
    max_rows: int

    def engine(self) -> Engine:
        """A new engine. Raises ValueError if the settings are none, or the folder is not seen."""
        import torch

        from stal.batch import Engine
        from stal.pipeline import Pipeline
        from stal.shards.requests import check_settings

        folder = self.job.place.folder
        if not (folder / COMMAND).exists():
            raise ValueError(f"output must be a folder that every machine sees, got {folder}")
        dtype = getattr(torch, self.dtype)
        pipe = Pipeline.from_pretrained(self.model, dtype=dtype, device=self.device)
        check_settings(pipe, self.job.settings)
        return Engine(pipe, max_rows=self.max_rows)


def draw(prompts: Path, drawer: Drawer, *, workers: int) -> Iterator[int]:
    """Draws the shards that are not done, and gives the number of rows of each that is then.

    Args:
        prompts: a file, which was read before without an error.
        drawer: how.
        workers: actors, each with an engine.

    Raises:
        RuntimeError: a worker raised an error; its message has that one's.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    source = _Shards(prompts, drawer.job, parts=_PARTS * workers)
    shards = ray.data.read_datasource(
        source, override_num_blocks=_PARTS * workers, ray_remote_args={"num_cpus": 0}
    )
    drawn = shards.map_batches(
        _Worker,
        fn_constructor_args=(drawer,),
        compute=ActorPoolStrategy(size=workers),
        batch_size=1,
        num_cpus=1,
        num_gpus=1 if drawer.device.startswith("cuda") else None,
    )
    for row in drawn.iter_rows():
        yield int(row["rows"])


class _Shards(Datasource):
    """Numbers and rows of the shards that are not done."""

    def __init__(self, prompts: Path, job: Job, *, parts: int) -> None:
        super().__init__()
        self._prompts, self._job, self._parts = prompts.resolve(), job, parts

    def get_name(self) -> str:
        return "Prompts"

    def estimate_inmemory_data_size(self) -> int:
        return self._prompts.stat().st_size

    def get_read_tasks(self, parallelism: int, *more: Any, **named: Any) -> list[ReadTask]:
        rows = sum(1 for _ in read_rows(self._prompts))
        size, done = self._job.shard_size, self._job.place.done()
        left = [number for number in range(-(-rows // size)) if number not in done]
        tasks = []
        for part in _split(left, self._parts):
            read = partial(_read, self._prompts, size, part)
            tasks.append(ReadTask(read, _metadata(len(part))))
        return tasks


def _metadata(rows: int) -> BlockMetadata:
    return BlockMetadata(num_rows=rows, size_bytes=None, exec_stats=None, input_files=None)


def _split(values: Sequence[int], parts: int) -> list[Sequence[int]]:
    """Consecutive parts of about one size, none of them empty."""
    ends = [len(values) * i // parts for i in range(parts + 1)]
    return [values[a:b] for a, b in itertools.pairwise(ends) if a < b]


def _read(prompts: Path, shard_size: int, numbers: Sequence[int]) -> Iterator[pyarrow.Table]:
    """A table of one row for each shard of a part of the file."""
    wanted, last = set(numbers), numbers[-1]
    for number, rows in itertools.groupby(read_rows(prompts), lambda row: row.number // shard_size):
        if number > last:
            return
        if number in wanted:
            # Values of Parquet that JSON has not are no value of any column.
            text = json.dumps([asdict(row) for row in rows], default=repr)
            yield pyarrow.table({"shard": [number], "rows": [text]})


class _Worker:
    """What an actor is: an engine, and shards drawn with it one after the other."""

    def __init__(self, drawer: Drawer) -> None:
        self._drawer, self._engine = drawer, drawer.engine()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        counts = []
        for number, text in zip(batch["shard"], batch["rows"], strict=True):
            rows = [PromptRow(**values) for values in json.loads(text)]
            self._draw(int(number), rows)
            counts.append(len(rows))
        return {"rows": counts}

    def _draw(self, number: int, rows: Iterable[PromptRow]) -> None:
        place = self._drawer.job.place
        if place.index(number).exists():
            return
        with held(place.partial(number), patience=_PATIENCE):
            # Whoever held it may have finished it meanwhile.
            if place.index(number).exists():
                OpenShard.discard(place, number)
            else:
                Run(self._drawer.job, self._engine, WINDOW * self._drawer.max_rows).draw(rows)
