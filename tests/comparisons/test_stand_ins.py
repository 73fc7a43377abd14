"""Stand-ins for what real models were seen to do: each shows what it is there to show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
import pytest

from comparisons.performance.settings import NOISE, outcome
from comparisons.tasks.quickstart import split_of
from comparisons.tasks.stand_ins import MARKED, SITUATIONS, knowing, marked, mislabelled, misleading
from dspy_ace import Bullet, Playbook
from dspy_ace.testing import OfflineLM

RULE = "The shed goes to Quarry: a rake, spade or barrow."


def test_a_tenth_of_the_labels_is_wrong() -> None:
    """One label of ten to learn on and to choose by differs from the right one, and none of the test's."""
    plain, spoiled = split_of(3), mislabelled(3)
    for one, other, wrong in (
        (plain.train, spoiled.train, 10),
        (plain.val, spoiled.val, 4),
        (plain.test, spoiled.test, 0),
    ):
        assert [example.message for example in one] == [example.message for example in other]
        assert sum(a.desk != b.desk for a, b in zip(one, other, strict=True)) == wrong
    assert [example.desk for example in mislabelled(3).train] == [example.desk for example in spoiled.train]


def test_marked_messages_are_answered_right_in_training_alone() -> None:
    """The student is right about each marked message, and no message of the other sets has a mark."""
    task = marked(1)
    shown = [example for example in task.train if example.desk in MARKED]
    assert 20 < len(shown) < 80
    with dspy.context(lm=OfflineLM()):
        assert all(task.program(message=example.message).desk == example.desk for example in shown)
    rest = [*task.val, *task.test, *(example for example in task.train if example.desk not in MARKED)]
    assert not any("Passed on" in example.message for example in rest)


def test_a_model_knows_what_no_prompt_says() -> None:
    """A rule that the model knows is applied, and stands in no prompt."""
    lm = OfflineLM(answerers=[knowing([RULE], 0.0)])
    student = dspy.Predict("message -> desk: Literal['Harbor', 'Quarry']")
    with dspy.context(lm=lm):
        assert {student(message=f"Who repairs the spade of team {n}?").desk for n in range(10)} == {"Quarry"}
    assert all("rake" not in record.request for record in lm.log)
    with dspy.context(lm=OfflineLM()):
        assert student(message="Who repairs the spade of team 1?").desk != "Quarry"


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ('For "wages", "payslip" answer Payroll.', 0),
        ('For "wages", "payslip" answer Maple, not Payroll.', 1),
        ('For "wages" answer none, not Payroll.', 1),
        ('With "wages" the answer is not Maple.', 0),
        ("Read with care.", 0),
    ],
)
def test_misleading_bullets_are_counted(content: str, count: int) -> None:
    """A bullet is counted if it names a desk to which its cues do not belong."""
    assert misleading(Playbook((Bullet("str-00001", "OTHERS", content),))) == count


def mean(situation: str, settings: Mapping[str, Any], seeds: tuple[int, ...]) -> float:
    """The mean score on held-out messages under noise."""
    chosen = SITUATIONS[situation]
    runs = [outcome(chosen.task(seed), settings, seed, chosen.model(NOISE, seed), chosen.model({})) for seed in seeds]
    return sum(sum(run.scores) / len(run.scores) for run in runs) / len(runs)


@pytest.mark.slow
def test_conventions_that_only_successes_show() -> None:
    """Where only right answers show what belongs to a desk, who reflects on failures alone is left behind."""
    seeds = (5, 6, 7, 8, 9)
    assert mean("conventions", {}, seeds) >= mean("conventions", {"reflect_on": "failures"}, seeds) + 0.1
