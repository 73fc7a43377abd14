"""One learning step, with roles that are plain functions and a program that calls no LM."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import dspy
import pytest

import steps
from dspy_ace import Playbook
from dspy_ace.errors import RunError
from dspy_ace.lm import LimitReachedError
from dspy_ace.playbook import Add, Delete, Delta, Tag, Update, apply
from dspy_ace.program import Failure, Feedback, Trajectory
from dspy_ace.roles import Reflection
from dspy_ace.training import State, Step
from dspy_ace.training.engine import Engine
from dspy_ace.training.settings import LearningSettings
from dspy_ace.training.step import Attempt, reflect_in_rounds

START = Playbook.from_text("## S\n[s-00001] helpful=1 harmful=0 :: First.\n[s-00002] Second.")

pytestmark = pytest.mark.compat


class Student(dspy.Module):
    """Answers "right" once its instructions hold the words that its question asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        right = question.partition("needs ")[2] in self.ask.signature.instructions
        return dspy.Prediction(answer="right" if right else "wrong")


def metric(example: dspy.Example, prediction: Any) -> bool:
    return bool(prediction.answer == "right")


def trajectory(source: str, score: float = 0.0, **fields: Any) -> Trajectory:
    """A rollout on an example of that name; a success from 1.0 on; it was shown the whole start playbook."""
    example = dspy.Example(question=f"{source} needs {fields.pop('needs', 'nothing that helps')}").with_inputs(
        "question"
    )
    fields = {"shown": ("s-00001", "s-00002"), "success": score >= 1, **fields}
    return Trajectory(example, None, (), Feedback(score), source, **fields)


def insight(playbook: Playbook, t: Trajectory) -> Reflection:
    """One insight, named after the example."""
    return Reflection((f"Lesson of {t.source}.",))


def keep(playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, tuple[()]]:
    """Every insight becomes a bullet."""
    adds = [
        Add("S", i.content, sources=(r.trajectory.source,)) for r in reflections if r.trajectory for i in r.insights
    ]
    return Delta(tuple(adds)), ()


def no_change(playbook: Playbook) -> Delta:
    """A refiner that leaves everything."""
    return Delta()


def step_of(
    batch: Sequence[Trajectory], reflect: Any = insight, curate: Any = keep, refine: Any = no_change, **settings: Any
) -> Step:
    """The step that a batch makes of the start playbook."""
    given = {"metric": metric, "refine": refine, **settings}
    with dspy.context(lm=None):
        return steps.step_of(START, batch, reflect, curate, student=Student(), **given)


def contents(step: Step) -> list[str]:
    """What the step added to the start playbook."""
    return [bullet.content for bullet in step.playbook][2:]


def test_lessons_are_added_in_the_order_of_the_examples_whichever_thread_ends_first() -> None:
    """Slow and fast reflections in threads give the same step as one thread."""

    def slow(playbook: Playbook, t: Trajectory) -> Reflection:
        time.sleep(random.random() / 50)
        return insight(playbook, t)

    batch = [trajectory(str(n)) for n in range(12)]
    one, many = (step_of(batch, slow, num_threads=threads) for threads in (1, 8))
    assert one.delta == many.delta
    assert contents(one) == [f"Lesson of {n}." for n in range(12)]
    assert apply(START, one.delta) == one.playbook


def test_a_vote_counts_once_an_example_and_only_for_bullets_that_were_shown() -> None:
    """Votes for unknown or hidden bullets are rejected with a reason, neutral ones leave no trace."""

    def tags(playbook: Playbook, t: Trajectory) -> Reflection:
        return Reflection(tags={"[S-00001]": "helpful", "s-00002": "harmful", "s-00009": "helpful"})

    batch = [trajectory("a"), trajectory("b", shown=("s-00001",)), trajectory("c")]
    step = step_of(batch, tags)
    assert (step.playbook["s-00001"].helpful, step.playbook["s-00002"].harmful) == (4, 2)
    assert sorted(r.reason for r in step.rejected) == [
        "tag s-00002 (not shown): no bullet 's-00002 (not shown)' in the playbook",
        *["tag s-00009 (not shown): no bullet 's-00009 (not shown)' in the playbook"] * 3,
    ]
    assert Tag("s-00001", helpful=1, source="a") in step.delta.operations
    neutral = step_of(batch, lambda p, t: Reflection(tags={"s-00001": "neutral"}))
    assert neutral.delta == Delta()


def test_a_failure_is_retried_with_its_insights_until_it_is_right_or_the_rounds_are_over() -> None:
    """Each retry carries the reflection before it; only the last reflection is curated, with its evidence."""
    seen: list[tuple[str, Any]] = []

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        seen.append((t.source, None if t.attempt is None else t.attempt.insights[0].content))
        return Reflection((f"Round {len([s for s, _ in seen if s == t.source])} on {t.source}.",))

    batch = [trajectory("late", needs="Round 2"), trajectory("never"), trajectory("won", 1.0)]
    step = step_of(batch, reflect, max_reflection_rounds=3)
    assert seen == [
        ("late", None), ("late", "Round 1 on late."),
        ("never", None), ("never", "Round 1 on never."), ("never", "Round 2 on never."),
        ("won", None),
    ]  # fmt: skip
    told = [
        (r.verified, tuple(t.feedback.score for t in (r.trajectory, *r.retries))) for r in step.reflected.reflections
    ]
    assert told == [
        (True, (0.0, 0.0, 1.0)), (False, (0.0, 0.0, 0.0, 0.0)), (None, (1.0,)),
    ]  # fmt: skip
    assert contents(step) == ["Round 2 on late.", "Round 3 on never.", "Round 1 on won."]
    assert step.reflected.reflections[0].trajectory == batch[0]
    answers = [retry.prediction.answer for retry in step.reflected.reflections[0].retries]
    assert answers == ["wrong", "right"]
    assert [attempt.rollouts for attempt in step.reflected.attempts] == [2, 3, 0]


def test_no_retry_without_insights_or_without_rounds() -> None:
    """A retry that could prove nothing is not paid for."""
    batch = [trajectory("a")]
    assert step_of(batch, lambda p, t: Reflection(), max_reflection_rounds=3).reflected.attempts[0].rollouts == 0
    assert step_of(batch, max_reflection_rounds=0).reflected.attempts[0].rollouts == 0


def test_a_retry_that_the_metric_fails_is_no_evidence() -> None:
    """It is counted and recorded, and the insight counts as not retried."""

    def broken(example: dspy.Example, prediction: Any) -> bool:
        raise KeyError("no such field")

    step = step_of([trajectory("a")], metric=broken, max_reflection_rounds=3)
    assert step.reflected.reflections[0].verified is None
    assert [(str(f.rollout), f.kind) for f in step.reflected.attempts[0].failures] == [("a, retry 1", "metric")]


def test_what_teaches_nothing_is_not_reflected_on() -> None:
    """Nothing is learned from dead providers and broken metrics; failures only leaves successes out."""
    seen: list[str] = []

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        seen.append(t.source)
        return Reflection()

    batch = [
        trajectory("provider", error=Failure("provider", "401")),
        trajectory("metric", error=Failure("metric", "KeyError")),
        trajectory("format", error=Failure("format", "no JSON")),
        trajectory("program", error=Failure("program", "ZeroDivisionError")),
        trajectory("won", 1.0),
    ]
    step_of(batch, reflect)
    assert seen == ["format", "program", "won"]
    seen.clear()
    step_of(batch, reflect, reflect_on="failures")
    assert seen == ["format", "program"]


def test_nobody_is_asked_why_things_went_right_before_anything_went_wrong() -> None:
    """A batch of successes of a student without a mistake costs no role call; without a metric it does."""
    batch = [trajectory("a", 1.0), trajectory("b", 1.0)]
    assert not step_of(batch).reflected.reflections
    assert len(step_of(batch, metric=None).reflected.reflections) == 2


def test_a_success_that_nobody_reflects_on_counts_for_the_bullets_it_cites() -> None:
    """Its citations are helpful votes, at no LM call."""
    step = step_of([trajectory("a", 1.0, cited=("s-00002",)), trajectory("b")], reflect_on="failures")
    assert step.playbook["s-00002"].helpful == 1


def test_a_batch_is_curated_in_one_call() -> None:
    """The Curator sees all reflections with insights at once, in the order of the examples, and this batch's votes."""
    calls: list[tuple[Playbook, list[str]]] = []

    def curate(playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, tuple[()]]:
        calls.append((playbook, [r.trajectory.source for r in reflections if r.trajectory]))
        return Delta((Update("s-00002", "Better."),)), ()

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        return Reflection(() if t.source == "quiet" else ("x",), tags={"s-00001": "helpful"})

    batch = [trajectory("a"), trajectory("quiet"), trajectory("b")]
    step = step_of(batch, reflect, curate)
    assert [(p["s-00001"].helpful, sources) for p, sources in calls] == [(4, ["a", "b"])]
    assert (step.playbook["s-00001"].helpful, step.playbook["s-00002"].content) == (4, "Better.")
    assert step.curation == ""


def test_a_failed_role_loses_itself_alone_and_says_so() -> None:
    """A reflection that raises is told in its attempt; a curation that raises is told in the step."""

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        if t.source == "bad":
            raise RuntimeError("no reply")
        return insight(playbook, t)

    def curate(playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, tuple[()]]:
        raise RuntimeError("no JSON")

    batch = [trajectory(name) for name in ("a", "bad", "c")]
    step = step_of(batch, reflect)
    assert contents(step) == ["Lesson of a.", "Lesson of c."]
    assert [attempt.error for attempt in step.reflected.attempts] == ["", "RuntimeError: no reply", ""]
    step = step_of(batch, reflect, curate)
    assert (step.curation, step.playbook) == ("RuntimeError: no JSON", START)


@pytest.mark.parametrize("wrong", [None, "an insight", [Reflection(("x",))], Delta()])
def test_a_role_that_returns_something_else_is_told_so(wrong: Any) -> None:
    """A reflector or curator that breaks its contract is recorded like one that raises: nothing vanishes."""
    step = step_of([trajectory("a")], lambda p, t: wrong)
    assert "expected a Reflection" in step.reflected.attempts[0].error
    step = step_of([trajectory("a")], curate=lambda p, r: wrong)
    assert step.curation
    assert step.playbook == START


def test_a_later_round_that_fails_keeps_the_reflection_before_it() -> None:
    """Insights of an earlier round are curated all the same."""

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        if t.attempt is not None:
            raise RuntimeError("gone")
        return insight(playbook, t)

    step = step_of([trajectory("a")], reflect, max_reflection_rounds=2)
    assert contents(step) == ["Lesson of a."]
    assert (step.reflected.reflections[0].verified, step.reflected.attempts[0].rollouts) == (False, 1)


def test_refining_is_part_of_the_steps_delta() -> None:
    """What the refiner merges and prunes is in the delta, after votes and the Curator's operations."""
    step = step_of([trajectory("a")], refine=lambda playbook: Delta((Delete("s-00002"),)))
    assert [b.id for b in step.playbook] == ["s-00001", "s-00003"]
    assert [operation.op for operation in step.delta.operations] == ["add", "delete"]


def test_an_operation_that_does_not_fit_is_rejected_alone() -> None:
    """A custom curator may return anything: what fits is applied, the rest is reported."""

    def curate(playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, tuple[()]]:
        return Delta((Update("s-00077", "x"), Add("S", "Good."), Add("S", "  "))), ()

    step = step_of([trajectory("a")], curate=curate)
    assert contents(step) == ["Good."]
    assert len(step.rejected) == 2


def test_an_empty_batch_changes_nothing() -> None:
    """No call is made."""
    step = step_of([], lambda p, t: 1 / 0, lambda p, r: 1 / 0)
    assert (step.playbook, step.delta, step.curation) == (START, Delta(), None)


class Grouping:
    """A reflector that takes successes together, and keeps what it was asked about."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.alone: list[str] = []
        self.groups: list[list[str]] = []
        self.error = error

    def __call__(self, playbook: Playbook, t: Trajectory) -> Reflection:
        self.alone.append(t.source)
        return insight(playbook, t)

    def on_successes(self, playbook: Playbook, successes: Sequence[Trajectory]) -> list[Reflection]:
        self.groups.append([t.source for t in successes])
        if self.error is not None:
            raise self.error
        return [Reflection(("All are brief.",), trajectory=successes[0], others=tuple(successes[1:]))]


def test_failures_are_reflected_on_alone_and_successes_together() -> None:
    """One call for all successes of a batch; its reflection is curated last, and its bullets name them all."""
    role = Grouping()
    batch = [trajectory("a", 1.0), trajectory("b"), trajectory("c", 1.0), trajectory("d")]
    step = step_of(batch, role)
    assert (role.alone, role.groups) == (["b", "d"], [["a", "c"]])
    assert contents(step) == ["Lesson of b.", "Lesson of d.", "All are brief."]
    assert [t.source for t in step.reflected.reflections[-1].trajectories] == ["a", "c"]


def test_votes_of_successes_are_their_citations() -> None:
    """Also of successes that were reflected on together."""
    batch = [trajectory("a", 1.0, cited=("s-00002",)), trajectory("b")]
    assert step_of(batch, Grouping()).playbook["s-00002"].helpful == 1


def test_a_perfect_student_costs_no_call_about_successes() -> None:
    """Before the first mistake nobody is asked; with failures only, never."""
    role = Grouping()
    step_of([trajectory("a", 1.0), trajectory("b", 1.0)], role)
    step_of([trajectory("a", 1.0), trajectory("b")], role, reflect_on="failures")
    assert role.groups == []


def test_a_failed_reflection_on_successes_loses_itself_alone() -> None:
    """The lessons of failures are curated, and the error is in the step."""
    step = step_of([trajectory("a", 1.0), trajectory("b")], Grouping(RuntimeError("no reply")))
    assert contents(step) == ["Lesson of b."]
    assert step.reflected.together is not None
    assert step.reflected.together.error == "RuntimeError: no reply"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError(f"Authorization: Bearer {'a1' * 12}"), "ValueError: Authorization: Bearer [redacted]"),
        (SystemExit(0), "RoleError: SystemExit: 0"),
    ],
)
def test_an_error_about_successes_is_kept_as_that_of_any_role(error: BaseException, words: str) -> None:
    """Without secrets; exit() is the role's failure."""
    step = step_of([trajectory("a", 1.0), trajectory("b")], Grouping(error))
    assert step.reflected.together is not None
    assert step.reflected.together.error == words


@pytest.mark.parametrize("role", [Grouping(RuntimeError("no reply")), insight])
def test_a_success_votes_once(role: Any) -> None:
    """Not by citation if its reflection failed (it may come again), or if it was reflected on alone."""
    batch = [trajectory("a", 1.0, cited=("s-00002",)), trajectory("b")]
    assert step_of(batch, role).playbook["s-00002"].helpful == 0


def test_the_last_retry_is_followed_by_no_reflection_that_nobody_tries() -> None:
    """Where a limit leaves one retry of three, one reflection is asked for, and its own retry is told."""
    asked: list[str] = []

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        asked.append(t.source)
        return Reflection((f"Lesson {len(asked)}.",))

    settings = LearningSettings.of(metric=metric, reflect=reflect, curate=keep, max_reflection_rounds=3)
    with dspy.context(lm=None):
        engine = Engine(settings, Student())
        made = reflect_in_rounds(engine, State.of(START), Attempt(trajectory("a")), 1)
    assert asked == ["a"]
    assert made.reflection is not None
    assert len(made.reflection.retries) == 1


def test_a_dead_reflector_costs_three_calls() -> None:
    """Whatever failures and successes are in the first batch."""
    asked: list[str] = []

    def dead(playbook: Playbook, t: Trajectory) -> Reflection:
        asked.append(t.source)
        raise RuntimeError("401")

    with pytest.raises(RunError, match="never worked"):
        step_of([trajectory(str(n), float(n % 2)) for n in range(10)], dead)
    assert len(asked) == 3


def test_a_vote_for_misapplied_changes_no_counter() -> None:
    """The Curator is told; the bullet may be right within its condition."""
    step = step_of([trajectory("a")], lambda p, t: Reflection(tags={"s-00001": "misapplied"}))
    assert step.delta == Delta()


def test_the_inputs_that_a_batch_shares_are_told_to_the_reflector() -> None:
    """Every trajectory that it is asked about knows the pieces of text that all cases have."""
    seen: list[frozenset[str]] = []

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        seen.append(t.shared)
        return Reflection()

    examples = [dspy.Example(question=f"Tags: Alpha, Beta. Which is {n}?").with_inputs("question") for n in range(2)]
    step_of([Trajectory(e, None, (), Feedback(0.0), str(n)) for n, e in enumerate(examples)], reflect)
    assert seen == [frozenset({"question: Tags: Alpha,", " Beta. "})] * 2


def test_a_bullet_that_a_reply_names_twice_has_one_vote_of_it() -> None:
    """However the id is written, the first vote counts."""
    votes = {"s-00001": "helpful", "[S-00001]": "harmful", " s-00001": "helpful"}
    step = step_of([trajectory("a")], lambda p, t: Reflection(tags=votes))
    assert (step.playbook["s-00001"].helpful, step.playbook["s-00001"].harmful) == (2, 0)


def test_an_operation_without_sources_is_rejected_alone() -> None:
    """A Curator of the user's may return anything for them."""

    def curate(playbook: Playbook, reflections: Any) -> Any:
        broken: Any = None
        return Delta((Add("S", "Broken.", "ask", broken), Add("S", "Sound.", sources=("a",)))), ()

    step = step_of([trajectory("a")], curate=curate)
    assert "Sound." in contents(step)


def test_a_limit_met_by_the_refiner_keeps_the_step() -> None:
    """What was curated is paid for; that it was not refined is said."""

    def refine(playbook: Playbook) -> Delta:
        raise LimitReachedError("max_lm_calls=9 is reached")

    step = step_of([trajectory("a")], refine=refine)
    assert contents(step) == ["Lesson of a."]
    assert [rejected.reason for rejected in step.rejected] == [
        "the playbook was not refined: max_lm_calls=9 is reached"
    ]


def test_a_retry_that_a_limit_cuts_off_is_on_record() -> None:
    """It was begun, so it counts as a rollout."""

    class Refused(Student):
        def forward(self, question: str) -> dspy.Prediction:
            raise LimitReachedError("max_lm_calls=9 is reached")

    given = {"metric": metric, "refine": no_change, "max_reflection_rounds": 1}
    with dspy.context(lm=None):
        step = steps.step_of(START, [trajectory("a")], insight, keep, student=Refused(), **given)
    assert [attempt.rollouts for attempt in step.reflected.attempts] == [1]
