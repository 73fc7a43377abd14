"""One learning step from trajectories that are given, without a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy

from dspy_ace import Playbook
from dspy_ace.playbook import Delta
from dspy_ace.program import ThreadPool, Trajectory
from dspy_ace.training import Attempt, Engine, LearningSettings, State, Step, learn_from, reflect_on_batch


def step_of(
    playbook: Playbook,
    batch: Sequence[Trajectory],
    reflect: Any,
    curate: Any,
    *,
    student: dspy.Module | None = None,
    num_threads: int = 1,
    **settings: Any,
) -> Step:
    """The step that a batch makes, with retries if there are rounds."""
    given = {"refine": lambda _: Delta(), "max_reflection_rounds": 0, **settings}
    student = student or dspy.Predict("question -> answer")
    engine = Engine(LearningSettings.of(reflect=reflect, curate=curate, **given), student)
    state, rounds = State.of(playbook), engine.settings.max_reflection_rounds
    attempts = reflect_on_batch(engine, state, [(Attempt(t), rounds) for t in batch], ThreadPool(num_threads))
    return learn_from(engine, state, attempts)
