"""The databases that a store can live in: one SQLite file (sqlite3), or a server (SQLAlchemy).

Both take plain SQL with `:name` parameters, so each statement is written once. The two classes have the same methods.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union

from ..errors import SettingsError, StoreError

SCHEMA = (
    (
        "CREATE TABLE ace_head (id INTEGER PRIMARY KEY, format VARCHAR(40) NOT NULL, "
        "layout INTEGER NOT NULL, version BIGINT NOT NULL, told BIGINT NOT NULL, unclean INTEGER NOT NULL)"
    ),
    (
        "CREATE TABLE ace_events (version BIGINT PRIMARY KEY, kind VARCHAR(16) NOT NULL, "
        "body TEXT NOT NULL, token VARCHAR(64) UNIQUE, made VARCHAR(40) NOT NULL)"
    ),
    (
        "CREATE TABLE ace_tells (id BIGINT PRIMARY KEY, token VARCHAR(64) UNIQUE, source TEXT, "
        "record TEXT, made VARCHAR(40) NOT NULL, claimed DOUBLE PRECISION NOT NULL, taken INTEGER NOT NULL)"
    ),
    "CREATE INDEX ace_tells_open ON ace_tells (taken, id)",
)
_ADMINISTRATOR = "The server's own log, statistics, replicas and backups are its administrator's to clean."
PATIENCE = 2.0  # seconds to wait for readers before erasing is put off
LOCK_SECONDS = 0.2  # the longest time for which such a wait keeps others from the tables

Run = Callable[..., list[tuple[Any, ...]]]
"""Runs a statement within a transaction, `run("… WHERE id = :id", id=3)`, and returns its rows."""


class Sqlite:
    """One SQLite file. It uses a write-ahead log, so `-wal` and `-shm` stand beside it while it is open.

    One thread uses it at a time; its owner sees to that.

    Args:
        path: the file. It is made if it is missing, with its folder. A relative path is taken from the current
            directory once: a later `os.chdir` changes nothing. SQLite's log cannot work on a network file system.
        timeout: seconds to wait for another process's write.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self.path, self.timeout = path.absolute(), timeout
        self._connection: sqlite3.Connection | None = None

    def __str__(self) -> str:
        return str(self.path)

    @contextlib.contextmanager
    def transaction(self, write: bool) -> Iterator[Run]:
        """Do all of it or nothing; with `write`, nobody else writes meanwhile. Raises StoreError."""
        with self._explained():
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield lambda sql, **values: connection.execute(sql, values).fetchall()
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:  # something failed before COMMIT was done
                    connection.execute("ROLLBACK")

    def has_store(self) -> bool:
        """Return True if the tables are there. Raises StoreError for a database of another program."""
        with self.transaction(write=False) as run:
            names = [name for (name,) in run("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if names and "ace_head" not in names:
            raise StoreError(f"{self} holds tables of another program and no store; give a file of its own.")
        return bool(names)

    def erase(self) -> str:
        """Overwrite in all files what deleted rows held, and return what a user should know.

        Raises:
            StoreError: it could not be done now: the disk is full, or others are reading for longer than `PATIENCE`.
        """
        with self._explained():
            connection, patience = self._connected(), min(PATIENCE, self.timeout)
            # While a checkpoint waits for readers nobody can write: it waits often, and each time briefly.
            connection.execute(f"PRAGMA busy_timeout = {1000 * LOCK_SECONDS:.0f}")
            try:
                self._retried(connection, "VACUUM", patience)
                busy, *_ = self._retried(connection, "PRAGMA wal_checkpoint(TRUNCATE)", patience)
            finally:
                connection.execute(f"PRAGMA busy_timeout = {1000 * self.timeout:.0f}")
        if busy:
            raise StoreError(f"Another process is reading {self.path.name}.")
        return ""

    def close(self) -> None:
        """Close the connection; the next transaction opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if not self.path.exists():
                    self.path.touch(mode=0o600)  # it holds what users told
            except (OSError, ValueError) as error:
                raise StoreError(f"{self}: it cannot be made: {error}. Give another path.") from error
            connection = sqlite3.connect(self.path, timeout=self.timeout, isolation_level=None, check_same_thread=False)
            with contextlib.ExitStack() as on_failure:
                on_failure.callback(connection.close)
                self._retried(connection, "PRAGMA journal_mode=WAL", self.timeout)
                connection.execute("PRAGMA synchronous=FULL")  # an acknowledged write outlives a power cut
                connection.execute("PRAGMA secure_delete=ON")
                on_failure.pop_all()
            self._connection = connection
        return self._connection

    def _retried(self, connection: sqlite3.Connection, sql: str, seconds: float) -> list[Any]:
        """Return the first row of a statement that SQLite may refuse without waiting for others."""
        end = time.monotonic() + seconds
        while True:
            try:
                row: tuple[Any, ...] = connection.execute(sql).fetchone() or ()
                if not (sql.startswith("PRAGMA wal_checkpoint") and row[0]) or time.monotonic() > end:
                    return list(row)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(0.01)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise SQLite's errors as StoreError, with what to do."""
        try:
            yield
        except sqlite3.Error as error:
            said = str(error)
            if "locked" in said or "busy" in said:
                hint = f"Another process has been writing for {self.timeout:g} s; try again, or give a longer timeout."
            elif any(word in said for word in ("readonly", "unable to open", "full", "disk I/O")):
                hint = "It cannot be written: check the free space and the permissions of file and folder."
            elif isinstance(error, sqlite3.OperationalError):
                hint = "Nothing was changed."
            else:
                hint = "The file is damaged, or no store at all; take it from a backup, or give another path."
            raise StoreError(f"{self}: {said}. {hint}") from error


class Server:
    """A database server by its SQLAlchemy URL, such as `postgresql+psycopg://user@host/name`.

    Args:
        url: the URL; the driver it names must be installed.
        timeout: seconds to wait for another process's write (PostgreSQL; elsewhere as long as the server lets it).

    Raises:
        SettingsError: SQLAlchemy or the driver is missing, or the URL cannot be read.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.timeout = timeout
        try:
            import sqlalchemy  # noqa: PLC0415 - an extra: SQLite needs none
        except ImportError as error:
            raise SettingsError("A store by URL needs SQLAlchemy: pip install 'dspy-ace[store]'.") from error
        try:
            self._engine = sqlalchemy.create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED")
        except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ImportError, ValueError) as error:
            raise SettingsError(
                f"This is no URL that SQLAlchemy can open here: {error}. Expected for instance "
                "'postgresql+psycopg://user:password@host/database', with its driver (psycopg) installed."
            ) from error
        self._alchemy: Any = sqlalchemy

    def __str__(self) -> str:
        url = self._engine.url  # a password may stand in the query as well
        return str(url.set(query=dict.fromkeys(url.query, "***")).render_as_string(hide_password=True))

    @contextlib.contextmanager
    def transaction(self, write: bool) -> Iterator[Run]:
        """Do all of it or nothing; who writes locks the row of `ace_head`. Raises StoreError."""
        with self._explained(), self._engine.begin() as connection:

            def run(sql: str, **values: Any) -> list[tuple[Any, ...]]:
                result = connection.execute(self._alchemy.text(sql), values)
                return [tuple(row) for row in result] if result.returns_rows else []

            if write and self._engine.dialect.name == "postgresql":
                _limit_waiting(run, self.timeout)
            yield run

    def has_store(self) -> bool:
        """Return True if the tables are there. Raises StoreError if the server cannot be reached."""
        with self._explained("cannot be reached: "):
            return bool(self._alchemy.inspect(self._engine).has_table("ace_head"))

    def erase(self) -> str:
        """As for `Sqlite`. On PostgreSQL the tables are rewritten; elsewhere it cannot be done from here."""
        if self._engine.dialect.name != "postgresql":
            return f"The rows are deleted; whether their bytes are, is up to the database. {_ADMINISTRATOR}"
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with self.transaction(write=True) as run:
                    _rewrite_tables(run)
                return f"The tables were put into new files. {_ADMINISTRATOR}"
            except StoreError as error:
                # an OperationalError: somebody is reading; anything else, such as a missing right, will not pass
                if not isinstance(error.__cause__, self._alchemy.exc.OperationalError) or time.monotonic() > end:
                    raise StoreError(f"the tables could not be put into new files. {error}") from error
            time.sleep(0.1)

    def close(self) -> None:
        """Close all connections; the next transaction opens others."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _explained(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except self._alchemy.exc.SQLAlchemyError as error:
            raise StoreError(f"{self}: {what}{getattr(error, 'orig', None) or error}") from error


def _limit_waiting(run: Run, seconds: float) -> None:
    run(f"SET LOCAL lock_timeout = '{max(1, round(1000 * seconds))}ms'")  # 0 would be no limit


def _rewrite_tables(run: Run) -> None:
    """Put the rows of PostgreSQL tables into new files.

    Not VACUUM FULL: it keeps rows that any older transaction might still read, only warns where the role does not own
    the table, and waits for readers with everybody else waiting behind it.
    """
    _limit_waiting(run, LOCK_SECONDS)
    run("LOCK TABLE ace_events, ace_tells IN ACCESS EXCLUSIVE MODE")
    run("CREATE TEMPORARY TABLE ace_kept_events ON COMMIT DROP AS SELECT * FROM ace_events")
    run("CREATE TEMPORARY TABLE ace_kept_tells ON COMMIT DROP AS SELECT * FROM ace_tells")
    run("TRUNCATE ace_events, ace_tells")
    run("INSERT INTO ace_events SELECT * FROM ace_kept_events")
    run("INSERT INTO ace_tells SELECT * FROM ace_kept_tells")


Database = Union[Sqlite, Server]


def open_database(url: str | Path, timeout: float) -> Database:
    """Return the database of a path, of `sqlite:///path`, or of any other SQLAlchemy URL. Nothing is opened yet."""
    if not isinstance(url, (str, os.PathLike)) or not str(url):
        raise SettingsError(f"A store is a path or a SQLAlchemy URL; got {url!r}.")
    if not isinstance(url, str) or "://" not in url:
        return Sqlite(Path(url), timeout)
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return Sqlite(Path(url[len("sqlite:///") :]), timeout)
    return Server(url, timeout)
