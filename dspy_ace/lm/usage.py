"""Usage: LM calls, tokens and dollars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Usage:
    """LM calls, tokens, dollars and seconds. `a + b` adds up.

    Two are equal when their counts are: dollars follow from them, and seconds never repeat.

    Args:
        calls: requests answered or failed, those that DSPy's cache answered included.
        cached_calls: of these, answered from DSPy's cache: no tokens, no cost.
        failed_calls: of these, ended by an error.
        prompt_tokens, cached_tokens, completion_tokens: as the provider reports them; `cached_tokens` is
            the part of `prompt_tokens` that the provider's prompt cache served.
        retries: failed calls that were made again.
        dollars: as LiteLLM prices the tokens; None: unknown, as a model has no price or a reply came without usage.
        seconds: wall time of the role's work, added up over threads.

    Example:
        >>> (Usage(calls=1, prompt_tokens=10) + Usage(calls=2, prompt_tokens=5)).prompt_tokens
        15
    """

    calls: int = 0
    cached_calls: int = 0
    failed_calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    dollars: float | None = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)

    def __add__(self, other: Usage) -> Usage:
        counts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "dollars"}
        unknown = self.dollars is None or other.dollars is None
        return Usage(**counts, dollars=None if unknown else (self.dollars or 0.0) + (other.dollars or 0.0))


def added(first: Mapping[str, Usage], second: Mapping[str, Usage]) -> dict[str, Usage]:
    """Return the sum of two usages by role, roles in alphabetical order."""
    return {role: first.get(role, Usage()) + second.get(role, Usage()) for role in sorted({*first, *second})}
