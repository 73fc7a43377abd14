"""Numbers in text, and the value of a formula written out in a request. No code is ever executed."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

_NUMBER = re.compile(
    r"(?<![\w.])-?[$€£]?\s?(\d[\d,]*(?:\.\d+)?)\s*(%|percent\b|(?:thousand|million|billion|trillion)\b|[kKmMbB]\b)?",
)
SCALE = {"thousand": 1e3, "k": 1e3, "million": 1e6, "m": 1e6, "billion": 1e9, "b": 1e9, "trillion": 1e12}
_SUM = re.compile(r"(?<![\w.])\(*-?\d[\d.,]*\)*(?:\s*[-+*/×÷^]\s*\(*-?\d[\d.,]*\)*)+")
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: math.pow,
}  # fmt: skip


def numbers(text: str) -> list[float]:
    """Every number in `text` with its scale word applied; percentages as written (`5%` is 5)."""
    found = []
    for match in _NUMBER.finditer(text):
        value = float(match[1].replace(",", "")[:40] or 0)
        found.append(value * SCALE.get((match[2] or "").lower(), 1.0))
    return found


def evaluate(expression: str, names: dict[str, float] | None = None) -> float | None:
    """The value of an arithmetic expression over numbers and `names`; None when it is not one or has no value."""
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
    """The value of a sum written in `text` (`12 * 7`), or None."""
    match = _SUM.search(text)
    if match is None or re.search(r"\d-\d+-\d", match[0]):
        return None
    written = match[0].replace(",", "").replace("×", "*").replace("÷", "/").replace("^", "**")
    return evaluate(written)


def show(value: float) -> str:
    """A number as a reply: whole numbers without a point, others with at most six digits after it."""
    if not math.isfinite(value):
        return "0"
    return str(int(value)) if value == int(value) else f"{value:.6f}".rstrip("0")
