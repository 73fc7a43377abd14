"""Playbooks of any size, the same in every process: lessons in made-up words, some common and most rare."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate, product

from dspy_ace import Playbook
from dspy_ace.playbook import Add, Delta, apply

SECTIONS = ("STRATEGIES & INSIGHTS", "FORMULAS & CALCULATIONS", "COMMON MISTAKES TO AVOID")
WORDS = 6000
COMMON = 3  # two lessons share three words on average, as those of a trained playbook do
LENGTH = (15, 45)  # words


def lessons(seed: int = 0) -> Iterator[str]:
    """Lessons without end. Words come by rank as in natural text: the n-th with weight 1 / (n + COMMON)."""
    chance = random.Random(seed)  # noqa: S311 - seeded texts, no secret
    syllables = ["".join(pair) for pair in product("bcdfghklmnprstvwz", ("a", "e", "i", "o", "u", "ai", "ou"))]
    words: dict[str, None] = {}
    while len(words) < WORDS:
        words["".join(chance.choices(syllables, k=chance.randint(2, 4)))] = None
    vocabulary, weights = list(words), list(accumulate(1 / (rank + COMMON) for rank in range(WORDS)))
    while True:
        chosen = chance.choices(vocabulary, cum_weights=weights, k=chance.randint(*LENGTH))
        yield f"{' '.join(chosen).capitalize()}, up to {chance.randint(1, 999)}."


def additions(texts: Iterator[str], count: int, seed: int = 0) -> Delta:
    """A delta that adds so many lessons."""
    chance = random.Random(seed)  # noqa: S311 - seeded texts, no secret
    return Delta(tuple(Add(chance.choice(SECTIONS), next(texts), None, (str(at),)) for at in range(count)))


def playbook_of(texts: Iterator[str], count: int) -> Playbook:
    """A playbook of so many lessons."""
    return apply(Playbook(), additions(texts, count))
