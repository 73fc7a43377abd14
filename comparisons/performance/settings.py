"""The worth of each setting of ACE, measured: `python -m comparisons.performance.settings batch`.

The quickstart's task under an offline model with the noise of a real one: slips, wrong lessons, the same lesson in
other words, replies that cannot be read; `--situation` names another one (`tasks/stand_ins.py`). For each value of a
setting: the mean score on held-out messages over seeds, its difference to the default paired by seed and message with
a 95 % interval, bullets, how many of them name a wrong desk, prompt tokens of a call with the playbook, rollouts,
reflections and curations (calls of the reflector and of the curator, those asked again included), LM calls of all.

`wall` makes one run of each entry of the grid `batch` over HTTP with a provider's latency, scaled down. It shows the
wall clock divided by the scale: an estimate of that at full latency, and too high, since computing is not scaled down.
How much too high can be seen: *CPU* is the processor time of the process, client and server together, over the wall
clock. As long as it stays well below 100 %, latencies decide and ratios hold; Python's threads compute no faster than
that on any number of cores. With a batch of one example a step is serial by nature.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_ace import ACE, GrowAndRefine
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import serve

from ..ratios import FIXED, PER_COMPLETION_TOKEN, PER_PROMPT_TOKEN
from ..tasks import Task, load_task
from ..tasks.stand_ins import SITUATIONS, Situation, misleading
from .timing import machine

NOISE: dict[str, float] = {"slips": 0.05, "wrong_lessons": 0.1, "paraphrase": 0.2, "unparsable": 0.02}

GRIDS: dict[str, list[dict[str, Any]]] = {
    "batch": [{"batch_size": size} for size in (1, 2, 4, 8, 16, 32)],
    "reflect_on": [{"reflect_on": "failures"}, {"auto": "light"}],
    "rounds": [{"max_reflection_rounds": rounds} for rounds in (0, 1, 2, 5)],
    "epochs": [{"epochs": epochs} for epochs in (1, 2, 5)],
    "prune": [
        {"refine": GrowAndRefine(prune_min_uses=uses, prune_harm_ratio=ratio)}
        for uses, ratio in ((1, 0.6), (2, 0.6), (3, 0.6), (3, 0.75), (None, 0.6))
    ],
    "validate": [{"validate": "along"}, {"validate": "end"}, {"valset": False}],
    "auto": [{}, {"auto": "light"}, {"auto": "medium"}, {"auto": "heavy"}],
    "default": [{}, {"batch_size": 1}],
}


@dataclass(frozen=True)
class Outcome:
    """One run: scores on the held-out messages, and what it took.

    Args:
        scores: one a message.
        rollouts: runs of the program: batches, retries, validation.
        reflections, curations, calls: LM calls of the reflector, of the curator, and of all roles.
        bullets, misleading: of the playbook; those of them that name a wrong desk.
        tokens: prompt tokens of a call with the playbook, on average.
        wall, cpu: seconds of the compile, by the clock and of computing (all threads of the process).
    """

    scores: tuple[float, ...]
    rollouts: int
    reflections: int
    curations: int
    calls: int
    bullets: int
    misleading: int
    tokens: float
    wall: float
    cpu: float


def outcome(task: Task, settings: Mapping[str, Any], seed: int, lm: Any, judge: Any) -> Outcome:
    """Compile with `lm`, then score with `judge`, which makes no slips."""
    own = dict(settings)
    sets: dict[str, Any] = {"valset": list(task.val)} if own.pop("valset", True) else {}
    optimizer = ACE(task.metric, **{"num_threads": 16, "seed": seed, "progress": False, **own})
    began, computing = time.perf_counter(), time.process_time()
    with dspy.context(lm=lm):
        program = optimizer.compile(task.program, list(task.train), **sets)
    wall, cpu = time.perf_counter() - began, time.process_time() - computing
    with dspy.context(lm=judge):
        evaluate = dspy.Evaluate(devset=list(task.test), metric=task.metric, num_threads=4, display_progress=False)
        scores = tuple(float(getattr(score, "score", score)) for *_, score in evaluate(program).results)
    results, asked = program.detailed_results, [record.prompt_tokens for record in judge.log]
    calls = {role: usage.calls for role, usage in results.usage.items()}
    return Outcome(
        scores,
        results.rollouts,
        calls.get("reflector", 0),
        calls.get("curator", 0),
        sum(calls.values()),
        len(program.playbook),
        misleading(program.playbook),
        sum(asked) / len(asked),
        wall,
        cpu,
    )


def named(settings: Mapping[str, Any]) -> str:
    """Settings as they stand in a table."""
    words = []
    for name, value in settings.items():
        if isinstance(value, GrowAndRefine):
            votes, share = value.prune_min_uses, value.prune_harm_ratio
            words.append(f"prune from {votes} harmful votes, a share of {share:g}" if votes else "no pruning")
        else:
            words.append(f"{name}={value}")
    return ", ".join(words) or "the default"


def rows(
    grid: Sequence[Mapping[str, Any]], seeds: Sequence[int], noise: Mapping[str, float], situation: Situation
) -> Iterator[str]:
    """A line of the table for each entry of the grid."""
    base: list[Outcome] | None = None
    for settings in [{}, *(each for each in grid if each)]:
        runs = []
        for seed in seeds:
            lm, judge = situation.model(noise, seed), situation.model({})
            runs.append(outcome(situation.task(seed), settings, seed, lm, judge))
        base = runs if base is None else base
        yield line(named(settings), runs, base)


def line(name: str, runs: Sequence[Outcome], base: Sequence[Outcome]) -> str:
    """Means over seeds, and the difference to the default."""
    mean = [sum(run.scores) / len(run.scores) for run in runs]
    apart = [
        after - before
        for a, b in zip(runs, base, strict=True)
        for after, before in zip(a.scores, b.scores, strict=True)
    ]
    difference = sum(apart) / len(apart)
    by_seed = [sum(a.scores) / len(a.scores) - sum(b.scores) / len(b.scores) for a, b in zip(runs, base, strict=True)]
    shown = "–" if runs is base else f"{difference:+.3f}"
    if runs is not base and len(runs) > 1:
        shown += f" ± {_half_width(by_seed):.3f}"

    def average(what: str) -> float:
        return sum(getattr(run, what) for run in runs) / len(runs)

    return (
        f"| {name} | {sum(mean) / len(mean):.3f} | {shown} | {average('bullets'):.0f} "
        f"| {average('misleading'):.1f} | {average('tokens'):,.0f} "
        f"| {average('rollouts'):.0f} | {average('reflections'):.0f} | {average('curations'):.0f} "
        f"| {average('calls'):.0f} |"
    )


def _half_width(values: Sequence[float]) -> float:
    """Half of a 95 % interval of the mean of two values or more, by Student's t."""
    from scipy import stats  # noqa: PLC0415 - comes with scikit-learn

    return float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


def walls(sizes: Sequence[int], scale: float, threads: int) -> Iterator[str]:
    """Measure the wall clock of one run for each batch size of `sizes` over HTTP; a line each."""
    latency = {
        "latency": FIXED * scale,
        "latency_per_prompt_token": PER_PROMPT_TOKEN * scale,
        "latency_per_completion_token": PER_COMPLETION_TOKEN * scale,
    }
    task, first = load_task("quickstart"), None
    for settings in GRIDS["batch"]:
        if settings["batch_size"] not in sizes:
            continue
        with serve(prefix_cache=True, **latency, **NOISE) as server:
            lm = dspy.LM("openai/offline", api_base=server.url, api_key="none", cache=False)
            with dspy.context(lm=lm):
                lm("Say hello.")  # imports and the first connection are no part of the first run
            run = outcome(task, {**settings, "num_threads": threads}, 0, lm, OfflineLM())
        first = first or run
        cells = (
            settings["batch_size"],
            f"{run.wall / scale:.0f} s",
            f"{run.wall / first.wall:.2f}",
            f"{run.cpu:.1f} s",
            f"{run.cpu / run.wall:.0%}",
            run.rollouts,
            run.reflections,
            run.curations,
            run.calls,
            f"{run.calls / first.calls:.2f}",
        )
        yield f"| {' | '.join(map(str, cells))} |"


WALLS = (
    "| batch size | wall clock, latencies × 1 | vs the first | CPU time | CPU | rollouts | reflections | curations "
    "| LM calls | vs the first |\n" + "|---" * 10 + "|"
)
SCORES = (
    "| setting | held-out score | vs the default | bullets | misleading | tokens a call | rollouts | reflections "
    "| curations | LM calls |\n" + "|---" * 10 + "|"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=[*GRIDS, "wall"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--situation", nargs="+", choices=list(SITUATIONS), default=["plain"], help="default: plain")
    parser.add_argument("--quiet-model", action="store_true", help="without noise")
    parser.add_argument("--scale", type=float, default=0.1, help="latencies are multiplied by this (wall)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="batch sizes (wall)")
    parser.add_argument("--threads", type=int, default=16, help="calls at once (wall; default: 16)")
    args = parser.parse_args(argv)
    dspy.disable_logging()
    if args.what == "wall":
        print(f"{machine()}; latencies × {args.scale:g}, {args.threads} threads, seed 0\n\n{WALLS}")
        for row in walls(args.sizes, args.scale, args.threads):
            print(row, flush=True)
        return
    print(f"{machine()}; seeds {' '.join(map(str, args.seeds))}")
    noise = {} if args.quiet_model else NOISE
    for name in args.situation:
        print(f"\n{name}\n\n{SCORES}")
        for row in rows(GRIDS[args.what], args.seeds, noise, SITUATIONS[name]):
            print(row, flush=True)


if __name__ == "__main__":
    main()
