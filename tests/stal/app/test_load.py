"""Fifty clients at the bundled model: what is accepted is served, what is not is 429, and nothing
stays in memory. How fast it is, bench/bench_serve.py says."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections import Counter

import numpy as np
import pytest

from stal import picture
from stal.pipeline import Pipeline

pytestmark = [
    pytest.mark.needs("fastapi", "uvicorn", "prometheus_client", "httpx"),
    pytest.mark.slow,
]

CLIENTS, REQUESTS, QUEUE = 50, 200, 24
PROMPTS = ("a green star", "a red circle to the left of a blue square")


@pytest.fixture(scope="module")
def bundled() -> Pipeline:
    return Pipeline.from_pretrained()


def body_of(seed: int) -> dict:
    return {"prompt": PROMPTS[seed % 2], "seed": seed, "steps": 2, "size": "32x32"}


def test_fifty_clients(start, bundled):
    import httpx

    from stal.app.desk import Commission
    from stal.app.limits import Limits

    client = start(bundled, page=False, limits=Limits(pixels=4096, queue=QUEUE))
    codes: Counter[int] = Counter()
    served: dict[int, bytes] = {}

    async def work(made: httpx.AsyncClient, seeds) -> None:
        for seed in seeds:
            while seed not in served:
                answer = await made.post("/v1/images/generations", json=body_of(seed))
                codes[answer.status_code] += 1
                if answer.status_code == 200:
                    served[seed] = base64.b64decode(answer.json()["data"][0]["b64_json"])
                else:
                    assert answer.status_code == 429
                    await asyncio.sleep(min(0.5, float(answer.headers["retry-after"])))

    async def all_clients() -> None:
        limits = httpx.Limits(max_connections=CLIENTS)
        url = str(client.base_url)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=None) as made:
            left = iter(range(REQUESTS))
            await asyncio.gather(*(work(made, left) for _ in range(CLIENTS)))

    asyncio.run(all_clients())
    assert codes[200] == REQUESTS
    assert codes[429] > 0
    for seed, data in served.items():
        record = picture.record_in(data, name="it")
        assert (record["seeds"], record["prompt"]) == ([seed], PROMPTS[seed % 2])
    for seed in (0, REQUESTS - 1):
        expected = bundled(PROMPTS[seed % 2], seed=seed, steps=2, height=32, width=32).images[0]
        assert np.abs(levels(served[seed]) - np.asarray(expected).astype(int)).max() <= 2
    desk = client.app.state.desk
    assert (desk._open, desk._done, desk._pictures) == ({}, {}, 0)
    gc.collect()
    left = [each for each in gc.get_objects() if type(each) is Commission]
    assert len(left) <= 1  # one that a thread's last call still refers to


def levels(data: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def test_many_requests_at_once_are_all_answered(start, bundled):
    import httpx

    from stal.app.limits import Limits

    client = start(bundled, page=False, limits=Limits(pixels=4096, queue=4))
    codes: Counter[int] = Counter()

    async def one(made: httpx.AsyncClient, seed: int) -> None:
        answer = await made.post("/v1/images/generations", json=body_of(seed))
        codes[answer.status_code] += 1

    async def burst() -> None:
        limits = httpx.Limits(max_connections=300)
        url = str(client.base_url)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=None) as made:
            await asyncio.gather(*(one(made, seed) for seed in range(300)))

    asyncio.run(burst())
    assert set(codes) == {200, 429}
    assert codes.total() == 300
    assert client.post("/v1/images/generations", json=body_of(0)).status_code == 200
