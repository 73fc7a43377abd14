"""Learning beside a program that is in use: one step at a time, and nothing that was told is lost."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import dspy
from dspy.utils.exceptions import LMError, LMInvalidRequestError

from ..errors import RunError
from ..lm import Guard, LimitReachedError, Usage, since
from ..playbook import Playbook
from ..program import Crew, Trajectory, there
from ..training import Batch, Maker, Record, Run, State, Step, record_of
from .inbox import Inbox, Told

logger = logging.getLogger("dspy.ace")

KEPT = 1000  # the latest records
TRIES = 3  # of a trajectory whose reflection the provider fails while it answers others


class Learner:
    """Takes batches, learns from them, keeps what was learned. A step that fails loses nothing that was told.

    Args:
        run: the settings, roles and meters.
        inbox: where tells wait and the playbook stands.
        batch_size: trajectories a step learns from at most.
        serve: called with each new version and its playbook.
    """

    def __init__(self, run: Run, inbox: Inbox, batch_size: int, serve: Callable[[int, Playbook], None]) -> None:
        self.run, self.inbox, self.batch_size, self._serve = run, inbox, batch_size, serve
        self._maker = Maker(run)
        self.records: deque[Record] = deque([Record(0)], maxlen=KEPT)
        self.steps = 0
        self.stopped: str | None = None  # why nothing is learned any more
        self.spent = False  # whether it is for a budget
        self.one_at_a_time = threading.RLock()
        self._seen = 0  # trajectories learned from
        self._booked: dict[str, Usage] = {}
        self._rolled = 0
        self._tries: Counter[str] = Counter()
        self._reflect = _Watched(run.reflector, "reflector", keeps=True)
        self._curate = _Watched(run.curator, "curator")
        self._doubt()

    def from_inbox(self, least: int = 1) -> Step | None:
        """Learn from what waits, a batch at most; None: fewer than `least` wait, or learning has stopped.

        Raises:
            RunError: nobody answers; nothing was changed and the batch waits again. What else ends a step (a refiner
            that raises, the store) passes through, and the batch waits again as well.
        """
        with self.one_at_a_time:
            if self.stopped is not None or self.inbox.waiting(least) < least:
                return None
            told, again = _apart(self.inbox.take(self.batch_size))
            self.inbox.put_back(again)
            if not told:
                return None
            try:
                made = self._made_of(told)
            except BaseException as error:
                self.inbox.put_back(told)
                if not isinstance(error, LimitReachedError):
                    raise
                self._stop(str(error))
                return None
            if made is None:  # what still stands of the batch waits again
                return self.from_inbox()
            return self._keep(*made)

    def from_rollouts(self, trajectories: Sequence[Trajectory], positions: tuple[int, ...]) -> Step | None:
        """Learn from a batch that was rolled out for it; None: learning has stopped.

        Raises:
            RunError: a role never worked. What else ends a step passes through.
        """
        with self.one_at_a_time:
            if self.stopped is not None:
                return None
            try:
                made = self._made_of([Told(trajectory, True) for trajectory in trajectories], positions)
            except LimitReachedError as error:
                self._stop(str(error))
                return None
            return None if made is None else self._keep(*made)

    def _stop(self, reason: str) -> None:
        self.stopped, self.spent = reason, True
        logger.warning("ACE: %s: nothing more is learned. The program goes on with what it knows.", reason)

    def _made_of(self, told: Sequence[Told], positions: tuple[int, ...] | None = None) -> tuple[Step, Record] | None:
        """Learn, and put what was learned into the playbook; None: it was refused. A failure changes nothing.

        Args:
            told: the batch.
            positions: of a stream's examples; None: the batch was told, and may wait for a provider that is out.
        """
        base, playbook = self.inbox.snapshot()
        step = self._lesson(playbook, told)
        again: list[Told] = []
        if positions is None:
            self._check_answered(step)
            reflected = {r.trajectory.source for r in step.reflections if r.trajectory is not None}
            again = [one for one in told if one.trajectory.source not in reflected and self._may_try_again(one)]
            told = [one for one in told if all(one is not other for other in again)]
        left = self.inbox.learned(base, step.delta, told)
        if left is None:
            logger.warning("ACE: something was forgotten while a step was made; it is made again.")
            self.inbox.put_back(again)
            return None
        self.inbox.put_back(again)
        self._reflect.kept.clear()
        at = tuple(range(self._seen, self._seen + len(told))) if positions is None else positions
        record = record_of(Batch(self.steps + 1, 1, at, False), [one.trajectory for one in told], step)
        rejected = tuple(each.to_json() for each in left)
        return step, replace(record, rejected=(*record.rejected, *rejected))

    def _lesson(self, playbook: Playbook, told: Sequence[Told]) -> Step:
        run = self.run
        self._reflect.forget()
        self._curate.forget()
        state = State(playbook, run.seed, self.steps, records=tuple(self.records))
        names = [one.trajectory.source for one in told]
        unscored = {one.trajectory.source for one in told if not one.scored}
        try:
            with run.spending(), dspy.context(trace=[]), Crew(run.num_threads) as crew:
                perfect, books = there(self._maker.flawless(state)), run.books
                lesson = self._maker.lesson(state, names, there(playbook), perfect, crew, books, unscored=unscored)
                return lesson.learned([one.trajectory for one in told])
        except RunError:
            self._doubt()
            raise

    def _check_answered(self, step: Step) -> None:
        """Raise RunError if the provider of a role is out: that is no reason to give up what was told."""
        for role in (self._reflect, self._curate):
            if role.failed and not role.answered:
                self._doubt()
                reasons = [item.reason for item in step.rejected if item.operation is None]
                raise RunError(f"The provider failed every call of the {role.name}: {reasons[-1] if reasons else ''}")

    def _may_try_again(self, told: Told) -> bool:
        """Whether the provider failed the reflection on it, and not for the third time."""
        source = told.trajectory.source
        if source in self._reflect.lost:
            self._tries[source] += 1
            if self._tries[source] < TRIES:
                return True
        self._tries.pop(source, None)
        return False

    def _doubt(self) -> None:
        """The roles have to show again that they work: one call at a time, three at most."""
        self.run.reflect = Guard(self._reflect, "reflector")
        self.run.curate = Guard(self._curate, "curator")

    def _keep(self, step: Step, record: Record) -> Step:
        """The step is on record and its playbook in use; the user is told."""
        run = self.run
        totals = run.books.meter.totals()
        record = replace(
            record,
            rollouts=run.books.rollouts - self._rolled,
            failures={**run.books.failures, **record.failures},
            usage=since(totals, self._booked),
        )
        run.books.failures, self._booked, self._rolled = {}, totals, run.books.rollouts
        self.steps = record.step
        self._seen += len(record.scores)
        self.records.append(record)
        version, playbook = self.inbox.snapshot()
        self._serve(version, playbook)
        mean = sum(record.scores) / len(record.scores)
        logger.info(
            "ACE step %d: batch %.2f, %d bullets, %d left out", record.step, mean, len(playbook), len(record.rejected)
        )
        if run.ace.on_step is not None:
            run.ace.on_step(record, playbook)
        return step


def _apart(told: Sequence[Told]) -> tuple[list[Told], list[Told]]:
    """The first of each source, and the others: in a step a source is one example."""
    first = {one.trajectory.source: one for one in reversed(told)}
    return [one for one in told if first[one.trajectory.source] is one], [
        one for one in told if first[one.trajectory.source] is not one
    ]


class _Watched:
    """A role that knows how it fared in this step, and what it said in steps that were not made.

    Args:
        role: the callable; `name`: of it.
        keeps: whether what it says of a first attempt is kept until a step is made: it is paid for once.
    """

    def __init__(self, role: Any, name: str, *, keeps: bool = False) -> None:
        self.name, self.kept = name, dict[int, tuple[Any, Any]]()
        self._role, self._keeps = role, keeps
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """A new step begins."""
        self.answered = self.failed = 0
        self.lost: set[str] = set()

    def __call__(self, playbook: Playbook, subject: Any) -> Any:
        known, result = self.kept.get(id(subject), (None, None))
        if known is not subject:
            try:
                result = self._role(playbook, subject)
            except Exception as error:
                if _is_outage(error):
                    with self._lock:
                        self.failed += 1
                        self.lost.add(getattr(subject, "source", ""))
                raise
        with self._lock:
            self.answered += 1
            if self._keeps and getattr(subject, "attempt", None) is None:
                self.kept[id(subject)] = (subject, result)
        return result


def _is_outage(error: BaseException | None) -> bool:
    """Whether the provider failed, and not over this very request: a prompt too long will be too long again."""
    while error is not None and not isinstance(error, LMError):
        error = error.__cause__
    return error is not None and not isinstance(error, LMInvalidRequestError)
