"""Counts Ctrl-C presses, because libraries may swallow KeyboardInterrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


class CtrlC:
    """Counts Ctrl-C presses while its block runs. A context manager; `count` is their number.

    Each press raises KeyboardInterrupt as ever. Other code may turn that into an error of its own (pydantic does while
    it builds a model) or catch it; the count tells. Only the main thread is interrupted, and a signal handler that is
    not Python's own is left alone.

    Args:
        stop: called with the reason at each press, so that work in other threads ends as well.
    """

    def __init__(self, stop: Callable[[str], None] = lambda _: None) -> None:
        self.count = 0
        self._stop = stop
        self._installed = False

    def __enter__(self) -> CtrlC:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._pressed)
            self._installed = True
        return self

    def __exit__(self, *error: object) -> None:
        if self._installed and signal.getsignal(signal.SIGINT) == self._pressed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _pressed(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal module's
        self.count += 1
        self._stop("interrupted by the user")
        raise KeyboardInterrupt
