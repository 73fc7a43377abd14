"""Words, stems, sentences and pieces of text, for all parts of the offline model.

Nothing here knows a task. The only word list is one of general English function words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_STOP = """
a about above after again against all also am an and any are aren't as asked at be because been before being
below between both but by can cannot could did do does doing done down during each either else etc every few for
from further get gets given go goes going had has have having he her here hers him his how however i if in into
is isn't it its itself just let like likely made make many may me might more most much must my near neither no
nor not now of off on once one only onto or other our out over own per please quite rather same say says shall
she should since so some someone something still such text than that the their them then there these they thing
this those though through thus to too toward under until up upon us use used uses using very via was we were
what when where whether which while who whom whose why will with within without would yes yet you your answer
answers case cases choose class classify correct entity example expected field give input instead label labelled
mean means mention mentioned mentions output pick question questions reply request response return right route
sentence tag task wrong
"""
STOP_WORDS: frozenset[str] = frozenset(_STOP.split())
"""General function words, and words that every request uses. They are never cues."""

_TOKEN = re.compile(r"\d[\d.,]*\d|\d|[^\W\d_]+(?:['’][^\W\d_]+)?|[$€£¥%#]")
_CAMEL = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]+")
_VOWEL = re.compile(r"[aeiouy]")


def tokens(text: str) -> list[str]:
    """Return the tokens of `text` as written: words, numbers, and the signs `$ € £ ¥ % #`."""
    return _TOKEN.findall(text)


def parts(text: str) -> list[list[str]]:
    """Return the tokens of `text` in groups; punctuation starts a new group."""
    found: list[list[str]] = []
    end = -1
    for match in _TOKEN.finditer(text):
        if end < 0 or text[end : match.start()].strip(" \t-–/'’"):
            found.append([])
        found[-1].append(match[0])
        end = match.end()
    return found


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return the stem of `word`: lower case, without common English endings; `#` for a number."""
    if word[0].isdigit():
        return "#"
    w = word.lower().replace("’", "'")
    w = w.removesuffix("'s")
    if len(w) <= 3 or not w.isascii():
        return w
    for ending, put in _ENDINGS:
        if w.endswith(ending) and len(w) - len(ending) >= 3 and _VOWEL.search(w[: -len(ending)]):
            w = w[: -len(ending)] + put
            break
    if len(w) > 4 and w[-1] == w[-2] and w[-1] not in "sle":
        w = w[:-1]
    return w[:-1] if len(w) > 4 and w.endswith("e") else w


_ENDINGS = (
    ("ations", "at"), ("ation", "at"), ("ments", "ment"), ("ingly", ""), ("ities", "ity"), ("iness", "y"),
    ("sses", "ss"), ("ings", ""), ("ions", "ion"), ("ies", "y"), ("ied", "y"), ("ing", ""), ("ers", "er"),
    ("edly", ""), ("ed", ""), ("ly", ""), ("ss", "ss"), ("us", "us"), ("is", "is"), ("es", "e"), ("s", ""),
)  # fmt: skip


@lru_cache(maxsize=8192)
def stems(text: str) -> tuple[str, ...]:
    """Return the stems of all tokens of `text`, in order."""
    return tuple(stem(word) for word in tokens(text))


def is_content(word: str) -> bool:
    """Return True if `word` has a meaning of its own: it is no stop word, number or sign."""
    low = word.lower()
    return len(low) > 1 and low[0].isalpha() and low not in STOP_WORDS


STOP_STEMS: frozenset[str] = frozenset(stem(word) for word in STOP_WORDS)


def content_stems(text: str) -> list[str]:
    """Return the stems of the content words of `text`, in order, with repeats."""
    return [token for token in stems(text) if len(token) > 1 and token not in STOP_STEMS]


@lru_cache(maxsize=16384)
def split_name(name: str) -> tuple[str, ...]:
    """Return the stems of the words in a label: `camelCase`, `snake_case`, hyphens and spaces separate words."""
    return tuple(stem(part) for part in _CAMEL.findall(name))


def normal(text: str) -> str:
    """Return `text` for comparison: lower case, one space for each run of other signs than letters and digits."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


_SENTENCE_END = re.compile(r"(?<=[.!?;])[\"'”’)]*\s+(?=\S)|\s*\n+\s*|\s+[•·]\s+")


def sentences(text: str) -> list[str]:
    """Cut `text` at sentence ends, semicolons and line breaks; drop blank pieces."""
    return [piece.strip() for piece in _SENTENCE_END.split(text) if piece.strip()]


def clip(text: str, words: int) -> str:
    """Return the first `words` words of `text` on one line, with an ellipsis if something was cut."""
    all_words = text.split()
    return " ".join(all_words[:words]) + (" …" if len(all_words) > words else "")


def cut(marks: Iterable[re.Match[str]], text: str) -> list[tuple[re.Match[str], str]]:
    """Return each of `marks`, in order, with the text from its end to the next one.

    Example:
        >>> [(mark[0], rest) for mark, rest in cut(re.finditer("[0-9]", "1one2two"), "1one2two")]
        [('1', 'one'), ('2', 'two')]
    """
    listed = list(marks)
    ends = [mark.start() for mark in listed[1:]] + [len(text)]
    return [(mark, text[mark.end() : end]) for mark, end in zip(listed, ends, strict=False)]


def first_group(match: re.Match[str]) -> str:
    """Return the first group of `match` that is not empty; `""` if all are."""
    return next((group for group in match.groups() if group), "")
