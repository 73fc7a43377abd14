"""The verdict on a learned playbook: a difference to the seed, its 95 % interval, and a plain word.

Two kinds of evidence are pooled by their number of examples:

* validation: seed and playbook on the same rows of the valset, paired by row;
* the record of the batches: every example of the first epoch was rolled out before it was learned from, so its score is
  a fair test of the playbook it met. Batches that met the seed stand against batches that met something learned. It
  is not paired, and it sees gains that a small or noisy valset cannot show.

Failures that were repaired are no evidence here: the playbook was learned from them. They decide a tie, see `choice`.

The intervals are computed here because scipy has none that stays honest for ten ties in a row (see `_smoothed`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..output import printable
from ..pages import fragment

BETTER, UNCLEAR, WORSE = "better", "not shown to be better", "worse"
_Z = 1.96  # two-sided 95 %
_Z_CERTAIN = 2.81  # two-sided 99.5 %: tested ten times in a row, it is wrong in less than 5 % of all cases


class Scale(NamedTuple):
    """The scale of a metric: the score of a failed rollout, and that of a success."""

    failure: float = 0.0
    perfect: float = 1.0

    @property
    def width(self) -> float:
        """The largest difference of two scores."""
        return self.perfect - self.failure

    def holds(self, score: float) -> bool:
        """Return True for a score that lies on the scale."""
        return self.failure <= score <= self.perfect


UNIT = Scale()


@dataclass(frozen=True)
class Evidence:
    """One comparison of the seed with what was learned.

    Args:
        before, after: mean scores.
        examples_before, examples_after: their numbers of examples; equal when `paired`.
        paired: True if they are the same examples.
        estimate, error: the difference drawn towards 0, and its standard error, which is never 0.
        spread: the variance of the differences, or of the scores of two groups.
        failing: the share of examples that the seed did not get right: on others no gain can show.
        left_out: the number of pairs of which one side is unknown, as the provider or the metric failed.
    """

    before: float
    after: float
    examples_before: int
    examples_after: int
    paired: bool
    estimate: float
    error: float
    spread: float
    failing: float
    left_out: int = 0

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before

    @property
    def strength(self) -> float:
        """The estimate in standard errors."""
        return self.estimate / self.error

    @property
    def weight(self) -> float:
        """The number of pairs it is worth: their number, or the harmonic equivalent of two groups."""
        if self.paired:
            return float(self.examples_before)
        return 1 / (1 / self.examples_before + 1 / self.examples_after)

    def __str__(self) -> str:
        count = f"{self.examples_before} pairs" if self.paired else f"{self.examples_before} and {self.examples_after}"
        left_out = f", {self.left_out} left out: the provider or the metric failed" if self.left_out else ""
        return f"{self.before:.3f} → {self.after:.3f} ({count}{left_out})"


@dataclass(frozen=True)
class Verdict:
    """The evidence on a playbook against the seed, in one word and one interval.

    Args:
        word: "better" or "worse" when the 95 % interval leaves 0 out, else "not shown to be better".
        difference, low, high: the pooled difference and its interval, in units of the metric.
        validation, progressive: the evidence it rests on; None where there is none.
        strength: the pooled estimate in standard errors: ±1.96 is where the word changes.
        visible: the smallest difference that so many examples can show, without losses beside it; infinite if none.
        rows_to_settle: how many more rows of the valset would show the difference that was seen, if it is real and
            they are like those seen; None: the word is clear, or no difference was seen.
    """

    word: str
    difference: float
    low: float
    high: float
    validation: Evidence | None
    progressive: Evidence | None
    strength: float = 0.0
    visible: float = math.inf
    rows_to_settle: int | None = None

    @property
    def certain(self) -> bool:
        """True if a 99.5 % interval leaves 0 out as well: more rows would hardly change the word."""
        return abs(self.strength) > _Z_CERTAIN

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """The evidence there is."""
        return tuple(each for each in (self.validation, self.progressive) if each is not None)

    def __str__(self) -> str:
        parts = [f"{self.word}: {self.difference:+.3f}, 95 % interval {self.low:+.3f} to {self.high:+.3f}"]
        if self.validation is not None:
            parts.append(f"valset {self.validation}")
        if self.progressive is not None:
            parts.append(f"before learning, batch by batch {self.progressive}")
        if self.word == UNCLEAR:
            count = round(sum(each.weight for each in self.evidence))
            can = "no difference" if math.isinf(self.visible) else f"a difference of {self.visible:.2g} or more"
            seen = f"{self.difference:.2g} was seen"
            parts.append(f"{count} {'rows' if count != 1 else 'row'} can show {can}; {seen}")
            if self.rows_to_settle is not None:
                parts.append(f"about {self.rows_to_settle} more rows of the valset would settle it")
        return printable("; ".join(parts))

    def _repr_html_(self) -> str:
        facts = {
            "difference": f"{self.difference:+.3f}",
            "95 % interval": f"{self.low:+.3f} to {self.high:+.3f}",
            "valset": str(self.validation or "–"),
            "before learning, batch by batch": str(self.progressive or "–"),
        }
        return fragment(f"Verdict: {self.word}", [("evidence", "value"), *facts.items()])


def paired(before: Sequence[float | None], after: Sequence[float | None], scale: Scale = UNIT) -> Evidence | None:
    """Return the evidence of two playbooks scored on the same examples, in the same order; None without examples.

    Args:
        before, after: the scores; None where nothing is known: such a pair is left out.
        scale: of the metric.
    """
    known = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    if not known:
        return None
    first, second = [b for b, _ in known], [a for _, a in known]
    differences = [a - b for b, a in known]
    estimate, error = _smoothed(differences, 0.0, scale.width)
    return Evidence(
        _mean(first), _mean(second), len(known), len(known), True, estimate, error, _variance(differences),
        _mean([score < scale.perfect for score in first]), len(before) - len(known),
    )  # fmt: skip


def unpaired(before: Sequence[float], after: Sequence[float], scale: Scale = UNIT) -> Evidence | None:
    """Return the evidence of two groups of examples; None if one of them is empty."""
    if not before or not after:
        return None
    middle, half = _mean([*before, *after]), scale.width / 2
    (low, low_error), (high, high_error) = _smoothed(before, middle, half), _smoothed(after, middle, half)
    spread = (len(before) * _variance(before) + len(after) * _variance(after)) / (len(before) + len(after))
    return Evidence(
        _mean(before), _mean(after), len(before), len(after), False, high - low, math.hypot(low_error, high_error),
        spread, _mean([score < scale.perfect for score in before]),
    )  # fmt: skip


def verdict(validation: Evidence | None, progressive: Evidence | None, scale: Scale = UNIT) -> Verdict | None:
    """Pool the evidence; None if there is none. The interval ends where the scale of the metric ends."""
    evidence = [each for each in (validation, progressive) if each is not None]
    if not evidence:
        return None
    width, total = scale.width, sum(each.weight for each in evidence)
    difference = sum(each.weight * each.difference for each in evidence) / total
    centre = sum(each.weight * each.estimate for each in evidence) / total
    error = math.sqrt(sum((each.weight * each.error) ** 2 for each in evidence)) / total
    low, high = max(-width, centre - _Z * error), min(width, centre + _Z * error)
    word = BETTER if low > 0 else WORSE if high < 0 else UNCLEAR
    spread = sum(each.weight * each.spread for each in evidence) / total
    needed = _rows_for(abs(difference), spread, width)
    return Verdict(
        word, difference, low, high, validation, progressive, centre / error, _visible(total, width),
        max(1, math.ceil(needed - total)) if word == UNCLEAR and not math.isinf(needed) else None,
    )  # fmt: skip


def _rows_for(difference: float, spread: float, width: float) -> float:
    """Return how many pairs show a difference: the interval of so many leaves 0 out. Infinite for no difference.

    It solves `n·difference = _Z · sqrt(n·spread + 2·width² + 2·difference²)`, the interval of `_smoothed` (its last
    term is a little smaller).
    """
    if difference <= 1e-9 * width:
        return math.inf
    noise = _Z**2 * spread
    smoothing = 8 * (_Z * difference) ** 2 * (width**2 + difference**2)
    return (noise + math.sqrt(noise**2 + smoothing)) / (2 * difference**2)


def _visible(rows: float, width: float) -> float:
    """Return the smallest difference that so many pairs can show: so many are won, and none is lost."""
    for percent in range(1, 101):
        won = percent / 100
        if _rows_for(won * width, won * (1 - won) * width**2, width) <= rows:
            return won * width
    return math.inf


def _smoothed(values: Sequence[float], middle: float, reach: float) -> tuple[float, float]:
    """Return mean and standard error of `values` with two more observations, `reach` below and above `middle`.

    Without them ten ties in a row would look like certainty (Agresti and Min, 2005, for paired
    proportions; Agresti and Caffo, 2000, for two groups).
    """
    more = [*values, middle - reach, middle + reach]
    return _mean(more), math.sqrt(_variance(more) / len(more))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return sum((value - mean) ** 2 for value in values) / len(values)
