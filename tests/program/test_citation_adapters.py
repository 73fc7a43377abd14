"""Citations through every adapter, in callbacks, asynchronous calls and threads."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from citation_helpers import ADAPTERS, ASKED, KINDS, model, reply
from dspy_ace import Playbook, with_playbook
from dspy_ace.program.citation import FIELD, citing, recording
from dspy_ace.program.rollout import rollouts
from scripted import Messages, scripted


@pytest.mark.compat
def test_the_json_fallback_of_the_chat_adapter_cites_too(playbook: Playbook) -> None:
    """ChatAdapter asks once more through JSONAdapter: the field is stripped there as well, and both are heard."""
    lm = scripted(["no structure, but str-00001", reply("json", {"answer": "Paris", FIELD: ["cmt-00002"]})])
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        program = with_playbook(dspy.Predict("question -> answer"), playbook, cite=True)
        trajectory = rollouts(program, [ASKED])[0]
    assert len(lm.script.requests) == 2
    assert "JSON object" in lm.script.requests[1][-1]["content"]
    assert trajectory.prediction is not None
    assert dict(trajectory.prediction.items()) == {"answer": "Paris"}
    assert trajectory.cited == ("str-00001", "cmt-00002")


@pytest.mark.compat
@pytest.mark.parametrize("answered", [True, False])
def test_structured_outputs_ask_for_the_field_and_drop_it(answered: bool, playbook: Playbook) -> None:
    """The response schema names the field, so that a strict provider can fill it; the prediction has it not."""
    values = {"answer": "Paris", **({FIELD: ["cmt-00002"]} if answered else {})}
    lm = scripted(reply("json", values), structured=True)
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        program = with_playbook(dspy.Predict("question -> answer"), playbook, cite=True)
        trajectory = rollouts(program, [ASKED])[0]
    schema = lm.script.formats[0]
    wanted = json.dumps(schema if isinstance(schema, dict) else schema.model_json_schema())
    assert FIELD in wanted
    assert trajectory.prediction is not None
    assert dict(trajectory.prediction.items()) == {"answer": "Paris"}
    assert trajectory.cited == (("cmt-00002",) if answered else ())


@pytest.mark.compat
def test_an_adapter_chosen_inside_forward_is_the_one_that_asks(playbook: Playbook) -> None:
    """A program that sets its own adapter keeps it, citations included."""

    class Chooses(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            with dspy.context(adapter=dspy.XMLAdapter()):
                return self.ask(question=question)

    lm = model("xml")
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        trajectory = rollouts(with_playbook(Chooses(), playbook, cite=True), [ASKED])[0]
    assert "XML tags" in lm.script.requests[0][-1]["content"]
    assert trajectory.cited == ("cmt-00002",)


class Events(BaseCallback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_adapter_format_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.seen.append(f"format {type(instance).__name__}")

    def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.seen.append(f"parse {type(instance).__name__}")

    def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.seen.append(f"module {type(instance).__name__}")

    def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.seen.append("lm")


@pytest.mark.compat
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["settings", "adapter"])
def test_callbacks_fire_once_an_event(kind: str, where: str, playbook: Playbook) -> None:
    """A training copy fires the events of the program itself, in the same order, under the same names."""
    fired = []
    for cite in (False, True):
        events = Events()
        adapter = ADAPTERS[kind](callbacks=[events] if where == "adapter" else None)
        with dspy.context(lm=model(kind), adapter=adapter, callbacks=[events] if where == "settings" else []):
            with_playbook(dspy.ChainOfThought("question -> answer"), playbook, cite=cite)(question="q")
        fired.append(events.seen)
    assert fired[0] == fired[1]
    assert sum("parse" in event for event in fired[1]) == 1


@pytest.mark.compat
def test_the_users_adapter_is_not_touched(playbook: Playbook) -> None:
    """The adapter in force is copied, never changed."""
    adapter = dspy.ChatAdapter()
    before = (type(adapter), dict(vars(adapter)))
    with dspy.context(lm=model("chat"), adapter=adapter):
        with_playbook(dspy.Predict("question -> answer"), playbook, cite=True)(question="q")
    assert (type(adapter), dict(vars(adapter))) == before
    assert citing(adapter, {}) is not adapter


@pytest.mark.compat
@pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
def test_the_two_step_adapter_works(use_async: bool, playbook: Playbook) -> None:
    """Its second step is asked for the answer alone; a reply without citations costs nothing."""
    main = scripted("I think it is Paris, going by cmt-00002.")
    extractor = scripted(reply("chat", {"answer": "Paris"}))
    program = with_playbook(dspy.Predict("question -> answer"), playbook, cite=True)
    with dspy.context(lm=main, adapter=dspy.TwoStepAdapter(extractor)), recording() as cited:
        made = asyncio.run(program.acall(question="q")) if use_async else program(question="q")
    assert dict(made.items()) == {"answer": "Paris"}
    assert FIELD in main.script.requests[0][0]["content"]
    assert FIELD not in str(extractor.script.requests)
    assert cited == ([] if use_async else ["cmt-00002"])


@pytest.mark.compat
def test_the_baml_adapter_works(playbook: Playbook) -> None:
    """A subclass of JSONAdapter cites as JSONAdapter does."""
    from dspy.adapters.baml_adapter import BAMLAdapter

    with dspy.context(lm=scripted(reply("json", {"answer": "Paris", FIELD: ["cmt-00002"]})), adapter=BAMLAdapter()):
        trajectory = rollouts(with_playbook(dspy.Predict("question -> answer"), playbook, cite=True), [ASKED])[0]
    assert trajectory.prediction is not None
    assert dict(trajectory.prediction.items()) == {"answer": "Paris"}
    assert trajectory.cited == ("cmt-00002",)


@pytest.mark.compat
def test_an_adapter_that_hands_the_call_on_is_left_to_it(playbook: Playbook) -> None:
    """An adapter that wraps another one, as Refine's does, gets the predictor's own signature, and no citations."""
    inner, known = dspy.ChatAdapter(), []

    class Hinting(dspy.ChatAdapter):
        def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
            known.append(signature)
            hinted = signature.append("hint_", dspy.InputField(desc="a hint"))
            return inner(lm, lm_kwargs, hinted, demos, {**inputs, "hint_": "Think."})

    lm = scripted(reply("chat", {"answer": "Paris"}))
    program = with_playbook(dspy.Predict("question -> answer"), playbook, cite=True)
    with dspy.context(lm=lm, adapter=Hinting()):
        trajectory = rollouts(program, [ASKED])[0]
    assert known == [program.signature]
    assert FIELD not in str(lm.script.requests)
    assert len(lm.script.requests) == 1
    assert trajectory.prediction is not None
    assert dict(trajectory.prediction.items()) == {"answer": "Paris"}
    assert trajectory.cited == ()


@pytest.mark.compat
@pytest.mark.parametrize("base", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
def test_an_adapter_of_the_users_own_cites(base: Any, playbook: Playbook) -> None:
    """A subclass that adds something around the call still asks, notes and strips."""
    kind = {v: k for k, v in ADAPTERS.items()}[base]

    class Counting(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    with dspy.context(lm=model(kind), adapter=Counting()):
        trajectory = rollouts(with_playbook(dspy.Predict("question -> answer"), playbook, cite=True), [ASKED])[0]
    assert trajectory.prediction is not None
    assert dict(trajectory.prediction.items()) == {"answer": "Paris"}
    assert trajectory.cited == ("cmt-00002",)


@pytest.mark.compat
@pytest.mark.parametrize("kind", KINDS)
def test_asynchronous_calls_cite(kind: str, playbook: Playbook) -> None:
    """`acall` asks, notes and strips as a call does."""
    program = with_playbook(dspy.ChainOfThought("question -> answer"), playbook, cite=True)
    with dspy.context(lm=model(kind), adapter=ADAPTERS[kind]()), recording() as cited:
        made = asyncio.run(program.acall(question="q"))
    assert made.answer == "Paris"
    assert FIELD not in made
    assert cited == ["cmt-00002"]


@pytest.mark.compat
def test_citations_in_threads_of_the_program_are_heard(playbook: Playbook) -> None:
    """A program that spawns dspy.Parallel cites from its threads, each rollout into its own trajectory."""

    class Fans(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            pairs = [(self.ask, {"question": f"{question} {part}"}) for part in "ab"]
            return dspy.Parallel(num_threads=2, disable_progress_bar=True, timeout=0)(pairs)[0]

    def answer(messages: Messages) -> str:
        named = "str-00001" if "one" in messages[-1]["content"] else "misc-00003"
        return reply("chat", {"answer": "x", FIELD: [named]})

    examples = [dspy.Example(question=word).with_inputs("question") for word in ("one", "two") * 4]
    with dspy.context(lm=scripted(answer)):
        made = rollouts(with_playbook(Fans(), playbook, cite=True), examples, num_threads=4)
    assert [t.cited for t in made] == [("str-00001",), ("misc-00003",)] * 4
