"""OnlineACE: a program predicts, is told how good the predictions were, and learns (ACE §4, online adaptation)."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from contextvars import copy_context
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Literal

import dspy
from annotated_types import Ge

from ..errors import MetricError, RunError, SettingsError, StoreError, brief, checked
from ..lm import Spent
from ..output import redacting
from ..playbook import Playbook
from ..program import Metric, ThreadPool, carried_playbook, own_instructions, with_playbook
from ..roles import Curate, Refine, Reflect
from ..similarity import Vectors
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
from .calls import Calls, Serving, logged, told
from .inbox import Inbox, Memory, Shared, Told
from .learner import Background, Learner
from .rows import Columns, read_rows

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
    playbook as it stands. A prediction remembers its call; the last 1,000 calls are found by `prediction.dspy_ace_id`.
    The process may fork at any moment: a child begins with the playbook as it stands, and with what was spent.

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

        self._settings, self._student, self._context = settings, program, copy_context()
        self._inbox: Inbox = Memory(seed) if store is None else Shared(store, own_instructions(program))
        self._calls = Calls(settings)
        self._unsure: set[str] = set()  # calls whose tell failed: a store may hold them all the same
        self._learns, self._poll = learn, None if store is None else poll_seconds
        self._closed = self._ended = False
        redaction = ExitStack()
        redaction.enter_context(redacting(redact))
        self._redaction = weakref.finalize(self, redaction.close)  # until `close`, in calls and threads alike
        self._start(*self._inbox.snapshot())
        # a store keeps what was told; what is in memory and not learned from is warned of when it is lost
        self._farewell = weakref.finalize(self, _warn_of_left, self._inbox) if store is None else None
        if store is not None:
            store.watch(self.refresh)  # what is forgotten leaves the prompts of this process at once
        if learn == "background":  # imports what comparisons need: calls would wait for it, and a fork could break it
            Vectors().embed([""])
        if self._background is not None:
            self._background.ensure()
        _alive.add(self)

    def _start(self, version: int, playbook: Playbook) -> None:
        """Make what holds locks and threads: at first, and again in a forked child."""
        self._engine = Engine(self._settings, self._student)
        self._swapping, self._telling = threading.Lock(), threading.Lock()
        self._serving = Serving(self._engine, version, playbook, self._calls)
        self._learner = Learner(self._engine, self._inbox, playbook, self._serve)
        self._background: Background | None = None
        if self._learns != "manual":
            learns = self._learns == "background"
            self._background = Background(self._learner, self.refresh, self._poll, learns=learns)

    def _forked(self) -> None:
        """Begin anew in a forked child: the threads that could free the locks, and end the step, are the parent's.

        What was told before and not learned from is left to the parent. What was spent before counts here as well.
        """
        limits = self._engine.limits
        self._inbox.forked()
        self._start(self.version, self.playbook)
        self._engine.limits.resume(Spent(limits.rollouts, limits.calls, limits.dollars, limits.seconds))
        if self._closed and self._background is not None:
            self._background.end()

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
        prediction: Any = None,
        feedback: Any = None,
        *,
        inputs: Mapping[str, Any] | dspy.Example | None = None,
        outputs: Mapping[str, Any] | dspy.Example | None = None,
        expected: Mapping[str, Any] | dspy.Example | None = None,
        source: str | None = None,
    ) -> str:
        """Say how good a prediction was; it will be learned from. With a store it is on disk when this returns.

        Args:
            prediction: what a call of this object returned, or the error that it raised; or its id,
                `prediction.dspy_ace_id`, a text that survives JSON and pickle. The last 1,000 calls of this process are
                found by their id alone; with any other give `inputs` and `outputs`.
            feedback: a bool (right or wrong), a number (`perfect_score` is right), words, or
                `dspy.Prediction(score=…, feedback=…)`. Without a score the metric scores the prediction, if it is
                omitted or `expected` is given. Without a metric the prediction is right if it holds what is expected,
                words alone are a failure, and with nothing at all it is right unless it is an error.
            inputs, outputs: of a call that is not remembered here, by field, as it was logged. It is never tried again.
            expected: the right outputs, by field.
            source: who or what it comes from, such as a user's id. The bullets learned from it carry the name, and
                can be forgotten by it. None: `tell-` and a number.

        Returns:
            The name of the source.

        Raises:
            SettingsError: no such call, told twice or after `close`, or no feedback.
            MetricError: the metric cannot score it. It can be told again after this and any other error.

        Example:
            >>> online.tell(prediction, "The amount is in thousands.", source="user-17")  # doctest: +SKIP
            >>> online.tell(prediction.dspy_ace_id, True)  # doctest: +SKIP
            >>> online.tell(inputs={"question": "…"}, outputs={"answer": "7"}, feedback=False)  # doctest: +SKIP
        """
        return self._put(self._told(prediction, feedback, inputs, outputs, expected), source)

    def tell_rows(
        self,
        rows: Any,
        *,
        inputs: Columns,
        outputs: Columns,
        feedback: Columns | None = None,
        expected: Columns | None = None,
        key: str | None = None,
        source: str | None = None,
    ) -> list[str | None]:
        """Tell calls that were logged, as `tell(inputs=…, outputs=…)` does. No program is run and no LM is called.

        All rows are checked before the first is told. `learn`, or the background, learns from them: one reflection a
        row at most, and one curation a batch.

        Args:
            rows: mappings, such as a list of dicts, `csv.DictReader(…)` or a dataset; a pandas or polars frame; or the
                path of a file with a JSON object a line, or with a JSON array of objects.
            inputs, outputs, expected: the columns with the fields of the program: the name of one, a list of names, or
                a mapping from fields to columns. A column that holds an object, named alone, gives all its entries.
                A name leads into objects, lists and JSON texts by dots: "request.kwargs.question", "scores.0.value".
            feedback: the column with a bool, a number or words; or `{"score": column, "feedback": column}`.
            key: the column with a name for each row, such as its trace's id. A row that was told before is left out.
            source: the column with the source, see `tell`.

        Returns:
            The name of the source of each row; None for a row that was left out: it was told before, or it has no
            output, or neither feedback nor expected outputs.

        Raises:
            SettingsError: a row is no mapping, or lacks a column; a file cannot be read; as for `tell`. None was told.
            MetricError: the metric cannot score a row. None was told.

        Example:
            >>> online.tell_rows("log.jsonl", inputs="question", outputs="answer", feedback="comment")  # doctest: +SKIP
        """
        columns = {"inputs": inputs, "outputs": outputs, "feedback": feedback, "expected": expected}
        found: list[tuple[Told, str | None] | None] = []
        keys: set[str] = set()
        for number, row in enumerate(read_rows(rows, **columns, key=key, source=source)):
            if row.empty or (row.key is not None and (row.key in keys or self._inbox.told(row.key))):
                found.append(None)
                continue
            keys.update([row.key] if row.key else [])
            try:
                told = self._told(row.key, row.feedback, row.inputs, row.outputs, row.expected)
            except (SettingsError, MetricError) as error:
                raise type(error)(f"Row {number}: {error}") from error
            found.append((told, row.source))
        names = [None if each is None else self._put(*each) for each in found]
        if left := names.count(None):
            logger.warning(
                "ACE: %d of %d rows were left out: told before, or without feedback or outputs.", left, len(names)
            )
        return names

    def _told(self, call: Any, feedback: Any, inputs: Any, outputs: Any, expected: Any) -> Told:
        """Return what is to be put into the inbox, see `tell`."""
        if self._closed:
            raise SettingsError("This OnlineACE is closed and learns no more; tell it before close().")
        name, answered = self._calls.find(call)
        if answered is None:
            if name is not None:
                self._check_new(name)
            if outputs is None and isinstance(call, dspy.Prediction):
                outputs = call
            if inputs is None or outputs is None:
                raise SettingsError(_UNKNOWN_ID.format(name) if name else _UNKNOWN.format(brief(call)))
            answered = logged(self._serving.rollouts, self._settings, name, inputs, outputs)
        return told(self._engine, answered, feedback, expected)

    def _check_new(self, name: str) -> None:
        if name not in self._unsure and self._inbox.told(name):
            raise SettingsError("This call was told before; each is learned from once.")

    def _put(self, told: Told, source: str | None) -> str:
        if source is not None and (not isinstance(source, str) or not source):
            raise SettingsError(f"source is a name (str), or None; got {brief(source)}.")
        with self._telling:  # of two threads that tell one call the second is refused
            self._check_new(told.key)
            self._unsure.add(told.key)
            name = self._inbox.put(told, source)
            self._unsure.discard(told.key)
        self._calls.forget(told.key)
        if self._background is not None:
            self._background.wake()
        return name

    def learn(self) -> Step | None:
        """Learn now from what was told, a batch at most.

        Returns:
            None: nothing waits for this process (others may be learning from the rest), or a limit is
            reached (`stopped`).

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

        def roll_out(one: tuple[int, str, dspy.Example]) -> Attempt:
            position, name, example = one
            first = engine.roll_out(rollouts, example, name)
            return Attempt(first, failures=failures_of(Rollout(str(position)), first), rollouts=1)

        pool = ThreadPool(engine.num_threads)
        attempts = roll_out_in_waves(roll_out, list(zip(positions, names, examples, strict=True)), pool, records)
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
        with suppress(StoreError):  # it may be closed; what it holds is given to others ten minutes later
            self._inbox.close()
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
        return Results.of(state, stopped=stopped, usage=engine.usage(), rollouts=rollouts)

    def _serve(self, version: int, playbook: Playbook) -> None:
        """Put a newer playbook into use: calls that begin from now on meet it, and no call waits for it."""
        with self._swapping:
            if version > self._serving.version:
                self._serving = Serving(self._engine, version, playbook, self._calls)

    def _keep_thread(self) -> None:
        """Start the background thread where it does not run: a forked process has no other threads."""
        if self._background is not None:
            self._background.ensure()


_alive: weakref.WeakSet[OnlineACE] = weakref.WeakSet()


def _after_fork() -> None:
    for online in list(_alive):
        online._context.copy().run(online._forked)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)

_UNKNOWN_ID = (
    "No call {0!r} is remembered here: another object or process made it, or 1,000 calls came after it. Pass what was "
    "logged of it: tell({0!r}, feedback, inputs={{…}}, outputs={{…}})."
)
_UNKNOWN = (
    "tell takes a prediction this object made, an error that a call of it raised, the id of one "
    "(prediction.dspy_ace_id), or inputs={{…}} and outputs={{…}} of a call that was logged; got {0}."
)


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
