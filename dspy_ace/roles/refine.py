"""Grow-and-refine, without an LM: merge repeats, prune what harms, keep the token limit (ACE §3.3)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated

from annotated_types import Ge, Gt, Le

from ..errors import Count, SettingsError, checked
from ..playbook import Bullet, Delete, Delta, Merge, Operation, Playbook, apply, count_tokens, folded
from ..similarity import Embedder, LookAlikes, agree

EMBEDDED_THRESHOLD = 0.9  # the best of the values that the paper compares

_Key = tuple[str | None, str]  # the scope of a bullet, and its folded content
_folded = lru_cache(maxsize=2**15)(folded)  # the same bullets come at each step


class GrowAndRefine:
    """The default `Refine`: a playbook → the Delta that keeps it small. It takes three steps, in this order.

    1. Bullets of one scope (`predictor`) that say the same become one (`Merge`). Say the same: contents that are equal
       but for case, space and punctuation (`dspy_ace.playbook.folded`). With an embedder also contents that are as
       close as `threshold` and name the same numbers, negations and code literals (`dspy_ace.similarity.agree`). The
       content with the best evidence (helpful − harmful) stays, of equals the oldest; nothing new is written. Other
       look-alikes are the Curator's to judge.
    2. A bullet with `harmful ≥ prune_min_uses` and `harmful / (helpful + harmful) ≥ prune_harm_ratio` goes
       (`Delete`). The counters of merged bullets are added up first.
    3. While the playbook exceeds `max_tokens`, its least useful bullet goes (`Delete`): the lowest
       helpful − harmful; among equals those that never helped first, and of these the oldest.

    A bullet is touched by one operation at most. Refining the result changes nothing more. The delta depends on the
    playbook alone. If the embedder fails, that is logged and step 1 takes equal contents only.

    Args:
        max_tokens: limit of the rendered playbook, in tokens as `count_tokens` counts; None: ACE's
            `max_playbook_tokens`, or no limit where there is no ACE.
        threshold: cosine from 0 to 1 from which two contents may say the same; None: 0.9. Needs `embedder`.
        embedder: `list[str]` → array-like (n, d), for instance a `dspy.Embedder`; None: equal contents only.
        prune_min_uses: the least number of harmful votes for step 2, 1 or more; None: no pruning.
        prune_harm_ratio: the least share of harmful votes for step 2, above 0.5, at most 1. At 0.5 a bullet would go
            that helps as often as it harms.
        count_tokens: text → number of tokens; None: the package's estimate, `dspy_ace.playbook.count_tokens`.

    Raises:
        SettingsError: at construction, for a setting out of range. A call raises EmbedderError for an
            embedder that does not return one finite vector a text.

    Example:
        >>> refine = GrowAndRefine(max_tokens=2000)
        >>> smaller = apply(playbook, refine(playbook))  # doctest: +SKIP
    """

    def __init__(
        self,
        max_tokens: int | None = None,
        *,
        threshold: float | None = None,
        embedder: Embedder | None = None,
        prune_min_uses: int | None = 3,
        prune_harm_ratio: float = 0.75,
        count_tokens: Callable[[str], int] | None = None,
    ) -> None:
        self.max_tokens: int | None = checked("max_tokens", max_tokens, Count | None)
        self.threshold = checked("threshold", threshold, Annotated[float, Ge(0), Le(1)] | None)
        self.embedder = checked("embedder", embedder, Callable | None)
        self.prune_min_uses: int | None = checked("prune_min_uses", prune_min_uses, Count | None)
        self.prune_harm_ratio: float = checked("prune_harm_ratio", prune_harm_ratio, Annotated[float, Gt(0.5), Le(1)])
        self.count_tokens: Callable[[str], int] | None = checked("count_tokens", count_tokens, Callable | None)
        if embedder is None and threshold is not None:
            raise SettingsError("threshold compares the vectors of an embedder; give embedder= as well, or neither.")
        least = EMBEDDED_THRESHOLD if threshold is None else threshold
        self.look_alikes = None if embedder is None else LookAlikes(embedder, least)

    def limited_to(self, max_tokens: int) -> GrowAndRefine:
        """Return this refiner if it has a limit of its own, else a copy with this one. ACE asks for it."""
        if self.max_tokens is not None:
            return self
        fitted = copy.copy(self)
        fitted.max_tokens = max_tokens
        return fitted

    def __call__(self, playbook: Playbook) -> Delta:
        """Return the operations that refine `playbook`; `apply(playbook, delta)` takes them."""
        merges = self._merges(playbook)
        merged = apply(playbook, Delta(tuple(merges.values()))) if merges else playbook
        gone = {bullet.id: reason for bullet in merged if (reason := self._harm(bullet))}
        kept = [bullet for bullet in merged if bullet.id not in gone]
        for bullet in self._evicted(kept):
            votes = f"helpful {bullet.helpful}, harmful {bullet.harmful}"
            gone[bullet.id] = f"over the limit of {self.max_tokens} tokens: {votes}"
        operations: list[Operation] = []
        for bullet in merged:
            merge = merges.get(bullet.id)
            if bullet.id in gone:
                operations += [Delete(name, gone[bullet.id]) for name in (merge.ids if merge else (bullet.id,))]
            elif merge:
                operations.append(merge)
        return Delta(tuple(operations))

    def _merges(self, playbook: Playbook) -> dict[str, Merge]:
        """Return the merges of bullets that say the same, under the id that stays: the oldest.

        Equal contents are a group. Best evidence first, a group joins the closest one whose content stays, or stays
        itself. So all members say the same as the content that stays, and no two that stay say the same.
        """
        near: dict[_Key, list[_Key]] = {}  # the closest first
        for one, other, _ in self.look_alikes.pairs(playbook) if self.look_alikes else ():
            if agree(one.content, other.content):
                near.setdefault(_key(one), []).append(_key(other))
                near.setdefault(_key(other), []).append(_key(one))
        groups: dict[_Key, list[Bullet]] = {}
        for bullet in playbook:
            groups.setdefault(_key(bullet), []).append(bullet)
        places = {bullet.id: at for at, bullet in enumerate(playbook)}

        def rank(bullet: Bullet) -> tuple[int, int]:
            return bullet.harmful - bullet.helpful, places[bullet.id]

        opened: set[_Key] = set()
        for key in sorted(near, key=lambda key: min(map(rank, groups[key]))):
            home = next((other for other in near[key] if other in opened), None)
            if home is None:
                opened.add(key)
            else:
                groups[home] += groups.pop(key)
        merges = {}
        for group in groups.values():
            if len(group) > 1:
                ids = tuple(sorted((bullet.id for bullet in group), key=places.__getitem__))
                merges[ids[0]] = Merge(ids, min(group, key=rank).content)
        return merges

    def _harm(self, bullet: Bullet) -> str | None:
        """Return why the evidence is against a bullet; None if it is not."""
        votes = bullet.helpful + bullet.harmful
        least = self.prune_min_uses
        if least is None or bullet.harmful < least or bullet.harmful < self.prune_harm_ratio * votes:
            return None
        return f"harmful in {bullet.harmful} of {votes} votes"

    def _evicted(self, bullets: Sequence[Bullet]) -> list[Bullet]:
        """Return the bullets that must go to keep the token limit, the least useful first."""
        if self.max_tokens is None:
            return []
        total = sum(map(self._size, bullets)) + len(bullets) - 1  # each line but the last has an end
        if total <= self.max_tokens and self._whole_fits(bullets):
            return []
        left = {bullet.id: bullet for bullet in bullets}
        gone = []
        for bullet in sorted(bullets, key=_use):
            del left[bullet.id]
            gone.append(bullet)
            total -= self._size(bullet) + 1
            if total <= self.max_tokens and self._whole_fits(list(left.values())):
                break
        return gone

    def _size(self, bullet: Bullet) -> int:
        return bullet.tokens if self.count_tokens is None else self._count(bullet.block)

    def _whole_fits(self, bullets: Sequence[Bullet]) -> bool:
        """Return True if the bullets keep the limit together: a tokenizer may count the whole differently."""
        if self.count_tokens is None or self.max_tokens is None:
            return True
        return self._count("\n".join(bullet.block for bullet in bullets)) <= self.max_tokens

    def _count(self, rendered: str) -> int:
        tokens: object = (self.count_tokens or count_tokens)(rendered)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            raise SettingsError(f"count_tokens must return a number of tokens (int, 0 or more); got {tokens!r}.")
        return tokens


def _key(bullet: Bullet) -> _Key:
    return bullet.predictor, _folded(bullet.content)


def _use(bullet: Bullet) -> int:
    """Return what bullets are evicted by: helpful − harmful, among equals those that never helped first."""
    return 2 * (bullet.helpful - bullet.harmful) + (bullet.helpful > 0)
