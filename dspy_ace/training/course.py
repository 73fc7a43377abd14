"""The course of a run: which record comes next, and what is begun before its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..playbook import Playbook
from ..program import WHENEVER, Crew, Trajectory, resolve, there
from . import pace
from .history import Record, State
from .making import Maker
from .run import Run
from .schedule import Batch

_FEW = 3  # rollouts of a look that begin before those of a step that is begun with it


@dataclass
class _Step:
    """A step under way; it begins when it is `needed`: when it is certain that the run comes to it."""

    batch: Batch
    needed: Future[bool] = field(default_factory=Future)
    made: Future[tuple[Record, Playbook] | None] = field(default_factory=Future)
    playbook: Future[Playbook] = field(default_factory=Future)


class Course:
    """The records of a run in their order, each made when it is asked for or before.

    A step needs the playbook that its batch meets, and waits for nothing else. A look at the valset is made beside the
    next step, which begins as soon as it is certain that the look cannot end the run. With `overlap` a batch meets the
    playbook of one step ago: it is rolled out while that step is still learned from, and what it teaches goes into
    the latest. (The first batch of an epoch meets the latest.) Where calls are limited, or there is one thread, the
    same is done one after the other: the records are equal.

    Args:
        run: the settings, resolved.
        order: all batches.
        done: how many of them are on record.
        crew: the threads of all roles together.

    Attributes:
        stopped: why the run ended before its last batch; None: it did not.
    """

    def __init__(self, run: Run, order: Sequence[Batch], done: int, crew: Crew) -> None:
        self.stopped: str | None = None
        self._run, self._maker, self._order, self._next, self._crew = run, Maker(run), order, done, crew
        self._under_way: deque[_Step] = deque()
        self._in_doubt: list[_Step] = []  # of these, those begun beside the look that was asked for last
        self._early = crew.num_threads > 1 and self._maker.unlimited

    def next(self, state: State) -> Record | None:
        """The record that follows `state`; None: the run is over.

        Raises:
            RunError, MetricError: there is no sense in going on.
        """
        self._decide(state)
        left = sum(len(batch.examples) for batch in self._order[max(0, state.step) :])
        if self._maker.due(state, left):
            return self._look(state)
        if state.step < 0:
            return Record(0)
        self._begin(state)
        if self._under_way:
            made = self._under_way.popleft().made.result()
            assert made is not None, "what is not needed is not under way"  # noqa: S101
            return made[0]
        self._run.roller.check_proven()
        return self._maker.last_look(state, self._crew)

    def _look(self, state: State) -> Record:
        """Look at the valset; what need not wait for that is begun before."""
        flawless: Future[bool] = Future()
        if_perfect, anyway = pace.a_look_may_end(state, self._run.ace.patience)

        def seen(trajectory: Trajectory) -> None:
            if trajectory.feedback.score < self._run.ace.perfect_score:
                resolve(flawless, False)
                self._go_on(not anyway)

        try:
            if self._early and not self._maker.validator.lends(state):
                self._begin(state, flawless)
                if self._in_doubt and not (if_perfect or anyway):
                    self._crew.restrain(_FEW)  # the other threads are for the step that begins now
                    self._go_on(True)
            record = self._maker.look(state, self._crew.of_rank(WHENEVER), seen)
        except BaseException as error:
            self._crew.stop(error)
            for left in (flawless, *(step.needed for step in self._in_doubt)):
                resolve(left, False)
            raise
        resolve(flawless, record.validation is not None and record.validation.perfect(self._run.ace.perfect_score))
        return record

    def _go_on(self, certain: bool) -> None:
        for step in self._in_doubt if certain else ():
            resolve(step.needed, True)

    def _decide(self, state: State) -> None:
        """Now that the look is on record: the steps that were begun beside it go on, or the run has ended."""
        for step in self._in_doubt:
            self.stopped = self.stopped or self._maker.over(state, step.batch)
            resolve(step.needed, self.stopped is None)
        if self.stopped is not None:
            self._under_way = deque(step for step in self._under_way if step not in self._in_doubt)
        self._in_doubt = []

    def _begin(self, state: State, flawless: Future[bool] | None = None) -> None:
        """Begin steps until one has to wait.

        Args:
            state: after the last record; `flawless`: and before a look that will tell whether that playbook is.
        """
        overlap = self._run.ace.overlap
        while self.stopped is None and self._next < len(self._order) and len(self._under_way) <= overlap:
            batch = self._order[self._next]
            behind = overlap > 0 and self._next > 0 and not self._order[self._next - 1].ends_epoch
            if self._under_way and not (behind and self._early):
                return
            known = state.before if behind and not self._under_way and state.before is not None else state
            reason = self._maker.over(known, batch)
            if reason is not None:
                self.stopped = None if self._under_way or flawless is not None else reason
                return
            self._next += 1
            step = _Step(batch, there(True) if flawless is None else Future())
            if flawless is not None:
                self._in_doubt.append(step)
            self._start(step, known, state, flawless)

    def _start(self, step: _Step, known: State, state: State, flawless: Future[bool] | None) -> None:
        latest = self._under_way[-1].playbook if self._under_way else there(state.playbook)
        unknown = flawless if known.step < 0 and self._run.ace.metric is not None else None
        perfect = unknown or there(self._maker.flawless(known))
        crew = self._crew.of_rank(step.batch.step)

        def make() -> tuple[Record, Playbook] | None:
            return self._maker.step(known, step.batch, latest, perfect, crew) if step.needed.result() else None

        def hand_on(made: Future[tuple[Record, Playbook] | None]) -> None:
            if (error := made.exception()) is not None:
                step.playbook.set_exception(error)
            elif (result := made.result()) is not None:
                step.playbook.set_result(result[1])

        self._under_way.append(step)
        step.made = self._crew.begin(make)
        step.made.add_done_callback(hand_on)
