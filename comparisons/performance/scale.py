"""A playbook at scale: what a step costs at any number of bullets, against a straightforward version and the bound."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dspy_ace import GrowAndRefine, Playbook
from dspy_ace.playbook import Add, Delta, Tag, apply
from dspy_ace.similarity import LookAlikes, Vectors, nearest
from dspy_ace.training.journal import Journal
from dspy_ace.training.state import Record, State

from . import straight
from .lessons import SECTIONS, additions, lessons, playbook_of
from .timing import Row, machine, table, timed

AIMS = {10_000: 0.050}  # seconds for a delta of three, done, refined, written and counted
DIMENSIONS = 384  # of a small sentence embedder
NO_LIMIT = 10**12  # tokens
MEMORY = """
import sys
from comparisons.performance.scale import held, settled
n, embedded = int(sys.argv[1]), sys.argv[2] == "dense"
settled(10, embedded)
before, _ = held()
kept = settled(n, embedded)
print(*(size - before for size in held()))
"""


class Embedder:
    """A stand-in for an embedder: a random direction a text. What is measured is what the house does with it."""

    def __init__(self) -> None:
        self.chance = np.random.default_rng(0)

    def __call__(self, texts: list[str]) -> Any:
        """Shape (len(texts), DIMENSIONS)."""
        return self.chance.standard_normal((len(texts), DIMENSIONS), dtype=np.float32)


class Bench:
    """A playbook of some size that has been refined, and a refiner that knows it.

    Args:
        size: bullets.
        embedder: of the refiner; None: lexical vectors.
        max_tokens: its budget.
    """

    def __init__(self, size: int, embedder: Embedder | None = None, max_tokens: int = NO_LIMIT) -> None:
        self.texts = lessons()
        self.refine = GrowAndRefine(max_tokens, embedder=embedder)
        self.playbook = playbook_of(self.texts, size)
        self.first = timed(lambda: self.refine(self.playbook), 1)
        self.playbook = apply(self.playbook, self.refine(self.playbook))
        self.playbook.render()
        self.playbook.tokens()

    def grow(self, count: int) -> Playbook:
        """The playbook with so many new lessons."""
        return apply(self.playbook, additions(self.texts, count))

    def step(self, delta: Delta) -> None:
        """One step as a run makes it: do the delta, refine, write the prompt, count it."""
        grown = apply(self.playbook, delta)
        self.playbook = apply(grown, self.refine(grown))
        self.playbook.render()
        self.playbook.tokens()


def settled(size: int, embedded: bool) -> Bench:
    """A bench that has made a step."""
    bench = Bench(size, Embedder() if embedded else None)
    bench.step(additions(bench.texts, 3))
    return bench


def rows(size: int, repetitions: int, plain: int, say: Callable[[str], object]) -> Iterator[Row]:
    """Time a step at `size` bullets, whole and in parts.

    Args:
        size: bullets.
        repetitions: of everything but the straightforward version.
        plain: repetitions of the straightforward version; 0: without it.
        say: told what is going on.
    """
    say(f"{size:,} bullets: the first comparison of all with all")
    bench = Bench(size)
    deltas = (additions(bench.texts, 3, seed) for seed in range(1000, 10**9))
    ours = timed(lambda: bench.step(next(deltas)), repetitions)
    if plain:
        say(f"{size:,} bullets: the straightforward version")
    slow = timed(lambda: straight.step(bench.playbook, next(deltas)), plain) if plain else None
    yield Row(f"{size:,} bullets, a delta of 3: do, refine, write, count", ours, slow, None, AIMS.get(size))
    yield from _parts(bench, repetitions)
    yield _with_embedder(size, repetitions)
    yield _pruning(bench, repetitions)
    yield Row("first refinement (also after a resume)", bench.first)
    yield from _files(bench.playbook, max(1, repetitions // 3))


def _parts(bench: Bench, repetitions: int) -> Iterator[Row]:
    playbook, texts = bench.playbook, bench.texts
    deltas = iter([additions(texts, 3, seed) for seed in range(repetitions)])
    yield Row("apply a delta of 3", timed(lambda: apply(playbook, next(deltas)), repetitions))
    tags = Delta(tuple(Tag(bullet.id, 1) for bullet in playbook.bullets[:: max(1, len(playbook) // 8)]))
    yield Row("apply 8 votes", timed(lambda: apply(playbook, tags), repetitions))
    grown: list[Playbook] = []

    def grow(count: int) -> None:
        grown.append(apply(playbook, additions(texts, count)))

    written = timed(lambda: grown[-1].render(), repetitions, lambda: grow(3))  # noqa: PLW0108 - the latest, each time
    yield Row("write the prompt of the next version", written)
    counted = timed(lambda: grown[-1].tokens(), repetitions, lambda: grow(3))  # noqa: PLW0108 - as above
    yield Row("count its tokens", counted)
    yield Row("refine with 1 new bullet", timed(lambda: bench.refine(grown[-1]), repetitions, lambda: grow(1)))
    alike = LookAlikes(None, 0.5)
    yield Row(
        "look-alikes for the Curator: the first comparison of all with all", timed(lambda: alike.pairs(playbook), 1)
    )
    found = timed(lambda: alike.pairs(grown[-1]), repetitions, lambda: grow(3))
    yield Row("look-alikes for the Curator: with 3 new bullets", found)
    lexical = Vectors()
    columns = lexical.of([bullet.content for bullet in playbook]).T.tocsr()
    nearest(playbook, next(texts), 20)
    found = timed(lambda: nearest(playbook, next(texts), 20), repetitions)
    vectors = iter([lexical.embed([next(texts)]) for _ in range(repetitions)])
    bound = timed(lambda: next(vectors) @ columns, repetitions)
    yield Row("the 20 bullets nearest to a text; bound: the product of its vector with all", found, None, bound)


def _with_embedder(size: int, repetitions: int) -> Row:
    bench = Bench(size, Embedder())
    grown: list[Playbook] = []
    ours = timed(lambda: bench.refine(grown[-1]), repetitions, lambda: grown.append(bench.grow(1)))
    matrix = Embedder()([""] * size)
    vector = Embedder()([""])
    bound = timed(lambda: vector @ matrix.T, repetitions)
    return Row(f"refine with 1 new bullet, an embedder of {DIMENSIONS} dimensions; bound as above", ours, None, bound)


def _pruning(bench: Bench, repetitions: int) -> Row:
    budget = bench.playbook.tokens()
    bench.refine.max_tokens = budget
    grown: list[Playbook] = []
    ours = timed(lambda: bench.refine(grown[-1]), repetitions, lambda: grown.append(bench.grow(3)))
    bench.refine.max_tokens = NO_LIMIT
    return Row("refine with 3 new bullets, past the token limit", ours)


def _files(playbook: Playbook, repetitions: int) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "playbook.json"
        yield Row("save", timed(lambda: playbook.save(path), repetitions))
        yield Row("load", timed(lambda: Playbook.load(path), repetitions))


def resumed(steps: int, repetitions: int) -> Row:
    """Open a journal of so many steps, three lessons and four votes each, and replay it."""
    texts, made = lessons(), 0
    with TemporaryDirectory() as name:
        folder = Path(name) / "run"
        fingerprint = {"program": "of the benchmark"}
        records = [Record(0)]
        for at in range(1, steps + 1):
            votes = [Tag(f"str-{1 + (at * 7 + vote * 11) % made:05d}", 1, 0, str(at)) for vote in range(4) if made]
            adds = [Add(SECTIONS[0], next(texts), None, (str(at),)) for _ in range(3)]
            made += 3
            batch = tuple(range(at, at + 4))
            records.append(Record(at, 1, batch, (1.0, 0.0, 1.0, 1.0), delta=Delta((*votes, *adds)), rollouts=4))
        with Journal.open(folder, fingerprint) as journal:
            journal.records = tuple(records)
            (folder / "journal.jsonl").write_bytes(journal.to_bytes())

        def resume() -> None:
            with Journal.open(folder, fingerprint) as journal:
                state = journal.replay(State.of(Playbook()))
            if len(state.playbook) != made:
                raise RuntimeError(f"expected {made} bullets after the replay; got {len(state.playbook)}")

        return Row(f"resume a journal of {steps:,} steps ({made:,} bullets)", timed(resume, repetitions), aim=2.0)


def memory(size: int, kind: str) -> str:
    """The memory of a playbook with its vectors, above that of one of ten bullets, in a process of its own."""
    done = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", MEMORY, str(size), kind], capture_output=True, text=True, check=True
    )
    now, peak = (int(part) / 2**20 for part in done.stdout.split())
    named = "lexical vectors" if kind == "sparse" else f"vectors of {DIMENSIONS} dimensions"
    return f"| {size:,} | {named} | {now:.0f} | {peak:.0f} |"


def held() -> tuple[int, int]:
    """Bytes of memory this process holds now, and the most it ever held; both the latter where there is no /proc."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
        return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024
    import resource  # noqa: PLC0415 - not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most, most


def main(args: argparse.Namespace, say: Callable[[str], object], progress: Callable[[str], object]) -> None:
    """Print the tables."""
    say(f"{machine()}; {args.repetitions} repetitions, straightforward {args.plain}: median (lowest–highest).\n")
    measured = [
        row
        for size in args.sizes
        for row in rows(size, args.repetitions, args.plain if size <= args.all_up_to else 0, progress)
    ]
    progress("journal")
    say(table([*measured, resumed(args.steps, 3)]))
    progress("memory")
    say("\n| bullets | with | MB above a playbook of ten | at most |\n|---|---|---|---|")
    for size in args.sizes:
        if size <= args.all_up_to:
            say(memory(size, "sparse"))
            say(memory(size, "dense"))
