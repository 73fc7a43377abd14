"""Reads a chat request: which fields are given, which are asked for, in which format, with which examples.

Understands the layouts that DSPy's chat, JSON and XML adapters write. Anything else is a plain request: its last
user message is the input, and the reply is plain text (or a JSON object when the request carries a schema).


OpenAI-shaped chat messages as a `Request`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request as text. `messages`: (role, text) pairs in order; `schema`: a JSON schema the reply must fit."""

    messages: tuple[tuple[str, str], ...]
    schema: Mapping[str, Any] | None = None
    json_mode: bool = False

    @property
    def text(self) -> str:
        """All messages as one text: what is logged, counted and hashed."""
        return "\n\n".join(f"<|{role}|>\n{text}" for role, text in self.messages)


@dataclass(frozen=True)
class Field:
    """An input or output field as the system message describes it."""

    name: str
    type: str = "str"
    desc: str = ""
    note: str = ""


@dataclass(frozen=True)
class Demo:
    """An earlier exchange shown in the request: field name → text, for inputs and for outputs."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Ask:
    """What a request asks. `style`: `chat`, `json`, `xml` or `plain`; `values`: input name → text; `earlier`: the
    (role, text) turns before the last one, demonstrations included.
    """

    style: str
    inputs: tuple[Field, ...] = ()
    outputs: tuple[Field, ...] = ()
    instructions: str = ""
    demos: tuple[Demo, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def asks_for(self) -> frozenset[str]:
        """Names of the output fields."""
        return frozenset(f.name for f in self.outputs)


@dataclass(frozen=True)
class _Frame:
    """The parsed system message."""

    style: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    instructions: str


_LISTING = re.compile(
    r"Your input fields are:\n(?P<inputs>.*?)\n?Your output fields are:\n(?P<outputs>.*?)"
    r"\n(?=All interactions will be structured)(?P<rest>.*)",
    re.DOTALL,
)
_ENTRY = re.compile(r"^\d+\. `(\w+)` \((.*?)\):(?= |\n|$)(.*?)(?=^\d+\. `\w+` \(|\Z)", re.DOTALL | re.MULTILINE)
_OBJECTIVE = re.compile(r"^In adhering to this structure, your objective is:[ \t]*", re.MULTILINE)
_HEADER = re.compile(r"^[ \t]*\[\[ ## (\w+) ## \]\][ \t]*", re.MULTILINE)
_REMINDER = re.compile(r"\n*^Respond with (?:the corresponding output fields|a JSON object in the)", re.MULTILINE)
_NOT_SUPPLIED = "Not supplied for this particular example"


def read(request: Request) -> Ask:
    """Read `request`. Never raises; what is not recognised is read as a plain request."""
    frame, used = None, 0
    for used, (_, text) in enumerate(request.messages, start=1):  # noqa: B007 - the position is read after the loop
        frame = _frame(text)
        if frame is not None:
            break
    if frame is None:
        return _plain(request)
    turns = request.messages[used:] or request.messages[used - 1 :]
    demos, last = _turns(frame, turns)
    style = frame.style
    if style == "chat" and (request.json_mode or "Respond with a JSON object" in last):
        style = "json"
    return Ask(
        style=style,
        inputs=frame.inputs,
        outputs=frame.outputs,
        instructions=frame.instructions,
        demos=demos,
        values=_inputs(frame, last),
        schema=request.schema,
        earlier=tuple(turns[:-1]),
    )


def _turns(frame: _Frame, turns: Sequence[tuple[str, str]]) -> tuple[tuple[Demo, ...], str]:
    demos: list[Demo] = []
    pending = ""
    for role, text in turns:
        if role == "assistant":
            outputs = _outputs(frame, text)
            if outputs:
                demos.append(Demo(_inputs(frame, pending), outputs))
        else:
            pending = text
    return tuple(demos), pending


@lru_cache(maxsize=512)
def _frame(text: str) -> _Frame | None:
    match = _LISTING.search(text)
    if match is None:
        return None
    rest = match["rest"]
    parts = _OBJECTIVE.split(rest, maxsplit=1)
    structure, instructions = parts[0], _dedent(parts[1]) if len(parts) > 1 else ""
    if "Outputs will be a JSON object" in structure:
        style = "json"
    elif "[[ ## completed ## ]]" in structure:
        style = "chat"
    elif re.search(r"^<(\w+)>", structure, re.MULTILINE):
        style = "xml"
    else:
        style = "json"
    notes = _notes(structure, style)
    outputs = tuple(Field(f.name, f.type, f.desc, notes.get(f.name, "")) for f in _entries(match["outputs"]))
    return _Frame(style, _entries(match["inputs"]), outputs, instructions)


def _dedent(text: str) -> str:
    return "\n".join(line[8:] if line.startswith(" " * 8) else line for line in text.splitlines()).strip()


def _entries(listing: str) -> tuple[Field, ...]:
    return tuple(Field(m[1], m[2], m[3].strip()) for m in _ENTRY.finditer(listing))


def _notes(structure: str, style: str) -> dict[str, str]:
    """Field name → the text after `# note: the value you produce`, or the XML skeleton of a nested field."""
    notes: dict[str, str] = {}
    if style == "json":
        start = structure.find("{\n")
        try:
            body = json.loads(structure[start:]) if start >= 0 else {}
        except ValueError:
            body = {}
        for name, text in body.items() if isinstance(body, dict) else ():
            notes[name] = str(text).partition("# note: the value you produce ")[2]
        if notes:
            return notes
    for m in re.finditer(r"\{(\w+)\}\s+# note: the value you produce (.*)", structure):
        notes[m[1]] = m[2]
    if style == "xml":
        for m in re.finditer(r"^<(\w+)>(?=<)(.*)</\1>$", structure, re.MULTILINE):
            notes.setdefault(m[1], m[0])
    return notes


def sections(text: str, names: Sequence[str]) -> dict[str, str]:
    """Text under each `[[ ## name ## ]]` header whose name is in `names`; other headers are plain text."""
    found: dict[str, str] = {}
    marks = [m for m in _HEADER.finditer(text) if m[1] in names or m[1] == "completed"]
    ends = [after.start() for after in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=False):
        if mark[1] != "completed":
            found.setdefault(mark[1], text[mark.end() : end].strip())
    return found


def _tagged(text: str, names: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        start, end = text.find(f"<{name}>"), text.rfind(f"</{name}>")
        if 0 <= start < end:
            found[name] = text[start + len(name) + 2 : end].strip()
    return found


def _inputs(frame: _Frame, text: str) -> dict[str, str]:
    names = [f.name for f in frame.inputs]
    reminders = list(_REMINDER.finditer(text))
    body = text[: reminders[-1].start()] if reminders else text
    found = _tagged(body, names) if frame.style == "xml" else sections(body, names)
    if not found and body.strip() and names:
        found = sections(body, names) or _tagged(body, names) or {names[-1]: body.strip()}
    return found


def _outputs(frame: _Frame, text: str) -> dict[str, str]:
    names = [f.name for f in frame.outputs]
    found = sections(text, names)
    if not found and frame.style == "xml":
        found = _tagged(text, names)
    if not found:
        body = load_json(text)
        if isinstance(body, dict):
            found = {k: v if isinstance(v, str) else json.dumps(v) for k, v in body.items() if k in names}
    return {k: v for k, v in found.items() if not v.startswith(_NOT_SUPPLIED) and v != "None"}


def load_json(text: str) -> Any:
    """The first JSON object or list in `text`, or None when there is none."""
    for opening, closing in (("{", "}"), ("[", "]")):
        start, end = text.find(opening), text.rfind(closing)
        if 0 <= start < end:
            try:
                return json.loads(text[start : end + 1])
            except (ValueError, RecursionError):
                continue
    return None


_OBSERVED = re.compile(
    r"\[\[ ## observation_\d+ ## \]\]\s*(.*?)\s*(?=\[\[ ## \w+ ## \]\]|\Z)|<(observation_\d+)>\s*(.*?)\s*</\2>"
    r"|\"value\": \"((?:[^\"\\]|\\.)*)\"",
    re.DOTALL,
)


def observations(text: str) -> list[str]:
    """What the tools of an agent returned, as its trajectory or history shows it."""
    return [m[1] or m[3] or m[4] or "" for m in _OBSERVED.finditer(text)]


def _plain(request: Request) -> Ask:
    system = "\n\n".join(text for role, text in request.messages if role in ("system", "developer"))
    demos: list[Demo] = []
    pending = ""
    for role, text in request.messages:
        if role == "assistant":
            demos.append(Demo({"request": pending}, {"answer": text}))
        elif role not in ("system", "developer"):
            pending = text
    style = "json" if request.schema or request.json_mode else "plain"
    outputs = (Field("answer"),)
    return Ask(style, (Field("request"),), outputs, system, tuple(demos), {"request": pending}, request.schema)


def request_of(messages: Any, settings: Mapping[str, Any]) -> Request:
    """The request in `messages` (OpenAI chat format) with its `response_format`. Never raises."""
    pairs = []
    for message in messages if isinstance(messages, list | tuple) else ():
        if isinstance(message, Mapping):
            text = content_text(message.get("content"))
            calls = message.get("tool_calls")
            if calls:
                text = f"{text}\n{json.dumps(calls, default=str)}".strip()
            pairs.append((str(message.get("role", "user")), text))
    wanted = settings.get("response_format")
    if isinstance(wanted, type) and hasattr(wanted, "model_json_schema"):
        wanted = {"type": "json_schema", "json_schema": {"schema": wanted.model_json_schema()}}
    body = wanted.get("json_schema") if isinstance(wanted, Mapping) else None
    schema = body.get("schema") if isinstance(body, Mapping) else None
    return Request(tuple(pairs), schema if isinstance(schema, Mapping) else None, bool(wanted))


def content_text(content: Any) -> str:
    """Message content as text: strings as they are, of parts their text, other parts named by their type."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        return "\n".join(_part(part) for part in content)
    return str(content)


def _part(part: Any) -> str:
    if isinstance(part, Mapping):
        text = part.get("text")
        return text if isinstance(text, str) else f"({part.get('type', 'attachment')})"
    return str(part)
