"""Threads that keep the DSPy context and the order of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
