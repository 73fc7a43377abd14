"""The office of the agent example: its apps, its rules, its tasks, and the check of the end state."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from office import rules
from office.tasks import make_tasks
from office.tools import TOOLS, write_note
from office.world import EndState, Records, current, opened

PEOPLE = {"Ana Fox": "", "Omar Lund": "guest", "Ruth Cole": "supplier", "Piet Hart": "auditor"}
RULES = ("names", "week", "mailbox", "approval", "note")


@pytest.fixture
def desk() -> Iterator[SimpleNamespace]:
    """An open office with somebody of each kind, and mail from all of them; its tools by name."""
    records = Records(people=PEOPLE, mail={name: [("invoice 1", 40), ("invoice 2", 60)] for name in PEOPLE})
    with opened(records) as office:
        yield SimpleNamespace(world=office, **{tool.__name__: tool for tool in TOOLS})


def test_a_name_that_is_not_on_file_is_returned(desk: SimpleNamespace) -> None:
    """The family name comes first, but for guests; a returned name stands in the log, and nothing is done."""
    for wrong, right in (("Ana Fox", "Fox Ana"), ("Lund Omar", "Omar Lund"), ("Ruth Cole", "Cole Ruth")):
        assert f"No {wrong} is on file; " in desk.send_mail(wrong, "hello")
        assert desk.send_mail(right, "hello") == f"Sent to {right}."
    assert desk.write_note("Emil York", "x") == "Returned: policy 3. No Emil York is on file."
    assert len(desk.world.end_state().log) == 4
    assert len(desk.world.end_state().sent) == 3


def test_the_first_answer_of_a_mailbox_is_old(desk: SimpleNamespace) -> None:
    """A second reading shows the newest message as well; an auditor's mail is whole at once and then closed."""
    assert desk.read_mail("Fox Ana") == "- invoice 1 | 40\nAs of last night. Read once."
    assert desk.read_mail("Fox Ana") == "- invoice 1 | 40\n- invoice 2 | 60"
    assert desk.world.end_state().log == ()
    assert desk.read_mail("Hart Piet") == "- invoice 1 | 40\n- invoice 2 | 60"
    assert "was read twice" in desk.read_mail("Hart Piet")
    assert len(desk.world.end_state().log) == 1


def test_the_week_begins_on_saturday(desk: SimpleNamespace) -> None:
    """The answer tells which day of the week was booked; suppliers count from Monday."""
    assert desk.book_meeting("Fox Ana", "Monday") == "Booked. Monday is day 3."
    assert desk.book_meeting("Fox Ana", "Saturday") == "Booked. Saturday is day 1."
    assert desk.book_meeting("Cole Ruth", "Saturday") == "Booked. Saturday is day 6 for a supplier."
    assert "no weekday" in desk.book_meeting("Fox Ana", "tomorrow")
    assert len(desk.world.end_state().meetings) == 3


@pytest.mark.parametrize(
    ("amount", "purpose", "approval", "note", "answer"),
    [
        (501, "repairs", False, True, "501 is over 500 and has no approval."),
        (500, "repairs", True, True, "has an approval and is not over 500."),
        (900, "rent", True, True, "has an approval and is for rent."),
        (100, "repairs", False, False, "has no note."),
        (100, "refund", False, True, "has a note and is a refund."),
        (501, "repairs", True, True, "501 went to Fox Ana for repairs."),
        (900, "rent", False, True, "900 went to Fox Ana for rent."),
        (900, "refund", True, False, "900 went to Fox Ana for refund."),
    ],
)
def test_a_payment_has_what_the_rules_ask_for(
    desk: SimpleNamespace, amount: float, purpose: str, approval: bool, note: bool, answer: str
) -> None:
    """Approvals and notes are needed, or not wanted, by amount and purpose; a rejected payment moves no money."""
    if approval:
        desk.request_approval("Fox Ana", amount)
    if note:
        desk.write_note("Fox Ana", "why")
    assert desk.pay("Fox Ana", amount, purpose).endswith(answer)
    state = desk.world.end_state()
    assert len(state.payments) + len(state.log) == 1
    assert bool(state.payments) == ("went to" in answer)


def test_no_answer_names_a_remedy(desk: SimpleNamespace) -> None:
    """What the office rejects is told as a fact: no answer names a tool, an argument or what to do."""
    desk.send_mail("Ana Fox", "x")
    desk.pay("Fox Ana", 800, "repairs")
    desk.pay("Fox Ana", 80, "repairs")
    desk.read_mail("Hart Piet")
    desk.read_mail("Hart Piet")
    said = "\n".join([*desk.world.end_state().log, desk.read_mail("Fox Ana"), desk.book_meeting("Fox Ana", "Friday")])
    assert not re.search(r"_|\b(?:first|before|please|must|should|call|try|ask|use|instead)\b", said, re.IGNORECASE)


def test_offices_are_apart() -> None:
    """Each thread works in the office it opened, and an office is closed after a failure as well."""

    def work(name: str) -> Any:
        with opened(Records(people={name: "guest"})) as office:
            for _ in range(3):
                write_note(name, "text")
            return office.end_state().notes

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, "abcd")) == [(name,) * 3 for name in "abcd"]
    with pytest.raises(ZeroDivisionError), opened(Records()):
        _ = 1 / 0
    with pytest.raises(LookupError):
        current()


def test_tasks_are_drawn_from_the_seed() -> None:
    """The same seed gives the same tasks, another one others; sizes are as asked for and no task occurs twice."""
    tasks = make_tasks(3)
    assert tasks == make_tasks(3) != make_tasks(4)
    assert [len(split) for split in tasks] == [60, 20, 39, 39]
    everything = [task for split in tasks for task in split]
    assert len({task.text for task in everything}) == len({task.id for task in everything}) == 158
    assert all(task.id.startswith(f"{task.scenario}_") for task in everything)
    assert [len(split) for split in make_tasks(0, 4, 1, 5, 7)] == [4, 1, 5, 7]
    assert len(make_tasks(1, 300, 3, 3, 300).train) == 300


def test_a_task_needs_three_to_five_rules() -> None:
    """Every rule and every exception occurs in each split but the smallest; challenge tasks need more at once."""
    tasks = make_tasks(5)
    for split in (tasks.train, tasks.normal, tasks.challenge):
        assert {rule for task in split for rule in task.rules} == set(RULES)
        text = " ".join(task.text for task in split)
        assert all(word in text for word in ("guest", "supplier", "auditor", '"rent"', '"refund"'))
    needed = [[len(task.rules) for task in split] for split in tasks]
    assert all(3 <= count <= 5 for split in needed for count in split)
    assert sum(needed[3]) / len(needed[3]) >= sum(needed[2]) / len(needed[2]) + 1


def work_by(task: Any, ignored: str = "") -> int:
    """Failed checks of somebody who brings about what is wanted and knows the rules, but for one."""
    tools = {tool.__name__: tool for tool in TOOLS}
    names = {rules.listed(name, kind): name for name, kind in task.records.people.items()}

    def known(name: str) -> str:
        return names[name] if ignored == "names" else name

    with opened(task.records) as office:
        seen = {}
        for plain, kind in task.records.people.items():
            if plain in task.records.mail:
                for _ in range(1 if ignored == "mailbox" else rules.readings(kind)):
                    seen[rules.listed(plain, kind)] = tools["read_mail"](known(rules.listed(plain, kind)))
        for person, amount in task.wanted.approvals if ignored != "approval" else ():
            tools["request_approval"](known(person), amount)
        for person in task.wanted.notes if ignored != "note" else ():
            tools["write_note"](known(person), "why")
        for person, amount, purpose in task.wanted.payments:
            rows = [line for line in seen.get(person, "").splitlines() if line.startswith("- ")]
            read = sum(float(row.rpartition("|")[2]) for row in rows)
            tools["pay"](known(person), read if ignored == "mailbox" and rows else amount, purpose)
        for person, text in task.wanted.sent:
            rows = [line for answer in seen.values() for line in answer.splitlines() if line.startswith("- ")]
            tools["send_mail"](known(person), str(len(rows)) if ignored == "mailbox" else text)
        for person, day in task.wanted.meetings:
            said = int(re.findall(r"on day (\d)", task.text)[0]) - 1
            tools["book_meeting"](known(person), rules.WEEKDAYS[said] if ignored == "week" else day)
        return int(task.failed_checks(office))


@pytest.mark.parametrize("ignored", RULES)
def test_a_task_fails_for_one_rule_that_is_not_known(ignored: str) -> None:
    """Who knows all rules completes every task; who lacks one fails most of the tasks that need it."""
    tasks = [task for split in make_tasks(2) for task in split]
    assert [task.id for task in tasks if work_by(task)] == []
    needing = [task for task in tasks if ignored in task.rules]
    assert sum(work_by(task, ignored) > 0 for task in needing) >= 0.6 * len(needing)


def test_the_check_sees_what_is_missing_and_what_is_too_much() -> None:
    """Nothing done fails a task, and so does one thing more than the task wants."""
    for task in make_tasks(2, 12, 1, 1, 12).train:
        with opened(task.records) as office:
            assert task.failed_checks(office) > 0
        more = EndState(**{**vars(task.wanted), "notes": (*task.wanted.notes, "Somebody")})
        assert task.wanted.differs(more) == 1
        assert task.wanted.differs(EndState(**{**vars(task.wanted), "log": ("Returned.",)})) == 1
