"""What can be wrong before the first LM call: each mistake is named, with what was expected, what came, what to do."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from dspy_ace import ACE
from dspy_ace.errors import SettingsError
from dspy_ace.testing import OfflineLM
from dspy_ace.training import Settings, check_examples, check_program

PREDICT = dspy.Predict("question -> answer")


class NoForward(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")


class Awaited(NoForward):
    async def aforward(self, question: str) -> Any:
        return await self.ask.acall(question=question)


class Empty(dspy.Module):
    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=question)


class Flex(Empty):
    """Named like DSPy's module that writes its own program."""


class Frozen(Empty):
    def __init__(self) -> None:
        super().__init__()
        self.step = dspy.ChainOfThought("question -> answer")
        self.step._compiled = True


class Loop(Empty):
    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.inner = Empty()
        self.inner.owner = self


class Taken(Empty):
    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.playbook = ["my own"]


class TextLM(Empty):
    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.ask.lm = "openai/gpt-4o"


def examples(count: int = 2) -> list[dspy.Example]:
    return [dspy.Example(question=str(n), answer=str(n)).with_inputs("question") for n in range(count)]


STUDENTS = {
    "a class": (dspy.Predict, ["must be a dspy.Module", "got the class Predict", "Give an instance"]),
    "a function": (len, ["must be a dspy.Module", "builtin_function_or_method"]),
    "nothing": (None, ["must be a dspy.Module", "got NoneType"]),
    "a signature": (dspy.Signature("question -> answer"), ["must be a dspy.Module", "got the class"]),
    "no forward": (NoForward(), ["must have a forward method", "NoForward has none"]),
    "async only": (Awaited(), ["must have a forward method", "dspy.syncify(student)"]),
    "no predictor": (Empty(), ["(Empty) has no predictor"]),
    "flex": (Flex(), ["dspy.Flex writes its own program", "Give a program made of Predict"]),
    "frozen": (Frozen(), ["has no predictor", "_compiled=True"]),
    "a cycle": (Loop(), ["(Loop)", "leads back to itself", "outside of the modules' attributes"]),
    "the name taken": (Taken(), ["Taken.playbook must be a Playbook or absent", "got list", "Rename"]),
    "an LM's name": (TextLM(), ["predictor 'ask' must be a dspy.LM", "dspy.LM('openai/gpt-4o')", "got the text"]),
}

TRAINSETS: dict[str, tuple[Any, list[str]]] = {
    "empty": ([], ["trainset is empty", "with_inputs"]),
    "nothing": (None, ["must be a list of dspy.Example", "got NoneType"]),
    "text": ("questions", ["must be a list of dspy.Example", "got str"]),
    "a number": (3, ["must be a list of dspy.Example", "got int 3"]),
    "dicts": ([{"question": "q"}], ["trainset[0] must be a dspy.Example", "got dict"]),
    "one example": (examples(1)[0], ["trainset[0] must be a dspy.Example", "got str"]),
    "no inputs": ([dspy.Example(question="q")], ["trainset[0] does not say which fields are inputs", ".with_inputs("]),
    "a later one": ([*examples(1), dspy.Example(question="q")], ["trainset[1] does not say"]),
    "no input field": ([dspy.Example(question="q").with_inputs()], ["trainset[0] has no input field"]),
    "another's input": ([dspy.Example(question="q").with_inputs("text")], ["trainset[0] has no input field"]),
}

SETTINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "reflection_lm": ({"reflection_lm": "openai/gpt-5"}, ["reflection_lm must be a dspy.LM", "got 'openai/gpt-5'"]),
    "epochs": ({"epochs": 0}, ["epochs must be at least 1; got 0"]),
    "epochs float": ({"epochs": 1.5}, ["epochs must be a whole number", "got 1.5"]),
    "epochs bool": ({"epochs": True}, ["epochs must be a whole number", "got True"]),
    "epochs text": ({"epochs": "2"}, ["epochs must be a whole number", "got '2'"]),
    "batch_size": ({"batch_size": -1}, ["batch_size must be at least 1; got -1"]),
    "num_threads": ({"num_threads": 0}, ["num_threads must be at least 1"]),
    "rounds": ({"max_reflection_rounds": -1}, ["max_reflection_rounds must be at least 0"]),
    "tokens": ({"max_playbook_tokens": 10}, ["max_playbook_tokens must be at least 100; got 10"]),
    "failure_score": ({"failure_score": "zero"}, ["failure_score must be a number", "got 'zero'"]),
    "scores": (
        {"failure_score": 1.0},
        ["failure_score must be below perfect_score", "got 1 and 1", "scale of your metric"],
    ),
    "perfect nan": ({"perfect_score": float("nan")}, ["perfect_score must be a finite number", "got nan"]),
    "reflect_on": ({"reflect_on": "success"}, ["reflect_on must be 'all' or 'failures'; got 'success'"]),
    "reflect": ({"reflect": "me"}, ["reflect must be a callable; got 'me'"]),
    "auto": ({"auto": "tiny"}, ["auto must be 'light', 'medium' or 'heavy'; got 'tiny'"]),
    "auto and epochs": ({"auto": "light", "epochs": 2}, ["auto='light' decides epochs", "not both"]),
    "validate": ({"validate": "never"}, ["must be 'end' or 'along'; got 'never'"]),
    "playbook": ({"playbook": "book.json"}, ["playbook must be a Playbook", "Playbook.load(path)", "got 'book.json'"]),
    "metric": ({"metric": 0.5}, ["metric must be a callable", "got 0.5"]),
    "metric arity": ({"metric": lambda a: 1}, ["metric must take (example, prediction)", "takes (a)"]),
}


def refused(lm: OfflineLM, student: Any, trainset: Any, valset: Any = None, **settings: Any) -> str:
    """The message of the SettingsError that compile raises, before any LM call."""
    with dspy.context(lm=lm), pytest.raises(SettingsError) as caught:
        ACE(**settings).compile(student, trainset, valset=valset)
    assert lm.calls == 0
    return str(caught.value)


@pytest.mark.compat
@pytest.mark.parametrize("name", list(STUDENTS))
def test_a_student_that_cannot_be_compiled(name: str) -> None:
    """Each says what was expected, what came and what to do."""
    student, words = STUDENTS[name]
    message = refused(OfflineLM(), student, examples())
    assert all(word in message for word in words), message


@pytest.mark.compat
@pytest.mark.parametrize("name", list(TRAINSETS))
def test_examples_that_cannot_be_used(name: str) -> None:
    """In the trainset and in the valset, where an empty one is fine."""
    trainset, words = TRAINSETS[name]
    message = refused(OfflineLM(), PREDICT, trainset)
    assert all(word in message for word in words), message
    if name in ("empty", "nothing"):
        return
    message = refused(OfflineLM(), PREDICT, examples(), trainset)
    assert all(word.replace("trainset", "valset") in message for word in words), message


@pytest.mark.compat
@pytest.mark.parametrize("name", list(SETTINGS))
def test_settings_out_of_range(name: str) -> None:
    """Every argument of the optimizer is looked at before anything is paid for."""
    settings, words = SETTINGS[name]
    message = refused(OfflineLM(), PREDICT, examples(), **settings)
    assert all(word in message for word in words), message


@pytest.mark.compat
def test_a_program_without_an_lm() -> None:
    """Neither pinned nor configured: the predictor is named; an LM that is no LM is told apart."""
    with dspy.context(lm=None), pytest.raises(SettingsError, match=r"No LM for predictor 'self': call dspy.configure"):
        ACE().compile(PREDICT, examples())
    with dspy.context(lm="openai/gpt-4o"), pytest.raises(SettingsError, match=r"takes a dspy.LM, .*got str 'openai"):
        ACE().compile(PREDICT, examples())
    pinned = dspy.Predict("question -> answer")
    pinned.lm = OfflineLM()
    with dspy.context(lm=None):
        Settings().check_lms(pinned)


@pytest.mark.compat
def test_what_is_in_order_passes() -> None:
    """Any iterable of examples, programs of DSPy's own, None for a playbook."""
    assert len(check_examples((e for e in examples(3)), "trainset")) == 3
    assert check_examples([], "valset", may_be_empty=True) == []
    for student in (PREDICT, dspy.ChainOfThought("a -> b"), dspy.ReAct("a -> b", tools=[]), dspy.syncify(Awaited())):
        check_program(student)
