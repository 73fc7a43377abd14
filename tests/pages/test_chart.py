"""The small chart: everything drawn stands inside it, on axes with round numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_ace.pages import Chart, Line

VALUES = st.floats(-1e9, 1e9).map(lambda value: round(value, 6))
POINTS = st.lists(st.tuples(VALUES.map(abs), VALUES), max_size=20)


@given(st.lists(POINTS, max_size=3))
def test_everything_stands_inside(points: list[list[tuple[float, float]]]) -> None:
    """Whatever the numbers, marks and numbers on the axes are inside the drawing, and few."""
    chart = Chart("Score", "rollouts", "score", [Line(str(n), each, "first") for n, each in enumerate(points)])
    for line in chart.drawn:
        for x, y in line["places"]:  # type: ignore[attr-defined]
            assert 0 <= x <= 400
            assert 0 <= y <= 240
    for axis in chart.ticks.values():
        assert 2 <= len(axis) <= 8
        assert all(0 <= place <= 400 for place, _ in axis)


@pytest.mark.parametrize("top", [0.9, 1.0, 0.0])
def test_the_numbers_are_round(top: float) -> None:
    """An axis from 0 to about 1 has the marks that people expect."""
    chart = Chart("Score", "rollouts", "score", [Line("a", [(1, 0.0), (2, top)], "first")])
    assert [text for _, text in chart.ticks["y"]] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
