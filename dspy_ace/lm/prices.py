"""Dollars for tokens: LiteLLM's price list, asked as DSPy asks it, and what the user registered there."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_TIERS = {None: "", "auto": "", "default": "", "standard": "", "flex": "_flex", "priority": "_priority"}
_ABOVE = re.compile(r"_above_(\d+)k_tokens")


@dataclass(frozen=True)
class Price:
    """The price of a model, in dollars a token.

    Args:
        prompt, completion: of fresh prompt tokens, and of the answer.
        cached, written: of prompt tokens that the provider's prompt cache served, or took in.
        longest: the most completion tokens of one answer; None: unknown.
        above: prices of long prompts, each with the number of prompt tokens above which it holds, rising.
    """

    prompt: float
    completion: float
    cached: float
    written: float
    longest: int | None = None
    above: tuple[tuple[int, Price], ...] = ()

    def of(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int, written_tokens: int = 0) -> float:
        """Return the dollars for so many tokens; `cached_tokens` and `written_tokens` are part of `prompt_tokens`."""
        rate = next((price for tokens, price in reversed(self.above) if prompt_tokens > tokens), self)
        fresh = max(0, prompt_tokens - cached_tokens - written_tokens)
        prompt = fresh * rate.prompt + cached_tokens * rate.cached + written_tokens * rate.written
        return prompt + completion_tokens * rate.completion


def price_of(model: str, tier: str | None = None) -> Price | None:
    """Return the price of a model, or None if no list has one.

    What the user told `litellm.register_model` comes first.

    Args:
        model: `provider/model`, as in `dspy.LM(…)`.
        tier: the provider's service tier, as in `dspy.LM(…, service_tier="flex")`.

    Example:
        >>> price_of("openai/gpt-4o-mini").of(1_000_000, 0, 0)
        0.15
    """
    if tier not in _TIERS:
        return None
    return _price(_registered(model), _TIERS[tier]) or _price(_listed(model), _TIERS[tier])


def _price(info: Mapping[str, Any], tier: str) -> Price | None:
    sizes = sorted({int(found[1]) for key in info if (found := _ABOVE.search(key))})
    above = [(1000 * size, _rates(info, f"_above_{size}k_tokens", tier)) for size in sizes]
    price = _rates(info, "", tier)
    if price is None:
        return None
    longest = _number(info.get("max_output_tokens"))
    known = tuple((size, each) for size, each in above if each is not None)
    return Price(
        price.prompt, price.completion, price.cached, price.written, None if longest is None else int(longest), known
    )


def _rates(info: Mapping[str, Any], above: str, tier: str) -> Price | None:
    def rate(kind: str, otherwise: float | None = None) -> float | None:
        # without a price of its own `flex` costs the ordinary one at most; of `priority` nothing is known then
        keys = (
            (f"{kind}{above}{tier}", f"{kind}{tier}")
            if tier == "_priority"
            else (f"{kind}{above}{tier}", f"{kind}{above}", f"{kind}{tier}", kind)
        )
        return next((found for key in keys if (found := _number(info.get(key))) is not None), otherwise)

    prompt, completion = rate("input_cost_per_token"), rate("output_cost_per_token")
    if prompt is None or completion is None:
        return None
    cached = rate("cache_read_input_token_cost", prompt)
    written = rate("cache_creation_input_token_cost", prompt)
    return Price(prompt, completion, prompt if cached is None else cached, prompt if written is None else written)


def _number(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if usable else None


def _registered(model: str) -> Mapping[str, Any]:
    """Return the entry of LiteLLM's list in this process; nobody can have registered one before its import."""
    costs = getattr(sys.modules.get("litellm"), "model_cost", None) or {}
    provider, name = _split(model)
    bare = costs.get(name, {})
    found: Mapping[str, Any] = costs.get(model) or (bare if bare.get("litellm_provider") == provider else {})
    return found


@lru_cache(maxsize=256)
def _listed(model: str) -> Mapping[str, Any]:
    try:
        from dspy.clients.model_metadata import model_info  # noqa: PLC0415 - DSPy 3.4 on
    except ImportError:
        return _litellm_info(model)
    found: Mapping[str, Any] = model_info(*_split(model)) or {}
    return found


def _litellm_info(model: str) -> Mapping[str, Any]:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else the import asks the network
    import litellm  # noqa: PLC0415 - slow, and needed for a price alone

    try:
        found: Mapping[str, Any] = litellm.get_model_info(model)
    except Exception:  # noqa: BLE001 - it raises a bare Exception for a model it does not know
        return {}
    return found


def _split(model: str) -> tuple[str, str]:
    provider, slash, name = model.partition("/")
    return (provider, name) if slash else ("openai", model)
