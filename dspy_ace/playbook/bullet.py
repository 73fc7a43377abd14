"""A bullet: one lesson, as a frozen value that is whole or refused (ACE §3.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import PlaybookError
from . import text

MOST = 10**18  # ids and counters have at most 18 digits
_ID = re.compile(text.ID_PATTERN)


@dataclass(frozen=True)
class Bullet:
    r"""One lesson: a strategy, a concept, a common mistake, a snippet.

    Args:
        id: `slug-00042`; the number at its end is its place in the order of birth.
        section: one line; an empty one becomes OTHERS.
        content: any text; line ends are `\n`, space at line ends and around it is dropped.
        helpful, harmful: how often it helped and misled, as tagged by the reflector; counts ≥ 0, below 10**18.
        predictor: the predictor (its path in the program) it is for; None: for all of them.
        sources: the training examples it was learned from, as their trajectories name them.

    Raises:
        PlaybookError: a field of the wrong type, an id without a number, an empty content, a text that
            is not valid Unicode.
    """

    id: str
    section: str
    content: str
    helpful: int = 0
    harmful: int = 0
    predictor: str | None = None
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _ID.fullmatch(self.id):
            raise PlaybookError(f"A bullet's id is letters, a hyphen and a number, like 'str-00042'; got {self.id!r}.")
        object.__setattr__(self, "section", text.clean_section(valid_text(self.section, "section")))
        object.__setattr__(self, "content", clean_content(self.content))
        for name in ("helpful", "harmful"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < MOST:
                raise PlaybookError(f"Bullet {self.id}: {name} is a count, 0 or more; got {brief(count)}.")
        if self.predictor is not None:
            valid_text(self.predictor, f"Bullet {self.id}: predictor")
        if not isinstance(self.sources, (tuple, list)):
            raise PlaybookError(
                f"Bullet {self.id}: sources is a tuple of names of examples; got {brief(self.sources)}."
            )
        sources = (valid_text(source, f"Bullet {self.id}: a source") for source in self.sources)
        object.__setattr__(self, "sources", tuple(dict.fromkeys(sources)))

    @property
    def number(self) -> int:
        """The number in the id: the place in the order of birth."""
        return number_of(self.id)

    def is_for(self, predictor: str | None) -> bool:
        """Whether a prompt of `predictor` shows this bullet (None: the whole playbook is asked for)."""
        return predictor is None or self.predictor is None or self.predictor == predictor

    @cached_property
    def block(self) -> str:
        """What a prompt shows of it, as `text.render_bullet` writes it; made once."""
        return text.render_bullet(self)

    @cached_property
    def tokens(self) -> int:
        """Estimated tokens of its block (`text.count_tokens`); counted once."""
        return text.count_tokens(self.block)


def valid_text(value: object, what: str) -> str:
    """`value`, if it is a str that can be written as UTF-8.

    Raises:
        PlaybookError: it is not.
    """
    if not isinstance(value, str):
        raise PlaybookError(f"{what} must be text (str); got {type(value).__name__}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PlaybookError(f"{what} is not valid Unicode (a lone surrogate at {error.start}); repair it.") from error
    return value


def clean_content(content: object) -> str:
    r"""The content of a bullet as it is kept: line ends `\n`, no space at line ends or around.

    Raises:
        PlaybookError: not text, not valid Unicode, or empty.
    """
    lines = valid_text(content, "content").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    cleaned = "\n".join(line.rstrip() for line in lines).strip()
    if not cleaned:
        raise PlaybookError("A bullet needs a content; got an empty text.")
    return cleaned


def number_of(bullet_id: str) -> int:
    """The number at the end of an id."""
    return int(bullet_id[bullet_id.rindex("-") + 1 :])


def sequence(values: Any, what: str) -> tuple[Any, ...]:
    """The values of a sequence (or iterator); one text or one mapping is not meant to be one."""
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
        raise PlaybookError(f"{what} is a sequence; got {brief(values)}.")
    return tuple(values)


def brief(data: object) -> str:
    """`repr` of anything, short enough for a message."""
    try:
        shown = repr(data)
    except ValueError:  # an int beyond Python's limit of digits
        shown = f"a huge {type(data).__name__}"
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
