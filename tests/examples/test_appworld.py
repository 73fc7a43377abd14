"""The AppWorld example without AppWorld: figures, arguments, splits, and the program in a minimal world."""

from __future__ import annotations

import copy
import importlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import dspy
import pytest
from dspy.utils.dummies import DummyLM
from hypothesis import given
from hypothesis import strategies as st

from dspy_ace import ACE
from dspy_ace.testing import OfflineLM
from paths import ROOT

EXAMPLES = str(ROOT / "examples")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [EXAMPLES, *sys.path])
        yield importlib.import_module("appworld_ace")


class World:
    """A world as far as the script asks for one: code that contains `complete_task` completes the task."""

    opened: ClassVar[Counter[str | None]] = Counter()
    most: ClassVar[Counter[str | None]] = Counter()
    closed = 0
    lock = threading.Lock()

    def __init__(self, task_id: str, experiment_name: str, remote_environment_url: str | None = None) -> None:
        self.server, self.experiment, self.done, self.graded = remote_environment_url, experiment_name, False, 0
        who = SimpleNamespace(first_name="Joy", last_name="Weaver", email="joy@mail.com", phone_number="123")
        self.task = SimpleNamespace(instruction=f"Do task {task_id}.", supervisor=who)

    def __enter__(self) -> World:
        with self.lock:
            World.opened[self.server] += 1
            World.most[self.server] = max(World.most[self.server], World.opened[self.server])
        return self

    def __exit__(self, *exc: object) -> None:
        with self.lock:
            World.opened[self.server] -= 1
            World.closed += 1

    def execute(self, code: str) -> str:
        self.done = self.done or "complete_task" in code
        return "Execution failed. Traceback:\nNameError" if "oops" in code else f"ran: {code}"

    def task_completed(self) -> bool:
        return self.done

    def evaluate(self) -> Any:
        self.graded += 1
        return SimpleNamespace(success=self.done and self.graded == 1)


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    World.opened, World.most, World.closed = Counter(), Counter(), 0
    yield
    assert not any(World.opened.values())


def replies(*codes: str) -> list[dict[str, str]]:
    steps = [
        {"next_thought": "on", "next_tool_name": "run_code", "next_tool_args": f'{{"code": "{c}"}}'} for c in codes
    ]
    end = {"next_thought": "done", "next_tool_name": "finish", "next_tool_args": "{}"}
    return [*steps, end, {"reasoning": "it ran", "report": "done"}]


# --- figures ---


def test_goal_completion(script: ModuleType) -> None:
    """TGC is the share of tasks that pass, SGC that of scenarios all of whose tasks pass, both in percent."""
    passed = {"82e2fac_1": True, "82e2fac_2": True, "82e2fac_3": True, "aa_1": True, "aa_2": False, "b_b_1": True}
    assert script.task_goal_completion(passed) == pytest.approx(100 * 5 / 6)
    assert script.scenario_goal_completion(passed) == pytest.approx(100 * 2 / 3)
    for function in (script.task_goal_completion, script.scenario_goal_completion):
        with pytest.raises(ValueError, match="at least one task"):
            function({})
    with pytest.raises(ValueError, match="82e2fac_1"):
        script.scenario_goal_completion({"82e2fac": True})


@given(st.dictionaries(st.tuples(st.sampled_from("abcd"), st.integers(1, 3)), st.booleans(), min_size=1))
def test_scenarios_are_never_easier_than_their_tasks(results: dict[tuple[str, int], bool]) -> None:
    """With one task a scenario both figures agree; a scenario passes only if none of its tasks fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [EXAMPLES, *sys.path])
        goals = importlib.import_module("office.goals")
    passed = {f"{name}_{number}": done for (name, number), done in results.items()}
    failed = {name for (name, _), done in results.items() if not done}
    names = {name for name, _ in results}
    assert goals.scenario_goal_completion(passed) == pytest.approx(100 * (1 - len(failed) / len(names)))
    single = {f"{task_id}_1": done for task_id, done in passed.items()}
    assert goals.scenario_goal_completion(single) == goals.task_goal_completion(passed)


def test_the_table(script: ModuleType) -> None:
    """A row a method, TGC / SGC a split."""
    half = {"a_1": True, "a_2": False}
    text = script.table({"ReAct": {"test_normal": half}, "+ ACE": {"test_normal": dict.fromkeys(half, True)}})
    assert [line.split() for line in text.splitlines()] == [
        ["test_normal"],
        ["ReAct", "50.0", "/", "0.0"],
        ["+", "ACE", "100.0", "/", "100.0"],
    ]


# --- arguments and data ---


def test_the_defaults_are_the_papers(script: ModuleType) -> None:
    """Five epochs, one task a step, 50 steps, both test splits, no labels."""
    args = script.parse(["--model", "m"])
    assert (args.epochs, args.batch_size, args.max_steps, args.labels) == (5, 1, 50, False)
    assert args.splits == ["test_normal", "test_challenge"]
    args = script.parse(["--model", "m", "--server", "a", "--server", "b", "--splits", "dev", "--train", "3"])
    assert (args.server, args.splits, args.train) == (["a", "b"], ["dev"], 3)


@pytest.mark.parametrize("arguments", [[], ["--model", "m", "--splits", "train"], ["--model", "m", "--train", "0"]])
def test_wrong_arguments_are_refused(arguments: list[str], script: ModuleType) -> None:
    """No model, a split to train on as a test split, and no tasks are refused."""
    with pytest.raises(SystemExit) as stopped:
        script.parse(arguments)
    assert stopped.value.code == 2


def test_what_is_missing_is_named(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the package, without its data, and with an empty split the script says what to install."""

    def broken(split: str) -> list[str]:
        raise FileNotFoundError(f"no {split}")

    for package in (None, SimpleNamespace(load_task_ids=broken), SimpleNamespace(load_task_ids=lambda split: [])):
        with pytest.raises(SystemExit) as stopped:
            script.main(["--model", "m"]) if package is None else script.task_ids(package, "dev", None)
        assert stopped.value.code == 2
        assert "appworld download data" in capsys.readouterr().err
    assert script.task_ids(SimpleNamespace(load_task_ids=lambda split: [split] * 5), "dev", 2) == ["dev", "dev"]


def test_the_script_does_not_stand_in_the_way_of_the_package() -> None:
    """No example is called like the package, or `import appworld` would find it."""
    assert not (Path(EXAMPLES) / "appworld.py").exists()


# --- the program ---


def test_a_rollout(script: ModuleType) -> None:
    """The agent is given the task and its supervisor, runs code in the world, and is graded if that is asked for."""
    worlds = script.Worlds(World, "test", [])
    codes = ("x = oops", "apis.supervisor.complete_task()")
    for graded in (True, False):
        lm = DummyLM(replies(*codes))
        with dspy.context(lm=lm):
            prediction = script.AppWorldAgent(worlds, 5, graded=graded)(task_id="82e2fac_1")
        assert "Do task 82e2fac_1." in str(lm.history[0]["messages"])
        assert "first name: Joy, last name: Weaver" in str(lm.history[0]["messages"])
        assert prediction.trajectory["observation_1"] == f"ran: {codes[1]}"
        assert (prediction.completed, prediction.failed_runs) == (True, 1)
        assert ("passed" in prediction) == graded
        scored = script.metric(None, prediction)
        assert scored.score == float(graded)
        assert "Runs of code that failed: 1." in scored.feedback
        assert ("checks of the end state passed" in scored.feedback) == graded
    assert World.closed == 2


def test_an_unfinished_task_is_no_success(script: ModuleType) -> None:
    """A task that the agent never called completed scores nothing, graded or not."""
    for graded in (True, False):
        with dspy.context(lm=DummyLM(replies("print(1)"))):
            prediction = script.AppWorldAgent(script.Worlds(World, "test", []), 5, graded=graded)(task_id="a_1")
        scored = script.metric(None, prediction)
        assert (scored.score, "left uncompleted" in scored.feedback) == (0.0, True)


def test_long_outputs_are_cut_in_view(script: ModuleType) -> None:
    """An output past the limit is cut in the middle and says by how much."""
    code = "p" * 10_000
    with dspy.context(lm=DummyLM(replies(code))):
        prediction = script.AppWorldAgent(script.Worlds(World, "test", []), 5)(task_id="a_1")
    seen = prediction.trajectory["observation_0"]
    assert len(seen) < script.OUTPUT + 60
    assert f"… ({10_005 - script.OUTPUT} characters)" in seen


@pytest.mark.parametrize("servers", [[], ["one", "two"]])
def test_one_world_is_open_at_a_time_on_each_server(servers: list[str], script: ModuleType) -> None:
    """However many threads ask, also through a copied program, no server has two worlds open; a failure closes its."""
    worlds = script.Worlds(World, "test", servers)
    copied = copy.deepcopy(worlds)

    def work(number: int) -> None:
        with (worlds, copied)[number % 2](f"t_{number}") as world:
            time.sleep(0.005)
            assert world.experiment == "test"
            if number % 3 == 0:
                raise OSError(number)

    with ThreadPoolExecutor(6) as pool:
        failed = [future.exception() is not None for future in [pool.submit(work, n) for n in range(18)]]
    assert sum(failed) == 6
    assert World.closed == 18
    assert dict(World.most) == dict.fromkeys(servers or [None], 1)


@pytest.mark.slow
def test_learning_without_labels_is_not_graded(script: ModuleType, tmp_path: Path) -> None:
    """While it learns without labels no check of the end state is run or told; afterwards the program is graded."""
    lm = OfflineLM()
    for labels in (False, True):
        lm.reset_log()
        arguments = ["--model", "m", "--epochs", "1", "--max-steps", "3", "--out", str(tmp_path / "playbook.json")]
        with dspy.context(lm=lm):
            program = script.learn(
                script.parse([*arguments, *["--labels"][: int(labels)]]),
                script.Worlds(World, "test", []),
                ["a_1", "a_2"],
                1,
            )
            asked = [record.request for record in lm.log if record.role == "reflector"]
            assert len(asked) >= 2
            assert all(("checks of the end state" in request) == labels for request in asked)
            assert script.results(program, ["a_1", "b_1"], 1) == {"a_1": False, "b_1": False}
    assert (tmp_path / "playbook.json").is_file()


def test_the_program_can_be_compiled_and_keeps_its_tool(script: ModuleType) -> None:
    """A compiled program has the tool's description and the worlds of the student."""
    worlds = script.Worlds(World, "test", [])
    student = script.AppWorldAgent(worlds, 2)
    with dspy.context(lm=OfflineLM()):
        program: Any = ACE(script.metric, epochs=1).compile(student, script.as_examples(["a_1"]))
    assert script.run_code.__doc__ in program.agent.react.signature.instructions
    assert program.open_world is worlds
