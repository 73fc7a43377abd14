"""Asking a role, and again with the error in view if the reply cannot be read; then a RoleError."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from xml.sax.saxutils import unescape

import dspy
from dspy.utils.exceptions import AdapterParseError

from ..errors import RoleError
from ..playbook import cut_middle, defuse, fit
from .reading import UnreadableError, printable, structures

Answer = TypeVar("Answer")

_PROBLEM_TOKENS = 200
_works: ContextVar[bool] = ContextVar("dspy_ace_role_works", default=False)


def ask(
    predict: dspy.Predict,
    parts: Mapping[str, str],
    required: Sequence[str],
    read: Callable[[Mapping[str, Any]], Answer],
    lm: Any = None,
    *,
    max_tokens: int,
) -> Answer:
    """Ask a role; if the reply cannot be read, ask again with the error in view: once, or twice if it is `working`.

    Args:
        predict: the role's predictor.
        parts: its input fields; text that no prompt may hold (adapter markers, lone surrogates) is defused.
        required: the output fields without which a reply says nothing.
        read: takes the output fields by name, missing ones as `""`; raises UnreadableError.
        lm: the LM to ask; None: the predictor's own, or DSPy's.
        max_tokens: bound on the input fields together, in estimated tokens; the long ones are cut in the
            middle. The adapter's headers and reminder (about 200 tokens) come on top, and, when asked once
            more, the error (200 at most).

    Raises:
        RoleError: no reply could be read. LM errors pass through.
    """
    inputs = fit({name: defuse(printable(part)) for name, part in parts.items()}, max_tokens)
    problem, times = "", 3 if _works.get() else 2
    for _ in range(times):
        try:
            return read(_fields(predict, inputs, problem, required, lm))
        except (UnreadableError, AdapterParseError) as error:
            problem = _briefly(error)
    raise RoleError(f"The reply could not be read in {times} attempts: {problem}")


@contextmanager
def working(works: bool) -> Iterator[None]:
    """A scope for calls of a role that `works`: one that never gave a reply that could be read is given up sooner."""
    token = _works.set(works)
    try:
        yield
    finally:
        _works.reset(token)


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
        inputs = {**inputs, "problem_with_last_reply": cut_middle(defuse(printable(problem)), _PROBLEM_TOKENS)}
    settings = {"adapter": _adapter(), "trace": [], **({"lm": lm} if lm is not None else {})}
    try:
        with dspy.context(**settings):
            answered = dict(predict(signature=signature, **inputs).items())
    except AdapterParseError as error:
        answered = _salvaged(error, required)
        if any(answered.get(name) in (None, "") for name in required):
            raise
    return {name: "" if answered.get(name) is None else answered[name] for name in signature.output_fields}


def _adapter() -> Any:
    """The adapter in force, without ChatAdapter's own second call: we ask again ourselves, with the error."""
    adapter = copy.copy(dspy.settings.adapter or dspy.ChatAdapter())
    if hasattr(adapter, "use_json_adapter_fallback"):
        adapter.use_json_adapter_fallback = False
    return adapter


def _salvaged(error: AdapterParseError, required: Sequence[str]) -> dict[str, Any]:
    """The fields of a reply that the adapter refused: those it read, or a JSON object or tags in the text."""
    parsed = error.parsed_result
    answered = dict(parsed) if isinstance(parsed, Mapping) else {}
    if all(answered.get(name) not in (None, "") for name in required):
        return answered
    reply = str(error.lm_response or "")
    for structure in structures(reply):
        if isinstance(structure, Mapping) and all(name in structure for name in required):
            return {str(name): value for name, value in structure.items()}
    for name in error.signature.output_fields:
        inside, closing, _ = reply.partition(f"<{name}>")[2].partition(f"</{name}>")
        if closing and not answered.get(name):
            answered[name] = unescape(inside.strip())
    return answered


def _briefly(error: Exception) -> str:
    if isinstance(error, AdapterParseError):
        reply = str(error.lm_response or "").strip()
        return f"these fields were expected: {', '.join(error.signature.output_fields)}; got: {reply[:300]!r}"
    return str(error)[:600]
