"""The offline model as a DSPy language model: formats, copies, saving, usage, determinism, robustness."""

from __future__ import annotations

import asyncio
import copy
import enum
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.utils.exceptions import AdapterParseError
from hypothesis import given
from hypothesis import strategies as st

from dspy_ace.testing import OfflineLM
from dspy_ace.testing.backend import respond
from dspy_ace.testing.noise import Dice, Knobs
from dspy_ace.testing.request import Ask, Request, read
from dspy_ace.testing.server import serve

ADAPTERS = [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter]
NEWER = hasattr(dspy, "lm15")


class Colour(enum.Enum):
    red = "crimson"
    blue = "navy"


class Person(pydantic.BaseModel):
    name: str
    age: int
    tags: list[str]
    kind: Literal["guest", "owner"]


class Everything(dspy.Signature):
    """Read the text. Anna likes navy."""

    text: str = dspy.InputField()
    colour: Colour = dspy.OutputField()
    person: Person = dspy.OutputField()
    desk: Literal["north", "south"] | None = dspy.OutputField()
    count: int = dspy.OutputField()
    ratio: float = dspy.OutputField()
    words: list[str] = dspy.OutputField()
    table: dict[str, int] = dspy.OutputField()
    desks: list[Literal["north", "south"]] = dspy.OutputField()
    good: bool = dspy.OutputField()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_type_is_answered_in_every_format(adapter: Any) -> None:
    """Typed outputs parse at the first call, in the chat, JSON and XML layouts."""
    lm = OfflineLM()
    with dspy.context(lm=lm, adapter=adapter()):
        reply = dspy.Predict(Everything)(text="Anna Miller is 34 and lives in the south.")
    assert (reply.colour, reply.desk, reply.count, reply.desks) == (Colour.blue, "south", 34, ["south"])
    assert isinstance(reply.person, Person)
    assert isinstance(reply.good, bool)
    assert lm.calls == 1 if adapter is not dspy.XMLAdapter else lm.calls <= 2


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_agents_run_to_their_end(adapter: Any) -> None:
    """ReAct calls the tool that fits with arguments from the question, stops, and answers from what it saw."""

    def find_order(order_id: str, limit: int = 3) -> str:
        """Look up an order by its id."""
        return f"Order {order_id} was shipped on Monday."

    def weather(city: str) -> str:
        """Tell the weather in a city."""
        return f"sunny in {city}"

    with dspy.context(lm=OfflineLM(), adapter=adapter()):
        agent = dspy.ReAct("question -> answer", tools=[find_order, weather], max_iters=5)
        reply = agent(question="When was order 8841 shipped?")
    assert reply.trajectory["tool_name_0"] == "find_order"
    assert reply.trajectory["tool_args_0"] == {"order_id": "8841"}
    assert reply.trajectory["tool_name_1"] == "finish"
    assert "Monday" in reply.answer


def test_demonstrations_are_evidence_in_every_format() -> None:
    """The words of a demonstration's input speak for its output."""
    for adapter in ADAPTERS:
        with dspy.context(lm=OfflineLM(), adapter=adapter()):
            predict = dspy.Predict("note -> desk: Literal['north', 'south']")
            predict.demos = [dspy.Example(note="the kayak is lost", desk="south"), dspy.Example(note="x", desk="north")]
            assert predict(note="a lost kayak").desk == "south"


def test_open_questions_get_short_plausible_answers() -> None:
    """Sums are worked out; a question about a text gets the sentence that shares its words."""
    with dspy.context(lm=OfflineLM()):
        assert dspy.Predict("question -> answer")(question="What is 12 * 7?").answer == "84"
        context = "The bridge was built in 1932. It is painted red."
        assert (
            "1932" in dspy.Predict("context, question -> answer")(context=context, question="When was it built?").answer
        )


def test_plain_and_multimodal_requests_are_answered() -> None:
    """Requests outside DSPy's layouts, with images or without any text, get plain text."""
    lm = OfflineLM()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert isinstance(lm("Say hello")[0], str)
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]
    if NEWER:
        from dspy import lm15

        reply = lm(lm15.request_from_openai_chat({"model": lm.model, "messages": messages}))
        assert reply.message.text
    else:
        assert isinstance(lm(messages=messages)[0], str)


def test_same_request_gives_the_same_reply_in_another_process() -> None:
    """Neither process, nor hash seed, nor order of calls changes a reply."""
    script = (
        "import dspy\nfrom dspy_ace.testing import OfflineLM\n"
        "lm = OfflineLM(seed=3, slips=0.3, unparsable=0.2)\n"
        's = dspy.Signature(\'note -> desk: Literal["north", "south", "east"], why\')\n'
        "a = dspy.ChatAdapter()\n"
        "texts = [lm(' '.join(m['content'] for m in a.format(s, [], {'note': f'case {i}'}))) for i in range(12)]\n"
        "print(repr(texts))"
    )
    outputs = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
        outputs.add(done.stdout.strip().splitlines()[-1])
    assert len(outputs) == 1


def test_usage_adds_up_across_threads_and_copies() -> None:
    """History, usage tracker and log agree; copies and deep copies write to one log."""
    lm = OfflineLM()
    other, third = lm.copy(temperature=1.0, rollout_id=1), copy.deepcopy(lm)
    with dspy.track_usage() as tracker:
        for model in (lm, other, third):
            model("one two three")
    entries = [model.history[-1]["usage"] for model in (lm, other, third)]
    assert lm.calls == other.calls == third.calls == 3
    assert sum(e["total_tokens"] for e in entries) == sum(r.prompt_tokens + r.completion_tokens for r in lm.log)
    assert tracker.get_total_tokens()[lm.model]["total_tokens"] == sum(e["total_tokens"] for e in entries)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: lm.copy()(f"call {n}"), range(40)))
    assert lm.calls == 43
    lm.reset_log()
    assert (lm.calls, lm.log) == (0, [])


def test_asynchronous_calls_say_the_same() -> None:
    """`acall` gives the reply that a plain call gives."""
    lm = OfflineLM()
    assert asyncio.run(lm.acall("What is 3 + 4?")) == lm("What is 3 + 4?") == ["7"]


def test_program_with_a_pinned_offline_model_is_saved_and_loaded(tmp_path: Path) -> None:
    """Its knobs survive a program's JSON state."""
    predict = dspy.Predict("note -> desk: Literal['north', 'south']")
    predict.lm = OfflineLM(seed=5, slips=0.5, temperature=0.3, faults={"auth": 0.0})
    predict.save(tmp_path / "program.json")
    loaded = dspy.Predict("note -> desk: Literal['north', 'south']")
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert isinstance(loaded.lm, OfflineLM)
    assert (loaded.lm.backend.knobs, loaded.lm.kwargs["temperature"]) == (predict.lm.backend.knobs, 0.3)
    assert loaded(note="x").desk == predict(note="x").desk


@pytest.mark.skipif(not NEWER, reason="DSPy's response cache reaches custom models from 3.4 on")
def test_response_cache_is_used_when_asked_for() -> None:
    """With cache=True a repeated call costs nothing; by default every call counts."""
    cached, plain = OfflineLM("offline/cached", cache=True), OfflineLM()
    for lm in (cached, cached, plain, plain):
        lm("once is enough")
    assert (cached.calls, plain.calls) == (1, 2)
    assert cached.history[-1]["usage"] == {}


def test_samples_differ_only_where_the_evidence_leaves_it_open() -> None:
    """Another rollout may answer an open question otherwise, but not one that the prompt decides."""
    lm = OfflineLM()
    sign = dspy.Signature("note -> desk: Literal['a1', 'b1', 'c1', 'd1', 'e1', 'f1']", "Kayaks go to c1.")
    with dspy.context(lm=lm):
        samples = [lm.copy(rollout_id=n, temperature=1.0) for n in range(1, 9)]
        open_, closed = set(), set()
        for sample in samples:
            with dspy.context(lm=sample):
                open_.add(dspy.Predict(sign)(note="a train").desk)
                closed.add(dspy.Predict(sign)(note="two kayaks").desk)
        assert len(open_) > 1
        assert closed == {"c1"}
        assert {dspy.Predict(sign)(note="a train").desk for _ in range(4)} == {"a1"}


def test_max_tokens_cuts_the_reply() -> None:
    """A reply longer than `max_tokens` ends there, and usage says so."""
    lm = OfflineLM(max_tokens=3)
    lm("The quick brown fox jumps over the lazy dog and far away.")
    assert lm.log[-1].completion_tokens == 3


TEXT = st.text(max_size=300)
MARKS = st.sampled_from(
    [
        "[[ ## answer ## ]]", "Your input fields are:\n1. `a` (str):", "Your output fields are:\n1. `b` (list[",
        "All interactions will be structured", "In adhering to this structure, your objective is: ", "options: ,A,B.",
        "1. x \"4\" 4\n2. y", "```", "{\"a\": [", "# Example 1\n## Inputs\n### q", "[str-00001] (X) a → b, not c",
        "<a><item>", "Review 1 (x)\n- a", "Literal['a', ", "above 5 go to b", "new instruction", "Example({'a': ",
    ]
)  # fmt: skip
PROMPT = st.lists(st.one_of(TEXT, MARKS), max_size=6).map("\n".join)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool", "odd"]), PROMPT), max_size=5))
def test_no_request_is_too_strange(messages: list[tuple[str, str]]) -> None:
    """Whatever the messages are, there is a reply, and reading them twice gives the same."""
    request = Request(tuple(messages))
    assert isinstance(respond(request, Knobs())[0], str)
    assert read(request) == read(request)


FIELDS = st.lists(
    st.sampled_from(
        ["task_inputs", "expected_outputs", "reviews", "playbook", "trajectory", "feedback", "examples_with_feedback",
         "current_instruction", "program_inputs", "module_names", "tools", "options", "examples", "evidence", "bullets"]
    ),
    min_size=1, max_size=4, unique=True,
)  # fmt: skip
ASKED = st.lists(
    st.sampled_from(
        ["key_insights", "bullet_tags", "operations", "new_instruction", "module_advice", "natural_language_rules",
         "observations", "next_tool_name", "answer", "reasoning", "cited_bullets", "proposed_instruction"]
    ),
    min_size=1, max_size=3, unique=True,
)  # fmt: skip


@given(FIELDS, ASKED, st.lists(PROMPT, min_size=4, max_size=4), st.sampled_from(ADAPTERS))
def test_roles_keep_the_shape_asked_for_whatever_they_are_shown(
    given_: list[str], asked: list[str], texts: list[str], adapter: Any
) -> None:
    """Any text in any role's fields gives a reply that the adapter can parse."""
    sign = dspy.Signature(
        {name: (str, dspy.InputField()) for name in given_} | {n: (str, dspy.OutputField()) for n in asked}
    )
    values = {name: text.encode("utf-8", "replace").decode() for name, text in zip(given_, texts, strict=False)}
    messages = adapter().format(sign, [], values)
    reply, _ = respond(Request(tuple((m["role"], m["content"]) for m in messages)), Knobs(seed=1, paraphrase=0.5))
    assert set(adapter().parse(sign, reply)) == set(asked)


def test_answerers_from_outside_come_first() -> None:
    """An answerer takes the requests it knows, in the role it names, and leaves the others to the model."""

    def tides(ask: Ask, dice: Dice) -> tuple[str, dict[str, Any]] | None:
        values = {"tide": f"high at {6 + dice.below('hour', 6)}"}
        return ("harbour", values) if ask.asks_for == {"tide"} else None

    lm = OfflineLM(answerers=[tides])
    with dspy.context(lm=lm):
        assert dspy.Predict("day -> tide")(day="Monday").tide.startswith("high at ")
        assert dspy.Predict("question -> answer: int")(question="What is 3 + 4?").answer == 7
    assert [record.role for record in lm.log] == ["harbour", "task"]
    with dspy.context(lm=lm.copy(unparsable=1.0)), pytest.raises(AdapterParseError):
        dspy.Predict("day -> tide")(day="Monday")
    with serve(answerers=[tides]) as server:
        post = dspy.LM("openai/offline", api_base=server.url, api_key="none", cache=False)
        with dspy.context(lm=post):
            assert dspy.Predict("day -> tide")(day="Monday").tide.startswith("high at ")
        assert [record.role for record in server.log] == ["harbour"]
