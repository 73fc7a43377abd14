"""Many processes on one store, killed at any moment and started again: nothing acknowledged is lost or there twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import databases
from dspy_ace import Playbook, PlaybookStore
from dspy_ace.errors import SettingsError
from dspy_ace.playbook import Add, Delta, replay
from paths import HELPERS, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes, so that a start costs nothing"),
]
WRITERS, LEARNERS = 14, 2
RECORDS = max(280, int(os.environ.get("DSPY_ACE_TRIALS", "0")))  # told by all writers together
TELLS, KILLS = -(-RECORDS // WRITERS), max(40, RECORDS // 50)
FORGOTTEN = (0, 1)  # writers: what they told and taught is forgotten once they are done, while the others go on


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a fresh store may be made, on each kind of database."""
    if request.param == "sqlite":
        yield str(tmp_path / "store.db")
        return
    if reason := databases.missing():
        pytest.skip(reason)
    with databases.postgres() as address:
        yield address


def writer(url: str, name: int, said: Path) -> None:
    """Tell so many records and add a pair of bullets now and then; each is noted once it is acknowledged."""
    done = [json.loads(line) for line in said.read_text().splitlines()] if said.exists() else []
    with said.open("a") as notes, PlaybookStore(url, timeout=120) as store:
        for n in range(len([note for note in done if "tell" in note]), TELLS):
            number = store.tell({"writer": name, "n": n}, source=f"user-{name}", key=f"{name}/{n}")
            if n % 10 == 0:
                version = append_pair(store, name, n)
                os.write(notes.fileno(), json.dumps({"append": version, "n": n}).encode() + b"\n")
            os.write(notes.fileno(), json.dumps({"tell": number, "n": n}).encode() + b"\n")


def append_pair(store: PlaybookStore, name: int, n: int) -> int:
    """Add two bullets in one delta, again if something was forgotten while it was made; the version after it."""
    pair = Delta(tuple(Add("S", f"pair {name}/{n} {half}", None, (f"user-{name}",)) for half in "ab"))
    while True:
        base, playbook = store.snapshot()
        check_pairs(playbook)
        appended = store.append(pair, base, key=f"{name}/{n}")
        if not appended.rejected:
            return appended.version


def learner(url: str, end: Path) -> None:
    """Learn from what others told, a few records at a time."""
    with PlaybookStore(url, timeout=120) as store:
        while not end.exists():
            base, playbook = store.snapshot()
            check_pairs(playbook)
            claimed = store.claim(20, seconds=0.3)
            if claimed:
                learned = tuple(Add("L", f"told {told.id}", None, (told.source,)) for told in claimed)
                store.append(Delta(learned), base, taken=[told.id for told in claimed])
            else:
                time.sleep(0.02)


def forgetter(url: str, source: str) -> None:
    """Forget a source that taught something; nothing, if that was done before the process was killed."""
    with PlaybookStore(url, timeout=120) as store, contextlib.suppress(SettingsError):
        store.forget(sources=[source])


def check_pairs(playbook: Playbook) -> None:
    """No read is torn: of each pair that one append added there are both."""
    halves = [bullet.content[:-2] for bullet in playbook if bullet.content.startswith("pair")]
    assert all(halves.count(pair) == 2 for pair in halves[-20:]), "a torn read"


def started(work: Any, *arguments: Any) -> int:
    """A child process that does this; its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(*arguments)
            status = 0
        except BaseException as error:  # noqa: BLE001 - a child that forked from a test must end here, and says why
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return child


def torment(url: str, folder: Path) -> dict[str, int]:
    """Keep all of them at work, kill one of them at a time, start it again; what was done."""
    rng = random.Random(0)
    end = folder / "end"
    jobs = {f"writer {n}": (writer, url, n, folder / f"writer-{n}.jsonl") for n in range(WRITERS)}
    jobs |= {f"learner {n}": (learner, url, end) for n in range(LEARNERS)}
    children = {started(*job): name for name, job in jobs.items()}
    killed = failed = 0
    while not all(name.startswith("learner") for name in children.values()):
        time.sleep(rng.uniform(0.005, 0.05))
        if killed < KILLS:
            os.kill(rng.choice(sorted(children)), signal.SIGKILL)  # not waited for yet: no other has this id
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            name, code = children.pop(ended[0]), os.waitstatus_to_exitcode(ended[1])
            killed, failed = killed + (code < 0), failed + (code > 0)
            if code < 0 or name.startswith("learner"):
                children[started(*jobs[name])] = name
            elif name in (f"writer {n}" for n in FORGOTTEN):
                name = name.replace("writer", "forgetter")
                jobs[name] = (forgetter, url, name.replace("forgetter ", "user-"))
                children[started(*jobs[name])] = name
            if not children:
                break
    end.touch()
    for child in children:
        os.waitpid(child, 0)
    return {"killed": killed, "failed": failed}


def test_nothing_acknowledged_is_lost_or_there_twice(url: str, tmp_path: Path) -> None:
    """Of 16 processes, 14 tell records and 2 learn; they are killed at random (kill -9) and started again.

    Two sources are forgotten meanwhile: nothing of them is there afterwards, and nothing of the others is missing.
    """
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), url, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT)])},
        capture_output=True, text=True, check=False, timeout=3600,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    done = json.loads(ran.stdout)
    assert done["failed"] == 0, ran.stderr
    assert done["killed"] >= KILLS // 5
    print(f"{RECORDS} records, {done['killed']} kills")
    notes = {
        n: [json.loads(line) for line in (tmp_path / f"writer-{n}.jsonl").read_text().splitlines()]
        for n in range(WRITERS)
    }
    told = {note["tell"]: (n, note["n"]) for n, lines in notes.items() for note in lines if "tell" in note}
    assert len(told) == WRITERS * TELLS  # every record was acknowledged under an id of its own
    with PlaybookStore(url) as store:
        history, playbook, pending = store.history(), store.playbook(), store.pending()
        assert playbook == replay(Playbook(), [event.event for event in history])
    kept = {number: record for number, record in told.items() if record[0] not in FORGOTTEN}
    left = {tell.id: (tell.record["writer"], tell.record["n"]) for tell in pending}
    learned = [int(bullet.content.removeprefix("told ")) for bullet in playbook if bullet.section == "L"]
    assert sorted([*learned, *left]) == sorted(kept)  # learned from once, or still pending
    assert all(kept[number] == record for number, record in left.items())
    pairs = sorted(bullet.content for bullet in playbook if bullet.section == "S")
    others = [n for n in range(WRITERS) if n not in FORGOTTEN]
    assert pairs == sorted(f"pair {n}/{m} {half}" for n in others for m in range(0, TELLS, 10) for half in "ab")
    for n in others:
        for note in notes[n]:
            if "append" in note:
                added = [operation.content for operation in history[note["append"] - 1].delta.operations]
                assert added == [f"pair {n}/{note['n']} {half}" for half in "ab"]
    assert len({bullet.number for bullet in playbook}) == len(playbook)
    assert [event.kind for event in history].count("forget") == len(FORGOTTEN)


CANARY = "xq7canary"


def forgetting(url: str) -> None:
    """Forget one source of a store that may be there in any state."""
    with PlaybookStore(url) as store:
        store.forget(sources={"f"})


def interrupted(folder: Path) -> dict[str, int]:
    """Kill a process at each of many moments of its forgetting; how often it was done, and how often not.

    How long a forgetting takes depends on what else the machine does. So the moments move: later after one that was not
    done, earlier after one that was. Both come up however slow the machine is.
    """
    rng = random.Random(0)
    whole = folder / "whole.db"
    with PlaybookStore(whole) as store:
        for n in range(60):
            store.append(Delta((Add("S", f"{CANARY} {n} " * 30, None, ("f",)), Add("S", f"mine {n}", None, ("a",)))))
            store.tell({"text": CANARY}, source="f")
        before = store.playbook()
    counted = {"done": 0, "not": 0, "leaked": 0, "torn": 0}
    middle = 0.01  # seconds
    for attempt in range(60):
        place = folder / str(attempt)
        place.mkdir()
        path = place / "store.db"
        shutil.copy(whole, path)
        child = started(forgetting, str(path))
        time.sleep(middle * rng.uniform(0.3, 2.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with PlaybookStore(path) as store:
            playbook = store.playbook()
            done = [bullet.content for bullet in playbook] == [f"mine {n}" for n in range(60)]
            held = b"".join(file.read_bytes() for file in place.iterdir())
            counted["done" if done else "not"] += 1
            counted["leaked"] += done and (CANARY.encode() in held or len(store.pending()) > 0)
            counted["torn"] += not done and (playbook != before or len(store.pending()) != 60)
        middle *= 0.8 if done else 1.25
    return counted


def test_a_forgetting_that_is_killed_is_done_or_not_done(tmp_path: Path) -> None:
    """Whenever the process dies: all is forgotten, and erased at the next opening, or all is as it was."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "forget", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT)])},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    counted = json.loads(ran.stdout)
    assert (counted["leaked"], counted["torn"]) == (0, 0)
    assert counted["not"] > 0
    assert counted["done"] > 0


if __name__ == "__main__":
    where = Path(sys.argv[2])
    print(json.dumps(interrupted(where) if sys.argv[1] == "forget" else torment(sys.argv[1], where)))
