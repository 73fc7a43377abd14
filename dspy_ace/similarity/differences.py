"""What two near-identical texts differ in: the guard before a merge (ACE §3.3).

Cosine similarity cannot see that `at most 3 retries` and `at most 5 retries` are two rules. `difference`
reads both texts as sequences of content words, numbers, names, literals and negations, aligns them, and
says the first thing that sets them apart. It leans to "different": a duplicate that is kept costs some
tokens, a difference that is merged away is lost.

What is no difference: case and punctuation, inflection, a small set of general synonyms, articles and
auxiliaries, a clause moved to the front ("Before X, do Y"), padding such as "always" or "carefully", a
reason that only one text states or that each states in its own words ("…, to avoid errors"), and, in long
texts, a repetition of what both say anyway. The words it knows are English; in other languages any change
of words or of their order is a difference.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .lexicon import FRONTED, OPPOSITES, PARTICIPLE, SLACK, canon
from .wording import Token, tokens

MOST = 1_000_000  # pairs of tokens aligned at most: two texts of a thousand words
LONG = 15  # content words in common from which on a text counts as long: single filler words carry less there


def difference(a: str, b: str) -> str | None:
    """What sets two texts apart so that neither may stand for both; None if nothing does.

    Args:
        a, b: two contents, in any order (only the order of the words in the reason depends on it).

    Returns:
        A reason in words, such as `"numbers differ: 3 / 5"`, or None. Pure; total on any text.
    """
    first, second = sorted((a, b))
    all_first, all_second = tokens(first), tokens(second)
    if _keys(all_first) == _keys(all_second):  # without any content only the very words can tell
        told = bool(_keys(all_first)) or re.findall(r"\w+", first.lower()) == re.findall(r"\w+", second.lower())
        return None if told else "words differ"
    if len(all_first) * len(all_second) > MOST:
        return "too long to compare word by word"
    verdict = _verdict(_canonical(all_first), _canonical(all_second))
    if verdict is None:
        return None
    what, *sides = verdict
    shown = [" ".join(dict.fromkeys(token.shown for token in side)) or "–" for side in sides]
    if what == "order differs":
        return f"{what}: {shown[0]}"
    return f"{what}: " + " / ".join(shown if first == a else shown[::-1])


def _keys(sequence: Iterable[Token]) -> list[str]:
    return [token.key for token in sequence if token.kind not in ("pause", "stop")]


def _canonical(found: Sequence[Token]) -> list[Token]:
    """The tokens, sentence by sentence, with fronted clauses behind the main clause and "X must be done" as "do X"."""
    result: list[Token] = []
    sentence: list[Token] = []
    for token in (*found, Token(".", "stop", ".")):
        if token.kind == "stop":
            result += [other for other in _active(_unfronted(sentence)) if other.kind != "pause"]
            sentence = []
        else:
            sentence.append(token)
    return result


def _unfronted(sentence: list[Token]) -> list[Token]:
    if not sentence or sentence[0].shown.lower() not in FRONTED:
        return sentence
    pauses = {token.key: at for at, token in reversed(list(enumerate(sentence))) if token.kind == "pause"}
    pause = pauses.get(":", pauses.get(",", 0))
    if not pause or len(sentence) - pause < 3:
        return sentence
    opening = sentence[0]
    if opening.key in ("for", "in", "on", "at"):  # "For refunds, …" and "In refunds, …" set one scene
        opening = replace(opening, kind="scene")
    return [*sentence[pause + 1 :], opening, *sentence[1:pause]]


def _active(sentence: list[Token]) -> list[Token]:
    for at, token in enumerate(sentence[:-1]):
        if token.kind != "soft" or token.key not in ("must", "should"):
            continue
        end = at + 2 if sentence[at + 1].kind == "negation" else at + 1
        if end < len(sentence) and PARTICIPLE.search(sentence[end].shown):
            start = max((i + 1 for i in range(at) if sentence[i].kind == "pause"), default=0)
            return sentence[:start] + sentence[at + 1 : end + 1] + sentence[start:at] + sentence[end + 1 :]
    return sentence


_Region = tuple[list[Token], list[Token]]  # the unmatched tokens of either text at one place
_Verdict = tuple[str, Sequence[Token], Sequence[Token]]  # what differs, and how in either text
_WEIGHTS = {"soft": 1, "scene": 1, "weak": 2}  # of a match; 4 for content
_GRAMMAR = ("soft", "scene")
_CONTENT = ("word", "name", "literal", "number")
_HARD_KINDS = ("negation", "restriction")


def _verdict(a: Sequence[Token], b: Sequence[Token]) -> _Verdict | None:
    a, b = _unquoted(a, b), _unquoted(b, a)
    new = _missing(a, b), _missing(b, a)
    for kind in ("number", "literal", "name"):
        hard = [[token for token in side if token.kind == kind and not _is_one(token)] for side in new]
        if hard[0] or hard[1]:
            return f"{kind}s differ", hard[0], hard[1]
    regions, matched = _align(a, b)
    is_long = sum(token.kind in _CONTENT for token in matched) >= LONG
    sides = [_apart(whole, [region[at] for region in regions]) for at, whole in enumerate((a, b))]
    telling = [[[token for token in part if _tells(token, is_long)] for part in side] for side in sides]
    moved = _moved(telling[0], telling[1])
    if moved:
        return "order differs", moved, ()
    unknown = {token.key for side in new for token in side}
    said = {token.key for token in matched} if is_long else set()
    for part_a, part_b, content_a, content_b in zip(*sides, *telling, strict=True):
        if content_a and content_b:
            verdict = _replaced(content_a, content_b, unknown)
        elif content_a or content_b:
            verdict = _added(content_a, content_b, said)
        else:
            verdict = _reworded(part_a, part_b, is_long)
        if verdict is not None:
            return verdict
    return None


def _missing(a: Sequence[Token], b: Sequence[Token]) -> list[Token]:
    """The tokens of `a` that `b` has nowhere."""
    keys = {token.key for token in b}
    return [token for token in a if token.key not in keys]


def _is_one(token: Token) -> bool:
    """The word "one", which counts in place of another number only."""
    return token.shown.lower() == "one"


def _unquoted(a: Sequence[Token], b: Sequence[Token]) -> list[Token]:
    """`a` with literals that `b` writes as plain words as those words: `genre` quoted is the word genre."""
    plain = {token.key for token in b if token.kind in ("word", "weak", "name")}
    keys = {token.key for token in b}
    result = []
    for token in a:
        quoted = token.kind == "literal" and token.key not in keys and token.key.isalpha()
        result.append(replace(token, key=canon(token.key)) if quoted and canon(token.key) in plain else token)
    return result


def _apart(whole: Sequence[Token], unmatched: Sequence[list[Token]]) -> list[list[Token]]:
    """`unmatched`, in which only reasons that the other text has next to nothing of still count as reasons."""
    total = Counter(token.reason for token in whole if token.kind != "soft")
    alone = Counter(token.reason for part in unmatched for token in part if token.kind != "soft")
    shared = {number for number in total if 4 * alone[number] <= 3 * total[number]}
    return [
        [replace(token, reason=0) if token.reason in shared and token.kind != "weak" else token for token in part]
        for part in unmatched
    ]


def _tells(token: Token, is_long: bool) -> bool:
    """Whether a token can carry a difference by being there or not."""
    padding = token.kind in ("weak", *_GRAMMAR) or (is_long and token.kind == "word" and token.key in SLACK)
    return not padding


def _moved(a: Sequence[Sequence[Token]], b: Sequence[Sequence[Token]]) -> list[Token]:
    """Unmatched content that both texts have: it stands in another place."""
    there = {token.key for part in b for token in part if not token.reason}
    return [token for part in a for token in part if not token.reason and token.key in there]


def _replaced(a: Sequence[Token], b: Sequence[Token], unknown: set[str]) -> _Verdict | None:
    """One text has `a` where the other has `b`. `unknown`: keys that one of the texts lacks altogether."""
    keys = {token.key for token in b}
    opposite = [token for token in a if OPPOSITES.get(token.key) in keys]
    if opposite:
        poles = {OPPOSITES[token.key] for token in opposite}
        return "opposites", opposite, [token for token in b if token.key in poles]
    both_new = all(any(token.key in unknown for token in side) for side in (a, b))
    if all(token.reason for token in (*a, *b)) and (not both_new or max(len(a), len(b)) > 2):
        return None  # two wordings of a reason
    return "words differ", a, b


def _added(a: Sequence[Token], b: Sequence[Token], said: set[str]) -> _Verdict | None:
    """Only one text has something here. `said`: keys that both texts have anyway, if they are long."""
    extra = [*a, *b]
    if all(token.reason for token in extra) or (len(extra) == 1 and _is_one(extra[0])):
        return None
    hard = [token.kind for token in extra if token.kind in _HARD_KINDS]
    if hard:
        return f"{hard[0]} differs", a, b
    if all(token.kind != "number" and token.key in said for token in extra):
        return None
    return "only one says", a, b


def _reworded(a: Sequence[Token], b: Sequence[Token], is_long: bool) -> _Verdict | None:
    """Only words of grammar and padding differ here."""
    padding = [[token for token in side if token.kind not in _GRAMMAR and not token.reason] for side in (a, b)]
    if padding[0] and padding[1] and not is_long:
        return "words differ", padding[0], padding[1]
    grammar = [{token.key for token in side} for side in (a, b) if all(token.kind in _GRAMMAR for token in side)]
    scenes = all(token.kind == "scene" for token in (*a, *b))
    if len(grammar) == 2 and all(grammar) and not scenes and not grammar[0] & grammar[1]:
        return "words differ", a, b
    return None


def _align(a: Sequence[Token], b: Sequence[Token]) -> tuple[list[_Region], list[Token]]:
    """The heaviest common subsequence: (the unmatched tokens between matches, by side; the matched ones)."""
    start = 0
    while start < min(len(a), len(b)) and a[start].key == b[start].key:
        start += 1
    best = _weights(a[start:], b[start:])
    regions: list[_Region] = []
    matched = list(a[:start])
    region: _Region = ([], [])
    i = j = 0
    while start + i < len(a) and start + j < len(b):
        one, other = a[start + i], b[start + j]
        if one.key == other.key and best[i][j] == best[i + 1][j + 1] + _WEIGHTS.get(one.kind, 4):
            if region[0] or region[1]:
                regions.append(region)
            matched.append(one)
            region = ([], [])
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            region[0].append(one)
            i += 1
        else:
            region[1].append(other)
            j += 1
    region[0].extend(a[start + i :])
    region[1].extend(b[start + j :])
    return ([*regions, region] if region[0] or region[1] else regions), matched


def _weights(a: Sequence[Token], b: Sequence[Token]) -> list[list[int]]:
    """`[i][j]`: the weight of the heaviest common subsequence of `a[i:]` and `b[j:]`."""
    keys = [token.key for token in b]
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        row, below, key = best[i], best[i + 1], a[i].key
        weight = _WEIGHTS.get(a[i].kind, 4)
        for j in range(len(b) - 1, -1, -1):
            value = max(below[j], row[j + 1])
            if key == keys[j] and below[j + 1] + weight >= value:
                value = below[j + 1] + weight
            row[j] = value
    return best
