"""Looks at the valset: each prompt is scored on an example once, and no more is scored than the choice needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import dspy

from ..lm import Books
from ..playbook import Playbook
from ..program import NO_EVIDENCE, Crew, Trajectory, ordered_map, with_playbook
from .evaluation import FULL, Evaluation
from .fingerprint import example_key
from .history import Record, State, Validation, difference
from .rolling import Roller

CHUNK = 8  # examples that seed and last playbook both meet before the difference is looked at


class Validator:
    """Scores playbooks on the valset for one run.

    The seed without a bullet has one prompt, whether it is validated or learned from: an example that stands in
    both sets is rolled out once for both.

    Args:
        student: the program.
        trainset, valset: as the run uses them.
        roller: runs and scores a program, and stops the run when there is no sense in going on.
        scale: the width of the metric: perfect minus failure score.
        **settings: for callbacks that are told of an evaluation: `metric`, `num_threads`, `failure_score`.
    """

    def __init__(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        valset: Sequence[dspy.Example],
        roller: Roller,
        scale: float,
        **settings: Any,
    ) -> None:
        self.student, self.valset, self.roller = student, valset, roller
        self.scale, self.settings = scale, settings
        looked = {example_key(example): position for position, example in enumerate(valset)}
        keys = [example_key(example) for example in trainset]
        self.in_both = {position: looked[key] for position, key in enumerate(keys) if key in looked}
        self.met: dict[int, Trajectory] = {}  # position in the valset → the rollout of a seed without bullets

    def full(
        self,
        state: State,
        playbook: Playbook,
        crew: Crew,
        books: Books,
        seen: Callable[[Trajectory], None] | None = None,
    ) -> Validation:
        """`playbook` on the whole valset; a prompt that was validated before is not rolled out again.

        `seen` is called with each rollout as soon as it is there; those begin first that did worst in the look before.
        """
        known = state.validation_of(playbook)
        looks = [record.validation for record in state.records if record.validation is not None]
        worst = looks[-1].scores if looks else None
        everything = range(len(self.valset))
        return known or Validation(self._scores(playbook, everything, {}, crew, books, seen=seen, worst=worst))

    def side_by_side(
        self, state: State, affordable: Callable[[int], bool], crew: Crew, books: Books
    ) -> tuple[Validation, Validation] | None:
        """Seed and latest playbook on the same examples, until it is clear which is better.

        Args:
            state: the run, all learned.
            affordable: whether so many more rollouts may be made.
            crew, books: who rolls out, and where it is booked.

        Returns:
            Both validations, on the same first examples of the valset; None if not one pair is affordable.
        """
        known = self._met_in_batches(state)
        before: tuple[float, ...] = ()
        after: tuple[float, ...] = ()
        for start in range(0, len(self.valset), CHUNK):
            chunk = range(start, min(start + CHUNK, len(self.valset)))
            while chunk and not affordable(2 * len(chunk) - sum(position in known for position in chunk)):
                chunk = chunk[:-1]
            if not chunk:
                break
            seed = partial(self._scores, state.seed, chunk, known, crew, books, ", seed")
            last = partial(self._scores, state.playbook, chunk, {}, crew, books)
            at_once = crew.num_threads // len(chunk)  # side by side in time as well, where there are threads for both
            both = ordered_map(lambda look: look(), (seed, last), at_once)
            before, after = before + both[0], after + both[1]
            found = difference(state.records, Validation(before), Validation(after), self.scale)
            if found is not None and found.certain:
                break
        return (Validation(before), Validation(after)) if before else None

    def rolled_before(self, state: State, positions: Sequence[int]) -> dict[int, int]:
        """Of these positions in the trainset, those that the seed met on the valset with the very same prompt.

        Returns:
            Position in the trainset → position in the valset.
        """
        first = state.records[0] if state.records else None
        if first is None or first.validation is None or len(state.playbook) or state.step >= self._first_epoch(state):
            return {}
        return {
            position: self.in_both[position]
            for position in positions
            if position in self.in_both and not _no_evidence(first, f"valset {self.in_both[position]}")
        }

    def lends(self, state: State) -> bool:
        """Whether a look at the latest playbook makes rollouts that a batch will not make again."""
        return bool(self.in_both) and not len(state.playbook)

    def _first_epoch(self, state: State) -> float:
        later = [record.step for record in state.records if record.epoch > 1]
        return min(later, default=float("inf"))

    def _met_in_batches(self, state: State) -> dict[int, float]:
        """Position in the valset → score, of examples that the seed met in its batches with the very same prompt."""
        found: dict[int, float] = {}
        if len(state.seed):
            return found
        for record in state.records:
            for position, score in zip(record.batch, record.scores, strict=True):
                if record.epoch == 1 and position in self.in_both and not _no_evidence(record, str(position)):
                    found[self.in_both[position]] = score
            if record.learned:
                break
        return found

    def _scores(
        self,
        playbook: Playbook,
        positions: Sequence[int],
        known: Mapping[int, float],
        crew: Crew,
        books: Books,
        whose: str = "",
        seen: Callable[[Trajectory], None] | None = None,
        worst: Sequence[float] | None = None,
    ) -> tuple[float, ...]:
        """The scores of `playbook` at these positions of the valset; those that are `known` are not rolled out."""
        new = [position for position in positions if position not in known]
        scores = dict(known)
        if new:

            def roll(program: dspy.Module, examples: Sequence[dspy.Example]) -> list[Trajectory]:
                order = sorted(range(len(new)), key=lambda i: worst[new[i]] if worst else 0.0)
                names = [f"valset {new[i]}{whose}" for i in order]
                rolled = self.roller.roll(program, [examples[i] for i in order], names, crew, books, seen)
                made = dict(zip(order, rolled, strict=True))
                if not len(playbook):
                    self.met |= {new[i]: made[i] for i in order}
                return [made[i] for i in range(len(new))]

            whole = len(new) == len(self.valset)
            evaluate = Evaluation([self.valset[position] for position in new], roll, **self.settings)
            program = with_playbook(self.student, playbook)
            result = evaluate(program, callback_metadata=FULL if whole else {"metric_key": "eval_part"})
            scores |= {position: score for position, (*_, score) in zip(new, result.results, strict=True)}
        return tuple(scores[position] for position in positions)


def _no_evidence(record: Record, rollout: str) -> bool:
    """Whether something else than the program failed in it: nothing is known of the program then."""
    return record.failures.get(rollout, {}).get("kind") in NO_EVIDENCE
