"""Writes a reply: from a field's description to a JSON schema, and from values to text in the format asked for."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from xml.sax.saxutils import escape

from .request import Ask, Field

Schema = Mapping[str, Any]
_NAMES = {
    "str": "string", "int": "integer", "float": "number", "bool": "boolean", "NoneType": "null", "None": "null",
}  # fmt: skip
_LISTS = {"list", "List", "set", "Set", "tuple", "Tuple", "Sequence", "frozenset", "Iterable"}
_DICTS = {"dict", "Dict", "Mapping"}


@lru_cache(maxsize=1024)
def schema_of(field: Field) -> Schema:
    """Return a JSON schema for the values of `field`; `{"type": "string"}` if nothing is known."""
    note = field.note
    start = note.find("JSON schema: ")
    if start >= 0:
        try:
            schema = json.loads(note[start + len("JSON schema: ") :])
        except ValueError:
            schema = None
        if isinstance(schema, dict):
            return schema
    if note.startswith("must be one of: "):
        return {"enum": note[len("must be one of: ") :].split("; ")}
    if note.startswith("<"):
        return _skeleton(note)
    return _typed(field.type)


def _typed(name: str) -> Schema:
    """Return the schema of a Python annotation written as text, such as `list[Literal['a', 'b']]`."""
    name = name.strip()
    if name in _NAMES:
        return {"type": _NAMES[name]}
    bars = _split(name, "|")
    if len(bars) > 1:
        return {"anyOf": [_typed(part) for part in bars]}
    head, bracket, inner = name.partition("[")
    if not bracket or not inner.endswith("]"):
        return {"type": "array"} if head in _LISTS else {"type": "object"} if head in _DICTS else {"type": "string"}
    inner, head = inner[:-1], head.rpartition(".")[2]
    if head == "Literal":
        return {"enum": _literals(inner)}
    if head in ("Optional", "Union", "UnionType"):
        options = [_typed(part) for part in _split(inner, ",")]
        return {"anyOf": options + ([{"type": "null"}] if head == "Optional" else [])}
    if head in _LISTS:
        return {"type": "array", "items": _typed(_split(inner, ",")[0])}
    if head in _DICTS:
        return {"type": "object", "additionalProperties": True}
    return {"type": "string"}


def _literals(inner: str) -> list[Any]:
    try:
        return list(ast.literal_eval(f"[{inner}]"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [part.strip().strip("'\"") for part in _split(inner, ",")]


def _split(text: str, mark: str) -> list[str]:
    """Cut `text` at each `mark` outside brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for position, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[({":
            depth += 1
        elif char in "])}":
            depth -= 1
        elif char == mark and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


_ELEMENT = re.compile(r"<(\w+)>(.*?)</\1>", re.DOTALL)


def _skeleton(note: str) -> Schema:
    """Return the schema of an XML skeleton such as `<m><a>...</a><b><item>...</item></b></m>`."""
    match = _ELEMENT.fullmatch(note.strip())
    children = list(_ELEMENT.finditer(match[2])) if match else []
    if not children:
        return {"type": "string"}
    if children[0][1] == "item":
        return {"type": "array", "items": _skeleton(children[0][0])}
    return {
        "type": "object",
        "properties": {child[1]: _skeleton(child[0]) for child in children},
        "required": [child[1] for child in children],
    }


def resolve(schema: Any, root: Schema, depth: int = 0) -> Schema:
    """Return what `schema` stands for: its reference followed, or its first alternative that is not null."""
    if not isinstance(schema, Mapping) or depth > 8:
        return {}
    reference = schema.get("$ref")
    if isinstance(reference, str):
        target: Any = root
        for key in reference.lstrip("#/").split("/"):
            target = target.get(key, {}) if isinstance(target, Mapping) else {}
        return resolve(target, root, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        choices = [c for c in schema.get(key) or () if isinstance(c, Mapping) and c.get("type") != "null"]
        if choices:
            return resolve(choices[0], root, depth + 1)
    if "const" in schema:
        return {"enum": [schema["const"]]}
    kind = schema.get("type")
    if isinstance(kind, list):
        return {**schema, "type": next((k for k in kind if k != "null"), "null")}
    return schema


def write(ask: Ask, values: Mapping[str, Any]) -> str:
    """Write `values` (output field → value) in the format that the request asks for."""
    if ask.style == "plain":
        return "\n".join(as_text(value) for value in values.values()) or "There is nothing to answer."
    if ask.style == "json":
        return json.dumps(dict(values), ensure_ascii=False, default=str)
    if ask.style == "xml":
        return "\n\n".join(_xml(name, value) for name, value in values.items())
    body = "\n\n".join(f"[[ ## {name} ## ]]\n{_HEADER.sub('[ ## ', as_text(v))}" for name, v in values.items())
    return f"{body}\n\n[[ ## completed ## ]]"


_HEADER = re.compile(r"\[\[ ## (?=\w+ ## \]\])")
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_text(value: Any) -> str:
    """Return a value as field text: strings as they are, truth values as Python writes them, the rest as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _xml(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"<{name}>{''.join(_xml(str(k), v) for k, v in value.items())}</{name}>"
    if isinstance(value, list):
        return f"<{name}>{''.join(_xml('item', v) for v in value)}</{name}>" if value else f"<{name} />"
    return f"<{name}>\n{escape(_NOT_XML.sub(' ', as_text(value)))}\n</{name}>"
