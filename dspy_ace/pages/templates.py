"""Templates become pages. All that is shown is escaped; one script may run, and no request can be made."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_LEADING_NUMBER = re.compile(r"[+-]?\$?\d[\d,]*(\.\d+)?(?=[\s\[]|$)")
_UNPRINTABLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufffe\\uffff]")

Grid = Sequence[Sequence[str]]
"""A table as text: its titles, then its rows."""


def render(template: Path, filters: Mapping[str, Callable[..., Any]] | None = None, **content: Any) -> str:
    """Return a page.

    Args:
        template: a Jinja file; it may extend `base.html.jinja` and use `parts.html.jinja`, which stand here.
        filters: for the template, by name.
        **content: what the template shows.
    """
    import jinja2  # noqa: PLC0415 - for a page alone: `import dspy_ace` does not wait for it

    script = (_HERE / "page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _HERE]),
        autoescape=jinja2.select_autoescape(("html.jinja",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"numeric": _numeric, **(filters or {})}
    page = environment.get_template(template.name).render(
        **content,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),  # no other script may run
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
    )
    return printable(page)


def fragment(title: str, grid: Grid, notes: Sequence[str] = ()) -> str:
    """Return a heading, a table and notes as HTML for a notebook."""
    tags = ["th", *["td"] * (len(grid) - 1)]
    lines = ["".join(f"<{tag}>{escape(c)}</{tag}>" for c in row) for tag, row in zip(tags, grid, strict=True)]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    body = f"<strong>{escape(title)}</strong><table>{rows}</table>{said}"
    return printable(f'<div class="tex2jax_ignore mathjax_ignore">{body}</div>')  # two dollar signs are no formula


def printable(text: str) -> str:
    """Replace what a page, a figure or UTF-8 cannot hold, control characters and lone surrogates, by U+FFFD."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n").replace("\r", "\n"))


def _numeric(grid: Grid) -> list[int]:
    """Return the columns of a table that hold numbers, but the first, which names its row."""
    return [at for at in range(1, len(grid[0])) if any(_LEADING_NUMBER.match(row[at]) for row in grid[1:])]
