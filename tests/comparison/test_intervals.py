"""Intervals of test scores: how often they hold the truth, what they pair, and what few runs cannot say."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import pytest

from dspy_ace.comparison.rows import Intervals, scale_of

pytestmark = pytest.mark.compat


def width(interval: tuple[float, float, float]) -> float:
    return interval[2] - interval[1]


def test_mean_and_difference_are_the_plain_ones() -> None:
    """The centres are the means of all runs, whatever was drawn."""
    scores = {"a": [[1.0, 0.0, 1.0, 1.0]], "b": [[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]]}
    intervals = Intervals(scores)
    assert intervals.score("a")[0] == 0.75
    assert intervals.difference("a", "b")[0] == 0.75 - 3 / 8


def test_same_state_same_intervals() -> None:
    """Equal scores give equal intervals."""
    table = np.random.default_rng(1).random((3, 20))
    assert Intervals({"a": table}).score("a") == Intervals({"a": table}).score("a")


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_intervals_hold_the_truth_about_as_often_as_they_say(seeds: int) -> None:
    """Of 200 made-up comparisons with a known true score, 90 % or more have it within their 95 % interval."""
    rng = np.random.default_rng(5)
    held = held_difference = 0
    for _ in range(200):
        easy = rng.normal(0.0, 1.0, 60)  # what an example is worth
        luck, other = (rng.normal(0.0, 0.3 if seeds > 1 else 0.0, (seeds, 1)) for _ in range(2))
        first = (easy + luck + rng.normal(0.0, 1.0, (seeds, 60)) > 0.0).astype(float)
        second = (easy + 0.5 + other + rng.normal(0.0, 1.0, (seeds, 60)) > 0.0).astype(float)
        intervals = Intervals({"first": first, "second": second}, resamples=1000)
        spread = sqrt(2.0 + (0.09 if seeds > 1 else 0.0))
        truth = 0.5 * (1 + erf(0.5 / spread / sqrt(2)))  # P(second scores)
        _, low, high = intervals.score("first")
        held += low <= 0.5 <= high
        _, low, high = intervals.difference("second", "first")
        held_difference += low <= truth - 0.5 <= high
    assert held >= 180
    assert held_difference >= 180


def test_examples_are_paired() -> None:
    """Two methods that differ on few examples: the difference is surer than the scores are."""
    rng = np.random.default_rng(2)
    first = (rng.random((1, 100)) < 0.5).astype(float)
    second = first.copy()
    second[0, :5] = 1.0 - second[0, :5]
    intervals = Intervals({"first": first, "second": second})
    assert width(intervals.difference("first", "second")) < width(intervals.score("first")) / 1.5


def test_runs_that_differ_widen_the_interval() -> None:
    """Three runs with scores far apart are less sure than one run of the same mean."""
    apart = np.concatenate([np.full((1, 50), 0.1), np.full((1, 50), 0.5), np.full((1, 50), 0.9)])
    noise = np.random.default_rng(3).normal(0.0, 0.05, (1, 50))
    many, one = Intervals({"m": apart + noise}), Intervals({"m": np.full((1, 50), 0.5) + noise})
    assert width(many.score("m")) > 5 * width(one.score("m"))


@pytest.mark.parametrize("examples", [1, 10, 300])
def test_agreement_is_not_certainty(examples: int) -> None:
    """When all examples agree, the interval is the rule of three, not a point."""
    intervals = Intervals({"a": np.ones((2, examples)), "b": np.ones((1, examples))})
    assert intervals.score("a") == pytest.approx((1.0, max(0.0, 1.0 - 3 / examples), 1.0))
    least = min(1.0, 3 / examples)
    assert intervals.difference("a", "b") == pytest.approx((0.0, -least, least))


def test_intervals_stay_within_what_is_possible() -> None:
    """Few examples far apart: a score is no less than the least one, a difference no more than the metric's width."""
    scores = {"low": [[0.0] * 5 + [1.0]], "high": [[1.0] * 5 + [0.0]]}
    intervals = Intervals(scores)
    assert intervals.score("low")[1] == 0.0
    assert intervals.score("high")[2] == 1.0
    assert intervals.difference("high", "low")[2] == 1.0
    losses = Intervals({name: [[-20 * s for s in run] for run in runs] for name, runs in scores.items()})
    assert losses.score("high")[1] == pytest.approx(-20.0)
    assert losses.score("low")[2] == 0.0  # a loss is never above 0


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ([0.0, 0.3], (0.0, 1.0)),
        ([0.0, 0.0], (0.0, 1.0)),
        ([2, 4], (0.0, 5.0)),
        ([40, 60], (0.0, 100.0)),
        ([40, 160], (0.0, 160.0)),
        ([-20.0, -3.0], (-20.0, 0.0)),
        ([-1.0, 1.0], (-1.0, 1.0)),
        ([], (0.0, 1.0)),
    ],
)
def test_the_scale_is_guessed_from_the_scores(scores: list[float], scale: tuple[float, float]) -> None:
    """0 to the lowest usual top that holds them all; losses end at 0."""
    assert scale_of(scores) == scale


def test_agreement_on_another_scale() -> None:
    """Ten scores of 60 of 100: the interval has the width that the scale asks for."""
    assert Intervals({"a": [[60.0] * 10]}).score("a") == pytest.approx((60.0, 30.0, 90.0))


def test_scores_that_cannot_be_compared_are_refused() -> None:
    """Another number of examples, none, or a score that is no number."""
    with pytest.raises(ValueError, match="same number of examples"):
        Intervals({"a": [[1.0, 0.0]], "b": [[1.0]]})
    with pytest.raises(ValueError, match="same number of examples"):
        Intervals({"a": [[]]})
    with pytest.raises(ValueError, match="finite"):
        Intervals({"a": [[1.0, float("nan")]]})
