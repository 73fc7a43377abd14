"""One office: its records, what was done in it, and the log of what it rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from .rules import listed


@dataclass(frozen=True)
class Records:
    """The content of an office when it opens.

    Attributes:
        people: name as a task writes it → kind (`rules.KINDS`, or `""`).
        mail: the same name → (subject, amount) of each message; the last one came this morning.
    """

    people: dict[str, str] = field(default_factory=dict)
    mail: dict[str, list[tuple[str, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class EndState:
    """The things done in an office, without their order, and its log. The same thing done twice counts twice."""

    payments: tuple[tuple[str, float, str], ...] = ()
    approvals: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    sent: tuple[tuple[str, str], ...] = ()
    meetings: tuple[tuple[str, str], ...] = ()
    log: tuple[str, ...] = ()

    def differs(self, other: EndState) -> int:
        """Count the parts, of six, in which two end states differ."""
        return sum(sorted(getattr(self, part)) != sorted(getattr(other, part)) for part in self.__dataclass_fields__)


class Person(NamedTuple):
    """Somebody the office knows: the name as tasks write it, the kind, and the name as the office lists it."""

    plain: str
    kind: str
    name: str


class Office:
    """A fresh office."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.people = [Person(plain, kind, listed(plain, kind)) for plain, kind in records.people.items()]
        self.done: dict[str, list[object]] = {part: [] for part in EndState.__dataclass_fields__}
        self.read: Counter[str] = Counter()

    def end_state(self) -> EndState:
        """Return what was done so far."""
        return EndState(**{part: tuple(rows) for part, rows in self.done.items()})  # type: ignore[arg-type]

    def reject(self, fact: str) -> str:
        """Put a rejection into the log, and return it as the answer of a call."""
        self.done["log"].append(fact)
        return fact

    def find(self, name: str) -> Person | str:
        """Return the person with this name, or the rejection of a name that is not on file."""
        for person in self.people:
            if person.name == name:
                return person
        written = sorted(name.split())
        meant = next((person for person in self.people if sorted(person.name.split()) == written), None)
        if meant is None:
            return self.reject(f"Returned: policy 3. No {name} is on file.")
        kind = "the guest " if meant.kind == "guest" else ""
        return self.reject(f"Returned: policy 3. No {name} is on file; {kind}{meant.name} is.")


_open: ContextVar[Office] = ContextVar("open_office")


@contextmanager
def opened(records: Records) -> Iterator[Office]:
    """Open a fresh office for the block, in this thread or task alone."""
    token = _open.set(Office(records))
    try:
        yield _open.get()
    finally:
        _open.reset(token)


def current() -> Office:
    """Return the open office.

    Raises:
        LookupError: none is open here.
    """
    return _open.get()
