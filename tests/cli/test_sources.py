"""A playbook that was edited as text goes back into a store as operations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_ace import Bullet, Playbook
from dspy_ace.cli.sources import changes
from dspy_ace.errors import SettingsError
from dspy_ace.playbook import Delta, Merge, apply
from strategies import deltas, playbooks


@given(st.data())
def test_an_edit_as_operations_gives_what_the_text_says(data: Any) -> None:
    """Contents, sections and counters are those of the edited text, in the ids that were there; new ones are added."""
    before = data.draw(playbooks())
    drawn = data.draw(deltas(before))
    after = apply(before, Delta(tuple(each for each in drawn.operations if not isinstance(each, Merge))))
    made = apply(before, changes(before, after))
    assert [(b.section, b.content, b.helpful, b.harmful) for b in made if b.id in before] == [
        (b.section, b.content, b.helpful, b.harmful) for b in after if b.id in before
    ]
    assert [b.content for b in made if b.id not in before] == [b.content for b in after if b.id not in before]
    assert changes(after, after) == Delta()


def test_votes_are_not_taken_back() -> None:
    """A lower counter cannot be told to a store: it is refused, not dropped."""
    before = Playbook([Bullet("str-00001", "TOOLS", "Log in.", helpful=2)])
    after = Playbook([Bullet("str-00001", "TOOLS", "Log in.", helpful=1)])
    with pytest.raises(SettingsError, match="can only grow; they were 2 and 0"):
        changes(before, after)
