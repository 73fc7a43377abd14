"""Running a comparison on tasks, estimating it, and reporting what is there."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from dspy_ace.comparison import Comparison, compare

from . import estimate
from .methods import METHODS, Setting
from .models import LABEL, OFFLINE, connect
from .published import published
from .tasks import Task, load_task

HEADER = "comparison.json"


def run(args: argparse.Namespace, argv: list[str], say: Callable[[str], None]) -> None:
    """Compile and test the methods on each task, or only estimate it; finished cells are kept and never run twice."""
    task_lm = connect(args.model, args.api_base)
    reflection_lm = connect(args.reflection_model, args.api_base) if args.reflection_model else None
    with dspy.context(lm=task_lm):
        for name in args.task:
            task = load_task(name, args.data, args.hub).cut(args.train, args.val, args.test)
            setting, methods = setting_of(task, args, reflection_lm), [METHODS[method] for method in args.methods]
            for method in methods:
                method.expect(setting)  # a budget that is too small for one is found now
            if args.dry_run:
                estimates = estimate.estimate(task, methods, setting, len(args.seeds), task_lm)
                say(estimate.table(task, estimates) + "\n")
                continue
            makers = {method.name: partial(method.make, setting) for method in methods}
            result = compare_on(task, makers, args, argv)
            say(f"\n{name}\n{result}")
            for path in reports(result, args.out / name, name):
                say(f"saved: {path}")


def setting_of(task: Task, args: argparse.Namespace, reflection_lm: Any) -> Setting:
    """Return what all methods get on a task."""
    return Setting(
        task.metric,
        len(task.train),
        len(task.val),
        task.test,
        budget=args.budget,
        reflection_lm=reflection_lm,
        num_threads=args.num_threads,
        paper_epochs=args.epochs,
    )


def compare_on(
    task: Task, optimizers: Mapping[str, Callable[[int], Teleprompter]], args: argparse.Namespace, argv: list[str]
) -> Comparison:
    """The comparison on one task, in its folder below `--out`."""
    offline = OFFLINE in (args.model, args.reflection_model)
    return compare(
        task.program,
        metric=task.metric,
        trainset=task.train,
        valset=task.val,
        testset=task.test,
        optimizers=optimizers,
        seeds=args.seeds,
        out=args.out / task.name,
        num_threads=args.num_threads,
        label=LABEL if offline else None,
        task=task.name,
        command=f"python -m comparisons {shlex.join(argv)}",
        budget=args.budget,
    )


def report(folder: Path, say: Callable[[str], None]) -> None:
    """Table, Markdown and HTML of a finished or unfinished run, without a single LM call.

    Raises:
        ValueError: there is no comparison in the folder, nor in one below it.
    """
    found = [folder] if (folder / HEADER).exists() else sorted(path.parent for path in folder.glob(f"*/{HEADER}"))
    if not found:
        raise ValueError(f"no comparison in {folder} or the folders in it (no {HEADER})")
    for each in found:
        result = Comparison.load(each)
        say(f"{each.name}\n{result}")
        for path in reports(result, each, str(result.header.get("task"))):
            say(f"saved: {path}")


def reports(result: Comparison, folder: Path, task: str) -> list[Path]:
    """`<folder>.md` and `<folder>.html`: beside the folder of the cells, which holds nothing else."""
    rows = published(task)
    shown = Comparison({**result.header, "published": rows}, result.cells) if rows else result
    return [shown.save_report(folder.with_name(f"{folder.name}{suffix}")) for suffix in (".md", ".html")]


def progress(line: str) -> None:
    """Say what is going on, on stderr: stdout has the results."""
    print(line, file=sys.stderr, flush=True)
