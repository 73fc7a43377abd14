"""How many rollouts a run may still make: validation and retries count like any other."""

from __future__ import annotations

import threading


class Allowance:
    """Hands out rollouts so that `limit` is never exceeded, and the last playbook can still be validated.

    Args:
        limit: rollouts of the whole run (metric calls); None: any number.
        valset: rollouts one validation takes; 0: there is none.
        used: rollouts made before, when a run is continued.
    """

    def __init__(self, limit: int | None, valset: int, used: int = 0) -> None:
        self.limit, self.valset, self.used = limit, valset, used
        self._lock = threading.Lock()

    @property
    def validates(self) -> bool:
        """Whether seed and playbook can both be validated and something be learned in between."""
        return self.valset > 0 and (self.limit is None or self.limit > 2 * self.valset)

    def take(self, count: int) -> None:
        """Book rollouts that are about to be made."""
        with self._lock:
            self.used += count

    def for_learning(self, wanted: int) -> int:
        """How many of `wanted` rollouts may be made now; one validation is kept in reserve."""
        if self.limit is None:
            return wanted
        reserve = self.valset if self.validates else 0
        return max(0, min(wanted, self.limit - self.used - reserve))

    def for_validation(self) -> bool:
        """Whether the playbook may be validated now, with a step and another validation to follow."""
        return self.limit is None or self.limit - self.used > 2 * self.valset
