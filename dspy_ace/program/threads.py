"""Worker threads that keep DSPy's context and the order of results, and calls with a time limit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from concurrent.futures import TimeoutError as NotYetError
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class ThreadPool:
    """Calls a function on many items in threads.

    Each call runs in a copy of its caller's context, so that `dspy.context(...)` holds in it: a plain pool loses it.
    Each item is handed out once, however slow it is. A pool of one works in the caller's thread. The threads are
    daemons: one that hangs does not keep the process from ending.

    Args:
        num_threads: calls at the same time, 1 or more.

    Example:
        >>> ThreadPool(4).map(str, [1, 2, 3])
        ['1', '2', '3']
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return `[function(item) for item in items]`.

        Raises:
            BaseException: the first one, in the order of the items, that a call raised. Calls that have not begun are
                dropped then, and after Ctrl-C, and those under way are waited for; a second Ctrl-C ends that wait.
        """
        if self.num_threads <= 1:
            return list(map(function, items))
        results: list[Future[Result]] = [Future() for _ in items]
        waiting, context = deque(zip(results, items, strict=True)), copy_context()

        def work() -> None:
            while waiting:
                with suppress(IndexError):  # another thread took the last one
                    result, item = waiting.popleft()
                    _put(result, partial(context.copy().run, function, item))

        threads = [_daemon(work) for _ in results[: self.num_threads]]
        try:
            wait(results, return_when=FIRST_EXCEPTION)
        finally:
            waiting.clear()
            for thread in threads:
                thread.join()
        for result in results:
            if result.done() and (error := result.exception()) is not None:
                raise error
        return [result.result() for result in results]


def _daemon(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True, name="dspy_ace")
    thread.start()
    return thread


def _put(result: Future[Result], function: Callable[[], Result]) -> None:
    """Put what `function` returns or raises into `result`."""
    try:
        result.set_result(function())
    except BaseException as error:  # noqa: BLE001 - it is raised again where the result is waited for
        result.set_exception(error)


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

    context = copy_context()
    _daemon(lambda: _put(result, partial(context.run, function)))
    try:
        return result.result(seconds)
    except NotYetError:
        if result.done():  # the function's own
            raise
        raise OutOfTimeError(f"no result after {seconds:g} s") from None
