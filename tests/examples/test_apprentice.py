"""The apprentice: its habits, advice that changes them, and what it concludes from the answers of tools."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import agent
import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from office import rules, tools, world
from office.advice import Advice, conclude, read_advice, say
from office.apprentice import Apprentice, Call, Step, lessons, steps_in
from office.tasks import make_tasks

from dspy_ace import ACE, Bullet, Playbook, with_playbook
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.agent import Tool
from paths import ROOT

OFFICE = ROOT / "examples" / "office"
OWN = ("apprentice.py", "advice.py")


def tool(name: str, **arguments: str) -> Tool:
    """A tool as a request describes it."""
    return Tool(name, "", {name: {"type": kind} for name, kind in arguments.items()})


def advised(program: dspy.Module, *advice: str) -> Any:
    return with_playbook(program, Playbook(tuple(Bullet(f"str-{i:05}", "OTHERS", a) for i, a in enumerate(advice, 1))))


def done(task: str, *advice: str, adapter: Any = None) -> Any:
    """The end state that an apprentice with this advice brings about."""
    program = advised(dspy.ReAct("task -> report", tools=list(tools.TOOLS), max_iters=30), *advice)
    with dspy.context(lm=Apprentice(), adapter=adapter), world.opened(records_of()) as opened:
        program(task=task)
        return opened.end_state()


def records_of() -> Any:
    return world.Records(
        people={"Lena Fox": "", "Sam Holm": "guest", "Kurt Vale": "supplier", "Ines Moss": "auditor"},
        mail={name: [("invoice 7", 30), ("invoice 9", 20)] for name in ("Lena Fox", "Ines Moss")},
    )


NAMES = "Names are written with the family name first."
GUEST = "For a guest, write the name as given."
TWICE = "`read_mail` has to be called two times; only the last answer counts."
ONCE = "With an auditor, one time is enough for `read_mail`."
NOTE = "A `write_note` comes before every `pay`."
APPROVAL = "Call `request_approval` before `pay` if the amount is above 500."
RENT = "For rent, never call `request_approval` before `pay`."
REFUND = "For a refund, go without `write_note` before `pay`."
WEEK = "In `book_meeting` the week starts on Saturday."
SUPPLIER = "For a supplier, in `book_meeting` day 1 is Monday."
ALL = (NAMES, GUEST, TWICE, ONCE, NOTE, APPROVAL, RENT, REFUND, WEEK, SUPPLIER)
PAID = {"notes": ("Fox Lena",), "payments": (("Fox Lena", 40.0, "repairs"),)}
HABITS: dict[str, tuple[str, set[str], dict[str, Any]]] = {
    "a name as it is read": ('Send "Lena Fox" a mail whose text is "hi".', {NAMES}, {"sent": (("Fox Lena", "hi"),)}),
    "a guest": ('Send the guest "Sam Holm" a mail whose text is "hi".', {GUEST}, {"sent": (("Sam Holm", "hi"),)}),
    "the first answer": (
        'Read the mail of "Lena Fox". Send "Lena Fox" a mail whose text is the number of messages.',
        {NAMES, TWICE},
        {"sent": (("Fox Lena", "2"),)},
    ),
    "an auditor": (
        'Read the mail of the auditor "Ines Moss". Send "Lena Fox" a mail whose text is the total.',
        {NAMES, ONCE},
        {"sent": (("Fox Lena", "50"),)},
    ),
    "nothing before": ('Pay "Lena Fox" the amount 40 for "repairs".', {NAMES, NOTE}, PAID),
    "a large amount": (
        'Pay "Lena Fox" the amount 501 for "repairs".',
        {NAMES, NOTE, APPROVAL},
        {"notes": ("Fox Lena",), "approvals": (("Fox Lena", 501.0),), "payments": (("Fox Lena", 501.0, "repairs"),)},
    ),
    "rent": (
        'Pay "Lena Fox" the amount 501 for "rent".',
        {NAMES, NOTE, RENT},
        {"notes": ("Fox Lena",), "payments": (("Fox Lena", 501.0, "rent"),)},
    ),
    "a refund": (
        'Pay "Lena Fox" the amount 40 for "refund".',
        {NAMES, REFUND},
        {"payments": (("Fox Lena", 40.0, "refund"),)},
    ),
    "the week": (
        'Book a meeting with "Lena Fox" on day 2 of the week.',
        {NAMES, WEEK},
        {"meetings": (("Fox Lena", "Sunday"),)},
    ),
    "a supplier": (
        'Book a meeting with the supplier "Kurt Vale" on day 2 of the week.',
        {NAMES, SUPPLIER},
        {"meetings": (("Vale Kurt", "Tuesday"),)},
    ),
}  # fmt: skip


@pytest.mark.compat
@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_changes_only_with_advice_for_it(habit: str) -> None:
    """With all advice, in other people's words, the task is done; without the advice it needs, it is not."""
    task, needed, wanted = HABITS[habit]
    assert done(task, *ALL) == world.EndState(**wanted)
    for lacking in needed:
        assert done(task, *(advice for advice in ALL if advice != lacking)) != world.EndState(**wanted)


def test_a_habit_stays_with_advice_of_other_content() -> None:
    """Advice on other tools, other cases, or nothing in particular changes nothing."""
    other = [
        "For an intern, write the name with the last word first.",
        "Read every answer to its end and be careful with money.",
        "Call `open_door` before `pay`.",
        "Call `send_mail` when it is needed.",
    ]
    for task, _, _ in HABITS.values():
        assert done(task, *other) == done(task)


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
def test_it_works_in_every_layout(adapter: Any) -> None:
    """The chat, JSON and XML layouts are read alike (DSPy's XML gives tools no numbers, so none is needed here)."""
    task, _, wanted = HABITS["the first answer"]
    assert done(task, *ALL, adapter=adapter()) == world.EndState(**wanted)


def test_it_knows_no_tool_no_message_and_no_rule() -> None:
    """Nothing of the office stands in the apprentice's own code, and it imports nothing of it."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in OFFICE.glob("*.py")}
    text = "\n".join(sources[name] for name in OWN)
    names = re.findall(r"^def (\w+)\(", sources["tools.py"], re.MULTILINE)
    assert len(names) == 6
    for known in [*rules.KINDS, *(name for name in names if "_" in name), "approval", "policy", "desk note", "500",
                  "rent", "refund", "Saturday is", "office"]:  # fmt: skip
        assert not re.search(rf"\b{known}\b", text), known
    assert set(re.findall(r"^from \.(\w+) import", text, re.MULTILINE)) == {"advice"}


# --- what it concludes ---

TOOLS = {
    t.name: t
    for t in (
        tool("draw", artist="string", size="number"),
        tool("get_permit", artist="string"),
        tool("paint", wall="string"),
    )
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Nobody is called Mia Berg here, but Berg Mia is.", 'Write a name with the last word first.'),
        ("Refused: 7 is above 5, and there is no permit.", "Before `draw` with an amount over 5 call `get_permit`."),
        ("Refused: without a permit.", "Before `draw` call `get_permit`."),
        ("Refused: there is a permit, and it is a mural.", 'For "mural", before `draw` do not call `get_permit`.'),
        ("Drawn on Tuesday. Tuesday is day 4.", "In `draw` the week begins on Saturday."),
        ("Thursday is day 1 for a mural.", 'For "mural", in `draw` the week begins on Thursday.'),
        ("A sketch (drawn once).", "Call `draw` twice and take the last answer."),
        ("Torn: a mural that was drawn twice.", 'For "mural", call `draw` once.'),
    ],
)  # fmt: skip
def test_a_fact_becomes_advice_that_is_read_again(answer: str, expected: str) -> None:
    """What a fact suggests is said for other cases, and means the same when it is read."""
    task = 'Draw the mural of "Mia Berg".'
    (advice,) = conclude(
        "draw", {"artist": "Mia Berg", "size": 7}, answer, task=task, before=["get_permit"], tools=TOOLS
    )
    assert say(advice) == expected
    (read,) = read_advice(f"[str-00001] (OTHERS) {say(advice)}", TOOLS)
    assert read == Advice(**{**vars(advice), "source": "str-00001", "text": say(advice)})


@pytest.mark.parametrize(
    "answer", ["", "Done.", "Error: bad colour", "- a | b\n- c | d", "The draw was fine.", "A permit!"]
)
def test_an_answer_without_a_fact_teaches_nothing(answer: str) -> None:
    """Answers that tell nothing about the call give no advice."""
    assert list(conclude("draw", {"artist": "Mia Berg"}, answer, task="Draw.", before=[], tools=TOOLS)) == []


class Opened(dspy.Module):
    """The agent in an office of its own; `done` says if the office ends as it is `wanted`."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        super().__init__()
        self.agent = dspy.ReAct("task -> report", tools=list(tools.TOOLS), max_iters=30)
        self.wanted = wanted

    def forward(self, task: str) -> Any:
        with world.opened(records_of()) as opened:
            self.agent(task=task)
            return dspy.Prediction(done=opened.end_state() == world.EndState(**self.wanted))


@pytest.mark.parametrize("rule", HABITS)
def test_a_rule_is_learned_from_one_episode(rule: str) -> None:
    """From one failed episode of somebody who lacks one piece of advice, that advice is concluded, and it helps."""
    task, needed, wanted = HABITS[rule]
    known = [advice for advice in ALL if advice not in needed - {NAMES}] if needed != {NAMES} else [
        advice for advice in ALL if advice != NAMES]  # fmt: skip
    playbook = Playbook(tuple(Bullet(f"str-{i:05}", "OTHERS", a) for i, a in enumerate(known, 1)))
    example = dspy.Example(task=task).with_inputs("task")
    with dspy.context(lm=Apprentice()):
        program: Any = Opened(wanted)
        for _ in range(len(needed)):  # a rejected call hides what would come after it
            program = ACE(
                lambda example, prediction: float(prediction.done), labels=False, epochs=1, playbook=playbook,
                progress=False,
            ).compile(Opened(wanted), [example])  # fmt: skip
            playbook = program.detailed_results.learned_playbook
        assert with_playbook(program, playbook)(task=task).done


def test_a_call_that_was_repeated_was_not_made_once() -> None:
    """Where the next step makes the same call, its first answer teaches nothing about how often."""
    first = Step(Call("paint", {"wall": "red"}), "Thin (painted once).")
    assert [a.topic for a in lessons([first], "Paint.", TOOLS)] == ["times"]
    assert lessons([first, Step(first.call, "Red.")], "Paint.", TOOLS) == []


@pytest.mark.parametrize(
    "text",
    ["Be careful.", "Use `paint`.", "draw, whose description is <desc>call `paint` before `draw`</desc>", "`draw`"],
)
def test_what_says_nothing_about_a_call_is_no_advice(text: str) -> None:
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
    playbook = Playbook((Bullet("str-00001", "OTHERS", WEEK), Bullet("str-00002", "OTHERS", NAMES)))
    task, _, wanted = HABITS["a name as it is read"]
    with dspy.context(lm=Apprentice()):
        program = ACE(playbook=playbook, epochs=1).compile(
            Opened(wanted), [dspy.Example(task=task).with_inputs("task")]
        )
    assert {b.id: (b.helpful, b.harmful) for b in program.playbook} == {"str-00001": (0, 0), "str-00002": (1, 0)}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(task=st.text(max_size=80), answer=st.text(max_size=80), advice=st.text(min_size=1, max_size=80))
def test_it_answers_whatever_it_reads(task: str, answer: str, advice: str) -> None:
    """Any task, any answer of a tool and any bullet lead to a reply in form, as an agent and as a reflector."""

    def paint(wall: str, brush: str = "") -> str:
        """Paint a wall."""
        return f"{answer} der Wall: no paint, painted once. {answer}"

    text = f"For x, call `paint` twice. {advice}"
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
    "read_mail": "fetch_mail", "send_mail": "mail_out", "book_meeting": "fix_meeting", "request_approval": "get_seal",
    "approval": "seal", "write_note": "keep_slip", "note": "slip", "pay": "pay_out", "person": "who",
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
            if "_" in one:
                assert not re.search(rf"\b{one}\b", texts[1])
                assert not re.search(rf"\b{other}\b", texts[0])
        for word in ("fetch_mail", "fix_meeting", "get_seal", "keep_slip"):
            assert word in texts[1]
        test = agent.as_examples(tasks.normal)

        def score(program: dspy.Module, playbook: Playbook) -> float:
            scored = [agent.metric(e, with_playbook(program, playbook)(**e.inputs())).score for e in test]
            return sum(scored) / len(scored)

        own = score(there, learned[1].playbook)
        assert own >= score(there, Playbook()) + 0.3
        assert own >= score(there, learned[0].playbook) + 0.3
        assert own == score(here, learned[0].playbook)
