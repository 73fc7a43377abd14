"""A run that cannot work ends after a few calls and says why; one whose provider stumbles ends as it would have."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import dspy
import pytest
import scipy.stats

from dspy_ace import Curator, Reflector
from dspy_ace.errors import MetricError, RunError, SettingsError
from dspy_ace.lm import calls
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import serve
from runs import TRAIN, billed, booked, client, compiled, faulty, unasked
from tasks import Route, accuracy, messages

pytestmark = [
    pytest.mark.compat,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]
KINDS = ("rate_limit", "server_error", "timeout", "truncated", "unparsable", "empty")
TEST = messages(80, 3)
NOWHERE = "http://127.0.0.1:9/v1"  # nobody listens on the discard port


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be waited for before a retry is not; DSPy's complaints of truncated replies are not shown."""
    monkeypatch.setattr(calls, "LONGEST_WAIT", 0.0)
    logging.getLogger("dspy.clients").setLevel(logging.ERROR)
    logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)


@pytest.mark.parametrize(("fault", "words"), [("rate_limit", "rate limit"), ("auth", "API key"), (None, "onnect")])
def test_a_dead_task_lm_stops_after_three_rollouts(fault: str | None, words: str) -> None:
    """Limits that never lift, a wrong key, an address where nobody is: three rollouts, and the cause in the error."""
    with faulty({fault: 1.0} if fault else {}) as server, serve() as coach:
        lm = client(server if fault else NOWHERE)
        with pytest.raises(RunError, match=words) as caught:
            compiled(lm, reflection_lm=client(coach))
        retried = 1 if fault == "auth" else 1 + lm.num_retries
        assert server.calls == (3 * retried if fault else 0)
        assert coach.calls == 0
    assert caught.value.program.detailed_results.rollouts == 3


@pytest.mark.parametrize(
    ("chances", "words", "requests"),
    [
        ({"rate_limit": 1.0}, "rate limit", 12),
        ({"auth": 1.0}, "API key", 3),
        ({"unparsable": 1.0}, "talk this over", 6),
        ({"empty": 1.0}, "could not be read", 6),
        ({"truncated": 1.0}, "could not be read", 6),
    ],
)
def test_a_dead_reflection_lm_stops_after_one_batch(chances: dict[str, float], words: str, requests: int) -> None:
    """One batch of rollouts, three reflections (asked for again if unreadable), and the cause in the error."""
    with serve() as server, faulty(chances) as coach:
        with pytest.raises(RunError, match=f"(?s)Reflector.*{words}"):
            compiled(client(server), reflection_lm=client(coach), valset=None, batch_size=8, num_threads=8)
        assert server.calls == 8
        assert coach.calls == requests


def test_an_unreachable_reflection_lm_stops_after_one_batch() -> None:
    """The error names the role and the connection."""
    with serve() as server:
        with pytest.raises(RunError, match=r"(?s)Reflector.*onnect"):
            compiled(client(server), reflection_lm=client(NOWHERE), valset=None, batch_size=8)
        assert server.calls == 8


def test_a_dead_curator_stops_after_two_batches() -> None:
    """The Curator is asked for two batches, twice each; the error has its last reply."""
    with serve() as server, faulty({"unparsable": 1.0}) as editor:
        with pytest.raises(RunError, match=r"(?s)Curator.*talk this over"):
            compiled(client(server), curate=Curator(client(editor)), valset=None, batch_size=4)
        assert billed(server)["task"].calls <= 16  # two batches, and a retry for each failure
        assert editor.calls == 4


@pytest.mark.parametrize(
    "metric",
    [
        lambda: 1.0,
        lambda example: 1.0,
        lambda example, prediction, trace, more: 1.0,
        lambda example, prediction, trace, name, own, more: 1.0,
    ],
)
def test_a_metric_of_another_arity_costs_nothing(metric: Callable[..., float]) -> None:
    """It is refused before the first call, in words that say what it must take."""
    with serve() as server:
        with pytest.raises(SettingsError, match="metric must take"):
            compiled(client(server), metric=metric)
        assert server.calls == 0


def _raises(example: Any, prediction: Any) -> float:
    raise KeyError("reference")


@pytest.mark.parametrize(("metric", "words"), [(_raises, "reference"), (lambda example, prediction: None, "None")])
@pytest.mark.parametrize("size", [1, 2, 16])
def test_a_metric_that_never_scores_costs_three_calls_at_most(metric: Any, words: str, size: int) -> None:
    """One that raises, or returns no number, on every example stops the run, however few examples there are."""
    with serve() as server:
        with pytest.raises(MetricError, match=words):
            compiled(client(server), metric=metric, trainset=TRAIN[:size], valset=None)
        assert server.calls <= 3


@pytest.mark.parametrize("position", [0, 5])
def test_a_call_that_fails_for_one_example_costs_that_example_alone(position: int) -> None:
    """One case at a time: an input that the provider refuses is recorded, and the run goes on."""
    order = [
        i for record in compiled(OfflineLM(), valset=None, batch_size=1).detailed_results.records for i in record.batch
    ]
    refused = list(TRAIN)
    refused[order[position]] = dspy.Example(message="word " * 3000, desk="Maple").with_inputs("message")
    with serve(context_window=3000) as server:
        results = compiled(client(server), trainset=refused, valset=None, batch_size=1).detailed_results
        assert booked_calls(results) == server.calls
    failures = [failure for record in results.records for failure in record.failures]
    assert [(failure.rollout.example, failure.kind) for failure in failures] == [(str(order[position]), "provider")]
    assert sum(len(record.scores) for record in results.records) == 16


MIXED = dict.fromkeys(KINDS, 0.3 / len(KINDS))


@pytest.mark.slow
@pytest.mark.parametrize("chances", [*({kind: 0.3} for kind in KINDS), MIXED], ids=[*KINDS, "mixed"])
def test_a_third_of_all_calls_may_fail(chances: dict[str, float]) -> None:
    """Each kind of fault alone and all of them mixed, five seeds: the run goes to its end and its counts are exact."""
    for seed in range(5):
        with faulty(chances, seed) as server:
            program = compiled(client(server), seed=seed)
            hit = sum(server.backend.spoiled.values()) + sum(record.fault is not None for record in server.log)
            assert hit >= 0.15 * server.calls
            assert booked(program) == billed(server)
        assert program.detailed_results.stopped in ("the epoch is done", "a perfect validation score")
        assert len(program.detailed_results.records) > 1


@pytest.mark.slow
def test_what_is_learned_under_faults_is_worth_as_much() -> None:
    """Ten runs with faults of all kinds score, on the mean, no more than three points below ten without.

    Single runs differ by nine points (standard deviation) either way, so five were too few.
    """

    def score(chances: dict[str, float], seed: int) -> float:
        with faulty(chances, seed) as server:
            data = {"trainset": messages(64, 1), "valset": messages(16, 2)}
            program = compiled(client(server), seed=seed, epochs=2, batch_size=8, **data)
        with dspy.context(lm=OfflineLM()):
            return accuracy(program, TEST)

    without, under = ([score(chances, seed) for seed in range(10)] for chances in ({}, MIXED))
    assert sum(under) / 10 >= sum(without) / 10 - 0.03


SEEDS = range(min(5, int(os.environ.get("DSPY_ACE_TRIALS", "8")) // 4))


@pytest.mark.slow
def test_a_provider_that_refuses_calls_changes_no_verdict() -> None:
    """30 % of the calls refused: held-out and verdict within the intervals of the runs without; counts are exact."""
    data: dict[str, Any] = {"trainset": messages(40, 1), "valset": messages(40, 2), "epochs": 2, "batch_size": 8}
    scores: dict[float, list[float]] = {0.0: [], 0.3: []}
    for seed in SEEDS:
        verdicts = []
        for chance, found in scores.items():
            with faulty({"rate_limit": chance}, seed) as server:
                program = compiled(client(server), seed=seed, **data)
                assert booked(program) == billed(server)
                assert sum(record.fault is not None for record in server.log) >= 0.2 * server.calls * (chance > 0)
            verdicts.append(program.detailed_results.verdict)
            with dspy.context(lm=OfflineLM()):
                found.append(accuracy(program, TEST))
        without, under = verdicts
        print(f"seed {seed}: held out {scores[0.0][-1]:.3f}, {scores[0.3][-1]:.3f}; {without}; {under}")
        assert without.low <= under.high
        assert under.low <= without.high
    rows = len(SEEDS) * len(TEST)
    right = round(sum(scores[0.0]) * len(TEST))
    assert sum(scores[0.3]) / len(SEEDS) >= scipy.stats.binomtest(right, rows).proportion_ci(method="wilson").low


class Watched:
    """A callable that keeps what it raised."""

    def __init__(self, role: Any) -> None:
        self.role = role
        self.raised: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any, **inputs: Any) -> Any:
        try:
            return self.role(*arguments, **inputs)
        except Exception as error:
            with self._lock:
                self.raised[f"{type(error).__name__}: {str(error).strip()}"] += 1
            raise


class Desk(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """The routing program, with a look at what its calls raise."""

    def __init__(self, raised: Watched) -> None:
        super().__init__()
        self.route = dspy.ChainOfThought(Route)
        self.watch = raised

    def forward(self, message: str) -> Any:
        try:
            return self.route(message=message)
        except Exception as error:
            with self.watch._lock:
                self.watch.raised[f"{type(error).__name__}: {str(error).strip()}"] += 1
            raise


@pytest.mark.parametrize("seed", [1, 2])
def test_every_fault_that_no_retry_cured_is_in_the_journal(seed: int) -> None:
    """Rollouts of batches, retries and validations, reflections and curations: each with its reason, none twice."""
    task, reflect, curate = Watched(None), Watched(Reflector()), Watched(Curator())
    with faulty(MIXED, seed) as server:
        program = compiled(
            client(server, num_retries=0), Desk(task), reflect=reflect, curate=curate, epochs=2, batch_size=8
        )
    records = program.detailed_results.records
    failures = Counter(failure.message for record in records for failure in record.failures)
    assert failures == task.raised
    assert any(
        failure.rollout.retry or failure.rollout.of == "val" for record in records for failure in record.failures
    )
    reasons = [item["error"] for record in records for item in record.reflections if "error" in item]
    reasons += [record.curation for record in records if record.curation]
    raised = reflect.raised + curate.raised
    assert sum(raised.values()) == len(reasons)
    assert all(sum(message in reason for reason in reasons) == times for message, times in raised.items())
    assert task.raised
    assert reflect.raised


def test_single_role_calls_that_fail_cost_their_example_alone() -> None:
    """A reflection lost to an unreadable reply is named in the step; the others are there."""
    with serve() as server, faulty({"unparsable": 0.5}, seed=4) as coach:
        lm = client(coach)
        roles: dict[str, Any] = {"reflection_lm": lm, "curate": Curator(client(server)), "num_threads": 1}
        results = compiled(client(server), valset=None, **roles).detailed_results
    asked = [reflection for record in results.records for reflection in record.reflections]
    lost = [reflection for reflection in asked if "error" in reflection]
    assert 0 < len(lost) < len(asked)
    assert sum(len(reflection["examples"]) for reflection in asked) == 16 - unasked(results.records)


def booked_calls(results: Any) -> int:
    """LM calls of all roles."""
    return sum(used.calls for used in results.usage.values())


def warnings_of(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    """The warnings that hold these words."""
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and words in r.getMessage()]


def test_a_role_that_mostly_fails_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """The first error at once, with its text; at the end how many there were, grouped whatever number they hold."""
    asked = 0

    def reflect(playbook: Any, trajectory: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked % 5:
            raise ValueError(f"example {trajectory.source} is odd")
        return Reflection((f"Lesson {asked}.",))

    settings: dict[str, Any] = {"reflect": reflect, "max_reflection_rounds": 0, "valset": None, "num_threads": 1}
    with pytest.raises(RunError, match="never worked"):
        compiled(OfflineLM(slips=1.0), **settings)
    asked, settings["batch_size"] = 4, 2
    results = compiled(OfflineLM(slips=1.0), **settings).detailed_results
    lost = sum("error" in item for record in results.records for item in record.reflections)
    first = warnings_of(caplog, "a failed reflection in step")
    assert len(first) == 1
    assert "is odd" in first[0]
    assert len(warnings_of(caplog, f"{lost} of {asked - 4} reflections failed")) == 1
    assert f"failed reflection: {lost}; most often ({lost} times): ValueError: example" in str(results)


def test_a_flaky_metric_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Its first error is said; the others are counted."""
    asked = 0

    def metric(example: Any, prediction: Any) -> bool:
        nonlocal asked
        asked += 1
        if asked % 3 == 0:
            raise TimeoutError(f"attempt {asked} took too long")
        return bool(asked % 2)

    results = compiled(OfflineLM(), metric=metric, valset=None, num_threads=1).detailed_results
    assert len(warnings_of(caplog, "a failed rollout: metric in step 1: TimeoutError: attempt 3 took")) == 1
    assert len(warnings_of(caplog, "rollout: metric")) == 1
    assert "failed rollout: metric: " in str(results)


def test_failures_of_the_program_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """What a program does wrong is what is learned from."""

    class Breaks(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.ChainOfThought(Route)

        def forward(self, message: str) -> Any:
            made = self.route(message=message)
            if len(message) % 3 == 0:
                raise KeyError(message)
            return made

    compiled(OfflineLM(), Breaks(), valset=None)
    assert not warnings_of(caplog, "a failed rollout")
