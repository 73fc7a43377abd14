"""A comparison whose cells run on an executor: the table of one that runs here."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

import compare_helpers
from compare_helpers import VAL, Broken, Same, metric
from dspy_ace import ACE
from dspy_ace.comparison import Comparison, cell
from dspy_ace.errors import RunError, SettingsError
from dspy_ace.testing import OfflineLM

pytestmark = pytest.mark.compat


class Quitting(Same):
    """Ends its process."""

    def compile(self, student: Any, **sets: Any) -> Any:
        os._exit(1)


class Losing(ThreadPoolExecutor):
    """An executor that loses the second cell it is given."""

    cells = 0

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.cells += function is cell._run_packed
        if function is cell._run_packed and self.cells == 2:
            lost: Future[Any] = Future()
            lost.set_exception(OSError("the worker was killed"))
            return lost
        return super().submit(function, *args, **kwargs)


def compared(*optimizers: Any, **changes: Any) -> Comparison:
    """A small comparison with tests of one thread: then a cell is the same each time."""
    return compare_helpers.compared(*optimizers, num_threads=1, **changes)


def timeless(result: Comparison) -> list[Any]:
    """The cells without what a clock says, or the order in which the threads of an optimizer begin."""
    left_out = ("started", "seconds", "curve", "prompt_steps")

    def without(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: without(v) for k, v in value.items() if k not in left_out}
        return value

    return [(without(each), [[n, dollars, best] for n, dollars, _, best in each["curve"]]) for each in result.cells]


OPTIMIZERS = {"same": Same(metric), "ACE": ACE(metric, epochs=1), "broken": Broken(ValueError("no luck"))}


def test_cells_in_threads_are_those_of_one_after_the_other(offline: OfflineLM) -> None:
    """Each has its own usage, seed and settings; a method that fails is a row."""
    here = compared(OPTIMIZERS, seeds=(0, 1))
    with ThreadPoolExecutor(3) as executor:
        there = compared(OPTIMIZERS, seeds=(0, 1), executor=executor)
    assert timeless(there) == timeless(here)
    assert [row.name for row in there.rows] == ["student", *OPTIMIZERS]
    assert "Cells ran side by side on an executor" in there.to_markdown()
    assert "One cell after the other" in here.to_markdown()


@pytest.mark.slow
def test_cells_in_processes_are_those_of_one_after_the_other(offline: OfflineLM, tmp_path: Path) -> None:
    """The folder can be gone on with here, or there; a worker that dies loses no finished cell."""
    spawn = multiprocessing.get_context("spawn")
    here = compared(OPTIMIZERS)
    with ProcessPoolExecutor(2, mp_context=spawn) as executor:
        there = compared(OPTIMIZERS, executor=executor, out=tmp_path)
        assert timeless(there) == timeless(here)
        with pytest.raises(RunError, match="Finished cells are kept in out="):
            compared({"quits": Quitting(metric)}, executor=executor, out=tmp_path)
    again = Comparison.load(tmp_path)
    assert timeless(again) == timeless(there)


def test_a_lost_cell_is_run_in_the_next_call(offline: OfflineLM, tmp_path: Path) -> None:
    """What was finished before is kept, and not run again."""
    with (
        Losing(1) as executor,
        pytest.raises(RunError, match=r"could not be run on executor= \(OSError: the worker was killed\)"),
    ):
        compared(OPTIMIZERS, executor=executor, out=tmp_path)
    kept = Comparison.load(tmp_path).cells
    assert len(kept) < len(OPTIMIZERS) + 1
    whole = compared(OPTIMIZERS, out=tmp_path)
    assert [each for each in whole.cells if each in kept] == list(kept)
    assert timeless(whole) == timeless(compared(OPTIMIZERS))


def test_what_cannot_be_sent_is_named_before_the_first_cell(offline: OfflineLM) -> None:
    """In an optimizer, in the metric's data or in an example; and an executor that is none, or shut down."""
    broken = Same(metric)
    broken.hear = Same(threading.Lock())
    locked = dspy.Example(VAL[0], lock=threading.Lock()).with_inputs("message")
    executor = ThreadPoolExecutor(1)
    for changes, path in (
        ({"optimizers": {"same": broken}}, r"optimizers\['same'\]\.hear\.metric"),
        ({"valset": [locked]}, r"valset\.0\._store\.lock"),
    ):
        with pytest.raises(SettingsError, match=rf"{path} \(lock\) cannot be sent"):
            compared(executor=executor, **changes)
    executor.shutdown()
    with pytest.raises(SettingsError, match="executor= cannot run a task: RuntimeError"):
        compared(executor=executor)
    with pytest.raises(SettingsError, match="executor"):
        compared(executor="dask")
    assert offline.calls == 0
