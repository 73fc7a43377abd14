"""Deliberate imperfections of the offline model, and dice that depend on the seed and the request alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args, get_type_hints

from annotated_types import Ge, Le

from ..errors import Count, checked

Fault = Literal["rate_limit", "server_error", "timeout", "context_overflow", "auth"]
FAULTS: tuple[str, ...] = get_args(Fault)
"""Names of the provider faults that can be asked for."""
_Chance = Annotated[float, Ge(0), Le(1)]
_Seconds = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Knobs:
    """The settings of an offline model. All imperfections are off by default.

    Probabilities are 0 … 1, drawn once a request unless said otherwise.

    Attributes:
        seed: decides which requests chance hits. It never changes what a reply without imperfections says.
        slips: probability of another option than the best one, drawn for each choice.
        unparsable: probability of a reply that cannot be parsed (prose, cut off, or empty).
        junk: probability that a curation repeats the playbook's own format instead of new lessons.
        wrong_lessons: probability that a reflection swaps right and wrong in its lessons; drawn for each lesson where
            a reply is on several successes.
        paraphrase: probability that a reflection words its lessons differently.
        faults: name of a provider fault → its probability, drawn for each attempt; 1.0 means always.
        context_window: most prompt tokens; a longer request is a `context_overflow`. None for no limit.
        latency: seconds for each request.
        latency_per_prompt_token: seconds for each prompt token that is not cached.
        latency_per_completion_token: seconds for each completion token.
        prefix_cache: True to report cached prompt tokens, as providers do.
        cache_block: tokens of a block of the prefix cache. Only whole blocks are cached.
        cache_minimum: fewest tokens of a prefix that count as cached.

    Raises:
        SettingsError: a value of the wrong type or out of range, or an unknown fault.
    """

    seed: int = 0
    slips: _Chance = 0.0
    unparsable: _Chance = 0.0
    junk: _Chance = 0.0
    wrong_lessons: _Chance = 0.0
    paraphrase: _Chance = 0.0
    faults: Mapping[Fault, _Chance] = field(default_factory=dict)
    context_window: Count | None = None
    latency: _Seconds = 0.0
    latency_per_prompt_token: _Seconds = 0.0
    latency_per_completion_token: _Seconds = 0.0
    prefix_cache: bool = False
    cache_block: Count = 128
    cache_minimum: Annotated[int, Ge(0)] = 1024

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            checked(name, getattr(self, name), kind)


_KINDS = get_type_hints(Knobs, include_extras=True)


class Dice:
    """Chance without a state: each throw is a hash of the key and of the name of the throw."""

    def __init__(self, key: str) -> None:
        self._key = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()

    def number(self, name: str) -> float:
        """Return a number in [0, 1) for `name`."""
        digest = hashlib.sha256(self._key + name.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:7], "big") / 2**56

    def happens(self, name: str, probability: float) -> bool:
        """Return True with this probability."""
        return probability > 0.0 and self.number(name) < probability

    def below(self, name: str, count: int) -> int:
        """Return a whole number in [0, count)."""
        return int(self.number(name) * count)

    def other(self, name: str, best: int, count: int, probability: float) -> int:
        """Return `best`, or with this probability another index below `count`."""
        if count < 2 or not self.happens(name, probability):
            return best
        return (best + 1 + self.below(f"{name} to", count - 1)) % count


def spoil(text: str, dice: Dice) -> str:
    """Make `text` unparsable in one of four ways: prose, cut within its first name, all marks lost, or empty."""
    way = dice.below("way", 4)
    if way == 0:
        return "I am sorry, but I would rather talk this over first. It depends on many things."
    if way == 1:
        first = re.search(r"\w", text)
        return text[: first.start() + 2].replace("##", "#") if first else ""
    return re.sub(r"[\[\]{}<>#\":]", "", text).strip() if way == 2 else ""
