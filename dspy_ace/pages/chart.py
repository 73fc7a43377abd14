"""A small line chart as SVG, for pages that must not need matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 400, 240, 44, 40, 10, 30


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, its points (x, y), and the class that the style sheet draws it by."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str


@dataclass(frozen=True)
class Chart:
    """A chart: `lines` over one pair of axes. The template `chart` of `parts.html.jinja` draws it.

    Args:
        title: in words, also for who cannot see it.
        x, y: what the axes show.
        lines: those without points are left out.
        money: True if x is dollars.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    money: bool = False

    @property
    def drawn(self) -> list[dict[str, object]]:
        """The lines in coordinates of the drawing: name, kind, path and places of the marks."""
        (x_low, x_high), (y_low, y_high) = self._ends(0), self._ends(1)
        drawn: list[dict[str, object]] = []
        for line in self.lines:
            places = [
                (
                    round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1),
                    round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - TOP), 1),
                )
                for x, y in line.points
            ]
            path = " ".join(f"{x},{y}" for x, y in places)
            drawn.append({"name": line.name, "kind": line.kind, "path": path, "places": places})
        return [line for line in drawn if line["path"]]

    @property
    def ticks(self) -> dict[str, list[tuple[float, str]]]:
        """The marks on both axes: place in the drawing, and number."""
        found = {}
        for axis, length in enumerate((WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP)):
            low, high = self._ends(axis)
            step = (high - low) / round((high - low) / _step(high - low))
            marks = [low + step * number for number in range(round((high - low) / step) + 1)]
            shares = [(mark - low) / (high - low) * length for mark in marks]
            places = [LEFT + share if axis == 0 else HEIGHT - BOTTOM - share for share in shares]
            words = [f"{'$' if self.money and axis == 0 else ''}{mark:,.4g}" for mark in marks]
            found["xy"[axis]] = [(round(place, 1), text) for place, text in zip(places, words, strict=True)]
        return found

    def _ends(self, axis: int) -> tuple[float, float]:
        """Return the lowest and the highest value of an axis, both on marks; x begins at 0."""
        values = [point[axis] for line in self.lines for point in line.points] or [0.0]
        low, high = (0.0, max(*values, 0.0)) if axis == 0 else (min(*values, 0.0), max(*values, 0.0))
        span = (high - low) or 1.0
        step = _step(span)
        return math.floor(low / step) * step, math.ceil((low + span) / step - 1e-9) * step


def _step(span: float) -> float:
    """Return the distance of marks: 1, 2 or 5 times a power of ten, at most five of them in `span`."""
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(power * times for times in (1, 2, 5, 10) if power * times * 5.01 >= span)
