"""What the example scripts share: the model, scores with their uncertainty, and one-line errors."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import dspy
import numpy as np
from dspy.utils.callback import BaseCallback

from dspy_ace.output import SPELLED
from dspy_ace.testing import OfflineLM

Scores: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Scalar = (str, int, float)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")

OFFLINE_NOTE = (
    "The offline model is a reader, not a mind: it picks answers by the words of the prompt. It shows that the\n"
    "mechanics work and what they cost in calls. It does not measure how good a method is with a real model."
)


class CallCounter(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """Counts LM calls in all threads, whichever optimizer makes them."""

    def __init__(self) -> None:
        self.calls = 0
        self._lock = threading.Lock()

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:  # noqa: ARG002
        """One call more, answered or failed."""
        with self._lock:
            self.calls += 1


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--api-base` and `--threads`, the same in every script."""
    parser.add_argument(
        "--model", default="offline", help="'offline' (no key, no network) or a DSPy model name (default: offline)"
    )
    add_api_base(parser)
    parser.add_argument("--threads", type=positive, default=8, help="calls at once (default: 8)")


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def add_api_base(parser: argparse.ArgumentParser) -> None:
    """Add `--api-base`, the address of a server of one's own."""
    parser.add_argument("--api-base", help="address of an OpenAI-compatible server that answers as --model openai/…")


def remote(model: str, api_base: str | None = None, **settings: Any) -> dspy.LM:
    """Return the LM of this name; without OPENAI_API_KEY a server that asks for no key is meant."""
    if api_base is not None:
        settings["api_base"] = api_base
        if "OPENAI_API_KEY" not in os.environ:
            settings["api_key"] = "none"
    return dspy.LM(model, **settings)


def connect(
    model: str, api_base: str | None = None, offline: Callable[[], Any] = OfflineLM, note: str = OFFLINE_NOTE
) -> CallCounter:
    """Make `model` DSPy's LM and say what it is; returns the counter of its calls.

    Args:
        model: `offline`, or as in `dspy.LM(model)`.
        api_base: address of an OpenAI-compatible server.
        offline: makes the offline model.
        note: is printed with the offline model.
    """
    counter = CallCounter()
    try:
        lm = offline() if model == "offline" else remote(model, api_base)
    except Exception as error:  # noqa: BLE001 - whatever a wrong name leads to becomes one line
        fail(f"cannot use the model {model!r}: {_first_line(error)}")
    dspy.configure(lm=lm, callbacks=[counter])
    print(f"Model: {lm.model}")
    if model == "offline":
        print(note)
    print(flush=True)
    return counter


def probe(program: dspy.Module, example: dspy.Example) -> None:
    """One call first: a wrong model name or key ends the script with one line."""
    try:
        program(**example.inputs())
    except Exception as error:  # noqa: BLE001 - whatever the provider raises becomes one line
        fail(f"the model does not answer: {_first_line(error)}")


def score(program: dspy.Module, examples: Sequence[dspy.Example], metric: Callable[..., Any], threads: int) -> Scores:
    """Scores of `program`, shape (len(examples),), in order; an example that fails scores 0."""
    evaluate = dspy.Evaluate(
        devset=list(examples),
        metric=metric,
        num_threads=threads,
        display_progress=sys.stdout.isatty(),
        max_errors=len(examples) + 1,
    )
    results = evaluate(program).results
    return np.array([float(getattr(scored, "score", scored)) for _, _, scored in results])


def show_mean(label: str, scores: Scores) -> None:
    """Print `label` and the mean score; with its interval when it is a share of right answers."""
    interval = ""
    if set(np.unique(scores)) <= {0.0, 1.0}:
        low, high = wilson(scores)
        interval = f" (95 % Wilson interval {low:.3f} … {high:.3f})"
    print(f"{label:<11} {scores.mean():.3f}{interval}", flush=True)


def show_gain(before: Scores, after: Scores, seed: int) -> None:
    """Print the difference of the means, its paired interval, and what that says."""
    low, high = paired_interval(before, after, seed)
    print(f"difference: {(after - before).mean():+.3f} (95 % paired bootstrap interval {low:+.3f} … {high:+.3f})")
    verdict = "better" if low > 0 else "worse" if high < 0 else "not shown to differ"
    print(f"verdict:    {verdict} ({len(before)} test examples)")


def wilson(scores: Scores, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson interval of a share, from scores of 0 and 1."""
    n, share = len(scores), float(scores.mean())
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_interval(before: Scores, after: Scores, seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """The 95 % bootstrap interval of mean(after − before), resampling examples, both scores of one together."""
    difference = after - before
    picks = np.random.default_rng(seed).integers(len(difference), size=(draws, len(difference)))
    low, high = np.quantile(difference[picks].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def as_number(text: object) -> float | None:
    """A plain number (sign, digits, decimal point, exponent; commas are dropped), or None for anything else."""
    digits = str(text).strip().replace(",", "")
    if len(digits) > 64 or not _NUMBER.fullmatch(digits):
        return None
    value = float(digits)
    return value if math.isfinite(value) else None


def fold(text: object) -> str:
    """Text without differences in case and spaces."""
    return " ".join(str(text).casefold().split())


def brief(text: object, limit: int = 80) -> str:
    """Text cut for a message."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def check_out(path: Path | None) -> None:
    """End the script now, not after the run, when a file could not be written to `path`."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        fail(f"--out: cannot write {path}: {'it is a folder' if path.is_dir() else 'no such folder'}")


def read_lines(path: Path, fields: Sequence[str]) -> list[dict[str, str]]:
    """Objects of a JSON lines file, each with `fields` as text; ends the script with one line if one is not."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {path}: {getattr(error, 'strerror', None) or error}")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            fail(f"{path}, line {number}: not JSON ({brief(error)})")
        missing = [name for name in fields if not isinstance(row, dict) or not isinstance(row.get(name), Scalar)]
        if missing:
            fail(f"{path}, line {number}: expected an object with text in {', '.join(fields)}; got {brief(line)}")
        rows.append({name: str(row[name]) for name in fields})
    if not rows:
        fail(f"{path}: no examples in it")
    return rows


def run(main: Callable[[list[str] | None], None]) -> NoReturn:
    """Run a script's `main`; leaving early by Ctrl-C or a closed pipe is no traceback. It prints on any terminal."""
    sys.stdout.reconfigure(errors=SPELLED)  # type: ignore[union-attr]  # a text stream
    try:
        main(None)
        sys.stdout.flush()
    except KeyboardInterrupt:
        fail("stopped", code=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def fail(message: str, code: int = 2) -> NoReturn:
    """End the script with one line on stderr."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
