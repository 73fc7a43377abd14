"""The curator: turns the lessons of several reviews into operations on the playbook in view."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from dataclasses import field as filled
from typing import Any

from .evidence import kind_of_pattern
from .request import Ask
from .statements import BULLET, blocks
from .words import content_stems, cut, first_group, normal

_REVIEW = re.compile(r"^[ \t#*]*Review[ \t]+(\d+)\b.*$", re.MULTILINE | re.IGNORECASE)
_INSIGHT = re.compile(r"^[ \t]*[-*•][ \t]+(.+)$", re.MULTILINE)
_COUNTS = re.compile(
    r"\[?([A-Za-z][\w&+.]*-\d+)\]?[^\w\n+-]*(?:\+|helpful\W+)(\d+)\W*?(?:-|harmful\W+)(\d+)", re.IGNORECASE
)
_ANSWER = re.compile(
    r"(?:answer|→|->|=>|is)\s+(?:(\w+) = )?[\"'`]?([^\"'`,;.\n]{1,180}?)[\"'`]?"
    r"(?=\s*(?:,|;|\.|$|\bwhen\b|\bwhere\b|\bif\b|\bfor\b))",
    re.IGNORECASE,
)
_NOT = re.compile(
    r"(?:,\s*not\s+|\bis not\s+|\bdo not answer\s+|\bnot call for\s+)(?:\w+ = )?([^\"'`,;.\n]{1,180})",
    re.IGNORECASE,
)
_CUE = re.compile(r"\"([^\"\n]+)\"|“([^”\n]+)”")
_EXPECTED = re.compile(r"^Expected: (.+)$", re.MULTILINE)
_ANSWERS = re.compile(r"^Answers: (?:.* → )?(.+)$", re.MULTILINE)
_RIGHT = re.compile(r"\bsuccess|\bconfirmed for this case\b")
_MISLEADS = re.compile(r"\bdoes not call for\b")
_FOR = re.compile(r"[ \t]*\(for predictor ([^()\s]+)\)[ \t]*$")
_PAIR = re.compile(r"\[([^\]\s]+)\] ~ \[([^\]\s]+)\]")
_PLACEHOLDER = re.compile(r"^\W*(?:none|empty|no insights?|n/a)\b", re.IGNORECASE)


_CLOSE, _FULL = 0.25, 14
"""Share of common cue words from which two lessons for one answer become one; most cues of a bullet."""


@dataclass
class Point:
    """A lesson of a review or a bullet, as read.

    Attributes:
        text: its words.
        answer, wrong: the answer that it is for and the one that it is against, as `normal` text; empty for none.
        cues: its quoted phrases, or else its content words.
        reviews: numbers of the reviews that state it.
        id: of the bullet; empty for a new lesson.
        field: the output field that it names; empty for none.
        predictor: whom it is for; empty for everyone.
    """

    text: str
    answer: str
    wrong: str
    cues: tuple[str, ...]
    reviews: list[int] = filled(default_factory=list)
    id: str = ""
    field: str = ""
    predictor: str = ""


def read_point(text: str, source: str = "") -> Point:
    """Read the text of an insight or bullet."""
    addressed = _FOR.search(text)
    text = text[: addressed.start()] if addressed else text
    ruled_out = _NOT.search(text)
    answer = _ANSWER.search(_CUE.sub(" ", text))
    named = answer[2].strip() if answer else ""
    if ruled_out and named.startswith("not "):
        named = ""
    quoted = tuple(first_group(match) for match in _CUE.finditer(text))
    return Point(
        text=" ".join(text.split()),
        answer=normal(named),
        wrong=normal(ruled_out[1]) if ruled_out else "",
        cues=quoted or tuple(dict.fromkeys(content_stems(text))),
        id=source,
        field=(answer[1] or "") if answer else "",
        predictor=addressed[1] if addressed else "",
    )


def reviewed(text: str) -> list[Point]:
    """Return the lessons of the reviews, each once, with the numbers of the reviews that state it.

    An answer that only unproven reviews name is left out: the retry was its test. A way to go on may still be right.
    So is an answer that is not the review's own: not the expected one, or not one that its successes gave.
    """
    found: list[Point] = []
    unproven: set[int] = set()
    for mark, body in cut(_REVIEW.finditer(text), text):
        if "unproven" in mark[0]:
            unproven.add(int(mark[1]))
        right = _right_answer(mark[0], body)
        for line in _insights(body):
            point = read_point(line)
            against = point.answer == f"is not {point.wrong}"
            if right and not against and point.answer not in right:
                continue
            twin = next((p for p in found if _same(p, point)), None)
            if twin is None:
                found.append(point)
                twin = point
            if int(mark[1]) not in twin.reviews:
                twin.reviews.append(int(mark[1]))
    return [point for point in found if not (point.answer and unproven.issuperset(point.reviews))]


def _right_answer(head: str, body: str) -> str:
    """Return the right answers of a review as it shows them; empty if it does not, or not whole."""
    shown = _EXPECTED.search(body) or (_ANSWERS.search(body) if _RIGHT.search(head) else None)
    return normal(shown[1]) if shown and "…" not in shown[1] else ""


def _insights(body: str) -> Iterable[str]:
    """Return the insights of one review: all lines with a dash, below the heading `Insights:` if there is one."""
    start = re.search(r"^[ \t]*(?:key[ _])?(?:insights?|lessons?)[^\n:]*:", body, re.MULTILINE | re.IGNORECASE)
    rest = body[start.end() :] if start else body
    if start and rest.lstrip().startswith("["):
        try:
            items = json.loads(rest[rest.index("[") : rest.rindex("]") + 1])
            return [i["insight"] if isinstance(i, dict) and "insight" in i else str(i) for i in items]
        except ValueError:
            pass
    return [m[1].strip() for m in _INSIGHT.finditer(rest) if not _PLACEHOLDER.match(m[1])]


def overlap(one: Point, other: Point) -> float:
    """Return the share of common cue words, of the smaller set: 0 … 1."""
    a, b = set(content_stems(" ".join(one.cues))), set(content_stems(" ".join(other.cues)))
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0


def _same(one: Point, other: Point) -> bool:
    """Return True if two lessons of reviews say the same."""
    if one.predictor != other.predictor:
        return False
    if normal(one.text) == normal(other.text):
        return True
    return (
        (one.field, one.answer) == (other.field, other.answer)
        and bool(one.answer or one.wrong == other.wrong)
        and overlap(one, other) >= 0.8
    )


def curate(ask: Ask, junk: bool = False) -> dict[str, Any]:
    """Return the values of a curation request.

    Args:
        ask: the request.
        junk: True to repeat the playbook's own format instead of new lessons.
    """

    def given(*parts: str) -> str | None:
        return next((v for k, v in ask.values.items() if any(part in k for part in parts)), None)

    book, alike = given("playbook") or "", given("alike")
    held = [read_point(body, source) for source, body in blocks(book) if source]
    operations = echo(book) if junk else plan(
        held,
        reviewed(given("review", "reflection") or ""),
        given("evidence", "counter") or "",
        _fullness(given("budget", "limit") or "", book),
        None if alike is None else _PAIR.findall(alike),
    )  # fmt: skip
    told = f"{len(operations)} of the lessons are not in the playbook yet." if operations else "Nothing is missing."
    as_text = json.dumps(operations, ensure_ascii=False)
    return {
        f.name: told if "operation" not in f.name else as_text if f.type == "str" else operations for f in ask.outputs
    }


def _fullness(budget: str, book: str) -> float:
    """Return tokens of the playbook / tokens allowed, if the budget names a number of tokens; else 0."""
    if "no limit" in budget:
        return 0.0
    limit = max((int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", budget)), default=0)
    return len(re.findall(r"\w+|[^\w\s]", book)) / limit if limit >= 200 else 0.0


def plan(
    held: list[Point],
    points: list[Point],
    evidence: str,
    fullness: float = 0.0,
    alike: list[tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Return the operations: delete harmful bullets, merge equal ones, drop misleading cues, extend or add bullets.

    Args:
        held: the bullets of the playbook.
        points: the lessons of the reviews.
        evidence: the votes on the bullets, as the request lists them.
        fullness: tokens of the playbook / tokens allowed.
        alike: pairs of ids of bullets that the request asks about; None if it does not ask.
    """
    harmful = {i for i, good, bad in _COUNTS.findall(evidence) if int(bad) >= 3 and int(bad) >= 2 * int(good) + 2}
    gone = [p for p in held if p.id in harmful]
    operations: list[dict[str, Any]] = [{"type": "DELETE", "id": p.id} for p in gone]
    held = [p for p in held if p.id not in harmful]
    for one, other in list(_doubles(held))[:1] if alike is None else _judged(held, alike):
        operations.append({"type": "MERGE", "ids": [one.id, other.id], "content": _joined(one, other)})
        held = [p for p in held if p.id not in (one.id, other.id)]
        points = [p for p in points if not _say_the_same(one, p)]  # the merged bullet states it
    now = {p.id: p for p in held}
    fresh: list[Point] = []
    common = _common([*held, *points])
    for point in points:
        if _MISLEADS.search(point.text):
            now |= {i: _without(p, set(point.cues)) for i, p in now.items() if p.answer == point.wrong}
    for point in points:
        if not _MISLEADS.search(point.text):
            _place(_sharpened(point, common), now, fresh, fullness)
    changed = [now[p.id] for p in held if now[p.id].text != p.text]
    operations += [{"type": "UPDATE", "id": p.id, "content": p.text} for p in changed]
    operations += [
        {"type": "ADD", "section": section_of(p), "content": p.text, "reviews": sorted(p.reviews)}
        | ({"predictor": p.predictor} if p.predictor else {})
        for p in fresh
    ]
    return operations


def _place(point: Point, now: dict[str, Point], fresh: list[Point], fullness: float) -> None:
    """Drop a lesson that is known, join one that is close to a bullet with it, or keep it as a new bullet."""
    alike = [
        p for p in (*now.values(), *fresh) if (p.field, p.answer, _sort(p)) == (point.field, point.answer, _sort(point))
    ]
    alike = [p for p in alike if p.id or p.predictor == point.predictor]  # a bullet does not show whom it is for
    if not point.answer:
        alike = [p for p in alike if p.wrong == point.wrong]
    near = max(alike, key=lambda p: overlap(p, point), default=None)
    shared = overlap(near, point) if near else 0.0
    close, full = (_CLOSE, _FULL) if fullness < 0.6 else (_CLOSE / 3, _FULL * 2)
    if (
        near is None
        or shared < close
        or (len(near.cues) >= full and shared < 0.8)
        or not (point.answer or shared >= 0.8)
    ):
        if fullness < 1.0:
            fresh.append(point)
        return
    joined = near if shared >= 0.8 else replace(read_point(_joined(near, point), near.id), predictor=near.predictor)
    joined.reviews = sorted({*near.reviews, *point.reviews})
    if near.id:
        now[near.id] = joined
    else:
        fresh[fresh.index(near)] = joined


def _sort(point: Point) -> str:
    """Return the sort of number in a lesson's first pattern with `#`; empty for none."""
    return next((kind_of_pattern(cue) for cue in point.cues if "#" in cue), "")


def _common(points: list[Point]) -> set[tuple[str, str]]:
    """Return the (field, stem) pairs that stand with many answers of the field, and so tell none of them apart."""
    answers: dict[tuple[str, str], set[str]] = {}
    known: dict[str, set[str]] = {}
    for point in points:
        if point.answer:
            known.setdefault(point.field, set()).add(point.answer)
            for word in set(content_stems(" ".join(point.cues))):
                answers.setdefault((point.field, word), set()).add(point.answer)
    return {key for key, named in answers.items() if len(named) >= max(2, len(known[key[0]]) // 3)}


def _sharpened(point: Point, common: set[tuple[str, str]]) -> Point:
    """Return `point` without the quoted cues that have only common words."""
    words = {cue: {(point.field, stem) for stem in content_stems(cue)} for cue in point.cues}
    return _without(point, {cue for cue, stems in words.items() if stems and stems <= common and "#" not in cue})


def _without(point: Point, drop: set[str]) -> Point:
    """Return `point` without the quoted cues in `drop`; at least two stay."""
    text, kept = point.text, list(point.cues)
    for cue in point.cues:
        if len(kept) > 2 and cue in drop and f'"{cue}"' in text:
            shorter = text.replace(f'"{cue}", ', "", 1)
            text = shorter if shorter != text else text.replace(f', "{cue}"', "", 1)
            kept.remove(cue)
    return replace(point, text=text, cues=tuple(kept))


def _doubles(held: list[Point]) -> Iterable[tuple[Point, Point]]:
    """Yield pairs of bullets that say the same."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in held:
        group = groups.setdefault((point.field, point.answer), [])
        for other in group:
            if _say_the_same(other, point):
                yield other, point
                break
        group.append(point)


def _judged(held: list[Point], alike: list[tuple[str, str]]) -> Iterable[tuple[Point, Point]]:
    """Yield the pairs among `alike` that say the same; no bullet is in two of them."""
    left = {point.id: point for point in held}
    for one, other in alike:
        if one in left and other in left and _say_the_same(left[one], left[other]):
            yield left.pop(one), left.pop(other)


def _say_the_same(one: Point, other: Point) -> bool:
    """Return True if two bullets have the same words, or the same answer for nearly the same cues."""
    if normal(one.text) == normal(other.text):
        return True
    same = bool(one.answer) and (one.field, one.answer) == (other.field, other.answer)
    return same and overlap(one, other) >= 0.8 and len(one.cues) + len(other.cues) <= 12


def _joined(one: Point, other: Point) -> str:
    """Return the text of `one`, with the cues of `other` that it lacks behind its own quoted cues."""
    known = {normal(c) for c in one.cues}
    extra = [c for c in other.cues if normal(c) not in known and _CUE.search(other.text)]
    quotes = list(_CUE.finditer(one.text))
    if not extra or not quotes:
        return one.text if len(one.text) >= len(other.text) else other.text
    end = quotes[-1].end()
    return one.text[:end] + "".join(f', "{cue}"' for cue in extra) + one.text[end:]


def section_of(point: Point) -> str:
    """Return the section for a new bullet: mistakes to avoid, clues for an answer, or strategies."""
    if not point.answer and point.wrong:
        return "COMMON MISTAKES TO AVOID"
    return "CONTEXT CLUES & INDICATORS" if point.answer else "STRATEGIES & INSIGHTS"


def echo(book: str) -> list[dict[str, Any]]:
    """Return junk: new bullets whose content is in the playbook's own format."""
    lines = [line for line in book.splitlines() if BULLET.match(line)][:2] or ["[str-00001] (STRATEGIES & INSIGHTS)"]
    return [{"type": "ADD", "section": "## PLAYBOOK", "content": f"## STRATEGIES & INSIGHTS\n{line}"} for line in lines]
