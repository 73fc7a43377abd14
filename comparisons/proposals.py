"""Answers of the offline model to other optimizers: new instructions, rules, advice, descriptions.

GEPA, MIPROv2, COPRO, SIMBA, InferRules and Dynamic Cheatsheet ask an LM for such texts. The examples, replies and
feedback in a request are read as cases, and what these cases teach is written below the old instruction. So an
optimizer that hands on evidence gets something for it.

lm = OfflineLM(answerers=[answer_proposal])
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dspy_ace.testing.backend import CURATOR, REFLECTOR, role_of
from dspy_ace.testing.noise import Dice
from dspy_ace.testing.reflect import Case, fields_in, lessons_of, read_feedback, say
from dspy_ace.testing.reply import schema_of
from dspy_ace.testing.request import Ask, Field, load_json
from dspy_ace.testing.words import clip, content_stems, normal

_WRITES = re.compile(
    r"(?:new|proposed|improved|optimi[sz]ed|shortened|refined|updated|better)_(?:\w+_)?(?:instruction|prompt|prefix)s?|"
    r"instruction$|instructions$|rules$|^(?:module_)?advice$|^observations$|^summary$|_description$|^discussion$"
)
_SOURCES = re.compile(
    r"instruction|examples|demos|program|module|dataset|observations|attempt|trajectory|feedback|code$|reward"
)
_FENCED = re.compile(r"```(?:\w+\n|\n)?(.*?)```", re.DOTALL)
_PLAIN = re.compile(r"\b(?:new|improved|better|revised) (?:instructions?|prompt)\b", re.IGNORECASE)
_EXAMPLE = re.compile(
    r"^#+[ \t]*(?:Example|Item)[ \t]+\d+[ \t]*$|^=*[ \t]*Example[ \t]+\d+[ \t]*:?[ \t=]*$", re.MULTILINE
)
_PART = re.compile(r"^##[ \t]+(\w[\w ]*?)[ \t]*$", re.MULTILINE)
_KEY = re.compile(r"^###+[ \t]+(\w[\w ]*?)[ \t]*$", re.MULTILINE)
_LESSON = re.compile(r'For "[^\n]+? answer [^\n]+?\.(?=For "|\s|$)')
_REPR = re.compile(r"Example\((\{.*?\})\) \(input_keys=(\{.*?\}|None)\)", re.DOTALL)
_MOST = 40


def answer_proposal(ask: Ask, dice: Dice, limit: int | None = None) -> tuple[str, dict[str, Any]] | None:
    """Answer a request of an optimizer for a text, as an answerer of `OfflineLM`; None for any other request.

    Args:
        ask: the request as read.
        dice: chance for it.
        limit: most words of an instruction that is written anew; None: no limit. Bind it by `functools.partial`.
    """
    if role_of(ask) in (REFLECTOR, CURATOR) or not asks_for_text(ask):
        return None
    return "proposer", propose(ask, dice, limit)


def asks_for_text(ask: Ask) -> bool:
    """Return True if an optimizer asks for an instruction, rules, advice or a description."""
    if ask.style == "plain" or (ask.schema is not None and ask.asks_for == {"answer"}):
        text = ask.values.get("request", "")
        return bool(_PLAIN.search(text) and ("```" in text or "instruction" in ask.instructions))
    return any(_WRITES.search(f.name) for f in ask.outputs) and any(_SOURCES.search(f.name) for f in ask.inputs)


def propose(ask: Ask, dice: Dice, limit: int | None = None) -> dict[str, Any]:
    """Write values for the fields asked for. `limit`: most words of a rewritten instruction."""
    if ask.asks_for == {"answer"} and "request" in ask.values:
        text = ask.values["request"]
        fences = _FENCED.findall(text)
        return {"answer": f"```\n{_instruction(fences[0] if fences else '', list(_cases_in(text)), limit)}\n```"}
    old = _old_instruction(ask)
    cases = [case for text in _evidence(ask) for case in _cases_in(text)] or list(_contrast(ask))
    values = {asked.name: _text(ask, asked, old, cases, dice) for asked in ask.outputs}
    return {
        k: _shorten(v, None, limit) if limit and "instruction" in k and isinstance(v, str) else v
        for k, v in values.items()
    }


def _text(ask: Ask, asked: Field, old: str, cases: list[Case], dice: Dice) -> Any:
    name = asked.name
    if "advice" in name:
        lessons = " ".join(_lines(cases)[:6]) or "N/A"
        named = schema_of(asked).get("type") == "object"
        return dict.fromkeys(_modules(ask), lessons) if named else lessons
    if "rule" in name:
        return "\n".join(_lines(cases)[:_MOST]) or "Read the whole input before answering."
    if "prefix" in name:
        return "Answer:"
    if "shortened" in name:
        return _shorten(ask.values.get("instruction", old), _length(ask.values.get("length_limit", "")))
    if "instruction" in name or "prompt" in name:
        return _instruction(old, cases, None, dice, _said_lines(ask))
    if name in ("observations", "summary") and (told := _lines(cases)[:_MOST] or _said_lines(ask)):
        return "\n".join(told)
    words = list(dict.fromkeys(content_stems(" ".join(ask.values.values())[:4000])))[:8]
    return f"Inputs that speak of {', '.join(words) or 'little'}; each asks for one answer."


def _old_instruction(ask: Ask) -> str:
    attempts = next((v for k, v in ask.values.items() if "attempt" in k), "")
    if attempts:
        return _best_attempt(attempts)
    for part in ("current_instruction", "basic_instruction", "instruction"):
        for name, value in ask.values.items():
            if part in name and "previous" not in name:
                return value
    return ""


def _best_attempt(text: str) -> str:
    """Find the instruction with the highest score among attempts listed with their scores."""
    found = re.findall(r"Instruction #\d+:\s*(.*?)\n(?:.*?)Resulting Score #\d+:\s*(-?[\d.]+)", text, re.DOTALL)
    body = load_json(text) if text.lstrip().startswith("[") else None
    if isinstance(body, list):
        found = re.findall(
            r"Instruction #\d+:\s*(.*?)\n(?:.*?)Resulting Score #\d+:\s*(-?[\d.]+)",
            "\n".join(map(str, body)),
            re.DOTALL,
        )
    return max(found, key=lambda f: float(f[1].rstrip(".") or 0))[0].strip() if found else clip(text, 60)


def _instruction(
    old: str, cases: list[Case], limit: int | None, dice: Dice | None = None, more: Sequence[str] = ()
) -> str:
    """Write the old instruction with the lessons that it lacks below it."""
    kept = old.strip() or "Read the input and answer what is asked."
    known = normal(kept)
    fresh = [f"- {line}" for line in [*_lines(cases), *more] if normal(line) not in known]
    fresh = list(dict.fromkeys(fresh))[:_MOST]
    if not fresh and dice is not None:
        closing = (
            "Read every word.",
            "Weigh all options.",
            "Prefer the most specific reading.",
            "Answer exactly.",
        )
        line = closing[dice.below("closing", len(closing))]
        fresh = [line] if line not in kept else []
    text = "\n".join([kept, *fresh])
    return _shorten(text, None, limit)


def _shorten(text: str, chars: int | None, words: int | None = None) -> str:
    """Cut `text` to at most `chars` characters and `words` words."""
    if words is not None and len(text.split()) > words:
        text = " ".join(text.split()[:words])
    if chars is not None and len(text) > chars:
        text = text[:chars].rsplit(" ", 1)[0] or text[:chars]
    return text


def _length(text: str) -> int | None:
    numbers = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", text)]
    return max(numbers) if numbers else None


def _modules(ask: Ask) -> list[str]:
    names = load_json(ask.values.get("module_names", "")) or re.findall(
        r"[\w.\[\]]+", ask.values.get("module_names", "")
    )
    return [str(name) for name in names] or ["self"]


def _lines(cases: list[Case]) -> list[str]:
    return list(dict.fromkeys(say(lesson) for case in cases for lesson in lessons_of(case)))


def _said_lines(ask: Ask) -> list[str]:
    """Find the lessons that earlier replies have put into a description of the data."""
    texts = [text for name, text in ask.values.items() if "observations" in name or "dataset" in name]
    return list(dict.fromkeys(line for text in texts for line in _LESSON.findall(text)))


def _evidence(ask: Ask) -> Iterator[str]:
    for name, text in ask.values.items():
        if re.search(r"examples|demos|feedback|dataset_with", name):
            yield text


def _cases_in(text: str) -> Iterator[Case]:
    """Find the examples shown in `text`: a JSON list, or blocks that begin `# Example 1` or `Example 1:`."""
    shown = _REPR.findall(text)
    for fields, keys in shown:
        yield _from_repr(fields, keys)
    body = load_json(text) if text.lstrip().startswith("[") and not shown else None
    if shown:
        return
    if isinstance(body, list):
        for item in body:
            if isinstance(item, Mapping):
                yield _reflective(item)
        return
    marks = list(_EXAMPLE.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=False):
        block = text[mark.end() : end]
        found = _sections(_PART, block)
        yield _reflective({k: _sections(_KEY, v) or v for k, v in found.items()}) if found else _pair(block)
    if not marks:
        for block in re.split(r"\n\s*\n|\n-{3,}\n", text):
            if len(re.findall(r"^[\w ]+:", block, re.MULTILINE)) >= 2:
                yield _pair(block)


def _from_repr(fields: str, keys: str) -> Case:
    """Read a case from the printed form of a DSPy example."""
    try:
        values, inputs = ast.literal_eval(fields), ast.literal_eval(keys)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return Case("", {}, {}, None, "", "")
    named = [k for k in values if (k in inputs if inputs else k != list(values)[-1])]
    expected = {k: str(v) for k, v in values.items() if k not in named and not str(k).startswith("dspy_")}
    return Case("\n".join(str(values[k]) for k in named), expected, {}, True, "", "")


def _sections(pattern: re.Pattern[str], text: str) -> dict[str, str]:
    marks = list(pattern.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    return {m[1]: text[m.end() : end].strip().strip("`").strip() for m, end in zip(marks, ends, strict=False)}


def _reflective(item: Mapping[str, Any]) -> Case:
    """Read a case from `Inputs`, `Generated Outputs` and `Feedback`."""

    def part(word: str) -> Any:
        return next((v for k, v in item.items() if word in str(k).lower()), "")

    inputs, outputs, feedback = part("input"), part("output"), str(part("feedback"))
    text = "\n".join(str(v) for v in inputs.values()) if isinstance(inputs, Mapping) else str(inputs)
    given = {str(k): str(v) for k, v in outputs.items()} if isinstance(outputs, Mapping) else fields_in(str(outputs))
    given = {k: v for k, v in given.items() if not re.search(r"reason|thought|rationale", k)}
    expected, good = read_feedback(feedback)
    return Case(text, expected, given, good, feedback, "")


def _pair(block: str) -> Case:
    """Read a case from `name: value` lines, the last of which is the right answer."""
    body = re.sub(r"^(?:Input|Output) Fields:\s*$|^[=-]+\s*$", "", block, flags=re.MULTILINE)
    fields = {k: v for k, v in fields_in(body).items() if not re.search(r"reason|rationale|thought", k, re.IGNORECASE)}
    names = list(fields)
    if len(names) < 2:
        return Case("", {}, {}, None, "", "")
    return Case("\n".join(fields[n] for n in names[:-1]), {names[-1]: fields[names[-1]]}, {}, True, "", "")


def _contrast(ask: Ask) -> Iterator[Case]:
    """Read the case of a request that shows one input with a worse and a better (or only a bad) outcome."""
    inputs = ask.values.get("program_inputs", "")
    if not inputs:
        return
    read = {k: _plain_fields(v) for k, v in ask.values.items()}
    right = read.get("oracle_metadata") or read.get("better_program_outputs") or {}
    wrong = read.get("worse_program_outputs") or read.get("program_outputs") or {}
    shared = {k: v for k, v in right.items() if k in wrong} or {k: v for k, v in right.items() if len(v.split()) <= 12}
    given = {k: v for k, v in wrong.items() if k in shared or not shared}
    yield Case("\n".join(_plain_fields(inputs).values()), shared, given, False, "", "")


def _plain_fields(text: str) -> dict[str, str]:
    found = {k: v for k, v in fields_in(text).items() if v not in ("null", "N/A")}
    return {k: v for k, v in found.items() if not re.search(r"reason|rationale|thought", k, re.IGNORECASE)}
