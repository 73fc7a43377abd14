"""Scores options by what a request itself says: the options' own words, its statements, its demonstrations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from .arithmetic import numbers
from .options import Option
from .passage import PHRASE, Passage, kind_named, kind_of_pattern, passage
from .statements import Statement, statements
from .words import STOP_STEMS

_QUOTED_WORD, _PART, _PHRASE, _BESIDE = 1.0, 0.75, 0.4, 0.4
_OWN, _AGAINST, _BESIDES, _NEXT, _MISFIT = 0.55, 0.6, 0.1, 0.5, 0.25


@dataclass(frozen=True)
class Verdict:
    """`scores`: one per option; `best`: index of the chosen one; `used`: statements that bore on the choice,
    strongest first; `margin`: share of the best score that the runner-up lacks (0 tie … 1 unrivalled).
    """

    scores: tuple[float, ...]
    best: int
    used: tuple[Statement, ...]
    margin: float


class Evidence:
    """Statements about one set of options, indexed by cue. Build once per prompt, judge many passages."""

    def __init__(self, options: tuple[Option, ...], said: Sequence[Statement]) -> None:
        self.options = options
        self.said = tuple(said)
        self._cues: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._totals = [0.0] * len(said)
        self._kinds = [next((k for p in s.phrases for k in (kind_of_pattern(p),) if k), "") for s in said]
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
        """Weights: a cue counts more the fewer statements have it and the larger its option's share of them."""
        votes: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        raw: list[dict[str, float]] = []
        for said in self.said:
            mine = _weights(said)
            raw.append(mine)
            if said.sign > 0:
                for cue in mine:
                    votes[cue][said.target] += 1
        count = max(1, sum(1 for s in self.said if s.sign > 0))
        even = 1.0 / max(2, len({s.target for s in self.said if s.sign > 0}))
        for number, said in enumerate(self.said):
            for cue, weight in raw[number].items():
                cast = votes.get(cue, {})
                total = sum(cast.values())
                share = (cast.get(said.target, 0) + 0.2) / (total + 0.2) if said.sign > 0 else 1.0
                share = max(0.05, (share - even) / (1.0 - even))
                telling = weight * math.log(2.0 + count / (1.0 + total)) * share
                self._cues[cue].append((number, telling))
                self._totals[number] += telling
            for cue in said.blocked:
                self._blocked[cue].append(number)

    def judge(self, text: Passage) -> Verdict:
        """Choose an option for `text`; ties go to the option listed first."""
        hits: dict[int, float] = defaultdict(float)
        for gram, near in text.grams.items():
            for number, weight in self._cues.get(gram, ()):
                hits[number] += weight * near
        for gram in text.grams:
            for number in self._blocked.get(gram, ()):
                hits[number] *= 0.1
        strengths = {n: self._strength(n, hit, text) for n, hit in hits.items()}
        scores = self._own_words(text)
        for sign, factor in ((1, 1.0), (-1, -_AGAINST)):
            per_option: dict[int, list[float]] = defaultdict(list)
            for number, strength in strengths.items():
                if self.said[number].sign == sign:
                    per_option[self.said[number].target].append(strength)
            for target, found in per_option.items():
                found.sort(reverse=True)
                scores[target] += factor * sum(s * _NEXT**i for i, s in enumerate(found[:8]))
        best = max(range(len(scores)), key=lambda i: (scores[i], -i)) if scores else 0
        rest = max((s for i, s in enumerate(scores) if i != best), default=0.0)
        margin = (scores[best] - max(rest, 0.0)) / scores[best] if scores and scores[best] > 0 else 0.0
        ranked = sorted(strengths, key=lambda n: (-strengths[n], n))
        top = strengths[ranked[0]] if ranked else 0.0
        used = tuple(self.said[n] for n in ranked[:12] if strengths[n] >= 0.25 * top and strengths[n] > 0)
        return Verdict(tuple(scores), best, used, margin)

    def _strength(self, number: int, hit: float, text: Passage) -> float:
        coverage = min(1.0, hit / self._totals[number]) if self._totals[number] else 0.0
        strength = hit * (0.4 + 0.6 * coverage) * (_BESIDES if self.said[number].aside else 1.0)
        stated, kind = self._kinds[number], text.kind
        if self.said[number].limits:
            strength *= 1.5 if self.said[number].admits(numbers(text.text)) else 0.1
        return strength * _MISFIT if kind and stated and kind != stated else strength

    def _own_words(self, text: Passage) -> list[float]:
        scores = [0.0] * len(self.options)
        for gram, near in text.grams.items():
            for index in self._own.get(gram, ()):
                scores[index] += near * self._rarity(gram)
        for index, score in enumerate(scores):
            if score:
                fit = _MISFIT if text.kind and self._option_kinds[index] not in ("", text.kind) else 1.0
                scores[index] = _OWN * fit * score / math.sqrt(self._lengths[index])
        return scores


def _weights(said: Statement) -> dict[str, float]:
    """Raw weight of each cue of a statement: words of quoted phrases above bare words, whole phrases on top."""
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
    """Evidence from statement-bearing `texts` and from demonstrations `shown` (input text, index of its answer)."""
    said: list[Statement] = []
    for text in texts:
        said += statements(text, options)
    for text, target in shown:
        said.append(_example(text, target))
    return Evidence(options, said)


def _example(text: str, target: int) -> Statement:
    grams = passage(text).grams
    ranked = sorted((g for g in grams if " " not in g and g != "#"), key=lambda g: -grams[g])
    return Statement("", target, 1, tuple(ranked[:24]), (), (), text)
