"""Forgetting in a playbook and its history: what a source taught is gone, and the rest stands."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_ace import Bullet, GrowAndRefine, Playbook
from dspy_ace.errors import DeltaError, SettingsError
from dspy_ace.playbook import Add, Delete, Delta, Merge, Tag, Update, apply
from dspy_ace.playbook.forgetting import forget
from dspy_ace.playbook.history import Event, Rollback, replay, versions
from edits import CANARY, add, contents


def forgotten(*operations: Any, **chosen: Any) -> Playbook:
    """The playbook of these operations (one delta), without what source "f" taught or what is chosen."""
    history = (Delta(operations),)
    done = forget(history, **(chosen or {"sources": {"f"}}))
    assert replay(done.seed, done.deltas) == done.playbook
    assert len(done.deltas) == 1
    return done.playbook


def test_bullets_of_a_source_go_and_ids_stay() -> None:
    """The others keep their ids, votes and sources; no number is given again."""
    now = forgotten(add("mine", "a"), add("theirs", "f"), add("other", "b"), Tag("s-00003", 1, 0, "a"), add("x", "f"))
    assert contents(now) == {"s-00001": "mine", "s-00003": "other"}
    assert now["s-00003"].helpful == 1
    assert now.high_water == 4


def test_votes_of_a_source_leave_the_counters() -> None:
    """Only theirs."""
    now = forgotten(add("mine", "a"), Tag("s-00001", 2, 0, "f"), Tag("s-00001", 1, 1, "b"), Tag("s-00001", 0, 1, "f"))
    assert (now["s-00001"].helpful, now["s-00001"].harmful) == (1, 1)


def test_an_updated_bullet_goes_back_to_what_others_taught() -> None:
    """Their update falls, and with it those that were made from its text; earlier ones stand."""
    now = forgotten(
        add("one", "a"), Update("s-00001", "one two", None, ("b",)), Update("s-00001", "one two F", None, ("f",)),
        Update("s-00001", "one two F three", None, ("c",)),
    )  # fmt: skip
    assert contents(now) == {"s-00001": "one two"}
    assert now["s-00001"].sources == ("a", "b")


def test_a_merge_is_undone_and_what_came_later_goes_to_the_oldest() -> None:
    """A merge whose text may hold what is forgotten leaves the bullets apart; later votes and deletes find them."""
    operations = (
        add("one", "a"), add("F", "f"), add("three", "c"),
        Merge(("s-00001", "s-00002", "s-00003"), "one F three", None, ("d",)), Tag("s-00001", 1, 0, "b"),
    )  # fmt: skip
    now = forgotten(*operations)
    assert contents(now) == {"s-00001": "one", "s-00003": "three"}
    assert [bullet.helpful for bullet in now] == [1, 0]
    assert contents(forgotten(*operations, Delete("s-00001"), add("last", "b"))) == {"s-00004": "last"}


def test_a_merge_that_kept_a_text_of_another_stands() -> None:
    """As GrowAndRefine merges: the text was not theirs, so it stays, if need be under the other's id."""
    merge = Merge(("s-00001", "s-00002"), "the same, by a")
    now = forgotten(add("the same, by f", "f"), add("the same, by a", "a"), merge, Tag("s-00001", 1, 0, "b"))
    assert contents(now) == {"s-00002": "the same, by a"}
    assert (now["s-00002"].helpful, now["s-00002"].sources) == (1, ("a",))
    third = (add("the same, by f", "f"), add("the same, by a", "a"), add("the same, by b", "b"))
    now = forgotten(
        *third, Merge(("s-00001", "s-00002", "s-00003"), "the same, by b"), Update("s-00001", "new", None, ("a",))
    )
    assert contents(now) == {"s-00002": "new"}
    assert set(now["s-00002"].sources) == {"a", "b"}


def test_a_text_of_several_sources_goes_unless_it_is_to_be_kept() -> None:
    """Nothing tells whose words they are; `keep_shared` keeps them, without the name."""
    operations = add("both", "a", "f"), Update("s-00001", "both, better", None, ("f", "b")), add("F", "f")
    assert len(forgotten(*operations)) == 0
    kept = forgotten(*operations, sources={"f"}, keep_shared=True)
    assert contents(kept) == {"s-00001": "both, better"}
    assert kept["s-00001"].sources == ("a", "b")


def test_the_same_pattern_and_ids_select_as_sources_do() -> None:
    """A pattern takes lessons by their text; an id takes a bullet with all that was merged into it."""
    operations = (
        add("alpha", "a"), add("beta", "b"), add("gamma", "c"), Merge(("s-00001", "s-00002"), "alpha beta"),
        add("delta", "d"),
    )  # fmt: skip
    assert contents(forgotten(*operations, matching="bet")) == {
        "s-00001": "alpha",
        "s-00003": "gamma",
        "s-00004": "delta",
    }
    assert contents(forgotten(*operations, bullets={"[S-00001]"})) == {"s-00003": "gamma", "s-00004": "delta"}
    assert contents(forgotten(*operations, bullets={"s-00002"}, sources={"d"})) == {
        "s-00001": "alpha",
        "s-00003": "gamma",
    }
    assert contents(forgotten(*operations, matching=re.compile("GAMMA", re.IGNORECASE), bullets={"s-00004"})) == {
        "s-00001": "alpha beta"
    }


def test_a_seed_is_cleaned_as_well() -> None:
    """Bullets that the history started with have sources, too."""
    seed = Playbook((Bullet("s-00001", "Theirs", "F", 0, 0, None, ("f",)), Bullet("s-00002", "S", "mine")))
    done = forget([Delta((Tag("s-00001", 1), Update("s-00001", "F2"), add("x", "a")))], seed, sources={"f"})
    assert contents(done.seed) == {"s-00002": "mine"}
    assert contents(done.playbook) == {"s-00002": "mine", "s-00003": "x"}
    assert "Theirs" not in done.playbook.sections


def test_going_back_is_replayed() -> None:
    """A rollback in the history goes back to the rewritten state."""
    history: list[Event] = [
        Delta((add("one", "a"),)), Delta((add("F", "f"), Update("s-00001", "one F", None, ("f",)))),
        Delta((Delete("s-00001"), add("three", "c"))), Rollback(2),
        Delta((Tag("s-00002", 1, 0, "a"), add("five", "a"))),
    ]  # fmt: skip
    done = forget(history, sources={"f"})
    assert contents(done.playbook) == {"s-00001": "one", "s-00004": "five"}
    assert done.deltas[3] == Rollback(2)
    assert replay(done.seed, done.deltas) == done.playbook
    with pytest.raises(DeltaError, match="event 1"):
        forget([Rollback(4)], sources={"f"})


def test_user_mistakes_are_said_and_nothing_is_changed() -> None:
    """Nothing selected, unknown sources and ids (the known ones are named), a bad or idle pattern."""
    history = [Delta((add("x", "3"), add("y", "12"), Tag("s-00001", 1, 0, "user-7")))]
    for chosen, words in (
        ({}, "Nothing is selected"),
        ({"sources": {"4"}}, "No such sources: '4'; known are '3', '12', 'user-7'"),
        ({"sources": "3"}, "a set of names"),
        ({"sources": {3}}, "names as text"),
        ({"bullets": {"s-00009"}}, "No such bullets: 's-00009'; known are 's-00001', 's-00002'"),
        ({"matching": "("}, "not a regular expression"),
        ({"matching": ""}, "not empty"),
        ({"matching": "zebra"}, "No bullet matches"),
    ):
        with pytest.raises(SettingsError, match=words):
            forget(history, **chosen)  # type: ignore[arg-type]
    with pytest.raises(DeltaError, match="event 1"):
        forget([Delta((Delete("s-00001"),))], sources={"3"})


def test_a_playbook_alone_forgets_what_it_can() -> None:
    """Bullets go by source, pattern or id, with sections of their own; the account says what stays."""
    seed = replay(
        Playbook(), [Delta((add("one", "a"), add("both", "a", "f"), add("F", "f", section="Theirs"), add("x", "b")))]
    )
    now, account = seed.forget(sources={"f"})
    assert contents(now) == {"s-00001": "one", "s-00004": "x"}
    assert (now.sections, now.high_water) == (("S",), 4)
    assert account.removed == ("s-00002", "thei-00003")
    assert "1 bullet of them had other sources as well: s-00002." in str(account)
    assert "Votes of forgotten sources stay" in str(account)
    kept, account = seed.forget(sources={"f"}, keep_shared=True)
    assert kept["s-00002"].sources == ("a",)
    assert "may hold" in str(account)
    assert len(seed.forget(matching="^x$", bullets=["s-00001"])[0]) == 2
    for chosen, words in (
        ({"sources": {"z"}}, "known are 'a', 'b', 'f'"),
        ({"matching": "zebra"}, "No bullet matches"),
    ):
        with pytest.raises(SettingsError, match=words):
            seed.forget(**chosen)  # type: ignore[arg-type]


def test_the_account_says_what_was_done_and_what_cannot_be() -> None:
    """Ids and numbers in plain words; none of the forgotten texts."""
    done = forget(
        [
            Delta((add("one", "a"), add("zwei", "b"))),
            Delta(
                (add(f"{CANARY} F", "f"), Update("s-00001", f"one {CANARY}", None, ("f",)), Tag("s-00002", 1, 0, "f"))
            ),
            Delta(
                (
                    Merge(("s-00002", "s-00003"), f"zwei {CANARY}", None, ("c",)),
                    Delete("s-00001", CANARY),
                    add("new", "c"),
                )
            ),
        ],
        sources={"f"},
    )
    account = done.account
    assert (account.removed, account.changed, account.restored) == ((), ("s-00002",), ())
    assert account.votes == 1
    assert account.exposed == ("s-00004",)
    assert account.operations == 3
    assert CANARY not in str(account)
    assert CANARY not in json.dumps([delta.to_json() for delta in done.deltas if isinstance(delta, Delta)])
    assert "Cannot be undone" in str(account)
    assert "s-00004" in str(account)
    assert "DSPy's cache" in str(account)
    assert done.first == 1


def marked(seed: int, sources: Sequence[str], steps: int, per_step: int = 5) -> tuple[list[Event], dict[str, set[str]]]:
    """A history in which each text carries a mark of all it was made from, as an LM's would; marks by final bullet.

    Merges are of both kinds: in new words by a source, and word for word by nobody.
    """
    rng = random.Random(seed)
    events: list[Event] = []
    playbook = Playbook()
    for step in range(steps):
        if events and rng.random() < 0.05:
            events.append(Rollback(rng.randrange(len(events) + 1)))
            playbook = replay(Playbook(), events)
            continue
        operations: list[Any] = []
        for _ in range(rng.randint(1, per_step)):
            operation = _drawn(rng, playbook, sources, f"{step}")
            playbook = apply(playbook, Delta((operation,)))
            operations.append(operation)
        events.append(Delta(tuple(operations)))
    return events, {bullet.id: marks(bullet.content) for bullet in playbook}


def ever(events: Sequence[Event]) -> set[str]:
    """Every id that the history gave out, also those gone within one delta."""
    before = list(versions(Playbook(), events))
    found: set[str] = set()
    for at, event in enumerate(events):
        playbook = before[at]
        for operation in event.operations if isinstance(event, Delta) else ():
            playbook = apply(playbook, Delta((operation,)))
            found.update(bullet.id for bullet in playbook)
    return found


def marks(content: str) -> set[str]:
    """The sources whose marks a text carries."""
    return set(re.findall(r"<(\w+)>", content))


def _drawn(rng: random.Random, playbook: Playbook, sources: Sequence[str], words: str) -> Any:
    source, kind = rng.choice(sources), rng.random()
    known = list(playbook)
    if kind < 0.5 or len(known) < 2:
        named = (source, rng.choice(sources)) if rng.random() < 0.1 else (source,)
        return Add(rng.choice(["S", "Tools"]), " ".join([words, *(f"<{name}>" for name in named)]), None, named)
    bullet = rng.choice(known)
    if kind < 0.65:
        return Tag(bullet.id, rng.randint(0, 2), rng.randint(0, 1), source)
    if kind < 0.8:
        return Update(bullet.id, f"{bullet.content} {words} <{source}>", None, (source,))
    if kind < 0.92:
        several = rng.sample(known, 2)
        if rng.random() < 0.5:
            return Merge(tuple(b.id for b in several), rng.choice(several).content)
        text = " ".join([*(b.content for b in several), words, f"<{source}>"])
        return Merge(tuple(b.id for b in several), text, None, (source,))
    return Delete(bullet.id, f"see {bullet.content}")


@given(st.integers(0, 10**6), st.sampled_from(["a", "c"]))
def test_no_word_made_from_a_forgotten_source_is_left(seed: int, gone: str) -> None:
    """In any history: no mark and no name of it anywhere; ids as before; bullets that owe it nothing stay the same."""
    events, _ = marked(seed, "abcd", 25)
    try:
        done = forget(events, sources={gone})
    except SettingsError:
        assert f'"{gone}"' not in json.dumps([e.to_json() for e in events if isinstance(e, Delta)])
        return
    written = json.dumps([delta.to_json() for delta in done.deltas if isinstance(delta, Delta)])
    assert f"<{gone}>" not in written
    assert f'"{gone}"' not in written
    assert replay(done.seed, done.deltas) == done.playbook
    assert len(done.deltas) == len(events)
    before = replay(Playbook(), events)
    assert done.playbook.high_water == before.high_water
    now = {bullet.id: bullet for bullet in done.playbook}
    assert now.keys() <= ever(events)
    for bullet in before:
        if gone not in marks(bullet.content) and gone not in bullet.sources:
            assert now[bullet.id].content == bullet.content
            assert now[bullet.id].helpful <= bullet.helpful
    assert set(done.account.removed) == {b.id for b in before if b.id not in now}


@given(st.integers(0, 10**6))
def test_forgetting_in_two_goes_or_twice_is_the_same(seed: int) -> None:
    """Source after source leaves the bullets that both at once leave; and nothing is left to forget."""
    events, _ = marked(seed, "abcd", 20)
    try:
        both = forget(events, sources={"a", "b"})
        one = forget(events, sources={"a"})
        then = forget(one.deltas, one.seed, sources={"b"})
    except SettingsError:
        return
    assert contents(then.playbook) == contents(both.playbook)
    with pytest.raises(SettingsError, match="No such sources"):
        forget(both.deltas, both.seed, sources={"a"})


def test_a_refined_playbook_keeps_the_text_of_those_who_stay() -> None:
    """Near-duplicates that GrowAndRefine merged: with the one forgotten, the other's own words and votes stand."""
    grown = Delta(
        (add("Round only the final result.", "a"), add("Round only the final result!", "f"), Tag("s-00002", 3, 0, "f"))
    )
    merged = GrowAndRefine()(apply(Playbook(), grown))
    assert isinstance(merged.operations[0], Merge)
    now = forget([grown, merged], sources={"f"}).playbook
    assert contents(now) == {"s-00001": "Round only the final result."}
    assert now["s-00001"].helpful == 0


def test_a_source_of_any_name_is_kept_and_forgotten() -> None:
    """A lone surrogate, as an undecodable file name brings it, loses no lesson; it is named as it was told."""
    history = [
        Delta((Add("S", "One.", None, ("user-\udc80", "b")), Tag("s-00001", 1, 0, "user-\udc80"))),
        Delta((Add("S", "Two."),)),
    ]
    (one, _) = replay(Playbook(), history)
    assert one.sources == ("user-\\udc80", "b")
    assert json.loads(json.dumps(Playbook((one,)).to_json()).encode())["bullets"][0]["sources"] == list(one.sources)
    for name in ("user-\udc80", "user-\\udc80"):
        done = forget(history, sources={name})
        assert [bullet.content for bullet in done.playbook] == ["Two."]
        assert forget(history, sources={name}, keep_shared=True).playbook.bullets[0].sources == ("b",)
