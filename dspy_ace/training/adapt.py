"""One adaptation step: trajectories in, the next playbook out (ACE §3.2, §3.3). Offline and online share it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from ..errors import RunError
from ..playbook import Add, Delta, Playbook, Rejected, Tag, admit, apply, combine
from ..program import Crew, Trajectory, there
from ..roles import Curate, Refine, Reflect, Reflection

ReflectOn = Literal["all", "failures"]
Value = TypeVar("Value")
Retry = Callable[[Trajectory, Reflection], Trajectory | None]
Reflected = tuple[Reflection | None, list[Rejected]]
Curated = tuple[Delta, Sequence[Rejected]]


@dataclass(frozen=True)
class Step:
    """What one step did.

    Args:
        playbook: the playbook after it.
        delta: all its operations in order: tags, the curator's, the refiner's. `apply` takes them from
            the playbook before to the one after.
        rejected: operations and replies that were left out, each with its reason.
        score: mean score of the batch, rolled out *before* it was learned from; None for an empty batch.
        reflections: in the order of the examples; those whose role call failed are missing (see `rejected`).
    """

    playbook: Playbook
    delta: Delta
    rejected: tuple[Rejected, ...]
    score: float | None
    reflections: tuple[Reflection, ...] = ()


class Adaptation:
    """One step under way: trajectories go in as they come, in any order, from any thread; the step comes out.

    Nothing waits for more than it needs: a trajectory is reflected on at once, and a group of reflections is curated
    as soon as it is full. What comes out does not depend on which thread ends first.

    Args:
        met: the snapshot that every trajectory of the batch was made with.
        playbook: the one that is adapted: `met`, or what has become of it since. Curating waits for it.
        reflect, curate: the roles; see their Protocols in `dspy_ace.roles`.
        crew: the threads that curate.
        retry, rounds, group_size: see `adapt`.
    """

    def __init__(
        self,
        met: Playbook,
        playbook: Future[Playbook],
        reflect: Reflect,
        curate: Curate,
        crew: Crew,
        *,
        retry: Retry | None = None,
        rounds: int = 1,
        group_size: int = 4,
    ) -> None:
        self._met, self._playbook, self._crew = met, playbook, crew
        self._reflect_with, self._curate_with = reflect, curate
        self._retry, self._rounds, self._group_size = retry, rounds, group_size
        self._done: dict[int, Reflected] = {}
        self._taught: set[int] = set()
        self._next = 0
        self._group: list[Reflection] = []
        self._curated: list[Future[Future[Curated]]] = []
        self._lock = threading.Lock()

    def add(self, position: int, trajectory: Trajectory, taught: bool) -> None:
        """Reflect on a trajectory, if it is to be, and curate the group that it completes.

        Args:
            position: its place in the batch, counted from 0.
            trajectory: the rollout.
            taught: whether it is reflected on, see `is_taught`.

        Raises:
            RunError: a role said that it is of no use to go on.
        """
        reflected: Reflected = (None, [])
        if taught:
            reflected = reflect_on_one(self._met, trajectory, self._reflect_with, self._retry, self._rounds)
        with self._lock:
            self._done[position] = reflected
            self._taught |= {position} if taught else set()
            while self._next in self._done:
                reflection, _ = self._done[self._next]
                self._next += 1
                if reflection is not None and reflection.insights:
                    self._group.append(reflection)
                if len(self._group) == self._group_size:
                    self._curate()

    def step(self, trajectories: Sequence[Trajectory], refine: Refine) -> Step:
        """The step, once every trajectory is in.

        Args:
            trajectories: the batch, in the order of its examples.
            refine: grow-and-refine.

        Raises:
            RunError: a role said that it is of no use to go on.
        """
        if self._group:
            self._curate()
        playbook = self._playbook.result()
        curated = [begun.result().result() for begun in self._curated]
        results = [self._done[position] for position in range(len(trajectories))]
        reflections = [reflection for reflection, _ in results if reflection is not None]
        failed = [rejected for _, several in results for rejected in several]

        unasked = [t for position, t in enumerate(trajectories) if t.success and position not in self._taught]
        tags, untagged = admit(playbook, _votes(self._met, reflections) + _credit(unasked))
        tagged = apply(playbook, tags)  # helpful / harmful, once per example

        combined, conflicts = combine([_at_home(delta, trajectories) for delta, _ in curated])
        delta, misfits = admit(tagged, combined.operations)
        grown = apply(tagged, delta)  # grow …

        merged = refine(grown)  # … and refine
        rejected = (*failed, *untagged, *(item for _, items in curated for item in items), *conflicts, *misfits)
        score = sum(t.feedback.score for t in trajectories) / len(trajectories) if trajectories else None
        return Step(apply(grown, merged), tags + delta + merged, rejected, score, tuple(reflections))

    def _curate(self) -> None:
        group, self._group = self._group, []
        begun: Future[Future[Curated]] = Future()
        self._curated.append(begun)

        def begin(playbook: Future[Playbook]) -> None:
            try:
                work = partial(_curate, playbook.result(), curate=self._curate_with)
                begun.set_result(self._crew.submit(work, group))
            except BaseException as error:  # noqa: BLE001 - it is raised again where the result is waited for
                begun.set_exception(error)

        self._playbook.add_done_callback(begin)
        if begun.done():
            begun.result()  # what could not even begin is raised here


def adapt(
    playbook: Playbook,
    trajectories: Sequence[Trajectory],
    reflect: Reflect,
    curate: Curate,
    refine: Refine,
    *,
    retry: Retry | None = None,
    rounds: int = 1,
    reflect_on: ReflectOn = "all",
    group_size: int = 4,
    num_threads: int = 8,
) -> Step:
    """Learn from a batch that met `playbook`.

    Args:
        playbook: the snapshot that every trajectory of the batch was made with.
        trajectories: the batch, in the order of its examples.
        reflect, curate, refine: the roles; see their Protocols in `dspy_ace.roles`. The curator sees the counters as
            they were before this batch.
        retry: runs an example again with the insights of a reflection in view, or returns None where the budget
            does not allow it; None: never.
        rounds: at most so many reflections (and retries) for a failure; 0: one reflection and no retry.
        reflect_on: every trajectory, or failures only; a success then counts for the bullets it cites.
        group_size: so many reflections are curated in one call; groups run in parallel.
        num_threads: at most so many role calls at once.

    Returns:
        The step. The same batch gives the same step, whichever thread ends first.

    Raises:
        RunError: a role said that it is of no use to go on. Other failures of a role are recorded in the step.
    """
    with Crew(num_threads) as crew:
        under_way = Adaptation(
            playbook, there(playbook), reflect, curate, crew,
            retry=retry, rounds=rounds, group_size=group_size,
        )  # fmt: skip
        crew.map(lambda pair: under_way.add(*pair, is_taught(pair[1], reflect_on)), list(enumerate(trajectories)))
        return under_way.step(trajectories, refine)


def is_taught(trajectory: Trajectory, reflect_on: ReflectOn) -> bool:
    """Whether a trajectory is reflected on."""
    return trajectory.teaches and (reflect_on == "all" or not trajectory.success)


def reflect_on_one(
    playbook: Playbook, first: Trajectory, reflect: Reflect, retry: Retry | None, rounds: int
) -> Reflected:
    """Reflect on one trajectory; a failure is tried again with the insights in view, in rounds (ACE §3.2).

    Only the last reflection is returned: what it keeps of the earlier ones is its business.

    Args:
        playbook, reflect, retry, rounds: see `adapt`.
        first: the first attempt.

    Returns:
        The reflection, or None if the role failed; and what was left out, with the reason.

    Raises:
        RunError: the role said that it is of no use to go on.
    """
    reflection: Reflection | None = None
    failed: list[Rejected] = []
    verified: bool | None = None
    attempt, scores = first, [first.feedback.score]
    for _ in range(max(1, rounds)):
        try:
            reflection = _expect(Reflection, reflect(playbook, attempt))
        except RunError:
            raise
        except Exception as error:  # noqa: BLE001 - a role may be any callable; its failure is recorded, not lost
            reason = f"reflection on example {first.source} failed: {type(error).__name__}: {error}"
            failed.append(Rejected(None, reason))
            break
        if first.success or retry is None or rounds == 0 or not reflection.insights:
            break
        again = retry(first, reflection)
        if again is None or not again.teaches:  # no retry was made: no evidence either way
            break
        attempt = replace(again, attempt=reflection)
        scores.append(attempt.feedback.score)
        verified = attempt.success
        if verified:
            break
    if reflection is not None:
        reflection = replace(reflection, trajectory=first, verified=verified, scores=tuple(scores))
    return reflection, failed


def _curate(playbook: Playbook, group: Sequence[Reflection], curate: Curate) -> Curated:
    """Curate one group; a failed call loses this group's lessons only, and says so."""
    try:
        delta, rejected = curate(playbook, group)
        return _expect(Delta, delta), tuple(rejected)
    except RunError:
        raise
    except Exception as error:  # noqa: BLE001 - a role may be any callable; its failure is recorded, not lost
        examples = ", ".join(r.trajectory.source for r in group if r.trajectory is not None)
        reason = f"curation of examples {examples} failed: {type(error).__name__}: {error}"
        return Delta(), (Rejected(None, reason),)


def _at_home(delta: Delta, trajectories: Sequence[Trajectory]) -> Delta:
    """`delta` with no lesson put down to a predictor that ran in none of its examples: such a lesson is for all.

    Where no call is known, nothing is known of who ran, and the address stands.
    """
    ran = {t.source: {call.predictor for call in t.trace} - {""} for t in trajectories}
    operations = []
    for operation in delta.operations:
        if isinstance(operation, Add) and operation.predictor is not None:
            named = [source for source in operation.sources if source in ran] or list(ran)
            known = {name for source in named for name in ran[source]}
            if known and operation.predictor not in known:
                operation = replace(operation, predictor=None)  # noqa: PLW2901 - it is the same lesson
        operations.append(operation)
    return Delta(tuple(operations))


def _expect(kind: type[Value], value: Any) -> Value:
    """`value`, if the role kept its contract. Raises TypeError if not."""
    if not isinstance(value, kind):
        raise TypeError(f"expected a {kind.__name__} (see dspy_ace.roles); got {value!r:.200}")
    return value


def _votes(playbook: Playbook, reflections: Sequence[Reflection]) -> list[Tag]:
    """One vote a bullet and example. An id the example was not shown gets an id no bullet has: it is rejected."""
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


def _credit(successes: Sequence[Trajectory]) -> list[Tag]:
    """A vote for each bullet that a success nobody reflected on says it relied on."""
    return [Tag(cited, 1, 0, success.source) for success in successes for cited in success.cited]
