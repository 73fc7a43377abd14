"""One compile: settings resolved against a student, the schedule, the records, and what comes out."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import dspy

from ..lm import Limits, Usage
from ..output import redacted
from ..playbook import Playbook
from ..program import carried_playbook, named, own_instructions, save_state, with_playbook
from .choice import repairs
from .engine import Engine
from .fingerprint import described, example_key, versions
from .journal import Journal
from .plan import Plan
from .progress import Progress
from .results import Results
from .settings import Settings
from .state import Record, State, most_often, recorded, troubles
from .verdict import BETTER

logger = logging.getLogger("dspy.ace")  # below `dspy`: INFO shows, and dspy.disable_logging() holds

MANY = 0.25  # of the calls of a role: so many failures are warned of at the end


class Batch(NamedTuple):
    """One step's place in the run.

    Args:
        step, epoch: counted from 1.
        examples: positions in the trainset.
    """

    step: int
    epoch: int
    examples: tuple[int, ...]


class Share(NamedTuple):
    """One example of a batch, and how many retries it may have."""

    position: int
    retries: int


def shuffled(size: int, epoch: int, seed: int) -> list[int]:
    """Return the positions of `size` examples in the order of an epoch; seed and epoch alone decide it."""
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


class Run:
    """One compile.

    Args:
        settings: checked.
        student, trainset, valset: as given to `compile`, checked.

    Attributes:
        engine: runs the program and the roles.
        trainset, valset: as they are used: without labels if there are none to be seen; rows of the valset that stand
            in the trainset are left out of it, since a playbook may have learned them by heart.
        seed: the playbook that the run starts from.
        plan: the most that it may spend.
    """

    def __init__(
        self, settings: Settings, student: dspy.Module, trainset: list[dspy.Example], valset: list[dspy.Example]
    ) -> None:
        self.settings = settings
        limits = Limits(settings.max_metric_calls, settings.max_lm_calls, settings.max_cost, settings.max_seconds)
        self.engine = Engine(settings, student, limits, settings.executor)
        # without labels, nothing that holds one is handed on: not to a role, not to the metric
        self.trainset = trainset if settings.uses_labels else _inputs(trainset)
        self.given = {"trainset": self.trainset, "valset": valset if settings.uses_labels else _inputs(valset)}
        self.engine.check_examples(self.given)
        self.unknown: list[str] = []  # parts of the run that show no content
        self.valset = self._useful(trainset, valset)
        self.seed = carried_playbook(student) if settings.playbook is None else settings.playbook
        self.plan = Plan.of(settings, self.engine.student, self.trainset, self.valset)
        self.about = {  # what run.json and the page of the run tell a reader
            "program": named(student),
            "settings": settings.described() | {"labels": settings.uses_labels},
            "versions": versions(),
            "sizes": {"training examples": len(self.trainset), "validation examples": len(self.valset)},
            "prompts": redacted(own_instructions(student)),
            "seed": self.seed.to_json(),
        }
        self.before: dict[str, Usage] = {}  # usage of earlier processes, by their records
        self.progress = Progress(0, show=False)

    def _useful(self, trainset: list[dspy.Example], valset: list[dspy.Example]) -> list[dspy.Example]:
        """Return the rows of the valset that are evidence, and warn of the others."""
        known = {example_key(example) for example in trainset}
        shared = {position for position, example in enumerate(valset) if example_key(example) in known}
        if shared:
            named = ", ".join(map(str, sorted(shared)[:10])) + (" …" if len(shared) > 10 else "")
            logger.warning(
                "ACE: %d of %d rows of the valset stand in the trainset as well (rows %s); they are no evidence and "
                "are left out. %s",
                len(shared),
                len(valset),
                named,
                "Nothing is validated." if len(shared) == len(valset) else "Give a valset of its own rows.",
            )
        useful = [example for position, example in enumerate(valset) if position not in shared]
        useful = useful if self.settings.uses_labels else _inputs(useful)
        limit, along = self.settings.max_metric_calls, self.settings.validate_when == "along"
        if useful and limit is not None and limit < (2 * len(useful) + 1 if along else 8):
            logger.warning(
                "ACE: max_metric_calls=%d is too small to validate on %d examples and learn as well; the valset is not "
                "used, the latest playbook is returned.",
                limit,
                len(useful),
            )
            return []
        return useful

    def next_batch(self, records: Sequence[Record]) -> Batch | None:
        """Return what comes after these records; None: all epochs are done.

        An epoch meets each example once. Failures that the epochs before left unrepaired come first. What a limit cut
        off a batch has not been met, so a run that is continued with a higher limit meets it.
        """
        step, size = max((record.step for record in records), default=0) + 1, self.settings.batch_size
        for epoch in range(max((r.epoch for r in records), default=1) or 1, self.settings.epochs + 1):
            met = {position for record in records if record.epoch == epoch for position in record.batch}
            begun = next((at for at, record in enumerate(records) if record.epoch >= epoch), len(records))
            again = set(map(int, repairs(records[:begun], self.settings.scale).left))
            order = sorted(shuffled(len(self.trainset), epoch, self.settings.seed), key=lambda at: at not in again)
            if left := [position for position in order if position not in met]:
                return Batch(step, epoch, tuple(left[:size]))
        return None

    def examples_left(self, records: Sequence[Record]) -> list[int]:
        """Return for each epoch how many examples it has not met yet."""
        met = Counter(record.epoch for record in records for _ in record.batch)
        return [len(self.trainset) - met[epoch] for epoch in range(1, self.settings.epochs + 1)]

    def steps(self, records: Sequence[Record]) -> int:
        """Return the number of steps of the whole run, as things stand."""
        done = max((record.step for record in records), default=0)
        return done + sum(-(-left // self.settings.batch_size) for left in self.examples_left(records))

    def rollouts_for_learning(self, wanted: int) -> int:
        """Return how many of `wanted` rollouts may be made now; those of the last validation are kept back."""
        left = self.engine.limits.rollouts_left()
        if left is None:
            return wanted
        kept_back = 0
        if self.valset:
            along, limit = self.settings.validate_when == "along", self.settings.max_metric_calls or 0
            kept_back = len(self.valset) if along else min(2 * len(self.valset), limit // 4)
        return max(0, min(wanted, left - kept_back))

    def shares(self, batch: Batch) -> list[Share]:
        """Return the examples of a batch that may be rolled out, each with the retries that the limit leaves it.

        What is left is shared out in the order of the examples, before the first one begins: so it does not depend on
        which thread ends first. Where few LM calls are left, so many examples are rolled out as can be reflected on.
        """
        rounds, calls = self.settings.max_reflection_rounds, self.engine.limits.calls_left()
        most = len(batch.examples) if calls is None else max(1, (calls - 1) // 2)
        examples = batch.examples[: min(most, self.rollouts_for_learning(len(batch.examples)))]
        spare = self.rollouts_for_learning(len(examples) * (1 + rounds)) - len(examples)
        return [Share(each, min(rounds, max(0, spare - at * rounds))) for at, each in enumerate(examples)]

    def journal(self) -> Journal:
        """Open the journal under all that this run depends on."""
        settings, engine = self.settings, self.engine
        if settings.log_dir is None:
            return Journal(None)
        parts, self.unknown = described(
            self.given,
            program=engine.student,
            metric=settings.metric,
            setup=settings.setup,
            reflection_lm=settings.reflection_lm,
            reflect=engine.reflector,
            curate=engine.curator,
            refine=engine.refiner,
            playbook=self.seed.to_json(),
        )
        return Journal.open(settings.log_dir, parts, self.about, free=settings.FREE)

    def showing(self, journal: Journal) -> Progress:
        """Return the progress bar over all steps, from those in the journal on; a context manager."""
        done = journal.records[-1].step if journal.records else 0
        self.progress = Progress(self.steps(journal.records), done, self.settings.progress)
        return self.progress

    def resumed(self, journal: Journal) -> State:
        """Take up what was made before, and log the plan of the whole run."""
        state = self.restored(journal)
        spent, on_record = journal.spent(), sum(record.rollouts for record in state.records)
        limited = self.settings.max_metric_calls is not None  # then those of a step that a crash lost are known too
        rollouts = max(spent.rollouts, on_record) if limited else on_record
        self.engine.limits.resume(replace(spent, rollouts=rollouts))
        self.engine.limits.keep = journal.keep_spent
        self.before = recorded(state.records)
        if state.records:
            steps = self.steps(state.records)
            at = f"at step {state.step + 1} of" if state.step < steps else "behind all"
            logger.info("ACE: continuing the run in %s %s %d", journal.folder, at, steps)
            if self.unknown:
                said = "; ".join(self.unknown)
                logger.warning("ACE: %s, which cannot be compared: this run goes on assuming it is the same.", said)
        logger.info("ACE: %s", self.plan)
        return state

    def keep(self, journal: Journal, state: State, record: Record) -> State:
        """Write a record to disk, then into memory, and tell the user."""
        journal.append(record)
        self.engine.limits.save()
        after = state.after(record)
        if after.best is not state.best:
            self._keep_best(journal, after.best)
        logger.info("ACE %s", _line(record, after))
        self._warn_of_troubles(state, record)
        self.progress.step(record, after.best_score, len(after.playbook), self.engine.meter.totals())
        if self.settings.on_step is not None:
            self.settings.on_step(record, after.playbook)
        return after

    def _warn_of_troubles(self, state: State, record: Record) -> None:
        """Warn of each kind of failure at its first; of those that the program makes it is learned, and not warned."""
        known = {*troubles(state.records), "rollout: program", "rollout: format"}
        for name, reasons in troubles([record]).items():
            if name not in known:
                text = "ACE: a failed %s in step %d: %s (More are counted in detailed_results.)"
                logger.warning(text, name, record.step, _in_a_line(reasons[0]))

    def _warn_of_roles(self, records: tuple[Record, ...]) -> None:
        """Warn of a role of which many calls failed in the run."""
        asked = {
            "reflection": sum(len(record.reflections) for record in records),
            "curation": sum(record.curation is not None for record in records),
        }
        for name, reasons in troubles(records).items():
            if len(reasons) >= MANY * asked.get(name, math.inf):
                reason, times = most_often(reasons)
                text = "ACE: %d of %d %ss failed, so little was learned; most often (%d times): %s"
                logger.warning(text, len(reasons), asked[name], name, times, _in_a_line(reason))

    def restored(self, journal: Journal) -> State:
        """Return the state after what the journal holds, and write its best playbook: a crash may have come before."""
        journal.refresh()
        state = journal.replay(State.of(self.seed, self.settings.scale))
        if state.records:
            self._keep_best(journal, state.best)
        return state

    def _keep_best(self, journal: Journal, best: Playbook) -> None:
        journal.keep_best(best, lambda path: save_state(with_playbook(self.engine.student, best), path))

    def warn_of_choice(self, state: State) -> None:
        """Warn if a playbook was learned that is not shown to be better: which one is returned, and why."""
        found = state.verdict
        if not state.learned or (found is not None and found.word == BETTER):
            return
        returned, other = ("learned", "seed") if state.returns_learned else ("starting", "learned")
        unknown = f"nothing shows if the learned playbook is better{', without a metric' * (not self.settings.metric)}"
        logger.warning(
            "ACE: %s. %sA call takes about %d tokens with the learned playbook, %d with the starting one. The %s "
            "playbook is returned; the other one is detailed_results.%s_playbook.",
            unknown if found is None else f"the learned playbook is {found}",
            f"{state.repairs}. ".capitalize() if state.repairs.failures else "",
            state.learned_playbook.tokens(),
            state.seed.tokens(),
            returned,
            other,
        )

    def finished(self, state: State, stopped: str, journal: Journal) -> dspy.Module:
        """Return the student with the best playbook and the results of the run, which are written as well."""
        program = with_playbook(self.engine.student, state.best)
        usage, rollouts = self.engine.usage(self.before), self.engine.limits.rollouts
        results = Results.of(state, stopped=stopped, usage=usage, rollouts=rollouts, about=self.about)
        results.keep(journal)
        logger.info("ACE: %s", self.plan.against(state.records, rollouts, usage))
        program.detailed_results = results
        self._warn_of_roles(state.records)
        return program


def _in_a_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _inputs(examples: list[dspy.Example]) -> list[dspy.Example]:
    return [example.inputs() for example in examples]


def _line(record: Record, state: State) -> str:
    """Return the log line of a record."""
    if record.again:
        return f"failures again after step {record.step}: {state.repairs}"
    if record.baseline is not None and state.verdict is not None:
        return f"validation after step {record.step}: {state.verdict.validation}"
    if record.validation is not None:
        rows = len(record.validation.known)
        return f"validation after step {record.step}: {record.validation.mean:.3f} on {rows} rows"
    score = f"{sum(record.scores) / len(record.scores):.2f}" if record.scores else "-"
    size = f"{len(state.playbook)} bullets"
    return f"step {record.step}: batch score {score}, playbook {size}, {len(record.rejected)} operations rejected"
