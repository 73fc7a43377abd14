"""Which bullets are alike, and which matter for a case."""

from .retrieval import nearest
from .similarity import Duplicates
from .vectors import Embedder, lexical

__all__ = [
    "Duplicates",
    "Embedder",
    "lexical",
    "nearest",
]
