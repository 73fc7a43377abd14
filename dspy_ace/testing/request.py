"""Reads a chat request: which fields are given, which are asked for, in which format, with which examples.

It understands what DSPy's chat, JSON and XML adapters write. Anything else is a plain request: its last user message is
the input, and the reply is plain text, or a JSON object if the request has a schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from .words import cut


@dataclass(frozen=True)
class Request:
    """A chat request as text.

    Attributes:
        messages: (role, text) pairs, in order.
        schema: the JSON schema that the reply must fit, or None.
        json_mode: True if the reply must be JSON.
    """

    messages: tuple[tuple[str, str], ...]
    schema: Mapping[str, Any] | None = None
    json_mode: bool = False

    @property
    def text(self) -> str:
        """All messages as one text: it is logged, its tokens are counted, the dice are keyed by it."""
        return "\n\n".join(f"<|{role}|>\n{text}" for role, text in self.messages)


@dataclass(frozen=True)
class Field:
    """An input or output field as the system message describes it. `note`: the constraint on its values."""

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
    """A request as read.

    Attributes:
        style: the format of the reply: `chat`, `json`, `xml` or `plain`.
        inputs, outputs: the fields described.
        instructions: the objective in the system message.
        demos: the demonstrations.
        values: input name → text.
        schema: the JSON schema that the reply must fit, or None.
        earlier: (role, text) turns before the last one, demonstrations included.
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


_LISTING = re.compile(
    r"(?:Your input fields are:\n(?P<inputs>.*?)\n?)?Your output fields are:\n(?P<outputs>.*?)"
    r"\n(?=All interactions will be structured)(?P<rest>.*)",
    re.DOTALL,
)
_ENTRY = re.compile(r"^\d+\. `(\w+)` \((.*?)\):(?= |\n|$)(.*?)(?=^\d+\. `\w+` \(|\Z)", re.DOTALL | re.MULTILINE)
_OBJECTIVE = re.compile(r"^In adhering to this structure, your objective is:[ \t]*", re.MULTILINE)
_HEADER = re.compile(r"^[ \t]*\[\[ ## (\w+) ## \]\][ \t]*", re.MULTILINE)
_REMINDER = re.compile(r"\n*^Respond with (?:the corresponding output fields|a JSON object in the)", re.MULTILINE)
_NOT_SUPPLIED = "Not supplied for this particular example"


def read(request: Request) -> Ask:
    """Read `request`. It never raises: a layout that it does not know is a plain request."""
    frame, used = None, 0
    for used, (_, text) in enumerate(request.messages, start=1):  # noqa: B007 - the position is read after the loop
        frame = _frame(text)
        if frame is not None:
            break
    if frame is None:
        return _plain(request)
    turns = request.messages[used:] or request.messages[used - 1 :]
    demos, last = _turns(frame, turns)
    as_json = frame.style == "chat" and (request.json_mode or "Respond with a JSON object" in last)
    return replace(
        frame,
        style="json" if as_json else frame.style,
        demos=demos,
        values=_inputs(frame, last),
        schema=request.schema,
        earlier=tuple(turns[:-1]),
    )


def _turns(frame: Ask, turns: Sequence[tuple[str, str]]) -> tuple[tuple[Demo, ...], str]:
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
def _frame(text: str) -> Ask | None:
    """Read a system message; None if it is not that of an adapter."""
    match = _LISTING.search(text)
    if match is None:
        return None
    structure, *objective = _OBJECTIVE.split(match["rest"], maxsplit=1)
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
    return Ask(style, _entries(match["inputs"] or ""), outputs, _dedent("".join(objective)))


def _dedent(text: str) -> str:
    return "\n".join(line[8:] if line.startswith(" " * 8) else line for line in text.splitlines()).strip()


def _entries(listing: str) -> tuple[Field, ...]:
    return tuple(Field(m[1], m[2], m[3].strip()) for m in _ENTRY.finditer(listing))


def _notes(structure: str, style: str) -> dict[str, str]:
    """Return field name → the text after `# note: the value you produce`, or the XML skeleton of a nested field."""
    if style == "json":
        start = structure.find("{\n")
        try:
            body = json.loads(structure[start:]) if start >= 0 else {}
        except ValueError:
            body = {}
        if body and isinstance(body, dict):
            return {name: str(text).partition("# note: the value you produce ")[2] for name, text in body.items()}
    notes = dict(re.findall(r"\{(\w+)\}\s+# note: the value you produce (.*)", structure))
    if style == "xml":
        for m in re.finditer(r"^<(\w+)>(?=<)(.*)</\1>$", structure, re.MULTILINE):
            notes.setdefault(m[1], m[0])
    return notes


def sections(text: str, names: Sequence[str]) -> dict[str, str]:
    """Return the text under each `[[ ## name ## ]]` header with a name in `names`; other headers are plain text."""
    marks = [m for m in _HEADER.finditer(text) if m[1] in names or m[1] == "completed"]
    found = {mark[1]: body.strip() for mark, body in reversed(cut(marks, text))}  # of two alike, the first
    return {name: found[name] for name in dict.fromkeys(m[1] for m in marks) if name != "completed"}


def _tagged(text: str, names: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        start, end = text.find(f"<{name}>"), text.rfind(f"</{name}>")
        if 0 <= start < end:
            found[name] = text[start + len(name) + 2 : end].strip()
    return found


def _inputs(frame: Ask, text: str) -> dict[str, str]:
    names = [f.name for f in frame.inputs] or list(dict.fromkeys(m[1] for m in _HEADER.finditer(text)))
    reminders = list(_REMINDER.finditer(text))
    body = text[: reminders[-1].start()] if reminders else text
    found = _tagged(body, names) if frame.style == "xml" else sections(body, names)
    if not found and body.strip() and names:
        found = sections(body, names) or _tagged(body, names) or {names[-1]: body.strip()}
    return found


def _outputs(frame: Ask, text: str) -> dict[str, str]:
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
    """Return the first JSON object or list in `text`, or None."""
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
    """Return the answers of an agent's tools, as its trajectory or history shows them."""
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
    """Make a request of `messages` in OpenAI's chat format and of a `response_format`. It never raises."""
    pairs = []
    for message in messages if isinstance(messages, list | tuple) else ():
        if isinstance(message, Mapping):
            text = _content(message.get("content"))
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


def _content(content: Any) -> str:
    """Return message content as text; a part that is not text is named by its type."""
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
