"""The rollouts of one run: each counted, each failure kept, and an end when there is no sense in going on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import dspy

from ..errors import MetricError, RunError
from ..lm import Books, one_by_one
from ..program import NO_EVIDENCE, Crew, Rollouts, Scorer, Trajectory

_FIRST = 3  # rollouts that may fail before it is known whether metric and LM work


class Roller:
    """Rolls out programs for one run.

    Args:
        scorer: the metric.
        **settings: `failure_score`, `perfect_score`, `timeout` and `setup` of `rollouts`.
    """

    def __init__(self, scorer: Scorer, **settings: Any) -> None:
        self.scorer, self.settings = scorer, settings
        self.proven = False
        self.hopeless: list[Trajectory] = []  # the latest rollouts: those in a row that provider or metric failed
        self._proving = threading.Lock()

    def roll(
        self,
        program: dspy.Module,
        examples: Sequence[dspy.Example],
        names: Sequence[str],
        crew: Crew,
        books: Books,
        then: Callable[[Trajectory], None] | None = None,
    ) -> list[Trajectory]:
        """Roll out, in order; at first three examples and no more, until one shows that metric and LM work.

        Args:
            program: a training copy; its pinned LMs are changed to show every attempt.
            examples, names: one name an example.
            crew: the threads to run in.
            books: where the rollouts are booked.
            then: called with each trajectory as soon as it is there, in its thread.

        Raises:
            RunError, MetricError: so many in a row failed that there is no sense in going on.
        """
        if not examples:
            return []
        run = self._rollouts(program, books)

        def one(position: int) -> Trajectory:
            trajectory = self._one(run, examples[position], names[position], books)
            if then is not None:
                then(trajectory)
            return trajectory

        begun: list[Future[Trajectory]] = []
        if not self.proven:
            with self._proving:  # of two that begin at once, one waits for what the other finds
                if not self.proven:
                    begun = self._first(one, len(examples), crew)
        begun += crew.submit_all(one, range(len(begun), len(examples)))
        made = crew.results(begun)
        self._check_alive(made, max(_FIRST, min(8, len(examples))))
        return made

    def again(
        self, program: dspy.Module, example: dspy.Example, name: str, books: Books, which: str = ""
    ) -> Trajectory:
        """Roll out one example in the caller's thread; `which` tells a retry from the first attempt."""
        return self._one(self._rollouts(program, books), example, name, books, which)

    def _rollouts(self, program: dspy.Module, books: Books) -> Rollouts:
        for _, predictor in program.named_predictors():
            predictor.lm = one_by_one(predictor.lm)
        return Rollouts(program, self.scorer, books.meter, **self.settings)

    def _one(self, run: Rollouts, example: dspy.Example, name: str, books: Books, which: str = "") -> Trajectory:
        books.take(1)
        trajectory = run.one(example, name)
        if trajectory.error is not None:
            books.failures[name + which] = {"kind": trajectory.error.kind, "message": trajectory.error.message}
        return trajectory

    def _first(self, one: Callable[[int], Trajectory], examples: int, crew: Crew) -> list[Future[Trajectory]]:
        """Begin so many that may fail before there is no sense in going on; until one works, or all have failed."""
        begun = crew.submit_all(one, range(min(examples, max(1, _FIRST - len(self.hopeless)))))
        left = set(begun)
        while left and not self.proven:
            ended, left = wait(left, return_when=FIRST_COMPLETED)
            self.proven = any(_is_alive(future.result()) for future in ended)
        if not self.proven:
            self._check_alive([future.result() for future in begun], _FIRST)
            self.hopeless = self.hopeless[: -len(begun)]  # they are looked at again with the rest
        return begun

    def _check_alive(self, latest: list[Trajectory], limit: int) -> None:
        """Raises RunError or MetricError if so many rollouts in a row failed, and not by the program's fault."""
        for trajectory in latest:
            self.hopeless = [] if _is_alive(trajectory) else [*self.hopeless, trajectory]
        if len(self.hopeless) >= limit:
            raise _dead(self.hopeless)

    def check_proven(self) -> None:
        """Raises RunError or MetricError if there were rollouts, too few to tell, and metric or LM failed in each."""
        if self.hopeless and not self.proven:
            raise _dead(self.hopeless)


def _is_alive(trajectory: Trajectory) -> bool:
    """Whether provider, metric and environment did their part."""
    return trajectory.error is None or trajectory.error.kind not in NO_EVIDENCE


def _dead(trajectories: list[Trajectory]) -> RunError | MetricError:
    last = trajectories[-1]
    kind, message = ("", "") if last.error is None else (last.error.kind, last.error.message)
    if kind == "setup":
        return RunError(
            f"setup= failed on {len(trajectories)} examples in a row; on example {last.source}: {message} It is called "
            "with an example and returns a context manager."
        )
    if kind == "metric":
        return MetricError(
            f"The metric failed on {len(trajectories)} examples in a row; on example {last.source}: {message}"
        )
    return RunError(
        f"The LM failed on every one of {len(trajectories)} examples in a row; on example {last.source}: "
        f"{message} Check the model's name, key, address and limits."
    )
