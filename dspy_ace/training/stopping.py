"""Rules that end a run: nothing left to do, a limit, or something that does not work.

A rule looks at records in their order, never at the order in which threads ended: so a run that was stopped and
continued ends where an unbroken one ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import MetricError, RunError
from ..program import NO_EVIDENCE, Trajectory
from .state import Record, State
from .verdict import UNIT, Scale

if TYPE_CHECKING:
    from .run import Batch, Run

FIRST = 3  # failures in a row that show that something never worked
LATER = 8  # the same, of something that has worked before


def rollouts_used_up(run: Run, state: State, batch: Batch) -> str | None:
    """Stop when `max_metric_calls` leaves no rollout for learning."""
    return None if run.rollouts_for_learning(1) else f"max_metric_calls={run.settings.max_metric_calls} is reached"


def limit_reached(run: Run, state: State, batch: Batch) -> str | None:
    """Stop when an LM call was refused for calls, dollars or seconds."""
    return run.engine.limits.reached


def too_few_calls_left(run: Run, state: State, batch: Batch) -> str | None:
    """Stop after a step when `max_lm_calls` leaves less than a rollout, a reflection and a curation."""
    left, limit = run.engine.limits.calls_left(), run.settings.max_lm_calls
    if left is None or left >= 3 or not state.records:  # roles of the user's own may need none
        return None
    return f"max_lm_calls={limit} is reached: {left} left, and learning takes 3"


def perfect_validation(run: Run, state: State, batch: Batch) -> str | None:
    """Stop when the playbook is right on every row of the valset, once every example has been met."""
    latest = next((record.validation for record in reversed(state.records) if record.validation is not None), None)
    if latest is None or len(latest.scores) < len(run.valset) or not state.learned or batch.epoch == 1:
        return None
    return "a perfect validation score" if latest.perfect(run.settings.perfect_score) else None


def nothing_left_to_learn(run: Run, state: State, batch: Batch) -> str | None:
    """Stop after an epoch without a failure; without a metric also no insight may have come from it."""
    epoch = [record for record in state.records if record.epoch == batch.epoch - 1 and record.batch]
    if not epoch or state.step != epoch[-1].step or any(record.epoch == batch.epoch for record in state.records):
        return None
    if any(min(record.scores) < run.settings.perfect_score for record in epoch):
        return None
    if run.settings.metric is not None:
        return "nothing left to learn: an epoch without a failure"
    if any(record.learned or record.rejected for record in epoch):
        return None
    return "nothing left to learn: an epoch without a failure or a new lesson"


RULES: tuple[Callable[[Run, State, Batch], str | None], ...] = (
    rollouts_used_up,
    limit_reached,
    too_few_calls_left,
    perfect_validation,
    nothing_left_to_learn,
)


def reason_to_stop(run: Run, state: State, batch: Batch) -> str | None:
    """Return why the run ends before `batch`; None: it goes on."""
    return next((reason for rule in RULES if (reason := rule(run, state, batch)) is not None), None)


def rollouts_at_once(records: Sequence[Record], made: Sequence[Trajectory], wanted: int) -> int:
    """Return how many of `wanted` rollouts may begin now.

    All of them, once provider, metric and set-up have done their part in some rollout of the run. Until then no more
    than may fail before the run is stopped: a dead model or metric costs three rollouts.
    """
    kinds = [*(kind for record in records for kind in record.kinds), *(_kind(trajectory) for trajectory in made)]
    return wanted if any(kind not in NO_EVIDENCE for kind in kinds) else min(wanted, max(1, FIRST - len(kinds)))


def check_rollouts(records: Sequence[Record], made: Sequence[Trajectory], *, at_end: bool = False) -> None:
    """Stop a run whose rollouts fail in a row, and not by the program's fault.

    Args:
        records: those of the run so far.
        made: rollouts since, in the order of their examples.
        at_end: nothing more will be rolled out: then few failures are enough, if nothing ever worked.

    Raises:
        RunError, MetricError: provider, set-up or metric failed in each of the last rollouts.
    """
    kinds = [*(kind for record in records for kind in record.kinds), *(_kind(trajectory) for trajectory in made)]
    row = 0
    while row < len(kinds) and kinds[-1 - row] in NO_EVIDENCE:
        row += 1
    never = row == len(kinds)
    if row and row >= ((1 if at_end else FIRST) if never else LATER):
        last = made[-1] if made else None
        failure = last.error if last is not None else None
        failed = next((f for record in reversed(records) for f in reversed(record.failures) if f.no_evidence), None)
        source = last.source if last is not None else str(failed.rollout if failed else "")
        message = failure.message if failure else (failed.message if failed else "")
        raise _dead(str(kinds[-1]), row, source, message)


def check_scores(scale: Scale, records: Sequence[Record], made: Sequence[Trajectory]) -> None:
    """Stop a run whose first scores, three or more, all lie outside of the scale, before they are reflected on.

    Scores above a `perfect_score` that is not the default are no mistake: it may be a threshold.

    Args:
        scale: the one in the settings.
        records: those of the run so far.
        made: rollouts since: the first batch, or the first validation.

    Raises:
        MetricError: it says what to set.
    """
    before = [score for record in records for score in record.scores]
    scores = before + [trajectory.feedback.score for trajectory in made if trajectory.error is None]
    known = [scale.holds(score) for score in scores]
    if scale.perfect != UNIT.perfect:  # the user's own: better scores may be meant to be successes as well
        known = [score >= scale.failure for score in scores]
    if len(before) >= FIRST or len(scores) < FIRST or any(known):
        return
    raise MetricError(
        f"All of the first {len(scores)} scores, {min(scores):g} to {max(scores):g}, lie outside of the scale from "
        f"failure_score={scale.failure:g} to perfect_score={scale.perfect:g}. Set both to the worst and the best score "
        "of your metric, as in failure_score=0, perfect_score=100."
    )


def check_roles(
    records: Sequence[Record],
    reflections: Sequence[str] = (),
    curation: str | None = None,
    *,
    at_end: bool = False,
) -> None:
    """Stop a run whose Reflector or Curator never worked.

    Args:
        records: those of the run so far.
        reflections: how those asked for since then ended: the error, or `""` for one that worked.
        curation: the same of the Curator; None: it was not asked.
        at_end: no role will be asked again: then one failure is enough.

    Raises:
        RunError: a role was asked so often and failed every time.
    """
    reflected = [*(str(item.get("error", "")) for record in records for item in record.reflections), *reflections]
    curated = [each for each in (*(record.curation for record in records), curation) if each is not None]
    for role, ended, enough in (("Reflector", reflected, FIRST), ("Curator", curated, 2)):
        if ended and all(ended) and len(ended) >= (1 if at_end else enough):
            raise RunError(
                f"The {role} failed {len(ended)} times and never worked: {ended[-1]} Check the LM it asks "
                f"(reflection_lm=), or the role you passed ({'reflect' if role == 'Reflector' else 'curate'}=)."
            )


def _kind(trajectory: Trajectory) -> str | None:
    return None if trajectory.error is None else trajectory.error.kind


def _dead(kind: str, times: int, source: str, message: str) -> RunError | MetricError:
    if kind == "setup":
        return RunError(
            f"setup= failed on {times} examples in a row; on example {source}: {message} It is called with an example "
            "and returns a context manager."
        )
    if kind == "metric":
        return MetricError(f"The metric failed on {times} examples in a row; on example {source}: {message}")
    return RunError(
        f"The LM failed on every one of {times} examples in a row; on example {source}: {message} "
        "Check the model's name, key, address and limits."
    )
