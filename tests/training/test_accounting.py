"""What a run says it has used is what the server received; nothing is run or asked twice."""

from __future__ import annotations

import math
import os
import random
import signal
import statistics
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import Curator, Playbook, Usage
from dspy_ace.lm import calls, price_of
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.backend import Backend, Served
from dspy_ace.testing.server import OfflineServer, serve
from runs import TRAIN, VAL, Nursery, billed, booked, client, compiled, faulty
from tasks import RULES, Route, desk_metric

pytestmark = [
    pytest.mark.compat,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]
HOUSE_RULES = Playbook.from_text(
    "## S\n"
    + "\n".join(
        f"[s-{n:05d}] Messages about {' or '.join(words)} go to {desk}."
        for n, (desk, words) in enumerate(RULES.items(), 1)
    )
)


@pytest.mark.parametrize("threads", [1, 4, 16])
@pytest.mark.parametrize("cache", [False, True])
def test_usage_by_role_is_the_servers_own_log(threads: int, cache: bool) -> None:
    """Calls and tokens, those from the provider's prompt cache too, are equal to the last one, role by role."""
    with serve(prefix_cache=True, slips=0.2, unparsable=0.1, seed=2) as server:
        lm = client(server, f"openai/offline-{uuid.uuid4().hex}", cache=cache)
        program = compiled(lm, num_threads=threads, epochs=2, max_reflection_rounds=2)
        bill, book = billed(server), booked(program)
    paid = {role: _without_cached_calls(used) for role, used in book.items()}
    assert paid == bill
    assert set(book) == {"task", "reflector", "curator"}
    if not cache:
        assert book == bill


@pytest.mark.parametrize("threads", [1, 16])
def test_answers_from_dspys_cache_cost_nothing(threads: int) -> None:
    """The same run again makes the same calls, pays for none of them, and learns the same."""
    with serve(prefix_cache=True) as server:
        lm = client(server, f"openai/offline-{uuid.uuid4().hex}", cache=True)
        first, bill = compiled(lm, num_threads=threads), billed(server)
        again = compiled(lm, num_threads=threads)
        assert billed(server) == bill
    assert again.playbook == first.playbook
    for role, used in booked(again).items():
        assert used == Usage(calls=used.calls, cached_calls=used.calls)
        assert used.calls == booked(first)[role].calls


def test_usage_with_faults_and_retries_is_the_servers_own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that fail are calls; those that were made again are counted as retries as well."""
    monkeypatch.setattr(calls, "LONGEST_WAIT", 0.0)
    with faulty({"rate_limit": 0.3, "truncated": 0.1, "empty": 0.1}, seed=1) as server:
        program = compiled(client(server), num_threads=8)
        bill, book = billed(server), booked(program)
    assert book == bill
    failed = sum(used.failed_calls for used in book.values())
    made_again = sum(used.retries for used in program.detailed_results.usage.values())
    assert failed >= made_again > 0


def test_a_judge_in_the_metric_has_a_row_of_its_own() -> None:
    """LM calls of a metric are booked as `metric`, from every thread."""
    with serve() as server, serve() as bench:
        judge = client(bench, "openai/judge")

        def metric(example: Any, prediction: Any) -> Any:
            with dspy.context(lm=judge):
                dspy.Predict("desk -> verdict")(desk=prediction.desk)
            return desk_metric(example, prediction)

        book = booked(compiled(client(server), metric=metric, num_threads=8))
        assert book.pop("metric") == billed(bench)["task"]
        assert book == billed(server)


def test_roles_with_lms_of_their_own_are_billed_apart() -> None:
    """Student, reflector and curator, each at a provider of its own."""
    with serve() as task, serve() as coach, serve() as editor:
        program = compiled(
            client(task),
            reflection_lm=client(coach),
            curate=Curator(client(editor, "openai/editor")),
            num_threads=8,
        )
        logs = {"task": billed(task), "reflector": billed(coach), "curator": billed(editor)}
    assert booked(program) == {role: log[role] for role, log in logs.items()}
    assert all(list(log) == [role] for role, log in logs.items())


@pytest.mark.slow
def test_a_slow_rollout_is_run_once_and_billed_once() -> None:
    """An example that takes far longer than all the others together is not handed out again; 4 s stand for minutes."""
    runs: Counter[str] = Counter()
    learned: list[Counter[str]] = []  # after each step; failures are rolled out again at the end
    lock = threading.Lock()

    class Slow(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.Predict(Route)

        def forward(self, message: str) -> Any:
            with lock:
                runs[message] += 1
                slow = len(runs) == 3
            time.sleep(4.0 if slow and runs[message] == 1 else 0.0)
            return self.route(message=message)

    with serve() as server:
        program = compiled(
            client(server),
            Slow(),
            trainset=TRAIN[:8],
            valset=None,
            batch_size=8,
            max_reflection_rounds=0,
            on_step=lambda record, playbook: learned.append(Counter(runs)),
        )
        assert booked(program) == billed(server)
    assert learned[0] == Counter(example.message for example in TRAIN[:8])
    assert program.detailed_results.records[0].rollouts == 8
    assert program.detailed_results.usage["task"].calls == program.detailed_results.rollouts


@pytest.mark.parametrize("valset", [None, VAL])
@pytest.mark.parametrize("reflect_on", ["all", "failures"])
def test_a_perfect_student_costs_one_epoch_at_most(valset: Any, reflect_on: str) -> None:
    """The trainset is seen once, and where nothing is learned nothing is curated or validated."""
    with serve() as server:
        results = compiled(
            client(server), playbook=HOUSE_RULES, valset=valset, reflect_on=reflect_on, epochs=5
        ).detailed_results
        roles = Counter(record.role for record in server.log)
    assert all(score == 1.0 for record in results.records for score in record.scores)
    validations = [record for record in results.records if record.validation is not None]
    learned = [record for record in results.records if record.learned]
    assert max(record.epoch for record in results.records) == 1
    assert len(validations) == (0 if valset is None or not learned else 1)
    assert roles["task"] == results.rollouts <= len(TRAIN) + 2 * len(valset or ())
    assert roles["reflector"] <= (len(TRAIN) if reflect_on == "all" else 0)
    if not any(reflection["insights"] for record in results.records for reflection in record.reflections):
        assert roles["curator"] == 0
        assert roles["task"] == len(TRAIN)


def test_a_run_that_is_continued_pays_only_for_what_is_left(tmp_path: Path) -> None:
    """The journal's rollouts and calls are in the account of the whole run, and are not made again."""
    whole = OfflineLM()
    compiled(whole, log_dir=tmp_path)
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    rest = OfflineLM()
    results = compiled(rest, log_dir=tmp_path).detailed_results
    assert rest.calls < whole.calls
    assert results.usage["task"].calls == results.rollouts
    assert sum(used.calls for used in results.usage.values()) == whole.calls


def _without_cached_calls(used: Usage) -> Usage:
    return Usage(
        used.calls - used.cached_calls, 0, used.failed_calls, used.prompt_tokens, used.cached_tokens,
        used.completion_tokens,
    )  # fmt: skip


class Clocked(Backend):
    """The offline model, which notes when it is asked."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend.knobs, backend.answerers, backend.log, backend.cache)
        self.asked: list[float] = []

    def serve(self, *args: Any, **kwargs: Any) -> Served:
        self.asked.append(time.monotonic())
        return super().serve(*args, **kwargs)


PRICED = "openai/gpt-4o-mini"
TRIALS = int(os.environ.get("DSPY_ACE_TRIALS", "8"))
LIMITS: dict[str, Callable[[random.Random], float]] = {
    "max_lm_calls": lambda dice: dice.randint(10, 120),
    "max_metric_calls": lambda dice: dice.randint(5, 60),
    "max_cost": lambda dice: dice.uniform(0.01, 0.03),
    "max_seconds": lambda dice: dice.uniform(0.5, 2.0),
}


def spent(name: str, server: OfflineServer, begun: list[float]) -> float:
    """What all processes of a run used of a limit, by the server's log; `begun`: when each process started."""
    if name == "max_lm_calls":
        return server.calls
    if name == "max_metric_calls":  # without faults, and with a program of one call
        return billed(server)["task"].calls
    if name == "max_cost":
        price = price_of(PRICED)
        assert price is not None
        paid = [r for r in server.log if r.fault is None]
        return sum(price.of(r.prompt_tokens, r.cached_tokens, r.completion_tokens) for r in paid)
    assert isinstance(server.backend, Clocked)
    spans = zip(begun, [*begun[1:], math.inf], strict=True)
    asked = [[at for at in server.backend.asked if start <= at < end] for start, end in spans]
    return sum(times[-1] - times[0] for times in asked if times)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
def test_no_limit_is_exceeded_by_any_run(tmp_path: Path) -> None:
    """Limits, threads, faults and `kill -9` at random: by the server's log never above, and nearly all of it used."""
    used: list[float] = []
    with serve() as nobody, Nursery(nobody) as nursery:
        for trial in range(TRIALS):
            dice, name = random.Random(trial), list(LIMITS)[trial % len(LIMITS)]
            limit, folder, begun = LIMITS[name](dice), tmp_path / str(trial), list[float]()
            faults = {} if name == "max_metric_calls" else {"rate_limit": 0.15, "server_error": 0.05}
            settings = {"epochs": 20, "max_reflection_rounds": 2, "log_dir": str(folder), name: limit}
            settings |= {"client": {"model": PRICED, "max_tokens": 200}, "num_threads": dice.randint(1, 8)}
            with serve(faults=faults, seed=trial, slips=0.3, latency=0.01) as server:
                server.backend = Clocked(server.backend)
                for kill in [*(dice.uniform(0.1, 1.0) for _ in range(dice.randint(0, 2))), None]:
                    begun.append(time.monotonic())
                    child = nursery.start(url=server.url, **settings)
                    if kill is not None:
                        time.sleep(kill)
                        os.kill(child, signal.SIGKILL)
                    ended = nursery.wait()
                used_up = spent(name, server, begun)
            print(f"{trial} {name}={limit:.4g}, {len(begun)} processes: {used_up:.4g} used, {ended.get('stopped')}")
            # a call that starts in time reaches the server a little later
            assert used_up <= limit + (0.5 if name == "max_seconds" else 0.0)
            if name in ended.get("stopped", ""):
                used.append(used_up / limit)
    assert len(used) >= TRIALS / 2
    assert statistics.median(used) >= 0.9
