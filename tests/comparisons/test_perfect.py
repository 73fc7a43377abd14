"""A student that has nothing to learn, under ACE and under GEPA."""

from __future__ import annotations

import pytest

from comparisons.perfect import spent
from comparisons.tasks import load_task


@pytest.mark.slow
def test_a_perfect_student_costs_one_rollout_an_example_and_no_more() -> None:
    """With a valset one more for each of its examples; GEPA spends its budget all the same."""
    task = load_task("quickstart").cut(12, 6, 1)
    for title in ("ACE()", 'ACE(auto="heavy")'):
        assert spent(title, task, valset=True)[1:] == (18, 18)
        assert spent(title, task, valset=False)[1:] == (12, 12)
    assert spent('ACE(auto="light")', task, valset=True)[1:] == (12, 12)
    assert spent('GEPA(auto="light")', task, valset=True)[2] > 100
