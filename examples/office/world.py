"""One office: its records, its end state, and what holds for every app."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

PAGE = 3
"""Rows on a page."""
CALLS = 4
"""Calls that an app answers before it asks for a pause."""


@dataclass(frozen=True)
class Records:
    """The content of an office when it opens.

    Attributes:
        mail: sender → (subject, amount) of each message.
        files: folder → names.
        events: person → titles.
        slow: payees whose bank does not answer at once.
    """

    mail: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    events: dict[str, list[str]] = field(default_factory=dict)
    slow: frozenset[str] = frozenset()


@dataclass(frozen=True)
class EndState:
    """The changes made in an office, without their order. The same change made twice counts twice."""

    transfers: tuple[tuple[str, float], ...] = ()
    access: tuple[tuple[str, str], ...] = ()
    sent: tuple[tuple[str, str], ...] = ()
    meetings: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    def differs(self, other: EndState) -> int:
        """Count the parts, of five, in which two end states differ."""
        return sum(sorted(getattr(self, part)) != sorted(getattr(other, part)) for part in self.__dataclass_fields__)


class Office:
    """A fresh office. Its calls answer in text, as apps do: an error is an answer, too, and is counted."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.done: dict[str, list[tuple[str, object]]] = {part: [] for part in EndState.__dataclass_fields__}
        self.errors = 0
        self._tokens: dict[str, str] = {}
        self._calls: Counter[str] = Counter()
        self._unheard = set(records.slow)

    def end_state(self) -> EndState:
        """Return the changes made so far."""
        return EndState(**{part: tuple(rows) for part, rows in self.done.items()})  # type: ignore[arg-type]

    def error(self, text: str) -> str:
        """Count an error, and return it as the answer of a call."""
        self.errors += 1
        return f"Error {text}"

    def refuses(self, app: str, token: str | None = None) -> str:
        """Say why `app` refuses a call: too many calls, or no valid token where it asks for one; `""` if it does not.

        A call without a valid token counts as a call.
        """
        if self._calls[app] >= CALLS:
            return self.error("429: too many requests. Call wait(seconds=30), then repeat this call.")
        self._calls[app] += 1
        if token is not None and token != self._tokens.get(app):
            return self.error(
                f'401: no valid access_token for {app}. Call sign_in(app="{app}") first, then repeat this call '
                "with its access_token."
            )
        return ""

    def sign_in(self, app: str) -> str:
        """Open a session, and return its token."""
        return self._tokens.setdefault(app, f"tk-{app}-{len(self._tokens) + 71}")

    def pause(self) -> None:
        """Start the count of calls of each app anew."""
        self._calls.clear()

    def unheard(self, payee: str) -> bool:
        """Return True for the first transfer to a payee whose bank is slow."""
        slow = payee in self._unheard
        self._unheard.discard(payee)
        return slow


def page(rows: Sequence[str], cursor: str) -> str:
    """Return one page of `rows`, and how to ask for the next one."""
    start = int(cursor.removeprefix("p")) if cursor.removeprefix("p").isdecimal() else 0
    lines = [f"- {row}" for row in rows[start : start + PAGE]] or ["Nothing found."]
    if start + PAGE < len(rows):
        lines.append(f"This is not all: next_cursor=p{start + PAGE}")
    return "\n".join(lines)


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
