"""The plan of the spending, and what is made of it."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from dspy_ace.testing import OfflineLM
from dspy_ace.training import Plan, Settings
from runs import compiled
from tasks import Route, desk_metric, messages

pytestmark = pytest.mark.compat
DIFFERENT = list({example.message: example for example in messages(400, 1)}.values())
TRAIN, VAL = DIFFERENT[:12], DIFFERENT[24:36]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"validate": "along", "epochs": 2, "valset": VAL[:5]},
        {"max_reflection_rounds": 0, "valset": None, "batch_size": 5},
        {"max_reflection_rounds": 3, "epochs": 2},
        {"max_metric_calls": 20},
        {"metric": None},
    ],
)
def test_no_run_spends_more_than_was_planned(settings: dict[str, Any], caplog: Any) -> None:
    """The plan stands in the log before the first step, and at the end beside what was used."""
    valset = settings.get("valset", VAL)
    noisy = OfflineLM(slips=0.3, wrong_lessons=0.5, seed=3)
    results = compiled(noisy, trainset=TRAIN, **{**settings, "valset": valset}).detailed_results
    lines = [record.getMessage() for record in caplog.records if "at most" in record.getMessage()]
    assert lines[0].startswith("ACE: at most ")
    assert f"; used {results.rollouts} rollouts, " in lines[-1]
    assert lines[-1].startswith(lines[0].replace("ACE: at", "ACE: planned at"))
    given = {"metric": desk_metric, "batch_size": 4, **settings}
    given["validate_when"] = given.pop("validate", "end")
    given.pop("valset", None)
    with dspy.context(lm=noisy):
        plan = Plan.of(Settings.of(**given), dspy.ChainOfThought(Route), TRAIN, valset or [])
    assert results.rollouts <= plan.rollouts
    assert sum(len(record.reflections) for record in results.records) <= plan.reflections
    assert sum(record.curation is not None for record in results.records) <= plan.curations


def test_dollars_are_planned_where_all_prices_are_known() -> None:
    """More rollouts cost more; a limit on rollouts bounds them; one model without a price, and nothing is said."""
    student = dspy.ChainOfThought(Route)

    def dollars(model: str = "openai/gpt-4o-mini", **settings: Any) -> float | None:
        with dspy.context(lm=dspy.LM(model, api_key="none")):
            return Plan.of(Settings.of(metric=desk_metric, **settings), student, TRAIN, VAL).dollars

    usual, short, long = dollars(), dollars(max_metric_calls=20), dollars(epochs=3)
    assert usual is not None
    assert short is not None
    assert long is not None
    assert 0 < short < usual < long < 1
    assert dollars("openai/no-such-model") is None
    assert dollars(reflection_lm=dspy.LM("openai/no-such-model", api_key="none")) is None
