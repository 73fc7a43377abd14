"""What is seen of a run from outside: roles, rollouts, scores and prompts, in whatever thread they come."""

from __future__ import annotations

import inspect
from typing import Any

import dspy
import pytest

from dspy_ace.comparison.observer import Observer, prompt_texts, prompt_tokens
from dspy_ace.lm import LimitReachedError, Limits, Measurement, Meter, scope
from dspy_ace.testing import OfflineLM
from tasks import Route, desk_metric, messages

pytestmark = [pytest.mark.compat, pytest.mark.filterwarnings("default")]
VAL = messages(4, 2)


class Pair(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Two predictors, side by side in threads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict(Route), dspy.Predict(Route)

    def forward(self, message: str) -> Any:
        parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        example = dspy.Example(message=message).with_inputs("message")
        return parallel([(self.first, example), (self.second, example)])[0]


def calls(observer: Observer, phase: str = "compile") -> dict[str, int]:
    return {role: used["calls"] for role, used in observer.usage(phase).items()}


def test_roles_follow_from_what_runs_around_a_call(offline: OfflineLM) -> None:
    """The student, in a copy too, is `task`; the metric is `metric`; other modules and bare calls are `optimizer`."""
    student = dspy.ChainOfThought(Route)
    observer = Observer(student, VAL)

    def metric(example: Any, prediction: Any) -> Any:
        dspy.Predict("desk -> verdict")(desk=prediction.desk)
        return desk_metric(example, prediction)

    watched = observer.watched(metric)
    with observer.watching("compile"):
        dspy.Evaluate(devset=VAL, metric=watched, num_threads=4)(student.deepcopy())
        dspy.ChainOfThought(Route)(message="somebody else's")
        dspy.settings.lm("a bare call")
        student.reset_copy()(message="mine")
    assert calls(observer) == {"metric": 4, "optimizer": 2, "task": 5}
    assert observer.rollouts["compile"] == 5
    assert observer.scored["compile"] == 4
    assert sum(calls(observer).values()) == offline.calls


def test_threads_within_the_program_keep_the_role(offline: OfflineLM) -> None:
    """A program that runs its predictors in threads is one rollout, and all of its calls are `task`."""
    student = Pair()
    observer = Observer(student)
    with observer.watching("compile"):
        dspy.Evaluate(devset=VAL, metric=desk_metric, num_threads=2)(student)
    assert calls(observer) == {"task": 8}
    assert observer.rollouts["compile"] == 4
    assert offline.calls == 8


def test_a_predictor_alone_is_task_and_no_rollout(offline: OfflineLM) -> None:
    """A module of another class that holds the student's predictor: its calls are `task`."""
    student = dspy.ChainOfThought(Route)
    observer = Observer(student)
    with observer.watching("compile"):
        student.predict.deepcopy()(message="Hello")
    assert calls(observer) == {"task": 1}
    assert observer.rollouts["compile"] == 0
    assert len(observer.prompt_steps()) == 1


def test_phases_are_apart(offline: OfflineLM) -> None:
    """What the test spends is not the compile's; outside of it nothing is counted."""
    student = dspy.Predict(Route)
    observer = Observer(student)
    student(message="before")
    with observer.watching("compile"):
        student(message="one")
    with observer.watching("test", "task"):
        student(message="two")
        dspy.Predict("a -> b")(a="the program's own business")
    student(message="after")
    assert calls(observer) == {"task": 1}
    assert calls(observer, "test") == {"task": 2}
    assert observer.rollouts == {"compile": 1, "test": 1}


def test_the_curve_has_a_point_when_a_prompt_is_scored_on_the_whole_valset(offline: OfflineLM) -> None:
    """Scores count once per prompt and example, whatever the order; the curve is the best mean so far."""
    student = dspy.Predict(Route)
    scores = iter([0.5] * 4 + [1.0] * 3 + [0.0] * 4 + [1.0])
    observer = Observer(student, VAL)
    watched = observer.watched(lambda example, prediction: next(scores))
    better, worse = student.deepcopy(), student.deepcopy()
    better.signature = better.signature.with_instructions("Better.")
    worse.signature = worse.signature.with_instructions("Worse, and a good deal longer than the other one.")
    with observer.watching("compile"):
        for program, examples in ((student, VAL), (better, VAL[:3]), (worse, VAL), (better, VAL[3:])):
            for example in examples:
                watched(example, program(**example.inputs()))
    assert [(point[0], point[3]) for point in observer.curve] == [(4, 0.5), (11, 0.5), (12, 1.0)]
    steps = observer.prompt_steps()
    assert [step[0] for step in steps] == [1, 5, 8, 12]
    assert steps[2][1] > steps[1][1] == steps[3][1]


def test_rollouts_that_fail_count_as_nought_on_the_curve() -> None:
    """A program that raises on some examples still has a mean."""

    class Fragile(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.Predict(Route)

        def forward(self, message: str) -> Any:
            if message == VAL[0].message:
                raise RuntimeError("not this one")
            return self.route(message=message)

    student = Fragile()
    observer = Observer(student, VAL)
    others = sum(example.message != VAL[0].message for example in VAL)
    with dspy.context(lm=OfflineLM()), observer.watching("compile"):
        watched = observer.watched(lambda example, prediction: 1.0)
        dspy.Evaluate(devset=VAL, metric=watched, num_threads=1, max_errors=10)(student)
    assert [point[3] for point in observer.curve] == [others / 4]


def test_a_metric_that_raises_counts_as_nought_on_the_curve(offline: OfflineLM) -> None:
    """What a metric raises passes through; a result that is no score is none either."""
    student = dspy.Predict(Route)
    results = iter([1.0, "good", ValueError("no label"), 1.0])

    def metric(example: Any, prediction: Any) -> Any:
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    observer = Observer(student, VAL)
    watched = observer.watched(metric)
    with observer.watching("compile"):
        for position, example in enumerate(VAL):
            prediction = student(**example.inputs())
            if position == 2:
                with pytest.raises(ValueError, match="no label"):
                    watched(example, prediction)
            else:
                watched(example, prediction)
    assert [point[3] for point in observer.curve] == [0.5]


def test_scores_of_predictions_nobody_saw_are_left_out(offline: OfflineLM) -> None:
    """A prediction that no rollout made has no prompt; an example that is only equal to one of the valset is known."""
    student = dspy.Predict(Route)
    observer = Observer(student, VAL[:1])
    watched = observer.watched(lambda example, prediction: 1.0)
    with observer.watching("compile"):
        watched(VAL[0], dspy.Prediction(desk="Maple"))
        assert observer.curve == []
        watched(VAL[0].copy(), student(**VAL[0].inputs()))
    assert [point[3] for point in observer.curve] == [1.0]
    assert observer.scored["compile"] == 2


def test_prompts_are_instructions_and_demos() -> None:
    """Both are in the text of a prompt and in its number of tokens."""
    student = dspy.Predict(Route)
    plain = prompt_tokens(student)
    assert prompt_texts(student) == {"self": Route.instructions}
    student.demos = [dspy.Example(message="Where is my parcel?", desk="Summit")]
    assert prompt_tokens(student) > plain > 0
    assert prompt_texts(student)["self"].endswith("## Demo 1\nmessage: Where is my parcel?\ndesk: Summit")


def test_a_curve_has_at_most_two_hundred_steps() -> None:
    """Prompts that change with every rollout are thinned, first and last kept."""
    student = dspy.Predict(Route)
    observer = Observer(student)
    with dspy.context(lm=OfflineLM()), observer.watching("compile"):
        for number in range(230):
            student.signature = student.signature.with_instructions("word " * (number + 1))
            student(message="Hello")
    steps = observer.prompt_steps()
    assert len(steps) == 200
    assert (steps[0][0], steps[-1][0]) == (1, 230)


@pytest.mark.parametrize(
    "metric",
    [
        lambda example, prediction: 1.0,
        lambda gold, pred, trace=None, pred_name=None, pred_trace=None: 1.0,
        desk_metric,
    ],
)
def test_a_watched_metric_looks_like_the_metric(metric: Any) -> None:
    """Optimizers read arity and name off it."""
    watched = Observer(dspy.Predict(Route)).watched(metric)
    assert inspect.signature(watched) == inspect.signature(metric)
    assert watched.__name__ == metric.__name__
    assert not inspect.iscoroutinefunction(watched)


def test_usage_reaches_whoever_else_counts(offline: OfflineLM) -> None:
    """A tracker of the user's around it, and one inside, get every entry."""
    observer = Observer(dspy.Predict(Route))
    with dspy.track_usage() as outer, observer.watching("compile"):
        dspy.settings.lm("one")
    with observer.watching("compile"), dspy.track_usage() as inner:
        dspy.settings.lm("two")
    assert observer.usage("compile")["optimizer"]["calls"] == 2
    assert [len(tracker.usage_data["offline/reader"]) for tracker in (outer, inner)] == [1, 1]
    told = [tracker.usage_data["offline/reader"][0]["prompt_tokens"] for tracker in (outer, inner)]
    assert told == [record.prompt_tokens for record in offline.log]


def test_failed_calls_are_calls() -> None:
    """A call that ends in an error is counted as one, without tokens."""
    observer = Observer(dspy.Predict(Route))
    lm = OfflineLM(faults={"auth": 1.0}, num_retries=0)
    with observer.watching("compile"), pytest.raises(Exception, match=r"API key"):
        lm("Hello")
    used = observer.usage("compile")["optimizer"]
    assert (used["calls"], used["failed_calls"], used["prompt_tokens"]) == (1, 1, 0)
    assert "API key" in observer.call_errors["optimizer"]


def test_a_call_that_a_limit_refuses_is_not_counted(offline: OfflineLM) -> None:
    """What an optimizer's own limit refuses was no call."""
    student = dspy.Predict(Route)
    observer = Observer(student)
    with observer.watching("compile"):
        with scope(Measurement(Meter(), "optimizer", Limits(max_lm_calls=1))):
            student(message="one")
            with pytest.raises(LimitReachedError):
                student(message="two")
        student(message="three")
    assert calls(observer) == {"task": 2}


def test_asynchronous_calls_are_counted(offline: OfflineLM) -> None:
    """Programs that are awaited are seen as well."""
    import asyncio

    student = dspy.ChainOfThought(Route)
    observer = Observer(student)

    async def several() -> None:
        await asyncio.gather(*(student.acall(message=example.message) for example in VAL))

    with observer.watching("compile"):
        asyncio.run(several())
    assert calls(observer) == {"task": 4}
    assert observer.rollouts["compile"] == 4


def test_many_threads_at_once_lose_nothing() -> None:
    """Sixteen threads: calls and tokens are the model's own log."""
    student, lm = dspy.ChainOfThought(Route), OfflineLM(prefix_cache=True, cache_minimum=128)
    observer = Observer(student)
    with dspy.context(lm=lm), observer.watching("compile"):
        dspy.Evaluate(devset=messages(60, 5), metric=desk_metric, num_threads=16)(student)
    used = observer.usage("compile")["task"]
    assert used["calls"] == lm.calls == 60
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
        assert used[name] == sum(getattr(record, name) for record in lm.log) > 0
    assert used["dollars"] is None
