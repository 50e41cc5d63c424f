"""examples/serving/ray_serve.py: two replicas on this machine draw what one process draws."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[3] / "examples" / "serving" / "ray_serve.py"

pytestmark = [
    pytest.mark.needs("ray.serve", "fastapi", "prometheus_client", "httpx"),
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(not EXAMPLE.exists(), reason="needs a checkout"),
]

KEY = "a-key-of-20-chars-ok"
# An odd number, so that two replicas cannot have drawn equally many.
REQUESTS = 9


@pytest.fixture(scope="module")
def url(sd_folder):
    """The address of two replicas."""
    import ray
    from ray import serve

    spec = importlib.util.spec_from_file_location("ray_serve", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    handler = signal.getsignal(signal.SIGTERM)
    # Ray starts processes that outlive a fixture that fails.
    ray.init(address="local", num_cpus=3, object_store_memory=80 << 20, include_dashboard=False)
    try:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        app = example.application(model=str(sd_folder), key=KEY, cpus=1, queue=8)
        serve.run(app, name="stal", route_prefix="/")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)


def test_two_replicas_draw_what_one_process_draws(url, pipe):
    import httpx

    prompt = "a red circle to the left of a blue square"
    with httpx.Client(base_url=url, timeout=120) as client:
        assert client.get("/v1/models").status_code == 401
        client.headers["Authorization"] = f"Bearer {KEY}"

        def draw(seed: int) -> httpx.Response:
            body = {"prompt": prompt, "steps": 10, "seed": seed}
            return client.post("/v1/images/generations", json=body)

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(draw, range(REQUESTS)))
        for seed, answer in enumerate(answers):
            assert answer.status_code == 200, answer.text
            data = base64.b64decode(answer.json()["data"][0]["b64_json"])
            image = pipe(prompt, steps=10, seed=seed).images[0]
            levels = np.asarray(Image.open(io.BytesIO(data))).astype(int)
            assert np.abs(levels - np.asarray(image).astype(int)).max() <= 2
        drawn: set[float] = set()
        end = time.monotonic() + 60
        while len(drawn) < 2 and time.monotonic() < end:
            text = client.get("/metrics").text
            drawn.add(float(re.search(r"^stal_images_total (\S+)$", text, re.MULTILINE)[1]))
        assert sum(drawn) == REQUESTS
        assert min(drawn) > 0
