"""What the tests of forgetting share: a word to look for, bullets with sources, the texts of a playbook."""

from __future__ import annotations

from dspy_ace import Playbook
from dspy_ace.playbook import Add

CANARY = "xq7canary"


def add(content: str, *sources: str, section: str = "S") -> Add:
    """An addition."""
    return Add(section, content, None, sources)


def contents(playbook: Playbook) -> dict[str, str]:
    """Content by id."""
    return {bullet.id: bullet.content for bullet in playbook}
