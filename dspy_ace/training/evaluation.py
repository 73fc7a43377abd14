"""A validation as DSPy's callbacks know one: MLflow and others log it as the evaluation it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
from dspy.evaluate.evaluate import EvaluationResult
from dspy.utils.callback import with_callbacks

from ..program import Trajectory

Roll = Callable[[dspy.Module, list[dspy.Example]], list[Trajectory]]

FULL = {"metric_key": "eval_full"}  # the name MIPROv2 and GEPA log a look at the whole valset under


class Evaluation(dspy.Evaluate):  # type: ignore[misc]  # dspy is untyped
    """A `dspy.Evaluate` that leaves the rollouts to ACE: their threads, kinds of failure and accounts stay its own.

    DSPy's evaluate callbacks fire around a call as they do around any evaluation; what the rollouts raise
    reaches them, and the caller.

    Args:
        devset: the examples to score the program on; at least one.
        roll: runs and scores a program on examples: one trajectory an example, in order.
        **settings: what `dspy.Evaluate` takes (`metric`, `num_threads`, `failure_score` …), for callbacks to read;
            `roll` alone decides what is done.
    """

    def __init__(self, devset: Sequence[dspy.Example], roll: Roll, **settings: Any) -> None:
        super().__init__(devset=list(devset), **settings)
        self.roll = roll

    @with_callbacks  # type: ignore[untyped-decorator]  # dspy is untyped
    def __call__(
        self,
        program: dspy.Module,
        callback_metadata: Mapping[str, Any] | None = None,  # noqa: ARG002 - for the callbacks
    ) -> EvaluationResult:
        """Score `program` on the devset.

        Args:
            program: run as it is.
            callback_metadata: what callbacks are told: `metric_key` names the evaluation, `disable_logging` asks
                for silence.

        Returns:
            DSPy's result: `score` in percent, rounded to two places, and `results`, an (example, prediction, exact
            score) for each example, in order. A rollout that failed has an empty prediction.
        """
        trajectories = self.roll(program, self.devset)
        scores = [trajectory.feedback.score for trajectory in trajectories]
        results = [
            (trajectory.example, dspy.Prediction() if trajectory.prediction is None else trajectory.prediction, score)
            for trajectory, score in zip(trajectories, scores, strict=True)
        ]
        return EvaluationResult(score=round(100 * sum(scores) / len(scores), 2), results=results)
