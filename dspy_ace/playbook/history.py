"""A playbook's history: deltas, and returns to an earlier state. Replayed on the seed it gives the playbook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Union

from ..errors import DeltaError
from .operations import Delta, apply
from .playbook import Playbook


@dataclass(frozen=True)
class Rollback:
    """The playbook is again what it was after the first `version` events (0: the seed). No id is given twice."""

    version: int

    @staticmethod
    def to(earlier: Playbook, now: Playbook) -> Playbook:
        """Return `earlier` as it follows on `now`: ids given out in between stay taken."""
        return replace(earlier, high_water=max(earlier.high_water, now.high_water))


Event = Union[Delta, Rollback]


def replay(seed: Playbook, events: Sequence[Event]) -> Playbook:
    """Return the playbook after all events, in order.

    Raises:
        DeltaError: an event does not fit the playbook it meets; its number (from 1) is named.

    Example:
        >>> len(replay(Playbook(), [Delta((Add("OTHERS", "Name the unit."),)), Rollback(0)]))
        0
    """
    playbook = seed
    for playbook in versions(seed, events):  # noqa: B007 - the last one is wanted
        pass
    return playbook


def versions(seed: Playbook, events: Sequence[Event]) -> Iterator[Playbook]:
    """Yield the seed and then the playbook after each event. Raises DeltaError as `replay` does."""
    wanted = {event.version for event in events if isinstance(event, Rollback)}
    kept = {0: seed}
    playbook = seed
    yield seed
    for number, event in enumerate(events, 1):
        try:
            if isinstance(event, Delta):
                playbook = apply(playbook, event)
            elif event.version in kept:
                playbook = Rollback.to(kept[event.version], playbook)
            else:
                raise DeltaError(f"a rollback to version {event.version}, which is not before it")
        except DeltaError as error:
            raise DeltaError(f"event {number} does not fit: {error}") from error
        if number in wanted:
            kept[number] = playbook
        yield playbook
