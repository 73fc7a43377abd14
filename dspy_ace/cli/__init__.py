"""The command `dspy-ace`: a better prompt from a file of cases; look at a playbook, change it and hand it on."""

from .commands import main

__all__ = ["main"]
