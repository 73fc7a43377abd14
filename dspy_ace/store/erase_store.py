"""Forgetting in the tables of a store: its history, what was left out of it, and what was told and waits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..errors import SettingsError
from ..playbook import (
    Account,
    Delta,
    Forgotten,
    Rejected,
    Selection,
    counted,
    known_sources,
    operation_to_json,
    quotes,
    rewrite,
)
from . import rows
from .rows import StoredEvent, Tell
from .sql import Session


def forget_rows(session: Session, selection: Selection) -> Account:
    """Write the history over and delete told records, in one transaction; an account of it.

    A "forget" event is added, and the store is marked: its files may hold bytes of what went until they are erased.

    Raises:
        SettingsError: what is selected is not here; nothing is changed then.
        StoreError: an event is damaged.
    """
    version, _ = rows.locked(session)
    seed, stored = rows.everything(session)
    history = [event.event for event in stored]
    tells = rows.open_tells(session)
    going = [told.id for told in tells if told.source in selection.sources or _holds(told, selection)]
    done = rewrite(seed, history, selection)
    named = {source for event in stored for left in event.rejected for source in _sources(left)}
    selection.check_known({*named, *known_sources(seed, history), *(told.source for told in tells)}, done.ids)
    kept = _kept_rejections(stored, done.result, selection)
    dropped = sum(len(event.rejected) for event in stored) - sum(map(len, kept.values()))
    if not (going or done.found or dropped or selection.sources):
        pattern = getattr(selection.matching, "pattern", "")
        raise SettingsError(f"Nothing in this store matches {pattern!r:.100}. Nothing was changed.")
    changed = zip(stored, done.result.deltas, strict=True)
    rows.write_over(
        session,
        done.result.seed,
        [(e.version, d, kept[e.version]) for e, d in changed if e.kind == "delta" and isinstance(d, Delta)],
    )
    rows.delete_tells(session, going)
    rows.write(session, version + 1, "forget", {})
    rows.mark_unclean(session, version + 1)
    notes = done.result.account.notes
    if dropped:
        notes = (f"{counted(dropped, 'rejected operation')}, kept for readers only, went as well.", *notes)
    return replace(done.result.account, tells=len(going), notes=notes)


def _holds(told: Tell, selection: Selection) -> bool:
    return selection.finds(json.dumps(told.record, ensure_ascii=False), told.source)


def _kept_rejections(
    stored: Sequence[StoredEvent], done: Forgotten, selection: Selection
) -> dict[int, Sequence[Rejected]]:
    """What may stay of the rejections of each event.

    From the first event on that has to do with what is forgotten, any of them may quote it.
    """
    first = len(stored) if done.first is None else done.first
    return {
        event.version: [r for r in event.rejected if not quotes(*_plain(r), selection)] if at < first else []
        for at, event in enumerate(stored)
    }


def _sources(rejected: Rejected) -> Iterator[str]:
    """The sources that an operation names that was left out: its fields may be of any type."""
    plain, _ = _plain(rejected)
    named = (plain or {}).get("sources", [(plain or {}).get("source")])
    return (source for source in named if isinstance(source, str))


def _plain(rejected: Rejected) -> tuple[dict[str, Any] | None, str]:
    return None if rejected.operation is None else operation_to_json(rejected.operation), rejected.reason
