"""A trajectory as text that a role reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dspy

from .trajectory import Call, Trajectory

_MEDIA = (dspy.Image, dspy.Audio)


def images_of(trajectory: Trajectory) -> tuple[dspy.Image, ...]:
    """The images of a rollout, each once: those of the case's inputs, then of its calls and of what it returned."""
    values = [
        *trajectory.inputs.values(),
        *(value for call in trajectory.trace for value in (*call.inputs.values(), *call.outputs.values())),
        *(value for _, value in _items(trajectory.prediction)),
    ]
    return tuple({image.url: image for value in values for image in _images(value)}.values())


def render_fields(fields: Mapping[str, Any], images: Sequence[dspy.Image] = ()) -> str:
    """Fields as `name: value`, one below the other; values of DSPy's own types by their kind only.

    Args:
        fields: by name.
        images: the images that have a number, from 1; of one alone no number is needed.
    """
    return "\n".join(f"{name}: {_value(value, images)}" for name, value in fields.items())


def render_calls(trajectory: Trajectory, images: Sequence[dspy.Image] = ()) -> str:
    """Every call of every predictor; what stands in the case's inputs or in an earlier call is not repeated.

    An agent hands its steps from call to call, to the call that sums them up, and back to its caller.
    """
    given = {_value(value, images) for value in trajectory.inputs.values()}
    before: dict[tuple[str | None, str], str] = {}  # by predictor and field; under None, whoever had the field last
    blocks = []
    for number, call in enumerate(trajectory.trace, 1):
        lines = [f"Call {number}: {call.predictor or 'predictor'}"]
        for name, value in call.inputs.items():
            shown = _value(value, images)
            earlier = next(
                (
                    text
                    for who in (call.predictor, None)
                    if (text := before.get((who, name))) and shown.startswith(text)
                ),
                "",
            )
            before[call.predictor, name] = before[None, name] = shown
            if shown in given:
                continue
            if earlier:
                shown = f"(as before, then) {shown[len(earlier) :].strip() or '(nothing new)'}"
            lines.append(f"  {name}: {shown}")
        lines += [f"  → {name}: {_value(value, images)}" for name, value in call.outputs.items()]
        if not call.outputs:
            lines.append("  (it gave no answer)")
        blocks.append("\n".join(lines))
    told = "\n".join(blocks)
    final = {
        name: value
        for name, value in _items(trajectory.prediction)
        if not _said(trajectory.trace, name, value) and not _stands_in(told, value)
    }
    if final:
        blocks.append("Returned:\n" + render_fields(final, images))
    return "\n".join(blocks) or "(no call was completed)"


def render_outcome(trajectory: Trajectory, perfect_score: float) -> str:
    """How the attempt ended: success, a score short of it, or which part failed."""
    attempt = " This attempt was a retry, made with the earlier reflection in view." if trajectory.attempt else ""
    if trajectory.error is not None:
        error = trajectory.error
        return f"FAILED before there was an answer to score ({error.kind}): {error.message}{attempt}"
    word = "SUCCEEDED" if trajectory.success else "FAILED"
    score = f"{word}: score {trajectory.feedback.score:g}, where {perfect_score:g} is full marks."
    return f"{score}{_unfinished(trajectory.prediction)}{attempt}"


def _unfinished(prediction: Any) -> str:
    """Of an agent that ended at its step limit (dspy.ReAct): that it did."""
    steps = getattr(prediction, "trajectory", None) if isinstance(prediction, dspy.Prediction) else None
    tools = [value for name, value in steps.items() if name.startswith("tool_name_")] if isinstance(steps, dict) else []
    if not tools or tools[-1] == "finish":
        return ""
    return f" The agent was stopped after {len(tools)} steps, before it had called finish."


def _value(value: Any, images: Sequence[dspy.Image] = ()) -> str:
    if isinstance(value, dspy.History):
        return "\n".join(render_fields(message, images) for message in value.messages)
    if isinstance(value, dspy.Image) and len(images) > 1:
        return next((f"(image {n})" for n, image in enumerate(images, 1) if image.url == value.url), "(image)")
    if isinstance(value, (dspy.Image, dspy.Audio)):
        return f"({type(value).__name__.lower()})"
    if isinstance(value, (list, tuple)) and any(isinstance(item, _MEDIA) for item in value):
        return f"[{', '.join(_value(item, images) for item in value)}]"
    if isinstance(value, dict) and any(isinstance(item, _MEDIA) for item in value.values()):
        return f"{{{', '.join(f'{key}: {_value(item, images)}' for key, item in value.items())}}}"
    return str(value)


def _images(value: Any) -> Iterator[dspy.Image]:
    if isinstance(value, dspy.Image):
        yield value
    elif isinstance(value, dspy.History):
        yield from _images(value.messages)
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _images(item)


def _items(prediction: Any) -> list[tuple[str, Any]]:
    if prediction is None:
        return []
    return list(prediction.items()) if isinstance(prediction, dspy.Prediction) else [("result", prediction)]


def _stands_in(told: str, value: Any) -> bool:
    """Whether all entries of a mapping were told already, as an agent's steps are."""
    return isinstance(value, dict) and bool(value) and all(str(entry) in told for entry in value.values())


def _said(trace: tuple[Call, ...], name: str, value: Any) -> bool:
    return any(name in call.outputs and call.outputs[name] == value for call in trace)
