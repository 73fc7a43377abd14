"""Optimizers side by side: the same conditions for all, and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.teleprompt import LabeledFewShot, Teleprompter

from compare_helpers import TEST, TRAIN, VAL, Broken, Same, compared, metric
from dspy_ace import ACE
from dspy_ace.comparison import Comparison
from dspy_ace.comparison.cell import uncached
from dspy_ace.errors import JournalError, SettingsError
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import serve
from runs import ROOT, client
from tasks import Route

pytestmark = pytest.mark.filterwarnings("default", "ignore::ResourceWarning")


@pytest.mark.compat
def test_a_row_says_what_a_method_brought_and_cost(offline: OfflineLM) -> None:
    """The student first; score, interval and differences; calls and tokens of a compile; bullets and prompt tokens."""
    result = compared({"ACE": ACE(metric, epochs=1), "same": Same(metric)})
    student, ace, same = result.rows
    assert [row.name for row in result.rows] == ["student", "ACE", "same"]
    assert student.vs_student is None
    assert (student.metric_calls, student.lm_calls) == (0, 0)
    assert ace.score is not None
    assert student.score is not None
    assert ace.vs_student is not None
    assert ace.vs_student[0] == pytest.approx(ace.score - student.score)
    assert ace.bullets is not None
    assert ace.bullets > 0
    assert ace.prompt_tokens > student.prompt_tokens > 0  # type: ignore[operator]
    assert same.score == student.score
    assert same.bullets is None
    assert (same.metric_calls, same.lm_calls) == (len(TRAIN), len(TRAIN))
    assert same.dollars is None  # the offline model has no price
    assert sum(cell["usage"][phase][role]["calls"] for cell in result.cells for phase in ("compile", "test")
               for role in cell["usage"][phase]) == offline.calls  # fmt: skip
    table = str(result)
    assert "ACE" in table
    assert "One seed" in table
    assert "| student |" in result.to_markdown()
    assert "response cache was off" in result.to_markdown()
    assert repr(result) == "Comparison(student, ACE, same; 3 cells)"


@pytest.mark.compat
def test_a_finished_cell_is_not_run_again(offline: OfflineLM, tmp_path: Path) -> None:
    """The same call reads what is there; another method or seed joins; another metric is refused by name."""
    first = compared(out=tmp_path)
    calls = offline.calls
    assert compared(out=tmp_path).cells == first.cells
    assert offline.calls == calls
    more = compared({"few": LabeledFewShot(k=2)}, out=tmp_path, seeds=(1,))
    assert [(cell["method"], cell["seed"]) for cell in more.cells] == [
        ("student", 0), ("student", 1), ("same", 0), ("few", 1),
    ]  # fmt: skip
    assert [row.name for row in more.rows] == ["student", "same", "few"]
    assert Comparison.load(tmp_path).rows == more.rows
    with pytest.raises(JournalError, match="another metric"):
        compared(out=tmp_path, metric=lambda example, prediction: 1.0)
    with pytest.raises(JournalError, match="another optimizer few"):
        compared({"few": LabeledFewShot(k=3)}, out=tmp_path, seeds=(1,))
    with pytest.raises(JournalError, match="another trainset, another testset"):
        compared(out=tmp_path, trainset=TRAIN[:4], testset=TEST[:3])


@pytest.mark.slow
def test_a_comparison_survives_kill_nine(tmp_path: Path) -> None:
    """Killed in the middle of a run and called again: the scores and costs are those of an undisturbed one."""
    script = (
        "import sys, dspy; from test_side_by_side import *\n"
        "with dspy.context(lm=client(sys.argv[1])):\n"
        "    compared({'ACE': ACE(metric, epochs=1), 'same': Same(metric)}, out=sys.argv[2], seeds=(0, 1))\n"
    )
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers", Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": paths, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with serve(latency=0.05) as server:
        for wanted in (2, None):
            with subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, server.url, str(tmp_path)],
                                  env=environment, stderr=subprocess.DEVNULL) as run:  # fmt: skip
                while wanted is not None and run.poll() is None and _lines(tmp_path) < wanted:
                    time.sleep(0.02)
                if wanted is not None:
                    time.sleep(0.2)  # well into the next cell
                    run.send_signal(signal.SIGKILL)
            assert run.wait() == (0 if wanted is None else -signal.SIGKILL)
        survived = Comparison.load(tmp_path)
        with dspy.context(lm=client(server)):
            whole = compared({"ACE": ACE(metric, epochs=1), "same": Same(metric)}, seeds=(0, 1))
    assert _lines(tmp_path) == 6
    for left, right in zip(survived.cells, whole.cells, strict=True):
        for name in ("method", "seed", "test_scores", "metric_calls", "prompts"):
            assert left[name] == right[name]
        for phase in ("compile", "test"):
            assert {role: u["calls"] for role, u in left["usage"][phase].items()} == {
                role: u["calls"] for role, u in right["usage"][phase].items()
            }


def _lines(folder: Path) -> int:
    path = folder / "cells.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


@pytest.mark.compat
def test_a_method_that_fails_is_a_row_with_its_reason(offline: OfflineLM, tmp_path: Path) -> None:
    """One that raises and one that returns nothing cost the others nothing; failed cells are run again if asked."""
    optimizers = {"raises": Broken(ValueError("the moon is full")), "nothing": Broken(None), "same": Same(metric)}
    result = compared(optimizers, out=tmp_path)
    rows = {row.name: row for row in result.rows}
    assert rows["raises"].reasons == ("compile: ValueError: the moon is full",)
    assert "got NoneType" in rows["nothing"].reasons[0]
    assert (rows["raises"].score, rows["raises"].seeds_failed) == (None, 1)
    assert rows["same"].score is not None
    assert "the moon is full" in str(result)
    assert "the moon is full" in result.to_markdown()
    calls = offline.calls
    optimizers["raises"].error = None
    compared(optimizers, out=tmp_path)
    assert offline.calls == calls
    again = compared(optimizers, out=tmp_path, retry_failed=True)
    assert "got NoneType" in {row.name: row for row in again.rows}["raises"].reasons[0]


@pytest.mark.compat
def test_ctrl_c_keeps_what_is_finished(offline: OfflineLM, tmp_path: Path) -> None:
    """The comparison ends with the cells before it; before the first one there is nothing to return."""
    cache = dspy.cache
    result = compared({"same": Same(metric), "stopped": Broken(KeyboardInterrupt()), "never": Same()}, out=tmp_path)
    assert [row.name for row in result.rows] == ["student", "same"]
    assert _lines(tmp_path) == 2
    assert dspy.cache is cache

    def stopping(example: Any, prediction: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compared(metric=stopping, num_threads=1)


@pytest.mark.compat
def test_ctrl_c_that_an_optimizer_survives_ends_the_comparison(offline: OfflineLM) -> None:
    """ACE hands back its best program on Ctrl-C: that half a run is no cell."""
    pressed: list[int] = []

    def press(record: Any, playbook: Any) -> None:
        if not pressed:
            pressed.append(1)
            signal.raise_signal(signal.SIGINT)

    result = compared({"ACE": ACE(metric, epochs=1, on_step=press), "never": Same()})
    assert pressed
    assert [row.name for row in result.rows] == ["student"]


@pytest.mark.compat
def test_seeds_reach_optimizers_every_way(offline: OfflineLM) -> None:
    """As attribute of a copy, inside another optimizer, as argument of compile, and to a callable."""

    class Argument(Teleprompter):  # type: ignore[misc]  # dspy is untyped
        def compile(self, student: Any, *, trainset: Any, seed: int = 5) -> Any:
            heard.append(("argument", seed))
            return student

    class Chain(Teleprompter):  # type: ignore[misc]  # dspy is untyped
        def __init__(self, *parts: Any) -> None:
            super().__init__()
            self.parts = list(parts)

        def compile(self, student: Any, *, trainset: Any, valset: Any = None) -> Any:
            for part in self.parts:
                student = part.compile(student, trainset=trainset, valset=valset)
            return student

    heard: list[tuple[str, int]] = []
    given: dict[str, list[tuple[int, ...]]] = {"same": [], "inner": []}
    same = Same(metric, hear=lambda *what: given["same"].append(what))
    inner = Same(metric, hear=lambda *what: given["inner"].append(what))
    made = []

    def make(seed: int) -> Any:
        made.append(seed)
        return Same(metric, seed)

    result = compared(
        {"same": same, "chain": Chain(inner), "argument": Argument(), "made": make, "few": LabeledFewShot(k=1)},
        seeds=(3, 4),
    )
    assert heard == [("argument", 3), ("argument", 4)]
    assert made == [3, 4]
    assert (same.seed, inner.seed) == (7, 7)  # the user's own objects stay as they were
    assert given["same"] == [(seed, len(TRAIN), len(VAL)) for seed in (3, 4)]
    assert given["inner"] == given["same"]
    assert all((row.seeds_ok, row.seeds_failed) == (2, 0) for row in result.rows)
    notes = " ".join(result.header["notes"])
    assert "few takes no seed" in notes
    assert "argument takes no valset" in notes
    assert "same takes no seed" not in notes
    assert "Few seeds" in str(result)


@pytest.mark.compat
def test_a_module_may_be_the_metric(offline: OfflineLM) -> None:
    """A judge written as a program: its arity is that of its forward, its calls are the metric's."""

    class Judge(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def __init__(self) -> None:
            super().__init__()
            self.verdict = dspy.Predict("desk -> verdict")

        def forward(self, example: Any, prediction: Any, trace: Any) -> float:
            self.verdict(desk=prediction.desk)
            return float(example.desk == prediction.desk)

    judge = Judge()
    result = compared({"ACE": ACE(judge, epochs=1)}, metric=judge)
    assert [row.reasons for row in result.rows] == [(), ()]
    compiled = result.cells[1]["usage"]["compile"]
    assert compiled["metric"]["calls"] == compiled["task"]["calls"] == result.cells[1]["metric_calls"]["compile"]


@pytest.mark.compat
def test_an_online_program_is_tested_in_order(offline: OfflineLM) -> None:
    """One example at a time; what it calls besides the student is booked as `optimizer`; its prompt is followed."""
    seen: list[str] = []

    class Online(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        online = True

        def __init__(self, student: Any) -> None:
            super().__init__()
            self.student, self.notes, self.busy = student, dspy.Predict("message, desk -> note"), False

        def forward(self, message: str) -> Any:
            assert not self.busy
            self.busy = True
            seen.append(message)
            prediction = self.student(message=message)
            self.notes(message=message, desk=prediction.desk)
            grown = self.student.signature.instructions + " More."
            self.student.signature = self.student.signature.with_instructions(grown)
            self.busy = False
            return prediction

    class Wrap(Teleprompter):  # type: ignore[misc]  # dspy is untyped
        def compile(self, student: Any, *, trainset: Any) -> Any:
            return Online(student)

    result = compared({"online": Wrap()})
    assert seen == [example.message for example in TEST]
    assert {role: u["calls"] for role, u in result.cells[1]["usage"]["test"].items()} == {"optimizer": 6, "task": 6}
    assert result.cells[1]["metric_calls"] == {"compile": 0, "test": 6}
    steps = result.cells[1]["prompt_steps"]
    assert [step[0] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step[1] for step in steps] == sorted(step[1] for step in steps)
    assert result.cells[1]["prompts"]["student"].endswith(" More." * 6)


@pytest.mark.compat
def test_the_table_needs_no_rich(offline: OfflineLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rich is not installed, the Markdown is printed."""
    result = compared(label="a | label")
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert str(result) == result.to_markdown()
    assert "<table>" in result._repr_html_()
    assert "**a \\| label**" in str(result)


@pytest.mark.compat
def test_the_cache_is_off_and_comes_back(offline: OfflineLM) -> None:
    """In the block nothing is answered from the cache, nested too; afterwards it is the very same object."""
    before = dspy.cache
    with uncached():
        first = dspy.cache
        with pytest.raises(RuntimeError), uncached():
            raise RuntimeError
        assert dspy.cache is first
        assert not first.enable_disk_cache
        assert not first.enable_memory_cache
    assert dspy.cache is before


@pytest.mark.compat
def test_the_program_and_the_data_stay_as_they_were(offline: OfflineLM) -> None:
    """Optimizers work on copies: of the program, and of the lists that they shuffle."""

    class Rude(Teleprompter):  # type: ignore[misc]  # dspy is untyped
        def compile(self, student: Any, *, trainset: Any, valset: Any) -> Any:
            trainset.clear()
            valset.clear()
            student.signature = student.signature.with_instructions("Mine now.")
            student.lm = None
            return student

    program, train, val = dspy.Predict(Route), list(TRAIN), list(VAL)
    own = program.signature.instructions
    result = compared({"rude": Rude(), "same": Same()}, program=program, trainset=train, valset=val)
    assert (program.signature.instructions, len(train), len(val)) == (own, len(TRAIN), len(VAL))
    assert [list(cell["prompts"].values()) for cell in result.cells] == [[own], ["Mine now."], [own]]


@pytest.mark.compat
def test_runs_of_one_optimizer_do_not_share_a_folder(offline: OfflineLM, tmp_path: Path) -> None:
    """An optimizer that keeps its run in `log_dir` begins anew in each cell: else a seed would continue another's."""
    result = compared({"ACE": ACE(metric, epochs=1, log_dir=tmp_path / "logs")}, seeds=(0, 1))
    assert [row.seeds_ok for row in result.rows] == [2, 2]
    folders = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "logs").iterdir())
    assert folders == ["seed-0", "seed-1"]
    assert all(cell["metric_calls"]["compile"] > 0 for cell in result.cells if cell["method"] == "ACE")


@pytest.mark.compat
def test_what_is_on_disk_is_plain_json(offline: OfflineLM, tmp_path: Path) -> None:
    """Header and cells as other programs read them."""
    compared(out=tmp_path, label="offline model", task="routing", command="make it", budget=8)
    header = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert header["methods"] == ["student", "same"]
    assert header["sizes"] == {"train": len(TRAIN), "val": len(VAL), "test": len(TEST)}
    assert header["models"]["task"] == "offline/reader"
    assert {"python", "dspy", "dspy_ace", "platform", "cpus"} <= set(header["environment"])
    assert [header[name] for name in ("label", "task", "command", "budget")] == [
        "offline model", "routing", "make it", 8,
    ]  # fmt: skip
    cell = json.loads((tmp_path / "cells.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert set(cell) == {
        "version", "method", "seed", "status", "reason", "started", "test_scores", "failures", "metric_calls", "usage",
        "call_errors", "seconds", "curve", "prompt_steps", "prompt_tokens", "bullets", "prompts",
    }  # fmt: skip
    assert set(cell["usage"]["compile"]["task"]) == {
        "calls", "cached_calls", "failed_calls", "prompt_tokens", "cached_tokens", "completion_tokens", "dollars",
        "seconds",
    }  # fmt: skip
    assert len(cell["test_scores"]) == len(TEST)
    assert set(cell["prompts"]) == {"self"}


@pytest.mark.compat
def test_a_method_without_a_working_role_gets_a_footnote(offline: OfflineLM) -> None:
    """All calls of its own LM failed and it went on: its score is a score of nothing, and the notes say so."""

    class Deaf(Teleprompter):  # type: ignore[misc]  # dspy is untyped
        def compile(self, student: Any, *, trainset: Any) -> Any:
            for _ in range(2):
                with pytest.raises(Exception, match="API key"):
                    OfflineLM(faults={"auth": 1.0}, num_retries=0)("improve this")
            return student

    result = compared({"deaf": Deaf(), "same": Same(metric)})
    student, deaf, same = result.rows
    assert deaf.score == student.score
    assert same.dead_roles == student.dead_roles == ()
    (said,) = deaf.dead_roles
    assert said.startswith("deaf, seed 0: all 2 LM calls of the role 'optimizer' failed in the compile (")
    assert "API key" in said
    assert said in result.to_markdown()
    assert result.header["program"] == "Predict(message -> desk)"


@pytest.mark.compat
def test_a_report_can_be_saved(offline: OfflineLM, tmp_path: Path) -> None:
    """As Markdown; another kind of file is refused."""
    result = compared()
    result.save_report(tmp_path / "report.md")
    assert "| student |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    with pytest.raises(SettingsError, match="html"):
        result.save_report(tmp_path / "report.pdf")
