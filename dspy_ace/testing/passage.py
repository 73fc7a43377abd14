"""What is judged: a text as weighted phrases, with more weight near the thing that is asked about."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from .words import STOP_STEMS, stem, tokens

PHRASE = 3
"""Longest phrase, in tokens, that a quoted cue is matched by."""

_QUOTED = re.compile(r"[\"“'‘`]([^\"“”'‘’`\n]{1,60})[\"”'’`]")
_KIND_WORDS = {
    "percent": "percent percentage % rate ratio",
    "money": "amount dollar dollars $ million billion cost expense cash money value",
    "duration": "year years month months day days term period life duration",
    "date": "date",
    "count": "number count shares",
}
_KINDS = (
    *((kind, tuple(names.split())) for kind, names in _KIND_WORDS.items()),
    ("price", ("price", "per share", "par value")),
)
_MONTH_NAMES = "january february march april may june july august september october november december"
_MONTHS = frozenset(_MONTH_NAMES.split())


@dataclass(frozen=True)
class Passage:
    """`grams`: phrase of up to three stems → closeness (1 at the focus, less further off, 1 without a focus);
    `kind`: percent, price, money, duration, date, count, or empty; `near`: surface words by distance.
    """

    text: str
    grams: Mapping[str, float]
    kind: str = ""
    near: tuple[str, ...] = ()
    focus: str = ""


@lru_cache(maxsize=4096)
def passage(text: str) -> Passage:
    """`text` as a passage. A short quoted string that occurs again in the text is taken for its focus."""
    focus, body = _focus(text)
    words = tokens(body)
    folded = [stem(word) for word in words]
    centre = _find(words, tokens(focus)) if focus else None
    if centre is None:
        return Passage(text, _grams(folded, None), near=tuple(words))
    width = max(1, len(tokens(focus)))
    order = sorted(range(len(words)), key=lambda i: abs(i - centre))
    near = tuple(words[i] for i in order if not centre <= i < centre + width)
    return Passage(text, _grams(folded, centre), _kind(words, centre), near, focus)


def _focus(text: str) -> tuple[str, str]:
    for match in _QUOTED.finditer(text):
        rest = text[match.end() :]
        if match[1].strip() and match[1] in rest:
            return match[1], rest
    return "", text


def _find(words: list[str], wanted: list[str]) -> int | None:
    if not wanted:
        return None
    spots = [i for i in range(len(words) - len(wanted) + 1) if words[i : i + len(wanted)] == wanted]
    return spots[0] if spots else None


def closeness(distance: int) -> float:
    """Weight of a token that stands `distance` tokens from the focus."""
    return max(0.12, 1.0 / (1.0 + math.pow(distance / 6.0, 1.5)))


def _grams(folded: list[str], centre: int | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for start in range(len(folded)):
        for size in range(1, PHRASE + 1):
            piece = folded[start : start + size]
            if len(piece) < size or (size == 1 and piece[0] in STOP_STEMS):
                continue
            weight = 1.0
            if centre is not None:
                inside = start <= centre < start + size
                weight = closeness(0 if inside else min(abs(start - centre), abs(start + size - 1 - centre)))
            key = " ".join(piece)
            if weight > found.get(key, 0.0):
                found[key] = weight
    return found


def _kind(words: list[str], at: int) -> str:
    """What sort of thing the number at position `at` is, read from the words around it; empty for a word."""
    if not words[at][0].isdigit():
        return ""
    before = [w.lower() for w in words[max(0, at - 2) : at]]
    after = [w.lower() for w in words[at + 1 : at + 6]]
    if after[:1] == ["%"] or after[:1] == ["percent"] or after[:2] == ["basis", "points"]:
        return "percent"
    if before[-1:] and before[-1] in "$€£¥":
        joined = " ".join(after[:4])
        return "price" if "per" in after[:2] or "per share" in joined or "a share" in joined else "money"
    if after[:1] and after[0].rstrip("s") in ("year", "month", "day", "week", "quarter"):
        return "duration"
    if (before and before[-1] in _MONTHS) or re.fullmatch(r"(?:19|20)\d\d", words[at]):
        return "date"
    return "count"


@lru_cache(maxsize=16384)
def kind_of_pattern(phrase: str) -> str:
    """The kind of the number that stands as `#` in a phrase such as `$ # million`; empty without one."""
    words = ["7" if word == "#" else word for word in phrase.split()]
    return _kind(words, words.index("7")) if "7" in words else ""


@lru_cache(maxsize=16384)
def kind_named(text: str) -> str:
    """The kind that a label or phrase speaks of, by its last telling word; empty when it does not say."""
    low = " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[%$]", text)).lower()
    best, where = "", -1
    for kind, names in _KINDS:
        for name in names:
            spot = f" {low} ".rfind(f" {name} ")
            if spot > where:
                best, where = kind, spot
    return best
