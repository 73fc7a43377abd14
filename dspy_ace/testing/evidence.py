"""Scores possible answers by what a request itself says: their own words, statements, demonstrations.

What is judged is a passage: a text as weighted phrases, with more weight near the thing that is asked about.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .calculate import numbers
from .statements import Option, Statement, statements
from .words import STOP_STEMS, stem, tokens

PHRASE = 3
"""Longest phrase, in tokens, that is matched as a whole."""

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
    """A text to be judged.

    Attributes:
        text: the text.
        grams: phrase of up to three stems → weight: 1 at the focus, less further off; 1 everywhere without a focus.
        kind: sort of the number in focus: percent, price, money, duration, date, count; or empty.
        focus: a short quoted string that occurs again in the text; or empty.
    """

    text: str
    grams: Mapping[str, float]
    kind: str = ""
    focus: str = ""


@lru_cache(maxsize=4096)
def passage(text: str) -> Passage:
    """Read `text` as a passage."""
    focus, body = _focus(text)
    words = tokens(body)
    folded = [stem(word) for word in words]
    centre = position(words, tokens(focus)) if focus else None
    if centre is None:
        return Passage(text, _grams(folded, None))
    return Passage(text, _grams(folded, centre), _kind(words, centre), focus)


def _focus(text: str) -> tuple[str, str]:
    for match in _QUOTED.finditer(text):
        rest = text[match.end() :]
        if match[1].strip() and match[1] in rest:
            return match[1], rest
    return "", text


def position(words: list[str], wanted: list[str]) -> int | None:
    """Return where the words `wanted` first stand together in `words`; None if they do not."""
    spots = range(len(words) - len(wanted) + 1) if wanted else ()
    return next((i for i in spots if words[i : i + len(wanted)] == wanted), None)


def closeness(distance: int) -> float:
    """Return the weight of a token that stands `distance` tokens from the focus."""
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
    """Tell the sort of the number at position `at` by the words around it; empty for a word."""
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
    """Return the sort of the number that stands as `#` in a phrase such as `$ # million`; empty without one."""
    words = ["7" if word == "#" else word for word in phrase.split()]
    return _kind(words, words.index("7")) if "7" in words else ""


@lru_cache(maxsize=16384)
def kind_named(text: str) -> str:
    """Return the sort of number that a label or phrase names, by its last word for one; empty if it names none."""
    low = " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[%$]", text)).lower()
    best, where = "", -1
    for kind, names in _KINDS:
        for name in names:
            spot = f" {low} ".rfind(f" {name} ")
            if spot > where:
                best, where = kind, spot
    return best


_QUOTED_WORD, _PART, _PHRASE, _BESIDE = 1.0, 0.75, 0.4, 0.4
"""Weights of a cue: a quoted word, a word of a quoted phrase, that phrase, a bare word beside a quoted phrase."""
_OWN, _AGAINST, _ASIDE, _NEXT, _MISFIT = 0.55, 0.6, 0.1, 0.5, 0.25
"""Factors: an option's own words, statements against it, those that are `aside`, each further statement for the same
option, and a number of another sort than the one in focus."""


@dataclass(frozen=True)
class Verdict:
    """The scores of the options for one passage.

    Attributes:
        scores: one for each option.
        best: index of the best option.
        used: the statements that decided, strongest first.
        margin: (best score - second best) / best score: 0 for a tie, 1 without a rival.
    """

    scores: tuple[float, ...]
    best: int
    used: tuple[Statement, ...]
    margin: float


class Evidence:
    """Statements about one set of options, indexed by cue. Built once a prompt, it judges many passages."""

    def __init__(self, options: tuple[Option, ...], stated: Sequence[Statement]) -> None:
        self.options = options
        self.statements = tuple(stated)
        self._cues: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._totals = [0.0] * len(stated)
        self._kinds = [next((k for p in s.phrases for k in (kind_of_pattern(p),) if k), "") for s in stated]
        self._blocked: dict[str, list[int]] = defaultdict(list)
        self._index()
        self._own: dict[str, list[int]] = defaultdict(list)
        for index, option in enumerate(options):
            for word in option.words:
                if word not in STOP_STEMS and not word.isdigit():
                    self._own[word].append(index)
        self._lengths = [sum(self._rarity(w) for w in o.words if w in self._own) or 1.0 for o in options]
        self._option_kinds = [kind_named(str(o.value)) for o in options]

    def _rarity(self, word: str) -> float:
        return math.log(1.0 + len(self.options) / len(self._own[word]))

    def _index(self) -> None:
        """Weigh the cues: one counts more the fewer statements have it and the larger its option's share of them."""
        raw = [_weights(statement) for statement in self.statements]
        targets = [statement.target for statement in self.statements if statement.sign > 0]
        votes: dict[str, Counter[int]] = defaultdict(Counter)
        for statement, cues in zip(self.statements, raw, strict=True):
            for cue in cues if statement.sign > 0 else ():
                votes[cue][statement.target] += 1
        even = 1.0 / max(2, len(set(targets)))
        for number, statement in enumerate(self.statements):
            for cue, weight in raw[number].items():
                total = votes[cue].total() if cue in votes else 0
                share = (votes[cue][statement.target] + 0.2) / (total + 0.2) if statement.sign > 0 else 1.0
                share = max(0.05, (share - even) / (1.0 - even))
                telling = weight * math.log(2.0 + max(1, len(targets)) / (1.0 + total)) * share
                self._cues[cue].append((number, telling))
                self._totals[number] += telling
            for cue in statement.blocked:
                self._blocked[cue].append(number)

    def judge(self, text: Passage) -> Verdict:
        """Score the options for `text`; ties go to the option listed first."""
        hits: dict[int, float] = defaultdict(float)
        for gram, share in text.grams.items():
            for number, weight in self._cues.get(gram, ()):
                hits[number] += weight * share
        for gram in text.grams:
            for number in self._blocked.get(gram, ()):
                hits[number] *= 0.1
        strengths = {n: self._strength(n, hit, text) for n, hit in hits.items()}
        scores = self._own_words(text)
        for sign, factor in ((1, 1.0), (-1, -_AGAINST)):
            per_option: dict[int, list[float]] = defaultdict(list)
            for number, strength in strengths.items():
                if self.statements[number].sign == sign:
                    per_option[self.statements[number].target].append(strength)
            for target, found in per_option.items():
                found.sort(reverse=True)
                scores[target] += factor * sum(s * _NEXT**i for i, s in enumerate(found[:8]))
        best = max(range(len(scores)), key=lambda i: (scores[i], -i)) if scores else 0
        rest = max((s for i, s in enumerate(scores) if i != best), default=0.0)
        margin = (scores[best] - max(rest, 0.0)) / scores[best] if scores and scores[best] > 0 else 0.0
        ranked = sorted(strengths, key=lambda n: (-strengths[n], n))
        top = strengths[ranked[0]] if ranked else 0.0
        used = tuple(self.statements[n] for n in ranked[:12] if strengths[n] >= 0.25 * top and strengths[n] > 0)
        return Verdict(tuple(scores), best, used, margin)

    def _strength(self, number: int, hit: float, text: Passage) -> float:
        """Return how strongly a statement holds for `text`; `hit` is the weight of its cues that were found there."""
        statement, kind, total = self.statements[number], self._kinds[number], self._totals[number]
        coverage = min(1.0, hit / total) if total else 0.0
        strength = hit * (0.4 + 0.6 * coverage) * (_ASIDE if statement.aside else 1.0)
        if statement.limits:
            strength *= 1.5 if statement.admits(numbers(text.text)) else 0.1
        return strength * _MISFIT if text.kind and kind and text.kind != kind else strength

    def _own_words(self, text: Passage) -> list[float]:
        scores = [0.0] * len(self.options)
        for gram, share in text.grams.items():
            for index in self._own.get(gram, ()):
                scores[index] += share * self._rarity(gram)
        for index, score in enumerate(scores):
            if score:
                fit = _MISFIT if text.kind and self._option_kinds[index] not in ("", text.kind) else 1.0
                scores[index] = _OWN * fit * score / math.sqrt(self._lengths[index])
        return scores


def _weights(said: Statement) -> dict[str, float]:
    """Return the raw weight of each cue of a statement; words in quotes weigh more than bare words."""
    found: dict[str, float] = dict.fromkeys(said.cues, _BESIDE if said.phrases else 1.0)
    for phrase in said.phrases:
        parts = phrase.split()
        for part in parts:
            if part not in STOP_STEMS and part != "#":
                found[part] = _QUOTED_WORD if len(parts) == 1 else _PART
        if 1 < len(parts) <= PHRASE:
            found[phrase] = _PHRASE
        for start in range(len(parts) - PHRASE + 1 if len(parts) > PHRASE else 0):
            found[" ".join(parts[start : start + PHRASE])] = _PHRASE
    return found


@lru_cache(maxsize=128)
def gather(options: tuple[Option, ...], texts: tuple[str, ...], shown: tuple[tuple[str, int], ...] = ()) -> Evidence:
    """Collect evidence from the statements in `texts` and from demonstrations `shown` (input, index of its answer)."""
    stated = [statement for text in texts for statement in statements(text, options)]
    return Evidence(options, stated + [_example(text, target) for text, target in shown])


def _example(text: str, target: int) -> Statement:
    """Return a demonstration as a statement: the words of its input call for its answer."""
    grams = passage(text).grams
    ranked = sorted((g for g in grams if " " not in g and g != "#"), key=lambda g: -grams[g])
    return Statement("", target, 1, tuple(ranked[:24]), (), (), text)
