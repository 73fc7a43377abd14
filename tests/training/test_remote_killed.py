"""Rollouts on an executor: the coordinator or the scheduler is killed, and the run goes on."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace.errors import RunError
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import serve
from paths import HELPERS, ROOT
from runs import client, compiled
from tasks import Route

pytestmark = pytest.mark.slow

COORDINATOR = """
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import dspy

from dspy_ace.testing import OfflineLM
from runs import compiled
from tasks import Route


class Slow(dspy.Module):
    def __init__(self):
        super().__init__()
        self.route = dspy.ChainOfThought(Route)

    def forward(self, message):
        time.sleep(0.1)
        return self.route(message=message)


if __name__ == "__main__":
    folder, processes = sys.argv[1], int(sys.argv[2])
    spawn = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, mp_context=spawn) if processes else None
    compiled(OfflineLM(), Slow(), executor=executor, log_dir=folder)
"""
CLUSTER = """
import sys
import time

from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        with open(sys.argv[1], "w") as file:
            print(cluster.scheduler_address, file=file)
        time.sleep(600)
"""


class Program(dspy.Module):
    """The routing program, with something done before each answer."""

    def __init__(self, before: Callable[[], Any]) -> None:
        super().__init__()
        self.route = dspy.ChainOfThought(Route)
        self.before = before

    def forward(self, **inputs: Any) -> Any:
        self.before()
        return self.route(**inputs)


def started(script: Path, text: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Run a script in a session of its own: its process group is all that it started."""
    script.write_text(text, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT), str(Path(__file__).parent)])},
        start_new_session=True,
    )  # fmt: skip


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened() and time.monotonic() < end:
        time.sleep(0.01)


def end_group(group: int) -> None:
    """Kill what is left of a process group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def journal(folder: Path) -> bytes:
    path = folder / "journal.jsonl"
    return path.read_bytes() if path.exists() else b""


@pytest.mark.parametrize(("lines", "later"), [(1, 0.15), (3, 0.0)])
def test_a_coordinator_that_is_killed_goes_on_to_the_journal_of_threads(
    lines: int, later: float, tmp_path: Path
) -> None:
    """Kill -9 in the middle of a step, then the same script once more: equal bytes."""
    script = tmp_path / "script.py"
    assert started(script, COORDINATOR, tmp_path / "threads", 0).wait(timeout=120) == 0
    killed = started(script, COORDINATOR, tmp_path / "processes", 2)
    try:
        wait_until(lambda: journal(tmp_path / "processes").count(b"\n") >= lines)
        time.sleep(later)
        killed.kill()
        assert killed.wait(timeout=60) == -signal.SIGKILL
        before = journal(tmp_path / "processes")
        assert 0 < len(before) < len(journal(tmp_path / "threads"))
        assert started(script, COORDINATOR, tmp_path / "processes", 2).wait(timeout=120) == 0
    finally:
        end_group(killed.pid)  # workers of a pool outlive a coordinator that is killed
    assert journal(tmp_path / "processes") == journal(tmp_path / "threads")


def kill_cluster_once(mark: str) -> None:
    """Kill the process group of this worker, its scheduler included, unless the mark is there."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.killpg(os.getpgrp(), signal.SIGKILL)


def test_a_lost_scheduler_ends_the_run_with_its_program_and_the_folder_goes_on(tmp_path: Path) -> None:
    """Dask's scheduler and all workers are killed in a rollout of the third step."""
    distributed = pytest.importorskip("distributed")
    compiled(OfflineLM(), log_dir=tmp_path / "whole", student=Program(os.getpid))
    mark = tmp_path / "killed"
    mark.touch()

    def last_step(record: Any, playbook: Any) -> None:
        if record.step == 2:
            mark.unlink()

    student = Program(partial(kill_cluster_once, str(mark)))
    address = tmp_path / "address"
    cluster = started(tmp_path / "cluster.py", CLUSTER, address)
    try:
        wait_until(lambda: address.exists() and address.read_text().endswith("\n"))
        with distributed.Client(address.read_text().strip()) as client, pytest.raises(RunError) as raised:
            compiled(
                OfflineLM(), log_dir=tmp_path / "cut", student=student, executor=client.get_executor(),
                on_step=last_step,
            )  # fmt: skip
    finally:
        end_group(cluster.pid)
        cluster.wait(timeout=60)
    assert mark.exists()
    assert "works no longer" in str(raised.value)
    assert len(raised.value.program.playbook) > 0
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        compiled(OfflineLM(), log_dir=tmp_path / "cut", student=student, executor=executor)
    assert journal(tmp_path / "cut") == journal(tmp_path / "whole")


def die_sometimes(chance: float) -> None:
    """Kill this worker, with what it has spent so far unknown to anybody."""
    if random.random() < chance:
        os.kill(os.getpid(), signal.SIGKILL)


class Twice(Program):
    """The routing program, asked twice, with something done in between."""

    def forward(self, **inputs: Any) -> Any:
        self.route(**inputs)
        return super().forward(**inputs)


def test_a_limit_of_calls_holds_while_workers_are_killed_between_their_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the log of the server: what a killed worker has called is in it, and counted against the limit."""
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    cluster = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(**cluster) as local,
        distributed.Client(local) as scheduler,
    ):
        for limit in (10, 40, 70):
            with serve() as server:
                program = compiled(
                    client(server), Twice(partial(die_sometimes, 0.1)), executor=scheduler.get_executor(),
                    max_lm_calls=limit, num_threads=2,
                )  # fmt: skip
                print(f"at most {limit}: {server.calls} calls, {program.detailed_results.rollouts} rollouts")
                assert 0 < server.calls <= limit
                assert sum(usage.calls for usage in program.detailed_results.usage.values()) <= server.calls
