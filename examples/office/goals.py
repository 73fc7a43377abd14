"""The two figures of AppWorld: task goal completion and scenario goal completion, both in percent."""

from __future__ import annotations

from collections.abc import Mapping


def task_goal_completion(passed: Mapping[str, bool]) -> float:
    """Return the share of tasks that passed.

    Args:
        passed: task id → True if the end state of the task passed its checks.

    Returns:
        Percent, 0 … 100.

    Raises:
        ValueError: there is no task.
    """
    if not passed:
        raise ValueError("expected the result of at least one task; got none")
    return 100 * sum(passed.values()) / len(passed)


def scenario_goal_completion(passed: Mapping[str, bool]) -> float:
    """Return the share of scenarios of which all tasks passed.

    Args:
        passed: as for `task_goal_completion`; the scenario of a task is its id up to the last `_` (`82e2fac_1`).

    Returns:
        Percent, 0 … 100.

    Raises:
        ValueError: there is no task, or an id without `_`.
    """
    scenarios: dict[str, bool] = {}
    for task_id, done in passed.items():
        scenario = scenario_of(task_id)
        scenarios[scenario] = scenarios.get(scenario, True) and done
    return task_goal_completion(scenarios)


def scenario_of(task_id: str) -> str:
    """Return the scenario of a task. Raises ValueError for an id that names none."""
    scenario, mark, _ = task_id.rpartition("_")
    if not (scenario and mark):
        raise ValueError(f"expected a task id such as 82e2fac_1 (scenario, _, number); got {task_id!r}")
    return scenario
