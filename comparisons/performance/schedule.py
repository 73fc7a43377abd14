"""How near a run comes to its critical path: `python -m comparisons.performance.schedule`.

Every LM call takes a time drawn at random, 0.2 to 2 s (times `--scale`), by a hash of its request. The critical path is
the longest chain of calls of which each must wait for the one before, with threads without number: in a step the
rollout of an example, its reflection, its retry, then the curation of the group it is in, a group waiting for all
examples before it; then the next step, which needs the playbook (with `overlap=1` its curations alone do), and at the
end the last look at the valset. Nothing waits for the other looks. No step can take less than its work divided by the
threads, nor can the run. That the first calls are made a few at a time, so that a dead model costs little, is not in
the critical path.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dspy

from dspy_ace import ACE, Curator, Playbook, Reflector
from dspy_ace.program import Trajectory
from dspy_ace.program.rollout import rollouts
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM

from ..tasks import load_task
from .timing import machine

SHORTEST, LONGEST = 0.2, 2.0  # seconds
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"auto": "light"}, {"overlap": 1}, {"overlap": 1, "batch_size": 8})


class Delayed(OfflineLM):  # type: ignore[misc]  # dspy is untyped
    """The offline model; each reply comes after a time of its own, the same one for the same request and draw."""

    def __init__(self, scale: float, draw: int) -> None:
        super().__init__()
        self.scale, self.draw = scale, draw

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer, no sooner than drawn."""
        began = time.monotonic()
        reply = super().forward(*args, **kwargs)
        request = f"{self.draw or ''}{kwargs.get('messages') or args}"
        drawn = int(hashlib.sha256(request.encode()).hexdigest()[:8], 16) / 2**32
        # the stand-in's own computing is no part of a provider's latency
        time.sleep(max(0.0, (SHORTEST + (LONGEST - SHORTEST) * drawn) * self.scale - (time.monotonic() - began)))
        return reply


class Clock:
    """How long what took, and when it ended."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, tuple[str, ...], float]] = []  # in the order they ended
        self._lock = threading.Lock()

    @contextmanager
    def span(self, kind: str, *names: str) -> Iterator[None]:
        """Note how long the block takes."""
        began = time.perf_counter()
        yield
        with self._lock:
            self.spans.append((kind, names, time.perf_counter() - began))

    def of(self, kind: str) -> list[tuple[tuple[str, ...], float]]:
        """Names and seconds of the spans of a kind."""
        return [(names, seconds) for what, names, seconds in self.spans if what == kind]


class Watched(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """A program whose runs are timed."""

    def __init__(self, program: dspy.Module, clock: Clock) -> None:
        super().__init__()
        self.program, self.clock = program, clock

    def forward(self, **inputs: Any) -> Any:
        """Run the program."""
        with self.clock.span("rollout", str(inputs)):
            return self.program(**inputs)


def path(
    clock: Clock, records: Sequence[Any], trainset: Sequence[dspy.Example], threads: int, overlap: int = 0
) -> float:
    """Seconds of the critical path of a run of one epoch, whose valset holds none of the trainset."""
    chains = {str(position): 0.0 for position in range(len(trainset))}  # rollout, reflection, retry, reflection
    sources = {str(dict(example.inputs())): str(position) for position, example in enumerate(trainset)}
    looks: list[float] = []
    for (inputs,), seconds in clock.of("rollout"):
        if inputs in sources:
            chains[sources[inputs]] += seconds
        else:
            looks.append(seconds)
    for (source,), seconds in clock.of("reflect"):
        chains[source] += seconds
    ends = [0.0]
    for record in (record for record in records if record.batch):
        begins = ends[max(0, len(ends) - 1 - overlap)]
        names = [str(position) for position in record.batch]
        until, so_far = {}, begins
        for source in names:
            so_far = max(so_far, begins + chains[source])
            until[source] = so_far
        curated = [(own, seconds) for own, seconds in clock.of("curate") if own[0] in until]
        groups = [max(ends[-1], *(until[source] for source in own)) + seconds for own, seconds in curated]
        work = sum(chains[source] for source in names) + sum(seconds for _, seconds in curated)
        ends.append(max(ends[-1], so_far, begins + work / threads, *groups))
    last = [] if records[-1].batch else looks[-records[-1].rollouts :]
    after = max([*last, sum(last) / threads])
    return max(ends[-1] + after, sum(seconds for *_, seconds in clock.spans) / threads)


def measured(threads: int, scale: float, settings: dict[str, Any], draw: int = 0) -> tuple[float, float, int]:
    """Wall clock and critical path of one compile in seconds, and its LM calls."""
    task, clock, lm = load_task("quickstart"), Clock(), Delayed(scale, draw)
    reflector, curator = Reflector(), Curator()

    def reflect(playbook: Playbook, trajectory: Trajectory) -> Reflection:
        with clock.span("reflect", trajectory.source):
            return reflector(playbook, trajectory)

    def curate(playbook: Playbook, reflections: Sequence[Reflection]) -> Any:
        with clock.span("curate", *(r.trajectory.source for r in reflections if r.trajectory is not None)):
            return curator(playbook, reflections)

    optimizer = ACE(task.metric, reflect=reflect, curate=curate, num_threads=threads, progress=False, **settings)
    train = list(task.train)
    with dspy.context(lm=lm):
        began = time.perf_counter()
        program = optimizer.compile(Watched(task.program, clock), train, valset=list(task.val))
        wall = time.perf_counter() - began
    records = program.detailed_results.records
    return wall, path(clock, records, train, threads, settings.get("overlap", 0)), lm.calls


def overhead(repeats: int) -> tuple[float, float]:
    """CPU of a bare run of the program, and of a rollout by `dspy_ace` beyond that: medians, in milliseconds."""
    task, lm = load_task("quickstart"), OfflineLM()
    examples = list(task.train)
    bare, ours = [], []
    with dspy.context(lm=lm):
        for _ in range(repeats):
            began = time.process_time()
            for example in examples:
                with dspy.context(trace=[]):
                    task.metric(example, task.program(**example.inputs()))
            bare.append((time.process_time() - began) / len(examples))
            began = time.process_time()
            rollouts(task.program, examples, task.metric, num_threads=1)
            ours.append((time.process_time() - began) / len(examples))
    return 1000 * statistics.median(bare), 1000 * statistics.median(b - a for a, b in zip(bare, ours, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--scale", type=float, default=0.5, help="the times are multiplied by this (default: 0.5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[16, 64])
    parser.add_argument(
        "--runs",
        type=int,
        default=1,
        help="of each row, with times drawn anew; the median is shown, and the ratios' range",
    )
    parser.add_argument("--repeats", type=int, default=7, help="of the CPU measurement")
    args = parser.parse_args(argv)
    dspy.disable_logging()
    print(f"{machine()}; times × {args.scale:g}, drawn {args.runs} times")
    print("\n| settings | threads | LM calls | critical path | wall clock | ratio |\n|---|---|---|---|---|---|")
    for settings in SETTINGS:
        for threads in args.threads:
            made = sorted(
                (measured(threads, args.scale, settings, draw) for draw in range(args.runs)),
                key=lambda run: run[0] / run[1],
            )
            (fast, least, _), (slow, most, _) = made[0], made[-1]
            wall, bound, calls = made[len(made) // 2]
            spread = f" ({fast / least:.3f}–{slow / most:.3f})" if len(made) > 1 else ""
            name = ", ".join(f"{name}={value}" for name, value in settings.items()) or "default"
            print(
                f"| {name} | {threads} | {calls} | {bound:.1f} s | {wall:.1f} s | {wall / bound:.3f}{spread} |",
                flush=True,
            )
    bare, beyond = overhead(args.repeats)
    print(f"\nCPU of a rollout: {bare:.2f} ms the bare program with the offline model, {beyond:+.2f} ms by dspy_ace")


if __name__ == "__main__":
    main()
