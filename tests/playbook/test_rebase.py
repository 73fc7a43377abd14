"""A delta made for one version of a playbook, carried over to a later one."""

from __future__ import annotations

import pytest

from dspy_ace import Bullet, Playbook
from dspy_ace.playbook import Delete, Delta, Merge, Operation, Tag, Update, apply, rebase

pytestmark = pytest.mark.compat
BASE = Playbook((Bullet("s-00001", "S", "Round late."), Bullet("s-00002", "S", "Name the unit.")))


@pytest.mark.parametrize(
    "edit",
    [Update("s-00001", "Round late, once."), Merge(("s-00001", "s-00002"), "Both."), Delete("s-00001")],
    ids=lambda edit: edit.op,
)
@pytest.mark.parametrize("change", [Update("s-00001", "Round."), Update("s-00001", "Round late.", "Mistakes")])
def test_an_edit_of_a_bullet_that_was_changed_since_is_left_out(edit: Operation, change: Update) -> None:
    """A new text or a new section: the edit's author has not seen it, so it is rejected and the change stands."""
    now = apply(BASE, Delta((change,)))
    good, rejected = rebase(Delta((edit, Tag("s-00001", 1))), BASE, now)
    assert good == Delta((Tag("s-00001", 1),))
    assert [item.operation for item in rejected] == [edit]
    assert "the bullet was changed since this was made" in rejected[0].reason


def test_votes_since_do_not_hinder_an_edit() -> None:
    """Counters are no part of what an author has read."""
    edit = Delta((Update("s-00001", "Round late, once."),))
    assert rebase(edit, BASE, apply(BASE, Delta((Tag("s-00001", 3),)))) == (edit, ())
