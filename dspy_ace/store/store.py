"""A playbook that many processes share: an event log of deltas in a database, and what was told and not yet learned.

with PlaybookStore("memory.db") as store:                    # or a SQLAlchemy URL: postgresql+psycopg://…
    program = with_playbook(program, store.playbook())
    store.tell({"question": "…", "score": 0.0}, source="user-17")

The playbook is the fold of the events. Writers append a delta that was made for some version; if others were faster,
it is carried over to the latest one, and what no longer fits is left out, with its reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import SettingsError, StoreError
from ..playbook import Account, Delta, Playbook, Selection, brief, rebase, rejected_as
from . import rows
from .erase_store import forget_rows
from .rows import Appended, StoredEvent, Tell
from .sql import TABLES, Database, Session, open_database
from .view import StoreView


class PlaybookStore:
    """A playbook shared by processes and threads; survives their death at any moment.

    Args:
        url: a path (SQLite, nothing to install, one machine) or a SQLAlchemy URL (`pip install 'dspy-ace[store]'`).
        seed: what a new store starts from; a store that is there keeps its own.
        timeout: seconds to wait for another process's write (SQLite).

    Raises:
        StoreError: not a store, one of a newer version, damaged, or not to be written.
        SettingsError: an argument that cannot be one.
    """

    def __init__(self, url: str | Path, *, seed: Playbook | None = None, timeout: float = 30.0) -> None:
        if seed is not None and not isinstance(seed, Playbook):
            raise SettingsError(f"seed is a Playbook or None; got {brief(seed)}.")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise SettingsError(f"timeout is a number of seconds, 0 or more; got {timeout!r}.")
        self._database: Database | None = open_database(url, timeout)
        self._pid, self._lock = os.getpid(), threading.RLock()
        self._view = StoreView()
        try:
            self._set_up(self._database, seed or Playbook())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PlaybookStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PlaybookStore({str(self._database or 'closed')!r})"

    def close(self) -> None:
        """Let go of the database. What was acknowledged is safe with or without it."""
        if self._database is not None:
            with self._alone() as database:
                database.close()
            self._database = None

    @property
    def version(self) -> int:
        """How many events there are: one small read."""
        with self._transaction() as session:
            return rows.head(session)[0]

    def changed_since(self, version: int) -> bool:
        """Whether there are events after `version`: what a reader polls."""
        return self.version != version

    def playbook(self) -> Playbook:
        """The playbook as it stands. Only events that came since the last call are read."""
        return self.snapshot()[1]

    def snapshot(self) -> tuple[int, Playbook]:
        """A version and its playbook, from one moment: what to learn with, and the `base` of what was learned."""
        with self._transaction() as session:
            self._view.catch_up(session)
            return self._view.version, self._view.playbook

    def at(self, version: int) -> Playbook:
        """The playbook after so many events; 0: the seed. Raises SettingsError for a version that never was."""
        with self._transaction() as session:
            self._view.catch_up(session)
            return self._view.at(session, version)

    def history(self, since: int = 0) -> tuple[StoredEvent, ...]:
        """The events after version `since`, in order."""
        with self._transaction() as session:
            return tuple(rows.since(session, max(0, since)))

    def append(
        self, delta: Delta, base: int | None = None, *, key: str | None = None, taken: Iterable[int] = ()
    ) -> Appended:
        """Add a delta that was made for version `base`; when it returns, it is on disk.

        If others were faster, the delta is carried over (`dspy_ace.rebase`): bullets it adds get other ids, what no
        longer fits is left out. Nothing at all is appended, and everything is left out, if something was forgotten
        since `base` (what was learned before may hold it), or if one of `taken` is not pending any more.

        Args:
            delta: any delta that fits the playbook of `base`.
            base: the version it was made for; None: the latest.
            key: any text that names this very delta: a second append under it changes nothing and is answered as
                the first was. For retries after a crash.
            taken: ids of the told records it was learned from: they are taken in the same transaction.

        Raises:
            SettingsError: no delta; a base or a told record that never was.
            StoreError: the database refuses; nothing was changed.
        """
        if not isinstance(delta, Delta):
            raise SettingsError(f"append takes a Delta; got {brief(delta)}.")
        with self._transaction(write=True) as session:
            version, told = rows.locked(session)
            if key is not None and (before := rows.appended_under(session, key)):
                return before
            ids = rows.as_ids(taken, told)
            self._view.catch_up(session)
            base = version if base is None else base
            made_for = self._view.at(session, base)
            if reason := rows.refusal(session, base, ids):
                return Appended(version, tuple(rejected_as(operation, reason) for operation in delta.operations))
            good, rejected = rebase(delta, made_for, self._view.playbook)
            rows.write(session, version + 1, "delta", rows.body_of(good, rejected), key)
            rows.take(session, ids)
        return Appended(version + 1, rejected)

    def rollback(self, version: int) -> int:
        """Go back to an earlier version: an event as well, so that it can be undone. The version after it."""
        with self._transaction(write=True) as session:
            latest, _ = rows.locked(session)
            self._view.catch_up(session)
            self._view.at(session, version)
            rows.write(session, latest + 1, "rollback", {"to": version})
        return latest + 1

    def export(self, path: str | Path) -> None:
        """Write the playbook as it stands to a JSON file, as `Playbook.save` does."""
        self.playbook().save(path)

    def tell(self, record: Mapping[str, Any], *, source: str | None = None, key: str | None = None) -> int:
        """Keep a record to learn from; when its id is returned, it is on disk.

        Args:
            record: plain JSON data under names.
            source: who or what it comes from, such as a user's id; None: `tell-` and its id.
            key: any text that names this very record: told again under it, it is kept once, and has the same id.

        Raises:
            SettingsError: the record is not plain JSON data.
            StoreError: the database refuses.
        """
        if not isinstance(record, Mapping) or not (source is None or isinstance(source, str)):
            raise SettingsError(f"tell takes a mapping and a source (str); got {brief(record)} and {brief(source)}.")
        try:
            written = json.dumps(dict(record), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise SettingsError(f"A told record is plain JSON data; this one is not: {error}.") from error
        with self._transaction(write=True) as session:
            _, told = rows.locked(session)
            return rows.tell(session, told, written, source, key)

    def pending(self, limit: int | None = None) -> tuple[Tell, ...]:
        """What was told and not taken, oldest first, at most `limit`; claimed records as well."""
        with self._transaction() as session:
            return rows.open_tells(session, limit)

    def claim(self, limit: int | None = None, seconds: float = 600.0) -> tuple[Tell, ...]:
        """At most `limit` pending records, which no other process is given for so many seconds.

        Learn from them and call `append(delta, base, taken=ids)`. Who dies meanwhile loses nothing: the claim ends, and
        another process gets them. Clocks of several machines should agree to well within `seconds`.
        """
        with self._transaction(write=True) as session:
            rows.locked(session)
            found = rows.open_tells(session, limit, time.time())
            rows.claim(session, found, time.time() + seconds)
            return found

    def taken(self, ids: Iterable[int]) -> None:
        """These records were learned from, or are of no use: not pending any more, their texts are deleted.

        To learn from them and to take them in one go: `append(delta, base, taken=ids)`.
        """
        with self._transaction(write=True) as session:
            _, told = rows.locked(session)
            rows.take(session, rows.as_ids(ids, told))

    def forget(
        self,
        *,
        sources: Iterable[str] = (),
        matching: str | re.Pattern[str] | None = None,
        bullets: Iterable[str] = (),
        keep_shared: bool = False,
    ) -> Account:
        """Take out of the store what some sources taught and told, or some lessons; an account of it.

        The history is rewritten as `dspy_ace.forget` does it, versions keep their numbers, and nothing of what went is
        left in a byte of the database's files (SQLite; for a server see the account). A delta that was made for an
        earlier version and comes later is left out. If the process dies meanwhile, all of it was done or nothing, and
        the files are erased when the store is opened next.

        Args:
            sources, matching, bullets, keep_shared: what is to be forgotten, see `Selection`. Told records go as well,
                by their source, or where the pattern finds something in their JSON text.

        Raises:
            SettingsError: nothing is selected, or something that is not here; the known names are listed.
        """
        selection = Selection.of(sources, matching, bullets, keep_shared)
        with self._transaction(write=True) as session:
            account = forget_rows(session, selection)
        note = self._erase()
        return replace(account, notes=(*account.notes, note)) if note else account

    def _erase(self) -> str:
        """Erase what deleted rows held from the files, and note that it was done; what a user should know."""
        with self._alone() as database:
            self._view.start_over()
            with database.transaction(write=False) as session:
                version = rows.unclean(session)
            done, note = database.erase()
            if done:
                with database.transaction(write=True) as session:
                    rows.mark_clean(session, version)
        return note

    def _set_up(self, database: Database, seed: Playbook) -> None:
        for attempt in range(6):
            present = database.tables()
            if "ace_head" in present:
                break
            if any(name not in TABLES for name in present):
                raise StoreError(f"{database} holds tables of another program and no store; give a file of its own.")
            try:
                with database.transaction(write=True) as session:
                    rows.create(session, seed)
            except StoreError:  # another process may have made the tables in between
                if "ace_head" not in database.tables() and attempt == 5:
                    raise
                time.sleep(0.02 * 2**attempt)
        with database.transaction(write=False) as session:
            rows.check_layout(session, str(database))
            unclean = rows.unclean(session)
        if unclean:
            self._erase()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Database]:
        """The database, for one thread of this process; a forked child takes up connections of its own."""
        if self._database is None:
            raise StoreError("This store is closed; open it anew.")
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.RLock()
            self._database.forked()
        with self._lock:
            yield self._database

    @contextlib.contextmanager
    def _transaction(self, write: bool = False) -> Iterator[Session]:
        with self._alone() as database, database.transaction(write) as session:
            yield session
