"""A program that learns while it is used."""

from .curve import Curve
from .online import OnlineACE

__all__ = [
    "Curve",
    "OnlineACE",
]
