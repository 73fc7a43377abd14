"""Ask a role, and read its reply item by item.

Strong models answer with strict JSON. Where one does not, a bad item of a list costs itself alone, prose around the
JSON does not matter, and an item that the end of the reply cuts in two is never taken for a whole one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import dspy
import json_repair
from dspy.adapters.utils import get_field_description_string
from dspy.utils.exceptions import AdapterParseError

from ..errors import RoleError
from ..playbook import cut_middle, defuse, fit

Answer = TypeVar("Answer")

_PROBLEM_TOKENS = 200
_CHARS_A_TOKEN = 20  # more than any text has: what is longer is cut before its tokens are counted
_MAX_CHARS = 200_000  # of a field of a reply: some 50,000 tokens
_MAX_ITEMS = 200  # of a list
_TORN = "the reply ends in the middle of it"
_DECODER = json.JSONDecoder(strict=False)  # a raw newline in a string is common, and harmless
# what may stand before a list or an object on its line (list mark, label, fence), and how it begins
_OPENING = re.compile(
    r"^[ \t]*(?:(?:[-*•]|\d+[.)])[ \t]+)?(?:[*_\"'`]{0,3}\w[\w ]{0,40}[*_\"'`]{0,3}[ \t]*[:=][*_]{0,2}[ \t]*)?"
    r"`{0,3}(?:json)?[ \t]*(?!\[\[? ?##)(?=[\[{]\s*(?:[\[{\"'\]}]|//|#))",
    re.MULTILINE,
)
_BETWEEN = re.compile(r"(?:[\s,]|//[^\n]*|#[^\n]*|```\w*|(?<=\n)[-*•]\s)*")
_ENDED = re.compile(r"\s*(?:[,\]}]|//|#|\n|`|\Z)")
_LINE_ENDED = re.compile(r"[ \t,;.`*]*(?:\n|\Z)")
_LIST_ENDED = re.compile(r"\][ \t]*(?:```|\n|\Z)")
_OBJECT = re.compile(r"[,\n]\s*(?=\{)")
_FIRST_KEY = re.compile(r"\{\s*[\"']?(\w*)")
_LIST_MARK = re.compile(r"^ {0,2}(?:[-*•]|\d+[.)])\s+(?=\S)", re.MULTILINE)
_PAIR = re.compile(r"[^\w\n]*(\w[\w-]*)[\"'`\])*]*[ \t]*(?:[:=→–—]|->|=>)[ \t]*[\"'`(*]*(\w+)\W*")
_NOTHING = re.compile(
    r"\W*(?:(?:no|none|not|nothing|null|n/a|empty|new|further|additional|more|key|other|cited|applicable|changes?|"
    r"insights?|lessons?|operations?|updates?|bullets?|tags?|are|is|was|were|needed|required|necessary|to|add|tag|"
    r"report|at|this|time)\b\W*)*",
    re.IGNORECASE,
)
_works: ContextVar[bool] = ContextVar("dspy_ace_role_works", default=False)


class RoleAdapter(dspy.ChatAdapter):  # type: ignore[misc]  # dspy is untyped
    """A ChatAdapter that names no field twice: the prompt of a role is paid for often."""

    def format_field_description(self, signature: Any) -> str:
        """Return the output fields, and the input fields that need a description."""
        described = {name: str(field.json_schema_extra["desc"]) for name, field in signature.input_fields.items()}
        inputs = [f"`{name}`: {desc}" for name, desc in described.items() if desc not in ("", f"${{{name}}}")]
        head = ["Your input fields are:", *inputs] if inputs else []
        return "\n".join([*head, "Your output fields are:", get_field_description_string(signature.output_fields)])

    def format_field_structure(self, signature: Any) -> str:  # noqa: ARG002 - DSPy's
        """Return how a message is built."""
        return "All interactions will be structured by headers [[ ## name ## ]], with [[ ## completed ## ]] last."

    def format_task_description(self, signature: Any) -> str:
        """Return the instructions, without the indentation that DSPy gives them."""
        return f"In adhering to this structure, your objective is:\n{signature.instructions}"

    def user_message_output_requirements(self, signature: Any) -> str:
        """Return the reminder at the end of the message."""
        return f"Respond with the corresponding output fields: {', '.join(signature.output_fields)}."


class UnreadableError(ValueError):
    """A field of a reply that is not what was asked for; its text is told to the model."""


@dataclass(frozen=True)
class Broken:
    """A part of a list in which no item could be read.

    Args:
        text: that part of the reply.
        reason: why it is no item.
    """

    text: str
    reason: str


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
        predict: the role's predictor. It is asked through a ChatAdapter, whatever adapter the user configured.
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
    inputs = fit({name: _safe(part, max_tokens) for name, part in parts.items()}, max_tokens)
    problem, times = "", 3 if _works.get() else 2
    for _ in range(times):
        try:
            return read(_fields(predict, inputs, problem, required, lm))
        except (UnreadableError, AdapterParseError) as error:
            problem = _briefly(error)
    raise RoleError(f"The reply could not be read in {times} attempts: {problem}")


@contextmanager
def working(works: bool) -> Iterator[None]:
    """Open a scope for calls of a role that `works`; one that never gave a readable reply is given up sooner."""
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
        desc = "your last reply could not be used for this reason; answer again, in the form asked for"
        signature = signature.append("problem_with_last_reply", dspy.InputField(desc=desc), str)
        inputs = {**inputs, "problem_with_last_reply": cut_middle(_safe(problem, _PROBLEM_TOKENS), _PROBLEM_TOKENS)}
    adapter = RoleAdapter()
    adapter.use_json_adapter_fallback = False  # we ask again ourselves, with the error
    settings = {"adapter": adapter, "trace": [], **({"lm": lm} if lm is not None else {})}
    try:
        with dspy.context(**settings):
            answered = dict(predict(signature=signature, **inputs).items())
    except AdapterParseError as error:
        answered = _salvaged(error, required)
        if any(answered.get(name) in (None, "") for name in required):
            raise
    return {name: "" if answered.get(name) is None else answered[name] for name in signature.output_fields}


def _salvaged(error: AdapterParseError, required: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a reply that the adapter refused: those it read, or those of a JSON object in the text."""
    answered = dict(error.parsed_result) if isinstance(error.parsed_result, Mapping) else {}
    if any(answered.get(name) in (None, "") for name in required):
        for item in _items(str(error.lm_response or ""), "") or ():
            if isinstance(item, Mapping) and all(name in item for name in required):
                return {**answered, **item}
    return answered


def _briefly(error: Exception) -> str:
    if isinstance(error, AdapterParseError):
        reply = str(error.lm_response or "").strip()
        return f"these fields were expected: {', '.join(error.signature.output_fields)}; got: {reply[:300]!r}"
    return str(error)[:600]


def _safe(text: str, max_tokens: int) -> str:
    """Return `text` as a prompt may hold it. A huge one is cut before more work is done on it."""
    most = _CHARS_A_TOKEN * max_tokens
    if len(text) > 2 * most:
        text = f"{text[:most]}\n…\n{text[-most:]}"
    return defuse(_printable(text))


def _printable(text: str) -> str:
    """Return `text` as valid Unicode: surrogate pairs are joined, lone ones replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def restored(text: str) -> str:
    r"""Return `text` as meant: valid Unicode; a form feed or backspace is `\f`, `\b` of `\frac`, `\beta`."""
    return _printable(text).replace("\f", r"\f").replace("\b", r"\b")


def is_nothing(text: str) -> bool:
    """Return True if `text` only says that there is nothing: `(empty)`, `None.`, `No new insights.`"""
    return len(text) < 200 and _NOTHING.fullmatch(text) is not None


def read_list(value: Any, what: str) -> list[Any]:
    """Return the items of a list field: JSON (fenced, commented, repaired if need be) or one behind each `-` or `1.`.

    Lists in the list are flattened; an object that is no list is its only item, unless it wraps the list.

    Returns:
        The items, 200 at most; a `Broken` for each part that could not be read as one, and for those beyond.

    Raises:
        UnreadableError: there is text, but no list in it, or no item of it could be read.

    Example:
        >>> read_list('Here it is: ["Carry.", "Wri', "insights")
        ['Carry.', Broken(text='"Wri', reason='the reply ends in the middle of it')]
    """
    items, text = _items(value, what), _text(value)
    if items is None:
        marked = (item.partition("\n\n")[0].splitlines() for item in _LIST_MARK.split(text)[1:])
        items = ["\n".join(map(str.strip, lines)) for lines in marked]
        if not items and not is_nothing(text):
            raise UnreadableError(f"{what} must be a JSON list; got {text[:300]!r}")
    elif items and all(isinstance(item, Broken) for item in items):
        raise UnreadableError(
            f"{what}: {items[0].reason}. Answer with a complete JSON list, more briefly if need be; got {text[:300]!r}"
        )
    if len(items) > _MAX_ITEMS:
        items[_MAX_ITEMS:] = [Broken(str(items[_MAX_ITEMS])[:300], f"more than {_MAX_ITEMS} items")]
    return items


def read_mapping(value: Any, what: str) -> dict[str, Any]:
    """Return the entries of an object field: JSON, or one `name: value` a line.

    A list of single-entry objects, or of {id, tag} pairs, is taken as one object.

    Raises:
        UnreadableError: there is text, but no object in it.
    """
    items, text = _items(value, what), _text(value)
    if items is None:
        entries = {pair[1]: pair[2] for pair in map(_PAIR.fullmatch, text.splitlines()) if pair}
        if entries or is_nothing(text):
            return entries
        items = [text]
    entries = {}
    for item in items:
        data = _repaired(item.text) if isinstance(item, Broken) else item
        if not isinstance(data, Mapping):
            raise UnreadableError(f"{what} must be a JSON object; got {text[:300]!r}")
        name, tag = data.get("id", data.get("bullet_id")), data.get("tag", data.get("vote"))
        entries.update({str(k): v for k, v in data.items()} if name is None else {str(name): tag})
    return entries


def _text(value: Any) -> str:
    return str("" if value is None else value)[:_MAX_CHARS].strip()


def _items(value: Any, what: str) -> list[Any] | None:
    """Return the items of the JSON in a field, lists in it flattened; None if there is none. Never raises."""
    if not isinstance(value, str):
        return _flat([value], what) if isinstance(value, (list, tuple, Mapping)) else None
    text = _text(value)
    try:
        whole = json.loads(text, strict=False)
        return _flat([whole], what) if isinstance(whole, (list, dict)) else None
    except (ValueError, RecursionError):
        found = _found(text)
        return None if found is None else _flat(found, what)


def _flat(values: list[Any], what: str) -> list[Any]:
    """Return the items of nested lists in order; `{"operations": [...]}` stands for its list."""
    waiting, items = values[::-1], []
    while waiting:
        item = waiting.pop()
        item = item[what] if isinstance(item, Mapping) and what in item else item
        if isinstance(item, (list, tuple)):
            waiting.extend(reversed(item))
        else:
            items.append(item)
    return items


def _found(text: str) -> list[Any] | None:
    """Return the items of the first list in a text, or its objects, whatever stands around them; None: no JSON."""
    at = 0
    while opening := _OPENING.search(text, at):
        try:
            data, end = _DECODER.raw_decode(text, opening.end())
        except (ValueError, RecursionError):
            return _pieces(text, opening.end())
        if isinstance(data, dict):  # more of them may follow
            return _pieces(text, opening.end())
        if any(isinstance(item, dict) for item in data) or _LINE_ENDED.match(text, end):
            return list(data)
        at = text.find("\n", end) % (len(text) + 1)  # brackets in prose: on with the next line
    return None


def _pieces(text: str, at: int) -> list[Any]:
    """Return the items, one by one, of a list that is not valid JSON, or of objects that follow each other."""
    in_list = text[at] == "["
    at, items = at + in_list, list[Any]()
    while len(items) <= _MAX_ITEMS:
        between = _BETWEEN.match(text, at)
        at = between.end() if between else at
        if at >= len(text) or text[at] == "]" or not (in_list or text[at] in "[{"):
            break
        try:
            item, end = _DECODER.raw_decode(text, at)
            if in_list and not _ENDED.match(text, end):
                raise ValueError("more text follows the item")
            items.append(item)
        except (ValueError, RecursionError) as error:
            end = _next_object(text, at)
            # if no quote follows, a bracket at the end of the reply is part of the text
            torn = end == len(text) and "Unterminated string" in str(error)
            items += [Broken(text[at:], _TORN)] if torn else _repaired_items(text[at:end], end < len(text))
        at = end
    return items


def _next_object(text: str, at: int) -> int:
    """Return where the next whole object begins with the same first key as that at `at`, or the end of the text."""
    key = _FIRST_KEY.match(text, at)
    for found in islice(_OBJECT.finditer(text, at + 1), 20):
        same = _FIRST_KEY.match(text, found.end())
        if key is None or same is None or key[1] == same[1]:
            try:
                _DECODER.raw_decode(text, found.end())
            except (ValueError, RecursionError):
                continue
            return found.end()
    return len(text)


def _repaired_items(text: str, goes_on: bool) -> list[Any]:
    """Return the items of a part of a list that is not valid JSON. Without its end, the last one is torn."""
    ends = [found.start() for found in _LIST_ENDED.finditer(text)]
    items = _repaired(f"[{text[: ends[-1]] if ends else text}]")
    whole = goes_on or bool(ends)
    if not isinstance(items, list) or not items:
        return [Broken(text, "it is not valid JSON" if whole else _TORN)]
    return items if whole else [*items[:-1], Broken(text, _TORN)]


def _repaired(text: str) -> Any:
    """Return `text` as JSON after repair; None if it is past that. A long or nested text would take seconds."""
    if len(text) > 10_000 or text.count("{") + text.count("[") > 16:
        return None
    try:
        return json_repair.loads(text)
    except Exception:  # noqa: BLE001 - on odd text it fails its own assertions: past repair
        return None
