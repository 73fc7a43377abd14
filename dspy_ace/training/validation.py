"""Validation: playbooks on the valset, and the choice between the seed and what was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import dspy
from dspy.evaluate.evaluate import EvaluationResult
from dspy.utils.callback import with_callbacks

from ..playbook import Playbook
from ..program import ThreadPool, Trajectory, with_playbook
from .choice import by_evidence, settled
from .state import FailedRollout, Record, Rollout, State, Validation, failures_of, seed_validation
from .step import Attempt, roll_out_in_waves, since, trajectories_of
from .stopping import check_scores

if TYPE_CHECKING:
    from .run import Run

ROWS = 8  # pairs of rollouts before the first look at the difference; failures between two looks
FULL = {"metric_key": "eval_full"}  # the name under which MIPROv2 and GEPA log an evaluation of the whole valset
PART = {"metric_key": "eval_part"}


def due(run: Run, state: State) -> bool:
    """Return True if the latest playbook is to be validated before the next step; first of all the seed.

    Then whenever as many examples were learned from as the valset holds, and as many are to come.
    """
    if not run.valset or run.settings.validate_when == "end":
        return False
    if not state.records:
        return True
    since_last = 0
    for record in reversed(state.records):
        if record.validation is not None:
            break
        since_last += len(record.batch)
    left, rows = sum(run.examples_left(state.records)), len(run.valset)
    affordable = run.rollouts_for_learning(rows) == rows
    return state.unvalidated and affordable and left >= rows and since_last >= rows


def validate(run: Run, state: State, pool: ThreadPool) -> Record:
    """Validate the latest playbook on the whole valset."""
    before = run.engine.meter.totals()
    (made,) = _rolled_out(run, state, [(state.playbook, range(len(run.valset)))], pool)
    check_scores(run.settings.scale, state.records, made)
    return Record(
        state.step,
        validation=Validation(_scores(made)),
        failures=_failures(made),
        rollouts=len(made),
        usage=since(run.engine.meter.totals(), before),
    )


def choose(run: Run, state: State, pool: ThreadPool) -> Record | None:
    """Make the next record that the choice of what to return needs; None: it is made, or nothing more can be known.

    With `validate="along"` that is a validation of the last playbook, if there is none. With `validate="end"` seed and
    last playbook meet on the same rows, side by side, twice as many each time, until further rows cannot change the
    choice. If these leave a tie, the failures of the batches are rolled out again, until it is known if enough of them
    are repaired. See `choice` for the rule.
    """
    if not state.learned:
        return None
    if run.settings.validate_when == "along":
        record = validate(run, state, pool) if run.valset and state.unvalidated else None
    else:
        record = _side_by_side(run, state, pool)
    return record or _again(run, state, pool)


def _side_by_side(run: Run, state: State, pool: ThreadPool) -> Record | None:
    """Validate seed and last playbook on the next rows; None if that is done.

    Rows on which the seed was validated before, beside another playbook, are not rolled out again with it.
    """
    seed, learned = ((), ()) if state.unvalidated else state.pairs
    start, rows, engine = len(learned), len(run.valset), run.engine
    if start and (
        state.candidate_step != state.step or settled(state.records, seed, learned, rows - start, state.scale)
    ):
        return None
    before, known = engine.meter.totals(), seed_validation(state.records)
    scores = () if known is None else known.scores
    stop, left = min(max(ROWS, 2 * start), rows), engine.limits.rollouts_left()
    while left is not None and stop > start and 2 * stop - start - min(max(start, len(scores)), stop) > left:
        stop -= 1
    if stop <= start:
        return None
    new = range(max(start, min(len(scores), stop)), stop)  # of the seed
    trajectories = _rolled_out(run, state, [(state.seed, new), (state.playbook, range(start, stop))], pool)
    first, second = trajectories
    return Record(
        state.step,
        baseline=Validation(scores[start:stop] + _scores(first)),
        validation=Validation(_scores(second)),
        failures=_failures(first, seed=True) + _failures(second),
        rollouts=len(first) + len(second),
        usage=since(engine.meter.totals(), before),
    )


def _again(run: Run, state: State, pool: ThreadPool) -> Record | None:
    """Roll failures of the batches out again with the learned playbook; None if that cannot change the choice."""
    found, left = state.repairs, run.engine.limits.rollouts_left()
    if run.settings.metric is None or by_evidence(state.verdict) is not None or found.settled:
        return None
    positions = [int(example) for example in found.untried[: ROWS if left is None else min(ROWS, left)]]
    if not positions:
        return None
    before = run.engine.meter.totals()
    program = with_playbook(run.engine.student, state.learned_playbook)
    made = _in_waves(run, state, [(program, run.trainset[at], str(at)) for at in positions], pool)
    return Record(
        state.step,
        again=tuple(zip(positions, _scores(made), strict=True)),
        failures=_failures(made, of="again"),
        rollouts=len(made),
        usage=since(run.engine.meter.totals(), before),
    )


def _rolled_out(
    run: Run, state: State, work: Sequence[tuple[Playbook, range]], pool: ThreadPool
) -> list[list[Trajectory]]:
    """Roll playbooks out on rows of the valset, all at the same time.

    Raises:
        RunError, MetricError: provider, set-up or metric never worked.
    """
    programs = [with_playbook(run.engine.student, playbook) for playbook, _ in work]
    tasks = [(p, run.valset[row], str(row)) for p, (_, rows) in zip(programs, work, strict=True) for row in rows]
    made = iter(_in_waves(run, state, tasks, pool))
    found = [list(islice(made, len(rows))) for _, rows in work]
    for program, trajectories in zip(programs, found, strict=True):
        if trajectories:
            Evaluation.tell(program, trajectories, run)
    return found


def _in_waves(
    run: Run, state: State, tasks: Sequence[tuple[dspy.Module, dspy.Example, str]], pool: ThreadPool
) -> list[Trajectory]:
    """Roll out so many at once as the records say may begin. See `_rolled_out` for what is raised."""
    programs = {id(program): program for program, _, _ in tasks}
    rollouts = {key: run.engine.rollouts(program) for key, program in programs.items()}

    def roll_out(task: tuple[dspy.Module, dspy.Example, str]) -> Attempt:
        return Attempt(run.engine.roll_out(rollouts[id(task[0])], task[1], task[2]))

    return trajectories_of(roll_out_in_waves(roll_out, tasks, pool, state.records))


def _scores(trajectories: Sequence[Trajectory]) -> tuple[float | None, ...]:
    """Return the score of each rollout; None where nothing is known of the program."""
    return tuple(t.feedback.score if t.teaches else None for t in trajectories)


def _failures(
    trajectories: Sequence[Trajectory], of: Literal["val", "again"] = "val", *, seed: bool = False
) -> tuple[FailedRollout, ...]:
    return tuple(failed for t in trajectories for failed in failures_of(Rollout(t.source, of, seed=seed), t))


class Evaluation(dspy.Evaluate):  # type: ignore[misc]  # dspy is untyped
    """A validation as DSPy's callbacks know one: MLflow and others log it as the evaluation it is.

    Args:
        trajectories: the rollouts, made before.
        **settings: what `dspy.Evaluate` takes (`metric`, `num_threads`, `failure_score` …), for callbacks to read.
    """

    def __init__(self, trajectories: Sequence[Trajectory], **settings: Any) -> None:
        super().__init__(devset=[trajectory.example for trajectory in trajectories], **settings)
        self._trajectories = trajectories

    @classmethod
    def tell(cls, program: dspy.Module, trajectories: Sequence[Trajectory], run: Run) -> None:
        """Tell DSPy's callbacks of a validation, or of a part of one."""
        settings = run.settings
        evaluate = cls(
            trajectories,
            metric=settings.metric,
            num_threads=run.engine.num_threads,
            failure_score=settings.failure_score,
        )
        evaluate(program, callback_metadata=FULL if len(trajectories) == len(run.valset) else PART)

    @with_callbacks  # type: ignore[untyped-decorator]  # dspy is untyped
    def __call__(
        self,
        program: dspy.Module,  # noqa: ARG002 - for the callbacks
        callback_metadata: Mapping[str, Any] | None = None,  # noqa: ARG002 - for the callbacks
    ) -> EvaluationResult:
        """Return DSPy's result: `score` in percent, and an (example, prediction, score) for each row, in order.

        A rollout that failed has an empty prediction.
        """
        results = [
            (t.example, dspy.Prediction() if t.prediction is None else t.prediction, t.feedback.score)
            for t in self._trajectories
        ]
        return EvaluationResult(
            score=round(100 * sum(score for *_, score in results) / len(results), 2), results=results
        )
