"""The tables of a store: what they hold, and the statements that read and write them.

Every function takes `run`, which runs a statement in an open transaction. Texts are JSON in ASCII: any database keeps
them as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

from ..errors import DeltaError, PlaybookError, StoreError
from ..playbook import Delta, Event, Playbook, Rejected, Rollback
from .database import SCHEMA, Run

FORMAT = "dspy_ace.store"
LAYOUT = 1
NO_LIMIT = 2**31 - 1  # every database takes it as a LIMIT

_EVENT = "INSERT INTO ace_events (version, kind, body, token, made) VALUES (:version, :kind, :body, :token, :made)"
_SINCE = "SELECT version, kind, body, made FROM ace_events WHERE version > :known ORDER BY version"
_TELL = (
    "INSERT INTO ace_tells (id, token, source, record, made, claimed, taken) "
    "VALUES (:id, :token, :source, :record, :made, 0, 0)"
)
_OPEN = (
    "SELECT id, record, source, made FROM ace_tells "
    "WHERE taken = 0 AND claimed <= :before AND substr(record, 1, :length) = :start ORDER BY id LIMIT :limit"
)


class Appended(NamedTuple):
    """The result of an append.

    Args:
        version: the store's version after it.
        rejected: the operations that were left out, each with its reason.
    """

    version: int
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class StoredEvent:
    """One event in the history of a store.

    Args:
        version: its number, from 1.
        kind: "delta", "rollback", or "forget" (the history before it was rewritten).
        delta: its operations; empty for the other kinds.
        rejected: the operations that were left out when it was appended.
        rollback: the version that a "rollback" went back to; None for the other kinds.
        made: when it was appended: UTC, ISO 8601.
    """

    version: int
    kind: str
    delta: Delta
    rejected: tuple[Rejected, ...]
    rollback: int | None
    made: str

    @property
    def event(self) -> Event:
        """The event as `dspy_ace.playbook` replays it."""
        return self.delta if self.rollback is None else Rollback(self.rollback)


@dataclass(frozen=True)
class Tell:
    """A told record that nobody has learned from yet.

    Args:
        id: its number, from 1, in the order of telling.
        record: the data as told, after a way through JSON (tuples are lists).
        source: who or what it comes from: bullets learned from it carry this name, and `forget` takes it.
        made: when it was told: UTC, ISO 8601.
    """

    id: int
    record: dict[str, Any]
    source: str
    made: str


def create(run: Run, seed: Playbook) -> None:
    """Make the tables of a new store."""
    for statement in SCHEMA:
        run(statement)
    run(
        "INSERT INTO ace_head (id, format, layout, version, told, unclean) VALUES (1, :format, :layout, 0, 0, 0)",
        format=FORMAT, layout=LAYOUT,
    )  # fmt: skip
    run(_EVENT, version=0, kind="seed", body=json.dumps({"playbook": seed.to_json()}), token=None, made=_now())


def check_layout(run: Run, name: str) -> None:
    """Raise StoreError for tables that this version cannot read."""
    found = run("SELECT format, layout FROM ace_head WHERE id = 1")
    if not found or found[0][0] != FORMAT:
        raise StoreError(f"{name} is no playbook store; give another path.")
    if not isinstance(found[0][1], int) or found[0][1] > LAYOUT:
        raise StoreError(
            f"{name} is a store of version {found[0][1]}; this dspy_ace reads up to {LAYOUT}. Upgrade dspy_ace."
        )


def head(run: Run, lock: bool = False) -> tuple[int, int]:
    """Return the version and the number of told records. `lock`: nobody else writes until the transaction ends."""
    if lock:  # a transaction of SQLite that writes has locked all of it; on a server this row is the lock
        run("UPDATE ace_head SET version = version WHERE id = 1")
    ((version, told),) = run("SELECT version, told FROM ace_head WHERE id = 1")
    return int(version), int(told)


def unclean(run: Run) -> int:
    """Return the version of the latest "forget" whose deleted bytes may still be in the files; 0 if there is none."""
    return int(run("SELECT unclean FROM ace_head WHERE id = 1")[0][0])


def mark_clean(run: Run, version: int) -> None:
    """Note that these bytes are erased, unless something else was forgotten meanwhile."""
    run("UPDATE ace_head SET unclean = 0 WHERE id = 1 AND unclean = :version", version=version)


def since(run: Run, version: int) -> list[StoredEvent]:
    """Return the events after a version. Raises StoreError for a damaged one."""
    return [_event(*row) for row in run(_SINCE, known=version)]


def everything(run: Run) -> tuple[Playbook, list[StoredEvent]]:
    """Return the seed and all events, in one read. Raises StoreError if one is damaged or missing."""
    rows = run(_SINCE, known=-1)
    try:
        seed = Playbook.from_json(json.loads(rows[0][2])["playbook"])
    except (IndexError, ValueError, KeyError, TypeError, PlaybookError) as error:
        raise _damaged(0, error) from error
    if [row[0] for row in rows] != list(range(len(rows))):
        raise _damaged(len(rows), "events are missing")
    return seed, [_event(*row) for row in rows[1:]]


def write(run: Run, version: int, kind: str, body: Mapping[str, Any], key: str | None = None) -> None:
    """Add an event; `version` is one more than the latest. After a "forget" the files have to be erased."""
    run(_EVENT, version=version, kind=kind, body=json.dumps(body), token=_token(key), made=_now())
    run("UPDATE ace_head SET version = :version WHERE id = 1", version=version)
    if kind == "forget":
        run("UPDATE ace_head SET unclean = :version WHERE id = 1", version=version)


def write_over(run: Run, version: int, body: Mapping[str, Any]) -> None:
    """Replace the body of an event (0: the seed)."""
    run("UPDATE ace_events SET body = :body WHERE version = :version", version=version, body=json.dumps(body))


def delta_body(delta: Delta, rejected: Sequence[Rejected] = ()) -> dict[str, Any]:
    """Return the body of a "delta" event."""
    return {"delta": delta.to_json(), "rejected": [each.to_json() for each in rejected]}


def appended_under(run: Run, key: str) -> Appended | None:
    """Return the result of the append that was made under `key`; None if there was none."""
    rows = run("SELECT version, body FROM ace_events WHERE token = :token", token=_token(key))
    return Appended(int(rows[0][0]), _rejected(json.loads(rows[0][1]).get("rejected", ()))) if rows else None


def refusal(run: Run, base: int, ids: Sequence[int]) -> str:
    """Return the reason why a delta for `base`, learned from these told records, may not be appended; else `""`."""
    if run("SELECT version FROM ace_events WHERE kind = 'forget' AND version > :base", base=base):
        return f"something was forgotten since version {base}, and this was learned before: learn it again"
    for number in ids:
        if not run("SELECT id FROM ace_tells WHERE id = :id AND taken = 0", id=number):
            return f"the told record {number} was learned from or forgotten meanwhile"
    return ""


def told_under(run: Run, key: str | None) -> int | None:
    """Return the number of the record that was told under `key`; None if there was none."""
    rows = run("SELECT id FROM ace_tells WHERE token = :token", token=_token(key))
    return int(rows[0][0]) if rows else None


def tell(run: Run, number: int, record: str, source: str | None, key: str | None) -> int:
    """Add a record (JSON text) under this number, or find the one that was told under `key`. Return its number."""
    if (before := told_under(run, key)) is not None:
        return before
    named = json.dumps(f"tell-{number}" if source is None else source)
    run("UPDATE ace_head SET told = :told WHERE id = 1", told=number)
    run(_TELL, id=number, token=_token(key), source=named, record=record, made=_now())
    return number


def open_tells(
    run: Run, limit: int | None = None, kind: str | None = None, claimed_before: float = 1e300
) -> tuple[Tell, ...]:
    """Return records that are not taken, oldest first.

    Args:
        run: runs a statement.
        limit: at most so many.
        kind: only records that begin with the entry `"format": kind`.
        claimed_before: only records that are not claimed beyond that time (seconds since 1970).
    """
    start = "" if kind is None else json.dumps({"format": kind})[:-1]
    rows = run(_OPEN, before=claimed_before, start=start, length=len(start), limit=min(limit or NO_LIMIT, NO_LIMIT))
    return tuple(Tell(int(number), _record(text), json.loads(name), made) for number, text, name, made in rows)


def _record(text: str) -> dict[str, Any]:
    """Read a told record. One that is damaged, or nested too deep, must stop nobody, and can still be forgotten."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    return record if isinstance(record, dict) else {"unreadable": text}


def claim(run: Run, ids: Iterable[int], until: float) -> None:
    """Give these records to nobody else before `until` (seconds since 1970)."""
    for number in ids:
        run("UPDATE ace_tells SET claimed = :until WHERE id = :id", until=until, id=number)


def take(run: Run, ids: Iterable[int]) -> None:
    """Delete records. Of one told under a key, id and key stay, so that it is not told twice."""
    for number in ids:
        run("DELETE FROM ace_tells WHERE id = :id AND token IS NULL", id=number)
        run("UPDATE ace_tells SET taken = 1, source = NULL, record = NULL WHERE id = :id", id=number)


def delete_tell(run: Run, number: int) -> None:
    """Delete a record without a trace."""
    run("DELETE FROM ace_tells WHERE id = :id", id=number)


def _event(version: int, kind: str, body: str, made: str) -> StoredEvent:
    try:
        data = json.loads(body)
        delta, back = Delta.from_json(data.get("delta", [])), data.get("to")
        return StoredEvent(int(version), kind, delta, _rejected(data.get("rejected", ())), back, made)
    except (ValueError, KeyError, AttributeError, TypeError, DeltaError) as error:
        raise _damaged(version, error) from error


def _rejected(data: Any) -> tuple[Rejected, ...]:
    return tuple(map(Rejected.from_json, data))


def _damaged(version: int, error: object) -> StoreError:
    return StoreError(f"Event {version} of the store is damaged: {error}. Take the store from a backup.")


def _token(key: str | None) -> str | None:
    """Return a key as it is kept: a hash, since a key may hold a name."""
    return None if key is None else hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
