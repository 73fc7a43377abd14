"""Limits are never exceeded, by the count of whoever was paid: the metric, or the server."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import threading
import time
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import LMError

from dspy_ace.errors import JournalError, SettingsError
from dspy_ace.lm import LimitReachedError, Limits, Measurement, Meter, Spent, calls, price_of, scope
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import OfflineServer, serve
from runs import client, compiled, faulty
from scripted import rate_limited, scripted
from tasks import desk_metric, messages

pytestmark = [
    pytest.mark.compat,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]
PRICED = "openai/gpt-4o-mini"
LONGEST = 1000  # max_tokens


class Counted:
    """The task's metric, counting its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> Any:
        with self._lock:
            self.calls += 1
        return desk_metric(example, prediction)


def dollars(server: OfflineServer) -> float:
    """What the server's log comes to at the price of the model."""
    price = price_of(PRICED)
    assert price is not None
    paid = [record for record in server.log if record.fault is None]
    return sum(price.of(r.prompt_tokens, r.cached_tokens, r.completion_tokens) for r in paid)


@pytest.mark.parametrize("limit", [1, 7, 50, 333])
@pytest.mark.parametrize("threads", [1, 8])
def test_max_metric_calls_is_never_exceeded(limit: int, threads: int) -> None:
    """Batches, retries and validation together stay within it, and a run that has more to do spends it."""
    metric = Counted()
    settings: dict[str, Any] = {"max_metric_calls": limit, "num_threads": threads, "max_reflection_rounds": 2}
    trainset, valset = messages(100, 1), messages(20, 2)
    program = compiled(
        OfflineLM(slips=0.3), metric=metric, trainset=trainset, valset=valset, batch_size=8, epochs=9, **settings
    )
    results = program.detailed_results
    assert metric.calls == results.rollouts == sum(record.rollouts for record in results.records) <= limit
    assert metric.calls > limit - 8 or "max_metric_calls" not in results.stopped
    if limit < 333:
        assert "max_metric_calls" in results.stopped


def test_max_metric_calls_counts_rollouts_that_fail() -> None:
    """A rollout whose LM call, format or metric fails is a rollout that was made."""
    with faulty({"server_error": 0.5, "unparsable": 0.3}, seed=3) as server:
        lm = client(server, num_retries=0)
        settings: dict[str, Any] = {"max_metric_calls": 30, "epochs": 9, "batch_size": 8}
        results = compiled(lm, reflection_lm=OfflineLM(), **settings).detailed_results
    assert any(record.failures for record in results.records)
    assert results.rollouts == sum(record.rollouts for record in results.records) <= 30


@pytest.mark.parametrize("limit", [1, 2, 10, 33])
@pytest.mark.parametrize("threads", [1, 8])
def test_max_lm_calls_is_never_exceeded(limit: int, threads: int) -> None:
    """The server receives so many requests, whatever is in flight, or two less: learning takes three."""
    with serve() as server:
        program = compiled(client(server), max_lm_calls=limit, num_threads=threads)
        assert max(1, limit - 2) <= server.calls <= limit
    assert f"max_lm_calls={limit}" in program.detailed_results.stopped


def test_max_lm_calls_counts_every_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries that a provider's faults ask for are calls like any other."""
    monkeypatch.setattr(calls, "LONGEST_WAIT", 0.0)
    with faulty({"rate_limit": 0.4}) as server:
        results = compiled(client(server), max_lm_calls=25, num_threads=8).detailed_results
        assert 23 <= server.calls <= 25  # fewer than three are not enough to learn from
    assert sum(used.retries for used in results.usage.values()) > 0


def test_max_lm_calls_holds_for_threads_of_the_program() -> None:
    """A program that fans out by itself is stopped at the same count."""

    class Fans(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.ChainOfThought("message -> desk")

        def forward(self, message: str) -> Any:
            pairs = [(self.ask, {"message": f"{message} {n}"}) for n in range(3)]
            return dspy.Parallel(num_threads=3, disable_progress_bar=True, timeout=0)(pairs)[0]

    with serve() as server:
        results = compiled(client(server), Fans(), max_lm_calls=20, num_threads=4).detailed_results
        assert 18 <= server.calls <= 20  # fewer than three calls are not enough to learn from
    assert "max_lm_calls" in results.stopped


def asked(server: OfflineServer | str, **settings: Any) -> Any:
    """A client with a price and a bound on its answers."""
    return client(server, PRICED, **{"max_tokens": LONGEST, **settings})


@pytest.mark.parametrize("limit", [0.0, 0.001, 0.0025, 0.003])
@pytest.mark.parametrize("threads", [1, 8])
def test_max_cost_is_never_exceeded(limit: float, threads: int) -> None:
    """By the server's own log and the list's price, threads in flight included."""
    with serve(prefix_cache=True) as server:
        results = compiled(asked(server), max_cost=limit, num_threads=threads, epochs=3).detailed_results
        spent = dollars(server)
    assert spent <= limit
    assert "max_cost" in results.stopped
    assert sum(used.dollars or 0.0 for used in results.usage.values()) == pytest.approx(spent)


@pytest.mark.parametrize("threads", [1, 8])
def test_max_cost_is_spent_before_it_ends_a_run(threads: int) -> None:
    """Calls under way delay the next one; the run ends when that one would not fit if it were alone."""
    price = price_of(PRICED)
    assert price is not None
    reserved = LONGEST * (price.rate("output_cost_per_token") or 0.0)
    with serve() as server:
        results = compiled(asked(server), max_cost=reserved + 0.003, num_threads=threads, epochs=9).detailed_results
        spent = dollars(server)
        longest_reply = max(record.completion_tokens for record in server.log)
    assert "max_cost" in results.stopped
    # weighed with the longest answer, a call is made only up to 0.003; its real answer comes on top
    assert 0.002 < spent <= 0.003 + longest_reply * (price.rate("output_cost_per_token") or 0.0)


def test_max_cost_that_is_not_reached_changes_nothing() -> None:
    """A run that costs less than it may ends as it would without the limit."""
    with serve() as server:
        free = compiled(asked(server))
        bounded = compiled(asked(server), max_cost=2 * dollars(server) + 0.05, num_threads=8)
    assert bounded.playbook == free.playbook
    assert bounded.detailed_results.records == free.detailed_results.records


def test_max_cost_without_max_tokens_is_refused_where_one_answer_could_take_most_of_it() -> None:
    """Found before the first call; the message names the way out. A limit that is large enough needs none."""
    with serve() as server:
        with pytest.raises(SettingsError, match=r"16,384 tokens and cost \$0\.0098\. Set max_tokens, as in dspy\.LM"):
            compiled(client(server, PRICED), max_cost=0.05)
        assert server.calls == 0
        compiled(client(server, PRICED), max_cost=0.1)


def test_max_cost_stops_at_a_model_without_a_price() -> None:
    """An LM that only turns up in the middle, here in the metric, is not asked if its price is unknown."""
    with serve() as server, serve() as unpriced:
        judge = client(unpriced, "openai/no-such-model")

        def metric(example: Any, prediction: Any) -> bool:
            with dspy.context(lm=judge):
                return bool(dspy.Predict("desk -> verdict")(desk=prediction.desk).verdict)

        results = compiled(asked(server), metric=metric, max_cost=1.0).detailed_results
        assert unpriced.calls == 0
    assert "no-such-model" in results.stopped


def test_max_seconds_starts_no_call_later() -> None:
    """After that time no request leaves; those under way are waited for."""
    with serve(latency=0.05) as server:
        results = compiled(client(server), max_seconds=0.4, num_threads=2).detailed_results
        assert 2 <= server.calls <= 2 * 0.4 / 0.05 + 2
    assert "max_seconds" in results.stopped


def limited(limits: Limits) -> Any:
    """A scope in which the limits hold, and nothing is raised at its end."""
    return scope(Measurement(Meter(), "task", limits))


class Priced(dspy.BaseLM):  # type: ignore[misc]  # dspy is untyped
    """An LM of the user's own that costs what the listed model does, and takes its time."""

    def __init__(self, usage: dict[str, int] | None, seconds: float = 0.0, inner: Any = None) -> None:
        super().__init__(PRICED, max_tokens=LONGEST)
        self.usage, self.pause, self.inner, self.asked = usage, seconds, inner, 0

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        self.asked += 1
        time.sleep(self.pause)
        if self.inner is not None:
            self.inner("hello")
        message = SimpleNamespace(content="[[ ## desk ## ]]\nHR\n\n[[ ## completed ## ]]", tool_calls=None)
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(choices=[choice], model=self.model, usage=self.usage or {})


def test_a_call_waits_for_the_money_that_others_may_need() -> None:
    """A call that fits only once others have ended waits for them; one that never fits is refused at once."""
    limits, lm = Limits(max_cost=0.0019), Priced(None, seconds=0.1)  # a call may cost 0.0006
    with limited(limits):
        threads = [threading.Thread(target=_until_refused, args=[lm, "max_cost", "hello"]) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert lm.asked == 3
    assert 0.0018 <= limits.dollars <= 0.0019
    assert limits.reached is not None


def test_a_call_inside_a_call_does_not_wait_for_itself() -> None:
    """An LM that asks another one in the same thread is refused where both do not fit."""
    inner = Priced(None)
    outer = Priced(None, inner=inner)
    started = time.monotonic()
    with limited(Limits(max_cost=0.001)), pytest.raises(LimitReachedError, match="under way"):
        outer("hello")
    assert (outer.asked, inner.asked) == (1, 0)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("left", [0, 3, 10])
def test_a_continued_run_goes_on_with_what_it_has_spent(left: int) -> None:
    """Calls, rollouts, dollars and seconds of an earlier process count."""
    with serve() as server:
        limits = Limits(max_lm_calls=40)
        limits.resume(Spent(rollouts=7, calls=40 - left, dollars=0.5, seconds=3.0))
        with dspy.context(lm=client(server)), limited(limits):
            _until_refused(dspy.Predict("message -> desk"), "max_lm_calls=40", message="hello")
        assert server.calls == left
    assert (limits.rollouts, limits.calls, limits.dollars) == (7, 40, 0.5)
    assert limits.spent.calls == 40
    assert limits.spent.seconds >= 3.0


def test_seconds_of_an_earlier_process_count() -> None:
    """A run that has used up its time makes no call."""
    lm, limits = Priced(None), Limits(max_seconds=10)
    limits.resume(Spent(seconds=10.0))
    with limited(limits), pytest.raises(LimitReachedError, match="max_seconds=10 is reached"):
        lm("hello")
    assert lm.asked == 0


def test_rollouts_are_counted_and_limited() -> None:
    """What does not fit is refused whole; without a limit any number is left."""
    limits = Limits(max_rollouts=5)
    limits.resume(Spent(rollouts=2))
    assert limits.rollouts_left() == 3
    limits.count_rollouts(2)
    with pytest.raises(LimitReachedError, match="max_rollouts=5 is reached"):
        limits.count_rollouts(2)
    assert (limits.rollouts, limits.rollouts_left()) == (4, 1)
    assert limits.reached == "max_rollouts=5 is reached"
    assert Limits().rollouts_left() is None


@pytest.mark.skipif(not hasattr(dspy, "lm15"), reason="before DSPy 3.4 a custom LM has no retries")
def test_a_stopped_run_makes_no_call_and_ends_its_waits() -> None:
    """A provider that names a day as Retry-After is not waited for once the run is stopped."""
    limits, lm = Limits(), scripted(rate_limited(retry_after=86_400.0))
    lm.num_retries = 3
    threading.Timer(0.2, limits.stop, ["interrupted"]).start()
    with dspy.context(lm=lm), limited(limits), pytest.raises(LimitReachedError, match="interrupted"):
        dspy.Predict("message -> desk")(message="hello")
    assert len(lm.script.requests) == 1


@pytest.mark.skipif(not hasattr(dspy, "lm15"), reason="before DSPy 3.4 a custom LM has no retries")
def test_a_wait_for_a_retry_ends_with_the_time_that_is_left() -> None:
    """max_seconds holds for the waits between two attempts too, also in an event loop."""
    for ask in (_asked, _awaited):
        limits, lm = Limits(max_seconds=0.3), scripted(rate_limited(retry_after=86_400.0))
        lm.num_retries = 3
        started = time.monotonic()
        with dspy.context(lm=lm), limited(limits), pytest.raises(LimitReachedError, match="max_seconds"):
            ask(dspy.Predict("message -> desk"))
        assert time.monotonic() - started < 3.0
        assert len(lm.script.requests) == 1


def _asked(predict: Any) -> Any:
    return predict(message="hello")


def _awaited(predict: Any) -> Any:
    return asyncio.run(predict.acall(message="hello"))


def test_a_judge_with_an_lm_of_its_own_retries_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """An LM that the metric holds is asked once a call; its retries are counted, and limited."""
    monkeypatch.setattr(calls, "LONGEST_WAIT", 0.0)
    with serve() as server, faulty({"rate_limit": 0.6}, seed=3) as bench:
        grade = dspy.Predict("desk -> verdict")
        grade.lm = client(bench, num_retries=8)

        def metric(example: Any, prediction: Any) -> Any:
            grade(desk=prediction.desk)
            return desk_metric(example, prediction)

        results = compiled(client(server), metric=metric, max_lm_calls=60).detailed_results
        assert server.calls + bench.calls == 60
        assert results.usage["metric"].calls == bench.calls
        assert grade.lm.num_retries == 8


def test_callbacks_that_a_program_puts_in_place_of_ours_hide_no_call() -> None:
    """A program that traces itself is limited and counted like any other."""

    class Traced(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.ChainOfThought("message -> desk")

        def forward(self, message: str) -> Any:
            with dspy.context(callbacks=[BaseCallback()]):
                return self.ask(message=message)

    with serve() as server:
        results = compiled(client(server), Traced(), max_lm_calls=20, num_threads=4).detailed_results
        assert 18 <= server.calls == sum(used.calls for used in results.usage.values()) <= 20


@pytest.mark.skipif(not hasattr(dspy, "lm15"), reason="before DSPy 3.4 a call is one request, whatever `n`")
def test_each_of_several_answers_is_a_request() -> None:
    """With `n=5` a call sends five requests; it is made only if all fit."""
    with serve() as server:
        limits = Limits(max_lm_calls=12)
        with dspy.context(lm=client(server)), limited(limits):
            _until_refused(dspy.Predict("message -> desk", n=5), "takes 5", message="hello")
        assert server.calls == limits.calls == 10


def _until_refused(ask: Any, reason: str, *args: Any, **inputs: Any) -> None:
    try:
        for _ in range(100):
            ask(*args, **inputs)
    except LimitReachedError as error:
        assert reason in str(error)  # noqa: PT017 - it is the last of many calls


def test_a_reply_without_usage_costs_what_was_reserved() -> None:
    """Unknown is not free: a provider that tells no usage uses the limit up, and its dollars are said to be unknown."""
    limits, lm = Limits(max_cost=0.0015), Priced(None)
    meter = Meter()
    with scope(Measurement(meter, "task", limits)):
        _until_refused(lm, "max_cost", "hello")
    assert lm.asked == 2
    assert meter.totals()["task"].dollars is None
    assert meter.totals()["task"].cached_calls == 0


def test_a_program_that_swallows_the_refusal_leaves_no_result() -> None:
    """A bare `except` does not make a rollout of it: the scope ends with the refusal all the same."""
    limits, lm = Limits(max_lm_calls=1), scripted("[[ ## desk ## ]]\nHR\n\n[[ ## completed ## ]]")
    meter, went_on = Meter(), []

    def roll_out() -> None:
        with meter.measure("task"):
            try:
                dspy.Predict("message -> desk")(message="hello")
            except:  # noqa: E722 - as users write it
                went_on.append(True)

    with dspy.context(lm=lm), scope(Measurement(meter, "other", limits)):
        roll_out()
        with pytest.raises(LimitReachedError, match="max_lm_calls=1"):
            roll_out()
    assert went_on == [True]
    assert meter.totals()["task"].calls == 1


def test_calls_awaited_side_by_side_wait_for_money() -> None:
    """asyncio.gather under max_cost: what fits only later is made later, and the loop is not blocked."""
    limits = Limits(max_cost=0.002)
    predict, made = dspy.Predict("message -> desk"), []

    async def main() -> None:
        made.extend(await asyncio.gather(*(predict.acall(message=f"hello {n}") for n in range(6))))

    with serve(latency=0.05) as server:
        with dspy.context(lm=asked(server, num_retries=0)), limited(limits):
            asyncio.run(main())
        assert server.calls == 6
    assert len(made) == 6
    assert limits.dollars == pytest.approx(dollars(server))
    assert limits.dollars < 0.002


def test_limits_hold_for_any_mix_of_threads_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never above, and nothing stays reserved: 10 runs with limits drawn at random."""
    monkeypatch.setattr(calls, "LONGEST_WAIT", 0.0)
    dice, used = random.Random(7), []
    for run in range(10):
        allowed, money = dice.randint(1, 60), dice.uniform(0.001, 0.004)
        limits = Limits(max_lm_calls=allowed, max_cost=money)
        with faulty({"rate_limit": 0.2, "server_error": 0.1}, seed=run) as server:
            lm = asked(server, max_tokens=200)
            with limited(limits):
                threads = [threading.Thread(target=_until_it_ends, args=[lm]) for _ in range(dice.randint(1, 8))]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert server.calls == limits.calls <= allowed
            assert limits.dollars == pytest.approx(dollars(server))
            assert limits.dollars <= money
            used.append(max(limits.calls / allowed, limits.dollars / money))
    assert statistics.median(used) > 0.9


def _until_it_ends(lm: Any) -> None:
    predict = dspy.Predict("message -> desk")
    predict.lm = lm
    with contextlib.suppress(LimitReachedError):
        for _ in range(100):
            with contextlib.suppress(LMError):
                predict(message="hello")


def test_what_was_told_ahead_is_told_again_after_a_step_set_it_back() -> None:
    """A process that is killed at any moment has told of every call it made."""
    told: list[Spent] = []
    limits = Limits(max_lm_calls=2000)
    limits.keep = told.append
    lm = Priced(None)
    with limited(limits):
        for _ in range(3):
            lm("hello")
        limits.save()
        for _ in range(3):
            lm("hello")
    assert told[-1].calls >= 6


def test_a_call_is_refused_if_what_is_spent_cannot_be_kept() -> None:
    """A full disk ends the run as a limit does; the call is not made, and nothing stays reserved."""

    def keep(spent: Spent) -> None:
        raise JournalError("run: cannot be written: no space is left")

    limits, lm = Limits(max_lm_calls=10), Priced(None)
    limits.keep = keep
    with limited(limits), pytest.raises(LimitReachedError, match="no space is left"):
        lm("hello")
    assert (lm.asked, limits.calls) == (0, 0)
