"""Texts read as units of meaning: content words, numbers, names, literals, negations (for `differences`)."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

_UNSPACED = 0x2E80  # first character of the scripts that are written without spaces


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _grouped(table: str) -> dict[str, str]:
    """`"in: in within | on: on onto"` → each word to the name of its group."""
    groups = [entry.split(":") for entry in table.split("|")]
    return {word: name.strip() for name, words in groups for word in words.split()}


_IRREGULAR = _grouped(
    "send: sent | find: found | make: made | get: got | take: took taken | choose: chose chosen |"
    "write: wrote written | pay: paid |"
    "buy: bought | sell: sold | keep: kept | give: gave given | show: shown | build: built | run: ran |"
    "begin: began begun | come: came | go: went gone | say: said | tell: told | bring: brought | lose: lost |"
    "see: saw seen | know: knew known | draw: drawn | spend: spent | mean: meant | hold: held | fall: fell fallen |"
    "rise: rose risen | color: colour | behavior: behaviour | favor: favour | center: centre | person: people |"
    "child: children | id: ids | api: apis | index: indices indexes | criterion: criteria | analysis: analyses"
)


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    """A light stem of a lower-case word: plural, -ed, -ing and a last e go; nothing else does."""
    word = _IRREGULAR.get(word, word)
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-3] + "y" if word.endswith("ies") and len(word) > 4 else word[:-1]
        word = re.sub(r"(sse|xe|che|she|zze)$", lambda end: end[0][:-1], word)
        word = _IRREGULAR.get(word, word)
    base = re.sub(r"(?<!e)ed$|ing$", "", word)
    if base != word and len(base) > 1 and re.search("[aeiouy]", base):
        if len(base) > 3 and base[-1] == base[-2] and base[-1] not in "lsz":
            base = base[:-1]
        elif re.fullmatch(r"[^aeiouy]{0,3}[aeiouy][^aeiouywx]", base):
            base += "e"  # rating -> rate
        word = base
    word = re.sub(r"is(e|ation)?$", r"iz\1", word) if len(word) > 6 else word
    if len(word) > 5 and word.endswith("ll"):
        word = word[:-1]
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


_SYNONYMS = {
    _stem(word): name
    for word, name in _grouped(
        "check: check verify confirm validate ensure | use: use utilize | get: get fetch retrieve obtain |"
        "find: find locate | identify: identify determine | choose: choose select pick | remove: remove delete |"
        "buy: buy purchase | start: start begin | finish: finish complete end | compute: compute calculate |"
        "fast: fast quick rapid | big: big large | small: small little | help: help assist |"
        "contain: contain comprise |"
        "change: change modify edit alter | show: show display | reply: reply respond | error: error mistake |"
        "wrong: wrong incorrect | exact: exact precise | enough: enough sufficient | same: same identical |"
        "whole: whole entire | because: because since | keep: keep retain preserve maintain | allow: allow permit |"
        "build: build construct | reduce: reduce minimize lessen | improve: improve enhance | avoid: avoid prevent |"
        "given: given provided specified | redundant: redundant unnecessary needless superfluous | need: need require |"
        "immediately: immediately instantly | above: above exceed surpass | almost: almost nearly |"
        "often: often frequently | many: many numerous | latest: latest newest | try: try attempt |"
        "individually: individually separately"
    ).items()
}


def canon(word: str) -> str:
    """The key of a lower-case word: its stem, or the name of its synonyms."""
    return _SYNONYMS.get(_stem(word), _stem(word))


def _canons(words: str) -> frozenset[str]:
    return frozenset(map(canon, words.split()))


def _paired(table: str) -> dict[str, str]:
    """`"buy sell|open close"` → each word's key to that of the other; of several others the last."""
    pairs = [pair.split() for pair in table.split("|")]
    return {_stem(one): _stem(other) for pair in pairs for one, other in (pair, pair[::-1])}


_DROP = _listed(
    "a an the is are was were be been being am has have had having do does did it its they them i you we me this that "
    "these those which who whom whose there here of so very quite really as such eg ie etc then thus therefore hence "
    "however instead too also please well itself themselves yourself whether let"
)
_SOFT = _grouped(  # words of grammar: left out is no difference; one in place of another is, across groups
    "in: in within inside into across | on: on onto | at: at | for: for | to: to towards toward | with: with via |"
    "and: and plus both | or: or either | if: if when whenever where while | but: but yet although though |"
    "than: than | about: about regarding concerning | he: he him his | she: she her hers | my: my mine | our: our us |"
    "your: your | their: their | must: must shall need needs needed | should: should ought | can: can could |"
    "any: any | all: all every each"
)
_NEGATIONS = _grouped(  # one of these on one side alone is a difference, as with the next
    "not: not never | no: no none nobody nothing | nor: nor neither | without: without | insteadof: insteadof |"
    "except: except excluding exclude excludes | unless: unless | non: non | hardly: hardly rarely seldom"
)
_RESTRICTIONS = _grouped(
    "only: only solely exclusively | may: may might optionally optional | until: until till | even: even |"
    "will: will would"
)
_PHRASES = {
    tuple(phrase.split()): tuple(target.split())
    for target, phrases in {
        "insteadof": "instead of|rather than", "before": "prior to", "atleast": "at least|no less than|no fewer than",
        "atmost": "at most|no more than|up to", "above": "more than|greater than|higher than|larger than",
        "below": "less than|fewer than|lower than|smaller than", "to": "in order to", "and": "as well as",
        "check": "make sure|making sure|makes sure", "with": "together with|along with", "if": "in case",
        "except": "other than|apart from|except for", "unless": "except when|except if", "%": "per cent|percent",
        "not": "not ever|never ever|refrain from|cannot|can not", "latest": "most recent", "each": "each of",
        "immediately": "at once|right away", "because": "due to|because of", "all": "all of", "any": "any of",
        "must": "has to|have to|needs to|need to", "in": "within the context of|in the context of",
        "according": "based on|tailored to|according to|depending on|in accordance with|in line with",
        "": "as well|such as|for example|for instance|if available|when available|where available|in addition|"
            "the importance of|emphasize the importance of|stress the importance of|recognize the importance of|"
            "understand the importance of|stress the need to|the necessity of|be mindful of|be aware of|take care to|"
            "take note of|pay attention to|keep in mind|keep in mind that|note that|implement a system to|"
            "implement a process to|establish a process to|the one|one of",
    }.items()
    for phrase in phrases.split("|")
}  # fmt: skip
_OPENINGS = frozenset(phrase[0] for phrase in _PHRASES)
_BOUNDS = {"over": "above", "under": "below"}  # before a number
_WEAK = _canons(  # padding: said by one text alone it is no difference
    "always carefully properly proper correctly correct appropriate appropriately respective specifically explicitly "
    "directly simply just successfully accurately thoroughly systematically efficiently effectively gracefully "
    "significantly actually certainly consistently already especially particularly importantly clearly reliably "
    "overall check use implement perform do remember note make sure"
)
SLACK = _canons(  # words that carry little in a long text, and much in a short one
    "relevant specific accurate efficient effective various actual given provided necessary comprehensive robust "
    "reliable clear corresponding based api task operation workflow approach method strategy way thing case consider "
    "rely build prefer process resort assume default examine conclude proceed focus involve calculation assessment "
    "analysis optimization processing handling management scenario purpose guide example requirement"
)
OPPOSITES = _paired(
    "always never|before after|first last|first second|min max|minimum maximum|ascending descending|"
    "include exclude|increase decrease|above below|greater less|more less|more fewer|buy sell|enable disable|"
    "true false|left right|higher lower|high low|older newer|oldest newest|sender recipient|sender receiver|"
    "most least|accept reject|approve reject|approve deny|allow deny|open close|start finish|start stop|"
    "add remove|add subtract|multiply divide|debit credit|asset liability|income expense|gross net|"
    "lender borrower|buyer seller|employer employee|input output|import export|push pull|early late|"
    "earlier later|long short|hot cold|full empty|full partial|public private|internal external|"
    "inbound outbound|upper lower|top bottom|odd even|positive negative|present absent|read write|encode decode|"
    "encrypt decrypt|lock unlock|follow unfollow|send receive|win lose|horizontal vertical|row column|"
    "daily weekly|weekly monthly|monthly yearly|million billion|thousand million|source target|parent child"
)
_NUMBERS = _grouped(
    "0: zero | 1: one | 2: two | 3: three | 4: four | 5: five | 6: six | 7: seven | 8: eight | 9: nine | 10: ten |"
    "11: eleven | 12: twelve | 13: thirteen | 14: fourteen | 15: fifteen | 16: sixteen | 17: seventeen |"
    "18: eighteen | 19: nineteen | 20: twenty | 30: thirty | 40: forty | 50: fifty | 60: sixty | 70: seventy |"
    "80: eighty | 90: ninety"
)
_ORDINALS = _grouped(
    "first: 1st | second: 2nd | third: 3rd | fourth: 4th | fifth: 5th | sixth: 6th | seventh: 7th | eighth: 8th |"
    "ninth: 9th | tenth: 10th"
)
FRONTED = _listed(  # words that open a clause which may stand before or behind its main clause
    "before after when whenever if while once until unless because since for in to with during on at by where upon"
)
_REASON_VERBS = _canons(  # what an instruction is good for: "to avoid …", "This ensures …", ", reducing …"
    "ensure prevent avoid reduce minimize improve help guarantee optimize account eliminate save make allow increase "
    "provide preserve promote foster"
)
_TOO_MUCH = _listed("increase keep allow make provide")  # "to …" of these is part of what is asked
_WORK = _listed("then and but unless except if")  # after a pause: back from a reason to what is asked
_STRESSED = _listed("important crucial essential critical vital especially")
_PRAISE = _canons("improve ensure guarantee help optimize promote foster relevant specific") | _canons(
    "important crucial essential critical vital accuracy consistency clarity correctness reliability efficiency "
    "completeness quality compliance precision relevance coherence readability robustness accurate consistent correct "
    "reliable compliant"
)
_QUALITIES = _listed(
    "accuracy consistency clarity correctness reliability efficiency completeness quality compliance precision "
    "relevance coherence readability robustness accurate consistent correct reliable compliant"
)
_SIGNS = {"×": "*", "≤": "<=", "≥": ">=", "≠": "!=", "→": "->", "÷": "/"}
_CAPITALS = _listed("us it who am me")  # words that in capitals are names
_ACRONYMS = _listed("api apis id ids")  # capitals that are no names

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
PARTICIPLE = re.compile(r"ed$|^(sent|kept|made|given|taken|written|paid|shown)$")
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
        elif word in _NUMBERS:
            found.append(_NUMBERS[word])
        elif word not in _DROP and word not in _SOFT and canon(word) not in _WEAK:
            found.append(canon(word))
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
    if piece.low in _BOUNDS and after.group in ("number", "sign"):
        return 1, [_said(_BOUNDS[piece.low])]
    if piece.low in _OPENINGS:
        for width in (4, 3, 2, 1):
            words = tuple(piece.low for piece in pieces[at : at + width])
            if words in _PHRASES:
                return width, [_said(word) for word in _PHRASES[words]]
    return 1, [piece]


def _token(piece: _Piece, reason: int) -> Token | None:
    raw, group = piece.raw, piece.group
    if group == "word" and piece.quoted != "code":
        return _word(piece, reason)
    if group in ("stop", "pause"):
        return Token(raw, group, raw)
    if group == "number":
        ordinal = _ORDINALS.get(raw)
        return Token(ordinal or raw.replace(",", ""), "word" if ordinal else "number", raw, reason)
    if raw == "&":
        return Token("and", "soft", raw, reason)
    if group == "other" and unicodedata.category(raw)[0] in "PZC":  # punctuation, space, control characters
        return None
    key = raw.rstrip(".,:;") if group in ("link", "path") else _SIGNS.get(raw, raw)
    return Token(key, "literal", raw, reason)


def _word(piece: _Piece, reason: int) -> Token | None:
    raw = piece.raw
    low = raw.lower().split("'")[0]
    key, kind = canon(low), "word"
    capital = raw[0].isupper() and not piece.first
    if re.search(r"[_.:\d#+]|[a-z][A-Z]", raw) and not re.fullmatch(r"[A-Z]{2,}s", raw):
        key, kind = raw, "literal"
    elif (raw.isupper() and low in _CAPITALS) or (raw == "A" and capital):
        key, kind = raw, "name"
    elif raw.lower().endswith("n't") or (low == "avoid" and piece.first):
        key, kind = "not", "negation"
    elif low in _NEGATIONS:
        key, kind = _NEGATIONS[low], "negation"
    elif low in _RESTRICTIONS:
        key, kind = _RESTRICTIONS[low], "restriction"
    elif low in _DROP:
        return None
    elif low in _SOFT:
        key, kind = _SOFT[low], "soft"
    elif low in _NUMBERS:
        key, kind = _NUMBERS[low], "number"
    elif piece.quoted == "phrase" and capital:
        key, kind = raw, "literal"
    elif capital and key not in _WEAK and low not in _ACRONYMS:
        key, kind = _stem(low), "name"
    elif key in _WEAK or (reason and key in _PRAISE):
        kind = "weak"
    return Token(key, kind, raw, reason)


def _reasons(pieces: Sequence[_Piece]) -> list[int]:
    """For every piece the number of the stated reason it stands in: what an instruction is good for; 0: none."""
    numbers = []
    latest = current = 0
    for at, piece in enumerate(pieces):
        ahead = [other.low for other in pieces[at + 1 : at + 6]] or [""]
        if piece.group == "stop" or (piece.group == "pause" and ahead[0] in _WORK):
            current = 0
        elif _opens_reason(piece, pieces[at - 1].raw if at else "", ahead, current > 0):
            latest = current = latest + 1
        numbers.append(current)
    return numbers


def _opens_reason(piece: _Piece, before: str, ahead: Sequence[str], inside: bool) -> bool:
    """Whether a reason begins with `piece`, which stands between `before` and the words `ahead`."""
    low, key, following = piece.low, canon(piece.low), canon(ahead[0])
    if piece.first and low in ("this", "these", "that", "it", "doing"):
        return any(canon(word) in _REASON_VERBS for word in ahead[:4]) or not _STRESSED.isdisjoint(ahead)
    if low == "to" and following in _REASON_VERBS and ahead[0] not in _TOO_MUCH:
        return following != "check" or not _QUALITIES.isdisjoint(ahead[1:])
    if low == "for" or (low == "ensuring" and before != ","):
        return not inside and not _QUALITIES.isdisjoint(ahead[:2])
    if low == "and":
        return following in ("improve", "promot", "foster") or (inside and following in _REASON_VERBS)
    if before == "," and low.endswith("ing") and key in _REASON_VERBS:
        return key != "check" or not (ahead[0] in _SOFT or ahead[0] in _DROP)
    if low in _STRESSED:
        return not inside and ahead[0] in ("for", "to")
    if before == "," and low in ("since", "as"):
        return low == "since" or ahead[0] in _DROP
    return low == "because" or (low == "so" and ahead[0] == "that")
