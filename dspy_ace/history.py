"""What a run has done so far: a `Record` a step, and the `State` that is the fold of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .adapt import Step
from .delta import Delta, apply, operation_to_json
from .playbook import Playbook
from .schedule import Batch
from .trajectory import Trajectory


@dataclass(frozen=True)
class Validation:
    """The scores of one playbook on the valset, an entry an example, in its order."""

    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean score; failed rollouts are in it with `failure_score`."""
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Record:
    """One step, as the journal keeps it. Step 0 is the seed: nothing learned, perhaps validated.

    Args:
        step, epoch: counted from 1.
        batch: positions in the trainset.
        scores: of the batch, each rolled out before it was learned from.
        failures: position (as text) → kind and message of what failed.
        reflections: example, number of insights, verified, for each reflection made.
        delta: what changed the playbook.
        rejected: operation (or null) and reason, for all that was left out.
        validation: of the playbook after this step, when it was due.
        rollouts: made in this step, retries and validation included.
    """

    step: int
    epoch: int = 0
    batch: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    failures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    reflections: tuple[Mapping[str, Any], ...] = ()
    delta: Delta = field(default_factory=Delta)
    rejected: tuple[Mapping[str, Any], ...] = ()
    validation: Validation | None = None
    rollouts: int = 0

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON data."""
        plain = {name: value for name, value in vars(self).items() if name not in ("delta", "validation")}
        validation = None if self.validation is None else list(self.validation.scores)
        return {**plain, "delta": self.delta.to_json(), "validation": validation}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """The record that `to_json` wrote. Raises KeyError, TypeError or DeltaError for anything else."""
        scores = data["validation"]
        return cls(
            step=int(data["step"]),
            epoch=int(data["epoch"]),
            batch=tuple(data["batch"]),
            scores=tuple(data["scores"]),
            failures=dict(data["failures"]),
            reflections=tuple(data["reflections"]),
            delta=Delta.from_json(data["delta"]),
            rejected=tuple(data["rejected"]),
            validation=None if scores is None else Validation(tuple(scores)),
            rollouts=int(data["rollouts"]),
        )

    @property
    def learned(self) -> bool:
        """Whether the step changed more than counters."""
        return any(operation.op != "tag" for operation in self.delta.operations)


def record_of(batch: Batch, trajectories: Sequence[Trajectory], step: Step) -> Record:
    """What the journal keeps of a step; a budget may have made its batch shorter."""
    return Record(
        step=batch.step,
        epoch=batch.epoch,
        batch=batch.examples[: len(trajectories)],
        scores=tuple(t.feedback.score for t in trajectories),
        failures={t.source: {"kind": t.error.kind, "message": t.error.message} for t in trajectories if t.error},
        reflections=tuple(
            {"example": r.trajectory.source, "insights": len(r.insights), "verified": r.verified}
            for r in step.reflections
            if r.trajectory is not None
        ),
        delta=step.delta,
        rejected=tuple(
            {"operation": None if r.operation is None else operation_to_json(r.operation), "reason": r.reason}
            for r in step.rejected
        ),
    )


@dataclass(frozen=True)
class State:
    """Where a run stands. `after` is pure: the state of a resumed run is the fold of its records.

    Args:
        playbook: the latest.
        seed: the one the run started from, and `seed_score`, its mean validation score.
        step: the last step done; -1 before the seed was looked at.
        best: the playbook to return as things stand, and `best_step`, the step it came from.
        best_score: its mean validation score; None while it was not validated.
        best_is_latest: whether the latest playbook reads as the best one does.
        judged: whether anything learned was validated yet.
        records: all so far.
    """

    playbook: Playbook
    seed: Playbook
    best: Playbook
    step: int = -1
    seed_score: float | None = None
    best_step: int = 0
    best_score: float | None = None
    best_is_latest: bool = True
    judged: bool = False
    records: tuple[Record, ...] = ()

    @classmethod
    def of(cls, seed: Playbook) -> State:
        """The state before anything was done: the seed is all there is."""
        return cls(seed, seed, seed)

    def after(self, record: Record) -> State:
        """The state after one more step.

        The best playbook is the one with the highest mean validation score; a tie goes to the later one, and the
        seed stays only where it is strictly better. Until something learned was validated it is the latest, also
        without a valset. Counters that change after a validation are kept: prompts do not show them.
        """
        playbook = apply(self.playbook, record.delta)
        grown = replace(self, playbook=playbook, step=record.step, records=(*self.records, record))
        if record.validation is not None:
            return grown._validated(record.validation.mean)
        if not self.judged:
            changed = self.best_score is None or record.learned
            score, step = (None, record.step) if changed else (self.best_score, self.best_step)
            return replace(grown, best=playbook, best_step=step, best_score=score)
        if self.best_is_latest and not record.learned:
            return replace(grown, best=playbook)
        return replace(grown, best_is_latest=False)

    def _validated(self, score: float) -> State:
        if len(self.records) == 1:
            return replace(self, seed_score=score, best=self.playbook, best_score=score)
        known = self.best_score if self.judged else self.seed_score
        judged = replace(self, judged=True)
        if known is None or score >= known:
            return replace(judged, best=self.playbook, best_step=self.step, best_score=score, best_is_latest=True)
        if not self.judged:
            return replace(judged, best=self.seed, best_step=0, best_score=known, best_is_latest=False)
        return replace(judged, best_is_latest=False)

    def validation_of(self, playbook: Playbook) -> Validation | None:
        """What is known of a playbook that reads like the best one or the seed; None: nothing."""
        for known, step in ((self.best, self.best_step), (self.seed, 0)):
            found = [r.validation for r in self.records if r.step == step and r.validation is not None]
            if found and [(b.block, b.predictor) for b in known] == [(b.block, b.predictor) for b in playbook]:
                return found[-1]
        return None

    @property
    def unvalidated(self) -> bool:
        """Whether the latest playbook reads differently from the one that was validated last."""
        for record in reversed(self.records):
            if record.validation is not None:
                return False
            if record.learned:
                return True
        return True
