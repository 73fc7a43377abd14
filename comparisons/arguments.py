"""The command line of `python -m comparisons`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from .methods import METHODS
from .models import OFFLINE
from .ratios import PAIRS
from .tasks import TASKS

DEFAULT_METHODS = "icl,bootstrap,mipro,gepa,simba,dc,ace,ace-paper"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; argparse ends the program on a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m comparisons", description="ACE beside other optimizers, under the same conditions."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _run(commands.add_parser("run", help="compile and test methods on tasks; goes on where it was stopped"))
    _reproduce(commands.add_parser("reproduce", help="FiNER, Formula and the office, every method at equal dollars"))
    report = commands.add_parser("report", help="table, Markdown and HTML of what a run has left")
    report.add_argument("folder", type=Path, help="the --out of a run")
    _ratios(commands.add_parser("ratios", help="cost of ACE over that of others, on the offline model over HTTP"))
    commands.add_parser("methods", help="the methods, each with its source")
    return parser.parse_args(argv)


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task", type=names(TASKS), default=["quickstart"], help=f"of {', '.join(TASKS)}; several: a,b"
    )
    parser.add_argument("--data", type=Path, help="folder with the files of FiNER or Formula, or its parent")
    parser.add_argument("--hub", help="a data set of the hub instead of --data (needs the package datasets)")
    parser.add_argument(
        "--methods", type=names(METHODS), default=DEFAULT_METHODS.split(","), help=f"default: {DEFAULT_METHODS}"
    )
    _models(parser)
    parser.add_argument("--budget", type=positive, help='metric calls of a compile (default: each one\'s auto="light")')
    parser.add_argument("--epochs", type=positive, default=5, help="of ACE as the paper ran it (default: 5)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run of each method for each (default: 0)")
    for name in ("train", "val", "test"):
        parser.add_argument(f"--{name}", type=positive, help=f"use the first so many {name} examples (default: all)")
    parser.add_argument(
        "--out", type=Path, default=Path("comparison"), help="a folder for each task (default: comparison)"
    )


def _models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=OFFLINE, help="of the task: offline, or as in dspy.LM (default: offline)")
    parser.add_argument("--reflection-model", help="of the roles that write prompts (default: the task's)")
    parser.add_argument("--api-base", help="address of an OpenAI-compatible server for both models")
    parser.add_argument("--num-threads", type=positive, default=8, help="calls at once (default: 8)")
    parser.add_argument("--dry-run", action="store_true", help="only estimate calls, tokens and dollars")


def _reproduce(parser: argparse.ArgumentParser) -> None:
    tasks, methods = ["finer", "formula", "office"], ["ace", "ace-light", "gepa", "mipro", "bootstrap"]
    parser.set_defaults(hub=None, budget=None, epochs=5)
    parser.add_argument("--task", type=names(TASKS), default=tasks, help=f"default: {','.join(tasks)}")
    parser.add_argument("--data", type=Path, help="folder with the folders finer and formula")
    parser.add_argument("--methods", type=names(METHODS), default=methods, help=f"default: {','.join(methods)}")
    _models(parser)
    parser.add_argument("--dollars", type=float, help="that a compile may cost (default: what ACE is expected to cost)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    for name, size in (("train", 100), ("val", 40), ("test", 100)):
        parser.add_argument(f"--{name}", type=positive, default=size, help=f"{name} examples (default: {size})")
    parser.add_argument("--out", type=Path, default=Path("reproduction"), help="default: reproduction")


def _ratios(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--against", type=names(PAIRS), default=list(PAIRS), help=f"default: {','.join(PAIRS)}")
    parser.add_argument("--data", type=Path, help="FiNER's folder for the online pair (default: quickstart messages)")
    parser.add_argument("--stream", type=positive, default=60, help="examples of the online pair (default: 60)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="ratios are of the sums (default: 0)")
    parser.add_argument("--scale", type=float, default=0.1, help="latencies are multiplied by this (default: 0.1)")
    parser.add_argument("--num-threads", type=positive, default=16, help="calls at once (default: 16)")


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """A reader of names with commas between, for argparse."""

    def read(text: str) -> list[str]:
        given = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'} given: expected of {', '.join(known)}")
        return list(dict.fromkeys(given))

    return read


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number
