"""ACE (Agentic Context Engineering, arXiv 2510.04618) as a DSPy optimizer.

from dspy_ace import ACE
program = ACE(metric).compile(program, trainset, valset=valset)

Operations on playbooks are in `dspy_ace.playbook`, contracts of roles in `dspy_ace.roles`, errors in `dspy_ace.errors`.
"""

from .ace import ACE
from .comparison import compare
from .errors import AceError
from .lm import Usage
from .online import OnlineACE
from .playbook import Bullet, Playbook, merge
from .program import Executed, Judged, Validated, prompt_of, with_playbook
from .roles import Curator, GrowAndRefine, Reflector
from .store import PlaybookStore
from .training import Record, Results

__version__ = "0.1.0"

__all__ = [
    "ACE",
    "AceError",
    "Bullet",
    "Curator",
    "Executed",
    "GrowAndRefine",
    "Judged",
    "OnlineACE",
    "Playbook",
    "PlaybookStore",
    "Record",
    "Reflector",
    "Results",
    "Usage",
    "Validated",
    "compare",
    "merge",
    "prompt_of",
    "with_playbook",
]
