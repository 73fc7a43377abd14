"""Which look-alikes are shown, and what the guard lets through: `python -m comparisons.performance.thresholds`.

Pairs of lessons labelled by reading, in English (`tests/data/pairs.json` says how) and seven other languages
(`tests/data/pairs_languages.json`). First table: of the pairs that say the same, and of those that look alike and
differ, the share whose lexical cosine reaches a threshold, so that the Curator is shown them; *strangers*: the same
share of the lessons that were not written as a pair. What is shown of them costs tokens. Second table: what the guard
lets through, where plain code merges the pairs that an embedder puts close together.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dspy_ace.similarity import Vectors, agree
from dspy_ace.similarity.vectors import cosines

from .timing import machine

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

Labelled = Mapping[str, Mapping[str, Sequence[Sequence[str]]]]
"""Language → `duplicate` and `different` → pairs of texts."""


def labelled(folder: Path = DATA) -> dict[str, dict[str, list[list[str]]]]:
    """Read the pairs, by language."""
    english: dict[str, Any] = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    others: dict[str, Any] = json.loads((folder / "pairs_languages.json").read_text(encoding="utf-8"))
    parts = [english[name] for name in ("own", "held_out")]
    labels = ("duplicate", "different")  # of three texts the first says what differs
    return {"en": {label: [pair[-2:] for part in parts for pair in part[label]] for label in labels}, **others}


def shown(pairs: Sequence[Sequence[str]]) -> np.ndarray[Any, Any]:
    """The lexical cosine of each pair."""
    vectors = Vectors()
    return np.array([cosines(vectors.of([one]), vectors.of([other]))[0, 0] for one, other in pairs])


def strangers(pairs: Sequence[Sequence[str]]) -> np.ndarray[Any, Any]:
    """The lexical cosines of all texts of different pairs."""
    matrix = Vectors().of([text for pair in pairs for text in pair])
    near = cosines(matrix, matrix)
    apart = [(one, other) for one, other in itertools.combinations(range(len(near)), 2) if one // 2 != other // 2]
    return np.array([near[one, other] for one, other in apart])


def rows(languages: Labelled) -> Iterator[str]:
    """A line for each threshold, then one for each language with what the guard lets through."""
    yield "| threshold | English: say the same | differ | strangers | others: say the same | differ | strangers |"
    yield "|---" * 7 + "|"
    near = []
    for names in (["en"], [name for name in languages if name != "en"]):
        same, differ = (
            [pair for name in names for pair in languages[name][label]] for label in ("duplicate", "different")
        )
        near += [
            shown(same),
            shown(differ),
            np.concatenate([strangers(languages[name]["duplicate"]) for name in names]),
        ]
    for threshold in THRESHOLDS:
        shares = [f"{np.mean(each >= threshold):.1%}" for each in near]
        yield f"| {threshold:.1f} | {' | '.join(shares)} |"
    yield ""
    yield "| language | let through: say the same | let through: differ |"
    yield "|---" * 3 + "|"
    for language, labels in languages.items():
        counts = [f"{sum(agree(*pair) for pair in labels[label])} of {len(labels[label])}" for label in labels]
        yield f"| {language} | {' | '.join(counts)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    argparse.ArgumentParser(description=__doc__.split("\n", 1)[0]).parse_args(argv)
    print(f"{machine()}\n")
    for row in rows(labelled()):
        print(row, flush=True)


if __name__ == "__main__":
    main()
