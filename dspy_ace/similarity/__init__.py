"""Which bullets are alike, and which matter for a case."""

from .alike import LookAlikes, Pair, agree
from .vectors import Embedder, Vectors, nearest

__all__ = ["Embedder", "LookAlikes", "Pair", "Vectors", "agree", "nearest"]
