"""Deliberate imperfection: the knobs, and dice that depend on the seed and the request alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FAULTS = ("rate_limit", "server_error", "timeout", "context_overflow", "auth")
"""Names of the provider faults that can be asked for."""


@dataclass(frozen=True)
class Knobs:
    """Everything that can be turned. All off by default; probabilities are 0 … 1, per request unless said otherwise.

    Attributes:
        seed: changes which requests are hit by chance, never what a faultless reply says.
        slips: probability, per choice made, of another option than the one the evidence speaks for.
        unparsable: probability of a reply that cannot be parsed (prose, cut off, or empty).
        junk: probability that a curation reply echoes the playbook's format instead of lessons.
        wrong_lessons: probability that a reflection swaps right and wrong in its lessons.
        paraphrase: probability that a reflection words its lessons differently.
        rewrite_limit: most words in an instruction that is written anew; None for no limit.
        faults: fault name → probability per attempt; a retried request draws anew, 1.0 means always.
        context_window: most prompt tokens; above it every request overflows. None for no limit.
        latency: seconds per request. latency_per_prompt_token: seconds per uncached prompt token.
        latency_per_completion_token: seconds per completion token.
        prefix_cache: report cached prompt tokens as providers do. cache_block, cache_minimum: tokens.
    """

    seed: int = 0
    slips: float = 0.0
    unparsable: float = 0.0
    junk: float = 0.0
    wrong_lessons: float = 0.0
    paraphrase: float = 0.0
    rewrite_limit: int | None = None
    faults: Mapping[str, float] = field(default_factory=dict)
    context_window: int | None = None
    latency: float = 0.0
    latency_per_prompt_token: float = 0.0
    latency_per_completion_token: float = 0.0
    prefix_cache: bool = False
    cache_block: int = 128
    cache_minimum: int = 1024

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            ValueError: a probability outside 0 … 1, a negative time or size, or an unknown fault.
        """
        for name in ("slips", "unparsable", "junk", "wrong_lessons", "paraphrase"):
            _check_probability(name, getattr(self, name))
        for name, chance in self.faults.items():
            if name not in FAULTS:
                raise ValueError(f"unknown fault {name!r}: expected one of {', '.join(FAULTS)}")
            _check_probability(f"faults[{name!r}]", chance)
        for name in ("latency", "latency_per_prompt_token", "latency_per_completion_token"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is in seconds and cannot be negative, got {getattr(self, name)!r}")
        for name in ("rewrite_limit", "context_window", "cache_block", "cache_minimum"):
            size = getattr(self, name)
            if size is not None and size < (0 if name == "cache_minimum" else 1):
                raise ValueError(f"{name} must be positive, got {size!r}")

    def as_dict(self) -> dict[str, Any]:
        """The knobs as plain values that can be written as JSON."""
        return asdict(self)


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is a probability: expected 0 … 1, got {value!r}")


class Dice:
    """Chance without a state: each throw is a hash of the key and the name of the throw."""

    def __init__(self, key: str) -> None:
        self._key = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()

    def number(self, name: str) -> float:
        """A number in [0, 1) for `name`."""
        digest = hashlib.sha256(self._key + name.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:7], "big") / 2**56

    def happens(self, name: str, probability: float) -> bool:
        """Whether something of this probability happens."""
        return probability > 0.0 and self.number(name) < probability

    def below(self, name: str, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self.number(name) * count)

    def other(self, name: str, best: int, count: int, probability: float) -> int:
        """`best`, or with this probability another index below `count`."""
        if count < 2 or not self.happens(name, probability):
            return best
        return (best + 1 + self.below(f"{name} to", count - 1)) % count


def spoil(text: str, dice: Dice) -> str:
    """`text` made unparsable in one of four ways: prose, cut within its first name, all marks lost, or empty."""
    way = dice.below("way", 4)
    if way == 0:
        return "I am sorry, but I would rather talk this over first. It depends on many things."
    if way == 1:
        first = re.search(r"\w", text)
        return text[: first.start() + 2].replace("##", "#") if first else ""
    return re.sub(r"[\[\]{}<>#\":]", "", text).strip() if way == 2 else ""
