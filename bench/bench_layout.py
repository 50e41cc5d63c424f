"""Time from a prompt to its layout: `predict(parse(prompt))`, one at a time and in batches.

A prompt's time is the median of the rounds, each of which goes once through all prompts alone and
once in batches of consecutive ones. --unprojected adds rows without the projection: parser and
network alone.

    python bench/bench_layout.py --nsr1k nsr1k_spatial_train.json --gpt gpt_dev.txt
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from timing import Table

from stal.evaluation.labelled import read_gpt, read_spatial
from stal.layout.predictor import bundled
from stal.prompts import parse

COLUMNS = {
    "prompts": 28,
    "number": 7,
    "median, ms": 11,
    "80%": 6,
    "95%": 6,
    "worst": 6,
    "in batches, prompts/s": 22,
}
_Files = Annotated[list[Path] | None, typer.Option(exists=True, dir_okay=False)]


def main(
    nsr1k: _Files = None,
    gpt: _Files = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    unprojected: Annotated[bool, typer.Option("--unprojected")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file; Markdown beside it.")] = None,
) -> None:
    """Print the table."""
    sets = {path.name: [each.prompt for each in read_spatial(path)] for path in nsr1k or []}
    sets |= {path.name: [each.prompt for each in read_gpt(path)] for path in gpt or []}
    if not sets:
        raise typer.BadParameter("name at least one set, e.g. --gpt FILE")
    torch.set_num_threads(threads)
    table = Table(COLUMNS, batch=batch, rounds=rounds)
    for name, prompts in sets.items():
        for projected in (True, False) if unprojected else (True,):
            _measure(table, name, prompts, rounds=rounds, batch=batch, projected=projected)
    if output is not None:
        table.merge(output, ("prompts",), lambda row: True)


def _measure(
    table: Table, name: str, prompts: list[str], *, rounds: int, batch: int, projected: bool
) -> None:
    _place(prompts, projected)  # words that were seen are kept
    alone: list[list[float]] = [[] for _ in prompts]
    rates = []
    for _ in range(rounds):
        for prompt, seconds in zip(prompts, alone, strict=True):
            seconds.append(_place([prompt], projected))
        groups = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
        rates.append(len(prompts) / sum(_place(group, projected) for group in groups))
    times = sorted(1e3 * statistics.median(seconds) for seconds in alone)
    ranks = {"80%": 0.8, "95%": 0.95, "worst": 1.0}
    cells = {name: f"{times[round(rank * (len(times) - 1))]:.3g}" for name, rank in ranks.items()}
    table.add(
        {
            "prompts": name if projected else f"{name}, not projected",
            "number": str(len(prompts)),
            "median, ms": f"{statistics.median(times):.3g}",
            **cells,
            "in batches, prompts/s": f"{statistics.median(rates):.0f}",
        },
        milliseconds=times,
        rates=rates,
    )


def _place(prompts: list[str], projected: bool) -> float:
    """Seconds."""
    start = time.perf_counter()
    bundled().predict([parse(prompt) for prompt in prompts], projected=projected)
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
