"""Grow-and-refine, without an LM: merge near-duplicates, prune what harms, keep the token budget (ACE §3.3)."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Union

from ..errors import SettingsError
from ..playbook import Bullet, Delete, Delta, Merge, Operation, Playbook, text
from ..similarity import Duplicates, Embedder, lexical

MODES = ("proactive", "lazy")


@dataclass(frozen=True)
class _Group:
    """Bullets that say the same, oldest first, and the content that stands for all of them."""

    bullets: tuple[Bullet, ...]
    content: str

    @property
    def id(self) -> str:
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

    @cached_property
    def block(self) -> str:
        """What a prompt shows of it once it is merged."""
        return Bullet(self.bullets[0].id, self.bullets[0].section, self.content).block

    @cached_property
    def tokens(self) -> int:
        return text.count_tokens(self.block)


_Lesson = Union[Bullet, _Group]  # most bullets are like no other


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
        lessons: Sequence[_Lesson] = playbook.bullets
        if self.mode == "proactive" or self._evicted(lessons, playbook):
            with self._lock:
                lessons = self._grouped(playbook.bullets)
        reasons = {lesson.id: reason for lesson in self._suspects(lessons) if (reason := self._harm(lesson))}
        kept = [lesson for lesson in lessons if lesson.id not in reasons] if reasons else lessons
        for lesson in self._evicted(kept, playbook):
            votes = f"helpful {lesson.helpful}, harmful {lesson.harmful}"
            reasons[lesson.id] = f"over the budget of {self.max_tokens} tokens: {votes}"
        if lessons is playbook.bullets and not reasons:
            return Delta()
        operations: list[Operation] = []
        for lesson in lessons:
            names = lesson.ids if isinstance(lesson, _Group) else (lesson.id,)
            if lesson.id in reasons:
                operations += [Delete(name, reasons[lesson.id]) for name in names]
            elif isinstance(lesson, _Group):
                operations.append(Merge(names, lesson.content))
        return Delta(tuple(operations))

    def prepare(self) -> None:
        """Import what the first comparison needs: half a second that can pass while replies are awaited."""
        if self.embedder is None:
            lexical(["a bullet"])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy starts cold
        self.__dict__.update(state)
        self._forget()

    @property
    def computed(self) -> int:
        """How many vectors were computed so far."""
        return self._duplicates.vectors.computed

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._duplicates = Duplicates(self.embedder, self.threshold)
        self._sizes: dict[str, int] = {}

    def _grouped(self, bullets: Sequence[Bullet]) -> Sequence[_Lesson]:
        """The bullets, in order of birth, duplicates as groups that stand at the place of their oldest.

        Best evidence first, a bullet joins the oldest group whose text it is a duplicate of, or opens one.
        So no two texts kept are duplicates of one another: refining twice changes nothing more.
        """
        contents = [bullet.content for bullet in bullets]
        same = self._duplicates.among(contents)
        if not same and len(self._duplicates) == len(bullets):
            return bullets
        times = Counter(contents)
        places = [at for at, content in enumerate(contents) if content in same or times[content] > 1]
        members: dict[tuple[str | None, str], list[int]] = {}
        for at in sorted(places, key=lambda at: (bullets[at].harmful - bullets[at].helpful, at)):
            scope, content = bullets[at].predictor, bullets[at].content
            homes = [(scope, other) for other in (content, *same.get(content, ())) if (scope, other) in members]
            home = min(homes, key=lambda key: min(members[key])) if homes else (scope, content)
            members.setdefault(home, []).append(at)
        lessons: list[_Lesson | None] = list(bullets)
        for (_, content), group in members.items():
            if len(group) > 1:
                for at in group:
                    lessons[at] = None
                lessons[min(group)] = _Group(tuple(bullets[at] for at in sorted(group)), content)
        return [lesson for lesson in lessons if lesson is not None]

    def _suspects(self, lessons: Sequence[_Lesson]) -> list[_Lesson]:
        """Those with enough harmful votes to be looked at."""
        least = self.prune_min_uses
        return [] if least is None else [lesson for lesson in lessons if lesson.harmful >= least]

    def _harm(self, lesson: _Lesson) -> str | None:
        """Why the evidence is against a lesson with harmful votes; None if it is not."""
        votes = lesson.helpful + lesson.harmful
        against = lesson.harmful >= self.prune_harm_ratio * votes
        return f"harmful in {lesson.harmful} of {votes} votes" if against else None

    def _evicted(self, lessons: Sequence[_Lesson], playbook: Playbook) -> list[_Lesson]:
        """The lessons (what is left of a playbook) that must go to keep the budget, least useful first."""
        if self.max_tokens is None:
            return []
        if self.count_tokens is None and playbook.tokens() + len(playbook) - 1 <= self.max_tokens:
            return []  # with all its bullets it is within the budget, and they were counted before
        sizes = self._counted(lessons)
        excess = sum(sizes) + len(sizes) - 1 - self.max_tokens  # a line end each, but for the last
        if excess <= 0:
            excess = self._whole(lessons)
        if excess <= 0:
            return []
        by_use = sorted(range(len(lessons)), key=lambda at: _use(lessons[at]))
        gone: set[int] = set()
        for at in by_use:
            gone.add(at)
            excess -= sizes[at] + 1
            if excess <= 0:
                excess = self._whole([lesson for place, lesson in enumerate(lessons) if place not in gone])
            if excess <= 0:
                break
        return [lessons[at] for at in by_use[: len(gone)]]

    def _counted(self, lessons: Sequence[_Lesson]) -> list[int]:
        """The tokens of each lesson; a tokenizer of the user's is asked once a text."""
        if self.count_tokens is None:
            return [lesson.tokens for lesson in lessons]
        known = self._sizes
        sizes = [known[lesson.block] if lesson.block in known else self._count(lesson.block) for lesson in lessons]
        self._sizes = {lesson.block: size for lesson, size in zip(lessons, sizes, strict=True)}
        return sizes

    def _whole(self, lessons: Sequence[_Lesson]) -> int:
        """Tokens over the budget, where the lines are within it: a tokenizer may count the whole otherwise."""
        if self.count_tokens is None or self.max_tokens is None:
            return 0
        return self._count("\n".join(lesson.block for lesson in lessons)) - self.max_tokens

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


def _use(lesson: _Lesson) -> int:
    """What lessons are evicted by: helpful − harmful, among equals those that never helped first."""
    return 2 * (lesson.helpful - lesson.harmful) + (lesson.helpful > 0)


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
