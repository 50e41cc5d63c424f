"""Who is encoded, who joins, and whose turn it is: queues, rows and bytes, no tensors.

A ticket waits, is encoded, is ready, runs, and is done. Tickets of one size share the calls of the
denoiser and queue in the order of arrival. Sizes take turns, a step each. What would break the
limit of memory waits; others overtake it until it is older than the age limit, from when on nobody
is let in before it. The caller holds a lock around every call.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


class Stage(IntEnum):
    WAITING = 0
    ENCODING = 1
    READY = 2
    RUNNING = 3
    DRAWN = 4
    DONE = 5


@dataclass(eq=False, slots=True)
class Ticket:
    """One request on its way.

    size: whose calls of the denoiser it shares.
    rows: its pictures.
    kept: bytes that it holds from its encoding on until it is done.
    passing: bytes that a step takes for its rows, while the step lasts.
    decoding: bytes that decoding its pictures takes, while it lasts.
    work: what the stages know of it.
    callback: called as callback(step, x, denoised) after each transition.
    deadline: on the clock of the scheduler, when it fails if it is not done.
    """

    size: Hashable
    rows: int = 1
    kept: int = 0
    passing: int = 0
    decoding: int = 0
    work: Any = None
    callback: Callable[..., None] | None = None
    deadline: float | None = None
    future: Future[Any] = field(default_factory=Future)
    stage: Stage = Stage.WAITING
    number: int = 0
    arrived: float = 0.0


@dataclass(eq=False, slots=True)
class _Bucket:
    """Tickets of one size. `ahead`: rows that are encoding or ready; `rows`, `passing`: of those
    that run; `largest`, `decoding`: the most of one ticket that was let in since nobody was."""

    size: Hashable
    waiting: deque[Ticket] = field(default_factory=deque)
    ready: deque[Ticket] = field(default_factory=deque)
    running: dict[Ticket, None] = field(default_factory=dict)
    ahead: int = 0
    rows: int = 0
    passing: int = 0
    largest: int = 0
    decoding: int = 0

    @property
    def empty(self) -> bool:
        return not (self.waiting or self.ahead or self.running)


class Scheduler:
    """See the module.

    Args:
        max_rows: pictures in one call of the denoiser, and encoded ahead of it, of each size.
        memory: bytes that tickets may take together.
        age_limit_s: seconds that a ticket may be overtaken for.
    """

    def __init__(self, *, max_rows: int, memory: int, age_limit_s: float) -> None:
        self.max_rows, self.memory, self.age_limit_s = max_rows, memory, age_limit_s
        self.kept = 0
        self._numbers = itertools.count()
        self._buckets: dict[Hashable, _Bucket] = {}
        self._turns: deque[_Bucket] = deque()
        self._drawn: dict[Ticket, None] = {}
        self._open: dict[int, Ticket] = {}
        self._deadlines: list[tuple[float, int]] = []  # of numbers, so that no ticket is kept

    @property
    def decoding_room(self) -> int:
        """Bytes set aside for decoding, which may take more for a single ticket."""
        return self.memory // 10

    def fits_alone(self, ticket: Ticket) -> bool:
        """Whether the ticket could ever be let in."""
        return self.alone(ticket) <= self.memory and ticket.rows <= self.max_rows

    def alone(self, ticket: Ticket) -> int:
        """Bytes that must be free for a ticket when no other is there."""
        return ticket.kept + ticket.passing + max(ticket.decoding, self.decoding_room)

    def add(self, ticket: Ticket, now: float) -> None:
        ticket.number, ticket.arrived = next(self._numbers), now
        self._open[ticket.number] = ticket
        bucket = self._buckets.get(ticket.size)
        if bucket is None:
            bucket = self._buckets[ticket.size] = _Bucket(ticket.size)
        bucket.waiting.append(ticket)
        if ticket.deadline is not None:
            heapq.heappush(self._deadlines, (ticket.deadline, ticket.number))

    def to_encode(self, now: float, most: int) -> list[Ticket]:
        """Up to `most` waiting tickets, the oldest first, that are let in; now encoding."""
        found: list[Ticket] = []
        passed_over: set[Hashable] = set()
        while len(found) < most:
            heads = []
            for bucket in list(self._buckets.values()):
                self._without_dead(bucket.waiting)
                if bucket.empty:
                    del self._buckets[bucket.size]
                elif bucket.waiting and bucket.size not in passed_over:
                    rows = bucket.waiting[0].rows
                    if bucket.ahead == 0 or bucket.ahead + rows <= self.max_rows:
                        heads.append(bucket)
            if not heads:
                break
            bucket = min(heads, key=lambda each: each.waiting[0].number)
            ticket = bucket.waiting[0]
            if not self._fits(kept=ticket.kept, single=ticket.passing, decoding=ticket.decoding):
                if now - ticket.arrived > self.age_limit_s:
                    break
                passed_over.add(bucket.size)
                continue
            bucket.waiting.popleft()
            bucket.ahead += ticket.rows
            bucket.largest = max(bucket.largest, ticket.passing)
            bucket.decoding = max(bucket.decoding, ticket.decoding)
            self.kept += ticket.kept
            ticket.stage = Stage.ENCODING
            found.append(ticket)
        return found

    def encoded(self, ticket: Ticket) -> None:
        if ticket.stage is Stage.ENCODING:
            ticket.stage = Stage.READY
            self._buckets[ticket.size].ready.append(ticket)

    def join(self, now: float) -> list[Ticket]:
        """Ready tickets that run from now on."""
        found: list[Ticket] = []
        heads = [bucket for bucket in self._buckets.values() if self._without_dead(bucket.ready)]
        for bucket in sorted(heads, key=lambda each: each.ready[0].number):
            while self._without_dead(bucket.ready):
                ticket = bucket.ready[0]
                if bucket.rows + ticket.rows > self.max_rows:
                    break
                if not self._fits(step=bucket.passing + ticket.passing):
                    if now - ticket.arrived > self.age_limit_s:
                        return found
                    break
                bucket.ready.popleft()
                if not bucket.running:
                    self._turns.append(bucket)
                bucket.running[ticket] = None
                bucket.ahead -= ticket.rows
                bucket.rows += ticket.rows
                bucket.passing += ticket.passing
                ticket.stage = Stage.RUNNING
                found.append(ticket)
        return found

    def turn(self) -> Hashable | None:
        """The size whose turn a step is; None if nothing runs."""
        if not self._turns:
            return None
        self._turns.rotate(-1)
        return self._turns[-1].size

    def running(self, size: Hashable) -> list[Ticket]:
        bucket = self._buckets.get(size)
        return [] if bucket is None else list(bucket.running)

    def drawn(self, ticket: Ticket) -> None:
        """A running ticket has no step before it; it is still to be decoded."""
        self._stop(ticket)
        ticket.stage = Stage.DRAWN
        self._drawn[ticket] = None

    def done(self, ticket: Ticket) -> Stage:
        """Wherever it is, nothing more is to come of a ticket. Returns where it was."""
        was = ticket.stage
        if was is Stage.RUNNING:
            self._stop(ticket)
        elif was in (Stage.ENCODING, Stage.READY):
            bucket = self._buckets[ticket.size]
            bucket.ahead -= ticket.rows
            self._forget(bucket)
        if was not in (Stage.WAITING, Stage.DONE):
            self.kept -= ticket.kept
        ticket.stage = Stage.DONE
        self._drawn.pop(ticket, None)
        self._open.pop(ticket.number, None)
        return was

    def expired(self, now: float) -> list[Ticket]:
        """Tickets that are not done and whose deadline is over, each once."""
        found = []
        while (when := self.next_deadline()) is not None and when <= now:
            found.append(self._open[heapq.heappop(self._deadlines)[1]])
        return found

    def next_deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._open:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def open(self) -> list[Ticket]:
        """All that are not done, the oldest first."""
        return list(self._open.values())

    @property
    def idle(self) -> bool:
        return not self._open

    def _fits(self, *, kept: int = 0, single: int = 0, step: int = 0, decoding: int = 0) -> bool:
        """Whether so much more fits: of every ticket that is let in the step it takes alone must,
        so that each of them can run in the end."""
        steps, decodings = max(single, step), max(decoding, self.decoding_room)
        for bucket in self._buckets.values():
            steps = max(steps, bucket.passing, bucket.largest)
            decodings = max(decodings, bucket.decoding)
        for ticket in self._drawn:
            decodings = max(decodings, ticket.decoding)
        return self.kept + kept + steps + decodings <= self.memory

    def _stop(self, ticket: Ticket) -> None:
        bucket = self._buckets[ticket.size]
        del bucket.running[ticket]
        bucket.rows -= ticket.rows
        bucket.passing -= ticket.passing
        if not bucket.running:
            self._turns.remove(bucket)
        self._forget(bucket)

    def _forget(self, bucket: _Bucket) -> None:
        if not bucket.ahead and not bucket.running:
            bucket.largest = bucket.decoding = 0
        if bucket.empty:
            del self._buckets[bucket.size]

    @staticmethod
    def _without_dead(queue: deque[Ticket]) -> bool:
        """Drops what is done from the front; whether anything is left."""
        while queue and queue[0].stage is Stage.DONE:
            queue.popleft()
        return bool(queue)
