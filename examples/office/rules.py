"""The rules of the house, each with an exception. No prompt holds them.

| rule | exception |
|---|---|
| names are written with the family name first | guests: as they introduce themselves |
| the week begins on Saturday | suppliers: on Monday |
| a mailbox must be read twice; the first answer is last night's | auditors: once, as a second reading is refused |
| a payment over 500 has an approval, a smaller one has none | rent: none |
| a payment has a note on the payee, written before | refunds: none |
"""

from __future__ import annotations

KINDS = ("guest", "supplier", "auditor")
"""People with an exception of their own. Everybody else is a colleague, which no task mentions."""
LIMIT = 500
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def listed(name: str, kind: str) -> str:
    """Return the name under which the office knows a person.

    Args:
        name: given name, then family name.
        kind: one of `KINDS`, or `""`.
    """
    given, _, family = name.partition(" ")
    return name if kind == "guest" else f"{family} {given}"


def days_after_start(weekday: str, kind: str) -> int:
    """Return how many days after the first day of the week a weekday is: 0 … 6."""
    start = "Monday" if kind == "supplier" else "Saturday"
    return (WEEKDAYS.index(weekday) - WEEKDAYS.index(start)) % 7


def readings(kind: str) -> int:
    """Return how often the mail of a person is read."""
    return 1 if kind == "auditor" else 2


def needs_approval(amount: float, purpose: str) -> bool:
    """Return True if a payment needs an approval."""
    return amount > LIMIT and purpose != "rent"


def needs_note(purpose: str) -> bool:
    """Return True if a payment needs a note."""
    return purpose != "refund"
