"""OnlineACE on the routing task, a reflector that keeps what it is given, a program that fails for some messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import dspy

from dspy_ace import OnlineACE, Playbook
from dspy_ace.playbook import Add, Delta
from dspy_ace.roles import Reflection
from tasks import Route, messages

TRAIN, TEST = messages(16, 1), messages(20, 3)


def online(metric: Any = None, **settings: Any) -> OnlineACE:
    """An object on the routing task that learns when it is asked to, two trajectories a step."""
    return OnlineACE(
        settings.pop("program", None) or dspy.ChainOfThought(Route),
        metric=metric,
        **{"learn": "manual", "batch_size": 2, "num_threads": 2, **settings},
    )


class Notebook:
    """A reflector that keeps what it is given; `broken` makes it raise."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.broken: Exception | None = None
        self.asked = 0

    def __call__(self, playbook: Playbook, trajectory: Any) -> Reflection:
        self.asked += 1
        if self.broken is not None:
            raise self.broken
        self.seen.append(trajectory)
        return Reflection([f"Lesson {trajectory.source}: keep to the ledger of {trajectory.inputs['message']}."])


def adds(playbook: Playbook, reflections: Any) -> Any:
    """A curator that adds each insight."""
    found = [Add("S", i.content, None, (r.trajectory.source,)) for r in reflections for i in r.insights]
    return Delta(tuple(found)), ()


def noted(notebook: Notebook, metric: Any = None, **settings: Any) -> OnlineACE:
    """An object whose roles are code."""
    return online(metric, **{"reflect": notebook, "curate": adds, "refine": lambda playbook: Delta(), **settings})


class Desk(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """A program whose tool fails, or takes its time, for some messages."""

    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict(Route)

    def forward(self, message: str) -> Any:
        answer = self.route(message=message)
        if "broken" in message:
            raise LookupError("the directory has no such desk")
        if "slow" in message:
            time.sleep(0.5)
        return dspy.Prediction(desk=answer.desk)


def until(done: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
