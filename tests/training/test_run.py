"""The order of a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_ace import ACE, Playbook
from dspy_ace.playbook import Add, Delta
from dspy_ace.program import Trajectory
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from dspy_ace.training import Batch, Record, Run, Settings, shuffled
from dspy_ace.training.choice import repairs
from dspy_ace.training.verdict import UNIT


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 70), st.integers())
def test_every_epoch_sees_every_example_once(size: int, epochs: int, batch_size: int, seed: int) -> None:
    """Steps count from 1, batches are full but for the last of an epoch, and epochs end where they say."""
    trainset = [dspy.Example(question=str(n)).with_inputs("question") for n in range(size)]
    settings = Settings.of_arguments(ACE(epochs=epochs, batch_size=batch_size, seed=seed).get_params())
    with dspy.context(lm=OfflineLM()):
        run, batches = Run(settings, Student(), trainset, []), list[Batch]()
    while batch := run.next_batch([Record(b.step, b.epoch, b.examples, (1.0,) * len(b.examples)) for b in batches]):
        batches.append(batch)
    assert [b.step for b in batches] == list(range(1, len(batches) + 1))
    for epoch in range(1, epochs + 1):
        own = [b for b in batches if b.epoch == epoch]
        assert sorted(i for b in own for i in b.examples) == list(range(size))
        assert all(len(b.examples) == batch_size for b in own[:-1])


def test_epochs_differ_and_processes_agree() -> None:
    """The shuffle is derived from seed and epoch alone: another process with another hash seed draws the same."""
    code = "from dspy_ace.training import shuffled; print([shuffled(20, epoch, 3) for epoch in (1, 2)])"
    drawn = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    first, second = shuffled(20, 1, 3), shuffled(20, 2, 3)
    assert first != second
    assert drawn[0] == drawn[1] == f"{[first, second]}\n"


class Student(dspy.Module):
    """Answers "right" to a question whose word stands in its instructions."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer="right" if question in self.ask.signature.instructions else "wrong")


def run(folder: Path) -> list[Record]:
    """Three epochs over twelve questions: retries solve ten; "hard" once a bullet is there; "never" not at all."""
    words = [*(f"word{n}" for n in range(10)), "hard", "never"]
    trainset = [dspy.Example(question=word).with_inputs("question") for word in words]

    def reflect(playbook: Playbook, trajectory: Trajectory) -> Reflection:
        word = trajectory.inputs["question"]
        solves = word.startswith("word") or (word == "hard" and "word9" in playbook.render())
        return Reflection((f"Say {word}." if solves else "Try.",))

    def curate(playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, tuple[()]]:
        told = [insight.content for each in reflections if each.verified for insight in each.insights]
        return Delta(tuple(Add("S", content) for content in told)), ()

    optimizer = ACE(
        lambda example, prediction: prediction.answer == "right",
        reflect=reflect, curate=curate, epochs=3, batch_size=4, num_threads=1, log_dir=folder, progress=False,
    )  # fmt: skip
    with dspy.context(lm=OfflineLM()):
        program = optimizer.compile(Student(), trainset)
    return [record for record in program.detailed_results.records if record.batch]


def test_what_stayed_a_failure_comes_first_in_the_next_epoch_until_it_is_solved(tmp_path: Path) -> None:
    """The record marks it (`verified` is false); the order of an epoch follows from the records before it."""
    records = run(tmp_path / "whole")
    hard, never = 10, 11
    epochs = [[place for record in records if record.epoch == epoch for place in record.batch] for epoch in (1, 2, 3)]
    assert all(sorted(order) == list(range(12)) for order in epochs)
    marked = [
        {name for r in records if r.epoch == epoch for item in r.reflections if item["verified"] is False
         for name in item["examples"]}
        for epoch in (1, 2, 3)
    ]  # fmt: skip
    first = set(map(int, marked[0]))
    assert never in first
    assert set(epochs[1][: len(first)]) == first
    second = set(map(int, marked[1]))
    assert never in second
    assert hard not in second
    assert set(epochs[2][: len(second)]) == second


def test_a_run_that_is_continued_in_any_epoch_keeps_the_order(tmp_path: Path) -> None:
    """From every line of the journal on, the bytes are those of the unbroken run."""
    run(tmp_path / "whole")
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (2, 4, 7):
        folder = tmp_path / str(kept)
        folder.mkdir()
        shutil.copy(tmp_path / "whole" / "run.json", folder)
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:kept]))
        run(folder)
        assert (folder / "journal.jsonl").read_bytes() == b"".join(lines)


def test_a_right_first_attempt_takes_an_example_off_the_list() -> None:
    """It needs no retry to be solved."""
    failed = Record(1, 1, (0,), (0.0,), reflections=({"examples": ["0"], "insights": 1, "verified": False},))
    assert repairs([failed], UNIT).left == ("0",)
    assert repairs([failed, Record(2, 2, (0,), (1.0,))], UNIT).left == ()


@pytest.mark.parametrize("settings", [{"epochs": 1}, {"epochs": 2}, {"epochs": 1, "validate": "along"}], ids=str)
def test_a_run_that_was_about_to_choose_is_continued(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Killed after the last steps, the validation or the repairs, or finished: the bytes of the unbroken run."""
    trainset = [dspy.Example(question=f"q{n}").with_inputs("question") for n in range(6)]
    valset = [dspy.Example(question=f"v{n}").with_inputs("question") for n in range(3)]

    def curate(_: Playbook, group: Sequence[Reflection]) -> tuple[Delta, tuple[()]]:
        return Delta((Add("S", f"lesson {group[0].trajectory.source}"),)), ()  # type: ignore[union-attr]

    def learned(folder: Path) -> bytes:
        optimizer = ACE(
            lambda *_: 0.0,
            reflect=lambda *_: Reflection(("x",)),
            curate=curate,
            batch_size=2,
            num_threads=4,
            max_reflection_rounds=0,
            log_dir=folder,
            **settings,
        )
        with dspy.context(lm=OfflineLM()):
            optimizer.compile(dspy.Predict("question -> answer"), trainset, valset=valset)
        return (folder / "journal.jsonl").read_bytes()

    whole = learned(tmp_path / "whole")
    lines = whole.splitlines(keepends=True)
    assert any(json.loads(line).get("again") for line in lines)
    for kept in range(len(lines) - 3, len(lines) + 1):
        folder = tmp_path / str(kept)
        folder.mkdir()
        shutil.copy(tmp_path / "whole" / "run.json", folder)
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:kept]))
        assert learned(folder) == whole
