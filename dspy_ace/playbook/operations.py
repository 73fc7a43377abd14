"""Operations on a playbook, deltas made of them, and the plain code that applies them (ACE §3.1, §3.2).

An operation is one class here. Besides its fields it says all that the rest of the package asks of it:

- `op`: its name in JSON. `edits`: True if it changes or removes the text of bullets.
- `ids`: the bullets it touches. `sources`: the examples it was learned from. `content`: the text it writes, or None.
- `key`: operations of one key do the same, and `united` makes one of two such.
- `on`: the same operation on other bullets. `apply_to`: carries it out and returns the id of a bullet it adds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, TypeVar, Union, get_args

from ..errors import DeltaError, PlaybookError, brief
from ..output import redact
from .playbook import DEFAULT_SECTIONS, Bullet, Playbook, clean_content, number_of, valid_text, writable
from .text import clean_section, folded, section_key, section_slug

Self = TypeVar("Self", bound="_Operation")


class _Operation:
    """The parts that all operations share."""

    op: ClassVar[str]
    edits: ClassVar[bool] = False
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __post_init__(self) -> None:
        for name in ("content", "section", "reason"):  # what is written anywhere of a bullet was one of these
            value = vars(self).get(name)
            if isinstance(value, str):
                object.__setattr__(self, name, redact(value))
        for name in ("sources", "source"):
            value = vars(self).get(name)
            if isinstance(value, str):
                object.__setattr__(self, name, writable(value))
            elif isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
                object.__setattr__(self, name, tuple(map(writable, value)))

    @property
    def label(self) -> str:
        """The name of the operation in messages: `update str-00042`."""
        ids = getattr(self, "ids", ())
        named = ", ".join(map(str, ids)) if isinstance(ids, (list, tuple)) else str(ids)
        return f"{self.op} {named:.100}".rstrip()

    @property
    def texts(self) -> tuple[str, ...]:
        """The words in it: content, section and reason."""
        found = (getattr(self, name, None) for name in ("content", "section", "reason"))
        return tuple(text for text in found if text)

    def united(self: Self, other: Any) -> Self:
        """Return this operation with the sources of both. `other` has the same key."""
        mine: Any = self
        return self.taught_by((*mine.sources, *other.sources))

    def taught_by(self: Self, sources: Iterable[str]) -> Self:
        """Return this operation with other sources, if it keeps any."""
        return replace(self, sources=tuple(dict.fromkeys(sources))) if "sources" in vars(self) else self

    def renamed(self, names: Mapping[str, str]) -> Operation:
        """Return this operation with ids replaced: old id → new id; others stay."""
        mine: Any = self
        moved: Operation = mine.on(tuple(names.get(name, name) for name in mine.ids)) if names else mine
        return moved

    def to_json(self) -> dict[str, Any]:
        """Return the operation as plain JSON data: `op` and the fields that are not at their default.

        A field that JSON cannot hold is written as its `repr`: such an operation was rejected, and is kept for readers.
        """
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        changed = {name: _plain(v) for name, (v, usual) in values.items() if type(v) is not type(usual) or v != usual}
        return {"op": self.op, **changed}

    def check(self) -> None:
        """Raise DeltaError unless each field has its type: custom roles make operations, too."""
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None and item.default is None:
                continue
            try:
                if item.name in ("helpful", "harmful"):
                    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                        raise PlaybookError(f"{item.name} counts votes, 0 or more; got {brief(value)}")
                elif item.name in ("ids", "sources"):
                    if not isinstance(value, (list, tuple)):
                        raise PlaybookError(f"{item.name} is a tuple of names; got {brief(value)}")
                    for name in value:
                        valid_text(name, f"each of {item.name}")
                else:
                    valid_text(value, item.name)
            except PlaybookError as error:
                raise DeltaError(f"{self.label}: {error}") from error


class _OfOne(_Operation):
    """An operation on one bullet."""

    id: str

    @property
    def ids(self) -> tuple[str, ...]:
        return (self.id,)

    def on(self: Self, ids: tuple[str, ...]) -> Self:
        return replace(self, id=ids[0])


@dataclass(frozen=True)
class Add(_Operation):
    """A new bullet at the end. `apply` gives it the next id, and the section the spelling already in use."""

    section: str
    content: str
    predictor: str | None = None
    sources: tuple[str, ...] = ()
    op: ClassVar[str] = "add"
    ids: ClassVar[tuple[str, ...]] = ()

    @property
    def key(self) -> Hashable:
        return self.op, folded(self.content), self.predictor

    def on(self, ids: tuple[str, ...]) -> Add:  # noqa: ARG002 - it touches none
        return self

    def apply_to(self, working: Working) -> str:
        section = working.section(self.section)
        new = Bullet(working.next_id(section), section, self.content, 0, 0, self.predictor, tuple(self.sources))
        working.put(new)
        return new.id


@dataclass(frozen=True)
class Update(_OfOne):
    """New content (and section, if given) for a bullet. Its place and counters stay; sources are united."""

    id: str
    content: str
    section: str | None = None
    sources: tuple[str, ...] = ()
    op: ClassVar[str] = "update"
    edits: ClassVar[bool] = True

    @property
    def key(self) -> Hashable:
        return self.op, self.id, folded(self.content), _section_key(self.section)

    def apply_to(self, working: Working) -> None:
        bullet = working.known(self.id)
        section = bullet.section if self.section is None else working.section(self.section)
        sources = (*bullet.sources, *self.sources)
        working.put(replace(bullet, content=self.content, section=section, sources=sources))


@dataclass(frozen=True)
class Merge(_Operation):
    """Two or more bullets become one. The oldest id and place stay, counters add up, sources are united."""

    ids: tuple[str, ...]
    content: str
    section: str | None = None
    sources: tuple[str, ...] = ()
    op: ClassVar[str] = "merge"
    edits: ClassVar[bool] = True

    @property
    def key(self) -> Hashable:
        return self.op, frozenset(self.ids), folded(self.content), _section_key(self.section)

    def on(self, ids: tuple[str, ...]) -> Merge | Update:
        if len(ids) == 1 and len(self.ids) > 1:
            return Update(ids[0], self.content, self.section, self.sources)
        return replace(self, ids=ids)

    def apply_to(self, working: Working) -> None:
        found = {bullet.id: bullet for bullet in map(working.known, self.ids)}
        if len(found) < 2 or len(found) < len(self.ids):
            raise DeltaError(f"a merge needs two or more different bullets; got {brief(list(self.ids))}")
        bullets = [found[name] for name in by_age(found)]
        first = bullets[0]
        survivor = replace(
            first,
            content=clean_content(self.content),
            section=first.section if self.section is None else working.section(self.section),
            helpful=sum(bullet.helpful for bullet in bullets),
            harmful=sum(bullet.harmful for bullet in bullets),
            predictor=first.predictor if len({bullet.predictor for bullet in bullets}) == 1 else None,
            sources=tuple(source for bullet in bullets for source in bullet.sources) + tuple(self.sources),
        )
        for bullet in bullets[1:]:
            working.remove(bullet)
        working.put(survivor)


@dataclass(frozen=True)
class Delete(_OfOne):
    """A bullet goes; its id is never given again. `reason` is kept in the journal."""

    id: str
    reason: str = ""
    op: ClassVar[str] = "delete"
    edits: ClassVar[bool] = True
    content: ClassVar[None] = None
    sources: ClassVar[tuple[str, ...]] = ()

    @property
    def key(self) -> Hashable:
        return self.op, self.id

    def united(self, other: Delete) -> Delete:
        reasons = [*self.reason.split("; "), *other.reason.split("; ")]
        return replace(self, reason="; ".join(dict.fromkeys(filter(None, reasons))))

    def apply_to(self, working: Working) -> None:
        working.remove(working.known(self.id))


@dataclass(frozen=True)
class Tag(_OfOne):
    """Votes on a bullet: how often it helped and misled. `source` is the example that the votes come from."""

    id: str
    helpful: int = 0
    harmful: int = 0
    source: str | None = None
    op: ClassVar[str] = "tag"
    content: ClassVar[None] = None

    @property
    def sources(self) -> tuple[str, ...]:
        return () if self.source is None else (self.source,)

    @property
    def key(self) -> Hashable:
        return self.op, self.id, self.source

    def united(self, other: Tag) -> Tag:
        return replace(self, helpful=self.helpful + other.helpful, harmful=self.harmful + other.harmful)

    def apply_to(self, working: Working) -> None:
        bullet = working.known(self.id)
        helpful, harmful = bullet.helpful + self.helpful, bullet.harmful + self.harmful
        working.put(replace(bullet, helpful=helpful, harmful=harmful))


Operation = Union[Add, Update, Merge, Delete, Tag]
_KINDS: dict[str, Any] = {kind.op: kind for kind in get_args(Operation)}
_DEFAULT_SECTIONS = {section_key(name): name for name in DEFAULT_SECTIONS}


@dataclass(frozen=True)
class Delta:
    """Operations in order; `a + b` is a, then b.

    Example:
        >>> delta = Delta((Add("TOOLS", "Call `search` first."), Tag("str-00042", helpful=1)))
        >>> Delta.from_json(delta.to_json()) == delta
        True
    """

    operations: tuple[Operation, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))

    def __len__(self) -> int:
        return len(self.operations)

    def __add__(self, other: Delta) -> Delta:
        return Delta(self.operations + other.operations)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the operations as plain JSON data, fields at their default left out."""
        return [operation.to_json() for operation in self.operations]

    @classmethod
    def from_json(cls, data: Any) -> Delta:
        """Return the delta that `to_json` wrote. Raises DeltaError for anything else."""
        if not isinstance(data, (list, tuple)):
            raise DeltaError(f"Expected a list of operations; got {brief(data)}.")
        return cls(tuple(operation_from_json(item) for item in data))


@dataclass(frozen=True)
class Rejected:
    """An operation (or a reply) that was left out, and why. `operation` is None if there was none to keep."""

    operation: Operation | None
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", redact(self.reason))

    @classmethod
    def of(cls, operation: Any, reason: object) -> Rejected:
        """Make the rejection of anything that was given as an operation."""
        if isinstance(operation, _Operation):
            return cls(operation, str(reason))  # type: ignore[arg-type]  # each operation is in the Union
        return cls(None, f"{reason}: {brief(operation)}")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data: `{"operation": {…} or None, "reason": "…"}`."""
        return {"operation": None if self.operation is None else self.operation.to_json(), "reason": self.reason}

    @classmethod
    def from_json(cls, data: Any) -> Rejected:
        """Return the rejection that `to_json` wrote. Raises DeltaError, KeyError or TypeError for anything else."""
        return cls(None if data["operation"] is None else operation_from_json(data["operation"]), data["reason"])


def operation_from_json(data: Any) -> Operation:
    """Return the operation that its `to_json` wrote. Raises DeltaError for anything else."""
    try:
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        operation: Operation = _KINDS[str(values.pop("op"))](**values)
    except (AttributeError, KeyError, TypeError) as error:
        raise DeltaError(
            f"Expected an operation like {{'op': 'add', 'section': …, 'content': …}}; got {brief(data)}."
        ) from error
    return operation


def apply(playbook: Playbook, delta: Delta) -> Playbook:
    """Return `playbook` with the operations of `delta` carried out in order. Nothing given is changed.

    Raises:
        DeltaError: an operation does not fit the playbook as the operations before it left it; it is named.

    Example:
        >>> [bullet.id for bullet in apply(Playbook(), Delta((Add("OTHERS", "Name the unit."),)))]
        ['misc-00001']
    """
    if not delta.operations:
        return playbook
    working = Working(playbook)
    for operation in delta.operations:
        working.do(operation)
    return working.playbook()


def admit(
    playbook: Playbook, operations: Iterable[Operation], *, max_chars: int | None = None
) -> tuple[Delta, tuple[Rejected, ...]]:
    """Sort operations of any origin into those that can be applied, in order, and those that cannot.

    Args:
        playbook: the playbook they are meant for.
        operations: any values; one that is no operation is rejected.
        max_chars: the longest content taken, in characters; None: any.

    Returns:
        (a delta that `apply` takes, the rejected ones, each with its reason).
    """
    working = Working(playbook)
    good: list[Operation] = []
    rejected: list[Rejected] = []
    for operation in operations:
        try:
            working.do(operation, max_chars)
            good.append(operation)
        except DeltaError as error:
            rejected.append(Rejected.of(operation, error))
    return Delta(tuple(good)), tuple(rejected)


class Working:
    """A playbook while operations are carried out on it. An operation that raises has changed nothing."""

    def __init__(self, playbook: Playbook) -> None:
        self.sections = dict.fromkeys(playbook.sections)
        self.high_water = playbook.high_water
        self._bullets = playbook.index()
        self._spelled = {section_key(name): name for name in reversed(playbook.sections)}

    def playbook(self) -> Playbook:
        """Return the playbook as it is now."""
        return Playbook.unchecked(dict(self._bullets), self.sections, self.high_water)

    def do(self, operation: Operation, max_chars: int | None = None) -> str | None:
        """Carry out an operation and return the id of the bullet that it adds, if it does.

        Raises:
            DeltaError: it is no operation or does not fit; the message names it.
        """
        check(operation)
        try:
            size = len(operation.content or "")
            if max_chars is not None and size > max_chars:
                raise DeltaError(f"the content has {size} characters; at most {max_chars} are taken")
            return operation.apply_to(self)
        except (DeltaError, PlaybookError) as error:
            raise DeltaError(f"{operation.label}: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name.casefold() in self._bullets

    def known(self, name: str) -> Bullet:
        """Return the bullet of exactly that id. Raises DeltaError if there is none."""
        bullet = self._bullets.get(name.casefold())
        if bullet is None or bullet.id != name:
            raise DeltaError(f"no bullet {name!r} in the playbook")
        return bullet

    def section(self, name: str) -> str:
        """Return the spelling of a section that the playbook or the paper uses; a new one is itself."""
        cleaned = clean_section(name)
        key = section_key(cleaned)
        return self._spelled.get(key) or _DEFAULT_SECTIONS.get(key, cleaned)

    def next_id(self, section: str) -> str:
        """Return the id of the next bullet of a section."""
        return f"{section_slug(section)}-{self.high_water + 1:05d}"

    def put(self, bullet: Bullet) -> None:
        """Add a bullet, or replace the one of its id."""
        self._bullets[bullet.id.casefold()] = bullet
        self.high_water = max(self.high_water, bullet.number)
        if bullet.section not in self.sections:
            self.sections[bullet.section] = None
            self._spelled.setdefault(section_key(bullet.section), bullet.section)

    def remove(self, bullet: Bullet) -> None:
        """Take a bullet out."""
        del self._bullets[bullet.id.casefold()]


def check(operation: Any) -> None:
    """Raise DeltaError unless this is an operation with fields of the right types."""
    if not isinstance(operation, _Operation):
        *names, last = (kind.__name__ for kind in _KINDS.values())
        raise DeltaError(f"expected {', '.join(names)} or {last}; got {type(operation).__name__}")
    operation.check()


def by_age(ids: Iterable[str]) -> list[str]:
    """Return the ids sorted, the oldest bullet first."""
    return sorted(ids, key=lambda name: (number_of(name), name))


def _section_key(section: str | None) -> str | None:
    return None if section is None else section_key(clean_section(section))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)
