"""Usage: the LM calls, tokens and dollars of each role, in any number of threads.

DSPy's own tracker sees no call made in a worker thread (it is copied with the context). The tracker here
is shared by copies and locked; when its scope ends, a tracker that stood around the run gets every entry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.usage_tracker import UsageTracker

from .limits import LimitReachedError
from .prices import price_of


@dataclass(frozen=True)
class Usage:
    """LM calls, tokens, dollars and seconds. `a + b` adds up.

    Two are equal when their counts are: dollars follow from them, and seconds never repeat.

    Args:
        calls: LM calls answered or failed, those from DSPy's cache included.
        cached_calls: of these, answered from DSPy's cache: no tokens, no cost.
        failed_calls: of these, ended by an error.
        prompt_tokens, cached_tokens, completion_tokens: as the provider reports them; `cached_tokens` is
            the part of `prompt_tokens` that the provider's prompt cache served.
        retries: failed calls that were made again.
        dollars: as LiteLLM prices the tokens; None: unknown, as a model has no price or a reply came without usage.
        seconds: wall time of the role's work, added up over threads.

    Example:
        >>> (Usage(calls=1, prompt_tokens=10) + Usage(calls=2, prompt_tokens=5)).prompt_tokens
        15
    """

    calls: int = 0
    cached_calls: int = 0
    failed_calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    dollars: float | None = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)

    def __add__(self, other: Usage) -> Usage:
        counts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "dollars"}
        unknown = self.dollars is None or other.dollars is None
        return Usage(**counts, dollars=None if unknown else (self.dollars or 0.0) + (other.dollars or 0.0))


def added(first: Mapping[str, Usage], second: Mapping[str, Usage]) -> dict[str, Usage]:
    """Return the sum of two usages by role, roles in alphabetical order."""
    return {role: first.get(role, Usage()) + second.get(role, Usage()) for role in sorted({*first, *second})}


class _Tracker(UsageTracker):  # type: ignore[misc]  # dspy is untyped
    """A usage tracker that threads share: a copy is itself, and additions are locked."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter
        self.answers = 0
        self.dollars: float | None = 0.0
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tracker:
        return self

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Add what DSPy reports of an answer that is not from its cache; without usage its price is unknown."""
        with self._lock:
            super().add_usage(lm, usage_entry)
            self.answers += 1
            dollars = self.meter.price(lm, usage_entry)
            self.dollars = None if dollars is None or self.dollars is None else self.dollars + dollars


class _CallCounter(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """Counts the LM calls of a meter's scope as they end, and the retries between them."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.ended = self.failed = self.retried = 0
        self.refusal: LimitReachedError | None = None
        self._lock = threading.Lock()

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002 - DSPy's
        self.meter.meet(instance, inputs)

    def on_lm_retry(self) -> None:
        """A call that failed is made again (see `retries`)."""
        with self._lock:
            self.retried += 1

    def on_limit_reached(self, error: LimitReachedError) -> None:
        """A call of this scope was refused (see `Limits`)."""
        self.refusal = error

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:  # noqa: ARG002 - DSPy's
        with self._lock:
            self.ended += 1
            self.failed += exception is not None


class Measurement:
    """The usage of one `Meter.measure` scope, complete when the scope has ended."""

    def __init__(self, meter: Meter) -> None:
        self.tracker = _Tracker(meter)
        self.counter = _CallCounter(meter)
        self.started = time.monotonic()

    def usage(self) -> Usage:
        """Return the usage so far."""
        entries = [entry for _, entry in self.entries()]
        failed, reported = self.counter.failed, max(self.tracker.answers, len(entries))
        # a program that replaces DSPy's callbacks hides calls from the counter, not from the tracker
        answered = max(self.counter.ended - failed, reported)
        return Usage(
            calls=answered + failed,
            cached_calls=answered - reported,
            failed_calls=failed,
            prompt_tokens=sum(_count(entry, "prompt_tokens") for entry in entries),
            cached_tokens=sum(_count(entry.get("prompt_tokens_details"), "cached_tokens") for entry in entries),
            completion_tokens=sum(_count(entry, "completion_tokens") for entry in entries),
            retries=self.counter.retried,
            dollars=self.tracker.dollars,
            seconds=max(0.0, time.monotonic() - self.started),
        )

    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        """Return model and usage of every call that was answered and paid for."""
        return [(lm, entry) for lm, several in list(self.tracker.usage_data.items()) for entry in list(several)]


class Meter:
    """Adds up usage by role (`task`, `reflector`, `curator`, …). Thread-safe.

    A `dspy.track_usage()` in force where the meter is made is passed every entry.

    Args:
        on_dollars: told what each answered call cost, before the call has ended; None for an unknown cost.
    """

    def __init__(self, on_dollars: Callable[[float | None], None] | None = None) -> None:
        self._on_dollars = on_dollars
        self._tiers: dict[str, str | None] = {}  # models met → service tier
        self._outer = dspy.settings.usage_tracker
        self._totals: dict[str, Usage] = {}
        self._scopes: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, role: str, *callbacks: BaseCallback) -> Iterator[Measurement]:
        """Open a scope whose LM calls, in this thread and those it starts, count for `role`.

        A scope inside a scope keeps its calls to itself.

        Args:
            role: whose calls they are.
            callbacks: of DSPy, for this scope alone; they come first, so a call that they end reserves nothing.

        Raises:
            LimitReachedError: a call in the scope was refused for a limit, and the program went on without it.
        """
        made = Measurement(self)
        inherited = [c for c in dspy.settings.get("callbacks") or [] if getattr(c, "meter", None) is not self]
        try:
            with dspy.context(usage_tracker=made.tracker, callbacks=[*callbacks, *inherited, made.counter]):
                yield made
        finally:
            self._add(role, made)
        if made.counter.refusal is not None:
            raise made.counter.refusal

    def _add(self, role: str, made: Measurement) -> None:
        with self._lock:
            self._totals[role] = self._totals.get(role, Usage()) + made.usage()
            self._scopes[role] = self._scopes.get(role, 0) + 1
            for lm, entry in made.entries() if self._outer is not None else ():
                self._outer.add_usage(lm, entry)

    def meet(self, lm: Any, inputs: Mapping[str, Any] | None = None) -> None:
        """Note an LM that is about to be called: only a provider's model can stand in a price list."""
        if isinstance(lm, dspy.LM) and isinstance(getattr(lm, "_engine_spec", "auto"), str):
            self._tiers[lm.model] = {**lm.kwargs, **((inputs or {}).get("kwargs") or {})}.get("service_tier")

    def price(self, lm: str, entry: Mapping[str, Any]) -> float | None:
        """Return the dollars of one answered call; None if its model has no price, or its reply no usage."""
        price = price_of(lm, self._tiers[lm]) if lm in self._tiers and entry else None
        dollars = None
        if price is not None:
            details = entry.get("prompt_tokens_details")
            cached = _count(details, "cached_tokens")
            written = _count(details, "cache_creation_tokens") or _count(entry, "cache_creation_input_tokens")
            completion = _count(entry, "completion_tokens")
            dollars = price.of(_count(entry, "prompt_tokens"), cached, completion, written)
        if self._on_dollars is not None:
            self._on_dollars(dollars)
        return dollars

    def scopes(self, role: str) -> int:
        """Return how many scopes of `role` have ended: for `task`, the number of rollouts."""
        with self._lock:
            return self._scopes.get(role, 0)

    def totals(self) -> dict[str, Usage]:
        """Return the usage of each role so far, roles in alphabetical order."""
        with self._lock:
            return dict(sorted(self._totals.items()))


def _count(entry: Any, key: str) -> int:
    value = entry.get(key) if isinstance(entry, Mapping) else getattr(entry, key, None)
    return value if isinstance(value, int) else 0
