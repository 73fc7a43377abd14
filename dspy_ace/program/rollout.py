"""Run a program on examples, and say what happened: the trace, the score, and every way to fail."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError, LMError

from ..lm import Meter
from ..playbook import Playbook
from .citation import Cited, recording
from .instruct import own_instructions
from .metric import Metric, Scorer
from .parallel import OutOfTimeError, in_time, ordered_map
from .trajectory import Call, Failure, FailureKind, Feedback, Trajectory

logger = logging.getLogger("dspy.ace")

Setup = Callable[[dspy.Example], AbstractContextManager[Any]]
"""Opens the environment of one rollout: `setup(example)` is entered in the rollout's thread before the program runs,
and left after the metric, whatever happened. Tools find what it opened in a `contextvars.ContextVar` that it sets."""


def rollouts(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    metric: Metric | Scorer | None = None,
    *,
    sources: Sequence[str] | None = None,
    num_threads: int = 8,
    meter: Meter | None = None,
    failure_score: float = 0.0,
    perfect_score: float = 1.0,
    timeout: float | None = None,
    setup: Setup | None = None,
) -> list[Trajectory]:
    """Run and score `program` on each example, in threads.

    Args:
        program: run as it is, by all threads; `program.playbook` tells which bullets it shows.
        examples: with inputs set. What they hold besides reaches the metric and nothing else.
        metric: see `Scorer`; None: a rollout that does not fail is a success.
        sources: the examples' names; their positions by default.
        num_threads: at most so many at once.
        meter: where the calls are booked, as `task` and `metric`.
        failure_score: the score of a rollout that failed, whatever the reason: none leaves the denominator.
        perfect_score: a score from here on is a success.
        timeout: seconds after which a rollout has failed (kind `program`); it is left alone and makes no further LM
            call; what a call under way still costs is not booked. None: as long as it takes, once.
        setup: opens the environment of each rollout, see `Setup`; None: there is none.

    Returns:
        One trajectory an example, in order. An example that fails raises nothing: its trajectory says
        whether the provider, the reply's format, the program, the metric or its environment failed.
    """
    scorer = metric if isinstance(metric, Scorer) else Scorer(metric)
    run = Rollouts(
        program,
        scorer,
        meter or Meter(),
        failure_score=failure_score,
        perfect_score=perfect_score,
        timeout=timeout,
        setup=setup,
    )
    names = [str(i) for i in range(len(examples))] if sources is None else sources

    return ordered_map(lambda pair: run.one(*pair), list(zip(examples, names, strict=True)), num_threads)


class Rollouts:
    """What the rollouts of one call share."""

    def __init__(
        self,
        program: dspy.Module,
        scorer: Scorer,
        meter: Meter,
        *,
        failure_score: float,
        perfect_score: float,
        timeout: float | None,
        setup: Setup | None = None,
    ) -> None:
        self.program, self.scorer, self.meter = program, scorer, meter
        self.failure_score, self.perfect_score, self.timeout = failure_score, perfect_score, timeout
        self.setup = setup
        playbook = getattr(program, "playbook", None)
        self.playbook = playbook if isinstance(playbook, Playbook) else Playbook()
        predictors = program.named_predictors()
        self.names: dict[int, str] = {id(predictor): name for name, predictor in predictors}
        # BestOfN and Refine run deep copies: a predictor's `stage` survives a copy, its id does not
        self.stages: dict[str, str] = {predictor.stage: name for name, predictor in predictors}
        self.task = own_instructions(program)
        self.shown = functools.lru_cache(maxsize=64)(self._shown)

    def one(self, example: dspy.Example, source: str) -> Trajectory:
        """Run, then score, in an environment of its own if there is one. Every way to fail ends in a trajectory."""
        if self.setup is None:
            return self._run(example, source)
        environment = ExitStack()
        try:
            environment.enter_context(self.setup(example))
        except Exception as error:  # noqa: BLE001 - a user's setup may raise anything; the trajectory says so
            failure = Failure("setup", words_of(error))
            feedback = Feedback(self.failure_score, failure.message)
            return Trajectory(example, None, (), feedback, source=source, task=self.task, error=failure)
        try:
            return self._run(example, source)
        finally:
            try:
                environment.close()
            except Exception:  # the rollout is over: its result is not lost to the tidying up
                logger.warning("ACE: setup= could not close the environment of example %s.", source, exc_info=True)

    def _run(self, example: dspy.Example, source: str) -> Trajectory:
        trace = CallTrace()
        started = Started(self._name, trace)
        with self.meter.measure("task", started) as spent, recording() as cited, dspy.context(trace=trace):
            try:
                prediction, failure = in_time(lambda: self.program(**example.inputs()), self.timeout), None
            except OutOfTimeError as error:
                started.abandoned = True
                prediction, failure = None, Failure("program", f"rollout_timeout: {error}")
            except Exception as error:  # noqa: BLE001 - a user's program may raise anything; it is told apart here
                prediction, failure = None, Failure(kind_of(error), words_of(error))
        if isinstance(prediction, dspy.Prediction):
            prediction.set_lm_usage(spent.tracker.get_total_tokens())
        feedback = Feedback(self.failure_score, failure.message) if failure else None
        calls = started.among([self._call(*entry) for entry in trace])
        if feedback is None:
            feedback, failure = self._score(example, prediction, trace)
        shown, named = self.shown_in(started.names.union(call.predictor for call in calls), cited), set(cited)
        return Trajectory(
            example=example,
            prediction=prediction,
            trace=calls,
            feedback=feedback,
            source=source,
            task=self.task,
            shown=shown,
            cited=tuple(name for name in shown if name in named),
            error=failure,
            usage=spent.usage(),
            success=failure is None and feedback.score >= self.perfect_score,
        )

    def _score(self, example: dspy.Example, prediction: Any, trace: CallTrace) -> tuple[Feedback, Failure | None]:
        last = self._name(trace[-1][0]) if trace else None
        with self.meter.measure("metric"), dspy.context(trace=[]):
            try:
                return self.scorer(example, prediction, list(trace), last), None
            except Exception as error:  # noqa: BLE001 - a user's metric may raise anything; the trajectory says so
                failure = Failure("metric", words_of(error))
                return Feedback(self.failure_score, failure.message), failure

    def shown_in(self, ran: Iterable[str], cited: Cited) -> tuple[str, ...]:
        """The ids that stood in the prompts of the predictors that ran."""
        shown = self.shown(frozenset(ran))
        return shown if cited.displayed is None else tuple(name for name in shown if name in cited.displayed)

    def _shown(self, ran: frozenset[str]) -> tuple[str, ...]:
        return tuple(bullet.id for bullet in self.playbook if any(bullet.is_for(name) for name in ran if name))

    def _name(self, predictor: Any) -> str:
        stage = getattr(predictor, "stage", "")
        return self.names.get(id(predictor)) or self.stages.get(stage, "") if isinstance(stage, str) else ""

    def _call(self, predictor: Any, inputs: Mapping[str, Any], prediction: Any) -> Call:
        outputs = prediction if isinstance(prediction, (dspy.Example, Mapping)) else {"output": prediction}
        return Call(self._name(predictor), dict(inputs), dict(outputs.items()))


class Started(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """The predictors that were called: one that fails leaves no trace, but its prompt showed bullets too."""

    def __init__(self, name_of: Callable[[Any], str], trace: Sequence[Any] = ()) -> None:
        self.names: set[str] = set()
        self.abandoned = False
        self._name_of, self._trace = name_of, trace
        self._open: dict[str, tuple[int, Call]] = {}  # calls without an answer, each with its place in the trace

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note a predictor and what it was given."""
        name = self._name_of(instance)
        self.names.add(name)
        if name:
            fields = instance.signature.input_fields
            given = {field: value for field, value in inputs.get("kwargs", {}).items() if field in fields}
            self._open[call_id] = len(self._trace), Call(name, _as_it_stands(given), {})

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:  # noqa: ARG002 - DSPy's
        """A call that was answered is in the trace."""
        if exception is None:
            self._open.pop(call_id, None)

    def among(self, answered: Sequence[Call]) -> tuple[Call, ...]:
        """The calls that were answered, and in their places those that were not, without outputs."""
        calls: list[Call] = []
        for place in range(len(answered) + 1):
            calls += [call for at, call in list(self._open.values()) if at == place]
            calls += answered[place : place + 1]
        return tuple(calls)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002 - DSPy's
        """End a rollout that is out of time before it makes another call."""
        if self.abandoned:
            raise _AbandonedError


class _AbandonedError(BaseException):
    """Ends a rollout that is out of time at its next LM call. Not an Exception: no program swallows it."""


class CallTrace(list[Any]):
    """DSPy's trace, which keeps a conversation as it stood at the call: one History is shared by all entries."""

    def append(self, entry: Any) -> None:
        """Keep an entry as it stands."""
        predictor, inputs, prediction = entry
        super().append((predictor, _as_it_stands(inputs), prediction))

    def extend(self, entries: Iterable[Any]) -> None:
        """Keep several."""
        for entry in entries:
            self.append(entry)


def _as_it_stands(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.model_copy(update={"messages": list(value.messages)}) if isinstance(value, dspy.History) else value
        for name, value in inputs.items()
    }


def kind_of(error: BaseException) -> FailureKind:
    """Whether the provider, the reply's format or the program's own code is behind an error."""
    if isinstance(error, LMError):
        return "provider"
    if isinstance(error, AdapterParseError):
        return "format"
    return kind_of(error.__cause__) if error.__cause__ is not None else "program"


def words_of(error: Exception) -> str:
    """The error's type and text."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
