"""The threads that serve tickets: one denoises, one encodes ahead of it, one decodes behind it.

A future stays pending until its result is there, so that `Future.cancel` works at any time; a
ticket that was cancelled, has failed or is late leaves before the next step. What a user's
callback or one ticket's data raises fails that ticket alone; what else ends one of the threads
fails all tickets with it and closes the loop.

The threads share one lock. Each waits for a condition of its own, which whoever gives it something
to do notifies.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from stal.batch.scheduler import Scheduler, Stage, Ticket

# Tickets that are encoded in one batch: the first of them waits for all.
_MOST_ENCODED = 4


class DeadlineExceeded(TimeoutError):
    """A request was not done in the time that it was given."""


class EngineClosed(RuntimeError):
    """The engine takes no more requests."""


class Stages(Protocol):
    """What is done with tickets; each method is called from one thread at a time.

    encode: makes what the tickets need to run. May raise, for all of them.
    join: lets an encoded ticket run; called between steps, as step and leave are.
    step: one step of all running tickets of a size; returns those that have none before them,
        with what went wrong if anything did.
    leave: an encoded ticket is not to run any more; called once for each.
    decode: the results of tickets of one size that are drawn.
    """

    def encode(self, tickets: Sequence[Ticket]) -> None: ...
    def join(self, ticket: Ticket) -> None: ...
    def step(self, size: Hashable) -> list[tuple[Ticket, Exception | None]]: ...
    def leave(self, ticket: Ticket) -> None: ...
    def decode(self, tickets: Sequence[Ticket]) -> list[Any]: ...


class Loop:
    """Serves tickets through stages, in threads of its own, until it is closed."""

    def __init__(
        self,
        stages: Stages,
        scheduler: Scheduler,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages, self._scheduler, self._clock = stages, scheduler, clock
        self._lock = threading.RLock()
        self._to_encode = threading.Condition(self._lock)
        self._to_denoise = threading.Condition(self._lock)
        self._to_decode = threading.Condition(self._lock)
        self._closed = False
        self._broken: BaseException | None = None
        self._busy = False  # encoding
        self._leaving: deque[Ticket] = deque()  # encoded once, done now
        self._drawn: deque[Ticket] = deque()
        self._reports: deque[tuple[Ticket, tuple[Any, ...]]] = deque()
        self._threads = [
            threading.Thread(
                target=self._guarded, args=(serve,), name=f"stal.batch {name}", daemon=True
            )
            for name, serve in (
                ("encoder", self._encoding),
                ("denoiser", self._denoising),
                ("decoder", self._decoding),
            )
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, ticket: Ticket, within: float | None = None) -> Future[Any]:
        """Takes a ticket, with a deadline so many seconds from now if any.

        Raises EngineClosed. Whether the ticket could ever be let in is not looked at.
        """
        with self._lock:
            if self._broken is not None:
                got = f"one that has failed: {type(self._broken).__name__}: {self._broken}"
                raise EngineClosed(
                    f"engine must be open to take a request, got {got}"
                ) from self._broken
            if self._closed:
                raise EngineClosed("engine must be open to take a request, got a closed one")
            now = self._clock()
            if within is not None:
                ticket.deadline = now + within
            self._scheduler.add(ticket, now)
            self._to_encode.notify()
            if ticket.deadline is not None:
                self._to_denoise.notify()  # which waits until the next deadline
        # After it was added: a future may be cancelled as soon as it is seen.
        ticket.future.add_done_callback(lambda future: self._cancelled(ticket, future))
        return ticket.future

    def report(self, ticket: Ticket, *event: Any) -> None:
        """Calls the ticket's callback with it, beside the denoiser and before its result is set."""
        with self._lock:
            self._reports.append((ticket, event))
            self._to_decode.notify()

    def close(self, *, drain: bool) -> None:
        """Takes no more tickets, and returns when those that it has are done.

        drain: draws them; otherwise they are cancelled.
        """
        with self._lock:
            self._closed = True
            waiting = [] if drain else self._scheduler.open()
            self._wake_all()
        for ticket in waiting:
            ticket.future.cancel()
        # Within a callback there is no waiting for what only that thread can end.
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join()

    @property
    def _over(self) -> bool:
        return self._closed and self._scheduler.idle and not (self._leaving or self._busy)

    def _wake_all(self) -> None:
        for condition in (self._to_encode, self._to_denoise, self._to_decode):
            condition.notify()

    def _guarded(self, serve: Callable[[], None]) -> None:
        """What a thread does. If that raises, no thread goes on and no future stays open."""
        try:
            serve()
        except BaseException as error:
            with self._lock:
                failed = self._scheduler.open() if self._broken is None else []
                self._closed, self._broken = True, self._broken or error
                self._wake_all()
            for ticket in failed:
                if ticket.future.set_running_or_notify_cancel():
                    ticket.future.set_exception(error)

    def _cancelled(self, ticket: Ticket, future: Future[Any]) -> None:
        if future.cancelled() and self._end(ticket):
            # For those who wait with `concurrent.futures.wait`.
            future.set_running_or_notify_cancel()

    def _end(self, ticket: Ticket) -> bool:
        """Marks a ticket done wherever it is; False if it was, or somebody else is to say so."""
        with self._lock:
            if self._broken is not None:
                return False
            was = self._scheduler.done(ticket)
            if was in (Stage.READY, Stage.RUNNING, Stage.DRAWN):
                self._leaving.append(ticket)
            # There may be room for others, and it leaves before the next step.
            self._to_encode.notify()
            self._to_denoise.notify()
            if self._over:
                self._wake_all()
        return was is not Stage.DONE

    def _settle(self, ticket: Ticket, result: Any) -> None:
        """Ends a ticket with a result or an exception; its future may have been cancelled."""
        if not self._end(ticket) or not ticket.future.set_running_or_notify_cancel():
            return
        if isinstance(result, BaseException):
            ticket.future.set_exception(result)
        else:
            ticket.future.set_result(result)

    def _encoding(self) -> None:
        while True:
            with self._lock:
                while not (tickets := self._next_encoded()):
                    if self._broken is not None or self._over:
                        return
                    self._to_encode.wait()
                self._busy = True
            self._each(self._stages.encode, tickets, self._encoded)
            with self._lock:
                self._busy = False
                if self._over:
                    self._wake_all()

    def _next_encoded(self) -> list[Ticket]:
        if self._broken is not None:
            return []
        return self._scheduler.to_encode(self._clock(), _MOST_ENCODED)

    def _encoded(self, ticket: Ticket, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            self._settle(ticket, outcome)
            return
        with self._lock:
            if ticket.stage is Stage.DONE:
                self._leaving.append(ticket)
            self._scheduler.encoded(ticket)
            self._to_denoise.notify()

    def _denoising(self) -> None:
        while (turn := self._next_turn()) is not None:
            size, joining, leaving, late = turn
            for ticket in late:
                seconds = (ticket.deadline or 0) - ticket.arrived
                error = DeadlineExceeded(f"the request must be done in {seconds:.3g} s, it is not")
                self._settle(ticket, error)
            for ticket in leaving:
                self._stages.leave(ticket)
                ticket.work = ticket.callback = None  # for whoever keeps the future
            for ticket in joining:
                try:
                    self._stages.join(ticket)
                except Exception as error:
                    self._settle(ticket, error)
            if size is None:
                continue
            try:
                ended = self._stages.step(size)
            except Exception as error:
                with self._lock:
                    ended = [(ticket, error) for ticket in self._scheduler.running(size)]
            for ticket, failure in ended:
                self._stepped(ticket, failure)

    def _stepped(self, ticket: Ticket, error: Exception | None) -> None:
        if error is not None:
            self._settle(ticket, error)
            return
        with self._lock:
            if ticket.stage is Stage.RUNNING:
                self._scheduler.drawn(ticket)
                self._drawn.append(ticket)
                self._to_decode.notify()
                self._to_encode.notify()  # its step's memory is free

    def _next_turn(
        self,
    ) -> tuple[Hashable | None, list[Ticket], list[Ticket], list[Ticket]] | None:
        """A size to step, if any, and who joins, leaves and is late before; None at the end."""
        with self._lock:
            while self._broken is None:
                now = self._clock()
                late = self._scheduler.expired(now)
                leaving = list(self._leaving)
                self._leaving.clear()
                # Latents that are not looked at yet take memory: nothing moves while they pile up.
                behind = len(self._drawn) + len(self._reports) > 4 * self._scheduler.max_rows
                joining = [] if late or behind else self._scheduler.join(now)
                if joining:
                    self._to_encode.notify()  # others, in their place
                size = None if late or behind else self._scheduler.turn()
                if late or leaving or joining or size is not None:
                    return size, joining, leaving, late
                if self._over:
                    self._wake_all()
                    return None
                when = self._scheduler.next_deadline()
                self._to_denoise.wait(None if when is None else max(0.0, when - now))
            return None

    def _decoding(self) -> None:
        while True:
            with self._lock:
                while not (self._reports or self._drawn):
                    if self._broken is not None or self._over:
                        return
                    self._to_decode.wait()
                if self._broken is not None:
                    return
                reports, tickets = list(self._reports), self._next_decoded()
                self._reports.clear()
                # Nothing moves while they pile up.
                self._to_denoise.notify()
            for ticket, event in reports:
                callback = ticket.callback
                if ticket.stage is not Stage.DONE and callback is not None:
                    try:
                        callback(*event)
                    except BaseException as error:
                        self._settle(ticket, error)
            going_on = [ticket for ticket in tickets if ticket.stage is not Stage.DONE]
            if going_on:
                self._each(self._stages.decode, going_on, self._settle)

    def _next_decoded(self) -> list[Ticket]:
        """Drawn tickets of one size, as many as there is room to decode at once."""
        found: list[Ticket] = []
        room = self._scheduler.decoding_room
        while self._drawn and (not found or self._drawn[0].size == found[0].size):
            room -= self._drawn[0].decoding
            if found and room < 0:
                break
            found.append(self._drawn.popleft())
        return found

    def _each(
        self,
        do: Callable[[Sequence[Ticket]], Sequence[Any] | None],
        tickets: Sequence[Ticket],
        then: Callable[[Ticket, Any], None],
    ) -> None:
        """Does something with all tickets at once, or if that fails with one after the other, and
        hands each its outcome or exception."""
        try:
            outcomes = do(tickets) or [None] * len(tickets)
        except Exception as error:
            if len(tickets) > 1:
                for ticket in tickets:
                    self._each(do, [ticket], then)
                return
            outcomes = [error]
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            then(ticket, outcome)
