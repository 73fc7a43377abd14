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
    """The price of a model.

    Args:
        rates: dollars a token by kind, as LiteLLM's list names them: `input_cost_per_token`, …
        tier: what a name ends with for the service tier: `""`, `"_flex"` or `"_priority"`.
    """

    rates: Mapping[str, Any]
    tier: str = ""

    @property
    def longest(self) -> int | None:
        """The most completion tokens of one answer; None: unknown."""
        longest = _number(self.rates.get("max_output_tokens"))
        return None if longest is None else int(longest)

    def rate(self, kind: str, prompt_tokens: int = 0) -> float | None:
        """Return dollars a token, for a prompt of so many tokens: long ones may cost more. None: unknown."""
        sizes = sorted({int(found[1]) for key in self.rates if (found := _ABOVE.search(key))}, reverse=True)
        above = next((f"_above_{size}k_tokens" for size in sizes if prompt_tokens > 1000 * size), "")
        names = [f"{kind}{above}{self.tier}", f"{kind}{self.tier}"]
        if self.tier != "_priority":  # without a price of its own `flex` costs the ordinary one at most
            names[1:] = [f"{kind}{above}", f"{kind}{self.tier}", kind]
        return next((rate for name in names if (rate := _number(self.rates.get(name))) is not None), None)

    def of(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int, written_tokens: int = 0) -> float:
        """Return the dollars for so many tokens.

        Args:
            prompt_tokens, completion_tokens: of the request and of the answer.
            cached_tokens, written_tokens: of the prompt tokens, those that the provider's cache served or took in.
        """
        fresh = self.rate("input_cost_per_token", prompt_tokens) or 0.0
        cached = self.rate("cache_read_input_token_cost", prompt_tokens)
        written = self.rate("cache_creation_input_token_cost", prompt_tokens)
        dollars = max(0, prompt_tokens - cached_tokens - written_tokens) * fresh
        dollars += cached_tokens * (fresh if cached is None else cached)
        dollars += written_tokens * (fresh if written is None else written)
        return dollars + completion_tokens * (self.rate("output_cost_per_token", prompt_tokens) or 0.0)


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
    for rates in (_registered(model), _listed(model)):
        price = Price(rates, _TIERS.get(tier, "_unknown"))
        if tier in _TIERS and None not in (price.rate("input_cost_per_token"), price.rate("output_cost_per_token")):
            return price
    return None


def tier_of(lm: Any, given: Mapping[str, Any]) -> str | None:
    """Return the service tier of a call with the arguments `given`."""
    return {**lm.kwargs, **given}.get("service_tier")


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
    if model.startswith("offline/"):  # the model of dspy_ace.testing: no list has it, so none is fetched
        return {}
    try:
        from dspy.clients.model_metadata import model_info  # noqa: PLC0415 - DSPy 3.4 on
    except ImportError:
        return _litellm_info(model)
    found: Mapping[str, Any] = model_info(*_split(model)) or {}
    return found


def missing_keys(model: str) -> list[str]:
    """Return the environment variables of which a model needs one; empty: it has one, or there are other ways in.

    Example:
        >>> missing_keys("openai/gpt-5-mini")  # doctest: +SKIP
        ['OPENAI_API_KEY']
    """
    keys: list[str] = _litellm().validate_environment(model)["missing_keys"]
    return keys if all(key.endswith("_API_KEY") for key in keys) else []


def _litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else the import asks the network
    from dspy.clients import get_litellm  # noqa: PLC0415 - slow, and seldom needed

    return get_litellm(feature="dspy_ace")


def _litellm_info(model: str) -> Mapping[str, Any]:
    """Return LiteLLM's entry of a model: before DSPy 3.4."""
    try:
        found: Mapping[str, Any] = _litellm().get_model_info(model)
    except Exception:  # noqa: BLE001 - it raises a bare Exception for a model it does not know
        return {}
    return found


def _split(model: str) -> tuple[str, str]:
    provider, slash, name = model.partition("/")
    return (provider, name) if slash else ("openai", model)
