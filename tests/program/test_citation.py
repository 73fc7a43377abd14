"""Citations: asked for in training copies, noted in the trajectory, nowhere else to be seen."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from citation_helpers import ADAPTERS, ASKED, KINDS, VALUES, asked_for, model, reply, says
from dspy_ace import Bullet, Playbook, with_playbook
from dspy_ace.program.citation import FIELD, recording
from dspy_ace.program.rollout import rollouts
from dspy_ace.testing import OfflineLM
from scripted import Messages, scripted


def build(name: str, history: bool, demos: bool) -> dspy.Module:
    signature = "question, history: dspy.History -> answer" if history else "question -> answer"
    if name == "react":
        program: Any = dspy.ReAct(signature, tools=[])
    else:
        program = {"predict": dspy.Predict, "cot": dspy.ChainOfThought}[name](signature)
    if demos:
        demo = dspy.Example(question="Capital of Spain?", trajectory="none", **{**VALUES, "answer": "Madrid"})
        demo = dspy.Example({k: v for k, v in demo.items() if k != FIELD})
        if history:
            demo.history = dspy.History(messages=[])
        for predictor in program.predictors():
            predictor.demos = [demo]
    return program


@pytest.mark.compat
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", ["predict", "cot", "react"])
@pytest.mark.parametrize("demos", [False, True], ids=["bare", "demos"])
@pytest.mark.parametrize("history", [False, True], ids=["single", "history"])
def test_ids_reach_the_trajectory_and_nothing_else(
    kind: str, module: str, demos: bool, history: bool, playbook: Playbook
) -> None:
    """Every module under every adapter: the cited ids arrive; no prediction, trace, demo or state knows of them."""
    student = build(module, history, demos)
    program = with_playbook(student, playbook, cite=True)
    example = dspy.Example(question="Capital of France?")
    if history:
        turn = {"question": "Capital of Italy?", "answer": "Rome"}
        example.history = dspy.History(messages=[turn])
    example = example.with_inputs(*example.keys())
    lm = model(kind)
    with dspy.context(lm=lm, adapter=ADAPTERS[kind]()):
        trajectory = rollouts(program, [example])[0]
    assert trajectory.error is None
    assert trajectory.cited == ("cmt-00002",)
    assert trajectory.shown == tuple(bullet.id for bullet in playbook)
    assert trajectory.prediction is not None
    assert trajectory.prediction.answer == "Paris"
    assert FIELD not in trajectory.prediction
    assert FIELD not in str(trajectory.prediction.completions)
    assert trajectory.trace
    assert all(FIELD not in call.outputs and FIELD not in call.inputs for call in trajectory.trace)
    for request in lm.script.requests:
        assert FIELD in request[0]["content"]
        assert FIELD in request[-1]["content"]
        for message in request[1:-1]:
            assert FIELD not in message["content"]
            assert "Not supplied" not in message["content"] or module == "react" or history
    assert program.dump_state() == with_playbook(student, playbook).dump_state()


@pytest.mark.compat
@pytest.mark.parametrize("kind", KINDS)
def test_demos_and_turns_are_those_of_the_plain_program(kind: str, playbook: Playbook) -> None:
    """Between the system message and the request, a training copy sends what the program itself sends."""
    student = build("cot", True, True)
    lm = model(kind)
    history = dspy.History(messages=[{"question": "Capital of Italy?", "answer": "Rome", "reasoning": "r"}])
    with dspy.context(lm=lm, adapter=ADAPTERS[kind]()):
        for cite in (False, True):
            with_playbook(student, playbook, cite=cite)(question="q", history=history)
    plain, citing_ = lm.script.requests
    assert len(plain) == len(citing_) > 4
    assert plain[1:-1] == citing_[1:-1]


WRITTEN = {
    "json list": ('["cmt-00002", "str-00001"]', ("str-00001", "cmt-00002")),
    "brackets": ("[cmt-00002]", ("cmt-00002",)),
    "brackets each": ("[cmt-00002], [str-00001]", ("str-00001", "cmt-00002")),
    "capitals": ("CMT-00002", ("cmt-00002",)),
    "comma text": ("cmt-00002, misc-00003", ("cmt-00002", "misc-00003")),
    "markdown": ("- **cmt-00002**\n- `str-00001`\n- _misc-00003_", ("str-00001", "cmt-00002", "misc-00003")),
    "a sentence": ("I relied on cmt-00002.", ("cmt-00002",)),
    "one that does not apply": ("cmt-00002 does not apply.", ()),
    "one of two that does not apply": ("str-00001, not cmt-00002; misc-00003 isn't relevant", ("str-00001",)),
    "one that misled": ("cmt-00002 misled me and is not right", ("cmt-00002",)),
    "no spaces": ("根据cmt-00002的内容", ("cmt-00002",)),
    "lines": ("these:\ncmt-00002\nstr-00001", ("str-00001", "cmt-00002")),
    "repeated": ('["cmt-00002", "cmt-00002"]', ("cmt-00002",)),
    "empty": ("[]", ()),
    "none": ("None", ()),
    "unknown": ('["str-00099", "cmt-00002"]', ("cmt-00002",)),
    "only unknown": ('["str-99999"]', ()),
    "part of a word": ("xcmt-00002 my-cmt-00002 cmt-000021", ()),
}


@pytest.mark.compat
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(WRITTEN))
def test_ids_are_found_however_they_are_written(kind: str, name: str, playbook: Playbook) -> None:
    """Lists, brackets, capitals and sentences are read; ids that were not shown do not count."""
    written, expected = WRITTEN[name]
    trajectory, lm = says(kind, reply(kind, {"answer": "Paris", FIELD: written}), playbook)
    assert trajectory.cited == expected
    assert trajectory.success
    assert len(lm.script.requests) == 1


@pytest.mark.compat
@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_without_citations_is_a_good_reply(kind: str, playbook: Playbook) -> None:
    """The field may be missing: no second call, no failure."""
    trajectory, lm = says(kind, reply(kind, {"answer": "Paris"}), playbook)
    assert trajectory.success
    assert trajectory.cited == ()
    assert len(lm.script.requests) == 1


BROKEN = {
    "chat": [
        "[[ ## answer ## ]]\nParis\n[[ ## cited_bullets ## ]]\n[cmt-00002,",
        "[[ ## answer ## ]]\nParis\n[[ ## cited_bullets ##]]\ncmt-00002",
        "[[ ## answer ## ]]\nParis\n\n[[## cited_bullets ##]] cmt-00002\n[[ ## completed ## ]]",
        "[[ ## answer ## ]]\nParis\n\n**Cited_bullets:** cmt-00002",
        "[[ ## answer ## ]]\nParis\n## cited_bullets\n- cmt-00002\n- str-00001",
        "[[ ## answer ## ]]\nParis [[ ## cited_bullets ## ]] cmt-00002",
        "[[ ## cited_bullets ## ]]\n{cmt-00002\n[[ ## answer ## ]]\nParis\n[[ ## completed ## ]]",
        "[[ ## answer ## ]]\nParis\n\ncited_bullets: cmt-00002\n\n[[ ## completed ## ]]",
    ],
    "json": [
        '{"answer": "Paris", "cited_bullets": ["cmt-00002"',
        '{"answer": "Paris", "cited_bullets": [cmt-00002, }',
        '{"answer": "Paris", "cited_bullets": "cmt-00002}',
        '{"answer": "Paris", "cited_bullets": {"ids": ["cmt-00002"]}}',
        '{"answer": "Paris", "cited_bullets": 2, "cited": "cmt-00002"}',
        '{"cited_bullets": [cmt-00002, "answer": "Paris"}',
        '{"answer": "Paris"\n"cited_bullets": ["cmt-00002"]}',
        '```json\n{"answer": "Paris", "cited_bullets": ["cmt-00002"]}\n```',
    ],
    "xml": [
        "<answer>Paris</answer>\n<cited_bullets>[cmt-00002",
        "<answer>Paris</answer>\n<cited_bullets><cmt-00002></cited_bullets>",
        "<answer>Paris</answer>\n<cited_bullets>cmt-00002 & others</cited_bullets>",
        "<cited_bullets>cmt-00002\n<answer>Paris</answer>",
        "<answer>Paris</answer>\n<cited_bullets>cmt-00002</cited_bullet>",
        '<answer>Paris</answer>\n<cited_bullets ids="cmt-00002"/>',
        "<answer>Paris</answer>\n<cited_bullets",
    ],
}


@pytest.mark.compat
@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in BROKEN.items() for text in texts])
def test_a_broken_citation_never_costs_the_answer(kind: str, text: str, playbook: Playbook) -> None:
    """However the section is mangled, the answer is read clean, in one call."""
    trajectory, lm = says(kind, text, playbook)
    assert trajectory.error is None
    assert trajectory.prediction is not None
    assert trajectory.prediction.answer == "Paris"
    assert len(lm.script.requests) == 1
    if "cmt-00002" in text:
        assert "cmt-00002" in trajectory.cited


@pytest.mark.compat
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_survives_a_broken_citation(kind: str, playbook: Playbook) -> None:
    """Typed answers too: what follows a mangled header is not read into them."""
    broken = {
        "chat": "[[ ## answer ## ]]\n42\n[[ ## cited_bullets ]]\ncmt-00002",
        "json": '{"answer": 42, "cited_bullets": [cmt-00002',
        "xml": "<answer>42</answer><cited_bullets>cmt-00002",
    }
    trajectory, lm = says(kind, broken[kind], playbook, "question -> answer: int")
    assert trajectory.prediction is not None
    assert trajectory.prediction.answer == 42
    assert trajectory.cited == ("cmt-00002",)
    assert len(lm.script.requests) == 1


@pytest.mark.compat
@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_is_broken_elsewhere_is_a_format_failure(kind: str, playbook: Playbook) -> None:
    """Leniency ends with the citations: a reply without an answer fails as it always did."""
    trajectory, _ = says(kind, "I would rather not say. cited_bullets: cmt-00002", playbook)
    assert trajectory.error is not None
    assert trajectory.error.kind == "format"
    assert trajectory.shown == tuple(bullet.id for bullet in playbook)
    assert trajectory.cited == ("cmt-00002",)


@pytest.mark.compat
def test_ids_of_another_predictor_do_not_count() -> None:
    """A predictor can only cite what its own prompt shows."""
    book = Playbook((Bullet("str-00001", "S", "for react", predictor="react"), Bullet("str-00002", "S", "for all")))
    lm = model("chat", **{FIELD: ["str-00001", "str-00002"]})

    def answer(messages: Messages) -> str:
        fields = asked_for(messages)
        named = ["str-00002"] if "next_tool_name" in fields else ["str-00001"]
        return reply("chat", {n: {**VALUES, FIELD: named}[n] for n in fields})

    lm = scripted(answer)
    with dspy.context(lm=lm):
        program = with_playbook(dspy.ReAct("question -> answer", tools=[]), book, cite=True)
        trajectory = rollouts(program, [ASKED])[0]
    assert trajectory.shown == ("str-00001", "str-00002")
    assert trajectory.cited == ("str-00002",)


@pytest.mark.compat
def test_without_citations_nothing_is_asked(playbook: Playbook) -> None:
    """The compiled program never asks; nor does a training copy without bullets, or whose signature has the field."""
    lm = model("chat")
    with dspy.context(lm=lm):
        with_playbook(dspy.Predict("question -> answer"), playbook)(question="q")
        with_playbook(dspy.Predict("question -> answer"), Playbook(), cite=True)(question="q")
        own = with_playbook(dspy.Predict(f"question -> answer, {FIELD}: list[str]"), playbook, cite=True)
        assert own(question="q").cited_bullets == ["cmt-00002"]
    assert FIELD not in str(lm.script.requests[:2])


@pytest.mark.compat
def test_instructions_changed_in_place_are_the_ones_sent(playbook: Playbook) -> None:
    """What is kept of a signature follows its instructions."""
    lm = model("chat")
    program = with_playbook(dspy.Predict("question -> answer"), playbook, cite=True)
    with dspy.context(lm=lm):
        program(question="q")
        program.signature.instructions = "Say it in French."
        program(question="q")
    assert "in French" in lm.script.requests[1][0]["content"]
    assert "Playbook" not in lm.script.requests[1][0]["content"]


@pytest.mark.compat
def test_empty_instructions_stay_empty() -> None:
    """Asking for citations does not bring in the text DSPy writes where there is none."""
    signature = dspy.Signature("question -> answer").with_instructions("x")
    signature.instructions = ""
    lm = model("chat")
    book = Playbook((Bullet("str-00001", "S", "x"),))
    with dspy.context(lm=lm):
        with_playbook(dspy.Predict(signature), book, cite=True)(question="q")
    assert "Given the fields" not in lm.script.requests[0][0]["content"]


def test_a_long_reply_is_read_in_linear_time(playbook: Playbook) -> None:
    """Half a million characters without a space are read, and in no quadratic time: the test would not end."""
    for text in ("規" * 500_000, "x-" * 250_000, "-1" * 250_000, "cited_bullets " * 30_000):
        with dspy.context(lm=scripted("x")):
            says("chat", f"[[ ## answer ## ]]\n{text}", playbook)


@given(text=st.text(max_size=200), name=st.sampled_from(["str-00001", "cmt-00002", "misc-00003"]))
@settings(max_examples=30, deadline=None)
def test_any_reply_is_read_as_it_would_be_without_citations(text: str, name: str) -> None:
    """A reply that does not speak of the field is parsed to the same answer by a training copy."""
    book = Playbook(tuple(Bullet(i, "S", "x") for i in ("str-00001", "cmt-00002", "misc-00003")))
    said = f"[[ ## answer ## ]]\n{text} [{name}]\n[[ ## completed ## ]]"
    answers = []
    for cite in (False, True):
        with dspy.context(lm=scripted(said)), recording() as cited:
            answers.append(with_playbook(dspy.Predict("question -> answer"), book, cite=cite)(question="q").answer)
    assert answers[0] == answers[1]
    assert name in cited


@pytest.mark.compat
@pytest.mark.parametrize("kind", KINDS)
def test_the_offline_model_cites_what_it_relies_on(kind: str) -> None:
    """A real prompt and a real reply: the model names bullets, and only ids of the playbook come through."""
    book = Playbook(
        (
            Bullet("str-00001", "S", "A message about a refund goes to Harbor."),
            Bullet("str-00002", "S", "A message about a password goes to Maple."),
        )
    )
    program = with_playbook(dspy.ChainOfThought('message -> desk: Literal["Harbor", "Maple"]'), book, cite=True)
    example = dspy.Example(message="Where is my refund?").with_inputs("message")
    with dspy.context(lm=OfflineLM(), adapter=ADAPTERS[kind]()):
        trajectory = rollouts(program, [example])[0]
    assert trajectory.error is None
    assert trajectory.prediction is not None
    assert trajectory.prediction.desk == "Harbor"
    assert "str-00001" in trajectory.cited


@pytest.mark.compat
def test_a_reply_with_the_field_cites_in_it_alone(playbook: Playbook) -> None:
    """An id in the reasoning is no citation where the field names others, or none; without the field it is one."""
    told = "[[ ## answer ## ]]\nParis, as str-00001 says"
    for field, expected in (("[]", ()), ('["cmt-00002"]', ("cmt-00002",))):
        trajectory, _ = says("chat", f"{told}\n\n[[ ## {FIELD} ## ]]\n{field}\n\n[[ ## completed ## ]]", playbook)
        assert trajectory.cited == expected
    assert says("chat", f"{told}\n\n[[ ## completed ## ]]", playbook)[0].cited == ("str-00001",)
