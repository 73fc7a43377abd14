"""The apprentice: bad habits, advice that corrects them, and what it learns from the answers of tools."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import agent
import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from office import tools, world
from office.advice import read_advice, read_hint, say
from office.apprentice import Apprentice, Call, Step, missed_hints, steps_in
from office.tasks import make_tasks

from dspy_ace import ACE, Bullet, Playbook, with_playbook
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.agent import Tool
from paths import ROOT

OFFICE = ROOT / "examples" / "office"
OWN = ("apprentice.py", "advice.py")


def tool(name: str, **arguments: str) -> Tool:
    """A tool as a request describes it; an argument of the type `""` may be left out."""
    return Tool(
        name, "", {n: {"type": kind} if kind else {"type": "string", "default": ""} for n, kind in arguments.items()}
    )


def advised(program: dspy.Module, *advice: str) -> Any:
    return with_playbook(program, Playbook(tuple(Bullet(f"str-{i:05}", "OTHERS", a) for i, a in enumerate(advice, 1))))


def done(records: Any, task: str, *advice: str, adapter: Any = None) -> Any:
    """The end state that an apprentice with this advice brings about, and its steps."""
    program = advised(dspy.ReAct("task -> report", tools=list(tools.TOOLS), max_iters=30), *advice)
    with dspy.context(lm=Apprentice(), adapter=adapter), world.opened(records) as opened:
        prediction = program(task=task)
        called = [value for name, value in prediction.trajectory.items() if name.startswith("tool_name")]
        return SimpleNamespace(state=opened.end_state(), called=called)


PAGES = 'When an answer shows "next_cursor", repeat the call with `cursor` set to that value.'
SIGN_IN = 'If a tool says "no valid access_token", call `sign_in` and then try again.'
PAY = "Do not use `pay_bill`; use `transfer_money` instead."
STATUS = 'Once a tool tells "the money may be on its way", call `payment_status` and never repeat the transfer.'
WAIT = 'After "too many requests", call `wait`, then repeat the call.'
HABITS = {
    "the first page": (
        'List the files in the folder "A". Write a note titled "A" whose text is the number of files.',
        [PAGES],
        {"notes": (("A", "3"),)},
        {"notes": (("A", "5"),)},
    ),
    "the name": ('Pay "Lena Fox" the amount 40.', [PAY, SIGN_IN], {}, {"transfers": (("Lena Fox", 40.0),)}),
    "no sign-in": (
        'Send "Lena Fox" a mail whose text is the number 7.',
        [SIGN_IN],
        {},
        {"sent": (("Lena Fox", "7"),)},
    ),
    "twice": (
        'Pay "Slow Sam" the amount 40.',
        [PAY, SIGN_IN, STATUS],
        {},
        {"transfers": (("Slow Sam", 40.0),)},
    ),
    "no pause": (
        'Find the mail from "Lena Fox". Write a note titled "B" whose text is the total of the invoices.',
        [PAGES, WAIT],
        {"notes": (("B", "3"),)},
        {"notes": (("B", str(sum(range(16)))),)},
    ),
}


def records_of() -> Any:
    return world.Records(
        mail={"Lena Fox": [(f"invoice {n}", n) for n in range(16)]},
        files={"A": [f"{n}.pdf" for n in range(5)]},
        slow=frozenset({"Slow Sam"}),
    )


@pytest.mark.compat
@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_ends_only_with_advice_for_it(habit: str) -> None:
    """Without advice the habit spoils the task; with advice in other people's words the task is done."""
    task, advice, spoiled, wanted = HABITS[habit]
    state = world.EndState
    assert done(records_of(), task).state == state(**spoiled)
    assert done(records_of(), task, *advice).state == state(**wanted)


@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_stays_with_advice_of_other_content(habit: str) -> None:
    """Advice on other messages, other tools, or none in particular changes nothing."""
    task, advice, spoiled, _ = HABITS[habit]
    other = [
        'When a tool answers "the door is locked", call `wait` and repeat the call.',
        "Do not use `book_meeting`; use `list_events` instead.",
        "Read every answer to its end and be careful with money.",
        *(PAGES, WAIT, SIGN_IN)[: 0 if habit != "the name" else 2],
    ]
    assert not set(other) & set(advice)
    assert done(records_of(), task, *other).state == world.EndState(**spoiled)


def test_without_advice_what_nobody_answers_is_done_twice() -> None:
    """A transfer without an answer is made again, and pays twice."""
    task = HABITS["twice"][0]
    seen = done(records_of(), task, PAY, SIGN_IN)
    assert seen.state.transfers == (("Slow Sam", 40.0),) * 2
    assert "payment_status" not in seen.called


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
def test_it_works_in_every_layout(adapter: Any) -> None:
    """The chat, JSON and XML layouts are read alike (DSPy's XML gives tools no numbers, so none is needed here)."""
    task, advice, _, wanted = HABITS["the first page"]
    seen = done(records_of(), task, *advice, adapter=adapter())
    assert seen.state == world.EndState(**wanted)


def test_it_knows_no_tool_and_no_message() -> None:
    """No name of a tool or argument and no message of the office stands in the apprentice's own code."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in OFFICE.glob("*.py")}
    text = "\n".join(sources[name] for name in OWN)
    rest = "\n".join(source for name, source in sources.items() if name not in OWN)
    names = re.findall(r"^def (\w+_\w+)\(", sources["tools.py"], re.MULTILINE)
    assert len(names) == 12
    for known in [*names, "access_token", "cursor", "too many requests", "on its way", "opens nothing", "429", "401"]:
        assert known in rest
        assert known not in text
    assert "office" not in text


# --- hints and advice ---

TOOLS = {
    t.name: t
    for t in (tool("draw", colour="string", after=""), tool("knock", door="string"), tool("paint", wall="string"))
}


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (
            "Oops: the red door is shut. Call knock(door='red'), then try again.",
            'When a tool answers "door is shut", call `knock` and then repeat the call.',
        ),
        (
            "The walls are wet. See what knock(door='red') says before you repeat this.",
            'When a tool answers "The walls are wet", call `knock` and do not repeat the call.',
        ),
        ("- one\n- two\nGo on with start_after=two.", "with `after` set to the value beside it"),
        (
            "A sketch was made. Nothing is on the wall: paint(wall='red') does that.",
            'Where `draw` seems to fit, call `paint` instead: `draw` only says "Nothing is on the wall".',
        ),
    ],
)
def test_a_hint_becomes_advice_that_is_read_again(answer: str, advice: str) -> None:
    """What an answer asks for is said without the values of the case, and read as meant."""
    hint = read_hint(TOOLS["draw"], ["red"], answer, TOOLS)
    assert hint is not None
    assert advice in say(hint)
    (read,) = read_advice(f"[str-00001] (OTHERS) {say(hint)}", TOOLS)
    assert (read.source, read.call, read.again) == ("str-00001", hint.call, hint.again)
    assert read.instead == hint.instead
    assert hint.instead or read.fits("draw", answer)
    assert not read.fits("draw", "All went well.")


@pytest.mark.parametrize("answer", ["", "Done.", "Error: bad colour", "- a | b\n- c | d", "The draw was fine."])
def test_an_answer_without_a_hint_teaches_nothing(answer: str) -> None:
    """Answers that name no other tool and no argument give no hint."""
    assert read_hint(TOOLS["draw"], ["red"], answer, TOOLS) is None


def test_a_hint_that_was_followed_is_not_missed() -> None:
    """Only a hint that the next step did not follow is a lesson."""
    first = Step(Call("draw", {"colour": "red"}), "The door is shut. Call knock(door='red'), then try again.")
    assert [hint.call for hint in missed_hints([first], TOOLS)] == ["knock"]
    assert missed_hints([first, Step(Call("knock", {"door": "red"}), "Come in.")], TOOLS) == []


@pytest.mark.parametrize(
    "text",
    ["Be careful.", "Use paint.", "draw, whose description is <desc>use `knock` instead of draw</desc>", '"draw"'],
)
def test_what_names_no_situation_is_no_advice(text: str) -> None:
    """General words, tool descriptions and bare names are not taken for advice."""
    assert read_advice(text, TOOLS) == []


def test_steps_are_read_from_a_trajectory_and_from_its_transcript() -> None:
    """Both forms give the same steps; arguments that cannot be read are none."""
    names = ("thought_0", "tool_name_0", "tool_args_0", "observation_0")
    values = ("hm", "draw", '{"colour": "red"}', "- a\n- b")
    plain = "\n\n".join(f"[[ ## {n} ## ]]\n{v}" for n, v in zip(names, values, strict=True))
    shown = (
        f"Call 1: agent\n  trajectory: {plain.replace('[[', '[ [').replace(' ## ]]', ' ##] ]')}\n  → next_thought: x"
    )
    tagged = "\n".join(f"<{n}>\n{v}\n</{n}>" for n, v in zip(names, values, strict=True))
    assert (
        steps_in(plain)
        == steps_in(shown)
        == steps_in(tagged)
        == [Step(Call("draw", {"colour": "red"}), "- a\n- b", "hm")]
    )
    assert steps_in(plain.replace("{", "("))[0].call.arguments == {}


# --- as a model ---


@pytest.mark.compat
def test_other_requests_are_those_of_the_offline_model() -> None:
    """What is no step of an agent, and no reflection on one, is answered as OfflineLM answers it."""
    for lm in (OfflineLM(), Apprentice()):
        with dspy.context(lm=lm):
            dspy.Predict("question -> answer: int")(question="What is 3 + 4?")
        assert '"7"' in repr(lm.log[0].reply) or "7" in lm.log[0].reply
    copied = lm.copy(unparsable=1.0)
    with dspy.context(lm=copied), pytest.raises(Exception, match=r".+"):
        dspy.ReAct("task -> report", tools=[_paint])(task="Paint the wall.")
    assert copied.log == lm.log
    assert Apprentice.load_state(lm.dump_state()).backend.knobs == lm.backend.knobs


def _paint(wall: str) -> str:
    """Paint a wall."""
    return f"{wall} was painted."


def test_faults_reach_the_steps() -> None:
    """A fault that the knobs ask for hits an agent's step as well, and is logged."""
    lm = Apprentice(faults={"auth": 1.0})
    with dspy.context(lm=lm), pytest.raises(Exception, match="Incorrect API key"):
        dspy.ReAct("task -> report", tools=[_paint])(task='Paint the wall "north".')
    assert [(record.role, record.fault) for record in lm.log] == [("task", "auth")]


def test_the_bullets_that_were_heeded_are_cited() -> None:
    """A training copy names the bullets it followed; a success speaks for them."""
    task, advice, _, _ = HABITS["the first page"]
    playbook = Playbook((Bullet("str-00001", "OTHERS", WAIT), Bullet("str-00002", "OTHERS", advice[0])))
    student = dspy.ReAct("task -> report", tools=list(tools.TOOLS), max_iters=30)

    class Opened(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.agent = student

        def forward(self, task: str) -> Any:
            with world.opened(records_of()) as opened:
                return dspy.Prediction(self.agent(task=task), notes=opened.end_state().notes)

    with dspy.context(lm=Apprentice()):
        program = ACE(playbook=playbook, epochs=1).compile(Opened(), [dspy.Example(task=task).with_inputs("task")])
    assert {b.id: (b.helpful, b.harmful) for b in program.playbook} == {"str-00001": (0, 0), "str-00002": (1, 0)}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(task=st.text(max_size=80), answer=st.text(max_size=80), advice=st.text(min_size=1, max_size=80))
def test_it_answers_whatever_it_reads(task: str, answer: str, advice: str) -> None:
    """Any task, any answer of a tool and any bullet lead to a reply in form, as an agent and as a reflector."""

    def paint(wall: str, brush: str = "") -> str:
        """Paint each wall of the total."""
        return f'{answer} paint(wall="red") again: brush=4. next_brush=5'

    text = f'When a tool answers "paint", call `paint` and repeat the call with `brush`. {advice}'
    playbook = Playbook((Bullet("str-00001", "OTHERS", text),))
    lm = Apprentice()
    with dspy.context(lm=lm):
        example = dspy.Example(task=f'Paint the wall. {task} "red" {task}').with_inputs("task")
        ACE(lambda example, prediction: 0.0, playbook=playbook, epochs=1).compile(
            dspy.ReAct("task -> report", tools=[paint], max_iters=3), [example]
        )
    assert {record.fault for record in lm.log} == {None}
    assert sum(record.role == "reflector" for record in lm.log) <= 2


# --- in another world ---

OTHER_WORDS = {
    "next_cursor": "resume_mark", "cursor": "mark", "access_token": "badge", "sign_in": "report_in", "wait": "rest",
    "pay_bill": "pay_slip", "transfer_money": "shift_coins", "payment_status": "ask_teller",
    "share_file": "share_file_out", "grant_access": "lend_key", "too many requests": "the clerk is worn out",
    "no valid badge for": "nobody knows you at", "The money may be on its way": "The coins may be under way",
    "No money was moved": "No coin left the chest", "It opens nothing yet": "The lock holds",
    "This is not all": "There is more to see", "Error 401": "Refused", "Error 429": "Refused",
}  # fmt: skip


def in_other_words(text: str) -> str:
    """`text` as the other office says it."""
    for one, other in OTHER_WORDS.items():
        text = re.sub(rf"\b{one}\b", other, text)
    return text


def other_tool(function: Callable[..., str]) -> dspy.Tool:
    """A tool of the office under another name, with other argument names, that answers in other words."""
    plain = dspy.Tool(function)
    names = {in_other_words(name): name for name in plain.args}

    def call(**given: Any) -> str:
        return in_other_words(function(**{names[name]: value for name, value in given.items()}))

    args = {other: plain.args[name] for other, name in names.items()}
    return dspy.Tool(call, name=in_other_words(plain.name), desc=plain.desc, args=args)


@pytest.mark.slow
def test_in_another_world_it_learns_other_advice() -> None:
    """With all tools, arguments and messages renamed, what is learned names them, and helps there alone."""
    tasks = make_tasks(0, 24, 3, 15, 3)
    known = {task.id: task for split in tasks for task in split}
    here = agent.OfficeAgent(known, tools.TOOLS)
    there = agent.OfficeAgent(known, [other_tool(function) for function in tools.TOOLS])
    with dspy.context(lm=Apprentice()):
        learned = [
            ACE(agent.metric, labels=False, epochs=1, num_threads=2).compile(student, agent.as_examples(tasks.train))
            for student in (here, there)
        ]
        texts = [program.playbook.to_text() for program in learned]
        for one, other in OTHER_WORDS.items():
            if "_" in one or " " in other:
                assert not re.search(rf"\b{one}\b", texts[1])
                assert not re.search(rf"\b{other}\b", texts[0])
        for word in ("resume_mark", "report_in", "shift_coins", "lend_key"):
            assert word in texts[1]
        test = agent.as_examples(tasks.normal)

        def score(program: dspy.Module, playbook: Playbook) -> float:
            scored = [agent.metric(e, with_playbook(program, playbook)(**e.inputs())).score for e in test]
            return sum(scored) / len(scored)

        own = score(there, learned[1].playbook)
        assert own >= score(there, Playbook()) + 0.3
        assert score(there, learned[0].playbook) == score(there, Playbook())
        assert own == score(here, learned[0].playbook)
