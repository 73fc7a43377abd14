"""Fail fast: a role that never works is found on its first calls, not after a budget is spent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..errors import RoleError, RunError
from .usage import Meter

_AT_ONCE = 2  # calls of a role that has not worked yet


class Guard:
    """A role that must show that it works before it is called by many threads.

    Until the first success two calls are made at a time; if the first ones all fail, the run is stopped.
    Later failures are the caller's to record.

    Args:
        role: the callable.
        name: what its calls are booked as, and what to call it in the error.
    """

    def __init__(self, role: Callable[..., Any], name: str) -> None:
        self._role, self._name = role, name
        self.proven = False
        self._failed = self._under_way = 0
        self._dead: RunError | None = None
        self._changed = threading.Condition()

    @property
    def busy(self) -> bool:
        """Whether a call would have to wait for others that are to show that the role works."""
        return not self.proven and self._under_way > 0 and self._under_way + self._failed >= _AT_ONCE

    def __call__(self, meter: Meter, *arguments: Any) -> Any:
        """Call the role, booked with `meter`.

        Raises:
            RunError: it failed every time so far: twice without a readable reply (each was asked for twice), or
                three times in another way. Single failures pass through as they are.
        """
        if self.proven:
            return self._call(meter, arguments)
        with self._changed:
            self._changed.wait_for(lambda: not self.busy)
            if self._dead is not None:
                raise self._dead
            self._under_way += 1
        try:
            result = self._call(meter, arguments)
            self.proven = True
        except Exception as error:
            self._note(error)
            raise
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()
        return result

    def _call(self, meter: Meter, arguments: tuple[Any, ...]) -> Any:
        with meter.measure(self._name):
            return self._role(*arguments)

    def _note(self, error: Exception) -> None:
        """Raises RunError if this failure shows that the role does not work."""
        with self._changed:
            self._failed += 1
            if not self.proven and self._failed >= (2 if isinstance(error, RoleError) else 3):
                self._dead = RunError(
                    f"The {self._name} failed {self._failed} times and never worked: {type(error).__name__}: {error} "
                    f"Check the LM it asks (reflection_lm=, curator_lm=), or the role you passed."
                )
                raise self._dead from error
