"""Rules that end a run, and what shows that something does not work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dspy
import pytest

from dspy_ace import OnlineACE, Playbook
from dspy_ace.errors import MetricError, RunError
from dspy_ace.playbook import Add, Delta
from dspy_ace.testing import OfflineLM
from dspy_ace.training.run import Batch
from dspy_ace.training.state import FailedRollout, Record, Rollout, State, Validation
from dspy_ace.training.stopping import check_roles, check_rollouts, reason_to_stop
from dspy_ace.training.validation import due
from runs import compiled
from tasks import Route, desk_metric, messages

pytestmark = pytest.mark.compat


def step(
    number: int, *, learned: bool = True, valid: float | None = None, scores: Any = (0.5,), epoch: int = 1,
    failures: Any = (), reflections: Any = (), curation: str | None = None,
) -> Record:  # fmt: skip
    """A step on as many examples as it has scores."""
    delta = Delta((Add("S", f"Lesson {number}."),)) if learned else Delta()
    validation = None if valid is None else Validation((valid,))
    return Record(
        number, epoch, tuple(range(len(scores))), tuple(scores), delta=delta, validation=validation,
        failures=failures, reflections=reflections, curation=curation,
    )  # fmt: skip


def state(*records: Record) -> State:
    """The state after these records."""
    found = State.of(Playbook())
    for record in records:
        found = found.after(record)
    return found


def seed(valid: float = 0.5) -> Record:
    """The seed's validation."""
    return Record(0, validation=Validation((valid,)))


def run(valset: int = 1, steps: int = 100, metric: Any = len, left: int = 1000, reached: Any = None) -> Any:
    """As much of a run as the rules look at: batches of eight."""
    settings = SimpleNamespace(
        validate_when="along", metric=metric, perfect_score=1.0, max_metric_calls=left, max_lm_calls=None
    )
    return SimpleNamespace(
        settings=settings,
        valset=[None] * valset,
        examples_left=lambda records: [8 * steps - sum(len(record.batch) for record in records)],
        rollouts_for_learning=lambda wanted: min(wanted, left),
        engine=SimpleNamespace(limits=SimpleNamespace(reached=reached, calls_left=lambda: None)),
    )


def test_a_validation_is_due_when_learning_has_cost_as_much() -> None:
    """A valset of 16 is validated after 16 examples were learned from, not before; first of all with the seed."""
    eight = (0.5,) * 8
    assert due(run(16), State.of(Playbook()))
    assert not due(run(16), state(seed(), step(1, scores=eight)))
    assert due(run(16), state(seed(), step(1, scores=eight), step(2, scores=eight)))
    validated = state(seed(), step(1, scores=eight), step(2, scores=eight, valid=0.6))
    assert not due(run(16), validated.after(step(3, scores=eight)))


def test_a_validation_that_the_last_one_would_soon_follow_is_not_made() -> None:
    """With fewer examples to come than the valset holds, the last playbook's validation is enough."""
    learned = state(seed(), step(1, scores=(0.5,) * 16))
    assert due(run(16, steps=4), learned)
    assert not due(run(16, steps=3), learned)


def test_a_playbook_that_reads_the_same_is_not_validated_again() -> None:
    """Nor is one that the limit on rollouts leaves too little for."""
    assert not due(run(), state(seed(), step(1, learned=False)))
    assert due(run(), state(seed(), step(1), step(2, learned=False)))
    assert not due(run(left=0), state(seed(), step(1)))


def test_a_perfect_validation_ends_a_run_once_every_example_was_met() -> None:
    """A tiny valset that is right says little: the first epoch is gone through all the same."""
    perfect = state(seed(), step(1, valid=1.0))
    assert reason_to_stop(run(), perfect, Batch(2, 1, (0,))) is None
    assert reason_to_stop(run(), perfect, Batch(2, 2, (0,))) == "a perfect validation score"
    assert reason_to_stop(run(), state(seed(1.0), step(1, learned=False)), Batch(2, 2, (0,))) is None
    assert reason_to_stop(run(), state(seed(), step(1, valid=0.9)), Batch(2, 2, (0,))) is None


def test_an_epoch_without_a_failure_ends_a_run() -> None:
    """With a metric nothing is left to learn; without one, an insight may have come from it."""
    second = Batch(2, 2, (0,))
    calm = state(step(1, learned=False, scores=(1.0,)))
    assert "nothing left to learn" in (reason_to_stop(run(), calm, second) or "")
    assert reason_to_stop(run(), state(step(1, learned=False, scores=(0.9,))), second) is None
    busy = state(step(1, scores=(1.0,)))
    assert "nothing left to learn" in (reason_to_stop(run(), busy, second) or "")
    assert reason_to_stop(run(metric=None), busy, second) is None
    assert "new lesson" in (reason_to_stop(run(metric=None), calm, second) or "")


def test_a_limit_ends_a_run() -> None:
    """Rollouts by their number, LM calls by the call that was refused."""
    assert reason_to_stop(run(left=0), state(step(1)), Batch(2, 1, (0,))) == "max_metric_calls=0 is reached"
    assert reason_to_stop(run(reached="max_cost=1"), state(step(1)), Batch(2, 1, (0,))) == "max_cost=1"


def failed(count: int, kind: str = "provider") -> tuple[FailedRollout, ...]:
    """So many rollouts of a batch failed."""
    return tuple(FailedRollout(Rollout(str(n)), kind, "401") for n in range(count))


def test_rollouts_that_never_worked_end_a_run_at_the_third() -> None:
    """At the end of a run one is enough; the metric, the set-up and the provider are told apart."""
    check_rollouts([step(1, scores=(0.0,) * 2, failures=failed(2))], [])
    with pytest.raises(RunError, match="The LM failed on every one of 2 examples"):
        check_rollouts([step(1, scores=(0.0,) * 2, failures=failed(2))], [], at_end=True)
    for kind, error in (("provider", RunError), ("setup", RunError), ("metric", MetricError)):
        with pytest.raises(error, match="401"):
            check_rollouts([step(1, scores=(0.0,) * 3, failures=failed(3, kind))], [])
    check_rollouts([step(1, scores=(0.0,) * 9, failures=failed(9, "program"))], [], at_end=True)


def test_rollouts_that_worked_before_may_fail_seven_times_in_a_row() -> None:
    """The eighth ends the run: records are looked at in their order, so a continued run ends where this one does."""
    worked = step(1, scores=(1.0,))
    check_rollouts([worked, step(2, scores=(0.0,) * 7, failures=failed(7))], [], at_end=True)
    with pytest.raises(RunError, match="every one of 8 examples"):
        check_rollouts([worked, step(2, scores=(0.0,) * 8, failures=failed(8))], [])


def test_a_role_that_never_worked_ends_a_run() -> None:
    """The Reflector after three failures, the Curator after two; one success long ago is enough to go on."""
    error = {"examples": ["0"], "error": "RoleError: no"}
    check_roles([step(1, reflections=(error, error))])
    with pytest.raises(RunError, match="The Reflector failed 3 times and never worked: RoleError: no"):
        check_roles([step(1, reflections=(error, error))], ["RoleError: no"])
    check_roles(
        [step(1, reflections=(error, {"examples": ["1"], "insights": 0, "verified": None}))], ["RoleError: no"] * 9
    )
    check_roles([step(1, curation="no JSON")])
    with pytest.raises(RunError, match="The Curator failed 2 times and never worked: no JSON"):
        check_roles([step(1, curation="no JSON")], curation="no JSON")
    check_roles([step(1, curation="")], curation="no JSON")
    with pytest.raises(RunError, match="The Curator failed 1 times"):
        check_roles([step(1, curation="no JSON")], at_end=True)


@pytest.mark.parametrize(
    ("scale", "settings", "words"),
    [
        ([100.0, 40.0], {}, "40 to 100, lie outside of the scale from failure_score=0 to perfect_score=1"),
        ([5.0, 2.0], {}, "Set both to the worst and the best score"),
        ([-0.1, -3.0], {}, "lie outside"),
        ([5.0, 2.0], {"failure_score": 10.0, "perfect_score": 20.0, "validate": "along"}, "failure_score=10"),
    ],
)
def test_scores_that_all_lie_outside_of_the_scale_end_a_run_before_a_reflection(
    scale: list[float], settings: dict[str, Any], words: str
) -> None:
    """0 … 100, 1 … 5, losses: the error says what to set, and no role was asked."""
    lm, task = OfflineLM(), OfflineLM()

    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        return scale[0] if example.desk == prediction.desk else scale[1]

    with pytest.raises(MetricError, match=words):
        compiled(task, metric=metric, reflection_lm=lm, **settings)
    assert lm.calls == 0
    assert 0 < task.calls <= 6


@pytest.mark.parametrize(("best", "worst", "named"), [(100.0, 0.0, "perfect_score"), (1.0, -1.0, "failure_score")])
def test_the_first_score_outside_of_the_scale_is_warned_of_once(
    best: float, worst: float, named: str, caplog: Any
) -> None:
    """Where others lie on it the run goes on; the warning names the score and the setting."""

    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        return best if example.desk == prediction.desk else worst

    compiled(OfflineLM(), metric=metric)
    said = [record.getMessage() for record in caplog.records if "outside of the scale" in record.getMessage()]
    assert len(said) == 1
    assert f"the score {best if named == 'perfect_score' else worst:g} lies outside" in said[0]
    assert f"et {named} to the" in said[0]


def test_a_told_score_outside_of_the_scale_is_warned_of(caplog: Any) -> None:
    """Online as well: three of them, and nothing else, are not learned from."""
    with dspy.context(lm=OfflineLM()):
        online = OnlineACE(dspy.ChainOfThought(Route), metric=desk_metric, learn="manual")
        for example in messages(3, 1):
            online.tell(online(**example.inputs()), dspy.Prediction(score=80, feedback="Good."))
        assert "the score 80 lies outside of the scale" in caplog.text
        with pytest.raises(MetricError, match="perfect_score"):
            online.learn()
        assert online.pending == 3
        online.close(learn=False)


def test_a_threshold_that_all_first_scores_pass_is_no_mistake(caplog: Any) -> None:
    """perfect_score=0.8 and a student that scores 0.9 from the start: a warning, and nothing is left to learn."""
    results = compiled(OfflineLM(), metric=lambda example, prediction: 0.9, perfect_score=0.8, epochs=3)
    assert "the score 0.9 lies outside" in caplog.text
    assert "nothing left to learn" in results.detailed_results.stopped
