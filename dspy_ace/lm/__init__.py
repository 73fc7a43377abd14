"""Ask a language model; count and limit what it costs."""

from .allowance import Allowance
from .ask import Broken, UnreadableError, ask, is_nothing, read_list, read_mapping, restored, working
from .books import Books
from .guard import Guard
from .limits import LimitReachedError, Limits, Spent, check_cost
from .prices import Price, price_of
from .retries import enforced, one_by_one
from .usage import Measurement, Meter, Usage, added, recorded, since

__all__ = [
    "Allowance",
    "Books",
    "Broken",
    "Guard",
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
    "recorded",
    "restored",
    "since",
    "working",
]
