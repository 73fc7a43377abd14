"""The next step of an agent: which tool, with which arguments, and when to stop."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .answer import Task, telling
from .calculate import numbers
from .evidence import passage
from .request import Ask, Field, observations
from .statements import as_options
from .words import clip, content_stems, split_name

_TOOL = re.compile(r"(\w+), whose description is <desc>(.*?)</desc>\. It takes arguments ", re.DOTALL)
_LAST = re.compile(r"^(?:finish|submit|final|done|stop|end)\w*$", re.IGNORECASE)
_ERROR = re.compile(r"\berror\b|unknown tool|traceback", re.IGNORECASE)
_CODE = re.compile(r"\b(?=\w*\d)[\w-]+\b")


@dataclass(frozen=True)
class Tool:
    """A tool as the request describes it. `arguments`: name → JSON schema."""

    name: str
    about: str
    arguments: Mapping[str, Any]


def is_step(ask: Ask) -> bool:
    """Return True if the request asks for a tool call."""
    return any(f.name == "next_tool_name" or f.type == "ToolCalls" for f in ask.outputs)


def step(ask: Ask) -> dict[str, Any]:
    """Return the values of an agent's next step: a tool that fits until one answered, then the end."""
    tools = tools_in("\n".join((ask.instructions, *ask.values.values())))
    seen = observations("\n".join((*(text for _, text in ask.earlier), *ask.values.values())))
    question = question_of(ask)
    tool = _next(ask, tools, seen, question)
    filled = _arguments(tool, question, seen) if tool else {}
    name = tool.name if tool else "finish"
    thought = f"Enough was observed; {name} comes next." if seen else f"{name} can tell what is asked."
    values: dict[str, Any] = {}
    for asked in ask.outputs:
        if asked.name == "next_tool_name":
            values[asked.name] = name
        elif asked.name == "next_tool_args":
            values[asked.name] = filled
        elif asked.type == "ToolCalls":
            values[asked.name] = {"tool_calls": [{"name": name, "args": filled}] if tool else []}
        else:
            values[asked.name] = thought
    return values


def tools_in(text: str) -> list[Tool]:
    """Return the tools that a request describes, in order."""
    found: dict[str, Tool] = {}
    for match in _TOOL.finditer(text):
        found.setdefault(match[1], Tool(match[1], match[2], _braces(text, match.end())))
    return list(found.values())


def _braces(text: str, start: int) -> dict[str, Any]:
    """Return the Python dict written at `start`; empty if there is none."""
    depth = 0
    for end in range(start, min(len(text), start + 20000)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            try:
                body = ast.literal_eval(text[start : end + 1])
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return {}
            return body if isinstance(body, dict) else {}
    return {}


def question_of(ask: Ask) -> str:
    """Return the task's inputs: of this turn or, in a conversation, of the turn that opened it."""
    skip = ("trajectory", "history", "tools")
    own = [text for name, text in ask.values.items() if name not in skip and text.strip()]
    if own:
        return "\n".join(own)
    names = [f.name for f in ask.inputs if f.name not in skip]
    for role, text in ask.earlier:
        for name in names:
            match = re.search(
                rf"(?:\[\[ ## {name} ## \]\]|<{name}>)\s*(.*?)\s*(?:\[\[ ## |</{name}>|\Z)", text, re.DOTALL
            )
            if role == "user" and match:
                return match[1]
    return ""


def _next(ask: Ask, tools: list[Tool], seen: list[str], question: str) -> Tool | None:
    """Choose a tool; None for the end where no tool is named `finish` or the like."""
    last = next((t for t in tools if _LAST.match(t.name)), None)
    others = [t for t in tools if t is not last]
    if not others or len(seen) >= 2 or any(not _ERROR.search(text) for text in seen):
        return last or (None if seen or not others else others[0])
    options = as_options(tuple(t.name for t in others))
    words = set(content_stems(question))
    verdict = Task(ask).evidence(Field("tool"), options).judge(passage(question))
    about = [len(words & {*content_stems(t.about), *split_name(t.name)}) for t in others]
    ranked = sorted(range(len(others)), key=lambda i: (-verdict.scores[i] - 0.5 * about[i], i))
    return others[ranked[len(seen) % len(ranked)]]


def _arguments(tool: Tool, question: str, seen: list[str]) -> dict[str, Any]:
    schemas = {name: schema if isinstance(schema, Mapping) else {} for name, schema in tool.arguments.items()}
    return {n: _argument(n, schema, question, seen) for n, schema in schemas.items() if "default" not in schema}


def _argument(name: str, schema: Mapping[str, Any], question: str, seen: list[str]) -> Any:
    """Find a value in the question for one argument, by its type and name."""
    if schema.get("enum"):
        options = as_options(tuple(schema["enum"]))
        words = set(content_stems(question))
        return max(options, key=lambda o: len(words & set(o.words))).value
    kind = schema.get("type")
    if kind in ("integer", "number"):
        value = next(iter(numbers(question)), 0.0)
        return int(value) if kind == "integer" else value
    if kind == "boolean":
        return True
    if kind == "array":
        item = schema.get("items")
        return [_argument(name, item if isinstance(item, Mapping) else {}, question, seen)]
    if kind == "object":
        return {}
    if seen:
        return telling(question, "\n".join(seen))
    quoted = re.search(r"[\"“']([^\"”'\n]{2,60})[\"”']", question)
    code = _CODE.search(question)
    if code and re.search(r"id|number|code|key|ref|year|date", name, re.IGNORECASE):
        return code[0]
    if re.search(r"express|formula|equation|calc", name, re.IGNORECASE):
        written = re.search(r"[-+*/().\d\s^]{3,}", question)
        return written[0].strip() if written and any(c.isdigit() for c in written[0]) else question
    named = re.findall(r"(?<!^)(?<![.!?]\s)\b[A-Z][\w-]+(?:\s+[A-Z][\w-]+)*", question)
    if re.search(r"quer|question|search|text|input|prompt", name, re.IGNORECASE):
        return clip(question, 40)
    return quoted[1] if quoted else named[0] if named else clip(question, 40)
