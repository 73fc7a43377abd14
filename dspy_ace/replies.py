"""Asking a role, and reading what it answers: item by item, once more with the error, then a RoleError.

Structured answers are plain text fields that hold JSON, read here: one bad item of a list must not cost the
others, and a model that writes prose around its JSON has still answered.
"""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import dspy
import json_repair
from dspy.utils.exceptions import AdapterParseError

from .errors import RoleError
from .text import defuse

Answer = TypeVar("Answer")

_FENCE = re.compile(r"^\s*```\w*\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_LISTED = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+(.*\S)\s*$")
_NOTHING = {"", "[]", "{}", "none", "null", "n/a", "(none)", "(empty)", "none."}


class UnreadableError(ValueError):
    """A field of a reply that is not what was asked for; its text is told to the model."""


def ask(
    predict: dspy.Predict,
    inputs: Mapping[str, str],
    required: Sequence[str],
    read: Callable[[Mapping[str, Any]], Answer],
    lm: Any = None,
) -> Answer:
    """Ask a role; if the reply cannot be read, ask once more with the error in view.

    Args:
        predict: the role's predictor.
        inputs: its input fields; text that no prompt may hold (adapter markers, lone surrogates) is defused.
        required: the output fields without which a reply says nothing.
        read: takes the output fields by name, missing ones as `""`; raises UnreadableError.
        lm: the LM to ask; None: the predictor's own, or DSPy's.

    Raises:
        RoleError: neither reply could be read. LM errors pass through.
    """
    clean = {name: defuse(value.encode("utf-8", "replace").decode("utf-8")) for name, value in inputs.items()}
    problem = ""
    for _ in range(2):
        try:
            return read(_fields(predict, clean, problem, required, lm))
        except (UnreadableError, AdapterParseError) as error:
            problem = _briefly(error)
    raise RoleError(f"The reply could not be read, also when asked once more: {problem}")


def _fields(
    predict: dspy.Predict, inputs: Mapping[str, str], problem: str, required: Sequence[str], lm: Any
) -> Mapping[str, Any]:
    signature = predict.signature
    if problem:
        signature = signature.append(
            "problem_with_last_reply",
            dspy.InputField(
                desc="your last reply could not be used for this reason; answer again, in the form asked for"
            ),
            str,
        )
        inputs = {**inputs, "problem_with_last_reply": defuse(problem)}
    settings = {"adapter": _adapter(), "trace": [], **({"lm": lm} if lm is not None else {})}
    try:
        with dspy.context(**settings):
            answered = dict(predict(signature=signature, **inputs).items())
    except AdapterParseError as error:
        answered = dict(error.parsed_result or {})
        if not all(answered.get(name) for name in required):
            raise
    return {name: answered.get(name) or "" for name in signature.output_fields}


def _adapter() -> Any:
    """The adapter in force, without ChatAdapter's own second call: we ask again ourselves, with the error."""
    adapter = copy.copy(dspy.settings.adapter or dspy.ChatAdapter())
    if hasattr(adapter, "use_json_adapter_fallback"):
        adapter.use_json_adapter_fallback = False
    return adapter


def _briefly(error: Exception) -> str:
    if isinstance(error, AdapterParseError):
        reply = str(error.lm_response or "").strip()
        return f"these fields were expected: {', '.join(error.signature.output_fields)}; got: {reply[:300]!r}"
    return str(error)[:500]


def read_list(value: Any, what: str) -> list[Any]:
    """The items of a list field: JSON (fenced, repaired if need be) or one item a line behind `-` or `1.`.

    Raises:
        UnreadableError: there is text, but no list in it.
    """
    data = _data(value)
    if isinstance(data, Mapping):
        data = [data]
    if isinstance(data, (list, tuple)):
        return list(data)
    text = str(value).strip()
    listed = [found.group(1) for found in map(_LISTED.match, text.splitlines()) if found]
    if listed:
        return listed
    if text.casefold() in _NOTHING:
        return []
    raise UnreadableError(f"{what} must be a JSON list; got {text[:300]!r}")


def read_mapping(value: Any, what: str) -> dict[str, Any]:
    """The entries of an object field. A list of single-entry objects, or of {id, tag} pairs, is taken as one.

    Raises:
        UnreadableError: there is text, but no object in it.
    """
    data = _data(value)
    if isinstance(data, Mapping):
        return {str(name): entry for name, entry in data.items()}
    if isinstance(data, (list, tuple)) and all(isinstance(item, Mapping) for item in data):
        entries: dict[str, Any] = {}
        for item in data:
            name = item.get("id", item.get("bullet_id"))
            tag = item.get("tag", item.get("vote"))
            entries.update({str(name): tag} if name is not None else {str(k): v for k, v in item.items()})
        return entries
    if str(value).strip().casefold() in _NOTHING:
        return {}
    raise UnreadableError(f"{what} must be a JSON object; got {str(value).strip()[:300]!r}")


def _data(value: Any) -> Any:
    """The data in a field: already data, JSON, a Python literal, or JSON that can be repaired; else None."""
    if not isinstance(value, str):
        return value
    fenced = _FENCE.match(value)
    text = (fenced.group(1) if fenced else value).strip()
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    opening = re.search(r"[\[{]\s*[\[{\"'\]}]", text)
    return json_repair.loads(text[opening.start() :]) if opening else None
