"""Grow-and-refine, without an LM: merge near-duplicates, prune what harms, keep the token budget (ACE §3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from . import text
from .delta import Delete, Delta, Merge, Operation
from .errors import SettingsError
from .playbook import Bullet, Playbook
from .similarity import Embedder, Vectors, duplicates

THRESHOLD = 0.8
MODES = ("proactive", "lazy")


@dataclass(frozen=True)
class _Group:
    """Bullets that say the same, oldest first, and the content that stands for all of them."""

    bullets: tuple[Bullet, ...]
    content: str

    @property
    def helpful(self) -> int:
        return sum(bullet.helpful for bullet in self.bullets)

    @property
    def harmful(self) -> int:
        return sum(bullet.harmful for bullet in self.bullets)

    @property
    def merged(self) -> Bullet:
        """The bullet that `apply` will make of the group, as far as its tokens go."""
        oldest = self.bullets[0]
        return Bullet(oldest.id, oldest.section, self.content)


class GrowAndRefine:
    """The default `Refine`: a playbook → the Delta that keeps it small. Three steps, in this order:

    1. Near-duplicates of one scope (`predictor`) become one bullet (`Merge`). Of each group the text with
       the best evidence (helpful − harmful) stays, of equals the oldest; every other text of the group is
       a duplicate of that very text, so no chain of small changes drifts. Nothing new is written.
    2. A bullet with `harmful ≥ prune_min_uses` and `harmful / (helpful + harmful) ≥ prune_harm_ratio` goes
       (`Delete`). Counters of duplicates are added up first.
    3. While the rendered playbook exceeds `max_tokens`, the least useful bullet goes (`Delete`): lowest
       helpful − harmful first; among equals those that never helped, oldest first.

    The result depends on the playbook alone. What earlier calls have computed only saves work: each text
    is embedded once, and pairs of texts that met in the call before are not compared again.

    Args:
        max_tokens: the budget of the rendered playbook, in tokens as `count_tokens` counts; None: none.
        threshold: cosine, above 0 to 1, from which two bullets may be duplicates; the guard
            (`dspy_ace.differences`) decides.
        embedder: `list[str]` → array-like (n, d); None: lexical vectors, no download.
        mode: "proactive": every step at each call; "lazy": step 1 only when past the budget.
        prune_min_uses: the least number of harmful votes for step 2, 1 or more; None: no pruning.
        prune_harm_ratio: the least share of harmful votes for step 2, above 0.5 to 1.
        count_tokens: text → number of tokens; None: the package's estimate.

    Raises:
        SettingsError: at construction, for a setting out of range. A call raises EmbedderError for an
            embedder that does not return one finite vector a text.
    """

    def __init__(
        self,
        max_tokens: int | None = None,
        threshold: float = THRESHOLD,
        embedder: Embedder | None = None,
        mode: str = "proactive",
        prune_min_uses: int | None = 3,
        prune_harm_ratio: float = 0.75,
        count_tokens: Callable[[str], int] | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self.threshold = threshold
        self.embedder = embedder
        self.mode = mode
        self.prune_min_uses = prune_min_uses
        self.prune_harm_ratio = prune_harm_ratio
        self.count_tokens = count_tokens
        self._check()
        self._forget()

    def __call__(self, playbook: Playbook) -> Delta:
        groups = [_Group((bullet,), bullet.content) for bullet in playbook]
        if self.mode == "proactive" or self._excess([group.merged for group in groups]) > 0:
            groups = self._merged(playbook.bullets)
        kept: list[_Group] = []
        operations: list[Operation] = []
        for group in groups:
            reason = self._harm(group)
            if reason is None:
                kept.append(group)
            else:
                operations += [Delete(bullet.id, reason) for bullet in group.bullets]
        evicted = self._evicted(kept)
        for group in kept:
            if group.bullets[0].id in evicted:
                reason = (
                    f"over the budget of {self.max_tokens} tokens; helpful {group.helpful}, harmful {group.harmful}"
                )
                operations += [Delete(bullet.id, reason) for bullet in group.bullets]
            elif len(group.bullets) > 1:
                operations.append(Merge(tuple(bullet.id for bullet in group.bullets), group.content))
        return Delta(tuple(operations))

    def __getstate__(self) -> dict[str, Any]:
        """Settings without what was computed: copies start cold."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def computed(self) -> int:
        """How many vectors were computed so far."""
        return self._vectors.computed

    def _forget(self) -> None:
        self._vectors = Vectors(self.embedder)
        self._compared: tuple[frozenset[str], frozenset[tuple[str, str]]] = frozenset(), frozenset()

    def _merged(self, bullets: Sequence[Bullet]) -> list[_Group]:
        """The bullets in groups of duplicates, in order of birth.

        Best evidence first, a bullet joins the first text kept so far that it is a duplicate of, or is
        kept. So kept texts are no duplicates of one another: refining twice changes nothing more.
        """
        same = self._duplicates(list(dict.fromkeys(bullet.content for bullet in bullets)))
        ranked = sorted(range(len(bullets)), key=lambda at: (bullets[at].harmful - bullets[at].helpful, at))
        kept: dict[tuple[str | None, str], list[int]] = {}
        for at in ranked:
            scope, content = bullets[at].predictor, bullets[at].content
            alike = [other for other in (content, *same.get(content, ())) if (scope, other) in kept]
            home = min(alike, key=lambda other: kept[scope, other][0]) if alike else content
            kept.setdefault((scope, home), []).append(at)
        groups = [
            _Group(tuple(bullets[at] for at in sorted(members)), content) for (_, content), members in kept.items()
        ]
        return sorted(groups, key=lambda group: (group.bullets[0].number, group.bullets[0].id))

    def _duplicates(self, contents: list[str]) -> dict[str, list[str]]:
        """For each content its duplicates among `contents`; only new ones are compared with all."""
        seen, known = self._compared
        new = [at for at, content in enumerate(contents) if content not in seen]
        found = duplicates(self._vectors, contents, new, self.threshold)
        present = frozenset(contents)
        pairs = {pair for pair in known if present.issuperset(pair)}
        pairs.update((contents[pair.first], contents[pair.second]) for pair in found)
        self._compared = present, frozenset(pairs)
        self._vectors.forget_all_but(contents)
        same: dict[str, list[str]] = {}
        for one, other in pairs:
            same.setdefault(one, []).append(other)
            same.setdefault(other, []).append(one)
        return same

    def _harm(self, group: _Group) -> str | None:
        """Why the evidence is against a group; None if it is not."""
        votes = group.helpful + group.harmful
        if self.prune_min_uses is None or group.harmful < self.prune_min_uses:
            return None
        if group.harmful < self.prune_harm_ratio * votes:
            return None
        return f"harmful in {group.harmful} of {votes} votes"

    def _evicted(self, groups: Sequence[_Group]) -> set[str]:
        """The ids (of the oldest bullet) of the groups that must go to keep the budget."""
        remaining = list(groups)
        by_use = sorted(groups, key=lambda group: (group.helpful - group.harmful, group.helpful > 0))
        excess = self._excess([group.merged for group in remaining])
        gone: set[str] = set()
        for group in by_use:
            if excess <= 0:
                rest = [group.merged for group in remaining if group.bullets[0].id not in gone]
                excess = self._rendered_excess(rest)
                if excess <= 0:
                    break
            gone.add(group.bullets[0].id)
            excess -= self._line_tokens(group.merged)
        return gone

    def _excess(self, bullets: Sequence[Bullet]) -> int:
        """Tokens past the budget, a line at a time; 0 or less when it is kept."""
        if self.max_tokens is None:
            return 0
        return sum(map(self._line_tokens, bullets)) - self.max_tokens

    def _rendered_excess(self, bullets: Sequence[Bullet]) -> int:
        """Tokens past the budget, as a tokenizer of the user's counts the whole text."""
        if self.max_tokens is None or self.count_tokens is None:
            return 0
        return self._count(text.render_bullets(bullets)) - self.max_tokens

    def _line_tokens(self, bullet: Bullet) -> int:
        return self._count(text.render_bullet(bullet)) + 1  # and its line end

    def _count(self, rendered: str) -> int:
        tokens = (self.count_tokens or text.count_tokens)(rendered)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            raise SettingsError(f"count_tokens must return a number of tokens (int, 0 or more); got {tokens!r}.")
        return tokens

    def _check(self) -> None:
        _need("max_tokens", self.max_tokens, 1, math.inf, whole=True, optional=True)
        _need("threshold", self.threshold, 0, 1)
        _need("prune_min_uses", self.prune_min_uses, 1, math.inf, whole=True, optional=True)
        _need("prune_harm_ratio", self.prune_harm_ratio, 0.5, 1)
        if self.mode not in MODES:
            raise SettingsError(f"mode must be 'proactive' or 'lazy'; got {self.mode!r}.")
        if self.mode == "lazy" and self.max_tokens is None:
            raise SettingsError("mode='lazy' refines past the token budget; give max_tokens, or mode='proactive'.")
        for name in ("embedder", "count_tokens"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise SettingsError(f"{name} must be callable or None; got {type(getattr(self, name)).__name__}.")


def _need(name: str, value: Any, least: float, most: float, *, whole: bool = False, optional: bool = False) -> None:
    """Raise SettingsError unless `value` is a number from `least` to `most` (or None, if optional)."""
    if value is None and optional:
        return
    right = not isinstance(value, bool) and isinstance(value, int if whole else Real)
    if not right or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        limits = f"from {least} to {most}" if most < math.inf else f"of {least} or more"
        raise SettingsError(f"{name} must be {kind} {limits}{' or None' if optional else ''}; got {value!r}.")
