"""What a run makes: the records of its steps and of its looks at the valset, and whether they are due."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import replace

from ..lm import Books
from ..playbook import Playbook
from ..program import Crew, Trajectory, with_playbook
from . import pace
from .history import Record, State, record_of
from .lesson import Lesson, Role
from .run import Run
from .schedule import Batch
from .validator import Validator


class Maker:
    """Makes the records of a run, each when it is asked for.

    Args:
        run: the settings, resolved.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.validator = Validator(
            run.student,
            run.trainset,
            run.valset,
            run.roller,
            run.scale,
            metric=run.ace.metric,
            num_threads=run.num_threads,
            failure_score=run.ace.failure_score,
        )

    def step(
        self,
        state: State,
        batch: Batch,
        playbook: Future[Playbook],
        perfect: Future[bool],
        crew: Crew,
    ) -> tuple[Record, Playbook]:
        """Run the batch, or as much of it as the budget allows, and learn from it.

        A reflection starts as soon as its rollout has ended. The program cites the bullets it uses. What the seed's
        validation has rolled out with the very same prompt is not rolled out again.

        Args:
            state: what is known when it begins; the batch meets its playbook.
            batch: the examples.
            playbook: what is learned into: that of `state`, or of the step that is still under way.
            perfect: whether no fault of the student is known: then only failures are reflected on.
            crew: the threads.

        Returns:
            The record, and the playbook after the step.
        """
        books = self._run.books.part()
        before = self.validator.rolled_before(state, batch.examples)
        new = [position for position in batch.examples if position not in before]
        allowed = new[: self._run.allowance.for_learning(len(new))]
        if len(allowed) < len(new):  # the batch ends before the first one that is not affordable
            batch = batch._replace(examples=batch.examples[: batch.examples.index(new[len(allowed)])])
        known = self._met([before[position] for position in batch.examples if position in before], crew)

        program = with_playbook(self._run.student, state.playbook, cite=True)
        names = [str(i) for i in batch.examples]
        lesson = self.lesson(state, names, playbook, perfect, crew, books, rollouts=len(allowed))
        made = iter(
            self._run.roller.roll(
                program,
                [self._run.trainset[i] for i in allowed],
                [str(i) for i in allowed],
                crew,
                books,
                lesson.at_once,
            )
        )
        trajectories = [
            replace(known[before[i]], source=str(i), example=self._run.trainset[i]) if i in before else next(made)
            for i in batch.examples
        ]
        step = lesson.learned(trajectories)
        stale = batch.step - 1 - max(0, state.step)
        return booked(record_of(batch, trajectories, step, stale), books), step.playbook

    def lesson(
        self,
        state: State,
        names: Sequence[str],
        playbook: Future[Playbook],
        perfect: Future[bool],
        crew: Crew,
        books: Books,
        *,
        rollouts: int = 0,
        unscored: Collection[str] = (),
    ) -> Lesson:
        """The learning of one batch; see `step`. Whether a role works is told by what is on record.

        Not by which thread came first: a resumed run asks as often as an unbroken one.
        """
        return Lesson(
            self._run.student,
            state.playbook,
            playbook,
            (
                Role(self._run.reflect, any(record.reflections for record in state.records), books.meter),
                Role(self._run.curate, any(record.learned for record in state.records), books.meter),
                self._run.refine,
            ),
            self._run.roller,
            crew,
            books,
            names,
            rounds=self._run.effort.rounds,
            reflect_on=self._run.effort.reflect_on,
            perfect=perfect,
            group_size=self._run.effort.curation_group,
            rollouts=rollouts,
            unscored=unscored,
        )

    def _met(self, positions: list[int], crew: Crew) -> dict[int, Trajectory]:
        """The seed's rollouts on these examples of the valset.

        Those that ended with another process are made again: the record of the seed has them already.
        """
        lost = [position for position in positions if position not in self.validator.met]
        if lost:
            program = with_playbook(self._run.student, Playbook())
            names = [f"valset {i}" for i in lost]
            made = self._run.roller.roll(
                program, [self._run.valset[i] for i in lost], names, crew, self._run.books.part()
            )
            self.validator.met |= dict(zip(lost, made, strict=True))
            self._run.allowance.take(-len(lost))
        return self.validator.met

    def due(self, state: State, left: int) -> bool:
        """Whether the latest playbook is to be validated now, with `left` examples to come; the seed at first."""
        if not self._run.valset or self._run.effort.validate == "end":
            return False
        if state.step < 0:
            return True
        if not self._run.allowance.for_validation():
            return False
        return pace.time_to_validate(state, len(self._run.valset), self._run.ace.validate_every, left)

    def look(self, state: State, crew: Crew, seen: Callable[[Trajectory], None] | None = None) -> Record:
        """The record of a validation of the latest playbook."""
        books = self._run.books.part()
        validation = self.validator.full(state, state.playbook, crew, books, seen)
        return booked(Record(max(0, state.step), validation=validation), books)

    def last_look(self, state: State, crew: Crew) -> Record | None:
        """The record of a validation of the latest playbook, if there is one to be made."""
        if not self._run.valset or not state.unvalidated:
            return None
        if self._run.effort.validate == "along":
            return self.look(state, crew)
        if not any(record.learned for record in state.records):
            return None
        books = self._run.books.part()
        both = self.validator.side_by_side(state, self._run.allowance.left, crew, books)
        return None if both is None else booked(Record(state.step, baseline=both[0], validation=both[1]), books)

    def over(self, state: State, batch: Batch) -> str | None:
        """Why the run ends before `batch`; None: it goes on."""
        if not self._run.allowance.for_learning(1):
            return f"max_metric_calls={self._run.allowance.limit} is spent"
        return pace.reason_to_stop(
            state, batch, self._run.ace.perfect_score, self._run.ace.patience, self._run.ace.metric is not None
        )

    def flawless(self, state: State) -> bool:
        """Whether no fault of the student is known: then only failures are reflected on."""
        return self._run.ace.metric is not None and state.flawless(self._run.ace.perfect_score)

    @property
    def unlimited(self) -> bool:
        """Whether no number of rollouts or calls, and no sum, ends the run: what is begun early is not lost to it."""
        ace = self._run.ace
        return ace.max_metric_calls is None and ace.max_lm_calls is None and ace.max_cost is None


def booked(record: Record, books: Books) -> Record:
    """The record with what was spent on it."""
    failures = {**books.failures, **record.failures}
    return replace(record, rollouts=books.rollouts, failures=failures, usage=books.usage())
