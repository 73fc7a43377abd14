"""Why `dedup_threshold` is what it is: `python -m comparisons.performance.thresholds`.

Pairs of lessons labelled by reading (`tests/data/pairs.json` says how), each put to the finder of near-duplicates at
every threshold from 0.3 to 1: as `GrowAndRefine` has it, with the guard that keeps numbers, negations, names and the
like apart, and by the cosine alone. Precision: of the pairs taken for duplicates the share that are; recall: of the
duplicates the share that are found; *unclear*: pairs that readers disagree on, which are to stay two. *Compared*: of
all pairs of different texts at hand the share that the guard has to read, which is what a low threshold costs.

Most pairs by far were chosen because they look alike, so the precision of the cosine alone is lower here than in a
playbook; and of the pairs of real playbooks those below a cosine of 0.8 are not labelled.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dspy_ace import Bullet, GrowAndRefine, Playbook
from dspy_ace.similarity.similarity import LEXICAL_THRESHOLD
from dspy_ace.similarity.vectors import lexical

from .timing import machine

PAIRS = Path(__file__).resolve().parents[2] / "tests" / "data" / "pairs.json"
TRAINED = "playbooks/appworld_offline_trained_no_gt_playbook.txt"
REPLIES = "llm_outputs"
THRESHOLDS = tuple(round(0.30 + 0.05 * at, 2) for at in range(15))
ROUNDING = 1e-6  # of cosines summed in float32
DUPLICATE, UNCLEAR = "duplicate", "unclear"


@dataclass(frozen=True)
class Pair:
    """Two lessons, and what a reader said of them: `duplicate`, `unclear`, or anything else for two lessons."""

    first: str
    second: str
    label: str


def written(labels: dict[str, Any]) -> Iterator[Pair]:
    """The pairs whose texts stand in the file itself."""
    for part in ("own", "held_out"):
        for label, pairs in labels.get(part, {}).items():
            for pair in pairs:
                yield Pair(pair[-2], pair[-1], label)  # the first of three says what differs


def of_models(labels: dict[str, Any], data: Path) -> Iterator[Pair]:
    """The pairs whose texts stand in a folder: bullets of a trained playbook, edits of them, lessons of replies."""
    trained = Playbook.from_text((data / TRAINED).read_text(encoding="utf-8"))
    for first, second, label, _ in labels.get("bullets", ()):
        yield Pair(trained[first].content, trained[second].content, label)
    for name, old, new, _ in labels.get("edits", ()):
        content = trained[name].content
        if old not in content:
            raise SystemExit(
                f"{data / TRAINED}: expected {old!r} in {name}, for a labelled edit of it; got {content!r}"
            )
        yield Pair(content, content.replace(old, new, 1), "edit")
    for first, second, label, _ in labels.get("lessons", ()):
        yield Pair(_lesson(data, *first), _lesson(data, *second), label)


def _lesson(data: Path, file: str, record: int, part: int) -> str:
    """A lesson of a role's reply: a line of it, or an item of the list in it."""
    said = json.loads((data / REPLIES / file).read_text(encoding="utf-8").splitlines()[record])["completion"]
    items = re.search(r"\[\[ ## (?:insights|operations) ## \]\]\n(.*?)\n\n\[\[", said, re.DOTALL)
    if items is None:
        return str(said.split("\n")[part].strip().split(" :: ")[-1])
    item = json.loads(items[1])[part]
    return str(item if isinstance(item, str) else item["content"])


def cosines(pairs: Sequence[Pair]) -> list[float]:
    """The cosine of the two texts of each pair."""
    first, second = (lexical([getattr(pair, side) for pair in pairs]) for side in ("first", "second"))
    return [float(value) for value in np.asarray(first.multiply(second).sum(axis=1)).ravel()]


def merged(pairs: Sequence[Pair], threshold: float) -> list[bool]:
    """Whether the refiner makes one bullet of the two of each pair."""
    refine = GrowAndRefine(threshold=threshold)
    books = (Playbook((Bullet("a-1", "S", pair.first), Bullet("a-2", "S", pair.second))) for pair in pairs)
    return [len(refine(book)) > 0 for book in books]


def told(pairs: Sequence[Pair], found: Sequence[bool]) -> str:
    """Cells of the table: right of all found, precision, recall, unclear ones among them."""
    labels = [pair.label for pair, is_found in zip(pairs, found, strict=True) if is_found]
    right, unclear = labels.count(DUPLICATE), labels.count(UNCLEAR)
    judged = len(labels) - unclear
    duplicates = sum(pair.label == DUPLICATE for pair in pairs)
    precision = f"{right / judged:.3f}" if judged else "–"
    recall = f"{right / duplicates:.3f}" if duplicates else "–"
    return f"{right} of {judged} | {precision} | {recall} | {unclear}"


def compared(texts: Sequence[str], thresholds: Sequence[float]) -> list[float]:
    """The share of all pairs of different texts whose cosine reaches each threshold."""
    vectors = lexical(texts)
    above = np.asarray((vectors @ vectors.T).toarray())[np.triu_indices(len(texts), 1)]
    return [float((above >= threshold - ROUNDING).mean()) for threshold in thresholds]


def table(pairs: Sequence[Pair]) -> Iterator[str]:
    """A line for each threshold; that of the default is bold."""
    yield (
        "| threshold | right of those found | precision | recall | unclear | cosine alone: right | precision | recall "
        "| unclear | compared |"
    )
    yield "|---" * 10 + "|"
    near = cosines(pairs)
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second)))
    thresholds = sorted({*THRESHOLDS, LEXICAL_THRESHOLD})
    for threshold, share in zip(thresholds, compared(texts, thresholds), strict=True):
        name = f"**{threshold:.2f} (default)**" if threshold == LEXICAL_THRESHOLD else f"{threshold:.2f}"
        alone = [cosine >= threshold - ROUNDING for cosine in near]
        yield f"| {name} | {told(pairs, merged(pairs, threshold))} | {told(pairs, alone)} | {share:.3%} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="labelled pairs (default: those of the tests)")
    parser.add_argument("--data", type=Path, help="a folder with the trained playbook and replies that pairs refer to")
    args = parser.parse_args(argv)
    labels = json.loads(args.pairs.read_text(encoding="utf-8"))
    pairs = [*written(labels), *(of_models(labels, args.data) if args.data else ())]
    counts = [sum(pair.label == label for pair in pairs) for label in (DUPLICATE, UNCLEAR)]
    print(f"{machine()}\n")
    print(
        f"{counts[0]} duplicates, {len(pairs) - sum(counts)} pairs that differ, {counts[1]} unclear; lexical vectors.\n"
    )
    for row in table(pairs):
        print(row, flush=True)


if __name__ == "__main__":
    main()
