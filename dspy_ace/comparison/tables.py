"""The rows of a comparison, and their table: for a terminal (rich, where it is installed) and as Markdown."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .bootstrap import Replicates

STUDENT = "student"

Interval = tuple[float, float, float]
"""A difference and its 95 % interval: (difference, low, high), in units of the metric."""

HEAD = (
    "method",
    "test score",
    "to student",
    "to best",
    "metric calls",
    "LM calls",
    "prompt tokens",
    "of it cached",
    "completion",
    "dollars",
    "seconds",
    "calls/example",
    "tokens/example",
    "prompt",
    "bullets",
    "seeds",
)
_PARTS = ((0, 1, 2, 3, 15), (0, *range(4, 15)))  # what fits side by side on a terminal
_NEEDED = 130  # columns
LEGEND = (
    "Metric calls, LM calls, tokens, dollars and seconds: of one compile, the mean over its runs. Per example: LM "
    "calls and tokens (prompt and completion) of the compiled program on the test set. Prompt: tokens of the compiled "
    "program's instructions and demos, estimated. In brackets: 95 % intervals."
)


@dataclass(frozen=True)
class Row:
    """One method of a comparison, over its seeds. Costs are means over the runs that ended well; None: there is none.

    Args:
        name: of the method; `student` is the program before.
        seeds_ok, seeds_failed: how many runs ended well, and how many did not.
        reasons: why runs failed, each reason once.
        score, low, high: mean test score over seeds and examples, and its 95 % interval.
        to_student, to_best: score minus that of the student, of the best method, with interval; paired by example.
        metric_calls: rollouts of one compile.
        lm_calls: LM calls of one compile, all roles.
        usage, test_usage: by role what one compile, one pass over the test set used: `calls`, `cached_calls`,
            `failed_calls`, `prompt_tokens`, `cached_tokens`, `completion_tokens`, `dollars`, `seconds`.
        dollars, seconds: of one compile; dollars None: a model without a price.
        test_size: number of test examples.
        prompt_tokens: estimated tokens of the compiled program's instructions and demos.
        bullets: of its playbook.
        test_failures: rollouts on the test set that failed and count as 0, over all seeds.
    """

    name: str
    seeds_ok: int
    seeds_failed: int
    reasons: tuple[str, ...]
    score: float | None
    low: float | None
    high: float | None
    to_student: Interval | None
    to_best: Interval | None
    metric_calls: float | None
    lm_calls: float | None
    usage: Mapping[str, Mapping[str, float | None]]
    test_usage: Mapping[str, Mapping[str, float | None]]
    dollars: float | None
    seconds: float | None
    test_size: int
    prompt_tokens: float | None
    bullets: float | None
    test_failures: int = 0


def rows_of(header: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row a method that has cells, in the header's order."""
    by_method = {name: [cell for cell in cells if cell["method"] == name] for name in header["methods"]}
    good = {name: [cell for cell in several if cell["status"] == "ok"] for name, several in by_method.items()}
    replicates = Replicates({name: [c["test_scores"] for c in several] for name, several in good.items() if several})
    means = {name: float(table.mean()) for name, table in replicates.scores.items()}
    best = max(means, key=lambda name: means[name], default=None)
    return [_row(name, several, good[name], replicates, best) for name, several in by_method.items() if several]


def _row(
    name: str,
    cells: Sequence[Mapping[str, Any]],
    good: Sequence[Mapping[str, Any]],
    replicates: Replicates,
    best: str | None,
) -> Row:
    score = replicates.score(name) if good else (None, None, None)

    def against(other: str | None) -> Interval | None:
        known = good and other is not None and other != name and other in replicates.scores
        return replicates.difference(name, str(other)) if known else None

    usage, tested = _mean_usage(good, "compile"), _mean_usage(good, "test")
    return Row(
        name=name,
        seeds_ok=len(good),
        seeds_failed=len(cells) - len(good),
        reasons=tuple(dict.fromkeys(str(cell["reason"]) for cell in cells if cell["status"] != "ok")),
        score=score[0],
        low=score[1],
        high=score[2],
        to_student=against(STUDENT),
        to_best=against(best),
        metric_calls=_mean([cell["metric_calls"]["compile"] for cell in good]),
        lm_calls=total(usage, "calls") if good else None,
        usage=usage,
        test_usage=tested,
        dollars=total(usage, "dollars") if good else None,
        seconds=_mean([cell["seconds"]["compile"] for cell in good]),
        test_size=len(good[0]["test_scores"]) if good else 0,
        prompt_tokens=_mean([cell["prompt_tokens"] for cell in good]),
        bullets=_mean([cell["bullets"] for cell in good]),
        test_failures=sum(sum(cell.get("failures", {}).values()) for cell in good),
    )


def _mean_usage(cells: Sequence[Mapping[str, Any]], phase: str) -> dict[str, dict[str, float | None]]:
    """By role the mean over runs; a run without calls of a role had none."""
    roles = sorted({role for cell in cells for role in cell["usage"][phase]})
    kinds = {kind for cell in cells for used in cell["usage"][phase].values() for kind in used}
    return {
        role: {kind: _mean([cell["usage"][phase].get(role, {}).get(kind, 0) for cell in cells]) for kind in kinds}
        for role in roles
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None if there are no values, or one is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def total(usage: Mapping[str, Mapping[str, float | None]], name: str) -> float | None:
    """The sum of `name` over roles; None if it is unknown for one of them."""
    values = [counts.get(name) for counts in usage.values()]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """The cells of the table as text, one list a row, in the order of `HEAD`."""
    return [_line(row) for row in rows]


def notes(header: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """What stands under the table: how it was made, what it cannot say, and why runs failed."""
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
        said += [f"{row.name}: {row.seeds_failed} of {_runs(row)} failed: {reason}" for reason in row.reasons]
    return said


def to_markdown(header: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The table and its notes as Markdown."""
    body = [HEAD, ["---"] * len(HEAD), *lines(rows)]
    table = "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in body)
    title = [f"**{_escaped(header['label'])}**\n"] if header.get("label") else []
    return "\n".join([*title, table, "", *(f"- {_escaped(note)}" for note in notes(header, rows))]) + "\n"


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
    if header.get("label"):
        console.print(Text(str(header["label"])))
    for part in _PARTS:
        table = Table()
        for number, column in enumerate(part):
            table.add_column(
                Text(HEAD[column].replace(" ", "\n").replace("/", "\n/ ")), justify="right" if number else "left"
            )
        for line in lines(rows):
            table.add_row(*(Text(line[column]) for column in part))
        console.print(table)
    for note in notes(header, rows):
        console.print(Text(f"· {note}"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _line(row: Row) -> list[str]:
    runs = _runs(row)
    per_example = row.test_size if row.seeds_ok else None
    calls, read = total(row.test_usage, "calls"), total(row.test_usage, "prompt_tokens")
    written = total(row.test_usage, "completion_tokens")
    tokens = None if read is None or written is None else read + written
    compiled = row.score is not None and row.name != STUDENT
    return [
        row.name,
        "failed" if row.score is None else f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}]",
        _difference(row.to_student),
        _difference(row.to_best),
        _number(row.metric_calls if compiled else None),
        _number(row.lm_calls if compiled else None),
        _number(total(row.usage, "prompt_tokens") if compiled else None),
        _number(total(row.usage, "cached_tokens") if compiled else None),
        _number(total(row.usage, "completion_tokens") if compiled else None),
        ("unknown" if row.dollars is None else f"{row.dollars:.4f}") if compiled else "–",
        f"{row.seconds:.1f}" if compiled and row.seconds is not None else "–",
        "–" if calls is None or not per_example else f"{calls / per_example:.2f}",
        "–" if tokens is None or not per_example else f"{tokens / per_example:,.0f}",
        _number(row.prompt_tokens),
        _number(row.bullets),
        f"{row.seeds_ok} of {runs}",
    ]


def _runs(row: Row) -> int:
    return row.seeds_ok + row.seeds_failed


def _difference(interval: Interval | None) -> str:
    return "–" if interval is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
