"""The verdict on what was learned."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dspy_ace import Playbook
from dspy_ace.playbook import Add, Delta
from dspy_ace.training.state import Record, State, Validation
from dspy_ace.training.verdict import BETTER, UNCLEAR, WORSE, Scale, Verdict, paired, unpaired, verdict

pytestmark = pytest.mark.compat


def step(
    number: int, scores: list[float], *, learned: bool = True, epoch: int = 1, valid: list[float] | None = None
) -> Record:
    """A record with these batch scores."""
    delta = Delta((Add("S", f"Lesson {number}."),)) if learned else Delta()
    validation = Validation(tuple(valid)) if valid else None
    return Record(number, epoch, tuple(range(len(scores))), tuple(scores), delta=delta, validation=validation)


def judged(records: list[Record]) -> Verdict | None:
    """The verdict of a run with these records."""
    state = State.of(Playbook())
    for record in records:
        state = state.after(record)
    return state.verdict


def test_a_valset_that_ties_does_not_hide_the_training_record() -> None:
    """17 of 20 before and after on the valset, 5 of 8 and then 16 of 16 while learning: both are in the verdict."""
    tie = [1.0] * 17 + [0.0] * 3
    records = [
        Record(0, validation=Validation(tuple(tie))),
        step(1, [1.0] * 5 + [0.0] * 3, valid=tie),
        step(2, [1.0] * 8),
        step(3, [1.0] * 8, valid=tie),
    ]
    found = judged(records)
    assert found is not None
    assert found.validation is not None
    assert found.progressive is not None
    assert (found.validation.difference, found.progressive.before, found.progressive.after) == (0.0, 0.625, 1.0)
    assert found.difference > 0
    assert "17 of" not in str(found)
    assert "0.625 → 1.000 (8 and 16)" in str(found)


def test_only_the_first_epoch_counts_as_a_test() -> None:
    """Batches of a second epoch were learned from before: they are no evidence."""
    records = [step(1, [0.0] * 8), step(2, [0.0] * 8), step(3, [1.0] * 8, epoch=2), step(4, [1.0] * 8, epoch=2)]
    found = judged(records)
    assert found is not None
    assert found.progressive is not None
    assert found.progressive.after == 0.0


def test_words_follow_the_interval() -> None:
    """Better and worse need an interval that leaves 0 out; else it is not shown."""
    low, high = [0.0] * 30, [1.0] * 30
    assert verdict(paired(low, high), None).word == BETTER
    assert verdict(paired(high, low), None).word == WORSE
    assert verdict(paired(low, low), None).word == UNCLEAR
    assert verdict(None, unpaired(low[:2], high[:2])).word == UNCLEAR
    assert verdict(None, None) is None
    assert judged([step(1, [1.0], learned=False)]) is None


def test_being_certain_takes_more_than_being_better() -> None:
    """5 gains in 8 pairs are better at 95 % and may be chance after ten looks; 6 gains in 8 pairs are certain."""
    found = [verdict(paired([0.0] * 8, [1.0] * gains + [0.0] * (8 - gains)), None) for gains in (4, 5, 6, 8)]
    assert [each.word for each in found] == [UNCLEAR, BETTER, BETTER, BETTER]
    assert [each.certain for each in found] == [False, False, True, True]
    losses = verdict(paired([1.0] * 6 + [0.0] * 2, [0.0] * 8), None)
    assert losses.certain


def test_ties_are_no_certainty() -> None:
    """Ten ties leave room for a difference, the less the more there are; one gain in one pair shows nothing."""
    for ties, reach in ((10, 0.231), (100, 0.027)):
        found = verdict(paired([1.0] * ties, [1.0] * ties), None)
        assert (found.low, found.high) == pytest.approx((-reach, reach), abs=0.001)
    assert verdict(paired([0.0], [1.0]), None).word == UNCLEAR


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """On drawn runs of the size people have, 95 % intervals hold the true difference in at least 92 %."""
    rng = random.Random(7)

    def draw(rate: float, count: int) -> list[float]:
        return [float(rng.random() < rate) for _ in range(count)]

    for before, after in ((0.5, 0.5), (0.6, 0.9), (0.85, 0.95)):
        held = 0
        for _ in range(600):
            found = verdict(paired(draw(before, 20), draw(after, 20)), unpaired(draw(before, 8), draw(after, 16)))
            held += found.low <= after - before <= found.high
        assert held / 600 >= 0.92


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40), st.floats(0.1, 100))
def test_the_scale_of_the_metric_does_not_matter(pairs: list[tuple[float, float]], factor: float) -> None:
    """A metric in percent gets the same word as one in shares."""
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    small = verdict(paired(before, after), None)
    large = verdict(
        paired([a * factor for a in before], [b * factor for b in after], Scale(0.0, factor)), None, Scale(0.0, factor)
    )
    assert large.low == pytest.approx(small.low * factor, abs=1e-6 * factor)


def test_an_interval_ends_where_the_scale_of_the_scores_ends() -> None:
    """Two scores cannot differ by more than the width of the metric."""
    found = verdict(paired([0.0] * 3, [1.0] * 3), None)
    assert found is not None
    assert found.high == 1.0
    assert found.low > -1.0


def test_a_notebook_shows_the_verdict_as_a_table() -> None:
    """Word, difference, interval and evidence stand in it."""
    found = verdict(paired([0.0] * 9, [1.0] * 9), None)
    assert found is not None
    shown = found._repr_html_()
    assert "Verdict: better" in shown
    assert "+1.000" in shown
    assert "0.000 → 1.000 (9 pairs)" in shown


def test_a_tie_says_what_so_many_rows_can_show() -> None:
    """17 right of 20 on both sides: a quarter can show; what cannot be seen is said, and no rows settle nothing."""
    tie = [1.0] * 17 + [0.0] * 3
    found = verdict(paired(tie, tie), None)
    assert found.visible == pytest.approx(0.25, abs=0.03)
    assert found.rows_to_settle is None
    assert str(found).endswith("20 rows can show a difference of 0.24 or more; 0 was seen")
    assert "3 rows can show no difference" in str(verdict(paired([1.0] * 3, [1.0] * 3), None))
    assert "can show" not in str(verdict(paired([0.0] * 9, [1.0] * 9), None))


@given(st.integers(1, 60), st.integers(1, 60))
@example(3, 3)
@example(4, 4)
def test_a_difference_that_can_be_seen_is_one_that_the_interval_shows(rows: int, wins: int) -> None:
    """So many rows won and none lost, at or above `visible`, are better; well below it they are not."""
    wins = min(wins, rows)
    found = verdict(paired([0.0] * rows, [1.0] * wins + [0.0] * (rows - wins)), None)
    if wins / rows >= found.visible:
        assert found.word == BETTER
    if wins / rows < found.visible - 0.05:
        assert found.word == UNCLEAR


@pytest.mark.parametrize(("wins", "losses", "rows"), [(1, 0, 20), (4, 2, 20), (3, 1, 30), (2, 1, 8)])
def test_so_many_more_rows_like_those_seen_settle_it(wins: int, losses: int, rows: int) -> None:
    """With as many more as it says the interval leaves 0 out; with half of them it does not."""

    def seen(times: float) -> Verdict:
        won, lost = round(wins * times), round(losses * times)
        ties = round(rows * times) - won - lost
        return verdict(paired([0.0] * won + [1.0] * lost + [0.0] * ties, [1.0] * won + [0.0] * (lost + ties)), None)

    found = seen(1)
    assert found.word == UNCLEAR
    assert found.rows_to_settle > 0
    assert f"about {found.rows_to_settle} more rows of the valset would settle it" in str(found)
    needed = (rows + found.rows_to_settle) / rows
    assert seen(needed * 1.1).word == BETTER
    assert seen(1 + (needed - 1) * 0.5).word == UNCLEAR


def test_more_rows_settle_a_difference_of_graded_scores_in_percent_alike() -> None:
    """The scale of the metric changes neither the rows that are needed nor the share that can be seen."""
    before, after = [50.0, 60.0, 80.0, 90.0] * 3, [60.0, 50.0, 90.0, 100.0] * 3
    percent = verdict(paired(before, after, Scale(0, 100)), None, Scale(0, 100))
    shares = verdict(paired([b / 100 for b in before], [a / 100 for a in after]), None)
    assert percent.rows_to_settle == shares.rows_to_settle
    assert percent.visible == pytest.approx(100 * shares.visible)
