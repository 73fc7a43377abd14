"""Forgetting in a store: what a source taught is gone from its tables and its file."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
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
from forget_helpers import CANARY, add, contents

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
        assert "erased when the store is opened next" in str(account)
        reader.execute("COMMIT")
        reader.close()
    with PlaybookStore(path) as store:
        assert contents(store.playbook()) == {"s-00002": "mine"}
        assert CANARY.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_a_store_forgets_by_pattern_and_in_what_was_told(tmp_path: Path) -> None:
    """The pattern finds lessons and pending records; a pattern that finds nothing changes nothing."""
    with PlaybookStore(tmp_path / "store.db") as store:
        store.append(Delta((add("call 555-0100", "a"), add("mine", "a"))))
        store.tell({"text": "my number is 555-0100"}, source="a")
        store.tell({"text": "nothing"}, source="a")
        with pytest.raises(SettingsError, match="matches 'zebra'"):
            store.forget(matching="zebra")
        assert store.version == 1
        account = store.forget(matching=r"\d{3}-\d{4}")
        assert (account.removed, account.tells) == (("s-00001",), 1)
        assert [told.id for told in store.pending()] == [2]
        account = store.forget(bullets={"s-00002"})
        assert len(store.playbook()) == 0
        assert [event.kind for event in store.history()] == ["delta", "forget", "forget"]
