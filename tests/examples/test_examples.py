"""The example scripts: run as a user runs them, and their answer checks."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import dspy
import pytest

from dspy_ace import Playbook, with_playbook
from dspy_ace.playbook import Add, Delta, apply
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import serve
from paths import ROOT, SHARED

EXAMPLES = ROOT / "examples"
FINANCE_DATA = SHARED / "data"

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Imports an example module by name, as the scripts import one another."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    return importlib.import_module


def run(script: str, *arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script in another folder, without any key, and check its exit code."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def refusal(script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a script that ends with exit code 2 says on stderr."""
    with pytest.raises(SystemExit) as stopped:
        script.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def figure(label: str, output: str) -> float:
    """The last number printed after `label`."""
    return float(re.findall(rf"^{label}: +([+-]?[\d.]+)", output, re.MULTILINE)[-1])


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- quickstart ---


@pytest.mark.compat
def test_quickstart_default_run(tmp_path: Path) -> None:
    """With its defaults the quickstart takes the test set from at most 0.45 to at least 0.85, and saves the result."""
    done = run("quickstart.py", "--out", tmp_path / "run", cwd=tmp_path)
    assert figure("before", done.stdout) <= 0.45
    assert figure("after", done.stdout) >= 0.85
    assert figure("difference", done.stdout) > 0
    for words in ("does not measure how good", "95 % Wilson", "95 % paired bootstrap", "The playbook (", "curator"):
        assert words in done.stdout
    assert "What to do next:" in done.stdout.rsplit("Saved:", 1)[1]
    assert "ACE step 1:" in done.stderr
    playbook = Playbook.load(tmp_path / "run" / "playbook.json")
    saved = json.loads((tmp_path / "run" / "program.json").read_text(encoding="utf-8"))
    assert all(b.content.splitlines()[0] in saved["predict"]["signature"]["instructions"] for b in playbook)


def test_quickstart_makes_a_folder_of_its_own(tmp_path: Path) -> None:
    """Without --out the results go to a temporary folder whose path is printed."""
    done = run("quickstart.py", "--epochs", 1, "--batch-size", 20, "--seed", 1, "--threads", 2, cwd=tmp_path)
    for path in re.findall(r"^Saved: (.+)$", done.stdout, re.MULTILINE):
        assert Path(path).is_file()
        Path(path).unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["gepa", "mipro"])
def test_quickstart_with_another_optimizer(optimizer: str, tmp_path: Path) -> None:
    """The same script, metric and sets run with GEPA and with MIPROv2."""
    if optimizer == "mipro":
        pytest.importorskip("optuna", reason="MIPROv2 needs optuna")
    done = run("quickstart.py", "--optimizer", optimizer, "--out", tmp_path, cwd=tmp_path)
    assert figure("before", done.stdout) <= 0.45
    assert figure("LM calls while optimizing", done.stdout) > 100
    assert "Instructions of predict" in done.stdout
    assert (tmp_path / "program.json").is_file()


def test_quickstart_refuses_in_one_line(tmp_path: Path) -> None:
    """A folder that cannot be made and a model without its key end the script with one line."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = run("quickstart.py", "--out", tmp_path / "file", cwd=tmp_path, code=2)
    assert done.stderr.startswith("error: cannot make the folder")
    done = run("quickstart.py", "--model", "openai/gpt-4o-mini", "--out", tmp_path, cwd=tmp_path, code=2)
    assert re.search(r"^error: the model does not answer: .*OPENAI_API_KEY", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["quickstart", "finance"])
def test_help(script: str, tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    """Every script explains its options, and refuses a batch of nothing."""
    assert "--model" in run(f"{script}.py", "--help", cwd=tmp_path).stdout
    assert "1 or more" in refusal(load(script), capsys, "--batch-size", 0)


def test_a_server_of_ones_own_is_asked(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an address the model is asked there, and no key is needed."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve() as server:
        lm = load("common").remote("openai/offline", server.url)
        with dspy.context(lm=lm):
            assert dspy.Predict("question -> answer: int")(question="What is 3 + 4?").answer == 7
        assert server.calls == 1


@pytest.mark.parametrize("script", ["quickstart", "finance", "agent", "online", "appworld_ace"])
def test_every_script_takes_an_address(script: str, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    """`--api-base` stands in the help of each script."""
    with pytest.raises(SystemExit):
        load(script).main(["--help"])
    assert "--api-base" in capsys.readouterr().out


# --- the routing task ---


def sentence(message: str, task: ModuleType) -> str:
    """The message without what is said before and after its main sentence."""
    message = next((message.removeprefix(o) for o in task._OPENINGS if o and message.startswith(o)), message)
    return next((message.removesuffix(c) for c in task._CLOSINGS if c and message.endswith(c)), message).casefold()


def test_routing_sets_share_no_sentence(load: Load) -> None:
    """No main sentence occurs twice, within or across the sets, whatever stands around it; all desks are tested."""
    task = load("routing_task")
    split = task.make_split(3)
    said = [sentence(e.message, task) for part in split for e in part]
    assert len(set(said)) == len(said) == 220
    assert {e.desk for e in split.test} == set(task.DESKS)
    with pytest.raises(ValueError, match="at most"):
        task.make_split(train=1000)


def test_routing_messages_are_the_same_in_every_process(tmp_path: Path, load: Load) -> None:
    """A seed gives the same messages whatever the process and its hash seed; another seed gives others."""
    code = "import routing_task as t; print([(e.message, e.desk) for part in t.make_split(7) for e in part])"
    environment = {**os.environ, "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{ROOT}"}
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "PYTHONHASHSEED": seed},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    task = load("routing_task")
    here = [(e.message, e.desk) for part in task.make_split(7) for e in part]
    assert printed == {f"{here}\n"}
    assert here != [(e.message, e.desk) for part in task.make_split(8) for e in part]


def test_routing_rules_cannot_be_guessed_from_names(load: Load) -> None:
    """The five desks that are named after rooms are never named in a message."""
    task = load("routing_task")
    text = " ".join(e.message.casefold() for part in task.make_split() for e in part)
    assert not any(re.search(rf"\b{desk.casefold()}\b", text) for desk in task.DESKS[:5])


def test_routing_rules_written_by_hand(load: Load) -> None:
    """A playbook of the house rules, written by hand, gets at least 0.9 of the test messages right."""
    task = load("routing_task")
    delta = Delta(tuple(Add("HOUSE RULES", rule) for rule in task.HOUSE_RULES))
    program = with_playbook(dspy.ChainOfThought(task.RouteMessage), apply(Playbook(), delta))
    test = task.make_split().test
    with dspy.context(lm=OfflineLM()):
        right = sum(program(message=e.message).desk == e.desk for e in test)
    assert right / len(test) >= 0.9


def test_routing_metric_serves_three_optimizers(load: Load) -> None:
    """The metric gives score and feedback to ACE and GEPA, and a plain bool where MIPROv2 gathers demonstrations."""
    task = load("routing_task")
    example = dspy.Example(message="…", desk="Maple").with_inputs("message")
    right, wrong = dspy.Prediction(desk="Maple"), dspy.Prediction(desk="Harbor")
    assert task.metric(example, right).score == 1.0
    graded = task.metric(example, wrong, [], "predict", [])
    assert graded.score == 0.0
    assert "Maple" in graded.feedback
    assert "Harbor" in graded.feedback
    assert task.metric(example, right, []) is True
    assert task.metric(example, wrong, []) is False


# --- finance ---

_TAGS = "Revenues,LongTermDebt,InterestExpense,GoodwillImpairmentLoss"
_CASES = [
    ("12", "The company had revenues of $ 12 million from sales .", "Revenues"),
    ("15", "Notes payable of $ 15 million are due after five years .", "LongTermDebt"),
    ("3", "Interest of $ 3 million was charged on the notes .", "InterestExpense"),
    ("7", "An impairment of $ 7 million was recorded for the reporting unit .", "GoodwillImpairmentLoss"),
]


def finance_row(first: int, second: int) -> dict[str, str]:
    (a, said_a, tag_a), (b, said_b, tag_b) = _CASES[first % 4], _CASES[second % 4]
    question = f'1. What is best tag for entity "{a}" in sentence: "{said_a}"\n'
    question += f'2. What is best tag for entity "{b}" in sentence: "{said_b}"'
    return {"context": f"Here is a list of tags options: {_TAGS}. Answer:\n{question}\n", "target": f"{tag_a},{tag_b}"}


@pytest.fixture
def finance_folder(tmp_path: Path) -> Path:
    """Three made-up training and three held-out rows, in a folder named after the task."""
    write_lines(tmp_path / "data" / "finer" / "train.jsonl", [finance_row(i, i + 1) for i in range(3)])
    write_lines(tmp_path / "data" / "finer" / "val.jsonl", [finance_row(i, i + 2) for i in range(3)])
    return tmp_path / "data"


def test_finance_on_made_up_rows(finance_folder: Path, tmp_path: Path) -> None:
    """The finance example runs on three rows, given the folder or its parent, and saves the playbook."""
    done = run("finance.py", "--data", finance_folder, "--out", "playbook.json", cwd=tmp_path)
    assert "Task: finer; 3 training, 1 validation, 2 test examples." in done.stdout
    assert 0.0 <= figure("before", done.stdout) <= 1.0
    assert figure("LM calls", done.stdout) > 0
    assert done.stdout.rstrip().rsplit("\n\n", 1)[1].startswith("What to do next:")
    Playbook.load(tmp_path / "playbook.json")
    done = run("finance.py", "--data", finance_folder / "finer", "--train", 1, cwd=tmp_path)
    assert "1 training" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (FINANCE_DATA / "finer").is_dir(), reason="the optional finance data is not there")
def test_finance_learns_finer(tmp_path: Path) -> None:
    """With all training examples of FiNER the held-out score rises by at least five points, shown by its interval."""
    done = run("finance.py", "--task", "finer", "--data", FINANCE_DATA, cwd=tmp_path)
    assert figure("difference", done.stdout) >= 0.05
    assert "verdict:    better" in done.stdout


@pytest.mark.skipif(not (FINANCE_DATA / "formula").is_dir(), reason="the optional finance data is not there")
def test_finance_runs_formula(tmp_path: Path) -> None:
    """Formula runs to its end and says that the offline model cannot work out a formula."""
    done = run("finance.py", "--task", "formula", "--data", FINANCE_DATA, "--train", 8, cwd=tmp_path)
    assert "cannot work out a formula" in done.stdout
    assert "verdict:" in done.stdout


def test_finance_mistakes_end_in_one_line(
    finance_folder: Path, tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing data and bad lines are named in one line, with the line number."""

    def error(*arguments: object) -> str:
        line = refusal(load("finance"), capsys, *arguments)
        assert line.count("\n") == 1, line
        return line

    assert "--data DIR" in error()
    assert "no folder" in error("--data", tmp_path / "nowhere")
    assert "cannot read" in error("--data", finance_folder, "--task", "formula")
    assert "no such folder" in error("--data", finance_folder, "--out", tmp_path / "nowhere" / "playbook.json")
    lines = finance_folder / "finer" / "val.jsonl"
    good = lines.read_text(encoding="utf-8")
    lines.write_text(good + "\n{broken\n", encoding="utf-8")
    assert "val.jsonl, line 5: not JSON" in error("--data", finance_folder)
    lines.write_text(good + '{"context": "no target"}\n', encoding="utf-8")
    assert "line 4: expected an object with text in context, target" in error("--data", finance_folder)
    lines.write_text("\n", encoding="utf-8")
    assert "no examples" in error("--data", finance_folder)
    lines.write_text(good.splitlines()[0], encoding="utf-8")
    assert "at least 2 examples" in error("--data", finance_folder)


def test_finance_from_the_hub(monkeypatch: pytest.MonkeyPatch, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows come from the splits of a hub data set; without `datasets`, or with other columns, one line says so."""
    finance = load("finance")
    sets = {"train": [{"context": "a", "target": 1}], "validation": [{"context": "b", "target": "2", "more": 3}]}
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda name: sets))
    assert finance.from_hub("owner/name") == (
        [{"context": "a", "target": "1"}],
        [{"context": "b", "target": "2"}],
    )
    del sets["train"][0]["target"]
    assert "columns context and target" in refusal(finance, capsys, "--hub", "owner/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refusal(finance, capsys, "--hub", "owner/name")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Revenues,LongTermDebt", 1.0),
        ("  revenues ,\n longtermdebt ", 1.0),
        ("LongTermDebt,Revenues", 0.0),
        ("Revenues", 0.5),
        ("Revenues,", 0.5),
        (",LongTermDebt", 0.5),
        ("Revenues,LongTermDebt,InterestExpense", 1.0),
        ("", 0.0),
        ("nan", 0.0),
        ("Revenues, Long Term Debt", 0.5),
        ("Revenues," * 100_000, 0.5),
    ],
)
def test_check_finer(answer: str, score: float, load: Load) -> None:
    """Tags are compared one by one in order; case and outer spaces do not count, a missing tag is wrong."""
    checked = load("finance").check_finer("Revenues,LongTermDebt", answer)
    assert checked.score == score
    assert len(checked.feedback) < 400


def test_check_finer_names_the_wrong_ones(load: Load) -> None:
    """The feedback says which questions were wrong, what was expected and what came."""
    feedback = load("finance").check_finer("Revenues,LongTermDebt,InterestExpense", "Revenues,Cash").feedback
    assert "1 of 3" in feedback
    assert "Question 2: expected LongTermDebt, got Cash." in feedback
    assert "Question 3: expected InterestExpense, got nothing." in feedback
    assert "Question 1" not in feedback


@pytest.mark.parametrize(
    ("target", "answer", "score"),
    [
        ("8.33", "8.33", 1.0),
        ("8.33", " 8.330\n", 1.0),
        ("1150000", "1,150,000.00", 1.0),
        ("1,150,000", "1150000", 1.0),
        ("-0.5", "-.5", 1.0),
        ("5000000000", "5e9", 1.0),
        ("8.33", "8.34", 0.0),
        ("5.0", "5%", 0.0),
        ("5.0", "$5", 0.0),
        ("5.0", "The answer is 5", 0.0),
        ("5.0", "", 0.0),
        ("5.0", "nan", 0.0),
        ("nan", "nan", 0.0),
        ("inf", "inf", 0.0),
        ("inf", "1e9999", 0.0),
        ("1000", "1_000", 0.0),
        ("5.0", "９", 0.0),
        ("1", "1" * 1_000_000, 0.0),
        ("9", "__import__('os').getpid()", 0.0),
        ("8", "2**3", 0.0),
    ],
)
def test_check_formula(target: str, answer: str, score: float, load: Load) -> None:
    """Answers are compared as numbers after removing commas; what is not a plain finite number is wrong."""
    checked = load("finance").check_formula(target, answer)
    assert checked.score == score
    assert len(checked.feedback) < 400
    assert target in checked.feedback


def test_finance_metric_survives_an_answer_that_is_missing(load: Load) -> None:
    """A prediction without an answer scores 0 and is told what was expected."""
    example = dspy.Example(context="…", answer="5.0").with_inputs("context")
    for task in ("finer", "formula"):
        graded = load("finance").make_metric(task)(example, dspy.Prediction())
        assert graded.score == 0.0
        assert "5.0" in graded.feedback


# --- uncertainty ---


def test_intervals(load: Load) -> None:
    """Wilson's interval has its textbook values; the paired interval is seeded and closes when nothing differs."""
    common = load("common")
    half, none = common.np.array([0.0, 1.0] * 5), common.np.zeros(10)
    low, high = common.wilson(half)
    assert math.isclose(low, 0.2366, abs_tol=1e-4)
    assert math.isclose(high, 0.7634, abs_tol=1e-4)
    assert common.wilson(none)[0] == 0.0
    assert common.paired_interval(half, half) == (0.0, 0.0)
    low, high = common.paired_interval(none, half, seed=1)
    assert 0.0 < low < 0.5 < high < 1.0
    assert (low, high) == common.paired_interval(none, half, seed=1)
