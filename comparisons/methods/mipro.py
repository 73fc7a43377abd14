"""MIPROv2: instructions and demonstrations together, by Bayesian search (arXiv 2406.11695), as DSPy ships it.

MIPROv2 takes no budget in metric calls, so the number of trials is worked out. With V validation examples, T trials,
C candidates and minibatches of M = 35 (used when V > 50, as its `auto` does; else every trial scores all V):

    bootstrapping   (C − 2) runs over training examples until 4 are right: 12 calls each when a third of them is,
                    more when fewer are (what was used is reported)
    the default     V
    trials          T · V, or with minibatches T · M + (T // 5 + 2) · V
"""

from __future__ import annotations

from typing import Any, NamedTuple

import dspy

from .method import Expected, Method, Recipe, Setting

MINIBATCH, FULL_EVERY, BOOTSTRAP = 35, 5, 12
LIGHT_CANDIDATES, LIGHT_VAL = 6, 100
LIGHT_TRIALS = 10  # of one predictor: max(2 · 2 · log2(6), 1.5 · 6)


class Plan(NamedTuple):
    """The candidates and trials that fit into a budget."""

    candidates: int
    trials: int
    minibatch: bool
    calls: int


def calls_of(val: int, candidates: int, trials: int, minibatch: bool) -> int:
    """Metric calls, as worked out above."""
    searched = trials * MINIBATCH + (trials // FULL_EVERY + 2) * val if minibatch else trials * val
    return (candidates - 2) * BOOTSTRAP + val + searched


def plan(budget: int, val: int) -> Plan:
    """The most trials that fit, at least one; with the candidates of `light`, or 3 if these are too many.

    Raises:
        ValueError: the budget is too small for one trial.
    """
    minibatch = val > 50
    for candidates in (LIGHT_CANDIDATES, 3):
        trials = 0
        while calls_of(val, candidates, trials + 1, minibatch) <= budget:
            trials += 1
        if trials >= 2 or (trials and candidates == 3):
            return Plan(candidates, trials, minibatch, calls_of(val, candidates, trials, minibatch))
    least = calls_of(val, 3, 1, minibatch)
    raise ValueError(f"MIPROv2 needs a budget of {least} metric calls for a valset of {val}, got {budget}")


def run(recipe: Recipe, student: dspy.Module, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
    """`dspy.MIPROv2` with `auto="light"`, or the trials that fit the budget. Its seed 0 would become its default 9."""
    search: dict[str, Any] = {"auto": "light"}
    trials: dict[str, Any] = {}
    if recipe.budget is not None:
        chosen = plan(recipe.budget, len(valset))
        search = {"auto": None, "num_candidates": chosen.candidates}
        trials = {"num_trials": chosen.trials, "minibatch": chosen.minibatch}
    mipro = dspy.MIPROv2(
        recipe.metric,
        prompt_model=recipe.reflection_lm,
        num_threads=recipe.num_threads,
        seed=recipe.seed + 1,
        **search,
    )
    return mipro.compile(student, trainset=trainset, valset=valset, **trials)


def make(setting: Setting, seed: int) -> Recipe:
    """The recipe for a setting and a seed."""
    return Recipe(setting, seed, run)


def expect(setting: Setting) -> Expected:
    """An instruction a candidate, and about 10 calls that describe the data and the program."""
    if setting.budget is None:
        val = min(setting.val, LIGHT_VAL)
        calls, candidates = calls_of(val, LIGHT_CANDIDATES, LIGHT_TRIALS, val > 50), LIGHT_CANDIDATES
    else:
        chosen = plan(setting.budget, setting.val)
        calls, candidates = chosen.calls, chosen.candidates
    return Expected(calls, role_calls=10 + candidates, demos=4, added_tokens=300)


METHOD = Method("mipro", "MIPROv2", "arXiv 2406.11695; dspy.MIPROv2", make, expect)
