"""The comparisons folder: every method compiles, the command line holds what it says, and a killed run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from compare_helpers import killed_after
from comparisons import ratios
from comparisons.__main__ import main
from comparisons.estimate import price
from comparisons.methods import METHODS, Setting, bootstrap, gepa, mipro, simba
from comparisons.methods.icl import fitting
from comparisons.proposals import answer_proposal
from comparisons.published import published
from comparisons.tasks import load_task
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import serve
from tasks import RULES, Route, desk_metric, messages

pytestmark = pytest.mark.filterwarnings("default")  # other optimizers warn of what they do
TINY = ["--train", "24", "--val", "8", "--test", "6", "--num-threads", "4", "--budget", "90"]
OVER = {"gepa": 3 + 8, "bootstrap": 24, "mipro": 24, "gepa-ace": 3 + 8, "mipro-ace": 24}  # as their files say


class Rollouts(BaseCallback):
    """Counts runs of a program by the class of its module."""

    def __init__(self) -> None:
        self.started: list[None] = []

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if type(instance) is dspy.ChainOfThought:
            self.started.append(None)


def five(example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    result = desk_metric(example, prediction)
    return bool(result.score) if trace is not None and pred_name is None else result


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]


def finance_folder(folder: Path, rows: int) -> Path:
    """Made-up FiNER rows: four questions, four tags."""
    words = {"shares": "StockIssued", "loan": "LineOfCredit", "lease": "LeaseExpense", "tax": "IncomeTax"}

    def row(first: int) -> dict[str, str]:
        order = [list(words)[(first + n) % 4] for n in range(4)]
        asked = "\n".join(f'{n}. What is best tag for "{n}" in "The {w} of {n}"?' for n, w in enumerate(order, 1))
        return {"context": f"Tags: {','.join(words.values())}\n{asked}", "target": ",".join(words[w] for w in order)}

    for name, first in (("train", 0), ("val", 1000)):
        made = [
            row(first + number) | {"context": f"Report {first + number}. " + row(number)["context"]}
            for number in range(rows)
        ]
        (folder / "finer").mkdir(parents=True, exist_ok=True)
        (folder / "finer" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    return folder


# --- methods ---


@pytest.mark.parametrize("name", METHODS)
def test_every_method_compiles_within_its_budget(name: str, offline: OfflineLM) -> None:
    """Each method gives a program that answers, and makes no more rollouts than its file says it may."""
    train, val, test = messages(24, 0), messages(8, 1), messages(6, 2)
    test = list({example.message: example for example in test}.values())
    setting, counter = Setting(five, len(train), len(val), test, budget=90, num_threads=4), Rollouts()
    with dspy.context(callbacks=[counter]):
        program = METHODS[name].make(setting, 0).compile(dspy.ChainOfThought(Route), trainset=train, valset=val)
    assert len(counter.started) <= 90 + OVER.get(name, 0)
    assert {program(**example.inputs()).desk for example in test} <= set(RULES)


@pytest.mark.parametrize("name", ["icl", "ace", "mipro", "gepa-ace"])
def test_a_method_learns(name: str, offline: OfflineLM) -> None:
    """The compiled program answers more of unseen messages right than the student."""
    train, val, held_out = messages(40, 0), messages(10, 1), messages(20, 2)
    setting = Setting(five, len(train), len(val), budget=150, num_threads=4)
    program = METHODS[name].make(setting, 0).compile(dspy.ChainOfThought(Route), trainset=train, valset=val)
    right = [sum(p(**e.inputs()).desk == e.desk for e in held_out) for p in (dspy.ChainOfThought(Route), program)]
    assert right[1] > right[0]


def test_ace_online_counts_the_answer_given_before_learning(offline: OfflineLM) -> None:
    """Each example of the stream is answered once before it is learned from; later ones profit."""
    stream = list({example.message: example for example in messages(60, 4)}.values())
    setting = Setting(five, 0, 0, stream, num_threads=4)
    program = METHODS["ace-online"].make(setting, 0).compile(dspy.ChainOfThought(Route), trainset=[], valset=[])
    assert offline.calls == 0
    assert program.online is True
    answered = [float(five(example, program(**example.inputs())).score) for example in stream]
    recorded = [score for record in program.detailed_results.records for score in record.scores]
    assert sorted(answered) == sorted(recorded)
    with pytest.raises(KeyError):
        program(message="This was never announced.")


def test_budgets_are_worked_out_to_fit() -> None:
    """The plans for MIPROv2, SIMBA and random search never add up to more than the budget, and use most of it."""
    for budget in (200, 500, 1000):
        for val in (20, 40, 100):
            chosen = mipro.plan(budget, val) if budget >= mipro.calls_of(val, 3, 1, val > 50) else None
            assert chosen is None or budget // 2 <= chosen.calls <= budget
            if budget >= bootstrap.calls_of(val, 0):
                assert bootstrap.calls_of(val, bootstrap.candidates_for(budget, val)) <= budget
    for budget, train in ((200, 40), (500, 100), (4000, 100)):
        assert budget // 2 <= simba.plan(budget, train).calls(train) <= budget


@pytest.mark.parametrize("plan", [mipro.plan, bootstrap.candidates_for, simba.plan])
def test_a_budget_that_is_too_small_is_refused_with_the_least_that_is_needed(plan: Any) -> None:
    """An optimizer that cannot run within the budget says how much it needs."""
    with pytest.raises(ValueError, match=r"needs a budget of \d+ metric calls"):
        plan(10, 40)


def test_the_light_budget_is_gepas_own() -> None:
    """The estimate of GEPA's light budget is what GEPA itself works out."""
    optimizer = dspy.GEPA(five, auto="light", reflection_lm=OfflineLM())
    for val in (20, 40, 100):
        assert gepa.light(val) == optimizer.auto_budget(num_preds=1, num_candidates=6, valset_size=val)


def test_demonstrations_stop_at_the_context_limit() -> None:
    """As many examples are shown as fit, and never none."""
    examples = messages(30, 0)
    assert fitting(examples, 10**6) == 30
    assert 1 <= fitting(examples, 100) < 10
    assert fitting(examples, 0) == 1


def test_the_finance_metric_serves_every_optimizer(tmp_path: Path) -> None:
    """While demonstrations are gathered it is a bool, so that a wrong answer is none; else it has words."""
    task = load_task("finer", finance_folder(tmp_path, 8))
    example = task.train[0]
    wrong = dspy.Prediction(answer="Nothing,at,all,here")
    assert task.metric(example, wrong, []) is False
    assert task.metric(example, dspy.Prediction(answer=example.answer), []) is True
    told = task.metric(example, wrong, None, "predict", None)
    assert told.score == 0.0
    assert "expected" in told.feedback


# --- the command line ---


@pytest.mark.slow
def test_a_run_keeps_cells_goes_on_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run leaves cells, Markdown and HTML; the same command makes no cell twice; a report needs no LM."""
    command = ["run", *TINY, "--methods", "icl,ace", "--seeds", "0", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    first = capsys.readouterr().out
    cells = lines(tmp_path / "quickstart")
    assert [(cell["method"], cell["seed"]) for cell in cells] == [
        (method, seed) for seed in (0, 1) for method in ("student", "icl", "ace")
    ]
    assert all(cell["status"] == "ok" and len(cell["test_scores"]) == 6 for cell in cells)
    assert all(cell["metric_calls"]["compile"] <= 90 for cell in cells)
    assert "not the quality of a method" in first
    before = (tmp_path / "quickstart" / "cells.jsonl").read_bytes()
    assert main(command) == 0
    assert (tmp_path / "quickstart" / "cells.jsonl").read_bytes() == before
    for suffix in (".md", ".html"):
        (tmp_path / f"quickstart{suffix}").unlink()
    assert main(["report", str(tmp_path)]) == 0
    header = json.loads((tmp_path / "quickstart" / "comparison.json").read_text())
    assert header["task"] == "quickstart"
    assert header["budget"] == 90
    assert header["command"].startswith("python -m comparisons run")
    for suffix in (".md", ".html"):
        assert "not the quality of a method" in (tmp_path / f"quickstart{suffix}").read_text(encoding="utf-8")


def test_the_report_of_a_task_of_the_paper_has_its_published_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FiNER's report shows what the paper published, and the quickstart's has no such rows."""
    data = finance_folder(tmp_path / "data", 12)
    command = ["run", "--task", "quickstart,finer", "--data", str(data), *TINY, "--methods", "icl", "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    assert "published" in (tmp_path / "out" / "finer.html").read_text(encoding="utf-8")
    assert "DeepSeek" not in (tmp_path / "out" / "quickstart.md").read_text(encoding="utf-8")
    assert "78.3" in (tmp_path / "out" / "finer.md").read_text(encoding="utf-8")
    assert {row["benchmark"] for row in published()} == {"FiNER", "Formula", "AppWorld"}
    assert published("quickstart") == []


@pytest.mark.slow
def test_a_dry_run_makes_no_call_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An estimate has calls and dollars for each method; for a model without a price the dollars are unknown."""
    out = tmp_path / "out"
    command = ["run", "--dry-run", "--methods", ",".join(METHODS), "--seeds", "0", "1", "--out", str(out)]
    assert main([*command, "--model", "openai/gpt-4o-mini"]) == 0
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[1].strip() for row in table] == ["student", *METHODS]
    assert all(float(row[7]) > 0 for row in table)
    assert main(command) == 0
    assert "All together: unknown dollars" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize("name", METHODS)
def test_an_estimate_is_of_the_right_size(name: str, offline: OfflineLM) -> None:
    """At most twice the rollouts that were expected are made, and at least a quarter of them."""
    train, val = messages(24, 0), messages(8, 1)
    setting, counter = Setting(five, len(train), len(val), budget=90, num_threads=4), Rollouts()
    with dspy.context(callbacks=[counter]):
        METHODS[name].make(setting, 0).compile(dspy.ChainOfThought(Route), trainset=train, valset=val)
    expected = METHODS[name].expect(setting).rollouts
    assert expected / 4 <= len(counter.started) <= expected * 2


def test_a_provider_behind_an_address_is_called_as_often_as_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --api-base both models are asked there, and the cells account for every call the server received."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    models = ["--model", "openai/offline", "--reflection-model", "openai/coach"]
    with serve(answerers=[answer_proposal]) as server:
        command = ["run", *TINY, "--methods", "gepa,ace,dc", *models, "--api-base", server.url, "--out", str(tmp_path)]
        assert main(command) == 0
        received = server.calls
    cells = lines(tmp_path / "quickstart")
    assert [cell["reason"] for cell in cells] == [None] * 4
    used = [usage for cell in cells for phase in cell["usage"].values() for usage in phase.values()]
    assert sum(usage["calls"] for usage in used) == received
    assert sum(usage["cached_calls"] for usage in used) == 0
    assert "not the quality of a method" not in (tmp_path / "quickstart.md").read_text(encoding="utf-8")


def test_mistakes_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown name, a task without its data and a folder without a comparison are told, not raised."""
    for command, words in (
        (["run", "--task", "finer", "--out", str(tmp_path)], "--data DIR"),
        (["run", *TINY[:-1], "1", "--methods", "mipro", "--out", str(tmp_path)], "needs a budget of"),
        (["report", str(tmp_path / "nowhere")], "no comparison"),
    ):
        assert main(command) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert words in said[-1]
        assert said[-1].startswith("error: ")
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--methods", "ace,gpea"])
    assert stopped.value.code == 2
    assert "gpea given" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After kill -9 the same command keeps the finished cells byte for byte and makes the missing ones."""
    command = ["run", *TINY, "--methods", "icl,gepa,ace", "--seeds", "0", "1", "2", "--out", str(tmp_path)]
    cells = tmp_path / "quickstart" / "cells.jsonl"
    whole = killed_after(3, cells, command)
    assert 3 <= whole.count(b"\n") < 12
    assert main(command) == 0
    assert cells.read_bytes().startswith(whole)
    made = lines(tmp_path / "quickstart")
    assert len({(cell["method"], cell["seed"]) for cell in made}) == len(made) == 12
    assert all(cell["status"] == "ok" for cell in made)


@pytest.mark.slow
def test_the_matrix_of_eight_methods_two_tasks_and_two_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every cell of eight methods, two tasks and two seeds ends well on the offline model."""
    data = finance_folder(tmp_path / "data", 24)
    command = ["run", "--task", "quickstart,finer", "--data", str(data), *TINY, "--seeds", "0", "1", "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    for task in ("quickstart", "finer"):
        cells = lines(tmp_path / "out" / task)
        assert len(cells) == (8 + 1) * 2
        assert [cell["reason"] for cell in cells if cell["status"] != "ok"] == []


# --- ratios ---


def test_a_cost_is_what_the_server_counted() -> None:
    """Calls and billed tokens come from the server's log; a cached token counts a tenth."""
    task = load_task("quickstart").cut(16, 8, 8)
    cost = ratios.Bench(scale=0.0, threads=4).run("ace", task, ratios.PAIRS["gepa"], 0)
    assert 16 <= cost.rollouts < cost.calls
    assert cost.billed == pytest.approx(cost.prompt - 0.9 * cost.cached)
    assert 0.0 <= cost.score <= 1.0
    student = ratios.Bench(scale=0.0, threads=4).run("icl", task, ratios.PAIRS["gepa"], 0)
    assert (student.rollouts, student.calls) == (0, 0)


def test_ratios_are_printed_beside_their_aims() -> None:
    """A ratio that misses its aim is marked, and the score of both is there."""
    mine = ratios.Cost(20, 40, 100.0, 2.0, 0.5, 0.9, 100, 0, 10)
    other = ratios.Cost(100, 100, 1000.0, 4.0, 0.5, 0.8, 1000, 0, 10)
    row = ratios.Row(ratios.PAIRS["gepa"], "quickstart", "ace", mine, other)
    assert row.ratios == pytest.approx((0.2, 0.4, 0.1, 0.5))
    text = ratios.table([row])
    assert "0.900 / 0.800" in text
    assert "0.200 (aim 0.25) |" in text
    assert "0.400 (aim 0.3) ✗ |" in text


def test_costs_of_seeds_add_up() -> None:
    """Counts are summed over seeds, the score is their mean."""
    one = ratios.Cost(1, 2, 3.0, 4.0, 1.0, 0.5, 3, 0, 1)
    both = one + ratios.Cost(2, 3, 4.0, 5.0, 1.0, 1.0, 4, 0, 1)
    assert (both.rollouts, both.calls, both.billed, both.wall, both.runs) == (3, 5, 7.0, 9.0, 2)
    assert both.score == pytest.approx(0.75)


@pytest.mark.parametrize(("name", "rollouts", "role_calls"), [("ace", 230, 50 + 7 + 7), ("ace-light", 180, 50 + 4 + 4)])
def test_ace_is_expected_to_reflect_on_successes_together(name: str, rollouts: int, role_calls: int) -> None:
    """Of 100 examples half fail and are reflected on alone; each batch has one call for the others and one curation."""
    expected = METHODS[name].expect(Setting(metric=lambda *_: True, train=100, val=40))
    assert (expected.rollouts, expected.role_calls) == (rollouts, role_calls)


def test_many_short_prompts_are_not_priced_as_a_long_one() -> None:
    """A hundred times the calls cost a hundred times the dollars; a router's model has the price that ACE knows."""
    for model in ("gemini/gemini-2.5-pro", "openrouter/openai/gpt-4o-mini"):
        lm = dspy.LM(model, api_key="none")
        one, many = price(lm, 100_000, 10_000), price(lm, 10_000_000, 1_000_000)
        assert one is not None
        assert many == pytest.approx(100 * one)


def test_the_office_has_the_sizes_of_the_table() -> None:
    """60, 20 and 78 tasks; normal and challenge ones in turns, so that a small test has both."""
    task = load_task("office")
    assert ([len(rows) for rows in (task.train, task.val, task.test)], task.calls) == ([60, 20, 78], 8)
