"""The time that `OnlineACE` adds to a call of the program: `python -m comparisons.performance.hot_path`.

The same playbook stands in both prompts, and a model with one reply for all answers both; calls of the two take turns.
What is left is the request for citations, and the note that the call leaves on its prediction.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Sequence

import dspy

from dspy_ace import Bullet, OnlineACE, Playbook, with_playbook
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.backend import Served


def measured(bullets: int, calls: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each call: of the program with the playbook, and of the same online."""
    content = "When case {n} comes up, look at ledger {ledger}."
    playbook = Playbook(
        tuple(Bullet(f"str-{n:05d}", "S", content.format(n=n, ledger=n % 31)) for n in range(1, bullets + 1))
    )
    student, lm = dspy.Predict("message -> answer"), OfflineLM()
    said = Served("[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]", "task", 10, 0, 10, False, 0.0)
    lm.backend.serve = lambda *_: said  # type: ignore[method-assign]  # a model that reads nothing takes no time
    taken: tuple[list[float], list[float]] = ([], [])
    with dspy.context(lm=lm), OnlineACE(student, playbook=playbook, learn="manual") as online:
        pair = (with_playbook(student, playbook), online)
        for n in range(calls + 1):
            for program, times in zip(pair, taken, strict=True):
                began = time.perf_counter()
                program(message=f"Hello {n}")
                times.append(1000 * (time.perf_counter() - began))
    return taken[0][1:], taken[1][1:]  # the first call of each makes what later ones find made


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--bullets", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--calls", type=int, default=100, help="of each program (default: 100)")
    args = parser.parse_args(argv)
    dspy.disable_logging()
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, DSPy {dspy.__version__}, {os.cpu_count()} cores, load {load:.1f}\n")
    print("| bullets | program, ms | online, ms | more, median of pairs | lowest of each |\n|---|---|---|---|---|")
    for bullets in args.bullets:
        bare, online = measured(bullets, args.calls)
        more = statistics.median(b - a for a, b in zip(bare, online, strict=True))
        middle = f"{statistics.median(bare):.2f} | {statistics.median(online):.2f}"
        print(f"| {bullets} | {middle} | {more:+.2f} | {min(online) - min(bare):+.2f} |", flush=True)


if __name__ == "__main__":
    main()
