"""What a compile hands back besides the program: `compiled.detailed_results`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..lm import Usage
from ..playbook import Playbook
from .history import Record, difference, seed_validation
from .verdict import Verdict


@dataclass(frozen=True)
class Results:
    """How a run went.

    Args:
        seed_score, best_score: mean validation score of the program before and of the one returned; None
            without a valset, or where it was not needed.
        validated_on: how many examples of the valset they rest on.
        best_step: the step whose playbook was returned; 0 is the seed: nothing learned was as good.
        verdict: what was learned against the seed: better, not shown to be better, or worse, with a 95 % interval
            and the evidence; None when nothing was learned.
        stopped: why the run ended, in words.
        usage: calls, tokens, dollars and seconds by role: `task` (the student), `metric` (its own LM calls),
            `reflector`, `curator`. Of a continued run with the calls and tokens of the steps on record; what an
            unfinished step spent before a crash is not known.
        rollouts: how often the program was run: batches, retries and validation.
        records: one a step and one a look at the valset, as in the journal.
        playbook: the playbook returned.
    """

    seed_score: float | None
    best_score: float | None
    validated_on: int
    best_step: int
    verdict: Verdict | None
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
                f"validation: {self.seed_score:.3f} before, {self.best_score:.3f} after (step {self.best_step}), "
                f"on {self.validated_on} examples"
            )
        if self.verdict is not None:
            lines.append(f"verdict: {self.verdict}")
        if self.batch_scores:
            lines.append("batches, each before it was learned from: " + " ".join(f"{s:.2f}" for s in self.batch_scores))
        lines.append(f"playbook: {len(self.playbook)} bullets, about {self.playbook.tokens()} tokens")
        lines.append(f"rollouts: {self.rollouts}")
        rejected = [item["reason"] for record in self.records for item in record.rejected]
        failures = [f["kind"] for record in self.records for f in record.failures.values()]
        for what, several in (("left out", rejected), ("failed rollouts", failures)):
            if several:
                reason, times = Counter(several).most_common(1)[0]
                lines.append(f"{what}: {len(several)}; most often ({times}): {reason}")
        names = ("calls", "cached", "failed", "retries", "prompt", "of it cached", "completion", "dollars", "seconds")
        lines.append("{:<10} {:>6} {:>6} {:>6} {:>7} {:>9} {:>12} {:>10} {:>9} {:>8}".format("role", *names))
        for role, u in [*self.usage.items(), ("all", sum(self.usage.values(), Usage()))]:
            dollars = "unknown" if u.dollars is None else f"{u.dollars:.4f}"
            lines.append(
                f"{role:<10} {u.calls:>6} {u.cached_calls:>6} {u.failed_calls:>6} {u.retries:>7} {u.prompt_tokens:>9} "
                f"{u.cached_tokens:>12} {u.completion_tokens:>10} {dollars:>9} {u.seconds:>8.1f}"
            )
        return "\n".join(lines)


def judge(records: Sequence[Record], scale: float) -> Verdict | None:
    """What was learned against the seed.

    Args:
        records: all of a run, the seed's first.
        scale: the width of the metric: perfect minus failure score.

    Returns:
        The verdict on the best learned playbook; None if no step changed a prompt.
    """
    if not any(record.learned for record in records):
        return None
    later = [record.validation for record in records[1:] if record.validation is not None]
    best = max(reversed(later), key=lambda validation: validation.mean, default=None)
    return difference(records, seed_validation(records), best, scale)
