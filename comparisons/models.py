"""Models by name: `offline`, or whatever DSPy and LiteLLM know, also behind an address of one's own."""

from __future__ import annotations

from typing import Any

from dspy_ace.testing import OfflineLM

from .proposals import answer_proposal
from .tasks import Task  # noqa: F401 - makes the examples importable

from common import remote  # type: ignore[import-not-found]  # isort: skip
from office.apprentice import answer_as_apprentice  # type: ignore[import-not-found]  # isort: skip

OFFLINE = "offline"
LABEL = "Offline model: mechanics and cost, not the quality of a method. It reads its prompt and does not think."


def connect(name: str, api_base: str | None = None, temperature: float | None = None) -> Any:
    """An LM by name, without DSPy's response cache: no method is given what another one paid for.

    Args:
        name: `offline`, or a model as in `dspy.LM(name)`.
        api_base: address of an OpenAI-compatible server.
        temperature: of the replies; None: DSPy's default.
    """
    if name == OFFLINE:
        return OfflineLM(answerers=[answer_proposal, answer_as_apprentice])
    settings: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    return remote(name, api_base, cache=False, **settings)
