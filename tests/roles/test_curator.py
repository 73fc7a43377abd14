"""The default curator: what it is shown, and which operations it makes of the reply."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_ace import Curator, Playbook
from dspy_ace.errors import RoleError, SettingsError
from dspy_ace.lm import LimitReachedError
from dspy_ace.playbook import DEFAULT_SECTIONS, Add, Bullet, Delete, Delta, Merge, Update, apply, count_tokens
from dspy_ace.roles import Insight, Reflection
from dspy_ace.roles.curator import CuratePlaybook
from dspy_ace.training import Engine, LearningSettings
from scripted import rate_limited, scripted
from scripted_roles import (
    PLAYBOOK,
    chat,
    curation_reply,
    fields_of,
    prompt_tokens,
    real_replies,
    reviewed,
    sections,
    trajectory,
)

pytestmark = pytest.mark.compat

GROUP = (reviewed("Carry the one.", source="3"), reviewed("Write the unit.", source="5"))


def curate(*items: Any, reply: str | None = None, group: Any = GROUP, **options: Any) -> tuple[Any, list[str]]:
    """The operations and the reasons that come of a reply, given as items or as a whole."""
    said = curation_reply(*items) if reply is None else reply
    delta, rejected = Curator(scripted(said), **options)(PLAYBOOK, group)
    apply(PLAYBOOK, delta)
    return delta.operations, [item.reason for item in rejected]


def shown(playbook: Playbook = PLAYBOOK, group: Any = GROUP, **options: Any) -> dict[str, str]:
    """The input fields of the prompt."""
    lm = scripted(curation_reply())
    Curator(lm, **options)(playbook, group)
    return fields_of(lm.script.requests[0])


def common(one: str, other: str) -> str:
    """What two texts begin with."""
    return one[: next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))]


def test_the_prompt_holds_playbook_counters_reviews_with_questions_and_what_is_left() -> None:
    """All that the curator judges by is in view, and which retry proved what."""
    confirmed = Reflection(
        (Insight("Carry."), Insight("Search twice.", "search")),
        {"str-00001": "misapplied"}, verified=True, diagnosis="No carry.",
        trajectory=trajectory("3", cited=("str-00001", "str-00002"), solved_before=("str-00002",)),
        retries=(trajectory("3", answer="twelve (12)", score=1.0),),
    )  # fmt: skip
    failed = Reflection(
        ("Guess.",), verified=False, trajectory=trajectory("5", score=0.25), retries=(trajectory("5", score=0.25),)
    )
    better = Reflection(("Count.",), verified=False, trajectory=trajectory("9"), retries=(trajectory("9", score=0.25),))
    others = (trajectory("7", score=1.0), trajectory("8", score=1.0))
    success = Reflection(("Keep on.",), trajectory=trajectory("6", score=1.0), others=others)
    fields = shown(group=(confirmed, failed, success, better), max_tokens=500)
    assert fields["task"] == "Add the numbers."
    assert fields["playbook"] == PLAYBOOK.render()
    assert fields["evidence"] == "Votes, also of this batch:\nstr-00001: helpful 3, harmful 1"
    reviews = fields["reviews"].split("\n\n")
    assert reviews[0].splitlines() == [
        "Review 1 (failure; confirmed for this case by a retry, scores 0 → 1)",
        "Case: question: How many are 3 and 5?",
        "Bullets: [str-00001] misapplied, [str-00002] cited", "Solved before, without [str-00002] as it stands.",
        "Answers: answer: eleven → answer: twelve (12)", "Diagnosis: No carry.",
        "Insights:", "- Carry.", "- Search twice. (for predictor search)",
    ]  # fmt: skip
    assert reviews[1].startswith("Review 2 (failure; unproven: each retry failed again, scores 0.25 → 0.25)")
    assert reviews[2].startswith("Review 3 (3 successes; this is one of them)")
    assert "Review 4 (failure; confirmed in part for this case: the retry scored higher, scores 0 → 0.25)" in reviews[3]
    used = PLAYBOOK.tokens()
    assert fields["budget"] == f"The playbook costs each call {used} tokens; {500 - used} of 500 are left."


def test_a_lesson_can_be_held_against_the_answers_of_its_own_cases() -> None:
    """What several successes answered, each once; of a failure's labels those that are answered, if there are any."""
    answers = ("ten", "ten", "nine", "two", "six")
    first, *others = [trajectory(str(n), answer=answer, score=1.0) for n, answer in enumerate(answers)]
    asked = dspy.Example(question="How many?").with_inputs("question")
    labelled = trajectory("8", example=dspy.Example(asked, answer="ten", source="p. 7").with_inputs("question"))
    group = (
        Reflection(("Count.",), trajectory=first, others=tuple(others)),
        Reflection(("Sum.",), trajectory=trajectory("7", example=asked)),
        Reflection(("Add.",), trajectory=labelled),
    )
    success, blind, seeing = shown(group=group)["reviews"].split("\n\n")
    assert "\nAnswers: answer: ten | answer: nine | answer: two | …\n" in success
    assert "Expected" not in success
    assert "\nAnswers: answer: eleven\nInsights:" in blind
    assert "\nAnswers: answer: eleven\nExpected: answer: ten\nInsights:" in seeing
    thought = replace(trajectory("7", example=asked), prediction=dspy.Prediction(reasoning="Hm.", sum="ten"))
    assert "\nAnswers: sum: ten\n" in shown(group=(Reflection(("Sum.",), trajectory=thought),))["reviews"]


def test_look_alikes_are_shown_by_their_ids() -> None:
    """Pairs of one scope that look alike, the closest first; the curator is asked to judge them."""
    playbook = Playbook.from_text(
        "## S\n[a-00001] Round all totals to two decimals.\n[a-00002] Ask before paying.\n"
        "[a-00003] Round all totals to three decimals.\n[a-00004] Always round totals to two decimals."
    )
    assert shown(playbook)["look_alikes"] == "[a-00001] ~ [a-00003]\n[a-00001] ~ [a-00004]\n[a-00003] ~ [a-00004]"
    assert shown()["look_alikes"] == "(none)"
    embedder = lambda batch: [[1.0, float("two" in text)] for text in batch]  # noqa: E731 - as short as it can be
    assert shown(playbook, embedder=embedder)["look_alikes"].splitlines()[:2] == [
        "[a-00002] ~ [a-00003]", "[a-00001] ~ [a-00004]"
    ]  # fmt: skip
    assert "Look-alikes may differ for a reason" in CuratePlaybook.instructions


def test_look_alikes_that_differ_for_good_do_not_hide_new_ones() -> None:
    """Ten pairs at most: the closest five, and five of the newest bullets."""
    lines = [f"[a-{at:05d}] Round the totals of customer group {at} to two decimals." for at in range(1, 9)]
    lines.append("[a-00009] Round totals of customers to some decimals.")
    pairs = shown(Playbook.from_text("## S\n" + "\n".join(lines)))["look_alikes"].splitlines()
    assert len(pairs) == 10
    assert [pair for pair in pairs if "a-00009" in pair] == pairs[5:]


def test_a_token_limit_of_its_own_goes_before_that_of_ace() -> None:
    """A curator without one gets ACE's in a copy; without any the prompt says so."""
    curator = Curator()
    assert (curator.limited_to(700).max_tokens, curator.max_tokens) == (700, None)
    assert Curator(max_tokens=500).limited_to(700).max_tokens == 500
    assert shown()["budget"].endswith("no limit.")
    lm = scripted(curation_reply())
    Curator(lm).limited_to(700)(PLAYBOOK, GROUP)
    assert fields_of(lm.script.requests[0])["budget"].endswith("of 700 are left.")


def test_an_embedder_that_fails_costs_the_pairs_only(caplog: pytest.LogCaptureFixture) -> None:
    """The curation goes on, and the failure is told."""

    def embedder(batch: list[str]) -> Any:
        raise ConnectionError("no route to host")

    assert shown(embedder=embedder)["look_alikes"] == "(none)"
    assert "ConnectionError: no route to host" in caplog.text


def test_a_custom_reflection_without_a_trajectory_is_shown() -> None:
    """Insights are all a reflection must have."""
    assert (
        shown(group=(Reflection(("Carry.",)),))["reviews"]
        == "Review 1 (outcome unknown; not retried)\nInsights:\n- Carry."
    )


def test_an_empty_playbook_offers_the_default_sections() -> None:
    """There is something to file the first bullets under."""
    fields = shown(Playbook())
    assert fields["playbook"] == "(empty)"
    assert fields["evidence"] == "(no votes yet)"
    assert fields["sections"] == "; ".join(DEFAULT_SECTIONS)


def test_sections_of_ones_own_are_offered_alone_and_default_ones_stay_complete() -> None:
    """A playbook that grew from the default sections keeps them all; another one is not given them."""
    assert shown()["sections"] == "; ".join(DEFAULT_SECTIONS)
    grown = apply(PLAYBOOK, Delta((Add("Tone", "Be brief."),)))
    assert shown(grown)["sections"] == "; ".join((*DEFAULT_SECTIONS, "Tone"))
    assert shown(Playbook.from_text("## APIs\n[a-00001] Log in.\n## Others\n[b-00002] x"))["sections"] == "APIs; Others"


def test_one_more_bullet_and_a_vote_keep_the_cached_prefix() -> None:
    """The playbook comes first and only grows at its end; counters stand behind it."""
    before, after = scripted(curation_reply()), scripted(curation_reply())
    Curator(before)(PLAYBOOK, GROUP)
    grown = apply(PLAYBOOK, Delta((Add("S", "One more."),)))
    Curator(after)(grown, GROUP)
    old, new = before.script.requests[0], after.script.requests[0]
    assert old[0] == new[0]
    prefix = f"[[ ## playbook ## ]]\n{PLAYBOOK.render()}\n"
    assert len(common(old[-1]["content"], new[-1]["content"])) >= len(prefix)
    assert fields_of(new)["playbook"].startswith(fields_of(old)["playbook"])


def test_groups_of_one_step_share_all_but_their_reviews() -> None:
    """Reviews come last: what groups curated in parallel have in common is a prefix."""
    prompts = []
    for group in (GROUP[:1], GROUP[1:]):
        lm = scripted(curation_reply())
        Curator(lm)(PLAYBOOK, group)
        prompts.append(lm.script.requests[0][-1]["content"])
    assert "[[ ## reviews ## ]]" in common(*prompts)


def test_every_operation_is_read() -> None:
    """Add, update, merge and delete, with the examples their reviews stand for."""
    operations, reasons = curate(
        {"type": "ADD", "section": "S", "content": "Borrow.", "reviews": [2]},
        {"type": "UPDATE", "id": "str-00001", "content": "Carry from ten on.", "reviews": [1]},
        {"type": "MERGE", "ids": ["str-00002", "cmt-00012"], "content": "Write the unit; round last."},
        {"type": "DELETE", "id": "str-00001", "reason": "It misleads."},
    )
    assert operations == (
        Add("S", "Borrow.", None, ("5",)),
        Update("str-00001", "Carry from ten on.", None, ("3",)),
        Merge(("str-00002", "cmt-00012"), "Write the unit; round last.", None, ("3", "5")),
        Delete("str-00001", "It misleads."),
    )
    assert reasons == []


@pytest.mark.parametrize(
    ("item", "operation"),
    [
        ({"op": "add", "content": "x"}, Add("", "x", None, ("3", "5"))),
        ({"operation": " Add ", "section": "## S", "content": "x"}, Add("S", "x", None, ("3", "5"))),
        ({"type": None, "op": "ADD", "section": None, "content": "x"}, Add("", "x", None, ("3", "5"))),
        ({"type": "ADD", "section": ["S"], "content": "x"}, Add("", "x", None, ("3", "5"))),
        ({"type": "ADD", "section": "S" * 5000, "content": "x"}, Add("", "x", None, ("3", "5"))),
        ({"type": "ADD", "section": "a\ud800", "content": "x"}, Add("", "x", None, ("3", "5"))),
        (
            {"type": "update", "bullet_id": "[STR-00002]", "new_content": "x", "section": ""},
            Update("str-00002", "x", None, ("3", "5")),
        ),
        (
            {"type": "MERGE", "ids": "str-00001, [str-00002]", "content": "x"},
            Merge(("str-00001", "str-00002"), "x", None, ("3", "5")),
        ),
        ({"type": "REMOVE", "id": "str-00002", "reason": "z" * 9000}, Delete("str-00002", "z" * 500)),
        ({"type": "DELETE", "id": "str-00002", "reason": ["\ud800"]}, Delete("str-00002")),
        ('{"type": "ADD", "content": "x"}', Add("", "x", None, ("3", "5"))),
    ],
)
def test_spellings_of_one_operation_are_the_same(item: Any, operation: Any) -> None:
    """Key names, capitals, brackets and odd sections cost no lesson."""
    assert curate(item) == ((operation,), [])


@pytest.mark.parametrize(
    ("reviews", "sources"),
    [([1], ("3",)), (["2"], ("5",)), ("Review 2", ("5",)), ([2, 1, 2], ("5", "3")), (2.0, ("5",)),
     ([[1], 2], ("3", "5")),
     (None, ("3", "5")), ([], ("3", "5")), ([9, 0, -1], ("3", "5")), ("²", ("3", "5")), (True, ("3", "5")),
     ("9" * 5000, ("3", "5")), ({"a": 1}, ("3",))],
)  # fmt: skip
def test_sources_are_the_named_reviews_or_the_whole_group(reviews: Any, sources: tuple[str, ...]) -> None:
    """Numbers in any form; none that fits means all."""
    (operation,), _ = curate({"type": "ADD", "content": "x", "reviews": reviews})
    assert operation.sources == sources


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("just words", "expected an object"),
        (None, "expected an object"),
        (5, "expected an object"),
        ({}, "unknown type"),
        ({"type": "REPLACE", "content": "x"}, "unknown type REPLACE"),
        ({"type": ["ADD"], "content": "x"}, "unknown type"),
        ({"type": "ADD", "content": ""}, "content is empty"),
        ({"type": "ADD", "content": " \n\t"}, "content is empty"),
        ({"type": "ADD", "content": None}, "content is empty"),
        ({"type": "ADD", "content": ["x"]}, "content is empty"),
        ({"type": "ADD"}, "content is empty"),
        ({"type": "ADD", "content": "a\ud800b"}, "not valid Unicode"),
        ({"type": "ADD", "content": "x" * 50_000}, "50000 characters"),
        ({"type": "ADD", "content": "---"}, "no lesson of its own"),
        ({"type": "UPDATE", "id": "str-00099", "content": "x"}, 'no bullet "str-00099"'),
        ({"type": "UPDATE", "id": "\ud800", "content": "x"}, "no bullet"),
        ({"type": "UPDATE", "content": "x"}, "no bullet null"),
        ({"type": "REMOVE"}, "no bullet null"),
        ({"type": "DELETE", "section": "STRATEGIES & INSIGHTS"}, "no bullet null"),
        ({"type": "DELETE", "id": 1}, "no bullet 1"),
        ({"type": "MERGE", "ids": ["str-00001", "str-00001"], "content": "x"}, "two or more different bullets"),
        ({"type": "MERGE", "ids": ["str-00001"], "content": "x"}, "two or more different bullets"),
        ({"type": "MERGE", "ids": [], "content": "x"}, "two or more different bullets"),
        ({"type": "MERGE", "ids": {"a": 1}, "content": "x"}, "needs a list of ids"),
        ({"type": "MERGE", "content": "x"}, "needs a list of ids"),
    ],
)
def test_one_bad_operation_is_rejected_alone_with_its_reason(item: Any, reason: str) -> None:
    """The good ones on both sides of it stand; the reason can be written to any file."""
    good, better = {"type": "ADD", "content": "Good."}, {"type": "DELETE", "id": "str-00002"}
    operations, reasons = curate(good, item, better)
    assert operations == (Add("", "Good.", None, ("3", "5")), Delete("str-00002"))
    assert len(reasons) == 1
    assert reason in reasons[0]
    assert len(reasons[0].encode()) < 1500


def test_keys_that_are_no_text_are_rejected_too() -> None:
    """A Python literal may hold what JSON cannot."""
    _, reasons = curate(reply=chat(reasoning="", operations="[{(1, 2): b'x'}, {'type': 'ADD', 'content': 'x'}]"))
    assert len(reasons) == 1


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("[str-00012] (STRATEGIES & INSIGHTS) Carry.", "Carry."),
        ("[x-00001] helpful=0 harmful=0 :: Carry.", "Carry."),
        ("[x-7] helpful=2 harmful=1 :: Carry.", "Carry."),
        ("[str-00001] Carry.", "Carry."),
        ("[new-00044] (Some NEW Section) Carry.", "(Some NEW Section) Carry."),
        ("(COMMON MISTAKES TO AVOID) Carry.", "Carry."),
        ("## STRATEGIES & INSIGHTS\n[x-00001] helpful=0 harmful=0 :: Carry.", "Carry."),
        ("## TONE\n\n[x-00001] Carry.", "Carry."),
        ("## COMMON MISTAKES TO AVOID\nDo not guess.", "Do not guess."),
        ("## TONE_RULES :: Be brief.", "Be brief."),
    ],
)
def test_an_echo_of_the_playbooks_format_is_cleaned(content: str, kept: str) -> None:
    """Ids, counters, sections and headers before a lesson are no part of it."""
    (operation,), reasons = curate({"type": "ADD", "content": content})
    assert (operation.content, reasons) == (kept, [])


@pytest.mark.parametrize(
    "content",
    [
        "Use this:\n```python\n## totals\nx = [s for s in rows]  # [0]\n```\nthen add.",
        "## Steps\n1. Read.\n2. Add.",
        "## std::vector\nIs a list.",
        "[2024-01] (Q1) is how months are written.",
        "[step-1] Parse. [step-2] Add.",
        "# a comment\nx = 1",
        'Write {"a": [1, {"b": 2}]} and {name}.',
        "Counters like helpful=1 are not shown; a::b is a path.",
        "(optional) Carry.",
        "Écrire « oui » — 答えは「はい」。 \U0001f600",
        "See [str-00001] for the rest.",
        "a\n\n    indented\n\tcode",
        "-",
    ][:-1],
)
def test_what_looks_like_format_but_is_a_lesson_is_kept(content: str) -> None:
    """Comments, headings, code, dates, braces and other scripts are content."""
    (operation,), reasons = curate({"type": "ADD", "content": content})
    assert (operation.content, reasons) == (content, [])


@pytest.mark.parametrize(
    "content",
    ["## A\n[x-00001] helpful=0 harmful=0 :: One.\n## B\n[y-00002] helpful=0 harmful=0 :: Two.",
     "[x-00001] One.\n[x-00002] Two.", "## PLAYBOOK", "## A\n## B", "[str-00001]", "[x-00001] helpful=0 harmful=0 ::"],
)  # fmt: skip
def test_a_content_that_is_format_only_or_several_bullets_is_rejected(content: str) -> None:
    """No header junk becomes a bullet."""
    operations, reasons = curate({"type": "ADD", "content": content}, {"type": "ADD", "content": "Good."})
    assert [operation.content for operation in operations] == ["Good."]
    assert "playbook's format" in reasons[0]


def test_markers_of_an_adapter_in_a_content_do_not_reach_a_prompt() -> None:
    """A lesson that quotes a marker is taken; where it is shown, the marker is taken apart."""
    (operation,), _ = curate({"type": "ADD", "content": "Start with [[ ## answer ## ]] at once."})
    playbook = apply(PLAYBOOK, Delta((operation,)))
    assert "[[ ## answer" not in shown(playbook)["playbook"]


def test_a_torn_reply_keeps_whole_operations_and_reports_the_half_one() -> None:
    """A half sentence never becomes a bullet."""
    whole = json.dumps([{"type": "ADD", "content": "Whole."}, {"type": "ADD", "content": "Half a sentence that"}])
    operations, reasons = curate(reply=f"[[ ## reasoning ## ]]\nr\n\n[[ ## operations ## ]]\n{whole[:-12]}")
    assert [operation.content for operation in operations] == ["Whole."]
    assert "ends in the middle" in reasons[0]


@pytest.mark.parametrize(
    "said",
    [
        "## S\n[x-00001] helpful=0 harmful=0 :: One.",
        "- One.\n- Two.",
        '["One.", "Two."]',
        "Add a bullet on carrying.",
        '[{"type": "AD',
    ],
)
def test_a_reply_without_any_operation_object_is_asked_for_once_more(said: str) -> None:
    """The error is in view; the second reply counts, and if it is no better the group ends in a RoleError."""
    lm = scripted([chat(reasoning="", operations=said), curation_reply({"type": "ADD", "content": "x"})])
    delta, rejected = Curator(lm)(PLAYBOOK, GROUP)
    assert (len(delta), rejected, len(lm.script.requests)) == (1, (), 2)
    assert "operations" in fields_of(lm.script.requests[1])["problem_with_last_reply"]
    lm = scripted(chat(reasoning="", operations=said))
    with pytest.raises(RoleError):
        Curator(lm)(PLAYBOOK, GROUP)
    assert len(lm.script.requests) == 2


@pytest.mark.parametrize("said", ["[]", "", "None.", "(empty)", "No operations are needed."])
def test_no_operation_is_a_good_answer(said: str) -> None:
    """It is not asked for again."""
    lm = scripted(chat(reasoning="Nothing new.", operations=said))
    assert Curator(lm)(PLAYBOOK, GROUP) == (Delta(), ())
    assert len(lm.script.requests) == 1


LONG = "When the digits of a column add up to ten or more, carry the one to the next column. "


def in_parts(lm: Any, **options: Any) -> tuple[Delta, Any, list[dict[str, str]]]:
    """Curate four long reviews, of which a prompt holds two; also the fields of each prompt."""
    group = [reviewed(LONG * 13, source=str(number)) for number in range(4)]
    delta, rejected = Curator(lm, max_prompt_tokens=1_000, **options)(PLAYBOOK, group)
    return delta, rejected, [fields_of(request) for request in lm.script.requests]


def test_reviews_that_outgrow_a_prompt_are_curated_in_parts_that_follow_one_another() -> None:
    """A part sees what the one before added and may edit it; numbers of reviews count within a part."""
    replies = [
        curation_reply({"type": "ADD", "section": "S", "content": "Carry.", "reviews": [2]}),
        curation_reply(
            {"type": "UPDATE", "id": "s-00013", "content": "Carry from ten on.", "reviews": [1]},
            {"type": "DELETE", "id": "str-00099"},
        ),
    ]
    delta, rejected, prompts = in_parts(scripted(replies))
    assert delta.operations == (
        Add("S", "Carry.", None, ("1",)), Update("s-00013", "Carry from ten on.", None, ("2",))
    )  # fmt: skip
    assert [item.reason.partition(";")[0] for item in rejected] == ['no bullet "str-00099" in the playbook']
    assert apply(PLAYBOOK, delta)["s-00013"].sources == ("1", "2")
    assert ["s-00013" in fields["playbook"] for fields in prompts] == [False, True]
    assert [fields["reviews"].count(LONG * 13) for fields in prompts] == [2, 2]
    assert [[f"Review {n} (" in fields["reviews"] for n in (1, 2, 3)] for fields in prompts] == [
        [True, True, False]
    ] * 2
    assert in_parts(scripted(replies))[:2] == (delta, rejected)


@pytest.mark.parametrize(
    ("fault", "why"),
    [([rate_limited()], "slow down"), ([chat(reasoning="", operations="Add a bullet.")] * 2, "JSON list")],
)
def test_a_part_that_fails_costs_its_own_reviews_only(fault: list[Any], why: str) -> None:
    """What the other part wrote stands, and the loss is told; if every part fails, so does the curation."""
    added = curation_reply({"type": "ADD", "content": "Carry."})
    for replies, sources in (([*fault, added], ("2", "3")), ([added, *fault], ("0", "1"))):
        delta, (left_out,), _ = in_parts(scripted(replies))
        assert delta.operations == (Add("", "Carry.", None, sources),)
        assert left_out.reason.startswith("2 of 4 reviews were not curated")
        assert why in left_out.reason
    with pytest.raises((RoleError, dspy.utils.exceptions.LMError)):
        in_parts(scripted(fault * 2))


def test_a_limit_between_two_parts_keeps_what_was_paid_for() -> None:
    """The operations of the first part stand, also where the engine counts the calls."""
    group = [reviewed(LONG * 13, source=str(number)) for number in range(4)]
    lm = scripted(curation_reply({"type": "ADD", "content": "Carry."}))
    options = LearningSettings.of(
        metric=None, reflection_lm=lm, curate=Curator(max_prompt_tokens=1_000), max_lm_calls=1, num_threads=1
    )
    engine = Engine(options, dspy.Predict("question -> answer"))
    with engine.scope():
        delta, (left_out,) = engine.curate(PLAYBOOK, group, works=True)
        assert delta.operations == (Add("", "Carry.", None, ("0", "1")),)
        assert left_out.reason.startswith("2 of 4 reviews were not curated: max_lm_calls=1 is reached")
        with pytest.raises(LimitReachedError):
            engine.curate(PLAYBOOK, group, works=True)
    assert len(lm.script.requests) == 1


def test_a_provider_error_passes_through() -> None:
    """It is no reply that could be asked for again."""
    with pytest.raises(dspy.utils.exceptions.LMError):
        Curator(scripted(rate_limited()))(PLAYBOOK, GROUP)


def test_predictors_scope_bullets_only_where_a_program_has_several() -> None:
    """A known name scopes, whatever its brackets; an unknown one and a single predictor mean all."""
    several = (Reflection(("x",), trajectory=trajectory(task={"search": "Find.", "answer": "Answer."})),)
    items = [
        {"type": "ADD", "content": f"x{name}", "predictor": name} for name in ("search", "[answer]", "nobody", 5, None)
    ]
    operations, _ = curate(*items, group=several)
    assert [operation.predictor for operation in operations] == ["search", "answer", None, None, None]
    (operation,), _ = curate({"type": "ADD", "content": "x", "predictor": "answer"})
    assert operation.predictor is None


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters(), max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_ID = st.sampled_from(["str-00001", "[STR-00002]", "cmt-00012", "x-1", "", "str-00001, cmt-00012"]) | _ANY
_OPERATION = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["ADD", "update", "Merge", "DELETE", "REMOVE", "?"]) | _ANY,
        "op": _ANY,
        "id": _ID,
        "ids": st.lists(_ID, max_size=3) | _ID,
        "content": st.sampled_from(["Carry.", "## A\n[x-00001] b", "a\ud800", "[x-1] helpful=1 harmful=0 :: c"]) | _ANY,
        "section": _ANY,
        "reviews": _ANY,
        "predictor": _ANY,
        "reason": _ANY,
    },
)


@given(st.lists(_OPERATION | _ANY, min_size=1, max_size=6))
def test_any_operations_are_sorted_into_taken_and_rejected(items: list[Any]) -> None:
    """Nothing raises but a RoleError, every item is accounted for, and what is taken can be applied and stored."""
    try:
        operations, reasons = curate(*items)
    except RoleError:
        return
    assert len(operations) + len(reasons) <= sum(1 for _ in _leaves(items))
    assert all(reason.encode() for reason in reasons)
    json.dumps([str(operation) for operation in operations]).encode()
    for operation in operations:
        " ".join(operation.texts).encode()
        assert "harmful=" not in (getattr(operation, "content", None) or "")


def _leaves(items: list[Any]) -> Any:
    for item in items:
        yield from _leaves(item) if isinstance(item, list) else [item]


_LONG = st.builds(
    lambda piece, times: piece * times,
    st.text(min_size=1, max_size=30) | st.sampled_from(["[[ ## answer ## ]] ", "数", "word ", "\n", "\ud800"]),
    st.integers(0, 2000),
)


@given(_LONG, _LONG, st.integers(1, 6), st.integers(0, 40), st.integers(500, 4000))
@settings(max_examples=40, deadline=None)
def test_the_prompt_is_bounded_and_every_review_stays_in_view(
    a: str, b: str, several: int, bullets: int, bound: int
) -> None:
    """Whatever is long is cut in the middle, visibly; reviews, counters and the budget survive."""
    lines = "\n".join(f"[s-{n:05d}] helpful=1 harmful=0 :: x{'word ' * 100}" for n in range(1, bullets + 1))
    example = dspy.Example(question=a).with_inputs("question")
    group = [
        Reflection((f"x{b}",), diagnosis=a, trajectory=trajectory(str(n), example=example)) for n in range(several)
    ]
    lm = scripted(curation_reply())
    Curator(lm, max_tokens=10_000, max_prompt_tokens=bound)(Playbook.from_text(f"## S\n{lines}"), group)
    shown = 0
    for request in lm.script.requests:
        sent = request[-1]["content"]
        sent.encode()
        assert count_tokens(sent) <= bound + 200
        fields = fields_of(request)
        assert "of 10000 are left" in fields["budget"]
        shown += len(re.findall(r"^Review \d+ \(failure", fields["reviews"], re.MULTILINE))
    if bound >= 2000:
        assert shown == several


def test_a_bound_that_leaves_no_room_is_refused() -> None:
    """The message says what is the least."""
    with pytest.raises(SettingsError, match="max_prompt_tokens must be at least 500; got 100"):
        Curator(max_prompt_tokens=100)


def test_real_curations_come_through_whole() -> None:
    """6 replies of a strong model: all nine operations are taken."""
    taken: Counter[str] = Counter()
    for row in real_replies("formula_roles.jsonl"):
        if row["role"] == "curator":
            ids = [f"s-{n:05d}" for n in range(1, 30)]
            text = json.loads(sections(row["completion"])["operations"])
            named = {name for item in text for name in item.get("ids", [])}
            book = Playbook.from_text("## S\n" + "\n".join(f"[{name}] x" for name in sorted(named) or ids))
            delta, rejected = Curator(scripted(row["completion"]))(book, GROUP)
            assert rejected == ()
            taken.update(operation.op for operation in delta.operations)
    assert taken == {"add": 7, "merge": 2}


def test_real_junk_never_becomes_a_bullet() -> None:
    """14 curator replies of a weak model in the playbook's format: asked for once more, then a RoleError."""
    for row in real_replies("finer_gpt-4o-mini.jsonl"):
        if row["role"] == "curator":
            said = sections(row["completion"])["additions"]
            lm = scripted(chat(reasoning="", operations=said))
            with pytest.raises(RoleError):
                Curator(lm)(PLAYBOOK, GROUP)
            assert len(lm.script.requests) == 2
            for block in said.split("\n\n"):
                operations, reasons = curate({"type": "ADD", "content": block}, {"type": "ADD", "content": "Good."})
                for operation in operations:
                    assert not any(junk in operation.content for junk in ("##", "helpful=", "[ts-"))
                assert len(operations) + len(reasons) == 2


def test_the_prompt_is_short_and_says_what_matters() -> None:
    """Without task, playbook and reviews it has at most 400 tokens; each token of the playbook is paid for."""
    assert prompt_tokens(CuratePlaybook) <= 400
    for words in ("pays for each token", "[] is a good answer", "when, what to do, what not"):
        assert words in " ".join(CuratePlaybook.instructions.split())


def test_a_bullet_from_several_successes_names_them_all() -> None:
    """An operation rests on every success of the reviews that it names."""
    others = (trajectory("7", score=1.0), trajectory("8", score=1.0))
    group = [reviewed("Keep on.", source="6", score=1.0), reviewed("Carry.", source="9")]
    group[0] = replace(group[0], others=others)
    reply = curation_reply({"type": "ADD", "section": "S", "content": "Keep on.", "reviews": [1]})
    delta, _ = Curator(scripted(reply))(PLAYBOOK, group)
    assert delta.operations[0].sources == ("6", "7", "8")


def test_how_many_examples_a_bullet_comes_from_is_told() -> None:
    """The Curator weighs a bullet of many examples otherwise than one of a single case."""
    sources = tuple(map(str, range(4)))
    playbook = Playbook((Bullet("s-00001", "S", "Carry.", 2, 0, None, sources), Bullet("s-00002", "S", "Sort.")))
    assert shown(playbook)["evidence"].splitlines()[1:] == ["s-00001: helpful 2, harmful 0, from 4 examples"]
