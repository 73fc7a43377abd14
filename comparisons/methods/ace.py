"""ACE as it is shipped here: every default."""

from __future__ import annotations

from typing import Any

from dspy_ace import ACE

from .method import Expected, Method, Setting

EPOCHS = 1  # ACE's default


def make(setting: Setting, seed: int) -> ACE:
    """`ACE(metric)`; the budget is its own `max_metric_calls`, which is never exceeded."""
    return shipped(setting, seed, epochs=setting.epochs)


def make_light(setting: Setting, seed: int) -> ACE:
    """`ACE(metric, auto="light")`, the effort that GEPA and MIPROv2 call by the same name."""
    return shipped(setting, seed, auto="light")


def shipped(setting: Setting, seed: int, **effort: Any) -> ACE:
    """ACE with nothing set but its effort and what the comparison sets for all."""
    return ACE(
        setting.metric,
        reflection_lm=setting.reflection_lm,
        max_metric_calls=setting.budget,
        num_threads=setting.num_threads,
        seed=seed,
        progress=False,
        **effort,
    )


def at_most(setting: Setting, epochs: int, rounds: int, batch: int) -> Expected:
    """Expect half of the examples to fail and to use every round; a curation a batch.

    A failure is reflected on once a round, the successes of a batch in one call. At the end the seed and the last
    playbook meet on the valset.
    """
    seen = epochs * setting.train
    rollouts = seen + seen * rounds // 2 + 2 * setting.val
    if setting.budget is not None and setting.budget < rollouts:
        seen = seen * setting.budget // rollouts
        rollouts = setting.budget
    batches = -(-seen // batch)
    reflections = seen // 2 * max(1, rounds) + min(batches, seen // 2)
    return Expected(rollouts, role_calls=reflections + batches, added_tokens=1000)


def expect(setting: Setting) -> Expected:
    """With its defaults: one epoch, one retry, batches of 16."""
    return at_most(setting, setting.epochs or EPOCHS, 1, 16)


def expect_light(setting: Setting) -> Expected:
    """One epoch without retries, batches of 25."""
    return at_most(setting, 1, 0, 25)


SOURCE = "arXiv 2510.04618; dspy_ace.ACE"
METHOD = Method("ace", "ACE", f"{SOURCE} with its defaults", make, expect)
LIGHT = Method("ace-light", "ACE light", f'{SOURCE}, auto="light"', make_light, expect_light)
