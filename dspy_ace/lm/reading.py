"""Structured text in a reply, read item by item.

One bad item of a list must not cost the others, a model that writes prose around its JSON has still answered,
and an item that the end of the reply cuts in two is never taken for a whole one.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import json_repair

_TORN = "the reply ends in the middle of it"
_MAX_ITEM_CHARS = 10_000  # of an item that has to be repaired
_MAX_ITEMS = 200  # of a list that has to be repaired
_DECODER = json.JSONDecoder(strict=False)  # a raw newline in a string is common, and harmless
# what may stand before a structure on its line (list mark, label, fence) and how a structure begins
_OPENING = re.compile(
    r"^[ \t]*(?:(?:[-*•]|\d+[.)])[ \t]+)?(?:[*_\"'`]{0,3}\w[\w ]{0,40}[*_\"'`]{0,3}[ \t]*[:=][*_]{0,2}[ \t]*)?"
    r"`{0,3}(?:json)?[ \t]*(?!\[\[? ?##)(?=[\[{]\s*(?:[\[{\"'\]}]|//|/\*|#))",
    re.MULTILINE,
)
_NEXT = re.compile(r"\s*(?:,\s*)?(?!\[\[? ?##)(?=[\[{])")
_BETWEEN = re.compile(r"(?:[\s,]|//[^\n]*|#[^\n]*|/\*.*?\*/)*", re.DOTALL)
_BARE = re.compile(r"[^\s,\[\]{\"']+|.", re.DOTALL)
_ENDED = re.compile(r"\s*(?:[,\]}]|//|#|\n|`|\Z)")
_LINE_ENDED = re.compile(r"[ \t,;.`*]*(?:\n|\Z)")
_LAST = r"\s*(?:,\s*)?\][ \t]*(?:```|\n|\Z)"
_STRING_END = re.compile(rf"[\"'](?=\s*,\s*[\"'{{]|{_LAST})")
_STRING_END_AT_LINE_END = re.compile(rf"[\"'](?=[ \t]*(?:,[ \t]*)?\n\s*[\"'{{]|{_LAST})")
_ODD_ESCAPE = re.compile(r"\\[^\\'\"abfnrtvxuUN0-7\n]")  # Python would warn of it
_LISTED = re.compile(r"(\s*)(?:[-*•]|\d+[.)])\s+(\S.*)")
_PAIR = re.compile(r"[^\w\n]*(\w[\w-]*)[\"'`\])*]*[ \t]*(?:[:=→–—]|->|=>)[ \t]*[\"'`(*]*(\w+)\W*")
_NOTHING = re.compile(
    r"\W*(?:(?:no|none|not|nothing|null|n/a|empty|new|further|additional|more|key|other|cited|applicable|changes?|"
    r"insights?|lessons?|operations?|updates?|bullets?|tags?|are|is|was|were|needed|required|necessary|to|add|tag|"
    r"report|at|this|time)\b\W*)*",
    re.IGNORECASE,
)


class UnreadableError(ValueError):
    """A field of a reply that is not what was asked for; its text is told to the model."""


@dataclass(frozen=True)
class Broken:
    """What stands in a list where no item could be read.

    Args:
        text: that part of the reply.
        reason: why it is no item; one that the end of the reply cuts in two is broken as well.
    """

    text: str
    reason: str


def printable(text: str) -> str:
    """`text` as valid Unicode: surrogate pairs are joined, lone ones replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def restored(text: str) -> str:
    r"""`text` as its writer meant it: `printable`; a form feed or backspace is `\f` or `\b` of a `\frac`, `\beta`."""
    return printable(text).replace("\f", r"\f").replace("\b", r"\b")


def is_nothing(text: str) -> bool:
    """Whether `text` only says that there is nothing: `(empty)`, `None.`, `No new insights.`"""
    return len(text) < 200 and _NOTHING.fullmatch(text) is not None


def read_list(value: Any, what: str) -> list[Any]:
    """The items of a list field: JSON (fenced, commented, repaired if need be) or one behind each `-` or `1.`.

    Lists in the list are flattened; an object that is no list is its only item, unless it wraps the list.

    Returns:
        The items; a `Broken` for each part that could not be read as one.

    Raises:
        UnreadableError: there is text, but no list in it, or no item of it could be read.
    """
    found = structures(value)
    items = [item for structure in found for item in _flat(_unwrapped(structure, what))]
    text = str("" if value is None else value).strip()
    if items and all(isinstance(item, Broken) for item in items):
        raise UnreadableError(
            f"{what}: {items[0].reason}. Answer with a complete JSON list, more briefly if need be; got {text[:300]!r}"
        )
    if not found:
        items = _listed(text)
        if not items and not is_nothing(text):
            raise UnreadableError(f"{what} must be a JSON list; got {text[:300]!r}")
    return items


def read_mapping(value: Any, what: str) -> dict[str, Any]:
    """The entries of an object field: JSON, or one `name: value` a line.

    A list of single-entry objects, or of {id, tag} pairs, is taken as one object.

    Raises:
        UnreadableError: there is text, but no object in it.
    """
    found = structures(value)
    text = str("" if value is None else value).strip()
    entries: dict[str, Any] = {}
    for item in (item for structure in found for item in _flat(_unwrapped(structure, what))):
        data = _repaired(item.text) if isinstance(item, Broken) else item
        if not isinstance(data, Mapping):
            raise UnreadableError(f"{what} must be a JSON object; got {text[:300]!r}")
        name = data.get("id", data.get("bullet_id"))
        tag = data.get("tag", data.get("vote"))
        entries.update({str(name): tag} if name is not None else {str(k): v for k, v in data.items()})
    if not found:
        pairs = map(_PAIR.fullmatch, text.splitlines())
        entries = {pair[1]: pair[2] for pair in pairs if pair}
        if not entries and not is_nothing(text):
            raise UnreadableError(f"{what} must be a JSON object; got {text[:300]!r}")
    return entries


def _unwrapped(structure: Any, what: str) -> Any:
    """`{"operations": [...]}` → `[...]`."""
    return structure[what] if isinstance(structure, Mapping) and what in structure else structure


def _flat(data: Any) -> Iterable[Any]:
    """The items of nested lists in order; anything else is its only item."""
    waiting = [data]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (list, tuple)):
            waiting.extend(reversed(item))
        else:
            yield item


def _listed(text: str) -> list[str]:
    """Items behind `-` or `1.`; lines that are indented below an item, or follow it directly, belong to it."""
    items: list[str] = []
    indent: int | None = None
    is_open = False
    for line in map(str.rstrip, text.splitlines()):
        found = _LISTED.match(line)
        if found and (indent is None or len(found[1]) <= indent):
            indent, is_open = len(found[1]), True
            items.append(found[2])
        elif not line:
            is_open = False
        elif items and (line[0].isspace() or (is_open and not line.startswith("#"))):
            items[-1] += f"\n{line.strip()}"
        else:
            is_open = False
    return items


def structures(value: Any) -> list[Any]:
    """The JSON lists and objects in a field, in order, whatever stands around them. Never raises."""
    if not isinstance(value, str):
        return [value] if isinstance(value, (list, tuple, Mapping)) else []
    text = value.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.partition("\n")[2][:-3].strip()
    whole = _strict(text)
    if isinstance(whole, str) and whole.strip()[:1] in ("[", "{"):
        return structures(whole)
    if isinstance(whole, (list, tuple, dict)):
        return [whole]
    found: list[Any] = []
    at = 0
    while opening := _OPENING.search(text, at):
        start: int | None = opening.end()
        while start is not None:
            data, at = _structure(text, start)
            found += [] if data is None else [data]
            following = _NEXT.match(text, at) if data is not None else None
            start = following.end() if following else None
    return found


def _structure(text: str, start: int) -> tuple[Any, int]:
    """The structure that begins at `start`, and where it ends; (None, the next line) for prose in brackets."""
    try:
        data, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return _items(text, start) if text[start] == "[" else _item(text, start, multiline=True)
    holds_objects = isinstance(data, dict) or any(isinstance(item, dict) for item in data)
    if holds_objects or _LINE_ENDED.match(text, end):
        return data, end
    newline = text.find("\n", end)
    return None, len(text) if newline < 0 else newline


def _items(text: str, start: int) -> tuple[list[Any], int]:
    """The items of a list that is not valid JSON, one by one, and where it ends."""
    items: list[Any] = []
    multiline = re.match(r"\[[ \t]*\n", text[start : start + 100]) is not None
    at = start + 1
    while True:
        between = _BETWEEN.match(text, at)
        at = between.end() if between else at
        if at >= len(text):
            return items, at
        if text[at] == "]":
            return items, at + 1
        if len(items) == _MAX_ITEMS:
            return [*items, Broken(text[at:], f"more than {_MAX_ITEMS} items")], len(text)
        if text[at] in "{[\"'":
            item, at = _item(text, at, multiline)
            items.append(item)
        else:  # an ellipsis, a bare word
            bare = _BARE.match(text, at)
            at = bare.end() if bare else at + 1


def _item(text: str, start: int, multiline: bool) -> tuple[Any, int]:
    """The item that begins at `start`: as it stands, or repaired up to where it seems to end; else Broken."""
    try:
        item, end = _DECODER.raw_decode(text, start)
        if _ENDED.match(text, end):
            return item, end
    except (ValueError, RecursionError) as error:
        if "Unterminated string" in str(error):  # no quote follows: a bracket at the end is part of the text
            return Broken(text[start:], _TORN), len(text)
    ends = [found.end() for found in islice(_ending(text, start, multiline).finditer(text, start + 1), 8)]
    for end in ends:
        item = _strict(text[start:end])
        if item is not None:
            return item, end
    if not ends:
        return Broken(text[start:], _TORN), len(text)
    chunk = text[start : ends[0]]
    if chunk[0] in "\"'":  # quotes within quotes
        return chunk[1:-1].replace("\\n", "\n").replace('\\"', '"'), ends[0]
    item = _repaired(chunk)
    return (item if isinstance(item, (Mapping, list)) else Broken(chunk, "it is not valid JSON")), ends[0]


def _ending(text: str, start: int, multiline: bool) -> re.Pattern[str]:
    """How an item that is not valid JSON seems to end: before the next of its kind, or at the list's end."""
    if text[start] in "\"'":
        return _STRING_END_AT_LINE_END if multiline else _STRING_END
    first_key = re.match(r"[{\[]\s*[\"']?(\w*)", text[start : start + 200])
    same = re.escape(first_key[1]) if first_key else ""
    return re.compile(rf"[}}\]](?=\s*(?:,\s*)?\{{\s*[\"']?{same}|{_LAST}|\s*(?:```|\Z))")


def _strict(text: str) -> Any:
    """`text` as JSON or a Python literal; None if it is neither."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        pass
    if text[:1] not in ("[", "{", "(", "'", '"') or _ODD_ESCAPE.search(text):
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _repaired(text: str) -> Any:
    """`text` as JSON after repair; None if it is past that, or too long to be one item."""
    try:
        return json_repair.loads(text) if len(text) <= _MAX_ITEM_CHARS else None
    except Exception:  # noqa: BLE001 - on odd text it fails its own assertions: past repair
        return None
