"""Calls of a program that learns while it is used. Each is remembered on its result, until feedback comes."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from ..errors import MetricError, SettingsError
from ..lm import Meter
from ..playbook import Playbook
from ..program import (
    CallTrace,
    Feedback,
    OutOfTimeError,
    Started,
    Trajectory,
    failure_of,
    feedback_of,
    in_time,
    recording,
    with_playbook,
    words_of,
)
from ..training import Engine
from .inbox import Told

_NOTE = "_dspy_ace_call"  # an underscore: a prediction takes it for an attribute, not for a field


@dataclass
class Made:
    """One call of the program, remembered on the prediction that it returned or the error that it raised.

    Args:
        meter: the meter of the OnlineACE that made the call. It tells own predictions from those of others.
        trajectory: the call without its prediction, which holds this value itself.
        steps: DSPy's own trace, if the metric takes one; else None, since the trace holds the prediction.
        predictor: the predictor of a program that has one; None: it has several, or did not run.
        told: acquired by the first thread that tells the call, and never released after that.
        key: names the call in a store.
    """

    meter: Meter
    trajectory: Trajectory
    steps: list[Any] | None
    predictor: str | None
    told: threading.Lock = field(default_factory=threading.Lock)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __deepcopy__(self, memo: dict[int, Any]) -> Made:
        return self  # a copy of a prediction is the same call: it is told once

    def __reduce__(self) -> Any:
        return type(None), ()  # a pickled prediction loses its note: another process did not make the call


def made_by(engine: Engine, result: Any) -> Made:
    """Return the call that returned, or raised, `result`. Raises SettingsError: no call of `engine` did."""
    made = getattr(result, _NOTE, None) if isinstance(result, (dspy.Prediction, BaseException)) else None
    if not isinstance(made, Made) or made.meter is not engine.meter:
        raise SettingsError(
            f"tell takes a prediction this object made, or an error that a call of it raised; got "
            f"{type(result).__name__} {result!r:.80}. Give the prediction that online(…) returned, the very object "
            "(not a copy of its fields), to the object that made it."
        )
    return made


class Serving:
    """A program with one version of a playbook, ready to be called from any thread or task.

    Args:
        engine: the program, the meter that counts its calls as `task`, and `rollout_timeout`.
        playbook, version: the playbook in the program's instructions.
    """

    def __init__(self, engine: Engine, version: int, playbook: Playbook) -> None:
        self.version, self.playbook, self._engine = version, playbook, engine
        self.program = with_playbook(engine.student, playbook, cite=True)
        self.rollouts = engine.rollouts(self.program)

    def call(self, inputs: dict[str, Any]) -> Any:
        """Run the program. What it raises passes through; OutOfTimeError: it took too long."""
        with self._remembered(inputs) as result:
            result.append(in_time(lambda: self.program(**inputs), self.rollouts.timeout))
        return result[0]

    async def acall(self, inputs: dict[str, Any]) -> Any:
        """Run the program, awaited; see `call`."""
        timeout = self.rollouts.timeout
        with self._remembered(inputs) as result:
            try:
                result.append(await asyncio.wait_for(self.program.acall(**inputs), timeout))
            except asyncio.TimeoutError as error:
                if timeout is None:  # the program's own
                    raise
                raise OutOfTimeError(f"no result after {timeout:g} s") from error
        return result[0]

    @contextmanager
    def _remembered(self, inputs: dict[str, Any]) -> Iterator[list[Any]]:
        """Open a scope around one call. The prediction put into the list, or the error raised, gets a note of it."""
        result: list[Any] = []
        ended: Any = None
        trace, meter = CallTrace(), self._engine.meter
        started = Started(self.rollouts, trace)
        try:
            with meter.measure("task") as spent, recording() as cited, dspy.context(**started.settings()):
                yield result
            ended = result[0]
        except Exception as error:
            spent.over = isinstance(error, OutOfTimeError)
            ended = error
            raise
        finally:
            if isinstance(ended, dspy.Prediction):
                ended.set_lm_usage(spent.tokens())
            if isinstance(ended, (dspy.Prediction, Exception)):
                calls = started.calls()
                shown = self.rollouts.shown_in(started.names.union(call.predictor for call in calls), cited)
                trajectory = Trajectory(
                    example=dspy.Example(inputs).with_inputs(*inputs),
                    prediction=None,
                    trace=calls,
                    feedback=Feedback(0.0),  # `told` puts in the real one
                    task=self.rollouts.task,
                    shown=shown,
                    cited=tuple(name for name in shown if name in cited) if cited else (),
                    error=failure_of(ended) if isinstance(ended, Exception) else None,
                    usage=spent.usage(),
                )
                steps = list(trace) if self._engine.scorer.by_predictor else None
                only = self.rollouts.only_predictor if calls else None
                setattr(ended, _NOTE, Made(meter, trajectory, steps, only))
            ended = None  # an error's traceback holds this frame
            trace.clear()  # it holds the prediction, and callbacks may hold it


def told(engine: Engine, made: Made, result: Any, feedback: Any, expected: Any) -> Told:
    """Return the trajectory of one call with its feedback; see `OnlineACE.tell` for its forms and errors.

    Args:
        engine: the metric, its scale, and if labels may be seen.
        made: the call.
        result: the prediction it returned, or the error it raised.
        feedback: see `feedback_given`. None: the metric scores the prediction. Words alone: the metric scores it if
            `expected` is given, else it is a failure.
        expected: the right outputs, by field; None: unknown.
    """
    settings, metric, call = engine.settings, engine.scorer.metric, made.trajectory
    score, words = feedback_given(feedback, settings.perfect_score, settings.failure_score)
    outputs = {} if settings.labels is False else _outputs(expected, call.inputs)
    example = dspy.Example({**outputs, **call.inputs}).with_inputs(*call.inputs)
    omitted = score is None and not words
    with_labels = metric is not None and expected is not None
    if call.error is None and score is None and (omitted or with_labels):
        scored = _scored(engine, made, example, result)
        score, words = scored.score, words or scored.text
    elif call.error is not None:
        words = words or call.error.message
    heard = Feedback(settings.failure_score if score is None else score, words)
    trajectory = replace(
        call,
        example=example,
        prediction=result if isinstance(result, dspy.Prediction) else None,
        feedback=heard,
        success=call.error is None and heard.score >= settings.perfect_score,
        perfect_score=settings.perfect_score,
    )
    without_labels = omitted and (call.error is None or metric is None)
    return Told(trajectory, with_labels or without_labels, key=made.key)


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
    """Return the fields of `expected` that are no inputs. Raises SettingsError: there are none."""
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
        value: None, a bool (`perfect` or `failure`), a finite number, a text, a Feedback, or a dspy.Prediction or
            mapping with `score`, `feedback` or both.
        perfect, failure: the scores that True and False stand for.

    Raises:
        SettingsError: anything else.
    """
    score, words = value, None
    if isinstance(value, Feedback):
        score, words = value.score, value.text
    elif isinstance(value, str):
        score, words = None, value
    elif isinstance(value, (Mapping, dspy.Example)):
        score, words = value.get("score"), value.get("feedback")
    if isinstance(score, bool):
        score = perfect if score else failure
    words = "" if words is None else words
    try:
        if not isinstance(words, str) or (value is not None and score is None and not words.strip()):
            raise MetricError("no score and no words")
        return None if score is None else feedback_of(score).score, words.strip()
    except MetricError:
        raise SettingsError(
            "feedback is a bool, a finite number, a text, or dspy.Prediction(score=…, feedback=…); "
            f"got {type(value).__name__} {value!r:.100}."
        ) from None
