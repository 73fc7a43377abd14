"""Rollouts on an executor: what can be sent to a worker, what cannot, and what is sent once."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace.errors import SettingsError
from dspy_ace.testing import OfflineLM
from dspy_ace.training import remote
from paths import HELPERS, ROOT
from runs import TRAIN, compiled
from tasks import Route

LARGE = 50_000_000


def spawned(initially: str) -> ProcessPoolExecutor:
    """A worker that runs a line of Python before its first task."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=exec, initargs=(initially,))


class Mixed(Executor):
    """An executor of two workers of which the first answers the first task, the other one the rest."""

    def __init__(self, first: Executor, other: Executor) -> None:
        self.first, self.other = first, other

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        chosen, self.first = self.first, self.other
        return chosen.submit(function, *args, **kwargs)


class Counting(ThreadPoolExecutor):
    """An executor that notes the size of large parts of tasks, and how many were sent by name."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.sizes: list[int] = []
        self.named = 0
        self.lock = threading.Lock()

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if function is remote.roll_out:
            with self.lock:
                self.sizes += [len(part) for part in args[1] if len(part) > 100_000]
                self.named += sum(isinstance(part, str) for part in args[1])
        return super().submit(function, *args, **kwargs)


class Reading(dspy.Module):
    """The routing program, with an attachment to each message that no prompt shows."""

    def __init__(self, rules: bytes = b"") -> None:
        super().__init__()
        self.route = dspy.ChainOfThought(Route)
        self.rules = rules

    def forward(self, message: str, attachment: bytes) -> Any:
        assert attachment[-1:] == b"!"
        return self.route(message=message)


def attached(example: dspy.Example, attachment: bytes) -> dspy.Example:
    return dspy.Example(**example.toDict(), attachment=attachment).with_inputs("message", "attachment")


@pytest.mark.slow
def test_a_worker_without_the_package_is_refused_before_the_first_call() -> None:
    """Its pool breaks; the message says what a worker must be able to import."""
    lm = OfflineLM()
    with spawned("import sys; sys.modules['dspy_ace'] = None") as pool, pytest.raises(SettingsError) as raised:
        compiled(lm, executor=pool)
    assert "executor= cannot run a task: BrokenProcessPool" in str(raised.value)
    assert "whose workers can import dspy_ace" in str(raised.value)
    assert lm.calls == 0


@pytest.mark.slow
def test_each_worker_is_asked_for_its_versions() -> None:
    """One that has another DSPy makes no rollout, also if the first one that was asked has the right one."""
    lm = OfflineLM()
    old = "import dspy; dspy.__version__ = '3.3.0'"
    with ThreadPoolExecutor(1) as first, spawned(old) as other, pytest.raises(SettingsError) as raised:
        compiled(lm, executor=Mixed(first, other))
    assert "have dspy 3.3.0, " in str(raised.value)
    assert f"this process has dspy {dspy.__version__}, " in str(raised.value)
    assert lm.calls == 0


SCRIPT = """
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import dspy

from dspy_ace.testing import OfflineLM
from runs import compiled
from tasks import Route


class Own(dspy.Module):
    def __init__(self):
        super().__init__()
        self.route = dspy.ChainOfThought(Route)

    def forward(self, message):
        return self.route(message=message)


if __name__ == "__main__":
    metric = lambda example, prediction, trace=None: example.desk == prediction.desk
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for folder, executor in (("threads", None), ("processes", pool)):
            program = compiled(OfflineLM(), Own(), metric, executor=executor, log_dir=f"{sys.argv[1]}/{folder}")
            assert type(program).__name__ == "Own" and len(program.playbook) > 0
"""


@pytest.mark.slow
def test_a_program_of_a_script_and_a_lambda_as_metric_are_sent(tmp_path: Path) -> None:
    """Cloudpickle sends what stands in `__main__` by its code."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT)])},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    journals = [(tmp_path / name / "journal.jsonl").read_bytes() for name in ("threads", "processes")]
    assert journals[0] == journals[1]


def test_a_large_example_is_sent_once_and_not_with_each_rollout() -> None:
    """One of 50 MB works; its retry and the next epoch send its name."""
    train = [attached(example, b"!") for example in TRAIN[:8]]
    train[0] = attached(TRAIN[0], b"." * LARGE + b"!")
    with Counting(2) as executor:
        compiled(OfflineLM(), Reading(), trainset=train, valset=[], executor=executor, epochs=2)
    assert executor.named >= 3
    (size,) = executor.sizes
    assert LARGE < size < 1.01 * LARGE


def test_a_large_program_is_sent_once_a_step() -> None:
    """A program that holds much is not sent with each rollout."""
    train = [attached(example, b"!") for example in TRAIN[:8]]
    with Counting(4) as executor:
        compiled(
            OfflineLM(),
            Reading(b"." * 1_000_000),
            trainset=train,
            valset=[],
            executor=executor,
            max_reflection_rounds=0,
        )
    assert executor.named == 8 + 5  # two steps, and failures again with the learned playbook
    assert len(executor.sizes) <= 3 * 4  # each time as many as there are workers


def test_a_worker_keeps_few_large_parts() -> None:
    """With more large examples than it keeps, a worker is sent them again, and learns the same."""
    train = [attached(example, bytes([place]) * 200_000 + b"!") for place, example in enumerate(TRAIN)]
    with Counting(2) as executor:
        there = compiled(OfflineLM(), Reading(), trainset=train, valset=[], executor=executor)
    assert len(executor.sizes) >= len(TRAIN)
    assert len(remote._parts) == 8
    assert there.playbook == compiled(OfflineLM(), Reading(), trainset=train, valset=[]).playbook


def test_an_example_that_cannot_be_sent_is_named_before_the_first_call() -> None:
    """Also one that would come late."""
    lm = OfflineLM()
    val = [attached(example, b"!") for example in TRAIN[8:12]]
    train = [attached(example, b"!") for example in TRAIN[:8]]
    train[6]["lock"] = threading.Lock()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(SettingsError, match=r"trainset\[6\]\.\S*lock \(lock\) cannot be sent"):
            compiled(lm, Reading(), trainset=train, valset=val, executor=pool)
        with pytest.raises(SettingsError, match=r"valset\[6\]\.\S*lock \(lock\) cannot be sent"):
            compiled(lm, Reading(), trainset=val, valset=train, executor=pool)
    assert lm.calls == 0
