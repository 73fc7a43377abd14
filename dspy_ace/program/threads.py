"""Worker threads that keep DSPy's context and the order of results, and calls with a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as NotYetError
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class ThreadPool:
    """A pool of worker threads; a context manager.

    Each call runs in a copy of its caller's context, so that `dspy.context(...)` holds in the workers: a plain pool
    loses it. Each item is handed out once, however slow it is. A pool of one works in the caller's thread.

    Args:
        num_threads: calls at the same time, 1 or more.

    Example:
        >>> with ThreadPool(4) as pool:
        ...     pool.map(str, [1, 2, 3])
        ['1', '2', '3']
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> ThreadPool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return `[function(item) for item in items]`.

        Raises:
            BaseException: the first one, in the order of the items, that a call raised. Leave the pool then: this
                drops the calls that have not begun, and waits for those under way.
        """
        if self.num_threads <= 1:
            return list(map(function, items))
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.num_threads, thread_name_prefix="dspy_ace")
        futures = [self._executor.submit(copy_context().run, function, item) for item in items]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done() and (error := future.exception()) is not None:
                raise error
        return [future.result() for future in futures]


class OutOfTimeError(TimeoutError):
    """A call had no result within its time."""


def in_time(function: Callable[[], Result], seconds: float | None) -> Result:
    """Return `function()`; with a limit it runs in a thread of its own, which is left alone when time is up.

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
