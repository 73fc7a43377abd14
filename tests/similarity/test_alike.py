"""Bullets that look alike in any language, and the guard that keeps numbers, negations and literals apart."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings

from dspy_ace import Bullet, Playbook
from dspy_ace.errors import EmbedderError
from dspy_ace.similarity import LookAlikes, agree
from paths import SHARED, TESTS
from strategies import texts

relaxed = settings(deadline=None)

SHARED = SHARED / "data"
LABELS: dict[str, Any] = json.loads((TESTS / "data" / "pairs.json").read_text(encoding="utf-8"))
LANGUAGES: dict[str, Any] = json.loads((TESTS / "data" / "pairs_languages.json").read_text(encoding="utf-8"))
WRITTEN = ("own", "held_out")
DUPLICATES = [pair for name in WRITTEN for pair in LABELS[name]["duplicate"]]
LOOK_ALIKES = [pair for name in WRITTEN for pair in LABELS[name]["different"]]
SHOWN = 0.5  # the Curator's threshold for lexical vectors


def book(*contents: str, predictor: str | None = None) -> Playbook:
    return Playbook(tuple(Bullet(f"s-{at:05d}", "S", text, 0, 0, predictor) for at, text in enumerate(contents, 1)))


def found(look_alikes: LookAlikes, playbook: Playbook) -> list[tuple[str, str]]:
    """The contents of the pairs."""
    return [(older.content, newer.content) for older, newer, _ in look_alikes.pairs(playbook)]


@pytest.fixture(scope="module")
def trained() -> Playbook:
    """The trained AppWorld playbook of the shared data."""
    path = SHARED / "playbooks" / "appworld_offline_trained_no_gt_playbook.txt"
    if not path.exists():
        pytest.skip("the shared data folder is not here")
    return Playbook.from_text(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lesson() -> Callable[[tuple[str, int, int]], str]:
    """The text of a lesson in the shared role replies, by file, record, and line or item."""
    folder = SHARED / "llm_outputs"
    if not folder.exists():
        pytest.skip("the shared data folder is not here")

    def read(place: tuple[str, int, int]) -> str:
        file, record, part = place
        reply = json.loads((folder / file).read_text(encoding="utf-8").splitlines()[record])["completion"]
        if file.startswith("finer"):
            return str(reply.split("\n")[part].strip().split(" :: ")[-1])
        items = re.search(r"\[\[ ## (?:insights|operations) ## \]\]\n(.*?)\n\n\[\[", reply, re.DOTALL)
        assert items is not None
        item = json.loads(items[1])[part]
        return str(item if isinstance(item, str) else item["content"])

    return read


# --- what is seen as alike


@pytest.mark.parametrize("pairs", [DUPLICATES, LOOK_ALIKES], ids=["duplicates", "look-alikes"])
def test_pairs_written_for_this_project_are_shown(pairs: list[list[str]]) -> None:
    """Rewordings and look-alikes are all seen, but for one in a hundred: the Curator tells them apart."""
    seen = [bool(LookAlikes(None, SHOWN).pairs(book(*pair[-2:]))) for pair in pairs]
    assert sum(seen) >= 0.99 * len(pairs)


@pytest.mark.parametrize("language", LANGUAGES)
def test_pairs_in_other_languages_are_shown(language: str) -> None:
    """German, Spanish, French, Russian, Chinese, Japanese, Korean: all pairs are seen, no strangers among them."""
    duplicates, different = LANGUAGES[language]["duplicate"], LANGUAGES[language]["different"]
    assert all(LookAlikes(None, SHOWN).pairs(book(*pair)) for pair in [*duplicates, *different])
    pairs = found(LookAlikes(None, SHOWN), book(*(text for pair in duplicates for text in pair)))
    assert sorted(pairs) == sorted(tuple(pair) for pair in duplicates)


def test_pairs_of_real_playbooks_are_shown(trained: Playbook, lesson: Callable[[Any], str]) -> None:
    """Duplicates among the bullets of a trained playbook and among the lessons of real replies are seen."""
    rows = [(trained[a].content, trained[b].content) for a, b, label, _ in LABELS["bullets"] if label == "duplicate"]
    rows += [(lesson(a), lesson(b)) for a, b, label, _ in LABELS["lessons"] if label == "duplicate"]
    assert len(rows) >= 30
    assert all(one == other or LookAlikes(None, SHOWN).pairs(book(one, other)) for one, other in rows)


def test_pairs_come_closest_first_and_within_one_scope() -> None:
    """The older bullet of a pair stands first; bullets of two predictors are no pair, however equal."""
    playbook = Playbook(
        (
            Bullet("s-00001", "S", "Round all totals to two decimals.", 0, 0, "sum"),
            Bullet("s-00002", "S", "Round all totals to three decimals.", 0, 0, "sum"),
            Bullet("s-00003", "S", "Round all totals to two decimals.", 0, 0, "tell"),
            Bullet("s-00004", "S", "Round all totals to two decimals!", 0, 0, "sum"),
            Bullet("s-00005", "S", "Ask before paying.", 0, 0, "sum"),
        )
    )
    pairs = LookAlikes(None, SHOWN).pairs(playbook)
    assert [(older.id, newer.id) for older, newer, _ in pairs] == [
        ("s-00001", "s-00004"), ("s-00001", "s-00002"), ("s-00002", "s-00004")
    ]  # fmt: skip
    assert pairs[0].cosine == 1
    assert LookAlikes(None, SHOWN).pairs(Playbook()) == []


EMBEDDERS = [None, lambda batch: [[len(text), text.count("e"), 1] for text in batch]]


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_what_is_found_does_not_depend_on_what_was_asked_before(embedder: Any) -> None:
    """Cold or warm, one at a time or at once, after other bullets came and went: the same pairs."""
    contents = list(dict.fromkeys(text for pair in DUPLICATES[:20] for text in pair))
    warm = LookAlikes(embedder, 0.5)
    for at in range(len(contents)):
        assert warm.pairs(book(*contents[: at + 1])) == LookAlikes(embedder, 0.5).pairs(book(*contents[: at + 1]))
    others = book(*(f"{text} {at}" for at in range(5) for text in contents[:20]))
    assert warm.pairs(others) == LookAlikes(embedder, 0.5).pairs(others)
    assert warm.pairs(book(*contents)) == LookAlikes(embedder, 0.5).pairs(book(*contents)) != []


def test_threads_may_ask_at_once() -> None:
    """Several playbooks over one value: each gets its own answer."""
    books = [book(*(text for pair in DUPLICATES[at : at + 6] for text in pair)) for at in range(16)]
    shared = LookAlikes(None, SHOWN)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shared.pairs, books)) == [LookAlikes(None, SHOWN).pairs(each) for each in books]


def test_an_embedder_that_fails_gives_no_pairs_this_time(caplog: pytest.LogCaptureFixture) -> None:
    """One warning for failures in a row; with the next answer all texts are compared."""
    answers = iter([False, False, True, False])

    def embedder(batch: list[str]) -> list[list[float]]:
        if not next(answers):
            raise ConnectionError("no route to host")
        return [[1.0, 0.0] for _ in batch]

    look_alikes = LookAlikes(embedder, 0.9)
    with caplog.at_level(logging.WARNING, "dspy.ace"):
        assert [look_alikes.pairs(book("one", "two")) for _ in range(2)] == [[], []]
        assert found(look_alikes, book("one", "two")) == [("one", "two")]
        assert len(caplog.messages) == 1
        assert found(look_alikes, book("one", "two", "three")) == [("one", "two")]
    assert len(caplog.messages) == 2
    assert "ConnectionError: no route to host" in caplog.messages[0]


def test_an_embedder_that_breaks_its_contract_is_told_at_once() -> None:
    """That is a mistake in the user's code, not an outage."""
    with pytest.raises(EmbedderError, match="shape"):
        LookAlikes(lambda batch: [[1.0]], 0.9).pairs(book("one", "two"))


def test_a_copy_starts_cold() -> None:
    """Copies and pickles keep embedder and threshold."""
    look_alikes = LookAlikes(None, 0.6)
    look_alikes.pairs(book("Round totals.", "Round totals up."))
    for twin in (copy.deepcopy(look_alikes), pickle.loads(pickle.dumps(look_alikes))):
        assert (twin.threshold, twin._near) == (0.6, {})


# --- the guard


def test_look_alikes_do_not_agree() -> None:
    """Of 168 pairs that differ in a number, a negation, an order, an opposite, a condition …, at most six pass."""
    passed = [pair for pair in LOOK_ALIKES if agree(*pair[-2:])]
    assert len(passed) <= 6
    assert not [pair for pair in passed if pair[0] in ("number", "name", "opposite", "condition")]
    assert not any(agree(*pair[-2:][::-1]) for pair in LOOK_ALIKES if pair not in passed)


@pytest.mark.parametrize("language", LANGUAGES)
def test_look_alikes_of_other_languages_do_not_agree(language: str) -> None:
    """One place apart is apart in any language, and so are numbers and negations in several places."""
    assert [pair for pair in LANGUAGES[language]["different"] if agree(*pair)] == []


def test_rewordings_agree() -> None:
    """Of English rewordings nearly two in three pass, of those in other languages more than half."""
    others = [pair for labels in LANGUAGES.values() for pair in labels["duplicate"]]
    assert sum(agree(*pair) for pair in DUPLICATES) >= 0.63 * len(DUPLICATES)
    assert sum(agree(*pair) for pair in others) >= 0.6 * len(others)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Retry 3 times.", "Retry five times."),
        ("Enter 5% as 0.05.", "Enter 5% as 5.00."),
        ("Move from 3 to 5.", "Move from 5 to 3."),
        ("Add -3.", "Add 3."),
        ("Sort by `created_at`.", "Sort by `updated_at`."),
        ("Sort by created_at.", "Sort by updated_at."),
        ("Name the key 'Total'.", "Name the key 'total'."),
        ("Open /var/log.", "Open /var/lib."),
        ("Log in to Spotify first.", "Log in to Venmo first."),
        ("Trust the cache.", "Do not trust the cache."),
        ("Trust the cache.", "Don't trust the cache."),
        ("Trust `a`, not `b`.", "Trust `b`, not `a`."),
        ("Refund goods.", "Refund only damaged goods."),
        ("Show rows where a >= 1.", "Show rows where a > 1."),
        ("Pay $5.", "Pay €5."),
        ("重试三次。", "重试五次。"),
        ("ล็อกเก่า ลบ", "ล็อกเก่า ไม่ลบ"),
        ("Ask before paying.", "Ask after paying."),
        ("Debit cash and credit revenue.", "Debit revenue and credit cash."),
        ("Mark ✅ when done.", "Mark ❌ when done."),
    ],
)
def test_texts_that_do_not_agree(one: str, other: str) -> None:
    """Another number, order, sign, literal, name, negation, restriction or opposite."""
    assert not agree(one, other)
    assert not agree(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Retry a failed upload 3 times.", "If an upload fails, retry three times."),
        ("Use 1,000 rows at most for tests.", "For tests use rows up to 1000."),
        ("Don't guess a missing date.", "If a date is missing, do not guess."),
        ("call show_song() first, then pay", "Call `show_song`, and pay after that"),
        ("Test whether x ≤ 5 holds before saving.", "Before saving, a test of x <= 5 runs."),
        ("Use １２ rows.", "use 12 rows"),
        ("Redondea los importes a dos decimales.", "Los importes se redondean siempre a 2 decimales."),
        ("付款之前先检查账户余额。", "先检查账户余额,然后再付款。"),
        ("", "…"),
    ],
)
def test_texts_that_agree(one: str, other: str) -> None:
    """The same facts in another spelling, or none at all."""
    assert agree(one, other)


@relaxed
@given(texts(), texts())
def test_the_guard_is_total_and_symmetric(first: str, second: str) -> None:
    """Any two texts get a verdict, the same both ways round; a text agrees with itself."""
    assert agree(first, second) == agree(second, first)
    assert agree(first, first)


@pytest.mark.parametrize("part", ["-a", ".", "a", "'a ", "a/", "a@", "\n"])
def test_hostile_text_is_read_in_linear_time(part: str) -> None:
    """A hundred thousand characters without end marks take well under ten seconds, where pairs of them take minutes."""
    text = part * (100_000 // len(part))
    started = time.process_time()
    assert not agree(f"{text} 1", f"{text} 2")
    assert time.process_time() - started < 10


def edited(content: str) -> Iterator[tuple[str, str]]:
    """Look-alikes of a text: one number or identifier of it changed, or a negation put in."""
    for number in re.finditer(r"\d+", content):
        yield "number", f"{content[: number.start()]}{int(number[0]) + 1}{content[number.end() :]}"
    for name in re.finditer(r"\b\w+_\w+\b", content):
        yield "identifier", f"{content[: name.start()]}{name[0]}_x{content[name.end() :]}"
    words = list(re.finditer(r"(?<![\w.'`\-/(\[{<])[a-z]{5,}(?![\w('`\-/])", content))
    for word in words[:: max(1, len(words) // 6)]:
        yield "negation", f"{content[: word.start()]}not {content[word.start() :]}"


def test_every_bullet_of_a_real_playbook_with_one_thing_changed(trained: Playbook) -> None:
    """Each number, each identifier and a negation before any sixth word: over 2,500 look-alikes, none let through."""
    made = [(kind, bullet.content, other) for bullet in trained for kind, other in edited(bullet.content)]
    assert len(made) > 2500
    assert [(kind, other) for kind, content, other in made if agree(content, other)] == []
