"""OnlineACE: it learns as a compile does, is called as DSPy calls programs, and costs a call little."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE, Bullet, Playbook, PlaybookStore, with_playbook
from dspy_ace.errors import RunError, SettingsError
from dspy_ace.online import calls
from dspy_ace.online.online import OnlineACE
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from dspy_ace.training import shuffled
from online_helpers import TEST, TRAIN, Notebook, noted, online, until
from scripted import rate_limited, scripted
from tasks import Route, accuracy, desk_metric


@pytest.mark.compat
def test_a_program_learns_from_what_it_is_told(offline: OfflineLM) -> None:
    """Told the right desks, the program gets much better; what it returns is what the bare program returns."""
    student = dspy.ChainOfThought(Route)
    before = accuracy(student, TEST)
    with online(desk_metric, program=student, batch_size=4) as program:
        for example in TRAIN:
            program.tell(program(message=example.message), expected={"desk": example.desk})
            program.learn()
        assert accuracy(program, TEST) >= before + 0.3
        prediction = program(message="Hello")
        assert list(prediction.keys()) == list(student(message="Hello").keys())
        assert type(program.program) is type(student)
        assert program.program.playbook == program.playbook
        assert program.playbook.bullets[0].sources[0].startswith("tell-")
    assert not hasattr(student, "playbook")


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("noise", [{}, {"slips": 0.2}, {"slips": 0.1, "unparsable": 0.15, "seed": 3}])
def test_a_stream_reaches_the_playbook_of_a_compile(noise: dict[str, Any], batch_size: int) -> None:
    """Predict-then-learn over the order of a compile ends with the same playbook, byte for byte, calls included."""
    settings: dict[str, Any] = {"batch_size": batch_size, "num_threads": 2}
    first, second = OfflineLM(**noise), OfflineLM(**noise)
    with dspy.context(lm=first):
        compiled = ACE(desk_metric, epochs=1, progress=False, **settings).compile(dspy.ChainOfThought(Route), TRAIN)
    order = shuffled(len(TRAIN), 1, 0)
    with dspy.context(lm=second), online(desk_metric, **settings) as program:
        curve = program.run([TRAIN[i] for i in order], sources=[str(i) for i in order])
        assert len(program.playbook) > 3
        learned = compiled.detailed_results.learned_playbook  # what is returned is another choice
        assert program.playbook.to_json() == learned.to_json()
        scores = [score for record in compiled.detailed_results.records for score in record.scores]
        assert list(curve.scores) == scores
        assert second.calls == first.calls == sum(used.calls for used in program.results.usage.values())


@pytest.mark.compat
def test_the_curve_of_a_stream(offline: OfflineLM) -> None:
    """A stream gives each example's score before it was learned from, the running mean and a playbook a step."""
    with online(desk_metric) as program:
        curve = program.run(TRAIN[:5])
        assert len(curve.scores) == 5
        assert curve.mean == curve.running[-1] == sum(curve.scores) / 5
        assert curve.running[0] == curve.scores[0]
        assert [len(playbook) for playbook in curve.playbooks] == sorted(len(playbook) for playbook in curve.playbooks)
        assert curve.playbooks[-1] == program.playbook
        assert len(curve.playbooks) == 3
        assert {source for bullet in program.playbook for source in bullet.sources} <= set("01234")
        assert "over 5 examples" in str(curve)
        assert program.results.batch_scores == tuple(
            sum(curve.scores[i : i + 2]) / len(curve.scores[i : i + 2]) for i in (0, 2, 4)
        )


def test_a_full_batch_is_learned_from_in_the_background(offline: OfflineLM) -> None:
    """With two of two told the playbook grows without being asked; the rest is learned from at the end."""
    with online(desk_metric, learn="background") as program:
        for example in TRAIN[:3]:
            program.tell(program(message=example.message), expected=example)
        until(lambda: program.version == 1)
        assert len(program.playbook) > 0
        assert program.pending == 1
    assert (program.pending, len(program.results.records)) == (0, 2)  # a full batch, the rest
    assert accuracy(program, TEST) > 0  # it can still be called


def test_mistakes_in_the_arguments_are_found_before_any_call(offline: OfflineLM, tmp_path: Path) -> None:
    """Wrong settings, settings of a compile, and a store that does not fit are refused without an LM call."""
    for settings, words in (
        ({"learn": "always"}, "learn must be 'background', 'manual' or 'elsewhere'"),
        ({"learn": "elsewhere"}, "needs a store"),
        ({"batch_size": 0}, "batch_size"),
        ({"rollout_timeout": -1}, "rollout_timeout"),
        ({"store": tmp_path / "memory.db"}, "open PlaybookStore"),
        ({"program": dspy.Predict}, "student must be a dspy.Module"),
        ({"playbook": []}, "playbook must be a Playbook"),
    ):
        with pytest.raises(SettingsError, match=words):
            online(**settings)
    with PlaybookStore(tmp_path / "memory.db") as store:
        with pytest.raises(SettingsError, match="not both"):
            online(store=store, playbook=Playbook())
        carried = with_playbook(dspy.ChainOfThought(Route), Playbook((Bullet("s-1", "S", "Read twice."),)))
        with pytest.raises(SettingsError, match=r"seed=program\.playbook"):
            online(store=store, program=carried)
    with online() as program:
        for stream, words in (([], "stream is empty"), ([{"message": "x"}], "stream\\[0\\]")):
            with pytest.raises(SettingsError, match=words):
                program.run(stream)
        with pytest.raises(SettingsError, match="sources holds a name"):
            program.run(TRAIN[:2], sources=["a", "a"])
    assert offline.calls == 0


@pytest.mark.compat
def test_it_is_called_as_dspy_calls_programs(offline: OfflineLM) -> None:
    """Evaluate, asyncify, acall and threads give the bare program's answers, and each call can be told."""
    bare = dspy.ChainOfThought(Route)
    wanted = [bare(message=example.message).desk for example in TRAIN[:6]]
    with noted(Notebook(), batch_size=8) as program:
        result = dspy.Evaluate(devset=TRAIN[:6], metric=desk_metric, num_threads=3, display_progress=False)(program)
        assert [prediction.desk for _, prediction, _ in result.results] == wanted

        async def several() -> list[Any]:
            later = dspy.asyncify(program)
            return list(
                await asyncio.gather(
                    *(program.acall(message=example.message) for example in TRAIN[:3]),
                    *(later(message=example.message) for example in TRAIN[3:6]),
                )
            )

        made = asyncio.run(several())
        assert [prediction.desk for prediction in made] == wanted
        for prediction in [*(prediction for _, prediction, _ in result.results), *made]:
            program.tell(prediction, 1)
        assert program.pending == 12
        assert program.results.rollouts == 12
        assert program.results.usage["task"].calls == 12 == offline.calls - 6


def test_it_can_be_streamed(offline: OfflineLM) -> None:
    """dspy.streamify gives its chunks and at last the prediction, which can be told."""

    async def last(program: OnlineACE, asynchronous: bool) -> Any:
        return [item async for item in dspy.streamify(program, is_async_program=asynchronous)(message="Hello")][-1]

    with noted(Notebook()) as program:
        for asynchronous in (False, True):
            program.tell(asyncio.run(last(program, asynchronous)), 1)
        assert program.pending == 2


def test_usage_reaches_the_caller(offline: OfflineLM) -> None:
    """A prediction knows its tokens, and dspy.track_usage around a call sees them."""
    with noted(Notebook()) as program, dspy.track_usage() as tracker:
        prediction = program(message="Hello")
    (used,) = prediction.get_lm_usage().values()
    assert used["prompt_tokens"] > 0
    assert tracker.get_total_tokens() == prediction.get_lm_usage()


def test_what_is_let_go_is_forgotten(offline: OfflineLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of predictions that nobody tells the latest are kept; told ones are when they are learned from, and then go."""
    monkeypatch.setattr(calls, "REMEMBERED", 2)
    notebook = Notebook()
    with noted(notebook, metric=desk_metric) as program:
        untold = [weakref.ref(program(message=f"Hello {n}")) for n in range(4)]
        gc.collect()
        assert [ref() is None for ref in untold] == [True, True, False, False]
        told = program(message="Told")
        kept = weakref.ref(told)
        program.tell(told, 0)
        del told
        gc.collect()
        assert kept() is not None
        program.learn()
        notebook.seen.clear()
        gc.collect()
        assert kept() is None


def test_it_goes_on_from_a_compiled_program(offline: OfflineLM) -> None:
    """A compiled program's playbook is what it starts from, and new bullets get numbers behind it."""
    compiled = ACE(desk_metric, epochs=1, progress=False).compile(dspy.ChainOfThought(Route), TRAIN[:8])
    notebook = Notebook()
    with noted(notebook, program=compiled) as program:
        assert program.playbook == compiled.playbook
        program.tell(program(message="Hello"), 0)
        program.learn()
        assert program.playbook.bullets[:-1] == compiled.playbook.bullets
        assert notebook.seen[0].shown == tuple(bullet.id for bullet in compiled.playbook)
        assert "## Playbook" not in notebook.seen[0].task["predict"]


def test_a_source_is_one_example_of_a_step(offline: OfflineLM) -> None:
    """Two tells under one name are learned from in two steps, in order."""
    notebook = Notebook()
    with noted(notebook, batch_size=4) as program:
        for n, source in enumerate(["a", "b", "a"]):
            program.tell(program(message=str(n)), 0, source=source)
    assert [(seen.source, seen.inputs["message"]) for seen in notebook.seen[2:]] == [("a", "2")]
    assert {seen.inputs["message"] for seen in notebook.seen} == {"0", "1", "2"}


def test_after_each_step_the_user_is_told(offline: OfflineLM) -> None:
    """on_step gets the record and the playbook; what it raises ends the learning, and the step stands."""
    heard = []

    def on_step(record: Any, playbook: Playbook) -> None:
        heard.append((record.step, record.scores, len(playbook)))
        raise ValueError("enough")

    with noted(Notebook(), on_step=on_step, learn="background") as program:
        for n in range(2):
            program.tell(program(message=str(n)), 0)
        until(lambda: program.stopped is not None)
        assert heard == [(1, (0.0, 0.0), 2)]
        assert (program.pending, len(program.playbook)) == (0, 2)


# --- what a call costs ---


def test_the_program_is_instructed_once_a_version(offline: OfflineLM) -> None:
    """Calls share one instructed copy, and no call makes a signature; a lesson brings the next copy."""
    with noted(Notebook()) as program:
        before = program._serving
        signatures = [predictor.signature for _, predictor in before.program.named_predictors()]
        predictions = [program(message=example.message) for example in TRAIN[:4]]
        assert program._serving is before
        assert all(p.signature is s for (_, p), s in zip(before.program.named_predictors(), signatures, strict=True))
        program.tell(predictions[0], 0)
        program.learn()
        assert program._serving is not before
        assert program._serving.version == program.version > before.version


def test_a_call_waits_for_no_lesson(offline: OfflineLM) -> None:
    """While a reflection is under way, calls are answered with the playbook as it stands."""
    hold, held = threading.Event(), threading.Event()
    ended: list[bool] = []

    class Slow(Notebook):
        def __call__(self, playbook: Playbook, trajectory: Any) -> Reflection:
            held.set()
            ended.append(hold.wait(20))
            return super().__call__(playbook, trajectory)

    with noted(Slow(), learn="background") as program:
        for n in range(2):
            program.tell(program(message=str(n)), 0)
        assert held.wait(20)
        for n in range(5):
            program.tell(program(message=f"meanwhile {n}"), 1)
        assert ended == []  # the reflection that began before them is still under way
        assert program.version == 0
        hold.set()
        until(lambda: program.version >= 3)
        assert all(ended)


def test_a_dead_model_ends_a_stream_whose_examples_have_names_of_their_own() -> None:
    """It costs three calls, as without names."""
    lm = scripted(rate_limited())
    with dspy.context(lm=lm), online(desk_metric, batch_size=1) as program, pytest.raises(RunError):
        program.run(TRAIN, sources=[f"user-{n}" for n in range(len(TRAIN))])
    assert len(program.results.records) <= 3
