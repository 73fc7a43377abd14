"""One compile: settings, run, one learning step, validation, stopping, journal, results."""

from .checks import check_examples, check_lms, check_program
from .engine import Engine
from .fingerprint import described, example_key, hashed, versions
from .interrupt import CtrlC
from .journal import Journal
from .page import facts_of
from .plan import Plan
from .remote import check_executor, packed, settings_here
from .results import Results
from .run import Batch, Run, shuffled
from .settings import Auto, LearningSettings, ReflectOn, Settings, Validate
from .state import Record, Rollout, State, failures_of
from .step import (
    Attempt,
    Reflected,
    Step,
    first_attempt,
    learn,
    learn_from,
    record_of,
    reflect_in_rounds,
    reflect_on_batch,
    roll_out_in_waves,
)
from .stopping import check_roles, check_rollouts, reason_to_stop
from .validation import choose, due, validate
from .verdict import Evidence, Verdict

__all__ = [
    "Attempt",
    "Auto",
    "Batch",
    "CtrlC",
    "Engine",
    "Evidence",
    "Journal",
    "LearningSettings",
    "Plan",
    "Record",
    "ReflectOn",
    "Reflected",
    "Results",
    "Rollout",
    "Run",
    "Settings",
    "State",
    "Step",
    "Validate",
    "Verdict",
    "check_examples",
    "check_executor",
    "check_lms",
    "check_program",
    "check_roles",
    "check_rollouts",
    "choose",
    "described",
    "due",
    "example_key",
    "facts_of",
    "failures_of",
    "first_attempt",
    "hashed",
    "learn",
    "learn_from",
    "packed",
    "reason_to_stop",
    "record_of",
    "reflect_in_rounds",
    "reflect_on_batch",
    "roll_out_in_waves",
    "settings_here",
    "shuffled",
    "validate",
    "versions",
]
