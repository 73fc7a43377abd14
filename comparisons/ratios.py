"""The cost of ACE beside others, as ratios: rollouts, LM calls, prompt tokens billed and wall clock, all in one run.

The offline model answers over HTTP with the latency of a provider, scaled down by a stated factor: a fixed part, one
for each prompt token that the prompt cache does not hold, one for each token written. A cached prompt token is billed
as a tenth. Calls and tokens are what the server counted. As long as sleeping outweighs computing (the CPU share of
each run is printed), the ratio of two wall clocks is the one that a provider of that latency would show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from dspy_ace.testing import Record
from dspy_ace.testing.server import OfflineServer, serve

from .methods import METHODS, Setting
from .proposals import answer_proposal
from .tasks import Task, load_task

FIXED, PER_PROMPT_TOKEN, PER_COMPLETION_TOKEN = 0.3, 1 / 3000, 1 / 80  # seconds, as a provider of a mid-size model
CACHED_SHARE = 0.1  # of the price of a prompt token
REWRITE_LIMIT = 2000  # words the offline model writes when it writes a prompt anew: Dynamic Cheatsheet asks for that
COLUMNS = ("rollouts", "calls", "billed", "wall")


@dataclass(frozen=True)
class Pair:
    """ACE under one or more names of `METHODS`, against another method, with the ratios aimed at (None: no aim)."""

    title: str
    ours: tuple[str, ...]
    theirs: str
    aims: tuple[float | None, float | None, float | None, float | None]
    online: bool = False
    epochs: int | None = None


PAIRS = {
    "gepa": Pair('GEPA auto="light"', ("ace-light", "ace"), "gepa", (0.25, 0.30, 0.30, 0.18)),
    "mipro": Pair('MIPROv2 auto="light"', ("ace-light", "ace"), "mipro", (0.35, 0.45, 0.45, 0.30)),
    "dc": Pair("Dynamic Cheatsheet, online", ("ace-online",), "dc", (None, 1.0, 0.16, 0.085), online=True),
    "paper": Pair(
        "ACE as the paper ran it, one epoch", ("ace-light", "ace"), "ace-paper", (1.0, 0.55, 0.45, 0.10), epochs=1
    ),
}


@dataclass(frozen=True)
class Cost:
    """The cost of one run, and how good it was. Two add up; their score is the mean.

    Args:
        rollouts: runs of the program.
        calls: LM requests the server received.
        billed: prompt tokens, a cached one as a tenth.
        wall: seconds; cpu: seconds of computing within them, of client and server together.
        score: mean on the test set; online: mean over the stream, each example before it was learned from.
        prompt, cached, written: tokens, as the server counted them.
        runs: how many runs these figures are the sum of.
    """

    rollouts: int
    calls: int
    billed: float
    wall: float
    cpu: float
    score: float
    prompt: int
    cached: int
    written: int
    runs: int = 1

    def __add__(self, other: Cost) -> Cost:
        runs = self.runs + other.runs
        mean = (self.score * self.runs + other.score * other.runs) / runs
        names = ("rollouts", "calls", "billed", "wall", "cpu", "prompt", "cached", "written")
        return Cost(score=mean, runs=runs, **{name: getattr(self, name) + getattr(other, name) for name in names})


class _Rollouts(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """Counts runs of the student: modules of its class that ask for its outputs."""

    def __init__(self, student: dspy.Module) -> None:
        self.outputs = outputs_of(student)
        self.kind = type(student)
        self.started: list[None] = []  # appending is atomic

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if type(instance) is self.kind and outputs_of(instance) == self.outputs:
            self.started.append(None)


def outputs_of(program: dspy.Module) -> list[list[str]]:
    """The names of the output fields of each predictor."""
    return [list(predictor.signature.output_fields) for _, predictor in program.named_predictors()]


@dataclass(frozen=True)
class Bench:
    """The conditions all runs share.

    Args:
        scale: the latencies are multiplied by it.
        threads: calls at once.
        data: folder of the FiNER examples for the online pair; None: it runs on the quickstart's messages.
        stream: how many examples the online pair meets.
        say: told what is going on.
    """

    scale: float = 0.1
    threads: int = 16
    data: Path | None = None
    stream: int = 60
    say: Callable[[str], object] = str

    @contextmanager
    def provider(self) -> Iterator[OfflineServer]:
        """A server with an empty prompt cache, and DSPy's LM pointing at it."""
        with serve(
            prefix_cache=True,
            answerers=[partial(answer_proposal, limit=REWRITE_LIMIT)],
            latency=FIXED * self.scale,
            latency_per_prompt_token=PER_PROMPT_TOKEN * self.scale,
            latency_per_completion_token=PER_COMPLETION_TOKEN * self.scale,
        ) as server:
            lm = dspy.LM("openai/offline", api_base=server.url, api_key="none", cache=False)
            with dspy.context(lm=lm):
                lm("Say hello.")  # imports and the first connection are nobody's cost
                yield server

    def task(self, pair: Pair) -> Task:
        """The quickstart's with its usual sizes; online FiNER if its data is there."""
        if not pair.online:
            return load_task("quickstart")
        task = load_task("finer", self.data) if self.data else load_task("quickstart")
        pool = [*task.test, *task.val, *task.train]
        return replace(task, test=pool[: self.stream])

    def run(self, name: str, task: Task, pair: Pair, seed: int) -> Cost:
        """One method from a cold start; the cost is that of learning, online that of the stream."""
        setting = Setting(
            task.metric,
            len(task.train),
            len(task.val),
            task.test,
            num_threads=self.threads,
            epochs=pair.epochs,
            paper_epochs=pair.epochs or 5,
        )
        with self.provider() as server:
            ours, rollouts, before = METHODS[name].make(setting, seed), _Rollouts(task.program), server.calls
            wall, cpu = time.perf_counter(), time.process_time()
            with dspy.context(callbacks=[rollouts]):
                program = ours.compile(task.program, trainset=list(task.train), valset=list(task.val))
                scores = in_order(program, task) if pair.online else []
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            log = server.log[before:]
            if not pair.online:
                scores = at_once(program, task, self.threads)
        cost = cost_of(log, len(rollouts.started), wall, cpu, sum(scores) / len(scores))
        self.say(f"  {name}, seed {seed}: {told(cost)}")
        return cost


def cost_of(log: Sequence[Record], rollouts: int, wall: float, cpu: float, score: float) -> Cost:
    """The cost of the requests in a server's log."""
    prompt, cached = sum(r.prompt_tokens for r in log), sum(r.cached_tokens for r in log)
    billed = prompt - cached + CACHED_SHARE * cached
    written = sum(r.completion_tokens for r in log)
    return Cost(rollouts, len(log), billed, wall, cpu, score, prompt, cached, written)


def told(cost: Cost) -> str:
    """A cost in one line."""
    return (
        f"score {cost.score:.3f}, {cost.rollouts} rollouts, {cost.calls} calls, {cost.billed:,.0f} tokens billed "
        f"({cost.prompt:,} sent, {cost.cached:,} of them cached; {cost.written:,} written), {cost.wall:.1f} s, "
        f"CPU share {cost.cpu / cost.wall:.0%}"
    )


def in_order(program: dspy.Module, task: Task) -> list[float]:
    """Scores of the test examples, one after the other; one that fails scores 0."""
    scores = []
    for example in task.test:
        try:
            scores.append(_score(task.metric(example, program(**example.inputs()))))
        except Exception:  # noqa: BLE001 - whatever fails on an example costs this example
            scores.append(0.0)
    return scores


def at_once(program: dspy.Module, task: Task, threads: int) -> list[float]:
    """Scores of the test examples, in threads."""
    evaluate = dspy.Evaluate(devset=list(task.test), metric=task.metric, num_threads=threads, display_progress=False)
    return [_score(result) for _, _, result in evaluate(program).results]


def _score(result: Any) -> float:
    return float(getattr(result, "score", result))


@dataclass(frozen=True)
class Row:
    """One line of the table: ACE under a name, against the other of its pair, on a task."""

    pair: Pair
    task: str
    name: str
    ours: Cost
    theirs: Cost

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over theirs, in the order of `COLUMNS`."""
        return tuple(getattr(self.ours, column) / getattr(self.theirs, column) for column in COLUMNS)


def compare_costs(bench: Bench, against: Sequence[str], seeds: Sequence[int]) -> Iterator[Row]:
    """The rows of each pair of `against`, as soon as they are measured; costs are summed over seeds.

    A run that two pairs share, ACE with its defaults, is made once.
    """
    kept: dict[tuple[Any, ...], Cost] = {}
    for key in against:
        pair = PAIRS[key]
        task = bench.task(pair)
        bench.say(f"{pair.title} ({task.name})")

        def summed(name: str, pair: Pair = pair, task: Task = task) -> Cost:
            costs = []
            for seed in seeds:
                run = (name, task.name, pair.online, pair.epochs, seed)
                if run not in kept:
                    kept[run] = bench.run(name, task, pair, seed)
                costs.append(kept[run])
            return sum(costs[1:], costs[0])

        theirs = summed(pair.theirs)
        for name in pair.ours:
            yield Row(pair, task.name, name, summed(name), theirs)


def table(rows: Sequence[Row]) -> str:
    """The ratios with their aims, in Markdown. `✗` marks one that misses its aim."""
    lines = [
        "| | against | task | score, ACE / other | " + " | ".join(COLUMNS) + " | CPU share |",
        "|---" * (5 + len(COLUMNS)) + "|",
    ]
    for row in rows:
        cells = []
        for ratio, aim in zip(row.ratios, row.pair.aims, strict=True):
            cells.append(f"{ratio:.3f}" + ("" if aim is None else f" (aim {aim:g}){'' if ratio <= aim else ' ✗'}"))
        cpu = f"{row.ours.cpu / row.ours.wall:.0%} / {row.theirs.cpu / row.theirs.wall:.0%}"
        scores = f"{row.ours.score:.3f} / {row.theirs.score:.3f}"
        lines.append(f"| {row.name} | {row.pair.title} | {row.task} | {scores} | {' | '.join(cells)} | {cpu} |")
    return "\n".join(lines)
