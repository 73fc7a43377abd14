"""The reflector: reads a case from its request and says which cues call for which answer.

A cue is a short phrase of the input by which the lesson will be recognised again.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any

from .calculate import formula_name, work_out
from .evidence import passage, position
from .request import Ask, load_json
from .statements import blocks, listed, numbered_questions
from .words import (
    clip,
    content_stems,
    cut,
    first_group,
    is_content,
    normal,
    parts,
    split_name,
    stem,
    stems,
    tokens,
)

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
_PREFIX = re.compile(r"^[ \t]*[-*]?[ \t]*[`\"']?\w{1,40}[`\"']?[ \t]*[:=][ \t]+", re.MULTILINE)
_ATTEMPT = re.compile(r"^Attempt (\d+)[ \t]*$", re.MULTILINE)
_ASIDE = re.compile(r"^  (?:Feedback|Cited): ", re.MULTILINE)
_NOTHING = frozenset(
    ("", "none", "n/a", "null", "{}", "(none)", "not shown", "not available", "(not available)", "unknown",
     "(not shown)", "-")
)  # fmt: skip
_LONGEST_CUE = 2
"""Most words of a cue, apart from the pattern around a number."""
_MOST_INSIGHTS, _MOST_CUES = 3, 10
"""Most insights from several successes, and most cues of one."""
_FIELDS = 8
"""Most output fields that are compared in one case."""
_FACTORS = ("100", "0.01", "1000", "0.001", "1000000", "0.000001", "-1")


@dataclass(frozen=True)
class Seen:
    """A call of a predictor as the attempt shows it. `inputs`: those that are not inputs of the case."""

    predictor: str
    inputs: str
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """An attempt as a reflection request shows it.

    Attributes:
        text: the values of the inputs.
        expected: field name → right value; the name is empty where only feedback tells the value.
        given: field name → value that was answered.
        good: True for a success, False for a failure, None if no verdict is shown.
        feedback: the metric's words.
        bullets: the bullets in view.
        calls: the calls of the predictors, in order.
    """

    text: str
    expected: Mapping[str, str]
    given: Mapping[str, str]
    good: bool | None
    feedback: str
    bullets: str
    calls: tuple[Seen, ...] = ()

    @property
    def several(self) -> bool:
        """True if more than one predictor ran."""
        return len({call.predictor for call in self.calls}) > 1

    def erring(self, name: str, wrong: str) -> Seen | None:
        """Find the call that a wrong value comes from.

        It is the first call that gave this very value, under whatever name; else the last one with the field `name`.
        """
        given = [call for call in self.calls if any(normal(value) == normal(wrong) for value in call.outputs.values())]
        filled = [call for call in self.calls if name in call.outputs]
        return next(iter([*given, *filled[-1:]]), None)


def fields_in(text: str) -> dict[str, str]:
    """Read field name → value from JSON, `[[ ## name ## ]]` headers, `<name>` tags or `name: value` lines.

    Other text gets the empty name.
    """
    text = text.strip()
    if text.lower() in _NOTHING:
        return {}
    body = load_json(text) if text[0] in "{[" else None
    if isinstance(body, dict):
        return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in body.items()}
    headers = cut(re.finditer(r"\[\[? ?## (\w+) ## ?\]?\]", text), text)
    if headers:
        return {mark[1]: body.strip() for mark, body in headers if mark[1] != "completed"}
    tags = re.findall(r"<(\w+)>\s*(.*?)\s*</\1>", text, re.DOTALL)
    if tags:
        return dict(tags)
    lines = cut(_LINE.finditer(text), text)
    return {m[1].strip(): (m[2] + more).strip().strip("'\"") for m, more in lines} or {"": text.strip("'\"")}


def read_case(ask: Ask) -> Case:
    """Read the case of a reflection request, whatever it calls its fields."""
    feedback = _field(ask, "feedback", "critique")
    expected = fields_in(_field(ask, "expected", "target", "gold", "label")) or read_feedback(feedback)[0]
    trajectory = _field(ask, "trajectory", "attempt", "prediction", "output", "trace")
    return Case(
        text=_values_only(_field(ask, "task_inputs", "input", "example")),
        expected=expected,
        given=_given(trajectory, expected),
        good=_verdict(_field(ask, "outcome", "score", "result", "verdict"), feedback),
        feedback=feedback,
        bullets=_field(ask, "bullets", "playbook"),
        calls=_calls(trajectory, _HEADING.findall(ask.values.get("task", ""))),
    )


def read_feedback(feedback: str) -> tuple[dict[str, str], bool | None]:
    """Return the right answer that feedback names (under an empty field name) and its verdict, if it says them."""
    match = _EXPECTED.search(feedback)
    expected = {"": first_group(match).strip()} if match else {}
    return expected, _verdict("", feedback)


def _field(ask: Ask, *names: str) -> str:
    """Return the value of the first field with one of `names`, or else with one of them in its name."""
    exact = (ask.values[name] for name in names if name in ask.values)
    similar = (value for name in names for key, value in ask.values.items() if name in key.lower())
    return next(chain(exact, similar), "")


def _values_only(text: str) -> str:
    """Return task inputs without their field names."""
    body = load_json(text) if text.lstrip().startswith("{") else None
    if isinstance(body, dict):
        return "\n".join(v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in body.values())
    return _PREFIX.sub("", re.sub(r"\[\[? ?## \w+ ## ?\]?\]|</?\w+>", "", text)).strip()


def _given(trajectory: str, expected: Mapping[str, str]) -> dict[str, str]:
    """Return the values answered for the expected fields; if none can be read, the last field of the attempt."""
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
    told = {m[1]: _CALL.split(body)[0].strip() for m, body in cut(_ARROW.finditer(trajectory), trajectory)}
    read = {k: v for k, v in (told or fields_in(trajectory)).items() if not re.search(r"reason|thought|cited", k)}
    return dict(list(read.items())[-1:])


def _calls(trajectory: str, names: Sequence[str]) -> tuple[Seen, ...]:
    """Return the calls of the predictors `names` in an attempt (`Call 2: name`), with inputs and `→` outputs."""
    found = []
    for head, rest in cut(_CALLED.finditer(trajectory), trajectory):
        body = rest.partition("\nReturned:")[0]
        outputs = cut(_ARROW.finditer(body), body)
        if head[1] in names:
            inputs = body[: outputs[0][0].start()] if outputs else body
            found.append(Seen(head[1], _values_only(inputs), {mark[1]: value.strip() for mark, value in outputs}))
    return tuple(found)


def _verdict(outcome: str, feedback: str) -> bool | None:
    """Tell a success from a failure by a score or by words; None if neither is there."""
    for text in (outcome, feedback):
        score = _SCORE.search(text) or (re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)()\s*", text))
        if _BAD.search(text):
            return False
        if score:
            return float(score[1]) >= 0.999 * float(score[2] or 1)
        if _GOOD.search(text):
            return True
    return None


def choose_cues(text: str, rivals: str = "", avoid: Collection[str] = (), limit: int = 5) -> list[str]:
    """Choose at most `limit` phrases of `text`, the most telling first.

    With a focus (a quoted string that occurs again) the pattern around it is first and the nearest words follow.
    Without one, long and repeated words are first; words of `rivals` (lessons for other answers) and the stems in
    `avoid` are last.
    """
    judged = passage(text)
    if judged.focus:
        return _near_focus(text, judged.focus, min(limit, 5))
    seen = Counter(stems(rivals))
    counts = Counter(stems(text))
    scored = []
    for start, run in _runs(text):
        folded = [stem(word) for word in run]
        worth = sum(_worth(w, counts[s], seen[s], s in avoid) for w, s in zip(run, folded, strict=True))
        scored.append((-worth / len(run) ** 0.5, start, " ".join(run)))
    scored.sort()
    return _distinct([phrase for _, _, phrase in scored], limit)


def _worth(word: str, count: int, seen: int, avoided: bool) -> float:
    worth = (min(len(word), 9) / 9 + 0.4 * math.log(count)) / (1 + seen)
    return worth * 0.4 if avoided else worth


def _runs(text: str) -> list[tuple[int, list[str]]]:
    """Return groups of neighbouring content words, each with its position among the tokens."""
    found: list[tuple[int, list[str]]] = []
    at = 0
    for stretch in parts(text):
        run: list[str] = []
        for word in [*stretch, ""]:
            if word and is_content(word) and len(run) < _LONGEST_CUE:
                run.append(word)
            else:
                if run:
                    found.append((at - len(run), run))
                run = [word] if word and is_content(word) else []
            at += 1
        at -= 1  # the empty word at the end is no token
    return found


def _near_focus(text: str, focus: str, limit: int) -> list[str]:
    body = text[text.index(focus) + len(focus) :]
    words, wanted = tokens(body), tokens(focus)
    at = position(words, wanted)
    if at is None:
        return _distinct([" ".join(run) for _, run in _runs(body)], limit)
    end = at + len(wanted)
    middle = "#" if wanted[0][0].isdigit() else focus
    pattern = " ".join([*words[max(0, at - 1) : at], middle, *words[end : end + 1]])
    runs = sorted(_runs(body), key=lambda item: min(abs(item[0] - at), abs(item[0] + len(item[1]) - 1 - at)))
    return _distinct([pattern, *(" ".join(run) for _, run in runs)], limit)


def _distinct(phrases: list[str], limit: int) -> list[str]:
    """Return the first `limit` phrases that do not repeat an earlier one."""
    kept: dict[tuple[str, ...], str] = {}
    for phrase in phrases:
        folded = stems(phrase)
        if folded and not any(set(folded) <= set(k) for k in kept):
            kept.setdefault(folded, phrase.replace('"', ""))
        if len(kept) == limit:
            break
    return list(kept.values())


@dataclass(frozen=True)
class Lesson:
    """Cues that call for an answer and not for another, or for a result to be multiplied by a factor.

    An empty `answer`, `wrong`, `field`, `factor` or `predictor` is not known or not needed.
    """

    cues: tuple[str, ...]
    answer: str
    wrong: str
    field: str = ""
    factor: str = ""
    predictor: str = ""


def lessons_of(case: Case) -> list[Lesson]:
    """Return the lessons of a case; none for a success that teaches nothing or a case without a verdict."""
    if not case.expected and case.good is None:
        return []
    found: list[Lesson] = []
    text = listed(case.text).rest
    questions = numbered_questions(text)
    expected = case.expected or (case.given if case.good else dict.fromkeys(case.given, ""))
    for name, right in list(expected.items())[:_FIELDS]:
        only = next(iter(case.given.values()), "") if not name or len(case.given) == 1 else ""
        wrong = case.given.get(name) or only
        rights, wrongs = right.split(","), wrong.split(",")
        label = name if len(case.expected) > 1 else ""
        if case.several:
            found += _for_one(case, name, right.strip(), wrong.strip(), label)
        elif len(questions) > 1 and len(questions) in (len(rights), len(wrongs)):
            pairs = zip_longest(rights, wrongs, fillvalue="")
            for question, (one, other) in zip(questions, pairs, strict=False):
                found += _lesson(case, question, one.strip(), other.strip(), label)
        else:
            found += _lesson(case, text, right.strip(), wrong.strip(), label)
    return found


def _for_one(case: Case, name: str, right: str, wrong: str, label: str) -> list[Lesson]:
    """Return lessons for the predictor that a wrong value comes from, with cues from what it saw.

    A right value teaches nothing here: it does not say why the attempt failed.
    """
    if not wrong or normal(right) == normal(wrong):
        return []
    call = case.erring(name, wrong)
    text = "\n".join(part for part in (listed(case.text).rest, call.inputs if call else "") if part)
    lessons = _lesson(case, text, right, wrong, label)
    return [replace(lesson, predictor=call.predictor if call else "") for lesson in lessons]


def _lesson(case: Case, text: str, right: str, wrong: str, label: str) -> list[Lesson]:
    """Return the lesson, if there is one, of a right and a wrong value."""
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
    """Return True if the right answer is the result of a calculation, not a label or a grade."""
    try:
        value = float(right.replace(",", ""))
    except ValueError:
        return False
    return "." in right or abs(value) > 20 or work_out(text) is not None


def _factor(right: str, wrong: str) -> str:
    """Return the power of ten (or -1) that makes the given result right; empty if none does."""
    try:
        ratio = float(right.replace(",", "")) / float(wrong.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return ""
    return next((f for f in _FACTORS if abs(ratio - float(f)) <= 0.15 * abs(float(f))), "")


def _covered(case: Case, text: str, right: str) -> bool:
    """Return True if a bullet in view names this answer and shares half of its cue words (or three) with the text."""
    name, here = normal(right), set(content_stems(text))
    for _, body in blocks(case.bullets):
        if name and name in normal(body):
            cues = set(content_stems(body)) - set(split_name(right))
            if len(cues & here) >= min(3, max(1, len(cues) // 2)):
                return True
    return False


def _rivals(case: Case, right: str) -> str:
    """Return the bullets in view that do not name the right answer."""
    name = normal(right)
    return "\n".join(body for source, body in blocks(case.bullets) if source and name and name not in normal(body))


def misleading(case: Case, lesson: Lesson) -> list[str]:
    """Return quoted cues of bullets for the wrong answer that this input has, too."""
    text, wrong = f" {' '.join(stems(listed(case.text).rest))} ", normal(lesson.wrong)
    found: list[str] = []
    for source, body in blocks(case.bullets):
        speaks_for = re.split(r",?\s+\bnot\b", body)[0]
        if source and wrong and f" {wrong} " in f" {normal(speaks_for)} ":
            found += [cue for cue in re.findall(r"\"([^\"\n]+)\"", body) if f" {' '.join(stems(cue))} " in text]
    return list(dict.fromkeys(cue for cue in found if "#" not in cue))[:3]


def say(lesson: Lesson, wording: int = 0) -> str:
    """Word a lesson as one sentence. `wording`: which of several wordings with the same meaning."""
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


def tags_of(case: Case, lessons: list[Lesson]) -> dict[str, str]:
    """Return bullet id → `helpful` or `harmful`, for bullets that speak for a right or for a wrong answer."""
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


def reflect(ask: Ask, wording: int = 0, flips: Callable[[str], bool] = lambda _: False) -> dict[str, Any]:
    """Return the values of a reflection request.

    Args:
        ask: the request.
        wording: which of several wordings.
        flips: by a name for a lesson, True to call the wrong answer right in it. A failure or a single success has one.
    """
    if "attempts" in ask.values:
        together = {"key_insights": reflect_on_successes(ask, wording, flips), "diagnosis": ""}
        return {asked.name: _value(asked.name, asked.type, together) for asked in ask.outputs}
    case = read_case(ask)
    lessons = lessons_of(case)
    tags = tags_of(case, lessons)
    flip = flips("")
    if flip:
        lessons = [replace(le, answer=le.wrong or "none", wrong=le.answer) for le in lessons]
    insights: list[Any] = [_addressed(say(lesson, wording), lesson.predictor, ask) for lesson in lessons]
    apart = [le for le in lessons if le.answer and le.wrong and not flip and "#" not in le.cues[0]]
    for lesson in apart if len(apart) <= max(1, len(case.expected)) else ():
        shared = misleading(case, lesson)
        if shared:
            field = f"{lesson.field} = " if lesson.field else ""
            said = " or ".join(f'"{cue}"' for cue in shared) + f" does not call for {field}{lesson.wrong}."
            insights.append(_addressed(said, lesson.predictor, ask))
    if not insights and case.good is False and case.feedback.strip().lower() not in _NOTHING:
        insights = [f"Avoid this: {clip(case.feedback, 30)}"]
    first = lessons[0] if lessons else None
    wrong = f"The answer was {first.wrong}." if first and first.wrong else "The attempt was right." if case.good else ""
    values: dict[str, Any] = {
        "diagnosis": wrong or "Nothing shows what was wrong.",
        "error_identification": wrong or "Nothing shows what was wrong.",
        "root_cause": f"The words {', '.join(first.cues[:3])} were not read as they should be." if first else
        "Nothing was missing." if case.good else "The evidence does not show a cause.",
        "correct_approach": say(first, wording) if first else insights[0] if insights else
        "Answer in the same way again.",
        "key_insights": insights,
        "bullet_tags": tags,
    }  # fmt: skip
    return {asked.name: _value(asked.name, asked.type, values) for asked in ask.outputs}


def reflect_on_successes(
    ask: Ask, wording: int = 0, flips: Callable[[str], bool] = lambda _: False
) -> list[dict[str, Any]]:
    """Return what several successes show: for the answers that most of them share, the words by which to know them.

    Args:
        ask: a request with numbered attempts.
        wording, flips: see `reflect`.
    """
    if len(_HEADING.findall(ask.values.get("task", ""))) > 1:
        return []  # a right answer does not say which predictor it is due to
    bullets, shown = _field(ask, "bullets", "playbook"), list[tuple[int, str, Lesson]]()
    for mark, whole in cut(_ATTEMPT.finditer(ask.values["attempts"]), ask.values["attempts"]):
        body = _ASIDE.split(whole)[0]
        case = Case(_values_only(body.partition("\n  →")[0]), {}, _given(body, {}), True, "", bullets)
        shown += [(int(mark[1]), normal(case.text), lesson) for lesson in lessons_of(case)]
    groups: dict[tuple[str, str], list[tuple[int, str, Lesson]]] = {}
    for one in shown:
        groups.setdefault((one[2].field, one[2].answer or one[2].factor), []).append(one)
    insights = []
    for group in sorted(groups.values(), key=lambda group: (-len(group), group[0][0]))[:_MOST_INSIGHTS]:
        cues = _telling(group, [text for _, text, _ in shown if all(text != own for _, own, _ in group)])
        lesson = replace(group[0][2], cues=tuple(_distinct(cues, _MOST_CUES)))
        if flips(lesson.answer):
            lesson = replace(lesson, answer="none", wrong=lesson.answer)
        insights.append({"insight": say(lesson, wording), "attempts": list(dict.fromkeys(one[0] for one in group))})
    return insights


def _telling(group: Sequence[tuple[int, str, Lesson]], others: Sequence[str]) -> list[str]:
    """Return the cues of a group of attempts: those that most of them have first, without those that others have."""
    ranked = zip_longest(*(lesson.cues for _, _, lesson in group))  # the first cue of each, then the second …
    cues = list(dict.fromkeys(cue for row in ranked for cue in row if cue))

    def holds(text: str, cue: str) -> bool:
        return f" {normal(cue)} " in f" {text} "

    own = [cue for cue in cues if not any(holds(text, cue) for text in others)] or cues
    return sorted(own, key=lambda cue: -sum(holds(text, cue) for _, text, _ in group))


def _addressed(said: str, predictor: str, ask: Ask) -> Any:
    """Return an insight with its predictor if the request describes a form for both; else the words alone."""
    if predictor and any("insight" in asked.name and '"predictor"' in asked.desc for asked in ask.outputs):
        return {"insight": said, "predictor": predictor}
    return said


def _value(name: str, kind: str, values: Mapping[str, Any]) -> Any:
    """Return the value of an output field by its name; as JSON text if the field is plain text."""
    key = name if name in values else next(
        (k for part, k in (("insight", "key_insights"), ("lesson", "key_insights"), ("tag", "bullet_tags"),
                           ("cause", "root_cause"), ("approach", "correct_approach"))
         if part in name.lower()), "diagnosis")  # fmt: skip
    value = values[key]
    return json.dumps(value, ensure_ascii=False) if kind == "str" and not isinstance(value, str) else value
