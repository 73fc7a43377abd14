"""Playbooks and deltas that were made apart become one, by plain code (ACE §3.2)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from ..errors import DeltaError, SettingsError, brief
from .operations import Add, Delta, Merge, Operation, Rejected, Tag, Working, admit, apply, check
from .playbook import Bullet, Playbook
from .text import folded, section_key


def combine(deltas: Sequence[Delta]) -> tuple[Delta, tuple[Rejected, ...]]:
    """Make one delta of several that were made from one snapshot of a playbook.

    Votes come first, then edits, then additions. Operations that do the same become one: votes of one example add up,
    sources are united. Of two different edits of one bullet the first stands and the second is rejected. If each delta
    fits the snapshot and edits bullets of the snapshot only (not those it adds itself), the result fits as well.

    Args:
        deltas: in the order of their examples.

    Returns:
        (the delta, the operations left out with their reasons).
    """
    kept: dict[Hashable, Any] = {}
    edited: set[str] = set()
    rejected: list[Rejected] = []
    for operation in (operation for delta in deltas for operation in delta.operations):
        try:
            check(operation)
            if operation.key in kept:
                kept[operation.key] = kept[operation.key].united(operation)
                continue
            if operation.edits:
                if not edited.isdisjoint(operation.ids):
                    raise DeltaError(f"{operation.label}: an earlier operation of this batch edits the same bullet")
                edited.update(operation.ids)
            kept[operation.key] = operation
        except DeltaError as error:
            rejected.append(Rejected.of(operation, error))
    ordered = sorted(kept.values(), key=lambda operation: (not operation.ids, operation.edits))
    return Delta(tuple(ordered)), tuple(rejected)


def rebase(delta: Delta, base: Playbook, now: Playbook) -> tuple[Delta, tuple[Rejected, ...]]:
    """Carry a delta over to a later state of its playbook.

    Bullets that the delta itself adds get new ids, and its operations on them follow. An edit of a bullet whose text
    has changed since `base` is rejected: its author has not seen that text. An operation on a bullet that is gone is
    rejected as well.

    Args:
        delta: made for `base`.
        base: an earlier state of the playbook.
        now: the state that the delta is to be applied to.

    Returns:
        (a delta that fits `now`, the operations left out with their reasons).
    """
    if base == now:
        return admit(now, delta.operations)
    before, after = Working(base), Working(now)
    names: dict[str, str] = {}  # id that the delta gives a bullet on `base` → its id on `now`
    good: list[Operation] = []
    rejected: list[Rejected] = []
    for operation in delta.operations:
        added = None
        try:
            check(operation)
            moved = operation.renamed(names)
            _check_unchanged(moved, base, now)
            added = after.do(moved)
            good.append(moved)
        except DeltaError as error:
            rejected.append(Rejected.of(operation, error))
        try:
            if born := before.do(operation):
                names[born] = added or "(left out)"
        except DeltaError:  # it did not fit `base`: nothing of it can be referred to
            continue
    return Delta(tuple(good)), tuple(rejected)


def _check_unchanged(operation: Operation, base: Playbook, now: Playbook) -> None:
    """Raise DeltaError if the operation edits a bullet whose text is another one now than it was on `base`."""
    for name in operation.ids if operation.edits else ():
        old, new = base.get(name), now.get(name)
        if old and new and (old.content, old.section) != (new.content, new.section):
            raise DeltaError(f"{operation.op} {name}: the bullet was changed since this was made")


def merge(a: Playbook, b: Playbook) -> Playbook:
    """Return `a` with the bullets of `b` behind its own; what both know stands once.

    Two bullets say the same if their contents are equal after folding (`folded`) and they are for the same predictor.
    A bullet of `b` that says the same as an earlier one joins it: the earlier id stays, with the text of the better
    evidence (helpful − harmful; of equals the earlier one). Counters are summed and sources united. Bullets of `a` keep
    their ids, also where two of them say the same; those of `b` get new ids. To merge texts that are only similar, use
    `GrowAndRefine(embedder=…)` on the result.

    Args:
        a, b: any playbooks. Names of sources should mean the same in both: positions in two different trainsets do not.

    Raises:
        SettingsError: `a` or `b` is no playbook.
        DeltaError: the counters of a bullet sum up to more than one can hold.

    Example:
        >>> a = Playbook([Bullet("str-00001", "TOOLS", "Name the unit.", helpful=1)])
        >>> b = Playbook([Bullet("a-1", "TOOLS", "name the unit", helpful=2), Bullet("a-2", "TOOLS", "Round late.")])
        >>> [(bullet.id, bullet.helpful) for bullet in merge(a, b)]
        [('str-00001', 3), ('tool-00003', 0)]
    """
    for name, playbook in (("a", a), ("b", b)):
        if not isinstance(playbook, Playbook):
            raise SettingsError(f"merge takes two Playbooks; {name} is {brief(playbook)}.")
    both = apply(a, Delta(tuple(Add(other.section, other.content, other.predictor, other.sources) for other in b)))
    voted = zip(both.bullets[len(a) :], b.bullets, strict=True)
    both = apply(both, Delta(tuple(Tag(n.id, o.helpful, o.harmful) for n, o in voted if o.helpful or o.harmful)))
    same: dict[tuple[str | None, str], list[Bullet]] = {}
    for place, bullet in enumerate(both.bullets):
        group = same.setdefault((bullet.predictor, folded(bullet.content)), [])
        if place >= len(a) or not group:  # a repeat within `a` stays as it is
            group.append(bullet)
    merges = [
        Merge(tuple(bullet.id for bullet in group), max(group, key=lambda each: each.helpful - each.harmful).content)
        for group in same.values()
        if len(group) > 1
    ]
    merged = apply(both, Delta(tuple(merges)))
    known = {section_key(name) for name in merged.sections}
    empty = tuple(name for name in b.sections if section_key(name) not in known)
    return Playbook(merged.bullets, (*merged.sections, *empty), merged.high_water) if empty else merged
