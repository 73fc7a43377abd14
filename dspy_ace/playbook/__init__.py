"""The values: bullets, operations on them, text formats, combine, merge, forget and their history."""

from .account import Account, Selection, counted
from .combine import combine
from .delta import (
    Add,
    Delete,
    Delta,
    Merge,
    Operation,
    Rejected,
    Tag,
    Update,
    admit,
    apply,
    operation_from_json,
    operation_to_json,
    rejected_as,
)
from .events import Event, Rollback, fold, returned, versions
from .files import append_line, hold_folder, whole_lines, write_whole
from .forget import Forgotten, forget, known_sources, quotes, rewrite
from .playbook import DEFAULT_SECTIONS, Bullet, Playbook, brief
from .prompt import PLAYBOOK_HEADER, playbook_block, take_out
from .rebase import rebase
from .text import count_tokens, cut_middle, defuse, fit, section_key

__all__ = [
    "DEFAULT_SECTIONS",
    "PLAYBOOK_HEADER",
    "Account",
    "Add",
    "Bullet",
    "Delete",
    "Delta",
    "Event",
    "Forgotten",
    "Merge",
    "Operation",
    "Playbook",
    "Rejected",
    "Rollback",
    "Selection",
    "Tag",
    "Update",
    "admit",
    "append_line",
    "apply",
    "brief",
    "combine",
    "count_tokens",
    "counted",
    "cut_middle",
    "defuse",
    "fit",
    "fold",
    "forget",
    "hold_folder",
    "known_sources",
    "operation_from_json",
    "operation_to_json",
    "playbook_block",
    "quotes",
    "rebase",
    "rejected_as",
    "returned",
    "rewrite",
    "section_key",
    "take_out",
    "versions",
    "whole_lines",
    "write_whole",
]
