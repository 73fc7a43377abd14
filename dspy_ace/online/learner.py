"""Learning beside a program that is in use: one step at a time, and nothing that was told is lost."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import dspy
from dspy.utils.exceptions import LMError, LMInvalidRequestError

from ..errors import RunError, StoreError
from ..playbook import Playbook
from ..program import ThreadPool
from ..training import Attempt, Engine, Record, State, Step, learn_from, record_of, reflect_on_batch
from .inbox import Inbox, Told

logger = logging.getLogger("dspy.ace")

KEPT = 1000  # the latest records
TRIES = 3  # of a trajectory whose reflection the provider fails while it answers others
LONGEST_WAIT = 600.0  # seconds between two attempts while a provider is out


class Learner:
    """Takes batches, learns from them, keeps what was learned. A step that fails loses nothing that was told.

    Args:
        engine: the roles, usage and limits.
        seed: the playbook at the start.
        inbox: where tells wait and the playbook stands.
        serve: called with each new version and its playbook.

    Attributes:
        records: of the latest 1,000 steps.
        stopped: why nothing is learned any more; None: it is.
        spent: True if that is a limit.
    """

    def __init__(self, engine: Engine, seed: Playbook, inbox: Inbox, serve: Callable[[int, Playbook], None]) -> None:
        self.engine, self.inbox, self._seed, self._serve = engine, inbox, seed, serve
        self.records: deque[Record] = deque(maxlen=KEPT)
        self.steps = 0
        self.stopped: str | None = None
        self.spent = False
        self._one_at_a_time = threading.RLock()
        self._seen = 0  # trajectories learned from
        self._tries: Counter[str] = Counter()
        self._in_doubt = False  # a provider failed: the roles have to show again that they work
        self._reflector = engine.reflector = _Watched(engine.reflector, keeps=True)
        self._curator = engine.curator = _Watched(engine.curator)

    @property
    def batch_size(self) -> int:
        """How many trajectories a step learns from at most."""
        return self.engine.settings.batch_size

    def state(self) -> State:
        """Return the playbook as it stands, and what is known of earlier steps."""
        _, playbook = self.inbox.snapshot()
        return State(playbook, self._seed, () if self._in_doubt else tuple(self.records))

    def from_inbox(self, least: int = 1) -> Step | None:
        """Learn from what waits, a batch at most; None: fewer than `least` wait, or learning has stopped.

        Raises:
            RunError: nobody answers; nothing was changed and the batch waits again. Anything else that ends a step (a
                refiner that raises, the store) passes through, and the batch waits again as well.
        """
        with self._one_at_a_time:
            if self.stopped is not None or self.inbox.waiting(least) < least:
                return None
            told, again = _one_a_source(self.inbox.take(self.batch_size))
            self.inbox.put_back(again)
            if not told:
                return None
            try:
                made = self._learn(told)
            except BaseException:
                self.inbox.put_back(told)
                raise
            return self.from_inbox() if made is None else self._keep(*made)

    def from_attempts(self, attempts: Sequence[Attempt], positions: Sequence[int]) -> Step | None:
        """Learn from a batch that was rolled out for it; None: learning has stopped.

        Raises:
            RunError: a role never worked. Anything else that ends a step passes through.
        """
        with self._one_at_a_time:
            if self.stopped is not None:
                return None
            before = self.engine.meter.totals()
            base, _ = self.inbox.snapshot()
            rounds = self.engine.settings.max_reflection_rounds
            step = self._step([(attempt, rounds) for attempt in attempts])
            self.inbox.learned(base, step.delta, [])
            return self._keep(step, record_of(step, self.steps + 1, 1, positions, before, self.engine))

    def _learn(self, told: Sequence[Told]) -> tuple[Step, Record] | None:
        """Reflect on told trajectories and learn from them; None: it was in vain. A failure changes nothing."""
        engine, before = self.engine, self.engine.meter.totals()
        base, _ = self.inbox.snapshot()
        rounds = engine.settings.max_reflection_rounds
        # no metric has scored some of them: a retry would show nothing
        step = self._step([(Attempt(one.trajectory), rounds if one.scored else 0) for one in told])
        self._check_answered(step)
        again = [one for one in told if self._waits_again(one, step)]
        done = [one for one in told if not any(one is other for other in again)]
        left_out = self.inbox.learned(base, step.delta, done)
        self.inbox.put_back(again)
        if left_out is None:
            logger.warning("ACE: something was forgotten while a step was made; it is made again.")
            return None
        kept = tuple(a for a in step.attempts if any(a.trajectory is one.trajectory for one in done))
        step = replace(step, attempts=kept, rejected=(*step.rejected, *left_out))
        positions = range(self._seen, self._seen + len(done))
        return step, record_of(step, self.steps + 1, 1, positions, before, engine)

    def _step(self, batch: Sequence[tuple[Attempt, int]]) -> Step:
        """Reflect on the failures of a batch, each with so many retries, and learn from the whole."""
        engine, state = self.engine, self.state()
        self._reflector.begin()
        self._curator.begin()
        try:
            with engine.scope(), dspy.context(trace=[]), ThreadPool(engine.num_threads) as pool:
                return learn_from(engine, state, reflect_on_batch(engine, state, batch, pool))
        except RunError:
            self._in_doubt = True
            raise

    def _check_answered(self, step: Step) -> None:
        """Raise RunError if the provider of a role is out: that is no reason to give up what was told."""
        for name, role in (("Reflector", self._reflector), ("Curator", self._curator)):
            if role.failed and not role.answered:
                self._in_doubt = True
                errors = [attempt.error for attempt in step.attempts if attempt.error] or [step.curation or ""]
                raise RunError(f"The provider failed every call of the {name}: {errors[-1]}")
        self._in_doubt = False

    def _waits_again(self, told: Told, step: Step) -> bool:
        """Return True if a limit or the provider was in the way of a reflection, the provider at most twice."""
        source = told.trajectory.source
        asked = any(attempt.asked for attempt in step.attempts if attempt.trajectory is told.trajectory)
        if self.engine.limits.reached and not asked and told.trajectory.teaches and not told.trajectory.success:
            return True
        reflected = any(attempt.reflection for attempt in step.attempts if attempt.trajectory is told.trajectory)
        if source in self._reflector.lost and not reflected:
            self._tries[source] += 1
            if self._tries[source] < TRIES:
                return True
        self._tries.pop(source, None)
        return False

    def _keep(self, step: Step, record: Record) -> Step:
        """Keep the record, put the playbook into use, tell the user."""
        self._reflector.kept.clear()
        self.steps = record.step
        self._seen += len(record.scores)
        self.records.append(record)
        version, playbook = self.inbox.snapshot()
        self._serve(version, playbook)
        mean = sum(record.scores) / len(record.scores) if record.scores else 0.0
        logger.info(
            "ACE step %d: batch score %.2f, playbook %d bullets, %d operations rejected",
            record.step,
            mean,
            len(playbook),
            len(record.rejected),
        )
        if self.engine.limits.reached is not None:
            self.stopped, self.spent = self.engine.limits.reached, True
            logger.warning("ACE: %s: nothing more is learned. The program goes on with what it knows.", self.stopped)
        if self.engine.settings.on_step is not None:
            self.engine.settings.on_step(record, playbook)
        return step


def _one_a_source(told: Sequence[Told]) -> tuple[list[Told], list[Told]]:
    """Return the first of each source, and the others: in a step a source is one example."""
    first: dict[str, Told] = {}
    for one in told:
        first.setdefault(one.trajectory.source, one)
    return list(first.values()), [one for one in told if first[one.trajectory.source] is not one]


class _Watched:
    """A role that counts how its calls ended in this step, and keeps what it said in steps that were not made.

    Args:
        role: the callable.
        keeps: whether its answer on a first attempt is kept until a step is made: it is paid for once.
    """

    def __init__(self, role: Any, *, keeps: bool = False) -> None:
        self.kept: dict[int, tuple[Any, Any]] = {}
        self._role, self._keeps = role, keeps
        self._lock = threading.Lock()
        self.begin()

    def begin(self) -> None:
        """Count anew: a step begins."""
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
    """Return True if the provider failed, and not over this very request: a prompt too long stays too long."""
    while error is not None and not isinstance(error, LMError):
        error = error.__cause__
    return error is not None and not isinstance(error, LMInvalidRequestError)


class Background:
    """A daemon thread that learns when a batch is full, and takes up what other processes have learned.

    It is started when it is first needed, and anew in a forked child. It works under the DSPy settings that were in
    force where it was made.

    Args:
        learner: what it drives.
        refresh: takes up what others have learned.
        poll: seconds between two calls of it; None: there are no others.
        learns: whether it learns itself.
    """

    def __init__(
        self, learner: Learner, refresh: Callable[[], None], poll: float | None, *, learns: bool = True
    ) -> None:
        self._learner, self._refresh, self._poll, self._learns = learner, refresh, poll, learns
        self._context = copy_context()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Say that there is something new."""
        self._wake.set()
        self.ensure()

    def ensure(self) -> None:
        """Start the thread if it does not run."""
        with self._starting:
            if (self._thread is None or not self._thread.is_alive()) and not self._ending.is_set():
                self._thread = threading.Thread(
                    target=self._context.copy().run, args=(self._work,), name="dspy_ace_online", daemon=True
                )
                self._thread.start()

    def keep_on(self) -> None:
        """Start the thread again if it ran and does not: a fork leaves threads behind."""
        if self._thread is not None and not self._thread.is_alive():
            self.ensure()

    def end(self) -> None:
        """Let the step under way end, and stop."""
        self._ending.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        failures = 0
        while not self._ending.is_set():
            self._wake.wait(self._poll)
            self._wake.clear()
            try:
                self._refresh()
                while self._learns and not self._ending.is_set():
                    if self._learner.from_inbox(self._learner.batch_size) is None:
                        break
                    failures = 0
            except (RunError, StoreError) as error:
                pause = min(LONGEST_WAIT, 2.0**failures)
                failures += 1
                logger.warning("ACE: no step could be made; the next attempt comes in %g s. %s", pause, error)
                self._ending.wait(pause)
                self._wake.set()
            except Exception as error:
                self._learner.stopped = f"a step failed: {type(error).__name__}: {error}"
                logger.exception("ACE: a step failed: nothing more is learned; what was told waits for learn().")
