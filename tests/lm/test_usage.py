"""Who spent what: exact calls and tokens per role, whatever the threads, against the model's own log."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from dspy_ace import Usage, with_playbook
from dspy_ace.lm import Meter
from dspy_ace.playbook import Playbook
from dspy_ace.program import rollouts
from dspy_ace.testing import OfflineLM
from scripted import Messages, rate_limited, scripted

THREADS = [1, 4, 16]
HAS_CACHE = hasattr(dspy, "lm15")  # before DSPy 3.4 a custom LM has no response cache
GOOD = "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]"


def asked(count: int) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"What is {n} + {n}?", answer=str(2 * n)).with_inputs("question") for n in range(count)
    ]


def logged(lm: OfflineLM) -> Usage:
    """What the model itself says it served."""
    return Usage(
        calls=len(lm.log),
        failed_calls=sum(record.fault is not None for record in lm.log),
        prompt_tokens=sum(record.prompt_tokens for record in lm.log if record.fault is None),
        cached_tokens=sum(record.cached_tokens for record in lm.log),
        completion_tokens=sum(record.completion_tokens for record in lm.log),
    )


@pytest.mark.compat
@pytest.mark.parametrize("threads", THREADS)
def test_counts_are_those_of_the_model(threads: int, playbook: Playbook) -> None:
    """Calls, tokens and the provider's cached tokens are exact, in total and summed over trajectories."""
    lm, meter = OfflineLM(prefix_cache=True, cache_minimum=64, cache_block=16), Meter()
    program = with_playbook(dspy.ChainOfThought("question -> answer"), playbook, cite=True)
    with dspy.context(lm=lm):
        made = rollouts(program, asked(24), num_threads=threads, meter=meter)
    assert meter.totals()["task"] == logged(lm) == sum((t.usage for t in made), Usage())
    assert meter.totals()["task"].cached_tokens > 0
    assert meter.totals()["metric"] == Usage()
    assert meter.scopes("task") == meter.scopes("metric") == 24
    assert all(t.usage.calls == 1 for t in made)


@pytest.mark.compat
@pytest.mark.parametrize("threads", THREADS)
def test_failed_calls_are_counted(threads: int) -> None:
    """A call the provider refuses counts as failed, without tokens."""
    lm, meter = OfflineLM(faults={"server_error": 0.5}, num_retries=0), Meter()
    with dspy.context(lm=lm):
        made = rollouts(dspy.Predict("question -> answer"), asked(24), num_threads=threads, meter=meter)
    total = meter.totals()["task"]
    assert total == logged(lm)
    assert 0 < total.failed_calls < 24
    assert total.failed_calls == sum(t.error is not None and t.error.kind == "provider" for t in made)


@pytest.mark.skipif(not HAS_CACHE, reason="custom LMs have no response cache before DSPy 3.4")
@pytest.mark.parametrize("threads", THREADS)
def test_answers_from_dspys_cache_are_counted_apart(threads: int) -> None:
    """A cache hit is a call without tokens; a hit is not billed again."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    lm = OfflineLM(f"offline/cached-{threads}", cache=True)
    program, first, second = dspy.Predict("question -> answer"), Meter(), Meter()
    with dspy.context(lm=lm):
        rollouts(program, asked(12), num_threads=threads, meter=first)
        paid = logged(lm)
        again = rollouts(program, asked(12), num_threads=threads, meter=second)
    assert first.totals()["task"] == paid
    assert len(lm.log) == 12
    assert second.totals()["task"] == Usage(calls=12, cached_calls=12)
    assert all(t.usage == Usage(calls=1, cached_calls=1) for t in again)
    assert all(t.prediction is not None and t.prediction.get_lm_usage() == {} for t in again)


@pytest.mark.compat
@pytest.mark.parametrize("threads", THREADS)
def test_a_tracker_around_the_call_sees_every_call(threads: int) -> None:
    """`dspy.track_usage()` around the rollouts holds all of them, task and metric, which it does not in DSPy."""
    lm = OfflineLM()

    def judge(example: Any, prediction: Any) -> bool:
        return bool(dspy.Predict("question -> verdict")(question=prediction.answer).verdict)

    with dspy.context(lm=lm), dspy.track_usage() as tracker:
        rollouts(dspy.Predict("question -> answer"), asked(20), judge, num_threads=threads)
    assert len(tracker.usage_data["offline/reader"]) == len(lm.log) == 40
    total = tracker.get_total_tokens()["offline/reader"]
    assert total["prompt_tokens"] == logged(lm).prompt_tokens
    assert total["completion_tokens"] == logged(lm).completion_tokens


@pytest.mark.compat
@pytest.mark.parametrize("threads", THREADS)
def test_the_metrics_own_calls_are_the_metrics(threads: int) -> None:
    """An LM judge is booked as `metric`; a rollout's usage is the program's alone."""
    task, judge, meter = OfflineLM("offline/task"), OfflineLM("offline/judge"), Meter()

    def metric(example: Any, prediction: Any) -> float:
        with dspy.context(lm=judge):
            dspy.ChainOfThought("answer -> verdict")(answer=prediction.answer)
        return 1.0

    with dspy.context(lm=task):
        made = rollouts(dspy.Predict("question -> answer"), asked(12), metric, num_threads=threads, meter=meter)
    assert meter.totals() == {"metric": logged(judge), "task": logged(task)}
    assert sum((t.usage for t in made), Usage()) == logged(task)


@pytest.mark.compat
@pytest.mark.parametrize("track", [False, True])
@pytest.mark.parametrize("outer", [False, True])
def test_a_metric_can_ask_what_the_prediction_cost(track: bool, outer: bool) -> None:
    """`pred.get_lm_usage()` is the rollout's usage, with or without `track_usage` and an outer tracker."""
    lm, seen = OfflineLM(), []

    def metric(example: Any, prediction: Any) -> bool:
        seen.append(prediction.get_lm_usage()["offline/reader"]["prompt_tokens"])
        return True

    def run() -> Any:
        return rollouts(dspy.ChainOfThought("question -> answer"), asked(6), metric, num_threads=3)

    with dspy.context(lm=lm, track_usage=track):
        if outer:
            with dspy.track_usage():
                made = run()
        else:
            made = run()
    assert all(t.success for t in made)
    assert sorted(seen) == sorted(record.prompt_tokens for record in lm.log)


@pytest.mark.compat
def test_calls_in_threads_of_the_program_count() -> None:
    """dspy.Parallel inside a program, and the fallback of an adapter, count for the rollout."""

    class Fans(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            pairs = [(self.ask, {"question": f"{question} {n}"}) for n in range(4)]
            return dspy.Parallel(num_threads=4, disable_progress_bar=True, timeout=0)(pairs)[0]

    lm = OfflineLM()
    with dspy.context(lm=lm), dspy.track_usage() as tracker:
        meter = Meter()
        rollouts(Fans(), asked(6), num_threads=3, meter=meter)
    assert meter.totals()["task"] == logged(lm)
    assert meter.totals()["task"].calls == len(tracker.usage_data["offline/reader"]) == 24
    fallback = scripted(["no structure", '{"answer": "Paris"}'])
    with dspy.context(lm=fallback):
        made = rollouts(dspy.Predict("question -> answer"), asked(1))[0]
    assert made.usage == Usage(2, 0, 0, 20, 8, 4)


@pytest.mark.skipif(not HAS_CACHE, reason="before DSPy 3.4 a tracker inside a program keeps its entries to itself")
def test_a_tracker_inside_the_program_hides_nothing() -> None:
    """A program that tracks usage itself is counted all the same, also by a tracker outside."""

    class Tracks(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            with dspy.track_usage() as tracker:
                made = self.ask(question=question)
            made.own = len(tracker.usage_data)
            return made

    with dspy.context(lm=scripted(GOOD)), dspy.track_usage() as outer:
        meter = Meter()
        made = rollouts(Tracks(), asked(4), meter=meter, num_threads=2)
    assert all(t.prediction is not None and t.prediction.own == 1 for t in made)
    assert meter.totals()["task"] == Usage(4, 0, 0, 40, 16, 8)
    assert len(outer.usage_data["scripted/model"]) == 4


@pytest.mark.compat
def test_scopes_keep_to_themselves_and_pass_on() -> None:
    """A scope in a scope of the same meter is not counted twice; another meter inside is seen by the outer one."""
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=scripted(GOOD)), dspy.track_usage() as outside:
        meter = Meter()
        with meter.measure("reflector"):
            program(question="a")
            with meter.measure("task"):
                program(question="b")
            inner = Meter()
            with inner.measure("task"):
                program(question="c")
    assert meter.totals() == {"reflector": Usage(2, 0, 0, 20, 8, 4), "task": Usage(1, 0, 0, 10, 4, 2)}
    assert inner.totals() == {"task": Usage(1, 0, 0, 10, 4, 2)}
    assert len(outside.usage_data["scripted/model"]) == 3


@pytest.mark.compat
def test_a_scope_that_fails_is_booked() -> None:
    """What was spent before an exception is spent."""
    meter = Meter()
    program = dspy.Predict("question -> answer")

    def spend() -> None:
        with dspy.context(lm=scripted([GOOD, rate_limited()])), meter.measure("task"):
            program(question="a")
            program(question="b")

    with pytest.raises(Exception, match="slow down"):
        spend()
    assert meter.totals() == {"task": Usage(2, 0, 1, 10, 4, 2)}


@pytest.mark.compat
def test_the_users_callbacks_still_hear() -> None:
    """Callbacks in force around the rollouts hear every LM call in every thread, once."""

    class Hears(BaseCallback):
        def __init__(self) -> None:
            self.heard: Counter[str] = Counter()
            self.lock = threading.Lock()

        def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            with self.lock:
                self.heard["lm"] += 1

        def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            with self.lock:
                self.heard["module"] += 1

    hears = Hears()
    with dspy.context(lm=scripted(GOOD), callbacks=[hears]):
        rollouts(dspy.Predict("question -> answer"), asked(12), num_threads=4)
    assert hears.heard == {"lm": 12, "module": 12}


@pytest.mark.compat
def test_several_models_are_added_up() -> None:
    """Predictors with LMs of their own are counted together, and apart in the prediction's usage."""

    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = dspy.Predict("question -> answer")
            self.two = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            self.one(question=question)
            return self.two(question=question)

    program, first, second = Two(), OfflineLM("offline/one"), OfflineLM("offline/two")
    program.one.lm, program.two.lm = first, second
    made = rollouts(program, asked(3), num_threads=3)
    assert sum((t.usage for t in made), Usage()) == logged(first) + logged(second)
    assert all(
        t.prediction is not None and set(t.prediction.get_lm_usage()) == {"offline/one", "offline/two"} for t in made
    )


@pytest.mark.compat
def test_meters_add_up_from_many_threads() -> None:
    """Scopes that end at the same time lose nothing."""
    meter = Meter()

    def answer(messages: Messages) -> str:
        return GOOD

    lm = scripted(answer)

    def work() -> None:
        for _ in range(20):
            with dspy.context(lm=lm), meter.measure("task"):
                dspy.Predict("question -> answer")(question="q")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.totals() == {"task": Usage(160, 0, 0, 1600, 640, 320)}
