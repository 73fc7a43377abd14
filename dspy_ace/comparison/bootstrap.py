"""How sure a mean test score, and a difference of two, is: a bootstrap over examples and seeds. NumPy only.

A run of an optimizer is one draw, and so is a test example. Both are drawn anew in each replicate (the crossed
bootstrap of Owen, 2007, which errs on the wide side); the examples drawn are the same for all methods, so that
differences are paired by example. Seeds are drawn for each method by itself: runs of two methods have no pairing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # at run time numpy is imported on first use; DSPy 3.3 breaks if its typing comes first
    import numpy as np
    from numpy.typing import NDArray

    Scores: TypeAlias = NDArray[np.float64]

REPLICATES = 10_000
_CHUNK = 1_000


class Replicates:
    """The replicates of a comparison: each method's mean score, drawn anew many times.

    Args:
        scores: by method an array of shape (seeds, examples) of finite numbers. The examples are the same and in
            the same order for all; the number of seeds may differ.
        random_state: of the draws; the same state gives the same intervals.
        replicates: how many are drawn.

    Raises:
        ValueError: no scores, another number of examples, or a score that is not finite.
    """

    def __init__(self, scores: Mapping[str, Any], random_state: int = 0, replicates: int = REPLICATES) -> None:
        import numpy as np  # noqa: PLC0415  (on first use only)

        self.scores: dict[str, Scores] = {
            name: np.atleast_2d(np.asarray(s, dtype=np.float64)) for name, s in scores.items()
        }
        sizes = {table.shape[1] for table in self.scores.values()}
        if len(sizes) > 1 or 0 in sizes or any(not len(table) for table in self.scores.values()):
            raise ValueError(f"expected the same number of examples, one or more, for every method; got {sizes}")
        if not all(np.isfinite(table).all() for table in self.scores.values()):
            raise ValueError("expected finite scores; got NaN or an infinity")
        self.examples = sizes.pop() if sizes else 0
        everything = [value for table in self.scores.values() for value in (table.min(), table.max())]
        self._bounds = (min(everything), max(everything)) if everything else (0.0, 0.0)
        self._width = max(self._bounds[1] - self._bounds[0], 1.0)  # of the metric, as far as it has been seen
        self._means = self._drawn(np.random.default_rng(random_state), replicates if everything else 0)

    def score(self, name: str) -> tuple[float, float, float]:
        """Mean score of a method and its 95 % interval: (mean, low, high)."""
        import numpy as np  # noqa: PLC0415  (on first use only)

        table = self.scores[name]
        mean = float(table.mean())
        low, high = _interval(self._means[name], mean, self.examples)
        if np.ptp(table) == 0.0:
            low, high = mean - self._unseen(), mean + self._unseen()
        return mean, max(low, min(self._bounds[0], 0.0)), min(high, max(self._bounds[1], 1.0))

    def difference(self, name: str, other: str) -> tuple[float, float, float]:
        """Mean score of `name` minus that of `other`, paired by example: (difference, low, high)."""
        import numpy as np  # noqa: PLC0415  (on first use only)

        mean = float(self.scores[name].mean() - self.scores[other].mean())
        low, high = _interval(self._means[name] - self._means[other], mean, self.examples)
        apart = self.scores[name].mean(axis=0) - self.scores[other].mean(axis=0)
        if np.ptp(apart) <= 1e-12 and high - low <= 1e-12:
            low, high = mean - self._unseen(), mean + self._unseen()
        return mean, max(low, -self._width), min(high, self._width)

    def _unseen(self) -> float:
        """How far off a mean may be though all examples agree: the rule of three, 3/n of the metric's width."""
        return self._width * min(1.0, 3 / self.examples)

    def _drawn(self, rng: np.random.Generator, left: int) -> dict[str, Scores]:
        import numpy as np  # noqa: PLC0415  (on first use only)

        means: dict[str, list[Scores]] = {name: [] for name in self.scores}
        tables = {name: _widened(table) for name, table in self.scores.items()}
        while left > 0:
            count = min(_CHUNK, left)
            left -= count
            examples = rng.multinomial(self.examples, [1 / self.examples] * self.examples, size=count) / self.examples
            for name, table in tables.items():
                seeds = rng.multinomial(len(table), [1 / len(table)] * len(table), size=count) / len(table)
                means[name].append(((examples @ table.T) * seeds).sum(axis=1))
        return {name: np.concatenate(parts) for name, parts in means.items()}


def _widened(table: Scores) -> Scores:
    """The runs, drawn apart about their mean by √(S/(S-1)): a bootstrap of few makes their spread too small."""
    seeds = len(table)
    if seeds == 1:
        return table
    centre = table.mean(axis=0)
    widened: Scores = centre + math.sqrt(seeds / (seeds - 1)) * (table - centre)
    return widened


def _interval(replicates: Scores, mean: float, examples: int) -> tuple[float, float]:
    """The middle 95 % of the replicates, widened for the number of examples as `_widened` does for seeds."""
    import numpy as np  # noqa: PLC0415  (on first use only)

    factor = math.sqrt(examples / (examples - 1)) if examples > 1 else 1.0
    low, high = np.percentile(replicates, [2.5, 97.5])
    return mean + factor * (float(low) - mean), mean + factor * (float(high) - mean)
