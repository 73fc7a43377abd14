"""The wall clock of a run beside its critical path: `python -m comparisons.performance.schedule`.

Every LM call takes a time drawn at random, 0.2 to 2 s (times `--scale`), by a hash of its request. The critical path is
the longest chain of calls of which each must wait for the one before. In a step this is the slowest example (rollout,
reflection, retries, one after the other), then the curation of the batch. Steps follow one another, because each needs
the playbook of the one before. At the end comes the slowest rollout of the validation. No step, and no validation, can
take less than its work divided by the threads. The first calls of a run are made a few at a time, so that a dead model
costs little: that is not in the critical path.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_ace import ACE, Curator, Playbook, Reflector
from dspy_ace.program import Trajectory, rollouts
from dspy_ace.testing import OfflineLM

from ..tasks import load_task
from .timing import machine

SHORTEST, LONGEST = 0.2, 2.0  # seconds
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"auto": "light"}, {"batch_size": 8})


def delayed(scale: float, draw: int) -> OfflineLM:
    """Make an offline model with a delay before each reply, the same one for the same request and draw."""
    lm = OfflineLM()
    answer = lm.backend.serve

    def serve(request: Any, *settings: Any) -> Any:
        began = time.monotonic()
        reply = answer(request, *settings)
        drawn = int(hashlib.sha256(f"{draw or ''}{request.text}".encode()).hexdigest()[:8], 16) / 2**32
        # the stand-in's own computing is no part of a provider's latency
        time.sleep(max(0.0, (SHORTEST + (LONGEST - SHORTEST) * drawn) * scale - (time.monotonic() - began)))
        return reply

    lm.backend.serve = serve  # type: ignore[method-assign, assignment]  # copies of the model share it
    return lm


@dataclass(frozen=True)
class Span:
    """One thing that took time: `kind` is "rollout", "reflect" or "curate", `example` its inputs as text."""

    kind: str
    example: str
    seconds: float


class Clock:
    """The spans of a run, in parts: each step is one, so is a validation."""

    def __init__(self) -> None:
        self.parts: list[list[Span]] = [[]]
        self._lock = threading.Lock()

    @contextmanager
    def span(self, kind: str, example: str = "") -> Iterator[None]:
        """Note how long the block takes."""
        began = time.perf_counter()
        yield
        with self._lock:
            self.parts[-1].append(Span(kind, example, time.perf_counter() - began))

    def next_part(self, *_: Any) -> None:
        """Begin another part, as `on_step`."""
        with self._lock:
            self.parts.append([])


class Watched(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """A program whose runs are timed."""

    def __init__(self, program: dspy.Module, clock: Clock) -> None:
        super().__init__()
        self.program, self.clock = program, clock

    def forward(self, **inputs: Any) -> Any:
        """Run the program."""
        with self.clock.span("rollout", str(sorted(inputs.items()))):
            return self.program(**inputs)


def critical_path(parts: Sequence[Sequence[Span]], threads: int) -> float:
    """Return the seconds that a run with so many threads takes at least."""
    return sum(shortest(part, threads) for part in parts)


def shortest(part: Sequence[Span], threads: int) -> float:
    """Return the seconds that a step (or a validation: rollouts alone) takes at least.

    Example:
        >>> one, other = [Span("rollout", "a", 1), Span("reflect", "a", 2)], [Span("rollout", "b", 2)]
        >>> shortest([*one, *other, Span("curate", "", 1)], threads=2)
        4
    """
    curation = sum(span.seconds for span in part if span.kind == "curate")
    calls = [span for span in part if span.kind != "curate"]
    work = sum(span.seconds for span in calls) / threads
    if all(span.kind == "rollout" for span in calls):  # nothing waits for another rollout
        return max([work, *(span.seconds for span in calls)]) + curation
    chains: dict[str, float] = defaultdict(float)
    for span in calls:
        chains[span.example] += span.seconds
    return max([work, *chains.values()]) + curation


def measured(threads: int, scale: float, settings: dict[str, Any], draw: int = 0) -> tuple[float, float, int]:
    """Return wall clock and critical path of one compile in seconds, and its LM calls."""
    task, clock, lm = load_task("quickstart"), Clock(), delayed(scale, draw)
    reflector, curator = Reflector(), Curator()

    def reflect(playbook: Playbook, trajectory: Trajectory) -> Any:
        with clock.span("reflect", str(sorted(trajectory.inputs.items()))):
            return reflector(playbook, trajectory)

    def curate(*given: Any) -> Any:
        with clock.span("curate"):
            return curator(*given)

    optimizer = ACE(
        task.metric,
        reflect=reflect,
        curate=curate,
        on_step=clock.next_part,
        num_threads=threads,
        progress=False,
        **settings,
    )
    with dspy.context(lm=lm):
        began = time.perf_counter()
        optimizer.compile(Watched(task.program, clock), list(task.train), valset=list(task.val))
        wall = time.perf_counter() - began
    return wall, critical_path(clock.parts, threads), lm.calls


def overhead(repeats: int) -> tuple[float, float]:
    """Return the CPU of a bare run of the program, and what `dspy_ace` adds to it: medians, in milliseconds."""
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
