"""SIMBA: rules and demonstrations from examples whose outcome varies most between samples, as DSPy ships it.

It takes no budget in metric calls and no valset, so steps, candidates and batch are worked out. With S steps, K
candidates, batches of B and N training examples, a step samples B · K runs and scores up to K + 1 new programs on
the batch; at the end up to min(K, S) + 1 programs run over the whole trainset:

    S · B · (2 K + 1) + (min(K, S) + 1) · N  metric calls at most
"""

from __future__ import annotations

from typing import NamedTuple

import dspy

from .method import Expected, Method, Recipe, Setting

MOST_STEPS, MOST_CANDIDATES, MOST_BATCH = 8, 6, 32  # DSPy's defaults


class Plan(NamedTuple):
    """The steps, candidates and batch that fit into a budget."""

    steps: int
    candidates: int
    batch: int

    def calls(self, train: int) -> int:
        """Metric calls at most, as worked out above."""
        per_step = self.batch * (2 * self.candidates + 1)
        return self.steps * per_step + (min(self.candidates, self.steps) + 1) * train


def plan(budget: int | None, train: int) -> Plan:
    """The most candidates, then the largest batch, with which two steps fit; then the most steps.

    Raises:
        ValueError: not even one step of the smallest kind fits.
    """
    largest = min(MOST_BATCH, train)
    if budget is None:
        return Plan(MOST_STEPS, MOST_CANDIDATES, largest)
    batches = sorted({largest, min(16, train), min(8, train), min(4, train)}, reverse=True)
    for least in (2, 1):
        for candidates in (MOST_CANDIDATES, 4, 3, 2):
            for batch in batches:
                fitting = [s for s in range(least, MOST_STEPS + 1) if Plan(s, candidates, batch).calls(train) <= budget]
                if fitting:
                    return Plan(fitting[-1], candidates, batch)
    smallest = Plan(1, 2, batches[-1]).calls(train)
    raise ValueError(f"SIMBA needs a budget of {smallest} metric calls for {train} training examples, got {budget}")


def run(recipe: Recipe, student: dspy.Module, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
    """`dspy.SIMBA` with the plan that fits the budget, or with its defaults; on the trainset alone."""
    steps, candidates, batch = plan(recipe.budget, len(trainset))
    simba = dspy.SIMBA(
        metric=recipe.metric,
        bsize=batch,
        num_candidates=candidates,
        max_steps=steps,
        prompt_model=recipe.reflection_lm,
        num_threads=recipe.num_threads,
    )
    return simba.compile(student, trainset=trainset, seed=recipe.seed)


def make(setting: Setting, seed: int) -> Recipe:
    """The recipe for a setting and a seed."""
    return Recipe(setting, seed, run)


def expect(setting: Setting) -> Expected:
    """A rule for about half of the candidates of each step."""
    chosen = plan(setting.budget, setting.train)
    role_calls = chosen.steps * (chosen.candidates + 1) // 2
    return Expected(chosen.calls(setting.train), role_calls=role_calls, demos=4, added_tokens=500)


METHOD = Method("simba", "SIMBA", "dspy.SIMBA (DSPy 2.6 on; no paper)", make, expect)
