"""The databases a store lives in, behind one small surface: SQLite from the standard library, or any SQLAlchemy URL.

Statements are plain SQL with `:name` parameters, which both take as they are.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

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
TABLES = ("ace_head", "ace_events", "ace_tells")
_kept_open: list[Any] = []  # connections of a parent process: closing one in a child could harm the parent's


class Session(Protocol):
    """What can be done within a transaction."""

    def rows(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        """The rows of a SELECT."""

    def run(self, sql: str, *many: Mapping[str, Any]) -> None:
        """Carry a statement out, once for each mapping of values (once, without any, if there is none)."""


class Database(Protocol):
    """A place for the tables of `SCHEMA`. Used by one thread of a process at a time; its owner sees to that."""

    def transaction(self, write: bool) -> contextlib.AbstractContextManager[Session]:
        """All or nothing. `write`: nobody else writes meanwhile. Raises StoreError for what the database refuses."""

    def tables(self) -> list[str]:
        """Names of the tables that are there."""

    def erase(self) -> tuple[bool, str]:
        """Leave nothing in the files of what rows held before: whether that was done, and what a user should know."""

    def forked(self) -> None:
        """This is a child process now: take up connections of its own."""

    def close(self) -> None:
        """Let go of all connections."""


class _SqliteSession:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, values).fetchall()

    def run(self, sql: str, *many: Mapping[str, Any]) -> None:
        if many:
            self._connection.executemany(sql, many)
        else:
            self._connection.execute(sql)


class Sqlite:
    """One file (WAL, so `-wal` and `-shm` stand beside it while it is open). Deleted content is overwritten.

    Args:
        path: the file; made if need be, with its folder. Not on a network file system: SQLite's WAL cannot work there.
        timeout: seconds to wait for another process's write.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self.path, self.timeout = path, timeout
        self._connection: sqlite3.Connection | None = None

    def __str__(self) -> str:
        return str(self.path)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"{self}: its folder cannot be made: {error}.") from error
            connection = sqlite3.connect(self.path, timeout=self.timeout, isolation_level=None, check_same_thread=False)
            try:
                self._retried(connection, "PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")  # an acknowledged write outlives a power cut
                connection.execute("PRAGMA secure_delete=ON")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _retried(self, connection: sqlite3.Connection, sql: str) -> list[Any]:
        """The first row of a statement that SQLite may refuse at once while others are at work."""
        end = time.monotonic() + self.timeout
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
    def transaction(self, write: bool) -> Iterator[Session]:
        """See `Database`."""
        with self._told():
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield _SqliteSession(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def tables(self) -> list[str]:
        """See `Database`."""
        with self.transaction(write=False) as session:
            return [name for (name,) in session.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]

    def erase(self) -> tuple[bool, str]:
        """See `Database`."""
        with self._told():
            connection = self._connected()
            self._retried(connection, "VACUUM")
            if self._retried(connection, "PRAGMA wal_checkpoint(TRUNCATE)")[0]:
                return False, (
                    f"Another process is reading {self.path.name}: what was deleted is still in its -wal file. "
                    "It is erased when the store is opened next."
                )
        return True, ""

    def forked(self) -> None:
        """See `Database`."""
        _kept_open.append(self._connection)
        self._connection = None

    def close(self) -> None:
        """See `Database`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say what SQLite says, and what to do."""
        try:
            yield
        except sqlite3.Error as error:
            said = str(error)
            if "locked" in said or "busy" in said:
                hint = f"Another process has been writing for {self.timeout:g} s; try again, or give a longer timeout."
            elif any(word in said for word in ("readonly", "unable to open", "full", "disk I/O")):
                hint = "It cannot be written: look at the disk, its space and the permissions of file and folder."
            elif isinstance(error, sqlite3.OperationalError):
                hint = "Nothing was changed."
            else:
                hint = "The file is damaged, or no store at all; take it from a backup, or give another path."
            raise StoreError(f"{self}: {said}. {hint}") from error


class _AlchemySession:
    def __init__(self, connection: Any, text: Any) -> None:
        self._connection, self._text = connection, text

    def rows(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._connection.execute(self._text(sql), values)]

    def run(self, sql: str, *many: Mapping[str, Any]) -> None:
        if many:
            self._connection.execute(self._text(sql), [dict(values) for values in many])
        else:
            self._connection.execute(self._text(sql))


class Alchemy:
    """A database server by its SQLAlchemy URL, such as `postgresql+psycopg://user@host/name`.

    Args:
        url: the URL; the driver it names must be installed.

    Raises:
        SettingsError: SQLAlchemy or the driver is missing, or the URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            import sqlalchemy  # noqa: PLC0415 - an extra: SQLite needs none
        except ImportError as error:
            raise SettingsError("A store by URL needs SQLAlchemy: pip install 'dspy-ace[store]'.") from error
        try:
            self._engine = sqlalchemy.create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED")
        except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ImportError) as error:
            raise SettingsError(
                f"This is no URL that SQLAlchemy can open here: {error}. Expected for instance "
                "'postgresql+psycopg://user:password@host/database', with its driver (psycopg) installed."
            ) from error
        self._alchemy: Any = sqlalchemy

    def __str__(self) -> str:
        return str(self._engine.url.render_as_string(hide_password=True))

    @contextlib.contextmanager
    def transaction(self, write: bool) -> Iterator[Session]:  # noqa: ARG002 - the row of the head is the lock
        """See `Database`."""
        try:
            with self._engine.begin() as connection:
                yield _AlchemySession(connection, self._alchemy.text)
        except self._alchemy.exc.SQLAlchemyError as error:
            raise StoreError(f"{self}: {getattr(error, 'orig', None) or error}") from error

    def tables(self) -> list[str]:
        """See `Database`."""
        try:
            return [name for name in self._alchemy.inspect(self._engine).get_table_names() if name in TABLES]
        except self._alchemy.exc.SQLAlchemyError as error:
            raise StoreError(f"{self} cannot be reached: {getattr(error, 'orig', None) or error}") from error

    def erase(self) -> tuple[bool, str]:
        """See `Database`."""
        if self._engine.dialect.name == "postgresql":
            try:
                with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    for table in TABLES:
                        connection.execute(self._alchemy.text(f"VACUUM FULL {table}"))
            except self._alchemy.exc.SQLAlchemyError as error:
                return False, f"{self}: the tables could not be rewritten: {getattr(error, 'orig', None) or error}"
            kept = "The tables were rewritten (VACUUM FULL)."
        else:
            kept = "The rows are deleted; whether their bytes are, is up to the database."
        return True, f"{kept} The server's own log, replicas and backups are its administrator's to clean."

    def forked(self) -> None:
        """See `Database`."""
        self._engine.dispose(close=False)

    def close(self) -> None:
        """See `Database`."""
        self._engine.dispose()


def open_database(url: str | Path, timeout: float) -> Database:
    """The database of a path, of `sqlite:///path`, or of any other SQLAlchemy URL. Nothing is opened yet."""
    if not isinstance(url, (str, os.PathLike)) or not str(url):
        raise SettingsError(f"A store is a path or a SQLAlchemy URL; got {url!r}.")
    if not isinstance(url, str) or "://" not in url:
        return Sqlite(Path(url), timeout)
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return Sqlite(Path(url[len("sqlite:///") :]), timeout)
    return Alchemy(url)
