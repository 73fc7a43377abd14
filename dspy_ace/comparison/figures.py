"""The figures of a comparison, drawn by matplotlib (the extra `comparisons`): as files, and as SVG inside a page.

One colour, marker and line style a method, the same in every figure. Six colours are those of Okabe and Ito, which the
common kinds of colour blindness keep apart; the seventh is a violet, for their yellow is lost on white. Markers tell
methods apart without any colour; the eighth method begins again with a dashed line and hollow markers.
"""

from __future__ import annotations

import io
import warnings
import xml.etree.ElementTree as ET  # reads what matplotlib has just written, nothing from outside
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .curves import anytime, printable, to_the_end
from .tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6BB1")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")
STUDENT = "#7F7F7F"
NAMES = ("test_score", "score_by_metric_calls", "score_by_dollars", "prompt_tokens")
MISSING = (
    "The figures are missing because matplotlib is not installed. "
    "Install it and write the report again: pip install 'dspy-ace[comparisons]'"
)

_INK = "#1b1e24"  # text and axes; a page puts its own text colour in its place
_RC: Any = {
    "text.parse_math": False,  # a $ in the name of a method is a dollar
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure."""

    colour: str
    marker: str
    dash: str
    hollow: bool = False

    def line(self) -> dict[str, Any]:
        """The arguments of a matplotlib line."""
        face = "none" if self.hollow else self.colour
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash, "markerfacecolor": face}


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

    def save(self, folder: Path) -> None:
        """Write `<name>.png` and `<name>.svg` into a folder that exists."""
        (folder / f"{self.name}.png").write_bytes(self.png)
        (folder / f"{self.name}.svg").write_bytes(self.svg)


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """A look a method, by its place in the comparison; the student alone is grey."""
    found = {"student": Look(STUDENT, "*", ":")}
    for place, method in enumerate(m for m in methods if m != "student"):
        rounds, slot = divmod(place, len(COLOURS))
        marker = MARKERS[(slot + 3 * rounds) % len(MARKERS)]
        found[method] = Look(COLOURS[slot], marker, DASHES[rounds % len(DASHES)], hollow=rounds % 2 == 1)
    return found


def drawings(
    methods: Sequence[str], cells: Sequence[Mapping[str, Any]], rows: Sequence[Row]
) -> tuple[list[Drawing], list[str]]:
    """All figures for which there are numbers.

    Args:
        methods: names in order; they choose the looks.
        cells: as in `cells.jsonl`; failed ones are left out.
        rows: one a method.

    Returns:
        The figures, and a sentence for each figure or curve that is left out and why.

    Raises:
        ImportError: without matplotlib.
    """
    import matplotlib as mpl  # noqa: PLC0415  # an extra, and slow to import

    fine: dict[str, list[Mapping[str, Any]]] = {method: [] for method in methods}
    for cell in cells:
        if cell["status"] == "ok":
            fine.setdefault(cell["method"], []).append(cell)
    look, made, left_out = looks(list(fine)), [], []
    makers: tuple[tuple[str, Callable[[], tuple[Drawing | None, list[str]]]], ...] = (
        (NAMES[0], lambda: (_scores(rows, look), [])),
        (NAMES[1], lambda: _anytime_figure(NAMES[1], fine, look, 0)),
        (NAMES[2], lambda: _anytime_figure(NAMES[2], fine, look, 1)),
        (NAMES[3], lambda: (_prompts(fine, look), [])),
    )
    with mpl.rc_context(_RC), warnings.catch_warnings():
        # a letter DejaVu lacks is a box in the PNG; a browser has it for the SVG
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        for name, maker in makers:
            drawing, sentences = maker()
            left_out += sentences
            if drawing is not None:
                made.append(drawing)
            elif not sentences:
                left_out.append(f"No figure of {name.replace('_', ' ')}: no cell has numbers for it.")
    return made, left_out


def _scores(rows: Sequence[Row], look: Mapping[str, Look]) -> Drawing | None:
    """Test score of each method with its interval, a line a method."""
    shown = [(row, row.score) for row in rows if row.score is not None]
    if not shown:
        return None
    figure, axes = _figure(height=0.9 + 0.42 * len(shown), grid="x")
    for place, (row, score) in enumerate(shown):
        style = look.get(row.name, Look(STUDENT, "o", "-"))
        if row.low is not None and row.high is not None:
            axes.hlines(place, row.low, row.high, color=style.colour, linewidth=2.2)
        axes.plot([score], [place], **{**style.line(), "markersize": 8, "linestyle": ""})
        if row.name == "student":
            axes.axvline(score, color=style.colour, linestyle=style.dash, linewidth=1)
    axes.set_yticks(range(len(shown)), [_short(row.name) for row, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("test score")
    caption = "Mean test score with its 95 % interval. Dotted: the student alone."
    return _drawing(NAMES[0], "Test score", caption, figure)


def _anytime_figure(
    name: str, cells: Mapping[str, Sequence[Mapping[str, Any]]], look: Mapping[str, Look], column: int
) -> tuple[Drawing | None, list[str]]:
    """Best validation score so far against metric calls or dollars; with what is left out and why."""
    against = ("metric calls", "dollars")[column]
    curves = {method: [curve for cell in of if (curve := to_the_end(cell))] for method, of in cells.items()}
    bands = {method: anytime(of, column) for method, of in curves.items() if of}
    drawn = {method: band for method, band in bands.items() if band is not None}
    if column == 1 and not any(band.x[-1] > 0 for band in drawn.values()):
        return None, [f"No figure of the score against {against}: no model of this comparison has a known price."]
    if not drawn:
        return None, []
    missing = [method for method, of in cells.items() if of and method not in drawn and method != "student"]
    left_out = f"Not in the figure of the score against {against}, because it is not known there: {', '.join(missing)}."
    figure, axes = _figure(height=3.1)
    for method, band in drawn.items():
        style = look[method]
        axes.fill_between(band.x, band.low, band.high, step="post", color=style.colour, alpha=0.13, linewidth=0)
        ends = [0, -1] if len(band.x) > 1 else [0]
        axes.step(band.x, band.mean, where="post", linewidth=1.8, markersize=6, markevery=ends, **style.line())
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", integer=column == 0)
    axes.set_xlabel(f"{against} spent while compiling")
    axes.set_ylabel("best validation score so far")
    _legend(figure, list(drawn), look)
    caption = (
        f"Best validation score so far against {against}: mean over seeds; the band goes from the lowest to the "
        "highest seed. A line ends where its last seed had spent all; a seed that ended earlier keeps its last score."
    )
    return _drawing(name, f"Score against {against}", caption, figure), [left_out] if missing else []


def _prompts(cells: Mapping[str, Sequence[Mapping[str, Any]]], look: Mapping[str, Look]) -> Drawing | None:
    """Tokens of the prompt in use as a run goes on, a line a seed: a mean would hide a collapse."""
    drawn = {
        m: [np.array(c["prompt_steps"], dtype=float) for c in of if c.get("prompt_steps")] for m, of in cells.items()
    }
    drawn = {method: of for method, of in drawn.items() if of}
    if not drawn:
        return None
    figure, axes = _figure(height=3.1)
    for method, runs in drawn.items():
        style = look[method]
        for steps in runs:
            end = [len(steps) - 1]
            axes.step(*steps.T, where="post", linewidth=1.3, alpha=0.85, markersize=6, markevery=end, **style.line())
    tokens = np.concatenate([steps[:, 1] for runs in drawn.values() for steps in runs])
    wide = tokens.min() > 0 and tokens.max() > 30 * tokens.min()
    axes.set_yscale("log" if wide else "linear")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if not wide:
        axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("metric calls")
    axes.set_ylabel("prompt tokens" + (" (logarithmic)" if wide else ""))
    _legend(figure, list(drawn), look)
    caption = (
        "Tokens of the task prompt in use, step by step, one line a seed. A line that stays low shows brevity bias; "
        "a line that grows and then drops shows context collapse."
    )
    return _drawing(NAMES[3], "Prompt tokens", caption, figure)


def _figure(height: float, grid: str = "both") -> tuple[Figure, Axes]:
    """One pair of axes on a figure small enough that its text can be read on a phone. `height` in inches."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # an extra; without pyplot no window and no global state

    figure = Figure(figsize=(4.6, height))
    axes = figure.add_subplot()
    axes.grid(visible=grid == "both", axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def _legend(figure: Figure, methods: Sequence[str], look: Mapping[str, Look]) -> None:
    """All methods below the axes; the figure grows with them."""
    from matplotlib.lines import Line2D  # noqa: PLC0415  # an extra

    handles = [Line2D([], [], **look[method].line()) for method in methods]
    labels = [_short(method) for method in methods]
    columns = max(1, min(4, 50 // (max(map(len, labels)) + 6)))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.22 * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.2, handlelength=2.2)


def _short(name: str, longest: int = 30) -> str:
    """A name that fits beside an axis."""
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
    root = ET.fromstring(svg)  # noqa: S314  # written by matplotlib a moment ago
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
    root.set("role", "img")
    root.set("aria-label", title)
    return ET.tostring(root, encoding="unicode")
