"""The boundary to DSPy programs: put a playbook in, take it out, run, trace, score."""

from .citation import Cited, recording
from .instruct import (
    Prompt,
    carried_playbook,
    copy_program,
    named,
    own_instructions,
    prompt_of,
    save_state,
    showing,
    with_playbook,
    with_reflection,
)
from .metric import Executed, Judged, Metric, ReadyMade, Scorer, Validated, called, feedback_of
from .rollout import CallTrace, Rollouts, Setup, Started, failure_of, rollouts
from .threads import OutOfTimeError, ThreadPool, in_time
from .trajectory import NO_EVIDENCE, Call, Failure, Feedback, Insight, Trajectory
from .transcript import images_of, render_calls, render_fields, render_outcome, render_value, words_of

__all__ = [
    "NO_EVIDENCE",
    "Call",
    "CallTrace",
    "Cited",
    "Executed",
    "Failure",
    "Feedback",
    "Insight",
    "Judged",
    "Metric",
    "OutOfTimeError",
    "Prompt",
    "ReadyMade",
    "Rollouts",
    "Scorer",
    "Setup",
    "Started",
    "ThreadPool",
    "Trajectory",
    "Validated",
    "called",
    "carried_playbook",
    "copy_program",
    "failure_of",
    "feedback_of",
    "images_of",
    "in_time",
    "named",
    "own_instructions",
    "prompt_of",
    "recording",
    "render_calls",
    "render_fields",
    "render_outcome",
    "render_value",
    "rollouts",
    "save_state",
    "showing",
    "with_playbook",
    "with_reflection",
    "words_of",
]
