"""A comparison as one page: HTML that needs nothing but a browser, or Markdown; figures beside it."""

from __future__ import annotations

import base64
import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from ..errors import SettingsError
from . import tables
from .curves import falls, printable
from .figures import MISSING, NAMES, Drawing, drawings, looks
from .tables import Row

_HERE = Path(__file__).parent
_NONE = "–"


@dataclass(frozen=True)
class Entry:
    """A table's cell: its text, and its number if it is one to sort by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table: column titles, and rows of entries of the same number."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]

    @property
    def numeric(self) -> list[bool]:
        """For each column whether it holds numbers; the first names its row."""
        return [
            place > 0 and any(row[place].value is not None for row in self.rows) for place in range(len(self.columns))
        ]


def save_report(
    header: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], rows: Sequence[Row], path: str | Path
) -> Path:
    """Write a comparison as one page, and its figures into `<stem>_figures/` beside it as PNG and SVG.

    Without matplotlib the page has no figures, and says so.

    Args:
        header: as in `comparison.json`; `published`, if there, is a list of {"benchmark", "method", "score",
            "source"}: results of others, shown in a table of their own.
        cells: as in `cells.jsonl`.
        rows: one a method, in the order of the table.
        path: `.html` (self-contained: opens offline, asks no other file) or `.md`. Its folder is made if need be.

    Returns:
        The path written.

    Raises:
        SettingsError: another suffix.
        OSError: the file or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".html", ".md"):
        raise SettingsError(f"A report is a page: expected a path that ends in .html or .md, got {str(path)!r}.")
    try:
        figures, left_out = drawings([row.name for row in rows], cells, rows)
    except ImportError:
        figures, left_out = [], [MISSING]
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f"{path.stem}_figures")
    _save_figures(figures, folder)
    content = _content(header, cells, rows) | {"figures": figures, "left_out": left_out}
    page = _html(content) if path.suffix == ".html" else _markdown(content, folder.name)
    path.write_text(printable(page), encoding="utf-8")
    return path


def _save_figures(figures: Sequence[Drawing], folder: Path) -> None:
    """The files of these figures, and none of an earlier report's."""
    if folder.is_dir():
        for name in NAMES:
            for suffix in (".png", ".svg"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
    for figure in figures:
        folder.mkdir(exist_ok=True)
        figure.save(folder)


def _content(header: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
    """What both kinds of page say, as text and tables."""
    failed = [cell for cell in cells if cell["status"] != "ok"]
    subject = [str(header[key]) for key in ("task", "metric") if header.get(key)]
    return {
        "title": "Comparison: " + ", ".join(subject) if subject else "Comparison",
        "label": header.get("label") or "",
        "notes": tables.notes(header, rows),
        "markdown": tables.to_markdown(header, rows),
        "table": Table(tables.HEAD, [list(map(_text, line)) for line in tables.lines(rows)]),
        "failed": Table(
            ("method", "seed", "reason", "started"),
            [[_text(c["method"]), _count(c["seed"]), _text(c.get("reason")), _text(c.get("started"))] for c in failed],
        ),
        "usage": _usage(cells),
        "falls": falls(cells),
        "published": Table(
            ("benchmark", "method", "score", "source"),
            [
                [_text(p.get(key)) for key in ("benchmark", "method", "score", "source")]
                for p in header.get("published") or ()
            ],
        ),
        "facts": _facts(header, cells),
        "prompts": _prompts(cells),
        "looks": looks([row.name for row in rows]),
    }


def _usage(cells: Sequence[Mapping[str, Any]]) -> Table:
    """What each role of each method spent, compiling and testing, summed over all cells, failed ones included."""
    counted = ("calls", "cached_calls", "failed_calls", "prompt_tokens", "cached_tokens", "completion_tokens")
    total: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        for phase, roles in (cell.get("usage") or {}).items():
            for role, spent in roles.items():
                total.setdefault((cell["method"], phase, role), []).append(spent)
    rows = []
    for key, of in total.items():
        counts = [_count(sum(spent.get(name) or 0 for spent in of)) for name in counted]
        prices = [spent.get("dollars") for spent in of]
        dollars = _dollars(None if None in prices else sum(price for price in prices if price is not None))
        seconds = sum(spent.get("seconds") or 0.0 for spent in of)
        rows.append([*map(_text, key), *counts, dollars, Entry(f"{seconds:,.1f}", seconds)])
    titles = ("LM calls", "from the cache", "failed", "prompt tokens", "of them cached", "completion tokens")
    return Table(("method", "phase", "role", *titles, "dollars", "LM seconds"), rows)


def _facts(header: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Environment, versions, sizes, seeds, dates: what a reader needs to run it again."""
    facts = [(key, header.get(key)) for key in ("task", "metric", "command", "budget", "methods", "seeds")]
    for group in ("sizes", "models", "environment", "fingerprint"):
        found = header.get(group)
        facts += [(f"{group}: {k}", v) for k, v in found.items()] if isinstance(found, Mapping) else [(group, found)]
    facts += [("started", header.get("started"))]
    dates = sorted(cell["started"] for cell in cells if cell.get("started"))
    facts += [("cells started", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}")] if dates else []
    return [(name, _plain(value)) for name, value in facts if value not in (None, "", [], {})]


def _prompts(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, str]]]:
    """Name of the cell -> its compiled prompts by predictor; the student once: its prompt knows no seed."""
    found: dict[str, Mapping[str, str]] = {}
    for cell in cells:
        if cell.get("prompts"):
            name = "student" if cell["method"] == "student" else f"{cell['method']}, seed {cell['seed']}"
            prompts = {str(k): str(v) for k, v in cell["prompts"].items()}
            found.setdefault(name, prompts)
    return list(found.items())


def _html(content: Mapping[str, Any]) -> str:
    script = (_HERE / "report_page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # no other script may run
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_HERE / "report_page.css").read_text(encoding="utf-8")
    svgs = {figure.name: Markup(figure.inline) for figure in content["figures"]}  # noqa: S704  # matplotlib escaped it
    page = jinja.get_template("report_page.jinja")
    return page.render(**content, svgs=svgs, script=Markup(script), style=Markup(style), digest=digest)  # noqa: S704


def _markdown(content: Mapping[str, Any], folder: str) -> str:
    parts = [f"# {_escape(content['title'])}"]
    parts += [content["markdown"].strip()]
    if content["failed"].rows:
        parts += ["## Failed cells", _grid(content["failed"])]
    parts += ["## Figures"]
    for figure in content["figures"]:
        parts += [f"![{figure.title}]({quote(folder)}/{figure.name}.png)", figure.caption]
    parts += [*_bullets(content["falls"]), *map(_escape, content["left_out"])]
    parts += ["## Usage by role", _grid(content["usage"])]
    if content["published"].rows:
        parts += ["## Published results of others", "Quoted, not measured here: other models, data and budgets."]
        parts += [_grid(content["published"])]
    parts += ["## Compiled prompts against the student's", *_diffs(content["prompts"])]
    parts += ["## How it was run", _grid(Table(("", ""), [[Entry(k), Entry(v)] for k, v in content["facts"]]))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _grid(table: Table) -> str:
    """A Markdown table; the title row stands also where there is nothing below it."""
    lines = [table.columns, ["---"] * len(table.columns), *([entry.text for entry in row] for row in table.rows)]
    return "\n".join(
        "| " + " | ".join(text if place == 1 else _escape(text) for text in line) + " |"
        for place, line in enumerate(lines)
    )


def _bullets(sentences: Iterable[str]) -> list[str]:
    lines = "\n".join(f"- {_escape(sentence)}" for sentence in sentences)
    return [lines] if lines else []


def _diffs(prompts: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """Each cell's prompts as a line diff against the student's; in full where there is no student."""
    student = dict(prompts).get("student", {})
    parts = []
    for name, by_predictor in prompts:
        for predictor in by_predictor if name == "student" else {**student, **by_predictor}:
            new = by_predictor.get(predictor, "").split("\n")
            old = student.get(predictor, "").split("\n")
            kind, lines = "text", new
            if name != "student" and student:
                kind, lines = "diff", list(difflib.unified_diff(old, new, "student", name, lineterm=""))
            parts += [f"### {_escape(name)}: {_escape(predictor)}", _fenced(lines, kind) if lines else "No difference."]
    return parts


def _fenced(lines: Sequence[str], kind: str) -> str:
    """A code block with a fence longer than any in it."""
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence + kind, *lines, fence])


def _escape(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", " ".join(text.split()))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _text(value: Any) -> Entry:
    """A cell of text; one that begins with a number is sorted by it."""
    text = _NONE if value is None else str(value)
    number = re.match(r"[+-]?\d[\d,]*(\.\d+)?(?=[\s\[]|$)", text)
    return Entry(text, float(number[0].replace(",", "")) if number else None)


def _count(value: float | None) -> Entry:
    if value is None:
        return Entry(_NONE)
    return Entry(f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}", value)


def _dollars(value: float | None) -> Entry:
    return Entry("unknown") if value is None else Entry(f"${value:,.4f}", value)
