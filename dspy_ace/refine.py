"""Grow-and-refine, without an LM: merge near-duplicates, prune what harms, keep the token budget (ACE §3.3)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import text
from .delta import Delete, Delta, Merge, Operation
from .errors import SettingsError
from .playbook import Bullet, Playbook
from .similarity import EMBEDDED_THRESHOLD, LEXICAL_THRESHOLD, Embedder, Vectors, duplicates

MODES = ("proactive", "lazy")


@dataclass(frozen=True)
class _Group:
    """Bullets that say the same, oldest first, and the content that stands for all of them."""

    bullets: tuple[Bullet, ...]
    content: str

    @property
    def name(self) -> str:
        return self.bullets[0].id

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(bullet.id for bullet in self.bullets)

    @property
    def helpful(self) -> int:
        return sum(bullet.helpful for bullet in self.bullets)

    @property
    def harmful(self) -> int:
        return sum(bullet.harmful for bullet in self.bullets)

    @property
    def rendered(self) -> str:
        """What a prompt shows of it once it is merged."""
        return text.render_bullet(Bullet(self.bullets[0].id, self.bullets[0].section, self.content))


class GrowAndRefine:
    """The default `Refine`: a playbook → the Delta that keeps it small. Three steps, in this order.

    1. Near-duplicates of one scope (`predictor`) become one bullet (`Merge`). Of each group the text with
       the best evidence (helpful − harmful) stays, of equals the oldest. Every other text of the group is a
       duplicate of that very text: no chain of small changes drifts, and nothing new is written.
    2. A bullet with `harmful ≥ prune_min_uses` and `harmful / (helpful + harmful) ≥ prune_harm_ratio` goes
       (`Delete`); the counters of duplicates are added up first.
    3. While the playbook exceeds `max_tokens`, its least useful bullet goes (`Delete`): the lowest
       helpful − harmful; among equals those that never helped first, and of these the oldest.

    A bullet is touched by one operation at most. Refining the result changes nothing more. The delta
    depends on the playbook alone: what earlier calls computed only saves work (each text is embedded once,
    and texts that met in the call before are not compared again).

    Args:
        max_tokens: the budget of the rendered playbook, in tokens as `count_tokens` counts; None: none.
        threshold: cosine from 0 to 1 from which two bullets may be duplicates; `differences.difference`
            decides. None: 0.65 for lexical vectors, 0.8 with an embedder.
        embedder: `list[str]` → array-like (n, d), for instance a `dspy.Embedder`; None: lexical vectors.
        mode: "proactive": every step at each call; "lazy": step 1 only when past the budget.
        prune_min_uses: the least number of harmful votes for step 2, 1 or more; None: no pruning.
        prune_harm_ratio: the least share of harmful votes for step 2, above 0.5, at most 1.
        count_tokens: text → number of tokens; None: the package's estimate, `text.count_tokens`.

    Raises:
        SettingsError: at construction, for a setting out of range. A call raises EmbedderError for an
            embedder that does not return one finite vector a text.
    """

    def __init__(
        self,
        max_tokens: int | None = None,
        *,
        threshold: float | None = None,
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
        """The operations that refine `playbook`; `apply(playbook, delta)` takes them."""
        groups = [_Group((bullet,), bullet.content) for bullet in playbook]
        if self.mode == "proactive" or self._evicted(groups):
            with self._lock:
                groups = self._grouped(playbook.bullets)
        reasons = {group.name: reason for group in groups if (reason := self._harm(group))}
        kept = [group for group in groups if group.name not in reasons]
        for group in self._evicted(kept):
            votes = f"helpful {group.helpful}, harmful {group.harmful}"
            reasons[group.name] = f"over the budget of {self.max_tokens} tokens: {votes}"
        operations: list[Operation] = []
        for group in groups:
            if group.name in reasons:
                operations += [Delete(name, reasons[group.name]) for name in group.ids]
            elif len(group.bullets) > 1:
                operations.append(Merge(group.ids, group.content))
        return Delta(tuple(operations))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy starts cold
        self.__dict__.update(state)
        self._forget()

    @property
    def computed(self) -> int:
        """How many vectors were computed so far."""
        return self._vectors.computed

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._vectors = Vectors(self.embedder)
        self._compared: tuple[frozenset[str], frozenset[tuple[str, str]]] = frozenset(), frozenset()

    def _grouped(self, bullets: Sequence[Bullet]) -> list[_Group]:
        """The bullets in groups of duplicates, in order of birth.

        Best evidence first, a bullet joins the oldest group whose text it is a duplicate of, or opens one.
        So no two texts kept are duplicates of one another: refining twice changes nothing more.
        """
        same = self._duplicates(list(dict.fromkeys(bullet.content for bullet in bullets)))
        ranked = sorted(range(len(bullets)), key=lambda at: (bullets[at].harmful - bullets[at].helpful, at))
        members: dict[tuple[str | None, str], list[int]] = {}
        for at in ranked:
            scope, content = bullets[at].predictor, bullets[at].content
            homes = [(scope, other) for other in (content, *same.get(content, ())) if (scope, other) in members]
            home = min(homes, key=lambda key: min(members[key])) if homes else (scope, content)
            members.setdefault(home, []).append(at)
        groups = [
            _Group(tuple(bullets[at] for at in sorted(places)), content) for (_, content), places in members.items()
        ]
        return sorted(groups, key=lambda group: (group.bullets[0].number, group.bullets[0].id))

    def _duplicates(self, contents: list[str]) -> dict[str, list[str]]:
        """For each content its duplicates among `contents`; only the new ones are compared with all."""
        before, known = self._compared
        new = [at for at, content in enumerate(contents) if content not in before]
        threshold = self.threshold
        if threshold is None:
            threshold = LEXICAL_THRESHOLD if self.embedder is None else EMBEDDED_THRESHOLD
        found = duplicates(self._vectors, contents, new, threshold)
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
        return (
            f"harmful in {group.harmful} of {votes} votes" if group.harmful >= self.prune_harm_ratio * votes else None
        )

    def _evicted(self, groups: Sequence[_Group]) -> list[_Group]:
        """The groups that must go to keep the budget, least useful first."""
        if self.max_tokens is None:
            return []
        by_use = sorted(groups, key=lambda group: (group.helpful - group.harmful, group.helpful > 0))
        excess = sum(map(self._line_tokens, groups)) - 1 - self.max_tokens  # the last line has no end
        count = 0
        while count < len(by_use):
            if excess <= 0 and self.count_tokens is not None:  # a tokenizer may count the whole otherwise
                gone = {group.name for group in by_use[:count]}
                whole = "\n".join(group.rendered for group in groups if group.name not in gone)
                excess = self._count(whole) - self.max_tokens
            if excess <= 0:
                break
            excess -= self._line_tokens(by_use[count])
            count += 1
        return by_use[:count]

    def _line_tokens(self, group: _Group) -> int:
        return self._count(group.rendered) + 1  # and its line end

    def _count(self, rendered: str) -> int:
        tokens = (self.count_tokens or text.count_tokens)(rendered)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            raise SettingsError(f"count_tokens must return a number of tokens (int, 0 or more); got {tokens!r}.")
        return tokens

    def _check(self) -> None:
        _need("max_tokens", self.max_tokens, 1, whole=True, optional=True)
        _need("threshold", self.threshold, 0, 1, optional=True)
        _need("prune_min_uses", self.prune_min_uses, 1, whole=True, optional=True)
        _need("prune_harm_ratio", self.prune_harm_ratio, 0.5, 1)
        if self.prune_harm_ratio == 0.5:
            raise SettingsError(
                "prune_harm_ratio must be above 0.5: at 0.5 a bullet goes that helps as often as it harms."
            )
        if self.mode not in MODES:
            raise SettingsError(f"mode must be 'proactive' or 'lazy'; got {self.mode!r}.")
        if self.mode == "lazy" and self.max_tokens is None:
            raise SettingsError("mode='lazy' merges past the token budget; give max_tokens, or mode='proactive'.")
        for name in ("embedder", "count_tokens"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise SettingsError(f"{name} must be callable or None; got {type(getattr(self, name)).__name__}.")


def _need(
    name: str, value: Any, least: float, most: float = math.inf, *, whole: bool = False, optional: bool = False
) -> None:
    """Raise SettingsError unless `value` is a number from `least` to `most` (or None, if optional)."""
    if value is None and optional:
        return
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        limits = f"from {least} to {most}" if most < math.inf else f"of {least} or more"
        wanted = f"a {'whole ' if whole else ''}number {limits}{' or None' if optional else ''}"
        raise SettingsError(f"{name} must be {wanted}; got {value!r}.")
