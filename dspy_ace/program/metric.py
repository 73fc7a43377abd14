"""A user's metric: which arguments it takes, what it may return, and the `Feedback` made of it.

The very objects that GEPA, MIPROv2 and `dspy.Evaluate` take are taken here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import dspy

from ..errors import MetricError, SettingsError
from .trajectory import Feedback

Metric = Callable[..., Any]
_TAKES = "(example, prediction), (example, prediction, trace) or (gold, pred, trace, pred_name, pred_trace)"


class Scorer:
    """Calls a metric the way its signature asks for.

    Args:
        metric: 2, 3 or 5 positional arguments, or None: then a rollout that ends without an error scores
            1.0, one that fails 0.0, and no label is read.

    Raises:
        SettingsError: not callable, async, or of another arity. No metric is called to find out.
    """

    def __init__(self, metric: Metric | None) -> None:
        self.metric = metric
        self._arity = 0 if metric is None else _arity(metric)

    def __call__(
        self,
        example: dspy.Example,
        prediction: Any,
        trace: list[Any] | None = None,
        predictor: str | None = None,
    ) -> Feedback:
        """Score a prediction.

        Args:
            example: the example with its expected outputs (without, when labels are not in use).
            prediction: what the program returned.
            trace: DSPy's trace of the rollout, for metrics of five arguments: they give feedback on a
                predictor when they are told of one (as GEPA tells them). Others get None, which in DSPy
                means evaluation, not bootstrapping.
            predictor: the predictor the feedback is for: the last one that ran.

        Raises:
            MetricError: no score came back. Whatever the metric raises passes through.
        """
        if self.metric is None:
            return Feedback(1.0, "The program ran to its end. There is no metric: nothing was compared.")
        if self._arity == 5:
            last = trace[-1:] if trace else None
            return feedback_of(self.metric(example, prediction, trace, predictor, last))
        extra = (None,) if self._arity == 3 else ()
        return feedback_of(self.metric(example, prediction, *extra))


def feedback_of(result: Any) -> Feedback:
    """The `Feedback` in what a metric returned: bool, int, float (NumPy's too), or anything with `score`.

    `dspy.Prediction(score=…, feedback=…)` and a mapping with these keys carry a text as well.

    Raises:
        MetricError: None, text, NaN, an infinity, or an object without a score.
    """
    score: Any
    words: Any
    if inspect.iscoroutine(result):
        result.close()  # it will never be awaited
    if isinstance(result, Feedback):
        score, words = result.score, result.text
    elif isinstance(result, Mapping):
        score, words = result.get("score"), result.get("feedback")
    elif hasattr(result, "score") and not isinstance(result, (bool, int, float)):
        score, words = result.score, getattr(result, "feedback", None)
    else:
        score, words = result, None
    if hasattr(score, "item") and getattr(score, "ndim", 0) == 0:
        score = score.item()
    if not isinstance(score, Real) or not math.isfinite(score):
        raise MetricError(
            "Expected the metric to return a bool, a finite number or dspy.Prediction(score=…, feedback=…); "
            f"got {result!r:.200}. Let it return a number for every example."
        )
    return Feedback(float(score), "" if words is None else str(words))


def _arity(metric: Metric) -> int:
    """2, 3 or 5: how the metric is called."""
    if not callable(metric) or isinstance(metric, type):
        raise SettingsError(f"metric must be a callable {_TAKES}; got {_kind(metric)}.")
    function = called(metric)
    if function is None or _is_async(function):
        raise SettingsError("metric is an async function; wrap it in one that waits for it (asyncio.run).")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins tell nothing: the usual two arguments
        return 2
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) >= 5 and _binds(signature, 5):
        return 5
    for count in (2, 3, 5):
        if _binds(signature, count):
            return count
    raise SettingsError(f"metric must take {_TAKES}; this one takes {signature}.")


def called(metric: Any) -> Any:
    """What runs when the metric is called; None for a module that can only be awaited."""
    if not isinstance(metric, dspy.Module):
        return metric
    # read from the class: DSPy warns of every other look at `forward`
    forward = vars(metric).get("forward") or getattr(type(metric), "forward", None)
    return forward.__get__(metric) if inspect.isfunction(forward) else forward


def _is_async(called: Any) -> bool:
    return inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(getattr(called, "__call__", None))  # noqa: B004


def _kind(value: Any) -> str:
    return f"the class {value.__name__}; give an instance" if isinstance(value, type) else type(value).__name__


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True
