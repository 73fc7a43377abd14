"""Two playbooks become one: what both know stands once. No LM."""

from __future__ import annotations

from ..errors import SettingsError
from ..playbook import Add, Delta, Merge, Playbook, Tag, apply, brief, section_key
from ..similarity import Embedder
from .refine import GrowAndRefine


def merge(
    a: Playbook,
    b: Playbook,
    dedup: bool = True,
    *,
    threshold: float | None = None,
    embedder: Embedder | None = None,
) -> Playbook:
    """`a` with the bullets of `b` behind its own. `merge(a, Playbook()) == a`; the same for the same playbooks.

    Bullets of `a` keep their ids, those of `b` get new ones. With `dedup` a bullet of `b` that says the same as another
    one joins it: the oldest id stays, with the text that has the better evidence (helpful − harmful; of equals that of
    `a`), counters are summed and sources united. Nothing is pruned, and near-duplicates within `a` alone stay apart.

    Args:
        a, b: any playbooks. Names of sources should mean the same in both: positions in two different trainsets do not.
        dedup: whether near-duplicates are merged, as `GrowAndRefine` finds them.
        threshold, embedder: as for `GrowAndRefine`.

    Raises:
        SettingsError: not two playbooks, or a threshold out of range.
        PlaybookError: the counters of a bullet sum up to more than one can hold.
    """
    for name, playbook in (("a", a), ("b", b)):
        if not isinstance(playbook, Playbook):
            raise SettingsError(f"merge takes two Playbooks; {name} is {brief(playbook)}.")
    refine = GrowAndRefine(threshold=threshold, embedder=embedder, prune_min_uses=None)
    both = apply(a, Delta(tuple(Add(o.section, o.content, o.predictor, o.sources) for o in b)))
    new = both.bullets[len(a) :]
    voted = zip(new, b.bullets, strict=True)
    both = apply(both, Delta(tuple(Tag(n.id, o.helpful, o.harmful) for n, o in voted if o.helpful or o.harmful)))
    known = {section_key(name) for name in both.sections}
    empty = (name for name in b.sections if section_key(name) not in known)
    both = Playbook(both.bullets, (*both.sections, *empty), both.high_water)
    if not dedup or not new:
        return both
    fresh = {bullet.id for bullet in new}
    same = [edit for edit in refine(both).operations if isinstance(edit, Merge) and fresh.intersection(edit.ids)]
    return apply(both, Delta(tuple(same)))
