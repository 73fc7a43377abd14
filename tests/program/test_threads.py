"""The pool of worker threads: after an error no waiting call begins."""

from __future__ import annotations

import threading

import pytest

from dspy_ace.program import ThreadPool


def test_an_error_drops_the_calls_that_have_not_begun() -> None:
    """Two workers, one call fails while the other is under way: the ninety-eight that wait are never made."""
    begun: list[int] = []
    failed = threading.Event()

    def call(item: int) -> int:
        begun.append(item)
        if item == 0:
            failed.set()
            raise ValueError("the first")
        failed.wait()
        threading.Event().wait(0.05)  # the caller notices the error meanwhile
        return item

    with pytest.raises(ValueError, match="the first"):
        ThreadPool(2).map(call, range(100))
    assert len(begun) < 10


def test_one_thread_stops_at_the_error() -> None:
    """A pool of one works in order in the caller's thread."""
    begun: list[int] = []

    def call(item: int) -> int:
        begun.append(item)
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        ThreadPool(1).map(call, [2, 0, 1])
    assert begun == [2, 0]
