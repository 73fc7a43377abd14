"""The choice between the starting and the learned playbook: on what evidence, and at what spending."""

from __future__ import annotations

import random
import shutil
from types import SimpleNamespace
from typing import Any

import dspy
import pytest

from dspy_ace import Playbook
from dspy_ace.playbook import Add, Delta, Tag
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from dspy_ace.training.choice import batch_evidence, by_evidence, repairs, settled
from dspy_ace.training.state import FailedRollout, Record, Rollout, State, Validation
from dspy_ace.training.validation import _side_by_side
from dspy_ace.training.verdict import UNIT, paired, unpaired, verdict
from runs import compiled
from tasks import desk_metric, messages

pytestmark = pytest.mark.compat
DIFFERENT = list({example.message: example for example in messages(400, 1)}.values())
TRAIN, VAL = DIFFERENT[:24], DIFFERENT[24:56]
TOPICS = {"体育": "球队联赛冠军教练进球", "财经": "股市基金银行利率债券", "科技": "手机芯片软件卫星网络"}


def headlines(count: int, seed: int) -> list[dspy.Example]:
    """Headlines without spaces, of which the offline model can learn each by heart and no other."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        topic = rng.choice(sorted(TOPICS))
        text = "".join(rng.sample("京沪今昨首新据记网全最回", 5) + rng.sample(TOPICS[topic], 2))
        made.append(dspy.Example(headline=text, topic=topic).with_inputs("headline"))
    return made


def step(number: int, *scores: float, verified: Any = (), epoch: int = 1, batch: Any = None, **more: Any) -> Record:
    """A step that learns from a batch with these scores; retries confirmed the examples in `verified`."""
    reflections = tuple({"examples": [str(position)], "insights": 1, "verified": True} for position in verified)
    places = tuple(range(len(scores))) if batch is None else batch
    delta = Delta((Add("S", f"Lesson {number}."),))
    return Record(number, epoch, places, scores, reflections=reflections, delta=delta, **more)


def state(*records: Record) -> State:
    """The state after these records."""
    found = State.of(Playbook())
    for record in records:
        found = found.after(record)
    return found


def side_by_side(seed: list[float], learned: list[float], number: int = 1) -> Record:
    """A part of a validation at the end."""
    return Record(number, baseline=Validation(tuple(seed)), validation=Validation(tuple(learned)))


# --- the rule


def test_a_failure_is_repaired_by_a_retry_a_later_epoch_or_another_rollout() -> None:
    """What came later counts; half of what was missing is enough for a graded metric; a provider says nothing."""
    first = step(1, 1.0, 0.0, 0.2, 0.0, 0.0, 0.5, verified=[1])
    found = repairs([first], UNIT)
    assert (found.repaired, found.failed, found.untried) == (("1",), (), ("2", "3", "4", "5"))
    again = Record(1, again=((2, 0.6), (3, 0.4), (4, None), (5, 0.7)))
    found = repairs([first, again], UNIT)
    assert (found.repaired, found.failed, found.unknown, found.untried) == (("1", "2"), ("3", "5"), ("4",), ())
    assert str(found) == "2 of 4 failures repaired (1 more were not tried again)"
    second = step(2, 0.0, 1.0, epoch=2, batch=(1, 3))
    found = repairs([first, again, second], UNIT)
    assert (found.repaired, found.untried) == (("2", "3"), ("1",))
    assert repairs([step(1, 0.2), step(2, 0.9, epoch=2, batch=(0,))], UNIT).repaired == ("0",)
    lost = FailedRollout(Rollout("0"), "provider", "429")
    assert repairs([step(1, 0.0, failures=(lost,))], UNIT).failures == 0


def test_enough_is_a_quarter_and_known_as_soon_as_no_other_can_change_it() -> None:
    """Two of eight repaired are enough, whatever the rest does; seven of eight that stay failures are not."""
    zeros = (0.0,) * 8

    def found(*records: Record) -> tuple[bool, bool]:
        made = repairs(records, UNIT)
        return made.settled, made.enough

    assert found(step(1, *zeros)) == (False, True)
    assert found(step(1, *zeros, verified=[0, 1])) == (True, True)
    assert found(step(1, *zeros), Record(1, again=tuple((n, 0.0) for n in range(6)))) == (False, False)
    assert found(step(1, *zeros), Record(1, again=tuple((n, 0.0) for n in range(7)))) == (True, False)
    assert found(step(1, 1.0)) == (True, True)


def test_the_evidence_decides_where_it_is_clear_and_repairs_where_it_is_not() -> None:
    """Better, worse, below 0, and a tie without and with room for a gain to show."""
    assert by_evidence(verdict(paired([0.0] * 10, [1.0] * 10), None)) is True
    assert by_evidence(verdict(paired([1.0] * 10, [0.0] * 10), None)) is False
    assert by_evidence(verdict(paired([1.0] * 4, [1.0] * 3 + [0.0]), None)) is False
    assert by_evidence(verdict(paired([1.0] * 17 + [0.0] * 3, [1.0] * 17 + [0.0] * 3), None)) is None
    assert by_evidence(verdict(paired([0.0] * 20, [0.0] * 20), None)) is False
    assert (
        by_evidence(verdict(paired([0.0] * 20, [0.0] * 20), unpaired([0.0] * 8, [0.0] * 4 + [1.0] * 12))) is not False
    )
    assert by_evidence(verdict(paired([0.0] * 20, [1.0] + [0.0] * 19), None)) is False
    assert by_evidence(verdict(paired([0.0] * 20, [1.0] * 3 + [0.0] * 17), None)) is None
    nearly = verdict(paired([0.0] * 20, [1.0] * 4 + [0.0] * 16), None)
    assert (nearly and nearly.word, by_evidence(nearly)) == ("not shown to be better", True)
    assert by_evidence(None) is None


def test_a_blind_valset_does_not_outweigh_what_the_batches_show() -> None:
    """17 of 20 on both sides, and batches from 5 of 8 to 16 of 16: returned once its failures are repaired."""
    tie = [1.0] * 17 + [0.0] * 3
    batches = [range(8), range(8, 16), range(16, 24)]
    scores = [[1.0] * 5 + [0.0] * 3, [1.0] * 8, [1.0] * 8]
    learned = [step(n, *scores[n - 1], batch=tuple(batches[n - 1])) for n in (1, 2, 3)] + [side_by_side(tie, tie, 3)]
    found = state(*learned)
    assert found.returns_learned
    assert not found.repairs.settled
    assert state(*learned, Record(3, again=((5, 1.0), (6, 0.0), (7, 0.0)))).best_step == 3
    assert state(*learned, Record(3, again=((5, 0.0), (6, 0.0), (7, 0.0)))).best_step == 0


def test_validation_is_settled_when_further_rows_change_nothing() -> None:
    """Neither word nor choice: not after a clear gain, not while one row may turn the sign, and at the end always."""
    assert settled((), [0.0] * 8, [1.0] * 8, 4, UNIT)
    assert not settled((), [1.0] * 8, [1.0] * 8, 1, UNIT)
    assert settled((), [1.0] * 8, [1.0] * 8, 0, UNIT)
    assert settled((), [1.0] * 20, [1.0] * 17 + [0.0] * 3, 1, UNIT)


def test_parts_of_a_validation_are_one() -> None:
    """The scores of all parts are pooled; the seed's stay known for another playbook."""
    found = state(step(1, 0.0), side_by_side([0.0] * 8, [1.0] * 8), side_by_side([0.0, 1.0], [1.0, 1.0]))
    assert found.verdict is not None
    assert found.verdict.validation is not None
    assert found.verdict.validation.examples_before == 10
    assert (found.seed_score, found.best_score) == (0.1, 1.0)


def test_a_validation_does_not_go_on_behind_a_step_that_only_voted() -> None:
    """Its rows would be paired with others."""
    seed = [0.0, 1.0] * 4
    made = state(step(1, 0.0, 0.0), side_by_side(seed, seed))
    votes = Delta((Tag(made.playbook.bullets[0].id, 1, 0, "0"),))
    limits = SimpleNamespace(rollouts_left=lambda: None)
    run: Any = SimpleNamespace(valset=[None] * 32, engine=SimpleNamespace(limits=limits))
    pool: Any = None
    assert _side_by_side(run, made.after(Record(2, 2, (0, 1), (1.0, 1.0), delta=votes)), pool) is None


def test_what_the_provider_failed_is_no_evidence_of_a_batch() -> None:
    """Neither before nor after something was learned."""
    lost = FailedRollout(Rollout("0"), "provider", "429")
    records = [step(number, 0.0, 1.0, failures=(lost,)) for number in (1, 2)]
    assert batch_evidence(records) == ([1.0], [1.0])


# --- runs


@pytest.mark.slow
def test_a_playbook_learned_by_heart_is_not_returned(caplog: Any) -> None:
    """Every failure was repaired by its retry, no other headline is: the student's prompt comes back."""

    def metric(example: Any, prediction: Any, trace: Any = None) -> Any:
        return dspy.Prediction(score=float(example.topic == prediction.topic), feedback=f"应为 {example.topic}")

    student = dspy.ChainOfThought("headline -> topic")
    program = compiled(OfflineLM(), student, metric, trainset=headlines(24, 1), valset=headlines(20, 2))
    results = program.detailed_results
    assert len(results.repairs.repaired) >= 0.9 * results.repairs.failures > 10
    assert results.learned_playbook.tokens() > 500
    assert program.playbook == results.seed_playbook == Playbook()
    assert program.predict.signature.instructions == student.predict.signature.instructions
    assert "The starting playbook is returned; the other one is detailed_results.learned_playbook" in caplog.text
    assert f"about {results.learned_playbook.tokens()} tokens with the learned playbook, 0 with" in caplog.text


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_tiny_valset_without_errors_does_not_hide_what_was_repaired(rounds: int, caplog: Any) -> None:
    """Four rows that the student gets right anyway: its failures are rolled out again where no retry did it."""
    easy = [
        dspy.Example(message=f"Desk Harbor, please: note {n}", desk="Harbor").with_inputs("message") for n in range(4)
    ]

    def metric(example: Any, prediction: Any, trace: Any = None) -> Any:
        return 1.0 if example.message.startswith("Desk Harbor") else desk_metric(example, prediction)

    program = compiled(
        OfflineLM(), metric=metric, trainset=TRAIN[:12], valset=easy, batch_size=12, max_reflection_rounds=rounds
    )
    results = program.detailed_results
    again = [score for record in results.records for _, score in record.again]
    assert results.verdict.word == "not shown to be better"
    assert results.seed_score == results.best_score == 1.0
    assert program.playbook == results.learned_playbook != results.seed_playbook
    assert bool(again) == (rounds == 0)
    assert "The learned playbook is returned; the other one is detailed_results.seed_playbook" in caplog.text


def test_failures_are_rolled_out_again_only_as_long_as_they_decide() -> None:
    """Useless remarks: of 17 or so failures 8 and 8 are tried; they count as rollouts and stand in the journal."""
    program = compiled(
        OfflineLM(), trainset=TRAIN, valset=None, max_reflection_rounds=0, batch_size=24,
        curate=lambda playbook, reflections: (Delta((Add("S", "Stay calm."),)), ()),
    )  # fmt: skip
    results = program.detailed_results
    tried = [len(record.again) for record in results.records if record.again]
    assert results.rollouts == len(TRAIN) + sum(tried)
    assert len(program.playbook) == 0 < len(results.learned_playbook)
    assert sum(tried) <= results.repairs.failures
    assert results.repairs.repaired == ()
    assert len(results.repairs.failed) > 0.75 * results.repairs.failures


def test_of_many_failures_a_sample_is_looked_at() -> None:
    """Of 100 failures 40, spread evenly; those whose outcome is known count, and no other is rolled out again."""
    zeros = (0.0,) * 100
    first = step(1, *zeros, verified=[0, 1, 2])
    found = repairs([first], UNIT, 40)
    assert (found.repaired, len(found.untried), found.sample_of) == (("0", "2"), 38, 100)
    assert max(map(int, found.untried)) == 97
    assert str(found) == "2 of 2 failures repaired (38 more were not tried again), a sample of 100"
    assert repairs([first], UNIT, 100) == repairs([first], UNIT)
    program = compiled(
        OfflineLM(), dspy.ChainOfThought("headline -> topic"), lambda example, prediction, trace=None: 0.0,
        trainset=headlines(100, 1), valset=None, max_reflection_rounds=0, batch_size=100,
        curate=lambda playbook, reflections: (Delta((Add("S", "Stay calm."),)), ()),
    )  # fmt: skip
    results = program.detailed_results
    assert results.repairs.sample_of == 100
    assert 30 < results.rollouts - 100 <= 40


@pytest.mark.parametrize("limit", [24, 27, 40])
def test_a_limit_shortens_what_is_rolled_out_again(limit: int) -> None:
    """It is never exceeded; where nothing could be tried, what was learned has the benefit of the doubt."""
    results = compiled(
        OfflineLM(), trainset=TRAIN, valset=None, max_reflection_rounds=0, batch_size=24, max_metric_calls=limit,
        curate=lambda playbook, reflections: (Delta((Add("S", "Stay calm."),)), ()),
    ).detailed_results  # fmt: skip
    assert results.rollouts <= limit
    assert (len(results.playbook) > 0) == (limit == 24)


def test_without_a_metric_nothing_is_asked_of_a_playbook_but_to_do_no_harm() -> None:
    """Errors are the only failures; one that stays does not cost what was learned, and nothing is rolled out again."""

    class Shaky(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.ChainOfThought("message -> desk")

        def forward(self, message: str) -> Any:
            if message == TRAIN[0].message:
                raise ValueError("no such customer")
            return self.route(message=message)

    program = compiled(
        OfflineLM(), Shaky(), None, trainset=TRAIN[:8], valset=None,
        reflect=lambda playbook, trajectory: Reflection(("Be brief.",)),
        curate=lambda playbook, reflections: (Delta((Add("S", "Be brief."),)), ()),
    )  # fmt: skip
    assert len(program.playbook) > 0
    assert not any(record.again for record in program.detailed_results.records)


@pytest.mark.slow
def test_the_choice_is_the_same_with_any_threads_and_after_any_cut(tmp_path: Any) -> None:
    """Failures that are rolled out again and parts of a validation are replayed, not made again."""
    settings = {"trainset": TRAIN, "valset": VAL[:12], "max_reflection_rounds": 0}
    noisy = {"slips": 0.3, "wrong_lessons": 0.6, "seed": 4}
    whole = compiled(OfflineLM(**noisy), num_threads=1, log_dir=tmp_path / "whole", **settings).detailed_results
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert sum(bool(record.again or record.validation) for record in whole.records) > 1
    for cut in range(1, len(lines)):
        folder = tmp_path / str(cut)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
        again = compiled(OfflineLM(**noisy), num_threads=8, log_dir=folder, **settings).detailed_results
        assert (folder / "journal.jsonl").read_bytes() == b"".join(lines)
        assert again.best_step == whole.best_step
