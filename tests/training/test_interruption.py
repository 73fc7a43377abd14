"""Nothing learned is lost: runs cut at every byte, killed, interrupted, or ended by a user's own code."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import Playbook
from dspy_ace.errors import MetricError
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import serve
from dspy_ace.training.state import FailedRollout, Rollout
from paths import ROOT
from runs import PROGRAMS, Nursery, client, compiled, unasked
from tasks import Route, desk_metric, messages

pytestmark = [
    pytest.mark.compat,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]
FILES = ("journal.jsonl", "playbook.json", "program.json")
TRIALS = int(os.environ.get("DSPY_ACE_TRIALS", "12"))  # runs that are killed
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")


class OwnError(Exception):
    """What a user's own code raises."""


def files(folder: Path) -> dict[str, bytes]:
    """What a run leaves for its user, by name."""
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.slow
def test_a_journal_cut_anywhere_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Whichever byte was the last to reach the disk, the run ends with the files of the run that was never cut.

    Tried around the end of each line and at every 17th byte; that a line torn at any byte is cut, the tests of the
    journal show.
    """
    settings: dict[str, Any] = {"trainset": messages(2, 1), "valset": messages(1, 2), "batch_size": 1}
    settings |= {
        "max_reflection_rounds": 0,
        "num_threads": 1,
        "student": dspy.Predict(Route),
        "log_dir": tmp_path / "whole",
    }
    whole = compiled(OfflineLM(), **settings)
    expected = files(tmp_path / "whole")
    journal = expected["journal.jsonl"]
    assert whole.detailed_results.records[0].learned
    ends = [0, *(at + 1 for at, byte in enumerate(journal) if byte == ord("\n"))]
    cuts = {end + beside for end in ends for beside in (-2, -1, 0, 1, 2)} | set(range(0, len(journal), 17))
    for length in sorted(cuts & set(range(len(journal) + 1))):
        cut = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", cut, ignore=shutil.ignore_patterns("p*.json", "journal.jsonl"))
        (cut / "journal.jsonl").write_bytes(journal[:length])
        program = compiled(OfflineLM(), **{**settings, "log_dir": cut})
        assert files(cut) == expected, f"cut after byte {length}"
        assert program.playbook == whole.playbook
        shutil.rmtree(cut)


def test_files_that_a_crash_left_behind_the_journal_are_brought_up_to_it(tmp_path: Path) -> None:
    """Killed between the journal's line and the best program: continuing a finished run still writes the latter."""
    compiled(OfflineLM(), log_dir=tmp_path)
    expected = files(tmp_path)
    (tmp_path / "playbook.json").write_bytes(b"{}")
    (tmp_path / "program.json").unlink()
    lm = OfflineLM()
    compiled(lm, log_dir=tmp_path)
    assert lm.calls == 0
    assert files(tmp_path) == expected


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("student", list(PROGRAMS))
def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path, student: str) -> None:
    """`kill -9` at a random moment, again and again: the files of the run that was never killed, and few calls twice.

    A single predictor, a pipeline, and an async program whose rollouts fail or exit; `DSPY_ACE_TRIALS` kills together.
    """
    records: list[Any] = []
    settings: dict[str, Any] = {"student": student, "num_threads": 8, "epochs": 2}
    with serve() as server:
        began = time.monotonic()
        compiled(
            client(server), log_dir=tmp_path / "whole", on_step=lambda record, _: records.append(record), **settings
        )
        duration = time.monotonic() - began
    calls = [sum(usage["calls"] for usage in record.usage.values()) for record in records]
    expected, rng, kills = files(tmp_path / "whole"), random.Random(f"kill/{student}"), 0
    with serve() as server, Nursery(server) as nursery:
        for number in range(-(-TRIALS // len(PROGRAMS))):
            folder, before, killed = tmp_path / str(number), server.calls, 0
            while killed < 3:  # also while it is continued
                child = nursery.start(log_dir=str(folder), **settings)
                time.sleep(rng.uniform(0, duration))
                os.kill(child, signal.SIGKILL)
                if nursery.wait()["status"] != -signal.SIGKILL:  # it had ended before
                    break
                killed += 1
            nursery.start(log_dir=str(folder), **settings)
            assert nursery.wait()["status"] == 0
            assert files(folder) == expected
            assert 0 <= server.calls - before - sum(calls) <= killed * max(calls)
            kills += killed
            shutil.rmtree(folder)
    print(f"{kills} kills of {student}")
    assert kills > TRIALS / len(PROGRAMS) / 2


def when_step_is_done(folder: Path, step: int) -> None:
    """Wait until the journal holds the record of `step`."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        journal = folder / "journal.jsonl"
        if journal.exists() and journal.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not done in time")


@pytest.mark.slow
@needs_fork
def test_ctrl_c_gives_the_best_program_so_far_and_a_second_one_ends_it(tmp_path: Path) -> None:
    """SIGINT: a warning and what was learned so far; two of them: KeyboardInterrupt. Both leave it on disk."""
    with serve(latency=0.05) as server, Nursery(server) as nursery:
        child = nursery.start(log_dir=str(tmp_path / "once"))
        when_step_is_done(tmp_path / "once", 2)
        os.kill(child, signal.SIGINT)
        once = nursery.wait()
        child = nursery.start(log_dir=str(tmp_path / "twice"))
        when_step_is_done(tmp_path / "twice", 2)
        server.backend = server.backend.with_knobs(latency=2.0)
        time.sleep(0.2)  # whatever is under way now takes two seconds
        os.kill(child, signal.SIGINT)
        time.sleep(0.3)
        os.kill(child, signal.SIGINT)
        twice = nursery.wait()
    assert once["stopped"] == "interrupted by the user"
    assert once["steps"][:2] == [1, 2]
    assert any(
        "best program so far" in line and f"in '{tmp_path / 'once'}'; to go on" in line for line in once["heard"]
    )
    assert once["playbook"] == Playbook.load(tmp_path / "once" / "playbook.json").to_json()
    assert once["playbook"]["bullets"]
    assert twice["raised"] == "KeyboardInterrupt"
    assert files(tmp_path / "once") == files(tmp_path / "twice")


@pytest.mark.slow
@needs_fork
def test_ctrl_c_at_any_moment_is_ctrl_c(tmp_path: Path) -> None:
    """Wherever in the run's own or others' code it strikes, the run ends as interrupted, with what is on disk."""
    rng, interrupted = random.Random("ctrl-c"), 0
    with serve() as server, Nursery(server) as nursery:
        nursery.start(log_dir=str(tmp_path / "whole"), num_threads=2)
        when_step_is_done(tmp_path / "whole", 0)
        began = time.monotonic()
        nursery.wait()
        lasts = time.monotonic() - began
        for number in range(20):
            folder = tmp_path / str(number)
            child = nursery.start(log_dir=str(folder), num_threads=1 + number % 2)
            when_step_is_done(folder, 0)
            time.sleep(rng.uniform(0, 0.7 * lasts))
            os.kill(child, signal.SIGINT)
            ended = nursery.wait()
            assert ended["status"] == 0
            if ended.get("stopped") == "interrupted by the user":
                interrupted += 1
                assert ended["playbook"] == Playbook.load(folder / "playbook.json").to_json()
                assert (folder / "journal.jsonl").read_bytes().count(b"\n") == len(ended["steps"])
                nursery.start(log_dir=str(folder))
                assert nursery.wait()["status"] == 0
            else:
                assert ended.get("raised", "KeyboardInterrupt") == "KeyboardInterrupt"
            assert files(folder) == files(tmp_path / "whole")
    assert interrupted >= 10


@pytest.mark.parametrize("place", ["curate", "refine"])
def test_ctrl_c_that_others_take_for_an_error_is_not_lost(place: str) -> None:
    """Code that turns KeyboardInterrupt into an error of its own, as pydantic does, ends the run all the same."""

    def swallow(*arguments: Any) -> Any:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise OwnError("building a model") from None

    settings: dict[str, Any] = {place: swallow, "valset": None, "num_threads": 1}
    results = compiled(OfflineLM(), **settings).detailed_results
    assert results.stopped == "interrupted by the user"
    assert len(results.records) <= 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@needs_fork
def test_sigterm_leaves_what_was_learned_on_disk(tmp_path: Path) -> None:
    """A terminated run has its steps and its best playbook in the folder, and continues to the same end."""
    compiled(OfflineLM("openai/offline"), log_dir=tmp_path / "whole")
    with serve(latency=0.05) as server, Nursery(server) as nursery:
        child = nursery.start(log_dir=str(tmp_path / "cut"))
        when_step_is_done(tmp_path / "cut", 2)
        os.kill(child, signal.SIGTERM)
        assert nursery.wait()["status"] == -signal.SIGTERM
    assert len(Playbook.load(tmp_path / "cut" / "playbook.json")) > 0
    compiled(OfflineLM("openai/offline"), log_dir=tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.parametrize("error", [OwnError, SystemExit])
def test_an_error_in_on_step_passes_and_loses_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    """What `on_step` raises is raised; the step it was told of is on disk, and the run continues to the same end."""

    def stumble(record: Any, playbook: Playbook) -> None:
        if record.step == 2:
            raise error

    compiled(OfflineLM(), log_dir=tmp_path / "whole")
    with pytest.raises(error):
        compiled(OfflineLM(), log_dir=tmp_path / "cut", on_step=stumble)
    assert (tmp_path / "cut" / "journal.jsonl").read_bytes().count(b"\n") == 2
    assert len(Playbook.load(tmp_path / "cut" / "playbook.json")) > 0
    compiled(OfflineLM(), log_dir=tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def _after(count: int, error: BaseException) -> Callable[..., Any]:
    """The metric of the task, until it has scored so often."""
    scored = 0

    def metric(example: Any, prediction: Any) -> Any:
        nonlocal scored
        scored += 1
        if scored > count:
            raise error
        return desk_metric(example, prediction)

    return metric


@pytest.mark.parametrize("error", [SystemExit(2), MemoryError(), OwnError()])
def test_a_metric_that_ends_in_the_middle_loses_nothing(tmp_path: Path, error: BaseException) -> None:
    """Whatever a metric raises after two steps, the run ends, and these two steps are on disk and in the error."""
    with pytest.raises(MetricError) as caught:
        compiled(OfflineLM(), metric=_after(4 + 4 + 1, error), log_dir=tmp_path, max_reflection_rounds=0)
    learned = Playbook.load(tmp_path / "playbook.json")
    assert len(learned) > 0
    assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") >= 2
    assert caught.value.program.playbook.render() == learned.render()


@pytest.mark.parametrize("position", [0, 7])
def test_a_metric_that_raises_for_one_example_costs_that_example_alone(position: int) -> None:
    """The example counts as a failure, with its reason, wherever it stands; all others are scored and learned from."""
    order = [i for record in compiled(OfflineLM(), valset=None).detailed_results.records for i in record.batch]
    bad = order[position]
    broken = messages(16, 1)[bad].message

    def metric(example: Any, prediction: Any) -> Any:
        if example.message == broken:
            raise OwnError("no reference for this one")
        return desk_metric(example, prediction)

    copies = sum(example.message == broken for example in messages(16, 1))
    results = compiled(OfflineLM(), metric=metric, valset=None).detailed_results
    failures = [failure for record in results.records for failure in record.failures]
    assert len(failures) == copies
    assert FailedRollout(Rollout(str(bad)), "metric", "OwnError: no reference for this one") in failures
    assert sum(len(record.scores) for record in results.records) == 16
    asked = [item for record in results.records for item in record.reflections]
    assert sum(len(item["examples"]) for item in asked) == 16 - copies - unasked(results.records)


WAITING = """
import os, sys, threading, dspy
from dspy_ace import ACE
from scripted import rate_limited, scripted

class Waits(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("message -> desk")

    def forward(self, message):
        os.write(1, b"begun\\n")  # in one piece: threads write at the same time
        if sys.argv[1] == "hangs":
            threading.Event().wait()
        return self.ask(message=message)

lm = scripted(rate_limited(retry_after=86_400.0))
lm.num_retries = 3
dspy.configure(lm=lm)
trainset = [dspy.Example(message=str(n), desk="x").with_inputs("message") for n in range(4)]
program = ACE(lambda example, prediction: 0.0, num_threads=2).compile(Waits(), trainset)
print(program.detailed_results.stopped, flush=True)
"""


@pytest.mark.skipif(not hasattr(dspy, "lm15"), reason="before DSPy 3.4 a custom LM has no retries")
@pytest.mark.parametrize(("way", "presses"), [("hangs", 2), ("waits a day for a retry", 1)])
def test_ctrl_c_ends_every_wait(way: str, presses: int) -> None:
    """A retry that the provider wants in a day ends with the first Ctrl-C, a call that hangs with the second."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, way], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            for _ in range(presses):
                time.sleep(0.7)
                process.send_signal(signal.SIGINT)
            said, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    if presses == 1:
        assert "interrupted by the user" in said
        assert process.returncode == 0
    else:
        assert errors.rstrip().endswith("KeyboardInterrupt")
