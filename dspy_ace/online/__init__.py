"""A program that learns while it is used."""

from .online import Curve, OnlineACE

__all__ = ["Curve", "OnlineACE"]
