"""The playbook of a store as one process knows it: the fold of the events, kept up as more of them come."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ..errors import DeltaError, SettingsError, StoreError
from ..playbook import Playbook, apply, returned, versions
from . import rows
from .rows import StoredEvent
from .sql import Session

KEPT = 16  # the latest playbooks, kept for rebasing


class StoreView:
    """The latest version that was read (-1: none), its playbook, and some before it. For one thread at a time."""

    def __init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        """Know nothing: the next look reads everything."""
        self.version, self.playbook = -1, Playbook()
        self._recent: OrderedDict[int, Playbook] = OrderedDict()

    def catch_up(self, session: Session) -> None:
        """Fold what came since the last look; all of it when something was forgotten.

        Raises:
            StoreError: an event is damaged, or does not fit what stands before it.
        """
        fresh = rows.since(session, self.version) if self.version >= 0 else []
        if self.version < 0 or any(event.kind == "forget" for event in fresh):
            self.start_over()
            seed, events = rows.everything(session)
            self._keep(len(events), _folded(seed, events))
            return
        for event in fresh:
            try:
                if event.rollback is None:
                    playbook = apply(self.playbook, event.delta)
                else:
                    playbook = returned(self.at(session, event.rollback), self.playbook.high_water)
            except DeltaError as error:
                raise rows.damaged(event.version, error) from error
            self._keep(event.version, playbook)

    def at(self, session: Session, version: int) -> Playbook:
        """The playbook after so many events. Raises SettingsError for a version that never was."""
        if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version <= self.version:
            raise SettingsError(f"A version is a number from 0 (the seed) to {self.version} (now); got {version!r}.")
        if version not in self._recent:
            seed, events = rows.everything(session)
            return _folded(seed, events[:version])
        return self._recent[version]

    def _keep(self, version: int, playbook: Playbook) -> None:
        self.version, self.playbook = version, playbook
        self._recent[version] = playbook
        while len(self._recent) > KEPT:
            self._recent.popitem(last=False)


def _folded(seed: Playbook, events: Sequence[StoredEvent]) -> Playbook:
    try:
        return versions(seed, [event.event for event in events], (len(events),))[len(events)]
    except DeltaError as error:
        raise StoreError(f"The store is damaged: {error}. Take it from a backup.") from error
