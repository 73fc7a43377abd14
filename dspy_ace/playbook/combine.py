"""Several deltas made from one snapshot become one, by plain code (ACE §3.2, parallel batch adaptation)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import DeltaError
from .delta import Add, Delete, Delta, Merge, Rejected, Tag, Update, check_operation, name_of, rejected_as
from .text import clean_section, fold, section_key


def combine(deltas: Sequence[Delta]) -> tuple[Delta, tuple[Rejected, ...]]:
    """One delta of several that were made from one snapshot, in the order given (that of the examples).

    Tags come first and add up (per source); then edits; then adds, in order. The same lesson or the same edit
    written twice collapses to one, its sources united; a merge of the same bullets in other words as well, its
    words are reported. Of two different edits of one bullet the first stands, the second is reported. If each
    delta fits the snapshot and edits bullets of the snapshot only (not those it adds), the result fits, too.

    Returns:
        (the delta, the operations left out with their reasons).
    """
    tags: dict[tuple[str, str | None], Tag] = {}
    adds: dict[tuple[str, str | None], Add] = {}
    edits = _Edits()
    rejected: list[Rejected] = []
    for operation in (operation for delta in deltas for operation in delta.operations):
        try:
            check_operation(operation)
            if isinstance(operation, Tag):
                voted = operation.id, operation.source
                tags[voted] = _summed(tags[voted], operation) if voted in tags else operation
            elif isinstance(operation, Add):
                lesson = fold(operation.content), operation.predictor
                adds[lesson] = _united(adds.get(lesson, operation), operation)
            else:
                edits.take(operation)
        except DeltaError as error:
            rejected.append(rejected_as(operation, str(error)))
    return Delta((*tags.values(), *edits.standing, *adds.values())), tuple(rejected)


class _Edits:
    """The edits of several deltas: one a bullet."""

    def __init__(self) -> None:
        self.standing: list[Update | Merge | Delete] = []
        self._editor: dict[str, int] = {}

    def take(self, edit: Update | Merge | Delete) -> None:
        """Keep the edit, or unite it with the same one. Raises DeltaError if an earlier one stands against it."""
        touched = edit.ids if isinstance(edit, Merge) else (edit.id,)
        places = sorted({self._editor[name] for name in touched if name in self._editor})
        if not places:
            self._editor.update(dict.fromkeys(touched, len(self.standing)))
            self.standing.append(edit)
            return
        first = self.standing[places[0]]
        if len(places) > 1 or not _same_edit(first, edit):
            raise DeltaError(f"{name_of(edit)}: already edited here by a {first.op}")
        self.standing[places[0]] = _united(first, edit)
        if not _same_words(first, edit):
            raise DeltaError(f"{name_of(edit)}: merged here already; those words stand, the sources are united")


def _summed(first: Tag, second: Tag) -> Tag:
    return replace(first, helpful=first.helpful + second.helpful, harmful=first.harmful + second.harmful)


def _united(first: Any, second: Any) -> Any:
    """`first` with the sources (of a Delete: the reasons) of both."""
    if isinstance(first, Delete):
        reasons = [*first.reason.split("; "), *second.reason.split("; ")]
        return replace(first, reason="; ".join(dict.fromkeys(filter(None, reasons))))
    return replace(first, sources=tuple(dict.fromkeys([*first.sources, *second.sources])))


def _same_edit(first: Update | Merge | Delete, second: Update | Merge | Delete) -> bool:
    """Whether two edits do the same: two groups that saw one snapshot often write the same merge."""
    if isinstance(first, Merge) and isinstance(second, Merge):
        return set(first.ids) == set(second.ids)
    if isinstance(first, Update) and isinstance(second, Update):
        return _same_words(first, second)
    return isinstance(first, Delete) and isinstance(second, Delete)


def _same_words(first: Any, second: Any) -> bool:
    """Whether two edits leave the same content in the same section; deletes leave none."""
    if isinstance(first, Delete):
        return True
    sections = [
        edit.section if edit.section is None else section_key(clean_section(edit.section)) for edit in (first, second)
    ]
    return fold(first.content) == fold(second.content) and sections[0] == sections[1]
