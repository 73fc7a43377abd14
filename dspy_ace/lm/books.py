"""What one record of a run will say was spent: steps and looks that run side by side are booked apart."""

from __future__ import annotations

import threading

from .allowance import Allowance
from .usage import Meter, since


class Books:
    """Calls and tokens by role, rollouts made, and those that failed. Thread-safe.

    Args:
        meter: where calls are booked.
        allowance: where rollouts are booked, whoever makes them.
    """

    def __init__(self, meter: Meter, allowance: Allowance) -> None:
        self.meter, self.allowance = meter, allowance
        self.rollouts = 0
        self.failures: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def part(self) -> Books:
        """Books for a part of the run: what is booked there is booked in the run's meter and allowance as well."""
        return Books(self.meter.part(), self.allowance)

    def take(self, rollouts: int) -> None:
        """Book rollouts that are about to be made."""
        with self._lock:
            self.rollouts += rollouts
        self.allowance.take(rollouts)

    def usage(self) -> dict[str, dict[str, int]]:
        """Calls and tokens by role, as a record keeps them."""
        return since(self.meter.totals(), {})
