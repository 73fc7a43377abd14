"""The cases of a task, read from JSON lines or CSV, and metrics that hold a text against the one expected."""

from __future__ import annotations

import csv
import io
import json
import keyword
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import dspy
from dspy.evaluate.metrics import f1_score

from ..errors import SettingsError, brief
from ..program import Feedback, ReadyMade

EXPECTED = (
    *("expected", "answer", "output", "label", "target", "gold", "response", "completion", "solution", "category"),
    *("class", "answers", "outputs", "labels", "sentiment"),
)
INPUTS = (
    *("input", "question", "prompt", "query", "text", "message", "context", "passage", "sentence", "instruction"),
    *("inputs", "document", "review", "title", "subject", "description", "body", "content", "comment"),
)
_ROW_NAME = re.compile(r"|(.*[\W_])?(id|uid|index|idx)|row|unnamed: 0", re.IGNORECASE)  # columns that number the rows
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")
Rows = list[dict[str, str]]


# --- files


def read_text(path: Path, encoding: str | None = None) -> str:
    """Read a text file: in UTF-8, or UTF-16 with its mark, unless an encoding is named.

    Raises:
        SettingsError: it is in another encoding; the message says what to do.
    """
    data = path.read_bytes()
    encoding = encoding or next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{path} is not {encoding} (byte {error.start}). Save it as UTF-8, or name its encoding, as in "
            "--encoding cp1252."
        ) from None
    except LookupError:
        raise SettingsError(f"There is no encoding {encoding!r}; use a name like utf-8, cp1252 or utf-16.") from None


def read_rows(path: Path, encoding: str | None = None) -> Rows:
    """Read JSON lines, a JSON list of objects, or CSV with a line of column names. All values become text.

    What an object holds inside it becomes columns with dotted names, as `inputs.question`. A chat (`messages`, as for
    fine-tuning) becomes the columns system, message and answer.

    Raises:
        SettingsError: a line that cannot be read, by its number; or nothing to read.
    """
    text = read_text(path, encoding)
    as_json = path.suffix.lower() in (".jsonl", ".ndjson", ".json") or text.lstrip()[:1] in ("{", "[")
    rows = _json_rows(path, text) if as_json else _csv_rows(path, text)
    if not rows:
        raise SettingsError(f"{path} holds no cases.")
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, "").strip() for name in columns} for row in rows]


def _json_rows(path: Path, text: str) -> Rows:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if text.lstrip().startswith("["):
        lines = [(1, text)]
    rows: Rows = []
    for number, line in lines:
        try:
            read = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"{path}, line {number} is not JSON ({brief(str(error))}): {brief(line)}.") from None
        for item in read if isinstance(read, list) else [read]:
            if not isinstance(item, dict):
                raise SettingsError(f"{path}, line {number}: expected an object like {{…}}; got {brief(item)}.")
            rows.append(dict(_columns(item)))
    return rows


def _columns(item: Mapping[str, Any], before: str = "", depth: int = 3) -> Iterator[tuple[str, str]]:
    """Yield name and text of each value. An object gives a column for each of its values, as `inputs.question`."""
    for name, value in item.items():
        if isinstance(value, dict) and value and depth:
            yield from _columns(value, f"{before}{name}.", depth - 1)
        elif name == "messages" and not before and (said := _conversation(value)):
            yield from said.items()
        elif isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            yield before + name, value[0]
        elif value is None or isinstance(value, str):
            yield before + name, value or ""
        else:
            yield before + name, json.dumps(value, ensure_ascii=False)


def _conversation(messages: Any) -> dict[str, str]:
    """Return the last answer of a chat, and what was said before it; empty if it is no chat that ends in an answer."""
    if not isinstance(messages, list):
        return {}
    said_by = [(each.get("role"), each.get("content")) for each in messages if isinstance(each, dict)]
    turns = [(role, text) for role, text in said_by if isinstance(role, str) and isinstance(text, str)]
    if len(turns) < max(2, len(messages)) or turns[-1][0] != "assistant":
        return {}
    said = [(role, text) for role, text in turns[:-1] if role != "system"]
    message = said[0][1] if len(said) == 1 else "\n".join(f"{role}: {text}" for role, text in said)
    system = "\n".join(text for role, text in turns if role == "system")
    return {"system": system, "message": message, "answer": turns[-1][1]}


def _csv_rows(path: Path, text: str) -> Rows:
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t|", key=first.count)
    csv.field_size_limit(10**8)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: Rows = []
    names: list[str] = []
    try:
        for cells in reader:
            if not names:
                names = [cell.strip() for cell in cells]
            elif len(cells) > len(names):
                raise SettingsError(
                    f"{path}, line {reader.line_num} has {len(cells)} cells; the first line names {len(names)} columns."
                    f" Put quotes around a cell that holds {delimiter!r}."
                )
            elif any(cell.strip() for cell in cells):
                rows.append({name: cell for name, cell in zip(names, cells, strict=False) if name})
    except csv.Error as error:
        raise SettingsError(f"{path}, line {reader.line_num} is not CSV: {error}.") from None
    named = [name for name in names if name]
    if rows and not named:
        raise SettingsError(f"{path}: the first line names no column; expected names such as input,expected.")
    if len(set(named)) < len(named):
        raise SettingsError(f"{path}: two columns have one name in the first line: {', '.join(named)}.")
    return rows


# --- columns


@dataclass(frozen=True)
class Cases:
    """Examples made of rows, and which columns they come from.

    Args:
        examples: with inputs set; an input or an output has the name of its column, made a Python name.
        inputs, expected: names of fields.
        notes: what a reader should know, a sentence each.
    """

    examples: tuple[dspy.Example, ...]
    inputs: tuple[str, ...]
    expected: str
    notes: tuple[str, ...]


def cases_of(rows: Rows, inputs: Sequence[str] = (), expected: str | None = None) -> Cases:
    """Make examples of rows.

    Args:
        rows: as `read_rows` gives them.
        inputs, expected: names of columns; none: they are found by their usual names, and the notes say so.

    Raises:
        SettingsError: a column is not there or cannot be found, or too few rows are filled in.
    """
    columns = list(rows[0])
    if len(columns) < 2:
        raise SettingsError(
            f"There is one column, {columns[0]!r}; expected at least two: what is given, and the expected answer."
        )
    if not inputs and expected is None:
        _check_names(rows)
    wanted = _found(columns, expected) if expected else _usual_expected(rows)
    given = [_found(columns, name) for name in inputs] or _usual_inputs(rows, wanted)
    if wanted in given or not given:
        raise SettingsError(f"{wanted!r} cannot be input and expected answer; columns are {', '.join(columns)}.")
    fields = _fields([*given, wanted])
    filled = [row for row in rows if row[wanted] and any(row[name] for name in given)]
    full = list({tuple(row[name] for name in fields): row for row in filled}.values())
    unused = [name for name in columns if name not in fields]
    left = f" Not used: {shorten(', '.join(unused), 200)}." if unused else ""
    notes = [f"Input: {', '.join(given)}. Expected: {wanted}.{left}"]
    if len(filled) < len(rows):
        notes.append(f"{len(rows) - len(filled)} of {len(rows)} rows have an empty cell there and are left out.")
    if len(full) < len(filled):
        notes.append(f"{len(filled) - len(full)} rows repeat another one and are left out.")
    if len(full) < 4:
        raise SettingsError(f"At least 4 different rows are needed, to learn from and to check on; got {len(full)}.")
    if len(full) < 20:
        notes.append(f"{len(full)} rows are few: they can hardly show a difference.")
    made = [dspy.Example({fields[name]: row[name] for name in fields}) for row in full]
    names = tuple(fields[name] for name in given)
    return Cases(tuple(each.with_inputs(*names) for each in made), names, fields[wanted], tuple(notes))


def _found(columns: Sequence[str], name: str) -> str:
    for column in columns:
        if column.casefold() == name.strip().casefold():
            return column
    raise SettingsError(f"There is no column {name!r}; columns are {', '.join(columns)}.")


def _usual(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the columns with one of these names; the first or the last part of a dotted name counts."""
    parts = {column: (column, column.partition(".")[0], column.rpartition(".")[2]) for column in columns}
    found = [column for name in names for column in columns if name in map(str.casefold, parts[column])]
    return list(dict.fromkeys(found))


def _usual_expected(rows: Rows) -> str:
    """Return the column with a usual name of an answer; else the only one that may be it, or that looks like labels."""
    columns = list(rows[0])
    for name in EXPECTED:
        if len(found := _usual(columns, [name])) == 1:
            return found[0]
    likely = _usual(columns, EXPECTED)
    others = [name for name in columns if name in likely or name not in _usual(columns, INPUTS)]
    others = [name for name in others if not _is_row_name(name, rows)]
    labels = [name for name in others if 1 < _different(name, rows) <= len(rows) // 2]
    if len(others) == 1 or len(labels) == 1 or (len(columns) == 2 and others):
        return (labels or others)[-1]
    likely = likely[:1] or (labels or others or columns)[-1:]
    raise SettingsError(
        f"Which column is the expected answer? Name it, as in --expected {shlex.quote(likely[0])}; "
        f"columns are {', '.join(columns)}."
    )


def _usual_inputs(rows: Rows, expected: str) -> list[str]:
    others = [name for name in rows[0] if name != expected]
    usual = _usual([name for name in others if name not in _usual(others, EXPECTED)], INPUTS)
    return usual or [name for name in others if not _is_row_name(name, rows)]


def _different(column: str, rows: Rows) -> int:
    return len({row[column] for row in rows})


def _is_row_name(column: str, rows: Rows) -> bool:
    """Return True if a column numbers the rows, by its name and by its values."""
    return bool(_ROW_NAME.fullmatch(column)) and _different(column, rows) > len(rows) // 2


def _check_names(rows: Rows) -> None:
    """Raise SettingsError if the names of the columns look like a case: the file has no line of names."""
    columns = list(rows[0])
    if _usual(columns, [*EXPECTED, *INPUTS]):
        return
    like_values = [name for name in columns if len(name) > 60 or _NUMBER.fullmatch(name)]
    like_values += [name for name in columns if any(row[name] == name for row in rows)]
    if like_values:
        raise SettingsError(
            f"The first line looks like a case and not like names of columns ({brief(like_values[0])}). Put a line "
            "such as input,expected above it, or name the columns with --input and --expected."
        )


def _fields(columns: Sequence[str]) -> dict[str, str]:
    """Return a name for each column that Python, DSPy and pydantic can take as a field."""
    fields: dict[str, str] = {}
    for column in columns:
        name = re.sub(r"\W+", "_", column).strip("_") or "column"
        name = f"column_{name}" if name[0].isdigit() else name
        taken = [*fields.values(), "reasoning"]
        while (
            keyword.iskeyword(name) or name in taken or hasattr(dspy.Prediction, name) or hasattr(dspy.Signature, name)
        ):
            name += "_"
        fields[column] = name
    return fields


# --- metrics


def folded(text: str) -> str:
    """Return text without differences in case and space."""
    return " ".join(text.casefold().split())


def last_number(text: str) -> float | None:
    """Return the last number in a text; commas between its digits are dropped. None: there is none."""
    found = _NUMBER.findall(text)
    value = float(found[-1].replace(",", "")) if found else math.nan
    return value if math.isfinite(value) else None


def _same_number(given: str, expected: str) -> float:
    value, wanted = last_number(given), last_number(expected)
    return float(value is not None and wanted is not None and math.isclose(value, wanted, rel_tol=1e-6, abs_tol=1e-9))


METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact": lambda given, expected: float(folded(given) == folded(expected)),
    "contains": lambda given, expected: float(folded(expected) in folded(given)),
    "number": _same_number,
    "f1": lambda given, expected: float(f1_score(given, expected)),
}


class Compared(ReadyMade):
    """Scores an output by how it compares with the expected one, 0 to 1, and says what was expected.

    Args:
        how: one of `METRICS`.
        field: the name of the output, in examples and predictions.
    """

    def __init__(self, how: str, field: str) -> None:
        self.how, self.field = how, field

    def judge(self, example: dspy.Example, prediction: Any) -> Feedback:
        """See the class."""
        given, expected = str(getattr(prediction, self.field, "") or ""), example[self.field]
        score = METRICS[self.how](given, expected)
        words = "Correct." if score == 1 else f"Expected {expected[:500]!r}; got {given[:500]!r}."
        return Feedback(score, words)


def usual_metric(cases: Cases) -> str:
    """Return the metric that fits the expected answers: numbers, a few words, or more."""
    answers = [example[cases.expected] for example in cases.examples]
    if all(_NUMBER.fullmatch(answer.strip("$€£% ")) for answer in answers):
        return "number"
    return "exact" if sum(len(answer.split()) for answer in answers) <= 8 * len(answers) else "f1"
