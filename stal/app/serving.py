"""Serves the application by uvicorn until it is asked to stop, and then until it has done all."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

_BACKLOG = 2048


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError, which names the address, if there cannot be one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from error


def address(sock: socket.socket, host: str) -> str:
    """Where a browser on this machine finds the server."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{sock.getsockname()[1]}"


def serve(app: FastAPI, sock: socket.socket, *, ready: Callable[[], object] = lambda: None) -> None:
    """Returns when the server has stopped.

    A first SIGTERM or SIGINT lets it do what it has accepted, and take nothing more (503); a second
    one cancels that.

    Args:
        app: of `stal.app.server.create_app`.
        sock: of `bound`; it is closed in the end.
        ready: called once requests are answered.
    """
    config = uvicorn.Config(app, access_log=False, log_config=None, server_header=False)
    with sock:
        _Server(config, ready).run(sockets=[sock])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready
        self._asked = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._asked += 1

    async def on_tick(self, counter: int) -> bool:
        desk: Any = self.config.app.state.desk  # type: ignore[union-attr]
        if counter == 0:
            self._ready()
        if self._asked:
            desk.draining = True
        if self._asked > 1:
            desk.cancel_all()
        if self._asked and desk.idle:
            self.should_exit = True
        return await super().on_tick(counter)
