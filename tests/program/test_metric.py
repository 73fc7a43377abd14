"""Metrics: the very objects that dspy.Evaluate, MIPROv2 and GEPA take, called as their signatures ask."""

from __future__ import annotations

import functools
import logging
import math
import operator
from fractions import Fraction
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_ace.errors import MetricError, SettingsError
from dspy_ace.program import Feedback
from dspy_ace.program.metric import Scorer, feedback_of
from dspy_ace.program.rollout import rollouts
from scripted import scripted

EXAMPLE = dspy.Example(question="q", answer="Paris").with_inputs("question")
PREDICTION = dspy.Prediction(answer="Paris")
TRACE = [("p1", {"a": 1}, "o1"), ("p2", {"a": 2}, "o2")]


class Recorder:
    """Metrics of every shape, which note what they were called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def two(self, example: Any, prediction: Any) -> float:
        self.calls.append((example, prediction))
        return 0.5

    def three(self, example: Any, prediction: Any, trace: Any) -> float:
        self.calls.append((example, prediction, trace))
        return 0.5

    def three_by_default(self, example: Any, prediction: Any, trace: Any = None) -> float:
        self.calls.append((example, prediction, trace))
        return 0.5

    def five(self, gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> float:
        self.calls.append((gold, pred, trace, pred_name, pred_trace))
        return 0.5

    def five_by_default(
        self, gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> float:
        self.calls.append((gold, pred, trace, pred_name, pred_trace))
        return 0.5

    def open_ended(self, *args: Any, **kwargs: Any) -> float:
        self.calls.append(args)
        return 0.5

    def with_options(self, example: Any, prediction: Any, *, strict: bool = True) -> float:
        self.calls.append((example, prediction))
        return 0.5

    def four_by_default(self, example: Any, prediction: Any, trace: Any = None, extra: int = 3) -> float:
        self.calls.append((example, prediction, trace, extra))
        return 0.5

    def __call__(self, example: Any, prediction: Any) -> float:
        return self.two(example, prediction)


PLAIN = (EXAMPLE, PREDICTION)
FULL = (EXAMPLE, PREDICTION, TRACE, "p2", TRACE[-1:])


@pytest.mark.compat
@pytest.mark.parametrize(
    ("name", "received"),
    [
        ("two", PLAIN),
        ("three", (*PLAIN, None)),
        ("three_by_default", (*PLAIN, None)),
        ("five", FULL),
        ("five_by_default", FULL),
        ("open_ended", PLAIN),
        ("with_options", PLAIN),
        ("four_by_default", (*PLAIN, None, 3)),
        ("__call__", PLAIN),
    ],
)
def test_a_metric_is_called_as_its_signature_asks(name: str, received: tuple[Any, ...]) -> None:
    """Two, three or five arguments, defaults, *args and keyword-only options; bound methods."""
    recorder = Recorder()
    assert Scorer(getattr(recorder, name))(EXAMPLE, PREDICTION, TRACE, "p2", TRACE[-1:]) == Feedback(0.5)
    assert recorder.calls == [received]


@pytest.mark.compat
def test_callables_of_other_kinds_are_metrics() -> None:
    """Objects with `__call__`, partials of any shape, lambdas and builtins."""
    recorder = Recorder()

    def judged(judge: str, example: Any, prediction: Any, trace: Any = None) -> str:
        return f"{judge}{trace}"

    assert Scorer(recorder)(EXAMPLE, PREDICTION).score == 0.5
    assert Scorer(functools.partial(recorder.five, pred_name="x", pred_trace=None))(EXAMPLE, PREDICTION).score == 0.5
    assert recorder.calls[-1] == (*PLAIN, None, "x", None)
    assert Scorer(lambda e, p, trace=None: e.answer == p.answer)(EXAMPLE, PREDICTION).score == 1.0
    assert Scorer(operator.eq)(1, 1).score == 1.0  # type: ignore[arg-type]
    with pytest.raises(MetricError, match="judgeNone"):
        Scorer(functools.partial(judged, "judge"))(EXAMPLE, PREDICTION)


class Judge(dspy.Module):
    """A module as a metric, like dspy.evaluate.SemanticF1."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question, answer -> score: float")

    def forward(self, example: Any, pred: Any, trace: Any = None) -> float:
        return float(self.ask(question=example.question, answer=pred.answer).score)


@pytest.mark.compat
def test_a_module_is_a_metric(caplog: pytest.LogCaptureFixture) -> None:
    """Its `forward` tells the arguments; looking at it draws no warning from DSPy."""
    with caplog.at_level(logging.WARNING), dspy.context(lm=scripted("[[ ## score ## ]]\n0.25")):
        assert Scorer(Judge())(EXAMPLE, PREDICTION).score == 0.25
    assert "forward" not in caplog.text


@pytest.mark.compat
def test_the_judges_of_dspy_are_metrics() -> None:
    """SemanticF1, which ships with DSPy, scores."""
    example = dspy.Example(question="q", response="Paris").with_inputs("question")
    said = "[[ ## reasoning ## ]]\nr\n[[ ## precision ## ]]\n1.0\n[[ ## recall ## ]]\n0.5"
    with dspy.context(lm=scripted(said)):
        score = Scorer(dspy.evaluate.SemanticF1())(example, dspy.Prediction(response="Paris")).score
    assert score == pytest.approx(2 / 3)


def refuses(metric: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        Scorer(metric)
    return str(caught.value)


@pytest.mark.compat
def test_what_cannot_be_a_metric_is_refused_uncalled() -> None:
    """Wrong arity, async functions, classes and values are refused with what to do; nothing is called."""
    called = []

    async def waits(example: Any, prediction: Any) -> float:
        called.append(1)
        return 1.0

    class AwaitedObject:
        async def __call__(self, example: Any, prediction: Any) -> float:
            called.append(1)
            return 1.0

    class AwaitedModule(dspy.Module):
        async def aforward(self, example: Any, prediction: Any) -> float:
            called.append(1)
            return 1.0

    for metric in (waits, functools.partial(waits), AwaitedObject(), AwaitedModule()):
        assert "async function; wrap it" in refuses(metric)
    assert "this one takes (a)" in refuses(lambda a: called.append(1))
    assert "this one takes (a, b, c, d)" in refuses(lambda a, b, c, d: called.append(1))
    assert "this one takes (a, b, c, d, e, f)" in refuses(lambda a, b, c, d, e, f: called.append(1))
    assert "strict" in refuses(lambda a, b, *, strict: called.append(1))
    assert "got the class Recorder; give an instance" in refuses(Recorder)
    assert "got float" in refuses(0.5)
    assert called == []


@pytest.mark.compat
@pytest.mark.parametrize(
    ("result", "feedback"),
    [
        (True, Feedback(1.0)),
        (False, Feedback(0.0)),
        (3, Feedback(3.0)),
        (0.5, Feedback(0.5)),
        (-2.5, Feedback(-2.5)),
        (np.float32(0.5), Feedback(0.5)),
        (np.int64(2), Feedback(2.0)),
        (np.bool_(True), Feedback(1.0)),
        (np.array(0.5), Feedback(0.5)),
        (dspy.Prediction(score=0.5), Feedback(0.5)),
        (dspy.Prediction(score=np.float64(0.5), feedback="why"), Feedback(0.5, "why")),
        (dspy.Prediction(score=True, feedback=None), Feedback(1.0)),
        ({"score": 1, "feedback": "good"}, Feedback(1.0, "good")),
        (dspy.Example(score=0.0, feedback="bad"), Feedback(0.0, "bad")),
        (Feedback(0.75, "as it is"), Feedback(0.75, "as it is")),
    ],
)
def test_what_a_metric_may_return(result: Any, feedback: Feedback) -> None:
    """Bools, numbers, NumPy's scalars, and whatever carries a score, with or without words."""
    made = feedback_of(result)
    assert made == feedback
    assert type(made.score) is float


@pytest.mark.compat
@pytest.mark.parametrize(
    "result",
    [
        None,
        "1.0",
        "",
        math.nan,
        math.inf,
        np.nan,
        {},
        {"score": None},
        {"feedback": "x"},
        dspy.Prediction(answer=1),
        [1],
    ],
)
def test_what_is_no_score(result: Any) -> None:
    """Anything else is an error that shows it and says what to return; no silent zero."""
    with pytest.raises(MetricError, match=r"(?s)Expected the metric to return .*; got .*Let it return a number"):
        feedback_of(result)


@pytest.mark.compat
def test_a_function_that_returns_something_to_wait_for_has_no_score() -> None:
    """A lambda around an async metric is told apart, and leaves no coroutine behind that nobody awaited."""

    async def waits() -> float:
        return 1.0

    with pytest.raises(MetricError, match="coroutine"):
        Scorer(lambda e, p: waits())(EXAMPLE, PREDICTION)


@given(st.one_of(st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False)))
def test_any_finite_number_is_its_own_score(number: Any) -> None:
    """The score is the number, alone or carried by a Prediction."""
    assert feedback_of(number).score == feedback_of(dspy.Prediction(score=number)).score == float(number)


@pytest.mark.compat
def test_other_numbers_are_scores() -> None:
    """What Python counts among the real numbers is a score."""
    assert feedback_of(Fraction(1, 4)).score == 0.25


@pytest.mark.compat
def test_without_a_metric_a_run_to_the_end_is_a_success() -> None:
    """Label-free: no label is read, every rollout that ends scores 1.0."""
    assert Scorer(None)(dspy.Example(), None).score == 1.0


def shared_metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    """One metric for every optimizer: feedback where it is asked for a predictor, a number elsewhere."""
    score = float(gold.answer == pred.answer)
    return dspy.Prediction(score=score, feedback=f"It is {gold.answer}.") if pred_name else score


@pytest.mark.compat
def test_the_same_metric_serves_evaluate_gepa_and_ace() -> None:
    """One object, given to dspy.Evaluate, to GEPA and to a rollout, is scored alike by all."""
    examples = [
        dspy.Example(question=str(n), answer="Paris" if n else "Rome").with_inputs("question") for n in range(4)
    ]
    lm = scripted(lambda messages: "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]")
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=lm):
        evaluated = dspy.Evaluate(devset=examples, metric=shared_metric, num_threads=1, display_progress=False)(program)
        ours = rollouts(program, examples, shared_metric)
        dspy.GEPA(metric=shared_metric, max_metric_calls=8, reflection_lm=scripted("```\nSay Paris.\n```")).compile(
            program, trainset=examples, valset=examples
        )
    assert evaluated.score == 75.0
    assert [t.feedback.score for t in ours] == [0.0, 1.0, 1.0, 1.0]
    assert ours[0].feedback.text == "It is Rome."
