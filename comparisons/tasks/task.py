"""A task, and the way to the modules of `examples/`, which hold programs, metrics and data readers already."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dspy

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))  # scripts, not a package: they import one another by their bare names


@dataclass(frozen=True)
class Task:
    """A program, a metric and three sets without a common example.

    Args:
        name: as on the command line.
        program: the student.
        metric: `(example, prediction, trace=None, pred_name=None, pred_trace=None)`, as every optimizer takes it.
        train, val, test: learned on, chosen by, tested on.
        calls: LM calls that a run of the program is expected to make; None: one a predictor.
    """

    name: str
    program: dspy.Module
    metric: Callable[..., Any]
    train: Sequence[dspy.Example]
    val: Sequence[dspy.Example]
    test: Sequence[dspy.Example]
    calls: int | None = None

    def cut(self, train: int | None, val: int | None, test: int | None) -> Task:
        """The task with at most so many examples in each set; None keeps all."""
        return replace(self, train=self.train[:train], val=self.val[:val], test=self.test[:test])
