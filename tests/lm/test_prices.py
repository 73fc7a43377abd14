"""Dollars for tokens are those of LiteLLM's list, and of what the user registered there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dspy_ace.lm import price_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o-mini",
        "openai/gpt-4o-mini",
        "azure/gpt-4o",
        "openrouter/openai/gpt-4o-mini",
        "together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo",
        "fireworks_ai/accounts/fireworks/models/deepseek-v3",
        "groq/openai/gpt-oss-120b",
    ],
)
def test_models_behind_any_provider_have_a_price(model: str) -> None:
    """The part before the first slash is the provider, all the rest the model."""
    price = price_of(model)
    assert price is not None
    assert price.of(1_000_000, 0, 0) > 0
    assert price.of(0, 0, 1_000_000) > 0


def test_a_model_of_another_provider_has_no_price() -> None:
    """The same name elsewhere may cost anything; a tier that nobody knows as well."""
    assert price_of("openai/no-such-model") is None
    assert price_of("my_cloud/gpt-4o-mini") is None
    assert price_of("openai/gpt-4o-mini", "gold") is None


@pytest.fixture
def registered() -> Iterator[Any]:
    """LiteLLM's list, put back afterwards."""
    import litellm

    before = {name: dict(litellm.model_cost.get(name, {})) for name in ("openai/my-own", "gpt-4o-mini")}
    yield litellm
    for name, entry in before.items():
        litellm.model_cost.pop(name, None)
        if entry:
            litellm.model_cost[name] = entry


@pytest.mark.compat
def test_a_price_that_the_user_registers_counts(registered: Any) -> None:
    """Also one that comes after the first question, and one that replaces the list's."""
    assert price_of("openai/my-own") is None
    own = {"input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6, "litellm_provider": "openai", "mode": "chat"}
    registered.register_model({"openai/my-own": own})
    price = price_of("openai/my-own")
    assert price is not None
    assert price.of(10, 0, 10) == pytest.approx(5e-5)
    registered.register_model({"gpt-4o-mini": {**own, "input_cost_per_token": 7e-6}})
    price = price_of("openai/gpt-4o-mini")
    assert price is not None
    assert price.of(1, 0, 0) == pytest.approx(7e-6)


@pytest.mark.compat
def test_long_prompts_cached_written_and_tiered_tokens_have_rates_of_their_own() -> None:
    """What is not listed costs as the plain token; of `priority` nothing is known without a rate."""
    from dspy_ace.lm.prices import Price

    rates = {
        "input_cost_per_token": 1.0, "output_cost_per_token": 2.0, "cache_read_input_token_cost": 0.1,
        "input_cost_per_token_above_200k_tokens": 3.0, "input_cost_per_token_flex": 0.5, "max_output_tokens": 100,
    }  # fmt: skip
    price = Price(rates)
    assert price.of(10, 4, 1, 2) == pytest.approx(4 * 1.0 + 4 * 0.1 + 2 * 1.0 + 2.0)
    assert price.of(200_000, 0, 0) == 200_000
    assert price.of(200_001, 0, 0) == 600_003
    assert price.longest == 100
    assert Price(rates, "_flex").of(10, 0, 1) == 7.0
    assert Price(rates, "_priority").rate("input_cost_per_token") is None
