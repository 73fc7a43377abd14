"""A progress bar for people: one line on a terminal or in a notebook while ACE compiles, and none in a log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from dspy.utils.logging_utils import DSPY_LOGGING_STREAM
from tqdm.asyncio import tqdm_asyncio
from tqdm.auto import tqdm

from ..lm import Usage
from .state import Record

IN_NOTEBOOK = tqdm is not tqdm_asyncio  # what tqdm.auto gives where there are no widgets
FORMAT = "{desc} {n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"


class Progress:
    """One bar over the steps of a run. A context manager; outside of it, `step` does nothing.

    While it is open, lines of the `dspy` and root loggers stand above the bar. `dspy.disable_logging()` silences it.

    Args:
        total_steps: the steps of the whole run.
        done_steps: how many were done before: a continued run starts there.
        show: None: in a notebook, or if stderr is a terminal and this is no CI job; True: wherever stderr goes;
            False: never.
    """

    def __init__(self, total_steps: int, done_steps: int = 0, show: bool | None = None) -> None:
        self.total_steps, self.done_steps, self.show = total_steps, done_steps, show
        self._bar: Any = None
        self._open = contextlib.ExitStack()
        self._facts: dict[str, str] = {}

    def __enter__(self) -> Progress:
        if DSPY_LOGGING_STREAM.enabled and _wanted(self.show):
            bar = _Bar(
                desc="ACE",
                total=self.total_steps,
                initial=self.done_steps,
                bar_format=FORMAT,
                file=_Screen(),
                dynamic_ncols=True,
            )
            self._open.callback(bar.close)
            if not (bar.disable or IN_NOTEBOOK):
                self._open.enter_context(_log_lines_above(bar))
            self._bar = None if bar.disable else bar  # TQDM_DISABLE is the user's word as well
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if IN_NOTEBOOK and self._bar is not None and kind is None:
            self._bar.total = self._bar.n  # a run that ends early has not failed: without this its bar turns red
        self._bar = None
        self._open.close()

    def step(self, record: Record, best_score: float | None, bullets: int, usage: Mapping[str, Usage]) -> None:
        """Show where the run stands.

        Args:
            record: of the last step or validation.
            best_score: the best mean validation score so far; None without one.
            bullets: in the latest playbook.
            usage: by role; dollars are shown when there are any and all are known.
        """
        if self._bar is None or not DSPY_LOGGING_STREAM.enabled:  # a widget knows nothing of the switch
            return
        used = sum(usage.values(), Usage())
        tokens, dollars = used.prompt_tokens + used.completion_tokens, used.dollars
        facts = {
            "epoch": f"epoch {record.epoch}" if record.epoch else "",
            "batch": f"batch {sum(record.scores) / len(record.scores):.2f}" if record.scores else "",
            "best": "" if best_score is None else f"best {best_score:.3f}",
            "bullets": f"{bullets} bullets",
            "dollars": f"${dollars:.{2 if dollars >= 1 else 3}f}" if dollars else "",
            "tokens": f"{tokens / 1e6:.1f}M tokens" if tokens >= 1e6 else f"{tokens / 1e3:.0f}k tokens",
        }
        self._facts.update({name: fact for name, fact in facts.items() if fact or name not in self._facts})
        if time.time() < self._bar.last_print_t:  # the clock was set back: go on from here
            self._bar.unpause()
        self._bar.set_postfix_str(", ".join(filter(None, self._facts.values())), refresh=False)
        self._bar.update(max(0, record.step - self._bar.n))
        self._bar.refresh()


class _Bar(tqdm):  # type: ignore[misc]  # tqdm is untyped
    """A bar without tqdm's monitoring thread: each step is drawn as it comes."""

    monitor_interval = 0


class _Screen:
    """A file that writes to stderr, whatever that is at the time, through DSPy's switch."""

    @property
    def encoding(self) -> str | None:
        return getattr(sys.stderr, "encoding", None)

    def fileno(self) -> int:
        return sys.stderr.fileno()

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a bar that nobody can see must not end a run
            DSPY_LOGGING_STREAM.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            DSPY_LOGGING_STREAM.flush()


def _wanted(show: bool | None) -> bool:
    """Return True if somebody is there to see a bar."""
    if show is not None or sys.stderr is None:
        return bool(show) and sys.stderr is not None
    if IN_NOTEBOOK:
        return True
    try:
        terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # something else in its place, or closed
        return False
    return terminal and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


_open_bars: dict[int, Any] = {}
_redirected: list[tuple[Any, _Above]] = []
_redirecting = threading.Lock()


class _Above:
    """A log handler's stream while bars are open: lines stand above the bars, which are drawn again.

    tqdm's own helper knows handlers on stdout and stderr only; DSPy logs to a stream of its own.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        with _Bar.get_lock():
            bars = list(_open_bars.values())
            for bar in bars:
                bar.clear(nolock=True)
            self.stream.write(text)
            self.stream.flush()
            for bar in bars:
                bar.refresh(nolock=True)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()


@contextlib.contextmanager
def _log_lines_above(bar: Any) -> Iterator[None]:
    """Keep log lines and `bar` apart. Bars may be open at the same time, and close in any order."""
    consoles = (DSPY_LOGGING_STREAM, sys.stderr, sys.stdout)
    with _redirecting:
        _open_bars[id(bar)] = bar
        for logger in (logging.getLogger("dspy"), logging.getLogger()) if not _redirected else ():
            for handler in logger.handlers:
                if isinstance(handler, logging.StreamHandler) and any(handler.stream is each for each in consoles):
                    above = _Above(handler.stream)
                    _redirected.append((handler, above))
                    handler.setStream(above)
    try:
        yield
    finally:
        with _redirecting:
            del _open_bars[id(bar)]
            for handler, above in () if _open_bars else list(_redirected):
                if handler.stream is above:  # else someone has set another meanwhile
                    handler.setStream(above.stream)
                _redirected.remove((handler, above))
