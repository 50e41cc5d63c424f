"""Pictures a second of many requests: a loop, static batches, and the engine; and its latencies.

Requests are of 0 to 5 objects and of mixed numbers of steps, drawn by the bundled model:

* loop: `pipe(...)` for one request after the other.
* grouped: `Pipeline.batch` of requests of equal settings, as many as there are rows; all requests
  are known beforehand.
* static: requests in the order of arrival share a batch that ends with its longest: those that
  have ended are computed on until then. Their prompts are ragged as everywhere here, not padded.
* engine: `stal.batch.Engine`.

Part "rates" measures these; "load" what a request waits when they arrive at random (Poisson) at a
share of the engine's rate; "scheduler" what the engine does between two steps, with a denoiser that
only counts. CPU seconds are those of the process, of all its threads: they hardly depend on what
else the machine does.

    python bench/bench_throughput.py --output bench/results/throughput.json
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from timing import Table, cpu_details

from stal import sampler
from stal.batch import Engine, Request, Result
from stal.batch.loop import Loop
from stal.batch.scheduler import Scheduler, Ticket
from stal.drawing import Drawing
from stal.files import check_writable
from stal.noise import ImageNoise
from stal.pipeline import Pipeline
from stal.settings import Settings

PROMPTS = (
    "an empty scene",
    "a green star",
    "a red circle to the left of a blue square",
    "a red circle, a green ring above a yellow cross",
    "a red circle, a blue square, a green star and a pink ring",
    "a red circle, a blue square, a green star, a pink ring and a yellow cross",
)
PARTS = ("rates", "load", "scheduler")
COLUMNS = {
    "what": 26,
    "threads": 7,
    "rows": 4,
    "requests": 8,
    "steps each": 13,
    "pictures/s": 10,
    "CPU s a picture": 15,
    "x loop": 6,
    "x static": 8,
    "s, p50": 7,
    "s, p99": 7,
    "us a step, p50 (p99)": 20,
    "CPU us a step": 13,
}
KEY = ("what", "threads", "rows", "steps each")


def requests_of(count: int, steps: Sequence[int]) -> list[Request]:
    """Prompts and numbers of steps, each as often as any other, in one random order for all."""
    draw = random.Random(0)
    settings = [Settings(steps=steps[i % len(steps)]) for i in range(count)]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    draw.shuffle(settings)
    draw.shuffle(prompts)
    return [Request(p, s, seed=i) for i, (p, s) in enumerate(zip(prompts, settings, strict=True))]


def loop(pipe: Pipeline, requests: Sequence[Request], rows: int) -> list[Result]:
    return [
        pipe.batch([request.prompt], request.settings, seed=request.seed)[0] for request in requests
    ]


def grouped(pipe: Pipeline, requests: Sequence[Request], rows: int) -> list[Result]:
    found: dict[int, Result] = {}
    kinds: dict[Settings, list[int]] = {}
    for i, request in enumerate(requests):
        kinds.setdefault(request.settings, []).append(i)
    for settings, members in kinds.items():
        for start in range(0, len(members), rows):
            batch = members[start : start + rows]
            prompts = [requests[i].prompt for i in batch]
            drawn = pipe.batch(prompts, settings, seed=[seed_of(requests[i]) for i in batch])
            found |= zip(batch, drawn, strict=True)
    return [found[i] for i in range(len(requests))]


@torch.no_grad()
def static(pipe: Pipeline, requests: Sequence[Request], rows: int) -> list[Result]:
    found: list[Result] = []
    for start in range(0, len(requests), rows):
        batch = requests[start : start + rows]
        each = [pipe.jobs([request.prompt], request.settings) for request in batch]
        jobs, full = [jobs[0] for jobs, _, _ in each], each[0][1]
        noise = ImageNoise(len(batch), 1, [seed_of(request) for request in batch], None)
        drawing = Drawing(pipe.model, jobs, full, each[0][2], noise)
        x = noise.initial(pipe.model.unet.config.in_channels, *drawing.cells)
        ways = [
            sampler.by_name(schedule.sampler).steps(x[i : i + 1], schedule)
            for i, (_, _, schedule) in enumerate(each)
        ]
        wanted = [next(way) for way in ways]
        latents: list[torch.Tensor | None] = [None] * len(batch)
        while any(final is None for final in latents):
            t = torch.tensor([t for _, t, _ in wanted], dtype=torch.float64)
            steps = torch.tensor([step for _, _, step in wanted])
            together = torch.cat([own for own, _, _ in wanted])
            prediction = drawing.predict(together, t, steps, *drawing.weights)
            for i, way in enumerate(ways):
                if latents[i] is None:
                    try:
                        wanted[i] = way.send(prediction[i : i + 1])
                    except StopIteration as stop:
                        latents[i] = stop.value
        results = drawing.results(torch.cat([final for final in latents if final is not None]))
        found += results
    return found


def engine(pipe: Pipeline, requests: Sequence[Request], rows: int) -> list[Result]:
    with Engine(pipe, max_rows=rows) as open_engine:
        return list(open_engine.map(requests, ahead=len(requests)))


WAYS: dict[str, Callable[[Pipeline, Sequence[Request], int], list[Result]]] = {
    "loop": loop,
    "grouped": grouped,
    "static": static,
    "engine": engine,
}


def seed_of(request: Request) -> int:
    assert isinstance(request.seed, int)
    return request.seed


def check(name: str, results: Sequence[Result], expected: Sequence[Result]) -> None:
    """Raises unless a way drew the pictures of the loop, to 2 levels of 255."""
    for i, (result, right) in enumerate(zip(results, expected, strict=True)):
        own, other = (np.asarray(r.images[0]).astype(int) for r in (result, right))
        if np.abs(own - other).max() > 2:
            raise AssertionError(f"{name} drew another picture of request {i} than the loop")


def rates(
    table: Table, pipe: Pipeline, requests: list[Request], rows: Sequence[int], rounds: int
) -> float:
    """Adds the rates of all ways; returns the engine's best, in pictures a second."""
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {}
    expected: list[Result] = []
    for done in range(rounds):
        cases = [("loop", 1), *((way, n) for n in rows for way in list(WAYS)[1:])]
        for way, n in cases if done % 2 == 0 else [cases[0], *reversed(cases[1:])]:
            start, busy = time.perf_counter(), time.process_time()
            results = WAYS[way](pipe, requests, n)
            spent = time.perf_counter() - start, time.process_time() - busy
            seconds.setdefault((way, n), []).append(spent)
            expected = expected or results
            check(way, results, expected)
    medians = {
        case: tuple(statistics.median(each) for each in zip(*spent, strict=True))
        for case, spent in seconds.items()
    }
    for (way, n), (wall, cpu) in medians.items():
        cells = {
            "what": way,
            "rows": str(n),
            "requests": str(len(requests)),
            "steps each": _listed({request.settings.steps for request in requests}),
            "pictures/s": f"{len(requests) / wall:.3g}",
            "CPU s a picture": f"{cpu / len(requests):.3g}",
            "x loop": f"{medians['loop', 1][0] / wall:.2f}",
            "x static": "" if way == "loop" else f"{medians['static', n][0] / wall:.2f}",
        }
        add(table, cells, wall_s=wall, cpu_s=cpu, rounds=rounds)
    return max(len(requests) / medians["engine", n][0] for n in rows)


def load(
    table: Table,
    pipe: Pipeline,
    requests: list[Request],
    rows: int,
    capacity: float,
    shares: Sequence[float],
) -> None:
    """Adds what requests take that arrive at random at shares of the capacity."""
    for share in shares:
        draw = random.Random(1)
        took: list[float] = []

        futures: list[Future[Result]] = []
        with Engine(pipe, max_rows=rows) as open_engine:
            # What is done once an engine.
            open_engine.submit(replace(requests[0], settings=Settings(steps=1))).result()
            arrival = time.perf_counter()
            for request in requests:
                arrival += draw.expovariate(share * capacity)
                time.sleep(max(0.0, arrival - time.perf_counter()))
                futures.append(open_engine.submit(request))
                futures[-1].add_done_callback(partial(note, arrival, took))
            for future in futures:
                future.result()
        p50, p99 = np.quantile(took, [0.5, 0.99])
        cells = {
            "what": f"load {share:.0%} of {capacity:.3g}/s",
            "rows": str(rows),
            "requests": str(len(requests)),
            "steps each": _listed({request.settings.steps for request in requests}),
            "s, p50": f"{p50:.3g}",
            "s, p99": f"{p99:.3g}",
        }
        add(table, cells, latencies_s=sorted(took))


def note(since: float, took: list[float], done: Future[Result]) -> None:
    took.append(time.perf_counter() - since)


@dataclass
class Counted:
    """Stages that only count the steps of each ticket, and note what passes between two steps."""

    step_s: float

    def __post_init__(self) -> None:
        self.between_s: list[float] = []
        self.cpu_s: list[float] = []  # of the denoiser's thread alone
        self._since: tuple[float, float] | None = None
        self._running: dict[Any, dict[Ticket, None]] = {}

    def encode(self, tickets: Sequence[Ticket]) -> None:
        pass

    def join(self, ticket: Ticket) -> None:
        self._running.setdefault(ticket.size, {})[ticket] = None

    def leave(self, ticket: Ticket) -> None:
        self._running[ticket.size].pop(ticket, None)

    def step(self, size: Any) -> list[tuple[Ticket, Exception | None]]:
        if self._since is not None:
            self.between_s.append(time.perf_counter() - self._since[0])
            self.cpu_s.append(time.thread_time() - self._since[1])
        if self.step_s:
            time.sleep(self.step_s)
        running = self._running[size]
        for ticket in running:
            ticket.work -= 1
        ended = [ticket for ticket in running if not ticket.work]
        for ticket in ended:
            del running[ticket]
        self._since = time.perf_counter(), time.thread_time()
        return [(ticket, None) for ticket in ended]

    def decode(self, tickets: Sequence[Ticket]) -> list[int]:
        return [ticket.number for ticket in tickets]


def scheduled(table: Table, count: int, rows: int, steps: Sequence[int], step_s: float) -> None:
    """Adds what the scheduler and its threads take between two steps, of `count` requests."""
    stages = Counted(step_s)
    scheduler = Scheduler(max_rows=rows, memory=1 << 40, age_limit_s=10.0)
    serving = Loop(stages, scheduler)
    start, busy = time.perf_counter(), time.process_time()
    futures = [serving.submit(Ticket("a", work=steps[i % len(steps)])) for i in range(count)]
    serving.close(drain=True)
    wall, cpu = time.perf_counter() - start, time.process_time() - busy
    if [future.result() for future in futures] != list(range(count)):
        raise AssertionError("the scheduler lost a request or took one for another")
    p50, p99 = np.quantile(stages.between_s, [0.5, 0.99]) * 1e6
    cells = {
        "what": f"scheduler, step of {step_s * 1e3:.3g} ms",
        "rows": str(rows),
        "requests": str(count),
        "steps each": _listed(steps),
        "us a step, p50 (p99)": f"{p50:.0f} ({p99:.0f})",
        "CPU us a step": f"{statistics.mean(stages.cpu_s) * 1e6:.0f}",
    }
    mean = statistics.mean(stages.between_s) * 1e6
    add(table, cells, wall_s=wall, cpu_s=cpu, steps=len(stages.between_s), mean_us=mean)


def add(table: Table, cells: dict[str, str], **raw: Any) -> None:
    """A row; a cell that is not given is empty."""
    threads = {"threads": str(torch.get_num_threads())}
    table.add(dict.fromkeys(COLUMNS, "") | threads | cells, **raw)


def _listed(values: Iterable[int]) -> str:
    return ",".join(str(value) for value in sorted(values))


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(
    parts: Annotated[str, typer.Option(help=f"Of {', '.join(PARTS)}.")] = ",".join(PARTS),
    rows: Annotated[str, typer.Option(help="Of a batch, comma-separated.")] = "1,2,4,8,16",
    threads: Annotated[str, typer.Option(help="Comma-separated.")] = "1,2",
    requests: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 48,
    steps: Annotated[str, typer.Option(help="Of requests, in turn.")] = "10,20,30,40",
    rounds: Annotated[int, typer.Option(min=1, help="Of the rates.")] = 3,
    shares: Annotated[str, typer.Option(help="Of the capacity, in percent.")] = "50,80,95",
    scheduled_requests: Annotated[int, typer.Option(min=1)] = 100_000,
    step_ms: Annotated[float, typer.Option(min=0, help="Of the scheduler's denoiser.")] = 0.0,
    output: Annotated[Path | None, typer.Option(help="JSON file; Markdown beside it.")] = None,
) -> None:
    """Print the table."""
    wanted = parts.split(",")
    if not set(wanted) <= set(PARTS):
        raise typer.BadParameter(f"parts must be of {', '.join(PARTS)}, got {parts!r}")
    if output is not None:
        check_writable(output)
    table = Table(COLUMNS, command="python bench/bench_throughput.py")
    pipe, given = Pipeline.from_pretrained(), requests_of(requests, numbers(steps))
    for count in numbers(threads) if wanted != ["scheduler"] else []:
        torch.set_num_threads(count)
        capacity = 0.0
        if "rates" in wanted:
            capacity = rates(table, pipe, given, numbers(rows), rounds)
        if "load" in wanted:
            most = max(numbers(rows))
            if not capacity:
                start = time.perf_counter()
                engine(pipe, given, most)
                capacity = len(given) / (time.perf_counter() - start)
            load(table, pipe, given, most, capacity, [n / 100 for n in numbers(shares)])
    if "scheduler" in wanted:
        scheduled(table, scheduled_requests, 64, numbers(steps), step_ms / 1e3)
    if output is not None:
        table.merge(output, KEY, lambda row: True, **cpu_details())


if __name__ == "__main__":
    typer.run(main)
