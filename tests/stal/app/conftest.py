"""Servers of the tiny model on free ports of this machine, each in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

TWO = "a red circle to the left of a blue square"


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address at which an application answers within."""
    from stal.app.serving import Server, address, bound

    sock, ready = bound("127.0.0.1", 0), threading.Event()
    url = address(sock, "127.0.0.1")
    server = Server(app, ready=ready.set)
    thread = threading.Thread(target=server.serve_at, args=(sock,))
    thread.start()
    try:
        assert ready.wait(60)
        yield url
    finally:
        server.stop()
        server.stop()
        thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def start(pipe) -> Iterator[Callable[..., Any]]:
    """start(**options of create_app) -> a client of a new server; start.app is the last one's."""
    import httpx

    from stal.app.page_files import PageFile
    from stal.app.server import create_app

    with ExitStack() as stack:

        def started(pipe=pipe, *, page: bool = True, **options: Any) -> Any:
            files = {"index.html": PageFile(b"<!doctype html>", "text/html", '"1"')}
            app = create_app(pipe, page=files if page else None, **options)
            url = stack.enter_context(serving(app))
            client = stack.enter_context(httpx.Client(base_url=url, timeout=60))
            client.app = app
            return client

        yield started


@pytest.fixture(scope="module")
def client(start):
    """Of a server with the page, whose limits are the model's."""
    return start()


def error_of(response: Any) -> dict[str, Any]:
    """What an answer in OpenAI's form says."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]
