"""The engine: runs the program and the roles, counts every call, and holds the limits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Any

import dspy

from ..errors import RoleError
from ..lm import LimitReachedError, Limits, Measurement, Meter, Usage, added, scope, working
from ..playbook import Delta, Playbook, Rejected
from ..program import Rollouts, Scorer, Trajectory, copy_program, showing, words_of
from ..roles import Curator, GrowAndRefine, Reflection, Reflector, limited
from .remote import Remote, RemoteRollouts, packed
from .settings import LearningSettings

logger = logging.getLogger("dspy.ace")


class Engine:
    """Runs a student program and the three roles under one set of settings.

    Args:
        settings: of a compile, or of a program that learns while it is used.
        student: the program; it is not changed.
        limits: of a run; None: those of the settings.
        executor: makes the rollouts; None: the threads that ask for them do.

    Attributes:
        student: the program as it will be run: with `prompt_bullets`, if they are set.
        limits: calls, dollars, seconds and rollouts so far, and how many there may be.
        meter: the usage by role.
    """

    def __init__(
        self,
        settings: LearningSettings,
        student: dspy.Module,
        limits: Limits | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.settings = settings
        self.student = showing(student, settings.prompt_bullets)
        self.limits = limits or Limits(
            max_lm_calls=settings.max_lm_calls, max_cost=settings.max_cost, max_seconds=settings.max_seconds
        )
        self.meter = Meter()
        self.scorer = Scorer(settings.metric)
        self._on_scale = True
        self.num_threads: int = settings.num_threads or dspy.settings.num_threads or 8
        own = next((p.lm for _, p in self.student.named_predictors() if p.lm), None) or dspy.settings.lm
        self._role_lm = settings.reflection_lm or own
        self.reflector = settings.reflect or Reflector()
        self.curator = limited(settings.curate or Curator(), settings.max_playbook_tokens)
        self.refiner = limited(settings.refine or GrowAndRefine(), settings.max_playbook_tokens)
        self._remote = None if executor is None else Remote(executor, self.limits, self.meter, self.num_threads)
        self._asking = Rollouts(copy_program(self.student), self.scorer, self.meter, setup=settings.setup)

    def scope(self) -> AbstractContextManager[None]:
        """Return a scope in which every LM call passes the limits; those of no role are counted as `other`."""
        return scope(Measurement(self.meter, "other", self.limits))

    def check_examples(self, sets: Mapping[str, Sequence[dspy.Example]]) -> None:
        """Raise SettingsError if an example cannot be sent to the executor's workers."""
        for name, examples in sets.items() if self._remote is not None else ():
            for place, example in enumerate(examples):
                packed({f"{name}[{place}]": example}, example)

    def rollouts(self, program: dspy.Module) -> Rollouts:
        """Return what runs `program` on one example after the other."""
        settings = self.settings
        options: dict[str, Any] = {
            "failure_score": settings.failure_score,
            "perfect_score": settings.perfect_score,
            "timeout": settings.rollout_timeout,
            "setup": settings.setup,
        }
        if self._remote is not None:
            return RemoteRollouts(self._remote, program, self.scorer, self.meter, **options)
        return Rollouts(program, self.scorer, self.meter, **options)

    def roll_out(self, rollouts: Rollouts, example: dspy.Example, source: str) -> Trajectory:
        """Run and score one example. Every way to fail ends in a trajectory."""
        self.limits.count_rollouts(1)
        trajectory = rollouts.one(example, source)
        if trajectory.error is None and self.settings.metric is not None:
            self.hear(trajectory.feedback.score)
        return trajectory

    def hear(self, score: float) -> None:
        """Warn of the first score that lies outside of the scale of the metric."""
        scale = self.settings.scale
        if self._on_scale and not scale.holds(score):
            self._on_scale = False
            logger.warning(
                "ACE: the score %g lies outside of the scale from failure_score=%g to perfect_score=%g. %s",
                score,
                *scale,
                f"Every score from {scale.perfect:g} on is a success, which nothing is learned from: set perfect_score "
                "to the best score of the metric."
                if score > scale.perfect
                else "Set failure_score to the worst score of the metric, and perfect_score to the best.",
            )

    def reflect(self, playbook: Playbook, trajectory: Trajectory, works: bool) -> Reflection:
        """Ask the Reflector (ACE §3.2).

        Args:
            playbook, trajectory: see `Reflect`.
            works: True if the role has worked before in this run: then an unreadable reply is asked for again.

        Raises:
            TypeError: the role returned something else than a Reflection. What it raises passes through.
        """
        trajectory = self._asking.ask_by_predictor(trajectory)
        reflection = self._ask("reflector", works, self.reflector, playbook, trajectory)
        if not isinstance(reflection, Reflection):
            raise TypeError(f"expected a Reflection (see dspy_ace.roles); got {reflection!r:.200}")
        return reflection

    @property
    def together(self) -> bool:
        """True if the Reflector takes the successes of a batch together, see `Reflect`."""
        return callable(getattr(self.reflector, "on_successes", None))

    def reflect_on_successes(
        self, playbook: Playbook, trajectories: Sequence[Trajectory], works: bool
    ) -> tuple[Reflection, ...]:
        """Ask the Reflector about successes together. See `reflect`."""

        def on_successes() -> tuple[Any, ...]:
            return tuple(self.reflector.on_successes(playbook, trajectories))  # type: ignore[union-attr]

        reflections: tuple[Reflection, ...] = self._ask("reflector", works, on_successes)
        for each in reflections:
            if not isinstance(each, Reflection):
                raise TypeError(f"expected Reflections (see dspy_ace.roles); got {each!r:.200}")
        return reflections

    def curate(
        self, playbook: Playbook, reflections: Sequence[Reflection], works: bool
    ) -> tuple[Delta, Sequence[Rejected]]:
        """Ask the Curator (ACE §3.1). See `reflect`; raises TypeError for anything but a Delta."""
        delta, rejected = self._ask("curator", works, self.curator, playbook, reflections)
        if not isinstance(delta, Delta):
            raise TypeError(f"expected a Delta (see dspy_ace.roles); got {delta!r:.200}")
        return delta, tuple(rejected)

    def refine(self, playbook: Playbook) -> Delta:
        """Grow and refine (ACE §3.3). An embedder's LM calls are counted as `refiner`."""
        refined: Delta = self._ask("refiner", True, self.refiner, playbook)
        return refined

    def _ask(self, name: str, works: bool, role: Callable[..., Any], *given: Any) -> Any:
        """Call a role and count its LM calls. In it exit() is the role's failure, not the script's end.

        Where a limit refuses one of its calls and it returns what the calls before gave, that is kept: it is paid for.
        """
        answer = None
        try:
            with self.meter.measure(name), dspy.context(lm=self._role_lm), working(works):
                answer = role(*given)
        except LimitReachedError:
            if answer is None:
                raise
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise RoleError(words_of(error)) from error
        return answer

    def usage(self, before: dict[str, Usage] | None = None) -> dict[str, Usage]:
        """Return the usage by role, with that of earlier processes of the run; roles without a call are left out."""
        used = {role: usage for role, usage in self.meter.totals().items() if usage.calls or role == "task"}
        return added(before or {}, used)
