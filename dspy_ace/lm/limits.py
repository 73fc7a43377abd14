"""Limits of a run: rollouts, LM calls, dollars and seconds. They are never exceeded, calls under way included."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, Protocol

from ..errors import JournalError, SettingsError
from ..playbook import count_tokens
from .prices import Price, price_of, tier_of

_SAFETY = 1.5  # our estimate of prompt tokens may be a quarter off
_UNKNOWN_LONGEST = 4096  # completion tokens, where neither the LM nor the price list says more


class LimitReachedError(BaseException):
    """The next LM call or rollout would exceed a limit. No Exception: a program that catches those does not stop it."""


@dataclass(frozen=True)
class Spent:
    """The part of its limits that a run has used; `seconds` since its first LM call, of all its processes together."""

    rollouts: int = 0
    calls: int = 0
    dollars: float = 0.0
    seconds: float = 0.0


class Request(Protocol):
    """A call that asks for admission: its LM, the requests it sends, and the most it can cost (see `bound_of`)."""

    lm: Any
    requests: int

    @property
    def bound(self) -> float: ...  # noqa: D102 - see the class


@dataclass(eq=False)
class Lease:
    """A part of the limits that a task of another process works with. It is settled like a call.

    Args:
        calls: LM calls it may make; None: any number.
        dollars: it may spend; None: any amount.
        used: calls and dollars it took; at first all of them.
    """

    calls: int | None
    dollars: float | None

    def __post_init__(self) -> None:
        self.used: tuple[int, float] = (self.requests, self.dollars or 0.0)

    @property
    def requests(self) -> int:
        """The calls that are reserved."""
        return self.calls or 0


class Limits:
    """Refuses the rollout or LM call that would exceed a limit. Thread-safe.

    Args:
        max_rollouts: runs of the program with its metric.
        max_lm_calls: requests of all roles together, retries and answers from DSPy's cache included.
        max_cost: dollars. Before a call the most that it can cost is reserved: its prompt as estimated, and
            `max_tokens` of its LM as the answer. A reply without usage costs what was reserved for it, and so does a
            call that was cut off.
        max_seconds: no call starts later than so many seconds after the first; a call under way is not cut.

    Attributes:
        rollouts, calls, dollars: spent so far.
        reached: the reason why a call or rollout was refused first; None: none was.
        keep: called with what is spent, before a rollout or call is made: a process that is killed has told of it.

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
        self.keep: Callable[[Spent], None] | None = None
        self._told = Spent()
        self._open: dict[Request | Lease, float] = {}  # calls under way → dollars reserved
        self._stopped = False
        self._kept_calls, self._kept_dollars = 0, 0.0
        self._lock = threading.RLock()

    @property
    def seconds(self) -> float:
        """Seconds since the first LM call, those of earlier processes included."""
        return self._seconds_before + max(0.0, time.monotonic() - self._started)

    @property
    def spent(self) -> Spent:
        """The use of the limits so far, calls under way included, for `resume` in a process that continues the run."""
        with self._lock:
            return Spent(self.rollouts, self.calls, self.dollars + sum(self._open.values()), self.seconds)

    def resume(self, spent: Spent) -> None:
        """Count what earlier processes of the same run have spent: a continued run does not start anew."""
        with self._lock:
            self.rollouts, self.calls, self.dollars = spent.rollouts, spent.calls, spent.dollars
            self._seconds_before = spent.seconds

    def start(self) -> None:
        """Begin to count the seconds, unless they are counted already."""
        with self._lock:
            self._started = min(self._started, time.monotonic())

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
                raise self.refused(f"max_rollouts={self.max_rollouts} is reached")
            self.rollouts += count
            self._tell()

    def rollouts_left(self) -> int | None:
        """Return how many rollouts may still be made; None: any number."""
        with self._lock:
            return None if self.max_rollouts is None else max(0, self.max_rollouts - self.rollouts)

    def calls_left(self) -> int | None:
        """Return how many LM calls may still be made; None: any number."""
        with self._lock:
            return None if self.max_lm_calls is None else max(0, self.max_lm_calls - self.calls)

    def lend(self, calls: int, dollars: float, parts: int, whole: bool) -> Lease | None:
        """Reserve a part of what is left, for a task of another process.

        Args:
            calls, dollars: the part; 0 dollars: what is left, divided by `parts`.
            whole: True to reserve all that is left, once no other task holds a part.

        Returns:
            None if it must wait for what other tasks give back.

        Raises:
            LimitReachedError: nothing is left, or the run was stopped.
        """
        with self._lock:
            self.start()
            if self.seconds_left() <= 0:
                reached = self.reached if self._stopped else None
                raise self.refused(reached or f"max_seconds={self.max_seconds:g} is reached")
            calls_left = dollars_left = math.inf
            if self.max_lm_calls is not None:
                calls_left = self.max_lm_calls - self._kept_calls - self.calls
            if self.max_cost is not None:
                dollars_left = self.max_cost - self._kept_dollars - self.dollars - sum(self._open.values())
            dollars = dollars or dollars_left / parts
            others = any(isinstance(each, Lease) for each in self._open)
            if others and (whole or calls_left < calls or dollars_left < dollars):
                return None
            if calls_left < 1 or dollars_left <= 0:
                limit = "max_lm_calls" if calls_left < 1 else "max_cost"
                raise self.refused(f"{limit}={getattr(self, limit):g} is reached")
            lease = Lease(
                None if self.max_lm_calls is None else int(calls_left if whole else min(calls, calls_left)),
                None if self.max_cost is None else (dollars_left if whole else min(dollars, dollars_left)),
            )
            self._reserve(lease, lease.dollars or 0.0)
            return lease

    @property
    def spends(self) -> bool:
        """True if calls or dollars are limited."""
        return self.max_lm_calls is not None or self.max_cost is not None

    @property
    def stopped(self) -> bool:
        """True once `stop` was called."""
        return self._stopped

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

    def open(self, calls: Iterable[Request]) -> bool:
        """Say if one of these calls is under way."""
        with self._lock:
            return any(call in self._open for call in calls)

    def admit(self, call: Request, may_wait: bool) -> bool:
        """Count a call and reserve its cost; return False if it fits only once others have ended, and may wait.

        Raises:
            LimitReachedError: it would exceed a limit.
        """
        try:
            bound = 0.0 if self.max_cost is None else call.bound
        except SettingsError as error:
            raise self.refused(str(error)) from error
        with self._lock:
            self.start()
            if self.seconds_left() <= 0:
                stopped = self.reached if self._stopped else None
                raise self.refused(stopped or f"max_seconds={self.max_seconds:g} is reached")
            if self.max_lm_calls is not None and self.calls + call.requests > self.max_lm_calls - self._kept_calls:
                lent = sum(each.requests for each in self._open if isinstance(each, Lease))
                if may_wait and self.calls - lent + call.requests <= self.max_lm_calls - self._kept_calls:
                    return False
                several = f", a call of {call.lm.model} takes {call.requests}" if call.requests > 1 else ""
                fits = self.calls + call.requests <= self.max_lm_calls
                kept = ", one is kept for the curation" if fits else ""
                raise self.refused(
                    f"max_lm_calls={self.max_lm_calls} is reached ({self.calls} were made{several}{kept})"
                )
            reserved = sum(self._open.values())
            max_cost = math.inf if self.max_cost is None else self.max_cost - self._kept_dollars
            if self.dollars + reserved + bound > max_cost:
                if may_wait and self.dollars + bound <= max_cost:
                    return False
                raise self.refused(
                    f"max_cost={self.max_cost:g} is reached: ${self.dollars:.4f} spent, ${reserved:.4f} reserved for "
                    f"calls under way, and the next call of {call.lm.model} may cost ${bound:.4f}"
                )
            self._reserve(call, bound)
            return True

    def _reserve(self, call: Request | Lease, dollars: float) -> None:
        """Count a call that is about to be made. If what is spent cannot be kept, the call is refused."""
        self.calls += call.requests
        self._open[call] = dollars
        try:
            self._tell()
        except LimitReachedError:
            self.settle(call, 0, 0.0)
            raise

    def settle(self, call: Request | Lease, requests: int, dollars: float | None) -> None:
        """Put what a call really took in the place of what was reserved. None: its cost is unknown, so all of that."""
        with self._lock:
            bound = self._open.pop(call)
            self.calls += requests - call.requests
            self.dollars += bound if dollars is None else dollars

    def save(self) -> None:
        """Tell what is spent as it stands, at the end of a step or of the run."""
        with self._lock:
            self._told = self.spent
            if self.keep is not None:
                self.keep(self._told)

    def _tell(self) -> None:
        """Tell what is spent of the limits that are set, a hundredth of each ahead: not every call waits for a disk.

        Raises:
            LimitReachedError: it cannot be kept, so that a continued run would not know of it.
        """
        limits = (self.max_rollouts, self.max_lm_calls, self.max_cost, self.max_seconds)
        now, told = astuple(self.spent), astuple(self._told)
        if self.keep is None or not any(limit and n > t for limit, n, t in zip(limits, now, told, strict=True)):
            return
        ahead = (type(n)(n + (limit or 0) / 100) for limit, n in zip(limits, now, strict=True))
        self._told = Spent(*ahead)
        try:
            self.keep(self._told)
        except JournalError as error:
            raise self.refused(str(error)) from error

    def refused(self, reason: str) -> LimitReachedError:
        """Return the error for a refusal, and keep the first reason."""
        self.reached = self.reached or reason
        return LimitReachedError(reason)


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


def bound_of(lm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Return the most that one request of a call can cost, in dollars. Raises SettingsError: the LM has no price."""
    request = next((each for each in (*args, *kwargs.values()) if hasattr(each, "config")), None)  # of dspy.lm15
    given = kwargs if request is None else {**kwargs, "max_tokens": request.config.max_tokens}
    price, longest = _priced(lm, given)
    tokens = int(count_tokens(str((args, kwargs))) * _SAFETY)  # schemas and tools are paid for as well
    return max(price.of(tokens, 0, longest), price.of(tokens, 0, longest, tokens))


def _priced(lm: Any, given: dict[str, Any]) -> tuple[Price, int]:
    """Return the price of an LM and the longest answer it may give. Raises SettingsError if there is no price."""
    tier = tier_of(lm, given)
    price = price_of(lm.model, tier)
    if price is None:
        raise SettingsError(
            f"max_cost needs a price for every model, and LiteLLM's list has none for {lm.model!r}"
            f"{f' and service_tier={tier!r}' if tier else ''}. Add one with litellm.register_model, or use "
            "max_lm_calls or max_metric_calls instead."
        )
    return price, _max_tokens(lm, given) or price.longest or _UNKNOWN_LONGEST


def _max_tokens(lm: Any, given: dict[str, Any]) -> int | None:
    merged = {**lm.kwargs, **given}
    longest = merged.get("max_tokens") or merged.get("max_completion_tokens")
    return None if longest is None else int(longest)
