"""Validation: no rollout that is not needed, and the choice it leads to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import dspy
import pytest

from dspy_ace import Playbook
from dspy_ace.playbook import Add, Delta
from dspy_ace.testing import OfflineLM
from dspy_ace.training.journal import line_of
from dspy_ace.training.state import Record, seed_validation
from runs import compiled
from tasks import Route, desk_metric, messages

pytestmark = pytest.mark.compat
DIFFERENT = list({example.message: example for example in messages(400, 1)}.values())
TRAIN, VAL = DIFFERENT[:24], DIFFERENT[24:56]
HOUSE_RULES = Playbook.from_text(
    "## S\n[s-00001] Messages about a refund or chargeback go to Harbor.\n"
    "[s-00002] Messages about a password or login go to Maple.\n"
    "[s-00003] Messages about a parcel or delivery go to Summit.\n"
    "[s-00004] Messages about an invoice or receipt go to Lantern."
)


class Seen:
    """The task's metric, counting how often each message was scored."""

    def __init__(self, score: float | None = None) -> None:
        self.messages: Counter[str] = Counter()
        self.score = score

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> Any:
        self.messages[example.message] += 1
        return desk_metric(example, prediction) if self.score is None else self.score


def journal(program: Any) -> bytes:
    """The run's journal as bytes."""
    return b"".join(line_of(record) for record in program.detailed_results.records)


def test_a_clear_gain_is_not_validated_to_the_last_row() -> None:
    """validate='end': both meet on the first examples only, and the result says on how many."""
    metric = Seen()
    results = compiled(OfflineLM(), metric=metric, trainset=TRAIN, valset=VAL, validate="end").detailed_results
    parts = [record for record in results.records if record.validation is not None]
    assert sum(len(record.validation.scores) for record in parts) == results.validated_on
    assert all(len(record.validation.scores) == len(record.baseline.scores) for record in parts)
    assert 8 <= results.validated_on < len(VAL)
    assert not any(record.batch for record in parts)
    assert sum(metric.messages[example.message] for example in VAL) == 2 * results.validated_on
    assert results.verdict.word == "better"
    assert results.verdict.validation.examples_before == results.validated_on
    assert f"on {results.validated_on} examples" in str(results)


def test_an_unclear_difference_is_validated_on_the_whole_valset() -> None:
    """A metric that cannot tell them apart is asked about every example, twice as many each time."""

    def chatter(playbook: Playbook, reflections: Any) -> tuple[Delta, tuple[()]]:
        return Delta((Add("S", f"Remark number {len(playbook)} of no use."),)), ()

    results = compiled(OfflineLM(), metric=Seen(0.5), trainset=TRAIN[:8], valset=VAL, curate=chatter).detailed_results
    assert results.validated_on == len(VAL)
    assert [len(r.validation.scores) for r in results.records if r.validation] == [8, 8, 16]
    assert results.verdict.word == "not shown to be better"


def test_a_lesson_that_harms_is_found_at_the_end() -> None:
    """A seed that is strictly better comes back, and the result says worse."""

    def saboteur(playbook: Playbook, reflections: Any) -> tuple[Delta, tuple[()]]:
        return Delta((Add("S", "Messages about a refund, password, parcel or invoice go to Atrium."),)), ()

    program = compiled(
        OfflineLM(slips=0.3, seed=3), trainset=TRAIN[:16], valset=VAL, curate=saboteur,
        playbook=HOUSE_RULES,
    )  # fmt: skip
    results = program.detailed_results
    if results.best_step == 0:
        assert program.playbook.render() == HOUSE_RULES.render()
        assert results.best_score == results.seed_score
    assert results.verdict.difference < 0


def test_nothing_learned_is_not_validated() -> None:
    """auto='light' with a perfect student: one rollout an example, and not a call more."""
    lm, metric = OfflineLM(), Seen()
    results = compiled(
        lm, metric=metric, trainset=TRAIN, valset=VAL, playbook=HOUSE_RULES, auto="light", epochs=None
    ).detailed_results
    assert lm.calls == sum(metric.messages.values()) == len(TRAIN)
    assert results.validated_on == 0
    assert results.verdict is None


@pytest.mark.parametrize("limit", [5, 8, 20, 70])
def test_the_last_validation_stays_within_the_limit(limit: int) -> None:
    """A limit shortens the validation at the end, and is never exceeded."""
    metric = Seen()
    results = compiled(OfflineLM(), metric=metric, trainset=TRAIN, valset=VAL, max_metric_calls=limit).detailed_results
    assert sum(metric.messages.values()) == results.rollouts <= limit
    assert (results.validated_on > 0) == (limit >= 8)


def test_rows_that_stand_in_both_sets_are_no_evidence(caplog: Any) -> None:
    """They are named in a warning and never rolled out for validation; a valset of nothing else validates nothing."""
    metric = Seen()
    results = compiled(
        OfflineLM(), metric=metric, trainset=TRAIN, valset=[*VAL[:8], TRAIN[0], TRAIN[5]], max_reflection_rounds=0
    ).detailed_results
    assert "2 of 10 rows of the valset stand in the trainset as well (rows 8, 9)" in caplog.text
    assert results.validated_on == 8
    assert all(metric.messages[example.message] == 1 for example in TRAIN)

    caplog.clear()
    results = compiled(OfflineLM(), trainset=TRAIN, valset=TRAIN).detailed_results
    assert "Nothing is validated." in caplog.text
    assert (results.validated_on, results.verdict.validation) == (0, None)


def test_rows_that_the_provider_fails_are_left_out_of_the_evidence() -> None:
    """A refusal says nothing of the program: the pair is left out, and the verdict tells how many remain."""
    refused = {example.message for example in VAL[:3]}

    def metric(example: Any, prediction: Any, trace: Any = None) -> Any:
        if example.message in refused:
            raise ConnectionError("the judge is out")
        return desk_metric(example, prediction)

    results = compiled(OfflineLM(), metric=metric, trainset=TRAIN, valset=VAL[:8]).detailed_results
    assert results.records[-1].validation.scores[:3] == (None,) * 3
    assert results.verdict.validation.examples_before == 5


def test_the_bytes_do_not_depend_on_the_threads() -> None:
    """1 and 16 threads look at the same examples and write the same record."""
    runs = [
        compiled(OfflineLM(slips=0.3, seed=2), trainset=TRAIN, valset=VAL, num_threads=threads) for threads in (1, 16)
    ]
    assert journal(runs[0]) == journal(runs[1])


def test_a_record_with_a_baseline_reads_back() -> None:
    """The journal reads back what it wrote of a validation at the end."""
    program = compiled(OfflineLM(), trainset=TRAIN[:16], valset=VAL, validate="end")
    last = program.detailed_results.records[-1]
    assert last.baseline is not None
    assert Record.from_json(last.to_json()) == last


def test_a_success_counts_for_the_bullets_it_cites() -> None:
    """Without a reflection on it, a success is a helpful vote for each bullet it relied on: at no LM call."""
    lm = OfflineLM()
    program = compiled(lm, trainset=TRAIN, valset=[], playbook=HOUSE_RULES, reflect_on="failures")
    assert "reflector" not in program.detailed_results.usage
    assert sum(bullet.helpful for bullet in program.playbook) >= len(TRAIN)
    assert not any(bullet.harmful for bullet in program.playbook)
    with dspy.context(lm=lm):
        assert dspy.ChainOfThought(Route)(message=TRAIN[0].message) is not None


SCORED: Counter[str] = Counter()


def counting(example: Any, prediction: Any, trace: Any = None) -> Any:
    """The task's metric; it holds no count itself, so that its run can be continued."""
    SCORED[example.message] += 1
    return desk_metric(example, prediction)


def test_rows_that_the_seed_was_validated_on_are_not_rolled_out_with_it_again(tmp_path: Any) -> None:
    """A finished run that goes on with another epoch validates its new playbook, and the seed only on new rows."""
    SCORED.clear()
    settings = {"trainset": TRAIN[:12], "valset": VAL[:12], "log_dir": tmp_path, "metric": counting}
    noisy = {"slips": 0.3, "wrong_lessons": 0.4, "seed": 6}
    first = compiled(OfflineLM(**noisy), **settings).detailed_results
    known = seed_validation(first.records)
    before = Counter(SCORED)
    more = compiled(OfflineLM(**noisy), epochs=2, **settings).detailed_results
    parts = [record for record in more.records[len(first.records) :] if record.validation]
    assert known is not None
    assert parts
    rows = sum(len(record.validation.scores) for record in parts)
    new = sum(SCORED[example.message] - before[example.message] for example in VAL[:12])
    assert new == rows + max(0, rows - len(known.scores))
    assert [score for record in parts for score in record.baseline.scores][: len(known.scores)] == list(known.scores)[
        :rows
    ]
