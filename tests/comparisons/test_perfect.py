"""A student that has nothing to learn, under ACE and under GEPA."""

from __future__ import annotations

import pytest

from comparisons.perfect import spent
from comparisons.tasks import load_task


@pytest.mark.slow
def test_a_perfect_student_costs_one_rollout_an_example_and_no_more() -> None:
    """With or without a valset: nothing was learned, so nothing is validated. GEPA spends its budget all the same."""
    task = load_task("quickstart").cut(12, 6, 1)
    for title in ("ACE()", 'ACE(auto="light")', 'ACE(auto="heavy")'):
        for valset in (True, False):
            assert spent(title, task, valset=valset)[1:] == (12, 12)
    assert spent('GEPA(auto="light")', task, valset=True)[2] > 100
