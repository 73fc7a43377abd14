"""Reads one case as a request shows it: the inputs, what was answered, what would have been right, the verdict.

Picks cues: the few short phrases of an input by which a lesson will be recognised again.

The reflector: says which cues call for which answer, from what its request shows and nothing else.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .calculate import formula_name, work_out
from .evidence import passage
from .request import Ask, load_json
from .statements import blocks, listed, numbered_questions
from .words import clip, content_stems, is_content, normal, parts, split_name, stem, stems, tokens

_EXPECTED = re.compile(
    r"(?:expected(?: answer| output)?|correct (?:answer|label|output|value)|right answer|gold(?: answer| label)?|"
    r"ground truth|answer key|should (?:have been|be)|should have (?:said|answered))"
    r"(?:\s+(?:is|was))?\s*[:=]?\s*(?:\"([^\"\n]+)\"|“([^”\n]+)”|`([^`\n]+)`|'([^'\n]+)'|([^\n;.]+?))"
    r"(?=\s*(?:[,;)\n]|\.\s|\.?$|\bbut\b|\bnot\b|\bgot\b|\binstead\b))",
    re.IGNORECASE | re.MULTILINE,
)
_GOOD = re.compile(r"\b(?:success\w*|succeeded|correct|right|passed|pass|solved|perfect|ok|true)\b", re.IGNORECASE)
_BAD = re.compile(
    r"\b(?:fail\w*|incorrect|wrong|error\w*|exception|not (?:correct|right|solved)|mistake\w*|false|unsuccessful)\b",
    re.IGNORECASE,
)
_SCORE = re.compile(r"score\s*(?:of|is|was|[:=])?\s*(-?\d+(?:\.\d+)?)(?:\s*/\s*(\d+(?:\.\d+)?))?", re.IGNORECASE)
_LINE = re.compile(r"^[ \t]*[-*]?[ \t]*[`\"']?(\w[\w ]{0,40}?)[`\"']?[ \t]*[:=][ \t]*(\S.*)$", re.MULTILINE)


_ARROW = re.compile(r"^[ \t]*(?:→|->|=>)[ \t]*(\w+)[ \t]*[:=][ \t]*", re.MULTILINE)
_HEADING = re.compile(r"^\[(\S+)\][ \t]*$", re.MULTILINE)
_CALLED = re.compile(r"^(?:Call|Step) \d+:[ \t]*([\w.\[\]'\"-]+)[ \t]*$", re.MULTILINE)
_CALL = re.compile(r"^(?:Call \d+|Step \d+|Returned)\b", re.MULTILINE)


@dataclass(frozen=True)
class Seen:
    """One call of a predictor as the attempt shows it. `inputs`: what it was given beyond the case's own inputs."""

    predictor: str
    inputs: str
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """What a reflection request shows. `good`: True, False, or None when no verdict is shown."""

    text: str
    expected: Mapping[str, str]
    given: Mapping[str, str]
    good: bool | None
    feedback: str
    bullets: str
    calls: tuple[Seen, ...] = ()

    @property
    def several(self) -> bool:
        """Whether the attempt was made by more than one predictor."""
        return len({call.predictor for call in self.calls}) > 1

    def erring(self, name: str, wrong: str) -> Seen | None:
        """Where the wrong value of the field `name` comes from: the first call that gave this very value, under
        whatever name; else the last one that filled the field.
        """
        given = [call for call in self.calls if any(normal(value) == normal(wrong) for value in call.outputs.values())]
        filled = [call for call in self.calls if name in call.outputs]
        return next(iter([*given, *filled[-1:]]), None)


def fields_in(text: str) -> dict[str, str]:
    """Field name → value from JSON, `[[ ## name ## ]]` headers, `<name>` tags or `name: value` lines.

    Any other text stands under the empty name.
    """
    text = text.strip()
    if not text or text.lower() in (
        "none",
        "n/a",
        "null",
        "{}",
        "(none)",
        "not shown",
        "not available",
        "(not available)",
        "unknown",
        "(not shown)",
        "-",
    ):
        return {}
    body = load_json(text) if text[0] in "{[" else None
    if isinstance(body, dict):
        return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in body.items()}
    marks = list(re.finditer(r"\[\[? ?## (\w+) ## ?\]?\]", text))
    if marks:
        ends = [m.start() for m in marks[1:]] + [len(text)]
        return {m[1]: text[m.end() : end].strip() for m, end in zip(marks, ends, strict=False) if m[1] != "completed"}
    tags = re.findall(r"<(\w+)>\s*(.*?)\s*</\1>", text, re.DOTALL)
    if tags:
        return dict(tags)
    lines = list(_LINE.finditer(text))
    ends = [m.start() for m in lines[1:]] + [len(text)]
    found = {m[1].strip(): text[m.start(2) : end].strip().strip("'\"") for m, end in zip(lines, ends, strict=False)}
    return found or {"": text.strip("'\"")}


def read_case(ask: Ask) -> Case:
    """The case that a reflection request shows, whatever it calls its fields."""
    get = _finder(ask)
    text = get("task_inputs", "input", "example")
    feedback, outcome = get("feedback", "critique"), get("outcome", "score", "result", "verdict")
    expected = fields_in(get("expected", "target", "gold", "label")) or read_feedback(feedback)[0]
    trajectory = get("trajectory", "attempt", "prediction", "output", "trace")
    given = _given(trajectory, expected)
    return Case(_values_only(text), expected, given, _verdict(outcome, feedback), feedback, get("bullets", "playbook"),
                _calls(trajectory, _HEADING.findall(ask.values.get("task", ""))))  # fmt: skip


def read_feedback(feedback: str) -> tuple[dict[str, str], bool | None]:
    """The right answer that feedback names (under no field name) and its verdict, as far as it says them."""
    match = _EXPECTED.search(feedback)
    expected = {"": next(g for g in match.groups() if g).strip()} if match else {}
    return expected, _verdict("", feedback)


def _finder(ask: Ask) -> Callable[..., str]:
    def get(*names: str) -> str:
        for name in names:
            for key, value in ask.values.items():
                if key == name:
                    return value
        return next((v for n in names for k, v in ask.values.items() if n in k.lower()), "")

    return get


_PREFIX = re.compile(r"^[ \t]*[-*]?[ \t]*[`\"']?\w{1,40}[`\"']?[ \t]*[:=][ \t]+", re.MULTILINE)


def _values_only(text: str) -> str:
    """Task inputs as text to be judged: the values without their field names."""
    body = load_json(text) if text.lstrip().startswith("{") else None
    if isinstance(body, dict):
        return "\n".join(v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in body.values())
    return _PREFIX.sub("", re.sub(r"\[\[? ?## \w+ ## ?\]?\]|</?\w+>", "", text)).strip()


def _given(trajectory: str, expected: Mapping[str, str]) -> dict[str, str]:
    """The answer that was given, for the fields that an answer is expected for (or for all that can be read)."""
    found: dict[str, str] = {}
    for name in expected:
        if name:
            pattern = rf"(?:\[\[? ?## {re.escape(name)} ## ?\]?\]|[\"'`]?\b{re.escape(name)}\b[\"'`]?\s*[:=])\s*"
            spots = list(re.finditer(pattern, trajectory))
            if spots:
                rest = trajectory[spots[-1].end() :]
                value = re.match(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|([^\n]+)", rest)
                if value:
                    found[name] = next(g for g in value.groups() if g is not None).strip().rstrip(",}")
    if found or not trajectory.strip():
        return found
    marks = list(_ARROW.finditer(trajectory))
    ends = [m.start() for m in marks[1:]] + [len(trajectory)]
    told = {m[1]: _CALL.split(trajectory[m.end() : e])[0].strip() for m, e in zip(marks, ends, strict=False)}
    read = {k: v for k, v in (told or fields_in(trajectory)).items() if not re.search(r"reason|thought|cited", k)}
    return dict(list(read.items())[-1:])


def _calls(trajectory: str, names: Sequence[str]) -> tuple[Seen, ...]:
    """The calls of the predictors `names` that an attempt lists (`Call 2: name`), with inputs and `→` outputs."""
    heads = list(_CALLED.finditer(trajectory))
    ends = [m.start() for m in heads[1:]] + [len(trajectory)]
    found = []
    for head, end in zip(heads, ends, strict=False):
        body = trajectory[head.end() : end].partition("\nReturned:")[0]
        marks = list(_ARROW.finditer(body))
        stops = [m.start() for m in marks[1:]] + [len(body)]
        outputs = {m[1]: body[m.end() : stop].strip() for m, stop in zip(marks, stops, strict=False)}
        if head[1] in names:
            found.append(Seen(head[1], _values_only(body[: marks[0].start() if marks else len(body)]), outputs))
    return tuple(found)


def _verdict(outcome: str, feedback: str) -> bool | None:
    for text in (outcome, feedback):
        score = _SCORE.search(text) or (re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)()\s*", text))
        if _BAD.search(text):
            return False
        if score:
            return float(score[1]) >= 0.999 * float(score[2] or 1)
        if _GOOD.search(text):
            return True
    return None


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
        return _near_focus(text, judged.focus, min(limit, 5))
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


def _near_focus(text: str, focus: str, limit: int) -> list[str]:
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


_FIELDS = 8
"""Most output fields that one case is compared in."""


@dataclass(frozen=True)
class Lesson:
    """Cues that call for `answer` (empty: none known) and not for `wrong` (empty: none ruled out); or for a result to
    be multiplied by `factor`. `predictor`: whom it is for (empty: not said).
    """

    cues: tuple[str, ...]
    answer: str
    wrong: str
    field: str = ""
    factor: str = ""
    predictor: str = ""


def lessons_of(case: Case) -> list[Lesson]:
    """Lessons of one case; none for a success that teaches nothing or a case without a verdict."""
    found: list[Lesson] = []
    text = listed(case.text).rest
    named = len(case.expected) > 1
    expected = case.expected or (dict(case.given) if case.good else dict.fromkeys(case.given, ""))
    if not case.expected and case.good is None:
        return []
    for name, right in list(expected.items())[:_FIELDS]:
        wrong = case.given.get(name) or (
            next(iter(case.given.values()), "") if not name or len(case.given) == 1 else ""
        )
        questions = numbered_questions(text)
        rights, wrongs = [p.strip() for p in right.split(",")], [p.strip() for p in wrong.split(",")]
        label = name if named else ""
        if case.several:
            found += _for_one(case, name, right.strip(), wrong.strip(), label)
            continue
        if len(questions) > 1 and len(questions) in (len(rights), len(wrongs)):
            for number, question in enumerate(questions):
                pair = (
                    rights[number] if number < len(rights) else "",
                    wrongs[number] if number < len(wrongs) else "",
                )
                found += _lesson(case, question, *pair, label)
        else:
            found += _lesson(case, text, right.strip(), wrong.strip(), label)
    return found


def _for_one(case: Case, name: str, right: str, wrong: str, label: str) -> list[Lesson]:
    """Lessons of an attempt by several predictors: for the one that a wrong value comes from, in the words it saw.

    What one of them got right is routine: it says nothing of why the attempt failed.
    """
    if not wrong or normal(right) == normal(wrong):
        return []
    call = case.erring(name, wrong)
    text = "\n".join(part for part in (listed(case.text).rest, call.inputs if call else "") if part)
    lessons = _lesson(case, text, right, wrong, label)
    return [replace(lesson, predictor=call.predictor if call else "") for lesson in lessons]


def _lesson(case: Case, text: str, right: str, wrong: str, label: str) -> list[Lesson]:
    if right and normal(right) == normal(wrong):
        if case.good is False and not case.expected:
            right = ""
        else:
            wrong = ""
    if not right and (not wrong or case.good):
        return []
    if wrong == "" and right and _covered(case, text, right):
        return []
    if _is_amount(right, text):
        factor = _factor(right, wrong)
        cues = choose_cues(formula_name(text) or text, limit=3)
        return [Lesson(tuple(cues), "", "", label, factor)] if factor and cues else []
    avoid = set(split_name(wrong)) - set(split_name(right))
    cues = choose_cues(text, _rivals(case, right), avoid, min(10, 4 + len(text.split()) // 14))
    return [Lesson(tuple(cues), clip(right, 14), clip(wrong, 10), label)] if cues else []


def _is_amount(right: str, text: str) -> bool:
    """Whether the right answer is the result of a calculation, not a label or a grade."""
    try:
        value = float(right.replace(",", ""))
    except ValueError:
        return False
    return "." in right or abs(value) > 20 or work_out(text) is not None


def _factor(right: str, wrong: str) -> str:
    """The power of ten (or -1) by which the given result has to be multiplied to be right; empty if none does."""
    try:
        ratio = float(right.replace(",", "")) / float(wrong.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return ""
    return next(
        (f for f in ("100", "0.01", "1000", "0.001", "1000000", "0.000001", "-1") if _near(ratio, float(f))), ""
    )


def _near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= 0.15 * abs(wanted)


def _covered(case: Case, text: str, right: str) -> bool:
    """Whether a bullet in view already speaks for this answer by at least half of its cue words (or by three)."""
    name, here = normal(right), set(content_stems(text))
    for _, body in blocks(case.bullets):
        if name and name in normal(body):
            cues = set(content_stems(body)) - set(split_name(right))
            if len(cues & here) >= min(3, max(1, len(cues) // 2)):
                return True
    return False


def _rivals(case: Case, right: str) -> str:
    """The bullets in view that do not name the right answer."""
    name = normal(right)
    return "\n".join(body for source, body in blocks(case.bullets) if source and name and name not in normal(body))


def misleading(case: Case, lesson: Lesson) -> list[str]:
    """Quoted cues of bullets in view that speak for the wrong answer although this input has them too."""
    text, wrong = f" {' '.join(stems(listed(case.text).rest))} ", normal(lesson.wrong)
    found: list[str] = []
    for source, body in blocks(case.bullets):
        speaks_for = re.split(r",?\s+\bnot\b", body)[0]
        if source and wrong and f" {wrong} " in f" {normal(speaks_for)} ":
            found += [cue for cue in re.findall(r"\"([^\"\n]+)\"", body) if f" {' '.join(stems(cue))} " in text]
    return list(dict.fromkeys(cue for cue in found if "#" not in cue))[:3]


def say(lesson: Lesson, wording: int = 0) -> str:
    """A lesson as one sentence. `wording`: which of several wordings with the same meaning."""
    first, rest = lesson.cues[0], lesson.cues[1:]
    quoted = ", ".join(f'"{cue}"' for cue in (rest if "#" in first else lesson.cues))
    scope = (f'"{first}"' + (f" near {quoted}" if quoted else "")) if "#" in first else quoted
    if lesson.factor:
        return f"For {quoted} multiply the result by {lesson.factor}."
    field = f"{lesson.field} = " if lesson.field else ""
    if not lesson.answer:
        return (f"With {scope} the answer is not {field}{lesson.wrong}.",
                f"Do not answer {field}{lesson.wrong} where {scope} is seen.")[wording % 2]  # fmt: skip
    against = f", not {lesson.wrong}" if lesson.wrong else ""
    return (
        f"For {scope} answer {field}{lesson.answer}{against}.",
        f"Seeing {scope}, answer {field}{lesson.answer}{against}.",
        f"Inputs with {scope} → {field}{lesson.answer}{against}.",
        f"Answer {field}{lesson.answer}{against} when the input has {scope}.",
    )[wording % 4]


def _quoted(cue: str) -> str:
    return f'"{cue}"'


def tags_of(case: Case, lessons: list[Lesson]) -> dict[str, str]:
    """Bullet id → helpful or harmful: it speaks for the right or for the wrong answers; the others are left out."""
    here = set(stems(case.text))
    rights = [normal(le.answer) for le in lessons if le.answer] or [normal(v) for v in case.expected.values()]
    if not rights and case.good:
        rights = [normal(v) for v in case.given.values()]
    wrongs = [normal(le.wrong) for le in lessons if le.wrong]
    found: dict[str, str] = {}
    for source, body in blocks(case.bullets):
        if source:
            head = normal(body).partition(" not ")[0]
            relevant = bool(here & set(content_stems(body)))
            parts = [p for r in rights for p in ([r] if "," not in r else r.split(","))]
            if relevant and any(p and f" {p} " in f" {head} " for p in parts):
                found[source] = "helpful"
            elif relevant and any(w and f" {w} " in f" {head} " for w in wrongs):
                found[source] = "harmful"
    return found


def reflect(ask: Ask, wording: int = 0, flip: bool = False) -> dict[str, Any]:
    """Values for the fields of a reflection request. `flip`: state the given answer as right (a wrong lesson)."""
    case = read_case(ask)
    lessons = lessons_of(case)
    tags = tags_of(case, lessons)
    if flip:
        lessons = [replace(le, answer=le.wrong or "none", wrong=le.answer) for le in lessons]
    insights: list[Any] = [_addressed(say(lesson, wording), lesson.predictor, ask) for lesson in lessons]
    apart = [le for le in lessons if le.answer and le.wrong and not flip and "#" not in le.cues[0]]
    for lesson in apart if len(apart) <= max(1, len(case.expected)) else ():
        shared = misleading(case, lesson)
        if shared:
            field = f"{lesson.field} = " if lesson.field else ""
            said = f"{' or '.join(_quoted(c) for c in shared)} does not call for {field}{lesson.wrong}."
            insights.append(_addressed(said, lesson.predictor, ask))
    if not insights and case.good is False and case.feedback.strip():
        insights = [f"Avoid this: {clip(case.feedback, 30)}"]
    first = lessons[0] if lessons else None
    wrong = f"The answer was {first.wrong}." if first and first.wrong else "The attempt was right." if case.good else ""
    values: dict[str, Any] = {
        "error_identification": wrong or "Nothing shows what was wrong.",
        "root_cause": f"The words {', '.join(first.cues[:3])} were not read as they should be." if first else
        "Nothing was missing." if case.good else "The evidence does not show a cause.",
        "correct_approach": say(first, wording) if first else insights[0] if insights else
        "Answer in the same way again.",
        "key_insights": insights,
        "bullet_tags": tags,
    }  # fmt: skip
    return {asked.name: _value(asked.name, asked.type, values) for asked in ask.outputs}


def _addressed(said: str, predictor: str, ask: Ask) -> Any:
    """An insight with the predictor it is for, in the form that the request describes for it; else words alone."""
    if predictor and any("insight" in asked.name and '"predictor"' in asked.desc for asked in ask.outputs):
        return {"insight": said, "predictor": predictor}
    return said


def _value(name: str, kind: str, values: Mapping[str, Any]) -> Any:
    """The value for an output field by its name, as JSON text when the field is plain text."""
    key = name if name in values else next(
        (k for part, k in (("insight", "key_insights"), ("lesson", "key_insights"), ("tag", "bullet_tags"),
                           ("cause", "root_cause"), ("approach", "correct_approach"))
         if part in name.lower()), "error_identification")  # fmt: skip
    value = values[key]
    return json.dumps(value, ensure_ascii=False) if kind == "str" and not isinstance(value, str) else value
