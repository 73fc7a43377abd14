"""One cell of a comparison: one optimizer, one seed, compiled and tested under the conditions of all the others."""

from __future__ import annotations

import copy
import inspect
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from ..errors import MetricError, RunError
from ..lm import one_by_one
from ..playbook import Playbook
from ..program import Metric, Scorer, Trajectory, copy_program, rollouts
from ..training import FREE, CtrlC
from .observe import Observer, stages_of
from .prompts import prompt_texts, prompt_tokens
from .uncached import uncached

VERSION = 1


@dataclass(frozen=True)
class Conditions:
    """What all cells of a comparison have in common.

    Args:
        program: the student; each cell works on a copy.
        metric: as the user gave it.
        trainset, valset, testset: examples; `valset` may be empty: then none is handed on.
        num_threads: of the test, and of optimizers that do not say; None: DSPy's setting.
    """

    program: dspy.Module
    metric: Metric
    trainset: Sequence[dspy.Example]
    valset: Sequence[dspy.Example]
    testset: Sequence[dspy.Example]
    num_threads: int | None


def run_cell(conditions: Conditions, method: str, seed: int, optimizer: Teleprompter | None) -> dict[str, Any]:
    """Compile with `optimizer` (None: the student as it is), test once, and say what came of it.

    Returns:
        A line of `cells.jsonl`. Whatever the optimizer, the program or the metric raises is in it as the reason.

    Raises:
        KeyboardInterrupt: Ctrl-C, also one that the optimizer took for the end of its own run.
    """
    observer = Observer(conditions.program, conditions.valset)
    cell = _blank(method, seed)
    settings: dict[str, Any] = {"lm": one_by_one(dspy.settings.lm)}
    if conditions.num_threads is not None:
        settings["num_threads"] = conditions.num_threads
    with CtrlC() as ctrl_c, uncached(), dspy.context(**settings):
        student = copy_program(conditions.program)
        for _, predictor in student.named_predictors():
            predictor.lm = one_by_one(predictor.lm)
        started = time.monotonic()
        stage = "compile"
        try:
            with observer.watching("compile"):
                program = student if optimizer is None else _compiled(conditions, observer, student, optimizer, seed)
            _raise_if(ctrl_c.count)
            cell["seconds"]["compile"], started, stage = round(time.monotonic() - started, 3), time.monotonic(), "test"
            cell |= _described(program)
            with observer.watching("test", _outside(program, conditions.program)):
                tested = _tested(program, conditions, observer)
            _raise_if(ctrl_c.count)
            if _online(program):
                cell |= _described(program)  # as it is after the stream
            cell["test_scores"] = [trajectory.feedback.score for trajectory in tested]
            cell["failures"] = dict(Counter(t.error.kind for t in tested if t.error is not None))
            cell["status"] = "ok"
        except Exception as error:  # noqa: BLE001 - an optimizer may raise anything; the row says what
            _raise_if(ctrl_c.count)
            cell["reason"] = f"{stage}: {type(error).__name__}: {str(error).strip() or 'no message'}"[:2000]
        cell["seconds"][stage] = round(time.monotonic() - started, 3)
    cell["usage"] = {phase: observer.usage(phase) for phase in ("compile", "test")}
    made = observer.rollouts["compile"] or observer.scored["compile"]
    cell["metric_calls"] = {
        "compile": made,
        "test": max(observer.rollouts["test"], len(cell["test_scores"])),
    }
    cell["curve"], cell["prompt_steps"] = observer.curve, observer.prompt_steps()
    return cell


def lms_within(optimizer: Any) -> dict[str, Any]:
    """The LMs an optimizer holds, by attribute (`reflection_lm`, `teacher_settings.lm`, …)."""
    found: dict[str, Any] = {}

    def keep(path: str, value: Any) -> Any:
        if isinstance(value, dspy.BaseLM):
            found[path] = value
        return value

    _mapped(optimizer, keep)
    return found


def takes_seed(optimizer: Any) -> bool:
    """Whether a seed can be handed to the optimizer: as its attribute (or that of one inside it), or to `compile`."""
    seeded = False

    def look(path: str, value: Any) -> Any:
        nonlocal seeded
        seeded |= path.rpartition(".")[2] == "seed"
        return value

    _mapped(optimizer, look)
    return seeded or accepts(optimizer, "seed")


def settings_within(optimizer: Any) -> dict[str, Any]:
    """The plain settings of an optimizer and of those inside it, by attribute, but for the seed and those that a run
    may be continued with others of.
    """
    found: dict[str, Any] = {}

    def keep(path: str, value: Any) -> Any:
        if isinstance(value, (str, int, float, bool)) and path.rpartition(".")[2] not in (*FREE, "seed"):
            found[path] = value
        return value

    _mapped(optimizer, keep)
    return found


def required(optimizer: Any) -> set[str]:
    """The arguments that `compile` cannot do without, the student apart."""
    named = list(inspect.signature(optimizer.compile).parameters.values())[1:]
    return {p.name for p in named if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def accepts(optimizer: Any, name: str) -> bool:
    """Whether `compile` has an argument of this name."""
    return name in inspect.signature(optimizer.compile).parameters


def _compiled(
    conditions: Conditions, observer: Observer, student: dspy.Module, optimizer: Teleprompter, seed: int
) -> dspy.Module:
    """What a copy of the optimizer makes of the student."""
    watched = observer.watched(conditions.metric)
    seeded = False

    def put(path: str, value: Any) -> Any:
        nonlocal seeded
        name = path.rpartition(".")[2]
        if name == "seed":
            seeded = True
            return seed
        if name == "log_dir" and value is not None:  # what another cell left there would be taken for a start
            Path(value).mkdir(parents=True, exist_ok=True)
            return tempfile.mkdtemp(prefix=f"seed-{seed}-", dir=value)
        if value is conditions.metric or (inspect.ismethod(value) and value == conditions.metric):
            return watched
        return one_by_one(value)

    made = _mapped(optimizer, put)
    offered = {"trainset": list(conditions.trainset)}
    if conditions.valset:
        offered["valset"] = list(conditions.valset)
    arguments: dict[str, Any] = {name: value for name, value in offered.items() if accepts(made, name)}
    if not seeded and accepts(made, "seed"):
        arguments["seed"] = seed
    program = made.compile(student, **arguments)
    if not isinstance(program, dspy.Module):
        raise RunError(f"expected compile to return a dspy.Module; got {type(program).__name__}")
    return program


def _tested(program: dspy.Module, conditions: Conditions, observer: Observer) -> list[Trajectory]:
    """The test set, once: first one at a time until something works, then in threads; in order for an online program.

    Raises:
        RunError: the LM answers none of the first three examples, or every rollout failed.
        MetricError: the metric fails on an example: then there is no score.
    """
    scorer = Scorer(observer.watched(conditions.metric))
    threads = 1 if _online(program) else conditions.num_threads or dspy.settings.num_threads

    def metric(example: dspy.Example, prediction: Any) -> Any:
        return scorer(example, prediction)

    def roll(examples: Sequence[dspy.Example]) -> list[Trajectory]:
        made = rollouts(program, examples, metric, num_threads=threads or 8)
        for trajectory in made:
            if trajectory.error is not None and trajectory.error.kind == "metric":
                raise MetricError(f"the metric gives no score: {trajectory.error.message}")
        return made

    tested: list[Trajectory] = []
    while len(tested) < len(conditions.testset) and all(t.error is not None for t in tested):
        tested += roll(conditions.testset[len(tested) : len(tested) + 1])
        last = tested[-1].error
        if len(tested) >= min(3, len(conditions.testset)) and last is not None and all(t.error for t in tested):
            if all(t.error is not None and t.error.kind == "provider" for t in tested):
                raise RunError(f"the LM failed on the first {len(tested)} test examples: {last.message}")
            break
    tested += roll(conditions.testset[len(tested) :])
    if all(t.error is not None for t in tested) and tested[0].error is not None:
        raise RunError(f"every rollout on the test set failed; the first: {tested[0].error.message}")
    return tested


def _described(program: dspy.Module) -> dict[str, Any]:
    playbook = getattr(program, "playbook", None)
    return {
        "prompt_tokens": prompt_tokens(program),
        "bullets": len(playbook) if isinstance(playbook, Playbook) else None,
        "prompts": prompt_texts(program),
    }


def _outside(program: dspy.Module, student: dspy.Module) -> str:
    """Whose calls those outside of the student are in the test: an online program learns besides."""
    return "optimizer" if _online(program) and stages_of(program) & stages_of(student) else "task"


def _online(program: dspy.Module) -> bool:
    """Whether it says of itself that it learns while it is tested."""
    return getattr(program, "online", False) is True


def _raise_if(pressed: int) -> None:
    if pressed:
        raise KeyboardInterrupt


def _blank(method: str, seed: int) -> dict[str, Any]:
    return {
        "version": VERSION,
        "method": method,
        "seed": seed,
        "status": "failed",
        "reason": None,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "test_scores": [],
        "failures": {},
        "metric_calls": {"compile": 0, "test": 0},
        "usage": {"compile": {}, "test": {}},
        "seconds": {"compile": 0.0, "test": 0.0},
        "curve": [],
        "prompt_steps": [],
        "prompt_tokens": None,
        "bullets": None,
        "prompts": {},
    }


def _mapped(optimizer: Any, change: Callable[[str, Any], Any]) -> Any:
    """A copy of an optimizer, of those inside it and of the containers they hold, each value as `change` has it."""
    seen: dict[int, Any] = {}

    def walk(path: str, value: Any) -> Any:
        if id(value) in seen:
            return seen[id(value)]
        if isinstance(value, Teleprompter):
            seen[id(value)] = clone = copy.copy(value)
            for name, item in list(vars(value).items()):
                setattr(clone, name, walk(f"{path}.{name}" if path else name, item))
            return clone
        if type(value) in (list, tuple):
            return type(value)(walk(path, item) for item in value)
        if type(value) is dict:
            return {key: walk(f"{path}.{key}" if path else str(key), item) for key, item in value.items()}
        return change(path, value)

    return walk("", optimizer)
