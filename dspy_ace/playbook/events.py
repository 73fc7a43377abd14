"""A history of a playbook: deltas, and returns to an earlier state. A playbook is the fold of its history."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Union

from ..errors import DeltaError
from .delta import Delta, apply
from .playbook import Playbook


@dataclass(frozen=True)
class Rollback:
    """The playbook is again what it was after so many events (0: the seed). Ids given out since stay taken."""

    version: int


Event = Union[Delta, Rollback]


def fold(seed: Playbook, events: Sequence[Event]) -> Playbook:
    """The playbook after all events, in order.

    Raises:
        DeltaError: an event does not fit what stands before it; its number (from 1) is named.
    """
    return versions(seed, events, (len(events),))[len(events)]


def versions(seed: Playbook, events: Sequence[Event], wanted: Iterable[int]) -> dict[int, Playbook]:
    """The playbook after so many events, for each number wanted and each that a rollback goes back to.

    Raises:
        DeltaError: an event does not fit what stands before it; its number (from 1) is named.
    """
    kept = {*wanted, *(event.version for event in events if isinstance(event, Rollback))}
    playbook = seed
    made = {0: seed}
    for number, event in enumerate(events, 1):
        try:
            if isinstance(event, Delta):
                playbook = apply(playbook, event)
            elif event.version in made:
                playbook = returned(made[event.version], playbook.high_water)
            else:
                raise DeltaError(f"a rollback to version {event.version}, which is not before it")
        except DeltaError as error:
            raise DeltaError(f"event {number} does not fit: {error}") from error
        if number in kept:
            made[number] = playbook
    return made


def returned(playbook: Playbook, high_water: int) -> Playbook:
    """An earlier playbook, taken up again: no number is given out twice."""
    return replace(playbook, high_water=max(playbook.high_water, high_water))
