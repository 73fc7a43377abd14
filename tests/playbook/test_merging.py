"""Two playbooks become one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from dspy_ace import Bullet, Playbook
from dspy_ace.errors import SettingsError
from dspy_ace.playbook import folded, merge
from strategies import playbooks

pytestmark = pytest.mark.compat
A = Playbook(
    (
        Bullet("s-00001", "S", "Round only the final result.", 2, 1, None, ("1",)),
        Bullet("s-00005", "S", "Name the unit of every amount.", 0, 0, None, ("2",)),
    )
)
B = Playbook(
    (
        Bullet("of-00001", "Others", "Ask for the invoice number first.", 1, 0, "react", ("user-1",)),
        Bullet("s-00002", "s", "Name the unit of every amount!", 3, 1, None, ("user-2",)),
    ),
    ("Empty",),
)


def test_what_both_know_stands_once() -> None:
    """The id of `a` stays, with the text of better evidence; counters are summed, sources united; the rest gets ids."""
    merged = merge(A, B)
    assert [bullet.id for bullet in merged] == ["s-00001", "s-00005", "misc-00006"]
    assert merged["s-00001"] == A["s-00001"]
    both = merged["s-00005"]
    assert (both.content, both.helpful, both.harmful, both.sources) == (B["s-00002"].content, 3, 1, ("2", "user-2"))
    other = merged["misc-00006"]
    assert (other.content, other.helpful, other.predictor, other.sources) == (
        "Ask for the invoice number first.",
        1,
        "react",
        ("user-1",),
    )
    assert merged.sections == ("S", "OTHERS", "Empty")
    assert merged.high_water == 7


def test_texts_that_are_only_similar_stand_both() -> None:
    """Only contents that are equal after folding, for the same predictor, become one."""
    a = Playbook((Bullet("s-1", "S", "Round to 2 digits."), Bullet("s-2", "S", "Sum up.", predictor="react")))
    for content in ("Round to 3 digits.", "Always round to 2 digits.", "Sum up."):
        assert len(merge(a, Playbook((Bullet("s-1", "S", content),)))) == 3


@settings(max_examples=50)
@given(playbooks(), playbooks())
def test_merging_loses_nothing(a: Playbook, b: Playbook) -> None:
    """Ids of `a` and its order stay; votes and sources are all there; an empty one changes nothing."""
    assert merge(a, Playbook()) == a
    merged = merge(a, b)
    assert merged == merge(a, b)
    for count in ("helpful", "harmful"):
        assert sum(getattr(x, count) for x in merged) == sum(getattr(x, count) for p in (a, b) for x in p)
    assert {s for x in merged for s in x.sources} == {s for p in (a, b) for x in p for s in x.sources}
    assert [x.id for x in merged][: len(a)] == [x.id for x in a]
    said = [(x.predictor, folded(x.content)) for p in (a, b) for x in p]
    assert {(x.predictor, folded(x.content)) for x in merged} == set(said)
    assert [x.id for x in merge(a, a)] == [x.id for x in a]


def test_repeats_within_the_first_stay() -> None:
    """The user's own playbook is not cleaned up unasked."""
    twice = Playbook((*A.bullets, Bullet("s-00009", "S", "Round only the final result!")))
    assert merge(twice, Playbook((B["s-00002"],))).bullets[0] == A["s-00001"]
    assert "s-00009" in merge(twice, Playbook((B["s-00002"],)))
    assert len(merge(twice, twice)) == 3


def test_what_is_no_playbook_is_refused() -> None:
    """Each argument is named."""
    with pytest.raises(SettingsError, match="b is None"):
        merge(A, None)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="a is 'x'"):
        merge("x", A)  # type: ignore[arg-type]
