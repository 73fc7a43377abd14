"""Picks cues: the few short phrases of an input by which a lesson will be recognised again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

from .passage import passage
from .words import is_content, parts, stem, stems, tokens

_RUN = 2
"""Longest cue, in words, apart from the pattern around a number."""


def choose_cues(text: str, rivals: str = "", avoid: Collection[str] = (), limit: int = 5) -> list[str]:
    """At most `limit` phrases of `text`, the most telling first.

    With a focus (a quoted string that occurs again) the pattern around it leads and the nearest words follow.
    Without one, long and repeated words lead; words of `rivals` (lessons for other answers) and the stems in `avoid`
    come last.
    """
    judged = passage(text)
    if judged.focus:
        return _near(text, judged.focus, min(limit, 5))
    seen = Counter(stems(rivals))
    counts = Counter(stems(text))
    scored = []
    for position, run in _runs(text):
        folded = [stem(word) for word in run]
        worth = sum(_worth(w, counts[s], seen[s], s in avoid) for w, s in zip(run, folded, strict=True))
        scored.append((-worth / len(run) ** 0.5, position, " ".join(run)))
    scored.sort()
    return _distinct([phrase for _, _, phrase in scored], limit)


def _worth(word: str, count: int, seen: int, avoided: bool) -> float:
    worth = (min(len(word), 9) / 9 + 0.4 * math.log(count)) / (1 + seen)
    return worth * 0.4 if avoided else worth


def _runs(text: str) -> list[tuple[int, list[str]]]:
    """Neighbouring content words, at most `_RUN` together, each with its position among the tokens."""
    found: list[tuple[int, list[str]]] = []
    position = 0
    for stretch in parts(text):
        run: list[str] = []
        for word in [*stretch, ""]:
            if word and is_content(word) and len(run) < _RUN:
                run.append(word)
            else:
                if run:
                    found.append((position - len(run), run))
                run = [word] if word and is_content(word) else []
            position += 1
        position -= 1
    return found


def _near(text: str, focus: str, limit: int) -> list[str]:
    body = text[text.index(focus) + len(focus) :]
    words, wanted = tokens(body), tokens(focus)
    at = next((i for i in range(len(words)) if words[i : i + len(wanted)] == wanted), None)
    if at is None or not wanted:
        return _distinct([" ".join(run) for _, run in _runs(body)], limit)
    end = at + len(wanted)
    middle = "#" if wanted[0][0].isdigit() else focus
    pattern = " ".join([*words[max(0, at - 1) : at], middle, *words[end : end + 1]])
    runs = sorted(_runs(body), key=lambda item: min(abs(item[0] - at), abs(item[0] + len(item[1]) - 1 - at)))
    return _distinct([pattern, *(" ".join(run) for _, run in runs)], limit)


def _distinct(phrases: list[str], limit: int) -> list[str]:
    """The first `limit` phrases that do not repeat one before them."""
    kept: dict[tuple[str, ...], str] = {}
    for phrase in phrases:
        folded = stems(phrase)
        if folded and not any(set(folded) <= set(k) for k in kept):
            kept.setdefault(folded, phrase.replace('"', ""))
        if len(kept) == limit:
            break
    return list(kept.values())
