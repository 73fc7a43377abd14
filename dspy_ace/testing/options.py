"""Choices written inside a text: option lists, lettered options, numbered questions about one entity each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .words import normal, split_name


@dataclass(frozen=True)
class Option:
    """One possible answer. `value`: what is replied; `words`: stems of its own words; `aliases`: its folded names."""

    value: Any
    words: tuple[str, ...]
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Listed:
    """Options found in a text, and that text without the list (what is left to be judged)."""

    options: tuple[str, ...]
    rest: str


_LEAD = re.compile(
    r"\b(?:options?|choices|labels|categories|candidates|classes|possible (?:answers|values|tags|labels)|"
    r"allowed values)\b[^:\n.]{0,40}:[ \t]*"
    r"|\b(?:one of|choose (?:from|between|among)|pick (?:from|between)|select (?:from|between)|classify (?:as|into))\b"
    r"[^:\n.,]{0,30}?:?[ \t]*(?=[\w\"'`\[(])",
    re.IGNORECASE,
)
_ITEM_LINE = re.compile(r"\s*(?:[-*•]|\(?\d+[.)])\s+(.+)")
_LETTERED = re.compile(r"^[ \t]*\(?([A-J])[).:][ \t]+(\S.*)$", re.MULTILINE)
_PAIR = re.compile(r"\b(yes|true)\b['\"`”]?(?:\s*/\s*|,?\s+or\s+)['\"`“]?(no|false)\b", re.IGNORECASE)
_NUMBERED = re.compile(r"^[ \t]*(\d{1,2})[.)][ \t]+(\S.*)$", re.MULTILINE)


@lru_cache(maxsize=512)
def listed(text: str) -> Listed:
    """The first list of at least two options in `text`; without one, no options and the whole text."""
    for lead in _LEAD.finditer(text):
        body, end = _region(text, lead.end())
        options = _split_items(body)
        if options:
            return Listed(options, f"{text[: lead.start()]} {text[end:]}")
    return Listed((), text)


def _region(text: str, start: int) -> tuple[str, int]:
    """The text of a list that starts at `start`: item lines, or up to the end of the sentence."""
    if text[start:].lstrip(" \t").startswith("\n"):
        lines, position = [], start + text[start:].index("\n") + 1
        for line in text[position:].splitlines(keepends=True):
            item = _ITEM_LINE.match(line)
            if item is None or len(item[1]) > 160:
                break
            lines.append(item[1].split(": ")[0].strip())
            position += len(line)
        return "\n".join(lines), position
    if start < len(text) and text[start] in "[(":
        close = text.find("]" if text[start] == "[" else ")", start)
        if close > 0:
            return text[start + 1 : close], close + 1
    stop = re.compile(r"\.(?=\s|$)|\n").search(text, start)
    end = stop.start() if stop else len(text)
    return text[start:end], end


@lru_cache(maxsize=256)
def _split_items(body: str) -> tuple[str, ...]:
    for mark in ("\n", ";", "|", ",", "/"):
        if mark in body:
            pieces = re.split(re.escape(mark) + (r"|\s+or\s+|\s+and\s+" if mark == "," else ""), body)
            break
    else:
        pieces = re.split(r"\s+or\s+", body)
    cleaned = [re.sub(r"^(?:or|and)\s+", "", piece.strip()).strip(" \t\"'`“”‘’*.") for piece in pieces]
    items = tuple(dict.fromkeys(piece for piece in cleaned if piece))
    good = len(items) >= 2 and all(len(i) <= 160 and len(i.split()) <= 8 for i in items)
    return items if good else ()


def lettered(text: str) -> dict[str, str]:
    """Options written as lines `A) …`, `B) …`: letter → text; empty unless at least A and B are there in order."""
    found = {m[1]: m[2].strip() for m in _LETTERED.finditer(text)}
    letters = sorted(found)
    return found if len(letters) >= 2 and letters == [chr(65 + i) for i in range(len(letters))] else {}


def yes_no(text: str) -> tuple[str, ...]:
    """The two words of the first `yes or no` / `true/false` in `text`, as spelled there."""
    match = _PAIR.search(text)
    return (match[1], match[2]) if match else ()


def numbered_questions(text: str) -> list[str]:
    """The texts of questions numbered 1, 2, 3 … in `text`; empty for fewer than two."""
    found = list(_NUMBERED.finditer(text))
    if len(found) < 2 or [int(m[1]) for m in found] != list(range(1, len(found) + 1)):
        return []
    return [m[2].strip() for m in found]


@lru_cache(maxsize=512)
def as_options(values: tuple[Any, ...], names: tuple[str, ...] = ()) -> tuple[Option, ...]:
    """Options for `values`; `names` gives the text of each when the value itself says nothing (`A`, `B`)."""
    made = []
    for position, value in enumerate(values):
        text = names[position] if position < len(names) else str(value)
        words = tuple(dict.fromkeys(split_name(text)))
        camel = " ".join(re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+", str(value))).lower()
        aliases = {normal(str(value)), camel, normal(text)} - {""}
        made.append(Option(value, words, tuple(sorted(aliases))))
    return tuple(made)


@lru_cache(maxsize=256)
def truth(name: str) -> tuple[Option, Option]:
    """The two options of a truth value; what is said of the field's own name is said of True (`is allowed`)."""
    called = re.sub(r"^(?:is|has|should|can|was|be) ", "", normal(name))
    aliases = tuple(sorted({"true", "yes", called} - {""}))
    return Option(True, split_name(f"true yes {called}"), aliases), Option(False, ("fals", "no"), ("false", "no"))
