"""The possible answers that a text lists, and the sentences that speak for or against one of them.

`Refund requests from wholesale customers go to accounts, not to billing` names two options. It speaks for one and
against the other; its remaining words are cues. Quoted text is a cue as a phrase.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .words import STOP_STEMS, cut, first_group, normal, sentences, split_name, stems


@dataclass(frozen=True)
class Option:
    """A possible answer. `value`: the reply; `words`: stems of its own words; `aliases`: its names as `normal` text."""

    value: Any
    words: tuple[str, ...]
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Listed:
    """Options found in a text, and the rest of the text without their list."""

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
    """Find the first list of at least two options in `text`; without one, no options and the whole text."""
    for lead in _LEAD.finditer(text):
        body, end = _region(text, lead.end())
        options = _split_items(body)
        if options:
            return Listed(options, f"{text[: lead.start()]} {text[end:]}")
    return Listed((), text)


def _region(text: str, start: int) -> tuple[str, int]:
    """Return the text of a list that starts at `start` (item lines, or up to the end of the sentence) and its end."""
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
    """Return options written as lines `A) …`, `B) …`: letter → text; empty unless they begin with A and have no gap."""
    found = {m[1]: m[2].strip() for m in _LETTERED.finditer(text)}
    letters = sorted(found)
    return found if len(letters) >= 2 and letters == [chr(65 + i) for i in range(len(letters))] else {}


def yes_no(text: str) -> tuple[str, ...]:
    """Return the two words of the first `yes or no` or `true/false` in `text`, as spelled there."""
    match = _PAIR.search(text)
    return (match[1], match[2]) if match else ()


def numbered_questions(text: str) -> list[str]:
    """Return the texts of questions numbered 1, 2, 3 … in `text`; empty for fewer than two."""
    found = list(_NUMBERED.finditer(text))
    if len(found) < 2 or [int(m[1]) for m in found] != list(range(1, len(found) + 1)):
        return []
    return [m[2].strip() for m in found]


@lru_cache(maxsize=512)
def as_options(values: tuple[Any, ...], names: tuple[str, ...] = ()) -> tuple[Option, ...]:
    """Make options of `values`; `names` are their texts where a value itself says nothing (`A`, `B`)."""
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
    """Make the options True and False; a sentence about the field's name (`is allowed`) is about True."""
    called = re.sub(r"^(?:is|has|should|can|was|be) ", "", normal(name))
    aliases = tuple(sorted({"true", "yes", called} - {""}))
    return Option(True, split_name(f"true yes {called}"), aliases), Option(False, ("fals", "no"), ("false", "no"))


BULLET = re.compile(r"^[ \t]*(?:[-*•]\s+)?\[([A-Za-z][\w&+.]*-\d+)\][ \t]*(?:\(([^()\n]*)\)[ \t]*)?", re.MULTILINE)
"""The start of a playbook bullet, `[str-00012] (SECTION) content`; group 1 is the id, group 2 the section."""


Limit = tuple[bool, float]
"""A bound on a number: (True for above, False for at most; the bound)."""


@dataclass(frozen=True)
class Statement:
    """A sentence's claim about one option.

    Attributes:
        source: id of the bullet that says so; empty for other text.
        target: index of the option.
        sign: +1 for the option, -1 against it.
        cues, phrases: stems of its bare words, and its quoted phrases: inputs with them call for the option.
        blocked: stems of words that must not be there (`unless …`).
        text: the sentence.
        aside: True if it is against the option only beside speaking for another one (`X, not Y`).
        limits: bounds on a number of the input.
    """

    source: str
    target: int
    sign: int
    cues: tuple[str, ...]
    phrases: tuple[str, ...]
    blocked: tuple[str, ...]
    text: str
    aside: bool = False
    limits: tuple[Limit, ...] = ()

    def admits(self, numbers: Sequence[float]) -> bool:
        """Return True if one of `numbers` keeps all limits."""
        return any(all(number > n if above else number <= n for above, n in self.limits) for number in numbers)


@dataclass(frozen=True)
class _Mention:
    """An option named in a sentence. `role`: 2 as the answer, 1 without a sign of either, -1 as a wrong answer."""

    start: int
    end: int
    option: int
    role: int


# What stands between a verb of answering and the option: `answer always with the label X`.
_DETERMINERS = (
    r"(?:\s+(?:the|a|an|it|its|them|this|these|that|to|as|with|under|by|in|into|for|always|just|simply|only|directly|"
    r"straight|label|tag|category|class|department|team|queue|option|field|value|answer|be|[`'\"]?\w+[`'\"]?\s*=))*"
)
# What stands before an option that is the answer, and after one.
_SPEAKS_FOR = re.compile(
    r"(?:→|⇒|->|=>|[:=]|\b(?:go|goes|going|belongs?|routed?|routes?|send|sent|assign(?:ed)?|direct(?:ed)?|forward(?:ed)?|"
    r"classify|classified|label(?:l?ed)?|tag(?:ged)?|mark(?:ed)?|answer|answers|choose|pick|select|use|return|give|say|"
    r"output|respond|reply|predict|means?|is|are|be|becomes?|counts?|treat(?:ed)?|to|as|handled|owned|falls?|prefer|"
    r"rated?|scored?|deserves?|expects?|wants?|needs?|gets?|indicates?|suggests?|implies|signals?)\b)"
    + _DETERMINERS + r"\s*[\"'“‘`*_(]*$",
    re.IGNORECASE,
)  # fmt: skip
_OWNS = re.compile(
    r"^[\"'”’`*_)]*\s*(?:\([^)]*\)\s*)?(?:[:=←]|<-|—|–|-\s|(?:is|are)?\s*(?:for|when|if|whenever|where)\b|"
    r"(?:covers?|handles?|includes?|owns?|takes?|gets?|deals?|receives?|means?|applies|concerns?|if|fits|"
    r"(?:is|are) (?:used|right|correct|the|about|meant))\b)",
    re.IGNORECASE,
)
# What stands before an option that is a wrong answer, and after one.
_AGAINST = re.compile(
    r"(?:\b(?:not|never|instead of|rather than|avoid|wrongly|isn['’]t|aren['’]t|don['’]t|doesn['’]t|nor|neither)\b)"
    r"(?:(?!\bbut\b)[^,;.:→]){0,32}$",
    re.IGNORECASE,
)
_IS_WRONG = re.compile(r"^[\"'”’`*]*\s+(?:is|was|would be|are)\s+(?:wrong|incorrect|not\b|a mistake)", re.IGNORECASE)
# What stands after an option that is only the name of a field, between options of one list, around a phrase.
_VALUED = re.compile(
    r"^[\"'`]?\s*(?:=|:|\bis|\bare|\b(?:should|must) be)\s*[\"'`]?(?:true|false|yes|no)\b", re.IGNORECASE
)
_CHAIN = re.compile(r"^[\"'”’`*\s]*(?:,|/|\bor\b|\band\b|\bnor\b|\s)+(?:to|the|as)?[\"'“‘`*\s]*$", re.IGNORECASE)
_QUOTE = re.compile(
    r"\"([^\"\n]{2,80})\"|“([^”\n]{2,80})”|`([^`\n]{2,80})`|(?<!\w)'([^'\n]{2,80})'(?!\w)|‘([^’\n]{2,80})’"
)
# An exception: words that must not be there.
_BLOCK = re.compile(
    r"\b(?:unless|without|except(?: for| when| if)?|excluding|other than|if not|when not|"
    r"(?:does not|doesn['’]t|do not|don['’]t|is not|isn['’]t|not) "
    r"(?:mention|contain|include|involve|have|about|say)\w*)\b"
    r"([^,;.→]*)",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"(?:\b(above|over|more than|exceed(?:s|ing)?|greater than|higher than|at least|below|under|less than|at most|"
    r"up to|no more than|fewer than)|([<>≤≥]=?))\s*[$€£]?\s*(\d[\d,]*(?:\.\d+)?)(?![\d%])"
    r"|(\d[\d,]*(?:\.\d+)?)\s*(?:\w+\s+)?(or (?:less|more|below|above|fewer|higher|lower|over|under))\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+(?:['’]\w+)?")
# Words so common that they name an option only beside a sign of answering; words that are never cues.
_COMMON_WORDS = "yes no true false none other a b c d e f g h i j high low medium good bad new open up down on off"
_COMMON = frozenset(_COMMON_WORDS.split())
_GENERIC = STOP_STEMS | frozenset(
    stems("route routed send sent belong belongs assign assigned direct forward team department queue option options "
          "ticket message text input word words phrase phrases talk talks speak speaks contain contains include "
          "includes handle handled treat rather prefer always never category value nearby next")
)  # fmt: skip


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield (bullet id or empty, content) of each block of `text`: a bullet with its indented lines, or other text."""
    bullets = list(BULLET.finditer(text))
    before = text[: bullets[0].start()] if bullets else text
    if before.strip():
        yield "", before
    for bullet, body in cut(bullets, text):
        lines = body.split("\n")
        kept = 1
        while kept < len(lines) and (not lines[kept].strip() or lines[kept].startswith((" ", "\t"))):
            kept += 1
        yield bullet[1], "\n".join(lines[:kept]).strip()
        tail = "\n".join(lines[kept:])
        if tail.strip():
            yield "", tail


class _Names:
    """Finds the names of options in sentences."""

    def __init__(self, options: Sequence[Option]) -> None:
        self.options = tuple(options)
        self._by_words: dict[tuple[str, ...], int] = {}
        for index, option in enumerate(options):
            for alias in option.aliases:
                self._by_words.setdefault(tuple(alias.split()), index)
        self._longest = min(12, max((len(key) for key in self._by_words), default=0))
        self._firsts = {key[0] for key in self._by_words if key}

    def mentions(self, sentence: str) -> list[_Mention]:
        """Return each mention of an option in `sentence`, in order, with the role that the words around it give."""
        words = [(m.start(), m.end(), part) for m in _WORD.finditer(sentence) for part in (normal(m[0]),) if part]
        flat = [(s, e, piece) for s, e, part in words for piece in part.split()]
        found: list[_Mention] = []
        at = 0
        while at < len(flat):
            size = self._match(flat, at)
            if size:
                index = self._by_words[tuple(piece for _, _, piece in flat[at : at + size])]
                mention = self._role(sentence, flat[at][0], flat[at + size - 1][1], index, found)
                if mention is not None:
                    found.append(mention)
            at += size or 1
        return found

    def _match(self, flat: Sequence[tuple[int, int, str]], at: int) -> int:
        if flat[at][2] not in self._firsts:
            return 0
        for size in range(min(self._longest, len(flat) - at), 0, -1):
            if tuple(piece for _, _, piece in flat[at : at + size]) in self._by_words:
                return size
        return 0

    @staticmethod
    def _role(sentence: str, start: int, end: int, index: int, found: list[_Mention]) -> _Mention | None:
        before, after = sentence[max(0, start - 80) : start], sentence[end : end + 60]
        if _VALUED.match(after):
            return None  # the name of a field, whose value follows
        if found and _CHAIN.match(sentence[found[-1].end : start]):
            return _Mention(start, end, index, found[-1].role)
        if _AGAINST.search(before) or _IS_WRONG.match(after):
            return _Mention(start, end, index, -1)
        if _SPEAKS_FOR.search(before) or _OWNS.match(after):
            return _Mention(start, end, index, 2)
        word = sentence[start:end]
        if word.lower() in _COMMON or (len(word) == 1 and not word.isupper()):
            return None
        return _Mention(start, end, index, 1)


@lru_cache(maxsize=32768)
def claims(sentence: str, options: tuple[Option, ...], source: str = "") -> tuple[Statement, ...]:
    """Return what `sentence` says about `options`; nothing if it names none of them."""
    mentions = _names(options).mentions(sentence)
    if any(m.role == 2 for m in mentions):
        mentions = [m for m in mentions if m.role != 1]
    if not mentions:
        return ()
    if {o.value for o in options} == {True, False} and not any(m.role > 0 for m in mentions):
        mentions = [_Mention(m.start, m.end, 1 - m.option, 2) for m in mentions]  # not true is false
    rivals = {m.option for m in mentions if m.role > 0}
    made: list[Statement] = []
    for piece, inside in _pieces(sentence, mentions) if len(rivals) > 1 else ((sentence, mentions),):
        cues, phrases, blocked = _cues(piece, [sentence[m.start : m.end] for m in mentions])
        if cues or phrases:
            for mention in {m.option: m for m in inside}.values():
                sign = 1 if mention.role > 0 else -1
                aside = sign < 0 and bool(rivals)
                made.append(
                    Statement(source, mention.option, sign, cues, phrases, blocked, sentence, aside, _limits(piece))
                )
    return tuple(made)


@lru_cache(maxsize=256)
def _names(options: tuple[Option, ...]) -> _Names:
    return _Names(options)


def _pieces(sentence: str, mentions: list[_Mention]) -> Iterator[tuple[str, list[_Mention]]]:
    """Yield a piece of the sentence for each option named as an answer, cut where the next one's cues begin."""
    first = mentions[0]
    leading = not _cues(sentence[: first.start], [])[0]
    groups: list[list[_Mention]] = []
    for mention in mentions:
        if groups and (mention.role < 0 or _CHAIN.match(sentence[groups[-1][-1].end : mention.start])):
            groups[-1].append(mention)
        else:
            groups.append([mention])
    start = 0
    for position, group in enumerate(groups):
        last = position == len(groups) - 1
        stop = len(sentence) if last else groups[position + 1][0].start if leading else group[-1].end
        yield sentence[start:stop], group
        start = stop


def _cues(piece: str, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    blocked: list[str] = []
    for match in _BLOCK.finditer(piece):
        if not any(name in match[0] for name in names):
            blocked += [s for s in stems(match[1]) if s not in _GENERIC]
            piece = piece.replace(match[0], " ")
    for name in names:
        piece = piece.replace(name, " ")
    phrases: list[str] = []
    for quote in _QUOTE.finditer(piece):
        folded = stems(first_group(quote))
        if folded:
            phrases.append(" ".join(folded))
    bare = stems(_QUOTE.sub(" ", piece))
    cues = dict.fromkeys(s for s in bare if s not in _GENERIC and s != "#" and len(s) > 1)
    return tuple(cues), tuple(dict.fromkeys(phrases)), tuple(dict.fromkeys(blocked))


def _limits(piece: str) -> tuple[Limit, ...]:
    """Read the bounds on a number that a sentence states: `above 500`, `500 or less`, `at least 3`."""
    found: list[Limit] = []
    for match in _LIMIT.finditer(_QUOTE.sub(" ", piece)):
        word = (match[1] or match[2] or match[5]).lower()
        number = float((match[3] or match[4]).replace(",", "")[:40])
        above = bool(re.search(r"above|over|more|exceed|greater|least|higher|>|≥", word)) and "no more" not in word
        inclusive = bool(re.search(r"least|most|up to|no more|or |[≥≤=]", word))
        found.append((above, number - 1e-9 if above == inclusive else number))
    return tuple(found)


def statements(text: str, options: tuple[Option, ...]) -> list[Statement]:
    """Return every statement about `options` in `text`, in order."""
    return [
        claim for source, body in blocks(text) for sentence in sentences(body)
        for claim in claims(sentence, options, source)
    ]  # fmt: skip
