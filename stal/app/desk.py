"""Requests that were accepted, from there to their pictures: a bounded queue before the engine.

Everything here belongs to the event loop but what says otherwise. What takes time is done by other
threads: one checks requests (and predicts layouts, and hands over to the engine), one writes PNGs.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from base64 import b64encode
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from stal import picture
from stal.app.events import EventLog
from stal.app.limits import Limits
from stal.app.metrics import Metrics
from stal.app.previews import Previewer
from stal.app.problems import Problem
from stal.batch import Engine, EngineClosed, Request, Result
from stal.caller import caught
from stal.fitting import without_effect
from stal.settings import Complete, Settings

T = TypeVar("T")

# Seconds for which nobody may look at a drawing before it is cancelled.
ABANDONED_S = 30.0
# Seconds in which the page fetches what is finished, for which a server that shuts down waits.
_FETCH_S = 5.0
# Of pictures that were finished last, to say when the next one will be.
_RECENT = 16


@dataclass(eq=False)
class Commission:
    """A request that was accepted, and what became of it.

    Attributes:
        id: random, so that only who asked knows it.
        make: what to draw, called by the thread that checks.
        pictures: how many.
        previews: by step, from 1, whether its preview is wanted whole; None for a small one of
            every step, an empty one for none.
        page: strengths to keep in the picture, so that the page can open it again.
        keep: whether the page may ask for it when it is done.
        log: its events.
        request, steps: once it is checked.
        step: how many steps are done, of `steps`.
        began: when its first step was done, by `time.perf_counter`.
        latents: (1, channels, height, width) that the middle step begins with, once there.
        files: a PNG a picture, when it is done.
        heat: what `stal.app.heat` has found.
    """

    make: Callable[[], Request]
    pictures: int
    previews: frozenset[int] | None
    page: dict[str, Any] | None
    keep: bool
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    log: EventLog = field(default_factory=EventLog)
    accepted: asyncio.Future[None] = field(default_factory=asyncio.Future)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: float = field(default_factory=time.perf_counter)
    request: Request | None = None
    step: int = 0
    steps: int = 0
    future: Future[Result] | None = None
    warnings: list[str] = field(default_factory=list)
    began: float | None = None
    stepped: float | None = None
    latents: Tensor | None = None
    result: Result | None = None
    files: list[bytes] = field(default_factory=list)
    problem: Problem | None = None
    cancelled: bool = False
    watchers: int = 0
    ended: float = 0.0
    fetched: bool = False
    heat: Any = None

    @property
    def middle(self) -> int:
        """The step whose attention is shown."""
        return self.steps // 2

    @property
    def size(self) -> int:
        """Bytes that it takes when it is done."""
        latents = 0 if self.latents is None else self.latents.nbytes
        heat = 0 if self.heat is None else self.heat.nbytes
        return sum(map(len, self.files)) + latents + heat


class Desk:
    """Takes requests and hands them to an engine.

    Args:
        engine: what draws; who makes it closes it.
        limits: how much is accepted.
        metrics: what is counted.
    """

    def __init__(self, engine: Engine, limits: Limits, metrics: Metrics) -> None:
        self.engine, self.limits, self.metrics = engine, limits, metrics
        self.draining = False
        self._loop = asyncio.get_running_loop()
        self._open: OrderedDict[str, Commission] = OrderedDict()
        self._done: OrderedDict[str, Commission] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pictures = 0
        self._finished: deque[float] = deque(maxlen=_RECENT)
        # One at a time: what is warned of is caught for the whole process.
        self._checks = ThreadPoolExecutor(1, "stal.app checks")
        self._writes = ThreadPoolExecutor(1, "stal.app writes")
        self._heats = ThreadPoolExecutor(1, "stal.app heat")
        self._previewer = Previewer(engine.pipe.model)
        self._watching: dict[str, asyncio.TimerHandle] = {}
        self._asked = 0
        for gauge, value in ((metrics.waiting, self._waiting), (metrics.drawing, self._drawing)):
            gauge.set_function(value)

    async def checked(self, do: Callable[[], T]) -> T:
        """What a function gives, called by the thread that checks.

        Raises: Problem if so many wait for it that the queue would be full.
        """
        return await self._beside(self._checks, do)

    async def heated(self, do: Callable[[], T]) -> T:
        """Likewise, by a thread that runs the networks beside the engine."""
        return await self._beside(self._heats, do)

    async def _beside(self, pool: ThreadPoolExecutor, do: Callable[[], T]) -> T:
        if self._asked >= self.limits.queue:
            raise self._full()
        self._asked += 1
        try:
            return await self._loop.run_in_executor(pool, do)
        except Exception as error:
            problem = problem_of(error)
            if problem.status_code >= 500:
                raise
            raise problem from error
        finally:
            self._asked -= 1

    def check_room(self, pictures: int = 1) -> None:
        """Raises Problem if so many pictures more would not be accepted now."""
        if self.draining:
            rule = "the server must be running to take a request, it is shutting down"
            raise Problem(503, rule, code="shutting_down", retry_after=self._retry_after())
        if self._pictures + pictures > self.limits.queue:
            raise self._full()

    async def submit(
        self,
        make: Callable[[], Request],
        *,
        pictures: int = 1,
        previews: frozenset[int] | None = frozenset(),
        page: dict[str, Any] | None = None,
        keep: bool = False,
    ) -> Commission:
        """Accepts a request; see `Commission` for the arguments.

        Raises: Problem if there is no room, or the request breaks a rule.
        """
        self.check_room(pictures)
        commission = Commission(make, pictures, previews, page, keep)
        self._pictures += pictures
        self._open[commission.id] = commission
        task = self._loop.create_task(self._draw(commission))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Whoever waits may go: the task goes on, and counts.
        await asyncio.shield(commission.accepted)
        return commission

    def find(self, id: str) -> Commission:
        """An open or a finished drawing of the page, which somebody looks at. Raises Problem."""
        found = self._open.get(id) or self._done.get(id)
        if found is None or not found.keep:
            rule = "drawing must be one that the server still has, got another id"
            raise Problem(404, rule, code="drawing_not_found")
        self._watch(found)
        return found

    def finished(self, id: str) -> tuple[Commission, Result]:
        """A finished drawing of the page. Raises Problem."""
        found = self.find(id)
        if found.problem is not None:
            raise found.problem.with_traceback(None)
        if found.result is None:
            raise Problem(409, "the drawing must be finished first, it is not", code="not_finished")
        return found, found.result

    def position(self, commission: Commission) -> int:
        """How many that wait are before it; 0 also for one that does not wait."""
        if commission.began is not None or commission.id not in self._open:
            return 0
        before = 0
        for each in self._open.values():
            if each is commission:
                break
            before += each.began is None
        return before

    def cancel(self, commission: Commission) -> None:
        if commission.over.is_set():
            return
        commission.cancelled = True
        if commission.future is not None:
            commission.future.cancel()

    def forget(self, commission: Commission) -> None:
        """Cancels a drawing, or drops a finished one."""
        self.cancel(commission)
        self._done.pop(commission.id, None)
        self._unwatch(commission)

    def enter(self, commission: Commission) -> None:
        """Somebody follows its events from now on."""
        commission.watchers += 1
        self._unwatch(commission)

    def leave(self, commission: Commission) -> None:
        commission.watchers -= 1
        self._watch(commission)

    @property
    def idle(self) -> bool:
        """Whether all that was accepted is done, and the page has what it waited for."""
        recent = time.perf_counter() - _FETCH_S
        waited_for = (
            each.ended > recent and not each.fetched and each.result is not None
            for each in self._done.values()
        )
        return not (self._open or self._asked or any(waited_for))

    def cancel_all(self) -> None:
        for commission in list(self._open.values()):
            self.cancel(commission)

    async def close(self) -> None:
        """Cancels what is still open, and waits for that."""
        self.draining = True
        self.cancel_all()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for timer in self._watching.values():
            timer.cancel()
        for pool in (self._checks, self._writes, self._heats):
            await asyncio.to_thread(pool.shutdown)
        await asyncio.to_thread(self._previewer.close)

    async def _draw(self, commission: Commission) -> None:
        outcome = "failed"
        try:
            future = await self._loop.run_in_executor(self._checks, self._hand_over, commission)
            if future is None:
                raise asyncio.CancelledError
            if not commission.accepted.done():
                commission.accepted.set_result(None)
            commission.future = future
            if commission.cancelled:
                future.cancel()
            self._watch(commission)
            self._tell_positions()
            result = await asyncio.wrap_future(future)
            files = await self._loop.run_in_executor(self._writes, _files, result, commission.page)
            commission.result, commission.files = result, files
            outcome = "done"
        except asyncio.CancelledError:
            commission.cancelled, outcome = True, "cancelled"
            commission.problem = Problem(409, "the drawing was cancelled", code="cancelled")
        except Exception as error:
            commission.problem = problem_of(error)
            if commission.problem.status_code >= 500:
                self._loop.call_exception_handler(
                    {"message": "a drawing failed", "exception": error}
                )
        finally:
            self._end(commission, outcome)

    def _end(self, commission: Commission, outcome: str) -> None:
        now = time.perf_counter()
        commission.ended = now
        self._pictures -= commission.pictures
        del self._open[commission.id]
        commission.future = None
        self._previewer.forget(commission.id)
        seconds = now - commission.arrived
        if not commission.accepted.done():
            # It was never accepted: whoever waits is told.
            assert commission.problem is not None
            commission.accepted.set_exception(commission.problem)
            commission.accepted.exception()  # so that nobody else needs to ask
            self.metrics.refused.labels(commission.problem.code or "invalid").inc()
        else:
            self.metrics.ended.labels(outcome).inc()
        if outcome == "done":
            self._finished.append(now)
            self.metrics.images.inc(commission.pictures)
            self.metrics.request_s.observe(seconds)
            if commission.keep:
                self._keep(commission)
            said = {"seconds": round(seconds, 3), "warnings": commission.warnings}
            commission.log.put("done", said)
        elif outcome == "cancelled":
            commission.log.put("cancelled", {})
        else:
            assert commission.problem is not None
            commission.log.put("error", {"message": commission.problem.detail})
            if commission.keep:
                self._keep(commission)
        commission.over.set()
        self._tell_positions()

    def _keep(self, commission: Commission) -> None:
        self._done[commission.id] = commission
        total = sum(each.size for each in self._done.values())
        while len(self._done) > 1 and (
            len(self._done) > self.limits.kept or total > self.limits.kept_bytes
        ):
            _, oldest = self._done.popitem(last=False)
            total -= oldest.size
            self._unwatch(oldest)

    def _hand_over(self, commission: Commission) -> Future[Result] | None:
        """By the thread that checks: the request, to the engine, if it is still wanted."""
        if commission.cancelled:
            return None
        with caught() as found:
            request = commission.make()
            commission.request = request
            settings = request.settings
            steps = settings.steps or self.engine.pipe.defaults.steps
            commission.steps = steps
            future = self.engine.submit(request, self._callback(commission))
        idle = _idle_layout(settings, request)
        commission.warnings = [each for each in dict.fromkeys(found) if each not in idle]
        return future

    def _callback(self, commission: Commission) -> Callable[[int, Tensor, Tensor], None]:
        """What the engine calls after each step, by a thread of its own."""

        def stepped(step: int, x: Tensor, denoised: Tensor) -> None:
            if commission.keep and step + 1 == commission.middle:
                # A copy: a view would keep what else shared the batch.
                commission.latents = x[:1].clone()
            self._soon(self._stepped, commission, step + 1, time.perf_counter())
            wanted = commission.previews
            if step + 1 < commission.steps and (wanted is None or step + 1 in wanted):
                when = time.perf_counter()

                def then(made: bytes) -> None:
                    self._soon(self._previewed, commission, made, when)

                latents = denoised[:1].clone()
                self._previewer.want(commission.id, latents, then, whole=wanted is not None)

        return stepped

    def _soon(self, do: Callable[..., object], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody is there to be told
            self._loop.call_soon_threadsafe(do, *arguments)

    def _stepped(self, commission: Commission, step: int, when: float) -> None:
        if commission.stepped is not None:
            self.metrics.step_s.observe(max(0.0, when - commission.stepped))
        commission.stepped, commission.step = when, step
        if commission.began is None:
            commission.began = when
            self._tell_positions()
        if commission.previews is not None or step == commission.steps:
            self._tell(commission, None)

    def _previewed(self, commission: Commission, made: bytes, when: float) -> None:
        self.metrics.preview_s.observe(time.perf_counter() - when)
        text = b64encode(made).decode("ascii")
        if commission.previews is not None:
            commission.log.put("partial", {"b64_json": text})
        elif commission.step < commission.steps:  # then the picture itself comes
            self._tell(commission, f"data:image/jpeg;base64,{text}")

    def _tell(self, commission: Commission, preview: str | None) -> None:
        data = {"step": commission.step, "steps": commission.steps, "preview": preview}
        commission.log.put("step", data)

    def _tell_positions(self) -> None:
        """An event for each that waits and has moved."""
        before = 0
        for each in self._open.values():
            if each.began is None and each.future is not None:
                newest = each.log.latest("queued")
                if newest is None or newest.data["position"] != before:
                    each.log.put("queued", {"position": before})
            before += each.began is None

    def _watch(self, commission: Commission) -> None:
        """From now on somebody must look at it within a while."""
        self._unwatch(commission)
        if commission.keep and commission.watchers == 0 and not commission.over.is_set():
            self._watching[commission.id] = self._loop.call_later(
                ABANDONED_S, self._abandon, commission
            )

    def _unwatch(self, commission: Commission) -> None:
        timer = self._watching.pop(commission.id, None)
        if timer is not None:
            timer.cancel()

    def _abandon(self, commission: Commission) -> None:
        self._watching.pop(commission.id, None)
        self.cancel(commission)

    def _waiting(self) -> int:
        return sum(each.pictures for each in self._open.values() if each.began is None)

    def _drawing(self) -> int:
        return sum(each.pictures for each in self._open.values() if each.began is not None)

    def _full(self) -> Problem:
        rule = f"the queue must have at most {self.limits.queue} pictures, it is full"
        return Problem(
            429, f"{rule}: try again", code="queue_full", retry_after=self._retry_after()
        )

    def _retry_after(self) -> int:
        """Seconds in which, as lately, a picture is finished."""
        if len(self._finished) < 2:
            return 1
        each = (self._finished[-1] - self._finished[0]) / (len(self._finished) - 1)
        return min(60, max(1, math.ceil(each)))


def problem_of(error: Exception) -> Problem:
    """What to answer where an exception was raised."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, EngineClosed):
        return Problem(503, "the server is shutting down", code="shutting_down", retry_after=1)
    ours = type(error) is ValueError or type(error).__module__.startswith("stal.")
    if ours and isinstance(error, (ValueError, NotImplementedError)):
        return Problem(400, str(error))
    return Problem(500, "the server failed to draw it; its log says why", code="server_error")


def _files(result: Result, page: dict[str, Any] | None) -> list[bytes]:
    """The pictures as `stal generate` writes them, with what the page adds."""
    record = result.settings if page is None else {**result.settings, "page": page}
    return [
        picture.encoded(image, {**record, "num_images": 1, "seeds": [seed]})
        for image, seed in zip(result.images, result.settings["seeds"], strict=True)
    ]


def _idle_layout(settings: Settings, request: Request) -> list[str]:
    """What is not worth saying: the page always gives a layout, to plain drawings too."""
    if settings.attention != "plain" or request.layout is None:
        return []
    given = {"layout": request.layout}
    return without_effect(given, Complete(attention="plain", guidance_scale=2.0))
