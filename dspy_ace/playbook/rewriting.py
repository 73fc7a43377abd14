"""What is left of each operation of a history when some lessons are forgotten: the rules, one operation at a time.

An operation carries the names of the examples it was learned from, and a text is taken to hold something of everything
it was made from: an update holds the old text, a merge those of its bullets. So

- an addition, update or merge goes when one of its sources is forgotten (the others may have added to the text, but
  nothing tells whose words they are), when its text matches, or when it was made from a text that goes. What it was
  made from stays as it was before;
- a merge that only kept one of its texts, word for word (as `GrowAndRefine` does), stands if that text stays;
- votes of forgotten sources are taken out of the counters;
- a deletion stands: it brings no text into the playbook, and nobody is named in it. Its reason is blanked;
- ids stay. The number of a bullet that goes is taken by a placeholder that is deleted at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from .account import Account, Selection, counted
from .delta import Add, Delete, Delta, Merge, Operation, Tag, Update, apply
from .events import returned
from .playbook import Playbook, clean_content
from .text import OTHERS

PLACEHOLDER = "(forgotten)"


@dataclass
class Place:
    """Where a replay stands: the playbook as it was, and as it is now.

    Args:
        original, rewritten: the two playbooks.
        tainted: ids (of the original) whose text may hold something that is forgotten.
        stands: id in the original → the ids that stand for it now: none, itself, or the bullets of an undone merge.
        late: ids now whose text was written after the first forgotten lesson was learned.
    """

    original: Playbook
    rewritten: Playbook
    tainted: set[str] = field(default_factory=set)
    stands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)

    def copy(self) -> Place:
        """The same place, which stays where it is when the replay goes on."""
        return Place(self.original, self.rewritten, set(self.tainted), dict(self.stands), set(self.late))


class Rewriting:
    """One replay; `event` takes the deltas in order and returns each without what is forgotten."""

    def __init__(self, seed: Playbook, selection: Selection) -> None:
        self.selection = selection
        self.seed = seed.without(selection)
        self.place = Place(seed, self.seed)
        for bullet in seed:
            self.place.stands[bullet.id] = (bullet.id,) if bullet.id in self.seed else ()
            if bullet.id not in self.seed:
                self.place.tainted.add(bullet.id)
        self.ids = {bullet.id for bullet in seed}
        self.shown = bool(self.place.tainted)  # a forgotten lesson has stood in the playbook
        self.met = False  # something forgotten has been named
        self.operations = self.votes = self.deletions = 0

    def event(self, delta: Delta) -> Delta:
        """The delta without what is forgotten; both playbooks move on."""
        meets = any(self._selected(operation) for operation in delta.operations)
        self.met = self.met or meets
        kept: list[Operation] = []
        for operation in delta.operations:
            before = self.place.original
            self.place.original = apply(before, Delta((operation,)))
            made = self._without(operation, before)
            self.place.rewritten = apply(self.place.rewritten, Delta(tuple(made)))
            kept += made
            self.deletions += meets and isinstance(operation, Delete)
        return Delta(tuple(kept))

    def go_back(self, past: Place) -> None:
        """Both playbooks return to where they were."""
        numbers = self.place.original.high_water, self.place.rewritten.high_water
        self.place = past.copy()
        self.place.original = returned(past.original, numbers[0])
        self.place.rewritten = returned(past.rewritten, numbers[1])

    def account(self) -> Account:
        """What was done, as the two playbooks show."""
        before, now = self.place.original, self.place.rewritten
        notes = []
        if self.deletions:
            notes.append(
                f"{counted(self.deletions, 'deletion')} came in the same steps; who asked for them is not recorded, so "
                "they stand."
            )
        if self.selection.keep_shared:
            notes.append(
                "Texts that forgotten sources wrote together with others were kept: they may hold what those taught."
            )
        return Account(
            removed=tuple(bullet.id for bullet in before if bullet.id not in now),
            changed=tuple(
                b.id for b in before if (n := now.get(b.id)) and (n.content, n.section) != (b.content, b.section)
            ),
            restored=tuple(bullet.id for bullet in now if bullet.id not in before),
            operations=self.operations,
            votes=self.votes,
            exposed=tuple(bullet.id for bullet in now if bullet.id in self.place.late),
            notes=tuple(notes),
        )

    def _selected(self, operation: Operation) -> bool:
        """Whether the operation itself names or holds what is forgotten."""
        if isinstance(operation, Tag):
            return operation.source in self.selection.sources
        if isinstance(operation, Delete):
            return self.selection.finds(operation.reason) or operation.id.casefold() in self.selection.bullets
        named = self.selection.names(operation.sources) or self.selection.finds(operation.content, operation.section)
        ids = () if isinstance(operation, Add) else operation.ids if isinstance(operation, Merge) else (operation.id,)
        return named or any(name.casefold() in self.selection.bullets for name in ids)

    def _without(self, operation: Operation, before: Playbook) -> list[Operation]:
        """What is left of an operation; `before` is the original playbook it was made for."""
        place = self.place
        if isinstance(operation, Add):
            return self._add(operation)
        if isinstance(operation, Update):
            return self._update(operation, before)
        if isinstance(operation, Merge):
            return self._merge(operation, before)
        if isinstance(operation, Delete):
            place.tainted.discard(operation.id)
            reason = "" if self.met or self.shown else operation.reason
            return [Delete(name, reason) for name in place.stands.pop(operation.id)]
        if operation.source in self.selection.sources:
            self.votes += operation.helpful + operation.harmful
            return []
        return [replace(operation, id=name) for name in place.stands[operation.id][:1]]

    def _add(self, add: Add) -> list[Operation]:
        place, new = self.place, self.place.original.bullets[-1]
        self.ids.add(new.id)
        named = self.selection.names(add.sources) or new.id.casefold() in self.selection.bullets
        if named or self.selection.finds(add.content, add.section):
            self.met = True
            self._drop(new.id)
            place.stands[new.id] = ()
            section = next(iter(place.rewritten.sections), OTHERS)
            return [Add(section, PLACEHOLDER), Delete(_next_id(place.rewritten, section))]
        place.stands[new.id] = (new.id,)
        self._written(new.id)
        return [replace(add, sources=self.selection.without(add.sources))]

    def _update(self, update: Update, before: Playbook) -> list[Operation]:
        place, selection = self.place, self.selection
        chosen = selection.names(update.sources) or selection.finds(update.content, update.section)
        if chosen or update.id in place.tainted:
            if (
                update.id in place.tainted
                or update.section
                or before[update.id].content != clean_content(update.content)
            ):
                self._drop(update.id)
            return []
        (name,) = place.stands[update.id]
        self._written(name)
        return [replace(update, id=name, sources=selection.without(update.sources))]

    def _merge(self, merge: Merge, before: Playbook) -> list[Operation]:
        """A merge of those that are left, if its text may stay; else they stay apart."""
        place, selection = self.place, self.selection
        bullets = [before[name] for name in merge.ids]
        survivor = oldest(merge.ids)
        content = clean_content(merge.content)
        left = tuple(dict.fromkeys(name for bullet in bullets for name in place.stands[bullet.id]))
        copied = any(b.content == content and b.id not in place.tainted for b in bullets)
        named, found = selection.names(merge.sources), selection.finds(merge.content, merge.section)
        tainted = any(bullet.id in place.tainted for bullet in bullets)
        for bullet in bullets:
            place.tainted.discard(bullet.id)
            del place.stands[bullet.id]
        if found or (not copied and (named or tainted)):
            self._drop(survivor)
            place.stands[survivor] = left
            return []
        name = oldest(left)
        place.stands[survivor] = (name,)
        if not copied:
            self._written(name)
        section = None if named else merge.section  # its author may be the one forgotten
        if len(left) > 1:
            return [Merge(left, content, section, selection.without(merge.sources))]
        if place.rewritten[name].content == content:
            return []
        return [Update(name, content, section, selection.without(merge.sources))]

    def _drop(self, name: str) -> None:
        """The text of bullet `name` may hold what is forgotten."""
        self.place.tainted.add(name)
        self.operations += 1
        self.shown = True

    def _written(self, name: str) -> None:
        """The text of bullet `name` (as it is called now) is written here."""
        if self.shown:
            self.place.late.add(name)
        else:
            self.place.late.discard(name)


def oldest(ids: Iterable[str]) -> str:
    """The id that `apply` keeps when bullets are merged."""
    return min(ids, key=lambda name: (int(name[name.rindex("-") + 1 :]), name))


def _next_id(playbook: Playbook, section: str) -> str:
    """The id that `apply` gives the next bullet of a section."""
    return apply(playbook, Delta((Add(section, PLACEHOLDER),))).bullets[-1].id
