"""OnlineACE in a process that forks: the child goes on, whatever the parent's threads were doing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_ace import PlaybookStore
from paths import HELPERS, ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

FORKS = """
import os, sys, threading
import dspy
import litellm
from dspy_ace import PlaybookStore
from dspy_ace.errors import SettingsError
from dspy_ace.testing import OfflineLM
from online_helpers import Notebook, noted, until

litellm.register_model({"offline/reader": {"input_cost_per_token": 1e-9, "output_cost_per_token": 1e-9}})
dspy.configure(lm=OfflineLM(max_tokens=100))
dspy.disable_logging()
store = PlaybookStore(sys.argv[1]) if len(sys.argv) > 1 else None
busy, end = threading.Event(), threading.Event()

class Slow(Notebook):
    def __call__(self, playbook, trajectory):
        if os.getpid() == parent:
            busy.set()
            end.wait(60)
        return super().__call__(playbook, trajectory)

parent = os.getpid()
online = noted(Slow(), store=store, learn="background", batch_size=2, max_cost=1.0, num_threads=2, poll_seconds=0.05)
before = online(message="before")
told = [online(message=f"of the parent {n}") for n in range(3)]
for prediction in told:
    online.tell(prediction, "No.", source="parent")
busy.wait(60)  # a step is under way, and holds what it takes

child = os.fork()
if child == 0:
    code = 1
    try:
        online.tell(before.dspy_ace_id, "No.", source="child")  # made by the parent, told here
        try:
            online.tell(told[0], "No.")
        except SettingsError:
            code = 2
        online.tell(online(message="of the child"), "No.", source="child, too")
        mine = [f"of {message}." for message in ("before", "of the child")]
        until(lambda: all(any(m in bullet.content for bullet in online.playbook) for m in mine), 30)
        online.close()
        code -= 2
    finally:
        os._exit(code)
status = os.waitpid(child, 0)[1]
end.set()
assert os.waitstatus_to_exitcode(status) == 0
online.close(learn=True)
print(sorted(bullet.content for bullet in (store.playbook() if store else online.playbook)))
"""


def forked(*arguments: str) -> list[str]:
    """Run the script; what it printed last."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT)])},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[str] = eval(done.stdout.splitlines()[-1])
    return [content.split(": ")[1] for content in found]


def test_a_child_that_is_forked_in_the_middle_of_a_step_learns_and_closes() -> None:
    """It is called, told and learns beside its parent; what the parent was told before is the parent's."""
    ledger = [f"keep to the ledger of of the parent {n}." for n in range(3)]
    assert forked() == ledger


def test_parent_and_child_learn_into_one_store(tmp_path: Path) -> None:
    """Each told record is learned from once, by the one or the other."""
    learned = forked(str(tmp_path / "memory.db"))
    told = ["before", "of the child", *(f"of the parent {n}" for n in range(3))]
    assert sorted(learned) == sorted(f"keep to the ledger of {message}." for message in told)
    with PlaybookStore(tmp_path / "memory.db") as store:
        assert store.pending() == ()


def test_nothing_is_imported_by_the_thread_that_learns() -> None:
    """A fork in the middle of an import leaves its lock behind: what comparisons need is imported beforehand."""
    code = """
import sys, dspy
from dspy_ace import OnlineACE
from dspy_ace.testing import OfflineLM
dspy.configure(lm=OfflineLM())
online = OnlineACE(dspy.Predict("question -> answer"), learn=sys.argv[1])
print("sklearn.feature_extraction.text" in sys.modules)
"""
    for learn, imported in (("background", "True"), ("manual", "False")):
        command = [sys.executable, "-W", "ignore", "-c", code, learn]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == imported


def test_what_was_spent_before_a_fork_counts_in_the_child() -> None:
    """A limit that the parent reached is reached in the child: no role is called there."""
    code = """
import os, dspy
from dspy_ace import OnlineACE
from dspy_ace.testing import OfflineLM
dspy.configure(lm=OfflineLM())
dspy.disable_logging()
online = OnlineACE(dspy.Predict("question -> answer"), learn="manual", batch_size=1, max_lm_calls=2)
online.tell(online(question="one"), "No.")
while online.learn() is not None:
    pass
child = os.fork()
if child == 0:
    online.tell(online(question="two"), "No.")
    before = dspy.settings.lm.calls
    online.learn()
    os._exit(dspy.settings.lm.calls - before)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
online.close(learn=False)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"


def test_a_child_learns_under_the_settings_of_the_object() -> None:
    """An object that was made under an LM of its own learns with it in a child that is forked elsewhere."""
    code = """
import os, dspy
from dspy_ace import OnlineACE
from dspy_ace.testing import OfflineLM
from online_helpers import until
dspy.disable_logging()
with dspy.context(lm=OfflineLM()):
    online = OnlineACE(dspy.Predict("question -> answer"), batch_size=1)
child = os.fork()
if child == 0:
    code = 1
    try:
        online.tell(inputs={"question": "Where?"}, outputs={"answer": "here"}, feedback="Answer there.")
        until(lambda: len(online.playbook) or online.stopped, 30)
        code = 0 if len(online.playbook) else 2
    finally:
        os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
online.close(learn=False)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT)])}
    assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout == "0\n"


def test_a_closed_object_stays_closed_in_a_child() -> None:
    """A call in a child of a closed object is answered, and starts no thread that learns."""
    code = """
import os, threading, dspy
from dspy_ace import OnlineACE
from dspy_ace.testing import OfflineLM
dspy.configure(lm=OfflineLM())
online = OnlineACE(dspy.Predict("question -> answer"))
online.close()
child = os.fork()
if child == 0:
    online(question="Where?")
    os._exit(sum(thread.name == "dspy_ace_online" for thread in threading.enumerate()))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"
