"""The contracts of the roles, as somebody meets them who writes a role as a plain function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from typing import Any

import dspy
import pytest

from dspy_ace import Curator, Playbook, Reflector
from dspy_ace.errors import RoleError
from dspy_ace.playbook import Add, Delta, apply
from dspy_ace.program import Trajectory
from dspy_ace.roles import Insight, Reflection
from dspy_ace.roles.contracts import Curate, Reflect
from scripted import scripted
from scripted_roles import PLAYBOOK, curation_reply, reflection_reply, trajectory
from steps import step_of

pytestmark = pytest.mark.compat


def test_insights_may_be_words_insights_or_any_iterable_of_them() -> None:
    """A str is one insight, not its letters."""
    assert Reflection("Carry.").insights == (Insight("Carry."),)  # type: ignore[arg-type]
    assert Reflection(Insight("Carry.")).insights == (Insight("Carry."),)  # type: ignore[arg-type]
    assert Reflection(words for words in ["a", Insight("b", "search")]).insights == (
        Insight("a"),
        Insight("b", "search"),
    )  # type: ignore[arg-type]
    assert Reflection().insights == ()


@pytest.mark.parametrize("wrong", [[""], [" \n"], [None], [5], [{"insight": "a"}]])
def test_what_is_no_insight_is_refused_where_it_is_made(wrong: Any) -> None:
    """The error names what came; the adaptation step records it with the example."""
    with pytest.raises(RoleError, match="insight"):
        Reflection(wrong)


@pytest.mark.parametrize("wrong", ["good", "Helpful", None, 1, ["helpful"]])
def test_a_tag_is_one_of_the_votes(wrong: Any) -> None:
    """A vote that would count for nothing is not accepted in silence."""
    with pytest.raises(RoleError, match="'helpful', 'harmful', 'misapplied' or 'neutral'"):
        Reflection(tags={"str-00001": wrong})


def test_a_reflection_is_a_value() -> None:
    """It does not change, nor with the dict it was made from; `replace` keeps what it says."""
    tags: dict[str, Any] = {"str-00001": "helpful"}
    reflection = Reflection(("Carry.",), tags)
    tags.clear()
    assert reflection.tags == {"str-00001": "helpful"}
    with pytest.raises(FrozenInstanceError):
        reflection.verified = True  # type: ignore[misc]
    assert replace(reflection, verified=True).insights == reflection.insights


def test_plain_functions_modules_and_the_defaults_fill_the_roles() -> None:
    """Any callable of the right shape learns the same lesson in an adaptation step."""

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        return Reflection(("Carry.",), {"str-00001": "harmful"})

    def curate(playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, Sequence[Any]]:
        sources = tuple(r.trajectory.source for r in reflections if r.trajectory is not None)
        return Delta(tuple(Add("S", i.content, sources=sources) for r in reflections for i in r.insights)), ()

    class Reflecting(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def forward(self, playbook: Playbook, t: Trajectory) -> Reflection:
            return reflect(playbook, t)

    reflectors: list[Reflect] = [
        reflect,
        Reflecting(),
        Reflector(scripted(reflection_reply(["Carry."], {"str-00001": "harmful"}))),
    ]
    curators: list[Curate] = [
        curate,
        Curator(scripted(curation_reply({"type": "ADD", "section": "S", "content": "Carry."}))),
    ]
    t = trajectory(shown=("str-00001",), cited=("str-00001",))
    for one in reflectors:
        for other in curators:
            step = step_of(PLAYBOOK, [t], one, other)
            assert step.rejected == ()
            assert step.playbook["str-00001"].harmful == PLAYBOOK["str-00001"].harmful + 1
            newest = step.playbook.bullets[-1]
            assert (newest.content, newest.sources) == ("Carry.", ("7",))
            assert step.playbook == apply(PLAYBOOK, step.delta)


def test_a_role_that_raises_costs_its_own_example_only() -> None:
    """What it could not say is recorded with its reason."""

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        return Reflection((f"Lesson of {t.source}.",) if t.source == "1" else ("",))

    curator = Curator(scripted(curation_reply({"type": "ADD", "content": "Carry."})))
    step = step_of(PLAYBOOK, [trajectory("1"), trajectory("2")], reflect, curator)
    assert step.playbook.bullets[-1].sources == ("1",)
    assert [attempt.error.partition(":")[0] for attempt in step.reflected.attempts] == ["", "RoleError"]


def test_a_role_keeps_its_own_language_model() -> None:
    """Its own goes before the one in force; without one, the one in force is asked."""
    own, other = scripted(reflection_reply(["a"])), scripted(reflection_reply(["b"]))
    with dspy.context(lm=other):
        assert Reflector(own)(PLAYBOOK, trajectory()).insights == (Insight("a"),)
        assert Reflector()(PLAYBOOK, trajectory()).insights == (Insight("b"),)
    assert len(own.script.requests) == len(other.script.requests) == 1
