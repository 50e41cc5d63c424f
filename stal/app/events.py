"""Events of one drawing, of which only the latest of each name is kept, and their text for SSE."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

# Events after which there are no others.
LAST = ("done", "error", "cancelled")
# Seconds between comments that keep a connection open, and show that nobody listens any more.
HEARTBEAT_S = 5.0
HEARTBEAT = b": \n\n"


@dataclass(frozen=True)
class Event:
    id: int
    name: str
    data: dict[str, Any]

    def encoded(self) -> bytes:
        """As server-sent events are written."""
        text = f"id: {self.id}\nevent: {self.name}\ndata: {json.dumps(self.data)}\n\n"
        return text.encode("ascii")


class EventLog:
    """What happened, as whoever comes late or is slow wants it: not every step, but the latest.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._latest: dict[str, Event] = {}
        self._count = 0
        self._waiting: set[asyncio.Event] = set()

    @property
    def over(self) -> bool:
        return any(name in self._latest for name in LAST)

    def put(self, name: str, data: dict[str, Any]) -> None:
        """Adds an event, unless the last one was added."""
        if self.over:
            return
        self._count += 1
        self._latest[name] = Event(self._count, name, data)
        for waiting in self._waiting:
            waiting.set()

    def latest(self, name: str) -> Event | None:
        return self._latest.get(name)

    def after(self, id: int) -> list[Event]:
        """Those that are newer, in order."""
        return sorted((e for e in self._latest.values() if e.id > id), key=lambda e: e.id)

    async def follow(self, after: int = 0) -> AsyncGenerator[Event | None, None]:
        """The events from then on, up to the last one; None where nothing happened for a while."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            while True:
                changed.clear()
                for event in self.after(after):
                    after = event.id
                    yield event
                if self.over and not self.after(after):
                    return
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
                except asyncio.TimeoutError:
                    yield None
        finally:
            self._waiting.discard(changed)
