"""Watch one run of an optimizer from outside: LM calls by role, rollouts, scores, prompts.

Nothing is asked of an optimizer: DSPy's callbacks tell when the student's modules and when an LM run, and the metric
is wrapped. The role of a call follows from what runs around it: the student → `task`, the metric → `metric`,
anything else → `optimizer`. The role travels with DSPy's settings, so it holds in every thread that DSPy starts.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Token
from dataclasses import dataclass, fields
from typing import Any

import dspy
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils.callback import BaseCallback

from ..errors import MetricError
from ..lm import Measurement, Meter, Usage, scope
from ..playbook import count_tokens
from ..program import Metric, called, feedback_of, words_of

_SCOPE = "dspy_ace_scope"
_REMEMBERED = 4096  # predictions whose score may still come
_STEPS = 200  # most points of `prompt_steps`
_KEPT = tuple(field.name for field in fields(Usage) if field.name != "retries")  # each attempt is a call of its own


@dataclass(frozen=True)
class _Scope:
    """The role of what runs; of a rollout also the key of its prompt, and its inputs."""

    role: str
    prompt: str | None = None
    inputs: str = ""


class Observer(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """Watch one compile and one test of a program. Thread-safe.

    Use `with observer.watching("compile"): …` around the work, and give `observer.watched(metric)` for the metric.

    Args:
        program: the student. A module of its class that holds its predictors, or copies of them, is the student too.
        valset: the examples that the curve is over.

    Attributes:
        rollouts: by phase how often the program was run.
        scored: by phase how often the metric was called.
        seconds: by phase how long it took.
        curve: `[rollouts, dollars or None, seconds, best mean score so far]`, one each time a prompt has a score
            for every example of the valset; a rollout that failed scores 0.
        call_errors: by role the error of the first LM call that failed in the compile.
    """

    def __init__(self, program: dspy.Module, valset: Sequence[dspy.Example] = ()) -> None:
        self._kind = type(program)
        self._stages = stages_of(program)
        self._valset = list(valset)
        self._ids = {id(example): position for position, example in enumerate(self._valset)}
        self._positions: dict[str, list[int]] = {}  # in the valset, by inputs: an optimizer may score copies
        for position, example in enumerate(self._valset):
            self._positions.setdefault(_key(example.inputs().toDict()), []).append(position)
        self._phase, self._outside, self._stepping = "compile", "optimizer", True
        self._started = time.monotonic()
        self._usage: dict[str, dict[str, Usage]] = {"compile": {}, "test": {}}
        self.rollouts = {"compile": 0, "test": 0}
        self.scored = {"compile": 0, "test": 0}
        self.seconds = {"compile": 0.0, "test": 0.0}
        self.curve: list[list[float | None]] = []
        self.call_errors: dict[str, str] = {}
        self._steps: list[list[int]] = []
        self._tokens: dict[str, int] = {}
        self._tables: dict[str, dict[int, float]] = {}
        self._predictions: OrderedDict[int, tuple[Any, _Scope]] = OrderedDict()
        self._open: dict[str, tuple[Token[dict[str, Any]], Any]] = {}  # calls under way: the settings before, the scope
        self._lock = threading.RLock()

    @contextmanager
    def watching(self, phase: str, outside: str = "optimizer") -> Iterator[None]:
        """Count what runs in this block for `phase`, "compile" or "test".

        Args:
            phase: what the calls are counted for.
            outside: the role of calls that neither the student nor the metric makes. `optimizer` in a test means a
                program that goes on learning: then the sizes of its prompt are kept as well.
        """
        self._phase, self._outside, self._started = phase, outside, time.monotonic()
        self._stepping = outside == "optimizer"
        try:
            callbacks = [*(dspy.settings.get("callbacks") or []), self]
            with scope(_Calls(self)), dspy.context(callbacks=callbacks, **{_SCOPE: None}):
                yield
        finally:
            self.seconds[phase] = round(time.monotonic() - self._started, 3)

    def watched(self, metric: Metric) -> Metric:
        """Wrap a metric: same name and signature, its calls are counted, its LM calls have the role `metric`."""

        @functools.wraps(metric, updated=())
        def call(*args: Any, **kwargs: Any) -> Any:
            result = None  # a metric that raises scores nothing, but the rollout counts
            try:
                with dspy.context(**{_SCOPE: _Scope("metric")}):
                    result = metric(*args, **kwargs)
            finally:
                self._note_score(args, kwargs, result)
            return result

        with suppress(TypeError, ValueError):  # some builtins have no signature
            call.__signature__ = inspect.signature(called(metric))  # type: ignore[attr-defined]
        return call

    def usage(self, phase: str) -> dict[str, dict[str, Any]]:
        """Return the usage by role as plain data; roles in alphabetical order."""
        with self._lock:
            return {
                role: {name: getattr(used, name) for name in _KEPT} for role, used in sorted(self._usage[phase].items())
            }

    def prompt_steps(self) -> list[list[int]]:
        """Return `[rollouts, tokens of the task prompt]` as the run went on: a point a change, at most 200."""
        with self._lock:
            steps = list(self._steps)
        if len(steps) <= _STEPS:
            return steps
        return [steps[round(i * (len(steps) - 1) / (_STEPS - 1))] for i in range(_STEPS)]

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Mark what follows as `task` if the student, or a predictor of it, begins."""
        if dspy.settings.get(_SCOPE) is not None:  # inside a rollout, or inside the metric
            return
        whole = self._is_student(instance)
        if not whole and (not isinstance(stage := getattr(instance, "stage", None), str) or stage not in self._stages):
            return
        scope = self._rollout(instance, inputs) if whole else _Scope("task")
        if not whole:
            self._step(instance)
        self._open[call_id] = (_put(_SCOPE, scope), scope)

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Remember the prediction of a rollout that has ended, so that its score can be told; a failed one scores 0."""
        scope = self._closed(call_id)
        if scope is None or scope.prompt is None:
            return
        if exception is not None:
            self._note(scope.prompt, self._positions.get(scope.inputs, []), 0.0)
            return
        prediction = outputs[0] if isinstance(outputs, tuple) and outputs else outputs  # GEPA's come with a trace
        with self._lock:
            self._predictions[id(prediction)] = (prediction, scope)
            if len(self._predictions) > _REMEMBERED:
                self._predictions.popitem(last=False)

    def note_call(self, used: Usage, error: BaseException | None) -> None:
        """Count an LM call that has ended, answered or not, for the role of what runs around it."""
        running = dspy.settings.get(_SCOPE)
        role = running.role if running else self._outside
        with self._lock:
            counted = self._usage[self._phase]
            counted[role] = counted.get(role, Usage()) + used
            if error is not None and self._phase == "compile":
                self.call_errors.setdefault(role, " ".join(words_of(error).split())[:200])

    def _closed(self, call_id: str) -> Any:
        """Put back the settings before a call, and return what was noted of it; None for a call not seen."""
        token, noted = self._open.pop(call_id, (None, None))
        if token is not None:
            thread_local_overrides.reset(token)
        return noted

    def _is_student(self, instance: Any) -> bool:
        # a training copy of ACE is of a subclass
        return isinstance(instance, self._kind) and bool(self._stages & stages_of(instance))

    def _rollout(self, instance: Any, inputs: Mapping[str, Any]) -> _Scope:
        with self._lock:
            self.rollouts[self._phase] += 1
        key = self._step(instance)
        return _Scope("task") if self._phase == "test" else _Scope("task", key, _key(inputs.get("kwargs") or inputs))

    def _step(self, shown: Any) -> str | None:
        """Note the size of the prompt of a program or predictor that begins, and return its key."""
        if not self._stepping:
            return None
        key = prompt_key(shown)
        if key not in self._tokens:
            self._tokens[key] = prompt_tokens(shown)
        tokens = self._tokens[key]
        with self._lock:
            if not self._steps or self._steps[-1][1] != tokens:
                self._steps.append([sum(self.rollouts.values()), tokens])
        return key

    def _note_score(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        with self._lock:
            self.scored[self._phase] += 1
        given = [*args, *kwargs.values()][:2]
        if self._phase != "compile" or len(given) < 2:
            return
        with self._lock:
            prediction, scope = self._predictions.get(id(given[1]), (None, None))
        if scope is None or scope.prompt is None or prediction is not given[1]:
            return
        try:
            score = 0.0 if result is None else feedback_of(result).score
        except MetricError:
            score = 0.0
        known = self._ids.get(id(given[0]))
        self._note(scope.prompt, self._positions.get(scope.inputs, []) if known is None else [known], score)

    def _note(self, prompt: str, positions: Sequence[int], score: float) -> None:
        """Note a prompt's score on examples of the valset. Once it has all of them, the curve has a new point."""
        with self._lock:
            table = self._tables.setdefault(prompt, {})
            before = len(table)
            for position in positions:
                table.setdefault(position, score)
            if before == len(table) or len(table) < len(self._valset):
                return
            best = max([sum(table.values()) / len(table), *(point[3] or 0.0 for point in self.curve[-1:])])
            spent = sum(self._usage["compile"].values(), Usage())
            now = time.monotonic() - self._started
            self.curve.append([self.rollouts["compile"], spent.dollars, round(now, 3), best])


class _Calls(Measurement):
    """Tells an observer of each LM call."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(Meter(), "all")
        self._observer = observer

    def add(self, used: Usage, entries: list[tuple[str, dict[str, Any]]], error: BaseException | None = None) -> None:
        """See `Measurement`."""
        super().add(used, entries, error)
        self._observer.note_call(used, error)


def _put(setting: str, value: Any) -> Token[dict[str, Any]]:
    """Put a setting of DSPy's in force for what follows in this thread or task, until it is reset.

    `dspy.context` cannot be used here: where another callback forbids the call, its end is never told, and a context
    that is garbage-collected would reset the settings at a random moment.
    """
    token: Token[dict[str, Any]] = thread_local_overrides.set({**thread_local_overrides.get(), setting: value})
    return token


def stages_of(program: Any) -> set[str]:
    """Return what DSPy knows a program's predictors by: a copy has the same, another predictor another."""
    return {predictor.stage for _, predictor in program.named_predictors() if hasattr(predictor, "stage")}


def _key(inputs: Mapping[str, Any]) -> str:
    return repr(sorted(inputs.items(), key=lambda item: item[0]))


def prompt_texts(program: dspy.Module) -> dict[str, str]:
    """Return by predictor its instructions, and its demos as text below them."""
    return {name: _text(predictor) for name, predictor in program.named_predictors()}


def prompt_tokens(program: dspy.Module) -> int:
    """Estimate the tokens of a program's instructions and demos, all predictors together."""
    return sum(count_tokens(text) for text in prompt_texts(program).values())


def prompt_key(program: dspy.Module) -> str:
    """Return a short hash of instructions, demos and fields: equal for programs that say the same to their LM."""
    fields = [str(predictor.signature.fields) for _, predictor in program.named_predictors()]
    return hashlib.sha256(repr([prompt_texts(program), fields]).encode("utf-8", "replace")).hexdigest()[:16]


def _text(predictor: Any) -> str:
    demos = ["\n".join(f"{key}: {value}" for key, value in dict(demo).items()) for demo in predictor.demos]
    return "\n\n".join([predictor.signature.instructions, *(f"## Demo {n}\n{text}" for n, text in enumerate(demos, 1))])
