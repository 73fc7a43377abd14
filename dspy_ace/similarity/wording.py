"""Texts read as units of meaning: content words, numbers, names, literals, negations (for `differences`).

What a single word means stands in `lexicon`; here a text is cut, and each piece is seen in its place.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from . import lexicon

_UNSPACED = 0x2E80  # first character of the scripts that are written without spaces

_TOKEN = re.compile(
    r"""
    (?P<link>https?://[^\s'"`)>\]]+|(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+)
  | (?P<box>\[[ xX]\]|<[A-Za-z_][\w -]*>|\{[A-Za-z_]\w*\})
  | (?P<path>(?<![\w)])(?:~|\.{1,2})?/\w[\w.*-]*(?:/[\w.*-]*)*)
  | (?P<date>\d{4}-\d\d?-\d\d?|\d\d?:\d\d(?::\d\d)?)
  | (?P<number>(?<![\w)])-?\d+(?:,\d{3})*(?:\.\d+)*(?P<unit>[^\W\d_]*\w*)|\d+(?:\.\d+)?)
  | (?P<word>[^\W\d]\w*(?:[.:]{1,2}[^\W\d]\w*)*(?:'[^\W\d_]+)*(?:[+#]{1,2}(?!\w))?)
  | (?P<sign><=|>=|==|!=|=>|->|:=|&&|\|\||[<>=|^×÷±≤≥≠→√%$€£¥₹¢&]|(?<=\s)(?:\*{1,2}|/{1,2}|\+)(?=\s)
      |(?<=[\w)])(?:\*{1,2}|\+|//)(?=[\w(]))
  | (?P<bracket>[()])
  | (?P<stop>[.!?](?=\s|$|['")])|\n|;)
  | (?P<pause>[,:])
  | (?P<other>[^\x00-\x7f])
    """,
    re.VERBOSE,
)
_QUOTED = re.compile(r"`([^`]+)`|\"([^\"\n]{1,120})\"|(?<![\w'])'([^'\n]{1,120})'(?!\w)")


@dataclass(frozen=True)
class Token:
    """One unit of meaning: `key` is what is compared, `shown` what a reason quotes."""

    key: str
    kind: str  # number, literal, name, negation, restriction, word, weak, soft, scene, pause, stop
    shown: str
    reason: int = 0  # the number of the stated reason ("…, to avoid errors") it stands in; 0: none


@lru_cache(maxsize=1024)
def tokens(text: str) -> tuple[Token, ...]:
    """The units of meaning of a text, in order; articles, pronouns and auxiliaries are left out."""
    pieces = _pieces(_clean(text))
    reasons = _reasons(pieces)
    found: list[Token] = []
    at = 0
    while at < len(pieces):
        width, words = _phrase(pieces, at)
        for word in words:
            token = _token(word, reasons[at])
            if token is not None:
                found.append(token)
        at += width
    return tuple(found)


def content_words(text: str) -> list[str]:
    """The stems of the words that carry content, synonyms as one: what lexical similarity counts.

    Far cheaper than `tokens`. Scripts without spaces give characters and pairs of them.
    """
    found: list[str] = []
    for word in re.findall(r"[^\W_]+", text.lower()):
        if ord(max(word)) >= _UNSPACED:
            found += [*word, *(one + other for one, other in pairwise(word))]
        elif word in lexicon.NUMBERS:
            found.append(lexicon.NUMBERS[word])
        elif word not in lexicon.DROP and word not in lexicon.SOFT and lexicon.canon(word) not in lexicon.WEAK:
            found.append(lexicon.canon(word))
    return found


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFC", text).translate(str.maketrans("‘’“”–—‑", "''\"\"---"))
    letters = [char for char in text if char.isalpha()]
    if len(letters) > 20 and sum(char.isupper() for char in letters) > 0.7 * len(letters):
        text = text.lower()
    text = re.sub(r"\n\s*\n", "\n", text)  # empty lines say nothing
    text = re.sub(r"(?m)^\s*(?:[-*•]|\d+[.)])\s+", "", text)  # list marks
    text = re.sub(r"(\*\*|__)(?=\S)((?:(?!\1).)+)(?<=\S)\1", r"\2", text)  # bold
    text = re.sub(r"\b(e\.g|i\.e|etc|vs)\.", lambda found: found[1].replace(".", ""), text)
    text = re.sub(r"\b(?:[A-Z]\.){2,}", lambda found: found[0].replace(".", ""), text)
    text = re.sub(rf"([{chr(_UNSPACED)}-{chr(sys.maxunicode)}])", r" \1 ", text)
    return re.sub(r"\b([Rr]e|[Cc]o|[Ee])-(?=[a-z])", r"\1", text)


class _Piece(NamedTuple):
    raw: str
    group: str  # of _TOKEN; whole: a quoted span
    quoted: str = ""  # code, phrase
    first: bool = False  # opens a sentence, or follows a colon
    low: str = ""  # in lower case, if it is a word of prose


def _said(word: str) -> _Piece:
    """A piece of our own making: the word that stands for a phrase."""
    return _Piece(word, "word", low=word)


class _Span(NamedTuple):
    start: int
    end: int
    kind: str  # code, phrase, whole; "" for prose
    inner: str


def _spans(text: str) -> list[_Span]:
    """What stands in quotes or backticks: code by the token, short phrases, and spans to be kept whole."""
    spans = []
    for found in _QUOTED.finditer(text):
        inner = next(group for group in found.groups() if group is not None)
        words = len(re.findall(r"\w+", inner))
        kind = "code" if found[1] is not None or words < 2 else "phrase" if words < 4 else ""
        if words == 0 or (kind == "code" and re.search(r"[^\w\s.,()]", inner)):
            kind = "whole"
        spans.append(_Span(found.start(), found.end(), kind, " ".join(inner.split()) or inner))
    return spans


def _pieces(text: str) -> list[_Piece]:
    pieces: list[_Piece] = []
    at = 0
    for span in [*_spans(text), _Span(len(text), len(text), "whole", "")]:
        pieces += _scanned(text, at, span.start, "", pieces)
        if span.kind == "whole" and span.inner:
            pieces.append(_Piece(span.inner, "whole"))
        elif span.kind != "whole":
            pieces += _scanned(text, span.start + 1, span.end - 1, span.kind, pieces)
        at = span.end
    depth, kept = 0, []
    for piece in pieces:  # a comma within parentheses ends no clause
        depth += (piece.raw == "(") - (piece.raw == ")" and depth > 0)
        if piece.group != "bracket" and not (piece.group == "pause" and depth):
            kept.append(piece)
    return kept


def _scanned(text: str, start: int, end: int, quoted: str, before: Sequence[_Piece]) -> list[_Piece]:
    found: list[_Piece] = []
    for match in _TOKEN.finditer(text, start, end):
        group = "number" if match.lastgroup == "unit" else str(match.lastgroup)
        previous = found[-1] if found else before[-1] if before else None
        if previous is not None and previous.group == "bracket":
            first = previous.first
        else:
            opened = previous is None or previous.group == "stop" or previous.raw == ":"
            first = opened or (previous is not None and previous.first and previous.group == "number")
        low = match[0].lower() if group == "word" and quoted != "code" else ""
        found.append(_Piece(match[0], group, quoted, first, low))
    return found


def _phrase(pieces: Sequence[_Piece], at: int) -> tuple[int, list[_Piece]]:
    """The number of pieces from `at` that belong together, and the words that stand for them."""
    piece = pieces[at]
    before = pieces[at - 1] if at else _Piece("", "stop")
    after = pieces[at + 1] if at + 1 < len(pieces) else _Piece("", "stop")
    if piece.low == "first":  # an order of steps, which the sequence tells anyway
        pause = {before.group, after.group} & {"stop", "pause"}
        if pause or before.low in ("you", "we", "always", "then") or after.low in ("to", "and"):
            return 1, []
    if piece.low in lexicon.BOUNDS and after.group in ("number", "sign"):
        return 1, [_said(lexicon.BOUNDS[piece.low])]
    if piece.low in lexicon.OPENINGS:
        for width in (4, 3, 2, 1):
            words = tuple(piece.low for piece in pieces[at : at + width])
            if words in lexicon.PHRASES:
                return width, [_said(word) for word in lexicon.PHRASES[words]]
    return 1, [piece]


def _token(piece: _Piece, reason: int) -> Token | None:
    raw, group = piece.raw, piece.group
    if group == "word" and piece.quoted != "code":
        return _word(piece, reason)
    if group in ("stop", "pause"):
        return Token(raw, group, raw)
    if group == "number":
        ordinal = lexicon.ORDINALS.get(raw)
        return Token(ordinal or raw.replace(",", ""), "word" if ordinal else "number", raw, reason)
    if raw == "&":
        return Token("and", "soft", raw, reason)
    if group == "other" and unicodedata.category(raw)[0] in "PZC":  # punctuation, space, control characters
        return None
    key = raw.rstrip(".,:;") if group in ("link", "path") else lexicon.SIGNS.get(raw, raw)
    return Token(key, "literal", raw, reason)


def _word(piece: _Piece, reason: int) -> Token | None:
    raw = piece.raw
    low = raw.lower().split("'")[0]
    key, kind = lexicon.canon(low), "word"
    capital = raw[0].isupper() and not piece.first
    if re.search(r"[_.:\d#+]|[a-z][A-Z]", raw) and not re.fullmatch(r"[A-Z]{2,}s", raw):
        key, kind = raw, "literal"
    elif (raw.isupper() and low in lexicon.CAPITALS) or (raw == "A" and capital):
        key, kind = raw, "name"
    elif raw.lower().endswith("n't") or (low == "avoid" and piece.first):
        key, kind = "not", "negation"
    elif low in lexicon.NEGATIONS:
        key, kind = lexicon.NEGATIONS[low], "negation"
    elif low in lexicon.RESTRICTIONS:
        key, kind = lexicon.RESTRICTIONS[low], "restriction"
    elif low in lexicon.DROP:
        return None
    elif low in lexicon.SOFT:
        key, kind = lexicon.SOFT[low], "soft"
    elif low in lexicon.NUMBERS:
        key, kind = lexicon.NUMBERS[low], "number"
    elif piece.quoted == "phrase" and capital:
        key, kind = raw, "literal"
    elif capital and key not in lexicon.WEAK and low not in lexicon.ACRONYMS:
        key, kind = lexicon.stem(low), "name"
    elif key in lexicon.WEAK or (reason and key in lexicon.PRAISE):
        kind = "weak"
    return Token(key, kind, raw, reason)


def _reasons(pieces: Sequence[_Piece]) -> list[int]:
    """For every piece the number of the stated reason it stands in: what an instruction is good for; 0: none."""
    numbers = []
    latest = current = 0
    for at, piece in enumerate(pieces):
        ahead = [other.low for other in pieces[at + 1 : at + 6]] or [""]
        if piece.group == "stop" or (piece.group == "pause" and ahead[0] in lexicon.WORK):
            current = 0
        elif _opens_reason(piece, pieces[at - 1].raw if at else "", ahead, current > 0):
            latest = current = latest + 1
        numbers.append(current)
    return numbers


def _opens_reason(piece: _Piece, before: str, ahead: Sequence[str], inside: bool) -> bool:
    """Whether a reason begins with `piece`, which stands between `before` and the words `ahead`."""
    low, key, following = piece.low, lexicon.canon(piece.low), lexicon.canon(ahead[0])
    if piece.first and low in ("this", "these", "that", "it", "doing"):
        praised = not lexicon.STRESSED.isdisjoint(ahead)
        return praised or any(lexicon.canon(word) in lexicon.REASON_VERBS for word in ahead[:4])
    if low == "to" and following in lexicon.REASON_VERBS and ahead[0] not in lexicon.TOO_MUCH:
        return following != "check" or not lexicon.QUALITIES.isdisjoint(ahead[1:])
    if low == "for" or (low == "ensuring" and before != ","):
        return not inside and not lexicon.QUALITIES.isdisjoint(ahead[:2])
    if low == "and":
        return following in ("improve", "promot", "foster") or (inside and following in lexicon.REASON_VERBS)
    if before == "," and low.endswith("ing") and key in lexicon.REASON_VERBS:
        return key != "check" or not (ahead[0] in lexicon.SOFT or ahead[0] in lexicon.DROP)
    if low in lexicon.STRESSED:
        return not inside and ahead[0] in ("for", "to")
    if before == "," and low in ("since", "as"):
        return low == "since" or ahead[0] in lexicon.DROP
    return low == "because" or (low == "so" and ahead[0] == "that")
