"""The values that one rollout of a program leaves behind: its calls, its score, and what failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import dspy

from ..errors import RoleError
from ..lm import Usage

FailureKind = Literal["provider", "format", "program", "metric", "setup"]
NO_EVIDENCE: tuple[FailureKind, ...] = ("provider", "metric", "setup")
"""Kinds of failure that say nothing about the program."""


@dataclass(frozen=True)
class Feedback:
    """A metric's judgement of a prediction.

    Args:
        score: any finite number, higher is better; `perfect_score` (1.0) is success.
        text: why, in words; `""` when the metric gives only a number.
    """

    score: float
    text: str = ""


@dataclass(frozen=True)
class Failure:
    """The reason why a rollout has no score of its own.

    Args:
        kind: the part that failed. `provider`: the LM call; `format`: the reply could not be parsed; `program`: the
            program's own code or a tool, or its time was up; `metric`: the metric raised or returned no score;
            `setup`: the environment of the rollout could not be opened.
        message: the error's type and text.
    """

    kind: FailureKind
    message: str


@dataclass(frozen=True)
class Call:
    """One call of one predictor.

    Args:
        predictor: the predictor's path in the program.
        inputs: the values it was given, by field.
        outputs: the values it answered, by field; empty if it gave no answer.
    """

    predictor: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@dataclass(frozen=True)
class Insight:
    """One insight of a reflection: specific, and reusable on other inputs.

    Args:
        content: the insight in words.
        predictor: the predictor (its path in the program) it is for; None: for all.

    Raises:
        RoleError: the content is not a text, or is empty.
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
        trace: the predictors' calls in order.
        feedback: the score and its text; a failed rollout has `failure_score`.
        source: the example's name: its index in the trainset, as text.
        task: by predictor, the instructions it was given, without the playbook, and its fields with their types.
        shared: pieces of its inputs that all cases of its batch have, see `shared_pieces`.
        shown: ids of the bullets that stood in the prompts of the predictors that ran.
        cited: those of them that the program's replies name, in playbook order.
        error: what failed; None: nothing did.
        usage: its LM calls and tokens (ACE's Generator: the task role).
        success: True if the score is `perfect_score` or more.
        perfect_score: the score from which a rollout is a success.
        attempt: the reflection in view when this attempt was made; None for the first attempt.
        predictor_feedback: the metric's words on single predictors, see `Rollouts.ask_by_predictor`.
        solved_before: None, unless an earlier attempt at the same example was a success. Then the cited bullets that
            were added or changed since.
    """

    example: dspy.Example
    prediction: dspy.Prediction | None
    trace: tuple[Call, ...]
    feedback: Feedback
    source: str = ""
    task: Mapping[str, str] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    shown: tuple[str, ...] = ()
    cited: tuple[str, ...] = ()
    error: Failure | None = None
    usage: Usage = field(default_factory=Usage)
    success: bool = False
    perfect_score: float = 1.0
    attempt: Any = None
    predictor_feedback: Mapping[str, str] = field(default_factory=dict)
    solved_before: tuple[str, ...] | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs of the example, by field."""
        return dict(self.example.inputs().items())

    @property
    def expected(self) -> dict[str, Any]:
        """The expected outputs of the example, by field; empty when labels are not in use."""
        return dict(self.example.labels().items())

    @property
    def teaches(self) -> bool:
        """True if there is something to learn: a dead provider or a broken metric says nothing about the task."""
        return self.error is None or self.error.kind not in NO_EVIDENCE
