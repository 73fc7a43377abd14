"""Budgets as code: LM calls, dollars and seconds that a run never exceeds, threads in flight included.

The check stands where every LM call passes, whoever makes it: a DSPy callback. A call that does not fit is not
made; it ends the run. Rollouts (metric calls) are budgeted where they are handed out, see `Run`.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from dspy.utils.callback import BaseCallback

from ..errors import SettingsError
from ..playbook import count_tokens
from .pricing import Price, price_of

_SAFETY = 1.5  # our estimate of prompt tokens may be a quarter off
_PATIENCE = 600.0  # seconds that a call waits for others to end before it is refused


class BudgetSpentError(BaseException):
    """The next LM call would exceed a budget. Not an Exception: a program that catches everything lets it pass."""


class Budget(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """Refuses the LM call that would exceed a budget.

    Args:
        max_lm_calls: calls of all roles together, retries and answers from DSPy's cache included.
        max_cost: dollars. Before a call the most that it can cost is set aside (its prompt as estimated, and the
            longest answer it may give), so the sum of what was spent and what is under way stays below. A call that
            fits only if those under way cost less than they may waits for them.
        max_seconds: no call starts later than so many seconds after the first; a call under way is not cut.
    """

    def __init__(
        self, max_lm_calls: int | None = None, max_cost: float | None = None, max_seconds: float | None = None
    ) -> None:
        self.max_lm_calls, self.max_cost, self.max_seconds = max_lm_calls, max_cost, max_seconds
        self.calls, self.dollars = 0, 0.0
        self._set_aside: dict[str, tuple[int, float]] = {}  # a call under way → its thread and the most it can cost
        self._started: float | None = None
        self._changed = threading.Condition()

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Let the call pass, now or when there is money again, or raise BudgetSpentError."""
        bound = 0.0 if self.max_cost is None else _bound(instance, inputs)
        arrived = time.monotonic()
        with self._changed:
            self._started = arrived if self._started is None else self._started
            while not self._passes(instance, bound, arrived):
                self._changed.wait(1.0)  # no longer, so that max_seconds is seen to
            self.calls += 1
            self._set_aside[call_id] = (threading.get_ident(), bound)

    def _passes(self, lm: Any, bound: float, arrived: float) -> bool:
        """Whether the call may go ahead now; False: it may when others have ended. Raises BudgetSpentError: never."""
        now = time.monotonic()
        if self.max_seconds is not None and self._started is not None and now - self._started >= self.max_seconds:
            raise BudgetSpentError(f"max_seconds={self.max_seconds:g} is spent")
        if self.max_lm_calls is not None and self.calls >= self.max_lm_calls:
            raise BudgetSpentError(f"max_lm_calls={self.max_lm_calls} is spent")
        under_way = sum(dollars for _, dollars in self._set_aside.values())
        if self.max_cost is None or self.dollars + under_way + bound <= self.max_cost:
            return True
        inside = any(thread == threading.get_ident() for thread, _ in self._set_aside.values())  # would wait for itself
        if inside or self.dollars + bound > self.max_cost or now - arrived > _PATIENCE:
            raise BudgetSpentError(
                f"max_cost={self.max_cost:g}: ${self.dollars:.4f} spent, ${under_way:.4f} under way, and the next "
                f"call to {lm.model} may cost ${bound:.4f}"
            )
        return False

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:  # noqa: ARG002 - DSPy's
        """Give back what was set aside; what the call cost has been added by `spend` before."""
        with self._changed:
            self._set_aside.pop(call_id, None)
            self._changed.notify_all()

    def spend(self, dollars: float) -> None:
        """Add what an answered call cost."""
        with self._changed:
            self.dollars += dollars


def priced(lm: Any) -> Price:
    """The price of an LM. Raises SettingsError if the list has none: unknown is not free."""
    price = price_of(lm.model)
    if price is None:
        raise SettingsError(
            f"max_cost needs a price for every model, and LiteLLM's list has none for {lm.model!r}. Use "
            "max_lm_calls or max_metric_calls instead."
        )
    return price


def _bound(lm: Any, inputs: dict[str, Any]) -> float:
    """The most that a call can cost, in dollars. Raises BudgetSpentError if nobody knows."""
    try:
        price = priced(lm)
    except SettingsError as error:  # an Exception would not stop the call: DSPy logs those of callbacks
        raise BudgetSpentError(str(error)) from error
    given = {**getattr(lm, "kwargs", {}), **(inputs.get("kwargs") or {})}
    longest = given.get("max_tokens") or given.get("max_completion_tokens") or price.longest or 4096
    tokens = int(count_tokens(str(inputs)) * _SAFETY)  # schemas and tools are paid for as well
    return price.of(tokens, 0, int(longest)) * int(given.get("n") or 1)
