"""Which role a request wants filled, told by the shape of the request alone."""

from __future__ import annotations

from .propose import asks_for_text
from .reader import Ask

TASK, REFLECTOR, CURATOR, PROPOSER = "task", "reflector", "curator", "proposer"


def role_of(ask: Ask) -> str:
    """`task`, `reflector`, `curator` or `proposer`."""
    names, given = ask.asks_for, set(ask.values) | {f.name for f in ask.inputs}
    if "operations" in names and any("playbook" in name or "review" in name for name in given):
        return CURATOR
    if any("insight" in name for name in names) or "bullet_tags" in names:
        return REFLECTOR
    return PROPOSER if asks_for_text(ask) else TASK
