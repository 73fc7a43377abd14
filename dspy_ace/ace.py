"""ACE as a DSPy optimizer: `ACE(metric).compile(program, trainset)`. The whole loop, read top-down."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from .errors import MetricError, RunError
from .lm import LimitReachedError, check_cost
from .playbook import Playbook
from .program import Crew, Metric, Scorer, Setup
from .roles import Curate, Refine, Reflect
from .training import Course, CtrlC, Record, ReflectOn, Run, Validate, checks, effort, refiner, schedule

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
        auto: instead of `epochs` and `max_reflection_rounds`: "light" (1 epoch, no retries, failures only, validated
            at the end), "medium" (2 epochs, 1 round) or "heavy" (5, 5: the paper's own setting).
        max_metric_calls: at most so many rollouts, validation and retries included.
        max_lm_calls: at most so many LM calls of all roles, retries of failed ones included.
        max_cost: at most so many dollars, as LiteLLM prices the models; a model without a price is an error.
        max_seconds: no LM call starts later than that.
        epochs: how often the trainset is gone through, each time in another order; None: 1.
        batch_size: examples that share one snapshot of the playbook; 1 is the paper's loop. None: 16, or 25 if
            `auto="light"`.
        curation_group: reflections curated in one call; groups of a batch run in parallel. None: 4, or 3 if
            `auto="light"`.
        max_reflection_rounds: reflections (each with a retry) a failure gets at most (ACE §3.2); 0: no retry; None: 1.
        reflect_on: "all", or "failures" only (a success then counts for the bullets it cites); None: "all" unless
            `auto="light"` and there is a metric.
        max_playbook_tokens: token budget of the playbook, kept by code.
        max_prompt_tokens: bound on what one reflector call is shown, in estimated tokens; the curator's is twice it.
        prompt_bullets: each call shows at most so many bullets, those that matter most for its inputs; None: the whole
            playbook, which is better as long as it fits, and cached.
        dedup_threshold: `threshold` of `GrowAndRefine`, with an embedder; None: its default.
        embedder: `list[str] -> (n, d) array` or a dspy.Embedder, for `GrowAndRefine` and `Curator`; None: by words.
        validate: "along": the valset is looked at with the seed, as learning goes on, and at the end; "end": once all
            is learned, seed and last playbook meet on one example of it after the other until it is clear which
            is better. None: "along" unless `auto="light"`.
        validate_every: steps between two looks at the valset; None: as many examples as the valset holds, as long as
            as many are to come. The last playbook is always validated.
        patience: end after so many validations without a better score; None: never for that reason.
        overlap: 1: a batch meets the playbook of one step ago and is rolled out while that step is still learned from;
            faster where replies are slow and batches small. 0: each batch meets the latest.
        num_threads: at most so many rollouts and role calls at once, together; None: DSPy's setting.
        setup: `setup(example)` opens the environment of one rollout, a context manager: entered in its thread before
            the program runs, left after the metric, whatever happened; tools find what it opened in a
            `contextvars.ContextVar` that it sets. None: the program needs none, or opens its own.
        rollout_timeout: seconds after which a rollout has failed; None: as long as it takes, once.
        seed: of the order of examples.
        failure_score: the score of a rollout that failed.
        perfect_score: the score of a success.
        log_dir: a folder that keeps the run, and continues it when it is given again; None: in memory.
        on_step: called after each step, and after each look at the valset, with its `Record` and the playbook; what it
            raises ends the run.
        progress: whether a bar shows how far the run is; None: on a terminal and in a notebook, not in a log.
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
        auto: str | None = None,
        max_metric_calls: int | None = None,
        max_lm_calls: int | None = None,
        max_cost: float | None = None,
        max_seconds: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        curation_group: int | None = None,
        max_reflection_rounds: int | None = None,
        reflect_on: ReflectOn | None = None,
        max_playbook_tokens: int = 10_000,
        max_prompt_tokens: int = 16_000,
        prompt_bullets: int | None = None,
        dedup_threshold: float | None = None,
        embedder: Callable[[list[str]], Any] | None = None,
        validate: Validate | None = None,
        validate_every: int | None = None,
        patience: int | None = None,
        overlap: int = 0,
        num_threads: int | None = None,
        setup: Setup | None = None,
        rollout_timeout: float | None = None,
        seed: int = 0,
        failure_score: float = 0.0,
        perfect_score: float = 1.0,
        log_dir: str | Path | None = None,
        on_step: Callable[[Record, Playbook], Any] | None = None,
        progress: bool | None = None,
    ) -> None:
        self.metric = metric
        self.reflection_lm = reflection_lm
        self.curator_lm = curator_lm
        self.reflect = reflect
        self.curate = curate
        self.refine = refine
        self.playbook = playbook
        self.labels = labels
        self.auto = auto
        self.max_metric_calls = max_metric_calls
        self.max_lm_calls = max_lm_calls
        self.max_cost = max_cost
        self.max_seconds = max_seconds
        self.epochs = epochs
        self.batch_size = batch_size
        self.curation_group = curation_group
        self.max_reflection_rounds = max_reflection_rounds
        self.reflect_on = reflect_on
        self.max_playbook_tokens = max_playbook_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.prompt_bullets = prompt_bullets
        self.dedup_threshold = dedup_threshold
        self.embedder = embedder
        self.validate = validate
        self.validate_every = validate_every
        self.patience = patience
        self.overlap = overlap
        self.num_threads = num_threads
        self.setup = setup
        self.rollout_timeout = rollout_timeout
        self.seed = seed
        self.failure_score = failure_score
        self.perfect_score = perfect_score
        self.log_dir = log_dir
        self.on_step = on_step
        self.progress = progress

    def compile(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        *,
        teacher: Any = None,  # noqa: ARG002 - BetterTogether and scripts hand it to every optimizer
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
            MetricError: the metric scores none of the first three rollouts, or none of the last eight in a row.
            RunError: the LM, or a role, cannot work; `error.program` is the best program so far.
            JournalError: `log_dir` cannot be used, or holds another run.
        """
        trainset, valset = self._check(student, trainset, valset)
        run = Run(self, student, trainset, valset)
        order = schedule(len(trainset), run.effort.epochs, run.effort.batch_size, self.seed)
        with CtrlC() as ctrl_c, run.journal() as journal, run.spending(), run.showing(journal, len(order)):
            state = run.resumed(journal, order)
            stopped = f"all {run.effort.epochs} epochs done" if run.effort.epochs > 1 else "the epoch is done"
            try:
                with Crew(run.num_threads) as crew:
                    course = Course(run, order, max(0, state.step), crew)
                    while (record := course.next(state)) is not None:
                        state = run.keep(journal, state, record)
                        if ctrl_c.count:  # and what it raised was taken for something else
                            raise KeyboardInterrupt
                    stopped = course.stopped or stopped
            except (RunError, MetricError) as error:
                error.program = run.finished(state, f"stopped by an error: {error}")  # what was learned is not lost
                raise
            except BaseException as error:
                if ctrl_c.count > 1:  # the second one did not wait for calls under way
                    raise KeyboardInterrupt from error
                if not (ctrl_c.count or isinstance(error, (KeyboardInterrupt, LimitReachedError))):
                    raise
                stopped = str(error) if isinstance(error, LimitReachedError) else "interrupted by the user"
                state = run.restored(journal)  # a step may just have been written
                logger.warning("ACE: %s; the best program so far is returned. A second Ctrl-C raises.", stopped)
        logger.info("ACE: %s; %d bullets", stopped, len(state.best))
        return run.finished(state, stopped)

    def get_params(self) -> dict[str, Any]:
        """The settings by name; a copy, since trackers add to what they are given (MLflow does)."""
        return dict(vars(self))

    def _check(self, student: Any, trainset: Any, valset: Any) -> tuple[list[dspy.Example], list[dspy.Example]]:
        """Find every user mistake before the first LM call."""
        checks.check_program(student)
        trainset = checks.check_examples(trainset, "trainset")
        valset = checks.check_examples([] if valset is None else valset, "valset", may_be_empty=True)
        self.check_settings(student)
        return trainset, valset

    def check_settings(self, student: dspy.Module) -> None:
        """Raise SettingsError for a setting that cannot be one, for this student or any."""
        checks.check_lms(student, reflection_lm=self.reflection_lm, curator_lm=self.curator_lm)
        checks.check_playbook(self.playbook)
        checks.check_number("max_playbook_tokens", self.max_playbook_tokens, 100)
        checks.check_number("max_prompt_tokens", self.max_prompt_tokens, 500)
        for name in (
            "batch_size",
            "curation_group",
            "prompt_bullets",
            "epochs",
            "validate_every",
            "patience",
            "num_threads",
            "max_metric_calls",
            "max_lm_calls",
        ):
            if getattr(self, name) is not None:
                checks.check_number(name, getattr(self, name), 1)
        for name in ("max_cost", "max_seconds", "rollout_timeout"):
            if getattr(self, name) is not None:
                checks.check_number(name, getattr(self, name), 0, whole=False)
        checks.check_number("overlap", self.overlap, 0, most=1)
        if self.max_reflection_rounds is not None:
            checks.check_number("max_reflection_rounds", self.max_reflection_rounds, 0)
        effort(self)
        if self.max_cost is not None:
            for lm in checks.lms_of(student, self.reflection_lm, self.curator_lm):
                check_cost(lm, self.max_cost)
        for name in ("failure_score", "perfect_score"):
            checks.check_number(name, getattr(self, name), float("-inf"), whole=False)
        for name in ("reflect", "curate", "refine", "embedder", "setup", "on_step"):
            checks.check_role(name, getattr(self, name))
        Scorer(self.metric)
        refiner(self)
