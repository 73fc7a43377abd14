"""What one batch teaches: reflections start as rollouts end, retries stay within the budget."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import dspy

from ..lm import Books, Guard, Meter, working
from ..playbook import Playbook
from ..program import Crew, Trajectory, there, with_reflection
from ..roles import Refine, Reflection
from .adapt import Adaptation, ReflectOn, Step, is_taught
from .rolling import Roller


@dataclass(frozen=True)
class Role:
    """A role in one step.

    Args:
        guard: the role, which must show that it works.
        works: whether it is on record that it does.
        meter: where its calls are booked.
    """

    guard: Guard
    works: bool
    meter: Meter

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        with working(self.works):
            return self.guard(self.meter, *arguments)


class Lesson:
    """The learning of one batch.

    Args:
        student, met: what the batch is rolled out with.
        playbook: what it is learned into, see `Adaptation`.
        roles: reflector, curator, refiner.
        roller: makes the retries.
        crew: the threads of rollouts and roles together.
        books: where roles and retries are booked.
        names: the examples' sources, in order.
        rounds: reflections, each with a retry, that a failure gets at most; 0: one reflection and no retry.
        reflect_on: every rollout, or failures only.
        perfect: whether no fault of the student is known: then it is failures only. A success waits for that.
        group_size: reflections curated in one call.
        rollouts: how many examples of the batch are yet to be rolled out.
        unscored: sources of those that no metric has scored: a retry of them would show nothing.
    """

    def __init__(
        self,
        student: dspy.Module,
        met: Playbook,
        playbook: Future[Playbook],
        roles: tuple[Role, Role, Refine],
        roller: Roller,
        crew: Crew,
        books: Books,
        names: Sequence[str],
        *,
        rounds: int,
        reflect_on: ReflectOn,
        perfect: Future[bool],
        group_size: int,
        rollouts: int,
        unscored: Collection[str] = (),
    ) -> None:
        self._student, self._met, self._roller, self._crew, self._books = student, met, roller, crew, books
        self._reflector, curator, self._refine = roles
        self._rounds, self._unscored = rounds, unscored
        self._failures_only = there(True) if reflect_on == "failures" else perfect
        self._position = {name: position for position, name in enumerate(names)}
        self._under_way = Adaptation(
            met, playbook, self._reflector, curator, crew, retry=self._retry, rounds=rounds, group_size=group_size
        )  # fmt: skip
        wanted = rollouts + rounds * len(names)
        self._affordable = books.allowance.for_learning(wanted) == wanted  # every retry that may be asked for
        self._allowed: dict[str, int] = {}  # of those that have begun: retries left
        self._held: list[Trajectory] = []
        self._begun: list[Future[None]] = []
        self._made: Counter[str] = Counter()
        self._lock = threading.RLock()

    @property
    def at_once(self) -> Callable[[Trajectory], None] | None:
        """What to call with each trajectory as it comes; None when the budget must be shared out first."""
        if not self._affordable:
            return None
        self._failures_only.add_done_callback(lambda _: self._release())
        return self._take

    def learned(self, trajectories: Sequence[Trajectory]) -> Step:
        """The step that the whole batch makes."""
        with self._lock:
            self._held = []
            late = [trajectory for trajectory in trajectories if trajectory.source not in self._allowed]
            left = self._books.allowance.for_learning(self._rounds * len(late))
            for one in late:  # in order, not first come first served
                failed = one.teaches and not one.success and one.source not in self._unscored
                self._allowed[one.source] = min(self._rounds, left) if failed else 0
                left -= self._allowed[one.source]
        self._begun += self._crew.submit_all(self._add, [one for one in late if not one.success])
        self._failures_only.result()
        self._begun += self._crew.submit_all(self._add, [one for one in late if one.success])
        self._crew.results(self._begun)
        return self._under_way.step(trajectories, self._refine)

    def _take(self, trajectory: Trajectory) -> None:
        """Learn from it now, or as soon as that is possible; others go on meanwhile."""
        with self._lock:
            if not self._may_begin(trajectory):
                self._held.append(trajectory)
                return
            self._allowed[trajectory.source] = self._rounds
        self._teach(trajectory)

    def _teach(self, trajectory: Trajectory) -> None:
        self._add(trajectory)
        self._release()

    def _release(self) -> None:
        with self._lock:
            ready = [held for held in self._held if self._may_begin(held)]
            self._held = [held for held in self._held if all(held is not one for one in ready)]
            self._allowed |= {one.source: self._rounds for one in ready}
            self._begun += self._crew.submit_all(self._teach, ready)

    def _may_begin(self, trajectory: Trajectory) -> bool:
        """Not while it is open whether the reflector works, or whether a success is reflected on."""
        return not self._reflector.guard.busy and (not trajectory.success or self._failures_only.done())

    def _add(self, trajectory: Trajectory) -> None:
        which: ReflectOn = "failures" if trajectory.success and self._failures_only.result() else "all"
        self._under_way.add(self._position[trajectory.source], trajectory, is_taught(trajectory, which))

    def _retry(self, first: Trajectory, reflection: Reflection) -> Trajectory | None:
        if not self._allowed[first.source]:
            return None
        self._allowed[first.source] -= 1
        self._made[first.source] += 1
        program = with_reflection(self._student, self._met, reflection.insights)
        which = f", retry {self._made[first.source]}"
        return self._roller.again(program, first.example, first.source, self._books, which)
