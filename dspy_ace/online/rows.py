"""Rows of a log: calls that were made elsewhere, with what was said of them, in whatever form a tool exports them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from ..errors import SettingsError, brief, checked

Columns = Union[str, list[str], dict[str, str]]
"""One column, several that are named as the fields are, or columns by field."""


@dataclass(frozen=True)
class Row:
    """One logged call; see `OnlineACE.tell` for its parts. None: the row does not have it."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any] | None
    feedback: Any = None
    expected: Mapping[str, Any] | None = None
    key: str | None = None
    source: str | None = None

    @property
    def empty(self) -> bool:
        """True if there is nothing to learn from it."""
        return self.outputs is None or (self.feedback is None and self.expected is None)


def read_rows(rows: Any, **columns: Columns | None) -> Iterator[Row]:
    """Yield the calls of a log.

    Args:
        rows, columns: see `OnlineACE.tell_rows`.

    Raises:
        SettingsError: see there. A column that is in no row is a mistake, too.
    """
    for name, given in columns.items():
        checked(name, given, Columns | None if name not in ("key", "source") else str | None)
    listed = list(_mappings(rows))
    for name, given in columns.items():
        for column in _names(given):
            if listed and all(_missing(_at(row, column)) for row in listed):
                has = ", ".join(map(repr, listed[0]))
                raise SettingsError(f"{name}: no row has a value in {column!r}. The first row has the columns {has}.")
    for number, row in enumerate(listed):
        fields = {name: _fields(row, given) for name, given in columns.items()}
        if fields["inputs"] is None:
            raise SettingsError(f"Row {number} has no inputs ({', '.join(_names(columns['inputs']))}): {brief(row)}.")
        feedback = _feedback(row, columns["feedback"])
        expected = {name: value for name, value in (fields["expected"] or {}).items() if not _blank(value)}
        key, source = (_text(row, columns[name]) for name in ("key", "source"))
        yield Row(fields["inputs"], fields["outputs"], feedback, expected or None, key, source)


def _mappings(rows: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(rows, (str, Path)):
        rows = _read(Path(rows))
    elif hasattr(rows, "to_dicts"):  # a polars frame
        rows = rows.to_dicts()
    elif hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a pandas frame
        rows = rows.to_dict("records")
    if not isinstance(rows, Iterable) or isinstance(rows, Mapping):
        raise SettingsError(f"rows must be mappings, a frame, or the path of a JSON lines file; got {brief(rows)}.")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise SettingsError(f"Row {number} must be a mapping from columns to values; got {brief(row)}.")
        yield row


def _read(path: Path) -> Iterator[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}. Give the path of a JSON lines file in UTF-8.") from error
    lines = [(0, text)] if text.lstrip().startswith("[") else [*enumerate(text.split("\n"), 1)]
    for number, line in lines:
        try:
            yield from () if not line.strip() else [json.loads(line)] if number else json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"{path}{f', line {number},' if number else ''} is no JSON: {error}.") from error


def _names(columns: Columns | None) -> list[str]:
    if columns is None:
        return []
    return [columns] if isinstance(columns, str) else list(columns.values() if isinstance(columns, dict) else columns)


def _fields(row: Mapping[str, Any], columns: Columns | None) -> dict[str, Any] | None:
    """Return fields by name; None if the row has none of them."""
    if isinstance(columns, str):
        value = _parsed(_at(row, columns))
        columns = {columns.rpartition(".")[2]: columns}
        if isinstance(value, Mapping):
            return {str(name): each for name, each in value.items()} or None
    if isinstance(columns, list):
        columns = {name.rpartition(".")[2]: name for name in columns}
    found = {field: _at(row, column) for field, column in (columns or {}).items()}
    return {name: value for name, value in found.items() if not _missing(value)} or None


def _feedback(row: Mapping[str, Any], columns: Columns | None) -> Any:
    """Return a bool, a number, words, or a mapping of `score` and `feedback`; None if there is none.

    In a CSV file bools and numbers are texts: such a text is read as what it stands for.
    """
    if isinstance(columns, str):
        return _scored(_at(row, columns))
    fields = _fields(row, columns) or {}
    read = {name: _scored(value) if name == "score" else value for name, value in fields.items() if not _blank(value)}
    return read or None


def _scored(value: Any) -> Any:
    if _blank(value):
        return None
    if isinstance(value, str):
        try:
            read = json.loads(value.strip().lower())
        except (ValueError, RecursionError):
            return value
        return read if isinstance(read, (bool, int, float)) else value
    return value


def _text(row: Mapping[str, Any], column: Any) -> str | None:
    value = None if column is None else _at(row, column)
    return None if _missing(value) or not str(value) else str(value)


def _at(value: Any, path: str) -> Any:
    """Return what stands at a path of names and positions; None if there is nothing."""
    value = _parsed(value)
    if isinstance(value, Mapping) and path in value:  # a name may hold dots
        return value[path]
    first, _, rest = path.partition(".")
    if isinstance(value, Mapping):
        inner = value.get(first)
    elif isinstance(value, (list, tuple)) and first.isdecimal() and int(first) < len(value):
        inner = value[int(first)]
    else:
        return None
    return _at(inner, rest) if rest else inner


def _parsed(value: Any) -> Any:
    """Return the object or list that a JSON text holds; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _blank(value: Any) -> bool:
    """Return True for a value that is missing, and for a text without a word: an empty cell of a CSV file."""
    return _missing(value) or (isinstance(value, str) and not value.strip())


def _missing(value: Any) -> bool:
    """Return True for None and for what frames write where there is no value (NaN, NA, NaT)."""
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float) and math.isnan(value))
    )
