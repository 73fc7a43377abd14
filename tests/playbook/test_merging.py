"""Playbooks and deltas that were made apart become one: combined, carried over, merged; nothing vanishes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dspy_ace import Bullet, Playbook
from dspy_ace.errors import SettingsError
from dspy_ace.playbook import (
    Add,
    Delete,
    Delta,
    Merge,
    Operation,
    Tag,
    Update,
    admit,
    apply,
    combine,
    folded,
    merge,
    rebase,
    section_key,
)
from edits import SEED, checked, relaxed
from strategies import deltas, playbooks

pytestmark = pytest.mark.compat

# --- combine


def test_tags_add_up_by_source() -> None:
    """Votes of one example on one bullet become one tag; those of another stay apart."""
    combined, rejected = combine(
        [
            Delta((Tag("a-1", 1, 0, "0"), Tag("a-1", 0, 1, "1"))),
            Delta((Tag("a-1", 1, 1, "0"), Tag("b-2", 1, 0, "0"))),
        ]
    )
    assert combined.operations == (Tag("a-1", 2, 1, "0"), Tag("a-1", 0, 1, "1"), Tag("b-2", 1, 0, "0"))
    assert rejected == ()


def test_the_same_lesson_is_added_once() -> None:
    """Two groups that write one lesson make one bullet with the sources of both; other predictors stay apart."""
    combined, rejected = combine(
        [
            Delta((Add("S", "Round late.", None, ("0", "1")), Add("S", "Round late.", "react", ("1",)))),
            Delta((Add("T", "Round\n late. ", None, ("1", "2")), Add("S", "Sum up.", None, ("2",)))),
        ]
    )
    assert combined.operations == (
        Add("S", "Round late.", None, ("0", "1", "2")),
        Add("S", "Round late.", "react", ("1",)),
        Add("S", "Sum up.", None, ("2",)),
    )
    assert rejected == ()


def test_the_same_edit_is_made_once() -> None:
    """Repeated merges, updates and deletes collapse; sources and reasons are united."""
    combined, rejected = combine(
        [
            Delta(
                (Merge(("a-1", "b-2"), "Both.", None, ("0",)), Update("c-3", "New.", "S", ("0",)), Delete("d-4", "old"))
            ),
            Delta(
                (
                    Delete("d-4", "misleads"),
                    Update("c-3", " New.", "s:", ("1",)),
                    Merge(("b-2", "a-1"), "Both. ", None, ("1",)),
                )
            ),
            Delta((Delete("d-4"), Delete("d-4", "old"))),
        ]
    )
    assert combined.operations == (
        Merge(("a-1", "b-2"), "Both.", None, ("0", "1")),
        Update("c-3", "New.", "S", ("0", "1")),
        Delete("d-4", "old; misleads"),
    )
    assert rejected == ()


def test_of_two_merges_of_the_same_bullets_the_first_words_stand() -> None:
    """A merge in other words is another edit: it is rejected with its reason, and its sources are not taken over."""
    second = Merge(("b-2", "a-1"), "Both of them.", None, ("1",))
    combined, rejected = combine([Delta((Merge(("a-1", "b-2"), "Both.", None, ("0",)),)), Delta((second,))])
    assert combined.operations == (Merge(("a-1", "b-2"), "Both.", None, ("0",)),)
    assert [item.operation for item in rejected] == [second]
    assert "an earlier operation of this batch edits the same bullet" in rejected[0].reason


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Update("a-1", "One."), Update("a-1", "Two.")),
        (Update("a-1", "One.", "S"), Update("a-1", "One.", "T")),
        (Update("a-1", "One."), Delete("a-1")),
        (Delete("a-1"), Update("a-1", "One.")),
        (Merge(("a-1", "b-2"), "x"), Merge(("b-2", "c-3"), "x")),
        (Merge(("a-1", "b-2"), "x"), Merge(("a-1", "b-2", "c-3"), "x")),
        (Merge(("a-1", "b-2"), "x"), Delete("b-2")),
        (Delete("b-2"), Merge(("a-1", "b-2"), "x")),
        (Update("b-2", "x"), Merge(("a-1", "b-2"), "x")),
    ],
    ids=lambda operation: operation.op,
)
def test_the_first_of_two_edits_stands(first: Operation, second: Operation) -> None:
    """Of two different edits of one bullet the first given stands, the second is reported with its reason."""
    combined, rejected = combine([Delta((first,)), Delta((second, Tag("c-3", 1)))])
    assert combined.operations == (Tag("c-3", 1), first)
    assert [item.operation for item in rejected] == [second]
    assert "an earlier operation of this batch edits the same bullet" in rejected[0].reason


def represented(operation: Operation, combined: Delta) -> bool:
    """Whether what an operation asks for is in the delta."""
    for other in combined.operations:
        if type(other) is not type(operation):
            continue
        if isinstance(other, Tag) and isinstance(operation, Tag):
            if (other.id, other.source) == (operation.id, operation.source):
                return True
        elif isinstance(other, Delete) and isinstance(operation, Delete):
            if other.id == operation.id and operation.reason in other.reason:
                return True
        elif folded(other.content) == folded(operation.content) and set(operation.sources) <= set(other.sources):
            if isinstance(other, Add) and other.predictor == operation.predictor:
                return True
            if isinstance(other, Update) and other.id == operation.id:
                return True
            if isinstance(other, Merge) and set(other.ids) == set(operation.ids):
                return True
    return False


@relaxed
@given(st.data())
def test_combined_deltas_apply_and_nothing_vanishes(data: st.DataObject) -> None:
    """Deltas made from one snapshot give one that fits it; each operation is in it or reported; votes add up."""
    playbook = data.draw(playbooks(min_size=1))
    several = data.draw(st.lists(deltas(playbook), max_size=4))
    combined, rejected = combine(several)
    after = apply(playbook, combined)
    assert admit(playbook, combined.operations)[1] == ()
    assert combine(several) == (combined, rejected)
    reported = {id(item.operation) for item in rejected}
    everything = [operation for delta in several for operation in delta.operations]
    for operation in everything:
        assert represented(operation, combined) or id(operation) in reported
    assert all(item.reason for item in rejected)
    for name in ("helpful", "harmful"):
        votes = [sum(getattr(op, name, 0) for op in ops) for ops in (everything, combined.operations)]
        assert votes[0] == votes[1]
    assert checked(after) == after
    assert combine([combined]) == (combined, ())
    assert combine([]) == (Delta(), ())


@relaxed
@given(st.data())
def test_one_delta_combined_is_that_delta(data: st.DataObject) -> None:
    """A delta without conflicts or repeats does alone what it does combined."""
    playbook = data.draw(playbooks(min_size=1))
    delta = data.draw(deltas(playbook))
    combined, rejected = combine([delta])
    tags = sum(operation.op == "tag" for operation in delta.operations)
    assume(not rejected and len(combined) - sum(op.op == "tag" for op in combined.operations) == len(delta) - tags)
    one, other = apply(playbook, delta), apply(playbook, combined)
    assert {section_key(name) for name in one.sections} == {section_key(name) for name in other.sections}
    assert one.high_water == other.high_water

    def shown(after: Playbook) -> list[Bullet]:
        return [replace(bullet, section=section_key(bullet.section) or "x") for bullet in after]

    assert shown(one) == shown(other)


def test_edits_of_bullets_not_born_yet_are_told() -> None:
    """An edit of a bullet that the same delta adds cannot be carried over: it is rejected, and hits no other."""
    first = Delta((Add("OTHERS", "One."),))
    second = Delta((Add("OTHERS", "Two."), Update("misc-00008", "Two, better.")))
    combined, _ = combine([first, second])
    delta, rejected = admit(SEED, combined.operations)
    assert [item.operation for item in rejected] == [Update("misc-00008", "Two, better.")]
    assert [b.content for b in apply(SEED, delta)][3:] == ["One.", "Two."]


# --- rebase


BASE = Playbook((Bullet("s-00001", "S", "Round late."), Bullet("s-00002", "S", "Name the unit.")))


@pytest.mark.parametrize(
    "edit",
    [Update("s-00001", "Round late, once."), Merge(("s-00001", "s-00002"), "Both."), Delete("s-00001")],
    ids=lambda edit: edit.op,
)
@pytest.mark.parametrize("change", [Update("s-00001", "Round."), Update("s-00001", "Round late.", "Mistakes")])
def test_an_edit_of_a_bullet_that_was_changed_since_is_left_out(edit: Operation, change: Update) -> None:
    """A new text or a new section: the edit's author has not seen it, so it is rejected and the change stands."""
    now = apply(BASE, Delta((change,)))
    good, rejected = rebase(Delta((edit, Tag("s-00001", 1))), BASE, now)
    assert good == Delta((Tag("s-00001", 1),))
    assert [item.operation for item in rejected] == [edit]
    assert "the bullet was changed since this was made" in rejected[0].reason


def test_votes_since_do_not_hinder_an_edit() -> None:
    """Counters are no part of what an author has read."""
    edit = Delta((Update("s-00001", "Round late, once."),))
    assert rebase(edit, BASE, apply(BASE, Delta((Tag("s-00001", 3),)))) == (edit, ())


def test_what_a_delta_does_with_its_own_bullets_follows_them() -> None:
    """A bullet that the delta adds gets another id on the later playbook; votes on it and updates of it go with it."""
    made = Delta((Add("S", "New."), Tag("s-00003", 1), Update("s-00003", "New, better."), Tag("s-00009", 1)))
    now = apply(BASE, Delta((Add("S", "Faster."),)))
    good, rejected = rebase(made, BASE, now)
    assert [item.reason for item in rejected] == ["tag s-00009: no bullet 's-00009' in the playbook"]
    after = apply(now, good)
    assert [(b.id, b.content, b.helpful) for b in after][2:] == [
        ("s-00003", "Faster.", 0),
        ("s-00004", "New, better.", 1),
    ]


def test_what_follows_an_addition_that_is_left_out_is_left_out() -> None:
    """No vote meant for a bullet that is not there hits another one."""
    full = Playbook((Bullet(f"s-{'9' * 18}", "S", "The last number."),))
    base = Playbook((Bullet("s-00001", "S", "x"),))
    good, rejected = rebase(Delta((Add("S", "New."), Tag("s-00002", 1))), base, full)
    assert (good, len(rejected)) == (Delta(), 2)
    assert "(left out)" in rejected[1].reason


# --- merge


A = Playbook(
    (
        Bullet("s-00001", "S", "Round only the final result.", 2, 1, None, ("1",)),
        Bullet("s-00005", "S", "Name the unit of every amount.", 0, 0, None, ("2",)),
    )
)
B = Playbook(
    (
        Bullet("of-00001", "Others", "Ask for the invoice number first.", 1, 0, "react", ("user-1",)),
        Bullet("s-00002", "s", "Name the unit of every amount!", 3, 1, None, ("user-2",)),
    ),
    ("Empty",),
)


def test_what_both_know_stands_once() -> None:
    """The id of `a` stays, with the text of better evidence; counters are summed, sources united; the rest gets ids."""
    merged = merge(A, B)
    assert [bullet.id for bullet in merged] == ["s-00001", "s-00005", "misc-00006"]
    assert merged["s-00001"] == A["s-00001"]
    both = merged["s-00005"]
    assert (both.content, both.helpful, both.harmful, both.sources) == (B["s-00002"].content, 3, 1, ("2", "user-2"))
    other = merged["misc-00006"]
    assert (other.content, other.helpful, other.predictor, other.sources) == (
        "Ask for the invoice number first.",
        1,
        "react",
        ("user-1",),
    )
    assert merged.sections == ("S", "OTHERS", "Empty")
    assert merged.high_water == 7


def test_texts_that_are_only_similar_stand_both() -> None:
    """Only contents that are equal after folding, for the same predictor, become one."""
    a = Playbook((Bullet("s-1", "S", "Round to 2 digits."), Bullet("s-2", "S", "Sum up.", predictor="react")))
    for content in ("Round to 3 digits.", "Always round to 2 digits.", "Sum up."):
        assert len(merge(a, Playbook((Bullet("s-1", "S", content),)))) == 3


@settings(max_examples=50)
@given(playbooks(), playbooks())
def test_merging_loses_nothing(a: Playbook, b: Playbook) -> None:
    """Ids of `a` and its order stay; votes and sources are all there; an empty one changes nothing."""
    assert merge(a, Playbook()) == a
    merged = merge(a, b)
    assert merged == merge(a, b)
    for count in ("helpful", "harmful"):
        assert sum(getattr(x, count) for x in merged) == sum(getattr(x, count) for p in (a, b) for x in p)
    assert {s for x in merged for s in x.sources} == {s for p in (a, b) for x in p for s in x.sources}
    assert [x.id for x in merged][: len(a)] == [x.id for x in a]
    said = [(x.predictor, folded(x.content)) for p in (a, b) for x in p]
    assert {(x.predictor, folded(x.content)) for x in merged} == set(said)
    assert [x.id for x in merge(a, a)] == [x.id for x in a]


def test_repeats_within_the_first_stay() -> None:
    """The user's own playbook is not cleaned up unasked."""
    twice = Playbook((*A.bullets, Bullet("s-00009", "S", "Round only the final result!")))
    assert merge(twice, Playbook((B["s-00002"],))).bullets[0] == A["s-00001"]
    assert "s-00009" in merge(twice, Playbook((B["s-00002"],)))
    assert len(merge(twice, twice)) == 3


def test_what_is_no_playbook_is_refused() -> None:
    """Each argument is named."""
    with pytest.raises(SettingsError, match="b is None"):
        merge(A, None)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="a is 'x'"):
        merge("x", A)  # type: ignore[arg-type]
