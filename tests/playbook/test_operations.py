"""Operations on a playbook: applied strictly, admitted one by one, written as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_ace.errors import DeltaError
from dspy_ace.playbook.merging import combine
from dspy_ace.playbook.operations import (
    Add,
    Delete,
    Delta,
    Merge,
    Rejected,
    Tag,
    Update,
    admit,
    apply,
    operation_from_json,
)
from dspy_ace.playbook.playbook import Bullet, Playbook
from edits import SEED, checked, done, relaxed
from strategies import deltas, junk, operations, playbooks

# --- apply


def test_add_takes_the_next_number_and_the_known_section() -> None:
    """Numbers go on behind all ever given; sections are found whatever their spelling."""
    grown = done(
        Add("problem_solving_heuristics", "Work backwards.", "react", ("5", "5")),
        Add("Strategies & insights", "Estimate first."),
        Add("common mistakes to avoid:", "Off by one."),
        Add("", "No section."),
        Add("Unit Prices", "Per kilo."),
        Add("UNIT_PRICES", "Per litre."),
    )
    assert grown.bullets[:3] == SEED.bullets
    assert [(b.id, b.section) for b in grown.bullets[3:]] == [
        ("prob-00008", "PROBLEM-SOLVING HEURISTICS"),
        ("str-00009", "STRATEGIES & INSIGHTS"),
        ("err-00010", "COMMON MISTAKES TO AVOID"),
        ("misc-00011", "OTHERS"),
        ("unit-00012", "Unit Prices"),
        ("unit-00013", "Unit Prices"),
    ]
    assert grown.bullets[3] == Bullet(
        "prob-00008", "PROBLEM-SOLVING HEURISTICS", "Work backwards.", 0, 0, "react", ("5",)
    )
    assert grown.sections == (*SEED.sections, "COMMON MISTAKES TO AVOID", "Unit Prices")
    assert grown.high_water == 13


def test_an_initial_playbook_is_continued() -> None:
    """The first id under an initial playbook follows its highest, also where numbers are missing."""
    initial = Playbook.from_text("## TOOLS\n[tl-00003] Look.\n## OTHERS\n[misc-00041] Ask.")
    assert [b.id for b in done(Add("tools", "x"), playbook=initial)] == ["tl-00003", "misc-00041", "tool-00042"]
    assert [b.id for b in done(Add("problem_solving_heuristics", "x"), playbook=Playbook())] == ["prob-00001"]
    assert done(Add("others", "x"), playbook=Playbook()).sections == ("OTHERS",)


def test_update_changes_words_and_place_but_no_counter() -> None:
    """An update keeps id, place, counters and predictor; sources are united."""
    after = done(Update("calc-00002", " Rate = gain / cost. ", "others", ("9", "1")))
    assert after["calc-00002"] == Bullet("calc-00002", "OTHERS", "Rate = gain / cost.", 1, 0, "react", ("1", "2", "9"))
    assert [b.id for b in after] == [b.id for b in SEED]
    assert done(Update("of-00004", "Add up."))["of-00004"].section == "OTHERS"


def test_merge_keeps_the_oldest_and_adds_up_its_counters() -> None:
    """The oldest id and place survive whatever the order given; counters add up, sources are united."""
    after = done(Merge(("of-00004", "calc-00002"), "Sum up the rates.", None, ("7",)))
    assert [b.id for b in after] == ["str-00001", "calc-00002"]
    assert after["calc-00002"] == Bullet(
        "calc-00002", "FORMULAS & CALCULATIONS", "Sum up the rates.", 1, 2, "react", ("1", "2", "7")
    )
    shared = done(Merge(("str-00001", "of-00004", "calc-00002"), "All.", "others"))
    assert shared.bullets == (Bullet("str-00001", "OTHERS", "All.", 4, 3, None, ("0", "1", "2")),)


def test_a_merge_across_predictors_is_for_all_of_them() -> None:
    """Bullets of one predictor stay its own; of several, or of one and all, the merged bullet is shown to all."""
    for scopes, merged in ((("a", "a"), "a"), (("a", "b"), None), (("a", None), None), ((None, "a"), None)):
        bullets = tuple(Bullet(f"s-{n}", "S", f"Lesson {n}.", predictor=scope) for n, scope in enumerate(scopes, 1))
        after = apply(Playbook(bullets), Delta((Merge(("s-1", "s-2"), "Both."),)))
        assert [bullet.predictor for bullet in after] == [merged]


def test_deleted_numbers_are_never_given_again() -> None:
    """Neither in the same delta, nor later, nor after saving."""
    after = done(Add("OTHERS", "New."), Delete("misc-00008"), Add("OTHERS", "Newer."))
    assert [b.id for b in after][3:] == ["misc-00009"]
    emptied = done(*(Delete(bullet.id) for bullet in after), playbook=after)
    assert len(emptied) == 0
    restored = Playbook.from_json(json.loads(json.dumps(emptied.to_json())))
    assert [b.id for b in done(Add("OTHERS", "x"), playbook=restored)] == ["misc-00010"]


def test_tags_move_counters_alone() -> None:
    """Votes add up on the bullet; nothing else changes."""
    after = done(Tag("of-00004", helpful=2, source="1"), Tag("of-00004", 1, 1), Tag("of-00004"))
    assert after == Playbook((*SEED.bullets[:2], replace(SEED.bullets[2], helpful=3, harmful=3)), SEED.sections, 7)


MISUSES: list[tuple[Any, str]] = [
    (Update("str-00009", "x"), "update str-00009: no bullet 'str-00009'"),
    (Update("[str-00001]", "x"), r"no bullet '\[str-00001\]'"),
    (Update("STR-00001", "x"), "no bullet 'STR-00001'"),
    (Update("str-00001", " \n"), "update str-00001: .*empty"),
    (Update("str-00001", "x", 3), "update str-00001: section must be text"),  # type: ignore[arg-type]
    (Update("str-00001", "x", None, "abc"), "update str-00001: sources"),  # type: ignore[arg-type]
    (Add("OTHERS", ""), "add: .*empty"),
    (Add("OTHERS", None), "add: content must be text"),  # type: ignore[arg-type]
    (Add(None, "x"), "add: section must be text"),  # type: ignore[arg-type]
    (Add("OTHERS", "lone \ud800"), "add: content is not valid Unicode"),
    (Add("OTHERS", "x", 3), "add: predictor"),  # type: ignore[arg-type]
    (Add("OTHERS", "x", None, None), "add: sources"),  # type: ignore[arg-type]
    (Add("OTHERS", "x", None, (1,)), "add: each of sources"),  # type: ignore[arg-type]
    (Merge(("str-00001", "str-00001"), "x"), "merge .*two or more different"),
    (Merge(("str-00001", "of-00004", "of-00004"), "x"), "merge .*two or more different"),
    (Merge(("str-00001",), "x"), "merge .*two or more different"),
    (Merge((), "x"), "merge.*two or more different"),
    (Merge(("str-00001", "gone-00003"), "x"), "merge .*no bullet 'gone-00003'"),
    (Merge(("str-00001", "of-00004"), ""), "merge str-00001, of-00004: .*empty"),
    (Merge("str-00001", "x"), "merge str-00001: ids"),  # type: ignore[arg-type]
    (Merge(None, "x"), "merge None: ids"),  # type: ignore[arg-type]
    (Merge((["str-00001"], "of-00004"), "x"), "each of ids"),  # type: ignore[arg-type]
    (Delete("gone-00003"), "delete gone-00003: no bullet"),
    (Delete(None), "delete None: id must be text"),  # type: ignore[arg-type]
    (Tag("gone-00003", 1), "tag gone-00003: no bullet"),
    (Tag("str-00001", -1), "tag str-00001: helpful .*-1"),
    (Tag("str-00001", 0, -2), "tag str-00001: harmful .*-2"),
    (Tag("str-00001", True), "tag str-00001: helpful .*True"),
    (Tag("str-00001", 1.5), "tag str-00001: helpful .*1.5"),  # type: ignore[arg-type]
    (Tag("str-00001", 10**18), "tag str-00001: .*helpful is a count"),
    (Tag("str-00001", 1, 0, ["0"]), "tag str-00001: source must be text"),  # type: ignore[arg-type]
    ({"op": "add", "section": "S", "content": "x"}, "expected Add, Update, Merge, Delete or Tag; got dict"),
    (None, "expected Add, Update, Merge, Delete or Tag; got NoneType"),
]


@pytest.mark.parametrize(("operation", "message"), MISUSES, ids=lambda value: ascii(value)[:40])
def test_misuse_raises_and_names_what_is_wrong(operation: Any, message: str) -> None:
    """Each misuse is a DeltaError that names the operation and its fault, also behind good ones."""
    with pytest.raises(DeltaError, match=message):
        done(operation)
    with pytest.raises(DeltaError, match=message):
        done(Tag("str-00001", 1), operation)
    _, rejected = admit(SEED, [operation])
    assert len(rejected) == 1


def test_numbers_run_out_loudly() -> None:
    """Behind the last number that an id can have there is an error, not a broken id."""
    last = Playbook((Bullet(f"a-{'9' * 18}", "S", "x"),))
    with pytest.raises(DeltaError, match="add"):
        done(Add("S", "y"), playbook=last)
    assert done(Tag(last.bullets[0].id, 1), playbook=last).bullets[0].helpful == 1


@relaxed
@given(st.data())
def test_apply_is_pure_and_its_results_are_playbooks(data: st.DataObject) -> None:
    """The playbook given stays as it was; the one returned would pass every check, and is saved and read equal."""
    playbook = data.draw(playbooks())
    before = json.dumps(playbook.to_json())
    delta = data.draw(deltas(playbook))
    after = apply(playbook, delta)
    assert json.dumps(playbook.to_json()) == before
    assert after == checked(after) == apply(playbook, delta)
    assert Playbook.from_json(after.to_json()) == after
    assert all(after[bullet.id] is bullet for bullet in after)
    assert after.high_water >= playbook.high_water


@relaxed
@given(st.data())
def test_what_was_written_and_counted_before_is_right_afterwards(data: st.DataObject) -> None:
    """A playbook whose prompts were written is changed: the prompts and tokens of the result are those of a new one."""
    playbook = data.draw(playbooks())
    scopes = [None, "nowhere", *{bullet.predictor for bullet in playbook}]
    for _ in range(3):
        assert [playbook.render(scope) for scope in scopes] == [checked(playbook).render(scope) for scope in scopes]
        assert playbook.tokens() == checked(playbook).tokens()
        playbook = apply(playbook, data.draw(deltas(playbook)))


def test_additions_and_votes_write_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a prompt was written, the next version writes only the blocks of bullets that are new in it or changed."""
    written: list[str] = []
    write = Bullet.block.func
    block = cached_property(lambda bullet: written.append(bullet.id) or write(bullet))
    block.__set_name__(Bullet, "block")
    monkeypatch.setattr(Bullet, "block", block)
    seed = checked(Playbook.from_json(SEED.to_json()))
    seed.render("react")
    seed.tokens()
    written.clear()
    after = done(Add("S", "new"), Tag("of-00004", 1), Add("T", "for another", predictor="other"), playbook=seed)
    assert after.render("react").startswith(seed.render("react"))
    assert after.tokens() > seed.tokens()
    assert written == [bullet.id for bullet in after.bullets[-3:]]
    assert after.render("react") == checked(after).render("react")
    assert done(playbook=after) is after


@relaxed
@given(st.data())
def test_apply_in_one_go_or_in_steps(data: st.DataObject) -> None:
    """A delta after another is the two as one: replaying a step gives the ids that the run gave."""
    playbook = data.draw(playbooks())
    first = data.draw(deltas(playbook))
    middle = apply(playbook, first)
    second = data.draw(deltas(middle))
    assert apply(playbook, first + second) == apply(middle, second)


def test_ids_do_not_depend_on_what_stood_before() -> None:
    """A new id takes its letters from the section alone, not from its neighbours, gone or still there."""
    playbook = Playbook((Bullet("abc-00001", "Tools", "x"),))
    gone, new = Delta((Delete("abc-00001"),)), Delta((Add("tools", "y"),))
    ids = [[b.id for b in after] for after in (apply(playbook, gone + new), apply(apply(playbook, gone), new))]
    assert ids == [["tool-00002"]] * 2
    assert [b.id for b in apply(playbook, combine([new + gone])[0])] == ["tool-00002"]


@relaxed
@given(st.data())
def test_ids_are_given_once(data: st.DataObject) -> None:
    """However bullets come and go, no id stands for two bullets, and new numbers lie above all old ones."""
    playbook = data.draw(playbooks())
    born = {bullet.id for bullet in playbook}
    for _ in range(3):
        after = apply(playbook, data.draw(deltas(playbook)))
        new = [bullet for bullet in after if bullet.id not in playbook]
        assert born.isdisjoint(bullet.id for bullet in new)
        assert all(bullet.number > playbook.high_water for bullet in new)
        born.update(bullet.id for bullet in new)
        playbook = after


# --- admit


@relaxed
@given(st.data())
def test_admit_sorts_any_sequence(data: st.DataObject) -> None:
    """Any operations in any order: the admitted apply, each rejected has a reason, together they are all."""
    playbook = data.draw(playbooks())
    drawn = data.draw(st.lists(operations(playbook), max_size=10).flatmap(st.permutations))
    delta, rejected = admit(playbook, drawn)
    apply(playbook, delta)
    assert all(item.reason for item in rejected)
    left = iter(drawn)
    assert all(any(operation is other for other in left) for operation in delta.operations)
    given_ = Counter(map(id, drawn))
    assert given_ == Counter(map(id, [*delta.operations, *(item.operation for item in rejected)]))
    assert admit(playbook, delta.operations) == (delta, ())


@relaxed
@given(st.data(), st.sampled_from([Add, Update, Merge, Delete, Tag]))
def test_admit_takes_fields_of_any_type(data: st.DataObject, kind: type[Any]) -> None:
    """An operation with fields of wrong types is admitted or rejected, never an error; so is what is none."""
    good = {"id": "str-00001", "ids": ("str-00001", "of-00004"), "section": "S", "content": "x"}
    values = {item.name: good.get(item.name, item.default) for item in fields(kind)}
    values[data.draw(st.sampled_from(sorted(values)))] = data.draw(junk())
    wrong = [kind(**values), data.draw(junk()), Tag("str-00001", 1)]
    delta, rejected = admit(SEED, wrong)
    assert len(delta) + len(rejected) == 3
    apply(SEED, delta)
    for item in rejected:
        assert item.reason
        if item.operation is not None:
            json.dumps(item.operation.to_json())
    combined, reported = combine([Delta(tuple(wrong))])
    assert len(combined) + len(reported) >= 2
    json.dumps(combined.to_json())


def test_admit_lets_one_bad_operation_cost_itself_alone() -> None:
    """The good ones around a bad one stand; what depends on a bad one is rejected with its own reason."""
    good = [Add("OTHERS", "New."), Delete("of-00004"), Tag("misc-00008", 1)]
    bad = [Update("of-00004", "Gone by now."), Merge(("of-00004", "str-00001"), "x")]
    delta, rejected = admit(SEED, [good[0], good[1], *bad, good[2]])
    assert delta == Delta(tuple(good))
    assert [item.operation for item in rejected] == bad
    assert rejected[0] == Rejected(bad[0], "update of-00004: no bullet 'of-00004' in the playbook")


def test_admit_bounds_the_length_of_contents() -> None:
    """A content longer than max_chars is rejected with both numbers; one of that length is taken."""
    drawn = [Add("S", "x" * 10), Add("S", "x" * 11), Update("str-00001", "y" * 50_000), Tag("str-00001", 1)]
    delta, rejected = admit(SEED, drawn, max_chars=10)
    assert delta.operations == (drawn[0], drawn[3])
    assert rejected[0].reason == "add: the content has 11 characters; at most 10 are taken"
    assert "50000 characters" in rejected[1].reason
    assert len(admit(SEED, drawn)[0]) == 4


# --- JSON


@relaxed
@given(st.data())
def test_operations_survive_json(data: st.DataObject) -> None:
    """Any operation, and any delta, comes back equal from its JSON: what a journal replays is what was done."""
    playbook = data.draw(playbooks())
    drawn = data.draw(st.lists(operations(playbook), max_size=6))
    delta = Delta(tuple(drawn))
    again = Delta.from_json(json.loads(json.dumps(delta.to_json())))
    assert again == delta
    assert [operation_from_json(operation.to_json()) for operation in drawn] == drawn


def test_fields_at_their_default_are_left_out() -> None:
    """Only what an operation says is written; an empty section is said, as it is not the default."""
    assert Add("", "x").to_json() == {"op": "add", "section": "", "content": "x"}
    assert Update("a-1", "x", "").to_json() == {"op": "update", "id": "a-1", "content": "x", "section": ""}
    assert Tag("a-1", harmful=1).to_json() == {"op": "tag", "id": "a-1", "harmful": 1}
    assert Delete("a-1").to_json() == {"op": "delete", "id": "a-1"}
    assert Merge(("a-1", "b-2"), "x", None, ("3",)).to_json() == {
        "op": "merge",
        "ids": ["a-1", "b-2"],
        "content": "x",
        "sources": ["3"],
    }


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        "add",
        [],
        {},
        {"op": "remove", "id": "a-1"},
        {"op": None},
        {"op": ["add"]},
        {"op": "add", "content": "x"},
        {"op": "add", "section": "S", "content": "x", "bullet": 1},
        {3: 4},
    ],
    ids=ascii,
)
def test_what_is_no_operation_is_refused(data: Any) -> None:
    """Unknown kinds, missing and unknown fields raise DeltaError; none becomes an add."""
    with pytest.raises(DeltaError, match="Expected an operation"):
        operation_from_json(data)
    with pytest.raises(DeltaError):
        Delta.from_json([data])
    with pytest.raises(DeltaError, match="Expected"):
        Delta.from_json(data if data != [] else None)


def test_a_rejection_survives_json() -> None:
    """With its operation, or none; a field of any type is written as text."""
    for rejected in (Rejected(Tag("a-1", 1), "no bullet"), Rejected(None, "no JSON")):
        assert Rejected.from_json(json.loads(json.dumps(rejected.to_json()))) == rejected
    assert Rejected(Tag("a-1", 1), "x").to_json() == {
        "operation": {"op": "tag", "id": "a-1", "helpful": 1},
        "reason": "x",
    }
    assert Rejected(None, "x").to_json() == {"operation": None, "reason": "x"}
    assert Rejected(Add("S", {1}), "x").to_json()["operation"]["content"] == "{1}"  # type: ignore[arg-type]


@relaxed
@given(st.data())
def test_every_operation_knows_itself(data: st.DataObject) -> None:
    """Ids, sources, key and text are there for each kind; renamed to itself it is the same."""
    operation = data.draw(operations(SEED))
    assert isinstance(operation.ids, tuple)
    assert isinstance(operation.sources, tuple)
    assert hash(operation.key) == hash(operation.key)
    assert operation.renamed({name: name for name in operation.ids}) == operation
    assert operation.renamed({}) is operation
    assert (operation.content is None) == (operation.op in ("delete", "tag"))
    assert operation.united(operation).key == operation.key


def test_deltas_are_sequences_of_operations() -> None:
    """A delta may be given a list; two in a row are one."""
    one, other = Delta([Tag("a-1", 1)]), Delta((Delete("a-1"),))  # type: ignore[arg-type]
    assert (one + other).operations == (Tag("a-1", 1), Delete("a-1"))
    assert len(one + other) == 2
    assert hash(one) == hash(Delta((Tag("a-1", 1),)))
