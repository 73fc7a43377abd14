"""ACE as the paper ran it: one example at a time, at most 5 reflection rounds, 5 epochs (arXiv 2510.04618, §4.2)."""

from __future__ import annotations

from dspy_ace import ACE

from .ace import at_most
from .method import Expected, Method, Setting

ROUNDS = 5


def make(setting: Setting, seed: int) -> ACE:
    """`ACE` with the paper's settings; `setting.paper_epochs` other than 5 makes a shorter run of it."""
    return ACE(
        setting.metric,
        reflection_lm=setting.reflection_lm,
        epochs=setting.paper_epochs,
        batch_size=1,
        max_reflection_rounds=ROUNDS,
        max_metric_calls=setting.budget,
        num_threads=setting.num_threads,
        seed=seed,
        progress=False,
    )


def expect(setting: Setting) -> Expected:
    """A curation for every example."""
    return at_most(setting, setting.paper_epochs, ROUNDS, 1)


METHOD = Method("ace-paper", "ACE as in the paper", "arXiv 2510.04618, §4.2", make, expect)
