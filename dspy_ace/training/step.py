"""One learning step: roll a batch out, reflect, curate, grow and refine (ACE §3). Offline and online share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import dspy

from ..errors import RunError
from ..lm import LimitReachedError, Usage
from ..playbook import Add, Delta, Operation, Playbook, Rejected, Tag, admit, apply
from ..program import Rollouts, ThreadPool, Trajectory, with_playbook, with_reflection, words_of
from ..roles import Reflection
from .engine import Engine
from .state import FailedRollout, Record, Rollout, State, failures_of
from .stopping import FIRST, check_roles, check_rollouts, check_scores, rollouts_at_once

if TYPE_CHECKING:
    from .run import Batch, Run, Share

Item = TypeVar("Item")


@dataclass(frozen=True)
class Attempt:
    """The attempts at one example of a batch, and the reflection on them.

    Args:
        trajectory: the first attempt; None: a limit was reached before it ended.
        reflection: the latest one; None: none was asked for, or it failed.
        error: why the reflection failed; `""`: it did not.
        failures: the rollouts that failed, retries included.
        rollouts: how many were made.
    """

    trajectory: Trajectory | None = None
    reflection: Reflection | None = None
    error: str = ""
    failures: tuple[FailedRollout, ...] = ()
    rollouts: int = 0

    @property
    def asked(self) -> bool:
        """True if a reflection was asked for."""
        return self.reflection is not None or bool(self.error)


@dataclass(frozen=True)
class Step:
    """The outcome of one step: what was learned from its attempts.

    Args:
        playbook: the playbook after it.
        delta: all operations in order: votes, the Curator's, the refiner's. Applied to the playbook before the step,
            it gives `playbook`.
        rejected: operations that were left out, each with its reason.
        attempts: one per example, in order.
        curation: see `Record`.
    """

    playbook: Playbook
    delta: Delta
    rejected: tuple[Rejected, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    curation: str | None = None

    @property
    def reflections(self) -> tuple[Reflection, ...]:
        """The reflections, in the order of the examples."""
        return tuple(attempt.reflection for attempt in self.attempts if attempt.reflection is not None)


def learn(run: Run, state: State, batch: Batch, pool: ThreadPool) -> Record:
    """Roll a batch out with the playbook as it stands, and learn from it.

    Each example is one task in one thread: rollout, reflection and, after a failure, retries. Each batch is curated
    once.

    Returns:
        The record of the step. If a limit was reached, it covers only the examples that were rolled out.

    Raises:
        RunError, MetricError: LM, metric, set-up or a role keeps failing, see `stopping`.
        LimitReachedError: a limit left no example of the batch.
    """
    engine, before = run.engine, run.engine.meter.totals()
    with engine.limits.keeping_back():  # for the curation
        attempts = roll_out_and_reflect(run, state, batch, pool)
    if engine.limits.reached and not any(attempt.trajectory for attempt in attempts):
        raise LimitReachedError(engine.limits.reached)  # nothing was done: there is nothing to record
    step = learn_from(engine, state, attempts)
    met = [int(attempt.trajectory.source) for attempt in step.attempts if attempt.trajectory is not None]
    return record_of(step, state.step + 1, batch.epoch, met, before, engine)


def roll_out_and_reflect(run: Run, state: State, batch: Batch, pool: ThreadPool) -> list[Attempt]:
    """Roll a batch out and reflect: each example is one task in one thread.

    Until the Reflector has worked once and the student has made a mistake, the whole batch is rolled out before any
    reflection. So a dead model costs three calls, and a perfect student no reflection.

    Returns:
        One attempt per example, in order.

    Raises:
        RunError, MetricError: LM, metric, set-up or a role keeps failing, see `stopping`.
    """
    engine, shares = run.engine, run.shares(batch)
    rollouts = engine.rollouts(with_playbook(engine.student, state.playbook, cite=True))

    def roll_out(share: Share) -> Attempt:
        return first_attempt(engine, rollouts, run.trainset[share.position], str(share.position))

    def task(share: Share) -> Attempt:
        return reflect_in_rounds(engine, state, roll_out(share), share.retries)

    if state.reflector_works and not state.flawless(engine.settings.perfect_score):
        attempts = pool.map(task, shares)
        check_rollouts(state.records, trajectories_of(attempts))
        return attempts
    attempts = roll_out_in_waves(roll_out, shares, pool, state.records)
    return reflect_on_batch(engine, state, list(zip(attempts, (s.retries for s in shares), strict=True)), pool)


def first_attempt(engine: Engine, rollouts: Rollouts, example: dspy.Example, source: str) -> Attempt:
    """Roll one example out. Once a limit is reached, the attempt has no trajectory."""
    if engine.limits.reached:
        return Attempt()
    try:
        first = engine.roll_out(rollouts, example, source)
    except LimitReachedError:
        return Attempt(rollouts=1)
    return Attempt(first, failures=failures_of(Rollout(source), first), rollouts=1)


def roll_out_in_waves(
    roll_out: Callable[[Item], Attempt], items: Sequence[Item], pool: ThreadPool, records: Sequence[Record]
) -> list[Attempt]:
    """Roll a batch out: three items first, the rest once one of them shows that model, metric and set-up work.

    Raises:
        RunError, MetricError: all of the first items failed because one of these does not work.
    """
    done: list[Attempt] = []
    while len(done) < len(items):
        at_once = rollouts_at_once(records, trajectories_of(done), len(items) - len(done))
        done += pool.map(roll_out, items[len(done) : len(done) + at_once])
        check_rollouts(records, trajectories_of(done))
    return done


def reflect_on_batch(
    engine: Engine, state: State, batch: Sequence[tuple[Attempt, int]], pool: ThreadPool
) -> list[Attempt]:
    """Reflect on a batch that was rolled out: on three attempts first, until the Reflector has worked.

    With a metric, nothing is reflected on until a rollout has failed: a perfect student costs no role call.

    Args:
        engine, state: see `learn_from`.
        batch: the first attempts, each with the retries that it may have.
        pool: the threads.

    Raises:
        RunError: the Reflector never worked.
        MetricError: all first scores lie outside of the scale.
    """
    settings = engine.settings
    check_scores(settings.scale, state.records, trajectories_of([attempt for attempt, _ in batch]))
    errs = not state.flawless(settings.perfect_score) or any(
        not trajectory.success for trajectory in trajectories_of([attempt for attempt, _ in batch])
    )
    asked = errs or settings.metric is None
    first = len(batch) if state.reflector_works else FIRST

    def reflect(one: tuple[Attempt, int]) -> Attempt:
        return reflect_in_rounds(engine, state, *one)

    wanted = [one for one in batch if asked and one[0].trajectory is not None]
    done = pool.map(reflect, wanted[:first])
    check_roles(state.records, [attempt.error for attempt in done if attempt.asked])
    done += pool.map(reflect, wanted[first:])
    reflected = {id(made): attempt for (made, _), attempt in zip(wanted, done, strict=True)}
    return [reflected.get(id(made), made) for made, _ in batch]


def trajectories_of(attempts: Sequence[Attempt]) -> list[Trajectory]:
    """Return the trajectories of the attempts that have one; a limit can leave an attempt without."""
    return [attempt.trajectory for attempt in attempts if attempt.trajectory is not None]


def learn_from(engine: Engine, state: State, attempts: Sequence[Attempt]) -> Step:
    """Curate the reflections of a batch, grow and refine.

    Args:
        engine: the roles.
        state: the state before this batch: its playbook and records.
        attempts: one per example, in order, reflected on.

    Raises:
        RunError: a role never worked, or raised RunError to end the run.
    """
    check_roles(state.records, [attempt.error for attempt in attempts if attempt.asked])
    trajectories = trajectories_of(attempts)
    reflections = [attempt.reflection for attempt in attempts if attempt.reflection is not None]
    unasked = [a.trajectory for a in attempts if a.trajectory is not None and a.trajectory.success and not a.asked]

    playbook = state.playbook
    votes, unknown = admit(playbook, _votes(playbook, reflections) + _citations(unasked))
    voted = apply(playbook, votes)  # at most one vote per bullet and example
    delta, left_out, curation = _curate(engine, state, reflections)
    check_roles(state.records, curation=curation)
    added, misfits = admit(voted, _for_predictors_that_ran(delta, trajectories).operations)
    grown = apply(voted, added)  # grow …
    refined = engine.refine(grown)  # … and refine (ACE §3.3)
    return Step(
        apply(grown, refined), votes + added + refined, (*unknown, *left_out, *misfits), tuple(attempts), curation
    )


def reflect_in_rounds(engine: Engine, state: State, made: Attempt, retries: int) -> Attempt:
    """Reflect on one example; after a failure it is rolled out again with the insights in the prompt (ACE §3.2).

    No reflection is asked for if provider, metric or set-up failed, for a success with `reflect_on="failures"`, or once
    a limit is reached. Only the last reflection is used; it must repeat what it keeps of earlier ones.

    Args:
        engine: the Reflector, and the program.
        state: the state before this batch: its playbook and records.
        made: the first attempt.
        retries: the limit of retries.

    Returns:
        The attempt with its reflection. If a limit is reached, the attempt so far.

    Raises:
        RunError: the role raised it to end the run. Other errors are kept in `Attempt.error`.
    """
    first, playbook = made.trajectory, state.playbook
    skipped = first is None or not first.teaches or (first.success and engine.settings.reflect_on == "failures")
    if first is None or skipped or engine.limits.reached:
        return made
    latest, verified, scores = first, None, [first.feedback.score]
    for number in range(1, max(1, engine.settings.max_reflection_rounds) + 1):
        try:
            reflection = engine.reflect(playbook, latest, state.reflector_works)
        except (RunError, LimitReachedError) as error:
            if isinstance(error, RunError):
                raise
            break
        except Exception as error:  # noqa: BLE001 - a role may be any callable; its failure is recorded, not lost
            made = replace(made, error=words_of(error)) if made.reflection is None else made
            break
        made = replace(made, reflection=reflection)
        if first.success or number > retries or not reflection.insights:
            break
        try:
            program = with_reflection(engine.student, playbook, reflection.insights)
            again = engine.roll_out(engine.rollouts(program), first.example, first.source)
        except LimitReachedError:
            break
        failed = failures_of(Rollout(first.source, retry=number), again)
        made = replace(made, failures=(*made.failures, *failed), rollouts=made.rollouts + 1)
        if not again.teaches:  # provider or metric failed: no evidence either way
            break
        latest, verified = replace(again, attempt=reflection), again.success
        scores.append(again.feedback.score)
        if verified:
            break
    if made.reflection is None:
        return made
    return replace(made, reflection=replace(made.reflection, trajectory=first, verified=verified, scores=tuple(scores)))


def record_of(
    step: Step, number: int, epoch: int, batch: Sequence[int], before: dict[str, Usage], engine: Engine
) -> Record:
    """Return what the journal keeps of a step.

    Args:
        step: the outcome.
        number, epoch: of the step.
        batch: the position in the trainset of each trajectory.
        before: the usage by role before the step.
        engine: its meter tells the usage now.
    """
    trajectories = [attempt.trajectory for attempt in step.attempts if attempt.trajectory is not None]
    return Record(
        step=number,
        epoch=epoch,
        batch=tuple(batch),
        scores=tuple(trajectory.feedback.score for trajectory in trajectories),
        failures=tuple(failure for attempt in step.attempts for failure in attempt.failures),
        reflections=tuple(_told(attempt) for attempt in step.attempts if attempt.asked),
        curation=step.curation,
        delta=step.delta,
        rejected=tuple(rejected.to_json() for rejected in step.rejected),
        rollouts=sum(attempt.rollouts for attempt in step.attempts),
        usage=since(engine.meter.totals(), before),
    )


def since(totals: dict[str, Usage], before: dict[str, Usage]) -> dict[str, dict[str, int]]:
    """Return calls and tokens by role between two readings of a meter; roles that made no call are left out."""
    kept = ("calls", "prompt_tokens", "completion_tokens")
    used = {
        role: {name: getattr(usage, name) - getattr(before.get(role, Usage()), name) for name in kept}
        for role, usage in totals.items()
    }
    return {role: counts for role, counts in used.items() if counts["calls"]}


def _told(attempt: Attempt) -> dict[str, Any]:
    """Return what a record says of a reflection."""
    example = "" if attempt.trajectory is None else attempt.trajectory.source
    if attempt.reflection is None:
        return {"example": example, "error": attempt.error}
    reflection = attempt.reflection
    return {"example": example, "insights": len(reflection.insights), "verified": reflection.verified}


def _curate(
    engine: Engine, state: State, reflections: Sequence[Reflection]
) -> tuple[Delta, Sequence[Rejected], str | None]:
    """Curate a batch in one call. Returns the delta, what was left out, and how the call ended (see `Record`)."""
    reviewed = [reflection for reflection in reflections if reflection.insights]
    if not reviewed:
        return Delta(), (), None
    try:
        delta, rejected = engine.curate(state.playbook, reviewed, state.curator_works)
    except RunError:
        raise
    except LimitReachedError as error:
        return Delta(), (Rejected(None, f"the reflections were not curated: {error}"),), None
    except Exception as error:  # noqa: BLE001 - a role may be any callable; its failure is recorded, not lost
        return Delta(), (), words_of(error)
    return delta, rejected, ""


def _for_predictors_that_ran(delta: Delta, trajectories: Sequence[Trajectory]) -> Delta:
    """Clear `predictor` of each Add whose predictor did not run in the examples that it comes from.

    If no calls were traced, it is kept.
    """
    ran = {t.source: {call.predictor for call in t.trace} - {""} for t in trajectories}

    def addressed(operation: Operation) -> Operation:
        if not isinstance(operation, Add) or operation.predictor is None:
            return operation
        named = [source for source in operation.sources if source in ran] or list(ran)
        known = {name for source in named for name in ran[source]}
        return replace(operation, predictor=None) if known and operation.predictor not in known else operation

    return Delta(tuple(map(addressed, delta.operations)))


def _votes(playbook: Playbook, reflections: Sequence[Reflection]) -> list[Tag]:
    """Return one vote per bullet and example.

    An id that the example was not shown becomes "… (not shown)", so that `admit` rejects it.
    """
    votes = []
    for reflection in reflections:
        trajectory = reflection.trajectory
        source = trajectory.source if trajectory is not None else None
        shown = set(trajectory.shown) if trajectory is not None else set()
        for name, vote in reflection.tags.items():
            bullet = playbook.get(name)
            known = bullet.id if bullet is not None and bullet.id in shown else f"{name} (not shown)"
            if vote != "neutral":
                votes.append(Tag(known, int(vote == "helpful"), int(vote == "harmful"), source))
    return votes


def _citations(successes: Sequence[Trajectory]) -> list[Tag]:
    """Return one helpful vote for each bullet cited by a success that was not reflected on."""
    return [Tag(cited, 1, 0, success.source) for success in successes for cited in success.cited]
