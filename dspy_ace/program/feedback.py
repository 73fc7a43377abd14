"""Metrics for tasks without labels: did the program run, what does a check say, what does a judge say.

Each takes two, three or five arguments, so ACE, GEPA, MIPROv2 and dspy.Evaluate call it as any metric, and gives
words with its score. None reads an expected output unless it is told to. ACE's own roles may still see the labels of
a trainset that has some: `ACE(metric, labels=False)` keeps them out everywhere.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import dspy
from dspy.utils.exceptions import LMError

from ..errors import AceError, MetricError, SettingsError
from ..lm import UnreadableError, ask, one_by_one
from .metric import _is_async, called
from .trajectory import Feedback
from .transcript import render_fields


class ReadyMade(ABC):
    """A metric in the three forms that DSPy's optimizers call."""

    @property
    def settings(self) -> dict[str, Any]:
        """What its scores depend on, by name: plain values and functions."""
        return {}

    @abstractmethod
    def judge(self, example: dspy.Example, prediction: Any) -> Feedback:
        """The score of a prediction, 0 to 1, and why."""

    def __call__(
        self,
        example: dspy.Example,
        prediction: Any,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,  # noqa: ARG002 - GEPA's fifth argument
    ) -> Any:
        """`dspy.Prediction(score=…, feedback=…)`; where demonstrations are bootstrapped, whether the score is 1.

        DSPy hands a trace, and no predictor's name, to a metric that is to say whether an attempt may be shown as an
        example; there a Prediction of any score would count as a yes.
        """
        feedback = self.judge(example, prediction)
        if trace and pred_name is None:
            return feedback.score >= 1
        return dspy.Prediction(score=feedback.score, feedback=feedback.text)


class Executed(ReadyMade):
    """1 for a program that ran to its end and left no output empty, else 0. Nothing is compared.

    An error of the program never reaches a metric: ACE shows it to the Reflector as the failure it is.
    """

    def judge(self, example: dspy.Example, prediction: Any) -> Feedback:  # noqa: ARG002 - no label is read
        """See the class."""
        if prediction is None:
            return Feedback(0.0, "The program returned nothing.")
        outputs = dict(prediction.items()) if isinstance(prediction, dspy.Prediction) else {"result": prediction}
        empty = [name for name, value in outputs.items() if value is None or value in ("", [], {})]
        if empty or not outputs:
            return Feedback(0.0, f"The program ran, but left these outputs empty: {', '.join(empty) or 'all'}.")
        return Feedback(1.0, "The program ran to its end. Nothing was compared.")


class Validated(ReadyMade):
    """What a check of yours says of a prediction: 1 if it passes, else 0 with its words as feedback.

    Args:
        check: `check(prediction)` or `check(inputs, prediction)`, `inputs` being the example's inputs by field. It
            passes by returning True, None or `""`, so a function of asserts is a check. It fails by returning False
            or a text that says what is wrong, or by raising: the error's type and text are the feedback.

    Raises:
        SettingsError: not callable, async, or of another arity.
    """

    def __init__(self, check: Callable[..., bool | str | None]) -> None:
        self.check = check
        self._with_inputs = _takes_inputs(check)

    @property
    def settings(self) -> dict[str, Any]:
        """See `ReadyMade`."""
        return {"check": self.check}

    def judge(self, example: dspy.Example, prediction: Any) -> Feedback:
        """See the class. Raises MetricError for any other result; an LM error of the check's own passes through."""
        given = (dict(example.inputs().items()), prediction) if self._with_inputs else (prediction,)
        try:
            said = self.check(*given)
        except (LMError, AceError):  # a provider that is down, a mistake in the set-up: no verdict on the prediction
            raise
        except Exception as error:  # noqa: BLE001 - a check may fail a prediction with any error
            text = str(error).strip()
            return Feedback(0.0, f"{type(error).__name__}: {text}" if text else f"{type(error).__name__} was raised.")
        if said is None or said is True or said == "":
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
    """What an LM says of a prediction by a rubric: a score from 0 to 1, and its reason as feedback.

    The judge sees the inputs and what the program returned, of an image only that there is one. In a compile its calls
    are booked under the role `metric` and count towards `max_lm_calls` and `max_cost`; a reply that cannot be read is
    asked for once more.

    Args:
        rubric: what good work is, in words; points one below the other are looked at one by one.
        lm: the judge; None: DSPy's LM where it is called. Better another one than the program's own.
        labels: whether the judge sees the example's expected outputs as well.
        max_prompt_tokens: bound on what it is shown besides its instructions, in estimated tokens.

    Raises:
        SettingsError: an empty rubric, or an LM that is none.
    """

    def __init__(self, rubric: str, lm: Any = None, *, labels: bool = False, max_prompt_tokens: int = 16_000) -> None:
        if not isinstance(rubric, str) or not rubric.strip():
            raise SettingsError(f"rubric must be a text that says what good work is; got {rubric!r:.80}.")
        if lm is not None and not isinstance(lm, dspy.BaseLM):
            raise SettingsError(f"lm must be a dspy.LM, as in dspy.LM('openai/gpt-4o'); got {type(lm).__name__}.")
        if max_prompt_tokens < 500:
            raise SettingsError(f"max_prompt_tokens must be 500 or more; got {max_prompt_tokens}.")
        self.rubric, self.lm, self.labels, self.max_prompt_tokens = rubric, lm, labels, max_prompt_tokens
        signature = JudgeOutputs
        if labels:
            signature = signature.insert(
                3, "expected_outputs", dspy.InputField(desc="outputs that are right; others may be as good"), str
            )
        self.predict = dspy.Predict(signature)

    @property
    def settings(self) -> dict[str, Any]:
        """See `ReadyMade`."""
        return {"rubric": self.rubric, "labels": self.labels, "instructions": self.predict.signature.instructions}

    def judge(self, example: dspy.Example, prediction: Any) -> Feedback:
        """See the class.

        Raises:
            SettingsError: no LM, neither given nor configured.
            MetricError: `labels=True`, and the example has no expected outputs.
            RoleError: the judge gave no score that could be read. LM errors pass through.
        """
        if self.lm is None and dspy.settings.lm is None:
            raise SettingsError("Judged has no LM: give it one, Judged(rubric, dspy.LM('…')), or dspy.configure(lm=…).")
        outputs = dict(prediction.items()) if isinstance(prediction, dspy.Prediction) else {"result": prediction}
        parts = {
            "rubric": self.rubric,
            "task_inputs": render_fields(example.inputs()),
            "outputs": render_fields(outputs) or "(nothing)",
        }
        if self.labels:
            parts["expected_outputs"] = render_fields(example.labels())
            if not parts["expected_outputs"]:
                raise MetricError(
                    "Judged(labels=True) found no expected outputs; with ACE(labels=False) there are none."
                )
        limit = self.max_prompt_tokens
        return ask(self.predict, parts, ("score",), _verdict, one_by_one(self.lm), max_tokens=limit)


def _verdict(fields: Mapping[str, Any]) -> Feedback:
    """The score and reason of a judge's reply. Raises UnreadableError for a score that is no number from 0 to 1."""
    try:
        score = float(fields["score"])
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise UnreadableError(f"score must be a number from 0 to 1; got {fields['score']!r:.80}")
    return Feedback(score, str(fields["reason"]).strip())


def _takes_inputs(check: Any) -> bool:
    """Whether a check takes inputs and prediction, not the prediction alone."""
    wanted = "check must be a function (prediction) or (inputs, prediction)"
    if not callable(check) or isinstance(check, type):
        raise SettingsError(f"{wanted}; got {type(check).__name__}.")
    function = called(check)
    if function is None or _is_async(function):
        raise SettingsError(f"{wanted}; got an async one. Wrap it in a function that waits for it (asyncio.run).")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins tell nothing: the usual argument
        return False
    for count in (1, 2):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count == 2
    raise SettingsError(f"{wanted}; this one takes {signature}.")
