"""Deltas: small operations on a playbook, and the plain code that merges them (ACE §3.1, §3.2).

No LM is asked to merge. `apply` is pure and strict, `admit` sorts the operations that fit from those
that do not, `combine` makes one delta of several that were made from one snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Union

from .errors import DeltaError, PlaybookError
from .playbook import Bullet, Playbook, clean_content
from .text import clean_section, fold, section_key, section_slug


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
_KINDS: dict[str, type[Any]] = {kind.op: kind for kind in (Add, Update, Merge, Delete, Tag)}


@dataclass(frozen=True)
class Delta:
    """Operations in order. `a + b` is a then b."""

    operations: tuple[Operation, ...] = ()

    def __len__(self) -> int:
        return len(self.operations)

    def __add__(self, other: Delta) -> Delta:
        return Delta(self.operations + other.operations)

    def to_json(self) -> list[dict[str, Any]]:
        """The operations as plain JSON data, fields at their default left out."""
        return [operation_to_json(operation) for operation in self.operations]

    @classmethod
    def from_json(cls, data: Iterable[dict[str, Any]]) -> Delta:
        """The delta that `to_json` wrote. Raises DeltaError for anything else."""
        return cls(tuple(operation_from_json(item) for item in data))


@dataclass(frozen=True)
class Rejected:
    """An operation (or reply) that was left out, alone, and why. `operation` is None when there was none to keep."""

    operation: Operation | None
    reason: str


def operation_to_json(operation: Operation) -> dict[str, Any]:
    """An operation as plain JSON data: `op` and the fields that are not at their default."""
    fields = {name: value for name, value in asdict(operation).items() if value not in (None, (), "", 0)}
    return {
        "op": operation.op,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()},
    }


def operation_from_json(data: Any) -> Operation:
    """The operation that `operation_to_json` wrote. Raises DeltaError for anything else."""
    try:
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        operation: Operation = _KINDS[fields.pop("op")](**fields)
    except (AttributeError, KeyError, TypeError) as error:
        raise DeltaError(
            f"Expected an operation like {{'op': 'add', 'section': …, 'content': …}}; got {data!r}."
        ) from error
    return operation


def apply(playbook: Playbook, delta: Delta) -> Playbook:
    """`playbook` with the operations of `delta` carried out in order. Pure: nothing given is changed.

    Raises:
        DeltaError: an operation does not fit what stands before it; it names the operation.
    """
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
        (a delta that `apply` takes, the rest). Total: any sequence of operations is sorted.
    """
    working = _Working(playbook)
    good: list[Operation] = []
    rejected: list[Rejected] = []
    for operation in operations:
        try:
            content = getattr(operation, "content", None)
            if max_chars is not None and isinstance(content, str) and len(content) > max_chars:
                raise DeltaError(f"the content has {len(content)} characters; at most {max_chars} are taken")
            working.do(operation)
            good.append(operation)
        except DeltaError as error:
            rejected.append(Rejected(operation, str(error)))
    return Delta(tuple(good)), tuple(rejected)


def combine(deltas: Sequence[Delta]) -> tuple[Delta, tuple[Rejected, ...]]:
    """One delta of several that were made from one snapshot, in the order given (that of the examples).

    Tags come first and add up (per source); then edits; then adds, in order. The same lesson or the same edit
    written twice collapses to one, its sources united. Of two different edits of one bullet the first
    stands, the second is reported. If each delta fits the snapshot, so does the result.

    Returns:
        (the delta, the operations left out with their reasons).
    """
    tags: dict[tuple[str, str | None], Tag] = {}
    adds: dict[tuple[str, str | None], Add] = {}
    edits: list[Update | Merge | Delete] = []
    editor: dict[str, int] = {}
    rejected: list[Rejected] = []
    for operation in (operation for delta in deltas for operation in delta.operations):
        if isinstance(operation, Tag):
            tag = tags.get((operation.id, operation.source), Tag(operation.id, source=operation.source))
            tags[operation.id, operation.source] = replace(
                tag, helpful=tag.helpful + operation.helpful, harmful=tag.harmful + operation.harmful
            )
        elif isinstance(operation, Add):
            add = adds.get((fold(operation.content), operation.predictor), operation)
            adds[fold(operation.content), operation.predictor] = _united(add, operation)
        else:
            touched = operation.ids if isinstance(operation, Merge) else (operation.id,)
            places = sorted({editor[name] for name in touched if name in editor})
            if not places:
                editor.update(dict.fromkeys(touched, len(edits)))
                edits.append(operation)
            elif len(places) == 1 and _same_edit(edits[places[0]], operation):
                edits[places[0]] = _united(edits[places[0]], operation)
            else:
                first = edits[places[0]]
                rejected.append(
                    Rejected(operation, f"{', '.join(touched)}: already edited here by a {first.op}")
                )
    return Delta((*tags.values(), *edits, *adds.values())), tuple(rejected)


def _united(first: Any, second: Any) -> Any:
    """`first` with the sources of both."""
    if isinstance(first, Delete):
        return first
    return replace(first, sources=tuple(dict.fromkeys([*first.sources, *second.sources])))


def _same_edit(first: Update | Merge | Delete, second: Update | Merge | Delete) -> bool:
    """Whether two edits say the same: two groups that saw one snapshot often write the same merge."""
    if isinstance(first, Merge) and isinstance(second, Merge):
        return set(first.ids) == set(second.ids)
    if isinstance(first, Update) and isinstance(second, Update):
        return fold(first.content) == fold(second.content)
    return isinstance(first, Delete) and isinstance(second, Delete)


class _Working:
    """A playbook while operations are carried out on it; an operation that raises has changed nothing."""

    def __init__(self, playbook: Playbook) -> None:
        self._bullets = {bullet.id: bullet for bullet in playbook.bullets}
        self._sections = {section_key(name): name for name in reversed(playbook.sections)}
        self._order = list(playbook.sections)
        self._slugs = {section_key(b.section): b.id[: b.id.rindex("-")] for b in reversed(playbook.bullets)}
        self._high_water = playbook.high_water

    def playbook(self) -> Playbook:
        return Playbook(tuple(self._bullets.values()), tuple(self._order), self._high_water)

    def do(self, operation: Operation) -> None:
        try:
            if isinstance(operation, Add):
                self._add(operation)
            elif isinstance(operation, Update):
                self._update(operation)
            elif isinstance(operation, Merge):
                self._merge(operation)
            elif isinstance(operation, Delete):
                del self._bullets[self._known(operation.id).id]
            elif isinstance(operation, Tag):
                self._tag(operation)
            else:
                raise DeltaError(
                    f"expected Add, Update, Merge, Delete or Tag; got {type(operation).__name__}"
                )
        except PlaybookError as error:
            raise DeltaError(f"{getattr(operation, 'op', 'operation')}: {error}") from error

    def _known(self, name: Any) -> Bullet:
        bullet = self._bullets.get(name) if isinstance(name, str) else None
        if bullet is None:
            raise DeltaError(f"no bullet {name!r} in the playbook")
        return bullet

    def _section(self, name: str) -> str:
        """The spelling the playbook already uses for `name`; a new section is remembered by the caller's bullet."""
        if not isinstance(name, str):
            raise DeltaError(f"section must be text (str); got {type(name).__name__}")
        cleaned = clean_section(name)
        return self._sections.get(section_key(cleaned), cleaned)

    def _put(self, bullet: Bullet) -> None:
        self._bullets[bullet.id] = bullet
        if self._sections.setdefault(section_key(bullet.section), bullet.section) == bullet.section:
            if bullet.section not in self._order:
                self._order.append(bullet.section)

    def _add(self, operation: Add) -> None:
        section = self._section(operation.section)
        number = self._high_water + 1
        name = f"{self._slugs.get(section_key(section), section_slug(section))}-{number:05d}"
        self._put(Bullet(name, section, operation.content, 0, 0, operation.predictor, operation.sources))
        self._high_water = number

    def _update(self, operation: Update) -> None:
        bullet = self._known(operation.id)
        section = bullet.section if operation.section is None else self._section(operation.section)
        sources = (*bullet.sources, *operation.sources)
        self._put(replace(bullet, content=operation.content, section=section, sources=sources))

    def _merge(self, operation: Merge) -> None:
        found = {bullet.id: bullet for bullet in map(self._known, operation.ids)}
        if len(found) < 2 or len(found) < len(operation.ids):
            raise DeltaError(f"a merge needs two or more different bullets; got {operation.ids!r}")
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
            sources=tuple(source for bullet in bullets for source in bullet.sources)
            + tuple(operation.sources),
        )
        for bullet in bullets[1:]:
            del self._bullets[bullet.id]
        self._put(survivor)

    def _tag(self, operation: Tag) -> None:
        bullet = self._known(operation.id)
        for count in (operation.helpful, operation.harmful):
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise DeltaError(f"a tag counts votes, 0 or more; got {count!r}")
        self._put(
            replace(
                bullet, helpful=bullet.helpful + operation.helpful, harmful=bullet.harmful + operation.harmful
            )
        )
