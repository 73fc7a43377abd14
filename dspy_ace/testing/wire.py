"""OpenAI-shaped chat messages as a `Request`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .reader import Request


def request_of(messages: Any, settings: Mapping[str, Any]) -> Request:
    """The request in `messages` (OpenAI chat format) with its `response_format` and `tools`. Never raises."""
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
    tools = settings.get("tools")
    listed = tuple(t for t in tools if isinstance(t, Mapping)) if isinstance(tools, list | tuple) else ()
    return Request(tuple(pairs), schema if isinstance(schema, Mapping) else None, bool(wanted), listed)


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
