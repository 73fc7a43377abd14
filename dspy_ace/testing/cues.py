"""Picks cues: the few short phrases of an input by which a lesson will be recognised again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

from .passage import passage
from .words import is_content, stem, stems, tokens

_RUN = 2
"""Longest cue, in words, apart from the pattern around a number."""


def choose_cues(text: str, known: str = "", avoid: Collection[str] = (), limit: int = 5) -> list[str]:
    """At most `limit` phrases of `text`, the most telling first.

    With a focus (a quoted string that occurs again) the pattern around it leads and the nearest words follow.
    Without one, long and repeated words lead; words common in `known` (lessons already written) and the stems in
    `avoid` come last.
    """
    judged = passage(text)
    if judged.focus:
        return _near(text, judged.focus, limit)
    words = tokens(text)
    seen = Counter(stems(known))
    counts = Counter(stem(w) for w in words)
    scored = []
    for position, run in _runs(words):
        worth = sum(_worth(w, counts[stem(w)], seen[stem(w)], stem(w) in avoid) for w in run)
        scored.append((-worth, position, " ".join(run)))
    scored.sort()
    return _distinct([phrase for _, _, phrase in scored], limit)


def _worth(word: str, count: int, seen: int, avoided: bool) -> float:
    worth = min(len(word), 9) / 9 + 0.4 * math.log(count) - 0.25 * math.log1p(seen)
    return worth * 0.4 if avoided else worth


def _runs(words: list[str]) -> list[tuple[int, list[str]]]:
    """Neighbouring content words, at most `_RUN` together, each with its position."""
    found: list[tuple[int, list[str]]] = []
    for position, word in enumerate(words):
        if not is_content(word):
            continue
        start, run = found[-1] if found else (-9, [])
        if start + len(run) == position and len(run) < _RUN:
            run.append(word)
        else:
            found.append((position, [word]))
    return found


def _near(text: str, focus: str, limit: int) -> list[str]:
    body = text[text.index(focus) + len(focus) :]
    words, wanted = tokens(body), tokens(focus)
    at = next((i for i in range(len(words)) if words[i : i + len(wanted)] == wanted), None)
    if at is None or not wanted:
        return _distinct([" ".join(run) for _, run in _runs(words)], limit)
    end = at + len(wanted)
    middle = "#" if wanted[0][0].isdigit() else focus
    pattern = " ".join([*words[max(0, at - 1) : at], middle, *words[end : end + 1]])
    runs = sorted(_runs(words[:at]) + [(p + end, r) for p, r in _runs(words[end:])],
                  key=lambda item: min(abs(item[0] - at), abs(item[0] + len(item[1]) - at)))  # fmt: skip
    return _distinct([pattern, *(" ".join(run) for _, run in runs)], limit)


def _distinct(phrases: list[str], limit: int) -> list[str]:
    """The first `limit` phrases that do not repeat one before them."""
    kept: dict[tuple[str, ...], str] = {}
    for phrase in phrases:
        folded = stems(phrase)
        if folded and not any(set(folded) <= set(k) for k in kept):
            kept.setdefault(folded, phrase.replace('"', ""))
    return list(kept.values())[:limit]
