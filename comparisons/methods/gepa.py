"""GEPA: reflective evolution of instructions (arXiv 2507.19457), as DSPy ships it."""

from __future__ import annotations

import math
from typing import Any

import dspy

from .method import Expected, Method, Recipe, Setting


def run(recipe: Recipe, student: dspy.Module, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
    """`dspy.GEPA` with its defaults; the budget is its own `max_metric_calls`, without one `auto="light"`.

    It looks at its budget between rounds, so it may go over it by a minibatch and a valset.
    """
    budget: dict[str, Any] = {"auto": "light"} if recipe.budget is None else {"max_metric_calls": recipe.budget}
    gepa = dspy.GEPA(
        recipe.metric, reflection_lm=recipe.role_lm, num_threads=recipe.num_threads, seed=recipe.seed, **budget
    )
    return gepa.compile(student, trainset=trainset, valset=valset)


def make(setting: Setting, seed: int) -> Recipe:
    """The recipe for a setting and a seed."""
    return Recipe(setting, seed, run)


def light(val: int, candidates: int = 6) -> int:
    """Metric calls of `auto="light"` for one predictor (`GEPA.auto_budget`: minibatches of 35, a full look every 5)."""
    trials = int(max(4 * math.log2(candidates), 1.5 * candidates))
    return val + candidates * 5 + trials * 35 + ((trials + 1) // 5 + 1) * val


def expect(setting: Setting) -> Expected:
    """The budget, and one proposal for about every 6 rollouts that are not validation."""
    rollouts = light(setting.val) if setting.budget is None else setting.budget
    return Expected(rollouts, role_calls=max(1, rollouts // 12), added_tokens=1500)


METHOD = Method("gepa", "GEPA", "arXiv 2507.19457; dspy.GEPA", make, expect)
