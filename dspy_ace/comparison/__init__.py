"""Any optimizers side by side; knows them only as Teleprompters."""

from .side_by_side import Comparison, compare

__all__ = [
    "Comparison",
    "compare",
]
