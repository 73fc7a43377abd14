"""A trajectory as text that a role reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from .trajectory import Call, Trajectory


def render_fields(fields: Mapping[str, Any]) -> str:
    """Fields as `name: value`, one below the other; values of DSPy's own types by their kind only."""
    return "\n".join(f"{name}: {_value(value)}" for name, value in fields.items())


def render_calls(trajectory: Trajectory) -> str:
    """Every call of every predictor; what stands in the case's inputs or in an earlier call is not repeated."""
    given = {_value(value) for value in trajectory.inputs.values()}
    before: dict[tuple[str, str], str] = {}
    blocks = []
    for number, call in enumerate(trajectory.trace, 1):
        lines = [f"Call {number}: {call.predictor or 'predictor'}"]
        for name, value in call.inputs.items():
            shown = _value(value)
            earlier = before.get((call.predictor, name))
            before[call.predictor, name] = shown
            if shown in given:
                continue
            if earlier and shown.startswith(earlier):
                shown = f"(as before, then) {shown[len(earlier) :].strip() or '(nothing new)'}"
            lines.append(f"  {name}: {shown}")
        lines += [f"  → {name}: {_value(value)}" for name, value in call.outputs.items()]
        blocks.append("\n".join(lines))
    final = {name: value for name, value in _items(trajectory.prediction) if not _said(trajectory.trace, name, value)}
    if final:
        blocks.append("Returned:\n" + render_fields(final))
    return "\n".join(blocks) or "(no call was completed)"


def render_outcome(trajectory: Trajectory, perfect_score: float) -> str:
    """How the attempt ended: success, a score short of it, or which part failed."""
    attempt = " This attempt was a retry, made with the earlier reflection in view." if trajectory.attempt else ""
    if trajectory.error is not None:
        error = trajectory.error
        return f"FAILED before there was an answer to score ({error.kind}): {error.message}{attempt}"
    word = "SUCCEEDED" if trajectory.success else "FAILED"
    return f"{word}: score {trajectory.feedback.score:g}, where {perfect_score:g} is full marks.{attempt}"


def _value(value: Any) -> str:
    if isinstance(value, dspy.History):
        return "\n".join(render_fields(message) for message in value.messages)
    if isinstance(value, (dspy.Image, dspy.Audio)):
        return f"({type(value).__name__.lower()})"
    return str(value)


def _items(prediction: Any) -> list[tuple[str, Any]]:
    if prediction is None:
        return []
    return list(prediction.items()) if isinstance(prediction, dspy.Prediction) else [("result", prediction)]


def _said(trace: tuple[Call, ...], name: str, value: Any) -> bool:
    return any(name in call.outputs and call.outputs[name] == value for call in trace)
