"""What a role reads of an agent: its steps once, and that it was stopped."""

from __future__ import annotations

import base64
import time
import tracemalloc
from typing import Any

import dspy
import numpy as np
import pydantic
import pytest

from dspy_ace import Executed
from dspy_ace.program.rollout import rollouts
from dspy_ace.program.trajectory import Call, Feedback, Trajectory
from dspy_ace.program.transcript import MOST, render_calls, render_outcome, render_value
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
    assert "stopped after 1 steps, before it had called finish" in render_outcome(agent(1))
    assert "stopped" not in render_outcome(agent(4))


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


DATA = base64.b64encode(bytes(range(256)) * 200).decode()  # 51 kB
IMAGE = dspy.Image(url=f"data:image/png;base64,{DATA}")
FILE = dspy.File(file_data=f"data:application/pdf;base64,{DATA}", filename="a.pdf")


class Page(pydantic.BaseModel):
    number: int
    scan: dspy.Image


class Table:
    """Compares cell by cell, as arrays and tables do: it has no truth value."""

    def __eq__(self, other: object) -> Any:
        return np.zeros(3)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return "a  b\n1  2"


class Large:
    """A table of rows and columns, as those of pandas and polars are."""

    shape = (5_000_000, 2)
    columns = ("city", "price")


class Handle:
    def __str__(self) -> str:
        return f"<Handle of a file at {hex(id(self))}>"


class Mute:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("two\nlines", "two\nlines"),
        (["a", 1, {"x": None}], "['a', 1, {'x': None}]"),
        (("a",), "('a',)"),
        ({"b", "a"}, "{'a', 'b'}"),
        (set(), "set()"),
        (IMAGE, "(image)"),
        ({"page": [IMAGE]}, "{'page': [(image)]}"),
        ([Page(number=1, scan=IMAGE)], "[Page(number=1, scan=(image))]"),
        (dspy.Audio(data=DATA, audio_format="wav"), "(audio)"),
        (FILE, "(file, a.pdf, application/pdf, 51,200 bytes)"),
        ([dspy.File(file_id="f-1")], "[(file, f-1)]"),
        (b"\x89PNG" * 500, "(2,000 bytes)"),
        (np.array([1.5, 2.0]), "[1.5 2. ]"),
        (np.zeros((1000, 20)), "(ndarray, 1,000 x 20, float64)"),
        ({"all": [Large()]}, "{'all': [(Large, 5,000,000 x 2, columns city, price)]}"),
        (Handle(), "<Handle of a file>"),
        (Table(), "a  b\n1  2"),
        (Mute(), "(Mute, which cannot be shown: RuntimeError)"),
        (dspy.Reasoning(content="because"), "because"),
        (None, "None"),
    ],
)
def test_a_value_is_shown_by_what_it_says(value: Any, text: str) -> None:
    """Plain values as Python writes them; files, images and bytes by name, kind and size, wherever they stand."""
    assert render_value(value) == text


class Returns(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Returns a value that its predictor did not give."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.say = dspy.Predict("question -> answer")
        self.value = value

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.say(question=question).answer, value=self.value)


@pytest.mark.parametrize("value", [np.zeros((2, 2)), Table(), [np.zeros(3)], {"a": Table()}])
def test_values_that_have_no_truth_kill_no_rollout(value: Any) -> None:
    """Arrays and tables are returned, scored, judged by a ready-made metric, and told."""
    with dspy.context(lm=OfflineLM()):
        trajectory = rollouts(Returns(value), [CASE], Executed())[0]
    assert trajectory.success
    assert "Returned:\nvalue: " in render_calls(trajectory)


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        "word " * 4_000_000,
        ["word " * 4_000_000],
        {"log": ["word " * 100_000] * 40},
        list(range(3_000_000)),
        [[0] * 1000] * 3000,
        nested(100_000),
        ValueError("word " * 4_000_000),
    ],
    ids=["text", "list", "log", "numbers", "rows", "nested", "object"],
)
def test_a_large_output_is_bounded_before_it_is_written(value: Any) -> None:
    """20 MB of a tool cost a moment and little memory, and what is left out is said."""
    trajectory = Trajectory(CASE, dspy.Prediction(value=value), (Call("a", {"x": value}, {"y": value}),), Feedback(0.0))
    started = time.perf_counter()
    told = render_calls(trajectory)
    seconds = time.perf_counter() - started
    tracemalloc.start()
    try:
        render_value(value)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(told) <= MOST + 100
    assert "…" in told
    assert seconds < 3
    assert peak < 60_000_000
