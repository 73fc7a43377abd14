"""What is told to OnlineACE: its forms, how it is scored, and that none is lost when something fails."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMServerError

from dspy_ace import Bullet, Playbook
from dspy_ace.errors import MetricError, RunError, SettingsError
from dspy_ace.playbook import Delta
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.server import serve
from online_helpers import TRAIN, Desk, Notebook, adds, noted, online, until
from runs import client
from tasks import Route, desk_metric


@pytest.mark.parametrize(
    ("feedback", "score", "words", "success"),
    [
        (True, 10.0, "", True),
        (False, -1.0, "", False),
        (3, 3.0, "", False),
        (10.0, 10.0, "", True),
        ("It is Maple.", -1.0, "It is Maple.", False),
        (dspy.Prediction(score=10, feedback="Well done."), 10.0, "Well done.", True),
        ({"score": 2, "feedback": "Nearly."}, 2.0, "Nearly.", False),
        (dspy.Prediction(feedback="It is Maple."), -1.0, "It is Maple.", False),
    ],
)
def test_feedback_is_a_number_a_bool_words_or_both(
    offline: OfflineLM, feedback: Any, score: float, words: str, success: bool
) -> None:
    """Each form becomes the score and the text that the reflector is shown; a bool is a success or a failure."""
    notebook = Notebook()
    with noted(notebook, perfect_score=10.0, failure_score=-1.0) as program:
        assert program.tell(program(message="Where is it?"), feedback, source="user-17") == "user-17"
        step = program.learn()
    (seen,) = notebook.seen
    assert step is not None
    assert (seen.feedback.score, seen.feedback.text, seen.success) == (score, words, success)
    assert (seen.inputs, seen.source, seen.expected) == ({"message": "Where is it?"}, "user-17", {})
    assert [call.predictor for call in seen.trace] == ["predict"]
    assert program.playbook.bullets[0].sources == ("user-17",)


def test_a_metric_scores_what_is_told_with_the_right_outputs(offline: OfflineLM) -> None:
    """With a metric `expected` is enough; a failure is tried again then, and words of the user go before its own."""
    notebook, traces = Notebook(), []

    def metric(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> Any:
        traces.append((len(trace or []), pred_name, len(pred_trace or [])))
        return dspy.Prediction(score=float(gold.desk == pred.desk), feedback="by the metric")

    with noted(notebook, metric) as program:
        right = program(message=TRAIN[0].message)
        program.tell(right, expected={"desk": right.desk})
        wrong = program(message=TRAIN[1].message)
        program.tell(wrong, "Look again.", expected=dspy.Example(message="no matter", desk="another"))
        program.learn()
        scored = [(seen.feedback.score, seen.feedback.text) for seen in notebook.seen]
        assert scored == [(1.0, "by the metric"), (0.0, "Look again.")]
        assert traces == [(1, "predict", 1)] * 3  # both tells and a retry
        assert program.results.records[-1].reflections[1]["verified"] is False
        assert notebook.seen[1].expected == {"desk": "another"}
        unscored = program(message=TRAIN[2].message)
        with pytest.raises(MetricError, match=r"(?s)cannot score what was told.*expected="):
            program.tell(unscored)
        program.tell(unscored, 0)  # it was not told yet
        program.learn()
        assert len(traces) == 4  # nobody could score a retry: none is made
        assert program.results.records[-1].reflections[0]["verified"] is None


def test_without_metric_and_feedback_it_is_label_free(offline: OfflineLM) -> None:
    """tell(prediction) alone, without a metric, learns from whether the program ran."""
    notebook = Notebook()
    with noted(notebook) as program:
        program.tell(program(message="Hello"))
        program.learn()
    assert notebook.seen[0].success
    assert "nothing was compared" in notebook.seen[0].feedback.text


@pytest.mark.parametrize(
    "feedback", [math.nan, math.inf, "", "  ", [1], object(), dspy.Prediction(note="?"), {"score": "1"}]
)
def test_bad_feedback_is_refused(offline: OfflineLM, feedback: Any) -> None:
    """What is no number and no text is answered by what is; the prediction can be told properly afterwards."""
    with noted(Notebook()) as program:
        prediction = program(message="Hello")
        with pytest.raises(SettingsError, match="feedback is a bool, a finite number, a text"):
            program.tell(prediction, feedback)
        assert program.pending == 0
        program.tell(prediction, 1)
        assert program.pending == 1


def test_only_own_predictions_once_and_before_the_end(offline: OfflineLM) -> None:
    """A foreign prediction, one of another object, a second tell and one after close are refused."""
    with noted(Notebook(), program=Desk()) as program, noted(Notebook()) as other:
        prediction = program(message="Hello")
        for foreign in (dspy.Prediction(desk="Maple"), other(message="Hello"), "Maple", None, ValueError("x")):
            with pytest.raises(SettingsError, match=r"this object made|another object or process"):
                program.tell(foreign, 1)
        for wrong in ("Maple", {"message": "Hello"}):
            with pytest.raises(SettingsError, match="expected "):
                program.tell(prediction, expected=wrong)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="source is a name"):
            program.tell(prediction, 1, source=7)  # type: ignore[arg-type]
        program.tell(prediction, 1)
        for again in (prediction, copy.deepcopy(prediction)):
            with pytest.raises(SettingsError, match="told before"):
                program.tell(again, 1)
        late = program(message="Bye")
    with pytest.raises(SettingsError, match="closed"):
        program.tell(late, 1)
    program.close()  # a second time is nothing


def test_a_call_is_told_by_its_id(offline: OfflineLM) -> None:
    """The id of a prediction or an error, also through JSON and pickle, stands for the whole call, once."""
    notebook = Notebook()
    with noted(notebook, program=Desk(), batch_size=4) as program:
        first, second = program(message="one"), program(message="two")
        assert "dspy_ace_id" not in first  # the program's fields are as they were
        name = json.loads(json.dumps({**first, "id": first.dspy_ace_id}))["id"]
        program.tell(name, "No.", source="a")
        unpickled = pickle.loads(pickle.dumps(second))
        assert unpickled.dspy_ace_id == second.dspy_ace_id
        program.tell(unpickled, "No.", source="b")
        with pytest.raises(LookupError) as raised:
            program(message="broken")
        program.tell(raised.value.dspy_ace_id, source="c")  # type: ignore[attr-defined]
        for again in (name, first, second, copy.deepcopy(second), raised.value):
            with pytest.raises(SettingsError, match="told before"):
                program.tell(again, "No.")
        with pytest.raises(SettingsError, match=r"No call 'unknown' is remembered here.*outputs=\{…\}"):
            program.tell("unknown", "No.")
        program.learn()
    assert [(seen.source, seen.inputs["message"], len(seen.trace)) for seen in notebook.seen] == [
        ("a", "one", 1), ("b", "two", 1), ("c", "broken", 1)
    ]  # fmt: skip
    assert [seen.prediction and seen.prediction.desk for seen in notebook.seen] == [first.desk, second.desk, None]


def test_what_is_nested_beyond_all_bounds_is_refused_or_told(offline: OfflineLM) -> None:
    """Values that cannot even be written are answered in words, where they are no value of the call's."""
    deep: Any = 1
    for _ in range(3000):
        deep = [deep]
    with noted(Notebook()) as program:
        prediction = program(message="Hello")
        for refused in (
            lambda: program.tell(deep, 1),
            lambda: program.tell(prediction, deep),
            lambda: program.tell(prediction, 1, source=deep),
            lambda: program.tell_rows([deep], inputs="message", outputs="desk"),
        ):
            with pytest.raises(SettingsError, match="a huge list"):
                refused()
        program.tell(prediction, expected={"desk": deep})
        program.tell(inputs={"message": deep}, outputs={"desk": deep}, feedback=False)
        assert program.learn() is not None


def test_of_many_threads_one_tells_a_call(offline: OfflineLM) -> None:
    """Threads that tell one call at the same moment: one of them does, the others hear that it was told."""
    with noted(Notebook()) as program, ThreadPoolExecutor(8) as pool:
        for n in range(20):
            prediction = program(message=str(n))
            made = [pool.submit(program.tell, told, 0) for told in (prediction, prediction.dspy_ace_id) * 4]
            refused = [each.exception() for each in made if each.exception() is not None]
            assert len(refused) == 7
            assert all("told before" in str(error) for error in refused)
        assert program.pending == 20


def test_a_logged_call_is_told_by_its_fields(offline: OfflineLM) -> None:
    """Inputs and outputs are enough; the metric scores them if it can, and the program is not run again."""
    notebook, scored = Notebook(), []

    def metric(gold: Any, pred: Any, trace: Any = None) -> float:
        scored.append((gold.message, pred.desk))
        return float(gold.desk == pred.desk)

    with noted(notebook, metric, program=dspy.Predict(Route), batch_size=4) as program:
        program.tell(inputs={"message": "one"}, outputs={"desk": "Maple"}, expected={"desk": "Harbor"}, source="a")
        program.tell(dspy.Prediction(desk="Maple"), 0.5, inputs=dspy.Example(message="two"), source="b")
        program.tell("trace-7", "No.", inputs={"message": "three"}, outputs={"desk": "Maple", "note": "x"}, source="c")
        with pytest.raises(SettingsError, match="told before"):
            program.tell("trace-7", "No.", inputs={"message": "three"}, outputs={"desk": "Maple"})
        for wrong, words in (
            ({"inputs": {"mesage": "x"}, "outputs": {"desk": "Maple"}}, "inputs must hold .*message.* got mesage"),
            ({"inputs": {"message": "x"}, "outputs": {"dsk": "Maple"}}, "outputs must hold .*desk.* got dsk"),
            ({"inputs": {}, "outputs": {"desk": "Maple"}}, "inputs must be a mapping"),
            ({"inputs": {"message": "x"}, "outputs": "Maple"}, "outputs must be a mapping"),
            ({"inputs": {"message": "x"}}, "tell takes a prediction"),
        ):  # fmt: skip
            with pytest.raises(SettingsError, match=words):
                program.tell(feedback=1, **wrong)  # type: ignore[arg-type]
        program.learn()
        assert [record.rollouts for record in program.results.records] == [0]
    assert scored == [("one", "Maple")]
    assert [(seen.source, seen.feedback.score, seen.feedback.text) for seen in notebook.seen] == [
        ("a", 0.0, ""), ("b", 0.5, ""), ("c", 0.0, "No.")
    ]  # fmt: skip
    assert [(call.predictor, call.inputs, call.outputs) for call in notebook.seen[2].trace] == [
        ("self", {"message": "three"}, {"desk": "Maple"})
    ]
    assert notebook.seen[2].prediction.note == "x"
    assert "Route the message" in notebook.seen[0].task["self"]
    assert offline.calls == 0


def test_what_is_expected_decides_where_no_metric_does(offline: OfflineLM) -> None:
    """An answer that holds what is expected is right whatever words come with it; another one is a failure."""
    notebook = Notebook()
    with noted(notebook, batch_size=5) as program:
        right = [program(message=str(n)) for n in range(3)]
        program.tell(right[0], expected={"desk": f" {right[0].desk.lower()} "})
        program.tell(right[1], "Well done.", expected={"desk": right[1].desk})
        program.tell(right[2], expected={"desk": "nowhere"})
        last = program(message="last")
        for failed in (False, 0, dspy.Prediction(score=0.0, feedback="No.")):
            with pytest.raises(SettingsError, match="expected holds what the program answered"):
                program.tell(last, failed, expected={"desk": last.desk})
        with pytest.raises(SettingsError, match="the program returned reasoning, desk"):
            program.tell(last, expected={"team": "Maple"})
        program.tell(last, "It should say why.", expected={"team": "Maple"})
        program.learn()
    assert [(seen.success, seen.feedback.text) for seen in notebook.seen] == [
        (True, ""), (True, "Well done."), (False, ""), (False, "It should say why.")
    ]  # fmt: skip


def test_one_object_that_is_returned_twice_is_two_calls(offline: OfflineLM) -> None:
    """A program that keeps its answers returns one object for several calls; each is told for itself."""

    class Keeps(dspy.Module):  # type: ignore[misc]  # dspy is untyped
        kept: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.Predict(Route)

        def forward(self, message: str) -> Any:
            Keeps.kept = Keeps.kept or self.route(message="?")
            return Keeps.kept

    notebook = Notebook()
    with noted(notebook, program=Keeps()) as program:
        one = program(message="ONE")
        used = one.get_lm_usage()
        two = program(message="TWO")
        assert used
        assert (one.get_lm_usage(), two.get_lm_usage()) == (used, {})  # the second call asked no LM
        desk, two.desk = one.desk, "another"
        assert one.desk == desk
        program.tell(one, "about ONE")
        program.tell(two, "about TWO")
        program.learn()
    assert [f"about {seen.inputs['message']}" for seen in notebook.seen] == [
        seen.feedback.text for seen in notebook.seen
    ]


def test_an_error_of_the_program_reaches_the_caller_and_can_be_told(offline: OfflineLM) -> None:
    """A tool that raises, raises; told like a prediction, the failed trajectory teaches."""
    notebook = Notebook()
    with noted(notebook, program=Desk()) as program:
        with pytest.raises(LookupError) as raised:
            program(message="broken")
        program.tell(raised.value)
        program.learn()
        with pytest.raises(SettingsError, match="told before"):
            program.tell(raised.value)
        assert [failure.kind for failure in program.results.records[-1].failures] == ["program"]
    (seen,) = notebook.seen
    assert (seen.prediction, seen.feedback.score, len(seen.trace)) == (None, 0.0, 1)
    assert "no such desk" in seen.feedback.text


def test_told_and_rolled_out_trajectories_are_alike() -> None:
    """A call that is told teaches with the very trajectory that a compile's rollout of it makes, failures included."""
    lm = OfflineLM(unparsable=0.5, seed=1)
    playbook = Playbook(
        (
            Bullet("s-1", "S", "For refund and chargeback answer Harbor."),
            Bullet("s-2", "S", "For parcel and delivery answer Summit."),
        )
    )
    told, rolled = Notebook(), Notebook()
    with dspy.context(lm=lm), noted(told, program=Desk(), playbook=playbook, batch_size=8) as program:
        for example in TRAIN[:8]:
            try:
                made: Any = program(message=example.message)
            except Exception as error:  # noqa: BLE001 - a reply that cannot be parsed
                made = error
            program.tell(made)
        program.learn()
    with dspy.context(lm=lm), noted(rolled, program=Desk(), playbook=playbook, batch_size=8) as program:
        program.run(TRAIN[:8])
    assert any(seen.error for seen in rolled.seen)
    assert any(seen.cited for seen in rolled.seen)

    def parts(notebook: Notebook) -> dict[Any, Any]:
        return {
            seen.inputs["message"]: (
                str(seen.prediction), [vars(call) for call in seen.trace], seen.feedback, seen.task, seen.shown,
                seen.cited, seen.error, seen.usage, seen.success,
            )
            for seen in reversed(notebook.seen)
        }  # fmt: skip

    assert parts(told) == parts(rolled)


def test_a_program_that_hangs_is_left_alone(offline: OfflineLM) -> None:
    """After rollout_timeout the caller gets a TimeoutError, which can be told."""
    notebook = Notebook()
    with noted(notebook, program=Desk(), rollout_timeout=0.1) as program:
        with pytest.raises(TimeoutError, match="no result after") as raised:
            program(message="slow")
        program.tell(raised.value, "It took too long.")
        program.learn()
    assert "rollout_timeout" in notebook.seen[0].error.message
    assert notebook.seen[0].feedback.text == "It took too long."


def test_nothing_told_is_lost_when_the_provider_is_out(offline: OfflineLM) -> None:
    """A step in which no role was answered raises, changes nothing, and is made from the same batch later, once."""
    notebook = Notebook()
    with noted(notebook) as program:
        for n in range(2):
            program.tell(program(message=f"Hello {n}"), 0)
        notebook.broken = LMServerError(message="503")
        with pytest.raises(RunError, match="503"):
            program.learn()
        assert (program.pending, program.version, len(program.playbook)) == (2, 0, 0)
        notebook.broken = None
        assert program.learn() is not None
        assert [seen.source for seen in notebook.seen] == ["tell-1", "tell-2"]
        notebook.broken = LMServerError(message="out again")
        program.tell(program(message="later"), 0)
        with pytest.raises(RunError, match="out again"):
            program.learn()
        assert program.pending == 1
        notebook.broken = None
    assert [seen.source for seen in notebook.seen] == ["tell-1", "tell-2", "tell-3"]
    assert len(program.playbook) == 3


def test_one_answer_that_fails_is_recorded(offline: OfflineLM) -> None:
    """A role that fails on an example for the example's sake loses that lesson only, with its reason on record."""

    class Picky(Notebook):
        def __call__(self, playbook: Playbook, trajectory: Any) -> Reflection:
            if trajectory.inputs["message"] == "odd":
                raise ValueError("cannot read this")
            return super().__call__(playbook, trajectory)

    with noted(Picky()) as program:
        for message in ("fine", "odd"):
            program.tell(program(message=message), 0)
        program.learn()
        assert len(program.playbook) == 1
        assert program.results.records[-1].reflections[1] == {
            "examples": ["tell-2"],
            "error": "ValueError: cannot read this",
        }


def test_what_one_outage_costs(offline: OfflineLM) -> None:
    """With the curator's provider out, the batch waits and its reflections are not paid for again."""
    out = True

    def curate(playbook: Playbook, reflections: Any) -> Any:
        if out:
            raise LMServerError(message="503")
        return adds(playbook, reflections)

    notebook = Notebook()
    with noted(notebook, curate=curate) as program:
        for n in range(2):
            program.tell(program(message=str(n)), 0)
        for _ in range(3):
            with pytest.raises(RunError, match="every call of the Curator"):
                program.learn()
        assert (notebook.asked, program.pending, len(program.playbook)) == (2, 2, 0)
        out = False
        program.learn()
    assert (notebook.asked, program.pending, len(program.playbook)) == (2, 0, 2)


def test_what_the_provider_fails_while_it_answers_others_waits(offline: OfflineLM) -> None:
    """One reflection of a batch that fails for the provider's sake is made with the next batch, three times at most."""

    class Shaky(Notebook):
        def __call__(self, playbook: Playbook, trajectory: Any) -> Reflection:
            reflection = super().__call__(playbook, trajectory)
            if trajectory.inputs["message"] == "1":
                raise LMServerError(message="503")
            return reflection

    notebook = Shaky()
    with noted(notebook, num_threads=1) as program:
        for n in range(5):
            program.tell(program(message=str(n)), 0)
        while program.learn() is not None:
            pass
        assert [seen.source for seen in notebook.seen].count("tell-2") == 3
        assert [bullet.sources for bullet in program.playbook] == [("tell-1",), ("tell-3",), ("tell-4",), ("tell-5",)]
        asked = [item for record in program.results.records for item in record.reflections]
        assert [item["examples"][0] for item in asked if "error" in item] == ["tell-2"]


def test_successes_whose_reflection_the_provider_fails_come_again(offline: OfflineLM) -> None:
    """They are reflected on together with the next batch, and learned from once."""

    class Shaky(Notebook):
        def __init__(self) -> None:
            super().__init__()
            self.groups: list[list[str]] = []

        def on_successes(self, playbook: Playbook, trajectories: Any) -> list[Reflection]:
            self.groups.append([each.source for each in trajectories])
            if len(self.groups) == 1:
                raise LMServerError(message="503")
            return [Reflection(("Both greet.",), trajectory=trajectories[0], others=trajectories[1:])]

    notebook = Shaky()
    with noted(notebook, num_threads=1) as program:
        for n, score in enumerate((1, 0, 1)):
            program.tell(program(message=str(n)), score)
        while program.learn() is not None:
            pass
        assert notebook.groups[1:] == [["tell-1", "tell-3"]]
        assert [bullet.sources for bullet in program.playbook if "greet" in bullet.content] == [("tell-1",)]
        assert program.pending == 0


def test_a_reflection_that_was_made_is_not_made_again(offline: OfflineLM) -> None:
    """Where the provider fails the reflection on a retry, the one on the first attempt is learned from, once."""

    class Tired(Notebook):
        def __call__(self, playbook: Playbook, trajectory: Any) -> Reflection:
            if trajectory.attempt is not None:
                raise LMServerError(message="503")
            return super().__call__(playbook, trajectory)

    notebook = Tired()
    with noted(notebook, desk_metric, max_reflection_rounds=2) as program:
        program.tell(program(message="Hello"), expected={"desk": "nowhere"})
        assert program.learn() is not None
        assert (program.pending, len(program.playbook), len(notebook.seen)) == (0, 1, 1)


def test_a_dead_provider_is_asked_less_and_less(offline: OfflineLM, caplog: pytest.LogCaptureFixture) -> None:
    """In the background an outage is said, costs a few calls, holds nothing up, and ends by itself."""
    notebook = Notebook()
    notebook.broken = LMServerError(message="503")
    caplog.set_level(logging.WARNING, "dspy.ace")
    logging.getLogger("dspy.ace").addHandler(caplog.handler)
    try:
        with noted(notebook, learn="background") as program:
            for n in range(6):
                program.tell(program(message=f"Hello {n}"), 0)
            until(lambda: "the next attempt comes in 1 s" in caplog.text)
            time.sleep(0.3)
            assert notebook.asked <= 3
            assert program.pending == 6
            notebook.broken = None
            until(lambda: program.pending == 0)
        assert sorted(seen.source for seen in notebook.seen) == [f"tell-{n}" for n in range(1, 7)]
    finally:
        logging.getLogger("dspy.ace").removeHandler(caplog.handler)


def test_a_fault_of_ones_own_ends_the_learning_and_keeps_what_was_told(offline: OfflineLM) -> None:
    """A refiner that raises stops the background; calls go on, learn() raises it, and nothing told is lost."""
    broken = True

    def refine(playbook: Playbook) -> Delta:
        if broken:
            raise ZeroDivisionError("no bullets")
        return Delta()

    notebook = Notebook()
    with noted(notebook, learn="background", refine=refine) as program:
        for n in range(2):
            program.tell(program(message=f"Hello {n}"), 0)
        until(lambda: program.stopped is not None)
        assert "ZeroDivisionError: no bullets" in str(program.stopped)
        program.tell(program(message="more"), 0)
        assert program.pending == 3
        with pytest.raises(ZeroDivisionError):
            program.learn()
        broken = False
    assert (program.pending, len(program.playbook)) == (0, 3)


def test_a_budget_ends_the_learning_and_not_the_service() -> None:
    """max_lm_calls bounds roles and retries; the program is answered on, and what was told waits."""
    lm = OfflineLM()
    with dspy.context(lm=lm), online(desk_metric, max_lm_calls=3) as program:
        for example in TRAIN[:8]:
            program.tell(program(message=example.message), expected=example)
        while program.learn() is not None:
            pass
        usage = program.results.usage
        assert usage["task"].calls >= 8
        assert sum(used.calls for used in usage.values()) == lm.calls <= 8 + 3
        assert "max_lm_calls=3 is reached" in str(program.stopped)
        assert program.pending > 0
        curve = program.run(TRAIN[:2])
        assert len(curve.scores) == 2
        program.close(learn=False)


def test_a_stream_over_a_dead_provider_ends_soon(offline: OfflineLM) -> None:
    """A stream whose calls all fail raises after three, with the program so far."""
    dead = OfflineLM(faults={"auth": 1.0})
    with dspy.context(lm=dead), online(desk_metric) as program:
        with pytest.raises(RunError, match="every one of 3") as raised:
            program.run(TRAIN)
        assert raised.value.program.playbook == program.playbook
    assert dead.calls == 3


def test_every_attempt_is_counted() -> None:
    """Retries inside the client are calls of their own, in the server's log and in the account."""
    with serve(faults={"rate_limit": 0.3}, seed=1) as server, dspy.context(lm=client(server, num_retries=8)):
        with online(desk_metric) as program:
            for example in TRAIN[:4]:
                program.tell(program(message=example.message), expected=example)
        assert sum(used.calls for used in program.results.usage.values()) == len(server.log)
        assert any(record.fault for record in server.log)
