"""The order of a run."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from dspy_ace.training import schedule


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 70), st.integers())
def test_every_epoch_sees_every_example_once(size: int, epochs: int, batch_size: int, seed: int) -> None:
    """Steps count from 1, batches are full but for the last of an epoch, and epochs end where they say."""
    batches = schedule(size, epochs, batch_size, seed)
    assert [b.step for b in batches] == list(range(1, len(batches) + 1))
    for epoch in range(1, epochs + 1):
        own = [b for b in batches if b.epoch == epoch]
        assert sorted(i for b in own for i in b.examples) == list(range(size))
        assert all(len(b.examples) == batch_size for b in own[:-1])


def test_epochs_differ_and_processes_agree() -> None:
    """The shuffle is derived from seed and epoch alone: another process with another hash seed draws the same."""
    code = "from dspy_ace.training import schedule; print(schedule(20, 2, 20, 3))"
    drawn = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    first, second = schedule(20, 2, 20, 3)
    assert first.examples != second.examples
    assert drawn[0] == drawn[1] == f"{[first, second]}\n"
