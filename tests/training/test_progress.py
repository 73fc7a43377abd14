"""The progress bar: on a terminal, and nowhere it would only be noise."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, redirect_stderr
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy.utils.logging_utils import DSPY_LOGGING_STREAM

from dspy_ace import Usage
from dspy_ace.training.progress import Progress
from dspy_ace.training.state import Record

LOG = logging.getLogger("dspy.ace")
SPENT = {
    "task": Usage(10, prompt_tokens=30_000, completion_tokens=2_000, dollars=0.04),
    "reflector": Usage(5, prompt_tokens=10_000, dollars=0.0021),
}


def rows(drawn: str) -> list[str]:
    """What a terminal shows of what was written to it: carriage returns overwrite, the cursor moves up and down."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[A|\r|\n|[^\r\n\x1b]+", drawn):
        if token == "\x1b[A":
            row -= 1
        elif token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        else:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + token + line[column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines if line.strip()]


class Terminal:
    """A pseudo-terminal that takes the place of stderr inside `with`; afterwards `drawn` is all that was written."""

    def __init__(self, columns: int = 110, **environment: str) -> None:
        fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, bytes([40, 0, columns, 0, 0, 0, 0, 0]))
        self.stderr = os.fdopen(slave, "w", encoding="utf-8")
        self.environment = {"TERM": "xterm", **environment}
        self.patch = pytest.MonkeyPatch()
        self.seen = b""
        self.reader = threading.Thread(target=self._read)

    def _read(self) -> None:
        try:
            while data := os.read(self.master, 4096):
                self.seen += data
        except OSError:  # hung up
            pass

    def __enter__(self) -> Terminal:
        self.patch.delenv("CI", raising=False)
        for name, value in self.environment.items():
            self.patch.setenv(name, value)
        self.patch.setattr(sys, "stderr", self.stderr)
        self.reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.undo()
        self.stderr.close()
        self.reader.join(10)
        os.close(self.master)
        self.drawn = self.seen.decode()


def record(step: int, epoch: int = 1, scores: tuple[float, ...] = (1.0, 0.0)) -> Record:
    return Record(step, epoch, tuple(range(len(scores))), scores)


def handlers() -> list[tuple[Any, Any]]:
    """The console handlers of the loggers concerned, and where they write."""
    found = [*logging.getLogger("dspy").handlers, *logging.getLogger().handlers]
    return [(handler, getattr(handler, "stream", None)) for handler in found]


@pytest.mark.compat
def test_a_terminal_shows_one_line_that_says_where_the_run_stands() -> None:
    """Steps, time left, epoch, scores, bullets, dollars and tokens stand on the one row that remains."""
    with Terminal() as terminal, Progress(4) as progress:
        progress.step(Record(0), 0.25, 0, {})
        progress.step(record(1), 0.25, 3, SPENT)
        progress.step(record(2, 2), 0.625, 8, SPENT)
    shown = rows(terminal.drawn)
    assert len(shown) == 1
    assert shown[0].startswith("ACE 2/4 |")
    assert shown[0].endswith("left, epoch 2, batch 0.50, best 0.625, 8 bullets, $0.042, 42k tokens")
    assert re.search(r"\d\d:\d\d left", shown[0])


@pytest.mark.compat
def test_log_lines_stand_whole_above_the_bar() -> None:
    """INFO lines, from any thread and through the root logger too, neither tear the bar nor are torn by it."""
    with Terminal() as terminal, ExitStack() as after:
        after.enter_context(pytest.MonkeyPatch.context()).setattr(logging.getLogger("dspy"), "propagate", False)
        root = logging.StreamHandler(terminal.stderr)
        logging.getLogger().addHandler(root)
        after.callback(logging.getLogger().removeHandler, root)
        with Progress(3) as progress:
            for step in (1, 2):
                LOG.info("line %d of the run", step)
                progress.step(record(step), None, step, SPENT)
            workers = [threading.Thread(target=LOG.warning, args=("from worker %d", n)) for n in range(4)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            logging.getLogger("another.library").warning("through the root logger")
        LOG.info("after the run")
    shown = rows(terminal.drawn)
    lines = [re.sub(r"^[\d/]+ [\d:]+ ", "", row) for row in shown[:6]]  # without date and time
    assert lines[:2] == ["INFO dspy.ace: line 1 of the run", "INFO dspy.ace: line 2 of the run"]
    assert sorted(lines[2:]) == [f"WARNING dspy.ace: from worker {n}" for n in range(4)]
    assert shown[6] == "through the root logger"
    assert shown[7].startswith("ACE 2/3 |")
    assert shown[8].endswith("dspy.ace: after the run")
    assert len(shown) == 9


@pytest.mark.compat
def test_dspy_forgetting_all_bars_does_not_unhook_ours() -> None:
    """DSPy clears tqdm's list of bars when a program runs dspy.Parallel; log lines still stand above this one."""
    with Terminal() as terminal, Progress(2) as progress:
        parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        parallel([(lambda **inputs: inputs, dspy.Example(x=n).with_inputs("x")) for n in range(2)])
        LOG.info("a line")
        progress.step(record(1), None, 1, {})
    shown = rows(terminal.drawn)
    assert len(shown) == 2
    assert re.fullmatch(r"[\d/]+ [\d:]+ INFO dspy.ace: a line", shown[0])


@pytest.mark.parametrize("dollars", [None, 0.0])
def test_dollars_that_are_not_known_are_not_shown(dollars: float | None) -> None:
    """A role whose model has no price, or a run that cost nothing, shows tokens alone."""
    spent = {**SPENT, "curator": Usage(1, dollars=None)} if dollars is None else {"task": Usage(1, dollars=dollars)}
    with Terminal() as terminal, Progress(4) as progress:
        progress.step(record(1), None, 3, spent)
    assert "$" not in terminal.drawn
    assert "k tokens" in terminal.drawn


def test_a_narrow_terminal_still_gets_one_row() -> None:
    """What does not fit is cut at the end, where the tokens are; a row never wraps."""
    with Terminal(columns=60) as terminal, Progress(400) as progress:
        progress.step(record(123), 0.625, 88, SPENT)
    shown = rows(terminal.drawn)
    assert len(shown) == 1
    assert len(shown[0]) <= 60
    assert shown[0].startswith("ACE 123/400")


@pytest.mark.compat
def test_no_terminal_means_no_bar_unless_asked() -> None:
    """A pipe or a file gets the log lines alone; show=True draws there as well."""
    stderr = io.StringIO()
    with redirect_stderr(stderr), Progress(2) as progress:
        progress.step(record(1), None, 1, SPENT)
        LOG.info("a line")
    assert "\r" not in stderr.getvalue()
    assert "ACE" not in stderr.getvalue()
    assert stderr.getvalue().endswith("a line\n")
    with redirect_stderr(stderr), Progress(2, show=True) as progress:
        progress.step(record(1), None, 1, SPENT)
    assert "ACE 1/2" in stderr.getvalue()


@pytest.mark.parametrize("variable", [{"CI": "true"}, {"TERM": "dumb"}, {"TQDM_DISABLE": "1"}])
def test_a_terminal_that_nobody_watches_gets_none(variable: dict[str, str]) -> None:
    """CI jobs with a terminal of their own, dumb terminals and tqdm's own switch are respected."""
    code = "from dspy_ace.training.progress import Progress\nwith Progress(2): pass"
    with Terminal(**variable) as terminal:  # another process: tqdm reads its switch on import
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code], stderr=terminal.stderr, env=environment, check=True, timeout=120)
    assert terminal.drawn == ""


def test_show_false_is_never() -> None:
    """The user's no holds on a terminal too."""
    with Terminal() as terminal, Progress(2, show=False) as progress:
        progress.step(record(1), None, 1, SPENT)
    assert terminal.drawn == ""


@pytest.mark.compat
def test_disable_logging_silences_it() -> None:
    """Nothing is drawn after dspy.disable_logging(), whether that came before the bar or while it is open."""
    with Terminal() as terminal, ExitStack() as after:
        after.callback(dspy.enable_logging)
        dspy.disable_logging()
        with Progress(2, show=True) as progress:
            progress.step(record(1), None, 1, SPENT)
        dspy.enable_logging()
        with Progress(9) as progress:
            dspy.disable_logging()
            progress.step(record(1), None, 1, SPENT)
            LOG.info("not to be seen")
    assert "ACE 0/9" in terminal.drawn
    for unseen in ("/2", "1/9", "not to be seen"):
        assert unseen not in terminal.drawn


@pytest.mark.compat
def test_a_resumed_run_starts_where_it_stood() -> None:
    """The bar begins at the steps done before, and the time left rests on the new ones."""
    with Terminal() as terminal, Progress(1000, done_steps=900) as progress:
        time.sleep(0.1)
        progress.step(record(901), None, 1, SPENT)
    assert "ACE 900/1000" in terminal.drawn
    assert rows(terminal.drawn)[0].startswith("ACE 901/1000")
    left = re.search(r"(\d\d):(\d\d) left", rows(terminal.drawn)[0])
    assert left is not None
    assert int(left[1]) * 60 + int(left[2]) >= 9  # 99 steps of 0.1 s; by 901 steps in 0.1 s it would be nothing


def test_looking_at_the_valset_again_is_no_step() -> None:
    """A validation at the end of a run has the number of its last step: the score changes, the count does not."""
    with Terminal() as terminal, Progress(2) as progress:
        progress.step(record(2, 2), None, 5, SPENT)
        progress.step(Record(2), 0.75, 5, SPENT)
    shown = rows(terminal.drawn)[0]
    assert shown.startswith("ACE 2/2 |")
    assert "epoch 2, batch 0.50, best 0.750" in shown


@pytest.mark.compat
@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_logging_as_it_was(raised: type[BaseException]) -> None:
    """Whatever ends the run, the handlers write where they wrote before, and the bar's row is finished."""
    before, progress = handlers(), Progress(5)

    def run() -> None:
        with progress:
            progress.step(record(1), None, 1, SPENT)
            assert handlers() != before
            raise raised

    with Terminal() as terminal:
        with pytest.raises(raised):
            run()
        assert handlers() == before
        progress.step(record(2), None, 1, SPENT)  # too late, and harmless
    assert terminal.drawn.endswith("\n")
    assert rows(terminal.drawn)[0].startswith("ACE 1/5")


def test_several_bars_may_close_in_any_order() -> None:
    """Two runs at once share the terminal; logging is as it was when the last of them has ended."""
    before = handlers()
    with Terminal() as terminal, ExitStack() as first, ExitStack() as second:
        one = first.enter_context(Progress(2))
        two = second.enter_context(Progress(3))
        one.step(record(1), None, 1, SPENT)
        LOG.info("a line")
        first.close()
        two.step(record(1), None, 1, SPENT)
        assert handlers() != before
        second.close()
        assert handlers() == before
    shown = rows(terminal.drawn)
    assert shown[0].endswith("a line")
    assert any(row.startswith("ACE 1/2") for row in shown)
    assert any(row.startswith("ACE 1/3") for row in shown)


def test_a_handler_that_got_another_stream_keeps_it() -> None:
    """What someone does to a handler while the bar is open stands afterwards."""
    handler, other = logging.StreamHandler(DSPY_LOGGING_STREAM), io.StringIO()
    logging.getLogger("dspy").addHandler(handler)
    try:
        with Terminal(), Progress(2):
            handler.setStream(other)
        assert handler.stream is other
    finally:
        logging.getLogger("dspy").removeHandler(handler)


@pytest.mark.compat
def test_a_clock_that_is_set_back_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour back in the middle of a run: the bar goes on, and no time in it is negative."""
    clock = [time.time()]
    with Terminal() as terminal, monkeypatch.context() as patch:
        patch.setattr("tqdm.std.time", lambda: clock[0])
        patch.setattr("dspy_ace.training.progress.time", SimpleNamespace(time=lambda: clock[0]))
        with Progress(4) as progress:
            for step, seconds in enumerate((30, -3600, 30), 1):
                clock[0] += seconds
                progress.step(record(step), None, step, SPENT)
    shown = rows(terminal.drawn)[0]
    assert shown.startswith("ACE 3/4")
    assert "-" not in shown
    assert re.search(r" 00:\d\d left, epoch 1", shown)


@pytest.mark.parametrize("closed", [False, True])
def test_a_stderr_that_is_gone_ends_no_run(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    """Without stderr, or with a closed one, there is no bar and no error; also when it was asked for."""
    stream = io.StringIO() if closed else None
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    for show in (None, True):
        with Progress(2, show=show) as progress:
            progress.step(record(1), None, 1, SPENT)


@pytest.mark.compat
def test_no_thread_and_no_warning_is_left_behind() -> None:
    """With every warning an error, a process that drew a bar ends clean, and tqdm watched it with no thread."""
    code = (
        "import threading, warnings\n"
        "from dspy_ace.training.state import Record\n"
        "from dspy_ace.training.progress import Progress\n"
        "warnings.simplefilter('error')\n"
        "before = set(threading.enumerate())\n"
        "with Progress(2, show=True) as progress:\n"
        "    progress.step(Record(1, 1, (0,), (1.0,)), None, 1, {})\n"
        "assert set(threading.enumerate()) == before, threading.enumerate()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False, timeout=120)
    drawn = done.stderr.decode()
    assert done.returncode == 0, drawn
    assert len(rows(drawn)) == 1
    assert rows(drawn)[0].startswith("ACE 1/2")
