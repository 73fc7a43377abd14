"""Each knob of the offline model does what it says; faults are the errors that DSPy knows."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any, Literal

import dspy
import pytest
from dspy.utils.exceptions import (
    AdapterParseError,
    ContextWindowExceededError,
    LMAuthError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
)

from dspy_ace.testing import OfflineLM

ERRORS = {
    "rate_limit": LMRateLimitError,
    "server_error": LMServerError,
    "timeout": LMTimeoutError,
    "context_overflow": ContextWindowExceededError,
    "auth": LMAuthError,
}


class Pick(dspy.Signature):
    """Kayaks go to south, tents go to north."""

    note: str = dspy.InputField()
    desk: Literal["north", "south", "east"] = dspy.OutputField()


def answers(lm: Any, count: int = 120) -> list[str]:
    with dspy.context(lm=lm):
        return [dspy.Predict(Pick)(note=f"kayak number {n}").desk for n in range(count)]


def asked(output: str, **inputs: str) -> Any:
    sign = dspy.Signature(
        {name: (str, dspy.InputField()) for name in inputs}
        | {
            name: (str, dspy.OutputField())
            for name in (("key_insights", "bullet_tags") if output == "r" else ("operations",))
        }
    )
    return dspy.Predict(sign)(**inputs)


def reflections(lm: Any, count: int = 40) -> list[str]:
    with dspy.context(lm=lm):
        replies = [
            asked(
                "r",
                task_inputs=f"a kayak for {n}",
                trajectory="  → desk: north",
                outcome="FAILED",
                expected_outputs="desk: south",
            )
            for n in range(count)
        ]
    return [json.loads(reply.key_insights)[0] for reply in replies]


def test_slips_answer_wrongly_that_often() -> None:
    """Off, every answer is right; at 0.25 about a quarter is wrong, others for another seed."""
    assert set(answers(OfflineLM())) == {"south"}
    first, second = (answers(OfflineLM(slips=0.25, seed=seed)) for seed in (0, 1))
    assert 0.12 < 1 - Counter(first)["south"] / len(first) < 0.4
    assert first != second
    assert first == answers(OfflineLM(slips=0.25, seed=0))


def test_unparsable_replies_cannot_be_parsed() -> None:
    """At 1.0 no reply parses, in the first format nor in the one that DSPy falls back to."""
    lm = OfflineLM(unparsable=1.0)
    for n in range(8):
        with dspy.context(lm=lm), pytest.raises(AdapterParseError):
            dspy.Predict(Pick)(note=f"kayak {n}")
    assert len({record.reply for record in lm.log}) > 2


def test_wrong_lessons_swap_right_and_wrong() -> None:
    """At 1.0 the reflector praises the answer that was wrong."""
    assert all("answer south, not north" in line for line in reflections(OfflineLM()))
    assert all("answer north, not south" in line for line in reflections(OfflineLM(wrong_lessons=1.0)))


def test_paraphrase_keeps_the_lesson_and_changes_the_words() -> None:
    """The same lesson comes in other wordings, so that duplicates look different."""
    plain, other = reflections(OfflineLM()), reflections(OfflineLM(paraphrase=1.0))
    assert all(a != b for a, b in zip(plain, other, strict=True))
    assert all("south, not north" in line for line in other)
    assert len({line.split()[0] for line in other}) > 1


def test_junk_echoes_the_playbook() -> None:
    """A junk curation repeats headers and bullets as the content of new bullets."""
    with dspy.context(lm=OfflineLM(junk=1.0)):
        reply = asked("c", playbook="[a-00001] (R) Kayaks go to south.", reviews="Review 1 (x)\n- new lesson")
    assert all(o["content"].startswith("##") for o in json.loads(reply.operations))


@pytest.mark.parametrize("kind", sorted(ERRORS))
def test_faults_are_the_errors_of_this_dspy(kind: str) -> None:
    """A fault of probability 1 is raised as DSPy's own error, at every attempt, and is logged."""
    lm = OfflineLM(faults={kind: 1.0}, num_retries=2)
    with pytest.raises(ERRORS[kind]):
        lm("hello")
    passing = kind in ("rate_limit", "server_error", "timeout")
    assert [record.fault for record in lm.log] == [kind] * (3 if passing else 1)
    assert lm.log[0].completion_tokens == 0


def test_retries_get_past_passing_faults() -> None:
    """At 0.5 retried requests succeed in the end, and the log counts every attempt."""
    lm = OfflineLM(faults={"rate_limit": 0.3, "server_error": 0.3}, num_retries=20)
    assert set(answers(lm, 40)) == {"south"}
    assert lm.calls > 40
    assert sum(record.fault is None for record in lm.log) == 40


def test_context_window_overflows_by_size() -> None:
    """Requests above the window overflow, those below are answered."""
    lm = OfflineLM(context_window=60)
    lm("a short one")
    with pytest.raises(ContextWindowExceededError):
        lm("word " * 100)


def test_latency_is_waited_for() -> None:
    """Fixed seconds, seconds per prompt token and per completion token add up."""
    start = time.perf_counter()
    OfflineLM(latency=0.05)("hi")
    OfflineLM(latency_per_prompt_token=0.001)("word " * 50)
    OfflineLM(latency_per_completion_token=0.01)("What is 20 + 22?")
    assert time.perf_counter() - start >= 0.05 + 0.05 + 0.01


def test_prefix_cache_reports_shared_blocks() -> None:
    """Of a prompt seen before, whole blocks from its start count as cached, above the minimum only."""
    lm = OfflineLM(prefix_cache=True, cache_block=10, cache_minimum=20)
    shared = "alpha beta gamma delta " * 20
    for ending in ("one", "two", "two"):
        lm(shared + ending)
    lm("something else")
    sizes = [record.cached_tokens for record in lm.log]
    assert sizes[0] == 0
    assert sizes[1] % 10 == 0
    assert 70 <= sizes[1] <= lm.log[1].prompt_tokens
    assert sizes[3] == 0
    usage = lm.history[1]["usage"]["prompt_tokens_details"]
    assert (usage["cached_tokens"] if isinstance(usage, dict) else usage.cached_tokens) == sizes[1]


def test_append_only_prompts_stay_cached() -> None:
    """With DSPy's layout a playbook that only grows at its end keeps nearly its whole prompt cached."""
    lm = OfflineLM(prefix_cache=True)
    lines = [f"[a-{n:05d}] (R) Number {n} of many lessons goes to north." for n in range(150)]
    with dspy.context(lm=lm):
        for size in (149, 150):
            dspy.Predict(Pick.with_instructions("\n".join(lines[:size])))(note="x")
    assert lm.log[1].cached_tokens > 0.85 * lm.log[0].prompt_tokens


@pytest.mark.parametrize(
    "wrong",
    [{"slips": 1.5}, {"faults": {"flood": 0.1}}, {"faults": {"auth": -1}}, {"latency": -1.0}, {"context_window": 0}],
)
def test_knobs_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """A probability, time or size outside its range is an error with the knob's name."""
    with pytest.raises(ValueError, match=r"expected|cannot|must"):
        OfflineLM(**wrong)


def test_knobs_change_in_copies() -> None:
    """A copy with another knob keeps writing to the log of its original."""
    lm = OfflineLM()
    assert set(answers(lm.copy(slips=1.0), 5)) <= {"north", "east"}
    assert set(answers(lm, 5)) == {"south"}
    assert lm.calls == 10
