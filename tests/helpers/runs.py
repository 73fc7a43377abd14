"""Runs that tests starve, bill, spoil and kill: the routing task against the loopback server.

As a program it is a nursery: it forks a child for each line on its standard input (the settings of one run, as JSON),
says the child's process id, waits for its end and says how it ended. A child is killed at no cost of another start.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import dspy

from dspy_ace import ACE, Usage
from dspy_ace.errors import AceError
from dspy_ace.lm import calls
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.backend import Backend, Served
from dspy_ace.testing.noise import Dice
from dspy_ace.testing.server import OfflineServer, serve
from paths import ROOT
from tasks import Route, desk_metric, messages

TRAIN, VAL = messages(16, 1), messages(6, 2)
SPOILED = ("truncated", "unparsable", "empty")


def client(server: OfflineServer | str, model: str = "openai/offline", **settings: Any) -> dspy.LM:
    """DSPy's own client of the server; its cache is off unless asked for."""
    url = server if isinstance(server, str) else server.url
    return dspy.LM(model, api_base=url, api_key="none", **{"cache": False, **settings})


class Checked(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """A pipeline of two: what the first one makes of a message is looked at again."""

    def __init__(self) -> None:
        super().__init__()
        self.gist = dspy.Predict("message -> gist")
        self.route = dspy.ChainOfThought(Route)

    def forward(self, message: str) -> Any:
        self.gist(message=message)
        return self.route(message=message)


class Stumbling(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """An async program that asks twice at the same time, fails on urgent messages and exits on some others."""

    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.ChainOfThought(Route)
        self.again = dspy.Predict(Route)

    async def _both(self, message: str) -> Any:
        return (await asyncio.gather(self.route.acall(message=message), self.again.acall(message=message)))[0]

    def forward(self, message: str) -> Any:
        found = asyncio.run(self._both(message))
        if "Urgent" in message:
            raise ValueError("no urgent messages, please")
        if "Hello" in message and found.desk == "Maple":
            raise SystemExit(0)
        return found


PROGRAMS: dict[str, Callable[[], dspy.Module]] = {
    "single": lambda: dspy.ChainOfThought(Route),
    "pipeline": Checked,
    "stumbling": Stumbling,
}


def compiled(lm: Any, student: Any = None, metric: Any = desk_metric, **settings: Any) -> Any:
    """A short run on the routing task: 16 examples in batches of four, a valset of six, one epoch.

    `student` may be the name of one of `PROGRAMS`.
    """
    trainset, valset = settings.pop("trainset", TRAIN), settings.pop("valset", VAL)
    with dspy.context(lm=lm):
        optimizer = ACE(metric, **{"epochs": 1, "batch_size": 4, "num_threads": 4, **settings})
        student = PROGRAMS[student]() if isinstance(student, str) else student
        return optimizer.compile(student or PROGRAMS["single"](), trainset, valset=valset)


def billed(server: OfflineServer) -> dict[str, Usage]:
    """Add up the usage of each role in the server's own log."""
    roles: dict[str, Usage] = {}
    for record in server.log:
        used = Usage(
            1, 0, int(record.fault is not None), record.prompt_tokens if record.fault is None else 0,
            record.cached_tokens, record.completion_tokens,
        )  # fmt: skip
        roles[record.role] = roles.get(record.role, Usage()) + used
    return roles


def booked(program: Any) -> dict[str, Usage]:
    """Return the usage that the run reports, by role that called an LM; without retries, which no server can tell."""
    usage: Mapping[str, Usage] = program.detailed_results.usage
    kept = ("calls", "cached_calls", "failed_calls", "prompt_tokens", "cached_tokens", "completion_tokens")
    return {role: Usage(*(getattr(used, name) for name in kept)) for role, used in usage.items() if used.calls}


class Spoiling(Backend):
    """The offline model with replies that arrive truncated, as prose, or empty.

    Args:
        backend: the one whose knobs, log and cache it has.
        chances: `truncated`, `unparsable`, `empty` → probability an attempt.
    """

    def __init__(self, backend: Backend, chances: Mapping[str, float]) -> None:
        super().__init__(backend.knobs, backend.answerers, backend.log, backend.cache)
        self.chances = chances
        self.spoiled: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()

    def serve(self, request: Any, salt: str = "", max_tokens: int | None = None) -> Served:
        text = request.text
        with self._lock:
            attempt = self._seen[text]
            self._seen[text] += 1
        dice = Dice(f"{self.knobs.seed}/{attempt}/{text}")
        hit = next((kind for kind in SPOILED if dice.happens(kind, self.chances.get(kind, 0.0))), None)
        if hit == "truncated":
            max_tokens = 5 + dice.below("length", 20)
        served = super().serve(request, salt, max_tokens)
        if hit is None:
            return served
        with self._lock:
            self.spoiled[hit] += 1
        if hit == "truncated":
            return served
        said = "" if hit == "empty" else "I would rather talk this over first. It depends on many things."
        return Served(
            said, served.role, served.prompt_tokens, served.cached_tokens, served.completion_tokens, False, 0.0
        )


def unasked(records: Any) -> int:
    """Successes that nobody is asked about without a valset: before the first batch with a failure in it."""
    quiet = 0
    for record in records:
        if any(score < 1.0 for score in record.scores):
            break
        quiet += len(record.scores)
    return quiet


@contextmanager
def faulty(chances: Mapping[str, float], seed: int = 0) -> Iterator[OfflineServer]:
    """A server whose calls fail (`Knobs.faults`) or are spoiled (`Spoiling`) with these probabilities."""
    faults = {kind: chance for kind, chance in chances.items() if kind not in SPOILED}
    with serve(faults=faults, seed=seed) as server:
        server.backend = Spoiling(server.backend, chances)
        yield server


class Nursery:
    """A process that forks runs against one server: `with Nursery(server) as nursery: nursery.start(log_dir=…)`.

    `url` and `model` in the settings name another server and model; retries are not waited for.
    """

    def __init__(self, server: OfflineServer) -> None:
        self.server = server

    def __enter__(self) -> Nursery:
        environment = {
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), self.server.url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self._stream("stdout").readline() == "ready\n"
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate(timeout=60)

    def start(self, **settings: Any) -> int:
        """Start a run with these settings of `compiled`; its process id."""
        self._stream("stdin").write(json.dumps(settings) + "\n")
        self._stream("stdin").flush()
        return int(self._stream("stdout").readline())

    def wait(self) -> dict[str, Any]:
        """How the run ended: `status` as `Popen.returncode` has it, and what `_child` tells."""
        self._stream("stdin").write("end\n")  # until then an ended child keeps its process id: none else is hit
        self._stream("stdin").flush()
        answer: dict[str, Any] = json.loads(self._stream("stdout").readline())
        return answer

    def _stream(self, name: str) -> IO[str]:
        stream: IO[str] | None = getattr(self._process, name)
        assert stream is not None
        return stream


def _child(url: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One run; what became of it."""
    calls.LONGEST_WAIT = 0.0
    lm = client(settings.pop("url", url), **settings.pop("client", {}))
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    handler.setLevel(logging.WARNING)
    logging.getLogger("dspy.ace").addHandler(handler)
    try:
        program = compiled(lm, **settings)
    except KeyboardInterrupt:
        return {"raised": "KeyboardInterrupt", "heard": heard}
    except AceError as error:
        return {"raised": str(error), "heard": heard}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late to interrupt anything
    results = program.detailed_results
    return {
        "stopped": results.stopped,
        "steps": [record.step for record in results.records],
        "playbook": program.playbook.to_json(),
        "heard": heard,
    }


def _nursery(url: str) -> None:
    """Fork a run for each line; a first one in the same process loads whatever is loaded late."""
    warnings.simplefilter("ignore")
    logging.getLogger("dspy").setLevel(logging.WARNING)
    if hasattr(dspy, "lm15"):
        first = client(url)
    else:  # LiteLLM starts a thread with its first call
        importlib.import_module("litellm")
        first = OfflineLM()
    compiled(first, num_threads=1, trainset=TRAIN[:4], valset=None)
    if threading.active_count() > 1:
        raise SystemExit("a thread is left: forking is not safe")
    print("ready", flush=True)
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            said = _child(url, json.loads(line))
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
        os.close(writing)
        print(child, flush=True)
        with os.fdopen(reading) as pipe:
            said_text = pipe.read()
        sys.stdin.readline()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), **json.loads(said_text or "{}")}), flush=True)


if __name__ == "__main__":
    _nursery(sys.argv[1])
