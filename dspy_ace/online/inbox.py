"""What was told and is yet to be learned from, and the playbook it changes: in memory, or in a store."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import dspy

from ..errors import StoreError
from ..playbook import Delta, Playbook, Rejected, apply
from ..program import Call, Failure, Feedback, Trajectory, render_value
from ..store import PlaybookStore

logger = logging.getLogger("dspy.ace")

CLAIM = 600.0  # seconds for which no other process is given what this one learns from
FORMAT = "dspy_ace.told"
_MANY = 1000  # waiting trajectories that are worth a word


@dataclass(frozen=True)
class Told:
    """A trajectory with its feedback, waiting to be learned from.

    Args:
        trajectory: what was told.
        scored: whether the metric could score a retry of it.
        id: its number in the store; 0 without one.
    """

    trajectory: Trajectory
    scored: bool
    id: int = 0


class Inbox(Protocol):
    """Where tells wait and the playbook stands. Thread-safe; one thread at a time takes, gives back and learns."""

    def snapshot(self) -> tuple[int, Playbook]:
        """The latest version and its playbook."""

    def put(self, told: Told, source: str | None) -> str:
        """Keep it; when this returns it cannot be lost (store: it is on disk). Its name."""

    def waiting(self, most: int) -> int:
        """How many wait, counted up to `most`."""

    def left(self) -> int:
        """How many were told and not learned from, those that are being learned from among them."""

    def take(self, limit: int) -> list[Told]:
        """The oldest, for this caller alone until they are given back or learned from."""

    def put_back(self, told: Sequence[Told]) -> None:
        """They were not learned from: they are the first to be taken next."""

    def learned(self, base: int, delta: Delta, told: Sequence[Told]) -> tuple[Rejected, ...] | None:
        """What was learned from `told` on version `base` is kept; what of it was left out.

        None: nothing was kept (something was forgotten meanwhile); what of `told` still stands is put back.
        """


class Memory:
    """An inbox of this process alone."""

    def __init__(self, playbook: Playbook) -> None:
        self._version, self._playbook = 0, playbook
        self._waiting: deque[Told] = deque()
        self._told, self._out, self._warned = 0, 0, _MANY
        self._lock = threading.Lock()

    def snapshot(self) -> tuple[int, Playbook]:
        """Version and playbook."""
        with self._lock:
            return self._version, self._playbook

    def put(self, told: Told, source: str | None) -> str:
        """Keep it."""
        with self._lock:
            self._told += 1
            name = source or f"tell-{self._told}"
            self._waiting.append(_named(told, name, self._told))
            waiting = len(self._waiting)
            many, self._warned = waiting >= self._warned, 2 * waiting if waiting >= self._warned else self._warned
        if many:
            logger.warning("ACE: %d told trajectories wait to be learned from, and take memory.", waiting)
        return name

    def waiting(self, most: int) -> int:
        """How many wait."""
        return min(most, len(self._waiting))

    def left(self) -> int:
        """Those that wait and those that are out."""
        with self._lock:
            return len(self._waiting) + self._out

    def take(self, limit: int) -> list[Told]:
        """The oldest."""
        with self._lock:
            taken = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
            self._out += len(taken)
        return taken

    def put_back(self, told: Sequence[Told]) -> None:
        """They wait again, before all others."""
        with self._lock:
            self._waiting.extendleft(reversed(told))
            self._out -= len(told)

    def learned(self, base: int, delta: Delta, told: Sequence[Told]) -> tuple[Rejected, ...] | None:  # noqa: ARG002 - one learner, no rebase
        """The playbook is the next one."""
        with self._lock:
            self._playbook = apply(self._playbook, delta)
            self._version += 1
            self._out -= sum(one.id > 0 for one in told)
        return ()


class Shared:
    """An inbox in a store that other processes use as well.

    Args:
        store: it stays open when this ends.
        task: the predictors' instructions without the playbook: told records do not repeat them.
    """

    def __init__(self, store: PlaybookStore, task: Mapping[str, str]) -> None:
        self._store, self._task = store, task
        self._held: list[Told] = []  # claimed here, not learned from yet
        self._until = 0.0  # when the first claim on them ends
        self._foreign: set[int] = set()
        self._unsure: dict[str, str] = {}  # what was told while the store failed → its key

    def snapshot(self) -> tuple[int, Playbook]:
        """Version and playbook."""
        return self._store.snapshot()

    def put(self, told: Told, source: str | None) -> str:
        """Keep it. A store that fails may have kept it nevertheless; told again it has the same key, so it is once."""
        record = _to_record(told)
        said = hashlib.sha256(json.dumps([record, source]).encode()).hexdigest()
        key = self._unsure.pop(said, None) or uuid.uuid4().hex
        try:
            number = self._store.tell(record, source=source, key=key)
        except StoreError:
            self._unsure[said] = key
            raise
        return source or f"tell-{number}"

    def waiting(self, most: int) -> int:
        """How many wait."""
        return len(self._store.pending(most))

    def left(self) -> int:
        """All that the store has pending."""
        return len(self._store.pending())

    def take(self, limit: int) -> list[Told]:
        """The oldest."""
        if time.monotonic() > self._until:  # others may have them by now, or they are claimed here again
            self._held = []
        taken, self._held = self._held[:limit], self._held[limit:]
        if len(taken) < limit:
            ends = time.monotonic() + CLAIM
            self._until = min(self._until, ends) if taken else ends
            for tell in self._store.claim(limit - len(taken), CLAIM):
                told = _from_record(tell.record, tell.source, tell.id, self._task)
                if told is not None:
                    taken.append(told)
                elif tell.id not in self._foreign:
                    self._foreign.add(tell.id)
                    logger.warning("ACE: record %d of the store was not told by OnlineACE: it is left there.", tell.id)
        return taken

    def put_back(self, told: Sequence[Told]) -> None:
        """They wait again, before all others."""
        self._held = [*told, *self._held]

    def learned(self, base: int, delta: Delta, told: Sequence[Told]) -> tuple[Rejected, ...] | None:
        """Append the delta and take the records, in one transaction."""
        ids = [one.id for one in told if one.id]
        if not delta.operations:
            self._store.taken(ids)
            return ()
        done = self._store.append(delta, base, taken=ids)
        if len(done.rejected) < len(delta.operations):
            return done.rejected
        pending = {tell.id for tell in self._store.pending()}  # all was left out: was the whole delta refused?
        if not pending.intersection(ids):
            return done.rejected
        self.put_back([one for one in told if one.id in pending])
        return None


def _named(told: Told, name: str, number: int) -> Told:
    return Told(replace(told.trajectory, source=name), told.scored, number)


def _to_record(told: Told) -> dict[str, Any]:
    """As plain JSON data. A value that is none is kept as text; then no retry can be made from it."""
    t = told.trajectory
    inputs, exact = _plain_fields(t.inputs)
    expected, exact_too = _plain_fields(t.expected)
    prediction = None if t.prediction is None else _plain_fields(dict(t.prediction.items()))[0]
    return {
        "format": FORMAT,
        "inputs": inputs,
        "expected": expected,
        "prediction": prediction,
        "trace": [
            {"predictor": c.predictor, "inputs": _plain_fields(c.inputs)[0], "outputs": _plain_fields(c.outputs)[0]}
            for c in t.trace
        ],
        "score": t.feedback.score,
        "feedback": t.feedback.text,
        "shown": list(t.shown),
        "cited": list(t.cited),
        "error": None if t.error is None else {"kind": t.error.kind, "message": t.error.message},
        "success": t.success,
        "perfect_score": t.perfect_score,
        "scored": told.scored and exact and exact_too,
    }


def _from_record(record: Mapping[str, Any], source: str, number: int, task: Mapping[str, str]) -> Told | None:
    """What `_to_record` wrote; None for anything else."""
    if record.get("format") != FORMAT:
        return None
    inputs, said = record["inputs"], record["prediction"]
    trajectory = Trajectory(
        example=dspy.Example(**{**record["expected"], **inputs}).with_inputs(*inputs),
        prediction=None if said is None else dspy.Prediction(**said),
        trace=tuple(Call(call["predictor"], call["inputs"], call["outputs"]) for call in record["trace"]),
        feedback=Feedback(record["score"], record["feedback"]),
        source=source,
        task=task,
        shown=tuple(record["shown"]),
        cited=tuple(record["cited"]),
        error=None if record["error"] is None else Failure(**record["error"]),
        success=record["success"],
        perfect_score=record.get("perfect_score", 1.0),
    )
    return Told(trajectory, record["scored"], number)


def _plain_fields(fields: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The fields as JSON data, and whether that is all they are."""
    made = {str(name): _plain(value) for name, value in fields.items()}
    return {name: value for name, (value, _) in made.items()}, all(exact for _, exact in made.values())


def _plain(value: Any) -> tuple[Any, bool]:
    try:
        again = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return render_value(value), False
    return (again, True) if again == value else (render_value(value), False)
