"""Rows as the ACE paper published them (arXiv 2510.04618): never mixed with rows measured here.

Models, budgets and examples are the paper's: DeepSeek-V3.1 in all roles, GEPA and MIPROv2 at `auto="heavy"`, one run
each, no seeds and no error bars.
"""

from __future__ import annotations

SOURCE = "arXiv 2510.04618"

FINANCE = (
    # method, FiNER, Formula
    ("base LM", 70.7, 67.5),
    ("ICL", 72.3, 67.0),
    ("MIPROv2", 72.4, 69.5),
    ("GEPA", 73.5, 71.5),
    ("ACE, offline, labels", 78.3, 85.5),
    ("ACE, offline, no labels", 71.1, 83.0),
    ("Dynamic Cheatsheet, online, labels", 74.2, 69.5),
    ("Dynamic Cheatsheet, online, no labels", 68.3, 62.5),
    ("ACE, online, labels", 76.7, 76.5),
    ("ACE, online, no labels", 67.3, 78.5),
)

APPWORLD = (
    # method, mean of task and scenario goal completion on test-normal and test-challenge
    ("ReAct", 42.4),
    ("ReAct + ICL", 46.0),
    ("ReAct + GEPA", 46.4),
    ("ReAct + ACE, offline, labels", 59.4),
    ("ReAct + ACE, offline, no labels", 57.2),
    ("ReAct + Dynamic Cheatsheet, online, no labels", 51.9),
    ("ReAct + ACE, online, no labels", 59.5),
)


def published(task: str | None = None) -> list[dict[str, object]]:
    """Published rows, as a report shows them: benchmark, method, score in percent, source.

    Args:
        task: "finer" or "formula" for those rows alone; another name has none; None: all.
    """
    rows = [("FiNER", name, finer) for name, finer, _ in FINANCE]
    rows += [("Formula", name, formula) for name, _, formula in FINANCE]
    rows += [("AppWorld", name, score) for name, score in APPWORLD]
    return [
        {"benchmark": benchmark, "method": method, "score": score, "source": f"published, {SOURCE}"}
        for benchmark, method, score in rows
        if task is None or benchmark.lower() == task
    ]
