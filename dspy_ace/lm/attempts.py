"""Every attempt of an LM call as a call of its own: counted, budgeted, and retried as DSPy retries.

DSPy retries inside the LM, out of sight: a call that took three requests counts as one. A copy made here asks
its provider once a call and does the retrying outside, with the same limit and the same waits, so that callbacks,
budgets and counts see what the provider sees.
"""

from __future__ import annotations

import asyncio
import copy
import random
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.exceptions import is_retryable_lm_error

if TYPE_CHECKING:
    from dspy import BaseLM as _Model
else:
    _Model = object

_LONGEST_WAIT = 60.0  # seconds


def one_by_one(lm: Any) -> Any:
    """A copy of `lm` whose attempts are calls of their own; it shares history, engine and cache with `lm`.

    An LM without retries of its own (any that is not a `dspy.LM`) is returned as it is.
    """
    if not isinstance(lm, dspy.BaseLM) or isinstance(lm, _OneByOne) or not getattr(lm, "num_retries", 0):
        return lm
    clone = copy.copy(lm)
    kind: Any = type(lm)
    clone.__class__ = _one_by_one(kind)
    clone._dspy_ace_retries, clone.num_retries = lm.num_retries, 0
    return clone


class _OneByOne(_Model):  # type: ignore[misc]  # dspy is untyped
    """Mixin: the retries of an LM, outside of it."""

    _dspy_ace_retries: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for attempt in range(self._dspy_ace_retries + 1):
            try:
                return super().__call__(*args, **kwargs)
            except Exception as error:
                if attempt == self._dspy_ace_retries or not is_retryable_lm_error(error):
                    raise
                _tell()
                time.sleep(_wait(error, attempt))
        raise AssertionError("unreachable")

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        for attempt in range(self._dspy_ace_retries + 1):
            try:
                return await super().acall(*args, **kwargs)
            except Exception as error:
                if attempt == self._dspy_ace_retries or not is_retryable_lm_error(error):
                    raise
                _tell()
                await asyncio.sleep(_wait(error, attempt))
        raise AssertionError("unreachable")


def _tell() -> None:
    """Tell the callbacks that count retries."""
    for callback in dspy.settings.get("callbacks") or []:
        getattr(callback, "on_lm_retry", lambda: None)()


def _wait(error: Exception, attempt: int) -> float:
    """Seconds before the next attempt: what the provider says, else doubling from one, with jitter."""
    hint = getattr(error, "retry_after", None)
    if isinstance(hint, (int, float)) and not isinstance(hint, bool) and 0 <= hint < float("inf"):
        return float(hint)
    return float(min(2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret


@lru_cache(maxsize=64)
def _one_by_one(kind: type[Any]) -> type[Any]:
    return type(kind.__name__, (_OneByOne, kind), {"__module__": kind.__module__})
