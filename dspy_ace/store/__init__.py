"""A playbook shared by many processes, in SQLite or on a database server."""

from .store import PlaybookStore, flattened
from .tables import Appended, StoredEvent, Tell

__all__ = ["Appended", "PlaybookStore", "StoredEvent", "Tell", "flattened"]
