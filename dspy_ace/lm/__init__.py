"""Ask a language model; count and limit what it costs."""

from .asking import Broken, UnreadableError, ask, is_nothing, read_list, read_mapping, restored, working
from .calls import Measurement, Meter, own, scope
from .limits import Lease, LimitReachedError, Limits, Spent, check_cost
from .prices import Price, missing_keys, price_of
from .usage import Usage, added

__all__ = [
    "Broken",
    "Lease",
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
    "is_nothing",
    "missing_keys",
    "own",
    "price_of",
    "read_list",
    "read_mapping",
    "restored",
    "scope",
    "working",
]
