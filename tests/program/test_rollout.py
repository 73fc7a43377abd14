"""One rollout: every way it can end, what the metric is asked, and programs that cannot learn as they are used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import dspy
import pytest

from dspy_ace import Bullet, Playbook, with_playbook
from dspy_ace.errors import SettingsError
from dspy_ace.lm import Meter
from dspy_ace.program.metric import Scorer
from dspy_ace.program.rollout import Rollouts, rollouts
from dspy_ace.program.trajectory import Trajectory
from dspy_ace.program.transcript import render_calls
from scripted import Messages, scripted

pytestmark = pytest.mark.compat
CASE = dspy.Example(question="q", answer="right").with_inputs("question")
GOOD = "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]"


class Raises(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Ends as it is told to."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, question: str) -> Any:
        raise self.error


class MuteError(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError


def circular() -> BaseException:
    error = RuntimeError("leads back to itself")
    error.__cause__ = error
    return error


@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(0), "SystemExit: 0"),
        (asyncio.CancelledError(), "CancelledError"),
        (GeneratorExit(), "GeneratorExit"),
        (BaseException("bare"), "BaseException: bare"),
        (MuteError(), "MuteError"),
        (circular(), "RuntimeError: leads back to itself"),
    ],
)
def test_every_way_to_end_is_a_trajectory(error: BaseException, message: str, timeout: float | None) -> None:
    """Also what is no Exception: exit() in a tool, a cancelled task; in the program, the metric or the setup."""

    def raises(*_: Any) -> Any:
        raise error

    said = scripted(GOOD)
    with dspy.context(lm=said):
        made = [
            rollouts(Raises(error), [CASE], timeout=timeout)[0],
            rollouts(dspy.Predict("question -> answer"), [CASE], lambda e, p: raises(), timeout=timeout)[0],
            rollouts(dspy.Predict("question -> answer"), [CASE], setup=raises, timeout=timeout)[0],
        ]
    assert [t.error and (t.error.kind, t.error.message) for t in made] == [
        (kind, message) for kind in ("program", "metric", "setup")
    ]


class Waiting(dspy.Predict):  # type: ignore[misc]  # dspy is untyped
    """Answers after some time; without a time it fails."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__("question -> answer")
        self.seconds = seconds

    async def aforward(self, **kwargs: Any) -> Any:
        if self.seconds is None:
            raise RuntimeError("no answer")
        await asyncio.sleep(self.seconds)
        return await super().aforward(**kwargs)


class AtOnce(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Asks three predictors at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fails, self.quick = Waiting(0.2), Waiting(None), Waiting(0.0)

    def forward(self, question: str) -> Any:
        async def both() -> Any:
            asked = [each.acall(question=question) for each in (self.slow, self.fails, self.quick)]
            return (await asyncio.gather(*asked, return_exceptions=True))[0]

        return asyncio.run(both())


def test_calls_at_the_same_time_stand_in_the_order_of_their_beginning() -> None:
    """Whichever is answered first, or not at all: chance decides nothing that a reflection is shown."""
    with dspy.context(lm=scripted(GOOD)):
        made = rollouts(AtOnce(), [CASE])[0]
    assert [(call.predictor, bool(call.outputs)) for call in made.trace] == [
        ("slow", True),
        ("fails", False),
        ("quick", True),
    ]


def test_ctrl_c_passes_on() -> None:
    """It ends the run, not the rollout."""
    with pytest.raises(KeyboardInterrupt):
        rollouts(Raises(KeyboardInterrupt()), [CASE])


def test_the_text_of_an_error_is_bounded() -> None:
    """A message of megabytes is cut in the middle, visibly."""
    error = rollouts(Raises(ValueError("x" * 5_000_000)), [CASE])[0].error
    assert error is not None
    assert len(error.message) < 11_000
    assert "characters cut" in error.message


# --- the metric is GEPA's


class Two(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Two predictors that always run, the first of them twice, and one that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.draft = dspy.Predict("question -> answer")
        self.final = dspy.Predict("question, draft -> answer")
        self.never = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        drafts = [self.draft(question=f"{question}{turn}").answer for turn in (1, 2)]
        return self.final(question=question, draft=drafts[-1])


class Gepa:
    """A metric of five arguments that notes what it is asked."""

    def __init__(self, words: Any = "On {}.") -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.words = words

    def __call__(self, gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        self.asked.append((trace, pred_name, pred_trace))
        if pred_name is None:
            return dspy.Prediction(score=0.25, feedback="As a whole.")
        if isinstance(self.words, Exception):
            raise self.words
        return dspy.Prediction(score=0.9, feedback=self.words.format(pred_name))


def run(program: Any, metric: Any, **settings: Any) -> tuple[Rollouts, Trajectory]:
    """A rollout and what made it."""
    made = Rollouts(program, Scorer(metric), Meter(), failure_score=0.0, perfect_score=1.0, timeout=None, **settings)
    return made, made.one(CASE, "0")


def test_a_program_of_several_predictors_is_scored_as_a_whole() -> None:
    """As GEPA scores it: no name, no trace; nothing more is asked until the trajectory is reflected on."""
    metric = Gepa()
    with dspy.context(lm=scripted(GOOD)):
        _, trajectory = run(Two(), metric)
    assert metric.asked == [(None, None, None)]
    assert (trajectory.feedback.score, trajectory.feedback.text) == (0.25, "As a whole.")
    assert trajectory.predictor_feedback == {}


def test_of_what_is_reflected_on_each_predictor_that_ran_is_asked_about() -> None:
    """With its name, its last call and the whole trace, as GEPA gives them; the words stand beside that call."""
    metric = Gepa()
    program = Two()
    with dspy.context(lm=scripted(GOOD)):
        made, trajectory = run(program, metric)
        trajectory = made.ask_by_predictor(trajectory)
    assert trajectory.predictor_feedback == {"draft": "On draft.", "final": "On final."}
    assert trajectory.feedback.score == 0.25
    trace, _, pred_trace = metric.asked[1]
    assert [name for _, name, _ in metric.asked] == [None, "draft", "final"]
    assert [entry[0] for entry in trace] == [program.draft, program.draft, program.final]
    ((predictor, inputs, outputs),) = pred_trace
    assert (predictor, inputs, outputs.answer) == (program.draft, {"question": "q2"}, "Paris")
    told = render_calls(trajectory).split("\nCall ")
    assert ["Feedback on draft: On draft." in call for call in told] == [False, True, False]
    assert told[2].endswith("Feedback on final: On final.")


def test_a_program_of_one_predictor_is_asked_once_with_its_name() -> None:
    """The words of that one call are the feedback."""
    metric = Gepa()
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=scripted(GOOD)):
        made, trajectory = run(program, metric)
        assert made.ask_by_predictor(trajectory) is trajectory
    ((trace, name, pred_trace),) = metric.asked
    assert (name, len(trace), pred_trace[0][0]) == ("self", 1, program)
    assert trajectory.feedback.text == "On self."


@pytest.mark.parametrize("metric", [lambda e, p: 0.0, lambda e, p, trace=None: 0.0, None])
def test_other_metrics_are_asked_once(metric: Any) -> None:
    """Two or three arguments, or no metric: nothing is asked about a predictor."""
    with dspy.context(lm=scripted(GOOD)):
        made, trajectory = run(Two(), metric)
        assert made.ask_by_predictor(trajectory) is trajectory


def test_a_rollout_that_failed_is_not_asked_about() -> None:
    """There is no answer to speak of."""
    metric = Gepa()
    with dspy.context(lm=scripted("no structure")):
        made, trajectory = run(Two(), metric)
        assert made.ask_by_predictor(trajectory) is trajectory
    assert metric.asked == []


def test_words_that_say_nothing_new_are_left_out() -> None:
    """What the metric said of the whole is not repeated beside each call."""
    with dspy.context(lm=scripted(GOOD)):
        for words in ("As a whole.", ""):
            made, trajectory = run(Two(), Gepa(words))
            assert made.ask_by_predictor(trajectory).predictor_feedback == {}


def test_a_metric_that_fails_on_a_predictor_costs_its_words_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The score stands, and the first failure is warned of."""
    with dspy.context(lm=scripted(GOOD)), caplog.at_level(logging.WARNING, "dspy.ace"):
        made, trajectory = run(Two(), Gepa(KeyError("no such predictor")))
        asked = made.ask_by_predictor(trajectory)
    assert (asked.feedback, asked.error, asked.predictor_feedback) == (trajectory.feedback, None, {})
    assert [record.getMessage() for record in caplog.records] == [
        "ACE: the metric has no words on predictor draft: KeyError: 'no such predictor'"
    ]


def test_with_an_environment_the_metric_is_asked_while_it_is_open() -> None:
    """A metric that looks into the environment finds it, for each predictor of a failure."""
    room: ContextVar[str] = ContextVar("room")

    @contextmanager
    def setup(example: dspy.Example) -> Iterator[None]:
        token = room.set("open")
        yield
        room.reset(token)

    def metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        return dspy.Prediction(score=0.0, feedback=f"{pred_name} in the {room.get()} room")

    with dspy.context(lm=scripted(GOOD)):
        made, trajectory = run(Two(), metric, setup=setup)
    assert trajectory.predictor_feedback["draft"] == "draft in the open room"
    assert made.ask_by_predictor(trajectory) is trajectory


# --- programs that cannot learn as they are used


class Pipeline(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Hands on whatever it is given."""

    def __init__(self, second: str = "question -> team") -> None:
        super().__init__()
        self.route = dspy.Predict("ticket -> team")
        self.other = dspy.Predict(second)

    def forward(self, **given: Any) -> Any:
        return self.route(**given)


@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize("program", [dspy.Predict("ticket -> team"), dspy.ChainOfThought("ticket -> team"), Pipeline()])
def test_an_input_that_no_predictor_knows_is_found_before_the_first_call(program: Any, timeout: float | None) -> None:
    """`tickt` for `ticket`: the error names both, and no LM is called."""
    lm = scripted(GOOD)
    example = dspy.Example(tickt="My refund?", team="x").with_inputs("tickt")
    with dspy.context(lm=lm), pytest.raises(SettingsError, match=r"input tickt, which no predictor .* without ticket"):
        rollouts(program, [example, example], num_threads=2, timeout=timeout)
    assert lm.script.requests == []


@pytest.mark.parametrize(
    ("program", "fields"),
    [
        (dspy.Predict("question -> answer"), {"question": "q", "id": 7}),
        (dspy.Predict("question, hint: str | None -> answer"), {"question": "q", "note": "x"}),
        (Pipeline("tickt -> team"), {"tickt": "another predictor knows it"}),
    ],
)
def test_other_inputs_are_the_programs_business(program: Any, fields: dict[str, Any]) -> None:
    """Fields beside those that are needed, and names that some predictor knows, are no mistake."""
    with dspy.context(lm=scripted(GOOD.replace("answer", "team") + GOOD)):
        made = rollouts(program, [dspy.Example(**fields).with_inputs(*fields)])
    assert made[0].trace


class Template(dspy.ChatAdapter):  # type: ignore[misc]  # dspy is untyped
    """Writes its own prompt; the instructions only if told to."""

    def __init__(self, system: str) -> None:
        super().__init__()
        self.system = system

    def format(self, signature: Any, demos: Any, inputs: Any) -> Messages:
        system = self.system.format(instructions=signature.instructions)
        return [{"role": "system", "content": system}, {"role": "user", "content": str(inputs)}]


RULES = Playbook((Bullet("str-00001", "S", "Mind the units."),))


@pytest.mark.parametrize("playbook", [Playbook(), RULES])
def test_an_adapter_that_leaves_the_instructions_out_is_an_error(playbook: Playbook) -> None:
    """Nothing that is learned could reach the model: the first rollout says so, and what to do."""
    program = with_playbook(dspy.Predict("question -> answer"), playbook, cite=True)
    with dspy.context(lm=scripted(GOOD), adapter=Template("Answer."), track_usage=False):
        with pytest.raises(SettingsError, match="adapter Template leaves the predictors' instructions out"):
            rollouts(program, [CASE])
        assert rollouts(dspy.Predict("question -> answer"), [CASE])[0].error is None  # nobody wants it to learn


@pytest.mark.parametrize("playbook", [Playbook(), RULES])
def test_an_adapter_that_shows_the_instructions_somewhere_is_fine(playbook: Playbook) -> None:
    """However it wraps them."""
    program = with_playbook(dspy.Predict("question -> answer"), playbook)
    with dspy.context(lm=scripted(GOOD), adapter=Template("Rules:\n\n   {instructions}\n\nNow answer.")):
        assert rollouts(program, [CASE])[0].error is None
