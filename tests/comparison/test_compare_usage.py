"""What a comparison says was used: every call, retry and dollar of every method."""

from __future__ import annotations

import importlib.util
from typing import Any

import dspy
import pytest

from compare_helpers import TEST, VAL, Same, billed, compared, metric, spent
from comparisons.proposals import answer_proposal
from dspy_ace import ACE
from dspy_ace.lm import calls, price_of
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import serve
from runs import client, faulty

pytestmark = pytest.mark.filterwarnings("default", "ignore::ResourceWarning")


@pytest.mark.slow
@pytest.mark.parametrize("cache", [False, True])
def test_every_call_of_every_optimizer_is_counted(cache: bool) -> None:
    """ACE, GEPA and MIPROv2 in threads, two providers: calls and tokens are the servers' own logs.

    DSPy's cache answers nothing, whatever the LMs say of themselves.
    """
    for needed in ("gepa", "optuna"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    written: Any = {"answerers": [answer_proposal]}
    with serve(prefix_cache=True, cache_minimum=128, **written) as server, serve(**written) as coach:
        lm, strong = client(server, cache=cache), client(coach, "openai/coach", cache=cache)
        with dspy.context(lm=lm):
            optimizers = {
                "ACE": ACE(metric, batch_size=4, validate="along", reflection_lm=strong, num_threads=8),
                "GEPA": dspy.GEPA(metric, max_metric_calls=30, reflection_lm=strong, num_threads=8),
                "MIPROv2": dspy.MIPROv2(metric, prompt_model=strong, auto="light", num_threads=8),
            }
            result = compared(optimizers)
        assert [cell["reason"] for cell in result.cells] == [None] * 4
        assert spent(result) == billed(server, coach)
        assert len(server.log) == sum(
            used["calls"] for cell in result.cells for phase in cell["usage"].values()
            for role, used in phase.items() if role == "task"
        )  # fmt: skip
    for cell in result.cells:
        compiled, tested = cell["usage"]["compile"], cell["usage"]["test"]
        assert all(used["cached_calls"] == 0 for used in [*compiled.values(), *tested.values()])
        assert tested["task"]["calls"] == cell["metric_calls"]["test"] == len(TEST)
        assert list(tested) == ["task"]
        if cell["method"] == "student":
            assert compiled == {}
            continue
        assert compiled["task"]["calls"] == cell["metric_calls"]["compile"] > len(VAL)
        assert compiled["optimizer"]["calls"] > 0
        calls, scores = ([point[column] for point in cell["curve"]] for column in (0, 3))
        assert len(calls) > (cell["method"] != "GEPA")  # with so few rollouts no candidate may come to the valset
        assert calls == sorted(calls)
        assert scores == sorted(scores)
        assert calls[-1] <= cell["metric_calls"]["compile"]
        assert len(cell["prompt_steps"]) > 1


@pytest.mark.compat
def test_a_judge_in_the_metric_has_a_role_of_its_own() -> None:
    """LM calls of the metric are booked as `metric`, in compile and test, also inside another optimizer."""
    task, judge = OfflineLM(), OfflineLM("offline/judge")

    def judged(example: Any, prediction: Any) -> Any:
        with dspy.context(lm=judge):
            dspy.Predict("desk -> verdict")(desk=prediction.desk)
        return float(example.desk == prediction.desk)

    with dspy.context(lm=task):
        result = compared({"same": Same(judged)}, metric=judged)
    student, same = result.cells
    assert {role: u["calls"] for role, u in student["usage"]["test"].items()} == {"metric": 6, "task": 6}
    assert {role: u["calls"] for role, u in same["usage"]["compile"].items()} == {"metric": 8, "task": 8}
    assert judge.calls == 20
    assert task.calls == 20


def test_retries_are_calls_for_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a provider that refuses one call in five, each attempt is counted, whoever makes it."""
    monkeypatch.setattr(calls, "LONGEST_WAIT", 0.0)
    with serve() as coach, faulty({"rate_limit": 0.2}, seed=1) as server:
        strong = client(coach, "openai/coach")
        with dspy.context(lm=client(server)):
            result = compared({"ACE": ACE(metric, epochs=1, reflection_lm=strong), "same": Same(metric)})
        assert spent(result)["calls"] == len(server.log) + len(coach.log)
        failed = [
            u["failed_calls"] for cell in result.cells for phase in cell["usage"].values() for u in phase.values()
        ]
        assert sum(failed) == sum(record.fault is not None for record in server.log) > 0


def test_dollars_are_those_of_the_price_list() -> None:
    """A model with a price: the compile's dollars, the test's, and those on the curve."""
    price = price_of("openai/gpt-4o-mini")
    assert price is not None
    with serve(prefix_cache=True, cache_minimum=128) as server, dspy.context(lm=client(server, "openai/gpt-4o-mini")):
        result = compared({"ACE": ACE(metric, batch_size=4, validate="along")})
    ace = result.cells[1]
    for phase in ("compile", "test"):
        for used in ace["usage"][phase].values():
            due = price.of(used["prompt_tokens"], used["cached_tokens"], used["completion_tokens"])
            assert used["dollars"] == pytest.approx(due)
            assert due > 0.0
    total = sum(used["dollars"] for used in ace["usage"]["compile"].values())
    assert result.rows[1].dollars == pytest.approx(total)
    assert 0.0 < ace["curve"][0][1] <= ace["curve"][-1][1] <= total * (1 + 1e-9)
    assert f"{total:.4f}" in result.to_markdown()
