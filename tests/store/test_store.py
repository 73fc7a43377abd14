"""A playbook shared by many: appends, rebasing, reading, going back, told records, and what a bad file is answered."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import databases
from dspy_ace import Playbook, PlaybookStore
from dspy_ace.errors import SettingsError, StoreError
from dspy_ace.playbook import Add, Delete, Delta, Merge, Rollback, Tag, Update, apply, rebase, replay
from dspy_ace.store import tables
from paths import GOLDEN, ROOT
from strategies import deltas, playbooks

pytestmark = pytest.mark.compat
GOLDEN = GOLDEN / "store-v1.sql"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Where a fresh store may be made, on each kind of database."""
    if request.param == "sqlite":
        return tmp_path / "folder" / "store.db"
    address = request.getfixturevalue("postgres")
    databases.empty(address)
    return address


def add(content: str, *sources: str) -> Delta:
    """A delta that adds one bullet."""
    return Delta((Add("S", content, None, sources),))


def contents(playbook: Playbook) -> dict[str, str]:
    """Content by id."""
    return {bullet.id: bullet.content for bullet in playbook}


def test_what_is_appended_is_there_for_everybody(url: Any) -> None:
    """Two open stores see one playbook, and a third that is opened later as well."""
    with PlaybookStore(url) as one, PlaybookStore(url) as two:
        assert (one.version, one.playbook()) == (0, Playbook())
        assert not two.changed_since(0)
        assert one.append(add("Round late.", "7")) == (1, ())
        assert two.changed_since(0)
        assert contents(two.playbook()) == {"s-00001": "Round late."}
        assert (
            two.append(
                Delta((Tag("s-00001", 1, 0, "8"), Add("S", "Näme the unit. \x00 \ud800".replace("\ud800", ""))))
            ).version
            == 2
        )
        assert one.playbook() == two.playbook() == replay(Playbook(), [event.event for event in one.history()])
    with PlaybookStore(url) as three:
        assert three.playbook()["s-00001"].helpful == 1
        assert three.playbook()["s-00001"].sources == ("7",)


def test_the_seed_is_that_of_the_first(url: Any, playbook: Playbook) -> None:
    """A store that is there keeps its seed; ids go on from it."""
    PlaybookStore(url, seed=playbook).close()
    with PlaybookStore(url, seed=Playbook()) as store:
        assert store.playbook() == store.at(0) == playbook
        store.append(add("x"))
        assert "s-00004" in store.playbook()


def test_two_who_started_from_one_version_both_get_in(url: Any) -> None:
    """The second is carried over: its bullet gets another id, and its own merge of it follows."""
    with PlaybookStore(url) as one, PlaybookStore(url) as two:
        one.append(add("first"))
        base, _ = two.snapshot()
        one.append(add("second, by one"))
        late = Delta((Add("S", "second, by two"), Tag("s-00002", 1, 0), Update("s-00002", "second, by two, better")))
        assert two.append(late, base) == (3, ())
        assert contents(one.playbook()) == {
            "s-00001": "first",
            "s-00002": "second, by one",
            "s-00003": "second, by two, better",
        }
        assert [b.helpful for b in one.playbook()] == [0, 0, 1]


def test_what_no_longer_fits_is_left_out_with_its_reason(url: Any) -> None:
    """Edits of bullets that are gone or were changed since are rejected; votes on changed bullets count."""
    with PlaybookStore(url) as store:
        base = store.append(Delta(tuple(Add("S", f"bullet {n}") for n in range(4)))).version
        store.append(Delta((Delete("s-00001"), Update("s-00002", "changed"))))
        edits = Delta((
            Tag("s-00001", 1),
            Tag("s-00002", 1),
            Update("s-00002", "mine"),
            Merge(("s-00001", "s-00003"), "both"),
            Update("s-00004", "fine"),
        ))  # fmt: skip
        version, rejected = store.append(edits, base)
        assert version == 3
        assert [(r.operation, r.reason.rsplit(": ", 1)[-1]) for r in rejected] == [
            (edits.operations[0], "no bullet 's-00001' in the playbook"),
            (edits.operations[2], "the bullet was changed since this was made"),
            (edits.operations[3], "no bullet 's-00001' in the playbook"),
        ]
        assert contents(store.playbook()) == {"s-00002": "changed", "s-00003": "bullet 2", "s-00004": "fine"}
        assert store.playbook()["s-00002"].helpful == 1
        assert store.history()[-1].rejected == rejected


@settings(max_examples=60)
@given(data=st.data())
def test_rebasing_changes_nothing_where_nothing_moved_and_always_fits(data: st.DataObject) -> None:
    """A delta on its own version stands whole; on any other, what is left of it can be applied, and nothing is lost."""
    base = data.draw(playbooks())
    mine, theirs = data.draw(deltas(base)), data.draw(deltas(base))
    assert rebase(mine, base, base) == (mine, ())
    now = apply(base, theirs)
    good, rejected = rebase(mine, base, now)
    apply(now, good)
    assert len(good) + len(rejected) == len(mine)


def test_an_append_under_a_key_is_done_once(url: Any) -> None:
    """The retry after a crash is answered as the first attempt was."""
    with PlaybookStore(url) as store:
        first = store.append(Delta((Add("S", "x"), Delete("s-00009"))), key="batch 1")
        assert len(first.rejected) == 1
        store.append(add("y"), key="batch 2")
        assert store.append(add("x"), key="batch 1") == first
        assert (store.version, len(store.playbook())) == (2, 2)


def test_every_version_can_be_read_and_gone_back_to(url: Any) -> None:
    """A rollback is an event; it can be taken back itself, and no id is given twice."""
    with PlaybookStore(url) as store, PlaybookStore(url) as reader:
        for n in range(1, 30):
            store.append(add(f"bullet {n}"))
        reader.playbook()
        assert [len(store.at(n)) for n in (0, 1, 29)] == [0, 1, 29]
        assert store.rollback(2) == 30
        assert list(contents(reader.playbook())) == ["s-00001", "s-00002"]
        store.append(add("later"))
        assert list(contents(reader.playbook())) == ["s-00001", "s-00002", "s-00030"]
        store.rollback(29)
        assert len(reader.playbook()) == 29
        assert reader.playbook().high_water == 30
        assert [(e.kind, e.rollback) for e in store.history(29)] == [("rollback", 2), ("delta", None), ("rollback", 29)]
        with pytest.raises(SettingsError, match=r"from 0 .* to 32"):
            store.rollback(33)
    with PlaybookStore(url) as fresh:
        assert len(fresh.playbook()) == 29
        assert len(fresh.at(31)) == 3


def test_the_playbook_can_be_written_to_a_file(url: Any, tmp_path: Path) -> None:
    """`export` writes what `Playbook.load` reads."""
    with PlaybookStore(url) as store:
        store.append(add("x", "1"))
        store.export(tmp_path / "playbook.json")
        assert Playbook.load(tmp_path / "playbook.json") == store.playbook()


def test_what_is_told_is_pending_until_it_is_taken(url: Any) -> None:
    """Records come back as told, in order, with their source; taken ones are gone."""
    with PlaybookStore(url) as store:
        assert store.tell({"question": "√2?\x00", "score": 0.5, "tags": [None, True]}, source="user-1") == 1
        assert store.tell({"n": 2}) == 2
        assert store.tell({"n": 2}, key="b") == 3
        assert store.tell({"n": 2}, key="b") == 3
        assert [(told.id, told.source) for told in store.pending()] == [(1, "user-1"), (2, "tell-2"), (3, "tell-3")]
        assert store.pending(1)[0].record == {"question": "√2?\x00", "score": 0.5, "tags": [None, True]}
        store.taken([1, 3])
        assert [told.id for told in store.pending()] == [2]
        assert store.tell({"n": 2}, key="b") == 3
        assert store.tell({"n": 4}) == 4
        for wrong in ([7], [True], [0]):
            with pytest.raises(SettingsError, match="ids of told records, from 1 to 4"):
                store.taken(wrong)


def test_learning_from_told_records_is_all_or_nothing(url: Any) -> None:
    """Delta and records go in one transaction; who comes second with one of them is refused as a whole."""
    with PlaybookStore(url) as one, PlaybookStore(url) as two:
        for n in range(3):
            one.tell({"n": n})
        assert one.append(add("from 1 and 2"), 0, taken=[1, 2]) == (1, ())
        version, rejected = two.append(add("from 2 and 3"), 0, taken=[2, 3])
        assert (version, len(rejected), rejected[0].reason) == (
            1,
            1,
            "the told record 2 was learned from or forgotten meanwhile",
        )
        assert [told.id for told in two.pending()] == [3]
        assert len(two.playbook()) == 1


def test_claimed_records_go_to_one_process_until_the_claim_ends(url: Any) -> None:
    """Nobody else is given them; when their holder has died, they come up again."""
    with PlaybookStore(url) as one, PlaybookStore(url) as two:
        for n in range(4):
            one.tell({"n": n})
        assert [told.id for told in one.claim(2)] == [1, 2]
        assert [told.id for told in two.claim(3, seconds=0)] == [3, 4]
        assert [told.id for told in one.claim()] == [3, 4]
        assert two.claim() == ()
        assert len(two.pending()) == 4


def test_threads_share_one_store(url: Any) -> None:
    """Each append of eight threads is there once."""
    with PlaybookStore(url) as store:

        def work(n: int) -> None:
            for m in range(5):
                store.append(add(f"{n} {m}"))
                store.tell({"n": n})

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(contents(store.playbook()).values()) == sorted(f"{n} {m}" for n in range(8) for m in range(5))
        assert [told.id for told in store.pending()] == list(range(1, 41))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_uses_the_store_it_inherited(url: Any) -> None:
    """Parent and child go on, each with a connection of its own."""
    code = f"""
import os
from dspy_ace import PlaybookStore
from dspy_ace.playbook import Add, Delta
store = PlaybookStore({str(url)!r})
store.append(Delta((Add("S", "parent"),)))
child = os.fork()
if child == 0:
    store.append(Delta((Add("S", "child"),)))
    store.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
store.append(Delta((Add("S", "parent again"),)))
print(len(store.playbook()))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_forked_child_writes_outlives_its_parents_store(url: Any) -> None:
    """The parent closes the store that the child inherited; what the child writes after that is there for others."""
    code = f"""
import os
from dspy_ace import PlaybookStore
store = PlaybookStore({str(url)!r})
store.tell({{"by": "parent"}})
closed, done = os.pipe()
child = os.fork()
if child == 0:
    store.tell({{"by": "child"}})
    os.read(closed, 1)
    store.tell({{"by": "child, later"}})
    os._exit(0)
while len(store.pending()) < 2:
    pass
store.close()
os.write(done, b"x")
assert os.waitpid(child, 0)[1] == 0
print([told.record["by"] for told in PlaybookStore({str(url)!r}).pending()])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['parent', 'child', 'child, later']\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_in_the_middle_of_other_threads_writes(url: Any) -> None:
    """However often a process forks while its threads write, every child can write too, and nothing is lost."""
    code = f"""
import os, threading, time
from dspy_ace import PlaybookStore
stores = [PlaybookStore({str(url)!r}, timeout=5) for _ in range(2)]
ended = threading.Event()
told = [0, 0]
def write(n):
    while not ended.is_set():
        stores[n].tell({{"by": "a thread"}})
        told[n] += 1
        time.sleep(0.001)
threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
for thread in threads:
    thread.start()
for n in range(8):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for store in stores:
                store.tell({{"by": "a child"}})
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, n
ended.set()
for thread in threads:
    thread.join()
by = [told.record["by"] for told in stores[0].pending()]
print(by.count("a child"), by.count("a thread") - sum(told))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "16 0\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_relative_path_is_that_of_the_opening(tmp_path: Path) -> None:
    """Neither a change of the working directory nor a fork after it leads to another file."""
    code = """
import os
from dspy_ace import PlaybookStore
store = PlaybookStore("memory.db")
store.tell({"n": 1})
os.mkdir("elsewhere")
os.chdir("elsewhere")
store.tell({"n": 2})
child = os.fork()
if child == 0:
    store.tell({"n": 3})
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(len(store.pending()), os.listdir("."))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "3 []\n"


def test_a_long_history_is_read_before_others_have_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an append, a rollback or a forgetting reads all events, another process can write."""
    path = tmp_path / "store.db"
    with PlaybookStore(path) as store:
        for n in range(5):
            store.append(Delta((Add("S", f"bullet {n}", None, (str(n),)),)))
    read, whole = [], tables.everything
    with PlaybookStore(path) as store, PlaybookStore(path, timeout=0.05) as other:

        def everything(run: Any) -> Any:
            read.append(other.tell({"text": "meanwhile"}))
            return whole(run)

        monkeypatch.setattr(tables, "everything", everything)
        assert store.append(add("late"), 2) == (6, ())
        assert store.rollback(1) == 7
        assert len(store.playbook()) == 1
        store.forget(sources={"0"})
        assert len(read) >= 4


def test_a_record_is_as_deep_as_anybody_can_read(url: Any) -> None:
    """What is nested deeper is kept as text: it could be read by nobody who is deep in a stack himself."""

    def nested(levels: int) -> Any:
        return {"in": nested(levels - 1)} if levels else [1]

    def deeper(frames: int) -> Any:
        return deeper(frames - 1) if frames else store.pending()

    with PlaybookStore(url) as store:
        for levels in (99, 100, 800):
            store.tell(nested(levels), source="a")
        endless: dict[str, Any] = {}
        endless["self"] = endless
        with pytest.raises(SettingsError, match="plain JSON"):
            store.tell(endless)
        first, second, third = (told.record for told in deeper(700))
        assert first == nested(99)
        for found, left in ((second, "[1]"), (third, json.dumps(nested(700)))):
            inner: Any = found
            for _ in range(100):
                inner = inner["in"]
            assert inner == left


def test_a_record_that_cannot_be_read_stops_nobody(tmp_path: Path) -> None:
    """Records that another program damaged or nested too deep are handed out as unreadable, and can be forgotten."""
    path = tmp_path / "store.db"
    with PlaybookStore(path) as store:
        for name in ("deep", "damaged", "list", "fine"):
            store.tell({"n": 1}, source=name)
    for source, text in (("deep", '{"in": ' * 5000 + "1" + "}" * 5000), ("damaged", '{"n": '), ("list", "[1]")):
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE ace_tells SET record = ? WHERE source = ?", (text, f'"{source}"'))
    with PlaybookStore(path) as store:
        assert [list(told.record) for told in store.pending()] == [["unreadable"]] * 3 + [["n"]]
        assert len(store.claim(4)) == 4
        assert store.forget(sources={"deep", "damaged"}).tells == 2
        store.taken([3])
        assert [told.source for told in store.pending()] == ["fine"]


def test_records_of_one_kind_are_claimed_by_whom_they_are_for(url: Any) -> None:
    """A claim of one kind leaves the others' records alone, and a released record can be claimed at once."""
    with PlaybookStore(url) as store:
        for kind in ("a", "b", "a"):
            store.tell({"format": kind, "n": 1})
        store.tell({"n": 1, "format": "a"})
        assert [told.id for told in store.pending(kind="a")] == [1, 3]
        assert [told.id for told in store.claim(kind="a")] == [1, 3]
        assert store.claim(kind="a") == ()
        store.release([3])
        assert [told.id for told in store.claim()] == [2, 3, 4]


def test_a_key_that_was_told_is_known(url: Any) -> None:
    """Also after the record was taken; a key that was never told is not."""
    with PlaybookStore(url) as store:
        assert store.told("a") is None
        assert store.tell({"n": 1}, key="a") == store.told("a") == 1
        store.taken([1])
        assert store.told("a") == 1
        assert store.told("b") is None


def test_user_mistakes_are_said(url: Any) -> None:
    """Arguments that cannot be any: what was expected, what came."""
    with PlaybookStore(url) as store:
        for mistake, words in (
            (lambda: store.append([Add("S", "x")]), "takes a Delta"),
            (lambda: store.append(add("x"), 5), "from 0 .* to 0"),
            (lambda: store.append(add("x"), key=5), "key must be .* got 5"),
            (lambda: store.append(add("x"), taken=[1]), "ids of told records, from 1 to 0"),
            (lambda: store.tell("text"), "record must be .* got 'text'"),
            (lambda: store.tell({"x": object()}), "plain JSON"),
            (lambda: store.tell({"x": float("nan")}), "plain JSON"),
            (lambda: store.pending(0), "limit must be .* 1; got 0"),
            (lambda: PlaybookStore(url, seed={}), "seed must be .* Playbook; got {}"),
            (lambda: PlaybookStore(url, timeout="long"), "timeout must be .* number of seconds"),
            (lambda: PlaybookStore(""), "a path or a SQLAlchemy URL"),
            (lambda: PlaybookStore("nonsense://x"), "no URL that SQLAlchemy can open|needs SQLAlchemy"),
        ):
            with pytest.raises(SettingsError, match=words):
                mistake()
        assert (store.version, store.pending()) == (0, ())
    with pytest.raises(StoreError, match="closed"):
        store.playbook()
    store.close()


def test_a_server_that_is_not_there_is_said() -> None:
    """The address is named, without its password."""
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="cannot be reached") as raised:
        PlaybookStore("postgresql+psycopg://me:secret@127.0.0.1:1/none?password=secret")
    assert "secret" not in str(raised.value)
    with pytest.raises(SettingsError, match="no URL that SQLAlchemy can open"):
        PlaybookStore("postgresql+psycopg://me:secret@127.0.0.1:port/none")


@pytest.mark.slow
def test_a_writer_that_does_not_end_is_waited_for_so_long_and_no_longer(postgres: str) -> None:
    """On a server as with SQLite: after `timeout` seconds the write is refused, and reading goes on."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    databases.empty(postgres)
    engine = sqlalchemy.create_engine(postgres)
    with PlaybookStore(postgres, timeout=0.2) as store, engine.connect() as writer:
        writer.execute(sqlalchemy.text("UPDATE ace_head SET version = version"))
        with pytest.raises(StoreError, match="timeout"):
            store.tell({"n": 1})
        assert store.pending() == ()
        writer.rollback()
        assert store.tell({"n": 1}) == 1
    engine.dispose()


def test_sqlite_needs_no_sqlalchemy(tmp_path: Path) -> None:
    """The default store works where SQLAlchemy is not installed; a URL is answered with what to install."""
    code = f"""
import sys
sys.modules["sqlalchemy"] = None
from dspy_ace import PlaybookStore
from dspy_ace.errors import SettingsError
PlaybookStore("sqlite:///{tmp_path}/x.db").close()
try:
    PlaybookStore("postgresql+psycopg://x")
except SettingsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'dspy-ace[store]'" in done.stdout
    assert (tmp_path / "x.db").exists()


def test_files_that_are_no_store_are_refused(tmp_path: Path) -> None:
    """Another program's database, other bytes, a folder, a newer version: each says so, none is changed."""
    with pytest.raises(StoreError, match="cannot be made"):
        PlaybookStore(tmp_path / "a\0b.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE songs (name TEXT)")
    other.close()
    (tmp_path / "text.db").write_bytes(b"no database at all, but long enough to hold a header" * 40)
    before = (tmp_path / "text.db").read_bytes()
    (tmp_path / "folder.db").mkdir()
    with PlaybookStore(tmp_path / "newer.db"):
        pass
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("UPDATE ace_head SET layout = 99")
    newer.commit()
    newer.close()
    for name, words in (
        ("other", "another program"),
        ("text", "not a database.*backup"),
        ("folder", "cannot be written"),
        ("newer", "version 99.*Upgrade"),
    ):
        with pytest.raises(StoreError, match=words):
            PlaybookStore(tmp_path / f"{name}.db")
    assert (tmp_path / "text.db").read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed in /proc on Linux")
def test_a_refused_database_is_closed(tmp_path: Path) -> None:
    """No open file is left while the error is at hand: neither of what is no database, nor of another program's."""
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE songs (name TEXT)")
    other.close()
    (tmp_path / "text.db").write_bytes(b"no database at all, but long enough to hold a header" * 40)
    for name in ("other.db", "text.db"):
        with pytest.raises(StoreError) as caught:
            PlaybookStore(tmp_path / name)
        assert not [link for link in open_files() if name in link], caught.value


def open_files() -> list[str]:
    """What this process has open."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder's own, closed by now
            links.append(str(link.readlink()))
    return links


def test_damaged_events_are_named(tmp_path: Path) -> None:
    """An event that is no JSON, is missing, or does not follow: reading says which and what to do."""
    path = tmp_path / "store.db"
    with PlaybookStore(path) as store:
        for n in range(3):
            store.append(add(f"{n}"))
    for harm, words in (
        ("UPDATE ace_events SET body = '{' WHERE version = 2", "Event 2 .* damaged"),
        (
            'UPDATE ace_events SET body = \'{"delta": [{"op": "delete", "id": "s-00009"}]}\' WHERE version = 2',
            "event 2",
        ),
        ("DELETE FROM ace_events WHERE version = 2", "missing"),
        ("DELETE FROM ace_events WHERE version = 0", "Event 0"),
    ):
        shutil.copy(path, tmp_path / "harmed.db")
        harmed = sqlite3.connect(tmp_path / "harmed.db")
        harmed.execute(harm)
        harmed.commit()
        harmed.close()
        with PlaybookStore(tmp_path / "harmed.db") as store, pytest.raises(StoreError, match=words):
            store.playbook()


def test_bytes_overwritten_in_the_file_are_said(tmp_path: Path) -> None:
    """Pages that hold garbage are reported as a damaged file, not as some other error."""
    path = tmp_path / "store.db"
    with PlaybookStore(path) as store:
        for n in range(200):
            store.append(add(f"bullet {n} " + "x" * 200))
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="backup"):
        PlaybookStore(path).playbook()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes")
def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    """It holds what users told; the mode that somebody gave it stays."""
    path = tmp_path / "store.db"
    with PlaybookStore(path) as store:
        store.tell({"n": 1})
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    path.chmod(0o660)
    with PlaybookStore(path) as store:
        store.tell({"n": 2})
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o660}


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX users")
def test_a_store_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A read-only file or folder: the system's words, and where to look."""
    code = """
import sys, os
from dspy_ace import PlaybookStore
from dspy_ace.playbook import Add, Delta
from dspy_ace.errors import StoreError
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for path in sys.argv[1:]:
    try:
        with PlaybookStore(path) as store:
            store.append(Delta((Add("S", "x"),)))
    except StoreError as error:
        print(error)
"""
    folder = tmp_path / "kept"
    with PlaybookStore(folder / "store.db") as store:
        store.append(add("x"))
    (folder / "store.db").chmod(0o444)
    folder.chmod(0o555)
    for above in (tmp_path, *tmp_path.parents[:3]):
        if above != Path("/") and above.stat().st_uid == os.getuid():
            above.chmod(above.stat().st_mode | 0o055)
    paths = [str(folder / "store.db"), str(folder / "new.db"), str(folder / "deeper" / "new.db")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *paths], capture_output=True, text=True, check=True
    )
    folder.chmod(0o755)
    said = done.stdout.splitlines()
    assert len(said) == 3, done.stdout
    assert all("cannot be" in line for line in said), done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_full_disk_costs_what_was_not_acknowledged_alone(tmp_path: Path) -> None:
    """The write that does not fit is refused with words; all acknowledged ones are read again."""
    code = f"""
import resource
from dspy_ace import PlaybookStore
from dspy_ace.errors import StoreError
store = PlaybookStore({str(tmp_path / "store.db")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
for n in range(10_000):
    try:
        store.tell({{"n": n, "text": "x" * 500}})
    except StoreError as error:
        print(n, error)
        break
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    acknowledged, words = done.stdout.split(maxsplit=1)
    assert int(acknowledged) > 10
    assert "cannot be written" in words
    with PlaybookStore(tmp_path / "store.db") as store:
        assert [told.record["n"] for told in store.pending()] == list(range(int(acknowledged)))


def test_the_disk_format_is_the_golden_one(tmp_path: Path) -> None:
    """Version 1 reads as it was written; whoever changes the tables makes a new version that still reads these."""
    path = tmp_path / "golden.db"
    old = sqlite3.connect(path)
    old.executescript(GOLDEN.read_text())
    old.close()
    with PlaybookStore(path) as store:
        assert contents(store.playbook()) == {"s-00001": "Nimm „das“."}
        assert [event.kind for event in store.history()] == ["delta", "rollback", "forget"]
        assert store.history()[0].rejected[0].reason == "delete x-00001: no bullet 'x-00001' in the playbook"
        assert [(told.id, told.record, told.source) for told in store.pending()] == [(2, {"n": 2}, "user-2")]
        assert store.tell({}, key="told") == 1
        assert store.append(Delta(), key="appended").version == 1
    with PlaybookStore(tmp_path / "new.db") as store:
        store.append(Delta((Add("S", "Nimm „das“.", None, ("1",)), Delete("x-00001"))), key="appended")
        store.rollback(1)
        store.tell({"n": 1}, key="told")
        store.tell({"n": 2}, source="user-2")
        store.taken([1])
    new = sqlite3.connect(tmp_path / "new.db")
    schema = [row[0] for row in new.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")]
    events = [row[0] for row in new.execute("SELECT body FROM ace_events ORDER BY version")]
    new.close()
    golden = GOLDEN.read_text()
    assert all(f"{statement};" in golden for statement in schema)
    assert all(body.replace("'", "''") in golden for body in events)


def test_polling_is_cheap(tmp_path: Path) -> None:
    """A poll reads one row, and a playbook that did not change is the same object."""
    with PlaybookStore(tmp_path / "store.db") as store:
        store.append(Delta(tuple(Add("S", f"bullet {n}") for n in range(300))))
        assert store.playbook() is store.playbook()


def test_a_rollback_event_needs_a_version_before_it() -> None:
    """A history that goes back to what never was does not fit."""
    assert len(replay(Playbook(), [add("x"), Rollback(0), Rollback(1)])) == 1
    with pytest.raises(Exception, match="event 1 does not fit"):
        replay(Playbook(), [Rollback(1)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_that_fork_at_once_leave_the_store_to_each_other(tmp_path: Path) -> None:
    """Two forks at the same moment: each gives back its own locks, and everybody can write afterwards."""
    code = """
import os, sys, threading
from dspy_ace import PlaybookStore
store = PlaybookStore(sys.argv[1])
sys.setswitchinterval(1e-6)
def fork():
    for _ in range(200):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
threads = [threading.Thread(target=fork, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(30)
assert not any(thread.is_alive() for thread in threads)
print(store.tell({"by": "the parent"}))
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "memory.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_kind_is_taken_as_it_is_written(url: Any) -> None:
    """No sign in a kind stands for others, and capitals count."""
    with PlaybookStore(url) as store:
        for kind in ("a_b", "aXb", "A_B", "%", "zählen"):
            store.tell({"format": kind})
        for kind in ("a_b", "%", "zählen"):
            assert [told.record["format"] for told in store.pending(kind=kind)] == [kind]
