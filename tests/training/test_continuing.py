"""A run that is called again: what it goes on with, what it refuses, and what it says."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE, AceError, Results
from dspy_ace.errors import JournalError
from dspy_ace.testing import OfflineLM
from paths import ROOT
from runs import TRAIN, VAL, compiled
from tasks import Route, desk_metric, messages

pytestmark = pytest.mark.compat


def logged(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    """The lines of the log that hold these words, from now on."""
    found = [record.getMessage() for record in caplog.records if all(word in record.getMessage() for word in words)]
    caplog.clear()
    return found


def test_epochs_may_be_added_to_a_finished_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on with the next step, and says so; fewer epochs than were asked for are refused with both numbers."""
    caplog.set_level("INFO", "dspy.ace")
    first = compiled(OfflineLM(), log_dir=tmp_path).detailed_results
    before = (tmp_path / "journal.jsonl").read_bytes()
    assert not logged(caplog, "continuing the run")
    assert Results.load(tmp_path).stopped == first.stopped

    def stop(record: Any, playbook: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        compiled(OfflineLM(), log_dir=tmp_path, epochs=2, on_step=stop)
    assert Results.load(tmp_path).stopped == "not finished"
    more = compiled(OfflineLM(), log_dir=tmp_path, epochs=2).detailed_results
    assert logged(caplog, f"continuing the run in {tmp_path} at step 6 of 8")
    assert (tmp_path / "journal.jsonl").read_bytes().startswith(before)
    assert more.records[: len(first.records)] == first.records
    assert [record.epoch for record in more.records if record.batch] == [1] * 4 + [2] * 4
    with pytest.raises(JournalError, match="was made with epochs=2; now epochs=1"):
        compiled(OfflineLM(), log_dir=tmp_path)


def test_a_limit_may_be_raised_whatever_it_did_to_the_valset(tmp_path: Path) -> None:
    """A valset that a small limit left unused is the same valset when there is more to spend."""
    few = compiled(OfflineLM(), log_dir=tmp_path, max_metric_calls=6).detailed_results
    more = compiled(OfflineLM(), log_dir=tmp_path, max_metric_calls=100).detailed_results
    assert few.rollouts <= 6 < more.rollouts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed=0; now seed=1"),
        ({"validate": "along"}, "validate='end'; now validate='along'"),
        ({"trainset": [*TRAIN[:3], messages(1, 9)[0], *TRAIN[4:]]}, "trainset[3].message='"),
        ({"trainset": TRAIN[:-1]}, "trainset=16 rows; now trainset=15 rows"),
        ({"valset": [*VAL[:-1], VAL[-1].copy(desk="Attic").with_inputs("message")]}, "; now valset[5].desk='Attic'"),
        (
            {"trainset": [TRAIN[0].copy(note="new").with_inputs("message"), *TRAIN[1:]]},
            "trainset[0].note=nothing; now trainset[0].note='new'",
        ),
        ({"setup": lambda example: None}, "setup=None; now setup=function"),
        ({"reflect": lambda playbook, trajectory: None}, "reflect=Reflector; now reflect=function"),
    ],
)
def test_a_refused_run_names_what_differs_with_both_values(tmp_path: Path, change: Any, words: str) -> None:
    """The setting, the part or the row and its field; and no LM call is made."""
    compiled(OfflineLM(), log_dir=tmp_path)
    lm = OfflineLM()
    with pytest.raises(JournalError) as caught:
        compiled(lm, log_dir=tmp_path, **change)
    assert words in str(caught.value)
    assert lm.calls == 0


def test_what_cannot_be_compared_is_said_once_when_a_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A metric that holds a connection: one warning names it, and the run goes on."""

    def holding(connection: Any) -> Callable[..., Any]:
        return lambda example, prediction: (connection, desk_metric(example, prediction))[1]

    said = "the metric holds a value of type socket, which cannot be compared"
    for expected in (0, 1):
        with socket.socket() as connection:
            compiled(OfflineLM(), metric=holding(connection), log_dir=tmp_path)
        assert len(logged(caplog, said)) == expected


def test_a_path_is_the_one_that_was_meant_when_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that changes the working directory moves no folder, before a run, in it and between two."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()

    def setup(example: Any) -> Any:
        os.chdir(elsewhere)
        return dspy.context()

    monkeypatch.chdir(home)
    optimizer = ACE(desk_metric, log_dir="runs/1", setup=setup, batch_size=4, num_threads=1)
    for place in (elsewhere, home):
        monkeypatch.chdir(place)
        with dspy.context(lm=OfflineLM()):
            optimizer.compile(dspy.Predict("message -> desk"), TRAIN[:8])
    assert (home / "runs" / "1" / "journal.jsonl").read_bytes().count(b"\n") == 2
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_child_that_outlives_the_run_does_not_hold_its_folder(tmp_path: Path) -> None:
    """A pool that the metric forked waits on after `kill -9`; the run is continued beside it."""
    code = f"""
import os, signal, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "helpers")!r}]
from dspy_ace.testing import OfflineLM
from runs import compiled
def die(record, playbook):
    child = os.fork()
    if child == 0:
        time.sleep(300)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
compiled(OfflineLM(), log_dir={str(tmp_path)!r}, num_threads=1, on_step=die)
"""
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert process.wait() == -signal.SIGKILL
        try:
            results = compiled(OfflineLM(), log_dir=tmp_path).detailed_results
            os.kill(child, 0)  # it still lives
        finally:
            os.kill(child, signal.SIGKILL)
    assert results.stopped == "the epoch is done"


@pytest.mark.parametrize("error", [SystemExit(0), asyncio.CancelledError(), GeneratorExit(), BaseException("bare")])
@pytest.mark.parametrize("role", ["reflect", "curate", "refine"])
def test_a_role_that_exits_does_not_end_the_script_in_silence(role: str, error: BaseException) -> None:
    """exit() in a role, or a cancelled task, is that role's failure: an error of this package says so."""

    def exits(*given: Any) -> Any:
        raise error

    with pytest.raises(AceError, match=type(error).__name__):
        compiled(OfflineLM(), **{role: exits})


@pytest.mark.parametrize("limit", [{"max_lm_calls": 12}, {"max_metric_calls": 9}])
def test_what_a_limit_cut_off_a_batch_is_met_when_the_run_goes_on_with_more(tmp_path: Path, limit: Any) -> None:
    """The run says which limit ended it; continued without one, each example has been met once."""
    cut = compiled(OfflineLM(), log_dir=tmp_path, valset=[], batch_size=16, **limit).detailed_results
    met = [position for record in cut.records for position in record.batch]
    assert 0 < len(met) < len(TRAIN)
    assert next(iter(limit)) in cut.stopped
    whole = compiled(OfflineLM(), log_dir=tmp_path, valset=[], batch_size=16).detailed_results
    met = [position for record in whole.records for position in record.batch]
    assert sorted(met) == list(range(len(TRAIN)))
    assert whole.stopped == "the epoch is done"


def test_a_subclass_may_have_attributes_of_its_own() -> None:
    """They are no settings."""

    class Tagged(ACE):  # type: ignore[misc]
        def __init__(self, **settings: Any) -> None:
            super().__init__(desk_metric, progress=False, **settings)
            self.tag = "v1"

    with dspy.context(lm=OfflineLM()):
        program = Tagged(batch_size=4).compile(dspy.ChainOfThought(Route), TRAIN)
    assert len(program.playbook) > 0
