"""The contracts of the three roles, and the reflection. Pass your own as `ACE(reflect=…, curate=…, refine=…)`.

The paper's Generator is the student program: it has no contract beyond being a `dspy.Module`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, get_args

from ..errors import RoleError
from ..playbook import Delta, Playbook, Rejected, count_tokens, cut_middle
from ..program import Insight, Trajectory

Vote = Literal["helpful", "harmful", "misapplied", "neutral"]
Role = TypeVar("Role")


@dataclass(frozen=True)
class Reflection:
    """The lessons of one trajectory, or of several successes, as a reflector found them (ACE §3.2).

    Args:
        insights: zero or more, in any iterable. A plain str is taken as an Insight for all predictors; instead of an
            iterable one str or Insight may be given.
        tags: bullet id → how the bullet worked in this attempt. Only ids that were shown to the program count.
            "misapplied": it was followed beyond its condition; the Curator is told, no counter changes.
        verified: True if a retry with these insights in view succeeded, False if it failed again, None if there was
            no retry. The training step fills it in.
        diagnosis: why the attempt ended as it did, in words.
        trajectory: the first attempt that it is about. The training step fills it in, unless `on_successes` did.
        others: further successes that it rests on, if it comes from several.
        retries: the retries of the first attempt, in order. The training step fills them in.

    Raises:
        RoleError: an item of `insights` is no insight, or a tag is not one of the votes.

    Example:
        >>> Reflection(["Amounts are wanted in full, not in millions."], {"str-00003": "harmful"}).verified is None
        True
    """

    insights: tuple[Insight, ...] = ()
    tags: Mapping[str, Vote] = field(default_factory=dict)
    verified: bool | None = None
    diagnosis: str = ""
    trajectory: Trajectory | None = None
    others: tuple[Trajectory, ...] = ()
    retries: tuple[Trajectory, ...] = ()

    def __post_init__(self) -> None:
        given = (self.insights,) if isinstance(self.insights, (str, Insight)) else self.insights
        insights = tuple(Insight(item) if isinstance(item, str) else item for item in given)
        for item in insights:
            if not isinstance(item, Insight):
                raise RoleError(f"insights holds Insight or str; got {type(item).__name__}.")
        for name, vote in self.tags.items():
            if vote not in get_args(Vote):
                raise RoleError(f"A tag is 'helpful', 'harmful', 'misapplied' or 'neutral'; got {vote!r} for {name!r}.")
        object.__setattr__(self, "insights", insights)
        object.__setattr__(self, "tags", dict(self.tags))
        object.__setattr__(self, "others", tuple(self.others))
        object.__setattr__(self, "retries", tuple(self.retries))

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """All attempts that it rests on."""
        return () if self.trajectory is None else (self.trajectory, *self.others)


class Reflect(Protocol):
    """Learns from one trajectory: `def reflect(playbook, trajectory) -> Reflection`.

    Only `insights` and `tags` of the result are needed. Without an insight nothing is curated for this example.

    It is called from several threads at once: once for each trajectory, and once more for each retry of it. Then
    `trajectory.attempt` is the reflection that was in view of the retry (None at first). A later reflection replaces
    the earlier one, so it repeats all that is to be kept.

    A role may also have a method `on_successes(playbook, trajectories) -> Sequence[Reflection]`. Then it is asked about
    the successes of a batch together, after the failures' rollouts; each reflection names in `trajectory` and `others`
    the successes that it rests on. Their `tags` are not counted: a success votes for the bullets it cites. A role
    without it is asked about each success alone.

    It must not change its arguments. It may raise: the failure is recorded and the example is skipped.
    """

    def __call__(self, playbook: Playbook, trajectory: Trajectory, /) -> Reflection: ...


class Curate(Protocol):
    """Turns reflections into operations: `def curate(playbook, reflections) -> (Delta, rejected)`.

    `reflections` come in the order of their examples, each with at least one insight. The delta is made for this very
    playbook. `rejected` says what was left out, each with its reason. Operations that do not fit the playbook are
    rejected one by one afterwards all the same. An operation names its examples by `reflection.trajectory.source`.

    It may be called from several threads at once. It must not change its arguments. It may raise: the failure is
    recorded and these reflections are skipped.
    """

    def __call__(
        self, playbook: Playbook, reflections: Sequence[Reflection], /
    ) -> tuple[Delta, Sequence[Rejected]]: ...


class Refine(Protocol):
    """Keeps a playbook small: merges, prunes, keeps the token limit (ACE §3.3). The default asks no LM.

    It returns a delta for this very playbook, the same for the same playbook whatever it was called with before. It
    may raise: then the step is not made and the error passes through.
    """

    def __call__(self, playbook: Playbook, /) -> Delta: ...


def limited(role: Role, max_tokens: int) -> Role:
    """Return a role that knows the token limit of the playbook.

    A custom role that wants to know it has a method `limited_to(max_tokens)`, which returns a copy of the role with
    this limit. Any other role is returned as it is.
    """
    limited_to: Any = getattr(role, "limited_to", None)
    return limited_to(max_tokens) if callable(limited_to) else role


def fitting(texts: Iterable[str], fields: Mapping[str, str], max_tokens: int) -> list[str]:
    """Return the first texts, as many as a prompt holds beside its other fields; at least one, cut to what it holds."""
    least = max_tokens // (len(fields) + 1)  # `fit` never cuts into that, however long the other fields are
    room = left = max(least, max_tokens - sum(map(count_tokens, fields.values())))
    kept: list[str] = []
    for each in texts:
        shown = cut_middle(each, room)
        left -= count_tokens(shown) + 1  # the empty line
        if left < 0 and kept:
            break
        kept.append(shown)
    return kept
