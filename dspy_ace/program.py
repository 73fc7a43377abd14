"""The boundary to DSPy: put a playbook into a program, run it, and say what happened.

The student is never changed. A copy shares everything with it but its module tree: tools, demos, LMs,
retrievers and whatever else it holds are the same objects.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError, LMError

from .citation import ask_for_citations, recording
from .metric import Metric, Scorer
from .parallel import ordered_map
from .playbook import Playbook
from .trajectory import Call, Failure, FailureKind, Feedback, Trajectory
from .usage import Meter

Program = TypeVar("Program", bound=dspy.Module)

PLAYBOOK_HEADER = """## Playbook
Lessons learned on earlier cases of this task, one block each: [id] (section) lesson. Before you answer, find
the bullets that apply to the case at hand and follow them; a bullet that fits the case exactly goes before a
general one. Ignore bullets that do not apply."""

NOTE_HEADER = """## Reflection on your previous attempt
Your previous answer to this very case was not right. Keep to this now:"""


def with_playbook(student: Program, playbook: Playbook, cite: bool = False) -> Program:
    """A copy of `student` with the playbook below each predictor's own instructions.

    Args:
        student: any program with predictors; it is not changed. A playbook that was put into it before
            (`student.playbook`) is replaced, not repeated.
        playbook: what to show. Without bullets the instructions are exactly the student's.
        cite: for training copies: the predictors also ask for the ids of the bullets they relied on. No
            field is added to a signature, a demo or a prediction; `rollouts` collects the ids.

    Returns:
        A plain DSPy program of the same class. `forward`, tools, demos, LMs and fields are the student's.
        It carries `.playbook`; its JSON state loads where dspy_ace is not installed.
    """
    return _instructed(student, playbook, cite, "")


def with_reflection(student: Program, playbook: Playbook, insights: Iterable[str]) -> Program:
    """A training copy for a retry: the playbook, and below it the insights of a reflection (ACE §3.2)."""
    return _instructed(
        student, playbook, True, "\n".join([NOTE_HEADER, *(f"- {insight}" for insight in insights)])
    )


def _instructed(student: Program, playbook: Playbook, cite: bool, note: str) -> Program:
    own = own_instructions(student)
    program = copy_program(student)
    for name, predictor in program.named_predictors():
        wanted = "\n\n".join(part for part in (own[name], playbook_block(playbook, name), note) if part)
        if wanted != predictor.signature.instructions:
            predictor.signature = predictor.signature.with_instructions(wanted)
        if cite:
            ask_for_citations(predictor, name, playbook)
    program.playbook = playbook
    return program


def playbook_block(playbook: Playbook, predictor: str) -> str:
    """What stands below the own instructions of `predictor`: a header and its bullets, or `""`."""
    bullets = playbook.render(predictor)
    return f"{PLAYBOOK_HEADER}\n\n{bullets}" if bullets else ""


def own_instructions(program: dspy.Module) -> dict[str, str]:
    """Each predictor's instructions without the playbook (`program.playbook`) and note put below them."""
    playbook = getattr(program, "playbook", None)
    own = {}
    for name, predictor in program.named_predictors():
        instructions = str(predictor.signature.instructions)
        block = playbook_block(playbook, name) if isinstance(playbook, Playbook) else ""
        for below in (f"\n\n{NOTE_HEADER}\n", f"\n\n{block}" if block else ""):
            if below and below in instructions:
                instructions = instructions[: instructions.rindex(below)]
        own[name] = instructions
    return own


def copy_program(program: Program) -> Program:
    """A copy of the module tree; everything that is not a module or a container is shared, not copied.

    `Module.deepcopy` would clone pinned LMs, tools bound to an object and retrievers, and drop callbacks.
    """
    copied: Program = _copy(program, {})
    return copied


def _copy(value: Any, seen: dict[int, Any]) -> Any:
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, dspy.Module):
        seen[id(value)] = clone = object.__new__(type(value))
        clone.__dict__.update({name: _copy(item, seen) for name, item in vars(value).items()})
        clone.history = []
        return clone
    if isinstance(value, types.MethodType) and isinstance(value.__self__, dspy.Module):
        return types.MethodType(value.__func__, _copy(value.__self__, seen))
    if type(value) is list:
        seen[id(value)] = items = []
        items.extend(_copy(item, seen) for item in value)
        return items
    if type(value) is dict:
        seen[id(value)] = entries = {}
        entries.update((name, _copy(item, seen)) for name, item in value.items())
        return entries
    if type(value) is tuple:
        return tuple(_copy(item, seen) for item in value)
    return value


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

    Returns:
        One trajectory an example, in order. An example that fails raises nothing: its trajectory says
        whether the provider, the reply's format, the program or the metric failed.
    """
    scorer = metric if isinstance(metric, Scorer) else Scorer(metric)
    run = _Rollouts(program, scorer, meter or Meter(), failure_score, perfect_score)
    names = [str(i) for i in range(len(examples))] if sources is None else sources
    return ordered_map(lambda pair: run.one(*pair), list(zip(examples, names, strict=True)), num_threads)


class _Rollouts:
    """What the rollouts of one call share."""

    def __init__(
        self, program: dspy.Module, scorer: Scorer, meter: Meter, failure_score: float, perfect_score: float
    ) -> None:
        self.program, self.scorer, self.meter = program, scorer, meter
        self.failure_score, self.perfect_score = failure_score, perfect_score
        self.playbook = getattr(program, "playbook", None) or Playbook()
        predictors = program.named_predictors()
        self.names = {id(predictor): name for name, predictor in predictors}
        # BestOfN and Refine run deep copies: a predictor's `stage` survives a copy, its id does not
        self.stages = {predictor.stage: name for name, predictor in predictors}
        self.task = own_instructions(program)

    def one(self, example: dspy.Example, source: str) -> Trajectory:
        """Run, then score. Every way to fail ends in a trajectory."""
        trace = _Trace()
        with self.meter.spending("task") as spent, recording() as cited, dspy.context(trace=trace):
            try:
                prediction, failure = self.program(**example.inputs()), None
            except Exception as error:  # noqa: BLE001 - a user's program may raise anything; it is told apart here
                prediction, failure = None, Failure(_kind(error), _words(error))
        if isinstance(prediction, dspy.Prediction):
            prediction.set_lm_usage(spent.tracker.get_total_tokens())
        feedback = Feedback(self.failure_score, failure.message) if failure else None
        if feedback is None:
            feedback, failure = self._score(example, prediction, trace)
        calls = tuple(self._call(*entry) for entry in trace)
        ran = {call.predictor for call in calls} or set(self.names.values())
        shown = tuple(b.id for b in self.playbook if b.predictor is None or b.predictor in ran)
        return Trajectory(
            example=example,
            prediction=prediction,
            trace=calls,
            feedback=feedback,
            source=source,
            task=self.task,
            shown=shown,
            cited=tuple(name for name in shown if name in set(cited)),
            error=failure,
            usage=spent.usage(),
            success=failure is None and feedback.score >= self.perfect_score,
        )

    def _score(
        self, example: dspy.Example, prediction: Any, trace: _Trace
    ) -> tuple[Feedback, Failure | None]:
        last = self._name(trace[-1][0]) if trace else None
        with self.meter.spending("metric"), dspy.context(trace=[]):
            try:
                return self.scorer(example, prediction, list(trace), last), None
            except Exception as error:  # noqa: BLE001 - a user's metric may raise anything; the trajectory says so
                failure = Failure("metric", _words(error))
                return Feedback(self.failure_score, failure.message), failure

    def _name(self, predictor: Any) -> str:
        return self.names.get(id(predictor)) or self.stages.get(getattr(predictor, "stage", ""), "")

    def _call(self, predictor: Any, inputs: Mapping[str, Any], prediction: Any) -> Call:
        return Call(self._name(predictor), dict(inputs), dict(prediction.items()))


class _Trace(list[Any]):
    """DSPy's trace, which keeps a conversation as it stood at the call: one History is shared by all entries."""

    def append(self, entry: Any) -> None:
        predictor, inputs, prediction = entry
        kept = {
            name: value.model_copy(update={"messages": list(value.messages)})
            if isinstance(value, dspy.History)
            else value
            for name, value in inputs.items()
        }
        super().append((predictor, kept, prediction))


def _kind(error: Exception) -> FailureKind:
    if isinstance(error, LMError):
        return "provider"
    return "format" if isinstance(error, AdapterParseError) else "program"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
