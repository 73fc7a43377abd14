"""Any optimizers side by side; knows them only as Teleprompters."""

from .compare import Comparison, compare

__all__ = [
    "Comparison",
    "compare",
]
