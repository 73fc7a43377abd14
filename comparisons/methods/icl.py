"""ICL: labelled training examples in the prompt, as many as fit a context limit (the baseline of arXiv 2510.04618, §4).

No metric call and no LM call: DSPy's LabeledFewShot puts the examples into every predictor as demonstrations.
"""

from __future__ import annotations

import random

import dspy

from .method import Expected, Method, Recipe, Setting

MAX_TOKENS = 32_000
CHARACTERS_PER_TOKEN = 4


def fitting(examples: list[dspy.Example], max_tokens: int = MAX_TOKENS) -> int:
    """Count the examples that fit, taken in order, at about 4 characters a token; at least one."""
    left, count = max_tokens, 0
    for example in examples:
        left -= len(str(example.toDict())) // CHARACTERS_PER_TOKEN + 1
        if left < 0:
            break
        count += 1
    return max(1, count)


def run(recipe: Recipe, student: dspy.Module, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
    """As many examples as fit, drawn by the seed."""
    order = random.Random(recipe.seed).sample(trainset, len(trainset))  # noqa: S311 - a seeded order, no secret
    return dspy.LabeledFewShot(k=fitting(order)).compile(student, trainset=order, sample=False)


def make(setting: Setting, seed: int) -> Recipe:
    """The recipe for a setting and a seed."""
    return Recipe(setting, seed, run)


def expect(setting: Setting) -> Expected:
    """Nothing is compiled; each prompt shows all examples that fit."""
    return Expected(0, demos=setting.train)


METHOD = Method("icl", "ICL", "arXiv 2510.04618, §4; dspy.LabeledFewShot", make, expect)
