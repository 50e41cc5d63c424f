"""The engine: requests in, pictures out, as many at once as share the calls of the networks.

    with stal.batch.Engine(stal.Pipeline.from_pretrained()) as engine:
        for result in engine.map(Request(prompt) for prompt in prompts):
            result.images[0].save(...)

A picture is the one that `stal.Pipeline` draws alone, whoever shares the batch.
"""

from __future__ import annotations

import asyncio
import math
import queue
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any

from stal.batch.loop import EngineClosed, Loop
from stal.batch.memory import available
from stal.batch.request import CheckedRequest, Request
from stal.batch.scheduler import Scheduler, Ticket
from stal.batch.stages import ModelStages, Work
from stal.caller import warn
from stal.checked_json import is_integer, number, scalar, short
from stal.drawing import Result
from stal.fitting import without_effect
from stal.model.model import Model
from stal.noise import ImageNoise
from stal.openmp import release_team
from stal.pipeline import Pipeline
from stal.sampler import Callback
from stal.schedule import Schedule

_Ended = queue.SimpleQueue[tuple[int, "Future[Result]"]]


class Engine:
    """Draws many requests at once.

    Requests of one size and LoRA share the calls of the UNet, whatever their objects, attention,
    rule, guidance, sampler, number of steps and position on their way. They join and leave between
    steps; prompts are encoded and latents decoded beside. Those of another size or LoRA take turns,
    a step each.

    The model must not be moved or changed while the engine is open. An engine that nobody refers to
    any more draws what it was given and closes, as `concurrent.futures` executors do.

    Args:
        pipe: what draws; a `Model` is drawn with its own defaults.
        max_rows: pictures of one size in a call of the UNet, which is of twice as many rows where
            they are guided; and requests of more pictures are refused.
        loras: by the names that requests have for them, the model with each, as
            `Model.with_lora` makes it; all of them share the model's weights.
        memory: bytes that all requests may take together, by an estimate; 80% of what the device
            has free now if None. Others wait; what could never fit is refused.
        age_limit_s: seconds for which a request that waits for memory lets others overtake it.

    Raises:
        ValueError: an argument breaks its rule.
    """

    def __init__(
        self,
        pipe: Pipeline | Model,
        max_rows: int = 16,
        *,
        loras: Mapping[str, Model] | None = None,
        memory: int | None = None,
        age_limit_s: float = 10.0,
    ) -> None:
        for name, value in (("max_rows", max_rows), ("memory", memory)):
            if value is not None and (not is_integer(scalar(value)) or value < 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if number(age_limit_s, "age_limit_s") < 0:
            raise ValueError(f"age_limit_s must be a number >= 0, got {age_limit_s!r}")
        self.pipe = pipe if isinstance(pipe, Pipeline) else Pipeline(pipe)
        self.max_rows = int(max_rows)
        models: dict[str | None, Model] = {None: self.pipe.model}
        for name, model in (loras or {}).items():
            models[name] = _checked_lora(name, model, self.pipe.model)
        self._scheduler = Scheduler(
            max_rows=self.max_rows,
            memory=available(self.pipe.model.device) if memory is None else int(memory),
            age_limit_s=age_limit_s,
        )
        self._stages = ModelStages(models)
        self._loras = frozenset(models)
        self._loop = Loop(self._stages, self._scheduler)
        self._schedules: dict[tuple[str, int], Schedule] = {}
        # The loop's threads know nothing of the engine, which can go before them.
        self._closing = weakref.finalize(self, self._loop.close, drain=True)

    def submit(
        self,
        request: Request,
        callback: Callback | None = None,
        deadline: float | None = None,
    ) -> Future[Result]:
        """Takes a request; returns at once, but for the checks and the layout's prediction.

        Args:
            request: what to draw.
            callback: called as callback(step, x, denoised) after each transition, as in
                `Pipeline.__call__`, in order and before the result is there, but by another thread,
                beside the steps that follow. What it raises is the request's exception.
            deadline: seconds from now after which the request fails with `DeadlineExceeded`.

        Returns:
            The result's future. `Future.cancel` works until the result is there: a request that
            runs leaves before the next step.

        Raises:
            ValueError: a field of the request breaks its rule, as in `Pipeline.__call__`, or it
                could never fit into a batch or into memory.
            NotImplementedError: the request asks for weights that are optimised.
            EngineClosed: after `close`.
        """
        if deadline is not None and not 0 < number(deadline, "deadline") < math.inf:
            raise ValueError(f"deadline must be a positive number of seconds, got {deadline!r}")
        order = self._checked(request)
        settings = order.settings
        kept, passing, decoding = self._stages.bytes_of(order)
        ticket = Ticket(
            (settings.height, settings.width, order.lora),
            settings.num_images,
            kept,
            passing,
            decoding,
            callback=callback,
        )
        loop = self._loop

        def report(*event: Any) -> None:
            loop.report(ticket, *event)

        ticket.work = Work(order, None if callback is None else report)
        if settings.num_images > self.max_rows:
            raise ValueError(
                f"num_images must be at most max_rows = {self.max_rows}, got "
                f"{settings.num_images}: ask for them in several requests"
            )
        if not self._scheduler.fits_alone(ticket):
            needed, limit = self._scheduler.alone(ticket), self._scheduler.memory
            raise ValueError(
                f"height and width must fit into the engine's memory of {limit / 1e6:.4g} MB, got "
                f"{settings.height} and {settings.width}, of which {settings.num_images} pictures "
                f"with {len(order.texts)} prompts take about {needed / 1e6:.4g} MB"
            )
        release_team()  # after the layout's prediction
        return loop.submit(ticket, deadline)

    async def asubmit(
        self,
        request: Request,
        callback: Callback | None = None,
        deadline: float | None = None,
    ) -> Result:
        """The result of `submit`, awaited; to cancel the task is to cancel the request."""
        return await asyncio.wrap_future(self.submit(request, callback, deadline))

    def map(self, requests: Iterable[Request], *, ahead: int | None = None) -> Iterator[Result]:
        """The results in the order of the requests.

        Args:
            requests: read as results are taken, so that it may be endless.
            ahead: requests that are read before the first of them is taken; 4 max_rows if None.

        Raises: at the place of a request what `submit` or its drawing raised, when all before it
            were taken; those after it are cancelled.
        """
        taken: deque[Future[Result]] = deque()
        source = iter(requests)
        try:
            while True:
                while len(taken) < self._ahead(ahead):
                    future = self._next(source)
                    if future is None:
                        break
                    taken.append(future)
                if not taken:
                    return
                yield taken.popleft().result()
        finally:
            for future in taken:
                future.cancel()

    def outcomes(
        self, requests: Iterable[Request], *, ahead: int | None = None
    ) -> Iterator[tuple[int, Result | Exception]]:
        """(index, result or exception) of each request, in the order in which they end.

        requests, ahead: as in `map`, whose other requests go on when one fails.
        """
        ended: _Ended = queue.SimpleQueue()
        open_: dict[int, Future[Result]] = {}
        source, index, more = iter(requests), 0, True
        try:
            while True:
                while more and len(open_) < self._ahead(ahead):
                    future = self._next(source)
                    if future is None:
                        more = False
                        break
                    open_[index] = future
                    future.add_done_callback(partial(_note, ended, index))
                    index += 1
                if not open_:
                    return
                i, done = ended.get()
                del open_[i]
                yield i, _outcome(done)
        finally:
            for future in open_.values():
                future.cancel()

    def close(self, drain: bool = True) -> None:
        """Takes no more requests; returns when all are done.

        drain: they are drawn first; otherwise they are cancelled.
        """
        self._closing.detach()
        self._loop.close(drain=drain)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(drain=error is None)

    def _ahead(self, ahead: int | None) -> int:
        return 4 * self.max_rows if ahead is None else max(1, ahead)

    def _next(self, source: Iterator[Request]) -> Future[Result] | None:
        """The future of the next request, failed if it was refused; None at the end."""
        try:
            request = next(source)
        except StopIteration:
            return None
        try:
            return self.submit(request)
        except EngineClosed:
            raise
        except Exception as error:  # a function of weights may raise anything
            refused: Future[Result] = Future()
            refused.set_exception(error)
            return refused

    def _checked(self, request: Request) -> CheckedRequest:
        """The request with each value checked."""
        if request.optimize is not None:
            raise NotImplementedError(
                f"optimize must be None in an engine, got {short(request.optimize)}: search with"
                " stal.optimize before, and hand over what it finds as weights"
            )
        if request.lora not in self._loras:
            known = ", ".join(sorted(short(name) for name in self._loras if name is not None))
            rule = f"None or one of {known}" if known else "None in an engine without loras"
            raise ValueError(f"lora must be {rule}, got {short(request.lora)}")
        (job,), settings, schedule = self.pipe.jobs(
            [request.prompt],
            request.settings,
            layouts=[request.layout],
            weights=[request.weights],
        )
        noise = ImageNoise(1, settings.num_images, request.seed, None)
        given = {
            "reference": request.settings.reference,
            "background": request.settings.background,
            "layout": request.layout,
            "negative_prompt": request.settings.negative_prompt,
        }
        for sentence in without_effect(given, settings):
            warn(sentence)
        # Noise levels that many requests share are kept once.
        key = schedule.sampler, schedule.steps
        seeds = tuple(seed for seed in noise.seeds if seed is not None)
        schedule = self._schedules.setdefault(key, schedule)
        return CheckedRequest(job, settings, schedule, seeds, request.lora)


def _checked_lora(name: str, model: Model, plain: Model) -> Model:
    """The model with a LoRA. Raises ValueError unless it is the plain one with it."""
    if not isinstance(name, str) or not isinstance(model, Model) or not model.loras:
        got = f"{short(name)}: {short(model)}"
        raise ValueError(f"loras must map names to what Model.with_lora returns, got {got}")
    if next(model.unet.parameters()) is not next(plain.unet.parameters()):
        raise ValueError(
            f"loras must be on the engine's own model, got {short(name)} on another one: call"
            " with_lora of the model that the engine has"
        )
    return model


def _note(ended: _Ended, index: int, future: Future[Result]) -> None:
    ended.put((index, future))


def _outcome(future: Future[Result]) -> Result | Exception:
    try:
        return future.result()
    except Exception as error:
        return error
