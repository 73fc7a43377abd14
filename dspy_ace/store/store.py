"""A playbook that many processes share: a history of deltas in a database, and told records to learn from.

The playbook is its history, replayed. A delta is made for some version; if others were faster, `append` carries it over
to the latest one and leaves out what no longer fits, with the reason.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import InstanceOf

from ..errors import Count, DeltaError, Finite, SettingsError, StoreError, brief, checked
from ..output import redacted
from ..playbook import (
    Account,
    Delta,
    Forgotten,
    Playbook,
    Rejected,
    Selection,
    counted,
    rebase,
    replay,
    rewrite,
)
from . import tables
from .database import Database, Run, open_database
from .tables import Appended, StoredEvent, Tell

logger = logging.getLogger("dspy.ace")

MAX_DEPTH = 100  # levels of a told record
KEPT = 64  # playbooks kept in memory of the versions that were read: most deltas are made for one of them
_OTHERS = (
    "Other processes use what was removed until they read the store again: OnlineACE every poll_seconds, or with "
    "learn='manual' at its next learn() or refresh()."
)
_watchers: dict[str, list[weakref.WeakMethod[Callable[[], object]]]] = {}


class PlaybookStore:
    """A playbook shared by processes and threads, on disk as soon as a method returns.

    Args:
        url: a path (SQLite, nothing to install, one machine) or a SQLAlchemy URL (`pip install 'dspy-ace[store]'`).
        seed: the playbook that a new store starts from; an existing store keeps its own.
        timeout: seconds to wait for another process's write (SQLite and PostgreSQL).

    Raises:
        StoreError: not a store, or one of a newer version; damaged; cannot be written.
        SettingsError: an argument is wrong.

    Example:
        >>> with PlaybookStore("memory.db") as store:     # or postgresql+psycopg://user@host/database
        ...     version, playbook = store.snapshot()
        ...     store.append(Delta((Add("strategies", "Round at the end."),)), version)
        Appended(version=1, rejected=())
    """

    def __init__(self, url: str | Path, *, seed: Playbook | None = None, timeout: float = 30.0) -> None:
        checked("seed", seed, InstanceOf[Playbook] | None)
        checked("timeout", timeout, Annotated[Finite, Ge(0)], "It is a number of seconds.")
        self._database: Database | None = open_database(url, timeout)
        self._lock = threading.RLock()
        self._read: dict[int, Playbook] = {}  # by version: the latest one that was read, and some before it
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            self._set_up(self._database, seed or Playbook())
            on_failure.pop_all()
        _open.add(self)

    def __enter__(self) -> PlaybookStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PlaybookStore({str(self._database or 'closed')!r})"

    def close(self) -> None:
        """Close the database. Nothing is lost with or without it."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = None

    @property
    def version(self) -> int:
        """The number of events so far; reading it is cheap."""
        with self._transaction() as run:
            return tables.head(run)[0]

    def changed_since(self, version: int) -> bool:
        """Return True if there are events after `version`. Cheap enough to be asked every second."""
        return self.version != version

    def playbook(self) -> Playbook:
        """Return the latest playbook. Only events since the last call are read."""
        return self.snapshot()[1]

    def snapshot(self) -> tuple[int, Playbook]:
        """Return the latest version and its playbook. Learn with it, and pass the version to `append` as `base`."""
        with self._transaction() as run:
            return self._latest(run)

    def at(self, version: int) -> Playbook:
        """Return the playbook after `version` events; 0 is the seed. Raises SettingsError for an unknown version."""
        with self._transaction() as run:
            return self._at(run, version)

    def history(self, since: int = 0) -> tuple[StoredEvent, ...]:
        """Return the events after version `since`, in order."""
        with self._transaction() as run:
            return tuple(tables.since(run, max(0, since)))

    def append(
        self, delta: Delta, base: int | None = None, *, key: str | None = None, taken: Iterable[int] = ()
    ) -> Appended:
        """Add a delta that was made for version `base`. It is on disk when this returns.

        If others were faster, the delta is carried over by `dspy_ace.playbook.rebase`: the bullets it adds get other
        ids, and what no longer fits is rejected. The whole delta is rejected, and nothing is appended, if something was
        forgotten since `base` (the delta may hold it), or if one of `taken` is not pending any more.

        Args:
            delta: any delta that fits the playbook of `base`.
            base: the version it was made for; None: the latest.
            key: any text that identifies this delta, for a retry after a crash. A second append under the same key
                changes nothing and returns what the first one returned.
            taken: ids of the told records it was learned from. They are taken in the same transaction.

        Raises:
            SettingsError: no Delta, an unknown base or told record.
            StoreError: the database refuses; nothing was changed.
        """
        if not isinstance(delta, Delta):
            raise SettingsError(f"append takes a Delta; got {brief(delta)}.")
        checked("key", key, str | None)
        with self._transaction() as run:  # a long replay is done before others have to wait for the write
            made_for = self._latest(run)[1] if base is None else self._at(run, base)
        with self._transaction(write=True) as run:
            version, told = tables.head(run, lock=True)
            if key is not None and (before := tables.appended_under(run, key)):
                return before
            ids = _ids(taken, told)
            if reason := tables.refusal(run, version if base is None else base, ids):
                return Appended(version, tuple(Rejected(operation, reason) for operation in delta.operations))
            _, now = self._latest(run)
            good, rejected = rebase(delta, now if base is None else made_for, now)
            tables.write(run, version + 1, "delta", tables.delta_body(good, rejected), key)
            tables.take(run, ids)
        return Appended(version + 1, rejected)

    def rollback(self, version: int) -> int:
        """Go back to an earlier version, and return the new one. This is an event too, so it can be undone."""
        with self._transaction(write=True) as run:
            latest, _ = tables.head(run, lock=True)
            _check_version(version, latest)
            tables.write(run, latest + 1, "rollback", {"to": version})
        return latest + 1

    def export(self, path: str | Path) -> None:
        """Write the latest playbook to a JSON file, as `Playbook.save` does."""
        self.playbook().save(path)

    def tell(self, record: Mapping[str, Any], *, source: str | None = None, key: str | None = None) -> int:
        """Keep a record to learn from, and return its id. It is on disk when this returns.

        Args:
            record: plain JSON data by name, such as `{"question": "…", "score": 0.0}`. What is nested more than 100
                levels deep is kept as JSON text.
            source: who or what it comes from, such as a user's id; None: `tell-` and its id.
            key: any text that identifies this record, for a retry. Told again under the same key it is kept once and
                has the same id.

        Raises:
            SettingsError: the record is not plain JSON data.
            StoreError: the database refuses.
        """
        checked("source", source, str | None)
        checked("key", key, str | None)
        plain = dict(checked("record", record, InstanceOf[Mapping[Any, Any]]))
        try:
            written = json.dumps(redacted(flattened(MAX_DEPTH, plain)), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise SettingsError(f"record must be plain JSON data, by name; this one is not: {error}.") from error
        with self._transaction(write=True) as run:
            _, told = tables.head(run, lock=True)
            return tables.tell(run, told + 1, written, source, key)

    def told(self, key: str) -> int | None:
        """Return the id of the record that was told under `key`, also after it was taken; None if there was none."""
        with self._transaction() as run:
            return tables.told_under(run, checked("key", key, str))

    def pending(self, limit: int | None = None, *, kind: str | None = None) -> tuple[Tell, ...]:
        """Return at most `limit` records that were told and not taken, oldest first; claimed ones as well.

        Args:
            limit: None: all.
            kind: only records whose first entry is `"format": kind`; None: all.
        """
        checked("limit", limit, Count | None)
        with self._transaction() as run:
            return tables.open_tells(run, limit, kind)

    def claim(self, limit: int | None = None, seconds: float = 600.0, *, kind: str | None = None) -> tuple[Tell, ...]:
        """Return at most `limit` pending records, and give them to no other process for so many seconds.

        Learn from them and call `append(delta, base, taken=ids)`. If the process dies, the claim ends and another one
        gets them: nothing is lost. The clocks of several machines should agree to well within `seconds`.

        Args:
            limit: None: all.
            seconds: how long the claim holds, unless `release` ends it.
            kind: see `pending`.
        """
        checked("limit", limit, Count | None)
        checked("seconds", seconds, Finite)
        with self._transaction(write=True) as run:
            tables.head(run, lock=True)
            found = tables.open_tells(run, limit, kind, time.time())
            tables.claim(run, [told.id for told in found], time.time() + seconds)
            return found

    def release(self, ids: Iterable[int]) -> None:
        """End the claim of records that nothing was learned from: any process may claim them now."""
        with self._transaction(write=True) as run:
            _, told = tables.head(run, lock=True)
            tables.claim(run, _ids(ids, told), 0.0)

    def taken(self, ids: Iterable[int]) -> None:
        """Delete told records that were learned from, or that are of no use.

        To learn from them and take them in one transaction, use `append(delta, base, taken=ids)`.
        """
        with self._transaction(write=True) as run:
            _, told = tables.head(run, lock=True)
            tables.take(run, _ids(ids, told))

    def forget(
        self,
        *,
        sources: Iterable[str] = (),
        matching: str | re.Pattern[str] | None = None,
        bullets: Iterable[str] = (),
        keep_shared: bool = False,
    ) -> Account:
        """Remove what some sources taught and told, or some bullets, and return an account of it.

        The history is rewritten as `dspy_ace.playbook.forget` does it; versions keep their numbers. No byte of what was
        removed is left in the database's files (SQLite; for a server the account says how far that holds). A delta
        that was made for an earlier version and comes later is rejected. If the process dies, all of it was done or
        nothing; if the files were not erased yet, this happens when the store is opened next.

        Args:
            sources: names of sources.
            matching: a regular expression; it removes bullets and told records whose (JSON) text it finds something in.
            bullets: ids of bullets.
            keep_shared: keep what several sources taught together while one of them stays.

        Raises:
            SettingsError: nothing is selected, or something that is not in the store; the known names are listed.

        Example:
            >>> print(store.forget(sources={"user-17"}))
            Removed: 1 bullet (str-00002).
            …
        """
        selection = Selection(sources, matching, bullets, keep_shared)
        for _ in range(3):  # it may take long, so it is done before others have to wait for the write
            with self._transaction() as run:
                seen = _read_all(run)
            done = _without(*seen, selection)
            if self.version == len(seen[1]):
                break
        with self._transaction(write=True) as run:
            version, _ = tables.head(run, lock=True)
            if version != len(seen[1]):  # others were faster again
                seen = _read_all(run)
                done = _without(*seen, selection)
            account = _forget(run, selection, seen[1], done)
            self._read = {}
        notes = [note for note in (*account.notes, self._erase(), _OTHERS) if note]
        for watcher in list(_watchers.get(str(self._database), [])):
            if method := watcher():
                with contextlib.suppress(StoreError):  # its store is closed
                    method()
        return replace(account, notes=tuple(notes))

    def watch(self, method: Callable[[], object]) -> None:
        """Call a bound method, in this process, each time something was forgotten in this database.

        It is called in the thread that calls `forget`, by any PlaybookStore on the same path or URL. The store keeps
        only a weak reference to its object.
        """
        name = str(self._database)
        _watchers[name] = [each for each in _watchers.get(name, []) if each()] + [weakref.WeakMethod(method)]

    def _erase(self) -> str:
        """Erase from the files what forgotten rows held, if they still do. Return what a user should know."""
        with self._alone() as database:
            try:
                with database.transaction(write=False) as run:
                    version = tables.unclean(run)
                if not version:
                    return ""
                note = database.erase()
                with database.transaction(write=True) as run:
                    tables.mark_clean(run, version)
            except StoreError as error:  # what was forgotten is gone for all readers: this is no reason to stop them
                note = (
                    "What was deleted may still be in the database's files, until they are erased when the store is "
                    f"opened next. The reason: {error}"
                )
                logger.warning("ACE: %s", note)
        return note

    def _set_up(self, database: Database, seed: Playbook) -> None:
        if not database.has_store():
            try:
                with database.transaction(write=True) as run:
                    tables.create(run, seed)
            except StoreError:
                if not database.has_store():  # else another process made the tables at the same moment
                    raise
        with database.transaction(write=False) as run:
            tables.check_layout(run, str(database))
        self._erase()

    def _latest(self, run: Run) -> tuple[int, Playbook]:
        """Replay the events since the last call, or all after a rollback or a "forget". Return version and playbook."""
        version = max(self._read, default=-1)
        fresh = tables.since(run, version) if self._read else []
        if not self._read or any(event.kind != "delta" for event in fresh):
            seed, events = tables.everything(run)
            self._read = {len(events): _replayed(seed, events)}
        elif fresh:
            self._read[fresh[-1].version] = _replayed(self._read[version], fresh)
            if len(self._read) > KEPT:
                del self._read[min(self._read)]
        version = max(self._read)
        return version, self._read[version]

    def _at(self, run: Run, version: int) -> Playbook:
        _check_version(version, self._latest(run)[0])
        if version not in self._read:
            seed, events = tables.everything(run)
            return _replayed(seed, events[:version])
        return self._read[version]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Database]:
        """Yield the database to one thread at a time."""
        with self._lock:
            if self._database is None:
                raise StoreError("This store is closed; open it anew.")
            yield self._database

    @contextlib.contextmanager
    def _transaction(self, write: bool = False) -> Iterator[Run]:
        with self._alone() as database, database.transaction(write) as run:
            yield run


_open: weakref.WeakSet[PlaybookStore] = weakref.WeakSet()
_held = threading.local()  # while this thread forks: the stores whose locks it holds; others may fork as well


def _before_fork() -> None:
    """Let the transactions of other threads end, and close all connections.

    A child must inherit none: SQLite would take the parent's locks on a file for the child's own. The parent could then
    remove the log that the child writes to, and a transaction under way would keep the child out for ever.
    """
    _held.stores = []
    for store in sorted(_open, key=id):  # in one order, whoever forks
        store._lock.acquire()
        _held.stores.append(store)
        if store._database is not None:
            store._database.close()


def _after_fork() -> None:
    while _held.stores:
        _held.stores.pop()._lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _replayed(playbook: Playbook, events: Sequence[StoredEvent]) -> Playbook:
    try:
        return replay(playbook, [event.event for event in events])
    except DeltaError as error:
        start = events[0].version - 1
        raise StoreError(f"The store is damaged after version {start}: {error}. Take it from a backup.") from error


def flattened(levels: int, data: Any) -> Any:
    """Return JSON data in which nothing is nested deeper than so many levels: so everybody can read it, in any stack.

    What is deeper is replaced by its JSON text.
    """
    whole = [data]
    places: list[tuple[Any, Any]] = [(whole, 0)]  # level by level: a recursion would need a stack itself
    for _ in range(levels):
        below: list[tuple[Any, Any]] = []
        for holder, at in places:
            if isinstance(holder[at], (dict, list, tuple)):
                holder[at] = inner = dict(holder[at]) if isinstance(holder[at], dict) else list(holder[at])
                below += [(inner, name) for name in (inner if isinstance(inner, dict) else range(len(inner)))]
        places = below
    for holder, at in places:
        if isinstance(holder[at], (dict, list, tuple)) and holder[at]:
            holder[at] = json.dumps(holder[at], allow_nan=False)
    return whole[0]


def _check_version(version: int, latest: int) -> None:
    hint = f"Versions go from 0 (the seed) to {latest} (the latest)."
    checked("version", version, Annotated[int, Ge(0), Le(latest)], hint)


def _ids(ids: Iterable[int], told: int) -> list[int]:
    kind = list[Annotated[int, Ge(1), Le(told)]]
    return sorted(set(checked("taken", list(ids), kind, f"It takes ids of told records, from 1 to {told}.")))


def _read_all(run: Run) -> tuple[Playbook, list[StoredEvent], tuple[Tell, ...]]:
    return (*tables.everything(run), tables.open_tells(run))


def _without(seed: Playbook, stored: Sequence[StoredEvent], tells: Sequence[Tell], selection: Selection) -> Forgotten:
    """Rewrite the history. Raises SettingsError if what is selected is not in the store."""
    # Rejected operations are kept for readers only. Any of them may quote what is forgotten, so all of them go.
    rejected = [each.to_json() for event in stored for each in event.rejected]
    named = {source for each in rejected for source in _sources(each["operation"] or {})}
    done = rewrite(seed, [event.event for event in stored], selection, {*named, *(told.source for told in tells)})
    found = done.found or selection.sources or selection.finds(_text(rejected))
    if not found and not any(_selected(told, selection) for told in tells):
        pattern = getattr(selection.matching, "pattern", "")
        raise SettingsError(f"Nothing in this store matches {pattern!r:.100}. Nothing was changed.")
    if rejected:
        gone = f"{counted(len(rejected), 'rejected operation')}, kept for readers only, went as well."
        done = replace(done, account=replace(done.account, notes=(gone, *done.account.notes)))
    return done


def _forget(run: Run, selection: Selection, stored: Sequence[StoredEvent], done: Forgotten) -> Account:
    """Write the rewritten history and delete told records. Return an account of it."""
    going = [told.id for told in tables.open_tells(run) if _selected(told, selection)]
    tables.write_over(run, 0, {"playbook": done.seed.to_json()})
    for event, new in zip(stored, done.deltas, strict=True):
        if isinstance(new, Delta) and (new != event.delta or event.rejected):
            tables.write_over(run, event.version, tables.delta_body(new))
    for number in going:
        tables.delete_tell(run, number)
    tables.write(run, len(stored) + 1, "forget", {})
    return replace(done.account, tells=len(going))


def _selected(told: Tell, selection: Selection) -> bool:
    return told.source in selection.sources or selection.finds(told.source, _text(told.record))


def _text(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False)


def _sources(operation: Mapping[str, Any]) -> list[str]:
    """Return the sources that an operation names; its fields may be of any type."""
    named = operation.get("sources", [operation.get("source")])
    return [source for source in named if isinstance(source, str)] if isinstance(named, list) else []
