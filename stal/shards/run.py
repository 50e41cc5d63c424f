"""Draws the rows of a prompts file through an engine into shards, as far as they are not drawn."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from stal import picture
from stal.caller import caught
from stal.checked_json import first_line
from stal.shards.index import Entry, read_sources
from stal.shards.requests import request_of, seed_of
from stal.shards.rows import PromptRow
from stal.shards.shard import OpenShard, ShardFolder

if TYPE_CHECKING:
    from stal.batch import Request
    from stal.drawing import Result
    from stal.settings import Settings

# Requests that the engine has at once, as a multiple of the rows of a batch.
WINDOW = 4
# Seconds between two looks at whether to stop, while nothing is finished.
_PATIENCE = 0.2
# What a prompt can be to blame for. Of anything else so many in a row, with no picture between
# them, are not: the machine is.
_OF_A_PROMPT = (ValueError, NotImplementedError, MemoryError)
MOST_UNEXPECTED = 20


class Engine(Protocol):
    """What draws: a `stal.batch.Engine`."""

    def submit(self, request: Request) -> Future[Result]: ...


@dataclass(frozen=True)
class Task:
    """What is drawn of every row, and where it goes.

    Attributes:
        place: the folder, held by this process.
        shard_size: rows of a shard, the last one may have fewer.
        settings: where a row says nothing else.
        seed: of row 0; row n without one of its own has seed + n.
    """

    place: ShardFolder
    shard_size: int
    settings: Settings
    seed: int


def checked(rows: Iterable[PromptRow], task: Task) -> Iterator[PromptRow]:
    """The rows, each compared with what the folder has of it.

    Raises:
        ValueError: the folder has pictures of other rows.
    """
    done = task.place.done()
    known: dict[int, str] | None = None  # of the shard, what is left; None if it is not done
    number = line = -1
    for row in rows:
        if row.number // task.shard_size != number:
            number = row.number // task.shard_size
            known = read_sources(task.place.index(number)) if number in done else None
        if known is not None and known.pop(row.number, "") != row.digest:
            raise _other(task, f"another line {row.line}")
        line = row.line
        yield row
    if known:
        raise _other(task, f"none after line {line}")
    if beyond := [each for each in done if each > number]:
        raise _other(task, f"none for shard {min(beyond)}")


def _other(task: Task, got: str) -> ValueError:
    rule = f"prompts must be those that {task.place.folder} has pictures of"
    return ValueError(f"{rule}, got {got}: name a new output")


@dataclass(frozen=True)
class _Begun:
    """A row that was taken up, when, and what was said about it, a line each."""

    row: PromptRow
    start: float
    warnings: str = ""


class Run:
    """Draws rows with one engine.

    Args:
        task: see there.
        engine: who closes it calls `collect_rest` then.
        window: requests that the engine has at once.
        stop: asked between two pictures and now and then; once it says True, what the engine has
            not finished is left to another run.
        progress: called for each row of an open shard, when it has its entry.

    Attributes:
        stopped: whether rows were left.
    """

    def __init__(
        self,
        task: Task,
        engine: Engine,
        window: int,
        *,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        self.task, self.engine, self.window = task, engine, window
        self.stop, self.progress = stop, progress
        self.stopped = False
        self._done = task.place.done()
        self._open: dict[int, OpenShard] = {}
        self._sizes: dict[int, int] = {}  # of the shards whose last row was read
        self._pending: dict[Future[Result], _Begun] = {}
        self._unexpected: list[tuple[_Begun, Exception]] = []
        self._drew = False

    def draw(self, rows: Iterable[PromptRow]) -> None:
        """Draws what is not drawn yet.

        Args:
            rows: whole shards, each from its first row on; the last may be short.

        Raises:
            OSError: the disk is full, or the like.
            Exception: what the engine raises for one prompt after another.
        """
        left = self._left(rows)
        exhausted = False
        while not (self.stopped or (exhausted and not self._pending)):
            while not (exhausted or self.stop()) and len(self._pending) < self.window:
                row = next(left, None)
                if row is None:
                    exhausted = True
                else:
                    self._submit(row)
            finished, _ = wait(self._pending, _PATIENCE, FIRST_COMPLETED)
            self._collect(finished)
            self.stopped = self.stop()
        if not self.stopped:
            if self._unexpected and not self._drew:
                raise self._unexpected[0][1]  # nothing says that the machine works
            self._keep_unexpected()

    def collect_rest(self) -> None:
        """Keeps what a run that stopped had begun and the engine has drawn since."""
        ended = [each for each in self._pending if each.done() and not each.cancelled()]
        self._collect([each for each in ended if each.exception() is None])

    def _left(self, rows: Iterable[PromptRow]) -> Iterator[PromptRow]:
        """The rows without an entry; opens their shards, and finishes those that have all."""
        size, row = self.task.shard_size, None
        for row in rows:
            number = row.number // size
            if number in self._done:
                continue
            if number not in self._open:
                self._open[number] = OpenShard(self.task.place, number)
            if row.number % size == size - 1:
                self._sizes[number] = size
            begun = self._open[number].entries.get(row.number)
            if begun is not None:
                if begun.source != row.digest:
                    raise _other(self.task, f"another line {row.line}")
                self.progress()
            else:
                yield row
            self._finish(number)
        if row is not None and row.number % size < size - 1 and row.number // size in self._open:
            if max(self._open[row.number // size].entries, default=-1) > row.number:
                raise _other(self.task, f"none after line {row.line}")
            self._sizes[row.number // size] = row.number % size + 1
            self._finish(row.number // size)

    def _submit(self, row: PromptRow) -> None:
        begun = _Begun(row, time.perf_counter())
        if row.error:
            self._keep(begun, error=row.error)
            return
        with caught() as found:
            try:
                future = self.engine.submit(request_of(row, self.task.settings, self.task.seed))
            except _OF_A_PROMPT as error:
                self._keep(begun, error=_message(error))
                return
        self._pending[future] = replace(begun, warnings="\n".join(dict.fromkeys(found)))

    def _collect(self, finished: Iterable[Future[Result]]) -> None:
        for future in finished:
            begun = self._pending.pop(future)
            error = future.exception()
            if error is None:
                self._drew = True
                self._keep_unexpected()
                self._keep(begun, future.result())
            elif isinstance(error, _OF_A_PROMPT):
                self._keep(begun, error=_message(error))
            elif isinstance(error, Exception):
                self._unexpected.append((begun, error))
                if len(self._unexpected) == MOST_UNEXPECTED:
                    raise error
            else:
                raise error

    def _keep_unexpected(self) -> None:
        for begun, error in self._unexpected:
            self._keep(begun, error=_message(error))
        self._unexpected.clear()

    def _keep(
        self, begun: _Begun, result: Result | None = None, *, error: str | None = None
    ) -> None:
        """Writes down what became of a row, and the shard if it was the last one of it."""
        number = begun.row.number // self.task.shard_size
        entry = replace(_entry(begun.row, self.task.seed, error), warnings=begun.warnings or None)
        png = None
        if result is not None:
            record = result.settings
            png = picture.encoded(result.images[0], record)
            drawn = {name: record[name] for name in record if name not in _OWN_COLUMNS}
            entry = replace(
                entry,
                seconds=time.perf_counter() - begun.start,
                layout=json.dumps(record["layout"]),
                settings=json.dumps(drawn),
            )
        self._open[number].add(entry, png)
        self.progress()
        self._finish(number)

    def _finish(self, number: int) -> None:
        shard = self._open.get(number)
        if shard is not None and len(shard.entries) == self._sizes.get(number):
            shard.finish()
            self._done.add(number)
            del self._open[number], self._sizes[number]


# Of a picture's record, what is a column of the index itself.
_OWN_COLUMNS = ("prompt", "layout", "seeds")


def _entry(row: PromptRow, seed: int, error: str | None) -> Entry:
    """What the index says of a row whatever became of it."""
    values = row.values
    try:
        own = None if row.error else seed_of(row, seed)
    except ValueError:
        own = None
    prompt = values.get("prompt")
    name = values.get("id")
    return Entry(
        row=row.number,
        line=row.line,
        source=row.digest,
        id=None if name is None else str(name),
        prompt=prompt if isinstance(prompt, str) else None,
        seed=own,
        error=error and f"line {row.line}: {error}",
    )


def _message(error: Exception) -> str:
    text = first_line(error)
    return text if isinstance(error, _OF_A_PROMPT) else f"{type(error).__name__}: {text}"
