"""Rollouts on an executor: what a task takes to a worker, what it brings back, and the limits that hold there.

Only rollouts leave this process. Reflection, curation and every decision stay, in the threads that wait for the
rollouts. So the order of things, and the journal, are those of a run in threads.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import pickle
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import dspy

from ..errors import RunError, SettingsError
from ..lm import Lease, LimitReachedError, Limits, Measurement, Meter, Usage, scope
from ..output import names_a_secret
from ..program import Failure, Feedback, Rollouts, Scorer, Trajectory
from .fingerprint import versions

logger = logging.getLogger("dspy.ace")

_SETTINGS = (
    *("lm", "adapter", "rm", "num_threads"),
    *("allow_tool_async_sync_conversion", "disable_history", "warn_on_type_mismatch"),
)
_POLL = 0.5  # seconds between two checks if the run was stopped
_WAIT = 0.02  # seconds between two tries to reserve a part of the limits
_ANSWER = 300.0  # seconds in which an executor answers, or it is lost
_FIRST_CALLS = 32  # LM calls for a task, before it is known how many one makes
_TRIES = 2  # of a task whose worker died
_LARGE = 100_000  # bytes: a larger program or example is sent to a worker once, not with each of its rollouts
_KEPT = 8  # so many of them are kept there


@dataclass(frozen=True)
class Work:
    """The part of a task that all rollouts of a program share.

    Args:
        program: with the playbook in it.
        metric, options: of `Rollouts`.
        settings: DSPy's, as `dspy.context` takes them.
    """

    program: dspy.Module
    metric: Any
    options: Mapping[str, Any]
    settings: Mapping[str, Any]

    def packed(self) -> bytes:
        """Return the work as bytes, without the keys of its LMs.

        Raises:
            SettingsError: a part of it cannot be sent; its name and its kind are in the message.
        """
        return packed({"program": self.program, "metric": self.metric, **self.options, **self.settings}, self)


@dataclass
class Made:
    """A task's result: the trajectory, or why there is none.

    Args:
        trajectory: without its example, which the caller has.
        usage: by role.
        spent: calls, and dollars.
        entries: model and usage of each paid call, for a `dspy.track_usage()` around the run.
        log: level and text of each warning on the worker.
        refused: the limit that a call was refused for.
        mistake: of the user, found by the rollout.
    """

    trajectory: Trajectory | None = None
    usage: Mapping[str, Usage] = field(default_factory=dict)
    spent: tuple[int, float] = (0, 0.0)
    entries: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    log: list[tuple[int, str]] = field(default_factory=list)
    refused: str = ""
    mistake: str = ""


def roll_out(
    sender: Mapping[str, str], parts: Sequence[bytes | str], source: str, lease: Lease, deadline: float | None
) -> bytes:
    """Make one rollout; this is what runs on a worker.

    Args:
        sender: the versions of the process that sent it.
        parts: the work and the example; a large one that was sent before by its name.
        source, lease, deadline: of the rollout.

    Returns:
        `Made` as bytes; none at all if a part is not known by its name: the task has to be sent with all of it.
    """
    if sender != versions():  # one worker was asked before the run; this may be another
        return bytes(cloudpickle.dumps(Made(mistake=_other_versions(versions(), sender))))
    work, example = map(_known, parts)
    if work is None or example is None:
        return b""
    # in a context of its own a worker that is a thread counts nothing twice
    return Context().run(_roll_out, work, example, source, lease, deadline)


def _roll_out(packed_work: bytes, packed_example: bytes, source: str, lease: Lease, deadline: float | None) -> bytes:
    try:
        work, example = _opened(packed_work), pickle.loads(packed_example)  # noqa: S301 - packed by `Remote` of this run
    except Exception as error:  # noqa: BLE001 - above all a module that is not there
        said = f"A worker of executor= cannot open the program: {type(error).__name__}: {error}. Install what it needs."
        return bytes(cloudpickle.dumps(Made(mistake=said)))
    seconds = None if deadline is None else max(0.0, deadline - time.time())
    limits, meter, made = Limits(None, lease.calls, lease.dollars, seconds), Meter(), Made()
    rollouts = Rollouts(work.program, Scorer(work.metric), meter, **work.options)
    limits.start()  # what the program computes before its first call counts
    with dspy.context(**work.settings), dspy.track_usage() as tracker, _Log(made.log):
        try:
            with scope(Measurement(meter, "other", limits)):
                made.trajectory = replace(rollouts.one(example, source), example=dspy.Example())
        except LimitReachedError as error:
            made.refused = str(error)
        except SettingsError as error:
            made.mistake = str(error)
    made.usage, made.spent = meter.totals(), (limits.calls, limits.dollars)
    made.entries = [(lm, entry) for lm, entries in tracker.usage_data.items() for entry in entries]
    try:
        sent = bytes(cloudpickle.dumps(made))
        pickle.loads(sent)  # noqa: S301 - what cannot be opened again is found here, where its calls are known
        return sent
    except Exception as error:  # noqa: BLE001 - a prediction may hold anything
        failure = Failure("program", f"The result cannot be sent from the worker: {type(error).__name__}: {error}")
        made.trajectory = _failed(source, failure, rollouts.failure_score)
        return bytes(cloudpickle.dumps(made))


class RemoteRollouts(Rollouts):
    """Rollouts whose program runs on the workers of an executor.

    Args:
        remote: the executor.
        **others: of `Rollouts`.
    """

    def __init__(self, remote: Remote, *others: Any, **options: Any) -> None:
        super().__init__(*others, **options)
        self._remote = remote
        self._work = Work(self.program, self.scorer.metric, options, remote.settings).packed()

    def one(self, example: dspy.Example, source: str) -> Trajectory:
        """See `Rollouts.one`; the trajectory was made on a worker."""
        made = self._remote.one(self._work, example, source, self.failure_score)
        return replace(made, task=self.task, perfect_score=self.perfect_score)


class Remote:
    """The workers of a run.

    Args:
        executor: any whose workers can import dspy_ace.
        limits, meter: of the run.
        tasks: how many are under way at the same time.

    Attributes:
        again: tasks that were handed out again, since their worker died.

    Raises:
        SettingsError: the executor is shut down; a worker has no dspy_ace, or another version of it or of DSPy; or a
            limit cannot be held.
    """

    def __init__(self, executor: Executor, limits: Limits, meter: Meter, tasks: int) -> None:
        self._executor, self._limits, self._meter, self._tasks = executor, limits, meter, tasks
        self.settings, self._versions = settings_here(), versions()
        self.again, self._heard = 0, -math.inf  # when a task ended last
        self._most, self._lock = (0, 0.0), threading.Lock()  # calls and dollars of the greediest task
        check_executor(executor)
        client: Any = getattr(executor, "_client", None)  # Dask's
        if limits.spends and hasattr(client, "run_on_scheduler") and client.run_on_scheduler(_allowed_failures):
            raise SettingsError(
                "max_lm_calls and max_cost cannot be held while Dask makes the tasks of a dead worker again by itself. "
                "Start its scheduler with dask.config.set({'distributed.scheduler.allowed-failures': 0}): then ACE "
                "makes them again, and counts them."
            )

    def one(self, work: bytes, example: dspy.Example, source: str, failure_score: float) -> Trajectory:
        """Return the trajectory of one rollout.

        It gets a part of what the limits leave. If it needs more, it is made once more, with all that is left.

        Raises:
            LimitReachedError: not even that is enough.
            RunError: the executor works no longer.
            SettingsError: the program cannot learn as it is used, see `Rollouts.one`.
        """
        died, whole = 0, False
        while True:
            with self._lent(whole) as lease:
                try:
                    made = self._made(work, example, source, lease)
                except (RunError, LimitReachedError, SettingsError):
                    raise
                except Exception as error:  # noqa: BLE001 - the executor's own: the task raises nothing
                    self._check_alive(error)
                    died += 1
                    if died == _TRIES:
                        failure = Failure("program", f"{died} workers died of it: {type(error).__name__}: {error}")
                        return replace(_failed(source, failure, failure_score), example=example)
                    self.again += 1
                    logger.warning(
                        "ACE: the worker of example %s died (%s); the rollout is made again. Made again so far: %d",
                        source,
                        type(error).__name__,
                        self.again,
                    )
                    continue
                lease.used = made.spent
                with self._lock:
                    self._most = max(self._most[0], lease.used[0]), max(self._most[1], lease.used[1])
            self._count(made)
            if made.mistake:
                raise SettingsError(made.mistake)
            if made.trajectory is not None and not made.refused:
                return replace(made.trajectory, example=example)
            if whole:
                name, limited, _ = made.refused.partition("=")  # the worker knows its part alone
                limit = f"{name}={getattr(self._limits, name):g} is reached" if limited else made.refused
                raise self._limits.refused(limit)
            whole = True

    def _made(self, work: bytes, example: dspy.Example, source: str, lease: Lease) -> Made:
        left = self._limits.seconds_left()
        deadline = None if left == math.inf else time.time() + left
        whole = (work, packed({"the example": example}, example))
        by_name = tuple(part if len(part) <= _LARGE else _name(part) for part in whole)
        sent = b""
        try:
            for parts in (by_name, whole):  # whole if the worker does not know a part by its name
                sent = sent or self._awaited(
                    self._executor.submit(roll_out, self._versions, parts, source, lease, deadline)
                )
        except (BrokenExecutor, CancelledError, RuntimeError) as error:  # a RuntimeError: it is shut down
            raise _lost(error) from error
        except ImportError as error:
            raise SettingsError(
                f"A worker of executor= cannot import what it needs: {error}. Install it there."
            ) from error
        made: Made = pickle.loads(sent)  # noqa: S301 - our worker's
        return made

    def _check_alive(self, error: Exception) -> None:
        """Raise RunError unless the executor still answers: a worker may have died, or all of it."""
        try:
            self._awaited(self._executor.submit(versions), _ANSWER)
        except Exception as silent:  # executors raise errors of their own
            raise _lost(error) from silent

    def _awaited(self, future: Future[Any], silence: float = math.inf) -> Any:
        """Return a task's result. A task that nobody waits for any more is cancelled, if it has not begun.

        Raises:
            LimitReachedError: the run was stopped.
            TimeoutError: no task of the run has ended for so many seconds.
        """
        asked = time.monotonic()
        try:
            while not wait([future], _POLL).done:
                if self._limits.stopped:
                    raise LimitReachedError(self._limits.reached)
                if time.monotonic() - max(asked, self._heard) > silence:
                    raise TimeoutError(f"no answer within {silence:g} s")
        finally:
            future.cancel()
        result = future.result()
        self._heard = time.monotonic()
        return result

    @contextmanager
    def _lent(self, whole: bool) -> Iterator[Lease]:
        """Reserve a part of the limits for a task; what it does not use comes back. Waits for others' if it must.

        A part is twice what the greediest task has used so far. Before one has ended it is a guess.
        """
        while True:
            calls, dollars = self._most
            lease = self._limits.lend(2 * calls or _FIRST_CALLS, 2 * dollars, self._tasks, whole)
            if lease is not None:
                break
            time.sleep(_WAIT)
        try:
            yield lease
        finally:
            self._limits.settle(lease, *lease.used)  # of a task that died nobody knows what it used: all of it

    def _count(self, made: Made) -> None:
        for role, usage in made.usage.items():
            self._meter.add(role, usage)
        outer = Measurement(self._meter, "task").outer
        for lm, entry in made.entries if outer is not None else ():
            outer.add_usage(lm, entry)
        for level, message in made.log:
            logger.log(level, "%s", message)


class _Log(logging.Handler):
    """Keeps the warnings of a worker."""

    def __init__(self, kept: list[tuple[int, str]]) -> None:
        super().__init__(logging.WARNING)
        self._kept, self._thread = kept, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:  # other tasks may run in this process
            self._kept.append((record.levelno, record.getMessage()))

    def __enter__(self) -> _Log:
        logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logger.removeHandler(self)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is untyped
    """Pickles LMs without history, callbacks and keys: a worker takes its keys from its environment."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, dspy.BaseLM):
            return super().reducer_override(value)
        make, arguments, state, *rest = value.__reduce_ex__(4)
        if isinstance(state, Mapping):
            state = _public({**state, "history": [], "callbacks": []})
        return make, arguments, state, *rest


def _public(kwargs: Any) -> Any:
    if not isinstance(kwargs, Mapping):
        return kwargs
    return {name: _public(value) for name, value in kwargs.items() if not names_a_secret(str(name))}


def settings_here() -> dict[str, Any]:
    """Return those of DSPy's settings that a worker works with as well."""
    return {name: dspy.settings.get(name) for name in _SETTINGS}


def check_executor(executor: Executor) -> None:
    """Raise SettingsError unless a worker of the executor answers, and has the versions of this process."""
    try:
        there = executor.submit(versions).result(_ANSWER)
    except Exception as error:  # executors raise errors of their own
        raise SettingsError(
            f"executor= cannot run a task: {type(error).__name__}: {error}. Give a running "
            "concurrent.futures.Executor whose workers can import dspy_ace."
        ) from error
    if there != versions():
        raise SettingsError(_other_versions(there, versions()))


def packed(parts: Mapping[str, Any], whole: Any) -> bytes:
    """Return `whole` as bytes; if that fails, SettingsError names which of `parts` cannot be sent."""
    try:
        return _bytes(whole)
    except Exception as error:  # objects raise what they like when they are pickled
        name, value = next(
            (found for name, value in parts.items() if (found := _unsendable(name, value)) is not None),
            ("a part of it", whole),
        )
        raise SettingsError(
            f"executor= sends the program and its examples to other processes, and {name} ({type(value).__name__}) "
            f"cannot be sent: {error}. Open it in setup=, or inside the program's forward."
        ) from error


def _unsendable(name: str, value: Any, depth: int = 5) -> tuple[str, Any] | None:
    """Return name and value of the innermost attribute that cannot be packed; None: it can."""
    try:
        _bytes(value)
    except Exception:  # noqa: BLE001 - see `_packed`
        inner = dict(enumerate(value)) if isinstance(value, (list, tuple)) else getattr(value, "__dict__", value)
        inner = inner if depth and isinstance(inner, dict) else {}
        found = (_unsendable(f"{name}.{key}", each, depth - 1) for key, each in inner.items())
        return next((each for each in found if each is not None), (name, value))
    return None


def _bytes(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


@lru_cache(maxsize=8)
def _opened(work: bytes) -> Work:
    opened: Work = pickle.loads(work)  # noqa: S301 - packed by `Work.packed`
    return opened


def _name(part: bytes) -> str:
    return hashlib.sha256(part).hexdigest()


_parts: dict[str, bytes] = {}  # on a worker: large parts of tasks


def _known(part: bytes | str) -> bytes | None:
    """Return a part of a task that was sent now, or before by this name. The last large ones are kept."""
    if isinstance(part, bytes) and len(part) <= _LARGE:
        return part
    name, found = (part, _parts.pop(part, None)) if isinstance(part, str) else (_name(part), part)
    if found is not None:
        _parts[name] = found
    for old in list(_parts)[:-_KEPT]:
        _parts.pop(old, None)  # another thread may have done it
    return found


def _failed(source: str, failure: Failure, score: float) -> Trajectory:
    return Trajectory(dspy.Example(), None, (), Feedback(score, failure.message), source=source, error=failure)


def _allowed_failures(dask_scheduler: Any) -> int:
    return int(dask_scheduler.allowed_failures)


def _lost(error: BaseException) -> RunError:
    return RunError(
        f"The executor works no longer ({type(error).__name__}: {error}). With the same log_dir and a new executor the "
        "run goes on."
    )


def _other_versions(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    said = [", ".join(f"{name} {version}" for name, version in each.items()) for each in (there, here)]
    return f"The workers of executor= have {said[0]}; this process has {said[1]}. Install the same versions everywhere."
