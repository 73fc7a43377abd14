"""The boundary to DSPy programs: put a playbook in, take it out, run, trace, score."""

from .citation import Cited, recording
from .copies import copy_program, save_state
from .feedback import Executed, Judged, ReadyMade, Validated
from .instruct import (
    PLAYBOOK_HEADER,
    carried_playbook,
    own_instructions,
    playbook_block,
    showing,
    with_playbook,
    with_reflection,
)
from .metric import Metric, Scorer, called, feedback_of
from .parallel import WHENEVER, Crew, OutOfTimeError, in_time, ordered_map, resolve, there
from .rollout import CallTrace, Rollouts, Setup, Started, kind_of, rollouts, words_of
from .trajectory import NO_EVIDENCE, Call, Failure, Feedback, Insight, Trajectory
from .transcript import images_of, render_calls, render_fields, render_outcome

__all__ = [
    "NO_EVIDENCE",
    "PLAYBOOK_HEADER",
    "WHENEVER",
    "Call",
    "CallTrace",
    "Cited",
    "Crew",
    "Executed",
    "Failure",
    "Feedback",
    "Insight",
    "Judged",
    "Metric",
    "OutOfTimeError",
    "ReadyMade",
    "Rollouts",
    "Scorer",
    "Setup",
    "Started",
    "Trajectory",
    "Validated",
    "called",
    "carried_playbook",
    "copy_program",
    "feedback_of",
    "images_of",
    "in_time",
    "kind_of",
    "ordered_map",
    "own_instructions",
    "playbook_block",
    "recording",
    "render_calls",
    "render_fields",
    "render_outcome",
    "resolve",
    "rollouts",
    "save_state",
    "showing",
    "there",
    "with_playbook",
    "with_reflection",
    "words_of",
]
