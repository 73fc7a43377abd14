"""The prompt of a compiled program for use without DSPy."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from dspy_ace import Playbook, prompt_of, with_playbook
from dspy_ace.errors import SettingsError
from tasks import Route

pytestmark = pytest.mark.compat
BOOK = Playbook().add('Answer as {"desk": "…"}.', section="RULES")


class Seen(dspy.BaseLM):  # type: ignore[misc]  # dspy is untyped
    """Keeps the messages that DSPy sends."""

    def __init__(self) -> None:
        super().__init__(model="seen")
        self.messages: Any = None

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        self.messages = messages
        raise ConnectionError("this model only listens")


@pytest.fixture
def program() -> Any:
    student = dspy.Predict(Route)
    student.demos = [dspy.Example(message="Where is {my} parcel?", desk="Lantern")]
    return with_playbook(student, BOOK)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_messages_are_those_that_dspy_sends(program: Any) -> None:
    """Word for word, demos included; so the playbook works as it was learned."""
    lm = Seen()
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)), pytest.raises(Exception):  # noqa: B017, PT011
        program(message="A refund?")
    assert prompt_of(program).messages(message="A refund?") == lm.messages


def test_the_text_is_the_instructions_with_the_playbook(program: Any) -> None:
    """`str` is what a prompt file holds; `repr` is short."""
    prompt = prompt_of(program)
    assert str(prompt) == program.signature.instructions
    assert BOOK.render() in str(prompt)
    assert repr(prompt).startswith("Prompt('self', about ")


def test_a_template_filled_in_is_the_messages(program: Any) -> None:
    """Braces of the playbook and of demos are doubled: `str.format` and LangChain leave them as they are."""
    prompt = prompt_of(program)
    for value in ("A refund?", 'Is {"a": {1}} right?'):
        filled = [{"role": role, "content": text.format(message=value)} for role, text in prompt.template()]
        assert filled == prompt.messages(message=value)


def test_a_reply_is_read(program: Any) -> None:
    """As DSPy reads it: output fields with their types."""
    reply = "[[ ## desk ## ]]\nLantern\n\n[[ ## completed ## ]]"
    assert prompt_of(program).read(reply) == {"desk": "Lantern"}


def test_one_predictor_of_several_is_named() -> None:
    """Without its name the error lists them; each has the bullets that are for it."""

    class Two(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def __init__(self) -> None:
            super().__init__()
            self.draft = dspy.Predict("question -> answer")
            self.check = dspy.ChainOfThought("answer -> fine: bool")

    program = with_playbook(Two(), Playbook().add("Only for the draft.", predictor="draft"))
    with pytest.raises(SettingsError, match=r"one of 'draft', 'check.predict'; got None"):
        prompt_of(program)
    with pytest.raises(SettingsError, match="got 'other'"):
        prompt_of(program, "other")
    assert "Only for the draft." in str(prompt_of(program, "draft"))
    assert "Playbook" not in str(prompt_of(program, "check.predict"))


@pytest.mark.parametrize("inputs", [{}, {"question": "x"}, {"message": "x", "more": 1}])
def test_wrong_inputs_are_named(program: Any, inputs: dict[str, Any]) -> None:
    """As those of a function."""
    with pytest.raises(SettingsError, match="takes message; got"):
        prompt_of(program).messages(**inputs)


def test_something_else_has_no_prompt() -> None:
    """A class, a text and a program without predictors are refused."""
    for other in (dspy.Predict, "Do it.", dspy.Module()):
        with pytest.raises(SettingsError):
            prompt_of(other)
