"""The contracts of the three roles, and their defaults: Reflector, Curator, grow-and-refine."""

from ..program import Insight
from .contracts import Curate, Refine, Reflect, Reflection, limited
from .curator import Curator
from .refine import GrowAndRefine
from .reflector import Reflector

__all__ = [
    "Curate",
    "Curator",
    "GrowAndRefine",
    "Insight",
    "Refine",
    "Reflect",
    "Reflection",
    "Reflector",
    "limited",
]
