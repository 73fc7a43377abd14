"""ACE on AppWorld, the agent benchmark of the paper: ReAct that writes code, learned on `train`.

    pip install appworld && appworld install && appworld download data     # AppWorld's own steps, once
    python examples/appworld_ace.py --model openai/gpt-4o-mini             # no labels: execution feedback alone
    python examples/appworld_ace.py --model … --labels                     # training tasks scored by AppWorld's checks
    python examples/appworld_ace.py --model … --server http://127.0.0.1:8001 --server http://127.0.0.1:8002

Two worlds in one process disturb each other, so one is open at a time; with `--server` (each one started by
`appworld serve environment --port …`) one is open on each of them. Reported are task goal completion (TGC) and
scenario goal completion (SGC) on test-normal and test-challenge, for the student and after ACE.

The file is not called `appworld.py`: from this folder `import appworld` would find it in place of the package.
"""

from __future__ import annotations

import argparse
import importlib
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import dspy
from common import add_api_base, brief, check_out, connect, fail, positive, probe, run
from office.goals import scenario_goal_completion, task_goal_completion

from dspy_ace import ACE, AceError

SPLITS = ("train", "dev", "test_normal", "test_challenge")
OUTPUT = 6000
"""Characters of an output that are shown to the agent."""
INSTALL = "AppWorld is not installed: pip install appworld && appworld install && appworld download data"
FAILED = "Execution failed"
OpenWorld = Callable[[str], AbstractContextManager[Any]]
"""Task id → an open world: `task.instruction`, `task.supervisor`, `execute`, `task_completed`, `evaluate`."""
_world: ContextVar[Any] = ContextVar("appworld_world")


class SolveTask(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """Do the task for your supervisor by running Python code in their account of apps, step by step.

    In the code `apis` is there, one attribute an app. `apis.api_docs.show_app_descriptions()` lists the apps,
    `apis.api_docs.show_api_descriptions(app_name=…)` the calls of one, `apis.api_docs.show_api_doc(app_name=…,
    api_name=…)` tells how to make one; `apis.supervisor.show_account_passwords()` has the passwords. Print what
    you want to see. Variables stay from one step to the next. When all is done, and not before, call
    `apis.supervisor.complete_task()`, with `answer=…` if the task is a question; then finish.
    """

    instruction: str = dspy.InputField(desc="the task, as the supervisor words it")
    supervisor: str = dspy.InputField(desc="who the supervisor is")
    report: str = dspy.OutputField(desc="what was done, in a sentence")


def run_code(code: str) -> str:
    """Run Python code in the apps' shell; what it prints, or the error it ends in."""
    output = str(_world.get().execute(code))
    half = OUTPUT // 2
    return (
        output if len(output) <= OUTPUT else f"{output[:half]}\n… ({len(output) - OUTPUT} characters)\n{output[-half:]}"
    )


class AppWorldAgent(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """ReAct over one world per rollout.

    Args:
        open_world: opens the world of a task and closes it, also after a failure.
        max_iters: steps at most.
        graded: whether AppWorld's checks are run at the end. They know the right end state: off while learning without
            labels, since a prediction is shown to the reflector.
    """

    def __init__(self, open_world: OpenWorld, max_iters: int = 50, graded: bool = True) -> None:
        super().__init__()
        self.open_world, self.graded = open_world, graded
        self.agent = dspy.ReAct(SolveTask, tools=[run_code], max_iters=max_iters)

    def forward(self, task_id: str) -> dspy.Prediction:
        """Do one task. The prediction tells whether the agent called it completed, how many of its runs of code failed,
        and `passed` if it is graded.
        """
        with self.open_world(task_id) as world:
            token = _world.set(world)
            try:
                prediction = self.agent(instruction=world.task.instruction, supervisor=_who(world.task.supervisor))
            finally:
                _world.reset(token)
            prediction.completed = bool(world.task_completed())
            if self.graded:
                prediction.passed = bool(world.evaluate().success)
        seen = [text for name, text in prediction.trajectory.items() if name.startswith("observation_")]
        prediction.failed_runs = sum(FAILED in str(text) for text in seen)
        return prediction


def _who(supervisor: Any) -> str:
    names = ("first_name", "last_name", "email", "phone_number")
    return ", ".join(f"{name.replace('_', ' ')}: {getattr(supervisor, name)}" for name in names)


def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """The score of a rollout: AppWorld's checks if it was graded, else whether it ended without a visible failure."""
    words = ["The agent marked the task as completed." if prediction.completed else "The task was left uncompleted."]
    if prediction.failed_runs:
        words.append(f"Runs of code that failed: {prediction.failed_runs}.")
    passed = getattr(prediction, "passed", None)
    if passed is not None:
        words.append(f"The checks of the end state {'passed' if passed else 'failed'}.")
    good = prediction.completed and not prediction.failed_runs if passed is None else passed
    return dspy.Prediction(score=float(good), feedback=" ".join(words))


class Worlds:
    """Opens worlds, one at a time in this process or one on each server, however many threads ask.

    Args:
        world: `appworld.AppWorld`, or what is called alike.
        experiment: the name under which AppWorld files its outputs.
        servers: addresses of AppWorld environment servers; none: in this process.
    """

    def __init__(
        self, world: Callable[..., AbstractContextManager[Any]], experiment: str, servers: Sequence[str]
    ) -> None:
        self._world, self._experiment = world, experiment
        self._free: queue.Queue[str | None] = queue.Queue()
        for server in servers or [None]:
            self._free.put(server)

    def __deepcopy__(self, memo: dict[int, Any]) -> Worlds:
        return self  # one queue for all copies of a program

    @contextmanager
    def __call__(self, task_id: str) -> Iterator[Any]:
        """The world of a task; waits until one may be opened."""
        server = self._free.get()
        where = {"remote_environment_url": server} if server else {}
        try:
            with self._world(task_id=task_id, experiment_name=self._experiment, **where) as world:
                yield world
        finally:
            self._free.put(server)


def load_appworld() -> Any:
    """The package `appworld`; ends the script with one line if it is not there."""
    try:
        return importlib.import_module("appworld")
    except ImportError:
        fail(INSTALL)


def task_ids(package: Any, split: str, limit: int | None) -> list[str]:
    """The ids of the first `limit` tasks of a split (all: None), whole scenarios as AppWorld orders them."""
    try:
        ids = list(package.load_task_ids(split))
    except Exception as error:  # noqa: BLE001 - whatever missing data leads to becomes one line
        fail(f"cannot read the split {split} ({brief(error, 200)}). {INSTALL.partition(': ')[2]}")
    if not ids:
        fail(f"the split {split} has no tasks; run: appworld download data")
    return ids[:limit]


def as_examples(ids: Sequence[str]) -> list[dspy.Example]:
    """Task ids as examples without a label."""
    return [dspy.Example(task_id=task_id).with_inputs("task_id") for task_id in ids]


def results(program: dspy.Module, ids: Sequence[str], threads: int) -> dict[str, bool]:
    """Task id → whether it passed; a rollout that fails has not."""
    evaluate = dspy.Evaluate(devset=as_examples(ids), metric=metric, num_threads=threads, max_errors=len(ids) + 1)
    scored = evaluate(program).results
    return {example.task_id: float(getattr(score, "score", score)) >= 1 for example, _, score in scored}


def table(rows: Mapping[str, Mapping[str, Mapping[str, bool]]]) -> str:
    """TGC / SGC in percent: a row a method, a column a split."""
    splits = list(next(iter(rows.values())))
    lines = [" " * 10 + "".join(f"{split:>20}" for split in splits)]
    for name, by_split in rows.items():
        cells = (f"{task_goal_completion(p):.1f} / {scenario_goal_completion(p):.1f}" for p in by_split.values())
        lines.append(f"{name:<10}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="ACE on AppWorld: TGC and SGC before and after.")
    parser.add_argument("--model", required=True, help="a DSPy model name; the offline models cannot write code")
    add_api_base(parser)
    parser.add_argument("--labels", action="store_true", help="score training tasks by AppWorld's checks")
    parser.add_argument("--train", type=positive, help="the first N tasks of train (default: all)")
    parser.add_argument("--test", type=positive, help="the first N tasks of each test split (default: all)")
    parser.add_argument("--splits", nargs="+", choices=SPLITS[1:], default=["test_normal", "test_challenge"])
    parser.add_argument("--epochs", type=positive, default=5, help="passes over train (default: 5, the paper's)")
    parser.add_argument("--batch-size", type=positive, default=1, help="tasks per step (default: 1, the paper's)")
    parser.add_argument("--max-steps", type=positive, default=50, help="steps of the agent per task (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of tasks (default: 0)")
    parser.add_argument("--server", action="append", default=[], help="address of an environment server; repeatable")
    parser.add_argument("--experiment", default="dspy_ace", help="where AppWorld files its outputs (default: dspy_ace)")
    parser.add_argument("--out", type=Path, help="file to save the playbook to (JSON)")
    parser.add_argument("--log-dir", type=Path, help="folder that keeps the run, and continues it")
    return parser.parse_args(argv)


def learn(args: argparse.Namespace, open_world: OpenWorld, train: Sequence[str], threads: int) -> Any:
    """The program that ACE makes of the student; it is graded at the end of each task."""
    student = AppWorldAgent(open_world, args.max_steps, graded=args.labels)
    ace = ACE(
        metric,
        labels=args.labels,
        epochs=args.epochs,
        batch_size=args.batch_size,
        max_reflection_rounds=5,
        num_threads=threads,
        seed=args.seed,
        log_dir=args.log_dir,
    )
    try:
        program: Any = ace.compile(student, as_examples(train))
        if args.out is not None:
            program.playbook.save(args.out)
    except (AceError, OSError) as error:
        fail(str(error))
    program.graded = True
    return program


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    args = parse(argv)
    check_out(args.out)
    package = load_appworld()
    train = task_ids(package, "train", args.train)
    tests = {split: task_ids(package, split, args.test) for split in args.splits}
    threads = max(1, len(args.server))
    open_world = Worlds(package.AppWorld, args.experiment, args.server)
    print(f"AppWorld: {len(train)} training tasks; {', '.join(f'{len(ids)} {name}' for name, ids in tests.items())}.")
    connect(args.model, args.api_base)
    student = AppWorldAgent(open_world, args.max_steps)
    probe(student, as_examples(train)[0])
    before = {split: results(student, ids, threads) for split, ids in tests.items()}
    program = learn(args, open_world, train, threads)
    after = {split: results(program, ids, threads) for split, ids in tests.items()}
    print(f"\n{program.detailed_results}\n\nTGC / SGC in percent")
    print(table({"ReAct": before, "+ ACE": after}))


if __name__ == "__main__":
    run(main)
