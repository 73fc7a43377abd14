"""Limits of a run: rollouts, LM calls, dollars and seconds. They are never exceeded, calls under way included.

The check is a DSPy callback, as every LM call passes it, whoever makes the call. A call that does not fit is not made.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from ..errors import SettingsError
from ..playbook import count_tokens
from .prices import Price, price_of

_SAFETY = 1.5  # our estimate of prompt tokens may be a quarter off
POLL = 0.05  # seconds between two tries of a call that waits for others
_PATIENCE = 600.0  # seconds that a call waits for others before it is refused
_UNKNOWN_LONGEST = 4096  # completion tokens, where neither the LM nor the price list says more
AWAITED_SINCE: ContextVar[float | None] = ContextVar("dspy_ace_awaited_since", default=None)
"""When a caller began to await a call that it makes again as long as it gets a BusyError; None: calls wait here."""
_outer_calls: ContextVar[frozenset[str]] = ContextVar("dspy_ace_outer_calls", default=frozenset())


class LimitReachedError(BaseException):
    """The next LM call or rollout would exceed a limit. No Exception: a program that catches those does not stop it."""


class BusyError(BaseException):
    """A call does not fit now, but may when calls under way have ended."""


@dataclass(frozen=True)
class Spent:
    """The part of its limits that a run has used; `seconds` since its first LM call, of all its processes together."""

    rollouts: int = 0
    calls: int = 0
    dollars: float = 0.0
    seconds: float = 0.0


@dataclass
class _Open:
    """A call under way: the most it can cost, and if its cost was or will be reported."""

    bound: float
    reports: bool


class Limits(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """Refuses the rollout or LM call that would exceed a limit. Thread-safe.

    Args:
        max_rollouts: runs of the program with its metric.
        max_lm_calls: calls of all roles together, retries and answers from DSPy's cache included. An LM that retries
            out of sight (see `one_by_one`) counts with all attempts that it may make.
        max_cost: dollars. Before a call the most that it can cost is reserved: its prompt as estimated, and
            `max_tokens` of its LM as the answer. A reply without usage costs what was reserved for it.
        max_seconds: no call starts later than so many seconds after the first; a call under way is not cut.

    Attributes:
        rollouts, calls, dollars: spent so far.
        reached: the reason why a call or rollout was refused first; None: none was.

    Example:
        >>> limits = Limits(max_rollouts=2)
        >>> limits.count_rollouts(2)
        >>> limits.rollouts_left()
        0
    """

    def __init__(
        self,
        max_rollouts: int | None = None,
        max_lm_calls: int | None = None,
        max_cost: float | None = None,
        max_seconds: float | None = None,
    ) -> None:
        self.max_rollouts, self.max_lm_calls = max_rollouts, max_lm_calls
        self.max_cost, self.max_seconds = max_cost, max_seconds
        self.rollouts, self.calls, self.dollars = 0, 0, 0.0
        self.reached: str | None = None
        self._seconds_before, self._started = 0.0, math.inf
        self._open: dict[str, _Open] = {}
        self._stopped = False
        self._kept_calls, self._kept_dollars = 0, 0.0
        self._lock = threading.RLock()

    @property
    def seconds(self) -> float:
        """Seconds since the first LM call, those of earlier processes included."""
        return self._seconds_before + max(0.0, time.monotonic() - self._started)

    @property
    def spent(self) -> Spent:
        """The use of the limits so far, for `resume` in the process that continues the run."""
        with self._lock:
            return Spent(self.rollouts, self.calls, self.dollars, self.seconds)

    def resume(self, spent: Spent) -> None:
        """Count what earlier processes of the same run have spent: a continued run does not start anew."""
        with self._lock:
            self.rollouts, self.calls, self.dollars = spent.rollouts, spent.calls, spent.dollars
            self._seconds_before = spent.seconds

    @contextmanager
    def keeping_back(self) -> Iterator[None]:
        """Open a scope that leaves one call, and a tenth of the dollars, for what comes after it.

        A limit that is reached while a batch is rolled out and reflected on still pays for its curation: reflections
        that nobody curates are money lost. Limits of less than four calls keep nothing back.
        """
        with self._lock:
            self._kept_calls = 1 if self.max_lm_calls is not None and self.max_lm_calls >= 4 else 0
            self._kept_dollars = 0.1 * (self.max_cost or 0.0)
        try:
            yield
        finally:
            with self._lock:
                self._kept_calls, self._kept_dollars = 0, 0.0

    def count_rollouts(self, count: int) -> None:
        """Count rollouts that are about to be made. Raises LimitReachedError if there are not so many left."""
        with self._lock:
            if self.max_rollouts is not None and self.rollouts + count > self.max_rollouts:
                raise self._refused(f"max_rollouts={self.max_rollouts} is reached")
            self.rollouts += count

    def rollouts_left(self) -> int | None:
        """Return how many rollouts may still be made; None: any number."""
        with self._lock:
            return None if self.max_rollouts is None else max(0, self.max_rollouts - self.rollouts)

    def calls_left(self) -> int | None:
        """Return how many LM calls may still be made; None: any number."""
        with self._lock:
            return None if self.max_lm_calls is None else max(0, self.max_lm_calls - self.calls)

    def spend(self, dollars: float | None) -> None:
        """Add the cost of the call that this thread is in. None: it is unknown; then it is what was reserved."""
        with self._lock:
            call = self._open.get(ACTIVE_CALL_ID.get() or "")
            if call is not None:
                call.reports = True
                dollars = call.bound if dollars is None else dollars
            self.dollars += dollars or 0.0

    def stop(self, reason: str) -> None:
        """Refuse every later call, and end every wait for a retry."""
        with self._lock:
            self.reached = self.reached or reason
            self._stopped = True

    def seconds_left(self) -> float:
        """Return for how long a call may still wait before it starts: `inf` without `max_seconds`, 0 when stopped."""
        if self._stopped:
            return 0.0
        return math.inf if self.max_seconds is None else self.max_seconds - self.seconds

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Let the call pass, at once or when others have ended.

        Raises:
            LimitReachedError: it would exceed a limit.
            BusyError: it must wait for others, and waiting here would block an event loop.
        """
        if call_id in self._open:  # in force for the thread and for the LM
            return
        requests = _requests(instance, inputs)
        bound = 0.0 if self.max_cost is None else requests * self._bound(instance, inputs)
        awaited = AWAITED_SINCE.get()
        arrived = awaited or time.monotonic()
        while not self._admitted(call_id, instance, requests, bound, time.monotonic() - arrived < _PATIENCE):
            if awaited:
                raise BusyError
            time.sleep(POLL)
        _outer_calls.set(_outer_calls.get() | {call_id})

    def _admitted(self, call_id: str, lm: Any, requests: int, bound: float, may_wait: bool) -> bool:
        """Count the call and reserve its cost; return False if it must wait. Raises LimitReachedError."""
        with self._lock:
            self._started = min(self._started, time.monotonic())
            if self.seconds_left() <= 0:
                stopped = self.reached if self._stopped else None
                raise self._refused(stopped or f"max_seconds={self.max_seconds:g} is reached")
            if self.max_lm_calls is not None and self.calls + requests > self.max_lm_calls - self._kept_calls:
                hidden = f": a call of {lm.model} may take {requests}" if requests > 1 else ""
                raise self._refused(f"max_lm_calls={self.max_lm_calls} is reached ({self.calls} were made{hidden})")
            reserved = sum(call.bound for call in self._open.values())
            max_cost = math.inf if self.max_cost is None else self.max_cost - self._kept_dollars
            if self.dollars + reserved + bound > max_cost:
                fits_alone = self.dollars + bound <= max_cost
                if may_wait and fits_alone and not _outer_calls.get() & self._open.keys():  # it would wait for itself
                    return False
                raise self._refused(
                    f"max_cost={self.max_cost:g} is reached: ${self.dollars:.4f} spent, ${reserved:.4f} reserved for "
                    f"calls under way, and the next call of {lm.model} may cost ${bound:.4f}"
                )
            self.calls += requests
            # a program may have put a tracker of its own in place of the meter's: then no cost will be reported
            self._open[call_id] = _Open(bound, reports=hasattr(dspy.settings.usage_tracker, "meter"))
            return True

    def _bound(self, lm: Any, inputs: dict[str, Any]) -> float:
        """Return the most that one request can cost, in dollars. Raises LimitReachedError if nobody knows."""
        try:
            price, longest = _priced(lm, inputs)
        except SettingsError as error:  # DSPy only logs an Exception of a callback
            raise self._refused(str(error)) from error
        tokens = int(count_tokens(str(inputs)) * _SAFETY)  # schemas and tools are paid for as well
        return max(price.of(tokens, 0, longest), price.of(tokens, 0, longest, tokens))

    def _refused(self, reason: str) -> LimitReachedError:
        """Note that a call is refused, here and in the scopes of usage around it."""
        error = LimitReachedError(reason)
        self.reached = self.reached or reason
        for callback in dspy.settings.get("callbacks") or []:
            getattr(callback, "on_limit_reached", lambda _: None)(error)
        return error

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:  # noqa: ARG002 - DSPy's
        """Give back what was reserved; the cost was added by `spend` before."""
        with self._lock:
            call = self._open.pop(call_id, None)
            if call is not None and not call.reports and exception is None:
                self.dollars += call.bound
        _outer_calls.set(_outer_calls.get() - {call_id})


def check_cost(lm: Any, max_cost: float) -> None:
    """Check, before a run, that `max_cost` can be kept with an LM and leaves it room to work.

    Raises:
        SettingsError: the LM has no price; or it has no `max_tokens`, and its longest answer would take more than a
            tenth of `max_cost`, so that little of it could ever be used.
    """
    price, longest = _priced(lm, {})
    dollars = price.of(0, 0, longest)
    if _max_tokens(lm, {}) is None and dollars > max_cost / 10:
        raise SettingsError(
            f"max_cost={max_cost:g} is too small for {lm.model!r} without max_tokens: one answer may have {longest:,} "
            f"tokens and cost ${dollars:.4f}. Set max_tokens, as in dspy.LM({lm.model!r}, max_tokens=2000), or raise "
            "max_cost."
        )


def _priced(lm: Any, inputs: dict[str, Any]) -> tuple[Price, int]:
    """Return the price of an LM and the longest answer it may give. Raises SettingsError if there is no price."""
    tier = {**lm.kwargs, **(inputs.get("kwargs") or {})}.get("service_tier")
    price = price_of(lm.model, tier)
    if price is None:
        raise SettingsError(
            f"max_cost needs a price for every model, and LiteLLM's list has none for {lm.model!r}"
            f"{f' and service_tier={tier!r}' if tier else ''}. Add one with litellm.register_model, or use "
            "max_lm_calls or max_metric_calls instead."
        )
    return price, _max_tokens(lm, inputs) or price.longest or _UNKNOWN_LONGEST


def _max_tokens(lm: Any, inputs: dict[str, Any]) -> int | None:
    given = {**lm.kwargs, **(inputs.get("kwargs") or {})}
    longest = given.get("max_tokens") or given.get("max_completion_tokens")
    return None if longest is None else int(longest)


def _requests(lm: Any, inputs: dict[str, Any]) -> int:
    """Return how many requests one call may send: one for each of `n` answers, and retries out of sight."""
    given = {**getattr(lm, "kwargs", {}), **(inputs.get("kwargs") or {})}
    several = hasattr(dspy, "lm15") and isinstance(lm, dspy.LM)  # before DSPy 3.4 it is one request, whatever `n`
    answers = int(given.get("n") or 1) if several else 1
    retries = 0 if hasattr(lm, "retries_in_sight") else own_retries(lm)
    return answers * (1 + retries)


def own_retries(lm: Any) -> int:
    """Return how often an LM repeats a request by itself: DSPy's own LM does, no other."""
    return (getattr(lm, "num_retries", 0) or 0) if isinstance(lm, dspy.LM) else 0
