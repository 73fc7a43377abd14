"""A trajectory as text that a role reads.

No text here is longer than `MOST` characters, and none longer than that is built on the way: a tool may return a log of
20 MB. Files, images, bytes and large arrays are shown by what they are, never by their data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

import dspy
import pydantic

from ..output import redact
from ..playbook import cut_middle
from .trajectory import Call, Trajectory

MOST = 200_000  # characters: some 50,000 tokens, more than a role is shown by default
_DEEPEST = 20  # levels of lists in lists
_PIECES = re.compile(r"(?<=[\n,;])|(?<=\S{4}[.!?]\s)")  # "1. " and "iii. " are numbers, not sentences
_LONG_RUN = 300  # characters
_MESSAGE = 10_000  # characters of an error's text
_READABLE = 1_000  # numbers of an array that is shown whole
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in memory: another one in each process


def images_of(trajectory: Trajectory) -> tuple[dspy.Image, ...]:
    """Return the images of a rollout, each once: those of the inputs, then of the calls, then of what was returned."""
    values = [
        *trajectory.inputs.values(),
        *(value for call in trajectory.trace for value in (*call.inputs.values(), *call.outputs.values())),
        *outputs_of(trajectory.prediction).values(),
    ]
    return tuple({image.url: image for value in values for image in _images(value)}.values())


def shortened(text: str, most: int = MOST) -> str:
    """Return `text`, cut in the middle, visibly, if it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters cut …]\n{text[-half:]}"


def render_fields(fields: Mapping[str, Any], images: Sequence[dspy.Image] = ()) -> str:
    """Return fields as `name: value`, one below the other.

    Args:
        fields: by name; any values.
        images: the images that have a number, counted from 1; an image that stands alone needs none.
    """
    return shortened("\n".join(f"{name}: {render_value(value, images)}" for name, value in fields.items()))


def shared_pieces(cases: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Return the sentences, lines and items of lists that the inputs of all cases have; none of fewer than two cases.

    A case is shown without long runs of them (`without_shared`): a list of 139 labels must not crowd its question out.
    """
    pieces = [set(_PIECES.split(render_fields(case))) for case in cases]
    return frozenset(set.intersection(*pieces)) - {""} if len(pieces) > 1 else frozenset()


def without_shared(text: str, shared: Collection[str]) -> tuple[str, str]:
    """Return `text` without long runs of shared pieces, each marked where it stood; and these runs."""
    own, runs = list[str](), list[str]()
    for known, pieces in groupby(_PIECES.split(text), key=lambda piece: piece in shared):
        run = "".join(pieces)
        long = known and len(run) >= _LONG_RUN
        own.append(f"[… {len(run)} characters that all cases share …]\n" if long else run)
        runs += [run] if long else []
    return "".join(own), "\n".join(runs)


def render_value(value: Any, images: Sequence[dspy.Image] = ()) -> str:
    """Return a value of any type as text, see the module."""
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, dspy.History):
        return shortened("\n".join(render_fields(turn, images) for turn in value.messages))
    return shortened(_written(value, images, MOST, _DEEPEST))


def _written(value: Any, images: Sequence[dspy.Image], most: int, depth: int) -> str:
    """Return a value as `str` writes it inside a list, but bounded, and without the data of files."""
    if isinstance(value, str):
        return repr(shortened(value, most))
    if type(value) in (int, float, bool):  # of these there may be many
        return repr(value)
    if (kind := _kind(value, images)) is not None:
        return kind
    if depth == 0 and isinstance(value, (list, tuple, dict, set, frozenset, pydantic.BaseModel)):
        return "…"
    inside = (images, depth - 1)
    if isinstance(value, dict):
        return f"{{{_listed(((f'{key!r:.200}: ', item) for key, item in value.items()), most, *inside)}}}"
    if isinstance(value, (set, frozenset)):
        items = sorted(_written(item, images, most, depth - 1) for item in islice(value, most))  # in no hash order
        return f"{{{', '.join(items)}}}" if items else f"{type(value).__name__}()"
    if isinstance(value, list):
        return f"[{_listed((('', item) for item in value), most, *inside)}]"
    if isinstance(value, tuple):
        return f"({_listed((('', item) for item in value), most, *inside)}{',' if len(value) == 1 else ''})"
    if isinstance(value, pydantic.BaseModel) and type(value).__str__ is pydantic.BaseModel.__str__:
        return f"{type(value).__name__}({_listed(((f'{name}=', item) for name, item in value), most, *inside)})"
    try:
        return _size(value) or _ADDRESS.sub("", shortened(str(value), most))
    except Exception as error:  # noqa: BLE001 - an object of the user's may fail in any way to say what it is
        return f"({type(value).__name__}, which cannot be shown: {type(error).__name__})"


def _listed(items: Iterable[tuple[str, Any]], most: int, images: Sequence[dspy.Image], depth: int) -> str:
    """Return items in a row, each behind its label; those that find no room within `most` are left out, visibly."""
    written, left = [], most
    for label, item in items:
        if left <= 0:
            written.append("…")
            break
        written.append(label + _written(item, images, left, depth))
        left -= len(written[-1]) + 2
    return ", ".join(written)


def _kind(value: Any, images: Sequence[dspy.Image]) -> str | None:
    """Return what a file, an image or bytes are; None for any other value."""
    if isinstance(value, dspy.Image):
        number = next((n for n, image in enumerate(images, 1) if image.url == value.url), 0)
        return f"(image {number})" if number and len(images) > 1 else "(image)"
    if isinstance(value, dspy.Audio):
        return "(audio)"
    if isinstance(value, dspy.File):
        header, _, data = (value.file_data or "").partition(",")
        kind = header.removeprefix("data:").partition(";")[0]
        known = [value.filename or value.file_id, kind, f"{len(data.rstrip('=')) * 3 // 4:,} bytes" if data else ""]
        return f"({', '.join(['file', *filter(None, known)])})"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"({memoryview(value).nbytes:,} bytes)"
    return None


def _size(value: Any) -> str | None:
    """Return kind and size of an array, a tensor or a table that is too large to be read; None for any other value."""
    shape = getattr(value, "shape", None)
    if (
        not isinstance(shape, tuple)
        or not all(isinstance(size, int) for size in shape)
        or math.prod(shape) <= _READABLE
    ):
        return None
    about = [str(dtype)] if (dtype := getattr(value, "dtype", None)) is not None else []
    about += [f"columns {shortened(', '.join(map(str, value.columns)), 500)}"] if hasattr(value, "columns") else []
    return f"({', '.join([type(value).__name__, ' x '.join(f'{size:,}' for size in shape), *about])})"


def render_calls(trajectory: Trajectory, images: Sequence[dspy.Image] = ()) -> str:
    """Return every call of every predictor; what stands in the case's inputs or in an earlier call is not repeated.

    An agent hands its steps from call to call, to the call that sums them up, and back to its caller. What the metric
    said of a predictor stands below that predictor's last call.
    """
    given = {render_value(value, images) for value in trajectory.inputs.values()}
    before: dict[tuple[str | None, str], str] = {}  # by predictor and field; under None, whoever had the field last
    last = {call.predictor: number for number, call in enumerate(trajectory.trace, 1)}
    said: set[tuple[str, str]] = set()  # fields and values that a predictor gave
    blocks = []
    for number, call in enumerate(trajectory.trace, 1):
        lines = [f"Call {number}: {call.predictor or 'predictor'}"]
        lines += _inputs_of(call, images, given, before)
        outputs = {name: render_value(value, images) for name, value in call.outputs.items()}
        said.update(outputs.items())
        lines += [f"  → {name}: {text}" for name, text in outputs.items()] or ["  (it gave no answer)"]
        if number == last[call.predictor] and (words := trajectory.predictor_feedback.get(call.predictor)):
            lines.append(f"  Feedback on {call.predictor}: {shortened(words)}")
        blocks.append("\n".join(lines))
    told = "\n".join(blocks)
    final = {
        name: text
        for name, value in outputs_of(trajectory.prediction).items()
        if (name, text := render_value(value, images)) not in said and not _stands_in(told, value)
    }
    if final:
        blocks.append("Returned:\n" + "\n".join(f"{name}: {text}" for name, text in final.items()))
    return shortened("\n".join(blocks)) or "(no call was completed)"


def _inputs_of(
    call: Call, images: Sequence[dspy.Image], given: set[str], before: dict[tuple[str | None, str], str]
) -> list[str]:
    """Return a line for each input that is new; `before` is brought up to date."""
    lines = []
    for name, value in call.inputs.items():
        shown = render_value(value, images)
        known = (before.get((who, name)) for who in (call.predictor, None))
        earlier = next((text for text in known if text and shown.startswith(text)), "")
        before[call.predictor, name] = before[None, name] = shown
        if shown in given:
            continue
        if earlier:
            shown = f"(as before, then) {shown[len(earlier) :].strip() or '(nothing new)'}"
        lines.append(f"  {name}: {shown}")
    return lines


def render_outcome(trajectory: Trajectory) -> str:
    """Return how the attempt ended: success, a score short of it, or which part failed."""
    attempt = " This attempt was a retry, made with the earlier reflection in view." if trajectory.attempt else ""
    if trajectory.error is not None:
        error = trajectory.error
        return f"FAILED before there was an answer to score ({error.kind}): {error.message}{attempt}"
    if trajectory.cited:
        attempt = f" It cited {', '.join(f'[{name}]' for name in trajectory.cited)}.{attempt}"
    word = "SUCCEEDED" if trajectory.success else "FAILED"
    score = f"{word}: score {trajectory.feedback.score:g}, where {trajectory.perfect_score:g} is full marks."
    before = render_baseline(trajectory)
    return f"{score}{_unfinished(trajectory.prediction)}{attempt}{f' {before}' if before else ''}"


def render_baseline(trajectory: Trajectory) -> str:
    """Return a sentence on an earlier success at the same example, or `""`."""
    if trajectory.solved_before is None:
        return ""
    since = ", ".join(f"[{name}]" for name in trajectory.solved_before)
    return f"Solved before{f', without {since} as it stands' if since else ''}."


def render_answer(trajectory: Trajectory, max_tokens: int) -> str:
    """Return what an attempt answered, in one line; of outputs with an expected value these alone."""
    return _line(outputs_of(trajectory.prediction), trajectory.expected, max_tokens) or "(no answer)"


def render_expected(trajectory: Trajectory, max_tokens: int) -> str:
    """Return what was expected, in one line; of labels that the program answers these alone. `""` without labels."""
    return _line(trajectory.expected, outputs_of(trajectory.prediction), max_tokens)


def _line(fields: Mapping[str, Any], others: Collection[str], max_tokens: int) -> str:
    """Return fields in one line, each value cut to a number of tokens.

    Those that stand in `others`; if there are none, all but the reasoning that dspy.ChainOfThought adds.
    """
    judged = {name: value for name, value in fields.items() if name in others}
    answers = judged or {name: value for name, value in fields.items() if name != "reasoning"} or fields
    shown = (f"{name}: {cut_middle(render_value(value), max_tokens)}" for name, value in answers.items())
    return "; ".join(" ".join(each.split()) for each in shown)


def _unfinished(prediction: Any) -> str:
    """Return a sentence on an agent that ended at its step limit (dspy.ReAct), or `""`."""
    steps = getattr(prediction, "trajectory", None) if isinstance(prediction, dspy.Prediction) else None
    tools = [value for name, value in steps.items() if name.startswith("tool_name_")] if isinstance(steps, dict) else []
    if not tools or tools[-1] == "finish":
        return ""
    return f" The agent was stopped after {len(tools)} steps, before it had called finish."


def _images(value: Any) -> Iterator[dspy.Image]:
    if isinstance(value, dspy.Image):
        yield value
    elif isinstance(value, dspy.History):
        yield from _images(value.messages)
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _images(item)


def outputs_of(prediction: Any) -> dict[str, Any]:
    """Return what a program returned, by field; nothing for None."""
    if prediction is None:
        return {}
    return dict(prediction.items()) if isinstance(prediction, dspy.Prediction) else {"result": prediction}


def words_of(error: BaseException) -> str:
    """Return the error's type and text, without secrets: a provider's words may repeat a key."""
    try:
        text = redact(shortened(str(error).strip(), _MESSAGE))
    except Exception:  # noqa: BLE001 - an error of the user's may fail in any way to say what it is
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _stands_in(told: str, value: Any) -> bool:
    """Say if all entries of a mapping were told already, as an agent's steps are."""
    return isinstance(value, dict) and bool(value) and all(render_value(entry) in told for entry in value.values())
