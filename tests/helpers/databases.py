"""Databases for tests of the store: files, and a PostgreSQL server of our own where its programs are installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _program(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(installed[-1]) if installed else shutil.which(name)


def missing() -> str | None:
    """Why no PostgreSQL can be used here; None if it can."""
    for module in ("sqlalchemy", "psycopg"):
        if importlib.util.find_spec(module) is None:
            return f"needs {module}"
    if _program("initdb") is None or _program("pg_ctl") is None:
        return "needs PostgreSQL's server programs (initdb, pg_ctl)"
    return None


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a fresh server on loopback, trusted, gone afterwards with all its data."""
    user = "postgres" if os.getuid() == 0 else None  # its server refuses root
    folder = Path(tempfile.mkdtemp(prefix="dspy_ace_pg_"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if user:
        shutil.chown(folder, user)
    data, control = str(folder / "data"), str(_program("pg_ctl"))
    options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c port={port} -c fsync=off"

    def run(*command: str) -> None:
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

    try:
        run(str(_program("initdb")), "-D", data, "-U", "ace", "-A", "trust", "-E", "UTF8", "--no-sync")
        run(control, "-D", data, "-l", str(folder / "log"), "-o", options, "-w", "start")
        try:
            yield f"postgresql+psycopg://ace@127.0.0.1:{port}/postgres"
        finally:
            run(control, "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def empty(url: str) -> None:
    """Drop the tables of a store."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        for table in ("ace_head", "ace_events", "ace_tells"):
            connection.execute(sqlalchemy.text(f"DROP TABLE IF EXISTS {table}"))
    engine.dispose()
