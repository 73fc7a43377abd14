"""Dynamic Cheatsheet as a method of the comparisons: what it shows, what it rewrites, and what it never sees."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from comparisons.methods import METHODS, Setting
from comparisons.methods.dynamic_cheatsheet import HEADER, TOP_K, DynamicCheatsheet
from dspy_ace.testing import OfflineLM
from tasks import Route, desk_metric, messages


def compiled(name: str, student: dspy.Module, lm: Any = None) -> Any:
    setting = Setting(desk_metric, 4, 4, reflection_lm=lm)
    return METHODS[name].make(setting, 0).compile(student, trainset=messages(4, 0), valset=messages(4, 1))


@pytest.mark.parametrize("name", ["dc", "dc-rs"])
def test_nothing_is_learned_before_the_test(name: str, offline: OfflineLM) -> None:
    """Compiling makes no LM call; what comes out learns while it is tested, and says so."""
    program = compiled(name, dspy.ChainOfThought(Route))
    assert offline.calls == 0
    assert program.online is True
    assert program.cheatsheet == ""


def test_the_cheatsheet_is_rewritten_after_each_answer_and_stands_in_the_next_prompt(offline: OfflineLM) -> None:
    """The cumulative variant answers with the cheatsheet in its prompt, then has the whole of it written anew."""
    program = compiled("dc", dspy.ChainOfThought(Route))
    sheets = []
    for example in messages(4, 2):
        program(**example.inputs())
        sheets.append(program.cheatsheet)
    assert [record.role for record in offline.log] == ["task", "proposer"] * 4
    assert HEADER.splitlines()[0] not in offline.log[0].request
    for before, (generated, curated) in zip(
        sheets[:3], zip(offline.log[2::2], offline.log[3::2], strict=True), strict=True
    ):
        assert HEADER.splitlines()[0] in generated.request
        for line in before.splitlines():
            assert line in generated.request
            assert line in curated.request
    assert len(set(sheets)) == 4


def test_retrieval_and_synthesis_reads_similar_queries_before_it_answers(offline: OfflineLM) -> None:
    """The retrieval variant writes the cheatsheet from the most similar past queries, then answers with it."""
    program = compiled("dc-rs", dspy.ChainOfThought(Route))
    for word in ("refund", "parcel", "refund", "parcel", "refund", "refund"):
        program(message=f"Hello, I have a question about my {word}.")
    assert [record.role for record in offline.log] == ["task", *["proposer", "task"] * 5]
    last = offline.log[-2].request
    shown = last[last.rindex("Example 1:") :]
    assert shown.count("Example ") == TOP_K
    assert "refund" in shown
    assert "parcel" not in shown


def test_no_label_reaches_a_prompt(offline: OfflineLM) -> None:
    """What an example holds besides its inputs is in no request, of the solver or of the curator."""
    program = compiled("dc", dspy.Predict("message -> desk"))
    for number in range(3):
        example = dspy.Example(message=f"Case {number}: where is it?", desk="zzlabel").with_inputs("message")
        program(**example.inputs())
    assert not any("zzlabel" in record.request for record in offline.log)


def test_the_student_is_untouched_and_another_lm_may_curate(offline: OfflineLM) -> None:
    """The student keeps its instructions; with a reflection LM the curator's calls go there."""
    student, other = dspy.ChainOfThought(Route), OfflineLM()
    own = student.predict.signature.instructions
    program = compiled("dc", student, other)
    for example in messages(2, 3):
        program(**example.inputs())
    assert student.predict.signature.instructions == own
    assert (offline.calls, other.calls) == (2, 2)


def test_an_empty_reply_keeps_the_cheatsheet() -> None:
    """A curator that returns nothing does not wipe out what is known."""
    replies = [
        {"desk": "Harbor"},
        {"new_instructions": "Refunds go to Harbor."},
        {"desk": "Harbor"},
        {"new_instructions": ""},
    ]
    program = DynamicCheatsheet(dspy.Predict("message -> desk"))
    with dspy.context(lm=dspy.utils.DummyLM(replies)):
        program(message="A refund?")
        program(message="A chargeback?")
    assert program.cheatsheet == "Refunds go to Harbor."
