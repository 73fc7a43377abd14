"""Citations: a training copy names the bullets that guided or misled it (ACE §3.1, the Generator's marks).

The request for them lives in the adapter of a training copy alone. The predictor's signature, its demos,
its predictions, its trace and its saved state never carry the field, so nothing has to be cleaned up, and
demos never show it empty. A reply that leaves it out is a good reply.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from .playbook import Playbook

FIELD = "cited_bullets"
_ASK = (
    "Ids of the playbook bullets in your instructions that you relied on or that misled you, "
    'e.g. ["str-00012"]; [] if none was relevant.'
)
_RECORD: ContextVar[list[str] | None] = ContextVar("dspy_ace_citations", default=None)
_CITED_XML = re.compile(rf"<{FIELD}>.*?(</{FIELD}>|$)", re.DOTALL)


@contextmanager
def recording() -> Iterator[list[str]]:
    """A scope in which citing predictors note the ids they cite, in the order they come, repeats included."""
    record: list[str] = []
    token = _RECORD.set(record)
    try:
        yield record
    finally:
        _RECORD.reset(token)


def ask_for_citations(predictor: dspy.Predict, name: str, playbook: Playbook) -> None:
    """Make a predictor of a training copy ask for citations of the bullets it is shown.

    Args:
        predictor: changed in place: its class becomes a subclass of its own that runs under a citing adapter.
        name: its path in the program.
        playbook: the playbook in its instructions; ids that it does not show to `name` do not count.

    A predictor that shows no bullet, or has a field of that name itself, is left as it is.
    """
    if not playbook.for_predictor(name) or FIELD in predictor.signature.fields:
        return
    predictor.__class__ = _citing_predictor(type(predictor))
    predictor.__dict__["_dspy_ace_shown"] = {b.id.casefold(): b.id for b in playbook.for_predictor(name)}


def citing(adapter: dspy.Adapter, shown: dict[str, str]) -> dspy.Adapter:
    """A copy of `adapter` that asks for citations and notes those of `shown` (folded id → id)."""
    clone = copy.copy(adapter)
    if not isinstance(clone, _CitingAdapter):
        clone.__class__ = _citing_adapter(type(adapter))
    clone._dspy_ace_shown = shown
    return clone


if TYPE_CHECKING:
    _Predict, _Adapter = dspy.Predict, dspy.ChatAdapter
else:
    _Predict = _Adapter = object


class _CitingPredictor(_Predict):
    """Mixin: runs the predictor under a citing copy of whatever adapter is in force when it is called."""

    _dspy_ace_shown: dict[str, str]

    def forward(self, **kwargs: Any) -> Any:
        with dspy.context(adapter=citing(dspy.settings.adapter or dspy.ChatAdapter(), self._dspy_ace_shown)):
            return super().forward(**kwargs)

    async def aforward(self, **kwargs: Any) -> Any:
        with dspy.context(adapter=citing(dspy.settings.adapter or dspy.ChatAdapter(), self._dspy_ace_shown)):
            return await super().aforward(**kwargs)


class _CitingAdapter(_Adapter):
    """Mixin: the system message and the output reminder ask for `cited_bullets`, nothing else knows of it."""

    _dspy_ace_shown: dict[str, str]

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        return _without(super().__call__(lm, lm_kwargs, _asking(signature), demos, inputs))

    async def acall(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        return _without(await super().acall(lm, lm_kwargs, _asking(signature), demos, inputs))

    def format_demos(self, signature: Any, *args: Any, **kwargs: Any) -> Any:
        return super().format_demos(_plain(signature), *args, **kwargs)

    def format_conversation_history(self, signature: Any, *args: Any, **kwargs: Any) -> Any:
        return super().format_conversation_history(_plain(signature), *args, **kwargs)

    def parse(self, signature: Any, completion: str) -> Any:
        record = _RECORD.get()
        if record is not None:
            named = re.findall(r"\w[\w-]*\d", completion.casefold())
            record.extend(self._dspy_ace_shown[name] for name in named if name in self._dspy_ace_shown)
        try:
            return super().parse(_plain(signature), completion)
        except AdapterParseError:
            rest = _CITED_XML.sub("", completion)  # a citation badly written must not cost the answer
            if rest == completion:
                raise
            return super().parse(_plain(signature), rest)

    def _make_json_adapter_fallback(self) -> Any:
        return citing(super()._make_json_adapter_fallback(), self._dspy_ace_shown)


@lru_cache(maxsize=256)
def _citing_predictor(kind: type[Any]) -> type[Any]:
    return kind if issubclass(kind, _CitingPredictor) else type(kind.__name__, (_CitingPredictor, kind), {})


@lru_cache(maxsize=256)
def _citing_adapter(kind: type[Any]) -> type[Any]:
    made = type(kind.__name__, (_CitingAdapter, kind), {})
    for name in (
        "format",
        "parse",
    ):  # dspy.Adapter wraps these in callbacks anew in every subclass: once is enough
        if name in vars(made):
            delattr(made, name)
    return made


@lru_cache(maxsize=256)
def _asking(signature: Any) -> Any:
    return (
        signature
        if FIELD in signature.fields
        else signature.append(FIELD, dspy.OutputField(desc=_ASK), list[str])
    )


@lru_cache(maxsize=256)
def _plain(signature: Any) -> Any:
    return signature.delete(FIELD) if FIELD in signature.output_fields else signature


def _without(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in output.items() if name != FIELD} for output in outputs]
