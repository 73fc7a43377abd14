"""The office of the agent example: its apps, its tasks, and the check of the end state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from office.tasks import make_tasks
from office.tools import TOOLS, write_note
from office.world import Records, current, opened


@pytest.fixture
def desk() -> Iterator[SimpleNamespace]:
    """An open office with a long mail, a long folder and a slow bank; its tools by name."""
    records = Records(
        mail={"Ana Fox": [(f"invoice {n}", n) for n in range(7)]},
        files={"Audit": ["a1.pdf", "b2.pdf"]},
        slow=frozenset({"Ana Fox"}),
    )
    with opened(records) as office:
        yield SimpleNamespace(world=office, **{tool.__name__: tool for tool in TOOLS})


def token(answer: str) -> str:
    return answer.rpartition("=")[2]


def test_lists_come_in_pages(desk: SimpleNamespace) -> None:
    """A page shows three rows and the cursor of the next one, the last page none; together they are the list."""
    first = desk.find_mail("Ana Fox")
    second = desk.find_mail("Ana Fox", cursor=token(first))
    third = desk.find_mail("Ana Fox", cursor=token(second))
    rows = [line for page in (first, second, third) for line in page.splitlines() if line.startswith("- ")]
    assert rows == [f"- invoice {n} | {n}" for n in range(7)]
    assert "next_cursor" not in third
    assert desk.find_mail("Nobody") == "Nothing found."
    assert desk.list_files("Audit", cursor="nonsense") == "- a1.pdf\n- b2.pdf"


def test_what_changes_things_asks_for_a_token_of_its_own_app(desk: SimpleNamespace) -> None:
    """Without a token, or with that of another app, a call is refused, says how to sign in, and changes nothing."""
    other = token(desk.sign_in("mail"))
    for given in ("", other):
        assert 'sign_in(app="payments")' in desk.transfer_money("Omar Lund", 5, access_token=given)
    assert desk.world.end_state().transfers == ()
    assert desk.world.errors == 2
    desk.transfer_money("Omar Lund", 5, access_token=token(desk.sign_in("payments")))
    assert desk.world.end_state().transfers == (("Omar Lund", 5.0),)
    assert "no app" in desk.sign_in("lunch")


def test_an_app_wants_a_pause_after_some_calls(desk: SimpleNamespace) -> None:
    """The fifth call of an app is refused until enough time has passed; other apps go on answering."""
    answers = [desk.list_files("Audit") for _ in range(5)]
    assert ["429" in answer for answer in answers] == [False] * 4 + [True]
    assert "429" not in desk.find_mail("Ana Fox")
    desk.wait(5)
    assert "429" in desk.list_files("Audit")
    desk.wait(30)
    assert "429" not in desk.list_files("Audit")


def test_misleading_names_bring_nothing_about(desk: SimpleNamespace) -> None:
    """Preparing a bill moves no money and a link gives no right; each answer names the call that does."""
    assert "transfer_money(" in desk.pay_bill("Omar Lund", 5)
    assert "grant_access(" in desk.share_file("a1.pdf", "Omar Lund")
    assert desk.world.end_state() == type(desk.world.end_state())()


def test_a_slow_bank_pays_twice_if_asked_twice(desk: SimpleNamespace) -> None:
    """The first transfer to a slow bank goes through unanswered; the status tells; a second transfer pays again."""
    access = token(desk.sign_in("payments"))
    assert "payment_status(" in desk.transfer_money("Ana Fox", 9, access_token=access)
    assert desk.payment_status("Ana Fox") == "9 went to Ana Fox."
    desk.transfer_money("Ana Fox", 9, access_token=access)
    assert desk.payment_status("Ana Fox") == "9 and 9 went to Ana Fox."


def test_offices_are_apart() -> None:
    """Each thread works in the office it opened, and an office is closed after a failure as well."""

    def work(name: str) -> Any:
        with opened(Records()) as office:
            for _ in range(3):
                write_note(name, "text")
            return office.end_state().notes

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, "abcd")) == [((name, "text"),) * 3 for name in "abcd"]
    with pytest.raises(ZeroDivisionError), opened(Records()):
        _ = 1 / 0
    with pytest.raises(LookupError):
        current()


def test_tasks_are_drawn_from_the_seed() -> None:
    """The same seed gives the same tasks, another one others; sizes are as asked for and no task occurs twice."""
    tasks = make_tasks(3)
    assert tasks == make_tasks(3) != make_tasks(4)
    assert [len(split) for split in tasks] == [30, 12, 39, 39]
    everything = [task for split in tasks for task in split]
    assert len({task.text for task in everything}) == len({task.id for task in everything}) == 120
    assert all(task.id.startswith(f"{task.scenario}_") for task in everything)
    assert [len(split) for split in make_tasks(0, 4, 1, 5, 7)] == [4, 1, 5, 7]


def test_tasks_come_from_every_job_many_times() -> None:
    """Many tasks can be drawn: the generator never runs out of new ones."""
    assert len(make_tasks(1, 300, 3, 3, 300).train) == 300


def bring_about(tools: dict[str, Any], wanted: Any) -> None:
    """The wanted end state through the calls of the apps, by one who knows it."""

    def do(name: str, app: str = "", **arguments: Any) -> None:
        if app:
            arguments["access_token"] = token(tools["sign_in"](app))
        if "429" in tools[name](**arguments):
            tools["wait"](30)
            tools[name](**arguments)

    for to, amount in wanted.transfers:
        do("transfer_money", "payments", to=to, amount=amount)
    for file, person in wanted.access:
        do("grant_access", "files", file=file, person=person)
    for to, text in wanted.sent:
        do("send_mail", "mail", to=to, text=text)
    for person, day in wanted.meetings:
        do("book_meeting", person=person, day=day)
    for title, text in wanted.notes:
        do("write_note", title=title, text=text)


def test_every_task_can_be_done_and_checks_see_what_is_missing_or_too_much() -> None:
    """The wanted end state passes; nothing done, something done twice, and something else done do not."""
    tools = {tool.__name__: tool for tool in TOOLS}
    draw = random.Random(5)
    for split in make_tasks(2):
        for task in draw.sample(split, 8):
            with opened(task.records) as office:
                assert task.failed_checks(office) > 0
                bring_about(tools, task.wanted)
                assert task.failed_checks(office) == 0, task.text
                tools["wait"](30)
                tools["write_note"]("Something", "else")
                assert task.failed_checks(office) == 1
            with opened(task.records) as office:
                bring_about(tools, task.wanted)
                tools["wait"](30)
                bring_about(tools, task.wanted)
                assert task.failed_checks(office) > 0
