"""One compile: an optimizer's settings resolved against a student, and every call counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import dspy

from ..lm import Allowance, Books, Guard, Limits, Meter, Usage, added, enforced, one_by_one, recorded
from ..playbook import Playbook
from ..program import Scorer, carried_playbook, save_state, showing, with_playbook
from ..roles import Curator, GrowAndRefine, Refine, Reflector, limited
from .effort import effort
from .fingerprint import (
    describe_callable,
    describe_data,
    describe_program,
    describe_settings,
    fingerprint,
    versions,
)
from .history import Record, State, seed_validation
from .journal import Journal
from .progress import Progress
from .results import Results, judge
from .rolling import Roller
from .schedule import Batch

logger = logging.getLogger("dspy.ace")


class Run:
    """One compile: the settings resolved against a student, and the calls counted.

    Args:
        ace: the optimizer; its plain attributes are the settings, read and never written.
        student, trainset, valset: as given to `compile`, checked.
    """

    def __init__(
        self, ace: Any, student: dspy.Module, trainset: list[dspy.Example], valset: list[dspy.Example]
    ) -> None:
        self.ace, self.student = ace, showing(student, ace.prompt_bullets)
        student = self.student
        self.labels = ace.metric is not None if ace.labels is None else ace.labels
        # without labels, nothing that holds one is handed on: not to a role, not to the metric
        self.trainset = trainset if self.labels else [example.inputs() for example in trainset]
        self.valset = valset if self.labels else [example.inputs() for example in valset]
        self.seed = carried_playbook(student) if ace.playbook is None else ace.playbook
        self.scorer, self.refine = Scorer(ace.metric), refiner(ace)
        own = next((p.lm for _, p in student.named_predictors() if p.lm), None) or dspy.settings.lm
        lm = one_by_one(ace.reflection_lm or own)
        self.effort = effort(ace)
        self.reflector = ace.reflect or Reflector(lm, max_prompt_tokens=ace.max_prompt_tokens)
        curator = ace.curate or Curator(
            one_by_one(ace.curator_lm) or lm, max_prompt_tokens=2 * ace.max_prompt_tokens, embedder=ace.embedder
        )
        self.curator = limited(curator, ace.max_playbook_tokens)
        self.num_threads = ace.num_threads or dspy.settings.num_threads or 8
        self.limits = Limits(None, ace.max_lm_calls, ace.max_cost, ace.max_seconds)
        self.allowance = Allowance(ace.max_metric_calls, len(valset), self.effort.validate == "end")
        if valset and not self.allowance.validates:
            logger.warning(
                "ACE: max_metric_calls=%s is too small to validate on %d examples and learn as well; "
                "the valset is not used, the latest playbook is returned.",
                ace.max_metric_calls,
                len(valset),
            )
            self.valset = []
        self.scale = abs(ace.perfect_score - ace.failure_score) or 1.0
        self.books = Books(Meter(self.limits.spend), self.allowance)
        self.roller = Roller(
            self.scorer,
            failure_score=ace.failure_score,
            perfect_score=ace.perfect_score,
            timeout=ace.rollout_timeout,
            setup=ace.setup,
        )
        self.before: dict[str, Usage] = {}  # what earlier processes spent, by their records
        self.progress = Progress(0, show=False)
        self.reflect, self.curate = Guard(self.reflector, "reflector"), Guard(self.curator, "curator")

    def spending(self) -> Any:
        """A scope in which every LM call passes the budget, retries included."""
        return enforced(self.limits)

    def showing(self, journal: Journal, steps: int) -> Progress:
        """The progress bar over `steps`, from those in the journal on; a context manager."""
        self.progress = Progress(steps, journal.records[-1].step if journal.records else 0, self.ace.progress)
        return self.progress

    def resumed(self, journal: Journal, order: Sequence[Batch]) -> State:
        """Take up what was made before, and say what is to come at most."""
        state = self.restored(journal)
        self.allowance.used = sum(record.rollouts for record in state.records)
        self.before = recorded(record.usage for record in state.records)
        steps = order[max(0, state.step) :]
        left, every = sum(len(batch.examples) for batch in steps), self.ace.validate_every
        along = len(steps) // every if every else left // max(1, len(self.valset))
        along = along if self.effort.validate == "along" else 0
        most = left * (1 + self.effort.rounds) + (2 + along) * len(self.valset)
        limit = self.allowance.limit
        logger.info(
            "ACE: at most %d rollouts and %d role calls to come",
            most if limit is None else min(most, limit - self.allowance.used),
            3 * left * (max(1, self.effort.rounds) + 1),  # reflections and as many curations at most, asked thrice
        )
        return state

    def keep(self, journal: Journal, state: State, record: Record) -> State:
        """Disk first, then memory; the user is told."""
        journal.append(record)
        after = state.after(record)
        if after.best is not state.best or state.step < 0:
            self._keep_best(journal, after.best)
        logger.info(
            "ACE step %d: batch %s, validation %s, %d bullets, %d left out",
            record.step,
            f"{sum(record.scores) / len(record.scores):.2f}" if record.scores else "-",
            f"{record.validation.mean:.3f}" if record.validation else "-",
            len(after.playbook),
            len(record.rejected),
        )
        self.progress.step(record, after.best_score, len(after.playbook), self.books.meter.totals())
        if self.ace.on_step is not None:
            self.ace.on_step(record, after.playbook)
        return after

    def restored(self, journal: Journal) -> State:
        """The state after what the journal holds, and the best of it on disk: a crash may have come in between."""
        journal.refresh()
        state = journal.replay(State.of(self.seed))
        if state.step >= 0:
            self._keep_best(journal, state.best)
        return state

    def _keep_best(self, journal: Journal, best: Playbook) -> None:
        journal.keep_best(best, lambda path: save_state(with_playbook(self.student, best), path))

    def finished(self, state: State, stopped: str) -> dspy.Module:
        """The student with the best playbook, and the account of the run."""
        program = with_playbook(self.student, state.best)
        program.detailed_results = Results(
            seed_score=state.seed_score,
            best_score=state.best_score,
            best_step=state.best_step,
            validated_on=0 if (seed := seed_validation(state.records)) is None else len(seed.scores),
            verdict=judge(state.records, self.scale),
            stopped=stopped,
            usage=added(self.before, self.books.meter.totals()),
            rollouts=self.allowance.used,
            records=state.records,
            playbook=state.best,
        )
        return program

    def journal(self) -> Journal:
        """The journal of this run, opened under what the run depends on."""
        ace = self.ace
        roles = (ace.reflect, ace.curate, ace.refine, ace.embedder, ace.setup)
        prompts = [role.predict for role in (self.reflector, self.curator) if hasattr(role, "predict")]
        parts = fingerprint(
            program=describe_program(self.student),
            trainset=describe_data(self.trainset),
            valset=describe_data(self.valset),
            metric=describe_callable(ace.metric),
            settings=[describe_settings(ace), self.labels, vars(self.effort)],
            roles=[[describe_callable(role) for role in roles], [prompt.signature.instructions for prompt in prompts]],
            playbook=self.seed.to_json(),
        )
        about = {"settings": describe_settings(ace), "effort": vars(self.effort), "versions": versions()}
        return Journal.open(ace.log_dir, parts, about)


def refiner(ace: Any) -> Refine:
    """The user's `refine`, or the default with the user's settings. Raises SettingsError for a bad one."""
    refine: Refine = ace.refine or GrowAndRefine(embedder=ace.embedder, threshold=ace.dedup_threshold)
    return limited(refine, ace.max_playbook_tokens)
