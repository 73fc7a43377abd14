"""How a program did on a stream while it learned from it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from ..playbook import Playbook


@dataclass(frozen=True)
class Curve:
    """Scores of a stream, each example predicted before it was learned from (ACE §4, online).

    Args:
        scores: one an example, in order.
        playbooks: the playbook after each step.
        batch_size: examples a step learned from; the last step may have had fewer.
    """

    scores: tuple[float, ...]
    playbooks: tuple[Playbook, ...]
    batch_size: int = 1

    @property
    def mean(self) -> float:
        """The mean score over the whole stream: what the paper reports."""
        return sum(self.scores) / len(self.scores)

    @property
    def running(self) -> tuple[float, ...]:
        """The mean score of the first n examples, for n from 1."""
        return tuple(total / count for count, total in enumerate(accumulate(self.scores), 1))

    def __str__(self) -> str:
        quarters = [self.scores[len(self.scores) * i // 4 : len(self.scores) * (i + 1) // 4] for i in range(4)]
        means = " ".join(f"{sum(part) / len(part):.3f}" for part in quarters if part)
        return (
            f"mean {self.mean:.3f} over {len(self.scores)} examples, each predicted before it was learned from; "
            f"by quarters: {means}; {len(self.playbooks[-1])} bullets after {len(self.playbooks)} steps"
        )
