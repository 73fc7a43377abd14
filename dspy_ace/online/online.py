"""ACE while a program is in use: predict, be told, learn (ACE §4, online adaptation).

with OnlineACE(program, reflection_lm=dspy.LM("openai/gpt-5")) as online:
    prediction = online(question="…")                       # the program with the playbook as it stands
    online.tell(prediction, "The amount is in thousands.")   # learned from in the background
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import dspy

from ..ace import ACE
from ..errors import MetricError, RunError, SettingsError, brief
from ..lm import one_by_one
from ..playbook import Playbook
from ..program import Crew, Metric, own_instructions, with_playbook
from ..roles import Curate, GrowAndRefine, Refine, Reflect
from ..store import PlaybookStore
from ..training import Results, Run, Step, checks, judge
from .background import Background
from .curve import Curve
from .inbox import Inbox, Memory, Shared
from .learner import Learner
from .serving import Serving, made_by
from .telling import Teller

logger = logging.getLogger("dspy.ace")

_OF_A_COMPILE = (
    "auto", "epochs", "max_metric_calls", "validate", "validate_every", "patience", "overlap", "seed", "log_dir",
    "progress", "setup",
)  # fmt: skip


class OnlineACE:
    """A program that goes on learning. Call it as you call the program: it is a callable, not a module.

    A call takes no lock and learns nothing; it runs the program with the playbook as it stands, and what it returns
    remembers how it came about until it is let go. Calls may come from any thread or task.

    Args:
        program: any program with predictors; it is not changed. A compiled one goes on from its playbook.
        metric: as for `ACE`; None: `tell` brings the feedback, or a call that ends without an error is a success.
        playbook: what to start from; None: the program's own, or an empty one. Not with a `store`.
        store: a `PlaybookStore` that other processes may use as well: what is told is on disk before `tell` returns,
            and any of them learns from it. It stays open when this is closed. None: all is in memory.
        reflection_lm, curator_lm, reflect, curate, refine: as for `ACE`.
        batch_size: trajectories that one step learns from; 1 is the paper's setting.
        learn: "background": on a thread, as soon as a batch was told; "manual": when `learn` is called; "elsewhere":
            by another process on the same `store`: here the playbook is only kept up to date.
        poll_seconds: with a store, seconds between two looks for what others have learned.
        **settings: as for `ACE`: labels, curation_group, max_reflection_rounds, reflect_on, max_playbook_tokens,
            max_prompt_tokens, dedup_threshold, embedder, num_threads, rollout_timeout, failure_score,
            perfect_score, on_step. `max_lm_calls`, `max_cost` and `max_seconds` bound the learning (roles and
            retries): when they are spent the program goes on with what it knows. Calls of it are never refused.
            A retry runs the program again on what was told: max_reflection_rounds=0 if its tools act on the world.

    Attributes:
        stopped: why nothing is learned any more; None: it is.

    Raises:
        SettingsError, PlaybookError: a mistake in the arguments.
    """

    def __init__(
        self,
        program: dspy.Module,
        metric: Metric | None = None,
        *,
        playbook: Playbook | None = None,
        store: PlaybookStore | None = None,
        reflection_lm: Any = None,
        curator_lm: Any = None,
        reflect: Reflect | None = None,
        curate: Curate | None = None,
        refine: Refine | None = None,
        batch_size: int = 8,
        learn: Literal["background", "manual", "elsewhere"] = "background",
        poll_seconds: float = 2.0,
        **settings: Any,
    ) -> None:
        _check(program, playbook, store, learn, poll_seconds, settings)
        ace = ACE(
            metric,
            playbook=playbook,
            reflection_lm=reflection_lm,
            curator_lm=curator_lm,
            reflect=reflect,
            curate=curate,
            refine=refine,
            epochs=1,
            batch_size=batch_size,
            **settings,
        )
        ace.check_settings(program)
        self._run = Run(ace, program, [], [])
        self._batch_size, self._closed, self._ended = batch_size, False, False
        self._me = object()  # what predictions know this by: they keep nothing else of it alive
        self._teller = Teller(
            self._run.scorer, self._run.books.meter, ace.labels, perfect=ace.perfect_score, failure=ace.failure_score
        )
        self._inbox: Inbox = Memory(self._run.seed)
        if store is not None:
            _check_seed(store, self._run.seed)
            self._inbox = Shared(store, own_instructions(program))
        self._learner = Learner(self._run, self._inbox, batch_size, self._serve)
        self._swapping, self._serving = threading.Lock(), self._instructed(*self._inbox.snapshot())
        self._background = Background(
            self._learner, self.refresh, None if store is None else poll_seconds, learns=learn == "background"
        )
        if store is not None:
            store.watch(self.refresh)  # what is forgotten leaves the prompts of this process at once
        self._in_background = learn == "background"
        self._keeps = store is not None  # what is told and not learned
        self._farewell = None if self._keeps else weakref.finalize(self, _say_left, self._inbox)
        if self._in_background and isinstance(self._run.refine, GrowAndRefine):
            self._run.refine(self.playbook)  # its first look at many bullets is long: not beside calls that wait
        if learn != "manual" and store is not None:
            self._background.ensure()

    def __call__(self, **inputs: Any) -> Any:
        """What the program returns; what it raises passes through, and can be told like a prediction.

        Raises:
            TimeoutError: it took longer than `rollout_timeout`.
        """
        self._background.keep_on()
        return self._serving.call(inputs)

    async def acall(self, **inputs: Any) -> Any:
        """As a call, awaited."""
        self._background.keep_on()
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
                unless it is an error. Words alone are taken for a failure unless metric and `expected` say otherwise.
            expected: the right outputs, by field.
            source: who or what it comes from, such as a user's id: the bullets it teaches carry the name, and it can
                be forgotten by it. None: `tell-` and a number.

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
        made = made_by(self._me, prediction)
        told = self._teller.told(made, prediction, feedback, expected)
        if not made.claim():
            raise SettingsError("This prediction was told before; each is learned from once.")
        try:
            name = self._inbox.put(told, source)
        except BaseException:  # whatever it is: nothing was told, so it may be told again
            made.told = False
            raise
        if self._in_background:
            self._background.wake()
        return name

    def learn(self) -> Step | None:
        """Learn now from what was told, a batch at most, however few there are; None: there is nothing, or no budget.

        Raises:
            RunError: the LM, or a role, does not work; what was told waits for the next call.
        """
        self.refresh()
        if self._learner.stopped is not None and not self._learner.spent:
            self._learner.stopped = None  # a step failed: this is another attempt
        return self._learner.from_inbox()

    def run(self, stream: Iterable[dspy.Example], *, sources: Sequence[str] | None = None) -> Curve:
        """The paper's protocol: each example is predicted first and then learned from, in order, in batches.

        Examples of a batch meet the same playbook. With the same roles, settings and order it reaches the playbook of
        `ACE(metric, epochs=1, batch_size=…).compile`.

        Args:
            stream: examples with inputs set, and labels if the metric reads them.
            sources: the examples' names; None: their positions in `stream`, as text.

        Raises:
            SettingsError: an example that is none; nothing was called.
            RunError, MetricError: LM, role or metric cannot work; `error.program` is the program so far.
        """
        examples = checks.check_examples(stream, "stream")
        names = [str(position) for position in range(len(examples))] if sources is None else list(sources)
        if len(names) != len(examples) or len(set(names)) < len(names):
            raise SettingsError(f"sources holds a name of its own for each of {len(examples)} examples; got {names}.")
        if not self._run.labels:
            examples = [example.inputs() for example in examples]
        self.refresh()
        scores: list[float] = []
        playbooks: list[Playbook] = []
        try:
            for start in range(0, len(examples), self._batch_size):
                at = range(start, min(start + self._batch_size, len(examples)))
                batch = [examples[i] for i in at]
                with dspy.context(lm=one_by_one(dspy.settings.lm)), Crew(self._run.num_threads) as crew:
                    program, of = self._serving.program, [names[i] for i in at]
                    rolled = self._run.roller.roll(program, batch, of, crew, self._run.books)
                self._learner.from_rollouts(rolled, tuple(at))
                scores += [trajectory.feedback.score for trajectory in rolled]
                playbooks.append(self.playbook)
            self._run.roller.check_proven()
        except (RunError, MetricError) as error:
            error.program = self.program
            raise
        return Curve(tuple(scores), tuple(playbooks), self._batch_size)

    def refresh(self) -> None:
        """Take up what others have learned and put into the store."""
        self._serve(*self._inbox.snapshot())

    def close(self, learn: bool | None = None) -> None:
        """End the learning. The program can still be called; nothing can be told.

        Args:
            learn: whether what was told is learned from first. None: yes, unless a store keeps it for others.

        Raises:
            RunError: it could not be learned from; call `close` again, or `close(learn=False)`, which says
                what is lost.
        """
        if self._ended:
            return
        self._closed = True
        self._background.end()
        if learn or (learn is None and not self._keeps):
            while self.learn() is not None:
                pass
        self._ended = True
        if self._farewell is not None:
            self._farewell()

    def __enter__(self) -> OnlineACE:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(learn=None if kind is None else False)

    def __repr__(self) -> str:
        return f"OnlineACE({type(self._run.student).__name__}, {len(self.playbook)} bullets, version {self.version})"

    @property
    def playbook(self) -> Playbook:
        """The playbook as it stands."""
        return self._serving.playbook

    @property
    def version(self) -> int:
        """The number of its version: of the store, or of steps made here."""
        return self._serving.version

    @property
    def program(self) -> dspy.Module:
        """A plain program of the student's class with the playbook as it stands, to keep or to save."""
        return with_playbook(self._run.student, self.playbook)

    @property
    def pending(self) -> int:
        """How many told predictions were not learned from yet; with a store, by anybody."""
        return self._inbox.left()

    @property
    def stopped(self) -> str | None:
        """Why nothing is learned any more; None: it is."""
        return self._learner.stopped

    @property
    def results(self) -> Results:
        """The account so far: usage by role, rollouts (calls and retries), the records of the last 1,000 steps."""
        records = tuple(self._learner.records)
        return Results(
            seed_score=None,
            best_score=None,
            validated_on=0,
            best_step=next((record.step for record in reversed(records) if record.learned), 0),
            verdict=judge(records, self._run.scale),
            stopped=self.stopped or ("closed" if self._closed else "it goes on"),
            usage=self._run.books.meter.totals(),
            rollouts=self._run.books.meter.scopes("task"),
            records=records,
            playbook=self.playbook,
        )

    def _serve(self, version: int, playbook: Playbook) -> None:
        """Put a playbook into use: calls that begin from now on meet it, and no call waits for it."""
        with self._swapping:
            if version > self._serving.version:
                self._serving = self._instructed(version, playbook)

    def _instructed(self, version: int, playbook: Playbook) -> Serving:
        return Serving(
            self._run.student,
            playbook,
            version,
            self._me,
            self._run.books.meter,
            timeout=self._run.ace.rollout_timeout,
            keeps_steps=self._run.scorer._arity == 5,
        )


def _check(program: Any, playbook: Any, store: Any, learn: Any, poll_seconds: Any, settings: Mapping[str, Any]) -> None:
    checks.check_program(program)
    checks.check_choice("learn", learn, ("background", "manual", "elsewhere"))
    if learn == "elsewhere" and store is None:
        raise SettingsError("learn='elsewhere' needs a store that the other process learns from: give store=….")
    checks.check_number("poll_seconds", poll_seconds, 0.01, whole=False)
    if store is not None:
        if not isinstance(store, PlaybookStore):
            raise SettingsError(
                f"store is an open PlaybookStore, as in PlaybookStore('memory.db'); got {brief(store)}."
            )
        checks.check_alone("store", playbook=playbook)
    if wrong := [name for name in settings if name in _OF_A_COMPILE]:
        raise SettingsError(f"{wrong[0]} is a setting of ACE.compile; learning online has no epochs and no valset.")


def _check_seed(store: PlaybookStore, carried: Playbook) -> None:
    version, playbook = store.snapshot()
    if version == 0 and not len(playbook) and len(carried):
        raise SettingsError(
            f"The store is new and empty, and the program brings a playbook of {len(carried)} bullets; make the store "
            "with it: PlaybookStore(…, seed=program.playbook)."
        )


def _say_left(inbox: Inbox) -> None:
    """Warn of what was told and ends with the process, or with the object."""
    if left := inbox.left():
        logger.warning("ACE: %d told predictions were not learned from, and are gone. close() learns from them.", left)
