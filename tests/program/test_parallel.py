"""Rollouts and the threads they run in: order, context, traces, and every way to fail."""

from __future__ import annotations

import threading
import time
from typing import Any

import dspy
import numpy as np
import pytest

from dspy_ace import Bullet, Playbook, with_playbook
from dspy_ace.program.parallel import in_time, ordered_map
from dspy_ace.program.rollout import rollouts
from dspy_ace.testing import OfflineLM
from scripted import Messages, rate_limited, scripted

THREADS = [1, 4, 16]
GOOD = "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]"


def asked(count: int) -> list[dspy.Example]:
    return [dspy.Example(question=f"case {n}.", answer=f"case {n}.").with_inputs("question") for n in range(count)]


def echo(messages: Messages) -> str:
    """The question as the answer, the later ones first."""
    question = messages[-1]["content"].split("[[ ## question ## ]]\n")[1].split("\n")[0]
    time.sleep(0.002 * (10 - int(question.split()[1][:-1]) % 10))
    return f"[[ ## answer ## ]]\n{question}"


@pytest.mark.compat
@pytest.mark.parametrize("threads", THREADS)
def test_the_order_is_that_of_the_items(threads: int) -> None:
    """However long each item takes, results stand in the order of the items."""

    def slow(n: int) -> int:
        time.sleep(0.001 * ((n * 7) % 10))
        return n * n

    assert ordered_map(slow, list(range(40)), threads) == [n * n for n in range(40)]
    assert ordered_map(slow, [], threads) == []


def test_an_item_runs_once_and_no_more_than_allowed_at_a_time() -> None:
    """Nothing is handed out twice; `num_threads` is a bound."""
    lock, running, most, runs = threading.Lock(), [0], [0], []

    def work(n: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            runs.append(n)
        time.sleep(0.005)
        with lock:
            running[0] -= 1

    ordered_map(work, list(range(20)), 3)
    assert sorted(runs) == list(range(20))
    assert 1 < most[0] <= 3


def test_the_first_exception_in_order_is_raised() -> None:
    """Of several failures the earliest item's comes out; what has not begun is not begun."""
    begun = []

    def work(n: int) -> None:
        begun.append(n)
        time.sleep(0.01 if n == 1 else 0)
        if n in (1, 3):
            raise ValueError(f"item {n}")

    with pytest.raises(ValueError, match="item 1"):
        ordered_map(work, list(range(500)), 4)
    assert len(begun) < 500


@pytest.mark.compat
@pytest.mark.parametrize("threads", [2, 8])
def test_an_interrupt_in_a_worker_ends_the_call(threads: int) -> None:
    """KeyboardInterrupt passes through a rollout and does not hang; the rest is not started."""
    begun = []

    class Interrupted(dspy.Module):
        def forward(self, question: str) -> Any:
            begun.append(question)
            time.sleep(0.002)
            if question == "case 2.":
                raise KeyboardInterrupt
            return dspy.Prediction(answer=question)

    with pytest.raises(KeyboardInterrupt):
        rollouts(Interrupted(), asked(400), num_threads=threads)
    assert len(begun) < 400


@pytest.mark.compat
@pytest.mark.parametrize("threads", THREADS)
def test_trajectories_stand_in_order_with_traces_of_their_own(threads: int, playbook: Playbook) -> None:
    """Each trajectory holds its own example's calls, whatever ran beside it."""
    program = with_playbook(dspy.Predict("question -> answer"), playbook, cite=True)
    with dspy.context(lm=scripted(echo)):
        made = rollouts(program, asked(24), lambda e, p: e.answer == p.answer, num_threads=threads)
    assert [t.source for t in made] == [str(n) for n in range(24)]
    assert all(t.success and t.error is None for t in made)
    for n, trajectory in enumerate(made):
        assert [call.predictor for call in trajectory.trace] == ["self"]
        assert trajectory.trace[0].inputs == {"question": f"case {n}."}
        assert trajectory.trace[0].outputs == {"answer": f"case {n}."}
        assert trajectory.inputs == {"question": f"case {n}."}
        assert trajectory.usage.calls == 1


@pytest.mark.compat
def test_the_context_of_the_caller_holds_in_the_workers() -> None:
    """LM and adapter set by dspy.context, not configured, are those of the rollouts; the outer trace stays clean."""
    lm = scripted('{"answer": "Paris"}')
    outer: list[Any] = []
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter(), trace=outer):
        made = rollouts(dspy.Predict("question -> answer"), asked(6), num_threads=4)
    assert [t.prediction.answer for t in made if t.prediction] == ["Paris"] * 6
    assert outer == []


class Breaks(dspy.Module):
    """Answers, or fails in the way the question names."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        if question == "bug":
            raise ZeroDivisionError("division by zero")
        if question == "silent":
            raise RuntimeError
        if question == "exit":
            raise StopIteration
        if question == "wrapped":
            try:
                return self.ask(question="provider")
            except Exception as error:
                raise RuntimeError("the step failed") from error
        return self.ask(question=question)


def by_question(messages: Messages) -> Any:
    text = messages[-1]["content"]
    return rate_limited() if "provider" in text else "no structure at all" if "format" in text else GOOD


@pytest.mark.compat
@pytest.mark.parametrize("threads", [1, 4])
def test_every_failure_is_a_trajectory_of_its_kind(threads: int) -> None:
    """Provider, format, program and metric failures are told apart, score `failure_score`, and raise nothing."""

    def metric(example: dspy.Example, prediction: Any) -> Any:
        if example.question == "metric":
            raise KeyError("gold")
        return 1.0

    expected = {
        "fine": None,
        "provider": ("provider", "Rate"),
        "wrapped": ("provider", "RuntimeError: the step failed"),
        "format": ("format", "AdapterParseError: "),
        "bug": ("program", "ZeroDivisionError: division by zero"),
        "silent": ("program", "RuntimeError"),
        "exit": ("program", "StopIteration"),
        "metric": ("metric", "KeyError: 'gold'"),
    }
    examples = [dspy.Example(question=name).with_inputs("question") for name in expected]
    with dspy.context(lm=scripted(by_question)):
        made = rollouts(Breaks(), examples, metric, num_threads=threads, failure_score=-1.0)
    assert len(made) == len(expected)
    for trajectory, wanted in zip(made, expected.values(), strict=True):
        if wanted is None:
            assert trajectory.error is None
            assert trajectory.success
            assert trajectory.feedback.score == 1.0
            continue
        assert trajectory.error is not None
        assert trajectory.error.kind == wanted[0]
        assert wanted[1] in trajectory.error.message
        assert not trajectory.error.message.endswith(": ")
        assert trajectory.feedback.score == -1.0
        assert trajectory.feedback.text == trajectory.error.message
        assert not trajectory.success
        assert trajectory.teaches == (wanted[0] in ("format", "program"))
    assert made[-1].prediction is not None


@pytest.mark.compat
@pytest.mark.parametrize(
    "result", [None, "0.5", float("nan"), float("inf"), float("-inf"), [1.0], np.array([1.0, 2.0]), dspy.Prediction()]
)
def test_a_metric_without_a_score_is_a_metric_failure(result: Any) -> None:
    """None, text, NaN and infinities are no scores: the rollout counts as failed and says why."""
    with dspy.context(lm=scripted(GOOD)):
        made = rollouts(dspy.Predict("question -> answer"), asked(2), lambda e, p: result, failure_score=0.25)
    assert [t.error.kind for t in made if t.error] == ["metric", "metric"]
    assert all("finite number" in t.feedback.text and t.feedback.score == 0.25 for t in made)


@pytest.mark.compat
def test_inputs_that_are_not_set_fail_alone() -> None:
    """An example without inputs fails as its own trajectory; its neighbours run."""
    examples = [dspy.Example(question="q"), *asked(1)]
    with dspy.context(lm=scripted(GOOD)):
        made = rollouts(dspy.Predict("question -> answer"), examples)
    assert made[0].error is not None
    assert made[0].error.kind == "program"
    assert made[1].error is None


@pytest.mark.compat
def test_what_a_program_returns_reaches_the_metric() -> None:
    """A program that returns text, a dict or nothing is scored on just that."""

    class Returns(dspy.Module):
        def forward(self, question: str) -> Any:
            return {"case 0.": "text", "case 1.": {"answer": 1}, "case 2.": None}[question]

    seen = []
    made = rollouts(Returns(), asked(3), lambda e, p: seen.append(p) is None, num_threads=1)
    assert seen == ["text", {"answer": 1}, None]
    assert [t.prediction for t in made] == seen
    assert all(t.success and t.trace == () and t.shown == () for t in made)


@pytest.mark.compat
def test_a_trace_somebody_else_writes_to_does_no_harm() -> None:
    """Entries a program appends itself are kept when they have the shape of a call."""

    class Own(dspy.Module):
        def forward(self, question: str) -> Any:
            dspy.settings.trace.append((self, {"question": question}, "plain text"))
            return dspy.Prediction(answer="a")

    made = rollouts(Own(), asked(1))[0]
    assert made.error is None
    assert dict(made.trace[0].outputs) == {"output": "plain text"}


def reward(args: Any, prediction: Any) -> float:
    """Never enough: every attempt is made."""
    return 0.1


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["BestOfN", "Refine"])
def test_copies_that_dspy_runs_are_traced_under_their_names(kind: str, playbook: Playbook) -> None:
    """BestOfN and Refine trace deep copies: the calls still bear the predictor's name, and citations arrive."""

    def answer(messages: Messages) -> str:
        if "advice" in messages[0]["content"].split("All interactions")[0]:
            return '[[ ## discussion ## ]]\nd\n[[ ## advice ## ]]\n{"module": "be brief"}'
        return "[[ ## reasoning ## ]]\nr\n[[ ## answer ## ]]\nParis\n[[ ## cited_bullets ## ]]\ncmt-00002"

    student = getattr(dspy, kind)(dspy.ChainOfThought("question -> answer"), N=2, reward_fn=reward, threshold=1.0)
    lm = scripted(answer)
    with dspy.context(lm=lm):
        program = with_playbook(student, playbook, cite=True)
        made = rollouts(program, asked(1))[0]
    assert made.error is None
    assert [call.predictor for call in made.trace if call.predictor] == ["module.predict"]
    assert made.cited == ("cmt-00002",)
    assert made.shown == tuple(bullet.id for bullet in playbook)
    assert made.usage.calls == len(lm.script.requests) == (2 if kind == "BestOfN" else 3)


@pytest.mark.compat
def test_a_tool_that_fails_is_the_agents_business() -> None:
    """ReAct tells the model of a tool's error and goes on: the rollout succeeds and its trace shows the error."""

    def broken(query: str) -> str:
        """Fails."""
        raise ConnectionError("no route")

    def answer(messages: Messages) -> str:
        if "next_tool_name" in messages[0]["content"]:
            name = "finish" if "no route" in messages[-1]["content"] else "broken"
            args = '{"query": "x"}' if name == "broken" else "{}"
            return (
                f"[[ ## next_thought ## ]]\nt\n[[ ## next_tool_name ## ]]\n{name}\n[[ ## next_tool_args ## ]]\n{args}"
            )
        return "[[ ## reasoning ## ]]\nr\n[[ ## answer ## ]]\nParis"

    with dspy.context(lm=scripted(answer)):
        made = rollouts(dspy.ReAct("question -> answer", tools=[broken]), asked(1), num_threads=1)[0]
    assert made.error is None
    assert [call.predictor for call in made.trace] == ["react", "react", "extract.predict"]
    assert "no route" in made.trace[1].inputs["trajectory"]


@pytest.mark.compat
def test_programs_that_spawn_threads_are_traced_and_counted() -> None:
    """dspy.Parallel inside a program: its calls are in the rollout's own trace and usage."""

    class Fans(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            pairs = [(self.ask, {"question": question}) for _ in range(3)]
            return dspy.Parallel(num_threads=3, disable_progress_bar=True, timeout=0)(pairs)[0]

    with dspy.context(lm=scripted(echo)):
        made = rollouts(Fans(), asked(6), num_threads=4)
    for n, trajectory in enumerate(made):
        assert [dict(call.inputs) for call in trajectory.trace] == [{"question": f"case {n}."}] * 3
        assert trajectory.usage.calls == 3


@pytest.mark.compat
def test_a_failing_predictor_still_showed_its_bullets() -> None:
    """The bullets in the prompt of the call that failed count as shown; those of predictors never reached do not."""

    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = dspy.Predict("question -> answer")
            self.second = dspy.Predict("question -> answer")
            self.third = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            self.first(question=question)
            self.second(question="format")
            return self.third(question=question)

    book = Playbook(
        tuple(Bullet(f"str-{n:05d}", "S", "x", predictor=p) for n, p in enumerate(("first", "second", "third"), 1))
    )
    with dspy.context(lm=scripted(by_question)):
        made = rollouts(with_playbook(Two(), book), asked(1))[0]
    assert made.error is not None
    assert made.error.kind == "format"
    assert made.shown == ("str-00001", "str-00002")
    assert [(call.predictor, list(call.outputs)) for call in made.trace] == [("first", ["answer"]), ("second", [])]
    assert made.trace[1].inputs == {"question": "format"}


@pytest.mark.compat
def test_a_conversation_is_kept_as_it_stood() -> None:
    """A History that a program goes on writing to is in the trace as it was at each call."""

    class Talks(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.say = dspy.Predict("question, history: dspy.History -> answer")

        def forward(self, question: str) -> Any:
            history = dspy.History(messages=[])
            for _ in range(3):
                made = self.say(question=question, history=history)
                history.messages.append({"question": question, "answer": made.answer})
            return made

    with dspy.context(lm=scripted(GOOD)):
        made = rollouts(Talks(), asked(1))[0]
    assert [len(call.inputs["history"].messages) for call in made.trace] == [0, 1, 2]


@pytest.mark.compat
def test_a_program_with_a_playbook_of_another_kind_runs() -> None:
    """Rolling out a program whose attribute `playbook` is its own affair does not stumble over it."""
    program = Breaks()
    program.playbook = "four four two"
    with dspy.context(lm=scripted(GOOD)):
        assert rollouts(program, asked(1))[0].error is None


@pytest.mark.compat
def test_trajectories_know_the_task_and_the_sources(playbook: Playbook) -> None:
    """The task is the student's instructions without the playbook; sources are the names given."""
    student = dspy.Predict("question -> answer", temperature=0.0)
    with dspy.context(lm=scripted(GOOD)):
        made = rollouts(with_playbook(student, playbook), asked(2), sources=["a", "b"])
        with pytest.raises(ValueError, match="zip"):
            rollouts(student, asked(2), sources=["a"])
    assert [t.source for t in made] == ["a", "b"]
    assert made[0].task == {"self": student.signature.instructions}


@pytest.mark.compat
@pytest.mark.parametrize("threads", [1, 16])
def test_the_offline_model_gives_the_same_trajectories_in_any_threads(threads: int, playbook: Playbook) -> None:
    """With a deterministic model the trajectories do not depend on the number of threads."""
    program = with_playbook(dspy.ChainOfThought("question -> answer"), playbook, cite=True)
    with dspy.context(lm=OfflineLM(seed=3)):
        one = rollouts(program, asked(8), num_threads=1)
        many = rollouts(program, asked(8), num_threads=threads)
    assert [(t.cited, t.trace, t.usage) for t in one] == [(t.cited, t.trace, t.usage) for t in many]


@pytest.mark.compat
def test_a_rollout_out_of_time_is_a_failure_and_makes_no_further_call() -> None:
    """The slow example has failed, the others are scored, and the slow one's next LM call is never made."""
    lm = OfflineLM()
    ended = threading.Event()

    class Slow(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.answer = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            try:
                if question == "case 1.":
                    time.sleep(0.6)
                return self.answer(question=question)
            finally:
                if question == "case 1.":
                    ended.set()

    with dspy.context(lm=lm):
        made = rollouts(Slow(), asked(3), num_threads=3, timeout=0.3)
    assert [t.feedback.score for t in made] == [1.0, 0.0, 1.0]
    assert made[1].error is not None
    assert made[1].error.kind == "program"
    assert "no result after 0.3 s" in made[1].error.message
    assert ended.wait(5)
    assert lm.calls == 2


@pytest.mark.compat
def test_what_a_limited_call_returns_or_raises_is_the_callers() -> None:
    """Within its time a function behaves as if it were called directly, its own TimeoutError included."""

    def late() -> None:
        raise TimeoutError("mine")

    def stop() -> None:
        raise KeyboardInterrupt

    assert in_time(lambda: 7, 5) == in_time(lambda: 7, None) == 7
    with pytest.raises(TimeoutError, match="mine"):
        in_time(late, 5)
    with pytest.raises(KeyboardInterrupt):
        in_time(stop, 5)
