"""What tests, examples and measurements need: a language model that works offline."""

from __future__ import annotations

from .machine import Record
from .noise import Knobs
from .offline import OfflineLM

__all__ = ["Knobs", "OfflineLM", "Record"]
