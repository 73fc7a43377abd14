"""Improve a plain system prompt offline, for use anywhere: text in, text out.

    python examples/system_prompt.py                                                # made-up data, offline model
    python examples/system_prompt.py --data cases.jsonl --prompt-file prompt.txt --out better.txt

Each line of the data is {"input": question, "expected": answer}. The result is the old prompt, untouched, with the
playbook below it. It goes to --out, or alone to stdout (everything else goes to stderr): `… > better.txt` works.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from routing_task import DESKS, make_split

from dspy_ace import ACE, AceError

DEFAULT_PROMPT = f"""You are the front office of a shop for outdoor gear.
Send each message to the desk that handles it. Reply with one of: {", ".join(DESKS)}."""


def same_number(expected: str, given: str) -> bool:
    """Whether both are plain numbers of the same value."""
    value = as_number(given)
    return value is not None and value == as_number(expected)


METRICS: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda expected, given: fold(given) == fold(expected),
    "contains": lambda expected, given: fold(expected) in fold(given),
    "number": same_number,
}


def make_metric(name: str) -> Any:
    """A metric with feedback from one of `METRICS`."""

    def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
        given = str(getattr(prediction, "output", ""))
        right = METRICS[name](example.output, given)
        feedback = "Correct." if right else f"Expected {brief(example.output, 500)}, got {brief(given) or 'nothing'}."
        return dspy.Prediction(score=float(right), feedback=feedback)

    return metric


def load_cases(args: argparse.Namespace) -> list[dspy.Example]:
    """The cases of --data, or made-up ones."""
    if args.data is None:
        pairs = [(e.message, e.desk) for part in make_split(args.seed) for e in part]
    else:
        fields = (args.input_field, args.expected_field)
        pairs = [(row[fields[0]], row[fields[1]]) for row in read_lines(args.data, fields)]
    if len(pairs) < 4:
        fail(f"{args.data}: at least 4 cases are needed, to learn from, to choose by and to test on; got {len(pairs)}")
    return [dspy.Example(input=question, output=answer).with_inputs("input") for question, answer in pairs]


def load_prompt(args: argparse.Namespace) -> str:
    """The prompt to improve, as it stands."""
    if args.prompt is not None and args.prompt_file is not None:
        fail("give --prompt or --prompt-file, not both")
    prompt = args.prompt if args.prompt is not None else DEFAULT_PROMPT
    if args.prompt_file is not None:
        try:
            prompt = args.prompt_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fail(f"cannot read {args.prompt_file}: {getattr(error, 'strerror', None) or error}")
    if not prompt.strip():
        fail("the prompt is empty: there is nothing to improve")
    return str(prompt)


def improved(prompt: str, student: dspy.Module, program: dspy.Module) -> str:
    """`prompt` as it was, and below it what `program` shows its model beyond the instructions of `student`."""
    (old,), (new,) = student.predictors(), program.predictors()
    return prompt + str(new.signature.instructions).removeprefix(old.signature.instructions)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Improve a system prompt with examples of what is expected.")
    parser.add_argument("--data", type=Path, help="JSON lines with an input and an expected answer (default: made up)")
    parser.add_argument("--input-field", default="input", help="name of the input in the data (default: input)")
    parser.add_argument("--expected-field", default="expected", help="name of the answer (default: expected)")
    parser.add_argument("--prompt", help="the prompt to improve")
    parser.add_argument("--prompt-file", type=Path, help="a file that holds it")
    parser.add_argument("--metric", choices=sorted(METRICS), default="exact", help="how answers are compared; case "
                        "and spaces do not count (default: exact)")  # fmt: skip
    parser.add_argument("--epochs", type=positive, default=2, help="passes over the training cases (default: 2)")
    parser.add_argument("--batch-size", type=positive, default=16, help="cases per step (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the split into sets and of the order (default: 0)")
    parser.add_argument("--out", type=Path, help="file for the improved prompt (default: stdout)")
    add_model_arguments(parser)
    return parser.parse_args(argv)


def improve(args: argparse.Namespace) -> str:
    """Run ACE and report on stderr; returns the improved prompt."""
    prompt, cases, metric = load_prompt(args), load_cases(args), make_metric(args.metric)
    random.Random(args.seed).shuffle(cases)
    cut = max(1, len(cases) // 4)
    test, val, train = cases[:cut], cases[cut : 2 * cut], cases[2 * cut :]
    print(f"Cases: {len(train)} to learn from, {len(val)} to choose by, {len(test)} to test on.")
    connect(args.model, args.api_base)
    student = dspy.Predict(dspy.Signature("input -> output", prompt))
    probe(student, train[0])

    before = score(student, test, metric, args.threads)
    ace = ACE(metric, epochs=args.epochs, batch_size=args.batch_size, num_threads=args.threads, seed=args.seed)
    try:
        program: Any = ace.compile(student, train, valset=val)
    except AceError as error:
        fail(str(error))
    after = score(program, test, metric, args.threads)
    print(f"\n{program.detailed_results}\n")
    show_mean("before:", before)
    show_mean("after:", after)
    show_gain(before, after, args.seed)
    return improved(prompt, student, program)


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    args = parse(argv)
    check_out(args.out)
    with contextlib.redirect_stdout(sys.stderr):
        text = improve(args)
        print("\nWhat to do next:")
        if args.data is None:
            print("  your own cases:     --data cases.jsonl --prompt-file prompt.txt --out better.txt")
        if args.model == "offline":
            print("  with a real model:  --model openai/gpt-4o-mini")
        print("  use the prompt:     paste it wherever the old one is; the lines below ## Playbook are yours to edit")
    if args.out is None:
        print(text)
        return
    try:
        args.out.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {args.out}: {error.strerror}")
    print(f"Wrote {args.out}")


if __name__ == "__main__":
    run(main)
