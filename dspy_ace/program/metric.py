"""Metrics: calling a user's, and three ready-made ones for tasks without labels.

The very objects that GEPA, MIPROv2 and `dspy.Evaluate` take are taken here, and the ready-made ones are taken there.
None of these reads an expected output unless it is told to. ACE's own roles may still see the labels of a trainset that
has some: `ACE(metric, labels=False)` keeps them out everywhere.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from decimal import Decimal
from numbers import Real
from typing import Annotated, Any

import dspy
from annotated_types import Ge
from dspy.utils.exceptions import LMError

from ..errors import AceError, MetricError, SettingsError, brief, checked
from ..lm import UnreadableError, ask
from .trajectory import Feedback
from .transcript import outputs_of, render_fields, shortened, words_of

Metric = Callable[..., Any]
_ARGUMENTS = "(example, prediction), (example, prediction, trace) or (gold, pred, trace, pred_name, pred_trace)"


class Scorer:
    """Calls a metric the way its signature asks for.

    Args:
        metric: 2, 3 or 5 positional arguments; None: a rollout that ends without an error scores 1.0, one that fails
            0.0, and no label is read.

    Attributes:
        by_predictor: True if the metric takes five arguments, and so may speak about single predictors.
        warned: True once a failure of it on a single predictor was warned of.

    Raises:
        SettingsError: not callable, async, or of another arity. No metric is called to find out.
    """

    def __init__(self, metric: Metric | None) -> None:
        self.metric = metric
        self._arity = 0 if metric is None else _arity("metric", metric, _ARGUMENTS, (2, 3, 5))
        self.by_predictor = self._arity == 5
        self.warned = False

    def __call__(
        self,
        example: dspy.Example,
        prediction: Any,
        trace: list[Any] | None = None,
        pred_name: str | None = None,
        pred_trace: list[Any] | None = None,
    ) -> Feedback:
        """Score a prediction.

        A metric of five arguments gets them as GEPA gives them: DSPy's trace of the rollout, the predictor that is
        asked about and the entry of its last call. A metric of three gets None, which in DSPy means evaluation.

        Raises:
            MetricError: no score came back. Whatever the metric raises passes through.
        """
        if self.metric is None:
            return Feedback(1.0, "The program ran to its end. There is no metric: nothing was compared.")
        extra = {3: (None,), 5: (trace, pred_name, pred_trace)}.get(self._arity, ())
        return feedback_of(self.metric(example, prediction, *extra))


def feedback_of(result: Any) -> Feedback:
    """Return the `Feedback` in what a metric returned.

    Args:
        result: a bool, a finite number (NumPy's too), a Feedback, or anything with `score` and perhaps `feedback`, as
            `dspy.Prediction(score=…, feedback=…)` or a mapping with these keys.

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
    if not isinstance(score, (Real, Decimal)) or not math.isfinite(score):
        raise MetricError(
            "Expected the metric to return a bool, a finite number or dspy.Prediction(score=…, feedback=…); "
            f"got {brief(result)}. Let it return a number for every example."
        )
    return Feedback(float(score), "" if words is None else shortened(str(words)))


def called(metric: Any) -> Any:
    """Return what runs when the metric is called; None for a module that can only be awaited."""
    if not isinstance(metric, dspy.Module):
        return metric
    # read from the class: DSPy warns of every other look at `forward`
    forward = vars(metric).get("forward") or getattr(type(metric), "forward", None)
    return forward.__get__(metric) if inspect.isfunction(forward) else forward


def _arity(name: str, function: Any, takes: str, counts: tuple[int, ...]) -> int:
    """Return which of `counts` a user's function takes: the first that fits, but 5 if it names five."""
    runs, wrong = called(function), ""
    if isinstance(function, type):
        wrong = f"the class {function.__name__}; give an instance"
    elif not callable(function):
        wrong = type(function).__name__
    elif runs is None or any(map(inspect.iscoroutinefunction, (runs, getattr(runs, "__call__", None)))):  # noqa: B004
        wrong = "an async function; wrap it in one that waits for it (asyncio.run)"
    if wrong:
        raise SettingsError(f"{name} must be a callable {takes}; got {wrong}.")
    try:
        signature = inspect.signature(runs)
    except (TypeError, ValueError):  # some builtins tell nothing: the usual arguments
        return counts[0]
    named = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    fitting = [count for count in counts if _binds(signature, count)]
    if not fitting:
        raise SettingsError(f"{name} must take {takes}; this one takes {signature}.")
    return 5 if 5 in fitting and len(named) >= 5 else fitting[0]


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


# --- ready-made metrics


class ReadyMade(ABC):
    """A metric that every optimizer of DSPy can call, and that gives words with its score."""

    @abstractmethod
    def judge(self, example: dspy.Example, prediction: Any) -> Feedback:
        """Return the score of a prediction, 0 to 1, and why."""

    def __call__(
        self,
        example: dspy.Example,
        prediction: Any,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,  # noqa: ARG002 - GEPA's fifth argument
    ) -> Any:
        """Return `dspy.Prediction(score=…, feedback=…)`; where demonstrations are bootstrapped, True for a score of 1.

        DSPy gives a trace and no predictor's name to a metric that decides if an attempt may be shown as an example. A
        Prediction would count as a yes there, whatever its score.
        """
        feedback = self.judge(example, prediction)
        if trace and pred_name is None:
            return feedback.score >= 1
        return dspy.Prediction(score=feedback.score, feedback=feedback.text)


class Executed(ReadyMade):
    """Scores 1 for a program that ran to its end and left no output empty, else 0. Nothing is compared.

    An error of the program never reaches a metric: ACE shows it to the Reflector as the failure it is.
    """

    def judge(self, example: dspy.Example, prediction: Any) -> Feedback:  # noqa: ARG002 - no label is read
        """See the class."""
        if prediction is None:
            return Feedback(0.0, "The program returned nothing.")
        outputs = outputs_of(prediction)
        empty = [name for name, value in outputs.items() if _is_empty(value)]
        if empty or not outputs:
            return Feedback(0.0, f"The program ran, but left these outputs empty: {', '.join(empty) or 'all'}.")
        return Feedback(1.0, "The program ran to its end. Nothing was compared.")


class Validated(ReadyMade):
    """Scores 1 for a prediction that passes a check of yours, else 0 with the check's words as feedback.

    Args:
        check: `check(prediction)` or `check(inputs, prediction)`, `inputs` being the example's inputs by field. It
            passes by returning True, None or `""`, so a function of asserts is a check. It fails by returning False
            or a text that says what is wrong, or by raising: the error's type and text are the feedback.

    Raises:
        SettingsError: not callable, async, or of another arity.

    Example:
        >>> metric = Validated(lambda prediction: None if prediction.sql else "sql is empty")
    """

    def __init__(self, check: Callable[..., bool | str | None]) -> None:
        self.check = check
        self._with_inputs = _arity("check", check, "(prediction) or (inputs, prediction)", (1, 2)) == 2

    def judge(self, example: dspy.Example, prediction: Any) -> Feedback:
        """See the class. Raises MetricError for any other result; an LM error of the check's own passes through."""
        given = (dict(example.inputs().items()), prediction) if self._with_inputs else (prediction,)
        try:
            said = self.check(*given)
        except (LMError, AceError):  # a provider that is down, a mistake in the set-up: no verdict on the prediction
            raise
        except Exception as error:  # noqa: BLE001 - a check may fail a prediction with any error
            return Feedback(0.0, words_of(error))
        if said is None or said is True or (isinstance(said, str) and not said):
            return Feedback(1.0, "The check passed.")
        if said is False:
            return Feedback(0.0, "The check failed; it does not say why.")
        if isinstance(said, str):
            return Feedback(0.0, said)
        raise MetricError(
            f"Expected the check to return True, False, None or a text that says what is wrong; got {said!r:.200}."
        )


class JudgeOutputs(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """You judge the work of a program made of language model calls. Hold its outputs against the rubric, and against
    nothing else: not against how you would have put it. Look at every point of the rubric. Say what is met and, of
    what is not met, what exactly is wrong or missing. Then give the score: 1 if all is met, 0 if nothing is, in
    between by how much of it is.
    """

    rubric: str = dspy.InputField(desc="what good work is")
    task_inputs: str = dspy.InputField(desc="what the program was given")
    outputs: str = dspy.InputField(desc="what it returned")
    reason: str = dspy.OutputField(desc="in a few sentences: what is met, and what is wrong or missing")
    score: float = dspy.OutputField(desc="a number from 0 to 1")


class Judged(ReadyMade):
    """Scores a prediction by what an LM says of it by a rubric: from 0 to 1, with its reason as feedback.

    The judge sees the inputs and what the program returned; of an image only that there is one. In a compile its calls
    are counted under the role `metric`, and count towards `max_lm_calls` and `max_cost`. A reply that cannot be read is
    asked for once more.

    Args:
        rubric: what good work is, in words; points one below the other are looked at one by one.
        lm: the judge; None: DSPy's LM where it is called. Better another one than the program's own.
        labels: True if the judge is to see the example's expected outputs as well.
        max_prompt_tokens: bound on what it is shown besides its instructions, in estimated tokens, 500 or more.

    Raises:
        SettingsError: an empty rubric, or a setting that is none.
    """

    def __init__(self, rubric: str, lm: Any = None, *, labels: bool = False, max_prompt_tokens: int = 16_000) -> None:
        hint = "Say what good work is."
        self.rubric = checked("rubric", rubric, str, hint)
        if not rubric.strip():
            raise SettingsError(f"rubric must be a text that is not empty; got {rubric!r:.80}. {hint}")
        self.lm = checked("lm", lm, dspy.BaseLM | None, "Give a dspy.LM, as in dspy.LM('openai/gpt-4o').")
        self.labels = checked("labels", labels, bool)
        self.max_prompt_tokens = checked("max_prompt_tokens", max_prompt_tokens, Annotated[int, Ge(500)])
        signature = JudgeOutputs
        if labels:
            signature = signature.insert(
                3, "expected_outputs", dspy.InputField(desc="outputs that are right; others may be as good"), str
            )
        self.predict = dspy.Predict(signature)

    def judge(self, example: dspy.Example, prediction: Any) -> Feedback:
        """See the class.

        Raises:
            SettingsError: no LM, neither given nor configured.
            MetricError: `labels=True`, and the example has no expected outputs.
            RoleError: the judge gave no score that could be read. LM errors pass through.
        """
        if self.lm is None and dspy.settings.lm is None:
            raise SettingsError("Judged has no LM: give it one, Judged(rubric, dspy.LM('…')), or dspy.configure(lm=…).")
        parts = {
            "rubric": self.rubric,
            "task_inputs": render_fields(dict(example.inputs().items())),
            "outputs": render_fields(outputs_of(prediction)) or "(nothing)",
        }
        if self.labels:
            parts["expected_outputs"] = render_fields(dict(example.labels().items()))
            if not parts["expected_outputs"]:
                raise MetricError(
                    "Judged(labels=True) found no expected outputs; with ACE(labels=False) there are none."
                )
        limit = self.max_prompt_tokens
        return ask(self.predict, parts, ("score",), _verdict, self.lm, max_tokens=limit)


def _is_empty(value: Any) -> bool:
    """Say if an output holds nothing. `len` is asked, not `==`, which an array or a table answers cell by cell."""
    try:
        return value is None or len(value) == 0
    except TypeError:  # a number, or an object that has no length
        return False


def _verdict(fields: Mapping[str, Any]) -> Feedback:
    """Return the score and reason of a judge's reply. Raises UnreadableError unless the score is from 0 to 1."""
    try:
        score = float(fields["score"])
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise UnreadableError(f"score must be a number from 0 to 1; got {fields['score']!r:.80}")
    return Feedback(score, str(fields["reason"]).strip())
