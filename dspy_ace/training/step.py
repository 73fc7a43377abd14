"""One learning step: roll a batch out, reflect, curate, grow and refine (ACE §3). Offline and online share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import dspy

from ..errors import RunError
from ..lm import LimitReachedError, Usage
from ..playbook import Add, Delta, Operation, Playbook, Rejected, Tag, admit, apply
from ..program import Rollouts, ThreadPool, Trajectory, shared_pieces, with_playbook, with_reflection, words_of
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
class Together:
    """The reflection on the successes of a batch.

    Args:
        trajectories: the successes.
        reflections: what they show; each names those that it rests on.
        error: why it failed; `""`: it did not.
    """

    trajectories: tuple[Trajectory, ...]
    reflections: tuple[Reflection, ...] = ()
    error: str = ""


class Reflected(NamedTuple):
    """A batch that was reflected on: one attempt an example, and the successes together (None: nobody was asked)."""

    attempts: tuple[Attempt, ...]
    together: Together | None = None

    @property
    def errors(self) -> list[str]:
        """How each reflection ended: the error, or `""`."""
        ended = [attempt.error for attempt in self.attempts if attempt.asked]
        return ended if self.together is None else [*ended, self.together.error]

    @property
    def reflections(self) -> tuple[Reflection, ...]:
        """The reflections in the order of the examples; then those on the successes together."""
        alone = tuple(attempt.reflection for attempt in self.attempts if attempt.reflection is not None)
        return alone if self.together is None else alone + self.together.reflections


@dataclass(frozen=True)
class Step:
    """The outcome of one step: what was learned from its attempts.

    Args:
        playbook: the playbook after it.
        delta: all operations in order: votes, the Curator's, the refiner's. Applied to the playbook before the step,
            it gives `playbook`.
        rejected: operations that were left out, each with its reason.
        reflected: the batch, one attempt an example, in order.
        curation: see `Record`.
    """

    playbook: Playbook
    delta: Delta
    rejected: tuple[Rejected, ...] = ()
    reflected: Reflected = field(default_factory=lambda: Reflected(()))
    curation: str | None = None


def learn(run: Run, state: State, batch: Batch, pool: ThreadPool) -> Record:
    """Roll a batch out with the playbook as it stands, and learn from it.

    The batch is rolled out. Then each failure is one task in one thread: reflection and retries; and the successes are
    one task together. Then the batch is curated once.

    Returns:
        The record of the step. If a limit was reached, it covers only the examples that were rolled out.

    Raises:
        RunError, MetricError: LM, metric, set-up or a role keeps failing, see `stopping`.
        LimitReachedError: a limit left no example of the batch.
    """
    engine, before, shares = run.engine, run.engine.meter.totals(), run.shares(batch)
    rollouts = engine.rollouts(with_playbook(engine.student, state.playbook, cite=True))

    def roll_out(share: Share) -> Attempt:
        return first_attempt(engine, rollouts, run.trainset[share.position], str(share.position))

    with engine.limits.keeping_back():  # for the curation
        attempts = roll_out_in_waves(roll_out, shares, pool, state.records)
        if batch.epoch > 1:
            solved = state.solved(engine.settings.perfect_score)
            attempts = [with_baseline(attempt, solved, state.playbook) for attempt in attempts]
        retries = [share.retries for share in shares]
        reflected = reflect_on_batch(engine, state, list(zip(attempts, retries, strict=True)), pool)
    if engine.limits.reached and not any(attempt.trajectory for attempt in attempts):
        raise LimitReachedError(engine.limits.reached)  # nothing was done: there is nothing to record
    step = learn_from(engine, state, reflected)
    met = [int(trajectory.source) for trajectory in trajectories_of(attempts)]
    return record_of(step, state.step + 1, batch.epoch, met, before, engine)


def first_attempt(engine: Engine, rollouts: Rollouts, example: dspy.Example, source: str) -> Attempt:
    """Roll one example out. Once a limit is reached, the attempt has no trajectory."""
    if engine.limits.reached:
        return Attempt()
    try:
        first = engine.roll_out(rollouts, example, source)
    except LimitReachedError:
        return Attempt(rollouts=1)
    return Attempt(first, failures=failures_of(Rollout(source), first), rollouts=1)


def with_baseline(attempt: Attempt, solved: Mapping[str, Playbook], playbook: Playbook) -> Attempt:
    """Note on a failure which of the bullets it cites were not there, or said something else, when it was a success.

    Args:
        attempt: made with `playbook`.
        solved: see `State.solved`.
        playbook: the one that it saw.
    """
    made = attempt.trajectory
    if made is None or made.success or (then := solved.get(made.source)) is None:
        return attempt
    old = {bullet.id: bullet.content for bullet in then}
    new = tuple(bullet.id for bullet in playbook if bullet.id in made.cited and old.get(bullet.id) != bullet.content)
    return replace(attempt, trajectory=replace(made, solved_before=new))


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


def reflect_on_batch(engine: Engine, state: State, batch: Sequence[tuple[Attempt, int]], pool: ThreadPool) -> Reflected:
    """Reflect on a batch that was rolled out: on each failure alone, and on the successes together.

    Until one reflection has worked, only three are tried: so a broken Reflector costs three calls. With a metric,
    successes are reflected on only once the student has made a mistake: a perfect one costs no role call.

    Args:
        engine, state: see `learn_from`.
        batch: the first attempts, each with the retries that it may have.
        pool: the threads.

    Raises:
        RunError: the Reflector never worked.
        MetricError: all first scores lie outside of the scale.
    """
    settings, attempts = engine.settings, [made for made, _ in batch]
    trajectories = trajectories_of(attempts)
    check_scores(settings.scale, state.records, trajectories)
    errs = not state.flawless(settings.perfect_score) or any(not trajectory.success for trajectory in trajectories)
    of_successes = settings.reflect_on == "all" and (errs or settings.metric is None)
    shared = shared_pieces([trajectory.inputs for trajectory in trajectories])
    successes = tuple(replace(trajectory, shared=shared) for trajectory in trajectories if trajectory.success)
    grouped = successes if of_successes and engine.together else ()

    def asked_alone(trajectory: Trajectory | None) -> bool:
        if trajectory is None or not trajectory.teaches:
            return False
        return not trajectory.success or (of_successes and not grouped)

    alone = [at for at, made in enumerate(attempts) if asked_alone(made.trajectory)]
    tasks: list[Callable[[], Any]] = [partial(reflect_in_rounds, engine, state, *batch[at], shared) for at in alone]
    tasks += [partial(reflect_together, engine, state, grouped)] if grouped else []
    first = len(tasks) if state.reflector_works else FIRST
    done: list[Any] = []
    for part in (tasks[:first], tasks[first:]):
        done += pool.map(lambda task: task(), part)
        made = dict(zip(alone, done))  # noqa: B905 - the successes, and what is not done yet, are left over
        together = done[-1] if grouped and len(done) == len(tasks) else None
        reflected = Reflected(tuple(made.get(at, attempt) for at, attempt in enumerate(attempts)), together)
        check_roles(state.records, reflected.errors)
    return reflected


def trajectories_of(attempts: Sequence[Attempt]) -> list[Trajectory]:
    """Return the trajectories of the attempts that have one; a limit can leave an attempt without."""
    return [attempt.trajectory for attempt in attempts if attempt.trajectory is not None]


def learn_from(engine: Engine, state: State, reflected: Reflected) -> Step:
    """Curate the reflections of a batch, grow and refine.

    Bullets that a success cites have a vote each: whoever follows a bullet and is right was helped by it.

    Args:
        engine: the roles.
        state: the state before this batch: its playbook and records.
        reflected: the batch.

    Raises:
        RunError: the Curator never worked, or raised RunError to end the run.
    """
    attempts, together = reflected
    trajectories = trajectories_of(attempts)
    # told online, successes whose reflection failed may come again: then they vote
    lost = {t.source for t in together.trajectories} if together is not None and together.error else set[str]()
    alone = {attempt.trajectory.source for attempt in attempts if attempt.trajectory is not None and attempt.asked}
    cites = [t for t in trajectories if t.success and t.source not in lost | alone]

    playbook = state.playbook
    reflections = [attempt.reflection for attempt in attempts if attempt.reflection is not None]
    votes, unknown = admit(playbook, _votes(playbook, reflections) + _citations(cites))
    voted = apply(playbook, votes)  # at most one vote per bullet and example
    delta, left_out, curation = _curate(engine, state, voted, reflected.reflections)
    check_roles(state.records, curation=curation)
    admitted, misfits = admit(voted, delta.operations)
    added = _for_predictors_that_ran(admitted, trajectories)
    grown = apply(voted, added)  # grow …
    rejected = (*unknown, *left_out, *misfits)
    try:
        refined = engine.refine(grown)  # … and refine (ACE §3.3)
    except LimitReachedError as error:
        refined, rejected = Delta(), (*rejected, Rejected(None, f"the playbook was not refined: {error}"))
    return Step(apply(grown, refined), votes + added + refined, rejected, reflected, curation)


def reflect_together(engine: Engine, state: State, successes: tuple[Trajectory, ...]) -> Together | None:
    """Reflect on the successes of a batch together; None if a limit is reached.

    Raises:
        RunError: the role raised it to end the run. Other errors are kept in `Together.error`.
    """
    if engine.limits.reached:
        return None
    try:
        return Together(successes, engine.reflect_on_successes(state.playbook, successes, state.reflector_works))
    except RunError:
        raise
    except LimitReachedError:
        return None
    except Exception as error:  # noqa: BLE001 - a role may be any callable; its failure is recorded, not lost
        return Together(successes, error=words_of(error))


def reflect_in_rounds(
    engine: Engine, state: State, made: Attempt, retries: int, shared: frozenset[str] = frozenset()
) -> Attempt:
    """Reflect on one example; after a failure it is rolled out again with the insights in the prompt (ACE §3.2).

    Once a limit is reached, no reflection is asked for. Only the last reflection is used; it must repeat what it keeps
    of earlier ones.

    Args:
        engine: the Reflector, and the program.
        state: the state before this batch: its playbook and records.
        made: the first attempt.
        retries: the limit of retries.
        shared: see `Trajectory`.

    Returns:
        The attempt with its reflection. If a limit is reached, the attempt so far.

    Raises:
        RunError: the role raised it to end the run. Other errors are kept in `Attempt.error`.
    """
    if made.trajectory is None or engine.limits.reached:
        return made
    first, playbook = replace(made.trajectory, shared=shared), state.playbook
    latest, verified, tried = first, None, list[Trajectory]()
    for number in range(1, max(1, retries) + 1):
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
        if first.success or not retries or not reflection.insights:
            break
        try:
            program = with_reflection(engine.student, playbook, reflection.insights)
            again = engine.roll_out(engine.rollouts(program), first.example, first.source)
        except LimitReachedError:
            made = replace(made, rollouts=made.rollouts + 1)  # it was begun
            break
        failed = failures_of(Rollout(first.source, retry=number), again)
        made = replace(made, failures=(*made.failures, *failed), rollouts=made.rollouts + 1)
        if not again.teaches:  # provider or metric failed: no evidence either way
            break
        told = replace(reflection, trajectory=first, retries=tuple(tried))
        latest, verified = replace(again, attempt=told, shared=shared), again.success
        tried.append(latest)
        if verified:
            break
    if made.reflection is None:
        return made
    return replace(made, reflection=replace(made.reflection, trajectory=first, verified=verified, retries=tuple(tried)))


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
    attempts, trajectories = step.reflected.attempts, trajectories_of(step.reflected.attempts)
    return Record(
        step=number,
        epoch=epoch,
        batch=tuple(batch),
        scores=tuple(trajectory.feedback.score for trajectory in trajectories),
        failures=tuple(failure for attempt in attempts for failure in attempt.failures),
        reflections=tuple(_told(step)),
        curation=step.curation,
        delta=step.delta,
        rejected=tuple(rejected.to_json() for rejected in step.rejected),
        rollouts=sum(attempt.rollouts for attempt in attempts),
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


def _told(step: Step) -> Iterator[dict[str, Any]]:
    """Yield what a record says of each reflection."""
    for attempt in step.reflected.attempts:
        example = [] if attempt.trajectory is None else [attempt.trajectory.source]
        if attempt.reflection is not None:
            found = attempt.reflection
            yield {"examples": example, "insights": len(found.insights), "verified": found.verified}
        elif attempt.error:
            yield {"examples": example, "error": attempt.error}
    if (group := step.reflected.together) is not None:
        insights = sum(len(reflection.insights) for reflection in group.reflections)
        ended = {"error": group.error} if group.error else {"insights": insights, "verified": None}
        yield {"examples": [trajectory.source for trajectory in group.trajectories], **ended}


def _curate(
    engine: Engine, state: State, playbook: Playbook, reflections: Sequence[Reflection]
) -> tuple[Delta, Sequence[Rejected], str | None]:
    """Curate a batch in one call. Returns the delta, what was left out, and how the call ended (see `Record`)."""
    reviewed = [reflection for reflection in reflections if reflection.insights]
    if not reviewed:
        return Delta(), (), None
    try:
        delta, rejected = engine.curate(playbook, reviewed, state.curator_works)
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
    """Return one vote per bullet and example: the first, if a reply names a bullet twice.

    An id that the example was not shown becomes "… (not shown)", so that `admit` rejects it.
    """
    votes: dict[tuple[str | None, str], Tag] = {}
    for reflection in reflections:
        trajectory = reflection.trajectory
        source = trajectory.source if trajectory is not None else None
        shown = set(trajectory.shown) if trajectory is not None else set()
        for name, vote in reflection.tags.items():
            bullet = playbook.get(name)
            known = bullet.id if bullet is not None and bullet.id in shown else f"{name} (not shown)"
            if vote in ("helpful", "harmful"):
                votes.setdefault((source, known), Tag(known, int(vote == "helpful"), int(vote == "harmful"), source))
    return list(votes.values())


def _citations(successes: Sequence[Trajectory]) -> list[Tag]:
    """Return one helpful vote for each bullet cited by a success that was not reflected on alone."""
    return [Tag(cited, 1, 0, success.source) for success in successes for cited in success.cited]
