"""Mistakes and failures in a comparison: found early, or said with their reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.teleprompt import LabeledFewShot, Teleprompter

from compare_helpers import TEST, TRAIN, Same, compared
from dspy_ace.errors import SettingsError
from dspy_ace.testing import OfflineLM
from tasks import Route

pytestmark = pytest.mark.filterwarnings("default", "ignore::ResourceWarning")


@pytest.mark.compat
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"testset": []}, "testset is empty"),
        ({"trainset": []}, "trainset is empty"),
        ({"optimizers": {}}, "one or more"),
        ({"optimizers": [Same()]}, "mapping of names"),
        ({"optimizers": {"x": "GEPA"}}, "must be a Teleprompter"),
        ({"optimizers": {"x": Same}}, "give an instance"),
        ({"optimizers": {"x": lambda seed: None}}, "got NoneType"),
        ({"optimizers": {"x": lambda seed: 1 / 0}}, "ZeroDivisionError"),
        ({"optimizers": {"student": Same()}}, "other than 'student'"),
        ({"optimizers": {" ": Same()}}, "needs a name"),
        ({"seeds": ()}, "one or more"),
        ({"seeds": (1, 1)}, "must differ"),
        ({"seeds": (0.5,)}, r"seeds\[0\]"),
        ({"seeds": 3}, "seeds must be"),
        ({"metric": None}, "metric must be a callable"),
        ({"metric": lambda example: 1.0}, "metric must take"),
        ({"num_threads": 0}, "num_threads"),
        ({"program": "question -> answer"}, "student must be a dspy.Module"),
        ({"testset": [dspy.Example(message="x")]}, "with_inputs"),
    ],
)
def test_mistakes_are_found_before_the_first_call(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Each is an error that says what was expected; no LM is asked and nothing is written."""
    lm = OfflineLM()
    with dspy.context(lm=lm), pytest.raises(SettingsError, match=message):
        compared(changes.pop("optimizers", None), **{"out": tmp_path / "run", **changes})
    assert lm.calls == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.compat
def test_a_missing_lm_is_found_before_the_first_cell() -> None:
    """Neither pinned nor configured."""
    with dspy.context(lm=None), pytest.raises(SettingsError, match="No LM for predictor"):
        compared()


@pytest.mark.compat
def test_an_optimizer_that_needs_more_than_there_is(offline: OfflineLM) -> None:
    """Arguments of `compile` that nobody can fill in are a mistake; a valset it needs has to be given."""

    class Demanding(Teleprompter):  # type: ignore[misc]  # dspy is untyped
        def compile(self, student: Any, *, trainset: Any, valset: Any, phase: str) -> Any:
            return student

    with pytest.raises(SettingsError, match="also needs phase"):
        compared({"x": Demanding()})
    with pytest.raises(SettingsError, match="also needs phase, valset"):
        compared({"x": Demanding()}, valset=None)
    assert offline.calls == 0


@pytest.mark.compat
@pytest.mark.parametrize("score", [float("nan"), None, "good"])
def test_a_metric_without_a_score_is_a_reason(offline: OfflineLM, score: Any) -> None:
    """NaN, nothing or words: the rows say so, and are no scores of 0."""
    result = compared(metric=lambda example, prediction: score)
    assert [row.score for row in result.rows] == [None, None]
    assert all("the metric gives no score" in row.reasons[0] for row in result.rows)
    assert "failed" in str(result)


@pytest.mark.compat
def test_a_constant_metric_is_remarked_on(offline: OfflineLM) -> None:
    """All the same score: the table asks about the metric, and no interval is a point."""
    result = compared(metric=lambda example, prediction: 1.0)
    assert "does the metric tell good answers from bad ones" in str(result)
    same = result.rows[1]
    assert same.vs_student == (0.0, -0.5, 0.5)
    assert (same.score, same.low, same.high) == (1.0, 0.5, 1.0)


@pytest.mark.compat
def test_test_examples_in_the_trainset_are_counted(offline: OfflineLM, caplog: pytest.LogCaptureFixture) -> None:
    """A warning and a note say how many."""
    train = [*TRAIN, *TEST[:2]]
    twice = sum(any(dict(e.items()) == dict(t.items()) for t in train) for e in TEST)
    with caplog.at_level("WARNING", logger="dspy.ace"):
        result = compared(trainset=train)
    note = f"{twice} of {len(TEST)} test examples also stand in the trainset"
    assert twice >= 2
    assert note in str(result)
    assert note in caplog.text


@pytest.mark.compat
def test_a_dead_provider_is_found_on_few_calls() -> None:
    """The reason names the LM's own words; the test set is not run through."""
    lm = OfflineLM(faults={"auth": 1.0}, num_retries=0)
    with dspy.context(lm=lm):
        result = compared({"few": LabeledFewShot(k=1)})
    assert all("the LM failed on the first 3 test examples" in row.reasons[0] for row in result.rows)
    assert lm.calls == 6
    used = result.cells[0]["usage"]["test"]["task"]
    assert (used["calls"], used["failed_calls"]) == (3, 3)


@pytest.mark.compat
def test_rollouts_that_fail_are_told(offline: OfflineLM) -> None:
    """A program that raises on some test examples scores 0 there, and the table says on how many."""

    class Fragile(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.Predict(Route)

        def forward(self, message: str) -> Any:
            if message == TEST[0].message:
                raise RuntimeError("not this one")
            return self.route(message=message)

    result = compared({"few": LabeledFewShot(k=1)}, program=Fragile(), metric=lambda example, prediction: 1.0)
    failing = sum(example.message == TEST[0].message for example in TEST)
    assert [cell["failures"] for cell in result.cells] == [{"program": failing}] * 2
    assert result.rows[0].score == pytest.approx(1 - failing / len(TEST))
    assert f"few: {failing} rollouts on the test set failed and count as 0" in str(result)


@pytest.mark.compat
def test_a_program_that_never_works_is_a_reason(offline: OfflineLM) -> None:
    """A score of 0 for every example of a program that only raises would be no measurement."""

    class Raising(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.Predict(Route)

        def forward(self, message: str) -> Any:
            raise RuntimeError("out of order")

    result = compared({"few": LabeledFewShot(k=1)}, program=Raising())
    for row in result.rows:
        assert row.reasons[0].startswith("test: RunError: every rollout on the test set failed; the first: Runtime")
        assert row.reasons[0].endswith("out of order")
