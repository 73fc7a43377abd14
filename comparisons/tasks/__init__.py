"""The tasks by name. Each file says what its program, metric and sets are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from .task import Task

TASKS = ("quickstart", "finer", "formula", "office")


def load_task(name: str, data: Path | None = None, hub: str | None = None) -> Task:
    """The task `name`; `data` or `hub` say where FiNER and Formula come from.

    Raises:
        ValueError: an unknown name, or no data named for a task that needs it.
    """
    from . import finer, formula, office, quickstart  # noqa: PLC0415 - a task is imported when it is asked for

    loaders: Mapping[str, Callable[[Path | None, str | None], Task]] = {
        "quickstart": quickstart.load,
        "finer": finer.load,
        "formula": formula.load,
        "office": office.load,
    }
    if name not in loaders:
        raise ValueError(f"no task {name!r}: expected one of {', '.join(TASKS)}")
    return loaders[name](data, hub)


__all__ = ["TASKS", "Task", "load_task"]
