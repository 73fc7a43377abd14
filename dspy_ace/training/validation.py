"""Validation: playbooks on the valset, and the choice between the seed and what was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dspy
from dspy.evaluate.evaluate import EvaluationResult
from dspy.utils.callback import with_callbacks

from ..playbook import Playbook
from ..program import ThreadPool, Trajectory, with_playbook
from .state import FailedRollout, Record, Rollout, State, Validation, difference, failures_of
from .step import since
from .stopping import check_rollouts, rollouts_at_once

if TYPE_CHECKING:
    from .run import Run

ROWS = 8  # pairs of rollouts between two looks at the difference
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
    left = sum(len(batch.examples) for batch in run.batches[state.step :])
    affordable = run.rollouts_for_learning(len(run.valset)) == len(run.valset)
    return state.unvalidated and affordable and left >= len(run.valset) <= since_last


def validate(run: Run, state: State, pool: ThreadPool) -> Record:
    """Validate the latest playbook on the whole valset."""
    before = run.engine.meter.totals()
    validation, failures = _scored(run, state, [state.playbook], range(len(run.valset)), pool)
    return Record(
        state.step,
        validation=Validation(validation[0]),
        failures=failures,
        rollouts=len(run.valset),
        usage=since(run.engine.meter.totals(), before),
    )


def choose(run: Run, state: State, pool: ThreadPool) -> Record | None:
    """Validate what is needed to choose what to return; None: nothing is.

    With `validate="along"` that is the last playbook, if it is not known. With `validate="end"` seed and last playbook
    meet on the same rows, side by side, until it is certain which is better or the rows are used up.
    """
    if not run.valset or not state.learned or not state.unvalidated:
        return None
    if run.settings.validate_when == "along":
        return validate(run, state, pool)
    before = run.engine.meter.totals()
    scores: list[tuple[float | None, ...]] = [(), ()]
    failures: tuple[FailedRollout, ...] = ()
    for start in range(0, len(run.valset), ROWS):
        left = run.engine.limits.rollouts_left()
        stop = min(start + ROWS, len(run.valset), len(run.valset) if left is None else start + left // 2)
        if stop <= start:
            break
        both, failed = _scored(run, state, [state.seed, state.playbook], range(start, stop), pool)
        scores, failures = [known + new for known, new in zip(scores, both, strict=True)], failures + failed
        found = difference(state.records, Validation(scores[0]), Validation(scores[1]), run.settings.scale)
        if found is not None and found.certain:
            break
    if not scores[0]:
        return None
    return Record(
        state.step,
        baseline=Validation(scores[0]),
        validation=Validation(scores[1]),
        failures=failures,
        rollouts=2 * len(scores[0]),
        usage=since(run.engine.meter.totals(), before),
    )


def _scored(
    run: Run, state: State, playbooks: Sequence[Playbook], rows: range, pool: ThreadPool
) -> tuple[list[tuple[float | None, ...]], tuple[FailedRollout, ...]]:
    """Roll playbooks out on rows of the valset, all at the same time.

    Returns:
        For each playbook the score of each row, None where nothing is known of the program; and the failures.

    Raises:
        RunError, MetricError: provider, set-up or metric never worked.
    """
    engine = run.engine
    programs = [with_playbook(engine.student, playbook) for playbook in playbooks]
    rollouts = [engine.rollouts(program) for program in programs]
    work = [(which, row) for which in range(len(playbooks)) for row in rows]

    def roll_out(one: tuple[int, int]) -> Trajectory:
        which, row = one
        return engine.roll_out(rollouts[which], run.valset[row], str(row))

    made: list[Trajectory] = []
    while len(made) < len(work):
        at_once = rollouts_at_once(state.records, made, len(work) - len(made))
        made += pool.map(roll_out, work[len(made) : len(made) + at_once])
        check_rollouts(state.records, made)
    scores: list[tuple[float | None, ...]] = []
    failures: list[FailedRollout] = []
    for which, program in enumerate(programs):
        mine = made[which * len(rows) : (which + 1) * len(rows)]
        seed = len(programs) > 1 and which == 0
        for trajectory in mine:
            failures += failures_of(Rollout(trajectory.source, "val", seed=seed), trajectory)
        scores.append(tuple(t.feedback.score if t.teaches else None for t in mine))
        Evaluation.tell(program, mine, run)
    return scores, tuple(failures)


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
