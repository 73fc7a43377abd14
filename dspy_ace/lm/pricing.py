"""Dollars for tokens, as LiteLLM's price list has them: DSPy's own copy of it where there is one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class Price:
    """What a model costs.

    Args:
        prompt, cached, completion: dollars a token; `cached` for prompt tokens served from the provider's cache.
        longest: the most completion tokens of one answer, when that is known.
    """

    prompt: float
    cached: float
    completion: float
    longest: int | None = None

    def of(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """Dollars for so many tokens; `cached_tokens` are part of `prompt_tokens`."""
        fresh = max(0, prompt_tokens - cached_tokens)
        return fresh * self.prompt + cached_tokens * self.cached + completion_tokens * self.completion


@lru_cache(maxsize=256)
def price_of(model: str) -> Price | None:
    """The price of `provider/model` as in `dspy.LM(…)`; None if the list does not have it."""
    info = _info(model)
    prompt, completion = info.get("input_cost_per_token"), info.get("output_cost_per_token")
    if prompt is None or completion is None:
        return None
    cached = info.get("cache_read_input_token_cost")
    longest = info.get("max_output_tokens")
    return Price(float(prompt), float(prompt if cached is None else cached), float(completion), longest)


def _info(model: str) -> Mapping[str, Any]:
    provider, _, name = model.rpartition("/") if "/" in model else ("openai", "", model)
    try:
        from dspy.clients.model_metadata import model_info  # noqa: PLC0415 - DSPy 3.4 on
    except ImportError:
        return _litellm_info(model)
    found: Mapping[str, Any] = model_info(provider.partition("/")[0], name) or {}
    return found


def _litellm_info(model: str) -> Mapping[str, Any]:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else the import asks the network
    import litellm  # noqa: PLC0415 - slow, and needed for a price alone

    try:
        found: Mapping[str, Any] = litellm.get_model_info(model)
    except Exception:  # noqa: BLE001 - it raises a bare Exception for a model it does not know
        return {}
    return found
