"""The choice between the seed and the learned playbook, once a run has learned.

1. If the verdict is *better*, or a one-sided test (95 %) says so, the learned playbook is returned. If it is *worse*,
   the seed is.
2. Anything else is a **tie**. The learned playbook costs its tokens in every call, so it has to earn them. It is
   returned if both hold, else the seed is:

   * it repairs at least a quarter of the failures it was learned from; of more than 40, of 40 of them. A failure is
     repaired if a retry gets it right, or if a later epoch or a rollout with the learned playbook wins back at least
     half of what was missing. Without a metric there are no failures, and nothing is asked of it here;
   * other examples do not speak against it: the pooled difference is not below 0. Where a gain had room to show (the
     evidence holds ten or more that the seed gets wrong), one of the two comparisons, or both pooled, is above 0 by a
     standard error or more. What repairs its own failures, and none of so many others, was learned by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..program import NO_EVIDENCE
from .verdict import UNCLEAR, Scale, Verdict, paired, unpaired, verdict

if TYPE_CHECKING:
    from .state import Record

SHARE = 0.25  # of the failures a tie has to repair
SAMPLE = 40  # failures that are looked at: a playbook that repairs two fifths seems to repair too few in 2 % of cases
ROOM = 10  # of so many, a playbook that repairs a quarter leaves all as they are in 6 % of cases
LEAN = 1.0  # standard errors above 0
ONE_SIDED = 1.645  # the same: 95 % of a normal distribution lie below


@dataclass(frozen=True)
class Repairs:
    """The failures that a playbook was learned from, and which of them it repairs.

    Args:
        repaired, failed: positions in the trainset; `failed` was tried and is not repaired.
        unknown: not tried, or provider or metric failed.
        untried: those of them that were not rolled out again.
        sample_of: the number of all failures, if these are a sample; else 0.
    """

    repaired: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()
    sample_of: int = 0

    @property
    def failures(self) -> int:
        """The number of failures."""
        return len(self.repaired) + len(self.left)

    @property
    def left(self) -> tuple[str, ...]:
        """The failures that nothing is known to have repaired."""
        return self.failed + self.unknown

    @property
    def enough(self) -> bool:
        """True if a quarter of those that were tried is repaired; where none was tried, it is taken for true."""
        return len(self.repaired) >= SHARE * (len(self.repaired) + len(self.failed))

    @property
    def settled(self) -> bool:
        """True if the untried cannot change `enough`."""
        repaired, untried = len(self.repaired), len(self.untried)
        least = SHARE * (repaired + len(self.failed) + untried)
        return repaired >= least or repaired + untried < least

    def __str__(self) -> str:
        known = len(self.repaired) + len(self.failed)
        more = f" ({len(self.unknown)} more were not tried again)" if self.unknown else ""
        sample = f", a sample of {self.sample_of}" if self.sample_of else ""
        return f"{len(self.repaired)} of {known} failures repaired{more}{sample}"


def repairs(records: Sequence[Record], scale: Scale, most: int | None = None) -> Repairs:
    """Return which failures of the batches are repaired, by the records in their order.

    Args:
        records: all of a run.
        scale: of the metric.
        most: look at so many at most, spread evenly over the batches; None: at all.
    """
    outcome: dict[str, bool | None] = {}  # of each failure; None: not known
    first: dict[str, float] = {}  # its score
    tried: set[str] = set()
    for record in records:
        confirmed = {item["examples"][0] for item in record.reflections if item.get("verified")}
        for example, score, kind in zip(map(str, record.batch), record.scores, record.kinds, strict=True):
            if kind in NO_EVIDENCE:
                continue
            if score < scale.perfect or example in outcome:
                enough = (first.setdefault(example, score) + scale.perfect) / 2
                outcome[example] = True if example in confirmed or score >= enough else None
                tried.discard(example)
        for position, again in record.again:
            example = str(position)
            tried.add(example)
            outcome[example] = None if again is None else again >= (first[example] + scale.perfect) / 2
    failures = tuple(outcome)
    if most is not None and len(failures) > most:
        evenly = [failures[at * len(failures) // most] for at in range(most)]
        outcome = {example: outcome[example] for example in evenly}
    unknown = tuple(example for example, repaired in outcome.items() if repaired is None)
    return Repairs(
        tuple(example for example, repaired in outcome.items() if repaired),
        tuple(example for example, repaired in outcome.items() if repaired is False),
        unknown,
        tuple(example for example in unknown if example not in tried),
        len(failures) if len(outcome) < len(failures) else 0,
    )


def batch_evidence(records: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Return the scores of the first epoch's batches: those that met the seed, and those that met something learned.

    Each example was rolled out before it was learned from, so its score is a fair test of the playbook it met. Later
    epochs have seen every example. Rollouts that provider, metric or set-up failed say nothing and are left out.
    """
    seed: list[float] = []
    later: list[float] = []
    learned = False
    for record in records:
        if record.epoch == 1:
            scores = zip(record.scores, record.kinds, strict=True)
            (later if learned else seed).extend(score for score, kind in scores if kind not in NO_EVIDENCE)
        learned = learned or record.learned
    return seed, later


def difference(
    records: Sequence[Record], seed: Sequence[float | None], learned: Sequence[float | None], scale: Scale
) -> Verdict | None:
    """Compare a learned playbook with the seed: validation, pooled with the record of the batches.

    Args:
        records: all of a run.
        seed, learned: their scores on the same rows of the valset; empty: not validated.
        scale: of the metric.
    """
    return verdict(paired(seed, learned, scale), unpaired(*batch_evidence(records), scale), scale)


def by_evidence(found: Verdict | None) -> bool | None:
    """Return True if the verdict speaks for the learned playbook, False against it, None if the repairs decide."""
    if found is None:
        return None
    if found.word != UNCLEAR or found.strength >= ONE_SIDED:
        return found.strength > 0
    room = sum(each.weight * each.failing for each in found.evidence) >= ROOM
    leans = found.strength >= LEAN or any(each.strength >= LEAN for each in found.evidence)
    return None if found.strength >= 0 and (leans or not room) else False


def settled(
    records: Sequence[Record],
    seed: Sequence[float | None],
    learned: Sequence[float | None],
    rows: int,
    scale: Scale,
) -> bool:
    """Return True if further rows of the valset cannot change word and choice, or would hardly (99.5 %).

    Args:
        records, seed, learned, scale: see `difference`.
        rows: the number of rows that are left.
    """
    found = difference(records, seed, learned, scale)
    if found is None or not rows:
        return not rows
    low, high = [scale.failure] * rows, [scale.perfect] * rows
    won = difference(records, [*seed, *low], [*learned, *high], scale)
    lost = difference(records, [*seed, *high], [*learned, *low], scale)
    ends = {(end.word, by_evidence(end)) for end in (found, won, lost) if end is not None}
    return found.certain or len(ends) == 1
