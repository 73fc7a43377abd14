"""A playbook is its seed and its history, replayed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_ace import Playbook
from dspy_ace.errors import DeltaError
from dspy_ace.playbook import Add, Delta, Event, Rollback, apply, replay
from dspy_ace.playbook.history import versions
from edits import relaxed
from strategies import deltas, playbooks


def add(content: str) -> Delta:
    return Delta((Add("OTHERS", content),))


def test_a_rollback_gives_the_earlier_playbook_and_no_old_number() -> None:
    """The bullets are those of that version; numbers given out since are not given again; it can be undone."""
    history: list[Event] = [add("one"), add("two"), Rollback(1), add("three"), Rollback(2)]
    seen = [[bullet.id for bullet in playbook] for playbook in versions(Playbook(), history)]
    assert seen[3:] == [["misc-00001"], ["misc-00001", "misc-00003"], ["misc-00001", "misc-00002"]]
    assert replay(Playbook(), history).high_water == 3


@pytest.mark.parametrize("event", [Rollback(1), Rollback(7), Rollback(-1), Delta((*add("x").operations, 3))])  # type: ignore[arg-type]
def test_an_event_that_does_not_fit_is_named(event: Event) -> None:
    """Its number is in the message, counted from 1."""
    with pytest.raises(DeltaError, match="event 1 does not fit"):
        replay(Playbook(), [event])


@relaxed
@given(st.data())
def test_replaying_is_applying_one_after_the_other(data: st.DataObject) -> None:
    """The versions are those that the deltas gave when they were made."""
    seed = data.draw(playbooks())
    made, history = [seed], []
    for _ in range(3):
        history.append(data.draw(deltas(made[-1])))
        made.append(apply(made[-1], history[-1]))
    assert list(versions(seed, history)) == made
    assert replay(seed, history) == made[-1]
    assert replay(seed, []) is seed
