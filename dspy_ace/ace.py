"""ACE (Agentic Context Engineering, arXiv 2510.04618) as a DSPy optimizer: its arguments, and the loop."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from .errors import MetricError, RunError
from .lm import LimitReachedError
from .output import redacting
from .playbook import Playbook
from .program import Metric, Setup, ThreadPool
from .roles import Curate, Refine, Reflect
from .training import (
    Auto,
    CtrlC,
    Journal,
    Record,
    ReflectOn,
    Run,
    Settings,
    State,
    Validate,
    check_examples,
    check_program,
    check_roles,
    check_rollouts,
    choose,
    due,
    learn,
    reason_to_stop,
    validate,
)

logger = logging.getLogger("dspy.ace")  # a child of `dspy`: its INFO shows, dspy.disable_logging() silences it


class ACE(Teleprompter):  # type: ignore[misc]  # dspy is untyped
    """Agentic Context Engineering: grow a playbook of bullets in the instructions of a program's predictors.

    Every argument has a default.

    Args:
        metric: the metric you would give MIPROv2 or GEPA: 2, 3 or 5 arguments; it returns a bool, a number or
            `dspy.Prediction(score=…, feedback=…)`. Feedback in words helps the Reflector most. None: a rollout that
            ends without an error is a success, and no label is used.
        labels: whether roles and metric may see the expected outputs. Default: yes if there is a metric.
        setup: `setup(example)` returns a context manager, the environment of one rollout. It is entered in the
            rollout's thread before the program runs and left after the metric. It hands what it opened to tools
            through a `contextvars.ContextVar`.
        failure_score: the score of a rollout that failed.
        perfect_score: a score of at least this is a success.

        reflection_lm: the LM of Reflector and Curator. Default: the program's own. A stronger model is
            usually worth its price.
        reflect, curate, refine: the roles, as `Reflector(…)`, `Curator(…)`, `GrowAndRefine(…)` with arguments of
            their own, or any callable that keeps the contract in `dspy_ace.roles`.

        auto: a preset instead of `epochs` and `max_reflection_rounds`: "light" (1 epoch, no retries, batches of
            25), "medium" (2 epochs, 1 retry) or "heavy" (5 epochs, 5 retries: the paper's
            setting, ACE §4).
        epochs: how often the trainset is gone through. Default: 1.
        batch_size: examples that meet the same playbook and are curated in one call; 1 is the paper's loop.
            Default: 16.
        max_reflection_rounds: how often a failure is reflected on and then tried again (ACE §3.2); 0: reflected on
            once, not tried again. Default: 1.
        reflect_on: "all" rollouts: each failure alone, with its retries, and the successes of a batch in one call;
            or "failures" only. Default: "all".
        validate: "end": after learning, the starting playbook and the last one are scored on the same rows of the
            valset, until further ones cannot change the choice. "along": also each time as many more examples were
            learned from as the valset has rows; then it is the learned playbook with the best mean.

        max_metric_calls: limit of rollouts, validation and retries included.
        max_lm_calls: limit of LM calls, the program's, the metric's and the roles', in any thread, repeats of failed
            calls included. Calls past DSPy (litellm in a tool) and of other processes are not seen.
        max_cost: limit of dollars, as LiteLLM prices the models.
        max_seconds: no LM call starts later than this.
        rollout_timeout: seconds after which a rollout has failed.
        num_threads: rollouts and role calls at the same time. Default: DSPy's setting, or 8.

        playbook: the playbook to start from. Default: the student's own (`student.playbook`), or an empty one.
        max_playbook_tokens: size that the playbook keeps, in estimated tokens.
        prompt_bullets: show at most this many bullets per call, chosen for its inputs. Default: all; that is better
            while they fit, and the prompt stays in the provider's cache.

        seed: the random seed of the order of examples.
        log_dir: the folder that the run is saved in; give it again to continue the run.
        redact: `redact(text)` returns the text without what must not be learned, written or shown, such as names of
            customers. Keys of well-known shapes and the LMs' own keys and addresses are always taken out.
        executor: runs the rollouts in other processes or on other machines: any `concurrent.futures.Executor` whose
            workers can import dspy_ace, such as `Client(…).get_executor()` of Dask. API keys are taken from the
            workers' environment. Default: threads.
        on_step: called with the `Record` and the playbook after each step, each validation, and each time that
            failures were rolled out again; what it raises ends the run.
        progress: whether a bar is shown. Default: on a terminal and in a notebook.

    Example:
        >>> optimizer = ACE(metric, reflection_lm=dspy.LM("openai/gpt-5"))  # doctest: +SKIP
        >>> program = optimizer.compile(program, trainset, valset=valset)  # doctest: +SKIP
    """

    def __init__(
        self,
        metric: Metric | None = None,
        *,
        labels: bool | None = None,
        setup: Setup | None = None,
        failure_score: float = 0.0,
        perfect_score: float = 1.0,
        reflection_lm: Any = None,
        reflect: Reflect | None = None,
        curate: Curate | None = None,
        refine: Refine | None = None,
        auto: Auto | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        max_reflection_rounds: int | None = None,
        reflect_on: ReflectOn | None = None,
        validate: Validate = "end",
        max_metric_calls: int | None = None,
        max_lm_calls: int | None = None,
        max_cost: float | None = None,
        max_seconds: float | None = None,
        rollout_timeout: float | None = None,
        num_threads: int | None = None,
        playbook: Playbook | None = None,
        max_playbook_tokens: int = 10_000,
        prompt_bullets: int | None = None,
        seed: int = 0,
        log_dir: str | Path | None = None,
        executor: Executor | None = None,
        redact: Callable[[str], str] | None = None,
        on_step: Callable[[Record, Playbook], Any] | None = None,
        progress: bool | None = None,
    ) -> None:
        self.metric = metric
        self.labels = labels
        self.setup = setup
        self.failure_score = failure_score
        self.perfect_score = perfect_score
        self.reflection_lm = reflection_lm
        self.reflect = reflect
        self.curate = curate
        self.refine = refine
        self.auto = auto
        self.epochs = epochs
        self.batch_size = batch_size
        self.max_reflection_rounds = max_reflection_rounds
        self.reflect_on = reflect_on
        self.validate = validate
        self.max_metric_calls = max_metric_calls
        self.max_lm_calls = max_lm_calls
        self.max_cost = max_cost
        self.max_seconds = max_seconds
        self.rollout_timeout = rollout_timeout
        self.num_threads = num_threads
        self.playbook = playbook
        self.max_playbook_tokens = max_playbook_tokens
        self.prompt_bullets = prompt_bullets
        self.seed = seed
        # a tool may change the working directory before the run, or between two
        self.log_dir = Path(log_dir).absolute() if isinstance(log_dir, (str, Path)) else log_dir
        self.executor = executor
        self.redact = redact
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
            trainset: examples with inputs set.
            teacher: taken for DSPy's sake and not used.
            valset: examples to choose between the starting and the learned playbook. What is not shown to be better
                is returned only if it repairs failures that it was learned from, with a warning.

        Returns:
            A program of the student's class with the best playbook in its instructions, `.playbook` and
            `.detailed_results` (`Results`).

        Raises:
            SettingsError, PlaybookError: a mistake in the arguments, found before the first LM call.
            MetricError: the metric failed on many examples in a row.
            RunError: the LM, or a role, keeps failing; `error.program` is the best program so far.
            JournalError: `log_dir` cannot be used, or holds another run.
        """
        check_program(student)
        trainset = check_examples(trainset, "trainset")
        valset = check_examples([] if valset is None else valset, "valset", may_be_empty=True)
        settings = Settings.of_arguments(self.get_params())
        settings.check_lms(student)
        with redacting(settings.redact):
            run = Run(settings, student, trainset, valset)
            limits = run.engine.limits
            with CtrlC(limits.stop) as ctrl_c, run.journal() as journal, run.engine.scope(), run.showing(journal):
                state = run.resumed(journal)
                try:
                    state, stopped = _loop(run, state, journal, ThreadPool(run.engine.num_threads), ctrl_c)
                except (RunError, MetricError) as error:
                    error.program = run.finished(run.restored(journal), f"stopped by an error: {error}", journal)
                    raise
                except BaseException as error:
                    if ctrl_c.count > 1:  # a second Ctrl-C: do not wait for running calls
                        raise KeyboardInterrupt(journal.how_to_go_on()) from error
                    if not (ctrl_c.count or isinstance(error, (KeyboardInterrupt, LimitReachedError))):
                        raise
                    stopped = str(error) if isinstance(error, LimitReachedError) else "interrupted by the user"
                    state = run.restored(journal)
                    logger.warning("ACE: %s; the best program so far is returned. %s", stopped, journal.how_to_go_on())
                finally:
                    limits.save()
            logger.info("ACE: %s; %d bullets", stopped, len(state.best))
            run.warn_of_choice(state)
            return run.finished(state, stopped, journal)

    def get_params(self) -> dict[str, Any]:
        """Return the arguments by name; a copy, since trackers add to what they are given (MLflow does)."""
        return {name: getattr(self, name) for name in list(inspect.signature(ACE.__init__).parameters)[1:]}


def _loop(run: Run, state: State, journal: Journal, pool: ThreadPool, ctrl_c: CtrlC) -> tuple[State, str]:
    """Run all steps and validations from `state` on; returns the last state, and why the run ended."""

    def kept(state: State, record: Record) -> State:
        if ctrl_c.count:  # other code swallowed the KeyboardInterrupt: what it may have spoiled is not kept
            raise KeyboardInterrupt
        return run.keep(journal, state, record)  # disk first, then memory

    stopped = f"all {run.settings.epochs} epochs done" if run.settings.epochs > 1 else "the epoch is done"
    while (batch := run.next_batch(state.records)) is not None:
        if due(run, state):
            state = kept(state, validate(run, state, pool))
        if (reason := reason_to_stop(run, state, batch)) is not None:
            stopped = reason
            break
        state = kept(state, learn(run, state, batch, pool))
    check_rollouts(state.records, [], at_end=True)
    check_roles(state.records, at_end=True)
    while (record := choose(run, state, pool)) is not None:
        state = kept(state, record)
    return state, stopped
