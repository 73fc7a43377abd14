"""OnlineACE: a program predicts, is told how good the predictions were, and learns (ACE §4, online adaptation)."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Literal

import dspy
from annotated_types import Ge

from ..errors import MetricError, RunError, SettingsError, brief, checked
from ..output import redacting
from ..playbook import Playbook
from ..program import Metric, ThreadPool, carried_playbook, own_instructions, with_playbook
from ..roles import Curate, GrowAndRefine, Refine, Reflect
from ..store import PlaybookStore
from ..training import (
    Attempt,
    Engine,
    LearningSettings,
    Record,
    ReflectOn,
    Results,
    Rollout,
    State,
    Step,
    check_examples,
    check_program,
    check_roles,
    check_rollouts,
    failures_of,
    roll_out_in_waves,
)
from .calls import Serving, made_by, told
from .inbox import Inbox, Memory, Shared
from .learner import Background, Learner

logger = logging.getLogger("dspy.ace")


@dataclass(frozen=True)
class Curve:
    """Scores of a stream, each example predicted before it was learned from (ACE §4, online).

    Args:
        scores: one an example, in order.
        playbooks: the playbook after each step.
        batch_size: examples that a step learned from; the last step may have had fewer.
    """

    scores: tuple[float, ...]
    playbooks: tuple[Playbook, ...]
    batch_size: int = 1

    @property
    def mean(self) -> float:
        """The mean score over the whole stream: the figure that the paper reports."""
        return sum(self.scores) / len(self.scores)

    @property
    def running(self) -> tuple[float, ...]:
        """The mean score of the first n examples, for n from 1."""
        return tuple(total / count for count, total in enumerate(accumulate(self.scores), 1))

    def __str__(self) -> str:
        quarters = [self.scores[len(self.scores) * i // 4 : len(self.scores) * (i + 1) // 4] for i in range(4)]
        means = " ".join(f"{sum(part) / len(part):.3f}" for part in quarters if part)
        return (
            f"mean {self.mean:.3f} over {len(self.scores)} examples, each predicted before it was learned from; "
            f"by quarters: {means}; {len(self.playbooks[-1])} bullets after {len(self.playbooks)} steps"
        )


class OnlineACE:
    """A program that goes on learning. Call it as you call the program: it is a callable, not a module.

    Calls may come from any thread or task. A call does not wait for the learning: it runs the program with the
    playbook as it stands. The prediction remembers its call until the prediction is garbage-collected.

    Args:
        program: any program with predictors; it is not changed. A compiled one goes on from its playbook.
        metric: as for `ACE`; None: `tell` brings the feedback, or a call that ends without an error is a success.
        playbook: the one to start from; None: the program's own, or an empty one. Not with a `store`.
        store: a `PlaybookStore`, which other processes may use as well. What is told is on disk before `tell`
            returns, and any of the processes learns from it. It stays open after `close`. None: all is in memory.
        learn: "background": on a thread, as soon as a batch was told; "manual": when `learn` is called; "elsewhere":
            by another process on the same `store`: here the playbook is only kept up to date.
        poll_seconds: with a store, seconds between two looks for what other processes have learned.
        batch_size: trajectories that one step learns from; 1 is the paper's setting.
        labels, failure_score, perfect_score, reflection_lm, reflect, curate, refine, reflect_on, rollout_timeout,
            num_threads, max_playbook_tokens, prompt_bullets, redact: as for `ACE`. What is told is redacted when it is
            put into a store.
        max_reflection_rounds: as for `ACE`. A retry runs the program again: give 0 if its tools act on the world.
        max_lm_calls, max_cost, max_seconds: limits of the learning (roles and retries). When one is reached, the
            program goes on with its playbook; calls of it are never refused.
        on_step: called after each step with its `Record` and the playbook.

    Raises:
        SettingsError, PlaybookError: a mistake in the arguments.

    Example:
        >>> with OnlineACE(program, reflection_lm=dspy.LM("openai/gpt-5")) as online:  # doctest: +SKIP
        ...     prediction = online(question="…")
        ...     online.tell(prediction, "The amount is in thousands.")
    """

    def __init__(
        self,
        program: dspy.Module,
        *,
        metric: Metric | None = None,
        playbook: Playbook | None = None,
        store: PlaybookStore | None = None,
        learn: Literal["background", "manual", "elsewhere"] = "background",
        poll_seconds: float = 2.0,
        batch_size: int = 8,
        labels: bool | None = None,
        failure_score: float = 0.0,
        perfect_score: float = 1.0,
        reflection_lm: Any = None,
        reflect: Reflect | None = None,
        curate: Curate | None = None,
        refine: Refine | None = None,
        max_reflection_rounds: int = 1,
        reflect_on: ReflectOn = "all",
        max_lm_calls: int | None = None,
        max_cost: float | None = None,
        max_seconds: float | None = None,
        rollout_timeout: float | None = None,
        num_threads: int | None = None,
        max_playbook_tokens: int = 10_000,
        prompt_bullets: int | None = None,
        redact: Callable[[str], str] | None = None,
        on_step: Callable[[Record, Playbook], Any] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in LearningSettings.model_fields}
        check_program(program)
        settings = LearningSettings.of(**given)
        settings.check_lms(program)
        checked("learn", learn, Literal["background", "manual", "elsewhere"])
        checked("poll_seconds", poll_seconds, Annotated[float, Ge(0.01)])
        seed = carried_playbook(program) if playbook is None else playbook
        _check_store(store, playbook, learn, seed)

        self._engine = Engine(settings, program)
        self._inbox: Inbox = Memory(seed) if store is None else Shared(store, own_instructions(program))
        self._serving, self._swapping = Serving(self._engine, *self._inbox.snapshot()), threading.Lock()
        self._learner = Learner(self._engine, self._inbox, self._serve)
        self._background: Background | None = None
        self._closed = self._ended = False
        redaction = ExitStack()
        redaction.enter_context(redacting(redact))
        self._redaction = weakref.finalize(self, redaction.close)  # until `close`, in calls and threads alike
        # a store keeps what was told; what is in memory and not learned from is warned of when it is lost
        self._farewell = weakref.finalize(self, _warn_of_left, self._inbox) if store is None else None
        if store is not None:
            store.watch(self.refresh)  # what is forgotten leaves the prompts of this process at once
        if learn == "background" and isinstance(self._engine.refiner, GrowAndRefine):
            self._engine.refiner(self.playbook)  # its first comparison is long: not beside calls that wait
        if learn != "manual":
            poll = None if store is None else poll_seconds
            self._background = Background(self._learner, self.refresh, poll, learns=learn == "background")
            self._background.ensure()

    def __call__(self, **inputs: Any) -> Any:
        """Run the program. What it raises passes through, and can be told like a prediction.

        Raises:
            TimeoutError: it took longer than `rollout_timeout`.
        """
        self._keep_thread()
        return self._serving.call(inputs)

    async def acall(self, **inputs: Any) -> Any:
        """Run the program, awaited; see `__call__`."""
        self._keep_thread()
        return await self._serving.acall(inputs)

    def tell(
        self,
        prediction: Any,
        feedback: Any = None,
        *,
        expected: Mapping[str, Any] | dspy.Example | None = None,
        source: str | None = None,
    ) -> str:
        """Say how good a prediction was; it will be learned from. With a store it is on disk when this returns.

        Args:
            prediction: what a call of this object returned, the very object; or the error that it raised.
            feedback: a bool (right or wrong), a number (`perfect_score` is right), words, or
                `dspy.Prediction(score=…, feedback=…)`. None: the metric scores it; without a metric it is a success
                unless it is an error. Words alone are a failure, unless metric and `expected` say otherwise.
            expected: the right outputs, by field.
            source: who or what it comes from, such as a user's id. The bullets learned from it carry the name, and
                can be forgotten by it. None: `tell-` and a number.

        Returns:
            The name of the source.

        Raises:
            SettingsError: not a prediction of this object, told twice or after `close`, or no feedback.
            MetricError: the metric cannot score it. It can be told again after this and any other error.
        """
        if self._closed:
            raise SettingsError("This OnlineACE is closed and learns no more; tell it before close().")
        if source is not None and (not isinstance(source, str) or not source):
            raise SettingsError(f"source is a name (str), or None; got {source!r:.80}.")
        made = made_by(self._engine, prediction)
        record = told(self._engine, made, prediction, feedback, expected)
        if not made.told.acquire(blocking=False):
            raise SettingsError("This prediction was told before; each is learned from once.")
        with ExitStack() as on_failure:
            on_failure.callback(made.told.release)  # nothing was told then, so it may be told again
            name = self._inbox.put(record, source)
            on_failure.pop_all()
        if self._background is not None:
            self._background.wake()
        return name

    def learn(self) -> Step | None:
        """Learn now from what was told, a batch at most. Return None if nothing waits, or a limit is reached.

        Raises:
            RunError: the LM, or a role, does not work; what was told waits for the next call.
        """
        self.refresh()
        if self._engine.limits.reached is None:
            self._learner.stopped = None  # a step in the background failed: this is another attempt
        return self._learner.from_inbox()

    def run(self, stream: Iterable[dspy.Example], *, sources: Sequence[str] | None = None) -> Curve:
        """Predict each example of a stream, then learn from it, in order, in batches: the paper's protocol.

        Examples of a batch meet the same playbook. With the same roles, settings and order the result is the playbook
        of `ACE(metric, epochs=1, batch_size=…).compile`.

        Args:
            stream: examples with inputs set, and labels if the metric reads them.
            sources: the examples' names; None: their positions in `stream`, as text.

        Raises:
            SettingsError: the stream is empty or holds something else than examples; no LM was called.
            RunError, MetricError: LM, role or metric cannot work; `error.program` is the program so far.
        """
        examples = check_examples(stream, "stream")
        names = [str(position) for position in range(len(examples))] if sources is None else list(sources)
        if len(names) != len(examples) or len(set(names)) < len(names):
            raise SettingsError(f"sources holds a name of its own for each of {len(examples)} examples; got {names}.")
        settings = self._engine.settings
        if not settings.uses_labels:
            examples = [example.inputs() for example in examples]
        self.refresh()
        scores: list[float] = []
        playbooks: list[Playbook] = []
        try:
            for start in range(0, len(examples), settings.batch_size):
                at = range(start, min(start + settings.batch_size, len(examples)))
                scores += self._learn_from_stream([names[i] for i in at], [examples[i] for i in at], at)
                playbooks.append(self.playbook)
            records = list(self._learner.records)
            check_rollouts(records, [], at_end=True)
            check_roles(records, at_end=True)
        except (RunError, MetricError) as error:
            error.program = self.program
            raise
        return Curve(tuple(scores), tuple(playbooks), settings.batch_size)

    def _learn_from_stream(
        self, names: Sequence[str], examples: Sequence[dspy.Example], positions: range
    ) -> list[float]:
        """Roll a batch out, which no limit refuses, and learn from it. Return its scores."""
        engine, records, rollouts = self._engine, list(self._learner.records), self._serving.rollouts

        def roll_out(one: tuple[str, dspy.Example]) -> Attempt:
            first = engine.roll_out(rollouts, one[1], one[0])
            return Attempt(first, failures=failures_of(Rollout(first.source), first), rollouts=1)

        with ThreadPool(engine.num_threads) as pool:
            attempts = roll_out_in_waves(roll_out, list(zip(names, examples, strict=True)), pool, records)
        self._learner.from_attempts(attempts, positions)
        return [attempt.trajectory.feedback.score for attempt in attempts if attempt.trajectory is not None]

    def refresh(self) -> None:
        """Take up what other processes have learned and put into the store."""
        self._serve(*self._inbox.snapshot())

    def close(self, learn: bool | None = None) -> None:
        """End the learning. The program can still be called; nothing can be told.

        Args:
            learn: True: first learn from all that was told. None: the same, unless a store keeps it for others.

        Raises:
            RunError: the LM, or a role, does not work. Call `close` again later; or call `close(learn=False)`, which
                logs how many told predictions are lost.
        """
        if self._ended:
            return
        self._closed = True
        if self._background is not None:
            self._background.end()
        if learn or (learn is None and self._farewell is not None):
            while self.learn() is not None:
                pass
        self._ended = True
        self._redaction()
        if self._farewell is not None:
            self._farewell()

    def __enter__(self) -> OnlineACE:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(learn=None if kind is None else False)

    def __repr__(self) -> str:
        return f"OnlineACE({type(self._engine.student).__name__}, {len(self.playbook)} bullets, version {self.version})"

    @property
    def playbook(self) -> Playbook:
        """The playbook as it stands."""
        return self._serving.playbook

    @property
    def version(self) -> int:
        """The version of the playbook: the store's, or the number of steps made here."""
        return self._serving.version

    @property
    def program(self) -> dspy.Module:
        """A plain program of the student's class with the playbook as it stands, to keep or to save."""
        return with_playbook(self._engine.student, self.playbook)

    @property
    def pending(self) -> int:
        """The number of told predictions that were not learned from yet; with a store, by any process."""
        return self._inbox.left()

    @property
    def stopped(self) -> str | None:
        """The reason why nothing is learned any more; None: learning goes on."""
        return self._learner.stopped

    @property
    def results(self) -> Results:
        """The results so far: usage by role, rollouts (calls and retries), the records of the last 1,000 steps."""
        state = State(self.playbook, self.playbook, tuple(self._learner.records))
        stopped = self.stopped or ("closed" if self._closed else "it goes on")
        engine = self._engine
        rollouts = engine.meter.scopes("task")
        return Results.of(state, stopped=stopped, scale=engine.settings.scale, usage=engine.usage(), rollouts=rollouts)

    def _serve(self, version: int, playbook: Playbook) -> None:
        """Put a newer playbook into use: calls that begin from now on meet it, and no call waits for it."""
        with self._swapping:
            if version > self._serving.version:
                self._serving = Serving(self._engine, version, playbook)

    def _keep_thread(self) -> None:
        """Start the background thread again where it is lost: a forked process has no other threads."""
        if self._background is not None:
            self._background.ensure()


def _check_store(store: Any, playbook: Playbook | None, learn: str, seed: Playbook) -> None:
    """Raise SettingsError unless store, playbook and `learn` go together."""
    if store is None:
        if learn == "elsewhere":
            raise SettingsError("learn='elsewhere' needs a store that the other process learns from: give store=….")
        return
    if not isinstance(store, PlaybookStore):
        raise SettingsError(
            f"store must be an open PlaybookStore, as in PlaybookStore('memory.db'); got {brief(store)}."
        )
    if playbook is not None:
        raise SettingsError("Pass store= or playbook=, not both: a store holds its own playbook.")
    version, there = store.snapshot()
    if version == 0 and not len(there) and len(seed):
        raise SettingsError(
            f"The store is new and empty, and the program brings a playbook of {len(seed)} bullets; make the store "
            "with it: PlaybookStore(…, seed=program.playbook)."
        )


def _warn_of_left(inbox: Inbox) -> None:
    """Warn of told predictions that are lost with the process, or with the object."""
    if left := inbox.left():
        logger.warning("ACE: %d told predictions were not learned from, and are lost. close() learns from them.", left)
