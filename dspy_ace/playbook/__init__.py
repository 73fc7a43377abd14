"""The values: bullets, operations on them, text formats, views, merging, forgetting, and a playbook's history."""

from .files import append_line, hold_folder, whole_lines, write_whole
from .forgetting import Account, Forgotten, Selection, forget, rewrite
from .history import Event, Rollback, replay
from .merging import combine, merge, rebase
from .operations import Add, Delete, Delta, Merge, Operation, Rejected, Tag, Update, admit, apply
from .playbook import DEFAULT_SECTIONS, Bullet, Playbook
from .prompt import PLAYBOOK_HEADER, playbook_block, take_out
from .text import OTHERS, count_tokens, counted, cut_middle, defuse, fit, folded, section_key
from .views import Difference

__all__ = [
    "DEFAULT_SECTIONS",
    "OTHERS",
    "PLAYBOOK_HEADER",
    "Account",
    "Add",
    "Bullet",
    "Delete",
    "Delta",
    "Difference",
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
    "combine",
    "count_tokens",
    "counted",
    "cut_middle",
    "defuse",
    "fit",
    "folded",
    "forget",
    "hold_folder",
    "merge",
    "playbook_block",
    "rebase",
    "replay",
    "rewrite",
    "section_key",
    "take_out",
    "whole_lines",
    "write_whole",
]
