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
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
)

from .limits import _PATIENCE, _POLL, BusyError, Limits

if TYPE_CHECKING:
    from dspy import Adapter as _Adapter
    from dspy import BaseLM as _Model
else:
    _Adapter = _Model = object

LONGEST_WAIT = 60.0  # seconds, where the provider names no time
_WAIT_PART = 0.5  # seconds between two checks of the limits during a wait


def one_by_one(lm: Any, *limits: Limits) -> Any:
    """Return a copy of `lm` whose attempts are calls of their own; it shares history, engine and cache with `lm`.

    An LM without retries is returned as it is, and so is anything that is no LM.

    Args:
        lm: any LM, or None.
        limits: they hold for the copy wherever it is called, also where DSPy's context does not reach.
    """
    if not isinstance(lm, dspy.BaseLM) or not (getattr(lm, "num_retries", 0) or isinstance(lm, _OneByOne)):
        return lm
    limits = tuple(each for each in limits if each not in lm.callbacks)
    if isinstance(lm, _OneByOne) and not limits:
        return lm
    clone = copy.copy(lm)
    clone.callbacks = [*lm.callbacks, *limits]
    if not isinstance(lm, _OneByOne):
        kind: Any = type(lm)
        clone.__class__ = _mixed(_OneByOne, kind)
        clone.retries_in_sight, clone.num_retries = lm.num_retries, 0
    return clone


@contextmanager
def enforced(limits: Limits) -> Iterator[None]:
    """Open a scope in which every LM call passes `limits`, each attempt of it.

    LMs that the program or the metric brings along are made `one_by_one` on their way through the adapter.
    """
    callbacks = [limits, *(dspy.settings.get("callbacks") or [])]
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    if isinstance(adapter, dspy.Adapter):
        kind: Any = type(adapter)
        adapter = copy.copy(adapter)
        adapter.__class__ = _mixed(_OneByOneAdapter, kind)
        adapter.limits = limits
    with dspy.context(callbacks=callbacks, lm=one_by_one(dspy.settings.lm, limits), adapter=adapter):
        yield


class _OneByOne(_Model):  # type: ignore[misc]  # dspy is untyped
    """Mixin: the retries of an LM, outside of it."""

    retries_in_sight: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def attempt() -> Any:
            return Retrying(**_room())(super(_OneByOne, self).__call__, *args, **kwargs)

        return Retrying(sleep=_sleep, **_retries(self.retries_in_sight))(attempt)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        async def attempt() -> Any:
            return await AsyncRetrying(**_room())(super(_OneByOne, self).acall, *args, **kwargs)

        return await AsyncRetrying(sleep=_asleep, **_retries(self.retries_in_sight))(attempt)


class _OneByOneAdapter(_Adapter):  # type: ignore[misc]  # dspy is untyped
    """Mixin: an adapter that shows the retries of the LMs it asks, to `limits` as well."""

    limits: Limits

    def __call__(self, lm: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(one_by_one(lm, self.limits), *args, **kwargs)

    async def acall(self, lm: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().acall(one_by_one(lm, self.limits), *args, **kwargs)


def _retries(count: int) -> dict[str, Any]:
    """Return tenacity's settings for calls that a provider refuses."""
    return {
        "retry": retry_if_exception(_may_be_retried),
        "stop": stop_after_attempt(count + 1),
        "wait": _seconds,
        "before_sleep": _count,
        "reraise": True,
    }


def _room() -> dict[str, Any]:
    """Return tenacity's settings for calls that wait until the limits have room for them."""
    return {
        "retry": retry_if_exception_type(BusyError),
        "stop": stop_after_delay(_PATIENCE),
        "wait": wait_fixed(_POLL),
        "retry_error_callback": _refuse,
    }


def _may_be_retried(error: BaseException) -> bool:
    return isinstance(error, Exception) and bool(is_retryable_lm_error(error))


def _refuse(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    raise error.refusal if isinstance(error, BusyError) else AssertionError("only a busy call is waited for")


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
