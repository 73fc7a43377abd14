"""Forgetting with a history: what some sources taught is taken out, and the rest is replayed without it.

`rewriting` says what is left of each operation; here stand the history as a whole, and which sources it names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import SettingsError
from .account import Account, Selection
from .delta import Delete, Delta, Merge, Operation, Tag
from .events import Event, Rollback, fold
from .playbook import Playbook
from .rewriting import Rewriting, oldest


@dataclass(frozen=True)
class Forgotten:
    """A playbook and its history without what was forgotten.

    Args:
        playbook: `fold(seed, deltas)`.
        seed: the seed without what was forgotten.
        deltas: as many as there were, so that versions and steps keep their numbers; some may be empty.
        account: what was removed, what changed, and what cannot be undone.
        first: the place (from 0) of the first delta that names or holds what was forgotten; None: no delta does.
    """

    playbook: Playbook
    seed: Playbook
    deltas: tuple[Event, ...]
    account: Account
    first: int | None = None


def forget(
    deltas: Iterable[Event],
    seed: Playbook | None = None,
    *,
    sources: Iterable[str] = (),
    matching: str | re.Pattern[str] | None = None,
    bullets: Iterable[str] = (),
    keep_shared: bool = False,
) -> Forgotten:
    """Replay a history without what some sources taught, or without some lessons.

    Args:
        deltas: the whole history from `seed` on, in order: deltas, and `Rollback`s if there are any.
        seed: what the history started from; None: an empty playbook.
        sources, matching, bullets: what is to be forgotten, see `Selection`; a bullet named by its id goes together
            with all that was merged into it.
        keep_shared: keep what forgotten sources taught together with others.

    Returns:
        The new playbook, its history and an account. Bullets that owe nothing to what is forgotten are the same, ids
        included.

    Raises:
        SettingsError: nothing is selected, or something that the history does not know; the known names are listed.
        DeltaError: the history does not follow from `seed`.
    """
    history, seed = tuple(deltas), seed or Playbook()
    selection = Selection.of(sources, matching, bullets, keep_shared)
    done = rewrite(seed, history, selection)
    selection.check_known(known_sources(seed, history), done.ids)
    if selection.matching is not None and not selection.sources and not selection.bullets and not done.found:
        raise SettingsError(f"No lesson matches {selection.matching.pattern!r:.100}. Nothing was changed.")
    return done.result


def known_sources(seed: Playbook, history: Sequence[Event]) -> set[str]:
    """Every source that a bullet of the seed or an operation of the history names."""
    named = {source for bullet in seed for source in bullet.sources}
    for event in history:
        for operation in event.operations if isinstance(event, Delta) else ():
            named.update(sources_of(operation))
    return named


def sources_of(operation: Operation) -> tuple[str, ...]:
    """The sources an operation names."""
    if isinstance(operation, Tag):
        return () if operation.source is None else (operation.source,)
    return () if isinstance(operation, Delete) else tuple(operation.sources)


def quotes(operation: Mapping[str, Any] | None, reason: str, selection: Selection) -> bool:
    """Whether an operation that was left out (as JSON data, of any form) or its reason names what is forgotten."""
    plain = operation or {}
    named = plain.get("sources", [plain.get("source")])
    texts = (plain.get(name) for name in ("content", "section", "reason"))
    return (
        selection.finds(reason, *(text for text in texts if isinstance(text, str)))
        or any(source in selection.sources for source in named if isinstance(source, str))
        or any(re.search(rf"\bexamples? [^:]*\b{re.escape(source)}\b", reason) for source in selection.sources)
    )


@dataclass(frozen=True)
class Rewritten:
    """A `Forgotten`, every id the history knew, and whether anything in it was selected."""

    result: Forgotten
    ids: frozenset[str]
    found: bool


def rewrite(seed: Playbook, history: Sequence[Event], selection: Selection) -> Rewritten:
    """`forget` for a selection that need not be known here: a store looks into its told records as well."""
    fold(seed, history)  # raises for one that does not fit
    selection = replace(selection, bullets=_with_merged(history, selection.bullets))
    rewriting = Rewriting(seed, selection)
    going_back = {event.version for event in history if isinstance(event, Rollback)}
    past = {0: rewriting.place.copy()}
    deltas: list[Event] = []
    first: int | None = None
    for number, event in enumerate(history, 1):
        if isinstance(event, Rollback):
            rewriting.go_back(past[event.version])
            deltas.append(event)
        else:
            deltas.append(rewriting.event(event))
        if (rewriting.met or rewriting.shown) and first is None:
            first = number - 1
        if number in going_back:
            past[number] = rewriting.place.copy()
    result = Forgotten(rewriting.place.rewritten, rewriting.seed, tuple(deltas), rewriting.account(), first)
    return Rewritten(result, frozenset(rewriting.ids), rewriting.met or rewriting.shown)


def _with_merged(history: Sequence[Event], wanted: frozenset[str]) -> frozenset[str]:
    """The ids wanted (folded) and those of all bullets that were merged into them."""
    if not wanted:
        return wanted
    found = set(wanted)
    merges = [op for event in history if isinstance(event, Delta) for op in event.operations if isinstance(op, Merge)]
    for merge in reversed(merges):
        if oldest(merge.ids).casefold() in found:
            found.update(name.casefold() for name in merge.ids)
    return frozenset(found)
