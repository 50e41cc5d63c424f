"""`stal generate-batch`: a picture of every row of a file of prompts. Heavy imports happen late."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stal.cli.loras import LoraOption, Loras, read_loras
from stal.cli.options import (
    AttentionOption,
    BackgroundOption,
    DeviceOption,
    DType,
    EtaOption,
    ModelOption,
    QuietOption,
    ReferenceOption,
    RuleOption,
    SamplerOption,
    SideOption,
    StepsOption,
    torch_dtype,
)
from stal.cli.outlet import close_bars, say
from stal.extras import check_installed

if TYPE_CHECKING:
    from stal.shards.run import Task
    from stal.shards.shard import ShardFolder


class PictureFormat(str, Enum):
    png = "png"
    webdataset = "webdataset"


class EngineName(str, Enum):
    local = "local"
    ray = "ray"


# Options that take more than a line.
_Prompts = Annotated[
    Path, typer.Option(help="A .txt, .jsonl, .csv or .parquet file; - is stdin, a prompt a line.")
]
_Output = Annotated[
    Path, typer.Option(help="Folder for pictures and indexes; a killed run resumes.")
]
_Format = Annotated[
    PictureFormat, typer.Option("--format", help="A folder of PNG files a shard, or a tar file.")
]
_ShardSize = Annotated[int, typer.Option(min=1, max=100_000, help="Rows that have one index.")]
_MaxRows = Annotated[int, typer.Option(min=1, max=1024, help="Pictures of one batch, at most.")]
_Address = Annotated[
    str | None, typer.Option(help="Of Ray: auto, local or the head's. [auto where one runs]")
]
_Workers = Annotated[
    int | None, typer.Option(min=1, help="Engines of Ray, on a core or a GPU each. [1]")
]

FINISHED_WITH_ERRORS = 3
TERMINATED = 143


def generate_batch(
    prompts: _Prompts,
    output: _Output,
    format: _Format = PictureFormat.png,
    shard_size: _ShardSize = 1000,
    max_rows: _MaxRows = 16,
    engine: Annotated[EngineName, typer.Option(help="One process, or Ray.")] = EngineName.local,
    address: _Address = None,
    workers: _Workers = None,
    model: ModelOption = None,
    lora: LoraOption = None,
    attention: AttentionOption = None,
    rule: RuleOption = None,
    reference: ReferenceOption = None,
    background: BackgroundOption = None,
    seed: Annotated[int, typer.Option(help="Row i is drawn from seed + i.")] = 0,
    negative_prompt: str | None = None,
    sampler: SamplerOption = None,
    eta: EtaOption = None,
    steps: StepsOption = None,
    guidance_scale: float | None = None,
    height: SideOption = None,
    width: SideOption = None,
    dtype: DType = DType.float32,
    device: DeviceOption = "cpu",
    quiet: QuietOption = False,
    optimize: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Draw a picture of every row of PROMPTS; a run that was killed goes on where it stopped.

    Exit code 3: all rows are done, and some have an error in the index instead of a picture.
    """
    if optimize is not None:
        raise ValueError(
            f"optimize must be left out, got {optimize}: rows share their batches, which have no"
            " gradients. Search with `stal generate PROMPT --optimize`, and give what it finds in"
            " the column weights"
        )
    _check_options(prompts, format, engine, address, workers)

    from dataclasses import asdict

    from stal.settings import Settings
    from stal.shards import folder

    given: dict[str, Any] = {
        "attention": attention and attention.value,
        "rule": rule and rule.value,
        "reference": reference,
        "background": background,
        "negative_prompt": negative_prompt,
        "sampler": sampler,
        "eta": eta,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
    }
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    command = {
        "format": format.value,
        "shard_size": shard_size,
        "seed": seed,
        "model": model or "",
        "lora": lora or [],
        "dtype": dtype.value,
        **asdict(settings),
    }
    folder.check_folder(output, command)

    from stal.shards.run import Task
    from stal.shards.shard import ShardFolder

    task = Task(ShardFolder(output, format.value), shard_size, settings, seed)
    total = _survey(prompts, task)
    with folder.opened(output, command, task.place):
        _, pictures, errors = folder.count(task.place)
        begun = pictures + errors
        how = _How(model, read_loras(lora), dtype, device, max_rows, quiet, total, begun)
        if how.begun != total:
            if engine == EngineName.ray:
                _draw_by_ray(prompts, task, how, address, workers or 1)
            else:
                _draw(prompts, task, how)
        _sum_up(task.place)


@dataclass(frozen=True)
class _How:
    """What the pictures do not depend on.

    total: rows, None of a stream; begun: those of them that have an entry already.
    """

    model: str | None
    loras: Loras
    dtype: DType
    device: str
    max_rows: int
    quiet: bool
    total: int | None
    begun: int

    def bar(self) -> Any:
        from tqdm import tqdm

        return tqdm(total=self.total, initial=self.begun, unit=" images", disable=self.quiet)


def _check_options(
    prompts: Path,
    format: PictureFormat,
    engine: EngineName,
    address: str | None,
    workers: int | None,
) -> None:
    """Raises ValueError for options that do not go together, and for missing packages."""
    from stal.shards.rows import STDIN

    if engine != EngineName.ray:
        for name, value in (("address", address), ("workers", workers)):
            if value is not None:
                raise ValueError(f"{name} must come with --engine ray, got {value}")
    else:
        check_installed("ray", "the engine ray")
        if prompts == STDIN:
            raise ValueError("prompts must be a file with --engine ray, got -: save them in one")
    check_installed("pyarrow", "the indexes")
    if format == PictureFormat.webdataset:
        check_installed("webdataset", "pictures in tar files")


def _survey(prompts: Path, task: Task) -> int | None:
    """Reads all rows once: their number, and whether the folder has pictures of others."""
    from stal.shards.rows import STDIN, read_rows
    from stal.shards.run import checked

    if prompts == STDIN:
        return None
    total = sum(1 for _ in checked(read_rows(prompts), task))
    if total == 0:
        raise ValueError(f"prompts must have at least one row, got none in {prompts}")
    return total


def _draw(prompts: Path, task: Task, how: _How) -> None:
    """Draws in this process."""
    from stal.batch import Engine
    from stal.model.model import enough_memory
    from stal.pipeline import Pipeline
    from stal.shards.requests import check_settings
    from stal.shards.rows import read_rows
    from stal.shards.run import WINDOW, Run, checked

    pipe = Pipeline.from_pretrained(
        how.model, dtype=torch_dtype(how.dtype), device=how.device, loras=how.loras
    )
    check_settings(pipe, task.settings)
    asked = threading.Event()
    fix = "run the same command with a smaller --max-rows, it goes on where it stopped"
    with _on_sigterm(asked.set), how.bar() as bar, enough_memory(how.device, fix):
        engine = Engine(pipe, max_rows=how.max_rows)
        run = Run(task, engine, WINDOW * how.max_rows, stop=asked.is_set, progress=bar.update)
        try:
            run.draw(checked(read_rows(prompts), task))
        finally:
            engine.close(drain=False)
        run.collect_rest()
    if run.stopped:
        _leave()


def _draw_by_ray(prompts: Path, task: Task, how: _How, address: str | None, workers: int) -> None:
    """Draws in the processes of a cluster."""
    from stal.integrations import ray

    assert how.total is not None  # a stream is refused
    drawer = ray.Drawer(task, how.model, how.dtype.value, how.device, how.max_rows, loras=how.loras)
    try:
        with how.bar() as bar, ray.connected(address), _on_sigterm(_terminate):
            for rows in ray.draw(prompts, drawer, total=how.total, workers=workers):
                bar.update(rows)
    except _Terminated:
        _leave()


class _Terminated(BaseException):
    """Somebody asked the process to terminate."""


def _terminate() -> None:
    raise _Terminated


@contextmanager
def _on_sigterm(handle: Callable[[], object]) -> Iterator[None]:
    """Within, a request to terminate calls a function instead."""
    before = signal.signal(signal.SIGTERM, lambda *_: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave() -> None:
    close_bars()
    say("terminated: run the same command again, it goes on where it stopped")
    raise typer.Exit(TERMINATED)


def _sum_up(place: ShardFolder) -> None:
    from stal.shards.folder import count

    shards, pictures, errors = count(place)
    print(f"{place.folder}: {pictures} pictures in {shards} shards", flush=True)
    if errors:
        where = place.folder / "shard-*.parquet"
        say(f"{errors} of {pictures + errors} rows have no picture: {where} have why, under error")
        raise typer.Exit(FINISHED_WITH_ERRORS)
