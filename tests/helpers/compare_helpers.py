"""A small comparison, simple optimizers, and two ways to count what was used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from dspy_ace.comparison import Comparison, compare
from paths import ROOT
from tasks import Route, messages

_ALL = list({example.message: example for example in messages(60, 2)}.values())  # no example in two sets
TRAIN, VAL, TEST = _ALL[:8], _ALL[8:12], _ALL[12:18]
FIELDS = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens")


def metric(example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    right = example.desk == prediction.desk
    if trace is not None and pred_name is None:
        return right
    return dspy.Prediction(score=float(right), feedback="" if right else f"The right desk is {example.desk}.")


class Same(Teleprompter):  # type: ignore[misc]  # dspy is untyped
    """Runs the student on the trainset, and hands it back; tells `hear` what it was given."""

    def __init__(self, metric: Any = None, seed: int = 7, hear: Any = lambda *given: None) -> None:
        super().__init__()
        self.metric, self.seed, self.hear = metric, seed, hear

    def compile(self, student: Any, *, trainset: Any, valset: Any = None) -> Any:
        self.hear(self.seed, len(trainset), len(valset or ()))
        dspy.Evaluate(devset=trainset, metric=self.metric or metric, num_threads=2)(student)
        return student.deepcopy()


class Broken(Teleprompter):  # type: ignore[misc]  # dspy is untyped
    """Raises what it is told to, or returns it."""

    def __init__(self, error: Any) -> None:
        super().__init__()
        self.error = error

    def compile(self, student: Any, *, trainset: Any) -> Any:
        if isinstance(self.error, BaseException):
            raise self.error
        return self.error


def compared(optimizers: Mapping[str, Any] | None = None, **changes: Any) -> Comparison:
    """A small comparison on the routing task; the offline model unless an LM is in force."""
    settings = {"metric": metric, "trainset": TRAIN, "valset": VAL, "testset": TEST, "num_threads": 4, **changes}
    program = settings.pop("program", None) or dspy.Predict(Route)
    return compare(program, optimizers={"same": Same(metric)} if optimizers is None else optimizers, **settings)


def spent(result: Comparison) -> dict[str, int]:
    """Add up the usage in all cells, roles and phases together."""
    used = [u for cell in result.cells for phase in cell["usage"].values() for u in phase.values()]
    return {name: sum(u[name] for u in used) for name in FIELDS}


def billed(*servers: Any) -> dict[str, int]:
    """Add up the usage in the servers' own logs."""
    log = [record for server in servers for record in server.log]
    return {"calls": len(log), **{name: sum(getattr(record, name) for record in log) for name in FIELDS[1:]}}


def killed_after(finished: int, cells: Path, command: list[str]) -> bytes:
    """Run `python -m comparisons`, kill it (-9) once it wrote so many lines; returns the whole lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "comparisons", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if cells.exists() and cells.read_bytes().count(b"\n") >= finished:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = cells.read_bytes()
    return left[: left.rfind(b"\n") + 1]
