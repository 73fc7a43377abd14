"""The thread that learns beside a program that is in use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextvars import copy_context

from ..errors import RunError, StoreError
from .learner import Learner

logger = logging.getLogger("dspy.ace")

LONGEST_WAIT = 600.0  # seconds between two attempts while a provider is out


class Background:
    """A daemon thread that learns when a batch is full, and looks for what others have learned.

    Started when it is first needed, and anew in a forked child. It works under the DSPy settings that were in force
    where it was made.

    Args:
        learner: what it drives.
        refresh: takes up what others have learned.
        poll: seconds between two looks; None: there are no others.
        learns: whether it learns itself.
    """

    def __init__(
        self, learner: Learner, refresh: Callable[[], None], poll: float | None, *, learns: bool = True
    ) -> None:
        self._learner, self._refresh, self._poll, self._learns = learner, refresh, poll, learns
        self._context = copy_context()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is something new."""
        self._wake.set()
        self.ensure()

    def ensure(self) -> None:
        """Start the thread if it does not run."""
        if (self._thread is None or not self._thread.is_alive()) and not self._ending.is_set():
            with self._starting:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(
                        target=self._context.copy().run, args=(self._work,), name="dspy_ace_online", daemon=True
                    )
                    self._thread.start()

    def keep_on(self) -> None:
        """Start the thread again if it ran and does not: a fork leaves threads behind."""
        if self._thread is not None and not self._thread.is_alive():
            self.ensure()

    def end(self) -> None:
        """Let the step under way end, and stop."""
        self._ending.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        failures = 0
        while not self._ending.is_set():
            self._wake.wait(self._poll)
            self._wake.clear()
            try:
                self._refresh()
                while self._learns and not self._ending.is_set():
                    if self._learner.from_inbox(self._learner.batch_size) is None:
                        break
                    failures = 0
            except (RunError, StoreError) as error:
                pause = min(LONGEST_WAIT, 2.0**failures)
                failures += 1
                logger.warning("ACE: no step could be made; the next attempt comes in %g s. %s", pause, error)
                self._ending.wait(pause)
                self._wake.set()
            except Exception as error:
                self._learner.stopped = f"a step failed: {type(error).__name__}: {error}"
                logger.exception("ACE: a step failed: nothing more is learned; what was told waits for learn().")
