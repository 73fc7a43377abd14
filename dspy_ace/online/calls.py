"""Calls of a program that learns while it is used. Each is remembered on its result, until feedback comes."""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import dspy

from ..errors import MetricError, SettingsError, brief
from ..playbook import Playbook
from ..program import (
    Call,
    CallTrace,
    Feedback,
    OutOfTimeError,
    Rollouts,
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
_ID = "dspy_ace_id"
REMEMBERED = 1000  # calls that can be told by their id alone


@dataclass(frozen=True)
class Made:
    """One call of the program, remembered on the prediction that it returned or the error that it raised.

    Args:
        id: names it, also in other processes: what `prediction.dspy_ace_id` holds.
        owner: the settings of the OnlineACE that made the call. They tell own predictions from those of others.
        trajectory: the call without its prediction, which holds this value itself.
        steps: DSPy's own trace, if the metric takes one; else None, since the trace holds the prediction.
        predictor: the predictor of a program that has one; None: it has several, or did not run.
        logged: True if it was made elsewhere, and logged.
    """

    id: str
    owner: object
    trajectory: Trajectory
    steps: list[Any] | None = None
    predictor: str | None = None
    logged: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Made:
        return self  # a copy of a prediction is the same call: it is told once

    def __reduce__(self) -> Any:
        return type(None), ()  # a pickled prediction keeps its id alone


Answered = tuple[Made, Any]
"""A call, and the prediction that it returned; None if it raised an error."""


class Calls:
    """Finds the call that somebody tells: by its prediction, its error or its id.

    Args:
        owner: see `Made`.
    """

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self._latest: OrderedDict[str, Answered] = OrderedDict()

    def note(self, result: Any, trajectory: Trajectory, steps: list[Any] | None, predictor: str | None) -> Any:
        """Remember a call on the prediction it returned or the error it raised, and return that.

        A program may return one object twice: then a copy is returned.
        """
        made = Made(uuid.uuid4().hex, self.owner, trajectory, steps, predictor)
        prediction = result if isinstance(result, dspy.Prediction) else None
        if prediction is not None and getattr(result, _NOTE, None) is not None:
            result = prediction = copy(prediction)
            result._store = dict(result._store)
        object.__setattr__(result, _NOTE, made)
        object.__setattr__(result, _ID, made.id)
        self._latest[made.id] = made, prediction
        while len(self._latest) > REMEMBERED:
            self._latest.popitem(last=False)
        return result

    def find(self, given: Any) -> tuple[str | None, Answered | None]:
        """Return the id of what is told (None: it has none), and the call (None: it is not remembered here)."""
        if isinstance(given, (dspy.Prediction, BaseException)):
            made = getattr(given, _NOTE, None)
            if isinstance(made, Made) and made.owner is self.owner:
                return made.id, (made, given if isinstance(given, dspy.Prediction) else None)
            given = getattr(given, _ID, None)
        return (given, self._latest.get(given)) if isinstance(given, str) and given else (None, None)

    def forget(self, name: str) -> None:
        """Forget a call that was told."""
        self._latest.pop(name, None)


def logged(rollouts: Rollouts, owner: object, name: str | None, inputs: Any, outputs: Any) -> Answered:
    """Return a call that was made elsewhere, as the program of `rollouts` would have made it.

    Args:
        rollouts: know the program.
        owner, name: of the call, see `Made`; None: it gets a new id.
        inputs, outputs: its fields, in mappings.

    Raises:
        SettingsError: these are no mappings of fields, or the program has other fields.
    """
    given, answer = _fields("inputs", inputs), _fields("outputs", outputs)
    only = rollouts.only_predictor
    trace: tuple[Call, ...] = ()
    if only is not None:
        signature = rollouts.predictors[only].signature
        known = {name: value for name, value in answer.items() if name in signature.output_fields}
        if type(rollouts.program).__module__.startswith("dspy."):  # the program has the predictor's fields
            _check_known("inputs", given, signature.input_fields)
            _check_known("outputs", answer, signature.output_fields)
        if known and given.keys() <= signature.input_fields.keys():
            trace = (Call(only, given, known),)
    trajectory = Trajectory(
        example=dspy.Example(given).with_inputs(*given),
        prediction=None,
        trace=trace,
        feedback=Feedback(0.0),
        task=rollouts.task,
    )
    return Made(name or uuid.uuid4().hex, owner, trajectory, logged=True), dspy.Prediction(answer)


def _check_known(what: str, given: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    if not given.keys() & fields.keys():
        raise SettingsError(f"{what} must hold fields of the program ({', '.join(fields)}); got {', '.join(given)}.")


class Serving:
    """A program with one version of a playbook, ready to be called from any thread or task.

    Args:
        engine: the program, the meter that counts its calls as `task`, and `rollout_timeout`.
        playbook, version: the playbook in the program's instructions.
        calls: remembers the calls.
    """

    def __init__(self, engine: Engine, version: int, playbook: Playbook, calls: Calls) -> None:
        self.version, self.playbook, self._engine, self._calls = version, playbook, engine, calls
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
        except Exception as error:  # whatever the program raised is kept with the call
            spent.over = isinstance(error, OutOfTimeError)
            ended = error
            raise
        finally:
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
                ended = self._calls.note(ended, trajectory, steps, only)
                if isinstance(ended, dspy.Prediction):
                    ended.set_lm_usage(spent.tokens())
                result[:] = [ended] if result else []
            ended = None  # an error's traceback holds this frame
            trace.clear()  # it holds the prediction, and callbacks may hold it


def told(engine: Engine, answered: Answered, feedback: Any, expected: Any) -> Told:
    """Return the trajectory of one call with its feedback; see `OnlineACE.tell` for its forms and errors.

    Args:
        engine: the metric, its scale, and if labels may be seen.
        answered: the call.
        feedback: see `feedback_given`. Without a score the metric scores the prediction, if it has what it needs. Else
            the prediction is right if it holds what is expected. Words alone are a failure.
        expected: the right outputs, by field; None: unknown.
    """
    (made, prediction), settings, metric = answered, engine.settings, engine.scorer.metric
    call = made.trajectory
    score, words = feedback_given(feedback, settings.perfect_score, settings.failure_score)
    outputs = {} if settings.labels is False else _outputs(expected, call.inputs)
    example = dspy.Example({**outputs, **call.inputs}).with_inputs(*call.inputs)
    as_expected = _as_expected(prediction, outputs)
    omitted = score is None and not words
    with_labels = metric is not None and expected is not None
    if call.error is not None:
        words = words or call.error.message
    elif as_expected and score is not None and score <= settings.failure_score:
        raise SettingsError(
            f"The feedback says that it failed, and expected holds what the program answered: {brief(outputs)}. "
            "Give the right outputs, words that say what was wrong, or True."
        )
    elif score is None and (with_labels or (omitted and not outputs)):
        scored = _scored(engine, made, example, prediction)
        score, words = scored.score, words or scored.text
    elif score is None and as_expected:
        score = settings.perfect_score
    elif omitted and as_expected is None and outputs:
        raise SettingsError(f"expected holds {brief(outputs)}, and the program returned {', '.join(prediction)}.")
    if score is not None and (metric is not None or feedback is not None):
        engine.hear(score)
    heard = Feedback(settings.failure_score if score is None else score, words)
    trajectory = replace(
        call,
        example=example,
        prediction=prediction,
        feedback=heard,
        success=call.error is None and heard.score >= settings.perfect_score,
        perfect_score=settings.perfect_score,
    )
    label_free = omitted and not outputs and (call.error is None or metric is None)
    return Told(trajectory, (with_labels or label_free) and not made.logged, key=made.id)


def _as_expected(prediction: Any, outputs: Mapping[str, Any]) -> bool | None:
    """Return True if a prediction holds what is expected in all fields that it has; None if it has none of them."""
    common = [name for name in outputs if prediction is not None and name in prediction]
    return all(_same(prediction[name], outputs[name]) for name in common) if common else None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.casefold().split() == other.casefold().split()
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - values of users may refuse to be compared, as arrays do
        return False


def _scored(engine: Engine, made: Made, example: dspy.Example, result: Any) -> Feedback:
    with engine.meter.measure("metric"), dspy.context(trace=[]):
        try:
            asked = (made.steps, made.predictor, made.steps[-1:]) if made.steps and made.predictor else ()
            return engine.scorer(example, result, *asked)
        except Exception as error:  # a metric may raise anything
            raise MetricError(
                f"The metric cannot score what was told: {words_of(error)}. Give the right outputs "
                "(expected={'field': …}), or the feedback itself."
            ) from error


def _fields(name: str, given: Any) -> dict[str, Any]:
    """Return fields by name. Raises SettingsError: they are none."""
    if not isinstance(given, (Mapping, dspy.Example)) or not len(given):
        raise SettingsError(f"{name} must be a mapping or dspy.Example of fields by name; got {brief(given)}.")
    return {str(field): value for field, value in given.items()}


def _outputs(expected: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `expected` that are no inputs. Raises SettingsError: there are none."""
    if expected is None:
        return {}
    outputs = {name: value for name, value in _fields("expected", expected).items() if name not in inputs}
    if not outputs:
        raise SettingsError(f"expected holds no output field: got {brief(expected)}; the inputs are known.")
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
            f"got {type(value).__name__} {brief(value)}."
        ) from None
