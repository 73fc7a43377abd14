"""Writers on two hosts and one PostgreSQL store, whose connections are cut in the middle of a write."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest

import databases
from dspy_ace import Playbook, PlaybookStore
from dspy_ace.errors import StoreError
from dspy_ace.playbook import Add, Delta, replay
from paths import HELPERS, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its writers, so that a start costs nothing"),
]
HOSTS, WRITERS = 2, 16  # on each host
TELLS = 20  # of each writer; with every second one it adds a bullet
Result = TypeVar("Result")

# one that holds the lock of a write, or if there is none any that has a transaction open
CUT = """
SELECT pg_terminate_backend(pid) FROM (
    SELECT pid FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
    ORDER BY wait_event_type = 'Lock', random() LIMIT 1
) AS chosen
"""


@pytest.fixture
def url() -> Iterator[str]:
    """Where a fresh store may be made."""
    if reason := databases.missing():
        pytest.skip(reason)
    with databases.postgres() as address:
        yield address


def writer(url: str, name: str, said: Path) -> None:
    """Tell and add; what the lost connection left open is done again under the same key."""
    lost = 0

    def kept(write: Callable[[], Result]) -> Result:
        nonlocal lost
        while True:
            try:
                return write()
            except StoreError:
                lost += 1

    with kept(lambda: PlaybookStore(url, timeout=120)) as store:
        told, added = [], []
        for n in range(TELLS):
            record, key = {"writer": name, "n": n}, f"{name}/{n}"
            told.append(kept(lambda: store.tell(record, source=name, key=key)))  # noqa: B023 - called at once
            if n % 2 == 0:
                delta = Delta((Add("S", f"bullet {key}", None, (name,)),))
                added.append(kept(lambda: store.append(delta, key=key)).version)  # noqa: B023
    said.write_text(json.dumps({"told": told, "added": added, "lost": lost}))


def host(url: str, number: str, folder: Path) -> None:
    """Run the writers of one host, each a process of its own; their worst exit code is this one's."""
    children = []
    for n in range(WRITERS):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                writer(url, f"{number}-{n}", folder / f"{number}-{n}.json")
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


def test_a_connection_that_is_lost_in_a_write_loses_nothing_and_doubles_nothing(url: str, tmp_path: Path) -> None:
    """32 writers on two hosts, connections cut every few milliseconds, mostly that of the write under way."""
    import sqlalchemy

    with PlaybookStore(url) as store:
        store.tell({"writer": "first"})
    hosts = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), url, str(number), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT)])},
            start_new_session=True, stderr=subprocess.PIPE, text=True,
        )
        for number in range(HOSTS)
    ]  # fmt: skip
    engine, cut = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT"), 0
    try:
        with engine.connect() as connection:
            end = time.monotonic() + 200
            while any(each.poll() is None for each in hosts) and time.monotonic() < end:
                cut += len(connection.execute(sqlalchemy.text(CUT)).all())
                time.sleep(0.02)
        said = [each.communicate(timeout=60)[1] for each in hosts]
    finally:
        engine.dispose()
        for each in hosts:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
    assert [each.returncode for each in hosts] == [0, 0], said
    notes = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert len(notes) == HOSTS * WRITERS
    lost = sum(note["lost"] for note in notes.values())
    print(f"{len(notes)} writers, {cut} connections cut, {lost} writes lost theirs")
    assert lost >= 20
    with PlaybookStore(url) as store:
        history, playbook, pending = store.history(), store.playbook(), store.pending()
    records = {told.id: told.record for told in pending}
    assert len(records) == HOSTS * WRITERS * TELLS + 1
    assert playbook == replay(Playbook(), [event.event for event in history])
    assert len(history) == len(playbook) == HOSTS * WRITERS * (TELLS // 2)
    for name, note in notes.items():
        assert [records[number] for number in note["told"]] == [{"writer": name, "n": n} for n in range(TELLS)]
        contents = [history[version - 1].delta.operations[0].content for version in note["added"]]
        assert contents == [f"bullet {name}/{n}" for n in range(0, TELLS, 2)]


class LosingProxy:
    """Passes bytes on to a server; while it is losing, it cuts connections before the answer to a third of the COMMITs.

    Args:
        port: of the server, on loopback.
    """

    def __init__(self, port: int) -> None:
        self.port, self.losing, self.cut, self.dice = port, False, 0, random.Random(0)
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(("127.0.0.1", self.port))
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    (server if ready is client else client).sendall(data)
                    commits = ready is client and b"COMMIT" in data
                    if self.losing and commits and self.dice.random() < 1 / 3:
                        self.cut += 1
                        server.recv(1 << 16)  # it is done
                        return


def test_a_commit_whose_answer_is_lost_is_not_done_twice(url: str) -> None:
    """The writer cannot know that it was done; the same key tells the store."""
    server = urlsplit(url)
    assert server.port is not None
    proxy = LosingProxy(server.port)
    through = url.replace(str(server.port), str(proxy.listener.getsockname()[1]))
    PlaybookStore(url).close()  # the tables are there
    errors = 0
    with proxy.listener, PlaybookStore(through) as store:
        proxy.losing = True
        for n in range(12):
            for write, what in ((store.tell, {"n": n}), (store.append, Delta((Add("S", f"bullet {n}"),)))):
                done = False
                while not done and errors < 100:
                    try:
                        write(what, key=str(n))  # type: ignore[operator]
                        done = True
                    except StoreError:
                        errors += 1
    assert errors == proxy.cut >= 12
    with PlaybookStore(url) as store:
        assert [told.record["n"] for told in store.pending()] == list(range(12))
        assert [bullet.content for bullet in store.playbook()] == [f"bullet {n}" for n in range(12)]


if __name__ == "__main__":
    host(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
