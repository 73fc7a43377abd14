"""The figures of a comparison, drawn by matplotlib (the extra `comparisons`): as files, and as SVG inside a page.

One colour, marker and line style a method, the same in every figure. Six colours are those of Okabe and Ito, which the
common kinds of colour blindness keep apart; the seventh is a violet, for their yellow is lost on white. Markers tell
methods apart without any colour; the eighth method begins again with a dashed line and hollow markers.
"""

from __future__ import annotations

import io
import itertools
import warnings
import xml.etree.ElementTree as ET  # reads what matplotlib has just written, nothing from outside
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ..pages import printable
from .rows import STUDENT, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style: TypeAlias = Mapping[str, Any]  # properties of a matplotlib line

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6BB1")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")
MISSING = (
    "The figures are missing because matplotlib is not installed. "
    "Install it and write the report again: pip install 'dspy-ace[comparisons]'"
)

_INK = "#1b1e24"  # text and axes; a page puts its own text colour in its place
_RC: Any = {
    "text.parse_math": False,  # a $ in the name of a method is a dollar
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Args:
        name: stem of its files, one of `NAMES`.
        title, caption: in words.
        png, svg: the two files, on white.
        inline: an `<svg>` element without a background, for a page: text in the page's font and colour, sized by
            its view box, ids that no other figure has.
    """

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes
    inline: str


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """Give each method the properties of its line, by its place in the comparison; the student alone is grey."""
    found: dict[str, Style] = {
        STUDENT: {"color": "#7F7F7F", "marker": "*", "linestyle": ":", "markerfacecolor": "#7F7F7F"}
    }
    for place, method in enumerate(m for m in methods if m != STUDENT):
        rounds, slot = divmod(place, len(COLOURS))
        found[method] = {
            "color": COLOURS[slot],
            "marker": MARKERS[(slot + 3 * rounds) % len(MARKERS)],
            "linestyle": DASHES[rounds % len(DASHES)],
            "markerfacecolor": "none" if rounds % 2 else COLOURS[slot],
        }
    return found


def drawings(
    methods: Sequence[str], cells: Sequence[Mapping[str, Any]], rows: Sequence[Row]
) -> tuple[list[Drawing], list[str]]:
    """Draw all figures for which there are numbers.

    Args:
        methods: names in order; they choose the styles.
        cells: as in `cells.jsonl`; failed ones are left out.
        rows: one a method.

    Returns:
        The figures, and a sentence for each figure or curve that is left out and why.

    Raises:
        ImportError: without matplotlib.
    """
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import

    fine: dict[str, list[Mapping[str, Any]]] = {method: [] for method in methods}
    for cell in cells:
        if cell["status"] == "ok":
            fine.setdefault(cell["method"], []).append(cell)
    style, made, left_out = styles(list(fine)), [], []
    with mpl.rc_context(_RC), warnings.catch_warnings():
        # a letter DejaVu lacks is a box in the PNG; a browser has it for the SVG
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        if any(row.score is not None for row in rows):
            made.append(_scores(rows, style))
        for curve in CURVES:
            runs = [(method, points) for method, of in fine.items() for cell in of if (points := curve.points(cell))]
            if runs:
                made.append(_lines(curve, runs, style))
            missing = [method for method in fine if fine[method] and method not in dict(runs) and method != STUDENT]
            if missing or not runs:
                names = f" of {', '.join(missing)}" if runs else ""
                left_out.append(f"No {curve.title.lower()}{names}: {curve.unknown}.")
    return made, left_out


def _scores(rows: Sequence[Row], styles: Mapping[str, Style]) -> Drawing:
    """Draw the test score of each method with its interval, a line a method."""
    shown = [(row, row.score) for row in rows if row.score is not None]
    figure, axes = _figure(0.9 + 0.42 * len(shown))
    axes.grid(visible=False, axis="y")
    for place, (row, score) in enumerate(shown):
        style = styles[row.name]
        if row.low is not None and row.high is not None:
            axes.hlines(place, row.low, row.high, color=style["color"], linewidth=2.2)
        axes.plot([score], [place], **{**style, "markersize": 8, "linestyle": ""})
        if row.name == STUDENT:
            axes.axvline(score, color=style["color"], linestyle=style["linestyle"], linewidth=1)
    axes.set_yticks(range(len(shown)), [_short(row.name) for row, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("test score")
    caption = "Mean test score with its 95 % interval. Dotted: the student alone."
    return _drawing("test_score", "Test score", caption, figure)


def _lines(curve: Curve, runs: Sequence[tuple[str, Points]], styles: Mapping[str, Style]) -> Drawing:
    """Draw step curves, a line a seed: a mean would hide a collapse."""
    figure, axes = _figure(3.1)
    for method, points in runs:
        x, y = zip(*points, strict=True)
        end = [len(x) - 1]
        axes.step(x, y, where="post", linewidth=1.3, alpha=0.85, markersize=6, markevery=end, **styles[method])
    heights = [y for _, points in runs for _, y in points]
    wide = min(heights) > 0 and max(heights) > 30 * min(heights)
    axes.set_yscale("log" if wide else "linear")
    axes.set_xlim(left=0)
    axes.set_xlabel(curve.x)
    axes.set_ylabel(curve.y + (" (logarithmic)" if wide else ""))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.locator_params(axis="x", integer="calls" in curve.x)
    _legend(figure, list(dict.fromkeys(method for method, _ in runs)), styles)
    return _drawing(curve.name, curve.title, curve.caption, figure)


Points: TypeAlias = Sequence[Sequence[float]]  # (x, y), x rising


@dataclass(frozen=True)
class Curve:
    """A figure with a line for each seed: `points` makes the line of a cell, `unknown` says why it may have none."""

    name: str
    title: str
    x: str
    y: str
    caption: str
    points: Callable[[Mapping[str, Any]], Points]
    unknown: str


def best_so_far(cell: Mapping[str, Any], column: int) -> Points:
    """Return the best validation score so far of a cell, up to all that its compile used.

    Args:
        cell: as in `cells.jsonl`.
        column: what is on the x axis: 0 metric calls, 1 dollars.

    Returns:
        (x, score) pairs; none if no prompt was scored on the whole valset, or a price is unknown.
    """
    points = [(point[column], point[3]) for point in cell.get("curve") or ()]
    prices = [used.get("dollars") for used in cell["usage"].get("compile", {}).values()]
    end = cell["metric_calls"]["compile"] if column == 0 else None if None in prices else sum(prices)
    if not points or end is None or any(x is None for x, _ in points) or (column == 1 and end == 0):
        return []
    return [*points, (max(end, points[-1][0]), points[-1][1])]  # what came after the last point was no better


_BEST = "Best validation score so far, one line a seed. A line ends where its seed had spent all."
CURVES = (
    Curve(
        "score_by_metric_calls",
        "Score against metric calls",
        "metric calls spent while compiling",
        "best validation score so far",
        _BEST,
        lambda cell: best_so_far(cell, 0),
        "no prompt was scored on the whole valset",
    ),
    Curve(
        "score_by_dollars",
        "Score against dollars",
        "dollars spent while compiling",
        "best validation score so far",
        _BEST,
        lambda cell: best_so_far(cell, 1),
        "no prompt was scored on the whole valset, or a model has no known price",
    ),
    Curve(
        "prompt_tokens",
        "Prompt tokens",
        "metric calls",
        "prompt tokens",
        "Tokens of the task prompt in use, one line a seed. A line that stays low shows brevity bias; a line that "
        "grows, drops and stays low shows context collapse. A short drop is a validation of the starting prompt.",
        lambda cell: cell.get("prompt_steps") or [],
        "no prompt was seen",
    ),
)
NAMES = ("test_score", *(curve.name for curve in CURVES))


def falls(cells: Sequence[Mapping[str, Any]], least: int = 1000) -> list[str]:
    """Name the prompts that lost more than half of their tokens from one recorded point to the next.

    Context collapse looks like this (ACE §2.2), and so does a search that goes from a long candidate to a short one.

    Args:
        cells: as in `cells.jsonl`.
        least: shorter prompts (in tokens) do not count.

    Returns:
        A sentence for the deepest fall of each method and seed that has one.
    """
    found = []
    for cell in cells:
        steps = cell.get("prompt_steps") or []
        drops = [(b[1] - a[1], a[1], b) for a, b in itertools.pairwise(steps) if a[1] >= max(least, 2 * b[1])]
        if drops:
            _, before, (calls, after) = min(drops)
            found.append(
                f"{cell['method']}, seed {cell['seed']}: from {before:,} to {after:,} tokens at {calls:,} metric calls."
            )
    return found


def _figure(height: float) -> tuple[Figure, Axes]:
    """One pair of axes on a figure small enough that its text can be read on a phone. `height` in inches."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra; without pyplot no window and no global state

    figure = Figure(figsize=(4.6, height))
    return figure, figure.add_subplot()


def _legend(figure: Figure, methods: Sequence[str], styles: Mapping[str, Style]) -> None:
    """All methods below the axes; the figure grows with them."""
    from matplotlib.lines import Line2D  # noqa: PLC0415 - an extra

    handles = [Line2D([], [], **styles[method]) for method in methods]
    labels = [_short(method) for method in methods]
    columns = max(1, min(4, 50 // (max(map(len, labels)) + 6)))
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.2, handlelength=2.2)


def _short(name: str, longest: int = 30) -> str:
    """Fit a name beside an axis."""
    name = " ".join(printable(name).split()) or "(no name)"
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _drawing(name: str, title: str, caption: str, figure: Figure) -> Drawing:
    png, svg, clear = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=200)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(clear, format="svg", metadata={"Date": None}, transparent=True)
    return Drawing(name, title, caption, png.getvalue(), svg.getvalue(), _inline(name, title, clear.getvalue()))


def _inline(name: str, title: str, svg: bytes) -> str:
    """The SVG for a page: the page's text colour, no fixed size, no metadata, ids of its own."""
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg)  # noqa: S314 - written by matplotlib a moment ago
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{_XLINK}}}href":
                element.set(key, value.replace("#", f"#{name}-", 1))
            else:
                element.set(key, value.replace("url(#", f"url(#{name}-").replace(_INK, "currentColor"))
    for size in ("width", "height"):
        del root.attrib[size]
    root.attrib |= {"role": "img", "aria-label": title}
    return ET.tostring(root, encoding="unicode")
