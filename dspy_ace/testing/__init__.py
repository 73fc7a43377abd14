"""Help users test: a language model that works offline, and contract tests for custom roles.

`OfflineLM` reads its prompt and nothing else, so it measures mechanics and cost, **not the quality of a method**.
"""

from __future__ import annotations

from .backend import Answerer, Record
from .noise import Knobs
from .offline import OfflineLM

__all__ = ["Answerer", "Knobs", "OfflineLM", "Record"]
