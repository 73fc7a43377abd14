"""A comparison as a table: for a terminal (rich, where it is installed) and as Markdown."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .rows import STUDENT, Interval, Row, total

_NONE = "–"
_NEEDED = 130  # columns of a terminal
LEGEND = (
    "Metric calls, LM calls, tokens, dollars and seconds: of one compile, the mean over its runs. Per example: LM "
    "calls and tokens (prompt and completion) of the compiled program on the test set. Prompt: tokens of the compiled "
    "program's instructions and demos, estimated. In brackets: 95 % intervals."
)


def _number(value: float | None, form: str = ",.0f") -> str:
    return _NONE if value is None else format(value, form)


def _difference(interval: Interval | None) -> str:
    return _NONE if interval is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)


def _spent(value: Callable[[Row], float | None], form: str = ",.0f", unknown: str = _NONE) -> Callable[[Row], str]:
    """A column of what a compile spent: the student is not compiled, a failed method has no mean."""

    def text(row: Row) -> str:
        if row.score is None or row.name == STUDENT:
            return _NONE
        return unknown if value(row) is None else _number(value(row), form)

    return text


def _per_example(row: Row, *kinds: str, form: str = ",.0f") -> str:
    counts = [total(row.test_usage, kind) for kind in kinds]
    known = [count for count in counts if count is not None]
    return _number(sum(known) / row.test_size, form) if row.seeds_ok and len(known) == len(kinds) else _NONE


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "method": lambda r: r.name,
    "test score": lambda r: "failed" if r.score is None else f"{r.score:.3f} [{r.low:.3f}, {r.high:.3f}]",
    "vs student": lambda r: _difference(r.vs_student),
    "vs best": lambda r: _difference(r.vs_best),
    "metric calls": _spent(lambda r: r.metric_calls),
    "LM calls": _spent(lambda r: r.lm_calls),
    "prompt tokens": _spent(lambda r: total(r.usage, "prompt_tokens")),
    "of it cached": _spent(lambda r: total(r.usage, "cached_tokens")),
    "completion": _spent(lambda r: total(r.usage, "completion_tokens")),
    "dollars": _spent(lambda r: r.dollars, ".4f", "unknown"),
    "seconds": _spent(lambda r: r.seconds, ".1f"),
    "calls/example": lambda r: _per_example(r, "calls", form=".2f"),
    "tokens/example": lambda r: _per_example(r, "prompt_tokens", "completion_tokens"),
    "prompt": lambda r: _number(r.prompt_tokens),
    "bullets": lambda r: _number(r.bullets),
    "seeds": lambda r: f"{r.seeds_ok} of {r.seeds_ok + r.seeds_failed}",
}
_PARTS = ((*list(COLUMNS)[:4], "seeds"), ("method", *list(COLUMNS)[4:-1]))  # what fits side by side on a terminal


def lines(rows: Sequence[Row], columns: Sequence[str] = tuple(COLUMNS)) -> list[list[str]]:
    """The table as text, one list a row, in the order of `columns`."""
    return [[COLUMNS[column](row) for column in columns] for row in rows]


def title(header: Mapping[str, Any]) -> str:
    """Name the program whose optimizers were compared, and the task."""
    what = ", ".join(str(header[key]) for key in ("program", "task") if header.get(key))
    return f"Optimizers of {what}" if what else "Comparison of optimizers"


def notes(header: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The sentences under the table: how it was made, what it cannot say, and why runs failed."""
    said = [LEGEND, *header.get("notes", [])]
    scored = [row for row in rows if row.score is not None]
    if scored and max(row.seeds_ok for row in scored) == 1:
        said.append(
            "One seed: the intervals cover the choice of the test examples alone, not the luck of a run. "
            "Give several seeds to see how much a method varies."
        )
    elif scored and min(row.seeds_ok for row in scored) < 5:
        said.append(
            "Few seeds: intervals come from resampling seeds and examples, widened for their small number; "
            "what so few runs cannot show (a rare failure), they do not cover."
        )
    if len(scored) > 2:
        said.append("The best method was picked by these same scores, so the differences to it are on the large side.")
    if len(scored) > 1 and len({row.score for row in scored}) == 1:
        said.append("All methods have the same mean score: does the metric tell good answers from bad ones?")
    for row in rows:
        if row.test_failures:
            said.append(f"{row.name}: {row.test_failures} rollouts on the test set failed and count as 0.")
        runs = row.seeds_ok + row.seeds_failed
        said += [f"{row.name}: {row.seeds_failed} of {runs} failed: {reason}" for reason in row.reasons]
        said += row.dead_roles
    return said


def to_markdown(header: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The table and its notes as Markdown."""
    body = [list(COLUMNS), ["---"] * len(COLUMNS), *lines(rows)]
    table = "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in body)
    label = [f"**{_escaped(header['label'])}**\n"] if header.get("label") else []
    return "\n".join([*label, table, "", *(f"- {_escaped(note)}" for note in notes(header, rows))]) + "\n"


def to_text(header: Mapping[str, Any], rows: Sequence[Row], width: int | None = None) -> str:
    """The table, in two parts (scores, costs), and its notes for a terminal; without rich it is the Markdown.

    Args:
        header, rows: of the comparison.
        width: columns to keep to; None: those of the terminal, but no fewer than the tables need.
    """
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        return to_markdown(header, rows)
    out = io.StringIO()
    console = Console(file=out, width=width or max(_NEEDED, shutil.get_terminal_size().columns), highlight=False)
    console.print(Text(title(header)))
    if header.get("label"):
        console.print(Text(str(header["label"])))
    for part in _PARTS:
        table = Table()
        for column in part:
            heading = Text(column.replace(" ", "\n").replace("/", "\n/ "))
            table.add_column(heading, justify="left" if column == "method" else "right")
        for line in lines(rows, part):
            table.add_row(*map(Text, line))
        console.print(table)
    for note in notes(header, rows):
        console.print(Text(f"· {note}"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
