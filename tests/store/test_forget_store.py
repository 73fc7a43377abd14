"""Forgetting in a store: what a source taught is gone from its tables and its file."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

import databases
from dspy_ace import Bullet, Playbook, PlaybookStore, with_playbook
from dspy_ace.errors import SettingsError
from dspy_ace.playbook import Add, Delta, Event, Merge, Tag, Update, apply
from dspy_ace.store import tables
from edits import CANARY, add, contents

FIFTY = [str(n) for n in range(50)]


def large_history() -> list[Event]:
    """50 sources, more than 300 bullets; source 17 teaches on its own, and edits and votes among the others."""
    rng = random.Random(5)
    events: list[Event] = []
    playbook = Playbook()
    touched: set[str] = set()
    for step in range(110):
        source = FIFTY[step % 50]
        word = CANARY if source == "17" else "plain"
        operations: list[Any] = [add(f"lesson {step}.{n} of {word} {source}", source) for n in range(3)]
        operations += [Tag(bullet.id, 1, 0, source) for bullet in rng.sample(playbook.bullets, min(3, len(playbook)))]
        free = [b for b in playbook if b.id not in touched]
        if source == "17" and step > 50:
            operations += [Update(free[3].id, f"{free[3].content}, and {CANARY}", None, ("17",))]
            operations += [
                Merge((free[5].id, free[9].id), f"{free[5].content} {CANARY} {free[9].content}", None, ("17",))
            ]
            touched |= {free[n].id for n in (3, 5, 9)}
        events.append(Delta(tuple(operations)))
        playbook = apply(playbook, events[-1])
    return events


def without_seventeen(events: Sequence[Event]) -> Playbook:
    """An independent account of what must be left: every operation of the others, replayed by hand with ids kept."""
    bullets: dict[str, Bullet] = {}
    number = 0
    for event in events:
        assert isinstance(event, Delta)
        for operation in event.operations:
            if isinstance(operation, Add):
                number += 1
                if operation.sources != ("17",):
                    name = f"s-{number:05d}"
                    bullets[name] = Bullet(name, "S", operation.content, 0, 0, None, operation.sources)
            elif isinstance(operation, Tag) and operation.source != "17" and operation.id in bullets:
                old = bullets[operation.id]
                bullets[operation.id] = replace(old, helpful=old.helpful + operation.helpful)
    return Playbook(tuple(bullets.values()), ("S",), number)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_one_of_fifty_sources_is_forgotten_in_a_store(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its words are in no byte of the files, no prompt and no record; the rest is the playbook replayed without it."""
    url: Any = tmp_path / "store.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres")
        databases.empty(url)
    events = large_history()
    with PlaybookStore(url) as store, PlaybookStore(url) as reader:
        for at, event in enumerate(events):
            assert isinstance(event, Delta)
            source = FIFTY[at % 50]
            store.append(event, key=f"{source} {at}")
            store.tell(
                {"text": CANARY if source == "17" else "plain", "n": at}, source=source, key=f"told {source} {at}"
            )
        store.append(
            Delta((add("x", "17"), Update("s-99999", CANARY, None, ("17",)), Update("s-99998", "plain", None, ("3",))))
        )
        old = reader.playbook()
        assert len(old) >= 300
        assert CANARY in old.render()
        if kind == "sqlite":
            assert CANARY.encode() in b"".join(path.read_bytes() for path in tmp_path.iterdir())
        account = store.forget(sources={"17"})
        expected = without_seventeen([*events, Delta((add("x", "17"),))])
        for playbook in (store.playbook(), reader.playbook(), store.at(store.version)):
            assert playbook == expected
        assert CANARY not in json.dumps(store.playbook().to_json())
        prompts = with_playbook(dspy.Predict("question -> answer"), reader.playbook()).signature.instructions
        assert CANARY not in prompts
        assert (account.tells, len(store.pending())) == (2, len(events) - 2)
        assert {told.source for told in store.pending()} == set(FIFTY) - {"17"}
        assert not [r for event in store.history() for r in event.rejected]
        assert "17" not in {s for b in store.playbook() for s in b.sources}
        if kind == "sqlite":
            held = b"".join(path.read_bytes() for path in tmp_path.iterdir())  # while it is open, WAL and all
            assert CANARY.encode() not in held
            assert b"plain" in held
        assert CANARY not in str(account)
        assert account.votes == 6
        with pytest.raises(SettingsError, match="No such sources: '17'"):
            store.forget(sources={"17"})
    with PlaybookStore(url) as store:
        assert store.playbook() == expected


def test_what_was_learned_before_the_forgetting_does_not_come_back(tmp_path: Path) -> None:
    """A delta in the making at that time is left out whole, its records stay pending, and it may be learned again."""
    with PlaybookStore(tmp_path / "store.db") as store:
        store.append(Delta((add(CANARY, "f"), add("mine", "a"))))
        number = store.tell({"n": 1}, source="b")
        base, _ = store.snapshot()
        store.forget(sources={"f"})
        version, rejected = store.append(Delta((add(f"like {CANARY}", "b"),)), base, taken=[number])
        assert (version, len(rejected)) == (2, 1)
        assert "forgotten since version 1" in rejected[0].reason
        assert [told.id for told in store.pending()] == [number]
        base, _ = store.snapshot()
        assert store.append(Delta((add("anew", "b"),)), base, taken=[number]) == (3, ())
        assert contents(store.playbook()) == {"s-00002": "mine", "s-00003": "anew"}


def test_an_erasure_that_a_crash_interrupted_is_finished_at_the_next_opening(tmp_path: Path) -> None:
    """Rows rewritten, files not yet: whoever opens the store next erases them."""
    path = tmp_path / "store.db"
    with PlaybookStore(path) as store:
        for n in range(50):
            store.append(Delta((add(f"{CANARY} {n} " * 20, "f"), add(f"mine {n}", "a"))))
        store._erase = lambda: ""  # type: ignore[method-assign]  # the process dies here
        store.forget(sources={"f"})
        for file in tmp_path.iterdir():  # as kill -9 leaves them
            shutil.copy(file, tmp_path / f"left-{file.name}")
    left = [file for file in tmp_path.iterdir() if file.name.startswith("left-")]
    assert CANARY.encode() in b"".join(file.read_bytes() for file in left)
    with PlaybookStore(tmp_path / "left-store.db") as store:
        assert len(store.playbook()) == 50
        assert CANARY.encode() not in b"".join(file.read_bytes() for file in left if file.exists())


def test_a_reader_in_the_way_of_the_erasure_is_said(tmp_path: Path) -> None:
    """While another process reads old pages the text cannot leave the files: the account says so."""
    path = tmp_path / "store.db"
    with PlaybookStore(path, timeout=0.2) as store:
        store.append(Delta((add(CANARY, "f"), add("mine", "a"))))
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM ace_events").fetchall()
        account = store.forget(sources={"f"})
        assert "until they are erased when the store is opened next" in str(account)
        assert "Another process is reading store.db" in str(account)
        reader.execute("COMMIT")
        reader.close()
    with PlaybookStore(path) as store:
        assert contents(store.playbook()) == {"s-00002": "mine"}
        assert CANARY.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_a_history_that_grows_meanwhile_is_read_while_others_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is appended during a forgetting is rewritten too, and it was not read with everybody waiting."""
    path, whole, late = tmp_path / "store.db", tables.everything, iter(("late", "later"))
    with PlaybookStore(path) as store, PlaybookStore(path, timeout=0.05) as other:
        store.append(Delta((add(CANARY, "f"), add("mine", "a"))))

        other.playbook()

        def everything(run: Any) -> Any:
            read = whole(run)
            for content in late:
                other.append(Delta((add(content, "f"),)))
                break
            return read

        monkeypatch.setattr(tables, "everything", everything)
        store.forget(sources={"f"})
        assert contents(store.playbook()) == {"s-00002": "mine"}
        assert [event.kind for event in store.history()] == ["delta", "delta", "delta", "forget"]


def test_rejections_of_any_kind_do_not_stop_a_forgetting(tmp_path: Path) -> None:
    """A rejected operation may have fields of any type; a source that stands in rejections alone can be forgotten."""
    with PlaybookStore(tmp_path / "store.db") as store:
        odd: Any = Add("S", "x", None, 5)  # type: ignore[arg-type]
        assert len(store.append(Delta((odd, add("mine", "a"), Update("s-99999", CANARY, None, ("f",))))).rejected) == 2
        assert "2 rejected operations" in str(store.forget(sources={"f"}))
        assert contents(store.playbook()) == {"s-00001": "mine"}
        assert store.history()[0].rejected == ()


def test_a_store_forgets_by_pattern_and_in_what_was_told(tmp_path: Path) -> None:
    """The pattern finds lessons and pending records; a pattern that finds nothing changes nothing."""
    with PlaybookStore(tmp_path / "store.db") as store:
        store.append(Delta((add("call 555-0100", "a"), add("mine", "a"))))
        store.tell({"text": "my number is 555-0100"}, source="a")
        store.tell({"text": "nothing"}, source="a")
        store.tell({"text": "nothing"}, source="tel:555-0199")
        with pytest.raises(SettingsError, match="matches 'zebra'"):
            store.forget(matching="zebra")
        assert store.version == 1
        account = store.forget(matching=r"\d{3}-\d{4}")
        assert (account.removed, account.tells) == (("s-00001",), 2)
        assert [told.id for told in store.pending()] == [2]
        account = store.forget(bullets={"s-00002"})
        assert len(store.playbook()) == 0
        assert [event.kind for event in store.history()] == ["delta", "forget", "forget"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_full_disk_puts_off_the_erasure_alone(tmp_path: Path) -> None:
    """The text is forgotten, the account says that its bytes are left, and the store opens; later they are erased."""
    code = f"""
import os, resource
from dspy_ace import PlaybookStore
from dspy_ace.playbook import Add, Delta
path = {str(tmp_path / "store.db")!r}
store = PlaybookStore(path)
for n in range(40):
    store.append(Delta((Add("S", f"{CANARY} {{n}} " * 200, None, (f"user-{{n}}",)),)))
    store.tell({{"text": "x" * 10_000}})
limit = os.path.getsize(path + "-wal") + 200_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print(store.forget(sources={{"user-7"}}))
print(len(PlaybookStore(path).playbook()))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert "until they are erased when the store is opened next" in done.stdout
    assert "cannot be written" in done.stdout
    assert done.stdout.endswith("39\n")
    assert "may still be in the database's files" in done.stderr  # opening it again says so in the log
    with PlaybookStore(tmp_path / "store.db"):
        held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert f"{CANARY} 6 ".encode() in held
    assert f"{CANARY} 7 ".encode() not in held


@pytest.mark.slow
def test_forgetting_on_postgresql_waits_for_no_reader(postgres: str) -> None:
    """An open transaction that has read the tables puts the erasure off, and nobody else waits behind it."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    databases.empty(postgres)
    engine = sqlalchemy.create_engine(postgres)
    with PlaybookStore(postgres) as store, PlaybookStore(postgres) as other, engine.connect() as reader:
        store.append(Delta((add(CANARY, "f"), add("mine", "a"))))
        reader.execute(sqlalchemy.text("SELECT * FROM ace_events")).fetchall()
        waited: list[float] = []
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                start = time.monotonic()
                other.tell({"text": CANARY}, source="g")
                other.playbook()
                waited.append(time.monotonic() - start)

        asking = threading.Thread(target=ask)
        asking.start()
        account = store.forget(sources={"f"})
        ended.set()
        asking.join()
        assert "until they are erased when the store is opened next" in str(account)
        assert len(waited) > 2
        assert max(waited) < 2
        assert contents(other.playbook()) == {"s-00002": "mine"}
        reader.rollback()
        account = store.forget(sources={"g"})
        assert "The tables were put into new files" in str(account)
        assert not _held_by_server(engine, CANARY)
    engine.dispose()


@pytest.mark.slow
def test_a_role_that_may_not_rewrite_the_tables_is_said(postgres: str) -> None:
    """Nothing is claimed that was not done; the owner's next opening does it."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    databases.empty(postgres)
    PlaybookStore(postgres).close()
    engine = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as owner:
        owner.execute(sqlalchemy.text("CREATE ROLE app LOGIN"))
        owner.execute(sqlalchemy.text("GRANT SELECT, INSERT, UPDATE, DELETE ON ace_head, ace_events, ace_tells TO app"))
    with PlaybookStore(postgres.replace("ace@", "app@")) as store:
        store.append(Delta((add(CANARY, "f"), add("mine", "a"))))
        account = store.forget(sources={"f"})
        assert contents(store.playbook()) == {"s-00002": "mine"}
        assert "permission denied" in str(account)
        assert "put into new files. The server" not in str(account)
    assert _held_by_server(engine, CANARY)
    PlaybookStore(postgres).close()
    assert not _held_by_server(engine, CANARY)
    with engine.connect() as owner:
        owner.execute(sqlalchemy.text("DROP OWNED BY app"))
        owner.execute(sqlalchemy.text("DROP ROLE app"))
    engine.dispose()


def _held_by_server(engine: Any, text: str) -> bool:
    """Say if the files of the tables hold a text."""
    import sqlalchemy

    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("COMMIT"))
        connection.execute(sqlalchemy.text("CHECKPOINT"))
        read = "SELECT pg_read_binary_file(pg_relation_filepath(:name))"
        files = [connection.execute(sqlalchemy.text(read), {"name": f"ace_{n}"}).scalar() for n in ("events", "tells")]
    return any(text.encode() in bytes(file) for file in files)


def test_who_watches_hears_of_a_forgetting_at_once(tmp_path: Path) -> None:
    """Every object of this process on the same database does, whichever forgets; one that is gone is not called."""

    class Watcher:
        def __init__(self, store: PlaybookStore) -> None:
            self.store, self.seen = store, [len(store.playbook())]
            store.watch(self.look)

        def look(self) -> None:
            self.seen.append(len(self.store.playbook()))

    path = tmp_path / "store.db"
    with PlaybookStore(path) as one, PlaybookStore(path) as two, PlaybookStore(tmp_path / "other.db") as other:
        one.append(Delta((add(CANARY, "f"), add("mine", "a"))))
        mine, theirs, elsewhere = Watcher(one), Watcher(two), Watcher(other)
        gone = Watcher(two)
        del gone
        account = one.forget(sources={"f"})
        assert (mine.seen, theirs.seen, elsewhere.seen) == ([2, 1], [2, 1], [0])
        assert "until they read the store again" in str(account)
        two.close()
        one.forget(sources={"a"})
        assert (mine.seen, theirs.seen) == ([2, 1, 0], [2, 1])
