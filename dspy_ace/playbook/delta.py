"""Deltas: small operations on a playbook, and the plain code that merges them (ACE §3.1, §3.2).

No LM is asked to merge. `apply` is pure and strict, `admit` sorts the operations that fit from those
that do not, `combine` makes one delta of several that were made from one snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Union

from ..errors import DeltaError, PlaybookError
from .playbook import DEFAULT_SECTIONS, Bullet, Playbook, brief, clean_content, valid_text
from .text import clean_section, section_key, section_slug


@dataclass(frozen=True)
class Add:
    """A new bullet at the end; `apply` gives it the next id. Sections are the same whatever their spelling."""

    section: str
    content: str
    predictor: str | None = None
    sources: tuple[str, ...] = ()
    op: ClassVar[str] = "add"


@dataclass(frozen=True)
class Update:
    """New content (and section, if given) for a bullet, at its place; counters stay, sources are united."""

    id: str
    content: str
    section: str | None = None
    sources: tuple[str, ...] = ()
    op: ClassVar[str] = "update"


@dataclass(frozen=True)
class Merge:
    """Two or more bullets become one: the oldest id and place survive, counters add up, sources are united."""

    ids: tuple[str, ...]
    content: str
    section: str | None = None
    sources: tuple[str, ...] = ()
    op: ClassVar[str] = "merge"


@dataclass(frozen=True)
class Delete:
    """A bullet goes; its id is never given again. `reason` is kept in the journal."""

    id: str
    reason: str = ""
    op: ClassVar[str] = "delete"


@dataclass(frozen=True)
class Tag:
    """Votes on a bullet: how often it helped and misled. `source`: the example whose trajectory says so."""

    id: str
    helpful: int = 0
    harmful: int = 0
    source: str | None = None
    op: ClassVar[str] = "tag"


Operation = Union[Add, Update, Merge, Delete, Tag]
_DEFAULT_SECTIONS = {section_key(name): name for name in DEFAULT_SECTIONS}
_OPERATIONS = (Add, Update, Merge, Delete, Tag)
_KINDS: dict[str, type[Any]] = {kind.op: kind for kind in _OPERATIONS}


@dataclass(frozen=True)
class Delta:
    """Operations in order. `a + b` is a then b."""

    operations: tuple[Operation, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))

    def __len__(self) -> int:
        return len(self.operations)

    def __add__(self, other: Delta) -> Delta:
        return Delta(self.operations + other.operations)

    def to_json(self) -> list[dict[str, Any]]:
        """The operations as plain JSON data, fields at their default left out."""
        return [operation_to_json(operation) for operation in self.operations]

    @classmethod
    def from_json(cls, data: Any) -> Delta:
        """The delta that `to_json` wrote. Raises DeltaError for anything else."""
        if not isinstance(data, (list, tuple)):
            raise DeltaError(f"Expected a list of operations; got {brief(data)}.")
        return cls(tuple(operation_from_json(item) for item in data))


@dataclass(frozen=True)
class Rejected:
    """An operation (or reply) that was left out, alone, and why. `operation` is None when there was none to keep."""

    operation: Operation | None
    reason: str


def operation_to_json(operation: Operation) -> dict[str, Any]:
    """An operation as plain JSON data: `op` and the fields that are not at their default.

    A field that holds what JSON cannot is written as its `repr`: such an operation was rejected, and is kept.
    """
    values = {item.name: (getattr(operation, item.name), item.default) for item in fields(operation)}
    changed = {name: _plain(v) for name, (v, usual) in values.items() if type(v) is not type(usual) or v != usual}
    return {"op": operation.op, **changed}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)


def operation_from_json(data: Any) -> Operation:
    """The operation that `operation_to_json` wrote. Raises DeltaError for anything else."""
    try:
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        operation: Operation = _KINDS[str(values.pop("op"))](**values)
    except (AttributeError, KeyError, TypeError) as error:
        raise DeltaError(
            f"Expected an operation like {{'op': 'add', 'section': …, 'content': …}}; got {brief(data)}."
        ) from error
    return operation


def apply(playbook: Playbook, delta: Delta) -> Playbook:
    """`playbook` with the operations of `delta` carried out in order. Pure: nothing given is changed.

    Raises:
        DeltaError: an operation does not fit what stands before it; it names the operation.
    """
    if not delta.operations:
        return playbook
    working = _Working(playbook)
    for operation in delta.operations:
        working.do(operation)
    return working.playbook()


def admit(
    playbook: Playbook, operations: Iterable[Operation], *, max_chars: int | None = None
) -> tuple[Delta, tuple[Rejected, ...]]:
    """Sort the operations that can be applied, in order, from those that cannot, each with its reason.

    Args:
        playbook: the playbook they are meant for.
        operations: operations of any origin.
        max_chars: the longest content taken, in characters; None: any.

    Returns:
        (a delta that `apply` takes, the rest). Total: any sequence of operations is sorted; what is no
        operation at all is told in its reason alone.
    """
    working = _Working(playbook)
    good: list[Operation] = []
    rejected: list[Rejected] = []
    for operation in operations:
        try:
            working.do(operation, max_chars)
            good.append(operation)
        except DeltaError as error:
            rejected.append(rejected_as(operation, str(error)))
    return Delta(tuple(good)), tuple(rejected)


def rejected_as(operation: Any, reason: str) -> Rejected:
    """The rejection of an operation, or of what is none."""
    if isinstance(operation, _OPERATIONS):
        return Rejected(operation, reason)
    return Rejected(None, f"{reason}: {brief(operation)}")


def name_of(operation: Any) -> str:
    """How messages call an operation: `update str-00042`."""
    ids = getattr(operation, "ids", (getattr(operation, "id", ""),))
    named = ", ".join(map(str, ids)) if isinstance(ids, (list, tuple)) else str(ids)
    return f"{operation.op} {named:.100}".rstrip()


def check_operation(operation: Any) -> None:
    """Raise DeltaError unless this is an operation with every field of its type: custom roles make them, too."""
    if not isinstance(operation, _OPERATIONS):
        raise DeltaError(f"expected Add, Update, Merge, Delete or Tag; got {type(operation).__name__}")
    for item in fields(operation):
        value = getattr(operation, item.name)
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
            raise DeltaError(f"{name_of(operation)}: {error}") from error


class _Working:
    """A playbook while operations are carried out on it; an operation that raises has changed nothing."""

    def __init__(self, playbook: Playbook) -> None:
        self._before = playbook
        self._reads_on = True  # nothing that stood there before reads otherwise: bullets were added, counters moved
        self._bullets = playbook.index()
        self._spelled = {section_key(name): name for name in reversed(playbook.sections)}
        self._sections = dict.fromkeys(playbook.sections)
        self._high_water = playbook.high_water

    def playbook(self) -> Playbook:
        before = self._before if self._reads_on else None
        return Playbook.from_index(self._bullets, tuple(self._sections), self._high_water, before)

    def do(self, operation: Operation, max_chars: int | None = None) -> None:
        check_operation(operation)
        self._reads_on = self._reads_on and isinstance(operation, (Add, Tag))
        try:
            content = "" if isinstance(operation, (Delete, Tag)) else operation.content
            if max_chars is not None and len(content) > max_chars:
                raise DeltaError(f"the content has {len(content)} characters; at most {max_chars} are taken")
            if isinstance(operation, Add):
                self._add(operation)
            elif isinstance(operation, Update):
                self._update(operation)
            elif isinstance(operation, Merge):
                self._merge(operation)
            elif isinstance(operation, Delete):
                del self._bullets[self._known(operation.id).id.casefold()]
            else:
                self._tag(operation)
        except (DeltaError, PlaybookError) as error:
            raise DeltaError(f"{name_of(operation)}: {error}") from error

    def _known(self, name: str) -> Bullet:
        bullet = self._bullets.get(name.casefold())
        if bullet is None or bullet.id != name:
            raise DeltaError(f"no bullet {name!r} in the playbook")
        return bullet

    def _section(self, name: str) -> str:
        """The spelling already in use for `name`, by this playbook or by the paper; a new one is itself."""
        cleaned = clean_section(name)
        key = section_key(cleaned)
        return self._spelled.get(key) or _DEFAULT_SECTIONS.get(key, cleaned)

    def _put(self, bullet: Bullet) -> None:
        self._bullets[bullet.id.casefold()] = bullet
        if bullet.section not in self._sections:
            self._sections[bullet.section] = None
            self._spelled.setdefault(section_key(bullet.section), bullet.section)

    def _add(self, operation: Add) -> None:
        section = self._section(operation.section)
        number = self._high_water + 1
        name = f"{section_slug(section)}-{number:05d}"
        self._put(Bullet(name, section, operation.content, 0, 0, operation.predictor, tuple(operation.sources)))
        self._high_water = number

    def _update(self, operation: Update) -> None:
        bullet = self._known(operation.id)
        section = bullet.section if operation.section is None else self._section(operation.section)
        sources = (*bullet.sources, *operation.sources)
        self._put(replace(bullet, content=operation.content, section=section, sources=sources))

    def _merge(self, operation: Merge) -> None:
        found = {bullet.id: bullet for bullet in map(self._known, operation.ids)}
        if len(found) < 2 or len(found) < len(operation.ids):
            raise DeltaError(f"a merge needs two or more different bullets; got {brief(list(operation.ids))}")
        bullets = sorted(found.values(), key=lambda bullet: (bullet.number, bullet.id))
        oldest = bullets[0]
        scopes = {bullet.predictor for bullet in bullets}
        survivor = replace(
            oldest,
            content=clean_content(operation.content),
            section=oldest.section if operation.section is None else self._section(operation.section),
            helpful=sum(bullet.helpful for bullet in bullets),
            harmful=sum(bullet.harmful for bullet in bullets),
            predictor=oldest.predictor if len(scopes) == 1 else None,
            sources=tuple(source for bullet in bullets for source in bullet.sources) + tuple(operation.sources),
        )
        for bullet in bullets[1:]:
            del self._bullets[bullet.id.casefold()]
        self._put(survivor)

    def _tag(self, operation: Tag) -> None:
        bullet = self._known(operation.id)
        self._put(
            replace(bullet, helpful=bullet.helpful + operation.helpful, harmful=bullet.harmful + operation.harmful)
        )
