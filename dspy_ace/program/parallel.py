"""Threads that keep the DSPy context, the order of results, and a time limit."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from contextlib import suppress
from contextvars import copy_context
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


WHENEVER = math.inf  # the rank of work that lets all other work go before


class _Work(NamedTuple):
    rank: float
    number: int
    do: Callable[[], None]
    future: Future[Any]


class _Desk:
    """Hands work to threads, the lowest rank first, and within a rank in the order it came."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads, self.at_once = num_threads, num_threads  # `at_once`: of work of rank WHENEVER
        self.error: BaseException | None = None
        self.jobs: list[threading.Thread] = []
        self.pool: ThreadPoolExecutor | None = None
        self._waiting: list[_Work] = []
        self._numbers = itertools.count()
        self._running = self._whenever = 0
        self._lock = threading.Lock()

    def take(self, rank: float, several: Sequence[tuple[Callable[[], None], Future[Any]]]) -> None:
        """Take work; the first that is not of rank WHENEVER ends a restraint on that."""
        with self._lock:
            if self.error is None:
                for do, future in several:
                    heapq.heappush(self._waiting, _Work(rank, next(self._numbers), do, future))
                if rank < WHENEVER:
                    self.at_once = self.num_threads
                self._hand_out()
                return
        for _, future in several:
            future.set_exception(self.error)

    def let(self, at_once: int) -> None:
        """Have so much work of rank WHENEVER under way at once."""
        with self._lock:
            self.at_once = at_once
            self._hand_out()

    def stop(self, error: BaseException) -> None:
        """Drop what has not begun."""
        with self._lock:
            self.error = self.error or error
            waiting, self._waiting = self._waiting, []
        for work in waiting:
            if work.future.set_running_or_notify_cancel():
                work.future.set_exception(error)

    def _hand_out(self) -> None:
        if self.pool is None:
            self.pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="dspy_ace")
        while self._waiting and self._running < self.num_threads:
            if self._waiting[0].rank == WHENEVER and self._whenever >= self.at_once:
                return
            work = heapq.heappop(self._waiting)
            self._running += 1
            self._whenever += work.rank == WHENEVER
            self.pool.submit(self._do, work)

    def _do(self, work: _Work) -> None:
        try:
            if work.future.set_running_or_notify_cancel():
                work.do()
        finally:
            with self._lock:
                self._running -= 1
                self._whenever -= work.rank == WHENEVER
                self._hand_out()


class Crew:
    """Threads for calls of several kinds, `num_threads` at once for all of them together; a context manager.

    Each call runs in a copy of its caller's context, so that `dspy.context(...)` holds in the workers (a plain pool
    loses it). A call runs once: nothing is handed out again because it is slow. A crew of one works in the caller's
    thread. At its end it waits for the calls under way, and drops those that have not begun.
    """

    def __init__(self, num_threads: int, *, rank: float = 0, desk: _Desk | None = None) -> None:
        self.num_threads, self._rank, self._desk = num_threads, rank, desk or _Desk(num_threads)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.stop(error or RuntimeError("the crew has gone home"))
        for job in self._desk.jobs:
            job.join()
        if self._desk.pool is not None:
            self._desk.pool.shutdown(wait=True)

    def of_rank(self, rank: float) -> Crew:
        """The same threads, for work that goes before that of a higher rank."""
        return Crew(self.num_threads, rank=rank, desk=self._desk)

    def restrain(self, at_once: int) -> None:
        """Have so much work of rank WHENEVER under way at once, until other work comes."""
        self._desk.let(at_once)

    def submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Call `function(item)` as soon as a thread is free.

        What it raises stops the crew, and is raised where the result is waited for; in a crew of one, here.
        """
        return self.submit_all(function, [item])[0]

    def submit_all(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Future[Result]]:
        """Submit each item; none is begun before all are there."""
        if self.num_threads <= 1:
            return [there(function(item)) for item in items]

        def work(item: Item, future: Future[Result]) -> Callable[[], None]:
            context = copy_context()
            return lambda: self._settle(future, lambda: context.run(function, item))

        futures: list[Future[Result]] = [Future() for _ in items]
        self._desk.take(self._rank, [(work(*pair), pair[1]) for pair in zip(items, futures, strict=True)])
        return futures

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`[function(item) for item in items]`; the first exception, in the order of the items, is raised.

        Those that have not begun when one is raised are dropped; those under way are waited for at the end of the crew.
        """
        return self.results(self.submit_all(function, items))

    @staticmethod
    def results(futures: Sequence[Future[Result]]) -> list[Result]:
        """What was handed in, in order; the first exception is raised, as by `map`."""
        try:
            return [future.result() for future in futures]
        except BaseException:  # also Ctrl-C: what has not begun is dropped, and it passes on
            for future in futures:
                future.cancel()
            raise

    def begin(self, function: Callable[[], Result]) -> Future[Result]:
        """Run `function`, which hands work to this crew and waits for it, in a thread of its own.

        What it raises stops the crew. In a crew of one it has ended when this returns, and what it raises is raised.
        """
        if self.num_threads <= 1:
            return there(function())
        future: Future[Result] = Future()
        context = copy_context()
        job = threading.Thread(target=lambda: self._settle(future, lambda: context.run(function)), name="dspy_ace_job")
        self._desk.jobs.append(job)
        job.start()
        return future

    def stop(self, error: BaseException) -> None:
        """Drop what has not begun: who waits for it gets `error`, and so does who comes later."""
        self._desk.stop(error)

    def _settle(self, future: Future[Result], function: Callable[[], Result]) -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - it is raised again where the result is waited for
            self.stop(error)
            future.set_exception(error)
        else:
            future.set_result(result)


def there(value: Result) -> Future[Result]:
    """A future that has its result."""
    future: Future[Result] = Future()
    future.set_result(value)
    return future


def resolve(future: Future[Result], value: Result) -> None:
    """Give a future its result, unless another was first."""
    with suppress(InvalidStateError):
        future.set_result(value)


def ordered_map(function: Callable[[Item], Result], items: Sequence[Item], num_threads: int) -> list[Result]:
    """`[function(item) for item in items]` by a crew of its own."""
    with Crew(min(num_threads, len(items))) as crew:
        return crew.map(function, items)


class OutOfTimeError(TimeoutError):
    """A call had no result within its time."""


def in_time(function: Callable[[], Result], seconds: float | None) -> Result:
    """`function()`, in the caller's context; with a limit in a thread of its own that is left alone when time is up.

    Raises:
        OutOfTimeError: there was no result after so many seconds. What `function` raises passes through.
    """
    if seconds is None:
        return function()
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is raised again where the result is waited for
            result.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), daemon=True, name="dspy_ace_limited").start()
    try:
        return result.result(seconds)
    except NotYetError:
        if result.done():  # the function's own
            raise
        raise OutOfTimeError(f"no result after {seconds:g} s") from None
