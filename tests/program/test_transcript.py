"""What a role reads of an agent: its steps once, and that it was stopped."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from dspy_ace.program.rollout import rollouts
from dspy_ace.program.transcript import render_calls, render_outcome
from dspy_ace.testing import OfflineLM

pytestmark = pytest.mark.compat
CASE = dspy.Example(question="Where is the budget kept?", answer="x").with_inputs("question")


def search(query: str) -> str:
    """Search the files."""
    return "page 1 of 9, nothing yet; there is more on the next page"


def agent(max_iters: int) -> Any:
    """The rollout of an agent that may take so many steps."""
    with dspy.context(lm=OfflineLM()):
        return rollouts(dspy.ReAct("question -> answer", [search], max_iters=max_iters), [CASE], lambda e, p: 0.0)[0]


def test_the_steps_of_an_agent_are_told_once() -> None:
    """Observations are there, and neither the summing-up nor what is returned repeats them."""
    told = render_calls(agent(4))
    assert told.count("page 1 of 9") - told.count("answer: page 1 of 9") <= 2  # seen, perhaps thought of
    assert "(as before, then)" in told
    assert "Returned:" not in told
    assert "next_tool_name: finish" in told


def test_an_agent_that_was_stopped_is_said_to_be() -> None:
    """The outcome names the step limit, and only where it was reached."""
    assert "stopped after 1 steps, before it had called finish" in render_outcome(agent(1), 1.0)
    assert "stopped" not in render_outcome(agent(4), 1.0)


def test_what_a_program_returns_of_its_own_is_still_told() -> None:
    """A value that no predictor gave stands at the end."""

    class Priced(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.say = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            return dspy.Prediction(answer=self.say(question=question).answer, price={"euro": 12.5})

    with dspy.context(lm=OfflineLM()):
        told = render_calls(rollouts(Priced(), [CASE])[0])
    assert "Returned:\nprice: {'euro': 12.5}" in told
