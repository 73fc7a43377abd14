"""What the figures of a comparison show, as numbers: best score so far, falls of a prompt's size. No matplotlib."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # see bootstrap.py
    import numpy as np
    import numpy.typing as npt

_UNPRINTABLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufffe\\uffff]")


@dataclass(frozen=True)
class Band:
    """A step curve over seeds: arrays of shape (points,); `x` rises, each value holds until the next point."""

    x: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def to_the_end(cell: Mapping[str, Any]) -> list[list[float | None]]:
    """The anytime curve of a cell up to all that its compile spent: what came after the last point was no better.

    Args:
        cell: as in `cells.jsonl`.

    Returns:
        Points (metric calls, dollars or None, seconds, score); none if no prompt was scored on the whole valset.
    """
    curve = [list(point) for point in cell.get("curve") or ()]
    if not curve:
        return []
    prices = [spent.get("dollars") for spent in cell["usage"].get("compile", {}).values()]
    dollars = None if None in prices else sum(price for price in prices if price is not None)
    end = [cell["metric_calls"]["compile"], dollars, cell["seconds"]["compile"]]
    known = [
        max(total, last) if None not in (total, last) else None for total, last in zip(end, curve[-1], strict=False)
    ]
    return [*curve, [*known, curve[-1][3]]]


def anytime(curves: Sequence[Sequence[Sequence[float | None]]], column: int) -> Band | None:
    """The best validation score so far against what was spent, over the seeds of one method.

    The band starts where every seed has a score. A seed that ended earlier keeps its last one.

    Args:
        curves: one a seed, of points (metric calls, dollars or None, seconds, score).
        column: what stands on the x axis: 0 metric calls, 1 dollars, 2 seconds.

    Returns:
        Mean, lowest and highest score over seeds; None without a curve, or where one point has no x or score.
    """
    import numpy as np  # noqa: PLC0415  (on first use only)

    steps = [np.array([[p[column], p[3]] for p in curve], dtype=float) for curve in curves if curve]  # None is nan
    if not steps or not all(np.isfinite(s).all() for s in steps):
        return None
    steps = [s[np.argsort(s[:, 0], kind="stable")] for s in steps]
    start = max(s[0, 0] for s in steps)
    x = np.unique(np.concatenate([[start], *(s[s[:, 0] > start, 0] for s in steps)]))
    y = np.stack([s[np.searchsorted(s[:, 0], x, side="right") - 1, 1] for s in steps])
    return Band(x, y.mean(axis=0), y.min(axis=0), y.max(axis=0))


def falls(cells: Sequence[Mapping[str, Any]], least: int = 1000) -> list[str]:
    """Where a prompt lost more than half of its tokens from one recorded point to the next: context collapse
    looks like this (ACE §2.2), and so does a search that goes from a long candidate to a short one.

    Args:
        cells: as in `cells.jsonl`.
        least: prompts below this many tokens are not looked at.

    Returns:
        A sentence for the deepest fall of each method and seed that has one.
    """
    found = []
    for cell in cells:
        steps = cell.get("prompt_steps") or []
        drops = [(b[1] - a[1], a[1], b) for a, b in itertools.pairwise(steps) if a[1] >= max(least, 2 * b[1])]
        if drops:
            _, before, (calls, after) = min(drops)
            found.append(
                f"{cell['method']}, seed {cell['seed']}: from {before:,} to {after:,} tokens at {calls:,} metric calls."
            )
    return found


def printable(text: str) -> str:
    """The text as a page, a figure and UTF-8 can hold it: control characters and lone surrogates become U+FFFD."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n").replace("\r", "\n"))
