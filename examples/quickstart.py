"""ACE on a small task from start to end: score before, optimize, score after, look at the playbook, save.

    python examples/quickstart.py                                   # offline, no key, some seconds
    python examples/quickstart.py --model openai/gpt-4o-mini        # the same with a real model
    python examples/quickstart.py --optimizer gepa                  # the same script with GEPA (or mipro)

The optimizer is the only line that changes: student, metric and sets are the same objects for all three.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import dspy
from common import (
    add_model_arguments,
    connect,
    fail,
    positive,
    probe,
    run,
    score,
    show_gain,
    show_mean,
)
from routing_task import DESKS, RouteMessage, make_split, metric

from dspy_ace import ACE, AceError
from dspy_ace.testing import OfflineLM

OFFLINE_LESSONS = """\
The stand-in's lessons are lists of words. A real model's are sentences, such as:
"A refund of 500 or less goes to Harbor, a larger one to Quarry, whatever the item is. Read the amount first."
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Teach a program the house rules of a message desk, with ACE, GEPA or MIPROv2."
    )
    add_model_arguments(parser)
    parser.add_argument("--optimizer", choices=("ace", "gepa", "mipro"), default="ace", help="default: ace")
    parser.add_argument("--seed", type=int, default=0, help="of the messages drawn and of the optimizer (default: 0)")
    parser.add_argument("--epochs", type=positive, default=1, help="ACE: passes over the training set (default: 1)")
    parser.add_argument("--batch-size", type=positive, default=16, help="ACE: examples per step (default: 16)")
    parser.add_argument("--out", type=Path, help="folder for program.json and playbook.json (default: a temporary one)")
    return parser.parse_args(argv)


def make_optimizer(args: argparse.Namespace) -> Any:
    """The optimizer asked for, all with the same metric."""
    if args.optimizer == "gepa":
        return dspy.GEPA(metric, auto="light", reflection_lm=dspy.settings.lm, num_threads=args.threads, seed=args.seed)
    if args.optimizer == "mipro":
        return dspy.MIPROv2(metric, auto="light", num_threads=args.threads, seed=args.seed)
    return ACE(metric, epochs=args.epochs, batch_size=args.batch_size, num_threads=args.threads, seed=args.seed)


def proposals(optimizer: str) -> list[Any]:
    """What the offline model answers when GEPA or MIPROv2 asks for instructions; nothing for ACE.

    It stands in `comparisons/`, beside this folder, because `dspy_ace` itself does not need it.
    """
    if optimizer == "ace":
        return []
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from comparisons.proposals import answer_proposal  # noqa: PLC0415 - a checkout has it, an installation does not

    return [answer_proposal]


def check(args: argparse.Namespace) -> Path:
    """Find what would only fail at the end; returns the folder to save to."""
    if args.optimizer == "mipro" and importlib.util.find_spec("optuna") is None:
        fail("MIPROv2 needs optuna, which DSPy does not bring: pip install optuna")
    folder = Path(args.out or tempfile.mkdtemp(prefix="dspy_ace_"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"cannot make the folder {folder}: {error.strerror}")
    return folder


def report(program: Any, calls: int, offline: bool) -> None:
    """What was learned and what it cost."""
    playbook = getattr(program, "playbook", None)
    if playbook is not None:
        print(f"\nThe playbook ({len(playbook)} bullets):")
        if offline:
            print(OFFLINE_LESSONS)
        print(f"{playbook.to_text()}\n")
        print(f"The run:\n{program.detailed_results}")
    else:
        for name, predictor in program.named_predictors():
            print(f"\nInstructions of {name}, with {len(predictor.demos)} demonstrations:")
            print(predictor.signature.instructions)
    print(f"LM calls while optimizing: {calls}")


def save(program: Any, folder: Path) -> None:
    """Write what is worth keeping, and say where."""
    program.save(str(folder / "program.json"))
    print(f"\nSaved: {folder / 'program.json'}")
    if hasattr(program, "playbook"):
        program.playbook.save(folder / "playbook.json")
        print(f"Saved: {folder / 'playbook.json'}")


def next_steps(args: argparse.Namespace) -> None:
    """What a reader may do now."""
    print("\nWhat to do next:")
    if args.model == "offline":
        print("  with a real model:    python examples/quickstart.py --model openai/gpt-4o-mini")
    if args.optimizer == "ace":
        print("  the same with GEPA:   python examples/quickstart.py --optimizer gepa")
    print("  a prompt of yours:    dspy-ace optimize --help")
    print("  on finance questions: python examples/finance.py --help")


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    args = parse(argv)
    folder = check(args)
    split = make_split(args.seed)
    print(f"Task: messages to {len(DESKS)} desks, by house rules that no model can know.")
    print(f"Sets: {len(split.train)} training, {len(split.val)} validation, {len(split.test)} test messages.")
    counter = connect(args.model, args.api_base, partial(OfflineLM, answerers=proposals(args.optimizer)))
    student = dspy.ChainOfThought(RouteMessage)
    probe(student, split.train[0])

    before = score(student, split.test, metric, args.threads)
    show_mean("before:", before)
    print(f"\nOptimizing with {args.optimizer} …", flush=True)
    start = counter.calls
    try:
        program = make_optimizer(args).compile(student, trainset=split.train, valset=split.val)
    except AceError as error:
        fail(str(error))
    calls = counter.calls - start
    after = score(program, split.test, metric, args.threads)
    report(program, calls, args.model == "offline")

    print("\nThe right desk on the test messages")
    show_mean("before:", before)
    show_mean("after:", after)
    show_gain(before, after, args.seed)
    save(program, folder)
    next_steps(args)


if __name__ == "__main__":
    run(main)
