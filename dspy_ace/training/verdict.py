"""The verdict on a learned playbook: a difference to the seed, its 95 % interval, and a plain word.

Two kinds of evidence are pooled by their number of examples:

* validation: seed and playbook on the same rows of the valset, paired by row;
* the record of the batches: every example of the first epoch was rolled out before it was learned from, so its score is
  a fair test of the playbook it met. Batches that met the seed stand against batches that met something learned. It
  is not paired, and it sees gains that a small or noisy valset cannot show.

The intervals are computed here because scipy has none that stays honest for ten ties in a row (see `_smoothed`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..output import printable
from ..pages import fragment

BETTER, UNCLEAR, WORSE = "better", "not shown to be better", "worse"
_Z = 1.96  # two-sided 95 %
_Z_CERTAIN = 2.81  # two-sided 99.5 %: tested ten times in a row, it is wrong in less than 5 % of all cases


@dataclass(frozen=True)
class Evidence:
    """One comparison of the seed with what was learned.

    Args:
        before, after: mean scores.
        examples_before, examples_after: their numbers of examples; equal when `paired`.
        paired: True if they are the same examples.
        estimate, error: the difference drawn towards 0, and its standard error, which is never 0.
    """

    before: float
    after: float
    examples_before: int
    examples_after: int
    paired: bool
    estimate: float
    error: float

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before

    @property
    def weight(self) -> float:
        """The number of pairs it is worth: their number, or the harmonic equivalent of two groups."""
        if self.paired:
            return float(self.examples_before)
        return 1 / (1 / self.examples_before + 1 / self.examples_after)

    def __str__(self) -> str:
        count = f"{self.examples_before} pairs" if self.paired else f"{self.examples_before} and {self.examples_after}"
        return f"{self.before:.3f} → {self.after:.3f} ({count})"


@dataclass(frozen=True)
class Verdict:
    """The evidence on a playbook against the seed, in one word and one interval.

    Args:
        word: "better" or "worse" when the 95 % interval leaves 0 out, else "not shown to be better".
        difference, low, high: the pooled difference and its interval, in units of the metric.
        validation, progressive: the evidence it rests on; None where there is none.
        certain: True if a 99.5 % interval leaves 0 out as well: more rows would hardly change the word.
    """

    word: str
    difference: float
    low: float
    high: float
    validation: Evidence | None
    progressive: Evidence | None
    certain: bool = False

    def __str__(self) -> str:
        parts = [f"{self.word}: {self.difference:+.3f}, 95 % interval {self.low:+.3f} to {self.high:+.3f}"]
        if self.validation is not None:
            parts.append(f"valset {self.validation}")
        if self.progressive is not None:
            parts.append(f"before learning, batch by batch {self.progressive}")
        return printable("; ".join(parts))

    def _repr_html_(self) -> str:
        facts = {
            "difference": f"{self.difference:+.3f}",
            "95 % interval": f"{self.low:+.3f} to {self.high:+.3f}",
            "valset": str(self.validation or "–"),
            "before learning, batch by batch": str(self.progressive or "–"),
        }
        return fragment(f"Verdict: {self.word}", [("evidence", "value"), *facts.items()])


def paired(before: Sequence[float], after: Sequence[float], scale: float) -> Evidence | None:
    """Return the evidence of two playbooks scored on the same examples, in the same order; None without examples."""
    if not before:
        return None
    differences = [b - a for a, b in zip(before, after, strict=True)]
    estimate, error = _smoothed(differences, 0.0, scale)
    return Evidence(_mean(before), _mean(after), len(before), len(after), True, estimate, error)


def unpaired(before: Sequence[float], after: Sequence[float], scale: float) -> Evidence | None:
    """Return the evidence of two groups of examples; None if one of them is empty."""
    if not before or not after:
        return None
    middle = _mean([*before, *after])
    (low, low_error), (high, high_error) = _smoothed(before, middle, scale / 2), _smoothed(after, middle, scale / 2)
    error = math.hypot(low_error, high_error)
    return Evidence(_mean(before), _mean(after), len(before), len(after), False, high - low, error)


def verdict(validation: Evidence | None, progressive: Evidence | None, scale: float = 1.0) -> Verdict | None:
    """Pool the evidence; None if there is none. The interval ends where the scale of the metric ends."""
    evidence = [each for each in (validation, progressive) if each is not None]
    if not evidence:
        return None
    total = sum(each.weight for each in evidence)
    difference = sum(each.weight * each.difference for each in evidence) / total
    centre = sum(each.weight * each.estimate for each in evidence) / total
    error = math.sqrt(sum((each.weight * each.error) ** 2 for each in evidence)) / total
    low, high = max(-scale, centre - _Z * error), min(scale, centre + _Z * error)
    word = BETTER if low > 0 else WORSE if high < 0 else UNCLEAR
    return Verdict(word, difference, low, high, validation, progressive, abs(centre) > _Z_CERTAIN * error)


def _smoothed(values: Sequence[float], middle: float, scale: float) -> tuple[float, float]:
    """Return mean and standard error of `values` with two more observations, `scale` below and above `middle`.

    Without them ten ties in a row would look like certainty (Agresti and Min, 2005, for paired
    proportions; Agresti and Caffo, 2000, for two groups).
    """
    more = [*values, middle - scale, middle + scale]
    mean = _mean(more)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in more)) / len(more)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
