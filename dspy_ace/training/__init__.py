"""One compile: settings, run, one learning step, validation, stopping, journal, results."""

from .adapt import ReflectOn, Step
from .checks import check_examples, check_lms, check_program
from .course import Course
from .effort import Validate, effort
from .erase_run import forget_run
from .fingerprint import FREE, describe_callable, describe_data, describe_program, fingerprint, versions
from .history import Record, State, record_of
from .interrupt import CtrlC
from .making import Maker
from .results import Results, judge
from .run import Run, refiner
from .schedule import Batch, schedule
from .verdict import Evidence, Verdict

__all__ = [
    "FREE",
    "Batch",
    "Course",
    "CtrlC",
    "Evidence",
    "Maker",
    "Record",
    "ReflectOn",
    "Results",
    "Run",
    "State",
    "Step",
    "Validate",
    "Verdict",
    "check_examples",
    "check_lms",
    "check_program",
    "describe_callable",
    "describe_data",
    "describe_program",
    "effort",
    "fingerprint",
    "forget_run",
    "judge",
    "record_of",
    "refiner",
    "schedule",
    "versions",
]
