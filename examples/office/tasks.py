"""Tasks for the office: drawn from a seed, three to a scenario, checked by the end state alone.

A scenario is one kind of task; its three tasks differ in names, numbers and size. Normal tasks are small.
Challenge tasks have longer lists, slower banks, and two jobs in one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .world import PAGE, EndState, Office, Records

FIRST = (
    "Ana", "Omar", "Lena", "Piet", "Ruth", "Sven", "Tara", "Hugo", "Mina", "Igor",
    "Dora", "Emil", "Nora", "Kurt", "Vera", "Jens", "Olga", "Rolf", "Ines", "Paul",
)  # fmt: skip
LAST = (
    "Brook", "Reyes", "Fox", "Vale", "Hart", "Lund", "Moss", "Pike", "Reed", "Stone",
    "Wick", "York", "Cole", "Dean", "Frost", "Gray", "Holm", "Kerr", "Lane", "Nash",
)  # fmt: skip
FOLDERS = (
    "Budget", "Travel", "Hiring", "Audit", "Press", "Design", "Rental", "Fleet", "Garden", "Canteen",
    "Safety", "Archive", "Grants", "Survey",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
_QUOTED = re.compile(r"\"[^\"]*\"")
TITLES = ("review", "call", "lunch", "workshop", "interview", "briefing", "handover", "rehearsal")


@dataclass(frozen=True)
class Task:
    """A task. `wanted` is for `failed_checks` alone: no prompt, feedback or example holds it."""

    id: str
    scenario: str
    text: str
    records: Records
    wanted: EndState

    def failed_checks(self, office: Office) -> int:
        """Count the parts, of five, of the end state that are not as the task wants them."""
        return office.end_state().differs(self.wanted)


class Tasks(NamedTuple):
    """The splits; no task occurs twice."""

    train: list[Task]
    val: list[Task]
    normal: list[Task]
    challenge: list[Task]


class Size(NamedTuple):
    """The difficulty of a job: rows in its list, a slow bank or not, a list with rows that do not count or not."""

    rows: int
    slow: bool = False
    odd: bool = False


class Job(NamedTuple):
    """A piece of work: what is asked, what the office holds for it, and the wanted end state."""

    text: str
    records: Records
    wanted: EndState


def _person(draw: random.Random) -> str:
    return f"{draw.choice(FIRST)} {draw.choice(LAST)}"


def _folder(draw: random.Random) -> str:
    return f"{draw.choice(FOLDERS)} {draw.randint(2001, 2026)}"


def _files(draw: random.Random, count: int) -> list[str]:
    return [f"{name}.pdf" for name in draw.sample([f"{letter}{n}" for letter in "abcdefgh" for n in range(9)], count)]


def _invoices(draw: random.Random, count: int) -> list[tuple[str, int]]:
    numbers = draw.sample(range(100, 1000), count)
    return [(f"invoice {number}", draw.randint(11, 480)) for number in numbers]


def count_files(draw: random.Random, size: Size) -> Job:
    """Count what a folder holds."""
    folder = _folder(draw)
    text = f'List the files in the folder "{folder}". Write a note titled "{folder}" whose text is the number of files.'
    records = Records(files={folder: _files(draw, size.rows)})
    return Job(text, records, EndState(notes=((folder, str(size.rows)),)))


def share_files(draw: random.Random, size: Size) -> Job:
    """Let somebody read what a folder holds."""
    folder, person = _folder(draw), _person(draw)
    files = _files(draw, size.rows)
    text = f'List the files in the folder "{folder}". Share each file with "{person}".'
    return Job(text, Records(files={folder: files}), EndState(access=tuple((file, person) for file in files)))


def pay_invoices(draw: random.Random, size: Size) -> Job:
    """Pay the invoices of somebody, each once: an odd list holds a reminder of one of them."""
    payee, mail = _person(draw), _invoices(draw, size.rows)
    total = float(sum(amount for _, amount in mail))
    if size.odd:
        subject, amount = draw.choice(mail)
        mail.append((f"reminder of {subject}", amount))
    text = f'Find the mail from "{payee}". Pay "{payee}" the total of the invoices.'
    records = Records(mail={payee: mail}, slow=frozenset({payee} if size.slow else ()))
    return Job(text, records, EndState(transfers=((payee, total),)))


def pay_one(draw: random.Random, size: Size) -> Job:
    """Pay an amount."""
    payee, amount = _person(draw), draw.randint(11, 480)
    records = Records(slow=frozenset({payee} if size.slow else ()))
    return Job(f'Pay "{payee}" the amount {amount}.', records, EndState(transfers=((payee, float(amount)),)))


def note_largest(draw: random.Random, size: Size) -> Job:
    """Note the largest amount that somebody asks for; it stands last."""
    sender, mail = _person(draw), _invoices(draw, size.rows)
    mail.append(mail.pop(max(range(size.rows), key=lambda i: mail[i][1])))
    text = f'Find the mail from "{sender}". Write a note titled "{sender}" whose text is the largest amount.'
    return Job(text, Records(mail={sender: mail}), EndState(notes=((sender, str(mail[-1][1])),)))


def tell_events(draw: random.Random, size: Size) -> Job:
    """Tell somebody how many events take place: an odd list holds a cancelled one."""
    person = _person(draw)
    events = [f"{draw.choice(TITLES)} on {draw.choice(DAYS)}" for _ in range(size.rows)]
    if size.odd:
        events.insert(draw.randint(0, size.rows), f"{draw.choice(TITLES)} on {draw.choice(DAYS)}, cancelled")
    text = f'List the events of "{person}". Send "{person}" a mail whose text is the number of events that take place.'
    return Job(text, Records(events={person: events}), EndState(sent=((person, str(size.rows)),)))


def book(draw: random.Random, size: Size) -> Job:  # noqa: ARG001 - all jobs are drawn alike
    """Book a meeting."""
    person, day = _person(draw), draw.choice(DAYS)
    return Job(f'Book a meeting with "{person}" on "{day}".', Records(), EndState(meetings=((person, day),)))


JOBS: tuple[Callable[[random.Random, Size], Job], ...] = (
    count_files, pay_invoices, book, share_files, note_largest, tell_events, pay_one,
)  # fmt: skip


def make_tasks(seed: int = 0, train: int = 30, val: int = 12, normal: int = 39, challenge: int = 39) -> Tasks:
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
    for number, scenario in enumerate(_scenarios(draw, name == "challenge")):
        for variant in range(3):
            if len(tasks) == count:
                return tasks
            job = scenario()
            while job.text in seen:
                job = scenario()
            seen.add(job.text)
            tasks.append(Task(f"{name}-{number}_{variant + 1}", f"{name}-{number}", *job))
    return tasks


def _scenarios(draw: random.Random, challenge: bool) -> Iterator[Callable[[], Job]]:
    """Yield the maker of each scenario's tasks, through all kinds of job."""
    kinds: list[Callable[[random.Random, Size], Job]] = []
    while True:
        kinds = kinds or draw.sample(JOBS, len(JOBS))
        kind, other = kinds.pop(), draw.choice(JOBS)

        def make(kind: Callable[..., Job] = kind, other: Callable[..., Job] = other) -> Job:
            if not challenge:
                return kind(draw, Size(draw.randint(2, 2 * PAGE), draw.random() < 0.4, draw.random() < 0.15))
            job = kind(draw, Size(draw.randint(2, 5 * PAGE), draw.random() < 0.8, draw.random() < 0.4))
            while True:
                more = other(draw, Size(draw.randint(2, PAGE), draw.random() < 0.8))
                if not set(_QUOTED.findall(job.text)) & set(_QUOTED.findall(more.text)):
                    return _together(job, more)

        yield make


def _together(job: Job, more: Job) -> Job:
    """Join two jobs on different people and things."""
    one, two = job.records, more.records
    records = Records(one.mail | two.mail, one.files | two.files, one.events | two.events, one.slow | two.slow)
    parts = {part: getattr(job.wanted, part) + getattr(more.wanted, part) for part in EndState.__dataclass_fields__}
    return Job(f"{job.text} {more.text}", records, EndState(**parts))
