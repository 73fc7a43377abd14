"""Forgetting with a history: what some sources taught is taken out, and the rest is replayed without it.

An operation carries the names of the examples it was learned from. A text may hold something of everything it was made
from: an update of the old text, a merge of those of its bullets. So

- an addition, update or merge goes if one of its sources is forgotten (nothing tells whose words are whose), if its
  text matches, or if it was made from a text that goes. What it was made from stays as it was before;
- an update or merge that only kept a text, word for word (as `GrowAndRefine` does), stays if that text stays;
- votes of forgotten sources are taken out of the counters;
- a deletion stays: it brings no text into the playbook, and nobody is named in it. Its reason is blanked;
- ids stay. The number of a bullet that goes is taken by a placeholder, which is deleted at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import SettingsError, brief, checked
from ..output import printable
from .history import Event, Rollback, replay
from .operations import Add, Delete, Delta, Operation, Working, by_age
from .playbook import DEFAULT_SECTIONS, Bullet, Playbook, clean_content, writable
from .text import OTHERS, counted

PLACEHOLDER = "(forgotten)"
SHOWN = 20  # so many names are listed in words; the fields hold all of them
ELSEWHERE = (
    "Not touched: copies of the playbook and compiled programs kept elsewhere, demonstrations in programs, DSPy's "
    "cache of responses, traces of MLflow, logs of providers, backups and snapshots of disks."
)


# --- what to forget, and what was done


@dataclass(frozen=True, init=False)
class Selection:
    """A choice of what to forget: everything that one of the first three arguments names.

    Args:
        sources: names of examples, as `Bullet.sources` and `Tag.source` hold them.
        matching: a regular expression that finds something in a bullet's content or section.
        bullets: ids of bullets.
        keep_shared: keep what forgotten sources taught together with others, without the names of the forgotten ones.
            The text may still hold what these taught. False: such a text goes.

    Raises:
        SettingsError: nothing is selected, a name is no text, the expression cannot be read.
    """

    sources: frozenset[str]
    matching: re.Pattern[str] | None
    bullets: frozenset[str]  # in lower case (`casefold`)
    keep_shared: bool

    def __init__(
        self,
        sources: Iterable[str] = (),
        matching: str | re.Pattern[str] | None = None,
        bullets: Iterable[str] = (),
        keep_shared: bool = False,
    ) -> None:
        named = _names("sources", sources, "{'3', 'user-17'}")
        ids = frozenset(name.strip().strip("[]").casefold() for name in _names("bullets", bullets, "{'str-00042'}"))
        if not named and matching is None and not ids:
            raise SettingsError(
                "Nothing is selected: name sources, a pattern (matching=…) or ids of bullets to forget."
            )
        vars(self).update(sources=named, matching=_pattern(matching), bullets=ids, keep_shared=keep_shared)

    def names(self, sources: Iterable[str]) -> bool:
        """Return True if what these sources taught together is to be forgotten."""
        given = set(map(writable, sources))
        return bool(given) and (given <= self.sources if self.keep_shared else bool(given & self.sources))

    def finds(self, *texts: str | None) -> bool:
        """Return True if the pattern finds something in one of the texts."""
        return self.matching is not None and any(text and self.matching.search(text) for text in texts)

    def takes(self, bullet: Bullet) -> bool:
        """Return True if the bullet, as it stands, is to be forgotten."""
        chosen = self.names(bullet.sources) or bullet.id.casefold() in self.bullets
        return chosen or self.finds(bullet.content, bullet.section)

    def without(self, sources: Iterable[str]) -> tuple[str, ...]:
        """Return the sources that stay, in order."""
        return tuple(source for source in sources if writable(source) not in self.sources)

    def cleaned(self, playbook: Playbook) -> Playbook:
        """Return the playbook without the bullets of this selection, and without sections that only these were in."""
        kept = [replace(b, sources=self.without(b.sources)) for b in playbook if not self.takes(b)]
        gone = {bullet.section for bullet in playbook if self.takes(bullet)}
        gone -= {*DEFAULT_SECTIONS, *(bullet.section for bullet in kept)}
        return Playbook(tuple(kept), tuple(name for name in playbook.sections if name not in gone), playbook.high_water)

    def check_known(self, sources: Iterable[str], bullets: Iterable[str]) -> None:
        """Raise SettingsError if a source or a bullet is named that is not among these."""
        for what, wanted, known in (
            ("sources", self.sources, set(sources)),
            ("bullets", self.bullets, {name.casefold() for name in bullets}),
        ):
            if missing := sorted(wanted - known):
                listed = ", ".join(map(repr, sorted(known, key=_natural)[:SHOWN])) or "none"
                more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
                raise SettingsError(
                    f"No such {what}: {', '.join(map(repr, missing[:SHOWN]))}; known are {listed}{more}. "
                    "Nothing was changed."
                )


@dataclass(frozen=True)
class Account:
    """Account of what forgetting did and cannot do, in ids and numbers. `print(account)` says it in words.

    Args:
        removed: ids of the bullets that are gone.
        changed: ids of those whose content or section went back to what the other sources support.
        restored: ids that are there again, because a merge or a deletion that they went into is undone.
        operations: how many additions, updates and merges were taken out of the history.
        votes: how many votes (helpful and harmful) were taken out of counters.
        tells: how many told records were deleted.
        exposed: ids of bullets written while a forgotten text stood in the playbook: their authors may have seen it.
        notes: what else a reader has to know, a sentence each.
    """

    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    operations: int = 0
    votes: int = 0
    tells: int = 0
    exposed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"Removed: {_listed(self.removed)}.",
            f"Went back to what others taught: {_listed(self.changed)}.",
        ]
        if self.restored:
            lines.append(f"There again, because what they went into is gone: {_listed(self.restored)}.")
        taken = {"operation": self.operations, "vote": self.votes, "told record": self.tells}
        lines.append(f"Taken out: {', '.join(counted(number, what) for what, number in taken.items())}.")
        if self.exposed:
            lines.append(
                "Cannot be undone: bullets that other examples taught while a forgotten one stood in the prompt may "
                f"owe something to it. Written since: {_listed(self.exposed)}. To be sure, read them, or forget them "
                "as well."
            )
        return printable("\n".join([*lines, *self.notes, ELSEWHERE]))


@dataclass(frozen=True)
class Forgotten:
    """A playbook and its history without what was forgotten.

    Args:
        playbook: `replay(seed, deltas)`.
        seed: the seed without what was forgotten.
        deltas: as many as there were, so that versions and steps keep their numbers; some may be empty.
        account: what was removed, what changed, and what cannot be undone.
        first: the place (from 0) of the first event that names or holds what was forgotten; None: no event does.
        found: True if anything in the seed or the history was selected.
    """

    playbook: Playbook
    seed: Playbook
    deltas: tuple[Event, ...]
    account: Account
    first: int | None = None
    found: bool = True


# --- forgetting


def forget(
    deltas: Iterable[Event],
    seed: Playbook | None = None,
    *,
    sources: Iterable[str] = (),
    matching: str | re.Pattern[str] | None = None,
    bullets: Iterable[str] = (),
    keep_shared: bool = False,
) -> Forgotten:
    """Replay a history without what some sources taught, or without some bullets.

    Args:
        deltas: the whole history from `seed` on, in order: deltas, and `Rollback`s if there are any.
        seed: what the history started from; None: an empty playbook.
        sources, matching, bullets: what to forget, see `Selection`. A bullet that is named by its id goes together with
            all that was merged into it.
        keep_shared: keep what forgotten sources taught together with others.

    Returns:
        The new playbook, its history and an account. Bullets that owe nothing to what is forgotten are the same, ids
        included.

    Raises:
        SettingsError: nothing is selected, or a name is unknown; the message lists the known names.
        DeltaError: the history does not follow from `seed`.

    Example:
        >>> history = [Delta((Add("TOOLS", "One.", None, ("a",)), Add("TOOLS", "Two.", None, ("b",))))]
        >>> [bullet.id for bullet in forget(history, sources={"a"}).playbook]
        ['tool-00002']
    """
    selection = Selection(sources, matching, bullets, keep_shared)
    done = rewrite(Playbook() if seed is None else seed, tuple(deltas), selection)
    if not done.found and not selection.sources:
        pattern = getattr(selection.matching, "pattern", "")
        raise SettingsError(f"No bullet matches {pattern!r:.100}. Nothing was changed.")
    return done


def rewrite(seed: Playbook, history: Sequence[Event], selection: Selection, known: Iterable[str] = ()) -> Forgotten:
    """Forget a selection. `known`: sources that need not be named here, because the caller keeps them elsewhere.

    Raises:
        SettingsError: a source or bullet is unknown; the message lists the known names.
        DeltaError: the history does not follow from `seed`.
    """
    replay(seed, history)  # raises for one that does not fit
    rewriting = _Rewriting(seed, replace(selection, bullets=_with_merged(history, selection.bullets)))
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
    named = {source for bullet in seed for source in bullet.sources}
    named.update(source for operation in _operations(history) for source in operation.sources)
    selection.check_known({*named, *known}, rewriting.ids)
    now = rewriting.place.rewritten.playbook()
    found = rewriting.met or rewriting.shown
    return Forgotten(now, rewriting.seed, tuple(deltas), rewriting.account(seed, now), first, found)


@dataclass
class _Place:
    """Where a replay stands: the playbook as it was, and as it is without what is forgotten.

    Args:
        original, rewritten: the two playbooks.
        tainted: ids (of the original) whose text may hold something that is forgotten.
        stands: id in the original → the ids that stand for it now: none, itself, or the bullets of an undone merge.
        late: ids now whose text was written while a forgotten text stood in the playbook.
    """

    original: Working
    rewritten: Working
    tainted: set[str] = field(default_factory=set)
    stands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)

    def copy(self) -> _Place:
        """Return a copy that stays as it is when the replay goes on."""
        playbooks = Working(self.original.playbook()), Working(self.rewritten.playbook())
        return _Place(*playbooks, set(self.tainted), dict(self.stands), set(self.late))


class _Rewriting:
    """One replay: `event` takes the deltas in order and returns each without what is forgotten."""

    def __init__(self, seed: Playbook, selection: Selection) -> None:
        self.selection = selection
        self.seed = selection.cleaned(seed)
        self.place = _Place(Working(seed), Working(self.seed))
        for bullet in seed:
            self.place.stands[bullet.id] = (bullet.id,) if bullet.id in self.seed else ()
            if bullet.id not in self.seed:
                self.place.tainted.add(bullet.id)
        self.ids = {bullet.id for bullet in seed}
        self.shown = bool(self.place.tainted)  # a forgotten text has stood in the playbook
        self.met = self.meets = False  # something forgotten has been named: so far, in this delta
        self.operations = self.votes = self.deletions = 0

    def event(self, delta: Delta) -> Delta:
        """Return the delta without what is forgotten; both playbooks move on."""
        self.meets = any(self._selected(operation) for operation in delta.operations)
        self.met = self.met or self.meets
        kept: list[Operation] = []
        for operation in delta.operations:
            made = self._silent(operation) if operation.content is None else self._written(operation)
            for each in made:
                self.place.rewritten.do(each)
            kept += made
        return Delta(tuple(kept))

    def go_back(self, past: _Place) -> None:
        """Return both playbooks to where they were; ids given out since stay taken."""
        now, self.place = self.place, past.copy()
        self.place.original = Working(Rollback.to(past.original.playbook(), now.original.playbook()))
        self.place.rewritten = Working(Rollback.to(past.rewritten.playbook(), now.rewritten.playbook()))

    def account(self, seed: Playbook, now: Playbook) -> Account:
        """Say what was done, as the two playbooks show it."""
        before, notes = self.place.original.playbook(), []
        if self.deletions:
            notes.append(
                f"{counted(self.deletions, 'deletion')} came in the same steps; who asked for them is not recorded, so "
                "they stand."
            )
        if len(seed) and self.selection.sources:
            notes.append("Votes of forgotten sources stay in the counters of bullets whose history is not known.")
        going = [bullet for bullet in seed if bullet.id not in self.seed]
        if shared := [b.id for b in going if self.selection.without(b.sources) not in ((), b.sources)]:
            notes.append(f"{counted(len(shared), 'bullet')} of them had other sources as well: {', '.join(shared)}.")
        if self.selection.keep_shared:
            notes.append(
                "Texts that forgotten sources wrote together with others were kept: they may hold what those taught."
            )
        texts = {bullet.id: (bullet.content, bullet.section) for bullet in now}
        return Account(
            removed=tuple(b.id for b in before if b.id not in texts),
            changed=tuple(b.id for b in before if texts.get(b.id, (b.content, b.section)) != (b.content, b.section)),
            restored=tuple(name for name in texts if name not in before),
            operations=self.operations,
            votes=self.votes,
            exposed=tuple(name for name in texts if name in self.place.late),
            notes=tuple(notes),
        )

    def _selected(self, operation: Operation) -> bool:
        """Return True if the operation itself names or holds what is forgotten."""
        named = self.selection.names(operation.sources) or self.selection.finds(*operation.texts)
        return named or any(name.casefold() in self.selection.bullets for name in operation.ids)

    def _silent(self, operation: Operation) -> list[Operation]:
        """Return what is left of an operation that writes no text: it follows its bullet."""
        place, selection, (bullet,) = self.place, self.selection, operation.ids
        place.original.do(operation)
        if bullet not in place.original:
            place.tainted.discard(bullet)
            self.deletions += self.meets
            reason = "" if self.met or self.shown else " ".join(operation.texts)
            return [Delete(name, reason) for name in place.stands.pop(bullet)]
        if selection.names(operation.sources) or selection.finds(*operation.texts):
            self.votes += getattr(operation, "helpful", 0) + getattr(operation, "harmful", 0)
            return []
        kept = operation.taught_by(selection.without(operation.sources))
        return [kept.on((name,)) for name in place.stands[bullet][:1]]

    def _written(self, operation: Operation) -> list[Operation]:
        """Return what is left of an operation that writes a text: all, the text without its author, or nothing."""
        place, selection = self.place, self.selection
        bullets = [place.original.known(name) for name in operation.ids]
        born = place.original.do(operation)
        survivor = born or by_age(operation.ids)[0]
        self.ids.add(survivor)
        left = tuple(dict.fromkeys(name for bullet in bullets for name in place.stands.pop(bullet.id)))
        named = selection.names(operation.sources) or (born or "").casefold() in selection.bullets
        tainted = any(bullet.id in place.tainted for bullet in bullets)
        content = clean_content(operation.content)
        copied = any(bullet.content == content and bullet.id not in place.tainted for bullet in bullets)
        place.tainted.difference_update(operation.ids)
        if selection.finds(*operation.texts) or (not copied and (named or tainted)):
            place.tainted.add(survivor)
            place.stands[survivor] = left
            self.operations += 1
            self.shown = True
            return self._placeholder() if born else []
        ids = left or (survivor,)
        name = by_age(ids)[0]
        place.stands[survivor] = (name,)
        if not copied:  # the text is written here
            place.late.add(name) if self.shown else place.late.discard(name)
        made = operation.on(ids).taught_by(selection.without(operation.sources))
        if named and getattr(made, "section", None) is not None:  # the section was its choice
            self.operations += 1
            made = replace(made, section=None)  # type: ignore[arg-type]  # an addition does not come here
        return [made]

    def _placeholder(self) -> list[Operation]:
        """Take the number of a bullet that goes: ids of later bullets stay the same."""
        rewritten = self.place.rewritten
        section = next(iter(rewritten.sections), OTHERS)
        return [Add(section, PLACEHOLDER), Delete(rewritten.next_id(section))]


def _with_merged(history: Sequence[Event], wanted: frozenset[str]) -> frozenset[str]:
    """Return the ids wanted (in lower case) and those of all bullets that were merged into them."""
    found = set(wanted)
    for operation in reversed(list(_operations(history))):
        if len(operation.ids) > 1 and by_age(operation.ids)[0].casefold() in found:
            found.update(name.casefold() for name in operation.ids)
    return frozenset(found)


def _operations(history: Sequence[Event]) -> Iterable[Operation]:
    return (operation for event in history if isinstance(event, Delta) for operation in event.operations)


def _listed(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"{counted(len(ids), 'bullet')} ({', '.join(ids[:SHOWN])}{more})" if ids else "no bullet"


def _pattern(matching: str | re.Pattern[str] | None) -> re.Pattern[str] | None:
    if matching is None or isinstance(matching, re.Pattern):
        return matching
    if not isinstance(matching, str) or not matching:
        raise SettingsError(f"matching is a regular expression that is not empty; got {matching!r:.100}.")
    try:
        return re.compile(matching)
    except re.error as error:
        hint = "For a plain text give re.escape(text)."
        raise SettingsError(f"matching={matching!r:.100} is not a regular expression: {error}. {hint}") from error


def _names(what: str, names: Any, example: str) -> frozenset[str]:
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise SettingsError(f"{what} is a set of names like {example}; got {brief(names)}.")
    return frozenset(map(writable, checked(what, list(names), list[str], f"It holds names as text, like {example}.")))


def _natural(name: str) -> tuple[int, str]:
    """Sort numbers by size and other names behind them."""
    return (int(name), "") if name.isdecimal() and name.isascii() and len(name) < 19 else (10**18, name)
