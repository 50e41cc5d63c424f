"""The queue: full, position, clients that go, shutting down; and what the server counts."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.needs("fastapi", "uvicorn", "prometheus_client", "httpx")

TWO = "a red circle to the left of a blue square"


def post(client, **body):
    return client.post("/v1/images/generations", json={"prompt": TWO, **body})


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def count(client, name: str) -> float:
    """A sample of /metrics."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    return 0.0


@pytest.fixture
def small(start):
    """A server that accepts three pictures."""
    from stal.app.limits import Limits

    return start(limits=Limits(pixels=1024, queue=3))


def test_a_full_queue_sheds_and_loses_nothing(small):
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda seed: post(small, steps=20, seed=seed), range(12)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        else:
            assert answer.json()["data"][0]["b64_json"]
    assert count(small, 'stal_requests_total{outcome="done"}') == codes.count(200)
    assert count(small, 'stal_refusals_total{reason="queue_full"}') == codes.count(429)
    assert count(small, "stal_images_total") == codes.count(200)
    assert count(small, "stal_waiting_images") == count(small, "stal_rows") == 0
    assert post(small, steps=1).status_code == 200


def test_pictures_count_not_requests(small):
    assert post(small, steps=1, n=4).status_code == 429
    assert post(small, steps=1, n=3).status_code == 200


def test_a_client_that_disappears_frees_its_place(small):
    desk = small.app.state.desk
    body = json.dumps({"prompt": TWO, "steps": 100, "n": 3}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    address = small.base_url.host, small.base_url.port
    with socket.create_connection(address) as sock:
        sock.sendall(head.encode() + b"\r\nContent-Type: application/json\r\n\r\n" + body)
        until(lambda: desk._open)
    until(lambda: not desk._open)
    assert count(small, 'stal_requests_total{outcome="cancelled"}') == 1
    assert post(small, steps=1).status_code == 200


def test_a_stream_that_nobody_reads_frees_its_place(small):
    desk = small.app.state.desk
    body = {"prompt": TWO, "steps": 100, "stream": True}
    with small.stream("POST", "/v1/images/generations", json=body):
        until(lambda: desk._open)
    until(lambda: not desk._open)


def test_positions_count_those_that_wait(start):
    from stal.app.limits import Limits

    client = start(limits=Limits(pixels=1024, queue=8, images=1), max_rows=1)
    layout = {"objects": [{"phrase": "a red circle", "box": [0, 0, 1, 1]}]}
    body = {"prompt": TWO, "layout": layout, "steps": 100}
    ids = [client.post("/api/drawings", json=body).json()["id"] for _ in range(4)]
    desk = client.app.state.desk
    until(lambda: desk._open[ids[0]].began is not None)
    found = []
    with client.stream("GET", f"/api/drawings/{ids[3]}/events") as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: ") and name == "queued":
                found.append(json.loads(line.removeprefix("data: "))["position"])
                client.delete(f"/api/drawings/{ids[3 - len(found)]}")
            if name == "step":
                break
    for id in ids:
        client.delete(f"/api/drawings/{id}")
    assert found[0] == 2
    assert found == sorted(set(found), reverse=True)
    assert found[-1] == 0


def test_a_server_that_stops_does_what_it_has_accepted(pipe):
    import httpx

    from stal.app.server import create_app
    from stal.app.serving import Server, address, bound

    sock, ready = bound("127.0.0.1", 0), threading.Event()
    app = create_app(pipe)
    server = Server(app, ready=ready.set)
    thread = threading.Thread(target=server.serve_at, args=(sock,))
    url = address(sock, "127.0.0.1")
    thread.start()
    assert ready.wait(60)
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(4) as pool:
        accepted = [pool.submit(post, client, steps=60, seed=k) for k in range(4)]
        until(lambda: len(app.state.desk._open) == 4)
        server.stop()
        until(lambda: app.state.desk.draining)
        refused = post(client, steps=1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"]
        assert client.get("/health").status_code == 503
        assert [each.result().status_code for each in accepted] == [200] * 4
    thread.join(60)
    assert not thread.is_alive()


def test_a_server_that_stops_lets_the_page_fetch_what_is_done(pipe):
    import httpx

    from stal.app.page_files import PageFile
    from stal.app.server import create_app
    from stal.app.serving import Server, address, bound

    sock, ready = bound("127.0.0.1", 0), threading.Event()
    app = create_app(pipe, page={"index.html": PageFile(b"", "text/html", "")})
    server = Server(app, ready=ready.set)
    thread = threading.Thread(target=server.serve_at, args=(sock,))
    url = address(sock, "127.0.0.1")
    thread.start()
    assert ready.wait(60)
    with httpx.Client(base_url=url, timeout=60) as client:
        layout = {"objects": [{"phrase": "a red circle", "box": [0, 0, 1, 1]}]}
        body = {"prompt": TWO, "layout": layout, "steps": 30}
        id = client.post("/api/drawings", json=body).json()["id"]
        server.stop()
        until(lambda: not app.state.desk._open)
        time.sleep(0.3)
        assert client.get(f"/api/drawings/{id}/picture.png").status_code == 200
    thread.join(60)
    assert not thread.is_alive()


def test_events_of_one_log_are_the_latest_of_each_name():
    from stal.app.events import EventLog

    async def follow():
        log = EventLog()
        for step in range(3):
            log.put("step", {"step": step})
        late = [event async for event in _until_done(log)]
        return [(event.id, event.name, event.data) for event in late]

    async def _until_done(log):
        async for event in log.follow():
            yield event
            log.put("done", {})
            log.put("step", {"step": 9})

    assert asyncio.run(follow()) == [(3, "step", {"step": 2}), (4, "done", {})]


@pytest.mark.slow
def test_sigterm_drains_the_command(tmp_path):
    import httpx

    command = [sys.executable, "-m", "stal", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        line = process.stdout.readline()
        assert line.startswith("stal: serving at http://127.0.0.1:")
        url = line.split()[3].removesuffix("/v1")
        with httpx.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(3) as pool:
            accepted = [pool.submit(post, client, steps=20, seed=k) for k in range(3)]
            until(lambda: count(client, "stal_waiting_images") + count(client, "stal_rows") == 3)
            process.send_signal(signal.SIGTERM)
            assert [each.result().status_code for each in accepted] == [200] * 3
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
