"""Retrieval: the bullets that matter for one case."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dspy_ace.errors import SettingsError
from dspy_ace.playbook import Add, Bullet, Delta, Playbook, apply
from dspy_ace.similarity import nearest

BOOK = Playbook(
    (
        Bullet("str-00001", "RULES", "Refund requests go to the accounts team."),
        Bullet("str-00002", "RULES", "Parcels that are late go to logistics.", helpful=3),
        Bullet("str-00003", "RULES", "A lost parcel is a case for logistics as well.", harmful=5),
        Bullet("str-00004", "RULES", "Forgotten passwords go to the helpdesk.", predictor="route"),
        Bullet("str-00005", "RULES", "Answer in one word.", helpful=9),
    )
)


def ids(*args: Any, **options: Any) -> list[str]:
    return [bullet.id for bullet in nearest(*args, **options)]


def test_what_fits_comes_in_the_order_of_the_playbook() -> None:
    """The bullets about a text are chosen, and stand as they stand in the playbook."""
    assert ids(BOOK, "My parcel is late!", 1) == ["str-00002"]
    assert ids(BOOK, "The password is lost, and the refund as well", 3) == ["str-00001", "str-00003", "str-00004"]


def test_votes_decide_between_equals() -> None:
    """Of bullets that fit alike the more useful one is taken; where nothing fits, what helped most."""
    twins = Playbook(
        tuple(Bullet(f"a-{at}", "S", f"Mind the unit {at}.", int(at == 2), int(at == 1)) for at in (1, 2, 3))
    )
    assert ids(twins, "Which unit?", 1) == ["a-2"]
    assert ids(twins, "Which unit?", 2) == ["a-2", "a-3"]
    assert ids(BOOK, "zzz", 2) == ["str-00002", "str-00005"]
    assert ids(Playbook(tuple(Bullet(f"a-{at}", "S", "The same.") for at in (1, 2, 3))), "same", 2) == ["a-1", "a-2"]


def test_only_bullets_of_the_predictor_are_chosen() -> None:
    """What another predictor learned is not shown."""
    assert ids(BOOK, "forgotten password", 1, predictor="answer") != ["str-00004"]
    assert ids(BOOK, "forgotten password", 1, predictor="route") == ["str-00004"]


def test_a_small_playbook_comes_whole() -> None:
    """With no more bullets than asked for there is nothing to choose."""
    assert nearest(BOOK, "anything", 5) == nearest(BOOK, "anything", 50) == list(BOOK)
    assert nearest(Playbook(), "anything", 1) == []


def test_the_choice_does_not_depend_on_what_was_asked_before() -> None:
    """Other playbooks asked about in between change nothing."""
    before = nearest(BOOK, "late parcel", 2)
    for step in range(20):
        nearest(Playbook(tuple(Bullet(f"x-{at}", "S", f"parcel {step} {at}") for at in range(1, 40))), "late parcel", 3)
    assert nearest(BOOK, "late parcel", 2) == before


def test_threads_may_ask_at_once() -> None:
    """Playbooks that grow, asked about from several threads at once: each gets its own answer."""
    books = [BOOK]
    for step in range(12):
        books.append(apply(books[-1], Delta((Add("RULES", f"Parcel {step} goes to desk {step}."),))))
    texts = [f"Where does parcel {step} go?" for step in range(12)]
    expected = [[ids(book, text, 2) for book in books] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: [ids(book, text, 2) for book in books], texts))
    assert found == expected


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3", None])
def test_k_is_a_count(k: Any) -> None:
    """A number that is no count of bullets is refused, with what came."""
    with pytest.raises(SettingsError, match="k must be"):
        nearest(BOOK, "text", k)
