"""What Ray costs: `stal generate-batch` by Ray's workers, beside as many processes of their own.

The processes draw a share of the prompts each, at once, with as many threads as a worker has: one.
Each way draws a run and one three times as long, so that what a run takes to start (Ray's cluster,
imports, the model) and what a picture takes afterwards are told apart:

    s a picture = (long - short) / (pictures of long - of short),    start = short - its pictures

    python bench/bench_ray.py --output bench/results/ray.json
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from bench_throughput import PROMPTS, numbers
from timing import Table, cpu_details

from stal.files import check_writable

COLUMNS = {
    "what": 16,
    "workers": 7,
    "pictures": 8,
    "start, s": 8,
    "pictures/s": 10,
    "x processes": 11,
}
KEY = ("what", "workers")
_STAL = (sys.executable, "-m", "stal", "generate-batch", "--quiet")


def write_prompts(path: Path, rows: Sequence[int], steps: Sequence[int]) -> Path:
    """Of these rows of one long list, whose kinds come in turn."""
    lines = [
        json.dumps(
            {
                "id": str(i),
                "prompt": PROMPTS[i % len(PROMPTS)],
                "seed": i,
                "steps": steps[i % len(steps)],
            }
        )
        for i in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def by_ray(folder: Path, count: int, workers: int, steps: Sequence[int], shard: int) -> float:
    prompts = write_prompts(folder / "prompts.jsonl", range(count), steps)
    ray = ("--engine", "ray", "--address", "local", "--workers", str(workers))
    return _seconds([[*_command(prompts, folder / "out", shard), *ray]], folder)


def by_processes(folder: Path, count: int, workers: int, steps: Sequence[int], shard: int) -> float:
    commands = []
    for k in range(workers):
        # Shards in turn, as Ray hands them out.
        rows = [i for i in range(count) if i // shard % workers == k]
        prompts = write_prompts(folder / f"{k}.jsonl", rows, steps)
        commands.append(_command(prompts, folder / f"out{k}", shard))
    return _seconds(commands, folder)


WAYS: dict[str, Callable[[Path, int, int, Sequence[int], int], float]] = {
    "processes": by_processes,
    "ray": by_ray,
}


def _command(prompts: Path, output: Path, shard: int) -> list[str]:
    return [*_STAL, "--prompts", str(prompts), "--output", str(output), "--shard-size", str(shard)]


def _seconds(commands: Sequence[Sequence[str]], folder: Path) -> float:
    """From the start of all commands to the end of the last."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    # In another folder than the sources, whose library is not built.
    running = [subprocess.Popen(command, env=environment, cwd=folder) for command in commands]
    codes = [each.wait() for each in running]
    seconds = time.perf_counter() - start
    if any(codes):
        raise RuntimeError(f"{shlex.join(commands[0])} must end with 0, got {codes}")
    return seconds


def main(
    workers: Annotated[int, typer.Option(min=1)] = 2,
    pictures: Annotated[int, typer.Option(min=1, help="Of the short run.")] = 128,
    shard: Annotated[int, typer.Option(min=1, help="Rows of a shard.")] = 32,
    steps: Annotated[str, typer.Option(help="Of rows, in turn.")] = "5,10",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    output: Annotated[Path | None, typer.Option(help="JSON file; Markdown beside it.")] = None,
) -> None:
    """Print the table."""
    if pictures % (workers * shard):
        raise typer.BadParameter(f"pictures must be whole shards for all, got {pictures}")
    if output is not None:
        check_writable(output)
    table = Table(COLUMNS, command="python bench/bench_ray.py", steps=steps, shard=shard)
    seconds: dict[tuple[str, int], list[float]] = {}
    for done in range(rounds):
        for way in list(WAYS)[:: -1 if done % 2 else 1]:
            for count in (pictures, 3 * pictures):
                folder = Path(tempfile.mkdtemp(prefix="bench-ray-"))
                try:
                    spent = WAYS[way](folder, count, workers, numbers(steps), shard)
                    drawn = len(list(folder.rglob("*.png")))
                    if drawn != count:
                        raise RuntimeError(f"{way} must draw {count} pictures, got {drawn}")
                finally:
                    shutil.rmtree(folder)
                seconds.setdefault((way, count), []).append(spent)
    rates = {}
    for way in WAYS:
        short, long = (statistics.median(seconds[way, n]) for n in (pictures, 3 * pictures))
        each = (long - short) / (2 * pictures)
        rates[way] = 1 / each
        cells = {
            "what": way,
            "workers": str(workers),
            "pictures": str(3 * pictures),
            "start, s": f"{short - pictures * each:.3g}",
            "pictures/s": f"{rates[way]:.3g}",
            "x processes": f"{rates[way] / rates['processes']:.3f}",
        }
        table.add(cells, short_s=seconds[way, pictures], long_s=seconds[way, 3 * pictures])
    if output is not None:
        table.merge(output, KEY, lambda row: True, **cpu_details())


if __name__ == "__main__":
    typer.run(main)
