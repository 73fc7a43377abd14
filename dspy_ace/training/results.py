"""The results of a compile: `compiled.detailed_results`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import JournalError, SettingsError
from ..lm import Usage
from ..output import printable
from ..pages import Grid, fragment
from ..playbook import Playbook, counted, write_whole
from .choice import Repairs
from .journal import Journal
from .page import facts_of, page_of, usage_grid
from .state import Record, State, most_often, recorded, seed_validation, troubles
from .verdict import Scale, Verdict

logger = logging.getLogger("dspy.ace")


@dataclass(frozen=True, repr=False)
class Results:
    """How a run went.

    Args:
        seed_score, best_score: mean validation score of the seed and of the playbook returned; None if not validated.
        validated_on: the rows of the valset that they rest on.
        best_step: the step whose playbook was returned; 0 is the seed: what was learned is not worth its tokens.
        verdict: the learned playbook against the seed: better, not shown to be better, or worse, with a 95 %
            interval and the evidence; None when nothing was learned.
        repairs: the failures it was learned from, and which of them are repaired: no evidence, but it decides a tie.
        stopped: why the run ended, in words.
        usage: calls, tokens, dollars and seconds by role: `task` (the student), `metric` (its own LM calls),
            `reflector`, `curator`, and `other` (LM calls of `setup=` and `on_step=`). Of a continued run with the calls
            and tokens of the steps on record.
        rollouts: how often the program was run: batches, retries, validation, and failures again on a tie.
        records: one a step, a part of a validation, or a part of the failures rolled out again; as in the journal.
        playbook: the playbook returned: one of the next two.
        seed_playbook, learned_playbook: what the run started from, and what it learned.
        about: plain JSON data on the compile: `program` (its name), `settings`, `versions`, `sizes` of the sets, `seed`
            (the starting playbook) and `prompts` (by predictor the student's own). Empty for online learning.
    """

    seed_score: float | None
    best_score: float | None
    validated_on: int
    best_step: int
    verdict: Verdict | None
    repairs: Repairs
    stopped: str
    usage: Mapping[str, Usage]
    rollouts: int
    records: tuple[Record, ...]
    playbook: Playbook
    seed_playbook: Playbook
    learned_playbook: Playbook
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        state: State,
        *,
        stopped: str,
        usage: Mapping[str, Usage],
        rollouts: int,
        about: Mapping[str, Any] | None = None,
    ) -> Results:
        """Return the results of a run that ended in `state`; see the class."""
        seed, validated = seed_validation(state.records), state.verdict and state.verdict.validation
        rows = validated.examples_before if validated else len(seed.known) if seed else 0
        return cls(
            seed_score=state.seed_score,
            best_score=state.best_score,
            validated_on=rows,
            best_step=state.best_step,
            verdict=state.verdict,
            repairs=state.repairs,
            stopped=stopped,
            usage=usage,
            rollouts=rollouts,
            records=state.records,
            playbook=state.best,
            seed_playbook=state.seed,
            learned_playbook=state.learned_playbook,
            about=about or {},
        )

    @classmethod
    def load(cls, log_dir: str | Path) -> Results:
        """Read the run in a folder, finished or not. Of an unfinished one dollars and seconds are not known.

        Raises:
            JournalError: the folder holds no run, a damaged one, or one of another version.
        """
        journal = Journal.read(log_dir)
        about, ended = journal.about(), journal.ended()
        try:
            scale = Scale(float(about["settings"]["failure_score"]), float(about["settings"]["perfect_score"]))
            state = journal.replay(State.of(Playbook.from_json(about["seed"]), scale))
            if ended.get("records") != len(state.records):  # it went on since, or never ended
                ended = {
                    "stopped": "not finished",
                    "usage": {role: asdict(used) for role, used in recorded(state.records).items()},
                    "rollouts": sum(record.rollouts for record in state.records),
                }
            usage = {role: Usage(**used) for role, used in ended["usage"].items()}
            return cls.of(state, stopped=ended["stopped"], usage=usage, rollouts=ended["rollouts"], about=about)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise JournalError(
                f"{log_dir}: run.json or results.json is damaged: {type(error).__name__}: {error}. Give another folder."
            ) from error

    def keep(self, journal: Journal) -> None:
        """Write into the run's folder how it ended, and its page."""
        if journal.folder is not None:
            usage = {role: asdict(used) for role, used in self.usage.items()}
            ended = {"records": len(self.records), "stopped": self.stopped, "usage": usage, "rollouts": self.rollouts}
            try:
                journal.end(ended, page_of(self))
            except Exception as error:  # noqa: BLE001 - a page that cannot be made must not cost the program
                logger.warning("ACE: %s: the page of the run could not be made: %r", journal.folder, error)

    def save_report(self, path: str | Path) -> Path:
        """Write the run as one HTML page that opens offline, and return its path.

        Example:
            >>> program.detailed_results.save_report("run.html")  # doctest: +SKIP

        Raises:
            SettingsError: these are results of online learning, which has no page.
            OSError: the file cannot be written.
        """
        if "seed" not in self.about:
            raise SettingsError("Results of online learning have no page; those of ACE.compile have one.")
        write_whole(Path(path), page_of(self))
        return Path(path)

    def _repr_html_(self) -> str:
        return fragment("ACE", [("result", ""), *facts_of(self)])

    @property
    def batch_scores(self) -> tuple[float, ...]:
        """The mean score of each batch, before it was learned from: a free test of the playbook it met."""
        return tuple(sum(record.scores) / len(record.scores) for record in self.records if record.scores)

    def __repr__(self) -> str:
        return f"Results({len(self.records)} records, {len(self.playbook)} bullets; {self.stopped})"

    def __str__(self) -> str:
        lines = [f"stopped: {self.stopped}"]
        if self.seed_score is not None and self.best_score is not None:
            lines.append(
                f"validation: {self.seed_score:.3f} before, {self.best_score:.3f} after (step {self.best_step}), "
                f"on {self.validated_on} examples"
            )
        if self.verdict is not None:
            lines.append(f"verdict: {self.verdict}")
        if self.repairs.failures:
            lines.append(f"in the batches: {self.repairs}")
        if self.batch_scores:
            lines.append("batches, each before it was learned from: " + " ".join(f"{s:.2f}" for s in self.batch_scores))
        lines.append(f"playbook: {counted(len(self.playbook), 'bullet')}, about {self.playbook.tokens()} tokens")
        lines.append(f"rollouts: {self.rollouts}")
        rejected = [str(item["reason"]) for record in self.records for item in record.rejected]
        failed = {f"failed {name}": reasons for name, reasons in troubles(self.records).items()}
        for name, reasons in {"rejected operations": rejected, **failed}.items():
            if reasons:
                reason, times = most_often(reasons)
                lines.append(f"{name}: {len(reasons)}; most often ({times} times): {reason:.300}")
        return printable("\n".join([*lines, *_aligned(usage_grid(self.usage))]))


def _aligned(grid: Grid) -> list[str]:
    """Return a table as lines: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in grid]
