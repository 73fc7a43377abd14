"""The apps' calls. Each acts on the office that is open where it is called (`world.opened`).

An answer tells facts, never what to do about them.
"""

from __future__ import annotations

from collections.abc import Callable

from .rules import LIMIT, WEEKDAYS, days_after_start, needs_approval, needs_note, readings
from .world import current


def read_mail(person: str) -> str:
    """List the messages from a person: subject | amount."""
    office = current()
    if isinstance(found := office.find(person), str):
        return found
    office.read[found.name] += 1
    if office.read[found.name] > readings(found.kind):
        often = "twice" if found.kind == "auditor" else "more than twice"
        return office.reject(f"Closed: desk note 9. The mail of an {found.kind or 'employee'} was read {often}.")
    mail = office.records.mail.get(found.plain, [])
    early = office.read[found.name] < readings(found.kind)
    rows = [f"- {subject} | {amount}" for subject, amount in (mail[:-1] if early else mail)]
    return "\n".join([*(rows or ["Nothing."]), *(["As of last night. Read once."] if early else [])])


def send_mail(person: str, text: str) -> str:
    """Send a message to a person."""
    office = current()
    if isinstance(found := office.find(person), str):
        return found
    office.done["sent"].append((found.name, text))
    return f"Sent to {found.name}."


def book_meeting(person: str, day: str) -> str:
    """Put a meeting with a person into the calendar, on a day (Monday, Tuesday, …)."""
    office = current()
    if isinstance(found := office.find(person), str):
        return found
    if day not in WEEKDAYS:
        return office.reject(f"Returned: desk note 4. {day} is no weekday.")
    office.done["meetings"].append((found.name, day))
    where = " for a supplier" if found.kind == "supplier" else ""
    return f"Booked. {day} is day {days_after_start(day, found.kind) + 1}{where}."


def write_note(person: str, text: str) -> str:
    """Write a note on a person."""
    office = current()
    if isinstance(found := office.find(person), str):
        return found
    office.done["notes"].append(found.name)
    return f"Filed ({len(text)} letters)."


def request_approval(person: str, amount: float) -> str:
    """Have the payment of an amount to a person approved."""
    office = current()
    if isinstance(found := office.find(person), str):
        return found
    office.done["approvals"].append((found.name, float(amount)))
    return "Signed."


def pay(person: str, amount: float, purpose: str) -> str:
    """Pay an amount to a person for a purpose."""
    office = current()
    if isinstance(found := office.find(person), str):
        return found
    approved = (found.name, float(amount)) in office.done["approvals"]
    noted = found.name in office.done["notes"]
    if needs_approval(amount, purpose) and not approved:
        return office.reject(f"Rejected: policy 7. {amount:g} is over {LIMIT} and has no approval.")
    if approved and not needs_approval(amount, purpose):
        why = f"is not over {LIMIT}" if amount <= LIMIT else f"is for {purpose}"
        return office.reject(f"Rejected: policy 7. This has an approval and {why}.")
    if needs_note(purpose) and not noted:
        return office.reject("Rejected: policy 12. This has no note.")
    if noted and not needs_note(purpose):
        return office.reject(f"Rejected: policy 12. This has a note and is a {purpose}.")
    office.done["payments"].append((found.name, float(amount), purpose))
    return f"{amount:g} went to {found.name} for {purpose}."


TOOLS: tuple[Callable[..., str], ...] = (read_mail, send_mail, book_meeting, write_note, request_approval, pay)
