"""The server under load: `stal serve` in a process of its own, clients on loopback in this one.

Parts:

* capacity: as many requests as there are rows are always open; pictures a second.
* clients: many requests by so many clients, each with one open; what refuses (429) is asked again
  when it says. Memory of the server (resident) after a tenth of them, and after all.
* load: requests that arrive at random (Poisson) at shares of the capacity, and how long they take.
* burst: requests at once, on a connection each; how many are served and how many refused.
* previews: drawings of the page (`stal app`) whose events somebody reads; from a step to its
  preview, over the time between two steps, by what the server counts (means).

Every answer is looked at: it is a picture of the size and with the seed that were asked for, or a
429 with Retry-After; anything else is an error, and is counted.

    python bench/bench_serve.py --output bench/results/serve.json
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from timing import Table, cpu_details

from stal import picture
from stal.files import check_writable

PROMPTS = (
    "a green star",
    "a red circle to the left of a blue square",
    "a red circle, a green ring above a yellow cross",
)
POOL = 100  # connections
PARTS = ("capacity", "clients", "load", "burst", "previews")
COLUMNS = {
    "what": 30,
    "requests": 8,
    "pictures/s": 10,
    "s, p50": 7,
    "s, p99": 7,
    "p99 / p50": 9,
    "served": 7,
    "429": 6,
    "errors": 6,
    "RSS before, MB": 14,
    "RSS after, MB": 13,
    "preview / step": 14,
}
KEY = ("what", "requests")


@dataclass
class Seen:
    """What became of requests. took_s: of those that were served, refusals in between included."""

    took_s: list[float] = field(default_factory=list)
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Asked:
    """What every request asks for."""

    steps: int
    side: int


@contextmanager
def server(queue: int, rows: int, *, page: bool = False) -> Iterator[tuple[str, int]]:
    """The address and the process's number of a new server. page: of `stal app`."""
    options = ["--port", "0", "--queue", str(queue), "--max-rows", str(rows)]
    kind = ["app", "--no-browser"] if page else ["serve"]
    command = [sys.executable, "-m", "stal", *kind, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
        if found is None:
            raise RuntimeError("the server did not start")
        yield found[0], process.pid
    finally:
        process.terminate()
        process.wait()


def resident_mb(pid: int) -> float:
    """What a process has in memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


@asynccontextmanager
async def client(url: str, connections: int) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    # Certificates, which HTTP has no use for, would be read for each.
    options = {"base_url": url, "limits": limits, "timeout": None, "verify": False}
    async with httpx.AsyncClient(**options) as made:
        yield made


async def ask(made: httpx.AsyncClient, seed: int, asked: Asked, seen: Seen, *, again: bool) -> None:
    """One request. again: ask until it is served, as a polite client does."""
    body = {
        "prompt": PROMPTS[seed % len(PROMPTS)],
        "seed": seed,
        "steps": asked.steps,
        "size": f"{asked.side}x{asked.side}",
    }
    start = time.perf_counter()
    while True:
        try:
            answer = await made.post("/v1/images/generations", json=body)
        except httpx.HTTPError as error:
            seen.errors[type(error).__name__] += 1
            return
        if answer.status_code != 429:
            break
        seen.refused += 1
        if not again:
            if "retry-after" not in answer.headers:
                seen.errors["no Retry-After"] += 1
            return
        await asyncio.sleep(float(answer.headers["retry-after"]))
    wrong = fault(answer, body)
    if wrong is None:
        seen.took_s.append(time.perf_counter() - start)
    else:
        seen.errors[wrong] += 1


def fault(answer: httpx.Response, body: dict[str, object]) -> str | None:
    """What is wrong with an answer."""
    if answer.status_code != 200:
        return f"status {answer.status_code}"
    said = answer.json()
    record = picture.record_in(base64.b64decode(said["data"][0]["b64_json"]), name="it")
    right = (record["seeds"], record["prompt"], said["size"])
    return None if right == ([body["seed"]], body["prompt"], body["size"]) else "another picture"


async def closed(
    url: str, asked: Asked, seeds: Sequence[int], clients: int, *, again: bool = True
) -> tuple[Seen, float]:
    """Requests by clients that each have one open; what was seen, and seconds."""
    seen, left = Seen(), iter(seeds)

    async def work(made: httpx.AsyncClient) -> None:
        for seed in left:
            await ask(made, seed, asked, seen, again=again)

    async with AsyncExitStack() as stack:
        # A pool looks at all its connections for each request: with thousands it does little else.
        shares = [min(POOL, clients - first) for first in range(0, clients, POOL)]
        pools = [(await stack.enter_async_context(client(url, n)), n) for n in shares]
        start = time.perf_counter()
        await asyncio.gather(*(work(made) for made, n in pools for _ in range(n)))
        return seen, time.perf_counter() - start


async def arriving(url: str, asked: Asked, count: int, rate: float) -> tuple[Seen, float]:
    """Requests that arrive at random, `rate` a second, whatever became of those before."""
    seen, draw, tasks = Seen(), random.Random(1), []
    async with client(url, count) as made:
        start = arrival = time.perf_counter()
        for seed in range(count):
            arrival += draw.expovariate(rate)
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(made, seed, asked, seen, again=False)))
        await asyncio.gather(*tasks)
        return seen, time.perf_counter() - start


async def watched(url: str, asked: Asked, drawings: int) -> float:
    """Draws for the page; the mean time of a preview over that of a step."""

    async def one(made: httpx.AsyncClient, seed: int) -> None:
        size = {"width": asked.side, "height": asked.side}
        prompt = PROMPTS[seed % len(PROMPTS)]
        found = await made.post("/api/layout", json={"prompt": prompt, **size})
        body = {"prompt": prompt, "layout": found.json()["layout"], "seed": seed, **size}
        begun = await made.post("/api/drawings", json={**body, "steps": asked.steps})
        events = f"/api/drawings/{begun.json()['id']}/events"
        async with made.stream("GET", events) as stream:
            names = [line async for line in stream.aiter_lines() if line.startswith("event: ")]
        if names[-1] != "event: done":
            raise RuntimeError(f"a drawing must end, got {names[-1]}")

    async with client(url, drawings) as made:
        await one(made, 0)
        before = (await made.get("/metrics")).text
        await asyncio.gather(*(one(made, seed) for seed in range(drawings)))
        after = (await made.get("/metrics")).text

    def mean(name: str) -> float:
        total, count = (
            sample(after, f"stal_{name}_seconds_{kind}")
            - sample(before, f"stal_{name}_seconds_{kind}")
            for kind in ("sum", "count")
        )
        return total / count

    return mean("preview") / mean("step")


def sample(text: str, name: str) -> float:
    """A number of /metrics."""
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return 0.0 if found is None else float(found[1])


def add(
    table: Table,
    what: str,
    count: int,
    seen: Seen,
    seconds: float,
    memory: tuple[float, float] | None = None,
) -> None:
    p50, p99 = np.quantile(seen.took_s, [0.5, 0.99]) if seen.took_s else (np.nan, np.nan)
    cells = {
        "what": what,
        "requests": str(count),
        "pictures/s": f"{len(seen.took_s) / seconds:.3g}",
        "s, p50": f"{p50:.3g}",
        "s, p99": f"{p99:.3g}",
        "p99 / p50": f"{p99 / p50:.2f}",
        "served": str(len(seen.took_s)),
        "429": str(seen.refused),
        "errors": str(seen.errors.total()),
        "RSS before, MB": "" if memory is None else f"{memory[0]:.0f}",
        "RSS after, MB": "" if memory is None else f"{memory[1]:.0f}",
        "preview / step": "",
    }
    table.add(cells, took_s=sorted(seen.took_s), faults=dict(seen.errors), wall_s=seconds)
    if seen.errors:
        print(f"errors: {json.dumps(seen.errors)}", file=sys.stderr)


def main(
    parts: Annotated[str, typer.Option(help=f"Of {', '.join(PARTS)}.")] = ",".join(PARTS),
    requests: Annotated[int, typer.Option(min=10, help="Of the part clients.")] = 1000,
    clients: Annotated[int, typer.Option(min=1)] = 50,
    load_requests: Annotated[int, typer.Option(min=1, help="At each share.")] = 200,
    shares: Annotated[str, typer.Option(help="Of the capacity, in percent.")] = "50,80",
    burst: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 10_000,
    steps: Annotated[int, typer.Option(min=1)] = 4,
    side: Annotated[int, typer.Option(min=8, help="Pixels.")] = 32,
    queue: Annotated[int, typer.Option(min=1)] = 64,
    rows: Annotated[int, typer.Option(min=1)] = 16,
    output: Annotated[Path | None, typer.Option(help="JSON file; Markdown beside it.")] = None,
) -> None:
    """Print the table."""
    wanted = parts.split(",")
    if not set(wanted) <= set(PARTS):
        raise typer.BadParameter(f"parts must be of {', '.join(PARTS)}, got {parts!r}")
    if output is not None:
        check_writable(output)
    table = Table(
        COLUMNS,
        command="python bench/bench_serve.py",
        steps=steps,
        side=side,
        queue=queue,
        rows=rows,
    )
    asked = Asked(steps, side)
    with server(queue, rows) as (url, pid):
        # What is done once a server.
        asyncio.run(closed(url, asked, range(2 * rows), rows))
        capacity = 0.0
        if "capacity" in wanted or "load" in wanted:
            count = max(100, 6 * rows)
            seen, seconds = asyncio.run(closed(url, asked, range(count), rows))
            capacity = len(seen.took_s) / seconds
            add(table, f"capacity, {rows} open", count, seen, seconds)
        if "clients" in wanted:
            asyncio.run(closed(url, asked, range(requests // 10), clients))
            before = resident_mb(pid)
            seen, seconds = asyncio.run(closed(url, asked, range(requests), clients))
            add(table, f"{clients} clients", requests, seen, seconds, (before, resident_mb(pid)))
        for share in [int(n) for n in shares.split(",")] if "load" in wanted else []:
            seen, seconds = asyncio.run(arriving(url, asked, load_requests, share / 100 * capacity))
            add(table, f"load {share}% of {capacity:.3g}/s", load_requests, seen, seconds)
        if "burst" in wanted:
            before = resident_mb(pid)
            seen, seconds = asyncio.run(closed(url, asked, range(burst), burst, again=False))
            add(table, "at once", burst, seen, seconds, (before, resident_mb(pid)))
    if "previews" in wanted:
        with server(queue, rows, page=True) as (url, _):
            for drawings in (1, 8):
                ratio = asyncio.run(watched(url, Asked(25, 64), drawings))
                cells = dict.fromkeys(COLUMNS, "") | {"what": "previews, 25 steps, 64 pixels"}
                cells |= {"requests": str(drawings), "preview / step": f"{ratio:.2f}"}
                table.add(cells, preview_over_step=ratio)
    if output is not None:
        table.merge(output, KEY, lambda row: True, **cpu_details())


if __name__ == "__main__":
    typer.run(main)
