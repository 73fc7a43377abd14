"""Tasks for the office: drawn from a seed, three to a scenario, checked by the end state alone.

A scenario is one kind of task; its three tasks differ in names, numbers and purposes. Every task needs three to five
rules of the house. A normal task is about one or two people, a challenge task joins more jobs, and more exceptions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .rules import KINDS, LIMIT, WEEKDAYS, days_after_start, listed, needs_approval, needs_note
from .world import EndState, Office, Records

FIRST = (
    "Ana", "Omar", "Lena", "Piet", "Ruth", "Sven", "Tara", "Hugo", "Mina", "Igor",
    "Dora", "Emil", "Nora", "Kurt", "Vera", "Jens", "Olga", "Rolf", "Ines", "Paul",
)  # fmt: skip
LAST = (
    "Brook", "Reyes", "Fox", "Vale", "Hart", "Lund", "Moss", "Pike", "Reed", "Stone",
    "Wick", "York", "Cole", "Dean", "Frost", "Gray", "Holm", "Kerr", "Lane", "Nash",
)  # fmt: skip
PURPOSES = ("repairs", "cleaning", "printing", "training", "catering", "transport")
EXCEPTIONS = ("rent", "refund")


@dataclass(frozen=True)
class Task:
    """A task. `wanted` is for `failed_checks` alone: no prompt, feedback or example holds it."""

    id: str
    scenario: str
    text: str
    records: Records
    wanted: EndState
    rules: frozenset[str]

    def failed_checks(self, office: Office) -> int:
        """Count the parts, of six, of the end state that are not as the task wants them."""
        return office.end_state().differs(self.wanted)


class Tasks(NamedTuple):
    """The splits; no task occurs twice."""

    train: list[Task]
    val: list[Task]
    normal: list[Task]
    challenge: list[Task]


class Job(NamedTuple):
    """A piece of work: what is asked, what the office holds for it, the wanted end state, the rules it needs."""

    text: str
    records: Records
    wanted: EndState
    rules: frozenset[str]


class Draw:
    """The draws of one task. No name is drawn twice.

    Args:
        random: where they come from.
        exceptional: the share of people and payments with an exception.
    """

    def __init__(self, random: random.Random, exceptional: float) -> None:
        self.random = random
        self.exceptional = exceptional
        self.names = iter(zip(random.sample(FIRST, len(FIRST)), random.sample(LAST, len(LAST)), strict=True))

    def person(self) -> tuple[str, str, str]:
        """Return a name as tasks write it, the kind of the person, and how a task mentions both."""
        name = " ".join(next(self.names))
        kind = self.random.choice(KINDS) if self.random.random() < self.exceptional else ""
        return name, kind, f'the {kind} "{name}"' if kind else f'"{name}"'

    def purpose(self) -> str:
        """Return what a payment is for."""
        return self.random.choice(EXCEPTIONS if self.random.random() < self.exceptional else PURPOSES)

    def mail(self) -> list[tuple[str, int]]:
        """Return messages that ask for money."""
        numbers = self.random.sample(range(100, 1000), self.random.randint(2, 5))
        return [(f"invoice {number}", self.random.randint(40, 2 * LIMIT // len(numbers))) for number in numbers]


def _payment(name: str, kind: str, amount: float, purpose: str) -> tuple[EndState, frozenset[str]]:
    """Return the end state of a payment and the rules that it needs."""
    who, approval, note = listed(name, kind), needs_approval(amount, purpose), needs_note(purpose)
    state = EndState(
        payments=((who, amount, purpose),),
        approvals=((who, amount),) if approval else (),
        notes=(who,) if note else (),
    )
    return state, frozenset({"names", "note", *(["approval"] if amount > LIMIT else [])})


def settle(draw: Draw) -> Job:
    """Pay the invoices of somebody."""
    (name, kind, who), mail, purpose = draw.person(), draw.mail(), draw.purpose()
    state, rules = _payment(name, kind, float(sum(amount for _, amount in mail)), purpose)
    text = f'Read the mail of {who}. Pay {who} the total of the invoices for "{purpose}".'
    return Job(text, Records({name: kind}, {name: mail}), state, rules | {"mailbox"})


def pay_one(draw: Draw) -> Job:
    """Pay an amount."""
    (name, kind, who), purpose = draw.person(), draw.purpose()
    amount = draw.random.randint(LIMIT // 2, 2 * LIMIT)
    state, rules = _payment(name, kind, float(amount), purpose)
    return Job(f'Pay {who} the amount {amount} for "{purpose}".', Records({name: kind}), state, rules)


def meet(draw: Draw) -> Job:
    """Book a meeting."""
    name, kind, who = draw.person()
    day = draw.random.randint(1, 5)
    weekday = next(weekday for weekday in WEEKDAYS if days_after_start(weekday, kind) == day - 1)
    state = EndState(meetings=((listed(name, kind), weekday),))
    text = f"Book a meeting with {who} on day {day} of the week."
    return Job(text, Records({name: kind}), state, frozenset({"names", "week"}))


def tell(draw: Draw) -> Job:
    """Tell somebody how much mail somebody else has sent."""
    (name, kind, who), (other, its, whom), mail = draw.person(), draw.person(), draw.mail()
    state = EndState(sent=((listed(other, its), str(len(mail))),))
    text = f"Read the mail of {who}. Send {whom} a mail whose text is the number of messages."
    return Job(text, Records({name: kind, other: its}, {name: mail}), state, frozenset({"names", "mailbox"}))


Kind = tuple[Callable[[Draw], Job], ...]
NORMAL: tuple[Kind, ...] = ((settle,), (pay_one, meet), (meet, tell), (pay_one, tell))
CHALLENGE: tuple[Kind, ...] = ((settle, meet), (pay_one, tell, meet), (meet, settle), (tell, pay_one, meet))


def make_tasks(seed: int = 0, train: int = 60, val: int = 20, normal: int = 39, challenge: int = 39) -> Tasks:
    """Draw the tasks of all splits.

    Args:
        seed: the same seed gives the same tasks in every process.
        train, val, normal, challenge: how many tasks; the last scenario of a split may be cut short.
    """
    draw = random.Random(seed)
    seen: set[str] = set()
    sizes = {"train": train, "val": val, "normal": normal, "challenge": challenge}
    made = {name: _split(name, count, draw, seen) for name, count in sizes.items()}
    return Tasks(made["train"], made["val"], made["normal"], made["challenge"])


def _split(name: str, count: int, draw: random.Random, seen: set[str]) -> list[Task]:
    tasks: list[Task] = []
    kinds, exceptional = (CHALLENGE, 0.6) if name == "challenge" else (NORMAL, 0.4)
    for number, jobs in enumerate(_shuffled(kinds, draw)):
        for variant in range(3):
            if len(tasks) == count:
                return tasks
            made = _joined(jobs, Draw(draw, exceptional))
            while made.text in seen:
                made = _joined(jobs, Draw(draw, exceptional))
            seen.add(made.text)
            tasks.append(Task(f"{name}-{number}_{variant + 1}", f"{name}-{number}", *made))
    return tasks


def _shuffled(kinds: tuple[Kind, ...], draw: random.Random) -> Iterator[Kind]:
    """Yield every kind of task once, in an order that is drawn, and again without end."""
    while True:
        yield from draw.sample(kinds, len(kinds))


def _joined(makers: Kind, draw: Draw) -> Job:
    """Join jobs on different people."""
    jobs = [make(draw) for make in makers]
    people: dict[str, str] = {}
    mail: dict[str, list[tuple[str, int]]] = {}
    for job in jobs:
        people |= job.records.people
        mail |= job.records.mail
    parts = {part: sum((getattr(job.wanted, part) for job in jobs), ()) for part in EndState.__dataclass_fields__}
    rules = frozenset[str]().union(*(job.rules for job in jobs))
    return Job(" ".join(job.text for job in jobs), Records(people, mail), EndState(**parts), rules)
