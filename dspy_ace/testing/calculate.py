"""Numbers in a text, sums, and formulas that a request writes down. No code is ever executed."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable

from .words import content_stems, sentences, stem, stems, tokens

_NUMBER = re.compile(
    r"(?<![\w.])-?[$€£]?\s?(\d[\d,]*(?:\.\d+)?)\s*(%|percent\b|(?:thousand|million|billion|trillion)\b|[kKmMbB]\b)?",
)
_SCALE = {"thousand": 1e3, "k": 1e3, "million": 1e6, "m": 1e6, "billion": 1e9, "b": 1e9, "trillion": 1e12}
_SUM = re.compile(r"(?<![\w.])\(*-?\d[\d.,]*\)*(?:\s*[-+*/×÷^]\s*\(*-?\d[\d.,]*\)*)+")
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: math.pow,
}  # fmt: skip


def numbers(text: str) -> list[float]:
    """Return every number in `text`, times its scale word (`2 million`); `5%` is 5."""
    return [
        float(digits.replace(",", "")[:40] or 0) * _SCALE.get(unit.lower(), 1.0)
        for digits, unit in _NUMBER.findall(text)
    ]


def evaluate(expression: str, names: dict[str, float] | None = None) -> float | None:
    """Return the value of an arithmetic expression over numbers and `names`; None if it is none or has no value."""
    try:
        return _value(ast.parse(expression, mode="eval").body, names or {})
    except (SyntaxError, ValueError, ArithmeticError, KeyError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, names: dict[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, names)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names))
    raise ValueError("not an arithmetic expression")


def solve(text: str) -> float | None:
    """Return the value of a sum written in `text` (`12 * 7`), or None."""
    match = _SUM.search(text)
    if match is None or re.search(r"\d-\d+-\d", match[0]):
        return None
    written = match[0].replace(",", "").replace("×", "*").replace("÷", "/").replace("^", "**")
    return evaluate(written)


def show(value: float) -> str:
    """Write a number: whole numbers without a point, others with at most six digits after it."""
    if not math.isfinite(value):
        return "0"
    return str(int(value)) if value == int(value) else f"{value:.6f}".rstrip("0")


_FORMULA = re.compile(
    r"\bformula:\s*([^=\n]{1,120})=\s*(.+?)(?=,?\s*\bexplanation:|\.?\s*\bquestion:|\n|$)", re.IGNORECASE
)
_EXPLAINED = re.compile(r"\bexplanation:\s*(.+?)(?=\.?\s*\bquestion:|\n|$)", re.IGNORECASE)
_ENTRY = re.compile(r"(?:^|,\s+)([^:,]{1,80}):\s*([^:]*?)(?=,\s+[^:,]{1,80}:|$)")
_SCALED = re.compile(r"multiply the result by (-?\d[\d.,]*)", re.IGNORECASE)
_CUE = re.compile(r"\"([^\"\n]+)\"")
_QUANTITY = re.compile(
    r"(?<![\w.])([$€£]?)\s?(\d[\d,]*(?:\.\d+)?)\s*(%|percent\b|(?:thousand|million|billion|trillion)\b)?", re.IGNORECASE
)
_NAME = re.compile(r"[^\W\d_][\w'’.&-]*(?:\s+[^\W\d_][\w'’.&-]*)*")


def work_out(text: str) -> float | None:
    """Return the value of the formula in `text` (`Formula: X = A / B`) for the numbers of its question, or None."""
    written = _FORMULA.search(text)
    if written is None:
        return None
    question = text[text.lower().rfind("question:") + 9 :] if "question:" in text.lower() else text[written.end() :]
    expression, names = _variables(written[2], _EXPLAINED.search(text))
    if not names or len(names) > 8:
        return None
    values = _assign(names, question)
    if values is None:
        return None
    value = evaluate(expression, {f"v{i}": v for i, v in enumerate(values)})
    return None if value is None or not abs(value) < 1e15 else value


def formula_name(text: str) -> str:
    """Return the name of the formula in `text`; empty without one."""
    written = _FORMULA.search(text)
    return written[1].strip() if written else ""


def scale(text: str, rules: Iterable[str]) -> float:
    """Return the factor that a rule such as `For "X" multiply the result by 100` states for `text`; else 1."""
    here = f" {' '.join(stems(text))} "
    for rule in rules:
        for sentence in sentences(rule):
            stated = _SCALED.search(sentence)
            cues = _CUE.findall(sentence)
            if stated and cues and all(f" {' '.join(stems(cue))} " in here for cue in cues):
                return float(stated[1].rstrip(".").replace(",", "") or 1)
    return 1.0


def _variables(written: str, explained: re.Match[str] | None) -> tuple[str, list[str]]:
    """Return the expression over `v0`, `v1` …, and for each variable, in order, its name and explanation."""
    known = {m[1].strip(): f"{m[1]} {m[2]}" for m in _ENTRY.finditer(explained[1])} if explained else {}
    names: list[str] = []
    expression = written
    for key in sorted(known, key=len, reverse=True):
        if re.search(rf"(?<![\w@]){re.escape(key)}(?![\w])", expression):
            expression = re.sub(rf"(?<![\w@]){re.escape(key)}(?![\w])", f"@{len(names)}@", expression)
            names.append(known[key])
    for key in dict.fromkeys(_NAME.findall(re.sub(r"@\d+@", " ; ", expression))):
        expression = expression.replace(key, f"@{len(names)}@")
        names.append(key)
    expression = re.sub(r"@(\d+)@", r"v\1", expression)
    for sign, plain in (("×", "*"), ("÷", "/"), ("−", "-"), ("–", "-"), ("^", "**"), ("[", "("), ("]", ")"), (",", "")):
        expression = expression.replace(sign, plain)
    return re.sub(r"(\w|\))\s*\((?=)", r"\1 * (", expression).strip(" ."), names


def _assign(names: list[str], question: str) -> list[float] | None:
    """Find a number of the question for each variable, by the words near both; None if there are too few."""
    found = list(_QUANTITY.finditer(question))
    if len(found) < len(names):
        return None
    closeness = []
    for match in found:
        before = [stem(w) for w in tokens(question[: match.start()])][-8:]
        after = [stem(w) for w in tokens(question[match.end() :])][:6]
        near = {word: 1.0 / (1 + i) for i, word in reversed(list(enumerate(after)))}
        for i, word in enumerate(reversed(before)):
            near[word] = max(near.get(word, 0.0), 1.2 / (1 + i))
        closeness.append([sum(near.get(w, 0.0) for w in set(content_stems(name))) for name in names])
    values: dict[int, float] = {}
    free = set(range(len(found)))
    ranked = sorted((-closeness[n][v], v, n) for n in free for v in range(len(names)))
    for _, variable, number in ranked:
        if variable not in values and number in free:
            values[variable] = _number(found[number])
            free.discard(number)
    return [values[v] for v in range(len(names))]


def _number(match: re.Match[str]) -> float:
    value = float(match[2].replace(",", "")[:40])
    unit = (match[3] or "").lower()
    return value / 100 if unit in ("%", "percent") else value * _SCALE.get(unit, 1.0)
