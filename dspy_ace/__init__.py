"""ACE (Agentic Context Engineering, arXiv 2510.04618) as a DSPy optimizer.

from dspy_ace import ACE
program = ACE(metric).compile(program, trainset, valset=valset)
"""

from .ace import ACE
from .comparison import Comparison, compare
from .errors import (
    AceError,
    DeltaError,
    EmbedderError,
    JournalError,
    MetricError,
    PlaybookError,
    RoleError,
    RunError,
    SettingsError,
    StoreError,
)
from .lm import Usage
from .online import Curve, OnlineACE
from .playbook import (
    Account,
    Add,
    Bullet,
    Delete,
    Delta,
    Forgotten,
    Merge,
    Playbook,
    Rejected,
    Rollback,
    Tag,
    Update,
    admit,
    apply,
    combine,
    fold,
    forget,
)
from .program import Call, Executed, Failure, Feedback, Judged, Trajectory, Validated, with_playbook
from .roles import Curate, Curator, GrowAndRefine, Insight, Refine, Reflect, Reflection, Reflector, merge
from .similarity import nearest
from .store import Appended, PlaybookStore, StoredEvent, Tell
from .training import Evidence, Results, Step, Verdict, forget_run

__version__ = "0.1.0"

__all__ = [
    "ACE",
    "Account",
    "AceError",
    "Add",
    "Appended",
    "Bullet",
    "Call",
    "Comparison",
    "Curate",
    "Curator",
    "Curve",
    "Delete",
    "Delta",
    "DeltaError",
    "EmbedderError",
    "Evidence",
    "Executed",
    "Failure",
    "Feedback",
    "Forgotten",
    "GrowAndRefine",
    "Insight",
    "JournalError",
    "Judged",
    "Merge",
    "MetricError",
    "OnlineACE",
    "Playbook",
    "PlaybookError",
    "PlaybookStore",
    "Refine",
    "Reflect",
    "Reflection",
    "Reflector",
    "Rejected",
    "Results",
    "RoleError",
    "Rollback",
    "RunError",
    "SettingsError",
    "Step",
    "StoreError",
    "StoredEvent",
    "Tag",
    "Tell",
    "Trajectory",
    "Update",
    "Usage",
    "Validated",
    "Verdict",
    "admit",
    "apply",
    "combine",
    "compare",
    "fold",
    "forget",
    "forget_run",
    "merge",
    "nearest",
    "with_playbook",
]
