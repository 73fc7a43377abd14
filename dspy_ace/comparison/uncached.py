"""DSPy's response cache off for a while, so that no method of a comparison lives on the calls of another."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dspy


class _Uncached:
    """DSPy's response cache, off while at least one holds it off; afterwards it is what it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._before: Mapping[str, Any] = {}

    def take(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._before = {name: vars(dspy)[name] for name in ("cache",) if name in vars(dspy)}
                dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                if "cache" in self._before:
                    dspy.cache = self._before["cache"]
                else:  # it had not been read yet: DSPy makes it when it is
                    vars(dspy).pop("cache", None)


_UNCACHED = _Uncached()


@contextmanager
def uncached() -> Iterator[None]:
    """DSPy's response cache is off in this block, for every LM and embedder of the process, whatever `cache` they
    were made with: it is one object that all of them ask. It is what it was afterwards, also after an error.
    """
    _UNCACHED.take()
    try:
        yield
    finally:
        _UNCACHED.release()
