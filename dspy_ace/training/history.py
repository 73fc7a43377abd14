"""What a run has done so far: a `Record` a step, and the `State` that is the fold of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..playbook import Delta, Playbook, apply
from ..program import Trajectory
from .adapt import Step
from .schedule import Batch
from .verdict import Verdict, paired, unpaired, verdict


@dataclass(frozen=True)
class Validation:
    """The scores of one playbook on the valset, an entry an example, in its order."""

    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean score; failed rollouts are in it with `failure_score`."""
        return sum(self.scores) / len(self.scores)

    def perfect(self, perfect_score: float) -> bool:
        """Whether every example is a success."""
        return all(score >= perfect_score for score in self.scores)


@dataclass(frozen=True)
class Record:
    """One step, as the journal keeps it, or a look at the valset after it. Step 0 is the seed: nothing learned.

    Args:
        step, epoch: counted from 1.
        stale: so many steps before the last one the playbook was made that the batch met.
        batch: positions in the trainset.
        scores: of the batch, each rolled out before it was learned from.
        failures: rollout → kind and message of what failed; a rollout is a position (as text), "3, retry 1" or
            "valset 0", or "valset 0, seed" where both are looked at side by side.
        reflections: example, number of insights, verified, for each reflection made.
        delta: what changed the playbook.
        rejected: operation (or null) and reason, for all that was left out.
        validation: of the playbook after this step. In a record of its own: the step is on disk before it is made.
        baseline: of the seed on the same examples, when it was put off until then.
        rollouts: made in this step, retries and validation included.
        usage: role → calls, prompt and completion tokens of this step. What depends on the clock or on a provider's
            cache is not kept: equal runs give equal records.
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
    baseline: Validation | None = None
    rollouts: int = 0
    usage: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    stale: int = 0

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON data."""
        looks = {name: look and list(look.scores) for name, look in self._looks().items()}
        plain = {name: value for name, value in vars(self).items() if name != "stale" or value}
        return {**plain, "delta": self.delta.to_json(), **looks}

    def _looks(self) -> dict[str, Validation | None]:
        return {"validation": self.validation, "baseline": self.baseline}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """The record that `to_json` wrote. Raises KeyError, TypeError or DeltaError for anything else."""
        looks = {name: data[name] and Validation(tuple(data[name])) for name in ("validation", "baseline")}
        return cls(
            step=int(data["step"]),
            epoch=int(data["epoch"]),
            batch=tuple(data["batch"]),
            scores=tuple(data["scores"]),
            failures=dict(data["failures"]),
            reflections=tuple(data["reflections"]),
            delta=Delta.from_json(data["delta"]),
            rejected=tuple(data["rejected"]),
            **looks,
            rollouts=int(data["rollouts"]),
            usage=dict(data["usage"]),
            stale=int(data.get("stale", 0)),
        )

    @property
    def learned(self) -> bool:
        """Whether the step changed more than counters."""
        return any(operation.op != "tag" for operation in self.delta.operations)


def record_of(batch: Batch, trajectories: Sequence[Trajectory], step: Step, stale: int = 0) -> Record:
    """What the journal keeps of a step; a budget may have made its batch shorter."""
    return Record(
        stale=stale,
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
        rejected=tuple(rejected.to_json() for rejected in step.rejected),
    )


def fresh_scores(records: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Scores of the first epoch's batches, those that met the seed and those that met something learned.

    Each example was rolled out before it was learned from: a fair test of the playbook it met. Later epochs have
    seen it all.
    """
    learned = next((record.step for record in records if record.learned), None)
    seed: list[float] = []
    later: list[float] = []
    for record in records:
        if record.epoch == 1:
            (seed if learned is None or record.step - record.stale <= learned else later).extend(record.scores)
    return seed, later


def seed_validation(records: Sequence[Record]) -> Validation | None:
    """The seed's, made before the first step or put off until there was something to set beside it."""
    looks = [record.baseline if record.step else record.validation for record in records]
    return next((look for look in looks if look is not None), None)


def difference(
    records: Sequence[Record], seed: Validation | None, learned: Validation | None, scale: float
) -> Verdict | None:
    """What was learned against the seed: the valset, pooled with the record of the batches each kind met.

    Args:
        records: all of a run.
        seed, learned: both on the same examples; one of them None: the record of the batches alone.
        scale: the width of the metric: perfect minus failure score.
    """
    on_valset = paired(seed.scores, learned.scores, scale) if seed and learned else None
    return verdict(on_valset, unpaired(*fresh_scores(records), scale))


@dataclass(frozen=True)
class State:
    """Where a run stands. `after` is pure: the state of a resumed run is the fold of its records.

    Args:
        playbook: the latest.
        seed: the one the run started from.
        step: the last step done; -1 before the seed was looked at.
        candidate: the learned playbook with the highest mean validation score, the later one on a tie; None
            before anything learned was validated.
        candidate_step: the step it came from.
        candidate_is_latest: whether the latest playbook reads as the candidate does.
        records: all so far.
        before: the state before the last step, which knows no earlier one; None before the first.
    """

    playbook: Playbook
    seed: Playbook
    step: int = -1
    candidate: Playbook | None = None
    candidate_step: int = 0
    candidate_is_latest: bool = False
    records: tuple[Record, ...] = ()
    before: State | None = None

    @classmethod
    def of(cls, seed: Playbook) -> State:
        """The state before anything was done: the seed is all there is."""
        return cls(seed, seed)

    def after(self, record: Record) -> State:
        """The state after one more step. Counters that change after a validation are kept: prompts do not show them."""
        playbook = apply(self.playbook, record.delta)
        before = replace(self, before=None) if record.batch else self.before
        grown = replace(self, playbook=playbook, step=record.step, records=(*self.records, record), before=before)
        if record.validation is not None and self.records:
            known = self._validation(self.candidate_step) if self.candidate is not None else None
            if known is None or record.validation.mean >= known.mean:
                return replace(grown, candidate=playbook, candidate_step=record.step, candidate_is_latest=True)
            return replace(grown, candidate_is_latest=False)
        if self.candidate_is_latest and not record.learned:
            return replace(grown, candidate=playbook)
        return replace(grown, candidate_is_latest=self.candidate_is_latest and not record.learned)

    @property
    def best(self) -> Playbook:
        """What to return as things stand: the candidate, or the seed if that is strictly better; else the latest."""
        if self.candidate is None:
            return self.playbook
        return self.candidate if self._gain >= 0 else self.seed

    @property
    def best_step(self) -> int:
        """The step the best playbook came from; 0 is the seed."""
        if self.candidate is None:
            return next((record.step for record in reversed(self.records) if record.learned), 0)
        return self.candidate_step if self._gain >= 0 else 0

    @property
    def best_score(self) -> float | None:
        """The mean validation score of the best playbook; None while it was not validated."""
        found = self._validation(self.best_step)
        return None if found is None else found.mean

    @property
    def seed_score(self) -> float | None:
        """The mean validation score of the seed; None without a valset."""
        found = self._validation(0)
        return None if found is None else found.mean

    def flawless(self, perfect_score: float) -> bool:
        """Whether the seed is perfect on the valset; before it was looked at, whether no rollout has failed so far."""
        if (seed := self._validation(0)) is not None:
            return seed.perfect(perfect_score)
        return all(score >= perfect_score for record in self.records for score in record.scores)

    @cached_property
    def _gain(self) -> float:
        """The candidate against the seed: the valset, pooled with the record of the batches each kind met."""
        found = difference(self.records, self._validation(0), self._validation(self.candidate_step), 1.0)
        return 0.0 if found is None else found.difference

    def _validation(self, step: int) -> Validation | None:
        if step == 0:
            return seed_validation(self.records)
        found = [record.validation for record in self.records if record.step == step and record.validation is not None]
        return found[-1] if found else None

    def validation_of(self, playbook: Playbook) -> Validation | None:
        """What is known of a playbook that reads like the candidate or the seed; None: nothing."""
        for known, step in ((self.candidate, self.candidate_step), (self.seed, 0)):
            if known is not None and [(b.block, b.predictor) for b in known] == [
                (b.block, b.predictor) for b in playbook
            ]:
                return self._validation(step)
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
