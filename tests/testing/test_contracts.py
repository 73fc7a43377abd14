"""The contract tests that ship for custom roles: they pass for good roles and name what a bad one breaks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from dspy_ace import Curator, GrowAndRefine, Playbook, Reflector
from dspy_ace.playbook import Add, Delete, Delta, Merge, Update
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.contracts import check_curate, check_refine, check_reflect

pytestmark = pytest.mark.compat
turn = itertools.count()


class Grouping:
    """A reflector that takes successes together."""

    def __init__(self, together: Callable[[Any], Any]) -> None:
        self.together = together

    def __call__(self, playbook: Playbook, trajectory: Any) -> Reflection:
        return Reflection()

    def on_successes(self, playbook: Playbook, successes: Any) -> Any:
        return self.together(successes)


def test_the_default_roles_keep_their_contracts() -> None:
    """Reflector, Curator and GrowAndRefine pass."""
    with dspy.context(lm=OfflineLM()):
        check_reflect(Reflector())
        check_curate(Curator())
    check_refine(GrowAndRefine(max_tokens=1000))


@pytest.mark.parametrize(
    ("check", "role", "words"),
    [
        (check_reflect, lambda playbook, trajectory: None, "a Reflection"),
        (check_reflect, lambda playbook, trajectory: Reflection(tags={"str-00099": "helpful"}), "were shown"),
        (check_reflect, lambda playbook, trajectory: Reflection((f"{next(turn)}",)), "the same result"),
        (check_reflect, Grouping(lambda successes: [Reflection(("x",))]), "successes they rest on"),
        (check_reflect, Grouping(lambda successes: ["x"]), "Reflections"),
        (check_reflect, Grouping(lambda successes: successes[0].task.clear() or []), "successes unchanged"),
        (check_curate, lambda playbook, reviews: (None, ()), "a Delta first"),
        (check_curate, lambda playbook, reviews: (Delta(), ["no"]), "Rejected"),
        (check_curate, lambda playbook, reviews: (Delta((Update("str-00099", "x"),)), ()), "fit the playbook"),
        (
            check_curate,
            lambda playbook, reviews: (Delta((Add("S", "x", None, ("7",)),)), ()),
            "among those of the reviews",
        ),
        (check_refine, lambda playbook: [], "a Delta"),
        (check_refine, lambda playbook: Delta((Merge(("str-00001", "x-2"), "x"),)), "fit the playbook"),
        (check_refine, lambda playbook: Delta(tuple(Delete(b.id) for b in list(playbook)[:1])), "nothing left to do"),
    ],
)
def test_a_role_that_breaks_its_contract_is_told_which_part(check: Any, role: Any, words: str) -> None:
    """Each clause that is broken is named."""
    with pytest.raises(AssertionError, match=words):
        check(role)
