"""One command for every method at equal cost: the plan, the run, the files that it leaves, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

from compare_helpers import killed_after
from comparisons.__main__ import main
from comparisons.arguments import parse
from comparisons.estimate import Estimate
from comparisons.models import OFFLINE, connect
from comparisons.reproduce import plan, worth
from comparisons.tasks import load_task

pytestmark = pytest.mark.filterwarnings("default")  # other optimizers warn of what they do
SMALL = ["--train", "6", "--val", "3", "--test", "3", "--num-threads", "4"]


def planned(task: str, *options: str, model: str = OFFLINE) -> Any:
    """The plan for one task."""
    lm = connect(model)
    args = parse(["reproduce", "--task", task, *options])
    with dspy.context(lm=lm):
        return plan(load_task(task).cut(args.train, args.val, args.test), args, lm, None)


@pytest.mark.parametrize("model", [OFFLINE, "openai/gpt-4o-mini"])
def test_every_method_may_cost_the_same(model: str) -> None:
    """No compile is expected to cost more than is allowed, and those that can use more money get nearly all of it."""
    made = planned("quickstart", model=model)
    assert set(made.compiles) == {"ace", "ace-light", "gepa", "mipro", "bootstrap"}
    assert all(0 < cost <= made.allowed for cost in made.compiles.values())
    assert all(made.compiles[name] >= 0.9 * made.allowed for name in ("ace", "gepa", "mipro", "bootstrap"))


def test_what_is_allowed_can_be_said() -> None:
    """With twice the dollars the others make more rollouts; too little is raised to what a method needs."""
    some, more = (planned("quickstart", "--dollars", dollars, model="openai/gpt-4o-mini") for dollars in ("0.1", "0.2"))
    assert some.settings["gepa"].budget < more.settings["gepa"].budget
    least = planned("quickstart", "--dollars", "0.000001", model="openai/gpt-4o-mini")
    assert least.settings["bootstrap"].budget == 3 * 40 + 12


def test_tokens_stand_in_for_dollars() -> None:
    """Where no price is known a written token counts as four prompt tokens."""
    assert worth(Estimate("x", 1, 1, 1, 1_000_000, 250_000, None)) == 2.0
    assert worth(Estimate("x", 1, 1, 1, 1_000_000, 250_000, 0.5)) == 0.5


def test_a_dry_run_says_the_plan_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan has each task and method, and dollars where they are known; nothing is written."""
    out = tmp_path / "out"
    assert (
        main(["reproduce", "--task", "office", *SMALL, "--dry-run", "--out", str(out), "--model", "openai/gpt-4o"]) == 0
    )
    said = capsys.readouterr().out
    assert "office: 6 training, 3 validation and 3 test examples; a compile may cost" in said
    assert all(f"| office | {name} |" in said for name in ("ace", "ace-light", "gepa", "mipro", "bootstrap"))
    assert "dollars, all" in said
    assert not out.exists()


@pytest.mark.slow
def test_a_killed_reproduction_goes_on_and_leaves_table_cells_and_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After kill -9 the same command makes the missing cells alone; the table has every task and method."""
    out = tmp_path / "out"
    command = ["reproduce", "--task", "quickstart,office", *SMALL, "--seeds", "0", "--out", str(out)]
    cells = out / "quickstart" / "cells.jsonl"
    whole = killed_after(2, cells, command)
    assert main(command) == 0
    assert cells.read_bytes().startswith(whole)
    for task in ("quickstart", "office"):
        made = [json.loads(line) for line in (out / task / "cells.jsonl").read_text().splitlines()]
        assert len({(cell["method"], cell["seed"]) for cell in made}) == len(made) == 6
        assert [cell["reason"] for cell in made if cell["status"] != "ok"] == []
        assert (out / f"{task}.html").exists()
    report = (out / "reproduction.md").read_text(encoding="utf-8")
    assert "not the quality of a method" in report
    for name in ("student", "ace", "ace-light", "gepa", "mipro", "bootstrap"):
        assert report.count(f"| {name} |") >= 2
    assert report in capsys.readouterr().out
