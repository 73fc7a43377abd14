"""What the tests of deltas share: a small playbook, how operations are applied to it, and how a result is checked."""

from __future__ import annotations

from hypothesis import settings

from dspy_ace.playbook import Bullet, Delta, Operation, Playbook, apply

relaxed = settings(deadline=None)

SEED = Playbook(
    (
        Bullet("str-00001", "STRATEGIES & INSIGHTS", "Read the unit.", 3, 1, None, ("0",)),
        Bullet("calc-00002", "FORMULAS & CALCULATIONS", "Rate = gain / base.", 1, 0, "react", ("1", "2")),
        Bullet("of-00004", "OTHERS", "Sum up.", 0, 2, "react", ("2",)),
    ),
    ("STRATEGIES & INSIGHTS", "PROBLEM-SOLVING HEURISTICS", "FORMULAS & CALCULATIONS"),
    7,
)


def done(*operations: Operation, playbook: Playbook = SEED) -> Playbook:
    return apply(playbook, Delta(operations))


def checked(playbook: Playbook) -> Playbook:
    """The same playbook made by its constructor, which checks everything that `apply` need not."""
    return Playbook(playbook.bullets, playbook.sections, playbook.high_water)
