"""Intervals of test scores: how often they hold the truth, what they pair, and what few runs cannot say."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import pytest

from dspy_ace.comparison.bootstrap import Replicates

pytestmark = pytest.mark.compat


def width(interval: tuple[float, float, float]) -> float:
    return interval[2] - interval[1]


def test_mean_and_difference_are_the_plain_ones() -> None:
    """The centres are the means of all runs, whatever was drawn."""
    scores = {"a": [[1.0, 0.0, 1.0, 1.0]], "b": [[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]]}
    replicates = Replicates(scores)
    assert replicates.score("a")[0] == 0.75
    assert replicates.difference("a", "b")[0] == 0.75 - 3 / 8


def test_same_state_same_intervals() -> None:
    """Equal scores give equal intervals."""
    table = np.random.default_rng(1).random((3, 20))
    assert Replicates({"a": table}).score("a") == Replicates({"a": table}).score("a")


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
        replicates = Replicates({"first": first, "second": second}, replicates=1000)
        spread = sqrt(2.0 + (0.09 if seeds > 1 else 0.0))
        truth = 0.5 * (1 + erf(0.5 / spread / sqrt(2)))  # P(second scores)
        _, low, high = replicates.score("first")
        held += low <= 0.5 <= high
        _, low, high = replicates.difference("second", "first")
        held_difference += low <= truth - 0.5 <= high
    assert held >= 180
    assert held_difference >= 180


def test_examples_are_paired() -> None:
    """Two methods that differ on few examples: the difference is surer than the scores are."""
    rng = np.random.default_rng(2)
    first = (rng.random((1, 100)) < 0.5).astype(float)
    second = first.copy()
    second[0, :5] = 1.0 - second[0, :5]
    replicates = Replicates({"first": first, "second": second})
    assert width(replicates.difference("first", "second")) < width(replicates.score("first")) / 1.5


def test_runs_that_differ_widen_the_interval() -> None:
    """Three runs with scores far apart are less sure than one run of the same mean."""
    apart = np.concatenate([np.full((1, 50), 0.1), np.full((1, 50), 0.5), np.full((1, 50), 0.9)])
    noise = np.random.default_rng(3).normal(0.0, 0.05, (1, 50))
    many, one = Replicates({"m": apart + noise}), Replicates({"m": np.full((1, 50), 0.5) + noise})
    assert width(many.score("m")) > 5 * width(one.score("m"))


@pytest.mark.parametrize("examples", [1, 10, 300])
def test_agreement_is_not_certainty(examples: int) -> None:
    """When all examples agree, the interval is the rule of three, not a point."""
    replicates = Replicates({"a": np.ones((2, examples)), "b": np.ones((1, examples))})
    assert replicates.score("a") == pytest.approx((1.0, max(0.0, 1.0 - 3 / examples), 1.0))
    least = min(1.0, 3 / examples)
    assert replicates.difference("a", "b") == pytest.approx((0.0, -least, least))


def test_intervals_stay_within_what_is_possible() -> None:
    """Few examples far apart: a score is no less than the least one, a difference no more than the metric's width."""
    scores = {"low": [[0.0] * 5 + [1.0]], "high": [[1.0] * 5 + [0.0]]}
    replicates = Replicates(scores)
    assert replicates.score("low")[1] == 0.0
    assert replicates.score("high")[2] == 1.0
    assert replicates.difference("high", "low")[2] == 1.0
    assert Replicates({name: [[-20 * s for s in run] for run in runs] for name, runs in scores.items()}).score("high")[
        1
    ] == pytest.approx(-20.0)


def test_scores_that_cannot_be_compared_are_refused() -> None:
    """Another number of examples, none, or a score that is no number."""
    with pytest.raises(ValueError, match="same number of examples"):
        Replicates({"a": [[1.0, 0.0]], "b": [[1.0]]})
    with pytest.raises(ValueError, match="same number of examples"):
        Replicates({"a": [[]]})
    with pytest.raises(ValueError, match="finite"):
        Replicates({"a": [[1.0, float("nan")]]})
