"""The time that `import dspy_ace` costs over `import dspy`, each time in a process of its own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable

from .timing import Row, Timing, machine, table

AIM = 0.060  # seconds
CODE = """
import time
{before}
wall, cpu = time.perf_counter(), time.process_time()
{timed}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
CASES = (
    ("import dspy", "", "import dspy", None),
    ("import dspy_ace, over import dspy", "import dspy", "import dspy_ace", AIM),
    ("numpy, over both: with the first comparison", "import dspy, dspy_ace", "import numpy", None),
    (
        "scikit-learn, over all: with the first lexical vector",
        "import dspy, dspy_ace, numpy",
        "import sklearn.feature_extraction.text",
        None,
    ),
)


def measured(before: str, timed: str, processes: int) -> Timing:
    """Time an import in so many processes, after one that warms the disk and compiles, as an installation does."""
    code = CODE.format(before=before, timed=timed)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    seconds = []
    for _ in range(processes + 1):
        done = subprocess.run(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        seconds.append([float(part) for part in done.stdout.split()])
    wall, cpu = zip(*seconds[1:], strict=True)
    return Timing(wall, cpu)


def main(args: argparse.Namespace, say: Callable[[str], object], progress: Callable[[str], object]) -> None:
    """Print the table."""
    say(f"{machine()}; {args.processes} processes: median (lowest–highest).\n")
    rows = []
    for what, before, timed, aim in CASES:
        progress(what)
        rows.append(Row(what, measured(before, timed, args.processes), aim=aim))
    say(table(rows))
