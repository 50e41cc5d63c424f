"""Serves the application by uvicorn until it is asked to stop, and then until it has done all."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from stal.app.desk import Desk

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


class Server(uvicorn.Server):
    """A server that does what it has accepted before it stops.

    Args:
        app: of `stal.app.server.create_app`.
        ready: called once requests are answered.
    """

    def __init__(self, app: FastAPI, *, ready: Callable[[], object] = lambda: None) -> None:
        # Keys and prompts are in no log: there is none of requests.
        super().__init__(
            uvicorn.Config(app, access_log=False, log_config=None, server_header=False)
        )
        self._app, self._ready, self._asked = app, ready, 0

    def serve_at(self, sock: socket.socket) -> None:
        """Answers what comes to a socket of `bound`, which it closes; returns when it stopped."""
        with sock:
            self.run(sockets=[sock])

    def stop(self) -> None:
        """What a signal does: from now on nothing is accepted (503), and the server stops when all
        is done; asked twice, it cancels that. May be called by any thread."""
        self._asked += 1

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop()

    async def on_tick(self, counter: int) -> bool:
        desk: Desk = self._app.state.desk
        if counter == 0:
            self._ready()
        if self._asked:
            desk.draining = True
        if self._asked > 1:
            desk.cancel_all()
        if self._asked and desk.idle:
            self.should_exit = True
        return await super().on_tick(counter)
