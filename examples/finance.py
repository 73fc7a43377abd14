"""ACE on the finance tasks of the paper: FiNER (XBRL tags) and Formula (a number from a named formula).

    python examples/finance.py --task finer --data DIR                # DIR/train.jsonl, DIR/val.jsonl
    python examples/finance.py --task formula --data DIR --train 100  # or DIR/formula/train.jsonl, …
    python examples/finance.py --task finer --hub owner/name          # a data set of the hub, through `datasets`

Each line of the files is {"context": question, "target": answer}. The playbook is learned on `train`; `val` is cut
in two halves, one to choose the best playbook, one to test it.
"""

from __future__ import annotations

import argparse
import importlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dspy
from common import (
    add_model_arguments,
    as_number,
    brief,
    check_out,
    connect,
    fail,
    fold,
    positive,
    probe,
    read_lines,
    run,
    score,
    show_gain,
    show_mean,
)

from dspy_ace import ACE, AceError


class AnswerQuestion(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """Answer the question about a financial report."""

    context: str = dspy.InputField()
    answer: str = dspy.OutputField()


class Checked(NamedTuple):
    """The share of an answer that is right (0 … 1), and feedback in words."""

    score: float
    feedback: str


def check_finer(target: str, answer: str) -> Checked:
    """Compare comma-separated tags one by one, case and spaces folded; the score is the share that match.

    The expected tags are what counts: a missing one is wrong, further ones are not looked at.
    """
    expected, given = target.split(","), answer.split(",")
    given += [""] * (len(expected) - len(given))
    wrong = [
        f"Question {number}: expected {right.strip()}, got {brief(said, 160) or 'nothing'}."
        for number, (right, said) in enumerate(zip(expected, given, strict=False), 1)
        if fold(right) != fold(said)
    ]
    found = len(expected) - len(wrong)
    return Checked(found / len(expected), " ".join([f"{found} of {len(expected)} tags are right.", *wrong]))


def check_formula(target: str, answer: str) -> Checked:
    """Compare as numbers after removing commas; what is not a plain finite number is wrong."""
    expected, given = as_number(target), as_number(answer)
    if given is None:
        return Checked(
            0.0, f"Expected {target.strip()}, got {brief(answer) or 'nothing'}, which is not a plain number."
        )
    if expected is None or given != expected:
        return Checked(0.0, f"Expected {target.strip()}, got {brief(answer)}.")
    return Checked(1.0, f"Correct: {target.strip()}.")


CHECKS = {"finer": check_finer, "formula": check_formula}


def make_metric(task: str) -> Any:
    """The metric of a task: `dspy.Prediction(score, feedback)`."""

    def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
        checked = CHECKS[task](example.answer, str(getattr(prediction, "answer", "")))
        return dspy.Prediction(score=checked.score, feedback=checked.feedback)

    return metric


def as_examples(rows: Sequence[dict[str, str]]) -> list[dspy.Example]:
    """Rows as examples: `context` is the input, `answer` the label."""
    return [dspy.Example(context=row["context"], answer=row["target"]).with_inputs("context") for row in rows]


def from_folder(folder: Path, task: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out rows of `folder`, or of its subfolder named after the task."""
    if not folder.is_dir():
        fail(f"--data: no folder {folder}")
    if not (folder / "train.jsonl").exists():
        folder = folder / task
    train, val = (read_lines(folder / f"{name}.jsonl", ("context", "target")) for name in ("train", "val"))
    return train, val


def from_hub(name: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out rows of a data set with the columns `context` and `target`."""
    try:
        datasets = importlib.import_module("datasets")  # optional
    except ImportError:
        fail("--hub needs the package `datasets`: pip install datasets (or use --data DIR)")
    try:
        splits = datasets.load_dataset(name)
        held_out = next(key for key in ("val", "validation", "test") if key in splits)
        train, val = (
            [{key: str(row[key]) for key in ("context", "target")} for row in splits[split]]
            for split in ("train", held_out)
        )
    except Exception as error:  # noqa: BLE001 - network, name, splits or columns: all become one line
        fail(f"--hub {name}: expected splits train and val with columns context and target ({brief(error, 200)})")
    return train, val


class Sets(NamedTuple):
    """Learned on, chosen by, tested on."""

    train: list[dspy.Example]
    val: list[dspy.Example]
    test: list[dspy.Example]


def load(args: argparse.Namespace) -> Sets:
    """The sets asked for. The halves of the held-out rows are the same whatever the seed."""
    if (args.data is None) == (args.hub is None):
        fail("give either --data DIR (with train.jsonl and val.jsonl) or --hub NAME")
    train, held_out = from_folder(args.data, args.task) if args.data else from_hub(args.hub)
    if len(held_out) < 2:
        fail("the held-out split needs at least 2 examples: one half selects, the other tests")
    order = list(range(len(held_out)))
    random.Random("halves").shuffle(order)
    half = len(order) // 2
    val, test = ([held_out[i] for i in sorted(part)] for part in (order[:half], order[half:]))
    return Sets(as_examples(train[: args.train]), as_examples(val), as_examples(test))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="ACE on FiNER or Formula: held-out score before and after.")
    parser.add_argument("--task", choices=sorted(CHECKS), default="finer", help="default: finer")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and val.jsonl, or its parent")
    parser.add_argument("--hub", help="name of a data set on the hub, instead of --data (needs `datasets`)")
    parser.add_argument("--train", type=positive, help="use the first N training examples (default: all)")
    parser.add_argument("--epochs", type=positive, default=1, help="passes over the training set (default: 1)")
    parser.add_argument("--batch-size", type=positive, default=16, help="examples per step (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of examples (default: 0)")
    parser.add_argument("--out", type=Path, help="file to save the playbook to (JSON)")
    add_model_arguments(parser)
    return parser.parse_args(argv)


def next_steps(args: argparse.Namespace) -> None:
    """What a reader may do now."""
    other = "formula" if args.task == "finer" else "finer"
    where = f"--data {args.data}" if args.data else f"--hub {args.hub}"
    print("\nWhat to do next:")
    if args.model == "offline":
        print(f"  with a real model:  python examples/finance.py --task {args.task} {where} --model openai/gpt-4o-mini")
    print(f"  the other task:     python examples/finance.py --task {other} --data DIR")
    if args.out is None:
        print("  keep the playbook:  add --out playbook.json")


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    args = parse(argv)
    check_out(args.out)
    sets, metric = load(args), make_metric(args.task)
    print(f"Task: {args.task}; {len(sets.train)} training, {len(sets.val)} validation, {len(sets.test)} test examples.")
    counter = connect(args.model, args.api_base)
    if args.task == "formula" and args.model == "offline":
        print("The offline model cannot work out a formula: expect next to nothing right, before and after.\n")
    student = dspy.ChainOfThought(AnswerQuestion)
    probe(student, sets.train[0])

    before = score(student, sets.test, metric, args.threads)
    show_mean("before:", before)
    print("\nOptimizing with ACE …", flush=True)
    start = counter.calls
    ace = ACE(metric, epochs=args.epochs, batch_size=args.batch_size, num_threads=args.threads, seed=args.seed)
    try:
        program: Any = ace.compile(student, sets.train, valset=sets.val)
        if args.out is not None:
            program.playbook.save(args.out)
    except (AceError, OSError) as error:
        fail(str(error))
    calls = counter.calls - start
    after = score(program, sets.test, metric, args.threads)

    print(f"\n{program.detailed_results}")
    print(f"\nScore on the test half of the held-out examples ({args.task})")
    show_mean("before:", before)
    show_mean("after:", after)
    show_gain(before, after, args.seed)
    print(f"playbook:   {len(program.playbook)} bullets, about {program.playbook.tokens()} tokens")
    print(f"LM calls:   {calls} while optimizing")
    next_steps(args)


if __name__ == "__main__":
    run(main)
