"""OnlineACE over a store: several processes tell, learn, die and forget."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMServerError

from dspy_ace import Playbook, PlaybookStore
from dspy_ace.errors import RunError, SettingsError, StoreError
from dspy_ace.online import inbox
from dspy_ace.online.online import OnlineACE
from dspy_ace.playbook import Add, Delta
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from online_helpers import Desk, Notebook, adds, noted, until
from paths import HELPERS, ROOT


@pytest.mark.compat
def test_what_is_told_to_a_store_is_on_disk_and_learned_from_by_another(offline: OfflineLM, tmp_path: Path) -> None:
    """A tell outlives its process; another object on the store learns from it, and the first takes the bullets up."""
    notebook = Notebook()
    with PlaybookStore(tmp_path / "memory.db") as store:
        with noted(Notebook(), store=store) as first:
            first.tell(first(message="Hello"), "It is Maple.", expected={"desk": "Maple"}, source="user-17")
        assert len(store.pending()) == 1  # it was closed: what it was told stays in the store
    with PlaybookStore(tmp_path / "memory.db") as store, PlaybookStore(tmp_path / "memory.db") as mine:
        reader = noted(Notebook(), store=mine)
        with noted(notebook, store=store) as second:
            assert second.learn() is not None
            assert second.learn() is None
        (seen,) = notebook.seen
        assert (seen.inputs, seen.expected, seen.feedback.text) == (
            {"message": "Hello"}, {"desk": "Maple"}, "It is Maple."
        )  # fmt: skip
        assert (seen.prediction.desk, [call.predictor for call in seen.trace]) == (
            seen.trace[0].outputs["desk"], ["predict"]
        )  # fmt: skip
        assert "Route the message" in seen.task["predict"]
        assert (store.pending(), store.version) == ((), 1)
        assert len(reader.playbook) == 0
        reader.refresh()
        assert (reader.playbook, reader.version) == (store.playbook(), 1)
        reader.close()


def test_others_bullets_come_while_it_runs(offline: OfflineLM, tmp_path: Path) -> None:
    """With learn="elsewhere" nothing is learned here, and what another process appends is in use soon."""
    with (
        PlaybookStore(tmp_path / "memory.db") as store,
        noted(Notebook(), store=store, learn="elsewhere", poll_seconds=0.05) as program,
    ):
        for n in range(4):
            program.tell(program(message=str(n)), 0)
        store.append(Delta((Add("S", "Read the message twice."),)))
        until(lambda: len(program.playbook) == 1)
        program(message="Hello")
        assert program.pending == 4
    assert "Read the message twice." in str(offline.history[-1]["messages"])


def test_two_learners_share_a_store(offline: OfflineLM, tmp_path: Path) -> None:
    """Told by both and learned by both at once, every tell is learned from once, and no bullet is lost."""
    notebooks = [Notebook(), Notebook()]
    stores = [PlaybookStore(tmp_path / "memory.db") for _ in notebooks]
    programs = [
        noted(notebook, store=store, learn="background", poll_seconds=0.05, batch_size=1)
        for notebook, store in zip(notebooks, stores, strict=True)
    ]

    def use(program: OnlineACE, name: str) -> None:
        for n in range(8):
            program.tell(program(message=f"{name} {n}"), 0)

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(use, *pair))
        for pair in zip(programs, "ab", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: not stores[0].pending())
    for program in programs:
        program.close()
    learned = sorted(seen.source for notebook in notebooks for seen in notebook.seen)
    assert learned == sorted(f"tell-{n}" for n in range(1, 17))
    assert len(stores[0].playbook()) == 16
    assert stores[0].playbook() == stores[1].playbook()
    for store in stores:
        store.close()


def test_a_learner_that_dies_loses_nothing(offline: OfflineLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process had begun to learn from is learned from by another, once its claim has ended."""
    monkeypatch.setattr(inbox, "CLAIM", 0.5)
    notebook = Notebook()
    with PlaybookStore(tmp_path / "memory.db") as store, PlaybookStore(tmp_path / "memory.db") as other:
        dying = Notebook()
        dying.broken = LMServerError(message="503")
        with noted(dying, store=store) as first, noted(notebook, store=other) as second:
            first.tell(first(message="Hello"), 0)
            with pytest.raises(RunError):
                first.learn()
            assert second.learn() is None
            until(lambda: second.learn() is not None)
            dying.broken = None
            first.tell(first(message="Bye"), 0)
            assert first.learn() is not None
            assert [seen.source for seen in dying.seen] == ["tell-2"]  # of its old claim nothing is left
            assert store.pending() == ()
        assert [bullet.sources for bullet in store.playbook()] == [("tell-1",), ("tell-2",)]


def test_what_is_forgotten_while_it_is_learned_from_stays_forgotten(offline: OfflineLM, tmp_path: Path) -> None:
    """A source forgotten in the middle of a step leaves no bullet; the rest of the batch is learned from again."""
    with PlaybookStore(tmp_path / "memory.db") as store:

        class Forgetful(Notebook):
            def __call__(self, playbook: Playbook, trajectory: Any) -> Reflection:
                if trajectory.source == "user-2" and not self.asked:
                    store.forget(sources=["user-1"])
                return super().__call__(playbook, trajectory)

        notebook = Forgetful()
        with noted(notebook, store=store, num_threads=1) as program:
            for source in ("user-2", "user-1"):
                program.tell(program(message=f"of {source}"), 0, source=source)
            assert program.learn() is not None
            assert [bullet.sources for bullet in program.playbook] == [("user-2",)]
            assert store.pending() == ()


def test_what_is_forgotten_leaves_the_prompts_at_once(offline: OfflineLM, tmp_path: Path) -> None:
    """The next call in this process is without it, whichever object on the same store forgot it."""
    with PlaybookStore(tmp_path / "memory.db") as store, PlaybookStore(tmp_path / "memory.db") as mine:
        store.append(Delta((Add("S", "Jane prefers Maple.", None, ("jane",)), Add("S", "Read twice.", None, ("joe",)))))
        with noted(Notebook(), store=mine, learn="manual") as program:
            program(message="Hello")
            assert "Jane prefers" in str(offline.history[-1]["messages"])
            account = store.forget(sources={"jane"})
            program(message="Hello again")
            prompt = str(offline.history[-1]["messages"])
            assert "Read twice." in prompt
            assert "Jane prefers" not in prompt
    assert "OnlineACE every poll_seconds" in str(account)  # how long it takes elsewhere


def test_what_another_process_forgets_leaves_the_prompts_soon(offline: OfflineLM, tmp_path: Path) -> None:
    """With a thread of its own an object looks every poll_seconds; one in manual mode when it is refreshed."""
    path = tmp_path / "memory.db"
    forget = f"from dspy_ace import PlaybookStore; PlaybookStore({str(path)!r}).forget(sources={{'jane'}})"
    with PlaybookStore(path) as store, PlaybookStore(path) as mine:
        store.append(Delta((Add("S", "Jane prefers Maple.", None, ("jane",)),)))
        with (
            noted(Notebook(), store=store, learn="elsewhere", poll_seconds=0.05) as polling,
            noted(Notebook(), store=mine, learn="manual") as manual,
        ):
            assert len(polling.playbook) == len(manual.playbook) == 1
            subprocess.run([sys.executable, "-W", "ignore", "-c", forget], check=True, timeout=120)
            until(lambda: len(polling.playbook) == 0)
            assert len(manual.playbook) == 1
            manual.refresh()
            assert len(manual.playbook) == 0


def test_what_is_told_again_after_a_lost_answer_is_there_once(offline: OfflineLM, tmp_path: Path) -> None:
    """A connection that breaks after the commit is an error of `tell`; told again, it is the same record."""

    class Losing(PlaybookStore):
        lost = False

        def tell(self, *args: Any, **options: Any) -> int:
            number = super().tell(*args, **options)
            if not self.lost:
                self.lost = True
                raise StoreError("the connection was lost")
            return number

    with Losing(tmp_path / "memory.db") as store, noted(Notebook(), store=store) as program:
        first, second = program(message="Hello"), program(message="Hello")
        with pytest.raises(StoreError, match="lost"):
            program.tell(first, 0)
        assert program.tell(first, 0) == "tell-1"
        assert program.tell(second, 0) == "tell-2"  # another prediction, though it reads the same
        assert [told.source for told in store.pending()] == ["tell-1", "tell-2"]


def test_a_step_whose_answer_is_lost_is_paid_for_once(offline: OfflineLM, tmp_path: Path) -> None:
    """A connection that breaks after the commit of a step is no reason to make the step again."""

    class Losing(PlaybookStore):
        lost = 0

        def append(self, *args: Any, **options: Any) -> Any:
            appended = super().append(*args, **options)
            self.lost += 1
            if self.lost == 1:
                raise StoreError("the connection was lost")
            return appended

    notebook = Notebook()
    with Losing(tmp_path / "memory.db") as store, noted(notebook, store=store) as program:
        program.tell(program(message="Hello"), 0)
        assert program.learn() is not None
        assert (notebook.asked, len(store.playbook()), store.version, program.pending) == (1, 1, 1, 0)


def test_an_id_is_told_in_any_process_once(offline: OfflineLM, tmp_path: Path) -> None:
    """Where the call is not remembered, what was logged of it is asked for; a second tell is known everywhere."""
    with PlaybookStore(tmp_path / "memory.db") as store, PlaybookStore(tmp_path / "memory.db") as mine:
        notebook = Notebook()
        with noted(notebook, store=store, program=Desk()) as one, noted(Notebook(), store=mine, program=Desk()) as two:
            first, second = one(message="Hello"), one(message="Bye")
            with pytest.raises(SettingsError, match=r"inputs=\{…\}, outputs=\{…\}"):
                two.tell(first.dspy_ace_id, "No.")
            logged: Any = {"inputs": {"message": "Hello"}, "outputs": {"desk": first.desk}}
            two.tell(first.dspy_ace_id, "No.", source="a", **logged)
            for program in (one, two):
                with pytest.raises(SettingsError, match="told before"):
                    program.tell(first.dspy_ace_id, "No.", **logged)
            one.tell(second.dspy_ace_id, "No.", source="b")
            with pytest.raises(SettingsError, match="told before"):
                two.tell(second.dspy_ace_id, "No.", **logged)
            while one.learn() is not None:
                pass
        assert [(seen.source, seen.inputs["message"]) for seen in notebook.seen] == [("a", "Hello"), ("b", "Bye")]
        with noted(Notebook(), store=store) as later, pytest.raises(SettingsError, match="told before"):
            later.tell(first.dspy_ace_id, "No.", **logged)


def test_what_a_closed_learner_had_claimed_is_there_for_the_next(offline: OfflineLM, tmp_path: Path) -> None:
    """A learner that ends after a failed step leaves no claims behind: the next one learns at once."""
    broken, notebook = Notebook(), Notebook()
    broken.broken = LMServerError(message="503")
    with PlaybookStore(tmp_path / "memory.db") as store:
        with noted(broken, store=store) as first:
            first.tell(first(message="Hello"), 0)
            with pytest.raises(RunError):
                first.learn()
        with noted(notebook, store=store) as second:
            assert second.learn() is not None


def test_a_record_that_cannot_be_read_stops_no_learner(
    offline: OfflineLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Records with the name of ours and another content are left in the store, with a warning; the rest is learned."""
    notebook = Notebook()
    with PlaybookStore(tmp_path / "memory.db") as store:
        with noted(notebook, store=store, batch_size=1) as program:
            program.tell(program(message="first"), 0)
            whole = store.pending()[0].record
            for harm in (
                {"score": "none"},
                {"trace": [1]},
                {"inputs": None},
                {"error": {"kind": "odd", "message": ""}},
            ):
                store.tell({**whole, **harm}, source="odd")
            store.tell({"format": whole["format"]}, source="odd")
            program.tell(program(message="last"), 0)
            while program.learn() is not None:
                pass
        assert [seen.inputs["message"] for seen in notebook.seen] == ["first", "last"]
        assert [tell.source for tell in store.pending()] == ["odd"] * 5
        assert store.forget(sources={"odd"}).tells == 5


def test_inputs_of_any_depth_can_be_told(offline: OfflineLM, tmp_path: Path) -> None:
    """What is nested deeper than others could read is kept as text; it is told and learned from like the rest."""
    deep: Any = "bottom"
    for _ in range(400):
        deep = {"in": deep}

    class Deep(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.Predict("message -> desk")

        def forward(self, message: str, context: Any) -> Any:
            return self.route(message=message)

    notebook = Notebook()
    with PlaybookStore(tmp_path / "memory.db") as store, noted(notebook, store=store, program=Deep()) as program:
        program.tell(program(message="Hello", context=deep), 0)
        program.tell(program(message="Hello", context={"a": [1]}), 0)
        assert program.learn() is not None
    assert {type(seen.inputs["context"]) for seen in notebook.seen} == {str, dict}


def test_a_batch_of_foreign_records_does_not_hide_what_was_told(offline: OfflineLM, tmp_path: Path) -> None:
    """However many records of other programs come first, `learn` finds the one that was told here."""
    with PlaybookStore(tmp_path / "memory.db") as store:
        for number in range(5):
            store.tell({"question": f"of another program, {number}"})
        with noted(Notebook(), store=store, batch_size=2) as program:
            program.tell(program(message="plain"), 0, source="me")
            assert program.learn() is not None
            assert [tell.source for tell in store.pending() if tell.source == "me"] == []


def test_records_of_others_and_values_that_are_no_json(offline: OfflineLM, tmp_path: Path) -> None:
    """Foreign records are left in the store; a value JSON cannot hold is kept as text and never tried again."""
    notebook, traced = Notebook(), []

    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        traced.append(example)
        return 0.0

    class Loose(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.Predict("message -> desk")

        def forward(self, message: Any) -> Any:
            return self.route(message=str(message))

    with PlaybookStore(tmp_path / "memory.db") as store:
        store.tell({"question": "of another program"})
        with noted(notebook, metric, store=store, program=Loose(), batch_size=3) as program:
            program.tell(program(message={1, 2}), expected={"desk": "Maple"})
            program.tell(program(message="plain"), expected={"desk": "Maple"})
            program.learn()
            assert (program.pending, len(store.pending())) == (0, 1)
    inputs = [seen.inputs["message"] for seen in notebook.seen]
    assert sorted(inputs) == ["plain", "plain", "{1, 2}"] or sorted(inputs) == ["plain", "{1, 2}"]
    assert [example.message for example in traced] == [{1, 2}, "plain", "plain"]


TELLS_AND_DIES = """
import os, sys
import dspy
sys.path[:0] = sys.argv[2:]
from dspy_ace.online.online import OnlineACE
from dspy_ace import PlaybookStore
from dspy_ace.testing import OfflineLM
from tasks import Route
dspy.configure(lm=OfflineLM())
online = OnlineACE(dspy.ChainOfThought(Route), store=PlaybookStore(sys.argv[1]))
for n in range(3):
    online.tell(online(message=f"Hello {n}"), 0)
os._exit(9)
"""


def test_a_process_that_is_killed_after_a_tell(offline: OfflineLM, tmp_path: Path) -> None:
    """What tell has returned for is in the store, whatever becomes of the process."""
    here = HELPERS
    command = [sys.executable, "-c", TELLS_AND_DIES, str(tmp_path / "memory.db"), str(here), str(here.parent)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 9, done.stderr
    notebook = Notebook()
    with PlaybookStore(tmp_path / "memory.db") as store, noted(notebook, store=store, batch_size=3) as program:
        program.learn()
    assert sorted(seen.inputs["message"] for seen in notebook.seen) == ["Hello 0", "Hello 1", "Hello 2"]


@pytest.mark.slow
def test_the_example_learns_from_what_it_is_told(tmp_path: Path) -> None:
    """examples/online.py goes from a warm start to at least 0.85 of the test messages, and keeps its store."""
    script = ROOT / "examples" / "online.py"
    command = [sys.executable, str(script), "--store", str(tmp_path / "memory.db")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    warm, told = (float(done.stdout.split(f"\n{label}:")[1].split()[0]) for label in ("warm", "told"))
    assert told >= 0.85 > 0.6 > warm
    with PlaybookStore(tmp_path / "memory.db") as store:
        assert len(store.playbook()) > 10
        assert store.pending() == ()


def test_a_reflection_made_with_what_is_forgotten_is_made_again(offline: OfflineLM, tmp_path: Path) -> None:
    """A bullet that is forgotten in the middle of a step does not come back in the lesson of another source."""

    class Quotes(Notebook):
        def __call__(self, playbook: Playbook, trajectory: Any) -> Reflection:
            super().__call__(playbook, trajectory)
            return Reflection([f"Besides {[bullet.content for bullet in playbook]}: look twice."])

    with PlaybookStore(tmp_path / "memory.db") as store:
        store.append(Delta((Add("S", "Jane lives in Oslo.", None, ("jane",)),)))

        def curate(playbook: Playbook, reflections: Any) -> Any:
            if len(playbook):
                store.forget(sources={"jane"})
            return adds(playbook, reflections)

        with noted(Quotes(), store=store, curate=curate) as program:
            program.tell(program(message="Hello"), 0, source="joe")
            assert program.learn() is not None
            assert [bullet.content for bullet in program.playbook] == ["Besides []: look twice."]


def test_what_was_forgotten_after_a_failed_step_is_shown_to_no_role(offline: OfflineLM, tmp_path: Path) -> None:
    """A record that this process had claimed, and that was forgotten since, is not reflected on."""
    notebook = Notebook()
    notebook.broken = LMServerError(message="503")
    with PlaybookStore(tmp_path / "memory.db") as store, noted(notebook, store=store) as program:
        for source in ("jane", "joe"):
            program.tell(program(message=f"of {source}"), 0, source=source)
        with pytest.raises(RunError):
            program.learn()
        store.forget(sources={"jane"})
        notebook.broken = None
        assert program.learn() is not None
    assert [seen.source for seen in notebook.seen] == ["joe"]


def test_a_claim_that_has_ended_is_not_released(offline: OfflineLM, tmp_path: Path, monkeypatch: Any) -> None:
    """A learner that closes late leaves alone what another process has claimed since."""
    monkeypatch.setattr(inbox, "CLAIM", 0.1)
    broken = Notebook()
    broken.broken = LMServerError(message="503")
    with PlaybookStore(tmp_path / "memory.db") as store, PlaybookStore(tmp_path / "memory.db") as other:
        with noted(broken, store=store) as first:
            first.tell(first(message="Hello"), 0)
            with pytest.raises(RunError):
                first.learn()
            until(other.claim)
        assert other.claim() == ()


def test_a_record_keeps_the_scale_of_its_score(offline: OfflineLM, tmp_path: Path) -> None:
    """What is learned from in another process has the perfect score of the process that was told."""
    notebook = Notebook()
    with PlaybookStore(tmp_path / "memory.db") as store:
        with noted(Notebook(), store=store, perfect_score=10.0) as first:
            first.tell(first(message="Hello"), 7)
        with noted(notebook, store=store, perfect_score=10.0) as second:
            second.learn()
    assert [(seen.feedback.score, seen.perfect_score) for seen in notebook.seen] == [(7.0, 10.0)]
