"""A comparison as one page: HTML that needs nothing but a browser, or Markdown; figures beside it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import SettingsError
from ..pages import Grid, render
from . import table
from .figures import MISSING, NAMES, Drawing, drawings, falls, styles
from .rows import STUDENT, Row

_HERE = Path(__file__).parent
_COUNTS = {
    "LM calls": "calls",
    "from the cache": "cached_calls",
    "failed": "failed_calls",
    "prompt tokens": "prompt_tokens",
    "of them cached": "cached_tokens",
    "completion tokens": "completion_tokens",
}
_PUBLISHED = ("benchmark", "method", "score", "source")


def save_page(
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
    page = render(
        _HERE / f"page{path.suffix}.jinja",
        **_content(header, cells, rows),
        figures=figures,
        left_out=left_out,
        folder=quote(folder.name),
        filters={"line": _on_one_line, "fenced": _fenced},
    )
    path.write_text(page, encoding="utf-8")
    return path


def _save_figures(figures: Sequence[Drawing], folder: Path) -> None:
    """Write the files of these figures, and remove those of an earlier report."""
    if folder.is_dir():
        for name in NAMES:
            for suffix in (".png", ".svg"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
    for figure in figures:
        folder.mkdir(exist_ok=True)
        (folder / f"{figure.name}.png").write_bytes(figure.png)
        (folder / f"{figure.name}.svg").write_bytes(figure.svg)


def _content(header: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
    """Collect what both kinds of page show, as text and tables."""
    failed = [cell for cell in cells if cell["status"] != "ok"]
    facts = _facts(header, cells)
    prompts = _prompts(cells)
    return {
        "title": table.title(header),
        "label": header.get("label") or "",
        "notes": table.notes(header, rows),
        "markdown": table.to_markdown(header, rows),
        "results": [list(table.COLUMNS), *table.lines(rows)],
        "failed": _grid(("method", "seed", "reason", "started"), failed),
        "usage": _usage(cells),
        "falls": falls(cells),
        "published": _grid(_PUBLISHED, header.get("published") or ()),
        "facts": facts,
        "prompts": prompts,
        "diffs": _diffs(prompts),
        "styles": styles([row.name for row in rows]),
    }


def _grid(columns: Sequence[str], items: Sequence[Mapping[str, Any]]) -> Grid:
    return [
        columns,
        *([str(item.get(column) if item.get(column) is not None else "–") for column in columns] for item in items),
    ]


def _usage(cells: Sequence[Mapping[str, Any]]) -> Grid:
    """Sum up what each role of each method used, compiling and testing, over all cells, failed ones included."""
    by_role: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        for phase, roles in (cell.get("usage") or {}).items():
            for role, used in roles.items():
                by_role.setdefault((cell["method"], phase, role), []).append(used)
    lines = [["method", "phase", "role", *_COUNTS, "dollars", "LM seconds"]]
    for key, several in by_role.items():
        counts = [f"{sum(used.get(name) or 0 for used in several):,.0f}" for name in _COUNTS.values()]
        prices = [used.get("dollars") for used in several]
        dollars = "unknown" if None in prices else f"${sum(price for price in prices if price is not None):,.4f}"
        lines.append([*key, *counts, dollars, f"{sum(used.get('seconds') or 0.0 for used in several):,.1f}"])
    return lines


def _facts(header: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """List the entries of the header, and the dates: a reader needs them to run it again."""
    facts: dict[str, Any] = {}
    for name, value in header.items():
        if isinstance(value, Mapping):
            facts |= {f"{name}: {key}": item for key, item in value.items()}
        elif name not in ("version", "label", "notes", "published"):
            facts[name] = value
    dates = sorted({cell["started"] for cell in cells if cell.get("started")})
    facts["cells started"] = " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]]))
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
        for name, value in facts.items()
        if value not in (None, "", [], {})
    ]


def _prompts(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Name of the cell -> its compiled prompts by predictor; the student once, because its prompt knows no seed."""
    found: dict[str, dict[str, str]] = {}
    for cell in cells:
        if cell.get("prompts"):
            name = STUDENT if cell["method"] == STUDENT else f"{cell['method']}, seed {cell['seed']}"
            found.setdefault(name, {str(k): str(v) for k, v in cell["prompts"].items()})
    return found


def _diffs(prompts: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, list[str]]]:
    """Each cell's prompts, as (title, kind, lines): a line diff against the student's; in full without a student."""
    student = prompts.get(STUDENT, {})
    parts = []
    for name, by_predictor in prompts.items():
        for predictor in by_predictor if name == STUDENT else {**student, **by_predictor}:
            lines, kind = by_predictor.get(predictor, "").split("\n"), "text"
            if name != STUDENT and student:
                old, kind = student.get(predictor, "").split("\n"), "diff"
                lines = list(difflib.unified_diff(old, lines, STUDENT, name, lineterm=""))
            parts.append((f"{name}: {predictor}", kind, lines))
    return parts


def _fenced(lines: Sequence[str], kind: str) -> str:
    """A code block of Markdown with a fence longer than any in it."""
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence + kind, *lines, fence])


def _on_one_line(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", " ".join(text.split()))
