"""Told trajectories that wait to be learned from, and the playbook that they change: in memory, or in a store."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Literal, Union

import dspy
import pydantic

from ..errors import StoreError
from ..playbook import Delta, Playbook, Rejected, apply
from ..program import Call, Failure, Feedback, Trajectory, render_value
from ..store import PlaybookStore, flattened

logger = logging.getLogger("dspy.ace")

CLAIM = 600.0  # seconds for which no other process of a store is given the records that this one learns from
FORMAT: Literal["dspy_ace.told"] = "dspy_ace.told"
_LEVELS = 50  # of a value inside a record; one that is nested deeper is kept as text
_MANY = 1000  # a warning is logged each time that so many more trajectories wait in memory


@dataclass(frozen=True)
class Told:
    """A trajectory with its feedback, waiting to be learned from.

    Args:
        trajectory: the call and its feedback.
        scored: True if the metric can score a retry of it.
        key: the id of the call.
        number: of its record in a store; 0: it is in memory.
    """

    trajectory: Trajectory
    scored: bool
    key: str = ""
    number: int = 0


class Memory:
    """An inbox of this process alone: told trajectories that wait, and the playbook.

    Any thread may put, and one thread at a time takes and learns. So it needs no lock: `dict` and `count` are
    thread-safe.
    """

    def __init__(self, playbook: Playbook) -> None:
        self._latest = 0, playbook
        self._numbers = count(1)
        self._told: set[str] = set()  # keys of all that was told
        self._waiting: dict[str, Told] = {}

    def snapshot(self) -> tuple[int, Playbook]:
        """Return the latest version and its playbook."""
        return self._latest

    def told(self, key: str) -> bool:
        """Return True if something was put under this key before."""
        return key in self._told

    def put(self, told: Told, source: str | None) -> str:
        """Keep a trajectory and return its source's name. In a store it is on disk when this returns."""
        name = source or f"tell-{next(self._numbers)}"
        self._told.add(told.key)
        self._waiting[told.key] = replace(told, trajectory=replace(told.trajectory, source=name))
        if (waiting := len(self._waiting)) % _MANY == 0:
            logger.warning("ACE: %d told trajectories wait to be learned from, and take memory.", waiting)
        return name

    def left(self, most: int | None = None) -> int:  # noqa: ARG002 - counting all is quick
        """Count, up to `most`, the trajectories that were told and not learned from."""
        return len(self._waiting)

    def take(self, limit: int) -> list[Told]:
        """Return the oldest trajectories, for this process alone. They are taken again until they are learned from."""
        return list(self._waiting.values())[:limit]

    def learned(self, base: int, delta: Delta, told: Sequence[Told]) -> tuple[Rejected, ...] | None:
        """Apply a delta that was made on version `base`, and remove the trajectories that it was learned from.

        Returns:
            The operations that were left out. None: nothing was applied or removed, because a source was forgotten
            meanwhile. What is not forgotten of `told` is taken again.
        """
        self._latest = base + 1, apply(self._latest[1], delta)
        for one in told:
            self._waiting.pop(one.key, None)
        return ()

    def forked(self) -> None:
        """Leave what was told to the parent process: this is a child."""
        self._waiting = {}

    def close(self) -> None:
        """End the claims of this process, so that others may learn from what it took. In memory there are none."""


class Shared:
    """An inbox in a store that other processes use as well; its methods do as those of `Memory`.

    Args:
        store: it stays open when this ends.
        task: the predictors' instructions without the playbook; records of the store do not repeat them.
    """

    def __init__(self, store: PlaybookStore, task: Mapping[str, str]) -> None:
        self._store, self._task = store, task
        self._held: list[tuple[float, Told]] = []  # claimed here and not learned from, each with the end of its claim

    def snapshot(self) -> tuple[int, Playbook]:
        """See `Memory`."""
        return self._store.snapshot()

    def told(self, key: str) -> bool:
        """See `Memory`."""
        return self._store.told(key) is not None

    def put(self, told: Told, source: str | None) -> str:
        """See `Memory`. A store that fails may have kept the record; put again under the same key, it is there once."""
        number = self._store.tell(_to_record(told), source=source, key=told.key)
        return source or f"tell-{number}"

    def left(self, most: int | None = None) -> int:
        """See `Memory`."""
        return len(self._store.pending(most, kind=FORMAT))

    def take(self, limit: int) -> list[Told]:
        """See `Memory`."""
        now = time.monotonic()
        if self._held:
            pending = {tell.id for tell in self._store.pending(kind=FORMAT)}  # what was forgotten since is not
            self._held = [(ends, one) for ends, one in self._held if ends > now and one.number in pending]
        while (more := limit - len(self._held)) > 0 and (claimed := self._store.claim(more, CLAIM, kind=FORMAT)):
            for tell in claimed:
                told = _from_record(tell.record, tell.source, tell.id, self._task)
                if told is None:
                    logger.warning("ACE: the told record %d of the store cannot be read: it is left there.", tell.id)
                else:
                    self._held.append((now + CLAIM, told))
        return [one for _, one in self._held[:limit]]

    def learned(self, base: int, delta: Delta, told: Sequence[Told]) -> tuple[Rejected, ...] | None:
        """See `Memory`. The delta is appended and the records are removed in one transaction."""
        ids = {one.number for one in told}
        rejected: tuple[Rejected, ...] = ()
        if delta.operations:
            append = partial(self._store.append, delta, base, key=uuid.uuid4().hex, taken=sorted(ids))
            try:
                rejected = append().rejected
            except StoreError:  # the answer alone may be lost; under the same key it is appended once
                rejected = append().rejected
            if len(rejected) == len(delta.operations):  # all was left out: was the whole delta refused?
                pending = {tell.id for tell in self._store.pending(kind=FORMAT)}
                if pending & ids:
                    self._held = [(ends, one) for ends, one in self._held if one.number in pending]
                    return None
        else:
            self._store.taken(sorted(ids))
        self._held = [(ends, one) for ends, one in self._held if one.number not in ids]
        return rejected

    def forked(self) -> None:
        """See `Memory`."""
        self._held = []

    def close(self) -> None:
        """See `Memory`."""
        held, self._held = self._held, []
        if ids := [one.number for ends, one in held if ends > time.monotonic()]:  # else another process may have it
            self._store.release(ids)


Inbox = Union[Memory, Shared]


class _Record(pydantic.BaseModel):
    """A told trajectory as a store keeps it: plain JSON data.

    Values that JSON cannot hold are kept as text; then no retry can be made from the record (`scored`).
    """

    model_config = pydantic.ConfigDict(defer_build=True)

    format: Literal["dspy_ace.told"]
    inputs: dict[str, Any]
    expected: dict[str, Any]
    prediction: dict[str, Any] | None
    trace: tuple[Call, ...]
    score: pydantic.FiniteFloat
    feedback: str
    shown: tuple[str, ...]
    cited: tuple[str, ...]
    error: Failure | None
    success: bool
    perfect_score: float = 1.0
    scored: bool


def _to_record(told: Told) -> dict[str, Any]:
    """Return a trajectory as JSON data, see `_Record`."""
    t = told.trajectory
    (inputs, exact), (expected, exact_too) = _plain_fields(t.inputs), _plain_fields(t.expected)
    record = _Record(
        format=FORMAT,
        inputs=inputs,
        expected=expected,
        prediction=None if t.prediction is None else _plain_fields(dict(t.prediction.items()))[0],
        trace=tuple(Call(c.predictor, _plain_fields(c.inputs)[0], _plain_fields(c.outputs)[0]) for c in t.trace),
        score=t.feedback.score,
        feedback=t.feedback.text,
        shown=t.shown,
        cited=t.cited,
        error=t.error,
        success=t.success,
        perfect_score=t.perfect_score,
        scored=told.scored and exact and exact_too,
    )
    return record.model_dump()


def _from_record(data: Mapping[str, Any], source: str, number: int, task: Mapping[str, str]) -> Told | None:
    """Read a record of `_to_record`; return None for anything else: one bad record must not stop the learning."""
    try:
        record = _Record.model_validate(data)
    except pydantic.ValidationError:
        return None
    trajectory = Trajectory(
        example=dspy.Example({**record.expected, **record.inputs}).with_inputs(*record.inputs),
        prediction=None if record.prediction is None else dspy.Prediction(record.prediction),
        trace=record.trace,
        feedback=Feedback(record.score, record.feedback),
        source=source,
        task=task,
        shown=record.shown,
        cited=record.cited,
        error=record.error,
        success=record.success,
        perfect_score=record.perfect_score,
    )
    return Told(trajectory, record.scored, number=number)


def _plain_fields(fields: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the fields as JSON data; and True if that holds their values exactly."""
    made = {str(name): _plain(value) for name, value in fields.items()}
    return {name: value for name, (value, _) in made.items()}, all(exact for _, exact in made.values())


def _plain(value: Any) -> tuple[Any, bool]:
    try:
        again = json.loads(json.dumps(value, allow_nan=False))
        exact = flattened(_LEVELS, again) == value
    except (TypeError, ValueError, RecursionError):
        exact = False
    return (again, True) if exact else (render_value(value), False)
