"""One adaptation step, with roles that are plain functions."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dspy
import pytest

from dspy_ace import Playbook
from dspy_ace.playbook import Add, Delete, Delta, Tag, Update, apply
from dspy_ace.program import Trajectory
from dspy_ace.program.trajectory import Failure, Feedback
from dspy_ace.roles import Reflection
from dspy_ace.training.adapt import adapt

START = Playbook.from_text("## S\n[s-00001] helpful=1 harmful=0 :: First.\n[s-00002] Second.")


def trajectory(source: str, score: float = 0.0, **fields: Any) -> Trajectory:
    """A rollout on an example of that name; a success from 1.0 on; it was shown the whole start playbook."""
    example = dspy.Example(question=f"case {source}", answer="yes").with_inputs("question")
    fields = {"shown": ("s-00001", "s-00002"), "success": score >= 1, **fields}
    return Trajectory(example, None, (), Feedback(score), source, **fields)


def lesson(playbook: Playbook, t: Trajectory) -> Reflection:
    """One insight, named after the example."""
    return Reflection((f"Lesson of {t.source}.",))


def keep(playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, tuple[()]]:
    """Every insight becomes a bullet."""
    adds = [Add("S", i.content, sources=(r.trajectory.source,)) for r in reflections for i in r.insights]
    return Delta(tuple(adds)), ()


def no_change(playbook: Playbook) -> Delta:
    """A refiner that leaves everything."""
    return Delta()


pytestmark = pytest.mark.compat


def test_lessons_are_added_in_the_order_of_the_examples_whichever_thread_ends_first() -> None:
    """Slow and fast reflections in threads give the same step as one thread."""

    def slow(playbook: Playbook, t: Trajectory) -> Reflection:
        time.sleep(random.random() / 50)
        return lesson(playbook, t)

    batch = [trajectory(str(n)) for n in range(12)]
    steps = [adapt(START, batch, slow, keep, no_change, num_threads=n, group_size=2) for n in (1, 8)]
    assert steps[0].delta == steps[1].delta
    assert [b.content for b in steps[0].playbook][2:] == [f"Lesson of {n}." for n in range(12)]
    assert apply(START, steps[0].delta) == steps[0].playbook


def test_a_vote_counts_once_an_example_and_only_for_bullets_that_were_shown() -> None:
    """Votes for unknown or hidden bullets are rejected with a reason, neutral ones leave no trace."""

    def tags(playbook: Playbook, t: Trajectory) -> Reflection:
        return Reflection(tags={"[S-00001]": "helpful", "s-00002": "harmful", "s-00009": "helpful"})

    batch = [trajectory("a"), trajectory("b", shown=("s-00001",)), trajectory("c")]
    step = adapt(START, batch, tags, keep, no_change)
    assert (step.playbook["s-00001"].helpful, step.playbook["s-00002"].harmful) == (4, 2)
    assert sorted(r.reason for r in step.rejected) == [
        "tag s-00002 (not shown): no bullet 's-00002 (not shown)' in the playbook",
        *["tag s-00009 (not shown): no bullet 's-00009 (not shown)' in the playbook"] * 3,
    ]
    assert Tag("s-00001", helpful=1, source="a") in step.delta.operations
    neutral = adapt(START, batch, lambda p, t: Reflection(tags={"s-00001": "neutral"}), keep, no_change)
    assert neutral.delta == Delta()


def test_a_failure_is_retried_with_its_insights_until_it_is_right_or_the_rounds_are_over() -> None:
    """Each retry carries the reflection before it; only the last reflection is curated, with its evidence."""
    seen: list[tuple[str, Any]] = []

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        seen.append((t.source, None if t.attempt is None else t.attempt.insights[0].content))
        return Reflection((f"Round {len([s for s, _ in seen if s == t.source])} on {t.source}.",))

    def retry(first: Trajectory, reflection: Reflection) -> Trajectory:
        right = first.source == "late" and "Round 2" in reflection.insights[0].content
        return replace(first, feedback=Feedback(float(right)), success=right)

    batch = [trajectory("late"), trajectory("never"), trajectory("won", 1.0)]
    step = adapt(START, batch, reflect, keep, no_change, retry=retry, rounds=3, num_threads=1)
    assert seen == [
        ("late", None), ("late", "Round 1 on late."),
        ("never", None), ("never", "Round 1 on never."), ("never", "Round 2 on never."),
        ("won", None),
    ]  # fmt: skip
    assert [(r.verified, r.scores) for r in step.reflections] == [
        (True, (0.0, 0.0, 1.0)), (False, (0.0, 0.0, 0.0, 0.0)), (None, (1.0,)),
    ]  # fmt: skip
    assert [b.content for b in step.playbook][2:] == ["Round 2 on late.", "Round 3 on never.", "Round 1 on won."]
    assert step.reflections[0].trajectory is batch[0]


def test_no_retry_without_insights_without_rounds_or_when_the_provider_fails() -> None:
    """A retry that could prove nothing is not paid for; one that was not made is no evidence."""
    made: list[str] = []

    def retry(first: Trajectory, reflection: Reflection) -> Trajectory:
        made.append(first.source)
        return replace(first, error=Failure("provider", "429"))

    batch = [trajectory("a")]
    adapt(START, batch, lambda p, t: Reflection(), keep, no_change, retry=retry, rounds=3)
    adapt(START, batch, lesson, keep, no_change, retry=retry, rounds=0)
    assert made == []
    step = adapt(START, batch, lesson, keep, no_change, retry=retry, rounds=3)
    assert made == ["a"]
    assert step.reflections[0].verified is None


def test_what_teaches_nothing_is_not_reflected_on() -> None:
    """Dead providers and broken metrics are not lessons; failures only leaves successes out."""
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
    step = adapt(START, batch, reflect, keep, no_change, num_threads=1)
    assert seen == ["format", "program", "won"]
    assert step.score == pytest.approx(0.2)
    seen.clear()
    adapt(START, batch, reflect, keep, no_change, num_threads=1, reflect_on="failures")
    assert seen == ["format", "program"]


def test_groups_see_the_snapshot_of_the_batch_and_their_repeats_collapse() -> None:
    """The same lesson from two groups is one bullet of both sources; of two edits of a bullet the first stands."""
    snapshots: list[Playbook] = []

    def curate(playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, tuple[()]]:
        snapshots.append(playbook)
        source = reflections[0].trajectory.source
        add = Add("S", "The very same lesson.", sources=(source,))
        return Delta((add, Update("s-00002", f"Second, says {source}."))), ()

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        return Reflection(("x",), tags={"s-00001": "helpful"})

    step = adapt(START, [trajectory("a"), trajectory("b")], reflect, curate, no_change, group_size=1, num_threads=1)
    assert [p["s-00001"].helpful for p in snapshots] == [1, 1]
    assert len(step.playbook) == 3
    assert step.playbook["s-00003"].sources == ("a", "b")
    assert step.playbook["s-00002"].content == "Second, says a."
    assert [r.reason for r in step.rejected] == [
        "update s-00002: an earlier operation of this batch edits the same bullet"
    ]


def test_a_failed_role_loses_itself_alone_and_says_so() -> None:
    """A reflection or a group that raises is recorded with the examples it concerns."""

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        if t.source == "bad":
            raise RuntimeError("no reply")
        return lesson(playbook, t)

    def curate(playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, tuple[()]]:
        if reflections[0].trajectory.source == "c":
            raise RuntimeError("no JSON")
        return keep(playbook, reflections)

    batch = [trajectory(name) for name in ("a", "bad", "c")]
    step = adapt(START, batch, reflect, curate, no_change, group_size=1)
    assert [b.content for b in step.playbook][2:] == ["Lesson of a."]
    assert [r.reason for r in step.rejected] == [
        "reflection on example bad failed: RuntimeError: no reply",
        "curation of examples c failed: RuntimeError: no JSON",
    ]


@pytest.mark.parametrize("wrong", [None, "a lesson", [Reflection(("x",))], Delta()])
def test_a_role_that_returns_something_else_is_told_so(wrong: Any) -> None:
    """A reflector or curator that breaks its contract is recorded like one that raises: nothing vanishes."""
    step = adapt(START, [trajectory("a")], lambda p, t: wrong, keep, no_change, retry=lambda t, r: t)
    assert ["expected a Reflection" in r.reason for r in step.rejected] == [True]
    step = adapt(START, [trajectory("a")], lesson, lambda p, r: wrong, no_change)
    assert len(step.rejected) == 1
    assert step.playbook == START


def test_a_later_round_that_fails_keeps_the_reflection_before_it() -> None:
    """What an earlier round learned is curated all the same."""

    def reflect(playbook: Playbook, t: Trajectory) -> Reflection:
        if t.attempt is not None:
            raise RuntimeError("gone")
        return lesson(playbook, t)

    step = adapt(START, [trajectory("a")], reflect, keep, no_change, retry=lambda t, r: t, rounds=2)
    assert [b.content for b in step.playbook][2:] == ["Lesson of a."]
    assert (step.reflections[0].verified, len(step.rejected)) == (False, 1)


def test_refining_is_part_of_the_steps_delta() -> None:
    """What the refiner merges and prunes is in the delta, after tags and the curator's operations."""
    step = adapt(START, [trajectory("a")], lesson, keep, lambda playbook: Delta((Delete("s-00002"),)))
    assert [b.id for b in step.playbook] == ["s-00001", "s-00003"]
    assert [operation.op for operation in step.delta.operations] == ["add", "delete"]


def test_an_operation_that_does_not_fit_is_rejected_alone() -> None:
    """A custom curator may return anything: what fits is applied, the rest is reported."""

    def curate(playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, tuple[()]]:
        return Delta((Update("s-00077", "x"), Add("S", "Good."), Add("S", "  "))), ()

    step = adapt(START, [trajectory("a")], lesson, curate, no_change)
    assert [b.content for b in step.playbook][2:] == ["Good."]
    assert len(step.rejected) == 2


def test_an_empty_batch_changes_nothing() -> None:
    """No trajectories, no calls, the same playbook."""
    step = adapt(START, [], lesson, keep, no_change)
    assert (step.playbook, step.delta, step.score) == (START, Delta(), None)
