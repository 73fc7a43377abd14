"""ACE on agents: a ReAct program learns the house rules of a small office from what happens, without labels.

    python examples/agent.py                                    # offline, no key, under a minute
    python examples/agent.py --model openai/gpt-4o-mini         # the same with a real model
    python examples/agent.py --train 12 --test 9 --epochs 1     # smaller

No model can know the rules (`office/rules.py`). The only feedback is the execution: the answers of the apps, which
tell facts and no remedy, and whether the end state fits the task. Roles and metric see no label (`labels=False`; there
are none).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
from common import (
    Scores,
    add_model_arguments,
    check_out,
    connect,
    fail,
    paired_interval,
    positive,
    probe,
    run,
    score,
)
from office.apprentice import Apprentice
from office.goals import scenario_goal_completion, task_goal_completion
from office.tasks import Task, make_tasks
from office.tools import TOOLS
from office.world import opened

from dspy_ace import ACE, AceError

APPRENTICE_NOTE = (
    "The apprentice follows fixed habits, and the advice in its prompt. It shows that the mechanics work and what\n"
    "they cost in calls. It does not measure how good a method is with a real model."
)


class DoTask(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """Do the task in the office with the tools, all of it and nothing else, then report what was done.

    The office has rules of its own. What it rejects stands in the day's log, and a task with an entry there has failed.
    """

    task: str = dspy.InputField()
    report: str = dspy.OutputField()


class OfficeAgent(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """A ReAct agent that gets a fresh office for every task.

    The office is opened where the program runs, so that each rollout, in whatever thread, has one of its own; the tools
    find it in a context variable. What came about in it is put on the prediction for the metric.

    Args:
        tasks: by id; a prediction is made for one of them.
        tools: plain functions.
        max_iters: steps at most.
    """

    def __init__(self, tasks: Mapping[str, Task], tools: Sequence[Callable[..., Any]], max_iters: int = 30) -> None:
        super().__init__()
        self.tasks = tasks
        self.agent = dspy.ReAct(DoTask, tools=list(tools), max_iters=max_iters)

    def forward(self, task_id: str, task: str) -> dspy.Prediction:
        """Do one task. `failed_checks`, `rejections` and `ended` of the prediction say how it ended."""
        wanted = self.tasks[task_id]
        with opened(wanted.records) as office:
            prediction = self.agent(task=task)
            prediction.failed_checks = wanted.failed_checks(office)
            prediction.rejections = len(office.end_state().log)
        prediction.ended = "finish" in prediction.trajectory.values()
        return prediction


def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """Score 1 for a completed task, with words on the execution. It reads the prediction alone, no label."""
    done = prediction.failed_checks == 0
    words = ["The end state fits the task." if done else "The end state does not fit the task."]
    if prediction.rejections:
        words.append(f"Calls that the office rejected: {prediction.rejections}.")
    if not prediction.ended:
        words.append("The step limit was reached before the agent finished.")
    return dspy.Prediction(score=float(done), feedback=" ".join(words))


def as_examples(tasks: Sequence[Task]) -> list[dspy.Example]:
    """Make examples without a label."""
    return [dspy.Example(task_id=task.id, task=task.text).with_inputs("task_id", "task") for task in tasks]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Teach an agent the house rules of an office, from execution feedback alone."
    )
    add_model_arguments(parser)
    parser.add_argument("--train", type=positive, default=60, help="training tasks (default: 60)")
    parser.add_argument("--val", type=positive, default=20, help="validation tasks (default: 20)")
    parser.add_argument("--test", type=positive, default=39, help="test tasks of each difficulty (default: 39)")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks drawn and of the optimizer (default: 0)")
    parser.add_argument("--epochs", type=positive, default=1, help="passes over the training tasks (default: 1)")
    parser.add_argument("--batch-size", type=positive, default=6, help="tasks per step (default: 6)")
    parser.add_argument("--max-steps", type=positive, default=30, help="steps of the agent per task (default: 30)")
    parser.add_argument("--out", type=Path, help="file to save the playbook to (JSON)")
    return parser.parse_args(argv)


def table(tests: Mapping[str, Sequence[Task]], rows: Mapping[str, Sequence[Scores]], bullets: Mapping[str, int]) -> str:
    """Return task and scenario goal completion in percent: a row a program, a column a test set."""
    lines = [" " * 10 + "".join(f"{name:>17}" for name in tests) + f"{'bullets':>10}"]
    for label, scored in rows.items():
        cells = []
        for tasks, scores in zip(tests.values(), scored, strict=True):
            passed = {task.id: bool(value >= 1) for task, value in zip(tasks, scores, strict=True)}
            cells.append(f"{task_goal_completion(passed):.1f} / {scenario_goal_completion(passed):.1f}")
        lines.append(f"{label + ':':<10}" + "".join(f"{cell:>17}" for cell in cells) + f"{bullets[label]:>10}")
    return "\n".join(lines)


def report(
    program: Any, tests: Mapping[str, Sequence[Task]], before: Sequence[Scores], after: Sequence[Scores], seed: int
) -> None:
    """Print the playbook and what it is worth on the test tasks."""
    print(f"\nThe playbook ({len(program.playbook)} bullets):\n{program.playbook.to_text()}\n")
    print(f"The run:\n{program.detailed_results}")
    print("\nTask / scenario goal completion on the test tasks, in percent")
    print(table(tests, {"student": before, "ACE": after}, {"student": 0, "ACE": len(program.playbook)}))
    for name, was, now in zip(tests, before, after, strict=True):
        low, high = (100 * bound for bound in paired_interval(was, now, seed))
        gain = 100 * (now - was).mean()
        print(f"{name + ':':<11}{gain:+.1f} points (95 % paired bootstrap interval {low:+.1f} … {high:+.1f})")


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    args = parse(argv)
    check_out(args.out)
    tasks = make_tasks(args.seed, args.train, args.val, args.test, args.test)
    tests = {"normal": tasks.normal, "challenge": tasks.challenge}
    print(f"Tasks: {args.train} training, {args.val} validation, {args.test} normal and {args.test} challenge test.")
    counter = connect(args.model, args.api_base, Apprentice, APPRENTICE_NOTE)
    student = OfficeAgent({task.id: task for split in tasks for task in split}, TOOLS, args.max_steps)
    train, val = as_examples(tasks.train), as_examples(tasks.val)
    probe(student, train[0])

    before = [score(student, as_examples(split), metric, args.threads) for split in tests.values()]
    print("Learning from the execution, without labels …", flush=True)
    start = counter.calls
    ace = ACE(
        metric,
        labels=False,
        epochs=args.epochs,
        batch_size=args.batch_size,
        num_threads=args.threads,
        seed=args.seed,
    )
    try:
        program: Any = ace.compile(student, train, valset=val)
        if args.out is not None:
            program.playbook.save(args.out)
    except (AceError, OSError) as error:
        fail(str(error))
    calls = counter.calls - start
    after = [score(program, as_examples(split), metric, args.threads) for split in tests.values()]
    report(program, tests, before, after, args.seed)
    print(f"LM calls:  {calls} while optimizing")


if __name__ == "__main__":
    run(main)
