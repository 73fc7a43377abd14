"""Ready-made feedback: the program ran, a check passed, a judge was content."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE
from dspy_ace.errors import JournalError, MetricError, RoleError, SettingsError
from dspy_ace.program.metric import Executed, Judged, Validated
from dspy_ace.testing import OfflineLM
from scripted import rate_limited, scripted
from scripted_roles import chat, fields_of
from tasks import RULES, Route, accuracy, messages

EXAMPLE = dspy.Example(question="Where?", answer="zqxLABELzqx").with_inputs("question")
PARIS = dspy.Prediction(answer="Paris")
TRAIN, TEST = messages(16, 1), messages(24, 3)


def verdict(score: Any = 0.5, reason: str = "Half of it.") -> str:
    """A judge's reply."""
    return chat(reason=reason, score=str(score))


@pytest.mark.compat
@pytest.mark.parametrize(
    ("prediction", "score", "words"),
    [
        (PARIS, 1.0, "ran to its end"),
        (dspy.Prediction(answer=0), 1.0, "ran to its end"),
        ("text", 1.0, "ran to its end"),
        (dspy.Prediction(answer="", source="book"), 0.0, "empty: answer."),
        (dspy.Prediction(answer=None, list=[]), 0.0, "empty: answer, list."),
        (dspy.Prediction(), 0.0, "empty: all."),
        (None, 0.0, "returned nothing"),
    ],
)
def test_executed_scores_whether_there_is_a_result(prediction: Any, score: float, words: str) -> None:
    """An output that is empty is none; 0 and False are outputs."""
    said = Executed()(EXAMPLE, prediction)
    assert said.score == score
    assert words in said.feedback


def asserts(prediction: Any) -> None:
    assert prediction.answer != "Paris", "too well known"


def bare(prediction: Any) -> None:
    assert prediction.answer != "Paris"


@pytest.mark.compat
@pytest.mark.parametrize(
    ("check", "score", "words"),
    [
        (lambda p: True, 1.0, "passed"),
        (lambda p: None, 1.0, "passed"),
        (lambda p: "", 1.0, "passed"),
        (lambda p: False, 0.0, "does not say why"),
        (lambda p: f"{p.answer} is no country.", 0.0, "Paris is no country."),
        (lambda inputs, p: f"{p.answer} for {inputs}", 0.0, "Paris for {'question': 'Where?'}"),
        (asserts, 0.0, "AssertionError: too well known"),
        (bare, 0.0, "AssertionError"),
        (lambda p: p.country, 0.0, "AttributeError"),
        (lambda p, strict=True: strict, 1.0, "passed"),
    ],
)
def test_a_check_passes_or_says_why_not(check: Any, score: float, words: str) -> None:
    """True, None and an empty text pass; False, a text and any error fail, with the words as feedback."""
    said = Validated(check)(EXAMPLE, PARIS)
    assert said.score == score
    assert words in said.feedback


@pytest.mark.compat
def test_a_check_never_sees_a_label() -> None:
    """What it is given besides the prediction are the inputs."""
    seen: list[Any] = []
    Validated(lambda inputs, prediction: seen.append((inputs, prediction)))(EXAMPLE, PARIS)
    assert seen == [({"question": "Where?"}, PARIS)]


@pytest.mark.compat
def test_what_is_no_check_is_refused() -> None:
    """Another arity, a class, a value, an async function; and a result that is no verdict."""

    async def later(prediction: Any) -> bool:
        return True

    for check, words in (
        (lambda: True, "takes ()"),
        (lambda a, b, c: True, "takes (a, b, c)"),
        (dict, "got the class dict"),
        ("yes", "got str"),
        (later, "async"),
    ):
        with pytest.raises(SettingsError, match=r"check must .*\(prediction\) or \(inputs, prediction\)") as caught:
            Validated(check)
        assert words in str(caught.value)
    with pytest.raises(MetricError, match=r"True, False, None or a text.*got 0\.5"):
        Validated(lambda p: 0.5)(EXAMPLE, PARIS)


@pytest.mark.compat
def test_a_dead_provider_is_no_verdict() -> None:
    """A check or a judge whose LM fails scores nothing: the error passes through."""
    ask = dspy.Predict("text -> ok: bool")
    with dspy.context(lm=scripted(rate_limited())):
        for metric in (Validated(lambda p: ask(text=p.answer).ok), Judged("Be brief.")):
            with pytest.raises(dspy.utils.exceptions.LMError):
                metric(EXAMPLE, PARIS)


@pytest.mark.compat
def test_the_judge_sees_rubric_inputs_and_outputs_and_no_label() -> None:
    """One call; its score and reason come back, and the label is nowhere in the prompt."""
    lm = scripted(verdict())
    said = Judged("Names a river.", lm)(EXAMPLE, PARIS)
    assert (said.score, said.feedback) == (0.5, "Half of it.")
    assert fields_of(lm.script.requests[0]) == {
        "rubric": "Names a river.",
        "task_inputs": "question: Where?",
        "outputs": "answer: Paris",
    }
    assert "zqxLABELzqx" not in str(lm.script.requests)


@pytest.mark.compat
def test_the_judge_sees_labels_when_told_so() -> None:
    """`labels=True` adds the expected outputs; where there are none, that is said."""
    lm = scripted(verdict(1))
    judged = Judged("Names the place.", lm, labels=True)
    assert judged(EXAMPLE, PARIS).score == 1
    assert fields_of(lm.script.requests[0])["expected_outputs"] == "answer: zqxLABELzqx"
    with pytest.raises(MetricError, match="labels=False"):
        judged(EXAMPLE.inputs(), PARIS)


@pytest.mark.compat
def test_a_score_out_of_range_is_asked_for_again() -> None:
    """8 of 10 is no score from 0 to 1: the judge is told so once, then it is an error."""
    lm = scripted([verdict(8), verdict(0.8)])
    assert Judged("Be brief.", lm)(EXAMPLE, PARIS).score == 0.8
    assert "from 0 to 1; got 8" in fields_of(lm.script.requests[1])["problem_with_last_reply"]
    for reply in (verdict(8), verdict("nan"), verdict("good"), "Well done."):
        with pytest.raises(RoleError, match="2 attempts"):
            Judged("Be brief.", scripted(reply))(EXAMPLE, PARIS)


@pytest.mark.compat
def test_a_judge_that_cannot_work_is_refused() -> None:
    """No rubric, an LM's name, no room; and no LM at all, when it is called."""
    for arguments, words in (
        ((" ",), "rubric"),
        ((None,), "rubric"),
        (("r", "openai/gpt-5"), "lm must be an"),
    ):
        with pytest.raises(SettingsError, match=words):
            Judged(*arguments)
    with pytest.raises(SettingsError, match="at least 500; got 100"):
        Judged("r", max_prompt_tokens=100)
    with dspy.context(lm=None), pytest.raises(SettingsError, match="has no LM"):
        Judged("r")(EXAMPLE, PARIS)


METRICS = {
    "Executed": Executed,
    "Validated": lambda: Validated(lambda p: p.answer == "Paris"),
    "Judged": lambda: Judged("Names a city.", scripted(verdict(1))),
}


@pytest.mark.compat
@pytest.mark.parametrize("name", list(METRICS))
def test_each_is_called_with_two_three_or_five_arguments(name: str) -> None:
    """A Prediction of score and feedback for all; a bool for a bootstrapper, which takes any Prediction for a yes."""
    metric = METRICS[name]()
    trace = [(None, {}, PARIS)]
    for arguments in ((), (None,), (trace, "predict", trace), ([], None, None)):
        said = metric(EXAMPLE, PARIS, *arguments)
        assert said.score == 1
        assert isinstance(said.feedback, str)
    assert metric(EXAMPLE, PARIS, trace) is True
    assert Validated(lambda p: False)(EXAMPLE, PARIS, trace) is False


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the other optimizers and their libraries warn
@pytest.mark.parametrize("name", ["GEPA", "MIPROv2", "Bootstrap", "Evaluate"])
def test_the_same_object_serves_the_other_optimizers(name: str) -> None:
    """GEPA, MIPROv2 and BootstrapFewShot compile with a ready-made metric, and Evaluate scores with it."""
    metric = Validated(lambda inputs, p: None if p.desk != "Harbor" else "The right answer is Maple.")
    with dspy.context(lm=OfflineLM()):
        student = dspy.ChainOfThought(Route)
        if name == "GEPA":
            optimizer: Any = dspy.GEPA(metric, max_metric_calls=20, reflection_lm=OfflineLM(), num_threads=2)
        elif name == "MIPROv2":
            pytest.importorskip("optuna", reason="MIPROv2 needs optuna")
            optimizer = dspy.MIPROv2(metric, auto=None, num_candidates=2, num_threads=2)
        elif name == "Bootstrap":
            optimizer = dspy.BootstrapFewShot(metric, max_bootstrapped_demos=2)
        else:
            right = sum(student(**e.inputs()).desk != "Harbor" for e in TEST)
            assert dspy.Evaluate(devset=TEST, metric=metric, num_threads=2)(student).score == round(100 * right / 24, 2)
            return
        extra = {"num_trials": 2, "minibatch": False} if name == "MIPROv2" else {}
        valset = {} if name == "Bootstrap" else {"valset": TRAIN[8:]}
        program = optimizer.compile(student, trainset=TRAIN[:8], **valset, **extra)
    if name == "Bootstrap":
        shown = [demo.desk for demo in program.predict.demos if demo.get("augmented")]
        assert shown
        assert "Harbor" not in shown


@pytest.mark.compat
def test_ace_learns_from_a_check_without_labels() -> None:
    """A check that knows the house rules teaches what labels would: its words are the feedback."""

    def by_the_rules(inputs: Any, prediction: Any) -> str | None:
        right = next(desk for desk, words in RULES.items() if any(word in inputs["message"] for word in words))
        return None if prediction.desk == right else f"Wrong desk. The right answer is {right}."

    student = dspy.ChainOfThought(Route)
    trainset = [dspy.Example(message=e.message).with_inputs("message") for e in messages(32, 1)]
    with dspy.context(lm=OfflineLM()):
        program = ACE(Validated(by_the_rules), labels=False, num_threads=2).compile(student, trainset)
        assert accuracy(program, TEST) >= accuracy(student, TEST) + 0.3


@pytest.mark.compat
def test_ace_books_the_judge_under_metric() -> None:
    """Every call of the judge is counted, once a rollout, apart from program and roles; its words are the feedback."""

    def judge(messages: list[dict[str, str]]) -> str:
        desk = re.search(r"desk: (\w+)", fields_of(messages)["outputs"])
        return verdict(1 if desk and desk[1] == "Summit" else 0.25, "Summit is the friendliest desk.")

    lm, coach = scripted(judge), OfflineLM()
    with dspy.context(lm=coach):
        program = ACE(Judged("Friendly.", lm), labels=False, max_reflection_rounds=0, num_threads=2).compile(
            dspy.ChainOfThought(Route), TRAIN[:8]
        )
    results = program.detailed_results
    assert results.usage["metric"].calls == len(lm.script.requests) == results.rollouts
    assert set(results.records[0].scores) <= {1.0, 0.25}
    reflections = [record.request for record in coach.log if record.role == "reflector"]
    assert any("Summit is the friendliest desk." in request for request in reflections)


@pytest.mark.compat
def test_a_judge_counts_towards_the_budget() -> None:
    """`max_lm_calls` holds with the judge's calls in it."""
    lm, task = scripted(verdict(1)), OfflineLM()
    logging.getLogger("dspy.ace").setLevel(logging.ERROR)
    try:
        with dspy.context(lm=task):
            ACE(Judged("Friendly.", lm), max_lm_calls=9, num_threads=2).compile(dspy.ChainOfThought(Route), TRAIN)
    finally:
        logging.getLogger("dspy.ace").setLevel(logging.NOTSET)
    assert task.calls + len(lm.script.requests) <= 9
    assert len(lm.script.requests) > 0


@pytest.mark.compat
def test_a_kept_run_knows_what_its_feedback_depends_on(tmp_path: Path) -> None:
    """Another rubric in the same folder is refused; the same one in a new object goes on."""
    judge = scripted(verdict(0.5))
    with dspy.context(lm=OfflineLM()):
        for rubric in ("Friendly.", "Friendly."):
            ACE(Judged(rubric, judge), log_dir=tmp_path, num_threads=2).compile(dspy.Predict(Route), TRAIN[:4])
        with pytest.raises(JournalError, match="metric"):
            ACE(Judged("Short.", judge), log_dir=tmp_path).compile(dspy.Predict(Route), TRAIN[:4])
