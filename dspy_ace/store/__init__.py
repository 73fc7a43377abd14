"""A playbook shared by many processes."""

from .rows import Appended, StoredEvent, Tell
from .store import PlaybookStore

__all__ = [
    "Appended",
    "PlaybookStore",
    "StoredEvent",
    "Tell",
]
