"""Rollouts on other processes: what the coordinator pays, and, simulated, where it would be the limit.

`python -m comparisons.performance.scale_out` measures on this machine
- a program that computes, on two worker processes against threads,
- one that waits for its model, on Dask (two processes of four threads) against eight threads, where Dask is installed,
- the processor time that one rollout costs the coordinator, with a playbook of 100 bullets,
- the processor time of merging one delta of a batch;
and then simulates one step with 1 to 1,000 workers from these figures. Rollouts, reflections and curation are given
times of a real model: nothing of the simulation is measured but the coordinator's part.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from importlib.util import find_spec
from typing import Any

import dspy

from comparisons.tasks import load_task
from dspy_ace import ACE, with_playbook
from dspy_ace.playbook import Delta, Tag, apply
from dspy_ace.testing import OfflineLM
from dspy_ace.training.engine import Engine
from dspy_ace.training.settings import Settings

from .lessons import additions, lessons, playbook_of
from .timing import machine

WORKERS = (1, 4, 16, 64, 256, 1000)


class Computing(dspy.Module):
    """A program that computes before it asks its model.

    Args:
        program: asked.
        seconds: of processor time before.
    """

    def __init__(self, program: dspy.Module, seconds: float) -> None:
        super().__init__()
        self.program = program
        self.seconds = seconds

    def forward(self, **inputs: Any) -> Any:
        """Compute, then ask."""
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return self.program(**inputs)


def processes(workers: int) -> ProcessPoolExecutor:
    """Return a pool of new interpreters."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def wall_clock(executor: Executor | None, examples: int, seconds: float, threads: int = 2) -> float:
    """Return the seconds of a run of one epoch whose rollouts compute for so many."""
    task = load_task("quickstart")
    optimizer = ACE(task.metric, max_reflection_rounds=0, num_threads=threads, progress=False, executor=executor)
    began = time.perf_counter()
    optimizer.compile(Computing(task.program, seconds), list(task.train)[:examples])
    return time.perf_counter() - began


def waiting(examples: int, latency: float) -> tuple[float, float]:
    """Return the seconds of a run whose LM calls take `latency` each: in eight threads, and on Dask."""
    from distributed import Client, LocalCluster  # noqa: PLC0415 - an extra

    cluster = LocalCluster(n_workers=2, threads_per_worker=4, dashboard_address="127.0.0.1:0")
    with dspy.context(lm=OfflineLM(latency=latency)), cluster, Client(cluster) as client:
        wall_clock(client.get_executor(), 8, 0.0, 8)  # the workers import once
        here, there = (wall_clock(each, examples, 0.0, 8) for each in (None, client.get_executor()))
    return here, there


def coordinator(executor: Executor, rollouts: int, bullets: int) -> float:
    """Return the seconds of processor time that a rollout costs this process."""
    task = load_task("quickstart")
    engine = Engine(Settings.of(metric=task.metric), task.program, executor=executor)
    playbook = playbook_of(lessons(), bullets)
    work = engine.rollouts(with_playbook(task.program, playbook, cite=True))
    examples = list(task.train)
    engine.roll_out(work, examples[0], "0")  # the worker opens the program once
    began = time.process_time()
    for number in range(rollouts):
        engine.roll_out(work, examples[number % len(examples)], str(number))
    return (time.process_time() - began) / rollouts


def merging(bullets: int, batch: int) -> float:
    """Return the seconds of processor time in which the votes and additions of a batch are applied."""
    playbook = playbook_of(lessons(), bullets)
    votes = tuple(Tag(playbook.bullets[number % bullets].id, 1, 0, str(number)) for number in range(batch))
    delta = Delta(votes) + additions(lessons(1), 3)
    began = time.process_time()
    apply(playbook, delta)
    return time.process_time() - began


def busy(workers: int, batch: int, cost: float, rollout: float, after: float) -> tuple[float, float]:
    """Simulate one step; half of a rollout's `cost` is paid to send it, half to take its result, one after the other.

    Returns:
        The part of the step in which a worker is busy, of the rollouts alone and with what comes `after` them.
    """
    free, now, arrived = [0.0] * workers, 0.0, []
    for _ in range(batch):
        now += cost / 2
        begin = max(now, heapq.heappop(free))
        heapq.heappush(free, begin + rollout)
        arrived.append(begin + rollout)
    end = now
    for ended in sorted(arrived):
        end = max(end, ended) + cost / 2
    work = batch * rollout / workers
    return work / end, work / (end + after)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures and the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--examples", type=int, default=24, help="of the measured run (default: 24)")
    parser.add_argument("--seconds", type=float, default=0.3, help="that a rollout computes (default: 0.3)")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds of an LM call on Dask (default: 1)")
    parser.add_argument("--rollouts", type=int, default=200, help="of the coordinator's measurement (default: 200)")
    parser.add_argument("--rollout", type=float, default=2.0, help="simulated seconds of a rollout (default: 2)")
    parser.add_argument("--after", type=float, default=8.0, help="simulated seconds of a step's roles (default: 8)")
    args = parser.parse_args(argv)
    dspy.disable_logging()
    with dspy.context(lm=OfflineLM()), processes(2) as pool:
        wall_clock(pool, 2, 0.0)  # the workers import once
        threads, spread = (wall_clock(each, args.examples, args.seconds) for each in (None, pool))
        cost = coordinator(pool, args.rollouts, 100)
    waited = waiting(args.examples, args.latency) if find_spec("distributed") else None
    print(f"{machine()}\n\nMeasured")
    print(f"- rollouts that compute {args.seconds:g} s: threads {threads:.1f} s, two processes {spread:.1f} s, "
          f"{threads / spread:.2f} times as fast")  # fmt: skip
    if waited is not None:
        here, there = waited
        print(f"- LM calls of {args.latency:g} s, 8 at a time: threads {here:.1f} s, Dask {there:.1f} s, "
              f"{there / here:.2f} times the wall clock")  # fmt: skip
    print(f"- the coordinator's processor time for a rollout, 100 bullets: {1000 * cost:.2f} ms")
    print(f"- for the operations of a batch of 256, 100 bullets: {1000 * merging(100, 256):.1f} ms")
    print(f"\nSimulated: rollouts of {args.rollout:g} s, roles of {args.after:g} s after each batch\n")
    print("| workers | batch | busy during rollouts | busy over the step |\n|---|---|---|---|")
    for workers in WORKERS:
        for batch in (256, 2048):
            during, over = busy(workers, batch, cost, args.rollout, args.after)
            print(f"| {workers} | {batch} | {during:.2f} | {over:.2f} |")
    print(f"\nOne coordinator sends and takes {1 / cost:,.0f} rollouts a second: enough for "
          f"{args.rollout / cost:,.0f} workers.")  # fmt: skip


if __name__ == "__main__":
    main()
