"""Citations: a training copy names the bullets that guided or misled it (ACE §3.1, the Generator's marks).

Only the adapter of a training copy asks for them. No signature, demo, prediction, trace or saved state holds the
field: nothing has to be cleaned up, and no demo shows it empty. A reply that leaves it out is a good reply.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from ..playbook import Playbook

FIELD = "cited_bullets"
_ASK = (
    "Ids of the playbook bullets in your instructions that you relied on or that misled you, "
    'e.g. ["str-00012"]; [] if none was relevant.'
)
_RECORD = "dspy_ace_citations"  # a DSPy setting: it reaches the threads that dspy.Parallel starts
_NUMBER = re.compile(r"-\d+")
_OPENS = re.compile(rf"(?<!/)\b{FIELD}\b")
_CLAUSE = re.compile(r"[.,;\n()\[\]\"]")
_DENIES = re.compile(r"\b(?:not|never|no|irrelevant|unused|ignored)\b|n['’]t\b")
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)")  # in a JSON reply: `\ncmt-00002` is no word of its own
_CHAT = re.compile(  # from the field's header, however written, to the next header
    rf"(?:^[\s\[\]#*<>_:-]{{0,12}}|\[\[[\s#]*){FIELD}\b.*?(?=^[^\S\n]*\[\[ ## (?!{FIELD}\b)|\Z)",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
_JSON = re.compile(rf"[\"']?{FIELD}[\"']?\s*:\s*(?:\[[^\]}}]*\]?|\"[^\"\n]*\"|[^,}}\n]*)\s*,?")


class Cited(list[str]):
    """The ids that were cited, in the order of the replies, repeats included.

    Attributes:
        displayed: the ids that were shown, if predictors select bullets call by call; None: all were shown.
    """

    displayed: set[str] | None = None


@contextmanager
def recording() -> Iterator[Cited]:
    """Open a scope in which citing predictors note the ids they cite, and selecting ones the ids they show."""
    record = Cited()
    with dspy.context(**{_RECORD: record}):
        yield record


def displayed(ids: Iterable[str]) -> None:
    """Note the ids that a call shows, within `recording`."""
    record = dspy.settings.get(_RECORD)
    if record is not None:
        record.displayed = (record.displayed or set()).union(ids)


def ask_for_citations(predictor: dspy.Predict, name: str, playbook: Playbook) -> None:
    """Make a predictor of a training copy ask for citations of the bullets it is shown.

    It is changed in place, to run under a citing adapter. Only ids that the playbook shows to `name`, its path in the
    program, count. A predictor that shows no bullet, or has a field `cited_bullets` itself, is left as it is.
    """
    if not playbook.for_predictor(name) or FIELD in predictor.signature.fields:
        return
    mix_in(_CitingPredictor, predictor)
    predictor.__dict__["_dspy_ace_shown"] = {b.id.casefold(): b.id for b in playbook.for_predictor(name)}


def citing(adapter: dspy.Adapter, shown: dict[str, str]) -> dspy.Adapter:
    """Return a copy of `adapter` that asks for citations and notes those of `shown` (id in lower case → id)."""
    clone = copy.copy(adapter)
    mix_in(_CitingAdapter, clone)
    clone._dspy_ace_shown = shown
    return clone


if TYPE_CHECKING:
    from dspy import ChatAdapter as _Adapter
    from dspy import Predict as Predict  # noqa: PLC0414 - exported
else:
    Predict = _Adapter = object


class _CitingPredictor(Predict):  # type: ignore[misc]  # dspy is untyped
    """Mixin: runs the predictor under a citing copy of whatever adapter is in force when it is called."""

    _dspy_ace_shown: dict[str, str]

    def forward(self, **kwargs: Any) -> Any:
        with dspy.context(adapter=citing(dspy.settings.adapter or dspy.ChatAdapter(), self._dspy_ace_shown)):
            return super().forward(**kwargs)

    async def aforward(self, **kwargs: Any) -> Any:
        with dspy.context(adapter=citing(dspy.settings.adapter or dspy.ChatAdapter(), self._dspy_ace_shown)):
            return await super().aforward(**kwargs)


class _CitingAdapter(_Adapter):  # type: ignore[misc]  # dspy is untyped
    """Mixin: the system message and the output reminder ask for `cited_bullets`; nothing else holds the field.

    DSPy's own adapters are given a signature with the field, so that a response schema has it too. An adapter with a
    `__call__` of its own gets the signature it was called with. That of Refine knows predictors by their signature; it
    gives the call to another adapter, which then asks for no citations.
    """

    _dspy_ace_shown: dict[str, str]

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        asking = _asking(signature, signature.__doc__) if _is_dspys(super().__call__) else signature
        return _without_field(super().__call__(lm, lm_kwargs, asking, demos, inputs))

    async def acall(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        asking = _asking(signature, signature.__doc__) if _is_dspys(super().acall) else signature
        return _without_field(await super().acall(lm, lm_kwargs, asking, demos, inputs))

    def format(self, signature: Any, demos: Any, inputs: Any) -> Any:
        return super().format(_asking(signature, signature.__doc__), demos, inputs)

    def format_demos(self, signature: Any, *args: Any, **kwargs: Any) -> Any:
        return super().format_demos(_plain(signature, signature.__doc__), *args, **kwargs)

    def format_conversation_history(self, signature: Any, *args: Any, **kwargs: Any) -> Any:
        return super().format_conversation_history(_plain(signature, signature.__doc__), *args, **kwargs)

    def parse(self, signature: Any, completion: str) -> Any:
        _note(completion, self._dspy_ace_shown)
        plain = _plain(signature, signature.__doc__)
        answer = completion if isinstance(self, dspy.JSONAdapter) else _uncited(self, plain, completion)
        try:
            return super().parse(plain, answer)
        except AdapterParseError:
            rest = _JSON.sub("", answer)
            if not isinstance(self, dspy.JSONAdapter) or rest == answer:
                raise
            return super().parse(plain, rest)

    def _create_extractor_signature(self, original_signature: Any) -> Any:  # TwoStepAdapter: its second step
        plain = _plain(original_signature, original_signature.__doc__)
        return super()._create_extractor_signature(plain)

    def _make_json_adapter_fallback(self) -> Any:
        return citing(super()._make_json_adapter_fallback(), self._dspy_ace_shown)


def mix_in(mixin: type[Any], instance: Any) -> None:
    """Put a mixin before the class of an instance: it becomes a subclass of the same name."""
    instance.__class__ = _mixed(mixin, type(instance))  # type: ignore[arg-type]  # a class is hashable


@lru_cache(maxsize=256)
def _mixed(mixin: type[Any], kind: type[Any]) -> Any:
    if issubclass(kind, mixin):
        return kind
    made = type(kind.__name__, (mixin, kind), {})
    for name in ("format", "parse"):  # dspy.Adapter wraps these in callbacks anew in every subclass: once is enough
        if name in vars(made):
            delattr(made, name)
    return made


# A signature's instructions can be set in place: its text (`__doc__`) is part of the key.
@lru_cache(maxsize=256)
def _asking(signature: Any, _: str | None) -> Any:
    if FIELD in signature.fields or not signature.output_fields:  # native tool calls leave no field to write
        return signature
    return worded(signature.append(FIELD, dspy.OutputField(desc=_ASK), list[str]), signature.instructions)


@lru_cache(maxsize=256)
def _plain(signature: Any, _: str | None) -> Any:
    return worded(signature.delete(FIELD), signature.instructions) if FIELD in signature.output_fields else signature


def worded(signature: Any, instructions: str) -> Any:
    """Return the signature with these instructions, also with none: there DSPy writes a default text."""
    if signature.instructions == instructions:
        return signature
    made = signature.with_instructions(instructions)
    if made.instructions != instructions:
        made.instructions = instructions
    return made


def _is_dspys(method: Any) -> bool:
    return str(method.__module__).startswith("dspy.adapters")


def _without_field(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in output.items() if name != FIELD} for output in outputs]


def _note(text: str, shown: Mapping[str, str]) -> None:
    """Record the ids of `shown` that `text` cites, in linear time whatever the text.

    A reply that has the field cites in it alone. Without it, every id that the reply names counts. "ctx-00007 does not
    apply" is no citation in either.
    """
    record = dspy.settings.get(_RECORD)
    if record is None or "-" not in text:
        return
    folded = _ESCAPE.sub(" ", text).casefold()
    folded = folded[max((field.end() for field in _OPENS.finditer(folded)), default=0) :]
    sizes = {len(name) for name in shown}
    for found in _NUMBER.finditer(folded):
        end = found.end()
        for size in sizes:
            start = end - size
            name = folded[max(start, 0) : end]
            if name in shown and not (start > 0 and _continues(folded[start - 1], name[0])):
                before, after = folded[max(0, start - 100) : start], folded[end : end + 100]
                clause = _CLAUSE.split(before)[-1] + _CLAUSE.split(after)[0]
                if not _DENIES.search(clause) or "misle" in clause:
                    record.append(shown[name])


def _continues(before: str, first: str) -> bool:
    """Say if a character before an id makes it the end of a longer word (one of a script without spaces does not)."""
    return before == "-" or (before.isalnum() and before.isascii() == first.isascii())


def _uncited(adapter: Any, plain: Any, completion: str) -> str:
    """Return the reply without its citations, however badly they are written: they must not cost the answer."""
    if FIELD not in completion.casefold():
        return completion
    if isinstance(adapter, dspy.XMLAdapter):
        others = "|".join(map(re.escape, plain.output_fields)) or "$"
        section = rf"<{FIELD}\b[^>]*/>|<{FIELD}\b.*?(?:</{FIELD}\s*>|(?=<(?:{others})>)|\Z)"
        return re.sub(section, "", completion, flags=re.DOTALL | re.IGNORECASE)
    return _CHAT.sub("", completion) if isinstance(adapter, dspy.ChatAdapter) else completion
