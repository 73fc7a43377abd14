"""What a compile hands back besides the program: `compiled.detailed_results`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .history import Record
from .playbook import Playbook
from .usage import Usage


@dataclass(frozen=True)
class Results:
    """How a run went.

    Args:
        seed_score, best_score: mean validation score of the program before and of the one returned; None
            without a valset.
        best_step: the step whose playbook was returned; 0 is the seed.
        stopped: why the run ended, in words.
        usage: calls and tokens by role: `task` (the student), `metric` (its own LM calls), `reflector`,
            `curator`. Of this process: what a resumed run spent before is not in it.
        rollouts: how often the program was run: batches, retries and validation.
        records: one a step, as in the journal.
        playbook: the playbook returned.
    """

    seed_score: float | None
    best_score: float | None
    best_step: int
    stopped: str
    usage: Mapping[str, Usage]
    rollouts: int
    records: tuple[Record, ...]
    playbook: Playbook

    @property
    def batch_scores(self) -> tuple[float, ...]:
        """Mean score of each batch, before it was learned from: a free test of the playbook it met."""
        return tuple(sum(r.scores) / len(r.scores) for r in self.records if r.scores)

    def __str__(self) -> str:
        lines = [f"stopped: {self.stopped}"]
        if self.seed_score is not None and self.best_score is not None:
            lines.append(
                f"validation: {self.seed_score:.3f} before, {self.best_score:.3f} after (step {self.best_step})"
            )
        if self.batch_scores:
            lines.append("batches, each before it was learned from: " + " ".join(f"{s:.2f}" for s in self.batch_scores))
        lines.append(f"playbook: {len(self.playbook)} bullets, about {self.playbook.tokens()} tokens")
        lines.append(f"rollouts: {self.rollouts}")
        names = ("calls", "cached", "failed", "prompt", "of it cached", "completion")
        lines.append("{:<10} {:>6} {:>6} {:>6} {:>9} {:>12} {:>10}".format("role", *names))
        for role, u in self.usage.items():
            lines.append(
                f"{role:<10} {u.calls:>6} {u.cached_calls:>6} {u.failed_calls:>6} {u.prompt_tokens:>9} "
                f"{u.cached_tokens:>12} {u.completion_tokens:>10}"
            )
        return "\n".join(lines)
