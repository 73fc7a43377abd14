"""Shared by FiNER and Formula: the program, and examples from a folder or the hub (examples/finance.py)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy

from .task import Task  # first: it makes the examples importable

from finance import AnswerQuestion, load, make_metric  # type: ignore[import-not-found]  # isort: skip


def finance(name: str, data: Path | None, hub: str | None) -> Task:
    """A finance task; the held-out examples are cut in two halves, one to choose by and one to test on.

    Raises:
        ValueError: neither a folder nor a hub name is given.
        SystemExit: with one line on stderr, when the data cannot be read.
    """
    if (data is None) == (hub is None):
        raise ValueError(f"the task {name!r} needs its data: --data DIR (train.jsonl and val.jsonl), or --hub NAME")
    sets = load(argparse.Namespace(task=name, data=data, hub=hub, train=None))
    return Task(name, dspy.ChainOfThought(AnswerQuestion), for_all(make_metric(name)), *sets)


def for_all(scored: Callable[..., Any]) -> Callable[..., Any]:
    """The metric as every optimizer takes it: with GEPA's five arguments, and a bool while demonstrations are gathered.

    DSPy keeps a demonstration when the metric's result is true, and a `Prediction` always is, whatever its score.
    """

    def metric(
        example: dspy.Example,
        prediction: Any,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> Any:
        result = scored(example, prediction)
        return result.score >= 1.0 if trace is not None and pred_name is None else result

    return metric
