"""The calls that an optimizer spends on a student that has nothing to learn: `python -m comparisons.perfect`.

The quickstart's messages under a metric that is content with every answer. What is counted are the LM calls the model
received and the metric calls, from the first call of `compile` to its end.
"""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import dspy

from dspy_ace import ACE

from .models import OFFLINE, connect
from .tasks import Task, load_task


class Content:
    """A metric that is content with every answer, and counts them."""

    def __init__(self) -> None:
        self.scores: list[float] = []  # appending is atomic

    def __call__(self, example: Any, prediction: Any, *rest: Any) -> float:
        """1.0."""
        self.scores.append(1.0)
        return self.scores[-1]


def spent(title: str, task: Task, valset: bool) -> tuple[str, int, int]:
    """The calls of one optimizer: its title, metric calls, LM calls."""
    lm, metric = connect(OFFLINE), Content()
    makers = {
        "ACE()": lambda: ACE(metric, num_threads=2, progress=False),
        'ACE(auto="light")': lambda: ACE(metric, auto="light", num_threads=2, progress=False),
        'ACE(auto="heavy")': lambda: ACE(metric, auto="heavy", num_threads=2, progress=False),
        'GEPA(auto="light")': lambda: dspy.GEPA(metric, auto="light", reflection_lm=lm, num_threads=2),
        'GEPA(auto="heavy")': lambda: dspy.GEPA(metric, auto="heavy", reflection_lm=lm, num_threads=2),
    }
    with dspy.context(lm=lm):
        sets: dict[str, Any] = {"valset": list(task.val)} if valset else {}
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):  # GEPA's bars and log
            makers[title]().compile(task.program, trainset=list(task.train), **sets)
    return title, len(metric.scores), lm.calls


def main() -> None:
    """Print the table."""
    dspy.disable_logging()
    task = load_task("quickstart")
    print(
        f"A perfect student: {len(task.train)} training examples, {len(task.val)} in the valset where there is one.\n"
    )
    print("| optimizer | valset | metric calls | LM calls |\n|---|---|---|---|")
    for valset in (True, False):
        for title in ("ACE()", 'ACE(auto="light")', 'ACE(auto="heavy")', 'GEPA(auto="light")', 'GEPA(auto="heavy")'):
            name, metric_calls, lm_calls = spent(title, task, valset)
            print(f"| {name} | {'yes' if valset else 'no'} | {metric_calls} | {lm_calls} |", flush=True)


if __name__ == "__main__":
    main()
