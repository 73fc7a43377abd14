"""Grow-and-refine: merges, pruning and the budget, through `apply` on real values."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_ace.errors import EmbedderError, SettingsError
from dspy_ace.playbook import Add, Bullet, Delete, Delta, Merge, Playbook, apply, count_tokens
from dspy_ace.roles.refine import GrowAndRefine
from paths import SHARED, TESTS
from strategies import playbooks

relaxed = settings(deadline=None)

SHARED = SHARED / "data"
SECTION = "STRATEGIES & INSIGHTS"
LABELS: dict[str, Any] = json.loads((TESTS / "data" / "pairs.json").read_text(encoding="utf-8"))
LANGUAGES: dict[str, Any] = json.loads((TESTS / "data" / "pairs_languages.json").read_text(encoding="utf-8"))
CONTENTS = [text for pair in LABELS["own"]["duplicate"] for text in (*pair, pair[0].upper() + "!")]


def by_length(batch: list[str]) -> list[list[float]]:
    """An embedder by which many of these texts are close."""
    return [[float(len(text)), float(text.count("e")), 5.0] for text in batch]


def alike(batch: list[str]) -> list[list[float]]:
    """An embedder by which all texts are close."""
    return [[1.0] for _ in batch]


def book(*bullets: tuple[Any, ...]) -> Playbook:
    """A playbook of bullets given as (content, helpful, harmful, predictor, sources), from the left as far as given."""
    return Playbook(tuple(Bullet(f"str-{at:05d}", SECTION, *fields) for at, fields in enumerate(bullets, start=1)))


def contents(playbook: Playbook) -> list[str]:
    return [bullet.content for bullet in playbook]


def refined(playbook: Playbook, **options: Any) -> Playbook:
    return apply(playbook, GrowAndRefine(**options)(playbook))


@st.composite
def lessons(draw: st.DrawFn) -> Playbook:
    """Playbooks in which duplicates, look-alikes, votes, scopes and sources come together."""
    fields = st.tuples(
        st.sampled_from(CONTENTS),
        st.integers(0, 6),
        st.integers(0, 6),
        st.sampled_from([None, None, "react", "extract"]),
        st.lists(st.sampled_from("abc"), max_size=2).map(tuple),
    )
    return book(*draw(st.lists(fields, max_size=14)))


# --- repeats and near-duplicates


def test_repeats_become_one_bullet() -> None:
    """The oldest id and place survive, counters add up, sources are united; a look-alike stays."""
    before = book(
        ("Round to 2 decimals.", 1, 0, None, ("a",)),
        ("Round to 3 decimals.",),
        ("round  to 2 Decimals", 0, 1, None, ("b", "a")),
    )
    after = refined(before)
    assert [bullet.id for bullet in after] == ["str-00001", "str-00002"]
    assert after["str-00001"] == Bullet("str-00001", SECTION, "Round to 2 decimals.", 1, 1, None, ("a", "b"))


def test_the_text_with_better_evidence_stays() -> None:
    """Strictly better helpful − harmful wins the text; with equal evidence it is the oldest's."""
    better = book(("Round to 2 decimals.", 1, 0), ("round to 2 decimals", 3, 1))
    assert contents(refined(better)) == ["round to 2 decimals"]
    equal = book(("Round to 2 decimals.", 1, 0), ("round to 2 decimals", 3, 2))
    assert contents(refined(equal)) == ["Round to 2 decimals."]


def test_bullets_of_different_predictors_are_never_merged() -> None:
    """The same words for two predictors, or for one and for all, are two bullets."""
    before = book(
        ("Name the unit.", 0, 0, "react"),
        ("Name the unit.", 0, 0, "extract"),
        ("Name the unit.",),
        ("name the unit", 0, 0, "react"),
    )
    for embedder in (None, alike):
        assert GrowAndRefine(embedder=embedder)(before) == Delta((Merge(("str-00001", "str-00004"), "Name the unit."),))


def test_no_look_alike_is_merged_in_any_language() -> None:
    """Without an embedder nothing but repeats is merged: 168 English pairs stay, and 72 in other languages."""
    pairs = [pair[-2:] for name in ("own", "held_out") for pair in LABELS[name]["different"]]
    pairs += [pair for labels in LANGUAGES.values() for part in labels.values() for pair in part]
    assert len(pairs) > 230
    assert [pair for pair in pairs if GrowAndRefine()(book(*((text,) for text in pair))).operations] == []


def test_with_an_embedder_close_bullets_that_agree_are_merged() -> None:
    """However close the embedder puts two bullets, another number, negation or literal keeps them apart."""
    first = "Retry a failed upload 3 times."
    before = book((first,), ("Retry a failed upload 4 times.",), ("If an upload fails, do not retry three times.",))
    assert GrowAndRefine(embedder=alike)(before) == Delta()
    before = apply(before, Delta((Add(SECTION, "If an upload fails, retry three times."),)))
    assert GrowAndRefine(embedder=alike)(before).operations == (Merge(("str-00001", "str-00004"), first),)
    apart = GrowAndRefine(embedder=lambda batch: [[1.0, float(at)] for at, _ in enumerate(batch)], threshold=0.99)
    assert apart(before) == Delta()


def test_groups_do_not_drift() -> None:
    """Of A ~ B ~ C with A and C apart, only bullets close to the very text that stays are merged into it."""
    a, b, c = "Ask first, then pay.", "Pay once you have asked.", "Whoever asked may pay."
    angles = {a: 0.0, b: 0.3, c: 0.6}
    options: dict[str, Any] = {
        "threshold": math.cos(0.4),
        "embedder": lambda batch: [[math.cos(angles[text]), math.sin(angles[text])] for text in batch],
    }
    assert GrowAndRefine(**options)(book((a,), (c,))) == Delta()
    assert contents(refined(book((a,), (b,), (c,)), **options)) == [a, c]
    assert contents(refined(book((a,), (b, 1), (c,)), **options)) == [b]
    assert contents(refined(book((b,), (a, 2), (c, 1)), **options)) == [a, c]


def test_exact_repeats_of_a_real_playbook_are_merged() -> None:
    """The nine repeats of the trained playbook go; a second pass finds nothing more."""
    path = SHARED / "playbooks" / "appworld_offline_trained_no_gt_playbook.txt"
    if not path.exists():
        pytest.skip("the shared data folder is not here")
    before = Playbook.from_text(path.read_text(encoding="utf-8"))
    refine = GrowAndRefine()
    delta = refine(before)
    after = apply(before, delta)
    assert len(before) - len(after) == 9
    assert len(set(contents(after))) == len(after)
    assert refine(after) == Delta()
    assert GrowAndRefine()(before) == delta


# --- pruning


@pytest.mark.parametrize(
    ("helpful", "harmful", "goes"),
    [(0, 2, False), (0, 3, True), (1, 3, True), (2, 3, False), (2, 6, True), (2, 5, False), (9, 3, False)],
)
def test_bullets_that_harm_go(helpful: int, harmful: int, goes: bool) -> None:
    """Three harmful votes or more, and three in four harmful: the bullet goes, with the votes as the reason."""
    before = book(("Guess when in doubt.", helpful, harmful), ("Name the unit.",))
    gone = (Delete("str-00001", f"harmful in {harmful} of {helpful + harmful} votes"),)
    assert GrowAndRefine()(before).operations == (gone if goes else ())


def test_the_votes_of_duplicates_are_added_before_pruning() -> None:
    """Two duplicates with two harmful votes each are one lesson with four: both ids go."""
    before = book(("Guess when in doubt.", 0, 2), ("guess  when in doubt", 0, 2), ("Name the unit.", 5, 0))
    delta = GrowAndRefine()(before)
    assert [type(operation) for operation in delta.operations] == [Delete, Delete]
    assert contents(apply(before, delta)) == ["Name the unit."]


def test_pruning_can_be_set_and_switched_off() -> None:
    """`prune_min_uses=None` keeps what harms; other bounds move the line."""
    before = book(
        ("Guess when in doubt.", 1, 4),
    )
    assert GrowAndRefine(prune_min_uses=None)(before) == Delta()
    assert GrowAndRefine(prune_harm_ratio=0.9)(before) == Delta()
    assert GrowAndRefine(prune_min_uses=5)(before) == Delta()
    assert len(GrowAndRefine(prune_min_uses=4)(before)) == 1


# --- the budget


def test_the_least_useful_go_first() -> None:
    """Lowest helpful − harmful first; among equals those that never helped, and of these the oldest."""
    before = book(
        ("Quote the source of a figure.", 2, 0),
        ("Name the unit of a figure.", 1, 1),
        ("Check the sign of a figure.", 0, 0),
        ("Keep the scale of a figure.", 0, 0),
        ("State the year of a figure.", 0, 1),
    )
    line = [count_tokens(line) + 1 for line in before.render().split("\n")]
    order = []
    for left in range(4, -1, -1):
        gone = GrowAndRefine(max_tokens=max(1, sum(sorted(line)[:left])))(before).operations
        order.append([operation.id for operation in gone if isinstance(operation, Delete)])
    assert set(order[0]) == {"str-00005"}
    assert set(order[1]) == {"str-00005", "str-00003"}
    assert set(order[2]) == {"str-00005", "str-00003", "str-00004"}
    assert set(order[3]) == {"str-00005", "str-00003", "str-00004", "str-00002"}
    assert "over the limit of" in GrowAndRefine(max_tokens=20)(before).operations[0].reason  # type: ignore[union-attr]


def test_a_playbook_at_its_budget_stays() -> None:
    """The budget counts each line, to the token: at it nothing goes, one below the last bullet goes."""
    before = book(("Name the unit.",), ("Quote the source.\nAnd the year.",), ("Keep the sign.",))
    exact = before.tokens() + len(before) - 1
    assert count_tokens(before.render()) <= exact
    assert GrowAndRefine(max_tokens=exact)(before) == Delta()
    assert len(GrowAndRefine(max_tokens=exact - 1)(before)) == 1


def test_merging_comes_before_eviction() -> None:
    """Room that a merge makes saves a bullet."""
    before = book(("Round to 2 decimals.",), ("Name the unit.",), ("round to 2 decimals",))
    delta = GrowAndRefine(max_tokens=count_tokens(before.render()) - 1)(before)
    assert delta == Delta((Merge(("str-00001", "str-00003"), "Round to 2 decimals."),))


def test_a_bullet_larger_than_the_budget_goes_alone() -> None:
    """One bullet past the whole budget does not stay; the small one behind it does."""
    before = book(("word " * 200,), ("Name the unit.",))
    assert contents(refined(before, max_tokens=30)) == ["Name the unit."]


def test_a_tokenizer_of_the_users_counts() -> None:
    """`count_tokens` decides, on the whole text as well: the bound holds as that tokenizer counts."""
    before = book(*((f"Lesson {at} of many words.",) for at in range(20)))

    def every_letter(text: str) -> int:
        return len(text) + text.count("\n") * 10  # dearer as a whole than line by line

    after = refined(before, max_tokens=300, count_tokens=every_letter)
    assert 0 < len(after) < 20
    assert every_letter(after.render()) <= 300


@pytest.mark.parametrize("returned", [-1, 1.5, None, True])
def test_a_tokenizer_must_return_a_count(returned: Any) -> None:
    """Anything but a whole number of 0 or more is a settings error."""
    with pytest.raises(SettingsError, match="count_tokens"):
        GrowAndRefine(max_tokens=10, count_tokens=lambda text: returned)(book(("Name the unit.",)))


def test_a_limit_of_its_own_goes_before_that_of_ace() -> None:
    """A refiner without a limit gets ACE's in a copy, which shares the vectors; one that has its own keeps it."""
    refine = GrowAndRefine(embedder=alike)
    fitted = refine.limited_to(30)
    assert (fitted.max_tokens, refine.max_tokens) == (30, None)
    assert fitted.look_alikes is refine.look_alikes
    assert GrowAndRefine(20).limited_to(30).max_tokens == 20
    assert len(GrowAndRefine().limited_to(30)(book(("word " * 200,), ("Name the unit.",)))) == 1


# --- what holds for every playbook


@relaxed
@given(lessons(), st.one_of(st.none(), st.integers(1, 250)), st.sampled_from([None, by_length]))
def test_refining_twice_changes_nothing_more(playbook: Playbook, limit: int | None, embedder: Any) -> None:
    """The refined playbook is a fixed point, with and without a limit, with and without an embedder."""
    refine = GrowAndRefine(limit, embedder=embedder)
    after = apply(playbook, refine(playbook))
    assert refine(after) == Delta()
    assert GrowAndRefine(limit, embedder=embedder)(after) == Delta()


@relaxed
@given(st.one_of(lessons(), playbooks()), st.integers(1, 250))
def test_the_budget_holds(playbook: Playbook, budget: int) -> None:
    """Whatever the bullets hold, the refined playbook is within the budget and not emptied without need."""
    after = refined(playbook, max_tokens=budget)
    assert count_tokens(after.render()) <= budget
    assert after.tokens() <= budget
    if count_tokens(playbook.render()) <= budget:
        assert not any(
            isinstance(operation, Delete) and "over the limit" in operation.reason
            for operation in GrowAndRefine(budget)(playbook).operations
        )


@relaxed
@given(st.one_of(lessons(), playbooks()), st.sampled_from([None, by_length]))
def test_merging_conserves_what_was_counted_and_invents_nothing(playbook: Playbook, embedder: Any) -> None:
    """Without pruning: votes and sources per scope are as before, and every text was there before."""
    delta = GrowAndRefine(prune_min_uses=None, embedder=embedder)(playbook)
    after = apply(playbook, delta)
    scopes = {bullet.predictor for bullet in playbook}
    assert {bullet.predictor for bullet in after} == scopes
    for scope in scopes:
        old, new = ([b for b in book if b.predictor == scope] for book in (playbook, after))
        assert sum(b.helpful for b in old) == sum(b.helpful for b in new)
        assert sum(b.harmful for b in old) == sum(b.harmful for b in new)
        assert {s for b in old for s in b.sources} == {s for b in new for s in b.sources}
        assert {b.content for b in new} <= {b.content for b in old}
    touched = [
        name
        for operation in delta.operations
        for name in (operation.ids if isinstance(operation, Merge) else (operation.id,))  # type: ignore[union-attr]
    ]
    assert len(touched) == len(set(touched))


@relaxed
@given(st.lists(lessons(), min_size=1, max_size=5), st.integers(20, 200))
def test_the_delta_does_not_depend_on_earlier_calls(seen: list[Playbook], limit: int) -> None:
    """A refiner that has seen other playbooks says the same as a fresh one."""
    warm = GrowAndRefine(limit, embedder=by_length)
    fresh = [GrowAndRefine(limit, embedder=by_length)(playbook) for playbook in seen]
    assert [warm(playbook) for playbook in seen] == fresh


def test_an_empty_playbook_stays_empty() -> None:
    """Nothing to refine is an empty delta."""
    assert GrowAndRefine()(Playbook()) == Delta()
    assert GrowAndRefine(10, embedder=alike)(Playbook()) == Delta()


# --- what is computed


def test_each_bullet_is_embedded_once() -> None:
    """Fifty steps of one new bullet: fifty vectors, and no bullet handed to the embedder twice."""
    asked: list[str] = []

    def embedder(batch: list[str]) -> list[list[float]]:
        asked.extend(batch)
        return [[float(len(text)), float(text.count("e")), 1.0] for text in batch]

    refine = GrowAndRefine(embedder=embedder)
    bullets: list[tuple[str]] = []
    for step in range(50):
        bullets.append((f"Lesson {step}: {'extra ' * (step % 7)}care with case {step}.",))
        refine(book(*bullets))
    assert len(asked) == len(set(asked)) == 50


def test_a_refiner_can_be_copied_and_pickled() -> None:
    """Copies keep the settings and start without what was computed."""
    refine = GrowAndRefine(100, threshold=0.7, embedder=by_length)
    playbook = book(("Round to 2 decimals.",), ("Always round to two decimals!",))
    refine(playbook)
    for twin in (copy.deepcopy(refine), pickle.loads(pickle.dumps(refine))):
        assert (twin.max_tokens, twin.threshold, twin.embedder) == (100, 0.7, by_length)
        assert twin(playbook) == refine(playbook)


def test_a_step_goes_on_where_the_embedder_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Repeats are merged and the limit is kept; the failure is told once; the next answer is used again."""
    answers = iter([False, False, True])

    def embedder(batch: list[str]) -> list[list[float]]:
        if not next(answers):
            raise TimeoutError("the service did not answer")
        return alike(batch)

    refine = GrowAndRefine(embedder=embedder)
    before = book(("Round to 2 decimals.",), ("round to 2 decimals",), ("All decimals: round to two, always!",))
    repeats = Delta((Merge(("str-00001", "str-00002"), "Round to 2 decimals."),))
    assert [refine(before), refine(before)] == [repeats, repeats]
    assert caplog.text.count("TimeoutError: the service did not answer") == 1
    assert refine(before) == Delta((Merge(("str-00001", "str-00002", "str-00003"), "Round to 2 decimals."),))


def test_an_embedder_that_breaks_its_contract_stops_the_call() -> None:
    """The embedder's fault surfaces as an EmbedderError; the playbook is as it was."""
    with pytest.raises(EmbedderError, match="shape"):
        GrowAndRefine(embedder=lambda batch: [[1.0]])(book(("a lesson",), ("another lesson",)))


# --- settings


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"threshold": -0.1, "embedder": alike}, "threshold"),
        ({"threshold": 1.1, "embedder": alike}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": "high"}, "threshold"),
        ({"prune_min_uses": 0}, "prune_min_uses"),
        ({"prune_harm_ratio": 0.5}, "prune_harm_ratio"),
        ({"prune_harm_ratio": 1.01}, "prune_harm_ratio"),
        ({"threshold": 0.9}, "threshold compares the vectors of an embedder"),
        ({"embedder": "text-embedding-3-small"}, "embedder"),
        ({"count_tokens": 4}, "count_tokens"),
    ],
)
def test_wrong_settings_are_refused_at_once(options: dict[str, Any], name: str) -> None:
    """Each bad setting is named, with what it may be and what came."""
    with pytest.raises(SettingsError, match=name):
        GrowAndRefine(**options)
