"""The contracts of the three roles, and what a reflection is. Pass your own as `ACE(reflect=…, curate=…, refine=…)`.

The paper's Generator is the student program: it has no contract beyond being a `dspy.Module`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from ..errors import RoleError
from ..playbook import Delta, Playbook, Rejected
from ..program import Insight, Trajectory

Vote = Literal["helpful", "harmful", "neutral"]


@dataclass(frozen=True)
class Reflection:
    """What a reflector learned from one trajectory (ACE §3.2).

    Args:
        insights: the lessons, zero or more, in any iterable; a plain str is taken as an Insight for all
            predictors, also in place of the iterable.
        tags: bullet id → whether it helped or misled; one vote a bullet and example. Only ids that the
            trajectory was shown count.
        verified: a retry with these insights in view put the failure right (True), failed again (False),
            or was not made (None). Filled in by the adaptation step.
        error_identification, root_cause, correct_approach: the reflector's findings, in words.
        trajectory: the first attempt that it is about. Filled in by the adaptation step.
        scores: the score of the first attempt and of each retry. Filled in by the adaptation step.

    Raises:
        RoleError: an insight that is none, or a tag that is not one of the three votes.
    """

    insights: tuple[Insight, ...] = ()
    tags: Mapping[str, Vote] = field(default_factory=dict)
    verified: bool | None = None
    error_identification: str = ""
    root_cause: str = ""
    correct_approach: str = ""
    trajectory: Trajectory | None = None
    scores: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        given = (self.insights,) if isinstance(self.insights, (str, Insight)) else self.insights
        insights = tuple(Insight(item) if isinstance(item, str) else item for item in given)
        for item in insights:
            if not isinstance(item, Insight):
                raise RoleError(f"insights holds Insight or str; got {type(item).__name__}.")
        for name, vote in self.tags.items():
            if vote not in get_args(Vote):
                raise RoleError(f"A tag is 'helpful', 'harmful' or 'neutral'; got {vote!r} for {name!r}.")
        object.__setattr__(self, "insights", insights)
        object.__setattr__(self, "tags", dict(self.tags))


class Reflect(Protocol):
    """Distils a reflection from one trajectory: `def reflect(playbook, trajectory) -> Reflection`.

    Only `insights` and `tags` of the result are needed; no insight: nothing is curated for this example.
    Called from several threads at once, once for each trajectory and once more for each retry of it.
    `trajectory.attempt` is the reflection that was in view when this attempt was made (None at first): a
    later reflection replaces the earlier one, so it must say all that is to be kept. Must not change its
    arguments. May raise: the failure is recorded and the example is skipped.
    """

    def __call__(self, playbook: Playbook, trajectory: Trajectory, /) -> Reflection: ...


class Curate(Protocol):
    """Turns reflections into operations: `def curate(playbook, reflections) -> (Delta, rejected)`.

    Called from several threads at once with different groups of reflections (in the order of the
    examples, each with at least one insight) and the same playbook. Returns a delta made for that very
    playbook and what it left out, each with its reason; operations that do not fit are rejected one by
    one afterwards all the same. An operation names its examples by `reflection.trajectory.source`. Must not
    change its arguments. May raise: recorded, the group is skipped.
    """

    def __call__(
        self, playbook: Playbook, reflections: Sequence[Reflection], /
    ) -> tuple[Delta, Sequence[Rejected]]: ...


class Refine(Protocol):
    """Keeps a playbook small: merges, prunes, keeps the token budget (ACE §3.3). No LM in the default.

    Returns a delta for that very playbook, the same for the same playbook whatever was seen before. May
    raise: the step is then not made and the error passes through.
    """

    def __call__(self, playbook: Playbook, /) -> Delta: ...
