"""What every test has: no network, no cache on disk, DSPy's settings as they were."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

os.environ["DSPY_CACHEDIR"] = tempfile.mkdtemp(prefix="dspy_ace_tests_")  # before DSPy opens one at home

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it looks for its price list on the network

import dspy
import hypothesis
import pytest
import tqdm

import databases
from dspy_ace import Bullet, Playbook
from dspy_ace.testing import OfflineLM

# `make test` draws few examples and `make test-all` many, the same every time; HYPOTHESIS_PROFILE=search draws new ones
hypothesis.settings.register_profile("quick", max_examples=25, derandomize=True, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=200, derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", max_examples=200, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# a gate that runs in the background of a shell starts with Ctrl-C ignored, and its children with it
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Below DSPy 3.4 LiteLLM's clients leave sockets and loops to the collector, which strikes in any test."""
    if not hasattr(dspy, "lm15"):
        for left in ("unclosed.*socket", "unclosed event loop"):
            config.addinivalue_line("filterwarnings", f"ignore:{left}:ResourceWarning")
        config.addinivalue_line("filterwarnings", "ignore:.*ReadOnly.*:UserWarning")  # of LiteLLM's import, in any call


class _Bars(weakref.WeakSet[Any]):
    """tqdm drops a disabled bar without its lock: two threads of dspy.Parallel may both do so, and one would raise."""

    def remove(self, item: Any) -> None:
        self.discard(item)


tqdm.tqdm._instances = _Bars()

QUIET = ("dspy.predict", "dspy.evaluate", "dspy.utils", "dspy.primitives", "dspy.teleprompt", "dspy.adapters")


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):  # a Unix socket
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return address[0] in ("localhost", "")


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Sockets reach this machine alone; a name that is not local is not even looked up."""
    connect, connect_ex, lookup = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse(address: Any) -> None:
        raise OSError(f"tests do not use the network: {address!r}")

    def local_connect(self: socket.socket, address: Any) -> Any:
        return connect(self, address) if _is_local(address) else refuse(address)

    def local_connect_ex(self: socket.socket, address: Any) -> Any:
        return connect_ex(self, address) if _is_local(address) else refuse(address)

    def local_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        return lookup(host, *args, **kwargs) if host is None or _is_local((host,)) else refuse(host)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", local_connect)
    patch.setattr(socket.socket, "connect_ex", local_connect_ex)
    patch.setattr(socket, "getaddrinfo", local_lookup)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _settings_as_they_were() -> Iterator[None]:
    """What a test does to DSPy's settings and logging ends with it; DSPy's own complaints of failures are not shown."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    loggers = [logging.getLogger(name) for name in ("dspy", "dspy.ace")]
    levels = [logger.level for logger in loggers]
    with dspy.context():
        yield
    dspy.enable_logging()
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server."""
    if reason := databases.missing():
        pytest.skip(reason)
    with databases.postgres() as url:
        yield url


@pytest.fixture
def offline() -> Iterator[OfflineLM]:
    """The offline language model, in force while the test runs."""
    lm = OfflineLM()
    with dspy.context(lm=lm):
        yield lm


@pytest.fixture
def playbook() -> Playbook:
    """Three bullets for all predictors."""
    return Playbook(
        (
            Bullet("str-00001", "STRATEGIES & INSIGHTS", "Read the question twice."),
            Bullet("cmt-00002", "COMMON MISTAKES TO AVOID", "Do not round before the end."),
            Bullet("misc-00003", "OTHERS", "Name the unit."),
        )
    )


@pytest.fixture
def examples() -> list[dspy.Example]:
    """Eight questions that the offline model need not get right."""
    return [dspy.Example(question=f"What is {n} + {n}?", answer=str(2 * n)).with_inputs("question") for n in range(8)]
