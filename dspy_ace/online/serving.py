"""The hot path of a program that goes on learning: one instructed copy a playbook version, each call remembered.

A call is remembered on what it returned, or on the error it raised, and goes when that goes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dspy

from ..errors import SettingsError
from ..lm import Measurement, Meter, Usage, one_by_one
from ..playbook import Playbook
from ..program import (
    Call,
    CallTrace,
    Cited,
    Failure,
    OutOfTimeError,
    Rollouts,
    Scorer,
    Started,
    failure_of,
    in_time,
    recording,
    with_playbook,
)

_CLAIMING = threading.Lock()
_NOTE = "_dspy_ace_call"  # an underscore: a prediction takes it for an attribute, not for a field


@dataclass
class Made:
    """One call of the program.

    Args:
        owner: who made it.
        inputs: what the program was given, by field.
        trace: the predictors' calls in order.
        steps: DSPy's own trace, if the metric wants one; else None, since it holds the prediction.
        predictor: the predictor of a program that has one; None: it has several, or did not run.
        task, shown, cited, usage, error: as in a `Trajectory`.
        version: of the playbook it met.
        told: whether its feedback has come.
    """

    owner: object
    inputs: dict[str, Any]
    trace: tuple[Call, ...]
    steps: list[Any] | None
    predictor: str | None
    task: Mapping[str, str]
    shown: tuple[str, ...]
    cited: tuple[str, ...]
    usage: Usage
    error: Failure | None
    version: int
    told: bool = False

    def claim(self) -> bool:
        """Whether the caller is the first to tell it."""
        with _CLAIMING:
            first, self.told = not self.told, True
        return first

    def __deepcopy__(self, memo: dict[int, Any]) -> Made:
        return self  # a copy of a prediction is the same call: told once

    def __reduce__(self) -> Any:
        return _nothing, ()  # another process never made it


def _nothing() -> None:
    return None


def made_by(owner: object, result: Any) -> Made:
    """The call of `owner` that returned, or raised, `result`. Raises SettingsError: it never did."""
    made = getattr(result, _NOTE, None) if isinstance(result, (dspy.Prediction, BaseException)) else None
    if not isinstance(made, Made) or made.owner is not owner:
        wanted = "Give the prediction that online(…) returned, the very object (not a copy of its fields)"
        raise SettingsError(
            f"tell takes a prediction this object made, or an error that a call of it raised; got "
            f"{type(result).__name__} {result!r:.80}. {wanted}, to the object that made it."
        )
    return made


class Serving:
    """A program with one version of a playbook, ready to be called from any thread or task.

    Args:
        student: the program, unchanged.
        playbook, version: what it shows.
        owner: who may be told of its calls.
        meter: where the calls are booked, as `task`.
        timeout: seconds after which a call has failed; None: as long as it takes.
        keeps_steps: whether DSPy's trace is kept for the metric.
    """

    def __init__(
        self,
        student: dspy.Module,
        playbook: Playbook,
        version: int,
        owner: object,
        meter: Meter,
        *,
        timeout: float | None,
        keeps_steps: bool,
    ) -> None:
        self.playbook, self.version = playbook, version
        self.program = with_playbook(student, playbook, cite=True)
        for _, predictor in self.program.named_predictors():
            predictor.lm = one_by_one(predictor.lm)
        self._owner, self._meter, self._timeout, self._keeps_steps = owner, meter, timeout, keeps_steps
        self._rolled = Rollouts(
            self.program, Scorer(None), meter, failure_score=0.0, perfect_score=1.0, timeout=timeout
        )

    @property
    def task(self) -> Mapping[str, str]:
        """The predictors' instructions without the playbook, by predictor."""
        return self._rolled.task

    def call(self, inputs: dict[str, Any]) -> Any:
        """What the program returns. What it raises passes through; OutOfTimeError: it took too long."""
        with self._heard(inputs) as result:
            result.append(in_time(lambda: self.program(**inputs), self._timeout))
        return result[0]

    async def acall(self, inputs: dict[str, Any]) -> Any:
        """As `call`, awaited."""
        with self._heard(inputs) as result:
            try:
                result.append(await asyncio.wait_for(self.program.acall(**inputs), self._timeout))
            except asyncio.TimeoutError as error:
                if self._timeout is None:  # the program's own
                    raise
                raise OutOfTimeError(f"no result after {self._timeout:g} s") from error
        return result[0]

    @contextmanager
    def _heard(self, inputs: dict[str, Any]) -> Iterator[list[Any]]:
        """A scope around one call; what it returned or raised takes a note of it."""
        result: list[Any] = []
        trace = CallTrace()
        started = Started(self._rolled, trace)
        outer = dspy.settings.usage_tracker
        spending, task_lm = self._meter.measure("task", started), one_by_one(dspy.settings.lm)
        try:
            with spending as spent, recording() as cited, dspy.context(trace=trace, lm=task_lm):
                yield result
        except Exception as error:
            started.stopped = isinstance(error, OutOfTimeError)
            self._note(error, inputs, trace, started, cited, spent, failure_of(error))
            raise
        else:
            if isinstance(result[0], dspy.Prediction):
                result[0].set_lm_usage(spent.tracker.get_total_tokens())
                self._note(result[0], inputs, trace, started, cited, spent, None)
        finally:
            trace.clear()  # it holds the prediction, and callbacks may hold it
            if outer is not None and outer is not self._meter._outer:
                for lm, entry in spent.entries():
                    outer.add_usage(lm, entry)

    def _note(
        self,
        result: Any,
        inputs: dict[str, Any],
        trace: CallTrace,
        started: Started,
        cited: Cited,
        spent: Measurement,
        error: Failure | None,
    ) -> None:
        calls = started.calls()
        shown = self._rolled.shown_in(started.names.union(call.predictor for call in calls), cited)
        made = Made(
            owner=self._owner,
            inputs=inputs,
            trace=calls,
            steps=list(trace) if self._keeps_steps else None,
            predictor=self._rolled.only_predictor if calls else None,
            task=self._rolled.task,
            shown=shown,
            cited=tuple(name for name in shown if name in cited) if cited else (),
            usage=spent.usage(),
            error=error,
            version=self.version,
        )
        setattr(result, _NOTE, made)
