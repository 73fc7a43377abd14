"""The agent example: what it shows, what its program keeps, and what no prompt may hold."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import agent
import dspy
import pytest
from office.apprentice import Apprentice
from office.tasks import Task, make_tasks
from office.world import EndState, current, opened

from dspy_ace import ACE, Bullet, Playbook, with_playbook
from dspy_ace.program import rollouts
from paths import ROOT


@pytest.fixture
def lm() -> Any:
    apprentice = Apprentice()
    with dspy.context(lm=apprentice):
        yield apprentice


def student_of(tasks: Any, **settings: Any) -> Any:
    return agent.OfficeAgent({task.id: task for split in tasks for task in split}, agent.TOOLS, **settings)


def run(*arguments: object, cwd: Path) -> str:
    """Run the script as a user does; what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "agent.py"), *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def rates(label: str, output: str) -> list[float]:
    """Task and scenario goal completion of a row, normal, then challenge; last the bullets."""
    line = re.findall(rf"^{label}: +(.*)$", output, re.MULTILINE)[-1]
    return [float(number) for number in re.findall(r"[\d.]+", line)]


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Playbook]:
    """What the script prints with its defaults, and the playbook that it saves."""
    folder = tmp_path_factory.mktemp("agent")
    output = run("--out", folder / "playbook.json", cwd=folder)
    return output, Playbook.load(folder / "playbook.json")


@pytest.mark.slow
@pytest.mark.compat
def test_the_default_run(default_run: tuple[str, Playbook]) -> None:
    """With its defaults the script completes at most 45 % before and at least 80 % after, and saves the playbook."""
    output, playbook = default_run
    before, after = rates("student", output), rates("ACE", output)
    assert max(before[:4]) <= 45
    assert min(after[:4]) >= 80
    for words in ("does not measure how good", "normal:", "challenge:", "points (95 % paired bootstrap", "reflector"):
        assert words in output
    assert len(playbook) == after[4] >= 4
    assert before[4] == 0


@pytest.mark.slow
def test_the_playbook_to_read_is_that_of_the_default_run(default_run: tuple[str, Playbook]) -> None:
    """`examples/playbook.md` ends with the playbook that the script learns, bullet by bullet, votes included."""
    page = (ROOT / "examples" / "playbook.md").read_text(encoding="utf-8")
    assert page.endswith(f"\n\n{default_run[1].to_markdown().strip()}\n")


@pytest.mark.slow
def test_sizes_are_options(tmp_path: Path) -> None:
    """A small run has the sizes asked for."""
    output = run("--train", 6, "--val", 2, "--test", 3, "--epochs", 1, "--seed", 5, "--threads", 1, cwd=tmp_path)
    assert "Tasks: 6 training, 2 validation, 3 normal and 3 challenge test." in output
    assert len(rates("ACE", output)) == 5


def test_it_refuses_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file that cannot be written ends the script before the first call."""
    with pytest.raises(SystemExit) as stopped:
        agent.main(["--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: --out: cannot write")


@pytest.mark.compat
def test_the_tools_descriptions_stay(lm: Apprentice) -> None:
    """After compile every tool stands in the agent's instructions as before, above the playbook, and is callable."""
    tasks = agent.make_tasks(0, 8, 2, 3, 3)
    student = student_of(tasks)
    plain = student.agent.react.signature.instructions
    program: Any = ACE(agent.metric, labels=False, epochs=1, num_threads=2).compile(
        student, agent.as_examples(tasks.train)
    )
    program = with_playbook(program, program.detailed_results.learned_playbook)
    assert len(program.playbook) >= 2
    compiled = program.agent.react.signature.instructions
    assert compiled.startswith(plain)
    assert student.agent.react.signature.instructions == plain
    for tool in agent.TOOLS:
        assert f"{tool.__name__}, whose description is <desc>{tool.__doc__}</desc>" in compiled
        assert program.agent.tools[tool.__name__].func is tool


def test_no_prompt_holds_what_the_check_knows(lm: Apprentice) -> None:
    """Examples have no labels, and the right answer of a task that was never worked out is in no role's prompt."""
    tasks = agent.make_tasks(0, 30, 1, 1, 1)
    counts = [task for task in tasks.train if "number of messages" in task.text]
    assert counts
    examples = agent.as_examples(counts)
    assert all(not example.labels().toDict() for example in examples)
    secret = "4711"  # in place of the right count: nobody can find it out
    wanted = EndState(sent=(("Nobody", secret),))
    known = {task.id: replace(task, wanted=wanted) for task in counts}
    ACE(agent.metric, labels=False, epochs=1).compile(agent.OfficeAgent(known, agent.TOOLS), examples)
    assert any(record.role == "reflector" for record in lm.log)
    assert all(secret not in record.request for record in lm.log)


def test_the_reflector_sees_every_step(lm: Apprentice) -> None:
    """Thoughts, calls with arguments, answers and errors stand in the reflection request, and how the attempt ended."""
    tasks = agent.make_tasks(0, 30, 1, 1, 1)
    task = next(task for task in tasks.train if "invoices" in task.text and "guest" not in task.text)
    ACE(agent.metric, labels=False, epochs=1, max_reflection_rounds=0).compile(
        student_of(tasks), agent.as_examples([task])
    )
    (request,) = (record.request for record in lm.log if record.role == "reflector")
    for words in ("pay fits", "read_mail", "'person': ", "Returned: policy 3. No ", "→ next_thought"):
        assert words in request
    assert "The end state does not fit the task. Calls that the office rejected: 2." in request


def test_the_step_limit_is_told(lm: Apprentice) -> None:
    """An agent that is cut off at its step limit gets that as feedback, and its end state is checked as it is."""
    tasks = agent.make_tasks(0, 30, 1, 1, 1)
    task = next(task for task in tasks.train if "invoices" in task.text)
    (cut,) = rollouts(student_of(tasks, max_iters=2), agent.as_examples([task]), agent.metric)
    assert cut.feedback.score == 0
    assert cut.feedback.text.endswith("The step limit was reached before the agent finished.")
    (whole,) = rollouts(student_of(tasks), agent.as_examples([task]), agent.metric)
    assert "step limit" not in whole.feedback.text


def test_each_rollout_has_an_office_of_its_own(lm: Apprentice) -> None:
    """The same task, in many threads and again, gives the same result each time; a failing program leaves none open."""
    tasks = agent.make_tasks(0, 6, 1, 1, 1)
    task = next(task for task in tasks.train if "Book" in task.text)
    names = Bullet("str-00001", "OTHERS", "Write a name with the last word first.")
    student = with_playbook(student_of(tasks), Playbook((names,)))
    for _ in range(2):
        done = rollouts(student, agent.as_examples([task] * 12), agent.metric, num_threads=4)
        ended = {(trajectory.prediction.failed_checks, trajectory.prediction.rejections) for trajectory in done}
        assert len(ended) == 1
    broken = student_of(tasks)
    broken.agent = SimpleNamespace()
    with pytest.raises(TypeError):
        broken(task_id=task.id, task=task.text)
    with pytest.raises(LookupError):
        current()


def open_office(tasks: dict[str, Task], example: dspy.Example) -> AbstractContextManager[Any]:
    """The environment of a rollout: a fresh office with the records of its task."""
    return opened(tasks[example.task].records)


def metric_of_the_office(tasks: dict[str, Task], example: dspy.Example, prediction: Any, trace: Any = None) -> Any:
    """Look into the office while it is open, and say what the example's metric says."""
    office = current()
    prediction.failed_checks = tasks[example.task].failed_checks(office)
    prediction.rejections = len(office.end_state().log)
    prediction.ended = "finish" in prediction.trajectory.values()
    return agent.metric(example, prediction)


@pytest.mark.slow
def test_offices_that_workers_open_teach_the_same(lm: Any, tmp_path: Path) -> None:
    """A ReAct agent whose office is opened by `setup=`: spawned processes learn the playbook of threads."""
    drawn = make_tasks(0, 18, 6, 3, 3)
    tasks = {task.text: task for task in [*drawn.train, *drawn.val]}
    train, val = (
        [dspy.Example(task=task.text).with_inputs("task") for task in split] for split in (drawn.train, drawn.val)
    )
    programs = []
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for place, executor in (("threads", None), ("processes", pool)):
            ace = ACE(
                partial(metric_of_the_office, tasks), labels=False, epochs=1, batch_size=6, num_threads=3,
                setup=partial(open_office, tasks), executor=executor, log_dir=tmp_path / place,
            )  # fmt: skip
            student = dspy.ReAct(agent.DoTask, tools=list(agent.TOOLS), max_iters=30)
            programs.append(ace.compile(student, train, valset=val))
    here, there = programs
    assert len(here.playbook) > 0
    assert there.playbook == here.playbook
    assert (tmp_path / "processes" / "journal.jsonl").read_bytes() == (
        tmp_path / "threads" / "journal.jsonl"
    ).read_bytes()
    assert {role: usage.calls for role, usage in there.detailed_results.usage.items()} == {
        role: usage.calls for role, usage in here.detailed_results.usage.items()
    }
