"""Told trajectories that wait to be learned from, and the playbook that they change: in memory, or in a store."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

import dspy

from ..playbook import Delta, Playbook, Rejected, apply
from ..program import Call, Failure, Feedback, Trajectory, render_value
from ..store import PlaybookStore

logger = logging.getLogger("dspy.ace")

CLAIM = 600.0  # seconds for which no other process of a store is given the records that this one learns from
FORMAT = "dspy_ace.told"
_MANY = 1000  # a warning is logged each time that so many more trajectories wait in memory


@dataclass(frozen=True)
class Told:
    """A trajectory with its feedback, waiting to be learned from.

    Args:
        trajectory: the call and its feedback.
        scored: True if the metric can score a retry of it.
        id: its number in the inbox.
        key: identifies it if it is put again after an error of the store.
    """

    trajectory: Trajectory
    scored: bool
    id: int = 0
    key: str | None = None


class Inbox(Protocol):
    """Holds told trajectories and the playbook. Any thread may put; one thread at a time takes and learns."""

    def snapshot(self) -> tuple[int, Playbook]:
        """Return the latest version and its playbook."""

    def put(self, told: Told, source: str | None) -> str:
        """Keep a trajectory and return its source's name. It cannot be lost any more (in a store: it is on disk)."""

    def left(self, most: int | None = None) -> int:
        """Count, up to `most`, the trajectories that were told and not learned from."""

    def take(self, limit: int) -> list[Told]:
        """Return the oldest trajectories, for this process alone. They are taken again until they are learned from."""

    def learned(self, base: int, delta: Delta, told: Sequence[Told]) -> tuple[Rejected, ...] | None:
        """Apply a delta that was made on version `base`, and remove the trajectories that it was learned from.

        Returns:
            The operations that were left out. None: nothing was applied or removed, because a source was forgotten
            meanwhile. What is not forgotten of `told` is taken again.
        """


class Memory:
    """An inbox of this process alone. It needs no lock: `dict` and `count` are thread-safe, and one thread learns."""

    def __init__(self, playbook: Playbook) -> None:
        self._latest = 0, playbook
        self._numbers = count(1)
        self._waiting: dict[int, Told] = {}

    def snapshot(self) -> tuple[int, Playbook]:
        """See `Inbox`."""
        return self._latest

    def put(self, told: Told, source: str | None) -> str:
        """See `Inbox`."""
        number = next(self._numbers)
        name = source or f"tell-{number}"
        self._waiting[number] = replace(told, trajectory=replace(told.trajectory, source=name), id=number)
        if (waiting := len(self._waiting)) % _MANY == 0:
            logger.warning("ACE: %d told trajectories wait to be learned from, and take memory.", waiting)
        return name

    def left(self, most: int | None = None) -> int:  # noqa: ARG002 - counting all is quick
        """See `Inbox`."""
        return len(self._waiting)

    def take(self, limit: int) -> list[Told]:
        """See `Inbox`."""
        return list(self._waiting.values())[:limit]

    def learned(self, base: int, delta: Delta, told: Sequence[Told]) -> tuple[Rejected, ...] | None:
        """See `Inbox`."""
        self._latest = base + 1, apply(self._latest[1], delta)
        for one in told:
            self._waiting.pop(one.id)
        return ()


class Shared:
    """An inbox in a store that other processes use as well.

    Args:
        store: it stays open when this ends.
        task: the predictors' instructions without the playbook; records of the store do not repeat them.
    """

    def __init__(self, store: PlaybookStore, task: Mapping[str, str]) -> None:
        self._store, self._task = store, task
        self._held: list[tuple[float, Told]] = []  # claimed here and not learned from, each with the end of its claim

    def snapshot(self) -> tuple[int, Playbook]:
        """See `Inbox`."""
        return self._store.snapshot()

    def put(self, told: Told, source: str | None) -> str:
        """See `Inbox`. A store that fails may have kept the record; put again under the same key, it is there once."""
        number = self._store.tell(_to_record(told), source=source, key=told.key)
        return source or f"tell-{number}"

    def left(self, most: int | None = None) -> int:
        """See `Inbox`."""
        return len(self._store.pending(most))

    def take(self, limit: int) -> list[Told]:
        """See `Inbox`."""
        now = time.monotonic()
        self._held = [(ends, one) for ends, one in self._held if ends > now]
        while len(self._held) < limit and (claimed := self._store.claim(limit - len(self._held), CLAIM)):
            for tell in claimed:
                told = _from_record(tell.record, tell.source, tell.id, self._task)
                if told is None:
                    logger.warning("ACE: record %d of the store was not told by OnlineACE: it is left there.", tell.id)
                else:
                    self._held.append((now + CLAIM, told))
        return [one for _, one in self._held[:limit]]

    def learned(self, base: int, delta: Delta, told: Sequence[Told]) -> tuple[Rejected, ...] | None:
        """See `Inbox`. The delta is appended and the records are removed in one transaction."""
        ids = {one.id for one in told}
        rejected: tuple[Rejected, ...] = ()
        if delta.operations:
            rejected = self._store.append(delta, base, taken=sorted(ids)).rejected
            if len(rejected) == len(delta.operations):  # all was left out: was the whole delta refused?
                pending = {tell.id for tell in self._store.pending()}
                if pending & ids:
                    self._held = [(ends, one) for ends, one in self._held if one.id in pending]
                    return None
        else:
            self._store.taken(sorted(ids))
        self._held = [(ends, one) for ends, one in self._held if one.id not in ids]
        return rejected


def _to_record(told: Told) -> dict[str, Any]:
    """Return plain JSON data. Other values are kept as text; then no retry can be made from the record."""
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
    """Read a record of `_to_record`; return None for anything else."""
    if record.get("format") != FORMAT:
        return None
    inputs, outputs = record["inputs"], record["prediction"]
    trajectory = Trajectory(
        example=dspy.Example({**record["expected"], **inputs}).with_inputs(*inputs),
        prediction=None if outputs is None else dspy.Prediction(**outputs),
        trace=tuple(Call(**call) for call in record["trace"]),
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
    """Return the fields as JSON data; and True if that holds their values exactly."""
    made = {str(name): _plain(value) for name, value in fields.items()}
    return {name: value for name, (value, _) in made.items()}, all(exact for _, exact in made.values())


def _plain(value: Any) -> tuple[Any, bool]:
    try:
        again = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return render_value(value), False
    return (again, True) if again == value else (render_value(value), False)
