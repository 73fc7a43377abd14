"""Deltas combined by plain code: votes add up, the same is said once, nothing vanishes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from delta_helpers import SEED, checked, relaxed
from dspy_ace.playbook.merging import combine
from dspy_ace.playbook.operations import Add, Delete, Delta, Merge, Operation, Tag, Update, admit, apply
from dspy_ace.playbook.playbook import Bullet, Playbook
from dspy_ace.playbook.text import folded, section_key
from strategies import deltas, playbooks


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
