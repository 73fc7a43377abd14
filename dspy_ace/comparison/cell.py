"""A cell of a comparison: one method and one seed, compiled and tested under the same conditions as all others."""

from __future__ import annotations

import copy
import inspect
import pickle
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

import dspy
from dspy.teleprompt import Teleprompter

from ..errors import Count, MetricError, RunError, SettingsError, checked
from ..playbook import Playbook
from ..program import Metric, Scorer, Trajectory, copy_program, rollouts, words_of
from ..training import CtrlC, check_examples, check_executor, check_program, packed, settings_here
from .observer import Observer, prompt_texts, prompt_tokens, stages_of

VERSION = 1
# settings of an optimizer that may change when a comparison goes on: they decide no result
_FREE = ("seed", "num_threads", "log_dir", "progress", "on_step", "max_lm_calls", "max_cost", "max_seconds")


@dataclass(frozen=True)
class Conditions:
    """The conditions that all cells of a comparison have in common.

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

    def checked(self) -> Conditions:
        """Return the conditions with the sets as lists. Raises SettingsError for a user's mistake in them."""
        check_program(self.program)
        if self.metric is None:
            raise SettingsError("metric must be a callable that scores a prediction; got None.")
        Scorer(self.metric)
        checked("num_threads", self.num_threads, Count | None)
        train, test = (check_examples(getattr(self, name), name) for name in ("trainset", "testset"))
        val = check_examples(self.valset, "valset", may_be_empty=True)
        return replace(self, trainset=train, valset=val, testset=test)


Cell: TypeAlias = tuple[Conditions, str, int, Teleprompter | None]
"""The arguments of `run_cell`."""


def run_on(executor: Executor, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Run cells on the workers of an executor, and yield each as it ends.

    Raises:
        SettingsError: before the first cell: one cannot be sent, or the workers cannot run it.
        RunError: a cell got lost.
    """
    tasks = []
    for conditions, method, seed, optimizer in cells:
        parts = {**vars(conditions), f"optimizers[{method!r}]": optimizer}
        tasks.append(packed(parts, ((conditions, method, seed, optimizer), settings_here())))
    check_executor(executor)
    futures = [executor.submit(_run_packed, task) for task in tasks]
    try:
        for future in as_completed(futures):
            yield future.result()
    except Exception as error:  # executors raise errors of their own; a cell keeps its errors for itself
        raise RunError(
            f"A cell could not be run on executor= ({type(error).__name__}: {error}). Finished cells are kept in out=; "
            "with the same out= and an executor that works the comparison goes on."
        ) from error
    finally:
        for future in futures:
            future.cancel()


def _run_packed(task: bytes) -> dict[str, Any]:
    """Run a cell on a worker."""
    cell, settings = pickle.loads(task)  # noqa: S301 - packed by `run_on`

    def run() -> dict[str, Any]:
        with dspy.context(**settings):
            return run_cell(*cell)

    return Context().run(run)  # a worker that is a thread has the settings of no other cell


def run_cell(conditions: Conditions, method: str, seed: int, optimizer: Teleprompter | None) -> dict[str, Any]:
    """Compile with `optimizer` (None: the student as it is) and test once.

    Returns:
        A line of `cells.jsonl`. If the optimizer, the program or the metric raises, the reason stands in it.

    Raises:
        KeyboardInterrupt: Ctrl-C, also where the optimizer caught it and returned a program.
    """
    observer = Observer(conditions.program, conditions.valset)
    cell: dict[str, Any] = {
        "version": VERSION,
        "method": method,
        "seed": seed,
        "status": "failed",
        "reason": None,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "test_scores": [],
        "failures": {},
        "prompt_tokens": None,
        "bullets": None,
        "prompts": {},
    }
    stage = "compile"
    threads = conditions.num_threads or dspy.settings.num_threads
    with CtrlC() as ctrl_c, uncached(), dspy.context(num_threads=threads):
        try:
            with observer.watching("compile"):
                program = _compiled(conditions, observer, optimizer, seed)
            _raise_if(ctrl_c.count)
            stage, cell = "test", cell | _described(program)
            online = getattr(program, "online", False) is True  # it says of itself that it learns while it is tested
            # an online program learns in the test: what it calls besides the student is the optimizer's
            learning = online and bool(stages_of(program) & stages_of(conditions.program))
            with observer.watching("test", "optimizer" if learning else "task"):
                tested = _tested(program, conditions, observer, in_order=online)
            _raise_if(ctrl_c.count)
            cell |= _described(program) if online else {}  # as it is after the stream
            cell["test_scores"] = [trajectory.feedback.score for trajectory in tested]
            cell["failures"] = dict(Counter(t.error.kind for t in tested if t.error is not None))
            cell["status"] = "ok"
        except Exception as error:  # noqa: BLE001 - an optimizer may raise anything; the row says what
            _raise_if(ctrl_c.count)
            cell["reason"] = f"{stage}: {words_of(error)}"[:2000]
    return cell | {
        "metric_calls": {
            "compile": observer.rollouts["compile"] or observer.scored["compile"],
            "test": max(observer.rollouts["test"], len(cell["test_scores"])),
        },
        "usage": {phase: observer.usage(phase) for phase in ("compile", "test")},
        "call_errors": observer.call_errors,
        "seconds": observer.seconds,
        "curve": observer.curve,
        "prompt_steps": observer.prompt_steps(),
    }


@contextmanager
def uncached() -> Iterator[None]:
    """Switch DSPy's response cache off in this block, for every LM and embedder of the process.

    All of them ask one object, whatever `cache` they were made with. Afterwards it is what it was, also after an
    error. Blocks may be nested, and overlap in threads: the last one to end brings the cache back.
    """
    with _cache_lock:
        _caches.append(vars(dspy).get("cache"))
        if len(_caches) == 1:
            dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    try:
        yield
    finally:
        with _cache_lock:
            before = _caches.pop()
            if not _caches and before is not None:
                dspy.cache = before
            elif not _caches:  # nobody had asked for it yet: DSPy makes it when it is first read
                vars(dspy).pop("cache", None)


_cache_lock = threading.Lock()
_caches: list[Any] = []


def values_within(optimizer: Any) -> dict[str, Any]:
    """Return every value that an optimizer, those inside it and their containers hold, by attribute.

    The names look like `reflection_lm`, `teacher_settings.lm`, `parts[0].seed`.
    """
    found: dict[str, Any] = {}

    def keep(path: str, value: Any) -> Any:
        found[path] = value
        return value

    _mapped(optimizer, keep)
    return found


def lms_within(optimizer: Any) -> dict[str, Any]:
    """Return the LMs an optimizer holds, by attribute."""
    return {path: value for path, value in values_within(optimizer).items() if isinstance(value, dspy.BaseLM)}


def settings_within(optimizer: Any) -> dict[str, Any]:
    """Return the plain settings that decide what an optimizer does, by attribute."""
    values = values_within(optimizer).items()
    return {p: v for p, v in values if isinstance(v, (str, int, float, bool)) and _last(p) not in _FREE}


def seeded(optimizer: Any) -> bool:
    """Return True if the optimizer, or one inside it, has an attribute `seed`."""
    return any(_last(path) == "seed" for path in values_within(optimizer))


def required(optimizer: Any) -> set[str]:
    """Return the arguments that `compile` cannot do without, the student apart."""
    named = list(inspect.signature(optimizer.compile).parameters.values())[1:]
    return {p.name for p in named if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def accepts(optimizer: Any, name: str) -> bool:
    """Return True if `compile` has an argument of this name."""
    return name in inspect.signature(optimizer.compile).parameters


def _compiled(conditions: Conditions, observer: Observer, optimizer: Teleprompter | None, seed: int) -> dspy.Module:
    """Compile a copy of the student with a copy of the optimizer that has the seed and the watched metric."""
    student = copy_program(conditions.program)
    if optimizer is None:
        return student
    watched = observer.watched(conditions.metric)

    def put(path: str, value: Any) -> Any:
        name = _last(path)
        if name == "seed":
            return seed
        if name == "log_dir" and value is not None:  # in the same folder a cell would continue the run of another
            Path(value).mkdir(parents=True, exist_ok=True)
            return tempfile.mkdtemp(prefix=f"seed-{seed}-", dir=value)
        if value is conditions.metric or (inspect.ismethod(value) and value == conditions.metric):
            return watched
        return value

    made = _mapped(optimizer, put)
    offered = {"trainset": list(conditions.trainset)}
    if conditions.valset:
        offered["valset"] = list(conditions.valset)
    arguments: dict[str, Any] = {name: value for name, value in offered.items() if accepts(made, name)}
    if accepts(made, "seed") and not seeded(made):
        arguments["seed"] = seed
    program = made.compile(student, **arguments)
    if not isinstance(program, dspy.Module):
        raise RunError(f"expected compile to return a dspy.Module; got {type(program).__name__}")
    return program


def _tested(program: dspy.Module, conditions: Conditions, observer: Observer, *, in_order: bool) -> list[Trajectory]:
    """Run the test set once: in threads unless `in_order`, but one at a time until a first example works.

    Raises:
        RunError: the LM answers none of the first three examples, or every rollout failed.
        MetricError: the metric fails on an example: then there is no score.
    """
    scorer = Scorer(observer.watched(conditions.metric))
    threads = 1 if in_order else conditions.num_threads or dspy.settings.num_threads or 8

    def score(example: dspy.Example, prediction: Any) -> Any:  # without the trace: in DSPy that means evaluation
        return scorer(example, prediction)

    def roll(examples: Sequence[dspy.Example]) -> list[Trajectory]:
        made = rollouts(program, examples, score, num_threads=threads)
        for trajectory in made:
            if trajectory.error is not None and trajectory.error.kind == "metric":
                raise MetricError(f"the metric gives no score: {trajectory.error.message}")
        return made

    tested: list[Trajectory] = []
    for example in conditions.testset[:3]:
        tested += roll([example])
        if tested[-1].error is None:
            break
    errors = [trajectory.error for trajectory in tested if trajectory.error is not None]
    if len(errors) == len(tested) and all(error.kind == "provider" for error in errors):
        raise RunError(f"the LM failed on the first {len(tested)} test examples: {errors[-1].message}")
    tested += roll(conditions.testset[len(tested) :])
    if errors and all(trajectory.error is not None for trajectory in tested):
        raise RunError(f"every rollout on the test set failed; the first: {errors[0].message}")
    return tested


def _described(program: dspy.Module) -> dict[str, Any]:
    playbook = getattr(program, "playbook", None)
    return {
        "prompt_tokens": prompt_tokens(program),
        "bullets": len(playbook) if isinstance(playbook, Playbook) else None,
        "prompts": prompt_texts(program),
    }


def _raise_if(pressed: int) -> None:
    if pressed:
        raise KeyboardInterrupt


def _last(path: str) -> str:
    """Return the attribute at the end of a path: `seed` of `teacher.parts[0].seed`."""
    return path.rpartition(".")[2]


def _mapped(optimizer: Any, change: Callable[[str, Any], Any]) -> Any:
    """Copy an optimizer, those inside it and the containers they hold, with each value as `change(path, value)`."""
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
            return type(value)(walk(f"{path}[{at}]", item) for at, item in enumerate(value))
        if type(value) is dict:
            return {key: walk(f"{path}.{key}" if path else str(key), item) for key, item in value.items()}
        return change(path, value)

    return walk("", optimizer)
