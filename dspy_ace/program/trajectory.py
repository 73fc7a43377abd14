"""What one rollout of the program leaves behind: a `Trajectory` and the `Feedback` it earned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import dspy

from ..errors import RoleError
from ..lm import Usage

FailureKind = Literal["provider", "format", "program", "metric", "setup"]
NO_EVIDENCE: tuple[FailureKind, ...] = ("provider", "metric", "setup")
"""Kinds of failure that say nothing of the program."""


@dataclass(frozen=True)
class Feedback:
    """What a metric said of a prediction.

    Args:
        score: any finite number, higher is better; `perfect_score` (1.0) is success.
        text: why, in words; `""` when the metric gives only a number.
    """

    score: float
    text: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a rollout has no score of its own.

    Args:
        kind: `provider` (the LM call failed), `format` (the reply could not be parsed), `program` (the
            program's own code or a tool raised), `metric` (the metric raised or returned no score), `setup` (the
            environment of the rollout could not be opened).
        message: the error's type and text.
    """

    kind: FailureKind
    message: str


@dataclass(frozen=True)
class Call:
    """One call of one predictor.

    Args:
        predictor: the predictor's path in the program.
        inputs: what it was given, by field.
        outputs: what it answered, by field.
    """

    predictor: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@dataclass(frozen=True)
class Insight:
    """One lesson in words: specific, and reusable on other inputs.

    Args:
        content: the lesson.
        predictor: the predictor (its path in the program) it is for; None: for all.

    Raises:
        RoleError: the content is no text, or empty.
    """

    content: str
    predictor: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.content, str) or not self.content.strip():
            raise RoleError(f"An insight is a text (str) that is not empty; got {self.content!r}.")


@dataclass(frozen=True)
class Trajectory:
    """One rollout of the program on one example.

    Args:
        example: the example; without its expected outputs when labels are not in use.
        prediction: what the program returned; None if it raised.
        trace: the predictors' calls in order; a call that gave no answer has no outputs.
        feedback: the score and its text; a failed rollout has `failure_score`.
        source: the example's name: its index in the trainset, as text.
        task: the instructions the predictors were given, by predictor, without the playbook.
        shown: ids of the bullets that stood in the prompts of the predictors that ran.
        cited: those of them that the program's replies name, in playbook order.
        error: what failed, or None.
        usage: the calls and tokens it took (ACE's Generator: the task role).
        success: whether the score is perfect; a success is kept, a failure may be tried again.
        attempt: the reflection in view when this attempt was made; None for the first attempt.
    """

    example: dspy.Example
    prediction: dspy.Prediction | None
    trace: tuple[Call, ...]
    feedback: Feedback
    source: str = ""
    task: Mapping[str, str] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    cited: tuple[str, ...] = ()
    error: Failure | None = None
    usage: Usage = field(default_factory=Usage)
    success: bool = False
    attempt: Any = None

    @property
    def inputs(self) -> dict[str, Any]:
        """The example's inputs, by field."""
        return dict(self.example.inputs().items())

    @property
    def expected(self) -> dict[str, Any]:
        """The example's expected outputs, by field; empty when labels are not in use."""
        return dict(self.example.labels().items())

    @property
    def teaches(self) -> bool:
        """Whether there is something to learn: a dead provider or a broken metric says nothing of the task."""
        return self.error is None or self.error.kind not in NO_EVIDENCE
