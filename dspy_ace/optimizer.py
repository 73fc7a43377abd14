"""ACE as a DSPy optimizer: `ACE(metric).compile(program, trainset)`. The whole loop, read top-down."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from . import checks
from .adapt import ReflectOn, Step, adapt
from .curator import Curator
from .delta import operation_to_json
from .errors import MetricError, RunError, SettingsError
from .fingerprint import describe_callable, describe_data, describe_program, fingerprint
from .history import Record, State, Validation
from .journal import Journal
from .metric import Metric, Scorer
from .playbook import Playbook
from .program import PLAYBOOK_HEADER, own_instructions, rollouts, with_playbook, with_reflection
from .refine import GrowAndRefine
from .reflector import Reflector
from .results import Results
from .roles import Curate, Refine, Reflect, Reflection
from .schedule import Batch, schedule
from .trajectory import Trajectory
from .usage import Meter

logger = logging.getLogger("dspy.ace")  # below `dspy`: INFO shows, and dspy.disable_logging() holds


class ACE(Teleprompter):  # type: ignore[misc]  # dspy is untyped
    """Agentic Context Engineering (arXiv 2510.04618): grow a playbook of bullets in a program's instructions.

    Args:
        metric: the metric you would give MIPROv2 or GEPA: 2, 3 or 5 arguments; bool, number or
            `dspy.Prediction(score=…, feedback=…)`. Feedback text helps the reflector a great deal. None:
            label-free, a rollout that ends without an error is a success.
        reflection_lm: the LM of the reflector; None: the program's own, or DSPy's. A strong one pays.
        curator_lm: the LM of the curator; None: `reflection_lm`.
        reflect, curate, refine: your own roles (see `dspy_ace.roles`); None: `Reflector`, `Curator`, `GrowAndRefine`.
        playbook: a playbook to start from; None: the student's own (`student.playbook`), or an empty one.
        labels: whether roles and metric may see the examples' expected outputs; None: yes if there is a metric.
        epochs: how often the trainset is gone through, each time in another order.
        batch_size: examples that share one snapshot of the playbook; 1 is the paper's loop.
        curation_group: reflections curated in one call; groups of a batch run in parallel.
        max_reflection_rounds: reflections (each with a retry) a failure gets at most (ACE §3.2); 0: no retry.
        reflect_on: "all", or "failures" only.
        max_playbook_tokens: token budget of the playbook, kept by code.
        max_prompt_tokens: bound on what one reflector call is shown, in estimated tokens; the curator's is twice it.
        dedup_threshold: cosine from which two bullets may be the same; None: the default of `GrowAndRefine`.
        embedder: `list[str] -> (n, d) array` or a dspy.Embedder for bullet vectors; None: lexical vectors.
        refine_mode: "proactive": refine at each step; "lazy": only past the token budget (ACE §3.3).
        validate_every: steps between two looks at the valset; None: at the end of each epoch.
        num_threads: at most so many rollouts or role calls at once; None: DSPy's setting.
        seed: of the order of examples.
        failure_score: the score of a rollout that failed.
        perfect_score: the score of a success.
        log_dir: a folder that keeps the run, and continues it when it is given again; None: in memory.
    """

    def __init__(
        self,
        metric: Metric | None = None,
        *,
        reflection_lm: Any = None,
        curator_lm: Any = None,
        reflect: Reflect | None = None,
        curate: Curate | None = None,
        refine: Refine | None = None,
        playbook: Playbook | None = None,
        labels: bool | None = None,
        epochs: int = 2,
        batch_size: int = 8,
        curation_group: int = 4,
        max_reflection_rounds: int = 1,
        reflect_on: ReflectOn = "all",
        max_playbook_tokens: int = 10_000,
        max_prompt_tokens: int = 16_000,
        dedup_threshold: float | None = None,
        embedder: Callable[[list[str]], Any] | None = None,
        refine_mode: str = "proactive",
        validate_every: int | None = None,
        num_threads: int | None = None,
        seed: int = 0,
        failure_score: float = 0.0,
        perfect_score: float = 1.0,
        log_dir: str | Path | None = None,
    ) -> None:
        self.metric = metric
        self.reflection_lm = reflection_lm
        self.curator_lm = curator_lm
        self.reflect = reflect
        self.curate = curate
        self.refine = refine
        self.playbook = playbook
        self.labels = labels
        self.epochs = epochs
        self.batch_size = batch_size
        self.curation_group = curation_group
        self.max_reflection_rounds = max_reflection_rounds
        self.reflect_on = reflect_on
        self.max_playbook_tokens = max_playbook_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.dedup_threshold = dedup_threshold
        self.embedder = embedder
        self.refine_mode = refine_mode
        self.validate_every = validate_every
        self.num_threads = num_threads
        self.seed = seed
        self.failure_score = failure_score
        self.perfect_score = perfect_score
        self.log_dir = log_dir

    def compile(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        *,
        teacher: Any = None,
        valset: Sequence[dspy.Example] | None = None,
    ) -> dspy.Module:
        """Make `student` better on `trainset`.

        Args:
            student: any program with predictors; it is not changed.
            trainset: examples with inputs set; each is rolled out before it is learned from.
            teacher: taken for DSPy's sake and not used; ACE learns from the student's own trajectories.
            valset: examples to choose the best playbook by; None or empty: the latest is returned.

        Returns:
            A program of the student's class with the best playbook in its instructions, `.playbook` and
            `.detailed_results` (`Results`).

        Raises:
            SettingsError, PlaybookError: a mistake in the arguments, found before the first LM call.
            MetricError, RunError: the first rollout shows that the metric or the LM cannot work.
            JournalError: `log_dir` cannot be used, or holds another run.
        """
        trainset, valset = self._check(student, trainset, valset)
        run = _Run(self, student, trainset, valset)
        order = schedule(len(trainset), self.epochs, self.batch_size, self.seed)
        journal = Journal.open(self.log_dir, run.fingerprint())
        state = journal.replay(State.of(run.seed))
        if state.step < 0:
            state = _keep(journal, state, Record(0, validation=run.validate(state.playbook)))
        stopped = f"all {self.epochs} epochs done"
        for batch in order[state.step :]:
            if _nothing_left(state, batch, self.perfect_score):
                stopped = "nothing left to learn: an epoch without a failure or a new lesson"
                break
            trajectories = run.rollouts(state.playbook, batch)
            step = run.adapt(state.playbook, trajectories)
            record = _record(batch, trajectories, step)
            if run.due(batch, state, record):
                record = replace(record, validation=run.validate(step.playbook))
            state = _keep(journal, state, record)
        logger.info("ACE: %s; %d bullets", stopped, len(state.best))
        return run.finished(state, stopped)

    def _check(
        self, student: Any, trainset: Any, valset: Any
    ) -> tuple[list[dspy.Example], list[dspy.Example]]:
        """Find every user mistake before the first LM call."""
        checks.check_program(student)
        trainset = checks.check_examples(trainset, "trainset")
        valset = checks.check_examples([] if valset is None else valset, "valset", may_be_empty=True)
        checks.check_lms(student, reflection_lm=self.reflection_lm, curator_lm=self.curator_lm)
        checks.check_playbook(self.playbook)
        for name in ("epochs", "batch_size", "curation_group"):
            checks.check_number(name, getattr(self, name), 1)
        checks.check_number("max_reflection_rounds", self.max_reflection_rounds, 0)
        checks.check_number("max_playbook_tokens", self.max_playbook_tokens, 100)
        checks.check_number("max_prompt_tokens", self.max_prompt_tokens, 500)
        for name in ("validate_every", "num_threads"):
            if getattr(self, name) is not None:
                checks.check_number(name, getattr(self, name), 1)
        for name in ("failure_score", "perfect_score"):
            checks.check_number(name, getattr(self, name), float("-inf"), whole=False)
        checks.check_choice("reflect_on", self.reflect_on, ("all", "failures"))
        for name in ("reflect", "curate", "refine", "embedder"):
            checks.check_role(name, getattr(self, name))
        Scorer(self.metric)
        _refiner(self)
        return trainset, valset


class _Run:
    """One compile: the settings resolved against a student, and the calls counted."""

    def __init__(
        self, ace: ACE, student: dspy.Module, trainset: list[dspy.Example], valset: list[dspy.Example]
    ) -> None:
        self.ace, self.student = ace, student
        self.labels = ace.metric is not None if ace.labels is None else ace.labels
        # without labels, nothing that holds one is handed on: not to a role, not to the metric
        self.trainset = trainset if self.labels else [example.inputs() for example in trainset]
        self.valset = valset if self.labels else [example.inputs() for example in valset]
        carried = getattr(student, "playbook", None)
        self.seed = ace.playbook or (carried if isinstance(carried, Playbook) else Playbook())
        self.scorer, self.refine = Scorer(ace.metric), _refiner(ace)
        lm = ace.reflection_lm or next((p.lm for _, p in student.named_predictors() if p.lm), None) or dspy.settings.lm
        self.reflector = ace.reflect or Reflector(
            lm, max_prompt_tokens=ace.max_prompt_tokens, perfect_score=ace.perfect_score
        )
        self.curator = ace.curate or Curator(
            ace.curator_lm or lm, max_tokens=ace.max_playbook_tokens, max_prompt_tokens=2 * ace.max_prompt_tokens
        )
        self.num_threads = ace.num_threads or dspy.settings.num_threads or 8
        self.meter = Meter()
        if any(PLAYBOOK_HEADER in own for own in own_instructions(student).values()):
            logger.warning(
                "ACE: the student's instructions already hold a playbook that came without its values (a program "
                "loaded from JSON?). It is kept as plain instructions; set student.playbook = Playbook.load(…) to go on with it."
            )

    def rollouts(self, playbook: Playbook, batch: Batch) -> list[Trajectory]:
        """Run the batch with `playbook` in view; the program cites the bullets it uses."""
        program = with_playbook(self.student, playbook, cite=True)
        examples = [self.trainset[position] for position in batch.examples]
        return self._roll(program, examples, [str(position) for position in batch.examples])

    def adapt(self, playbook: Playbook, trajectories: list[Trajectory]) -> Step:
        """Learn from the batch; role calls are booked where they belong."""

        def retry(first: Trajectory, reflection: Reflection) -> Trajectory:
            program = with_reflection(self.student, playbook, [insight.content for insight in reflection.insights])
            return self._roll(program, [first.example], [first.source])[0]

        return adapt(
            playbook,
            trajectories,
            _metered(self.reflector, self.meter, "reflector"),
            _metered(self.curator, self.meter, "curator"),
            self.refine,
            retry=retry,
            rounds=self.ace.max_reflection_rounds,
            reflect_on=self.ace.reflect_on,
            group_size=self.ace.curation_group,
            num_threads=self.num_threads,
        )

    def validate(self, playbook: Playbook) -> Validation | None:
        """Score `playbook` on the valset, as the program will run later: without asking for citations."""
        if not self.valset:
            return None
        trajectories = self._roll(with_playbook(self.student, playbook), self.valset, None)
        return Validation(tuple(trajectory.feedback.score for trajectory in trajectories))

    def due(self, batch: Batch, state: State, record: Record) -> bool:
        """Whether the playbook after this step is to be validated: on time, and only if it reads differently."""
        every = self.ace.validate_every
        on_time = batch.ends_epoch if every is None else batch.step % every == 0 or (batch.ends_epoch and batch.epoch == self.ace.epochs)
        return bool(self.valset) and on_time and (record.learned or state.unvalidated)

    def finished(self, state: State, stopped: str) -> dspy.Module:
        """The student with the best playbook, and the account of the run."""
        program = with_playbook(self.student, state.best)
        first = state.records[0].validation
        program.detailed_results = Results(
            seed_score=None if first is None else first.mean,
            best_score=state.best_score,
            best_step=state.best_step,
            stopped=stopped,
            usage=self.meter.totals(),
            rollouts=self.meter.scopes("task"),
            records=state.records,
            playbook=state.best,
        )
        return program

    def fingerprint(self) -> dict[str, str]:
        """What this run depends on, by part."""
        ace = self.ace
        scalars = (str, int, float, bool, type(None))
        settings = {n: v for n, v in vars(ace).items() if isinstance(v, scalars) and n not in ("num_threads", "log_dir")}
        roles = [describe_callable(role) for role in (ace.reflect, ace.curate, ace.refine, ace.embedder)]
        prompts = [role.predict.signature.instructions for role in (self.reflector, self.curator) if hasattr(role, "predict")]
        return fingerprint(
            program=describe_program(self.student),
            trainset=describe_data(self.trainset),
            valset=describe_data(self.valset),
            metric=describe_callable(ace.metric),
            settings=[settings, self.labels],
            roles=[roles, prompts],
            playbook=self.seed.to_json(),
        )

    def _roll(
        self, program: dspy.Module, examples: list[dspy.Example], sources: list[str] | None
    ) -> list[Trajectory]:
        names = sources or [str(position) for position in range(len(examples))]
        first = [] if self.meter.scopes("task") else self._rolled(program, examples[:1], names[:1])
        if first and first[0].error is not None:
            _refuse(first[0])
        return first + self._rolled(program, examples[len(first) :], names[len(first) :])

    def _rolled(self, program: dspy.Module, examples: list[dspy.Example], names: list[str]) -> list[Trajectory]:
        return rollouts(
            program,
            examples,
            self.scorer,
            sources=names,
            num_threads=self.num_threads,
            meter=self.meter,
            failure_score=self.ace.failure_score,
            perfect_score=self.ace.perfect_score,
        )


def _refuse(first: Trajectory) -> None:
    """The first rollout runs alone: a metric or a provider that cannot work is found before a batch is paid for."""
    failure = first.error
    if failure is not None and failure.kind == "metric":
        raise MetricError(f"The metric failed on the first example ({first.source}): {failure.message}")
    if failure is not None and failure.kind == "provider":
        raise RunError(f"The LM failed on the first example ({first.source}): {failure.message}")


def _refiner(ace: ACE) -> Refine:
    """The user's `refine`, or the default with the user's settings. Raises SettingsError for a bad one."""
    if ace.refine is not None:
        return ace.refine
    chosen = {} if ace.dedup_threshold is None else {"threshold": ace.dedup_threshold}
    return GrowAndRefine(max_tokens=ace.max_playbook_tokens, embedder=ace.embedder, mode=ace.refine_mode, **chosen)


def _metered(role: Any, meter: Meter, name: str) -> Any:
    def call(*arguments: Any) -> Any:
        with meter.spending(name):
            return role(*arguments)

    return call


def _keep(journal: Journal, state: State, record: Record) -> State:
    """Disk first, then memory."""
    journal.append(record)
    after = state.after(record)
    logger.info(
        "ACE step %d: batch %s, validation %s, %d bullets, %d rejected",
        record.step,
        f"{sum(record.scores) / len(record.scores):.2f}" if record.scores else "-",
        f"{record.validation.mean:.3f}" if record.validation else "-",
        len(after.playbook),
        len(record.rejected),
    )
    return after


def _record(batch: Batch, trajectories: list[Trajectory], step: Step) -> Record:
    return Record(
        step=batch.step,
        epoch=batch.epoch,
        batch=batch.examples,
        scores=tuple(t.feedback.score for t in trajectories),
        failures={t.source: {"kind": t.error.kind, "message": t.error.message} for t in trajectories if t.error},
        reflections=tuple(
            {"example": r.trajectory.source, "insights": len(r.insights), "verified": r.verified}
            for r in step.reflections
            if r.trajectory is not None
        ),
        delta=step.delta,
        rejected=tuple(
            {"operation": None if r.operation is None else operation_to_json(r.operation), "reason": r.reason}
            for r in step.rejected
        ),
    )


def _nothing_left(state: State, batch: Batch, perfect_score: float) -> bool:
    """Whether the epoch that ended before `batch` held no failure and brought no lesson."""
    last = state.records[-1]
    if last.epoch == 0 or last.epoch == batch.epoch:
        return False
    epoch = [record for record in state.records if record.epoch == last.epoch]
    return not any(r.learned or r.rejected or min(r.scores) < perfect_score for r in epoch)
