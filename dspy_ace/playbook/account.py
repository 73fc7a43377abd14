"""What is to be forgotten (`Selection`), and what forgetting it did (`Account`): names and numbers, never a text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import SettingsError

SHOWN = 20  # so many names are listed in words; the fields hold all of them
ELSEWHERE = (
    "Not touched: copies of the playbook and compiled programs kept elsewhere, demonstrations in programs, DSPy's "
    "cache of responses, traces of MLflow, logs of providers, backups and snapshots of disks."
)


@dataclass(frozen=True)
class Selection:
    """What is to be forgotten: everything that one of the three names.

    Args:
        sources: names of examples, as `Bullet.sources` and `Tag.source` hold them.
        matching: a regular expression (or a compiled one); lessons whose content or section it finds something in.
        bullets: ids of bullets.
        keep_shared: keep what several sources taught together as long as one of them stays, without the names of
            those forgotten. The text may still hold what these taught; without it such a text goes.

    Raises:
        SettingsError: nothing is selected, a name is no text, the expression cannot be read.
    """

    sources: frozenset[str] = frozenset()
    matching: re.Pattern[str] | None = None
    bullets: frozenset[str] = frozenset()
    keep_shared: bool = False

    @classmethod
    def of(
        cls,
        sources: Iterable[str] = (),
        matching: str | re.Pattern[str] | None = None,
        bullets: Iterable[str] = (),
        keep_shared: bool = False,
    ) -> Selection:
        """The selection a user means, checked as far as it can be without a playbook."""
        named = _names("sources", sources, "{'3', 'user-17'}")
        ids = frozenset(name.strip().strip("[]").casefold() for name in _names("bullets", bullets, "{'str-00042'}"))
        if not named and matching is None and not ids:
            raise SettingsError(
                "Nothing is selected: name sources, a pattern (matching=…) or ids of bullets to forget."
            )
        if matching is not None and not isinstance(matching, re.Pattern):
            if not isinstance(matching, str) or not matching:
                raise SettingsError(f"matching is a regular expression that is not empty; got {matching!r:.100}.")
            try:
                matching = re.compile(matching)
            except re.error as error:
                raise SettingsError(
                    f"matching={matching!r:.100} is not a regular expression: {error}. "
                    "For a plain text give re.escape(text)."
                ) from error
        return cls(named, matching, ids, keep_shared)

    def names(self, sources: Iterable[str]) -> bool:
        """Whether what these sources taught together is to be forgotten."""
        given = set(sources)
        return bool(given) and (given <= self.sources if self.keep_shared else bool(given & self.sources))

    def finds(self, *texts: str | None) -> bool:
        """Whether the pattern finds something in one of the texts."""
        return self.matching is not None and any(text and self.matching.search(text) for text in texts)

    def without(self, sources: Iterable[str]) -> tuple[str, ...]:
        """The sources that stay, in order."""
        return tuple(source for source in sources if source not in self.sources)

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
    """What forgetting did, and what it cannot do; `print(account)` says it in words. It holds no lesson's text.

    Args:
        removed: ids of the bullets that are gone.
        changed: ids of those whose content or section went back to what the other sources support.
        restored: ids that are there again: a merge or a deletion they went into is undone.
        operations: how many additions, updates and merges were taken out of the history.
        votes: how many votes (helpful and harmful) were taken out of counters.
        tells: how many told records were deleted.
        exposed: ids of bullets written after the first forgotten lesson was learned: their authors may have seen it.
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
        lines.append(f"Taken out: {self.operations} operations, {self.votes} votes, {self.tells} told records.")
        if self.exposed:
            lines.append(
                "Cannot be undone: lessons that other examples taught while a forgotten one stood in the prompt may "
                f"owe something to it. Written since: {_listed(self.exposed)}. To be sure, read them, or forget them "
                "as well."
            )
        return "\n".join([*lines, *self.notes, ELSEWHERE])


def counted(number: int, what: str) -> str:
    """`1 bullet`, `3 bullets`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _listed(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"{counted(len(ids), 'bullet')} ({', '.join(ids[:SHOWN])}{more})" if ids else "no bullet"


def _names(what: str, names: Any, example: str) -> frozenset[str]:
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise SettingsError(f"{what} is a set of names like {example}; got {names!r:.100}.")
    listed = list(names)
    for name in listed:
        if not isinstance(name, str):
            raise SettingsError(f"{what} holds names as text, like {example}; got {name!r:.100}.")
    return frozenset(listed)


def _natural(name: str) -> tuple[int, str]:
    """Positions in order of size, other names behind them."""
    return (int(name), "") if name.isdecimal() and name.isascii() and len(name) < 19 else (10**18, name)
