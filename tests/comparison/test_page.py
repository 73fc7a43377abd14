"""A comparison as a page: what it says, what it survives, and what a browser makes of it."""

from __future__ import annotations

import html
import random
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import Page, browser
from dspy_ace.comparison.figures import NAMES, best_so_far, falls, styles
from dspy_ace.comparison.page import save_page
from dspy_ace.comparison.rows import Row
from dspy_ace.errors import SettingsError

NASTY = (
    "a </script><script>alert(1)</script> & <img src=x onerror=alert(2)> \"q\" 'p' {{ 7*7 }} $x$ | `b` ``` _i_ \x00\x1b"
)
LONG = [f"[str-{n:05d}] When a ticket names part {n}, send it to team {n % 7}." for n in range(60)]


def usage(calls: int, dollars: float | None) -> dict[str, Any]:
    tokens = {"prompt_tokens": calls * 700, "cached_tokens": calls * 300, "completion_tokens": calls * 60}
    return {"calls": calls, "cached_calls": 0, "failed_calls": 1, **tokens, "dollars": dollars, "seconds": calls / 4}


def cell(method: str, seed: int, final: float, *, priced: bool = True, collapse: bool = False) -> dict[str, Any]:
    """A made-up finished cell: a curve that rises to `final`, a prompt that grows (and collapses)."""
    rng = random.Random(ascii(f"{method}{seed}"))
    end = rng.randint(200, 400)
    curve, best = [], 0.4
    for calls in range(20, end, 40):
        best = max(best, min(final, best + rng.random() * 0.12))
        curve.append([calls, calls * 0.0004 if priced else None, calls / 3, best])
    steps = [
        [calls, 150 + (calls * 9 if method.startswith("ACE") else 60 * rng.random())] for calls in range(0, end, 5)
    ]
    steps = [[calls, round(18_282 * calls / 300 if collapse and calls < 300 else tokens)] for calls, tokens in steps]
    steps = [[calls, max(120, tokens)] for calls, tokens in steps]
    student = method == "student"
    prompt = ["Sort the ticket.", "Answer with one team."] + ([] if student else LONG[seed * 3 : 40 + seed])
    dollars = 0.2 if priced else None
    return {
        "version": 1, "method": method, "seed": seed, "status": "ok", "reason": None,
        "started": f"2026-01-0{seed + 1}T10:00:00+00:00",
        "test_scores": [float(rng.random() < final) for _ in range(50)],
        "metric_calls": {"compile": 0 if student else end, "test": 50},
        "usage": {
            "compile": {} if student else {"task": usage(end, dollars), "optimizer": usage(end // 3, dollars)},
            "test": {"task": usage(50, dollars)},
        },
        "seconds": {"compile": end / 5, "test": 3.0},
        "curve": [] if student else curve, "prompt_steps": [] if student else steps,
        "prompt_tokens": 150, "bullets": 40 if method.startswith("ACE") else None,
        "prompts": {"predict": "\n".join(prompt)},
    }  # fmt: skip


def failed(method: str, seed: int, reason: str) -> dict[str, Any]:
    made = cell(method, seed, 0.5)
    empty: dict[str, Any] = {"test_scores": [], "curve": [], "prompt_steps": [], "prompts": {}, "usage": {}}
    return {**made, **empty, "status": "failed", "reason": reason}


def row(name: str, cells: list[dict[str, Any]]) -> Row:
    fine = [c for c in cells if c["method"] == name and c["status"] == "ok"]
    bad = [c for c in cells if c["method"] == name and c["status"] != "ok"]
    score = float(np.mean([c["test_scores"] for c in fine])) if fine else None
    spent = fine[0]["usage"] if fine else {"compile": {}, "test": {}}
    return Row(
        name=name, seeds_ok=len(fine), seeds_failed=len(bad), reasons=tuple({c["reason"] for c in bad}), score=score,
        low=None if score is None else score - 0.06, high=None if score is None else score + 0.05,
        vs_student=None if score is None or name == "student" else (0.12, 0.031, 0.209), vs_best=None,
        metric_calls=float(np.mean([c["metric_calls"]["compile"] for c in fine])) if fine else None,
        lm_calls=411.5 if fine else None, usage=spent["compile"], test_usage=spent["test"],
        dollars=0.4 if fine else None, seconds=61.25 if fine else None, test_size=50,
        prompt_tokens=150.0 if fine else None, bullets=40.0 if name.startswith("ACE") and fine else None,
    )  # fmt: skip


HEADER: dict[str, Any] = {
    "version": 1,
    "fingerprint": {"program": "8c1f", "data": "77aa", "metric": "01bc"},
    "seeds": [0, 1, 2],
    "sizes": {"train": 60, "val": 30, "test": 50},
    "metric": "exact_match",
    "models": {"task": "made up", "reflection": "made up"},
    "environment": {"python": "3.11.2", "dspy": "3.4.1", "dspy_ace": "0.1.0", "platform": "Linux", "cpus": 2},
    "started": "2026-01-01T10:00:00+00:00",
    "notes": ["DSPy's response cache was off."],
    "label": "Synthetic numbers, made for a test: they say nothing about any method.",
    "command": "python -m comparisons run --task quickstart",
    "task": "quickstart",
    "budget": 400,
    "published": [
        {"benchmark": "FiNER", "method": "ACE", "score": 78.3, "source": "arXiv 2510.04618, Table 2"},
        {"benchmark": "AppWorld", "method": "ReAct", "score": "63.7/42.9", "source": "arXiv 2510.04618, Table 1"},
    ],
}
FINAL = {
    "student": 0.55, "ACE": 0.9, "ACE as the paper ran it": 0.86, "GEPA": 0.78, "MIPROv2": 0.75, "SIMBA": 0.7,
    "BootstrapFewShotWithRandomSearch": 0.72, "ICL": 0.66, "Dynamic Cheatsheet": 0.68,
}  # fmt: skip


drawn = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """A comparison of nine methods by three seeds, with a failed method, a failed seed and nasty prompts."""
    cells = [cell(m, s, final, collapse=m == "Dynamic Cheatsheet") for m, final in FINAL.items() for s in range(3)]
    cells[5]["prompts"] = {"predict": NASTY + "\nsecond line", NASTY: "x"}
    cells += [failed("Broken & <b>co</b>", s, f"ValueError: {NASTY}") for s in range(3)]
    cells[-4] = failed("Dynamic Cheatsheet", 2, "RunError: the provider is gone")
    names = [*FINAL, "Broken & <b>co</b>"]
    return {"header": {**HEADER, "methods": names[1:]}, "cells": cells, "rows": [row(n, cells) for n in names]}


class _Tags(HTMLParser):
    """The tags of a page, its ids, and every attribute that could make a request; none may run a script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "srcset")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        assert not [k for k, _ in attrs if k.startswith("on")]


def save(made: dict[str, Any], path: Path) -> str:
    return save_page(made["header"], made["cells"], made["rows"], path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The HTML page, drawn once for the tests that only read it."""
    return save(made, tmp_path_factory.mktemp("html") / "report.html")


@pytest.fixture(scope="module")
def markdown(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Markdown page, drawn once."""
    return save(made, tmp_path_factory.mktemp("md") / "a report.md")


def test_page_holds_what_was_found_and_how(made: dict[str, Any], report: str) -> None:
    """The page names every method, the label, the notes, reasons of failures, versions, seeds, dates and command."""
    text = html.unescape(report)
    wanted = [*FINAL, HEADER["label"], *HEADER["notes"], "RunError: the provider is gone", "3.4.1", "0, 1, 2"]
    wanted += ["2026-01-01T10:00:00+00:00 to 2026-01-03", HEADER["command"], "second line"]
    wanted += [f"{r.score:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in made["rows"] if r.score is not None]
    assert [piece for piece in wanted if piece not in text] == []


def test_page_asks_nobody(report: str) -> None:
    """No address in the page leaves it, and its policy forbids every request."""
    parser = _Tags()
    parser.feed(report)
    assert {a for a in parser.addresses if not a.startswith("#")} == {"data:,"}
    assert "default-src 'none'" in report


def test_hostile_text_stays_text(report: str) -> None:
    """Markup, quotes, template syntax and control characters in names, reasons and prompts are shown as they are."""
    parser = _Tags()
    parser.feed(report)
    assert parser.tags.count("script") == 1
    assert not {"img", "b", "co"} & set(parser.tags)
    assert "{{ 7*7 }}" in report
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", report)


@drawn
def test_ids_are_unique(report: str) -> None:
    """No two elements of the page share an id, those inside the figures included, and each reference has its target."""
    parser = _Tags()
    parser.feed(report)
    assert len(parser.ids) == len(set(parser.ids))
    assert {a[1:] for a in parser.addresses if a.startswith("#")} <= set(parser.ids)


def test_published_rows_stand_apart(report: str) -> None:
    """Published results are in a table of their own that says so, and in no measured one."""
    measured, published = report.split('<section id="published"')
    assert "78.3" in published
    assert "not measured here" in published
    assert "2510.04618" not in measured


@drawn
def test_figures_are_files_too(made: dict[str, Any], tmp_path: Path) -> None:
    """Each figure stands beside the page as PNG and as SVG that parses; one that is no longer made is removed."""
    save(made, tmp_path / "report.html")
    folder = tmp_path / "report_figures"
    assert {path.name for path in folder.iterdir()} == {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    for name in NAMES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        ET.parse(folder / f"{name}.svg")
    unpriced = [cell(m, s, f, priced=False) for m, f in FINAL.items() for s in range(2)]
    page = save({**made, "cells": unpriced}, tmp_path / "report.html")
    assert not (folder / "score_by_dollars.svg").exists()
    assert "No score against dollars: no prompt was scored on the whole valset, or a model has no known price" in page


@drawn
def test_methods_may_have_any_name(tmp_path: Path) -> None:
    """Dollars, underscores, other scripts, half characters, empty and very long names reach figures and pages."""
    names = [
        "$x^2$",
        "_hidden",
        "日本語",
        "half \ud800",
        "\n",
        "long " * 40,
        "currentColor",
        'id="x" url(#y)',
        "#1b1e24",
    ]
    cells = [cell(name, 0, 0.8) for name in names]
    made = {"header": HEADER, "cells": cells, "rows": [row(name, cells) for name in names]}
    page = html.unescape(save(made, tmp_path / "report.html"))
    svg = page[page.index("<svg") : page.rindex("</svg>")]
    assert [
        n for n in ("$x^2$", "_hidden", "日本語", "half \ufffd", 'id="x" url(#y)', "#1b1e24") if f">{n}<" not in svg
    ] == []
    save(made, tmp_path / "report.md")


@drawn
def test_figures_name_whom_they_leave_out(made: dict[str, Any], tmp_path: Path) -> None:
    """A method without a curve, or without a price, is named where it is missing from a figure."""
    cells = [cell("ACE", 0, 0.9), {**cell("ICL", 0, 0.7), "curve": []}, cell("GEPA", 0, 0.8, priced=False)]
    rows = [row(name, cells) for name in ("ACE", "ICL", "GEPA")]
    page = save({"header": HEADER, "cells": cells, "rows": rows}, tmp_path / "report.html")
    assert "No score against metric calls of ICL: no prompt was scored on the whole valset." in page
    assert "No score against dollars of ICL, GEPA: " in page


def test_without_matplotlib_the_page_says_so(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the extra both kinds of page are written without figures and name the command that installs it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for suffix in (".html", ".md"):
        page = html.unescape(save(made, tmp_path / f"report{suffix}")).replace("\\", "")
        assert "pip install 'dspy-ace[comparisons]'" in page
        assert "<svg" not in page
    assert not (tmp_path / "report_figures").exists()


def test_a_report_before_the_first_cell(tmp_path: Path) -> None:
    """A comparison without a finished cell, or where every cell failed, is still a page of both kinds."""
    broken = [failed("ACE", 0, "ValueError: no")]
    for cells in ([], broken):
        for suffix in (".html", ".md"):
            rows = [row("ACE", cells)] if cells else []
            page = save({"header": {"version": 1}, "cells": cells, "rows": rows}, tmp_path / f"empty{suffix}")
            assert ("ValueError" in page) == bool(cells)


def test_another_suffix_is_refused(made: dict[str, Any], tmp_path: Path) -> None:
    """A path that is neither .html nor .md is a user's mistake, and nothing is written."""
    with pytest.raises(SettingsError, match=r"ends in \.html or \.md, got .*report\.pdf"):
        save(made, tmp_path / "report.pdf")
    assert not list(tmp_path.iterdir())


@drawn
def test_markdown_tables_keep_their_shape(markdown: str) -> None:
    """Every table line has as many cells as its title, whatever pipes stand in names and reasons."""
    blocks = re.findall(r"(?:^\|.*\n?)+", re.sub(r"(?ms)^(`{3,}).*?^\1$", "", markdown), flags=re.MULTILINE)
    assert len(blocks) == 5
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "](a%20report_figures/test_score.png)" in markdown
    assert HEADER["label"] in markdown


def test_markdown_prompts_are_diffs(markdown: str) -> None:
    """Each compiled prompt is a line diff against the student's, in a fence longer than any it holds."""
    assert "+" + LONG[0] in markdown
    assert re.search(r"^````diff$", markdown, flags=re.MULTILINE)


def test_a_curve_goes_on_to_the_end_of_its_compile() -> None:
    """What was spent after the last better score is shown as well; an unknown price stays unknown; no curve, none."""
    run = {**cell("GEPA", 0, 0.8), "curve": [[8, 0.01, 2.0, 0.5], [20, 0.02, 3.0, 0.7]]}
    assert best_so_far(run, 0) == [(8, 0.5), (20, 0.7), (run["metric_calls"]["compile"], 0.7)]
    assert best_so_far(run, 1) == [(0.01, 0.5), (0.02, 0.7), (pytest.approx(0.4), 0.7)]
    assert best_so_far(cell("GEPA", 0, 0.8, priced=False), 1) == []
    assert best_so_far({**run, "curve": []}, 0) == []


def test_a_collapse_is_named() -> None:
    """A prompt that loses most of its tokens from one point to the next is named with its sizes; a small one is not."""
    collapsed = {**cell("DC", 1, 0.5), "prompt_steps": [[59, 17_000], [60, 18_282], [61, 122], [62, 150]]}
    small = {**cell("GEPA", 0, 0.5), "prompt_steps": [[0, 700], [1, 100]]}
    assert falls([collapsed, small]) == ["DC, seed 1: from 18,282 to 122 tokens at 61 metric calls."]


def test_no_two_methods_look_alike() -> None:
    """Twenty methods have twenty styles; the first seven have colours of their own, and the student has its own."""
    names = ["student", *(f"m{n}" for n in range(20))]
    found = styles(names)
    assert len({tuple(style.values()) for style in found.values()}) == 21
    assert len({found[f"m{n}"]["color"] for n in range(7)} | {found["student"]["color"]}) == 8


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@drawn
@pytest.mark.slow
def test_a_browser_shows_it(made: dict[str, Any], page: Page, tmp_path: Path) -> None:
    """At phone and desk width, light and dark: no request, no complaint, no sideways scrolling.

    At desk width axe-core finds nothing serious either.
    """
    path = tmp_path / "report.html"
    save(made, path)
    shades = set()
    for width in (390, 1280):
        for dark in (False, True):
            page.open(path, width, dark)
            assert page.requests in ([path.resolve().as_uri()], [path.resolve().as_uri(), "data:,"])
            assert page.complaints == []
            assert page.run("document.documentElement.scrollWidth") == width
            assert width == 390 or page.complaints_of_axe() == []
            shades.add(page.run("getComputedStyle(document.body).backgroundColor"))
    assert len(shades) == 2
    assert page.run("document.querySelectorAll('figure svg').length") == 4
    assert page.run("document.querySelectorAll('img').length") == 0


@drawn
@pytest.mark.slow
def test_a_browser_sorts_and_compares(made: dict[str, Any], page: Page, tmp_path: Path) -> None:
    """A click on a title sorts by it, both ways, with what has no number last; two prompts make a line diff."""
    save(made, tmp_path / "report.html")
    page.open(tmp_path / "report.html")
    names = "[...document.querySelectorAll('#results tbody th')].map(th => th.textContent.trim())"
    click = "document.querySelectorAll('#results .sort')[{}].click()"
    by_score = sorted((r for r in made["rows"] if r.score is not None), key=lambda r: r.score)
    page.run(click.format(1))
    assert page.run(names) == [*(r.name for r in by_score), "Broken & <b>co</b>"]
    page.run(click.format(1))
    scores = {r.name: r.score for r in made["rows"]}
    shown = [scores[name] for name in page.run(names)]
    assert shown == [*sorted((r.score for r in by_score), reverse=True), None]
    page.run(click.format(0))
    assert page.run(names)[0] == "ACE"
    choose = "const to = document.getElementById('to'); to.value = {}; to.dispatchEvent(new Event('change'))"
    page.run("{" + choose.format(2) + "}")
    lines = "[...document.querySelectorAll('#difference .{}')].map(div => div.textContent.slice(2))"
    assert page.run(lines.format("added")) == LONG[3:41]
    assert page.run(lines.format("removed")) == []
    page.run("{" + choose.format(3) + "}")
    shown = page.run(lines.format("added"))
    assert NASTY.replace("\x00", "\ufffd").replace("\x1b", "\ufffd") in shown
    assert page.run(lines.format("removed")) == ["Sort the ticket.", "Answer with one team."]
    assert page.complaints == []


@drawn
@pytest.mark.slow
def test_a_browser_diffs_line_by_line(page: Page, tmp_path: Path) -> None:
    """Edits between unchanged lines stand in their places, far ones are folded, and very long prompts end."""
    old = [f"line {n}" for n in range(40)]
    new = ["before", *old[:3], "between", *old[4:20], "changed", *old[21:], "after"]
    long = ["\n".join(f"{side} {n}" for n in range(5_100)) for side in ("left", "right")]
    cells = [cell("A", 0, 0.7), cell("B", 0, 0.7)]
    for made, text, many in zip(cells, (old, new), long, strict=True):
        made["prompts"] = {"short": "\n".join(text), "long": many}
    save({"header": HEADER, "cells": cells, "rows": [row(n, cells) for n in "AB"]}, tmp_path / "report.html")
    page.open(tmp_path / "report.html")
    box = "document.querySelectorAll('#difference .diff')[{}]"
    lines = f"[...{box.format(0)}.children].map(line => line.textContent)"
    shown = page.run(lines)
    assert shown[:9] == [
        "+ before", "  line 0", "  line 1", "  line 2", "− line 3", "+ between", "  line 4", "  line 5", "  line 6",
    ]  # fmt: skip
    assert shown[9] == "… 10 unchanged lines"
    assert shown[10:16] == ["  line 17", "  line 18", "  line 19", "− line 20", "+ changed", "  line 21"]
    page.run("document.querySelectorAll('#difference button').forEach(button => button.click())")
    opened = page.run(lines)
    assert [line[2:] for line in opened if line[0] in " −"] == old
    assert [line[2:] for line in opened if line[0] in " +"] == new
    assert page.run(f"{box.format(1)}.children.length") == 10_200


def test_the_title_is_that_of_the_program(tmp_path: Path) -> None:
    """Both kinds of page, and the table in a terminal, say which program was optimized."""
    made = {"header": {"version": 1, "program": "ChainOfThought(question -> answer)"}, "cells": [], "rows": []}
    for suffix in (".html", ".md"):
        page = html.unescape(save(made, tmp_path / f"report{suffix}")).replace("\\", "")
        assert "Optimizers of ChainOfThought(question -> answer)" in page
