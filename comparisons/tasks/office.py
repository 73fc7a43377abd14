"""The office: an agent in a place with its own rules (examples/office); score: the end state fits the task or not."""

from __future__ import annotations

from pathlib import Path

from .finance_data import for_all
from .task import Task  # first: it makes the examples importable

from agent import TOOLS, OfficeAgent, as_examples, make_tasks, metric  # type: ignore[import-not-found]  # isort: skip


def load(data: Path | None = None, hub: str | None = None) -> Task:
    """60 training and 20 validation tasks; 78 test tasks, normal and challenge ones in turns. No files are needed."""
    tasks = make_tasks(0)
    test = [task for pair in zip(tasks.normal, tasks.challenge, strict=True) for task in pair]
    student = OfficeAgent({task.id: task for split in tasks for task in split}, TOOLS)
    return Task(
        "office", student, for_all(metric), as_examples(tasks.train), as_examples(tasks.val), as_examples(test), calls=8
    )
