"""Run a program on examples and score it: the trace, the usage, and every way to fail."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any, get_args

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError, LMError

from ..errors import SettingsError
from ..lm import LimitReachedError, Measurement, Meter, own
from ..playbook import Playbook
from .citation import Cited, recording
from .instruct import own_instructions
from .metric import Metric, Scorer
from .threads import OutOfTimeError, ThreadPool, in_time
from .trajectory import Call, Failure, Feedback, Trajectory
from .transcript import words_of

logger = logging.getLogger("dspy.ace")

Setup = Callable[[dspy.Example], AbstractContextManager[Any]]
"""Opens the environment of one rollout. `setup(example)` is entered in the rollout's thread before the program runs.
It is left after the metric, whatever happened. Tools find what it opened in a `contextvars.ContextVar` that it sets."""


def rollouts(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    metric: Metric | Scorer | None = None,
    *,
    num_threads: int = 8,
    meter: Meter | None = None,
    **settings: Any,
) -> list[Trajectory]:
    """Run and score `program` on each example, in threads.

    Args:
        program: run as it is, by all threads; `program.playbook` tells which bullets it shows.
        examples: with inputs set. Their other fields reach the metric and nothing else.
        metric: see `Scorer`; None: a rollout that does not fail is a success.
        num_threads: at most so many at once.
        meter: counts the calls, as `task` and `metric`.
        **settings: `failure_score`, `perfect_score`, `timeout` and `setup` of `Rollouts`.

    Returns:
        One trajectory an example, in order; its `source` is the example's position. An example that fails raises
        nothing: its trajectory says whether the provider, the reply's format, the program, the metric or its
        environment failed.

    Raises:
        SettingsError: see `Rollouts.one`.
    """
    scorer = metric if isinstance(metric, Scorer) else Scorer(metric)
    run = Rollouts(program, scorer, meter or Meter(), **settings)
    return ThreadPool(num_threads).map(lambda place: run.one(examples[place], str(place)), range(len(examples)))


class Rollouts:
    """Runs one program on one example after the other; threads may share it.

    Args:
        program, scorer, meter: see `rollouts`.
        failure_score: the score of a rollout that failed, whatever the reason.
        perfect_score: a score from here on is a success.
        timeout: seconds after which a rollout has failed (kind `program`). It is left alone then and makes no further
            LM call; what a call under way still costs is not counted. None: it takes as long as it takes.
        setup: opens the environment of each rollout, see `Setup`; None: there is none.
    """

    def __init__(
        self,
        program: dspy.Module,
        scorer: Scorer,
        meter: Meter,
        *,
        failure_score: float = 0.0,
        perfect_score: float = 1.0,
        timeout: float | None = None,
        setup: Setup | None = None,
    ) -> None:
        self.program, self.scorer, self.meter = program, scorer, meter
        self.failure_score, self.perfect_score, self.timeout = failure_score, perfect_score, timeout
        self.setup = setup
        playbook = getattr(program, "playbook", None)
        self.instructed = isinstance(playbook, Playbook)
        self.playbook = playbook if isinstance(playbook, Playbook) else Playbook()
        self.predictors: dict[str, Any] = dict(program.named_predictors())
        self.instructions = own_instructions(program)
        self.task = {name: _described(self.instructions[name], each) for name, each in self.predictors.items()}
        self._names = {id(predictor): name for name, predictor in self.predictors.items()}
        self._elsewhere = Measurement(meter, "task")  # what predictors call in threads that are older than the run
        own(self.predictors.values(), self._elsewhere)
        # BestOfN and Refine run deep copies: a predictor's `stage` survives a copy, its id does not
        self._stages = {predictor.stage: name for name, predictor in self.predictors.items()}

    def one(self, example: dspy.Example, source: str) -> Trajectory:
        """Run the program on an example and score it, in an environment of its own if there is one.

        Every way to fail ends in a trajectory, also SystemExit from a tool and a cancelled task. Ctrl-C and a limit
        that is reached pass through.

        Raises:
            SettingsError: the program cannot learn as it is used here. The example has an input that no predictor
                knows, where one waits for another; or the adapter leaves the instructions out of every prompt.
        """
        setup, environment = self.setup, ExitStack()
        if setup is None:
            return self._run(example, source)
        _, error = _tried(lambda: environment.enter_context(setup(example)))
        if error is not None:
            failure = Failure("setup", words_of(error))
            feedback = Feedback(self.failure_score, failure.message)
            return Trajectory(example, None, (), feedback, source=source, task=self.task, error=failure)
        try:
            trajectory = self._run(example, source)
            # the metric may look into the environment, which is closed when the trajectory is reflected on
            return trajectory if trajectory.success else self._asked_by_predictor(trajectory)
        finally:
            _, error = _tried(environment.close)
            if error is not None:  # the rollout is over: its result is not lost to the tidying up
                said = "ACE: setup= could not close the environment of example %s: %s"
                logger.warning(said, source, words_of(error), exc_info=error)

    def ask_by_predictor(self, trajectory: Trajectory) -> Trajectory:
        """Ask the metric about each predictor that ran, as GEPA does; for trajectories that are reflected on
        alone.

        A metric of five arguments is told the predictor's name and its last call. Its words go into
        `predictor_feedback`, unless they say what it said of the whole. Of a program of one predictor, of a rollout
        that failed, and with other metrics, nothing is asked. With `setup=` failures were asked about at once, while
        the environment was open.

        Returns:
            The trajectory with the words. A call that fails costs its words alone.
        """
        return trajectory if self.setup is not None else self._asked_by_predictor(trajectory)

    def _asked_by_predictor(self, trajectory: Trajectory) -> Trajectory:
        if not self.scorer.by_predictor or len(self.predictors) < 2 or trajectory.error is not None:
            return trajectory
        entries = {}  # by predictor its last
        trace = []
        for call in trajectory.trace:
            if call.predictor and call.outputs:  # as DSPy's trace holds it
                entry = (self.predictors[call.predictor], dict(call.inputs), dspy.Prediction(dict(call.outputs)))
                entries[call.predictor] = entry
                trace.append(entry)
        words: dict[str, str] = {}
        for name, last in entries.items():
            said, failure = self._scored(trajectory.example, trajectory.prediction, trace, name, [last])
            if failure is not None and not self.scorer.warned:
                logger.warning("ACE: the metric has no words on predictor %s: %s", name, failure.message)
                self.scorer.warned = True
            if failure is None and said.text not in ("", trajectory.feedback.text):
                words[name] = said.text
        return replace(trajectory, predictor_feedback=words)

    def _run(self, example: dspy.Example, source: str) -> Trajectory:
        trace = CallTrace()
        started = Started(self, trace)

        def call() -> Any:
            started.inputs = dict(example.inputs().items())
            return self.program(**started.inputs)

        with self.meter.measure("task") as spent, recording() as cited, dspy.context(**started.settings()):
            prediction, error = _tried(lambda: in_time(call, self.timeout))
            spent.over = isinstance(error, OutOfTimeError)
        if self._elsewhere.refusal is not None:
            raise self._elsewhere.refusal
        started.check()
        if isinstance(prediction, dspy.Prediction):
            prediction.set_lm_usage(spent.tokens())
        calls = started.calls()
        if error is None:
            only = self.only_predictor
            entries = [entry for entry in trace if only is not None and self.name_of(entry[0]) == only]
            asked = (list(trace), only, entries[-1:]) if entries else ()
            feedback, failure = self._scored(example, prediction, *asked)
        else:
            failure = failure_of(error)
            feedback = Feedback(self.failure_score, failure.message)
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
            perfect_score=self.perfect_score,
        )

    def _scored(self, *asked: Any) -> tuple[Feedback, Failure | None]:
        """Ask the metric, see `Scorer`."""
        with self.meter.measure("metric"), dspy.context(trace=[]):
            feedback, error = _tried(lambda: self.scorer(*asked))
        if error is None:
            return feedback, None
        failure = Failure("metric", words_of(error))
        return Feedback(self.failure_score, failure.message), failure

    @property
    def only_predictor(self) -> str | None:
        """The predictor of a program that has one: a metric of five arguments is asked once, with its name."""
        return next(iter(self.predictors)) if len(self.predictors) == 1 else None

    def shown_in(self, ran: Iterable[str], cited: Cited) -> tuple[str, ...]:
        """Return the ids that stood in the prompts of the predictors that ran."""
        names = set(ran) - {""}
        shown = (bullet.id for bullet in self.playbook if any(map(bullet.is_for, names)))
        return tuple(name for name in shown if cited.displayed is None or name in cited.displayed)

    def name_of(self, predictor: Any) -> str:
        """Return a predictor's path in the program; `""` for one that is not of the program."""
        stage = getattr(predictor, "stage", "")
        return self._names.get(id(predictor)) or self._stages.get(stage, "") if isinstance(stage, str) else ""

    def call_of(self, predictor: Any, inputs: Mapping[str, Any], prediction: Any) -> Call:
        """Return an entry of DSPy's trace as a call."""
        outputs = prediction if isinstance(prediction, (dspy.Example, Mapping)) else {"output": prediction}
        return Call(self.name_of(predictor), dict(inputs), dict(outputs.items()))


def _described(instructions: str, predictor: dspy.Predict) -> str:
    """Return instructions and the fields below them, with types, allowed values and descriptions."""
    fields = dspy.ChatAdapter().format_field_description(predictor.signature)
    fields = re.sub(r"^Your (?=(?:input|output) fields are:$)", "The ", fields, flags=re.MULTILINE)
    return f"{instructions}\n\n{fields}".strip()


class Started(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """Watches the calls of one rollout as they begin: one that fails leaves no trace, but its prompt showed bullets.

    Args:
        run: knows the program's predictors.
        trace: DSPy's trace of the rollout.

    Attributes:
        names: the predictors that were called; `""` stands for modules that are none of the program's predictors.
        inputs: the example's inputs, by field.
    """

    def __init__(self, run: Rollouts, trace: Sequence[Any]) -> None:
        self.names: set[str] = set()
        self.inputs: Mapping[str, Any] = {}
        self._run, self._trace = run, trace
        self._begun: dict[str, tuple[int, Call | None]] = {}  # calls without an answer, in the order of their beginning
        self._answered: dict[int, tuple[int, Any]] = {}  # the same of answers, by their id
        self._numbers = itertools.count()
        self._mistake, self._adapter, self._reached = "", "", False

    def settings(self) -> dict[str, Any]:
        """Return DSPy's settings for the rollout."""
        return {"trace": self._trace, "callbacks": [self, *(dspy.settings.get("callbacks") or [])]}

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note a predictor and what it was given."""
        name = self._run.name_of(instance)
        self.names.add(name)
        call = None
        if name:
            fields, given = instance.signature.input_fields, inputs.get("kwargs", {})
            self._check_names(name, fields, given)
            known = {field: value for field, value in given.items() if field in fields}
            call = Call(name, _as_it_stands(known), {})
        self._begun[call_id] = next(self._numbers), call

    def _check_names(self, name: str, fields: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        known = {field for predictor in self._run.predictors.values() for field in predictor.signature.input_fields}
        unknown = [field for field in given if field in self.inputs and field not in known.union(fields)]
        missing = [
            field
            for field, info in fields.items()
            if field not in given and info.is_required() and type(None) not in get_args(info.annotation)
        ]
        if unknown and missing:
            self._mistake = (
                f"The examples have the input {', '.join(unknown)}, which no predictor of the program knows, and its "
                f"predictor {name!r} was called without {', '.join(missing)}. Name the inputs of the examples as the "
                "signature does."
            )
            raise _StoppedError

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Forget a call that was answered: it is in the trace."""
        if exception is None and call_id in self._begun:
            place, _ = self._begun.pop(call_id)
            self._answered.setdefault(id(outputs), (place, outputs))  # with the answer: its id is given to no other

    def calls(self) -> tuple[Call, ...]:
        """Return the calls in the order in which they began: those that were answered, others without outputs.

        DSPy's trace has them in the order of the answers, which chance decides for calls at the same time.
        """
        calls, place = [(place, call) for place, call in list(self._begun.values()) if call is not None], 0
        for predictor, inputs, prediction in list(self._trace):
            place, _ = self._answered.get(id(prediction), (place, None))
            calls.append((place, self._run.call_of(predictor, inputs, prediction)))
        return tuple(call for _, call in sorted(calls, key=lambda one: one[0]))

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002 - DSPy's
        """Look if the instructions reach the prompt."""
        if self._run.instructed and not self._reached and self.names - {""}:
            self._adapter = type(dspy.settings.adapter or dspy.ChatAdapter()).__name__
            self._reached = self._reaches(" ".join(_text(inputs.get("messages") or inputs.get("prompt")).split()))

    def _reaches(self, prompt: str) -> bool:
        """Say if a prompt holds a bullet, or a line of the instructions, of a predictor that was called."""
        for name in self.names - {""}:
            bullets = self._run.playbook.for_predictor(name)
            lines = [f"[{bullet.id}]" for bullet in bullets] or self._run.instructions[name].splitlines() or [""]
            if any(" ".join(line.split()) in prompt for line in lines if line.strip() or len(lines) == 1):
                return True
        return False

    def check(self) -> None:
        """Raise SettingsError if the program cannot learn as it is used, see `Rollouts.one`."""
        if self._adapter and not self._reached:
            self._mistake = (
                f"The adapter {self._adapter} leaves the predictors' instructions out of its prompts. So no playbook "
                "can reach the model. Use an adapter that writes signature.instructions, as dspy.ChatAdapter does."
            )
        if self._mistake:
            raise SettingsError(self._mistake)


class _StoppedError(BaseException):
    """Ends a rollout before it makes a call in vain. Not an Exception: no program swallows it."""


def _tried(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return the result of `function` and the error it raised, also SystemExit and the like; Ctrl-C passes through."""
    try:
        return function(), None
    except (KeyboardInterrupt, LimitReachedError):
        raise
    except BaseException as error:  # noqa: BLE001 - users' code may raise anything; the trajectory says so
        return None, error


def _text(messages: Any) -> str:
    """Return the text of an LM's messages, whatever their parts are."""
    if isinstance(messages, str):
        return messages
    if isinstance(messages, Mapping):
        return _text(messages.get("content", messages.get("text")))
    return "\n".join(map(_text, messages)) if isinstance(messages, (list, tuple)) else ""


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


def failure_of(error: BaseException) -> Failure:
    """Say what an error of a program is: the provider's, the reply's format, or the program's own."""
    if isinstance(error, OutOfTimeError):
        return Failure("program", f"rollout_timeout: {error}")
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:  # `raise error from error` leads back to itself
        if isinstance(cause, (LMError, AdapterParseError)):
            return Failure("provider" if isinstance(cause, LMError) else "format", words_of(error))
        seen.add(id(cause))
        cause = cause.__cause__
    return Failure("program", words_of(error))
