"""Predictors that show, call by call, the bullets that matter for their inputs: for playbooks that outgrow a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import dspy

from ..playbook import Playbook, text
from ..similarity import nearest
from .citation import displayed

MARK = "dspy_ace_shows"
"""The attribute of a program that says how much of its playbook each call shows; copies of it keep it."""


@dataclass(frozen=True)
class Shows:
    """How much of a playbook a call shows: at most so many bullets, and so many estimated tokens of them."""

    bullets: int | None = None
    tokens: int | None = None


def select_by_inputs(predictor: dspy.Predict, name: str, playbook: Playbook, shows: Shows) -> None:
    """Make a predictor show of its playbook what matters for each call.

    Args:
        predictor: changed in place: its class becomes a subclass of its own. Its signature, and so its saved state,
            holds the whole playbook: a program that is loaded from JSON shows all of it.
        name: its path in the program.
        playbook: the one in its instructions.
        shows: how much of it.
    """
    if playbook.for_predictor(name):
        predictor.__class__ = _selecting_predictor(type(predictor))  # type: ignore[arg-type]  # a class is hashable
        predictor.__dict__["_dspy_ace_selection"] = (playbook, name, shows)


if TYPE_CHECKING:
    from dspy import Predict as _Predict
else:
    _Predict = object


class _SelectingPredictor(_Predict):  # type: ignore[misc]  # dspy is untyped
    """Mixin: each call runs under a signature with the bullets that matter for its inputs."""

    _dspy_ace_selection: tuple[Playbook, str, Shows]

    def forward(self, **kwargs: Any) -> Any:
        return super().forward(**self._selected(kwargs))

    async def aforward(self, **kwargs: Any) -> Any:
        return await super().aforward(**self._selected(kwargs))

    def _selected(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        playbook, name, shows = self._dspy_ace_selection
        signature = kwargs.get("signature") or self.signature
        whole, instructions = playbook.render(name), str(signature.instructions)
        if whole not in instructions:  # somebody took the playbook out
            return dict(kwargs)
        asked = "\n".join(str(kwargs[field]) for field in signature.input_fields if field in kwargs)
        chosen = nearest(playbook, asked, shows.bullets, tokens=shows.tokens, predictor=name)
        displayed(bullet.id for bullet in chosen)
        part = text.render_bullets(chosen)
        return {**kwargs, "signature": signature.with_instructions(instructions.replace(whole, part, 1))}


@lru_cache(maxsize=256)
def _selecting_predictor(kind: type[Any]) -> type[Any]:
    return kind if issubclass(kind, _SelectingPredictor) else type(kind.__name__, (_SelectingPredictor, kind), {})
