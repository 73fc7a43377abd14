"""Every LM call of a run: limited before it is made, retried in sight, counted when it ends.

DSPy's callbacks and usage trackers miss calls: those of plain threads, those of a program that puts its own in their
place, and each retry inside an LM. So the two methods that every LM is called by, `__call__` and `acall`, are wrapped
when the first `Meter` measures. Outside of a scope they do what they did.

A new thread does not inherit the scope that it is started in, as DSPy's context is lost there too. So the start of a
thread, and `submit` of a thread pool, are wrapped as well and hand the scope on. What cannot be seen: calls that do
not go through DSPy, those of other processes, and LMs that a thread of before the run calls without a predictor.
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import dspy
from dspy.utils.exceptions import LMTimeoutError, is_retryable_lm_error
from dspy.utils.usage_tracker import UsageTracker

from ..output import keep_secret
from .limits import LimitReachedError, Limits, bound_of
from .prices import price_of, tier_of
from .usage import Usage

if TYPE_CHECKING:
    from tenacity import RetryCallState

LONGEST_WAIT = 60.0  # seconds between two attempts, where the provider names no time
POLL = 0.05  # seconds between two tries of a call that waits for others
_WAIT_PART = 0.5  # seconds between two checks of the limits during a wait
_PATIENCE = 600.0  # seconds that a call waits for others before it is refused
_scopes: ContextVar[tuple[Measurement, ...]] = ContextVar("dspy_ace_scopes", default=())  # the innermost comes last
_around: ContextVar[tuple[_Call, ...]] = ContextVar("dspy_ace_calls", default=())  # calls that make the next one
_apart: ContextVar[bool] = ContextVar("dspy_ace_apart", default=False)  # in a thread of the program's own
_owned: WeakKeyDictionary[Any, Measurement] = WeakKeyDictionary()  # predictor → scope
_wrapping = threading.Lock()


class RefusedError(RuntimeError):
    """A limit refuses a call in a thread of the program's own; the rollout ends with the refusal later.

    A LimitReachedError could end a worker thread that others wait for: a BaseException is caught by few.
    """


class Measurement:
    """The LM calls of one scope, up to date after each call.

    Args:
        meter: adds them up by role.
        role: whose calls they are.
        limits: no call exceeds them; None: those of the scope of the same meter around it, if there is one.

    Attributes:
        entries: model and usage of every request that was answered and paid for.
        refusal: the last refusal of a call for a limit; None: there was none.
        over: True once the scope makes no further call: it would raise LimitReachedError.
        outer: a user's usage tracker around the scope; it is told of each call.
    """

    def __init__(self, meter: Meter, role: str, limits: Limits | None = None) -> None:
        self.meter, self.role = meter, role
        around = next((each.limits for each in _scopes.get() if each.meter is meter), None)
        self.limits: Limits | None = around if limits is None else limits
        self.entries: list[tuple[str, dict[str, Any]]] = []
        self.refusal: LimitReachedError | None = None
        self.over, self.outer = False, _outer()
        self._usage, self._started = Usage(), time.monotonic()
        self._lock = threading.Lock()

    def add(self, used: Usage, entries: list[tuple[str, dict[str, Any]]], error: BaseException | None = None) -> None:
        """Count a call that has ended. It is called in the thread of the call; `error` is what the call raised."""
        del error  # for those who watch
        with self._lock:
            self._usage += used
            self.entries += entries
        self.meter.add(self.role, used)

    def usage(self) -> Usage:
        """Return the usage so far."""
        return replace(self._usage, seconds=max(0.0, time.monotonic() - self._started))

    def tokens(self) -> dict[str, dict[str, Any]]:
        """Return the usage by model, as `dspy.Prediction.get_lm_usage` shows it."""
        tracker = UsageTracker()
        for lm, entry in list(self.entries):
            tracker.add_usage(lm, entry)
        found: dict[str, dict[str, Any]] = tracker.get_total_tokens()
        return found


class Meter:
    """Adds up usage by role (`task`, `reflector`, `curator`, …). Thread-safe.

    A `dspy.track_usage()` in force where a scope begins is told every entry.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Usage] = {}
        self._scopes: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, role: str) -> Iterator[Measurement]:
        """Open a scope whose LM calls, in this thread and those it starts, count for `role`.

        A scope inside a scope keeps its calls to itself.

        Raises:
            LimitReachedError: a call in the scope was refused for a limit, and the program went on without it.
        """
        made = Measurement(self, role)
        try:
            with scope(made):
                yield made
        finally:
            with self._lock:
                self._scopes[role] = self._scopes.get(role, 0) + 1
            self.add(role, Usage(seconds=made.usage().seconds))
        if made.refusal is not None:
            raise made.refusal

    def add(self, role: str, used: Usage) -> None:
        """Add to the usage of a role."""
        with self._lock:
            self._totals[role] = self._totals.get(role, Usage()) + used

    def scopes(self, role: str) -> int:
        """Return how many scopes of `role` have ended: for `task`, the number of rollouts."""
        with self._lock:
            return self._scopes.get(role, 0)

    def totals(self) -> dict[str, Usage]:
        """Return the usage of each role so far, roles in alphabetical order."""
        with self._lock:
            return dict(sorted(self._totals.items()))


@contextmanager
def scope(made: Measurement) -> Iterator[None]:
    """Count the LM calls of this block in `made`, but for those of a scope of the same meter inside it."""
    _wrap_all()
    token = _scopes.set((*(each for each in _scopes.get() if each.meter is not made.meter), made))
    try:
        with dspy.context(usage_tracker=_Tracker()):  # one that a program opens inside rolls up into this one
            yield
    finally:
        _scopes.reset(token)


def own(predictors: Iterable[Any], made: Measurement) -> None:
    """Count in `made` what these predictors call in threads that know of no scope, as they ran before it began."""
    _owned.update(dict.fromkeys(predictors, made))


class _Tracker(UsageTracker):  # type: ignore[misc]  # dspy is untyped
    """The usage tracker of a call, or of a scope."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[str, dict[str, Any]]] = []

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Keep what DSPy reports of an answer that is not from its cache; it may be empty."""
        self.entries.append((lm, self._flatten_usage_entry(usage_entry)))


def _outer() -> Any:
    """Return the innermost tracker of the user's around the scopes; None: there is none."""
    tracker, scopes = dspy.settings.usage_tracker, _scopes.get()
    return scopes[-1].outer if isinstance(tracker, _Tracker) and scopes else tracker


class _Call:
    """One attempt of an LM call: one request, or one for each of `n` answers."""

    def __init__(self, lm: Any, scopes: tuple[Measurement, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep_secret({**vars(lm), **kwargs})  # its replies and errors may repeat them
        self.lm, self._scopes, self._around = lm, scopes, _around.get()
        self._limits = [(each, each.limits) for each in scopes if each.limits is not None]
        several = hasattr(dspy, "lm15") and isinstance(lm, dspy.LM)  # before DSPy 3.4 it is one request, whatever `n`
        self.requests = int({**lm.kwargs, **kwargs}.get("n") or 1) if several else 1
        self._arrived, self._inputs = time.monotonic(), (args, kwargs)
        self._tier = tier_of(lm, kwargs)
        tracker = dspy.settings.usage_tracker
        self._told = [scopes[-1].outer, None if isinstance(tracker, _Tracker) else tracker]  # the user's trackers
        self._tracker = _Tracker()

    @functools.cached_property
    def bound(self) -> float:
        """The most that it can cost, in dollars. Raises SettingsError: nobody knows."""
        return self.requests * bound_of(self.lm, *self._inputs)

    def admitted(self) -> bool:
        """Reserve the call under all limits; return False if it must wait for others.

        Raises:
            LimitReachedError, RefusedError: it would exceed a limit.
        """
        try:
            return self._admitted()
        except LimitReachedError as error:
            if _scopes.get() and not _apart.get():
                raise
            raise RefusedError(str(error)) from error

    def _admitted(self) -> bool:
        if any(each.over for each in self._scopes):
            raise LimitReachedError("the work that this call belongs to was given up")
        may_wait = time.monotonic() - self._arrived < _PATIENCE
        for number, (each, limits) in enumerate(self._limits):
            try:
                admitted = limits.admit(self, may_wait and not limits.open(self._around))
            except LimitReachedError as error:
                each.refusal = error
                self._released(number)
                raise
            if not admitted:
                self._released(number)
                return False
        return True

    def _released(self, number: int) -> None:
        for _, limits in self._limits[:number]:
            limits.settle(self, 0, 0.0)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Open the scope of the call itself, and count the call when it ends."""
        token, error = _around.set((*self._around, self)), None
        try:
            with dspy.context(usage_tracker=self._tracker):
                yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            _around.reset(token)
            self._ended(error)

    def _ended(self, error: BaseException | None) -> None:
        entries = self._tracker.entries
        answered = len(entries) if error is not None else self.requests
        # for a call that succeeded DSPy reports one usage entry for all `n` answers; for a cache hit, none
        cached = error is None and not entries and isinstance(self.lm, dspy.LM)
        failed = error is not None and not isinstance(error, LimitReachedError)
        prices = [self._dollars(entry) for _, entry in entries or ([] if error or cached else [("", {})])]
        dollars = None if None in prices else sum(price or 0.0 for price in prices)
        used = Usage(
            calls=answered + failed,
            cached_calls=answered if cached else 0,
            failed_calls=int(failed),
            prompt_tokens=sum(_count(entry, "prompt_tokens") for _, entry in entries),
            cached_tokens=sum(_count(entry.get("prompt_tokens_details"), "cached_tokens") for _, entry in entries),
            completion_tokens=sum(_count(entry, "completion_tokens") for _, entry in entries),
            dollars=dollars,
        )
        # what was cut off may have been answered, and be billed
        cut_off = isinstance(error, LMTimeoutError) or not isinstance(error, (Exception, type(None)))
        for _, limits in self._limits:
            limits.settle(self, used.calls, None if cut_off and failed else dollars)
        for each in self._scopes:
            each.add(used, entries, error)
        for lm, entry in entries:
            for tracker in self._told:
                if tracker is not None:
                    tracker.add_usage(lm, entry)

    def _dollars(self, entry: Mapping[str, Any]) -> float | None:
        """Return the dollars of an answer; None if its model has no price, or it has no usage."""
        # only a provider's model can stand in a price list, no engine of the user's
        known = isinstance(self.lm, dspy.LM) and isinstance(getattr(self.lm, "_engine_spec", "auto"), str)
        price = price_of(self.lm.model, self._tier) if known and entry else None
        if price is None:
            return None
        details = entry.get("prompt_tokens_details")
        written = _count(details, "cache_creation_tokens") or _count(entry, "cache_creation_input_tokens")
        prompt, completion = _count(entry, "prompt_tokens"), _count(entry, "completion_tokens")
        return price.of(prompt, _count(details, "cached_tokens"), completion, written)


def _count(entry: Any, key: str) -> int:
    value = entry.get(key) if isinstance(entry, Mapping) else getattr(entry, key, None)
    return value if isinstance(value, int) else 0


# --- the two methods that every LM is called by


def _called(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an LM's `__call__`."""

    @functools.wraps(original)
    def call(lm: Any, *args: Any, **kwargs: Any) -> Any:
        scopes = _scopes_around(lm)
        if not scopes:
            return original(lm, *args, **kwargs)

        def attempt() -> Any:
            made = _Call(lm, scopes, args, kwargs)
            while not made.admitted():
                time.sleep(POLL)
            with made.under_way():
                return original(lm, *args, **kwargs)

        def sleep(seconds: float) -> None:
            for part in _parts(seconds, scopes):
                time.sleep(part)

        from tenacity import Retrying  # noqa: PLC0415 - its import takes as long as ten calls

        return Retrying(sleep=sleep, **_rules(lm, scopes))(attempt)

    return call


def _acalled(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an LM's `acall`; waits do not block the event loop."""

    @functools.wraps(original)
    async def call(lm: Any, *args: Any, **kwargs: Any) -> Any:
        scopes = _scopes_around(lm)
        if not scopes:
            return await original(lm, *args, **kwargs)

        async def attempt() -> Any:
            made = _Call(lm, scopes, args, kwargs)
            while not made.admitted():
                await asyncio.sleep(POLL)
            with made.under_way():
                return await original(lm, *args, **kwargs)

        async def sleep(seconds: float) -> None:
            for part in _parts(seconds, scopes):
                await asyncio.sleep(part)

        from tenacity import AsyncRetrying  # noqa: PLC0415 - as above

        return await AsyncRetrying(sleep=sleep, **_rules(lm, scopes))(attempt)

    return call


def _scopes_around(lm: Any) -> tuple[Measurement, ...]:
    """Return the scopes that a call counts in; none where an LM's method calls that of its base class."""
    if _asks(lm):
        return ()
    if not (scopes := _scopes.get()):
        scopes = tuple(_owned[each] for each in (dspy.settings.caller_modules or [])[-1:] if each in _owned)
    return scopes


def _asks(lm: Any) -> bool:
    """Say if a counted call of this LM is under way here."""
    around = _around.get()
    return bool(around) and around[-1].lm is lm


def _rules(lm: Any, scopes: tuple[Measurement, ...]) -> dict[str, Any]:
    """Return tenacity's settings: the errors and the number of retries are DSPy's, whose own LM alone retries."""
    from tenacity import retry_if_exception, stop_after_attempt  # noqa: PLC0415 - as above

    retries = (getattr(lm, "num_retries", 0) or 0) if isinstance(lm, dspy.LM) else 0

    def count(state: RetryCallState) -> None:  # noqa: ARG001 - tenacity's
        for each in scopes:
            each.add(Usage(retries=1), [])

    return {
        "retry": retry_if_exception(lambda error: isinstance(error, Exception) and is_retryable_lm_error(error)),
        "stop": stop_after_attempt(retries + 1),
        "wait": _seconds,
        "before_sleep": count,
        "reraise": True,
    }


def _seconds(state: RetryCallState) -> float:
    """Return the wait before the next attempt: what the provider says, else doubling from one, with jitter."""
    hint = getattr(state.outcome.exception() if state.outcome else None, "retry_after", None)
    if isinstance(hint, (int, float)) and not isinstance(hint, bool) and 0 <= hint < float("inf"):
        return float(hint)
    return float(min(2 ** (state.attempt_number - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter


def _parts(seconds: float, scopes: tuple[Measurement, ...]) -> Iterator[float]:
    """Cut a wait into parts, so that it ends with the time that limits leave, or when the work is given up."""
    limits = [each.limits for each in scopes if each.limits is not None]
    end = time.monotonic() + seconds
    while not any(each.over for each in scopes):
        left = min(end - time.monotonic(), *(each.seconds_left() for each in limits), math.inf)
        if left <= 0:
            break
        yield min(left, _WAIT_PART)


def _wrap_all() -> None:
    """Wrap the methods of all LM classes, and the start of threads: each once in the life of the process.

    In a counted call an LM has no retries of its own: they are made outside of it, in sight.
    """
    kinds = [dspy.BaseLM]
    for kind in kinds:
        kinds += kind.__subclasses__()
    methods: list[tuple[Any, str, Callable[..., Any]]] = [
        *((kind, "__call__", _called) for kind in kinds),
        *((kind, "acall", _acalled) for kind in kinds),
        (threading.Thread, "start", _started),
        (ThreadPoolExecutor, "submit", _submitted),
    ]
    with _wrapping:
        for owner, name, wrap in methods:
            method = vars(owner).get(name)
            if method is not None and not hasattr(method, "dspy_ace"):
                made = wrap(method)
                made.dspy_ace = True
                setattr(owner, name, made)
        if "num_retries" not in vars(dspy.BaseLM):
            dspy.BaseLM.num_retries = property(
                lambda lm: 0 if _asks(lm) else vars(lm).get("num_retries"),
                lambda lm, number: vars(lm).update(num_retries=number),
            )


def _started(start: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(start)
    def started(thread: Any) -> None:
        if _scopes.get():
            thread.run = functools.partial(_within, _scopes.get(), _around.get(), True, thread.run)
        start(thread)

    return started


def _submitted(submit: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(submit)
    def submitted(pool: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        scopes = _scopes.get()
        if not scopes:
            return submit(pool, function, *args, **kwargs)
        token = _scopes.set(())  # a thread that the pool starts now is not this scope's: others will use it
        try:
            return submit(pool, functools.partial(_within, scopes, _around.get(), False, function), *args, **kwargs)
        finally:
            _scopes.reset(token)

    return submitted


def _within(scopes: Any, around: Any, apart: bool, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function in another thread, in the scopes of the thread that asked for it."""
    set_here: list[tuple[ContextVar[Any], Any]] = [(_scopes, scopes), (_around, around), (_apart, apart)]
    tokens = [(variable, variable.set(value)) for variable, value in set_here]
    try:
        return function(*args, **kwargs)
    finally:
        for variable, token in tokens:
            variable.reset(token)
