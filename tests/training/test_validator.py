"""Looks at the valset: none that is not needed, no prompt scored twice on one example, and the choice it leads to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import Playbook
from dspy_ace.errors import SettingsError
from dspy_ace.playbook import Add, Delta
from dspy_ace.testing import OfflineLM
from dspy_ace.training.history import Record
from dspy_ace.training.journal import line_of
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


def test_a_clear_gain_is_not_looked_at_to_the_last_example() -> None:
    """validate='end': both meet on the first examples only, and the result says on how many."""
    metric = Seen()
    results = compiled(OfflineLM(), metric=metric, trainset=TRAIN, valset=VAL, validate="end").detailed_results
    last = results.records[-1]
    assert len(last.validation.scores) == len(last.baseline.scores) == results.validated_on
    assert 8 <= results.validated_on < len(VAL)
    assert all(record.validation is None for record in results.records[:-1])
    assert sum(metric.messages[example.message] for example in VAL) == 2 * results.validated_on
    assert results.verdict.word == "better"
    assert results.verdict.validation.examples_before == results.validated_on
    assert f"on {results.validated_on} examples" in str(results)


def test_what_is_not_clear_is_looked_at_whole() -> None:
    """A metric that cannot tell them apart is asked about every example; the tie goes to what was learned."""

    def chatter(playbook: Playbook, reflections: Any) -> tuple[Delta, tuple[()]]:
        return Delta((Add("S", f"Remark number {len(playbook)} of no use."),)), ()

    program = compiled(
        OfflineLM(), metric=Seen(0.5), trainset=TRAIN[:8], valset=VAL, validate="end", curate=chatter
    )  # fmt: skip
    assert program.detailed_results.validated_on == len(VAL)
    assert program.detailed_results.verdict.word == "not shown to be better"
    assert len(program.playbook) > 0


def test_a_lesson_that_harms_is_found_at_the_end() -> None:
    """A seed that is strictly better comes back, and the result says worse."""

    def saboteur(playbook: Playbook, reflections: Any) -> tuple[Delta, tuple[()]]:
        return Delta((Add("S", "Messages about a refund, password, parcel or invoice go to Atrium."),)), ()

    program = compiled(
        OfflineLM(slips=0.3, seed=3), trainset=TRAIN[:16], valset=VAL, validate="end", curate=saboteur,
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
def test_the_last_look_stays_within_the_budget(limit: int) -> None:
    """A budget shortens the look at the end, and is never exceeded."""
    metric = Seen()
    results = compiled(
        OfflineLM(), metric=metric, trainset=TRAIN, valset=VAL, validate="end", max_metric_calls=limit
    ).detailed_results
    assert sum(metric.messages.values()) == results.rollouts <= limit
    assert (results.validated_on > 0) == (limit >= 8)


def test_an_example_in_both_sets_is_rolled_out_once_for_one_prompt() -> None:
    """A perfect student whose valset is its trainset costs one rollout an example; another pays for its first batch."""
    bare, metric = OfflineLM(), Seen(1.0)
    compiled(bare, metric=metric, trainset=TRAIN, valset=TRAIN, epochs=2)
    assert set(metric.messages.values()) == {1}
    assert bare.calls == len(TRAIN)

    metric = Seen()
    results = compiled(OfflineLM(), metric=metric, trainset=TRAIN, valset=TRAIN[:12], max_reflection_rounds=0)
    results = results.detailed_results
    first = results.records[1]
    assert first.learned
    assert first.rollouts == sum(position >= 12 for position in first.batch) < len(first.batch)
    assert sum(metric.messages.values()) == results.rollouts


def test_what_was_rolled_out_in_a_batch_counts_at_the_end() -> None:
    """validate='end' on a valset that is the trainset: the seed's score of the first batch is not paid for again."""
    metric = Seen()
    settings: dict[str, Any] = {"validate": "end", "max_reflection_rounds": 0, "batch_size": 12}
    program = compiled(OfflineLM(), metric=metric, trainset=TRAIN, valset=TRAIN, **settings)
    results = program.detailed_results
    met = sum(position < results.validated_on for position in results.records[1].batch)
    assert met > 0
    assert sum(metric.messages.values()) == results.rollouts == len(TRAIN) + 2 * results.validated_on - met


@pytest.mark.parametrize("validate", ["along", "end"])
def test_a_run_on_overlapping_sets_continues_to_the_same_bytes(tmp_path: Path, validate: str) -> None:
    """Cut after each of its records, the same journal comes out; what a crash took away is made again, not booked."""
    settings: dict[str, Any] = {"trainset": TRAIN[:16], "valset": TRAIN[:20], "validate": validate}
    whole = compiled(OfflineLM(), **settings, log_dir=tmp_path / "whole")
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    compiled(OfflineLM(), **settings, log_dir=tmp_path / "cut")
    for kept in range(len(lines)):
        (tmp_path / "cut" / "journal.jsonl").write_bytes(b"".join(lines[:kept]))
        again = compiled(OfflineLM(), **settings, log_dir=tmp_path / "cut")
        assert (tmp_path / "cut" / "journal.jsonl").read_bytes() == b"".join(lines)
        assert again.playbook == whole.playbook
        assert again.detailed_results.rollouts == whole.detailed_results.rollouts
        repeated = again.detailed_results.usage["task"].calls - whole.detailed_results.usage["task"].calls
        assert (repeated > 0) == (validate == "along" and kept == 1)  # paid twice, and the account says so


def test_the_bytes_do_not_depend_on_the_threads() -> None:
    """1 and 16 threads look at the same examples and write the same record."""
    runs = [
        compiled(OfflineLM(slips=0.3, seed=2), trainset=TRAIN, valset=VAL, validate="end", num_threads=threads)
        for threads in (1, 16)
    ]
    assert journal(runs[0]) == journal(runs[1])


def test_a_record_with_a_baseline_reads_back() -> None:
    """What the journal writes of a late look is what it reads."""
    program = compiled(OfflineLM(), trainset=TRAIN[:16], valset=VAL, validate="end")
    last = program.detailed_results.records[-1]
    assert last.baseline is not None
    assert Record.from_json(last.to_json()) == last


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"validate": "never"}, "'along', 'end'"),
        ({"validate": "end", "patience": 2}, "patience"),
        ({"validate": "end", "validate_every": 2}, "validate_every"),
        ({"auto": "light", "epochs": None, "patience": 2}, "patience"),
        ({"auto": "light"}, "epochs"),
        ({"auto": "tiny", "epochs": None}, "'light', 'medium', 'heavy'"),
        ({"reflect_on": "successes"}, "'all', 'failures'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], words: str) -> None:
    """Before any LM call, with the settings named."""
    lm = OfflineLM()
    with pytest.raises(SettingsError, match=words):
        compiled(lm, **settings)
    assert lm.calls == 0


def test_a_success_counts_for_the_bullets_it_cites() -> None:
    """Without a reflection on it, a success is a helpful vote for each bullet it relied on: at no LM call."""
    lm = OfflineLM()
    program = compiled(lm, trainset=TRAIN, valset=[], playbook=HOUSE_RULES, reflect_on="failures")
    assert "reflector" not in program.detailed_results.usage
    assert sum(bullet.helpful for bullet in program.playbook) >= len(TRAIN)
    assert not any(bullet.harmful for bullet in program.playbook)
    with dspy.context(lm=lm):
        assert dspy.ChainOfThought(Route)(message=TRAIN[0].message) is not None
