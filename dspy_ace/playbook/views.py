"""Playbooks as people read them: Markdown, a table in a notebook, and what is different in two."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..output import printable
from .playbook import Bullet, Playbook
from .text import CODE_SPAN

Pair = tuple[Bullet, Bullet]


@dataclass(frozen=True)
class Difference:
    """What is different in a later playbook. `print` shows it as lines with `+` and `-`; it is False if nothing is.

    Args:
        added, removed: bullets, in order.
        changed: bullets with another content, section or predictor: before and after.
        voted: bullets of which only counters or sources are others: before and after.
    """

    added: tuple[Bullet, ...] = ()
    removed: tuple[Bullet, ...] = ()
    changed: tuple[Pair, ...] = ()
    voted: tuple[Pair, ...] = ()

    @classmethod
    def between(cls, before: Playbook, after: Playbook) -> Difference:
        """Compare two playbooks, bullet by bullet, by their ids."""
        old, new = before.index(), after.index()
        pairs = [(bullet, new[name]) for name, bullet in old.items() if name in new and new[name] != bullet]
        return cls(
            added=tuple(bullet for name, bullet in new.items() if name not in old),
            removed=tuple(bullet for name, bullet in old.items() if name not in new),
            changed=tuple(pair for pair in pairs if _text(pair[0]) != _text(pair[1])),
            voted=tuple(pair for pair in pairs if _text(pair[0]) == _text(pair[1])),
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.voted)

    def lines(self) -> list[tuple[str, str]]:
        """Return each changed line of the prompt with its sign, `-` or `+`, in the order of the bullets."""
        removed = ((bullet, None) for bullet in self.removed)
        added = ((None, bullet) for bullet in self.added)
        pairs = [*removed, *self.changed, *added]
        pairs.sort(key=lambda pair: (pair[0] or pair[1]).number)  # type: ignore[union-attr]  # one of them is there
        return [
            (sign, line)
            for pair in pairs
            for sign, bullet in zip("-+", pair, strict=True)
            if bullet is not None
            for line in _block(bullet).splitlines()
        ]

    def __str__(self) -> str:
        return printable("\n".join([self._summary(), *(f"{sign} {line}" for sign, line in self.lines())]))

    def _summary(self) -> str:
        parts = {"added": self.added, "removed": self.removed, "changed": self.changed, "with other votes": self.voted}
        return ", ".join(f"{len(some)} {what}" for what, some in parts.items() if some) or "no difference"

    def to_markdown(self) -> str:
        """Return the lines as a block of Markdown that is coloured as a diff."""
        fence = _fence(line for _, line in self.lines())
        return f"{self._summary()}\n\n{fence}diff\n" + "".join(f"{s} {line}\n" for s, line in self.lines()) + fence

    def _repr_html_(self) -> str:
        colours = {"-": "#c0392b", "+": "#1e8449"}
        lines = [f'<div style="color:{colours[sign]}">{sign} {html.escape(line)}</div>' for sign, line in self.lines()]
        body = f'<div style="font-family:monospace;white-space:pre-wrap">{"".join(lines)}</div>'
        return f'<div class="{_NO_MATH}"><p>{html.escape(self._summary())}</p>{body}</div>'


def markdown_of(playbook: Playbook) -> str:
    """Return a heading for each section and an item for each bullet; HTML and headings in a content are text."""
    lines = []
    for section in playbook.sections:
        lines += [f"## {_plain(section)}", ""]
        for bullet in (each for each in playbook if each.section == section):
            first, *rest = (f"**[{bullet.id}]** {_plain(bullet.content)}{_told(bullet)}").split("\n")
            lines += [f"- {first}", *(f"  {line}".rstrip() for line in rest)]
        lines.append("")
    return "\n".join(lines)


def html_of(playbook: Playbook) -> str:
    """Return a table for notebooks: id, section, content and votes. Whatever a bullet holds is shown as text."""
    names = ("id", "section", "bullet", "helpful/harmful")
    head = "".join(f'<th style="text-align:left">{name}</th>' for name in names)
    rows = [
        f'<tr style="vertical-align:top"><td style="white-space:nowrap">{bullet.id}</td>'
        f"<td>{html.escape(bullet.section)}{_for(bullet)}</td>"
        f'<td style="text-align:left;white-space:pre-wrap">{html.escape(bullet.content)}</td>'
        f"<td>{bullet.helpful}/{bullet.harmful}</td></tr>"
        for bullet in playbook
    ]
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""
    return f'<div class="{_NO_MATH}"><p>{html.escape(repr(playbook))}</p>{table}</div>'


_NO_MATH = "tex2jax_ignore mathjax_ignore"  # a notebook sets what stands between two dollar signs as a formula
_MARKUP = re.compile(r"^(#+ )|([<>])", re.MULTILINE)
_SIGNS = {"<": "&lt;", ">": "&gt;"}


def _text(bullet: Bullet) -> tuple[str, str, str | None]:
    return bullet.content, bullet.section, bullet.predictor


def _block(bullet: Bullet) -> str:
    return bullet.block if bullet.predictor is None else f"{bullet.block}\n  (for {bullet.predictor})"


def _for(bullet: Bullet) -> str:
    return "" if bullet.predictor is None else f" (for {html.escape(bullet.predictor)})"


def _told(bullet: Bullet) -> str:
    votes = [f"helpful {bullet.helpful}", f"harmful {bullet.harmful}"] if bullet.helpful or bullet.harmful else []
    said = [*votes, *([f"for {_plain(bullet.predictor)}"] if bullet.predictor else [])]
    return f" *({', '.join(said)})*" if said else ""


def _plain(content: str) -> str:
    """Escape headings and HTML in a text; its code spans stay as they are."""
    parts = CODE_SPAN.split(content)  # code spans stand at the odd places
    parts[::2] = [_MARKUP.sub(lambda found: _SIGNS.get(found[0], f"\\{found[0]}"), part) for part in parts[::2]]
    return "".join(parts)


def _fence(lines: Iterable[str]) -> str:
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    return "`" * max(3, longest + 1)
