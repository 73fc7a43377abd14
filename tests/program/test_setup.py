"""An environment for each rollout: opened in its thread, there for tools and metric, closed whatever happened."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE
from dspy_ace.errors import JournalError, RunError, SettingsError
from dspy_ace.testing import OfflineLM
from tasks import Route, messages

pytestmark = pytest.mark.compat
TRAIN, VAL = messages(16, 1), messages(6, 2)
ROOM: ContextVar[dict[str, Any]] = ContextVar("room")


class Rooms:
    """Environments of their own: what each holds, and whether it was closed, in which thread."""

    def __init__(self, broken: str = "") -> None:
        self.opened: list[dict[str, Any]] = []
        self.broken = broken

    @contextmanager
    def __call__(self, example: dspy.Example) -> Iterator[dict[str, Any]]:
        if self.broken == "always" or (self.broken == "now and then" and len(self.opened) % 5 == 4):
            self.opened.append({"closed": True, "asked": []})
            raise ConnectionError("the room is locked")
        room = {"asked": [], "message": example.message, "closed": False, "thread": threading.get_ident()}
        self.opened.append(room)
        token = ROOM.set(room)
        try:
            yield room
        finally:
            ROOM.reset(token)
            room["closed"] = room["thread"] == threading.get_ident()
            if self.broken == "closing":
                raise OSError("the door is stuck")


class Clerk(dspy.Module):  # type: ignore[misc]
    """A program whose tool works in the room it is in, and trips over some messages."""

    def __init__(self, trips: bool = False) -> None:
        super().__init__()
        self.route = dspy.ChainOfThought(Route)
        self.trips = trips

    def forward(self, message: str) -> Any:
        ROOM.get()["asked"].append(message)
        if self.trips and len(message) % 3 == 0:
            raise ValueError("the clerk tripped")
        return self.route(message=message)


def seen(example: Any, prediction: Any, trace: Any = None) -> Any:
    """The metric looks into the room: exactly this message was asked in it."""
    assert ROOM.get()["asked"] == [example.message]
    return float(prediction.desk == example.desk)


def run(rooms: Any, student: Any = None, **settings: Any) -> Any:
    """A short compile with an environment for each rollout."""
    settings = {"batch_size": 8, "num_threads": 4, "metric": seen, **settings}
    with dspy.context(lm=OfflineLM()):
        return ACE(setup=rooms, **settings).compile(student or Clerk(), TRAIN, valset=VAL)


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_every_rollout_has_a_room_of_its_own(timeout: float | None) -> None:
    """Batches, retries and validation: as many rooms as rollouts, each used once and closed in its thread."""
    rooms = Rooms()
    results = run(rooms, rollout_timeout=timeout).detailed_results
    assert len(rooms.opened) == results.rollouts
    assert all(room["closed"] and room["asked"] == [room["message"]] for room in rooms.opened)
    assert results.verdict.word in ("better", "not shown to be better")


def test_a_program_that_raises_leaves_no_room_open() -> None:
    """The failure is the program's, and its room is closed like any other."""
    rooms = Rooms()
    results = run(rooms, Clerk(trips=True)).detailed_results
    kinds = {failure.kind for record in results.records for failure in record.failures}
    assert kinds == {"program"}
    assert all(room["closed"] for room in rooms.opened)


def test_a_room_that_does_not_open_costs_its_example_alone() -> None:
    """It is recorded as a failure of the environment, and nobody reflects on it."""
    results = run(Rooms("now and then")).detailed_results
    failures = [failure for record in results.records for failure in record.failures]
    assert {failure.kind for failure in failures} == {"setup"}
    assert all("the room is locked" in failure.message for failure in failures)
    reflected = {name for record in results.records for item in record.reflections for name in item["examples"]}
    assert reflected.isdisjoint(
        failure.rollout.example for failure in failures if failure.rollout.of == "train" and not failure.rollout.retry
    )
    assert reflected


def test_rooms_that_never_open_end_the_run_on_the_first_ones() -> None:
    """No LM call is made, and the error names the cause."""
    lm = OfflineLM()
    with dspy.context(lm=lm), pytest.raises(RunError, match=r"setup= failed on 3 examples.*the room is locked"):
        ACE(seen, setup=Rooms("always")).compile(Clerk(), TRAIN)
    assert lm.calls == 0


def test_a_door_that_sticks_is_said_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A room that cannot be closed is warned of; its rollout counts."""
    with caplog.at_level("WARNING", "dspy.ace"):
        results = run(Rooms("closing")).detailed_results
    assert not any(record.failures for record in results.records)
    assert any("could not close" in message for message in caplog.messages)


def test_another_setup_is_another_run(tmp_path: Path) -> None:
    """A folder is continued with the same environment only; what is no callable is refused at once."""

    @contextmanager
    def other(example: dspy.Example) -> Iterator[None]:
        with Rooms()(example):
            yield

    run(Rooms(), log_dir=tmp_path)
    with pytest.raises(JournalError, match="another"):
        run(other, log_dir=tmp_path)
    with pytest.raises(SettingsError, match="setup must be a callable"):
        run("a room")
