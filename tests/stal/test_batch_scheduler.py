"""Queues, turns, rows and bytes of the engine, with stages that compute nothing."""

import random
import threading
import time
from concurrent.futures import wait

import pytest

from stal.batch.loop import DeadlineExceeded, EngineClosed, Loop
from stal.batch.scheduler import Scheduler, Stage, Ticket


def scheduler(**options) -> Scheduler:
    return Scheduler(**{"max_rows": 4, "memory": 1000, "age_limit_s": 10.0} | options)


def enter(s: Scheduler, *tickets: Ticket, now: float = 0.0) -> list[Ticket]:
    """Adds tickets, encodes what is let in and lets join what may."""
    for ticket in tickets:
        s.add(ticket, now)
    for ticket in s.to_encode(now, 99):
        s.encoded(ticket)
    return s.join(now)


class Counting:
    """Stages whose tickets take `work` steps; they count, and a step can be made to wait."""

    def __init__(self) -> None:
        self.running: dict = {}
        self.steps = 0
        self.entered = self.most_encoded = 0
        self.left: list[Ticket] = []
        self.go = threading.Event()
        self.go.set()

    def encode(self, tickets):
        self.entered += len(tickets)  # by the encoder alone; `left` by the denoiser alone
        self.most_encoded = max(self.most_encoded, self.entered - len(self.left))

    def join(self, ticket):
        self.running.setdefault(ticket.size, []).append(ticket)

    def step(self, size):
        assert self.go.wait(60)
        self.steps += 1
        ended = []
        for ticket in self.running[size]:
            ticket.work -= 1
            if ticket.work == 0:
                ended.append(ticket)
        for ticket in ended:
            self.running[size].remove(ticket)
        return [(ticket, None) for ticket in ended]

    def leave(self, ticket):
        self.left.append(ticket)
        running = self.running.get(ticket.size, [])
        if ticket in running:
            running.remove(ticket)

    def decode(self, tickets):
        return [ticket.number for ticket in tickets]


def test_tickets_join_in_the_order_of_arrival_while_there_are_rows():
    s = scheduler(max_rows=4)
    tickets = [Ticket("a", rows) for rows in (2, 1, 2, 2)]
    assert enter(s, *tickets) == tickets[:2]  # 2 + 1 + 2 are too many.
    s.drawn(tickets[0])
    assert enter(s) == tickets[2:3]
    s.drawn(tickets[1])
    assert enter(s) == tickets[3:]


def test_sizes_take_turns():
    s = scheduler()
    enter(s, Ticket("a"), Ticket("b"), Ticket("a"), b := Ticket("c"))
    assert [s.turn() for _ in range(6)] == ["a", "b", "c"] * 2
    s.done(b)
    assert [s.turn() for _ in range(4)] == ["a", "b"] * 2
    assert scheduler().turn() is None


def test_no_more_is_encoded_ahead_than_a_batch():
    s = scheduler(max_rows=3)
    for size in ("a", "b"):
        for _ in range(10):
            s.add(Ticket(size), 0)
    assert [ticket.size for ticket in s.to_encode(0, 99)] == ["a"] * 3 + ["b"] * 3
    assert s.to_encode(0, 99) == []


def test_memory_is_never_exceeded_and_everyone_is_let_in_at_last():
    draw, s, now = random.Random(0), scheduler(max_rows=8, memory=1000, age_limit_s=5.0), 0.0
    # Of each size a picture takes other bytes; b's fill the memory alone.
    sizes = {"a": (20, 30, 10), "b": (100, 166, 150), "c": (1, 2, 3)}
    pending = [Ticket(draw.choice("aaaabccc"), draw.randint(1, 3)) for _ in range(300)]
    for ticket in pending:
        kept, passing, decoding = sizes[ticket.size]
        ticket.kept, ticket.passing = kept * ticket.rows, passing * ticket.rows
        ticket.decoding = decoding
        assert s.fits_alone(ticket)
    running: list[Ticket] = []
    largest = 0.0
    for ticket in pending:
        s.add(ticket, now)
    while running or not s.idle:
        for ticket in s.to_encode(now, 3):
            s.encoded(ticket)
        running += s.join(now)
        step = max((sum(t.passing for t in running if t.size == size) for size in sizes), default=0)
        decoding = max([100, *(t.decoding for t in running)])
        held = sum(t.kept for t in s.open() if t.stage is not Stage.WAITING)
        assert s.kept == held
        assert held + step + decoding <= 1000
        largest = max(largest, held + step + decoding)
        assert running, "nothing runs, and nothing is let in"
        ended = running.pop(draw.randrange(len(running)))
        s.drawn(ended)
        s.done(ended)
        now += 1.0
    assert largest > 900
    assert s.kept == 0


def test_who_waits_for_memory_is_overtaken_until_the_age_limit():
    s = scheduler(max_rows=9, memory=1000, age_limit_s=10.0)
    small = [Ticket("small", 1, kept=200) for _ in range(6)]
    large = Ticket("large", 1, kept=800)
    assert enter(s, small[0], large, *small[1:3], now=0.0) == [small[0], *small[1:3]]
    s.done(small[0])
    assert enter(s, small[3], now=10.0) == [small[3]]
    s.done(small[1])
    assert enter(s, small[4], now=10.1) == []  # The large one is too old to be overtaken.
    s.done(small[2])
    s.done(small[3])
    assert enter(s, now=10.2) == [large]


def test_what_is_done_while_it_waits_is_passed_by_and_sizes_are_forgotten():
    s = scheduler(max_rows=1)
    tickets = [Ticket(("size", i), 1, kept=1) for i in range(5)] + [Ticket("last")]
    enter(s, *tickets[:2])
    for ticket in tickets[2:]:
        s.add(ticket, 0)
    assert s.kept == 2
    for ticket in tickets[:5]:
        s.done(ticket)
    assert enter(s) == tickets[5:]
    assert s.kept == 0
    assert list(s._buckets) == ["last"]


def test_ten_thousand_requests_at_once_are_all_served_and_only_a_few_are_encoded_ahead():
    stages, draw = Counting(), random.Random(0)
    loop = Loop(stages, scheduler(max_rows=16, memory=10**9))
    tickets = [Ticket(draw.choice("ab"), work=draw.randint(1, 4)) for _ in range(10_000)]
    futures = [loop.submit(ticket) for ticket in tickets]
    loop.close(drain=True)
    assert [future.result() for future in futures] == list(range(10_000))
    # Ahead and running, drawn, and in the decoder's hands or about to leave, of two sizes.
    assert stages.most_encoded <= 2 * 2 * 16 + 2 * (4 * 16 + 2 * 16)
    assert len(stages.left) == 10_000
    assert not any(stages.running.values())


@pytest.mark.parametrize("seed", range(3))
def test_cancelled_requests_leave_wherever_they_are_and_no_other_is_lost(seed):
    stages, draw = Counting(), random.Random(seed)
    loop = Loop(stages, scheduler(max_rows=4, memory=10**9))
    futures = []
    for _ in range(400):
        deadline = None if draw.random() < 0.9 else time.monotonic() - 1
        futures.append(loop.submit(Ticket("a", work=draw.randint(1, 3), deadline=deadline)))
        if draw.random() < 0.3:
            draw.choice(futures).cancel()
    loop.close(drain=True)
    done, pending = wait(futures, timeout=0)
    assert not pending
    good = [i for i, f in enumerate(futures) if not f.cancelled() and f.exception() is None]
    assert all(futures[i].result() == i for i in good)
    late = [f for f in futures if not f.cancelled() and f.exception() is not None]
    assert all(isinstance(f.exception(), DeadlineExceeded) for f in late)
    assert len(good) > 200
    assert any(f.cancelled() for f in futures)
    assert late
    assert len(done) == 400
    assert stages.entered == len(stages.left)
    assert not any(stages.running.values())


def test_who_waits_behind_reports_joins_when_their_request_was_cancelled():
    class Reporting(Counting):
        def step(self, size):
            for ticket in self.running.get(size, []):
                if ticket.callback is not None:
                    loop.report(ticket)
            time.sleep(0.001)
            return super().step(size)

    called, go = threading.Event(), threading.Event()
    loop = Loop(Reporting(), scheduler(max_rows=1))
    slow = loop.submit(Ticket("a", work=10**6, callback=lambda: (called.set(), go.wait(60))))
    other = loop.submit(Ticket("a", work=1))
    assert called.wait(60)
    while len(loop._reports) <= 4:  # so many pile up before nothing moves
        time.sleep(0.001)
    slow.cancel()
    time.sleep(0.2)  # the denoiser waits
    go.set()
    assert other.result(timeout=60) == 1
    loop.close(drain=True)


def test_a_step_that_fails_fails_those_who_share_it_and_the_loop_goes_on():
    class Failing(Counting):
        def step(self, size):
            if size == "bad":
                raise MemoryError("no room")
            return super().step(size)

    loop = Loop(Failing(), scheduler())
    futures = {size: loop.submit(Ticket(size, work=2)) for size in ("bad", "good")}
    with pytest.raises(MemoryError, match="no room"):
        futures["bad"].result(timeout=60)
    futures["good"].result(timeout=60)
    loop.close(drain=True)


def test_a_request_that_cannot_join_fails_alone():
    class Failing(Counting):
        def join(self, ticket):
            if ticket.work == 5:
                raise ValueError("not this one")
            super().join(ticket)

    stages = Failing()
    loop = Loop(stages, scheduler())
    futures = [loop.submit(Ticket("a", work=work)) for work in (2, 5, 3)]
    loop.close(drain=True)
    assert isinstance(futures[1].exception(), ValueError)
    assert [futures[i].result() for i in (0, 2)] == [0, 2]
    assert len(stages.left) == 3


class Bug(BaseException):
    """Not what stages may raise of a ticket."""


@pytest.mark.parametrize("place", ["encode", "leave", "step", "decode", "expired"])
def test_a_thread_that_dies_fails_every_future_and_closes_the_loop(place):
    class Broken(Counting):
        def __getattribute__(self, name):
            return die if name == place and armed.is_set() else super().__getattribute__(name)

    def die(*arguments):
        raise Bug(place)

    armed, stages, s = threading.Event(), Broken(), scheduler()
    stages.go.clear()
    loop = Loop(stages, s)
    # One ends, the others would go on for hours.
    futures = [loop.submit(Ticket("a", rows=2, work=work)) for work in (1, *[10**9] * 3)]
    cancelled = loop.submit(Ticket("a", work=1))
    assert cancelled.cancel()
    armed.set()
    if place == "expired":
        s.expired = die
    if place == "encode":
        futures.append(loop.submit(Ticket("b", work=1)))
    stages.go.set()
    assert not wait(futures, timeout=60).not_done
    failed = [future.exception() for future in futures if future.exception() is not None]
    assert {type(error) for error in failed} == {Bug}
    assert len(failed) >= 3  # the first may have got its result
    assert cancelled.cancelled()
    with pytest.raises(EngineClosed, match=f"got one that has failed: Bug: {place}") as caught:
        loop.submit(Ticket("a"))
    assert isinstance(caught.value.__cause__, Bug)
    loop.close(drain=True)
    assert not any(thread.is_alive() for thread in loop._threads)


def test_a_deadline_is_kept_while_nothing_runs():
    class Slow(Counting):
        def encode(self, tickets):
            super().encode(tickets)
            assert self.go.wait(60)

    stages = Slow()
    stages.go.clear()
    loop = Loop(stages, scheduler())
    future = loop.submit(Ticket("a", work=1, deadline=time.monotonic() + 0.2))
    with pytest.raises(DeadlineExceeded):
        future.result(timeout=60)
    stages.go.set()
    loop.close(drain=True)
    assert len(stages.left) == 1
