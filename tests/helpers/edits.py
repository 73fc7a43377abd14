"""A small playbook, operations on it, and views of the result, for tests of deltas and of forgetting."""

from __future__ import annotations

from hypothesis import settings

from dspy_ace.playbook import Add, Bullet, Delta, Operation, Playbook, apply

relaxed = settings(deadline=None)
CANARY = "xq7canary"  # a word to look for where something was forgotten

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
    """Apply operations, by default to `SEED`."""
    return apply(playbook, Delta(operations))


def checked(playbook: Playbook) -> Playbook:
    """Make the playbook again by its constructor, which checks everything that `apply` need not."""
    return Playbook(playbook.bullets, playbook.sections, playbook.high_water)


def add(content: str, *sources: str, section: str = "S") -> Add:
    """Make an addition."""
    return Add(section, content, None, sources)


def contents(playbook: Playbook) -> dict[str, str]:
    """Map each id to its content."""
    return {bullet.id: bullet.content for bullet in playbook}
