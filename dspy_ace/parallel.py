"""Threads that keep the DSPy context, the order of results, and a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Sequence[Item], num_threads: int) -> list[Result]:
    """`[function(item) for item in items]`, up to `num_threads` at once; results in the order of the items.

    Each call runs in a copy of the caller's context, so that `dspy.context(...)` holds in the workers
    (a plain pool loses it). An item runs once: nothing is handed out again because it is slow. The
    first exception, in the order of the items, is raised after those under way have ended.
    """
    if num_threads <= 1 or len(items) <= 1:
        return [function(item) for item in items]
    pool = ThreadPoolExecutor(min(num_threads, len(items)), thread_name_prefix="dspy_ace")
    try:
        futures = [pool.submit(copy_context().run, function, item) for item in items]
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
