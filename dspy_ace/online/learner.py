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
from ..program import ThreadPool, words_of
from ..training import Attempt, Engine, Record, State, Step, learn_from, record_of, reflect_on_batch
from .inbox import Inbox, Told

logger = logging.getLogger("dspy.ace")

KEPT = 1000  # the latest records
TRIES = 3  # of a trajectory whose reflection fails at the provider, while the provider answers others
LONGEST_WAIT = 600.0  # seconds between two attempts while a provider is out


class Learner:
    """Takes batches from the inbox and learns from them. A step that fails loses nothing that was told.

    Args:
        engine: the roles, usage and limits.
        inbox: the told trajectories and the playbook.
        seed: the playbook that it begins with.
        serve: called with each new version and its playbook.

    Attributes:
        records: of the latest 1,000 steps.
        stopped: the reason why nothing is learned any more; None: learning goes on.
    """

    def __init__(self, engine: Engine, inbox: Inbox, seed: Playbook, serve: Callable[[int, Playbook], None]) -> None:
        self.engine, self.inbox, self._seed, self._serve = engine, inbox, seed, serve
        self.records: deque[Record] = deque(maxlen=KEPT)
        self.stopped: str | None = None
        self._one_at_a_time = threading.RLock()  # on_step may call learn() or close()
        self._steps = self._seen = 0  # steps made, trajectories learned from
        self._tries: Counter[str] = Counter()
        self._in_doubt = False  # the last step failed: the roles have to show again that they work
        self._reflector = engine.reflector = _Watched(engine.reflector, keeps=True)
        self._curator = engine.curator = _Watched(engine.curator)

    def from_inbox(self, least: int = 1) -> Step | None:
        """Learn from a batch of the inbox at most. Return None if fewer than `least` wait, or learning has stopped.

        Raises:
            RunError: the provider answers no call of a role. This and any other error (a refiner that raises, the
                store) changes nothing, and the batch waits.
        """
        with self._one_at_a_time:
            while self.stopped is None and self.inbox.left(least) >= least:
                taken = self.inbox.take(self.engine.settings.batch_size)
                told: dict[str, Told] = {}  # in a step a source is one example
                for one in taken:
                    told.setdefault(one.trajectory.source, one)
                if not told:
                    break
                if (made := self._learn(list(told.values()))) is not None:
                    return self._keep(*made)
            return None

    def from_attempts(self, attempts: Sequence[Attempt], positions: Sequence[int]) -> Step | None:
        """Learn from a batch that was rolled out for it. Return None if learning has stopped.

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
            return self._keep(step, record_of(step, self._steps + 1, 1, positions, before, self.engine))

    def _learn(self, told: Sequence[Told]) -> tuple[Step, Record] | None:
        """Learn from told trajectories. Return None if a source was forgotten meanwhile: nothing was learned."""
        engine, before = self.engine, self.engine.meter.totals()
        base, _ = self.inbox.snapshot()
        rounds = engine.settings.max_reflection_rounds
        # no metric can score some of them: a retry would show nothing
        step = self._step([(Attempt(one.trajectory), rounds if one.scored else 0) for one in told])
        self._check_answered(step)
        done = [one for one in told if not self._waits_again(one, step)]
        left_out = self.inbox.learned(base, step.delta, done)
        if left_out is None:
            logger.warning("ACE: a source was forgotten while a step was made from it; the step is made again.")
            return None
        kept = tuple(a for a in step.reflected.attempts if any(a.trajectory is one.trajectory for one in done))
        step = replace(step, reflected=step.reflected._replace(attempts=kept), rejected=(*step.rejected, *left_out))
        positions = range(self._seen, self._seen + len(done))
        return step, record_of(step, self._steps + 1, 1, positions, before, engine)

    def _step(self, batch: Sequence[tuple[Attempt, int]]) -> Step:
        """Reflect on a batch, each failure with so many retries, and learn from the whole."""
        engine, (_, playbook) = self.engine, self.inbox.snapshot()
        state = State(playbook, self._seed, () if self._in_doubt else tuple(self.records))
        self._reflector.outcomes, self._curator.outcomes = [], []
        self._in_doubt = True
        with engine.scope(), dspy.context(trace=[]):
            step = learn_from(engine, state, reflect_on_batch(engine, state, batch, ThreadPool(engine.num_threads)))
        self._in_doubt = False
        return step

    def _check_answered(self, step: Step) -> None:
        """Raise RunError if the provider of a role is out: then what was told has to wait."""
        for name, role in (("Reflector", self._reflector), ("Curator", self._curator)):
            if role.outcomes and all(is_outage for _, is_outage in role.outcomes):
                self._in_doubt = True
                errors = [error for error in step.reflected.errors if error] or [step.curation or ""]
                raise RunError(f"The provider failed every call of the {name}: {errors[-1]}")

    def _waits_again(self, told: Told, step: Step) -> bool:
        """Return True if a limit or the provider prevented a reflection, the provider at most twice."""
        trajectory = told.trajectory
        attempt = next((one for one in step.reflected.attempts if one.trajectory is trajectory), Attempt())
        if self.engine.limits.reached and not attempt.asked and trajectory.teaches and not trajectory.success:
            return True
        if (trajectory.source, True) in self._reflector.outcomes and attempt.reflection is None:
            self._tries[trajectory.source] += 1
            if self._tries[trajectory.source] < TRIES:
                return True
        self._tries.pop(trajectory.source, None)
        return False

    def _keep(self, step: Step, record: Record) -> Step:
        """Keep the record, put the playbook into use, and call `on_step`."""
        self._reflector.kept.clear()
        self._steps = record.step
        self._seen += len(record.scores)
        self.records.append(record)
        version, playbook = self.inbox.snapshot()
        self._serve(version, playbook)
        logger.info(
            "ACE step %d: batch score %.2f, playbook %d bullets, %d operations rejected",
            record.step,
            sum(record.scores) / len(record.scores) if record.scores else 0.0,
            len(playbook),
            len(record.rejected),
        )
        if self.engine.limits.reached is not None:
            self.stopped = self.engine.limits.reached
            logger.warning("ACE: %s: nothing more is learned. The program goes on with its playbook.", self.stopped)
        if self.engine.settings.on_step is not None:
            self.engine.settings.on_step(record, playbook)
        return step


class _Watched:
    """A role that notes how its calls ended. It keeps answers on first attempts until a step is made from them.

    Args:
        role: the callable.
        keeps: True if answers are kept: the same call costs nothing when a failed step is made again.

    Attributes:
        outcomes: of this step's calls: a source, and True if the provider failed, False if it answered.
    """

    def __init__(self, role: Any, *, keeps: bool = False) -> None:
        self._role, self._keeps = role, keeps
        self.kept: dict[tuple[int, ...], tuple[Any, Any]] = {}
        self.outcomes: list[tuple[str, bool]] = []
        if callable(getattr(role, "on_successes", None)):
            self.on_successes = self._on_successes

    def __call__(self, playbook: Playbook, subject: Any) -> Any:
        sources = [getattr(subject, "source", "")]
        keeps = self._keeps and getattr(subject, "attempt", None) is None
        return self._watched((id(subject.example),) if keeps else (), keeps, sources, self._role, playbook, subject)

    def _on_successes(self, playbook: Playbook, subjects: Sequence[Any]) -> Any:
        key, sources = tuple(id(subject.example) for subject in subjects), [subject.source for subject in subjects]
        return self._watched(key, self._keeps, sources, self._role.on_successes, playbook, subjects)

    def _watched(self, key: tuple[int, ...], keeps: bool, sources: list[str], role: Any, *given: Any) -> Any:
        (playbook, *_), result = self.kept.get(key, ((None,), None))
        if playbook != given[0]:  # what was forgotten since may speak in an answer that was made with it
            try:
                result = role(*given)
            except Exception as error:  # a role may raise anything; only an outage is noted
                if _is_outage(error):
                    self.outcomes += [(source, True) for source in sources]
                raise
            if keeps:
                self.kept[key] = (given, result)  # with what it is about: no other object may have its id
        self.outcomes += [(source, False) for source in sources]
        return result


def _is_outage(error: BaseException | None) -> bool:
    """Return True if the provider failed, and not over this very request: a prompt too long stays too long."""
    while error is not None and not isinstance(error, LMError):
        error = error.__cause__
    return error is not None and not isinstance(error, LMInvalidRequestError)


class Background:
    """A daemon thread that learns when a batch is full, and takes up what other processes have learned.

    It works under the DSPy settings that were in force where it was made.

    Args:
        learner: learns from the inbox.
        refresh: takes up what other processes have learned.
        poll: seconds between two calls of `refresh`; None: there are no other processes.
        learns: False if only others learn.
    """

    def __init__(self, learner: Learner, refresh: Callable[[], None], poll: float | None, *, learns: bool) -> None:
        self._learner, self._refresh, self._poll, self._learns = learner, refresh, poll, learns
        self._context = copy_context()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._starting = threading.Lock()
        self._thread = threading.Thread()  # one that never runs

    def wake(self) -> None:
        """Say that there is something new."""
        self._wake.set()
        self.ensure()

    def ensure(self) -> None:
        """Start the thread if it does not run."""
        if self._thread.is_alive() or self._ending.is_set():
            return
        with self._starting:
            if not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._context.copy().run, args=(self._work,), name="dspy_ace_online", daemon=True
                )
                self._thread.start()

    def end(self) -> None:
        """Let the step under way end, and stop."""
        self._ending.set()
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        failures = 0
        while not self._ending.is_set():
            self._wake.wait(self._poll)
            self._wake.clear()
            try:
                self._refresh()
                while self._learns and not self._ending.is_set():
                    if self._learner.from_inbox(self._learner.engine.settings.batch_size) is None:
                        break
                    failures = 0
            except (RunError, StoreError) as error:
                pause = min(LONGEST_WAIT, 2.0**failures)
                failures += 1
                logger.warning("ACE: no step could be made; the next attempt comes in %g s. %s", pause, error)
                self._ending.wait(pause)
                self._wake.set()
            except Exception as error:  # else the thread would die without a word
                self._learner.stopped = f"a step failed: {words_of(error)}"
                logger.exception("ACE: a step failed: nothing more is learned; what was told waits for learn().")
