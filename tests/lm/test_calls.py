"""Every call of a program is counted and limited, whatever thread it is made in and whatever LM it asks."""

from __future__ import annotations

import asyncio
import multiprocessing.pool
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import dspy
import pytest
from dspy.dsp.utils.settings import main_thread_config

from dspy_ace.lm import LimitReachedError, Limits, Measurement, Meter, Usage, calls, scope
from dspy_ace.testing.server import OfflineServer, serve
from runs import billed, booked, client, compiled, faulty
from scripted import scripted
from tasks import Route

pytestmark = [
    pytest.mark.compat,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnhandledThreadExceptionWarning"
    ),
]
LIMIT = 12
EARLIER = ThreadPoolExecutor(2)  # its threads are older than any run
list(EARLIER.map(str, range(4)))
Ask = Callable[..., Any]


@contextmanager
def configured(lm: Any) -> Iterator[None]:
    """An LM that plain threads see, as after `dspy.configure`."""
    before = main_thread_config["lm"]
    main_thread_config["lm"] = lm
    try:
        yield
    finally:
        main_thread_config["lm"] = before


def in_threads(ask: Ask, message: str) -> Any:
    """Plain threads, joined."""
    found: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: found.append(ask(message=f"{message} {n}"))) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found[0] if found else dspy.Prediction(desk="HR")


def in_a_pool(ask: Ask, message: str) -> Any:
    """A pool of its own."""
    with ThreadPoolExecutor(2) as pool:
        first, _ = pool.map(lambda n: ask(message=f"{message} {n}"), range(2))
        return first


def in_an_earlier_pool(ask: Ask, message: str) -> Any:
    """A pool whose threads are older than the run."""
    return EARLIER.submit(ask, message=message).result()


def in_a_process_style_pool(ask: Ask, message: str) -> Any:
    """A pool that hands work over in a queue."""
    with multiprocessing.pool.ThreadPool(2) as pool:
        return pool.map(lambda n: ask(message=f"{message} {n}"), range(2))[0]


def in_a_timer(ask: Ask, message: str) -> Any:
    """A thread that starts later."""
    found: list[Any] = []
    timer = threading.Timer(0.01, lambda: found.append(ask(message=message)))
    timer.start()
    timer.join()
    return found[0] if found else dspy.Prediction(desk="HR")


def in_to_thread(ask: Ask, message: str) -> Any:
    """A thread of an event loop, with the context."""
    return asyncio.run(_awaited(lambda: asyncio.to_thread(ask, message=message)))


def in_an_executor(ask: Ask, message: str) -> Any:
    """A thread of an event loop, without it."""
    return asyncio.run(_awaited(lambda: asyncio.get_running_loop().run_in_executor(None, lambda: ask(message=message))))


async def _awaited(make: Callable[[], Any]) -> Any:
    return await make()


WAYS = [
    in_threads,
    in_a_pool,
    in_an_earlier_pool,
    in_a_process_style_pool,
    in_a_timer,
    in_to_thread,
    in_an_executor,
]


class Elsewhere(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """A program that asks its predictor in other threads."""

    def __init__(self, way: Callable[[Ask, str], Any]) -> None:
        super().__init__()
        self.ask = dspy.ChainOfThought(Route)
        self.way = way

    def forward(self, message: str) -> Any:
        return self.way(self.ask, message)


@pytest.mark.parametrize("way", WAYS)
def test_calls_of_other_threads_are_limited(way: Callable[[Ask, str], Any]) -> None:
    """A program may ask its predictor in any thread: the limit holds, and the counts are the server's."""
    with serve() as server, configured(client(server)):
        results = compiled(client(server), Elsewhere(way), max_lm_calls=LIMIT, num_threads=2).detailed_results
        assert LIMIT - 1 <= server.calls <= LIMIT
    assert sum(used.calls for used in results.usage.values()) == server.calls
    assert "max_lm_calls" in results.stopped


@pytest.mark.parametrize("way", WAYS)
def test_calls_of_other_threads_are_counted(way: Callable[[Ask, str], Any]) -> None:
    """Calls, failures and tokens of each role are those of the server's log, retries included."""
    with faulty({"rate_limit": 0.2}, seed=2) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "LONGEST_WAIT", 0.0)
        with configured(client(server)):
            program = compiled(client(server), Elsewhere(way), num_threads=2, valset=[])
        assert booked(program) == billed(server)


def test_predictors_of_a_worker_thread_are_counted() -> None:
    """A thread that was there before the run, and takes work from a queue: its calls of the program's predictors count.

    A refusal does not end that thread; it ends the rollout.
    """
    work: queue.Queue[Any] = queue.Queue()

    def serve_queue() -> None:
        while (job := work.get()) is not None:
            ask, message, found, done = job
            try:
                found.append(ask(message=message))
            except Exception as error:  # noqa: BLE001 - as such threads are written
                found.append(error)
            done.set()

    worker = threading.Thread(target=serve_queue, daemon=True)
    worker.start()

    def way(ask: Ask, message: str) -> Any:
        found: list[Any] = []
        done = threading.Event()
        work.put((ask, message, found, done))
        assert done.wait(30)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    with serve() as server, configured(client(server)):
        results = compiled(client(server), Elsewhere(way), max_lm_calls=LIMIT, num_threads=2).detailed_results
        assert LIMIT - 1 <= server.calls <= LIMIT
    assert worker.is_alive()
    work.put(None)
    assert sum(used.calls for used in results.usage.values()) == server.calls
    assert not any(record.failures for record in results.records)


class Inherits(dspy.LM):  # type: ignore[misc]  # dspy is untyped
    """An LM of the user's that asks the provider in its own `forward`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Renames(dspy.LM):  # type: ignore[misc]  # dspy is untyped
    """An LM of the user's that overrides the call itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def made_here(ask: Ask, url: str, message: str) -> Any:
    """An LM made inside `forward`, put in force."""
    with dspy.context(lm=client(url)):
        return ask(message=message)


def copied_here(ask: Ask, url: str, message: str) -> Any:
    """A copy of an LM with another temperature."""
    with dspy.context(lm=client(url).copy(temperature=0.5)):
        return ask(message=message)


def asked_directly(ask: Ask, url: str, message: str) -> Any:
    """An LM asked without a predictor, in a thread."""

    def direct(message: str) -> Any:
        return client(url)(message)

    in_threads(direct, message)
    return ask(message=message)


def of_a_subclass(ask: Ask, url: str, message: str) -> Any:
    """LMs of classes of the user's own."""
    with dspy.context(lm=Inherits("openai/offline", api_base=url, api_key="none", cache=False)):
        ask(message=message)
    with dspy.context(lm=Renames("openai/offline", api_base=url, api_key="none", cache=False)):
        return ask(message=message)


def from_a_tool(ask: Ask, url: str, message: str) -> Any:
    """A tool with a predictor of its own, which it asks in a thread."""

    def look(about: str) -> str:
        """Look something up."""
        own = dspy.Predict("message -> desk")
        own.lm = client(url)
        return str(in_a_pool(own, about).desk)

    dspy.Tool(look)(about=message)
    return ask(message=message)


@pytest.mark.parametrize("way", [made_here, copied_here, asked_directly, of_a_subclass, from_a_tool])
def test_lms_that_only_turn_up_in_a_call_are_limited(way: Callable[[Ask, str, str], Any]) -> None:
    """Each LM counts, with each of its retries, whoever made it and where."""
    with serve(faults={"server_error": 0.1}, seed=5) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "LONGEST_WAIT", 0.0)
        student = Elsewhere(lambda ask, message: way(ask, server.url, message))
        results = compiled(client(server), student, max_lm_calls=LIMIT, num_threads=2).detailed_results
        assert LIMIT - 1 <= server.calls <= LIMIT
    assert sum(used.calls for used in results.usage.values()) == server.calls


def test_a_metric_that_asks_in_a_thread_is_counted_as_metric() -> None:
    """Its calls have the role of the metric, wherever they are made."""
    with serve() as server, serve() as bench:
        judge = dspy.Predict("desk -> verdict")
        judge.lm = client(bench)

        def metric(example: Any, prediction: Any) -> float:
            return float(in_threads(lambda message: judge(desk=message), prediction.desk) is not None)

        results = compiled(client(server), metric=metric, max_metric_calls=8).detailed_results
    assert results.usage["metric"].calls == bench.calls > 0


def test_the_users_lms_are_left_alone() -> None:
    """Outside of a run, and for calls that no run makes, an LM does what it did: retries, history, callbacks."""
    lm = scripted("[[ ## desk ## ]]\nHR\n\n[[ ## completed ## ]]")
    lm.num_retries = 7
    heard: list[Any] = []

    class Hears(dspy.utils.callback.BaseCallback):  # type: ignore[misc]  # dspy is untyped
        def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            heard.append(instance)

    meter = Meter()
    with dspy.context(lm=lm, callbacks=[Hears()]), scope(Measurement(meter, "task")):
        dspy.Predict("message -> desk")(message="hello")
        bystander = threading.Thread(target=lambda: None)
        bystander.start()
        bystander.join()
    with dspy.context(lm=lm, callbacks=[Hears()]):
        dspy.Predict("message -> desk")(message="hello again")
    assert all(each is lm for each in heard)
    assert len(heard) == len(lm.history) == 2
    assert lm.num_retries == lm.copy().num_retries == 7
    assert meter.totals()["task"].calls == 1


def test_two_runs_at_once_keep_their_calls_apart() -> None:
    """Each run counts and limits its own threads, and none of another's."""

    def run(server: OfflineServer, limit: int, found: dict[int, Any]) -> None:
        meter, limits = Meter(), Limits(max_lm_calls=limit)
        predict = dspy.Predict("message -> desk")
        predict.lm = client(server)
        with scope(Measurement(meter, "task", limits)):
            for _ in range(20):
                in_threads(predict, "hello")
        found[limit] = meter.totals()["task"].calls

    with serve() as first, serve() as second:
        found: dict[int, Any] = {}
        threads = [threading.Thread(target=run, args=each) for each in ((first, 5, found), (second, 9, found))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (first.calls, second.calls) == (5, 9)
    assert found == {5: 5, 9: 9}


def test_work_that_was_given_up_makes_no_further_call() -> None:
    """Once a scope is over, its threads are refused; what they did before is counted."""
    lm, meter = scripted("fine"), Meter()
    made = Measurement(meter, "task")
    with scope(made):
        lm("one")
        made.over = True
        with pytest.raises(LimitReachedError, match="given up"):
            lm("two")
    assert meter.totals() == {"task": Usage(1, 0, 0, 10, 4, 2)}
