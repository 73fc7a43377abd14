"""Ask a language model; count and limit what it costs."""

from .allowance import Allowance
from .attempts import one_by_one
from .books import Books
from .budget import Budget, BudgetSpentError, priced
from .guard import Guard
from .reading import Broken, UnreadableError, is_nothing, read_list, read_mapping, restored
from .replies import ask, working
from .usage import Meter, Spent, Usage, added, recorded, since

__all__ = [
    "Allowance",
    "Books",
    "Broken",
    "Budget",
    "BudgetSpentError",
    "Guard",
    "Meter",
    "Spent",
    "UnreadableError",
    "Usage",
    "added",
    "ask",
    "is_nothing",
    "one_by_one",
    "priced",
    "read_list",
    "read_mapping",
    "recorded",
    "restored",
    "since",
    "working",
]
