"""When a run looks at the valset, and when it ends."""

from __future__ import annotations

from typing import Any

import pytest

from dspy_ace import Playbook
from dspy_ace.playbook import Add, Delta
from dspy_ace.training.history import Record, State, Validation
from dspy_ace.training.pace import reason_to_stop, time_to_validate
from dspy_ace.training.schedule import Batch

pytestmark = pytest.mark.compat


def step(
    number: int, *, learned: bool = True, valid: float | None = None, scores: Any = (0.5,), epoch: int = 1
) -> Record:
    """A step on as many examples as it has scores."""
    delta = Delta((Add("S", f"Lesson {number}."),)) if learned else Delta()
    validation = None if valid is None else Validation((valid,))
    return Record(number, epoch, tuple(range(len(scores))), tuple(scores), delta=delta, validation=validation)


def state(*records: Record) -> State:
    """The state after these records."""
    found = State.of(Playbook())
    for record in records:
        found = found.after(record)
    return found


def seed(valid: float = 0.5) -> Record:
    """The seed's record."""
    return Record(0, validation=Validation((valid,)))


def test_it_is_time_when_learning_has_cost_as_much_as_a_look() -> None:
    """By default a valset of 16 is looked at after 16 examples were learned from, not before."""
    eight = (0.5,) * 8
    assert not time_to_validate(state(seed(), step(1, scores=eight)), 16, None, 100)
    assert time_to_validate(state(seed(), step(1, scores=eight), step(2, scores=eight)), 16, None, 100)
    looked = state(seed(), step(1, scores=eight), step(2, scores=eight, valid=0.6))
    assert not time_to_validate(looked.after(step(3, scores=eight)), 16, None, 100)


def test_a_look_that_the_last_one_would_soon_follow_is_not_made() -> None:
    """With fewer examples to come than the valset holds, the last playbook's validation is enough."""
    learned = state(seed(), step(1, scores=(0.5,) * 16))
    assert time_to_validate(learned, 16, None, 16)
    assert not time_to_validate(learned, 16, None, 15)


def test_every_so_many_steps_means_just_that() -> None:
    """validate_every=2 looks after the second step since the last look."""
    assert not time_to_validate(state(seed(), step(1)), 16, 2, 0)
    assert time_to_validate(state(seed(), step(1), step(2)), 16, 2, 0)


def test_a_playbook_that_reads_the_same_is_not_looked_at_again() -> None:
    """Without a new lesson since the last look there is nothing to see."""
    assert not time_to_validate(state(seed(), step(1, learned=False)), 1, None, 100)
    assert time_to_validate(state(seed(), step(1), step(2, learned=False)), 1, None, 100)


def test_reasons_to_stop() -> None:
    """A perfect score of something learned, patience, and an epoch that taught nothing; else the run goes on."""
    second = Batch(2, 2, (0,), True)
    assert reason_to_stop(state(seed(1.0)), Batch(1, 1, (0,), True), 1.0, None) is None
    assert reason_to_stop(state(seed(), step(1, valid=1.0)), second, 1.0, None) == "a perfect validation score"
    worse = state(seed(), step(1, valid=0.4), step(2, valid=0.5))
    assert "last 2" in (reason_to_stop(worse, Batch(3, 1, (0,), True), 1.0, 2) or "")
    assert reason_to_stop(worse, Batch(3, 1, (0,), True), 1.0, 3) is None
    calm = state(seed(), step(1, learned=False, scores=(1.0,)))
    assert "nothing left to learn" in (reason_to_stop(calm, second, 1.0, None) or "")
    assert reason_to_stop(state(seed(), step(1, learned=False, scores=(0.9,))), second, 1.0, None) is None
    busy = state(seed(), step(1, scores=(1.0,)))
    assert "nothing left to learn" in (reason_to_stop(busy, second, 1.0, None) or "")
    assert reason_to_stop(busy, second, 1.0, None, judged=False) is None
