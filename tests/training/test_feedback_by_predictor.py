"""A metric of five arguments speaks to single predictors: its words reach the Reflector beside their calls."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from dspy_ace import ACE
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from tasks import Route, messages

pytestmark = pytest.mark.compat


class Pair(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Two predictors that run one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.read = dspy.Predict("message -> topic")
        self.route = dspy.Predict(Route)

    def forward(self, message: str) -> Any:
        self.read(message=message)
        return self.route(message=message)


class Gepa:
    """Scores the whole, and has words for each predictor; notes what it was asked about."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        self.asked.append((gold.message, pred_name))
        score = float(gold.desk == "Harbor")  # known beforehand, whatever was answered
        return dspy.Prediction(score=score, feedback=f"To {pred_name}: it is {gold.desk}." if pred_name else "")


def test_predictors_are_asked_about_once_where_a_trajectory_is_reflected_on() -> None:
    """Failures are; successes that nobody reflects on, and the valset, are scored and no more."""
    metric, seen = Gepa(), []

    def reflect(playbook: Any, trajectory: Any) -> Reflection:
        seen.append(trajectory)
        return Reflection()

    train, val = messages(8, 1), messages(4, 2)
    with dspy.context(lm=OfflineLM()):
        ACE(metric, reflect=reflect, reflect_on="failures", num_threads=4).compile(Pair(), train, valset=val)
    failed = [example for example in train if example.desk != "Harbor"]
    assert {trajectory.inputs["message"] for trajectory in seen} == {example.message for example in failed}
    for trajectory in seen:
        desk = trajectory.example.desk
        assert trajectory.predictor_feedback == {name: f"To {name}: it is {desk}." for name in ("read", "route")}
    named = [asked for asked in metric.asked if asked[1] is not None]
    assert len(named) == 2 * len(seen)
    assert {message for message, _ in named}.isdisjoint(example.message for example in train if example not in failed)


def test_the_words_stand_beside_the_call_in_the_reflectors_prompt() -> None:
    """The default Reflector reads them where they belong."""
    lm = OfflineLM()
    with dspy.context(lm=lm):
        ACE(Gepa(), num_threads=1, max_reflection_rounds=0).compile(Pair(), messages(8, 1))
    prompts = [record.request for record in lm.log if "Feedback on read: To read: it is" in record.request]
    assert prompts
    for prompt in prompts:
        assert prompt.index("Call 1: read") < prompt.index("Feedback on read") < prompt.index("Call 2: route")
        assert prompt.index("Call 2: route") < prompt.index("Feedback on route")
