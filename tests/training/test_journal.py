"""The run folder and the state that is the fold of its records."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dspy_ace import Playbook
from dspy_ace.errors import JournalError
from dspy_ace.playbook import Add, Delete, Delta, Tag
from dspy_ace.training.journal import Journal, line_of
from dspy_ace.training.state import FailedRollout, Record, Rollout, State, Validation
from paths import GOLDEN

pytestmark = pytest.mark.compat
PRINT = {"program": "1", "trainset": "2"}


def record(step: int, *operations: Any, scores: tuple[float, ...] | None = None) -> Record:
    """A record with these operations and, if given, validation scores."""
    return Record(step, 1, (0,), (0.5,), delta=Delta(operations), validation=scores and Validation(scores))


FULL = Record(
    step=1,
    epoch=1,
    batch=(3, 1),
    scores=(1.0, 0.0),
    failures=(FailedRollout(Rollout("1", retry=1), "format", "AdapterParseError: ü \udc80"),),
    reflections=({"examples": ["1"], "insights": 1, "verified": True},),
    curation="",
    delta=Delta((Add("S", "Nimm „das“.", None, ("1",)), Tag("s-00001", 1, 0, "3"))),
    rejected=({"operation": {"op": "delete", "id": "x-00001"}, "reason": "no bullet 'x-00001' in the playbook"},),
    validation=Validation((1.0, None)),
    baseline=Validation((0.0, 0.5)),
    again=((1, 0.5), (3, None)),
    rollouts=5,
    usage={"task": {"calls": 5, "prompt_tokens": 100, "completion_tokens": 20}},
)


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """Every field survives the disk."""
    with Journal.open(tmp_path, PRINT) as journal:
        journal.append(FULL)
    with Journal.open(tmp_path, PRINT) as journal:
        assert journal.records == (FULL,)


def test_the_disk_format_is_the_golden_one() -> None:
    """The bytes of version 3: whoever changes them makes a new version that still reads these."""
    assert line_of(FULL) == (GOLDEN / "journal-v3.jsonl").read_bytes()


def test_the_run_file_is_the_golden_one(tmp_path: Path) -> None:
    """run.json of version 3, byte for byte."""
    about = {"settings": {"batch_size": 8}, "versions": {"dspy": "3.4.1"}}
    Journal.open(tmp_path, PRINT, about).close()
    assert (tmp_path / "run.json").read_bytes() == (GOLDEN / "run-v3.json").read_bytes()


def test_a_torn_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    """Whatever was cut off the last line, the whole lines before it are read and the next line starts clean."""
    Journal.open(tmp_path, PRINT).close()
    lines = [line_of(record(0)), line_of(FULL, 2)]
    path = tmp_path / "journal.jsonl"
    for cut in range(len(lines[1])):
        path.write_bytes(lines[0] + lines[1][:cut])
        with Journal.open(tmp_path, PRINT) as journal:
            assert len(journal.records) == 1
            journal.append(FULL)
        assert path.read_bytes() == b"".join(lines)


def test_folders_that_are_not_this_run_are_refused(tmp_path: Path) -> None:
    """A file, another's files, a newer version, another fingerprint, a damaged line: each says so."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(JournalError, match="cannot be used"):
        Journal.open(tmp_path / "file", PRINT)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(JournalError, match=r"thesis\.tex"):
        Journal.open(tmp_path / "other", PRINT)
    with Journal.open(tmp_path / "run", PRINT) as journal:
        journal.append(record(0))
    with pytest.raises(JournalError, match="trainset=2; now trainset=9"):
        Journal.open(tmp_path / "run", {**PRINT, "trainset": "9"})
    (tmp_path / "run" / "journal.jsonl").write_bytes(b'{"step": 0}\n')
    with pytest.raises(JournalError, match="line 1 is damaged"):
        Journal.open(tmp_path / "run", PRINT)
    newer = json.loads((tmp_path / "run" / "run.json").read_text()) | {"version": 99}
    (tmp_path / "run" / "run.json").write_text(json.dumps(newer))
    with pytest.raises(JournalError, match="version 99"):
        Journal.open(tmp_path / "run", PRINT)
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(JournalError, match="damaged"):
        Journal.open(tmp_path / "run", PRINT)


def test_a_folder_in_use_is_refused_and_free_again_after_a_crash(tmp_path: Path) -> None:
    """A second run in the same folder is told the other's process; a killed process leaves no lock behind."""
    code = f"""
import sys, time
from dspy_ace.training.journal import Journal
journal = Journal.open({str(tmp_path)!r}, {PRINT!r})
print("open", flush=True)
time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(JournalError, match="in use by another process"):
        Journal.open(tmp_path, PRINT)
    other.kill()
    other.wait()
    other.stdout.close()
    Journal.open(tmp_path, PRINT).close()
    with Journal.open(tmp_path, PRINT), pytest.raises(JournalError, match="in use by another process"):
        Journal.open(tmp_path, PRINT)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_full_disk_is_said_and_costs_the_last_step_alone(tmp_path: Path) -> None:
    """The step that does not fit is refused with the system's words; the whole ones before it are read again."""
    code = f"""
import resource
from dspy_ace.training.journal import Journal
from dspy_ace.training.state import Record
from dspy_ace.errors import JournalError
journal = Journal.open({str(tmp_path)!r}, {PRINT!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for step in range(100):
    try:
        journal.append(Record(step))
    except JournalError as error:
        print(step, len(journal.records), error)
        break
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    step, kept, words = done.stdout.split(maxsplit=2)
    assert step == kept
    assert "cannot be written" in words
    with Journal.open(tmp_path, PRINT) as journal:
        assert len(journal.records) == int(kept)


SPOILED: dict[str, tuple[Any, list[str]]] = {
    "score of text": ({"scores": ["1.0"]}, ["scores must be a number", "'1.0'"]),
    "score that is no number": ({"scores": [float("nan")]}, ["scores must be a finite number"]),
    "scores too few": ({"scores": []}, ["scores must be 1, one an example of batch"]),
    "negative step": ({"step": -1}, ["step must be at least 0", "-1"]),
    "step that is a yes": ({"step": True}, ["step must be a whole number"]),
    "usage of text": ({"usage": {"task": "x"}}, ["usage must be", "'x'"]),
    "unknown count": ({"usage": {"task": {"dollars": 1}}}, ["usage", "'dollars'"]),
    "rejected no list": ({"rejected": {"a": 1}}, ["rejected must be"]),
    "operation unknown": ({"delta": [{"op": "shout"}]}, ["delta must be", "shout"]),
    "field unknown": ({"mood": "good"}, ["mood must be"]),
    "failure without a name": ({"failures": [{"kind": "format", "message": "x"}]}, ["failures must be"]),
    "step left out": ({"step": 3}, ["is of step 3, after step 1"]),
    "another number": ({"line": 3}, ["says that it is line 3: a line is missing, doubled or swapped"]),
    "no number": ({"line": None}, ["says that it is line None"]),
}


@pytest.mark.parametrize("name", list(SPOILED))
def test_a_line_that_is_none_is_named_with_what_was_expected(tmp_path: Path, name: str) -> None:
    """The file, the number of the line, the field, what it holds and what to do."""
    change, words = SPOILED[name]
    lines = [line_of(record(step), step) for step in (1, 2, 3)]
    lines[1] = json.dumps({**json.loads(lines[1]), **change}).encode() + b"\n"
    Journal.open(tmp_path, PRINT).close()
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(JournalError) as caught, Journal.open(tmp_path, PRINT) as journal:
        journal.replay(State.of(Playbook()))
    for word in [f"{tmp_path / 'journal.jsonl'}, line 2 ", "cut it before this line", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("order", [(0, 1, 1, 2), (0, 2), (0, 2, 1), (1, 0), (1, 2), (0, 0)], ids=str)
def test_lines_out_of_their_order_are_refused(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Doubled, missing or swapped lines: also those of validations, which may look alike."""
    lines = [line_of(Record(0, validation=Validation((1.0,))), number) for number in (1, 2, 3)]
    Journal.open(tmp_path, PRINT).close()
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[place] for place in order))
    with pytest.raises(JournalError, match="a line is missing, doubled or swapped"):
        Journal.open(tmp_path, PRINT)


@pytest.mark.parametrize("line", [b"", b"[1]", b"null", b"[" * 100_000, b'{"line": 1', b"\xff", b"\0" * 20], ids=repr)
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: bytes) -> None:
    """Cut in the middle of the file, nested without end, or no JSON at all."""
    Journal.open(tmp_path, PRINT).close()
    (tmp_path / "journal.jsonl").write_bytes(line + b"\n" + line_of(record(1), 2))
    with pytest.raises(JournalError, match="line 1 is damaged"):
        Journal.open(tmp_path, PRINT)


def test_epochs_may_be_raised_and_not_lowered(tmp_path: Path) -> None:
    """More epochs go on where a run has ended; the new number is the one that later openings are held against."""
    for epochs in (1, 2, 3):
        Journal.open(tmp_path, PRINT, {"settings": {"epochs": epochs}}).close()
    with pytest.raises(JournalError, match="was made with epochs=3; now epochs=2"):
        Journal.open(tmp_path, PRINT, {"settings": {"epochs": 2}})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.json", "", "run.json is damaged"),
        ("run.json", "{}", "run.json is not a run of dspy_ace"),
        ("run.json", "[1]", "expected an object"),
        ("run.json", "[" * 100_000, "run.json is damaged"),
        ("run.json", '{"format": "dspy_ace.run", "version": 3}', "names no settings"),
        ("spent.json", "", "spent.json is damaged"),
        ("spent.json", '{"calls": "x"}', "calls must be a whole number; got 'x'"),
        ("spent.json", '{"dollars": null}', "dollars must be a number"),
    ],
)
def test_other_files_that_are_damaged_are_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    """By the name of the file, with what was expected; never a raw error, never a run that starts anew over it."""
    Journal.open(tmp_path, PRINT).close()
    (tmp_path / name).write_text(content)
    with pytest.raises(JournalError, match=re.escape(words)), Journal.open(tmp_path, PRINT) as journal:
        journal.spent()


def test_records_that_do_not_follow_are_refused(tmp_path: Path) -> None:
    """A journal whose operations do not fit the seed is not replayed."""
    with Journal.open(tmp_path, PRINT) as journal:
        journal.append(record(1, Delete("s-00001")))
        with pytest.raises(JournalError, match=r"journal\.jsonl, line 1 does not follow"):
            journal.replay(State.of(Playbook()))


def test_without_a_folder_the_same_bytes_stay_in_memory(tmp_path: Path) -> None:
    """In memory and on disk a run is the same."""
    with Journal(None) as memory, Journal.open(tmp_path, PRINT) as disk:
        for journal in (memory, disk):
            journal.append(record(0))
            journal.append(FULL)
    assert memory.to_bytes() == (tmp_path / "journal.jsonl").read_bytes()


def best(*records: Record) -> tuple[int, int]:
    """The best step and its number of bullets after these records."""
    state = State.of(Playbook())
    for each in records:
        state = state.after(each)
    return state.best_step, len(state.best)


def test_the_best_playbook_is_the_highest_and_on_a_tie_the_later() -> None:
    """The seed stays only where it is strictly better; unvalidated steps are never returned over validated ones."""
    add = Add("S", "x")
    assert best(record(0, scores=(0.5,)), record(1, add, scores=(0.5,))) == (1, 1)
    assert best(record(0, scores=(0.6,)), record(1, add, scores=(0.5,))) == (0, 0)
    assert best(record(0, scores=(0.1,)), record(1, add, scores=(0.9,)), record(2, add, scores=(0.8,))) == (1, 1)
    assert best(record(0, scores=(0.1,)), record(1, add, scores=(0.9,)), record(2, add)) == (1, 1)
    assert best(record(0), record(1, add), record(2, add)) == (2, 2)
    assert best(record(0, scores=(0.5,)), record(1, add)) == (1, 1)  # nothing shows the seed to be better
    assert best(record(0, scores=(0.5,)), record(1, add), record(2, add, scores=(0.4,))) == (0, 0)
    assert best(record(0, scores=(0.5,)), record(1, add), record(2, add, scores=(0.4,)), record(3, add)) == (0, 0)


def test_votes_after_the_validation_stay_with_the_best_playbook() -> None:
    """Counters are not in the prompt: they do not make the validated playbook another one."""
    add, tag = Add("S", "x"), Tag("s-00001", helpful=1)
    state = State.of(Playbook())
    for each in (record(0, scores=(0.1,)), record(1, add, scores=(0.9,)), record(2, tag)):
        state = state.after(each)
    assert (state.best_step, state.best["s-00001"].helpful, state.unvalidated) == (1, 1, False)
    state = state.after(record(3, add)).after(record(4, tag))
    assert (state.best["s-00001"].helpful, state.playbook["s-00001"].helpful, state.unvalidated) == (1, 2, True)


def test_the_record_of_the_batches_counts_beside_the_valset() -> None:
    """One example less on a small valset does not outweigh a training record that went from 5 of 8 to 16 of 16."""
    seen, worse = (1.0,) * 17 + (0.0,) * 3, (1.0,) * 16 + (0.0,) * 4
    add = Delta((Add("S", "x"),))
    state = State.of(Playbook()).after(Record(0, validation=Validation(seen)))
    state = state.after(Record(1, 1, tuple(range(8)), (1.0,) * 5 + (0.0,) * 3, delta=add, validation=Validation(worse)))
    assert state.best_step == 0
    for step in (2, 3):
        state = state.after(Record(step, 1, tuple(range(8)), (1.0,) * 8))
    assert (state.best_step, len(state.best), state.best_score, state.seed_score) == (1, 1, 0.8, 0.85)
