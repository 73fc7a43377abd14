"""The web service of the examples: two worker processes on one store, over loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from dspy_ace import PlaybookStore
from paths import ROOT

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow
RULES = {"badge": "Harbor", "laptop": "Maple", "invoice": "Lantern"}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the service listens, with two workers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path / "log.txt").open("w")
    service = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "service.py"), "--workers", "2", "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "STORE": str(tmp_path / "memory.db")},
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        service.terminate()
        try:
            service.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(service.pid, signal.SIGKILL)
            service.wait()
        log.close()


def ask(url: str, **data: Any) -> dict[str, Any]:
    """What the service answers; the reason of a refusal stands under `detail`."""
    body = json.dumps(data).encode() if data else None
    try:
        with urlopen(
            Request(url, body, {"content-type": "application/json", "connection": "close"}), timeout=60
        ) as sent:
            answer: dict[str, Any] = json.load(sent)
    except HTTPError as error:
        with error:
            answer = {"status": error.code, **json.load(error)}
    return answer


def of_both(url: str, wanted: Any, seconds: float = 90) -> dict[int, dict[str, Any]]:
    """The answers of both workers, once they are as wanted: the system hands requests to the one or the other."""
    found: dict[int, dict[str, Any]] = {}
    end = time.monotonic() + seconds
    while len(found) < 2 or not all(map(wanted, found.values())):
        assert time.monotonic() < end, found
        try:
            answer = ask(url)
            found[answer["worker"]] = answer
        except (URLError, ConnectionError):  # it is starting
            time.sleep(0.2)
        time.sleep(0.02)
    return found


def test_two_workers_learn_one_playbook_from_feedback(address: str, tmp_path: Path) -> None:
    """Feedback given to any worker is kept once, learned from, and changes the answers of both."""
    of_both(f"{address}/playbook", lambda answer: True)
    given = []
    for n in range(4):
        for word, desk in RULES.items():
            message = f"{word} matter {n}"
            answer = ask(f"{address}/route", message=message)
            given.append({
                "id": answer["id"], "message": message, "desk": answer["desk"], "right_desk": desk, "user": f"user-{n}"
            })  # fmt: skip
    assert [ask(f"{address}/feedback", **each)["source"] for each in given] == [each["user"] for each in given]
    for each in given:  # whichever worker is asked
        again = ask(f"{address}/feedback", **each)
        assert (again["status"], "told before" in again["detail"]) == (409, True)
    learned = of_both(f"{address}/playbook", lambda answer: answer["waiting"] < 4 and _all_in(answer["bullets"]))
    answers = [(word, ask(f"{address}/route", message=f"Another {word}")) for word in RULES for _ in range(8)]
    assert {answer["worker"] for _, answer in answers} == set(learned)
    assert all(answer["desk"] == RULES[word] for word, answer in answers)
    with PlaybookStore(tmp_path / "memory.db") as store:
        taught = {source for bullet in store.playbook() for source in bullet.sources}
        assert taught <= {each["user"] for each in given}
        assert len(store.pending()) < 4


def _all_in(bullets: str) -> bool:
    """Say if there is a bullet for each rule."""
    return all(word in bullets for word in RULES)
