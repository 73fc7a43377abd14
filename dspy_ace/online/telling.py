"""A user's feedback on a prediction becomes a trajectory to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from ..errors import MetricError, SettingsError
from ..program import Feedback, Trajectory, feedback_of, words_of
from ..training import Engine
from .inbox import Told
from .serving import Made


def told(engine: Engine, made: Made, result: Any, feedback: Any, expected: Any) -> Told:
    """Return the trajectory of one call, with its feedback.

    Args:
        engine: the metric, its scale, and whether labels may be seen.
        made: the call.
        result: what it returned or raised.
        feedback: see `feedback_given`. None: the metric scores the prediction. Words alone: the metric scores it if
            `expected` is given, else it is a failure.
        expected: the right outputs, by field; None: unknown.

    Raises:
        SettingsError: no feedback, or no expected outputs.
        MetricError: the metric cannot score it.
    """
    settings, scorer = engine.settings, engine.scorer
    score, words = feedback_given(feedback, settings.perfect_score, settings.failure_score)
    outputs = {} if settings.labels is False else _outputs(expected, made.inputs)
    example = dspy.Example(**outputs, **made.inputs).with_inputs(*made.inputs)
    omitted = score is None and not words
    judge = scorer.metric is not None and expected is not None
    if made.error is not None:
        heard = Feedback(settings.failure_score if score is None else score, words or made.error.message)
    elif score is None and (omitted or judge):
        scored = _scored(engine, made, example, result)
        heard = Feedback(scored.score, words or scored.text)
    else:
        heard = Feedback(settings.failure_score if score is None else score, words)
    trajectory = Trajectory(
        example=example,
        prediction=result if isinstance(result, dspy.Prediction) else None,
        trace=made.trace,
        feedback=heard,
        task=made.task,
        shown=made.shown,
        cited=made.cited,
        error=made.error,
        usage=made.usage,
        success=made.error is None and heard.score >= settings.perfect_score,
        perfect_score=settings.perfect_score,
    )
    alone = omitted and (made.error is None or scorer.metric is None)  # a metric that needs no expected output
    return Told(trajectory, judge or alone)


def _scored(engine: Engine, made: Made, example: dspy.Example, result: Any) -> Feedback:
    with engine.meter.measure("metric"), dspy.context(trace=[]):
        try:
            asked = (made.steps, made.predictor, made.steps[-1:]) if made.steps and made.predictor else ()
            return engine.scorer(example, result, *asked)
        except Exception as error:
            raise MetricError(
                f"The metric cannot score what was told: {words_of(error)}. Give the right outputs "
                "(expected={'field': …}), or the feedback itself."
            ) from error


def _outputs(expected: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    if expected is None:
        return {}
    if not isinstance(expected, (Mapping, dspy.Example)):
        raise SettingsError(f"expected is a mapping or dspy.Example of the right outputs; got {expected!r:.100}.")
    outputs = {str(name): value for name, value in expected.items() if name not in inputs}
    if not outputs:
        raise SettingsError(f"expected holds no output field: got {expected!r:.100}; the inputs are known.")
    return outputs


def feedback_given(value: Any, perfect: float, failure: float) -> tuple[float | None, str]:
    """Return the score (None: none was given) and the words in a user's feedback.

    Args:
        value: None, a bool (`perfect` or `failure`), a finite number, a text, a Feedback, or anything with `score`
            and `feedback` (dspy.Prediction, mapping), one of them or both.
        perfect, failure: the scores that True and False stand for.

    Raises:
        SettingsError: anything else.
    """
    words: Any = None
    score = value
    if isinstance(value, Feedback):
        score, words = value.score, value.text
    elif isinstance(value, str):
        score, words = None, value
    elif isinstance(value, (Mapping, dspy.Example)):
        score, words = value.get("score"), value.get("feedback")
    if isinstance(score, bool):
        score = perfect if score else failure
    if score is not None:
        try:
            score = feedback_of(score).score
        except MetricError:
            raise _no_feedback(value) from None
    if not (words is None or isinstance(words, str)):
        raise _no_feedback(value)
    words = (words or "").strip()
    if value is not None and score is None and not words:
        raise _no_feedback(value)
    return score, words


def _no_feedback(value: Any) -> SettingsError:
    return SettingsError(
        "feedback is a bool, a finite number, a text, or dspy.Prediction(score=…, feedback=…); "
        f"got {type(value).__name__} {value!r:.100}."
    )
