"""Ask a language model; count and limit what it costs."""

from .asking import Broken, UnreadableError, ask, is_nothing, read_list, read_mapping, restored, working
from .limits import LimitReachedError, Limits, Spent, check_cost
from .prices import Price, price_of
from .retries import enforced, one_by_one
from .usage import Measurement, Meter, Usage, added

__all__ = [
    "Broken",
    "LimitReachedError",
    "Limits",
    "Measurement",
    "Meter",
    "Price",
    "Spent",
    "UnreadableError",
    "Usage",
    "added",
    "ask",
    "check_cost",
    "enforced",
    "is_nothing",
    "one_by_one",
    "price_of",
    "read_list",
    "read_mapping",
    "restored",
    "working",
]
