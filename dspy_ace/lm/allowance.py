"""How many rollouts a run may still make: validation and retries count like any other."""

from __future__ import annotations

import threading


class Allowance:
    """Hands out rollouts so that `limit` is never exceeded, and the last playbook can still be validated.

    Args:
        limit: rollouts of the whole run (metric calls); None: any number.
        valset: rollouts one validation takes; 0: there is none.
        at_end: whether seed and playbook are validated once, side by side: up to a quarter of `limit` is kept for
            that, and as many examples as it pays for will do.
    """

    def __init__(self, limit: int | None, valset: int, at_end: bool = False) -> None:
        self.limit, self.valset, self.at_end = limit, valset, at_end
        self.used = 0
        self._lock = threading.Lock()

    @property
    def validates(self) -> bool:
        """Whether seed and playbook can both be validated and something be learned in between."""
        if self.limit is None or not self.valset:
            return self.valset > 0
        return self.limit >= 8 if self.at_end else self.limit > 2 * self.valset

    def take(self, count: int) -> None:
        """Book rollouts that are about to be made, or give back some (a negative number)."""
        with self._lock:
            self.used += count

    def for_learning(self, wanted: int) -> int:
        """How many of `wanted` rollouts may be made now; the last validation is kept in reserve."""
        if self.limit is None:
            return wanted
        reserve = 0
        if self.validates:
            reserve = min(2 * self.valset, self.limit // 4) if self.at_end else self.valset
        return max(0, min(wanted, self.limit - self.used - reserve))

    def for_validation(self) -> bool:
        """Whether the playbook may be validated now, with a step and another validation to follow."""
        return self.limit is None or self.limit - self.used > 2 * self.valset

    def left(self, wanted: int) -> bool:
        """Whether so many rollouts may be made now, whatever comes later."""
        return self.limit is None or self.used + wanted <= self.limit
