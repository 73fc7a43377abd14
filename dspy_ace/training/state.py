"""Records of a run, and the run state that follows from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal

import pydantic
from annotated_types import Ge

from ..errors import SettingsError, expected
from ..lm import Usage
from ..playbook import Delta, Playbook, apply
from ..program import NO_EVIDENCE, Trajectory
from .choice import SAMPLE, Repairs, by_evidence, difference, repairs
from .verdict import UNIT, Scale, Verdict

# the types of a journal's line: JSON has lists for tuples, so only what cannot be mistaken is converted
Natural = Annotated[int, pydantic.Strict(), Ge(0)]
Score = Annotated[float, pydantic.Strict(), pydantic.AllowInfNan(False)]
Text = pydantic.InstanceOf[str]  # pydantic's own check refuses lone surrogates, which errors of programs may hold
CountName = Annotated[str, pydantic.StringConstraints(pattern="^(calls|prompt_tokens|completion_tokens)$")]
_AS_DELTA = pydantic.PlainValidator(lambda data: data if isinstance(data, Delta) else Delta.from_json(data))
_FROM_DELTA = pydantic.PlainSerializer(Delta.to_json)


@dataclass(frozen=True)
class Rollout:
    """Names one rollout of a run.

    Args:
        example: the example's name: its position in its set as text, or its source where it was told online.
        of: which set: the trainset or the valset; "again": a failure of the trainset, with the learned playbook.
        retry: 0 for the first attempt, n for the nth retry.
        seed: True for a rollout of the seed playbook on the valset, beside one of the last playbook.
    """

    example: Text
    of: Literal["train", "val", "again"] = "train"
    retry: Natural = 0
    seed: pydantic.StrictBool = False

    def __str__(self) -> str:
        return (
            f"{'valset ' if self.of == 'val' else ''}{self.example}"
            f"{f', retry {self.retry}' if self.retry else ''}{', seed' if self.seed else ''}"
            f"{', again' if self.of == 'again' else ''}"
        )


@dataclass(frozen=True)
class FailedRollout:
    """A rollout that has no score of its own, and why.

    Args:
        rollout: its name.
        kind: see `Failure`: provider, format, program, metric or setup.
        message: the error's type and text.
    """

    rollout: Rollout
    kind: Text
    message: Text

    @property
    def no_evidence(self) -> bool:
        """True if something else than the program failed: nothing is known of the program then."""
        return self.kind in NO_EVIDENCE


@dataclass(frozen=True)
class Validation:
    """The scores of one playbook on the valset, in its order; None where nothing is known of the program.

    The valset may have been validated in part: then these are its first rows.
    """

    scores: tuple[Score | None, ...]

    @property
    def known(self) -> tuple[float, ...]:
        """The scores without the rows of which nothing is known."""
        return tuple(score for score in self.scores if score is not None)

    @property
    def mean(self) -> float:
        """The mean score over the known rows; 0 if there is none. A failed rollout counts with `failure_score`."""
        return sum(self.known) / len(self.known) if self.known else 0.0

    def perfect(self, perfect_score: float) -> bool:
        """Return True if every row is known and a success."""
        return all(score is not None and score >= perfect_score for score in self.scores)


@dataclass(frozen=True)
class Record:
    """One learning step, one validation or a part of one, or failures rolled out again, as the journal keeps it.

    Args:
        step, epoch: counted from 1. What is no learning step has the step that it follows (0: the seed), and no batch.
        batch: positions in the trainset.
        scores: of the batch. Each example was rolled out before it was learned from.
        failures: the rollouts that failed, retries and validation included.
        reflections: one a reflection that was asked for: `examples` (their names), `insights` (their number) and
            `verified` (False: all retries failed; None: there was none); or `examples` and `error` if it failed.
        curation: how the Curator's call ended: `""` if it worked, else the error; None if it was not asked.
        delta: the operations that changed the playbook.
        rejected: operation (or None) and reason, for each operation that was left out.
        validation: of the playbook as it stands: on all rows, or with a baseline on those that follow the last ones.
        baseline: of the seed, on the same rows.
        again: failures of the batches rolled out again with the learned playbook: position and score; None where
            nothing is known of the program.
        rollouts: made for this record, retries and validation included.
        usage: role → calls, prompt and completion tokens. Seconds, dollars and what a provider's cache served are left
            out: equal runs give equal records.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    step: Natural
    epoch: Natural = 0
    batch: tuple[Natural, ...] = ()
    scores: tuple[Score, ...] = ()
    failures: tuple[FailedRollout, ...] = ()
    reflections: tuple[Mapping[str, Any], ...] = ()
    curation: Text | None = None
    delta: Annotated[Delta, _AS_DELTA, _FROM_DELTA] = field(default_factory=Delta)
    rejected: tuple[Mapping[str, Any], ...] = ()
    validation: Validation | None = None
    baseline: Validation | None = None
    again: tuple[tuple[Natural, Score | None], ...] = ()
    rollouts: Natural = 0
    usage: Mapping[str, Mapping[CountName, Natural]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data, ready for JSON."""
        return dict(_adapter().dump_python(self))

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """Return the record that `to_json` wrote. Raises SettingsError, which names the field, for anything else."""
        try:
            record: Record = _adapter().validate_python(data)
        except pydantic.ValidationError as error:
            raise expected(error) from None
        if len(record.scores) != len(record.batch):
            raise SettingsError(f"scores must be {len(record.batch)}, one an example of batch; got {record.scores}.")
        return record

    @property
    def learned(self) -> bool:
        """True if the step changed more than counters."""
        return any(operation.op != "tag" for operation in self.delta.operations)

    @property
    def reflected(self) -> int:
        """The number of reflections that worked."""
        return sum("error" not in item for item in self.reflections)

    @property
    def kinds(self) -> tuple[str | None, ...]:
        """For each example of the batch the kind of failure of its first attempt; None for one that has a score."""
        failed = {f.rollout.example: f.kind for f in self.failures if f.rollout.of == "train" and not f.rollout.retry}
        return tuple(failed.get(str(position)) for position in self.batch)


@lru_cache(maxsize=1)
def _adapter() -> pydantic.TypeAdapter[Record]:
    return pydantic.TypeAdapter(Record)


def recorded(records: Sequence[Record]) -> dict[str, Usage]:
    """Return what the steps on record used, by role; dollars and seconds are not on record."""
    total: dict[str, Usage] = {}
    for record in records:
        for role, counts in record.usage.items():
            total[role] = total.get(role, Usage()) + Usage(**counts, dollars=None)
    return total


def failures_of(rollout: Rollout, trajectory: Trajectory) -> tuple[FailedRollout, ...]:
    """Return the failure of one rollout as a tuple of one, or an empty one."""
    error = trajectory.error
    return () if error is None else (FailedRollout(rollout, error.kind, error.message),)


def troubles(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return the reasons of all that failed, in their order, by what it was: `rollout: provider`, `reflection` …"""
    found: dict[str, list[str]] = {}
    for record in records:
        for failed in record.failures:
            found.setdefault(f"rollout: {failed.kind}", []).append(failed.message)
        for item in record.reflections:
            if "error" in item:
                found.setdefault("reflection", []).append(str(item["error"]))
        if record.curation:
            found.setdefault("curation", []).append(record.curation)
    return found


def most_often(reasons: Sequence[str]) -> tuple[str, int]:
    """Return the most frequent reason, and how often it came; reasons that differ in numbers only are the same."""
    groups: dict[str, list[str]] = {}
    for reason in reasons:
        groups.setdefault(re.sub(r"\d+", "0", reason), []).append(reason)
    most = max(groups.values(), key=len)
    return most[0], len(most)


def seed_validation(records: Sequence[Record]) -> Validation | None:
    """Return what is known of the seed on the valset; None: it was not validated.

    It was validated before the first step, or beside the playbooks of some steps; each time from the first row on.
    """
    known: dict[int, tuple[float | None, ...]] = {}
    for record in records:
        found = record.baseline if record.step else record.validation
        known[record.step] = known.get(record.step, ()) + (found.scores if found else ())
    longest = max(known.values(), key=len, default=())
    return Validation(longest) if longest else None


@dataclass(frozen=True)
class State:
    """Where a run stands. `after` is pure: the state of a continued run follows from its records.

    Args:
        playbook: the latest.
        seed: the one that the run started from.
        records: all so far.
        candidate: the learned playbook with the highest mean validation score, the later one on a tie; None before
            a learned playbook was validated. Votes that came after its validation are in it: prompts do not show them.
        candidate_step: the step that it came from.
        scale: of the metric.
    """

    playbook: Playbook
    seed: Playbook
    records: tuple[Record, ...] = ()
    candidate: Playbook | None = None
    candidate_step: int = 0
    scale: Scale = UNIT

    @classmethod
    def of(cls, seed: Playbook, scale: Scale = UNIT) -> State:
        """Return the state before the first step."""
        return cls(seed, seed, scale=scale)

    def after(self, record: Record) -> State:
        """Return the state after one more record. Raises DeltaError if the record does not follow from this state."""
        playbook = apply(self.playbook, record.delta)
        after = replace(self, playbook=playbook, records=(*self.records, record))
        if record.validation is not None and record.step > 0:
            known = self._validation(self.candidate_step) if self.candidate is not None else None
            if known is None or record.baseline is not None or record.validation.mean >= known.mean:
                return replace(after, candidate=playbook, candidate_step=record.step)
        elif not record.learned and self.candidate is not None and self.candidate_step == self._last_learned:
            return replace(after, candidate=playbook)
        return after

    @property
    def step(self) -> int:
        """The number of steps done."""
        return max((record.step for record in self.records), default=0)

    def solved(self, perfect_score: float) -> dict[str, Playbook]:
        """Return the examples that were solved so far, each with the playbook of its last success."""
        found: dict[str, Playbook] = {}
        playbook = self.seed
        for record in self.records:
            scored = zip(record.batch, record.scores, strict=True)
            found |= {str(position): playbook for position, score in scored if score >= perfect_score}
            playbook = apply(playbook, record.delta)
        return found

    @property
    def learned(self) -> bool:
        """True if some step changed more than counters."""
        return any(record.learned for record in self.records)

    # told by the records, not by which thread came first: a continued run asks a role as often as an unbroken one
    @property
    def reflector_works(self) -> bool:
        """True if a reflection worked before: then an unreadable reply is asked for once more."""
        return any(record.reflected for record in self.records)

    @property
    def curator_works(self) -> bool:
        """True if a curation worked before."""
        return any(record.curation == "" for record in self.records)

    @property
    def learned_playbook(self) -> Playbook:
        """The playbook that meets the seed in the end: the candidate, or without a validation the latest."""
        return self.playbook if self.candidate is None else self.candidate

    @property
    def best(self) -> Playbook:
        """The playbook to return as things stand."""
        return self.learned_playbook if self.returns_learned else self.seed

    @property
    def best_step(self) -> int:
        """The step that the best playbook came from; 0 is the seed."""
        if not self.returns_learned:
            return 0
        return self._last_learned if self.candidate is None else self.candidate_step

    @property
    def seed_score(self) -> float | None:
        """The mean validation score of the seed, on the rows of the verdict where there is one; None: not validated."""
        if self.verdict is not None and self.verdict.validation is not None:
            return self.verdict.validation.before
        found = seed_validation(self.records)
        return None if found is None else found.mean

    @property
    def best_score(self) -> float | None:
        """The same of the best playbook, on the same rows."""
        if not self.best_step:
            return self.seed_score
        return self.verdict.validation.after if self.verdict is not None and self.verdict.validation else None

    @property
    def pairs(self) -> tuple[Sequence[float | None], Sequence[float | None]]:
        """The scores of seed and candidate on the rows of the valset that both were validated on."""
        seed, learned = seed_validation(self.records), self._validation(self.candidate_step)
        if self.candidate is None or seed is None or learned is None:
            return (), ()
        rows = min(len(seed.scores), len(learned.scores))
        return seed.scores[:rows], learned.scores[:rows]

    @cached_property
    def verdict(self) -> Verdict | None:
        """The learned playbook against the seed; None if no step changed a prompt, or nothing is known."""
        return difference(self.records, *self.pairs, self.scale) if self.learned else None

    @cached_property
    def repairs(self) -> Repairs:
        """The failures that it was learned from, and which of them are repaired."""
        return repairs(self.records, self.scale, SAMPLE)

    @property
    def returns_learned(self) -> bool:
        """True if the learned playbook is to be returned, not the seed; see `choice`."""
        spoken = by_evidence(self.verdict)
        return self.repairs.enough if spoken is None else spoken

    def flawless(self, perfect_score: float) -> bool:
        """Return True if the student has made no mistake so far: no batch, and no validation of the seed, shows one."""
        seed = seed_validation(self.records)
        batches = all(score >= perfect_score for record in self.records for score in record.scores)
        return batches and (seed is None or seed.perfect(perfect_score))

    @property
    def unvalidated(self) -> bool:
        """True if the latest playbook was changed since the last validation, or there was none."""
        for record in reversed(self.records):
            if record.validation is not None:
                return False
            if record.learned:
                return True
        return True

    @property
    def _last_learned(self) -> int:
        return next((record.step for record in reversed(self.records) if record.learned), 0)

    def _validation(self, step: int) -> Validation | None:
        """Return the validation of a step's playbook, of all its parts."""
        if step == 0:
            return seed_validation(self.records)
        scores: tuple[float | None, ...] = ()
        for record in self.records:
            if record.step == step and record.validation is not None:
                scores = (scores if record.baseline else ()) + record.validation.scores
        return Validation(scores) if scores else None
