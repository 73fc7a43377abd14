"""The rows of a store: how events and told records stand in the tables, and the statements that read and write them.

Every function takes a transaction's session. Texts are JSON in ASCII, which any database keeps as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

from ..errors import DeltaError, PlaybookError, SettingsError, StoreError
from ..playbook import Delta, Event, Playbook, Rejected, Rollback, brief, operation_from_json, operation_to_json
from .sql import SCHEMA, Session

FORMAT = "dspy_ace.store"
LAYOUT = 1
ALL = 2**31 - 1  # a LIMIT that is none

_INSERT = "INSERT INTO ace_events (version, kind, body, token, made) VALUES (:version, :kind, :body, :token, :made)"
_TELL = (
    "INSERT INTO ace_tells (id, token, source, record, made, claimed, taken) "
    "VALUES (:id, :token, :source, :record, :made, 0, 0)"
)
_SINCE = "SELECT version, kind, body, made FROM ace_events WHERE version > :known ORDER BY version"
_OPEN = "SELECT id, record, source, made FROM ace_tells WHERE taken = 0 AND claimed <= :before ORDER BY id LIMIT :limit"


class Appended(NamedTuple):
    """What became of a delta: the version after it, and the operations left out, each with its reason."""

    version: int
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class StoredEvent:
    """One event of a store.

    Args:
        version: its number, from 1.
        kind: "delta", "rollback" (`rollback` is the version gone back to) or "forget" (the history was rewritten).
        delta: its operations; empty for the other kinds.
        rejected: what was left out when it was appended.
        rollback: see `kind`.
        made: when, in UTC, ISO 8601.
    """

    version: int
    kind: str
    delta: Delta
    rejected: tuple[Rejected, ...]
    rollback: int | None
    made: str

    @property
    def event(self) -> Event:
        """What `fold` and `forget` take."""
        return self.delta if self.rollback is None else Rollback(self.rollback)


@dataclass(frozen=True)
class Tell:
    """A record that was told and not learned from yet.

    Args:
        id: its number, from 1, in the order of telling.
        record: as told, after a way through JSON.
        source: who or what it comes from: the name that bullets learned from it carry, and that `forget` takes.
        made: when it was told, in UTC, ISO 8601.
    """

    id: int
    record: dict[str, Any]
    source: str
    made: str


def create(session: Session, seed: Playbook) -> None:
    """Make the tables of a new store."""
    for statement in SCHEMA:
        session.run(statement)
    session.run(
        "INSERT INTO ace_head (id, format, layout, version, told, unclean) VALUES (1, :format, :layout, 0, 0, 0)",
        {"format": FORMAT, "layout": LAYOUT},
    )
    session.run(_INSERT, _row(0, "seed", {"playbook": seed.to_json()}, None))


def check_layout(session: Session, name: str) -> None:
    """Raises StoreError for what is no store that this version reads."""
    found = session.rows("SELECT format, layout FROM ace_head WHERE id = 1")
    if not found or found[0][0] != FORMAT:
        raise StoreError(f"{name} is no playbook store; give another path.")
    if not isinstance(found[0][1], int) or found[0][1] > LAYOUT:
        raise StoreError(
            f"{name} is a store of version {found[0][1]}; this dspy_ace reads up to {LAYOUT}. Upgrade dspy_ace."
        )


def head(session: Session) -> tuple[int, int]:
    """The version, and how many records were told."""
    ((version, told),) = session.rows("SELECT version, told FROM ace_head WHERE id = 1")
    return int(version), int(told)


def locked(session: Session) -> tuple[int, int]:
    """`head`, after its row was locked: until the transaction ends nobody else writes, in any database."""
    session.run("UPDATE ace_head SET version = version WHERE id = 1")
    return head(session)


def write(session: Session, version: int, kind: str, body: Mapping[str, Any], key: str | None = None) -> None:
    """Add an event; `version` is one more than the latest."""
    session.run(_INSERT, _row(version, kind, body, key))
    session.run("UPDATE ace_head SET version = :version WHERE id = 1", {"version": version})


def mark_unclean(session: Session, version: int) -> None:
    """Note that the files may still hold bytes of what the forgetting of this version deleted."""
    session.run("UPDATE ace_head SET unclean = :version WHERE id = 1", {"version": version})


def unclean(session: Session) -> int:
    """The version whose deleted bytes are still to be erased; 0: none."""
    return int(session.rows("SELECT unclean FROM ace_head WHERE id = 1")[0][0])


def mark_clean(session: Session, version: int) -> None:
    """Note that they are erased, unless something else was forgotten meanwhile."""
    session.run("UPDATE ace_head SET unclean = 0 WHERE id = 1 AND unclean = :version", {"version": version})


def appended_under(session: Session, key: str) -> Appended | None:
    """What became of the delta that was appended under `key`; None if none was."""
    rows = session.rows("SELECT version, body FROM ace_events WHERE token = :token", token=_token(key))
    return Appended(int(rows[0][0]), _rejected(json.loads(rows[0][1]).get("rejected", ()))) if rows else None


def body_of(delta: Delta, rejected: Sequence[Rejected]) -> dict[str, Any]:
    """How a delta and what was left out of it stand in an event."""
    left = [{"operation": r.operation and operation_to_json(r.operation), "reason": r.reason} for r in rejected]
    return {"delta": delta.to_json(), "rejected": left}


def tell(session: Session, told: int, record: str, source: str | None, key: str | None) -> int:
    """Add a record (JSON text) as number `told` + 1, or find the one that was told under `key`; its id."""
    token = None if key is None else _token(key)
    if token and (rows := session.rows("SELECT id FROM ace_tells WHERE token = :token", token=token)):
        return int(rows[0][0])
    number = told + 1
    named = json.dumps(f"tell-{number}" if source is None else source)
    session.run("UPDATE ace_head SET told = :told WHERE id = 1", {"told": number})
    session.run(_TELL, {"id": number, "token": token, "source": named, "record": record, "made": _now()})
    return number


def open_tells(session: Session, limit: int | None = None, claimed_before: float = 1e300) -> tuple[Tell, ...]:
    """What is not taken, nor claimed beyond that time (seconds since 1970), oldest first."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise SettingsError(f"limit is a number of records, 1 or more; got {limit!r}.")
    rows = session.rows(_OPEN, before=claimed_before, limit=min(limit or ALL, ALL))
    return tuple(Tell(int(number), json.loads(text), json.loads(name), made) for number, text, name, made in rows)


def claim(session: Session, tells: Iterable[Tell], until: float) -> None:
    """Nobody else is given these before `until` (seconds since 1970)."""
    if listed := [{"until": until, "id": told.id} for told in tells]:
        session.run("UPDATE ace_tells SET claimed = :until WHERE id = :id", *listed)


def take(session: Session, ids: Iterable[int]) -> None:
    """Delete records; of one told under a key, id and key stay, so that it is not told twice."""
    if listed := [{"id": number} for number in ids]:
        session.run("DELETE FROM ace_tells WHERE id = :id AND token IS NULL", *listed)
        session.run("UPDATE ace_tells SET taken = 1, source = NULL, record = NULL WHERE id = :id", *listed)


def delete_tells(session: Session, ids: Iterable[int]) -> None:
    """Delete records without a trace."""
    if listed := [{"id": number} for number in ids]:
        session.run("DELETE FROM ace_tells WHERE id = :id", *listed)


def refusal(session: Session, base: int, ids: Sequence[int]) -> str:
    """Why nothing of a delta may be appended; `""` if it may."""
    forgotten = "SELECT COUNT(*) FROM ace_events WHERE kind = 'forget' AND version > :base"
    if session.rows(forgotten, base=base)[0][0]:
        return f"something was forgotten since version {base}, and this was learned before: learn it again"
    for number in ids:
        if not session.rows("SELECT id FROM ace_tells WHERE id = :id AND taken = 0", id=number):
            return f"the told record {number} was learned from or forgotten meanwhile"
    return ""


def since(session: Session, version: int) -> list[StoredEvent]:
    """The events after a version."""
    return [_event(*row) for row in session.rows(_SINCE, known=version)]


def everything(session: Session) -> tuple[Playbook, list[StoredEvent]]:
    """The seed and all events, in one read."""
    rows = session.rows(_SINCE, known=-1)
    try:
        seed = Playbook.from_json(json.loads(rows[0][2])["playbook"])
    except (IndexError, ValueError, KeyError, TypeError, PlaybookError) as error:
        raise damaged(0, error) from error
    if [row[0] for row in rows] != list(range(len(rows))):
        raise damaged(len(rows), "events are missing")
    return seed, [_event(*row) for row in rows[1:]]


def write_over(session: Session, seed: Playbook, events: Iterable[tuple[int, Delta, Sequence[Rejected]]]) -> None:
    """Put another seed, and other deltas and rejections, in the place of those of these versions."""
    bodies = [(0, {"playbook": seed.to_json()}), *((number, body_of(delta, left)) for number, delta, left in events)]
    session.run(
        "UPDATE ace_events SET body = :body WHERE version = :version",
        *({"version": number, "body": json.dumps(body)} for number, body in bodies),
    )


def damaged(version: int, error: object) -> StoreError:
    """The error for an event that cannot be read."""
    return StoreError(f"Event {version} of the store is damaged: {error}. Take the store from a backup.")


def as_ids(ids: Iterable[int], told: int) -> list[int]:
    """Ids of told records, in order. Raises SettingsError for what cannot be one."""
    listed = list(ids)
    for number in listed:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= told:
            raise SettingsError(f"taken holds ids of told records, from 1 to {told}; got {number!r}.")
    return sorted(set(listed))


def _event(version: int, kind: str, body: str, made: str) -> StoredEvent:
    try:
        data = json.loads(body)
        delta, back = Delta.from_json(data.get("delta", [])), data.get("to")
        return StoredEvent(int(version), kind, delta, _rejected(data.get("rejected", ())), back, made)
    except (ValueError, KeyError, AttributeError, TypeError, DeltaError) as error:
        raise damaged(version, error) from error


def _rejected(data: Any) -> tuple[Rejected, ...]:
    return tuple(
        Rejected(item["operation"] and operation_from_json(item["operation"]), item["reason"]) for item in data
    )


def _row(version: int, kind: str, body: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    token = None if key is None else _token(key)
    return {"version": version, "kind": kind, "body": json.dumps(body), "token": token, "made": _now()}


def _token(key: object) -> str:
    """A key as it is kept: a hash, since a key may hold a name."""
    if not isinstance(key, str):
        raise SettingsError(f"key is a text; got {brief(key)}.")
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
