"""The default reflector: what it is shown, and what it makes of the reply."""

from __future__ import annotations

import base64
import logging
import re
from typing import Any

import dspy
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_ace import Playbook, Reflector
from dspy_ace.errors import RoleError, SettingsError
from dspy_ace.lm import LimitReachedError
from dspy_ace.playbook import count_tokens, fit
from dspy_ace.program import Call, Failure, Feedback, shared_pieces
from dspy_ace.roles import Insight, Reflection
from dspy_ace.roles.contracts import fitting
from dspy_ace.roles.reflector import ReflectOnSuccesses, ReflectOnTrajectory
from dspy_ace.training import Engine, LearningSettings
from scripted import rate_limited, scripted
from scripted_roles import (
    PLAYBOOK,
    chat,
    fields_of,
    prompt_tokens,
    real_replies,
    reflection_reply,
    sections,
    trajectory,
)

pytestmark = pytest.mark.compat


def shown(t: Any, playbook: Playbook = PLAYBOOK, **options: Any) -> dict[str, str]:
    """The input fields of the prompt for a trajectory."""
    lm = scripted(reflection_reply())
    Reflector(lm, **options)(playbook, t)
    return fields_of(lm.script.requests[0])


def reflect(reply: str, t: Any = None, playbook: Playbook = PLAYBOOK) -> Reflection:
    """What the reflector makes of a reply."""
    result: Reflection = Reflector(scripted(reply))(playbook, t or trajectory(shown=("str-00001", "str-00002")))
    return result


def test_the_prompt_holds_inputs_every_call_outcome_feedback_and_expected_outputs() -> None:
    """All that was asked and answered is in view, predictor by predictor."""
    calls = (
        Call("search", {"question": "How many are 7 and 5?"}, {"query": "7 plus 5"}),
        Call("answer", {"hits": "seven, five"}, {"reasoning": "I add.", "answer": "eleven"}),
    )
    task = {"search": "Find facts.", "answer": "Answer briefly."}
    fields = shown(trajectory(trace=calls, task=task))
    assert fields["task"] == "[search]\nFind facts.\n\n[answer]\nAnswer briefly."
    assert fields["task_inputs"] == "question: How many are 7 and 5?"
    for words in ("Call 1: search", "7 plus 5", "Call 2: answer", "seven, five", "I add.", "eleven"):
        assert words in fields["trajectory"]
    assert "FAILED" in fields["outcome"]
    assert fields["feedback"] == "Off by one."
    assert fields["expected_outputs"] == "answer: twelve (12)"
    assert fields["earlier_reflection"] == "(none)"


def test_without_labels_no_expected_value_is_in_the_prompt() -> None:
    """An example of inputs only: the field says that there is nothing, and the label is nowhere."""
    example = dspy.Example(question="How many are 7 and 5?").with_inputs("question")
    lm = scripted(reflection_reply())
    Reflector(lm)(PLAYBOOK, trajectory(example=example))
    sent = "".join(message["content"] for message in lm.script.requests[0])
    assert "twelve" not in sent
    assert fields_of(lm.script.requests[0])["expected_outputs"] == "(not available)"


def test_bullets_that_were_shown_stand_in_one_order_without_counters() -> None:
    """So the prompts of a batch have them in common; what was cited stands in the outcome."""
    fields = shown(trajectory(shown=("str-00001", "str-00002"), cited=("str-00002",)))
    assert fields["bullets"] == "\n".join(PLAYBOOK[name].block for name in ("str-00001", "str-00002"))
    assert "It cited [str-00002]." in fields["outcome"]


def test_of_many_bullets_those_that_matter_for_the_case_are_shown() -> None:
    """The cited ones, and the closest to the case, wherever they stand; how many are left out is said."""
    lines = [f"[s-{n:05d}] Boats {n}: {'word ' * 100}" for n in range(1, 40)]
    lines[30] = f"[s-00031] How many are 7 and 5: carry. {'word ' * 100}"
    playbook = Playbook.from_text("## S\n" + "\n".join(lines))
    names = tuple(bullet.id for bullet in playbook)
    bullets = shown(trajectory(shown=names, cited=("s-00020",)), playbook)["bullets"]
    assert "[s-00031]" in bullets
    assert "[s-00020]" in bullets
    assert count_tokens(bullets) < 2000
    assert bullets.endswith("more, further from this case)")


TAGS = f"Tags: {', '.join(f'Tag{n}' for n in range(200))}."


def test_what_all_cases_share_is_shown_once_and_never_crowds_the_case_out() -> None:
    """A list of labels in every input stands behind the task; a small prompt cuts it, and the question stays whole."""
    cases = [{"question": f"{TAGS} What is {n} worth? Say it."} for n in range(3)]
    example = dspy.Example(cases[1]).with_inputs("question")
    t = trajectory(example=example, shared=shared_pieces(cases), trace=())
    fields = shown(t)
    assert fields["task_inputs"].endswith("characters that all cases share …]\nWhat is 1 worth? Say it.")
    assert "Tag199" in fields["task"]
    small = shown(t, max_prompt_tokens=500)
    assert small["task_inputs"] == fields["task_inputs"]
    assert "characters cut" in small["task"]


@pytest.mark.parametrize(
    ("first", "second"), [("1. ", "2. "), ("a. ", "b. "), ("1) ", "2) "), ("iii. ", "iv. "), ("99. ", "100. ")]
)
def test_the_number_of_a_question_stays_with_its_question(first: str, second: str) -> None:
    """Several questions below a long text that all cases share are still told apart."""
    cases = [{"question": f"{TAGS} Answer each.\n{first}What is {n} worth?\n{second}And {n + 1}?"} for n in range(3)]
    example = dspy.Example(cases[1]).with_inputs("question")
    fields = shown(trajectory(example=example, shared=shared_pieces(cases), trace=()))
    assert fields["task_inputs"].endswith(f"share …]\n{first}What is 1 worth?\n{second}And 2?")


SUCCESSES = [
    trajectory(str(n), score=1.0, shown=("str-00001",), cited=("str-00001",) if n == 2 else ()) for n in (1, 2, 3)
]


def test_successes_are_reflected_on_in_one_call() -> None:
    """Their inputs, outputs and citations in short, and all bullets; each insight names the successes it rests on."""
    said = [{"insight": "Write sums in words.", "attempts": [1, 3]}, "Round up.", {"insight": "Sort.", "attempts": [9]}]
    lm = scripted(chat(key_insights=[*said, "A fourth one."]))
    reflections = Reflector(lm).on_successes(PLAYBOOK, SUCCESSES)
    assert len(lm.script.requests) == 1
    fields = fields_of(lm.script.requests[0])
    assert fields["bullets"] == PLAYBOOK.render()
    assert fields["attempts"].split("\n\n")[1].splitlines() == [
        "Attempt 2", "question: How many are 2 and 5?", "  → answer: eleven", "  Feedback: Off by one.",
        "  Cited: [str-00001]",
    ]  # fmt: skip
    assert [(r.insights[0].content, [t.source for t in r.trajectories]) for r in reflections] == [
        ("Write sums in words.", ["1", "3"]), ("Round up.", ["1", "2", "3"]), ("Sort.", ["1", "2", "3"]),
    ]  # fmt: skip


MANY = [  # successes that outgrow a prompt of 1,000 tokens
    trajectory(str(n), score=1.0, example=dspy.Example(question=f"Case {n}: {'word ' * 200}").with_inputs("question"))
    for n in range(8)
]


def test_successes_that_outgrow_a_prompt_are_shown_in_parts() -> None:
    """Every success is in one of the calls, within the limit of each; attempt 1 is the first one of its part."""
    lm = scripted(chat(key_insights=[{"insight": "Carry.", "attempts": [1]}]))
    reflections = Reflector(lm, max_prompt_tokens=1000).on_successes(PLAYBOOK, MANY)
    asked = [fields_of(request)["attempts"] for request in lm.script.requests]
    assert len(asked) > 1
    assert all(sum(f"Case {n}:" in shown for shown in asked) == 1 for n in range(8))
    assert all(count_tokens(request[-1]["content"]) <= 1200 for request in lm.script.requests)
    assert [r.trajectories[0].source for r in reflections] == [re.findall(r"Case (\d):", shown)[0] for shown in asked]


def test_a_limit_between_two_parts_of_the_successes_keeps_what_was_paid_for() -> None:
    """The insights of the first part stand; with nothing paid for, the limit is told."""
    lm = scripted(chat(key_insights=[{"insight": "Carry.", "attempts": [1]}]))
    options = LearningSettings.of(
        reflection_lm=lm, reflect=Reflector(max_prompt_tokens=1000), max_lm_calls=1, num_threads=1
    )
    engine = Engine(options, dspy.Predict("question -> answer"))
    with engine.scope():
        kept = engine.reflect_on_successes(PLAYBOOK, MANY, works=True)
        assert [insight.content for reflection in kept for insight in reflection.insights] == ["Carry."]
        with pytest.raises(LimitReachedError):
            engine.reflect_on_successes(PLAYBOOK, MANY, works=True)
    assert len(lm.script.requests) == 1


def test_no_insight_from_successes_is_a_good_answer() -> None:
    """An empty list costs one call and gives no reflection."""
    lm = scripted(chat(key_insights="[]"))
    assert Reflector(lm).on_successes(PLAYBOOK, SUCCESSES) == []
    assert len(lm.script.requests) == 1


def test_a_retry_shows_the_earlier_reflection_and_says_so() -> None:
    """Diagnosis and insights of the reflection that was in view; the outcome says it is a retry."""
    fields = shown(trajectory(attempt=Reflection(("Carry the one.",), diagnosis="A carry was missed.")))
    assert fields["earlier_reflection"].splitlines() == [
        "Your answer replaces this one: repeat what is to be kept.",
        "Diagnosis: A carry was missed.",
        "- Carry the one.",
    ]
    assert "retry" in fields["outcome"]


def test_a_later_retry_shows_what_was_answered_before() -> None:
    """The first attempt and each earlier retry, with its score, in a line each; of the outputs those with a label."""
    first, second = trajectory(answer="ten\nor so"), trajectory(answer="nine", score=0.5)
    earlier = Reflection(("Carry the one.",), trajectory=first, retries=(second,))
    assert shown(trajectory(attempt=earlier))["earlier_reflection"].splitlines() == [
        "Your answer replaces this one: repeat what is to be kept.",
        "Before it: answer: ten or so (score 0)",
        "Before it: answer: nine (score 0.5)",
        "- Carry the one.",
    ]


def test_an_earlier_success_at_the_same_case_is_told() -> None:
    """With the cited bullets that are new since then: one of them may have misled."""
    assert shown(trajectory(solved_before=("str-00001",)))["outcome"].endswith(
        "Solved before, without [str-00001] as it stands."
    )
    assert shown(trajectory(solved_before=()))["outcome"].endswith("Solved before.")
    assert "Solved" not in shown(trajectory())["outcome"]


def test_a_failed_call_is_told_as_the_outcome() -> None:
    """The error's kind and message stand where the score would."""
    assert "ValueError: no digits" in shown(trajectory(error=Failure("program", "ValueError: no digits")))["outcome"]


def test_every_part_of_the_answer_is_read() -> None:
    """Insights in order, tags matched against the playbook whatever brackets and capitals, findings in words."""
    reply = reflection_reply(
        ["Carry.", {"insight": "Write units."}], {"[STR-00001]": "Helpful.", "str-00002": {"tag": "harmful"}}
    )
    assert reflect(reply) == Reflection(
        (Insight("Carry."), Insight("Write units.")),
        {"str-00001": "helpful", "str-00002": "harmful"},
        diagnosis="The sum was wrong.",
    )


@pytest.mark.parametrize(
    "said", ["[]", "", "(none)", '["None"]', "No new insights.", '["", null, 5, {"predictor": "answer"}]']
)
def test_no_insight_is_a_good_answer(said: str) -> None:
    """The many ways to say that there is nothing new give no insight and no second call."""
    lm = scripted(reflection_reply(said))
    assert Reflector(lm)(PLAYBOOK, trajectory()).insights == ()
    assert len(lm.script.requests) == 1


@pytest.mark.parametrize(
    ("said", "tags"),
    [
        ("str-00001: helpful", {"str-00001": "helpful"}),
        ('[{"id": "str-00001", "tag": "harmful"}]', {"str-00001": "harmful"}),
        (
            '{"helpful": ["str-00001"], "harmful": [], "neutral": "STR-00002"}',
            {"str-00001": "helpful", "str-00002": "neutral"},
        ),
        ('{"str-00001": "great", "str-00002": null}', {}),
        ('{"x-9": "helpful"}', {"x-9": "helpful"}),
        ("BULLET_ID: harmful", {"BULLET_ID": "harmful"}),
        ("No bullet was cited here, so I tag none of them.", {}),
        ("(empty)", {}),
    ],
)
def test_tags_are_read_in_every_form(said: str, tags: dict[str, str]) -> None:
    """Unknown words are no votes; unknown ids are kept, to be reported; prose that names no bullet has no votes."""
    assert reflect(reflection_reply(["a"], said)).tags == tags


def test_prose_that_names_a_bullet_is_asked_for_once_more() -> None:
    """A vote may be in it that must not be lost."""
    lm = scripted(
        [reflection_reply(["a"], "str-00001 was of help."), reflection_reply(["a"], {"str-00001": "helpful"})]
    )
    assert Reflector(lm)(PLAYBOOK, trajectory(shown=("str-00001",))).tags == {"str-00001": "helpful"}
    assert len(lm.script.requests) == 2


def test_predictors_scope_insights_only_where_a_program_has_several() -> None:
    """A known name scopes, an unknown one falls to all; with one predictor there is no scope."""
    said = [
        {"insight": "a", "predictor": "[search]"},
        {"insight": "b", "predictor": "nobody"},
        {"insight": "c", "predictor": 5},
    ]
    task = {"search": "Find.", "answer": "Answer.", "check": "Check."}
    calls = (Call("search", {}, {"text": "x"}), Call("answer", {}, {"answer": "eleven"}))
    several = reflect(reflection_reply(said), trajectory(task=task, trace=calls))
    assert [insight.predictor for insight in several.insights] == ["search", None, None]
    single = reflect(reflection_reply([{"insight": "a", "predictor": "answer"}]), trajectory())
    assert single.insights == (Insight("a"),)


def test_a_torn_reply_keeps_the_whole_insights_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half one is left out, and a warning says for which example."""
    reply = chat(key_insights='["Carry the one.", "Write the un').replace("[[ ## completed ## ]]", "").rstrip()
    monkeypatch.setattr(logging.getLogger("dspy"), "propagate", True)
    with caplog.at_level(logging.WARNING, "dspy.ace"):
        assert reflect(reply).insights == (Insight("Carry the one."),)
    assert any("example 7" in record.getMessage() for record in caplog.records)


def test_a_reply_without_insights_field_is_asked_for_once_more_then_an_error() -> None:
    """Two calls, no more; the error of a provider passes through at once."""
    lm = scripted("I cannot say.")
    with pytest.raises(RoleError):
        Reflector(lm)(PLAYBOOK, trajectory())
    assert len(lm.script.requests) == 2
    with pytest.raises(dspy.utils.exceptions.LMError):
        Reflector(scripted(rate_limited()))(PLAYBOOK, trajectory())


def test_a_huge_or_broken_text_is_tamed_before_it_is_handed_on() -> None:
    """An insight of 50,000 characters is cut visibly; lone surrogates are replaced; LaTeX comes back."""
    huge, odd = reflect(reflection_reply(["word " * 10_000, "use \ud800 \x0crac{1}{2}"])).insights
    assert count_tokens(huge.content) <= 1000
    assert "characters cut" in huge.content
    assert odd.content == "use � \\frac{1}{2}"


def test_values_that_are_no_text_do_not_blow_the_prompt() -> None:
    """Images, histories, objects and base64 data are short in the prompt, and it stays one text message."""

    class Order(pydantic.BaseModel):
        number: int = 17

    picture = dspy.Image(url="data:image/png;base64," + base64.b64encode(b"x" * 200_000).decode())
    example = dspy.Example(
        picture=picture,
        history=dspy.History(messages=[{"question": "hello", "answer": "hi"}]),
        order=Order(),
        blob="QUJD" * 100_000,
    ).with_inputs("picture", "history", "order", "blob")
    call = Call("answer", example.inputs().toDict(), {"answer": "x", "pictures": [picture]})
    lm = scripted(reflection_reply())
    Reflector(lm, max_prompt_tokens=4000)(PLAYBOOK, trajectory(example=example, trace=(call,)))
    sent = lm.script.requests[0][-1]["content"]
    assert count_tokens(sent) <= 4200
    assert "(image)" in sent
    assert "number=17" in sent
    assert "hello" in sent
    assert "CUSTOM-TYPE" not in sent.replace("< <CUSTOM-TYPE", "")


_LONG = st.builds(
    lambda piece, times: piece * times,
    st.text(min_size=1, max_size=30) | st.sampled_from(["[[ ## answer ## ]] ", "数", "word ", "\n", "\ud800", "a1b2"]),
    st.integers(0, 3000),
)


@given(_LONG, _LONG, _LONG, _LONG, st.integers(1000, 3000))
@settings(max_examples=40, deadline=None)
def test_the_prompt_is_bounded_and_keeps_inputs_and_outcome(a: str, b: str, c: str, d: str, bound: int) -> None:
    """Whatever is long is cut in the middle, visibly; where inputs begin and end, and the outcome, survive."""
    example = dspy.Example(question=f"BEGIN {a} END", answer=d).with_inputs("question")
    calls = tuple(Call("answer", {"question": b}, {"answer": c}) for _ in range(3))
    t = trajectory(
        example=example, trace=calls, feedback=Feedback(0, c), task={"answer": d}, attempt=Reflection((f"x{b}",))
    )
    lm = scripted(reflection_reply())
    Reflector(lm, max_prompt_tokens=bound)(PLAYBOOK, t)
    sent = lm.script.requests[0][-1]["content"]
    sent.encode()
    assert count_tokens(sent) <= bound + 200
    fields = fields_of(lm.script.requests[0])
    assert "BEGIN" in fields["task_inputs"]
    assert "END" in fields["task_inputs"]
    assert "FAILED" in fields["outcome"]
    if count_tokens(f"{a}{b}{c}{d}") > bound + 50:
        assert "characters cut" in sent


def test_a_bound_that_leaves_no_room_is_refused() -> None:
    """The message says what is the least."""
    with pytest.raises(SettingsError, match="max_prompt_tokens must be at least 500; got 100"):
        Reflector(max_prompt_tokens=100)


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()])
def test_the_offline_model_reflects_through_every_adapter(adapter: Any) -> None:
    """A failure with a known answer gives an insight, and none is needed twice."""
    from dspy_ace.testing import OfflineLM

    lm = OfflineLM()
    example = dspy.Example(question="Which desk takes a broken parcel?", answer="Quarry").with_inputs("question")
    call = Call("answer", {"question": example.question}, {"answer": "Maple"})
    with dspy.context(adapter=adapter, lm=lm):
        reflection = Reflector()(Playbook(), trajectory(example=example, trace=(call,)))
    assert reflection.insights
    assert lm.calls == 1


def test_real_reflections_come_through_whole() -> None:
    """24 replies of a strong model, under our field names: every insight and vote is there."""
    insights = votes = 0
    for row in real_replies("formula_roles.jsonl"):
        if row["role"] == "reflector":
            said = sections(row["completion"])
            reply = chat(
                diagnosis=said["root_cause"],
                key_insights=said["insights"],
                bullet_tags=said["bullet_tags"],
            )
            reflection = reflect(reply)
            assert reflection.diagnosis == said["root_cause"]
            insights, votes = insights + len(reflection.insights), votes + len(reflection.tags)
    assert (insights, votes) == (10, 8)


def test_the_prompts_are_short_and_say_what_matters() -> None:
    """Without a case the whole prompt on a failure has at most 450 tokens, that on successes 350."""
    assert prompt_tokens(ReflectOnTrajectory) <= 450
    assert prompt_tokens(ReflectOnSuccesses) <= 350
    assert "none harmful" in ReflectOnTrajectory.instructions
    for signature in (ReflectOnTrajectory, ReflectOnSuccesses):
        for words in ("[] is a good answer", "stands on its own", "small"):
            assert words in " ".join(signature.instructions.split())


def test_an_unreadable_second_part_of_the_successes_keeps_the_first() -> None:
    """The insights of the first part are paid for; with none, the error is told."""
    lm = scripted([chat(key_insights=[{"insight": "Carry.", "attempts": [1]}]), "?"])
    kept = Reflector(lm, max_prompt_tokens=1000).on_successes(PLAYBOOK, MANY)
    assert [insight.content for each in kept for insight in each.insights] == ["Carry."]
    with pytest.raises(RoleError):
        Reflector(scripted("?"), max_prompt_tokens=1000).on_successes(PLAYBOOK, MANY)


@given(st.lists(st.integers(0, 4000), min_size=1, max_size=6), st.integers(0, 4000))
def test_reviews_that_fit_are_not_cut_whatever_stands_beside_them(others: list[int], size: int) -> None:
    """What `fitting` lets into a prompt, `fit` leaves whole."""
    fields = {f"field{n}": "word " * length for n, length in enumerate(others)}
    kept = fitting([f"review {n} " + "word " * (size // 4) for n in range(4)], fields, 2000)
    reviews = "\n\n".join(kept)
    assert fit({**fields, "reviews": reviews}, 2000)["reviews"] == reviews
