"""Retries in sight: each attempt of an LM call is a call of its own, counted and limited.

DSPy retries inside the LM: a call that took three requests counts as one. A copy made here asks its provider once a
call and retries outside, as often and with the same waits, so that callbacks, limits and usage see every request.
"""

from __future__ import annotations

import asyncio
import copy
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.exceptions import is_retryable_lm_error
from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from .limits import AWAITED_SINCE, POLL, BusyError, Limits, own_retries

if TYPE_CHECKING:
    from dspy import Adapter as _Adapter
    from dspy import BaseLM as _Model
else:
    _Adapter = _Model = object

LONGEST_WAIT = 60.0  # seconds, where the provider names no time
_WAIT_PART = 0.5  # seconds between two checks of the limits during a wait


def one_by_one(lm: Any, *limits: Limits) -> Any:
    """Return a copy of `lm` whose attempts are calls of their own; it shares history, engine and cache with `lm`.

    An LM without retries is returned as it is if there are no limits, and so is anything that is no LM.

    Args:
        lm: any LM, or None.
        limits: they hold for the copy wherever it is called, also where DSPy's context does not reach.
    """
    if not isinstance(lm, dspy.BaseLM):
        return lm
    limits = tuple(each for each in limits if each not in lm.callbacks)
    if not limits and (isinstance(lm, _OneByOne) or not own_retries(lm)):
        return lm
    clone = copy.copy(lm)
    clone.callbacks = [*lm.callbacks, *limits]
    if not isinstance(lm, _OneByOne):
        kind: Any = type(lm)
        clone.__class__ = _mixed(_OneByOne, kind)
        clone.retries_in_sight, clone.num_retries = own_retries(lm), 0
    return clone


@contextmanager
def enforced(limits: Limits) -> Iterator[None]:
    """Open a scope in which every LM call passes `limits`, each attempt of it."""
    callbacks = [limits, *(dspy.settings.get("callbacks") or [])]
    adapter = retries_shown(dspy.settings.adapter or dspy.ChatAdapter(), limits)
    with dspy.context(callbacks=callbacks, lm=one_by_one(dspy.settings.lm, limits), adapter=adapter):
        yield


def retries_shown(adapter: Any, *limits: Limits) -> Any:
    """Return a copy of an adapter that makes each LM `one_by_one` that it asks, whoever brought the LM along."""
    if not isinstance(adapter, dspy.Adapter):
        return adapter
    kind: Any = type(adapter)
    clone = copy.copy(adapter)
    clone.__class__ = kind if isinstance(adapter, _OneByOneAdapter) else _mixed(_OneByOneAdapter, kind)
    clone.limits = limits
    return clone


class _OneByOne(_Model):  # type: ignore[misc]  # dspy is untyped
    """Mixin: the retries of an LM, outside of it."""

    retries_in_sight: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Retrying(sleep=_sleep, **_rules(self.retries_in_sight))(super().__call__, *args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        call = super().acall

        async def attempt() -> Any:
            token = AWAITED_SINCE.set(time.monotonic())
            try:
                while True:
                    try:
                        return await call(*args, **kwargs)
                    except BusyError:
                        await asyncio.sleep(POLL)
            finally:
                AWAITED_SINCE.reset(token)

        return await AsyncRetrying(sleep=_asleep, **_rules(self.retries_in_sight))(attempt)


class _OneByOneAdapter(_Adapter):  # type: ignore[misc]  # dspy is untyped
    """Mixin: an adapter that shows the retries of the LMs it asks."""

    limits: tuple[Limits, ...]

    def __call__(self, lm: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(one_by_one(lm, *self.limits), *args, **kwargs)

    async def acall(self, lm: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().acall(one_by_one(lm, *self.limits), *args, **kwargs)


def _rules(retries: int) -> dict[str, Any]:
    """Return tenacity's settings: the errors and the number of retries are DSPy's."""
    return {
        "retry": retry_if_exception(lambda error: isinstance(error, Exception) and is_retryable_lm_error(error)),
        "stop": stop_after_attempt(retries + 1),
        "wait": _seconds,
        "before_sleep": _count,
        "reraise": True,
    }


def _seconds(state: RetryCallState) -> float:
    """Return the wait before the next attempt: what the provider says, else doubling from one, with jitter."""
    hint = getattr(state.outcome.exception() if state.outcome else None, "retry_after", None)
    if isinstance(hint, (int, float)) and not isinstance(hint, bool) and 0 <= hint < float("inf"):
        return float(hint)
    return float(min(2 ** (state.attempt_number - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter


def _count(state: RetryCallState) -> None:  # noqa: ARG001 - tenacity's
    for callback in dspy.settings.get("callbacks") or []:
        getattr(callback, "on_lm_retry", lambda: None)()


def _sleep(seconds: float) -> None:
    for part in _parts(seconds):
        time.sleep(part)


async def _asleep(seconds: float) -> None:
    for part in _parts(seconds):
        await asyncio.sleep(part)


def _parts(seconds: float) -> Iterator[float]:
    """Cut a wait into parts, so that it ends with the time that the limits in force leave, or when they are stopped."""
    limits = [each for each in dspy.settings.get("callbacks") or [] if isinstance(each, Limits)]
    end = time.monotonic() + seconds
    while (left := min(end - time.monotonic(), *(each.seconds_left() for each in limits), math.inf)) > 0:
        yield min(left, _WAIT_PART)


@lru_cache(maxsize=128)
def _mixed(mixin: Any, kind: Any) -> type[Any]:
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})
