"""The command `dspy-ace`, from a file of cases to a better prompt, and what it does with playbooks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dspy
import pytest
from click.testing import CliRunner, Result

from dspy_ace import ACE, Bullet, Executed, Playbook, PlaybookStore, with_playbook
from dspy_ace.cli import main
from dspy_ace.cli.commands import _model
from dspy_ace.cli.sources import Source
from dspy_ace.errors import SettingsError
from dspy_ace.playbook import Add, Delta
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import serve
from paths import ROOT

DESKS = {"refund": "accounts", "password": "helpdesk", "parcel": "logistics", "laptop": "helpdesk"}
TEXTS = ("Where is my {}?", "Please check this {}", "Who sees to a {}?", "No {} yet", "Bad {} again", "The {} is late")
PROMPT = "You sort messages.\nAnswer with one of: accounts, helpdesk, logistics.\n"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a file of cases and a prompt is the current one."""
    monkeypatch.chdir(tmp_path)
    rows = [{"message": t.format(w), "desk": d} for t in TEXTS for w, d in DESKS.items()]
    Path("cases.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    Path("prompt.txt").write_text(PROMPT, encoding="utf-8")
    PLAYBOOK.save("playbook.json")


PLAYBOOK = Playbook(
    [
        Bullet("str-00001", "STRATEGIES", "Read the unit.\nTwice.", 2, 1, None, ("u1",)),
        Bullet("misc-00002", "OTHERS", "Name the desk.", sources=("u2",)),
    ]
)


def run(*arguments: str, **settings: Any) -> Result:
    """Run the command in this process. An exception that is no exit is the test's."""
    result = CliRunner().invoke(main, list(arguments), **settings)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def optimize(*more: str, **settings: Any) -> Result:
    return run("optimize", "--data", "cases.jsonl", "--model", "offline", *more, **settings)


@pytest.mark.compat
def test_a_file_of_cases_and_a_prompt_give_a_better_prompt() -> None:
    """The old prompt stands untouched above the playbook; the report says before, after, interval and cost."""
    done = optimize("--prompt", "prompt.txt", "--out", "better.txt")
    assert (done.exit_code, done.stdout) == (0, "")
    better = Path("better.txt").read_text(encoding="utf-8")
    assert better.startswith(PROMPT)
    assert "\n\n## Playbook\n" in better
    assert "answer logistics" in better
    wanted = ("score before", "score after", "better: ", "95 % interval", "LM calls", "dollars", "Written: better.txt")
    assert [words for words in (*wanted, "Input: message. Expected: desk.") if words not in done.stderr] == []


def test_without_out_the_prompt_alone_is_on_stdout() -> None:
    """`dspy-ace optimize … > better.txt` works; what is said goes to stderr."""
    done = optimize("--prompt", "prompt.txt")
    assert done.stdout.startswith(PROMPT)
    assert done.stdout.endswith("\n")
    assert "Metric" not in done.stdout


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_character_of_the_old_prompt_is_kept(ending: str) -> None:
    """Indentation, braces, adapter markers, a heading of its own and line ends stand as they were."""
    lines = ["\tYou sort.", "", "  Indented {braces}, [[ ## markers ## ]] and a", "## Playbook", "of mine."]
    prompt = ending.join(lines)
    Path("odd.txt").write_bytes(prompt.encode())
    done = optimize("--prompt", "odd.txt", "--out", "better.txt")
    assert done.exit_code == 0, done.stderr
    better = Path("better.txt").read_bytes().decode()
    assert better.startswith(prompt)
    assert "answer logistics" in better
    assert "answer logistics" in run("show", "better.txt").stdout


def test_a_better_prompt_can_be_made_better_again() -> None:
    """A prompt with a playbook goes on from it: there is one playbook in the result, and the ids go on."""
    optimize("--prompt", "prompt.txt", "--out", "better.txt")
    again = optimize("--prompt", "better.txt", "--out", "again.txt")
    assert again.exit_code == 0
    text = Path("again.txt").read_text(encoding="utf-8")
    assert text.startswith(PROMPT)
    assert text.count("## Playbook") == 1


def test_a_plan_costs_nothing() -> None:
    """`--dry-run` says what would be done at most and for how much; nothing is called or written."""
    plan = run(
        "optimize", "--data", "cases.jsonl", "--model", "openai/gpt-4o-mini", "--max-cost", "1", "--dry-run",
        "--log-dir", "run", "--out", "better.txt",
    )  # fmt: skip
    assert plan.exit_code == 0, plan.stderr
    assert "Planned: at most" in plan.stderr
    assert "about $0.0" in plan.stderr
    assert "max_cost=1." in plan.stderr
    assert not Path("run").exists()
    assert not Path("better.txt").exists()


def test_the_same_command_goes_on_with_a_run() -> None:
    """With `--log-dir` the run is kept; a finished one is not paid for again."""
    first = optimize("--log-dir", "run", "--out", "a.txt")
    again = optimize("--log-dir", "run", "--out", "b.txt")
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert Path("a.txt").read_bytes() == Path("b.txt").read_bytes()
    other = optimize("--log-dir", "run", "--metric", "contains")
    assert (other.exit_code, other.stderr.count("Error")) == (1, 1)
    assert "metric" in other.stderr


def test_a_program_of_your_own() -> None:
    """`--program` takes a module's function; its columns are named as its fields are, and a .json is its state."""
    Path("mine.py").write_text(
        "import dspy\ndef make():\n    return dspy.ChainOfThought(\"message -> desk: Literal['accounts', 'helpdesk', "
        "'logistics']\")\ndef right(example, prediction, trace=None):\n    return example.desk == prediction.desk\n"
    )
    done = optimize("--program", "mine:make", "--metric", "mine:right", "--out", "better.json")
    assert done.exit_code == 0, done.stderr
    loaded = dspy.ChainOfThought("message -> desk: Literal['accounts', 'helpdesk', 'logistics']")
    loaded.load("better.json")
    assert len(Playbook.from_program(loaded)) > 0
    assert "bullets" in run("show", "better.json").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "nope:f"), "--metric nope:f cannot be imported: ModuleNotFoundError"),
        (("--metric", "json:nope"), "json:nope cannot be imported: AttributeError"),
        (("--metric", "json:__name__"), "is str; expected a function"),
        (("--metric", "wrong"), "--metric wrong is unknown; use exact"),
        (("--program", "json:dumps"), "--program json:dumps"),
        (("--program", "time:time"), "returned float; expected a DSPy program"),
        (("--program", "time:time", "--prompt", "prompt.txt"), "exclude each other"),
        (("--out", "nowhere/better.txt"), "no folder nowhere"),
        (("--expected", "reply"), "no column 'reply'"),
        (("--model", "openai/nope", "--max-cost", "1"), "has none for 'openai/nope'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, exit code 1, nothing on stdout, and no call was made."""
    monkeypatch.setenv("OPENAI_API_KEY", "of-nobody")
    done = optimize(*arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert done.stdout == ""


def test_an_empty_prompt_is_a_mistake() -> None:
    """There is nothing to make better."""
    Path("empty.txt").write_text(" \n")
    assert "empty.txt is empty" in optimize("--prompt", "empty.txt").stderr


def test_wrong_options_are_told_by_click() -> None:
    """A missing option or file is exit code 2, with the usage."""
    assert run("optimize", "--data", "cases.jsonl").exit_code == 2
    assert run("optimize", "--data", "nope.csv", "--model", "offline").exit_code == 2
    assert run("--help").exit_code == 0


def test_a_model_without_a_key_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named before any call is made; a plan needs no key."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked = ("optimize", "--data", "cases.jsonl", "--model", "openai/gpt-4o-mini")
    done = run(*asked)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        "Error: 'openai/gpt-4o-mini' needs a key: set OPENAI_API_KEY in the environment."
    )
    assert "rollouts" not in done.stderr
    assert run(*asked, "--dry-run").exit_code == 0


def test_a_server_of_your_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--api-base` reaches an OpenAI-compatible server; the reflection model may be another one of it."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve() as server:
        done = run(
            *("optimize", "--data", "cases.jsonl", "--prompt", "prompt.txt", "--model", "openai/small"),
            *("--reflection-model", "openai/strong", "--api-base", server.url, "--out", "better.txt"),
        )
    assert done.exit_code == 0, done.stderr
    assert "answer logistics" in Path("better.txt").read_text()
    assert server.calls > 0


SLOW = """
import time
import dspy
class Slow(dspy.Predict):
    def forward(self, **inputs):
        time.sleep(0.2)
        return super().forward(**inputs)
def make():
    return Slow("message -> desk: Literal['accounts', 'helpdesk', 'logistics']")
"""


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_learned_and_says_where(tmp_path: Path) -> None:
    """The exit code is 130, the best prompt so far is written, and the run's folder is named. No terminal is needed."""
    Path("slow.py").write_text(SLOW)
    rows = [{"message": t.format(w) + str(n), "desk": d} for n in range(5) for t in TEXTS for w, d in DESKS.items()]
    Path("many.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "40", "PYTHONIOENCODING": "ascii",
    }  # fmt: skip
    command = [sys.executable, "-m", "dspy_ace", "optimize", "--data", "many.jsonl", "--model", "offline"]
    command += ["--program", "slow:make", "--threads", "2", "--log-dir", "run", "--out", "best.txt"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        journal = tmp_path / "run" / "journal.jsonl"
        for _ in range(600):
            if journal.exists() and journal.read_bytes().count(b"\n"):
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    said = err.decode()
    assert process.returncode == 130, said
    assert out == b""
    assert "Traceback" not in said
    assert "Written: best.txt" in said
    assert re.search(r"The run is in .*run\.", said)
    assert "## Playbook" in Path("best.txt").read_text()


# --- playbooks


@pytest.fixture
def sources() -> dict[str, str]:
    """The same playbook as each thing that can hold one."""
    student = dspy.Predict(dspy.Signature("message -> desk", PROMPT))
    program = with_playbook(student, PLAYBOOK)
    program.save("program.json")
    (predictor,) = program.predictors()
    Path("better.txt").write_text(predictor.signature.instructions, encoding="utf-8")
    Path("playbook.txt").write_text(PLAYBOOK.to_text(), encoding="utf-8")
    with PlaybookStore("store.db", seed=PLAYBOOK):
        pass
    examples = [dspy.Example(message="m", desk="d").with_inputs("message")]
    with dspy.context(lm=OfflineLM()):
        ACE(Executed(), playbook=PLAYBOOK, log_dir="run").compile(student, examples)
    return {
        "playbook": "playbook.json", "program": "program.json", "prompt": "better.txt", "text": "playbook.txt",
        "store": "store.db", "run": "run",
    }  # fmt: skip


KINDS = ("playbook", "program", "prompt", "text", "store", "run")


@pytest.mark.parametrize("kind", KINDS)
def test_each_thing_that_holds_a_playbook_is_shown(kind: str, sources: dict[str, str]) -> None:
    """`show` prints the bullets of whatever holds them."""
    shown = run("show", sources[kind])
    assert shown.exit_code == 0
    assert "Read the unit." in shown.stdout
    assert "[misc-00002]" in shown.stdout
    assert "2 bullets" in shown.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nope.json", None, "There is no nope.json"), ("folder", "/", "is no run of dspy_ace"),
        ("half.json", '{"format": ', "not whole"), ("other.json", '{"a": 1}', "neither a playbook nor a saved program"),
        ("odd.json", '{"ask": {"signature": {"instructions": 5}}}', "neither a playbook nor a saved program"),
        ("words.txt", "only words", "line 1, 'only words', is neither"), ("empty.txt", "", "holds no playbook"),
        ("new.json", '{"format": "dspy_ace.playbook", "version": 99}', "version 99"),
    ],
)  # fmt: skip
def test_what_holds_no_playbook_is_refused(name: str, content: str | None, message: str) -> None:
    """One sentence says what it is instead."""
    if content == "/":
        Path(name).mkdir()
    elif content is not None:
        Path(name).write_text(content)
    done = run("show", name)
    assert (done.exit_code, done.stdout) == (1, "")
    assert message in done.stderr


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "run"])
def test_an_edit_is_put_back_where_it_was(kind: str, sources: dict[str, str]) -> None:
    """Text out, changed, and back: ids stay, the rest of the prompt stays, and so do sources that are known."""
    text = run("export", sources[kind]).stdout.replace("Name the desk.", "Name the desk, always.")
    Path("edited.txt").write_text(text, encoding="utf-8")
    done = run("edit", sources[kind], "--text", "edited.txt")
    assert done.exit_code == 0, done.stderr
    shown = run("show", sources[kind]).stdout
    assert "[misc-00002]" in shown
    assert "Name the desk, always." in shown
    assert "Read the unit.\n" in shown
    if kind == "prompt":
        assert Path("better.txt").read_text().startswith(PROMPT)
    if kind == "playbook":
        assert [b.sources for b in Playbook.load("playbook.json")] == [("u1",), ("u2",)]
    if kind == "program":
        loaded = dspy.Predict(dspy.Signature("message -> desk", "other"))
        loaded.load("program.json")
        assert "always" in loaded.signature.instructions
        assert loaded.signature.instructions.startswith(PROMPT.strip())


def test_edits_of_a_prompt_leave_the_rest_of_it_alone(sources: dict[str, str]) -> None:
    """However often a prompt is edited, what stands around its playbook stays as it is, empty lines included."""
    path = Path(sources["prompt"])
    before = path.read_text(encoding="utf-8")
    for name in ("Name a desk.", "Name one desk.", "Name the desk."):
        text = run("show", sources["prompt"]).stdout
        Path("edited.txt").write_text(re.sub("Name .* desk.", name, text), encoding="utf-8")
        assert run("edit", sources["prompt"], "--text", "edited.txt").exit_code == 0
        assert path.read_text(encoding="utf-8") == before.replace("Name the desk.", name).rstrip("\n") + "\n"


def test_a_text_edited_into_nonsense_changes_nothing_and_is_kept() -> None:
    """The lines that are not understood are named with their numbers; the text stays where it is."""
    Path("edited.txt").write_text("## TOOLS\n[x-1] fine\nwhat is this?\n", encoding="utf-8")
    done = run("edit", "playbook.json", "--text", "edited.txt")
    assert (done.exit_code, "line 3" in done.stderr, "edited.txt" in done.stderr) == (1, True, True)
    assert Playbook.load("playbook.json") == PLAYBOOK


@pytest.mark.parametrize("kind", ["playbook", "store", "prompt"])
def test_new_bullets_and_removed_ones_are_put_back(kind: str, sources: dict[str, str]) -> None:
    """`- text` is a new bullet with the next id; a line that is gone is a bullet that is gone."""
    Path("edited.txt").write_text("## OTHERS\n[misc-00002] Name the desk.\n- Say please.\n", encoding="utf-8")
    assert run("edit", sources[kind], "--text", "edited.txt").exit_code == 0
    shown = run("show", sources[kind]).stdout
    assert "str-00001" not in shown
    assert "[misc-00003]" in shown
    assert "Say please." in shown


def test_the_editor_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """`$EDITOR` gets the text; what it leaves is checked and put back."""
    Path("editor.py").write_text(
        "import sys; p = sys.argv[1]; t = open(p).read(); open(p, 'w').write(t.replace('Name the', 'Name one'))"
    )
    monkeypatch.setenv("EDITOR", f"{sys.executable} editor.py")
    assert run("edit", "playbook.json").exit_code == 0
    assert Playbook.load("playbook.json")["misc-00002"].content == "Name one desk."
    monkeypatch.setenv("EDITOR", "true")
    assert "Nothing was changed." in run("edit", "playbook.json").stderr


def test_a_run_is_not_edited_but_its_playbook_can_be_written_elsewhere(sources: dict[str, str]) -> None:
    """The folder of a run is a record: a result needs a file of its own."""
    Path("edited.txt").write_text(PLAYBOOK.to_text().replace("Name", "Say"), encoding="utf-8")
    refused = run("edit", "run", "--text", "edited.txt")
    assert "record of a run" in refused.stderr
    assert run("edit", "run", "--text", "edited.txt", "--out", "mine.json").exit_code == 0
    assert Playbook.load("mine.json")["misc-00002"].content == "Say the desk."
    assert "Name the desk." in run("show", "run").stdout


def test_two_playbooks_are_compared_and_merged() -> None:
    """`diff` prints what changed; `merge` makes one playbook, as text or in a file."""
    other = Playbook([Bullet("str-00001", "STRATEGIES", "Read the unit.\nTwice."), Bullet("x-3", "OTHERS", "New one.")])
    other.save("other.json")
    changed = run("diff", "playbook.json", "other.json").stdout
    assert "New one." in changed
    assert "Name the desk." in changed
    assert run("merge", "playbook.json", "other.json", "--out", "both.json").exit_code == 0
    assert [b.content for b in Playbook.load("both.json")] == ["Read the unit.\nTwice.", "Name the desk.", "New one."]
    assert "New one." in run("merge", "playbook.json", "other.json").stdout


def test_a_playbook_is_exported_for_other_programs(sources: dict[str, str]) -> None:
    """As JSON, as the whole prompt, and as messages that any OpenAI client takes."""
    assert Playbook.from_json(json.loads(run("export", "playbook.json", "--format", "json").stdout)) == PLAYBOOK
    assert "- **[misc-00002]** Name the desk." in run("export", "playbook.json", "--format", "markdown").stdout
    (message,) = json.loads(run("export", "better.txt", "--format", "openai").stdout)
    assert message["role"] == "system"
    assert message["content"].startswith(PROMPT)
    assert "Name the desk." in message["content"]
    prompt = run("export", "program.json", "--format", "prompt", "--out", "prompt2.txt")
    assert prompt.exit_code == 0
    assert Path("prompt2.txt").read_text().startswith(PROMPT.strip())


@pytest.mark.parametrize("kind", ["playbook", "store"])
def test_what_somebody_taught_is_forgotten(kind: str, sources: dict[str, str]) -> None:
    """The bullets are gone from the file or the store, and the account says so."""
    done = run("forget", sources[kind], "--source", "u2")
    assert done.exit_code == 0, done.stderr
    assert "misc-00002" in done.stderr
    assert "Name the desk." not in run("show", sources[kind]).stdout
    assert run("forget", sources[kind], "--matching", "unit", "--out", "left.json").exit_code == 0
    assert len(Playbook.load("left.json")) == 0
    assert "Read the unit." in run("show", sources[kind]).stdout  # what is written elsewhere is not changed here
    unknown = run("forget", sources[kind], "--source", "nobody")
    assert (unknown.exit_code, "known are" in unknown.stderr) == (1, True)
    nothing = run("forget", sources[kind])
    assert "Nothing is selected" in nothing.stderr


def test_the_page_of_a_run_is_written() -> None:
    """`report RUN` writes the page; a folder that is no run is refused."""
    optimize("--log-dir", "run", "--out", "a.txt")
    done = run("report", "run", "--out", "page.html")
    assert (done.exit_code, done.stderr) == (0, "Written: page.html\n")
    assert Path("page.html").read_bytes() == Path("run/run.html").read_bytes()
    Path("nothing").mkdir()
    assert "is no run of dspy_ace" in run("report", "nothing").stderr


def test_rows_are_parted_as_the_guide_says() -> None:
    """`--rows` is the most that is used; a third of them, at most 60, is kept back; `--auto` reaches the plan."""
    rows = [{"message": f"message {n}", "desk": "accounts"} for n in range(400)]
    Path("many.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def plan(*more: str) -> str:
        return run("optimize", "--data", "many.jsonl", "--model", "offline", "--dry-run", *more).stderr

    assert "300 of 400 rows are used" in plan()
    assert "240 rows to learn from, 60 to check on" in plan()
    assert "20 rows to learn from, 10 to check on" in plan("--rows", "30")
    assert "(480 to learn, " in plan()
    assert "(240 to learn, " in plan("--auto", "light")


def test_an_error_after_something_was_learned_keeps_it_and_is_told() -> None:
    """The best prompt so far is written, the error is the last line, and the exit code is 1."""
    Path("breaks.py").write_text(
        "calls = []\ndef metric(example, prediction, trace=None):\n    calls.append(1)\n"
        "    assert len(calls) <= 35, 'out of order'\n    return example.desk == prediction.desk\n"
    )
    rows = [{"message": f"{t.format(w)} {n}", "desk": d} for n in range(3) for t in TEXTS for w, d in DESKS.items()]
    Path("many.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    done = run(
        *("optimize", "--data", "many.jsonl", "--prompt", "prompt.txt", "--model", "offline"),
        *("--metric", "breaks:metric", "--threads", "1", "--out", "best.txt"),
    )
    assert done.exit_code == 1
    assert "out of order" in done.stderr.splitlines()[-1]
    assert "Written: best.txt" in done.stderr
    assert Path("best.txt").read_text(encoding="utf-8").startswith(PROMPT)


def test_a_store_that_was_changed_meanwhile_is_not_written(sources: dict[str, str]) -> None:
    """An edit rests on what was read: what another process learned since is not overwritten."""
    source = Source.open(sources["store"])
    with PlaybookStore("store.db") as store:
        store.append(Delta((Add("OTHERS", "Learned meanwhile."),)), store.snapshot()[0])
    with pytest.raises(SettingsError, match="changed meanwhile"):
        source.put(source.playbook.remove("misc-00002"), None)
    assert "misc-00002" in run("show", "store.db").stdout


def test_each_prompt_of_a_program_with_several_is_exported() -> None:
    """Below its name as text."""

    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = dspy.Predict("message -> topic"), dspy.Predict("topic -> desk")

    with_playbook(Two(), PLAYBOOK).save("two.json")
    shown = run("export", "two.json", "--format", "prompt").stdout
    assert "# first\nGiven the fields `message`" in shown
    assert "# second\nGiven the fields `topic`" in shown
    assert shown.count("Name the desk.") == 2
    messages = json.loads(run("export", "two.json", "--format", "openai").stdout)
    assert {name: [message["role"] for message in each] for name, each in messages.items()} == {
        "first": ["system"],
        "second": ["system"],
    }


def test_an_answer_has_a_limit_where_dollars_have_one() -> None:
    """Else the longest answer of the model would be held back for each call."""
    assert _model("openai/gpt-4o-mini", None, 1.0).kwargs["max_tokens"] == 16_000
    assert _model("openai/gpt-4o-mini", None, None).kwargs.get("max_tokens") is None


def test_a_store_that_is_not_there_is_refused_and_not_made() -> None:
    """A slip in a URL is one sentence, and no empty database."""
    done = run("show", "sqlite:///typo.db")
    assert (done.exit_code, "There is no sqlite:///typo.db" in done.stderr) == (1, True)
    assert not Path("typo.db").exists()
    with PlaybookStore("store.db", seed=PLAYBOOK):
        pass
    assert "[misc-00002]" in run("show", "sqlite:///store.db").stdout
