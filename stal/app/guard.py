"""What stands before the application: access, the size of bodies, headers of every answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stal.app.access import Access
from stal.app.problems import Problem

# What a browser may do with an answer: the page's own files, and nothing from elsewhere.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Seconds in which a body must arrive.
_BODY_S = 30.0
# Of a body that is too large, what is read and thrown away, so that the answer can be read.
_DISCARDED_BYTES = 64 << 20


class Guard:
    """Middleware that lets through what may be answered.

    Args:
        app: what answers.
        access: who may ask.
        public: paths, and beginnings of paths that end with "/", that need no key.
        most_bytes: of a body, by path; under "" that of all others.
        refused: called with a word for why, for each request that was not let through.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        public: Collection[str],
        most_bytes: Mapping[str, int],
        refused: Callable[[str], object],
    ) -> None:
        self._app, self._access, self._most_bytes = app, access, most_bytes
        self._public, self._refused = public, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path, headers = scope["path"], Headers(scope=scope)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in HEADERS.items():
                    given.setdefault(name, value)
                given.setdefault("Cache-Control", "no-store")
            await send(message)

        most = self._most_bytes.get(path, self._most_bytes[""])
        body = _Body(receive, most)
        try:
            self._access.check(scope["method"], headers, public=self._is_public(path))
            body.check_length(headers.get("content-length"))
        except Problem as problem:
            self._refused(problem.code or "other")
            await body.discard()
            await problem.response()(scope, receive, answer)
            return
        await self._app(scope, body.receive, answer)

    def _is_public(self, path: str) -> bool:
        return any(
            path == each or (each.endswith("/") and path.startswith(each) and each != "/")
            for each in self._public
        )


class _Body:
    """The messages of a request, as long as its body is small and quick enough."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._read = receive, most, 0
        self._end: float | None = None
        self._whole = False

    def check_length(self, stated: str | None) -> None:
        if stated is not None and stated.isdecimal() and int(stated[:20]) > self._most:
            raise self._too_large(stated[:20])

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()  # waits for the client's going
        try:
            message = await self._next()
        except asyncio.TimeoutError:
            rule = f"a body must arrive within {_BODY_S:g} s, it did not"
            raise Problem(408, rule, code="body_timeout") from None
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._read > self._most:
                await self.discard()
                raise self._too_large("more")
        return message

    async def discard(self) -> None:
        """Reads what still comes, as far as that is bearable."""
        while not self._whole and self._read <= self._most + _DISCARDED_BYTES:
            try:
                message = await self._next()
            except asyncio.TimeoutError:
                return
            if message["type"] == "http.disconnect":
                return
            self._read += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)

    async def _next(self) -> Message:
        now = time.monotonic()
        self._end = self._end or now + _BODY_S
        return await asyncio.wait_for(self._receive(), max(0.0, self._end - now))

    def _too_large(self, got: str) -> Problem:
        rule = f"the body must have at most {self._most} bytes, got {got}"
        return Problem(413, rule, code="body_too_large")
