"""Rollouts on an executor: the run of threads, made elsewhere."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE
from dspy_ace.errors import RunError, SettingsError
from dspy_ace.lm import LimitReachedError, Limits, Meter, price_of
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import serve
from dspy_ace.training import remote
from runs import TRAIN, billed, client, compiled
from tasks import Route, desk_metric

TRIALS = int(os.environ.get("DSPY_ACE_TRIALS", "8"))
OPENED: ContextVar[str] = ContextVar("opened", default="")


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENAI_API_KEY", "none")  # workers take their keys from it
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
            yield executor


class Program(dspy.Module):
    """The routing program, with something done before each answer."""

    def __init__(self, before: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.route = dspy.ChainOfThought(Route)
        self.before = before

    def forward(self, **inputs: Any) -> Any:
        if self.before is not None:
            self.before()
        return self.route(**inputs)


class Own(dspy.BaseLM):  # type: ignore[misc]  # dspy is untyped
    """An LM that keeps its key in an attribute."""

    api_key = None

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.api_key = "sk-hidden"


class Unopened:
    """A value that can be packed, and not opened again."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


class Sometimes(ThreadPoolExecutor):
    """An executor whose workers die of some rollouts: before they make a call, or with the result at hand."""

    def __init__(self, deaths: Callable[[int], bool], after: bool = False) -> None:
        super().__init__(4)
        self.deaths, self.after, self.count, self.lock = deaths, after, 0, threading.Lock()

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if function is remote.roll_out:
            with self.lock:
                self.count += 1
                died = self.deaths(self.count)
            if died:
                return super().submit(self._die, partial(function, *args) if self.after else lambda: None)
        return super().submit(function, *args, **kwargs)

    def _die(self, first: Callable[[], Any]) -> None:
        first()
        raise OSError("the worker was killed")


def journal(folder: Path) -> bytes:
    return (folder / "journal.jsonl").read_bytes()


def die_once(mark: str) -> None:
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def opened(example: dspy.Example) -> Iterator[None]:
    token = OPENED.set(str(os.getpid()))
    try:
        yield
    finally:
        OPENED.reset(token)


def check_opened() -> None:
    assert OPENED.get() == str(os.getpid())


@pytest.mark.slow
def test_processes_write_the_journal_of_threads_and_count_the_same(processes: Executor, tmp_path: Path) -> None:
    """Equal bytes, equal usage, also with an environment that is opened on the worker."""
    options = {"setup": opened, "student": Program(check_opened)}
    here = compiled(OfflineLM(), log_dir=tmp_path / "threads", **options)
    there = compiled(OfflineLM(), log_dir=tmp_path / "processes", executor=processes, **options)
    assert journal(tmp_path / "processes") == journal(tmp_path / "threads")
    assert there.detailed_results.usage == here.detailed_results.usage
    assert there.playbook == here.playbook
    assert len(there.playbook) > 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_dask_writes_the_journal_of_threads_though_a_worker_is_killed(workers: int, tmp_path: Path) -> None:
    """The engine makes the rollout of a dead worker again."""
    distributed = pytest.importorskip("distributed")
    mark = str(tmp_path / "killed")
    compiled(OfflineLM(), log_dir=tmp_path / "threads", student=Program())
    (tmp_path / "there").mkdir()
    cluster = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "dashboard_address": "127.0.0.1:0",
    }  # any port: two clusters may run
    with distributed.LocalCluster(**cluster) as local, distributed.Client(local) as scheduler:
        student = Program(lambda: die_once(mark))
        compiled(OfflineLM(), log_dir=tmp_path / "dask", student=student, executor=scheduler.get_executor())
        with pytest.raises(SettingsError, match="allowed-failures"):
            compiled(OfflineLM(), student=student, executor=scheduler.get_executor(), max_lm_calls=50)
    assert Path(mark).exists()
    assert journal(tmp_path / "dask") == journal(tmp_path / "threads")


@pytest.mark.slow
def test_a_pool_that_breaks_ends_the_run_with_its_program_and_the_folder_goes_on(tmp_path: Path) -> None:
    """Nothing that was learned before is lost."""
    compiled(OfflineLM(), log_dir=tmp_path / "whole", student=Program())
    mark = tmp_path / "killed"
    mark.touch()

    def last_step(record: Any, playbook: Any) -> None:
        if record.step == 2:
            mark.unlink()

    student = Program(lambda: die_once(str(mark)))
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as broken,
        pytest.raises(RunError, match="works no longer") as raised,
    ):
        compiled(OfflineLM(), log_dir=tmp_path / "cut", student=student, executor=broken, on_step=last_step)
    assert len(raised.value.program.playbook) > 0
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        compiled(OfflineLM(), log_dir=tmp_path / "cut", student=student, executor=executor)
    assert journal(tmp_path / "cut") == journal(tmp_path / "whole")


def test_a_worker_that_dies_costs_one_more_try(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The journal holds the rollout once; the log says how many were made again."""
    compiled(OfflineLM(), log_dir=tmp_path / "threads")
    with Sometimes(lambda number: number in (2, 7)) as executor:
        compiled(OfflineLM(), log_dir=tmp_path / "there", executor=executor)
    assert journal(tmp_path / "there") == journal(tmp_path / "threads")
    assert "Made again so far: 2" in caplog.text


def test_a_rollout_that_kills_every_worker_is_a_failure_after_two_tries(tmp_path: Path) -> None:
    """The run goes on; what is known of the rollout is on record."""
    with Sometimes(lambda number: number <= 2) as executor:
        program = compiled(OfflineLM(), executor=executor, num_threads=1, log_dir=tmp_path)
    failures = [failure for record in program.detailed_results.records for failure in record.failures]
    assert [failure.message for failure in failures if "workers died" in failure.message] == [
        "2 workers died of it: OSError: the worker was killed"
    ]


@pytest.mark.parametrize("name", ["lock", "nested"])
def test_what_cannot_be_sent_is_named_before_the_first_call(pool: Executor, name: str) -> None:
    """An open connection or a lock is told by its path in the program."""
    student, lm = Program(), OfflineLM()
    student.before = {"lock": threading.Lock(), "nested": Program(threading.Lock())}[name]
    path = "program.before.before" if name == "nested" else "program.before"
    with pytest.raises(SettingsError, match=rf"{path} \(lock\) cannot be sent"):
        compiled(lm, student=student, executor=pool)
    assert lm.calls == 0


def test_an_executor_that_is_shut_down_or_none_is_refused_before_the_first_call() -> None:
    """The message says what an executor is."""
    lm, executor = OfflineLM(), ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(SettingsError, match="executor= cannot run a task: RuntimeError"):
        compiled(lm, executor=executor)
    with pytest.raises(SettingsError, match=r"executor must be a concurrent\.futures\.Executor"):
        compiled(lm, executor="dask")
    assert lm.calls == 0


def test_workers_with_other_versions_are_refused_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has another DSPy would answer otherwise."""

    class Old(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result({**function(), "dspy": "3.3.0"})
            return future

    with pytest.raises(SettingsError, match=rf"have dspy 3\.3\.0,.*this process has dspy {dspy.__version__}"):
        compiled(OfflineLM(), executor=Old())


def test_keys_stay_here() -> None:
    """Neither an LM's key nor a header with one is in a task, wherever the LM stands."""
    lm = dspy.LM("openai/x", api_key="sk-hidden", extra_headers={"Authorization": "Bearer hidden"}, max_tokens=77)
    student = Program()
    student.set_lm(lm)
    work = remote.Work(student, lambda *_: lm, {}, {"lm": lm})
    packed = work.packed()
    assert b"hidden" not in packed
    rebuilt = remote._opened(packed).settings["lm"]
    assert (rebuilt.model, rebuilt.kwargs["max_tokens"]) == ("openai/x", 77)
    assert lm.kwargs["api_key"] == "sk-hidden"
    student.set_lm(Own("own/x"))
    assert b"hidden" not in remote.Work(student, None, {}, {}).packed()


@pytest.mark.parametrize("kind", [threading.Lock, Unopened])
def test_a_result_that_cannot_be_sent_back_is_a_failed_rollout(pool: Executor, kind: Any) -> None:
    """The run goes on, the record says why, and its calls are counted."""

    class Locked(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.Predict(Route)

        def forward(self, **inputs: Any) -> Any:
            return dspy.Prediction(**self.route(**inputs), thing=kind())

    program = compiled(OfflineLM(), student=Locked(), executor=pool)
    messages = {failure.message for record in program.detailed_results.records for failure in record.failures}
    assert any("cannot be sent from the worker" in message for message in messages)
    assert program.detailed_results.usage["task"].calls > 0


def test_a_program_that_a_worker_cannot_open_is_refused(pool: Executor) -> None:
    """It is no dead worker: nothing is tried again, and no role is asked."""
    lm, student = OfflineLM(), Program()
    student.before = Unopened()  # type: ignore[assignment]
    with pytest.raises(SettingsError, match="A worker of executor= cannot open the program: ValueError"):
        compiled(lm, student=student, executor=pool)
    assert lm.calls == 0


def test_dollars_and_seconds_hold_on_the_workers(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker refuses the call that the run could not pay for, or that comes too late; the limit is the user's."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with serve() as server:
        paid = client(server, "openai/gpt-4o-mini", max_tokens=100)
        stopped = compiled(paid, executor=pool, max_cost=6e-5, valset=[]).detailed_results.stopped
        assert (server.calls, stopped) == (0, "max_cost=6e-05 is reached")
        compiled(client(server), student=Program(partial(time.sleep, 0.6)), executor=pool, max_seconds=0.3)
        assert server.calls == 0


def cannot_close(example: dspy.Example) -> Any:
    """An environment that opens, and fails when it is closed."""

    @contextmanager
    def environment() -> Iterator[None]:
        yield
        raise OSError("the disk is gone")

    return environment()


@pytest.mark.slow
def test_warnings_of_workers_are_logged_once_and_usage_reaches_the_users_tracker(
    processes: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with threads: each warning, and every paid call."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with serve() as server, dspy.track_usage() as tracker:
        program = compiled(client(server), executor=processes, setup=cannot_close, valset=[])
        assert sum(map(len, tracker.usage_data.values())) == server.calls
    assert caplog.text.count("could not close") == program.detailed_results.rollouts


def test_a_stopped_run_leaves_no_rollout_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in the executor's queue is cancelled, and makes no call; what has begun ends."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with serve() as server, ThreadPoolExecutor(1) as executor, ThreadPoolExecutor(3) as callers:
        limits = Limits()
        there = remote.Remote(executor, limits, Meter(), 4)
        work = remote.Work(Program(partial(time.sleep, 1.5)), None, {}, {"lm": client(server)}).packed()
        waiting = [callers.submit(there.one, work, TRAIN[0], "0", 0.0) for _ in range(3)]
        time.sleep(0.5)
        limits.stop("interrupted by the user")
        assert all(isinstance(future.exception(), LimitReachedError) for future in waiting)
        executor.shutdown()
        assert server.calls == 1


@pytest.mark.parametrize("trial", range(TRIALS))
def test_limits_hold_over_all_workers_and_usage_is_the_servers_log(trial: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever limit, threads, tasks that die: never above the limit, and each call counted once.

    What a worker used that died with its result at hand, nobody knows: its part of the limit is gone.
    """
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    dice = random.Random(trial)
    limit, dollars = dice.randint(1, 60), dice.choice([None, None, 10 ** dice.uniform(-4, -2)])
    limits = {"max_lm_calls": limit} if dollars is None else {"max_cost": dollars}
    deaths, after = dice.choice([0.0, 0.0, 0.1]), dice.random() < 0.5
    with serve() as server, Sometimes(lambda _: dice.random() < deaths, after) as executor:
        asked = client(server, "openai/gpt-4o-mini", max_tokens=100)
        program = compiled(asked, executor=executor, num_threads=dice.choice([1, 2, 4, 8]), **limits)
        used, log = program.detailed_results.usage, billed(server)
        calls, price = sum(usage.calls for usage in log.values()), price_of(asked.model)
        assert price is not None
        spent = sum(price.of(u.prompt_tokens, u.cached_tokens, u.completion_tokens) for u in log.values())
        assert calls <= limit or dollars is not None
        assert spent <= (dollars or math.inf)
        if deaths and after:
            assert all(usage.calls <= log[role].calls for role, usage in used.items() if usage.calls)
        else:
            assert {role: u.calls for role, u in used.items() if u.calls} == {r: u.calls for r, u in log.items()}
        if limit > 30 and not deaths and dollars is None:
            assert calls >= 0.9 * min(limit, 40)
        print(f"{limits}, {executor.count} tasks, deaths {deaths} {after}: {calls} calls, ${spent:.6f}")


def test_rollouts_are_counted_exactly(pool: Executor) -> None:
    """`max_metric_calls` holds to the rollout."""
    lm = OfflineLM()
    with dspy.context(lm=lm):
        program = ACE(desk_metric, max_metric_calls=7, num_threads=4, executor=pool).compile(
            dspy.ChainOfThought(Route), TRAIN
        )
    assert program.detailed_results.rollouts == 7
