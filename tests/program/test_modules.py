"""Every module type of DSPy: it compiles, its predictors are traced, and what comes out runs, saves and loads."""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE, Bullet, Playbook, Reflector, with_playbook
from dspy_ace.errors import SettingsError
from dspy_ace.program.instruct import own_instructions
from dspy_ace.program.rollout import rollouts
from dspy_ace.program.trajectory import Call
from dspy_ace.program.transcript import images_of
from dspy_ace.testing import OfflineLM
from dspy_ace.training import example_key
from modulezoo import MODULES, Later, look_up_later, quiet
from scripted import scripted
from scripted_roles import PLAYBOOK, chat, fields_of, reflection_reply, trajectory
from tasks import Route, desk_metric, messages

TRAIN, TEST = messages(12, 1), messages(3, 3)


@pytest.mark.compat
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", list(MODULES))
def test_a_module_compiles_runs_saves_and_loads(name: str, tmp_path: Path) -> None:
    """Each call bears its predictor's name; a fresh instance with the saved state sends the very same prompts."""
    build, ran = MODULES[name]
    lm = OfflineLM()
    with dspy.context(lm=lm):
        student = build()
        program = ACE(desk_metric, num_threads=2, max_reflection_rounds=0).compile(student, TRAIN)
        made = rollouts(program, TEST, desk_metric, num_threads=1)
        program.save(tmp_path / "program.json")
        fresh = build()
        fresh.load(tmp_path / "program.json")
        lm.reset_log()
        first = [dict(program(**e.inputs()).items())["desk"] for e in TEST]
        sent = [record.request for record in lm.log]
        lm.reset_log()
        assert [dict(fresh(**e.inputs()).items())["desk"] for e in TEST] == first
        assert sorted(record.request for record in lm.log) == sorted(sent)
    assert type(program).__name__ == type(student).__name__
    assert len(program.detailed_results.learned_playbook) > 0
    assert all(t.error is None for t in made)
    called = {call.predictor for t in made for call in t.trace} - {""}  # Refine has an adviser of its own
    assert called
    assert called <= ran
    assert {bullet.predictor for bullet in program.playbook} <= {*ran, None}


@pytest.mark.compat
@pytest.mark.parametrize("name", ["ReAct", "ReActV2", "RLM"])
def test_an_agents_own_instructions_stay(name: str) -> None:
    """Tool descriptions and the rules of the REPL stand above the playbook, byte for byte."""
    student = MODULES[name][0]()
    program = with_playbook(student, Playbook((Bullet("str-00001", "S", "a lesson"),)))
    for path, own in own_instructions(student).items():
        instructions = dict(program.named_predictors())[path].signature.instructions
        assert instructions.startswith(own)
        assert instructions.endswith("[str-00001] (S) a lesson")


@pytest.mark.compat
def test_the_fallback_of_an_rlm_that_never_ran_is_left_alone() -> None:
    """RLM's `extract` runs at the iteration limit only: what was learned from other runs is not put into it."""
    with dspy.context(lm=OfflineLM()):
        student = MODULES["RLM"][0]()
        program = ACE(desk_metric, num_threads=2).compile(student, TRAIN)
    predictors = dict(program.named_predictors())
    assert predictors["extract"].signature.instructions == own_instructions(student)["extract"]
    assert {bullet.predictor for bullet in program.playbook} == {"generate_action"}


@pytest.mark.compat
def test_flex_is_refused_in_words() -> None:
    """dspy.Flex writes its own program: there is no predictor to put a playbook into."""
    lm = OfflineLM()
    flex = quiet(dspy.Flex, Route)
    with dspy.context(lm=lm), pytest.raises(SettingsError, match=r"dspy\.Flex writes its own program"):
        ACE(desk_metric).compile(flex, TRAIN)
    assert lm.calls == 0


@pytest.mark.compat
def test_a_program_that_can_only_be_awaited_is_told_what_to_do() -> None:
    """`aforward` alone: the error names dspy.syncify, before any call."""
    lm = OfflineLM()
    with dspy.context(lm=lm), pytest.raises(SettingsError, match=r"aforward only: give dspy\.syncify\(student\)"):
        ACE(desk_metric).compile(Later(), TRAIN)
    assert lm.calls == 0


@pytest.mark.compat
def test_a_streaming_wrapper_is_refused_and_a_compiled_program_streams() -> None:
    """What streamify takes is the compiled program: its last item is the prediction, made with the playbook."""
    lm = OfflineLM()
    with dspy.context(lm=lm):
        student = dspy.ChainOfThought(Route)
        with pytest.raises(SettingsError, match=r"Compile the program itself, then wrap"):
            ACE(desk_metric).compile(dspy.streamify(student), TRAIN)
        program = ACE(desk_metric, num_threads=2).compile(student, TRAIN)
        expected = program(**TEST[0].inputs()).desk
        lm.reset_log()

        async def last() -> Any:
            return [item async for item in dspy.streamify(program)(**TEST[0].inputs())][-1]

        assert asyncio.run(last()).desk == expected
    assert program.playbook.bullets[0].content in lm.log[-1].request


@pytest.mark.compat
def test_the_compiled_program_can_be_awaited() -> None:
    """`acall` answers as a call does, and so does dspy.asyncify."""
    with dspy.context(lm=OfflineLM()):
        program = ACE(desk_metric, num_threads=2).compile(dspy.ChainOfThought(Route), TRAIN)
        expected = program(**TEST[0].inputs()).desk
        assert asyncio.run(program.acall(**TEST[0].inputs())).desk == expected

        async def wrapped() -> Any:
            return await dspy.asyncify(program)(**TEST[0].inputs())

        assert asyncio.run(wrapped()).desk == expected


@pytest.mark.compat
@pytest.mark.filterwarnings("ignore:.*look_up_later")  # the coroutine that DSPy refuses is never awaited
@pytest.mark.parametrize("allowed", [True, False])
def test_async_tools_work_where_dspy_allows_them_and_are_warned_of_elsewhere(
    allowed: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To call an async tool synchronously is DSPy's to allow; ACE keeps the setting, and says when it is missing."""
    monkeypatch.setattr(logging.getLogger("dspy"), "propagate", True)
    student = dspy.ReAct(Route, tools=[look_up_later], max_iters=2)
    with (
        dspy.context(lm=OfflineLM(), allow_tool_async_sync_conversion=allowed),
        caplog.at_level(logging.WARNING, "dspy.ace"),
    ):
        program = ACE(desk_metric, num_threads=2).compile(student, TRAIN)
        observed = program(**TEST[0].inputs()).trajectory["observation_0"]
    gc.collect()
    warned = [record for record in caplog.records if "look_up_later is async" in record.getMessage()]
    assert observed.startswith("The directory has") == allowed
    assert bool(warned) == (not allowed)


@pytest.mark.compat
def test_async_tools_work_in_a_syncified_agent(caplog: pytest.LogCaptureFixture) -> None:
    """There the agent is awaited and so are its tools: nothing to warn of."""
    student = dspy.syncify(dspy.ReAct(Route, tools=[look_up_later], max_iters=2))
    with dspy.context(lm=OfflineLM()), caplog.at_level(logging.WARNING, "dspy.ace"):
        program = ACE(desk_metric, num_threads=2).compile(student, TRAIN)
        assert program(**TEST[0].inputs()).trajectory["observation_0"].startswith("The directory has")
    assert not any("async" in record.getMessage() for record in caplog.records)


def picture(letter: str) -> dspy.Image:
    """An image of no meaning; those of two letters differ in nothing but their data."""
    return dspy.Image(url="data:image/png;base64," + base64.b64encode(letter.encode() * 300).decode())


def seen(lm: Any) -> list[str]:
    """The addresses of the image parts that a scripted model was sent with its last request, in order."""
    (message,) = [m for m in lm.history[-1]["messages"] if m["role"] == "user"]
    parts = message["content"] if isinstance(message["content"], list) else []
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def shown(example: dspy.Example, *calls: Call, **settings: Any) -> tuple[dict[str, str], list[str]]:
    """The fields and images that the reflector's LM was sent."""
    lm = scripted(reflection_reply())
    with dspy.context(adapter=dspy.ChatAdapter()):
        Reflector(lm, **settings)(PLAYBOOK, trajectory(example=example, trace=calls))
    return fields_of(lm.script.requests[0]), seen(lm)


A, B, C = picture("a"), picture("b"), picture("c")


@pytest.mark.compat
def test_an_image_reaches_the_reflector_as_an_image() -> None:
    """One content part, and its place in the text; its data is nowhere else."""
    example = dspy.Example(photo=A, question="What is it?", answer="a pear").with_inputs("photo", "question")
    fields, images = shown(example, Call("answer", dict(example.inputs().items()), {"answer": "an apple"}))
    assert images == [A.url]
    assert fields["task_inputs"] == "photo: (image)\nquestion: What is it?"
    assert "base64" not in str(fields)
    assert list(fields)[:4] == ["task", "bullets", "task_inputs", "images"]


@pytest.mark.compat
def test_several_images_are_numbered_and_each_is_sent_once() -> None:
    """In lists, dicts, histories, calls and results: the numbers in the text are their places in the request."""
    history = dspy.History(messages=[{"photo": B, "answer": "no"}])
    example = dspy.Example(photos=[A, B], history=history).with_inputs("photos", "history")
    calls = (
        Call("draw", {"photos": [A, B]}, {"drawn": C}),
        Call("answer", {"by": {"one": C, "n": 2}}, {"answer": "x"}),
    )
    fields, images = shown(example, *calls)
    assert images == [A.url, B.url, C.url]
    assert fields["task_inputs"] == "photos: [(image 1), (image 2)]\nhistory: photo: (image 2)\nanswer: no"
    assert "  → drawn: (image 3)" in fields["trajectory"]
    assert "  by: {'one': (image 3), 'n': 2}" in fields["trajectory"]
    assert len(images_of(trajectory(example=example, trace=calls))) == 3


@pytest.mark.compat
def test_images_are_bounded_and_can_be_left_out() -> None:
    """`max_images`: the first so many; 0 leaves the text as it is for models that see nothing."""
    example = dspy.Example(photos=[A, B, C]).with_inputs("photos")
    fields, images = shown(example, max_images=2)
    assert images == [A.url, B.url]
    assert "(image 3)" in fields["task_inputs"]
    fields, images = shown(example, max_images=0)
    assert images == []
    assert "images" not in fields


@pytest.mark.compat
def test_a_reply_that_cannot_be_read_is_asked_for_again_with_the_image() -> None:
    """The second request holds the image and the problem."""
    lm = scripted(["I see.", reflection_reply()])
    example = dspy.Example(photo=A).with_inputs("photo")
    with dspy.context(adapter=dspy.ChatAdapter()):
        Reflector(lm)(PLAYBOOK, trajectory(example=example, trace=()))
    assert seen(lm) == [A.url]
    assert "these fields were expected" in fields_of(lm.script.requests[1])["problem_with_last_reply"]


@pytest.mark.compat
def test_a_program_without_images_has_the_prompt_it_had() -> None:
    """No image, no field for one: the reflector is sent one text message of the eight fields."""
    example = dspy.Example(question="q", answer="a").with_inputs("question")
    fields, images = shown(example, Call("answer", {"question": "q"}, {"answer": "b", "list": [1, {"x": None}]}))
    assert images == []
    assert list(fields) == list(Reflector().predict.signature.input_fields)
    assert "  → list: [1, {'x': None}]" in fields["trajectory"]


@pytest.mark.compat
def test_a_program_with_images_compiles() -> None:
    """Inputs of images and text: the task model and the reflector get the image, the curator its place in the text."""

    class Look(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
        """Say which desk the form on the photo goes to."""

        photo: dspy.Image = dspy.InputField()
        note: str = dspy.InputField()
        desk: str = dspy.OutputField()

    def answer(sent: list[dict[str, str]]) -> str:
        system = sent[0]["content"]
        if "`key_insights`" in system:
            return reflection_reply(["Blue forms go to Maple."])
        if "`operations`" in system:
            return chat(reasoning="new", operations=[{"type": "ADD", "section": "S", "content": "Blue forms: Maple."}])
        return chat(desk="Maple" if "Blue forms" in system else "Harbor")

    trainset = [dspy.Example(photo=p, note=f"form {n}", desk="Maple").with_inputs("photo", "note") for n, p in
                enumerate((A, B, C))]  # fmt: skip
    lm, coach = scripted(answer), scripted(answer)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        program = ACE(desk_metric, reflection_lm=coach, num_threads=1).compile(dspy.Predict(Look), trainset)
        assert program(photo=A, note="form 9").desk == "Maple"
    assert [bullet.content for bullet in program.playbook] == ["Blue forms: Maple."]
    assert "base64" not in str(coach.script.requests)
    sent = str([entry["messages"] for entry in coach.history])
    assert all(image.url in sent for image in (A, B, C))


@pytest.mark.compat
def test_two_images_are_two_examples() -> None:
    """The hash of an example holds an image's data, not its length alone, wherever the image stands."""
    fields: list[Any] = [A, B, [A], [B], dspy.History(messages=[{"p": A}]), dspy.History(messages=[{"p": B}])]
    examples = [dspy.Example(photo=field).with_inputs("photo") for field in fields]
    assert len({example_key(example) for example in examples}) == len(fields)
