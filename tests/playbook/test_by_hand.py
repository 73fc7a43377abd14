"""A playbook changed by hand: by methods, as text, as JSON; what is different in two, and how they are shown."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_ace import Bullet, Playbook
from dspy_ace.errors import DeltaError, PlaybookError
from strategies import playbooks, texts

BOOK = Playbook(
    (
        Bullet("tool-00001", "TOOLS", "Log in first.", 3, 1, "react", ("4",)),
        Bullet("tool-00002", "TOOLS", "Read all pages.\n\n    for page in pages: …", 1, 0),
        Bullet("misc-00007", "OTHERS", "Be brief."),
    ),
    (),
    9,
)


# --- methods


def test_a_bullet_is_added_edited_and_removed() -> None:
    """Each method returns a new playbook; votes, sources and ids stay, and no id is given again."""
    grown = BOOK.add("Name the unit.", section="tools", predictor="extract")
    assert grown.bullets[-1] == Bullet("tool-00010", "TOOLS", "Name the unit.", predictor="extract")
    edited = BOOK.edit("[TOOL-00001]", "Log in once.", section="ACCESS")
    assert edited["tool-00001"] == Bullet("tool-00001", "ACCESS", "Log in once.", 3, 1, "react", ("4",))
    assert BOOK.edit("tool-00001", section="ACCESS")["tool-00001"].content == "Log in first."
    fewer = grown.remove("tool-00010", "misc-00007")
    assert [bullet.id for bullet in fewer] == ["tool-00001", "tool-00002"]
    assert fewer.add("x").bullets[-1].id == "misc-00011"
    assert len(BOOK) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda: BOOK.add(" \n"),
        lambda: BOOK.edit("tool-00001", ""),
        lambda: BOOK.edit("gone-00005", "x"),
        lambda: BOOK.edit("gone-00005", section="S"),
        lambda: BOOK.remove("tool-00001", "gone-00005"),
    ],
)
def test_a_change_that_does_not_fit_is_an_error(change: Any) -> None:
    """An empty content and an unknown id are named."""
    with pytest.raises(DeltaError, match=r"empty text|gone-00005"):
        change()


def test_the_difference_of_two_playbooks() -> None:
    """Added, removed, changed and voted bullets are told apart, and printed as lines of the prompt."""
    after = BOOK.remove("misc-00007").edit("tool-00001", "Log in once.").add("Count twice.\nAlways.")
    voted = Playbook(
        [*after.bullets[:1], Bullet("tool-00002", "TOOLS", BOOK["tool-00002"].content, 2), after.bullets[-1]]
    )
    difference = BOOK.diff(voted)
    assert [bullet.id for bullet in difference.added] == ["misc-00010"]
    assert [bullet.id for bullet in difference.removed] == ["misc-00007"]
    assert [(before.id, after.content) for before, after in difference.changed] == [("tool-00001", "Log in once.")]
    assert [(before.helpful, after.helpful) for before, after in difference.voted] == [(1, 2)]
    assert str(difference).splitlines() == [
        "1 added, 1 removed, 1 changed, 1 with other votes",
        "- [tool-00001] (TOOLS) Log in first.",
        "-   (for react)",
        "+ [tool-00001] (TOOLS) Log in once.",
        "+   (for react)",
        "- [misc-00007] (OTHERS) Be brief.",
        "+ [misc-00010] (OTHERS) Count twice.",
        "+   Always.",
    ]
    assert difference
    assert not BOOK.diff(BOOK)
    assert str(BOOK.diff(BOOK)) == "no difference"


@given(playbooks(), playbooks())
def test_a_difference_tells_all(one: Playbook, other: Playbook) -> None:
    """Taken back and put on, it makes the other playbook of the one."""
    difference = one.diff(other)
    gone = {b.id.casefold() for b in (*difference.removed, *(b for b, _ in difference.changed + difference.voted))}
    kept = [bullet for bullet in one if bullet.id.casefold() not in gone]
    new = (*difference.added, *(b for _, b in difference.changed + difference.voted))
    assert Playbook((*kept, *new)).bullets == other.bullets
    assert bool(difference) == (one.bullets != other.bullets)


# --- the text format


def test_a_text_edited_by_hand_is_put_back() -> None:
    """A changed, a deleted, a moved and a new bullet; what the text does not show is kept."""
    text = BOOK.to_text(counters=False).replace("Log in first.", "Log in once.").replace("[misc-00007] Be brief.", "")
    text = text.replace(
        "## OTHERS", "## OTHERS\n- Count twice.\n    | And write it down.\n* Round late.\n## NEW\n• Third."
    )
    again = Playbook.from_text(text, base=BOOK)
    assert again["tool-00001"] == Bullet("tool-00001", "TOOLS", "Log in once.", 3, 1, "react", ("4",))
    assert again["tool-00002"] == BOOK["tool-00002"]
    assert [(b.id, b.section, b.content) for b in again.bullets[2:]] == [
        ("misc-00010", "OTHERS", "Count twice.\nAnd write it down."),
        ("misc-00011", "OTHERS", "Round late."),
        ("new-00012", "NEW", "Third."),
    ]


@given(playbooks())
def test_a_text_that_was_not_edited_changes_nothing(playbook: Playbook) -> None:
    """In either dialect."""
    for counters in (True, False):
        assert Playbook.from_text(playbook.to_text(counters), base=playbook) == playbook


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("A comment.", 2),
        ("    | a further line of no bullet", 2),
        ("[tool-1 x", 2),
        ("[tool_1] x", 2),
        ("[tool-00001]", 2),
        ("[tool-00001] helpful=1 harmful=0 ::  ", 2),
        ("[tool-00001] helpful=one harmful=0 :: x", 2),
        ("-", 2),
        ("-no space", 2),
        ("[tool-00001] fine\n\nwrapped by an editor", 4),
        ("[tool-00001] fine\n  - a list in it\n   | two bars", 4),
        ("# TITLE", 2),
    ],
)
def test_a_line_that_is_not_understood_is_an_error(line: str, number: int, end: str) -> None:
    """It is named by its number; nothing is dropped or glued to another bullet."""
    with pytest.raises(PlaybookError, match=rf"line {number}\b.*Expected are"):
        Playbook.from_text(f"## TOOLS\n{line}".replace("\n", end))


def test_many_errors_are_counted() -> None:
    """The first five are named."""
    with pytest.raises(PlaybookError, match=r"line 5, 'x'.*; and 95 more"):
        Playbook.from_text("x\n" * 100)


LINES = st.one_of(
    texts().map(lambda words: " ".join(words.split())),
    st.sampled_from(
        ("- new", "* new", "    | more", "## OTHERS", "##", "[tool-00001] twice", "[x-1]", "| x", "[a-2]b")
    ),
    st.builds(
        "{}{}".format, st.sampled_from(("- ", "[n-3] ", "    | ", "[n-4] helpful=1 harmful=2 :: ")), st.text(max_size=9)
    ),
)
EDITS = st.lists(
    st.tuples(st.sampled_from(("insert", "replace", "delete", "copy", "cut", "glue")), st.integers(0, 60), LINES),
    min_size=1,
    max_size=4,
)


def edited(text: str, edits: list[tuple[str, int, str]]) -> str:
    lines = text.split("\n")
    for what, where, line in edits:
        at = where % len(lines)
        changed = {
            "insert": [line, lines[at]],
            "replace": [line],
            "delete": [""],
            "copy": [lines[at], lines[at]],
            "cut": [lines[at][: where % 7], lines[at][where % 7 :]],
            "glue": [lines[at] + line],
        }
        lines[at : at + 1] = changed[what]
    return "\n".join(lines)


def letters(text: str) -> str:
    """What people see of a text: its letters and digits, in order."""
    return "".join(filter(str.isalnum, text))


@settings(max_examples=int(os.environ.get("DSPY_ACE_TRIALS", 4 * settings.default.max_examples)))  # type: ignore[union-attr]
@given(playbooks(min_size=1), EDITS, st.booleans())
def test_no_edit_loses_anything_in_silence(
    playbook: Playbook, edits: list[tuple[str, int, str]], counters: bool
) -> None:
    """An edited text is refused with the number of a line, or each of its lines stands in the playbook."""
    text = edited(playbook.to_text(counters), edits)
    try:
        again = Playbook.from_text(text, base=playbook)
    except PlaybookError:
        return
    held = letters("".join(f"{b.id} helpful={b.helpful} harmful={b.harmful} :: {b.content}" for b in again))
    names = [letters(section) for section in again.sections]
    for line in text.split("\n"):
        if line.strip("\ufeff ").startswith("##"):
            assert letters(line) in [*names, ""]
        else:
            assert letters(re.sub(r"^\s*\[[^]]*\]", "", line)) in held or letters(line) in held
    for bullet in again:
        before = playbook.get(bullet.id)
        if before is not None and bullet.content == before.content:
            assert (bullet.predictor, bullet.sources) == (before.predictor, before.sources)


# --- JSON


def test_bullets_without_an_id_get_one(tmp_path: Path) -> None:
    """They come last, in the order of the file, with numbers that were never given."""
    data = BOOK.to_json()
    data["bullets"] = [
        {"section": "TOOLS", "content": "One."},
        *data["bullets"],
        {"id": None, "section": "", "content": "Two."},
    ]
    path = tmp_path / "playbook.json"
    path.write_text(json.dumps(data))
    assert [(b.id, b.content) for b in Playbook.load(path)][3:] == [("tool-00010", "One."), ("misc-00011", "Two.")]


# --- how it is shown


class Seen(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"style", "class"}

    def handle_data(self, data: str) -> None:
        self.text += data


@given(playbooks(), playbooks())
def test_html_shows_any_content_as_text(one: Playbook, other: Playbook) -> None:
    """No tag but ours, and every letter is there."""
    hostile = one.add("<script>alert(1)</script><img src=x onerror=alert(1)> $x$ &amp; '\"", section="<b>S</b>")
    page = Seen(hostile._repr_html_())
    assert page.tags <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert "<script>alert(1)</script><img src=x onerror=alert(1)> $x$ &amp; '\"" in page.text
    assert Seen(hostile.diff(other)._repr_html_()).tags <= {"div", "p"}


def test_a_playbook_as_markdown() -> None:
    """A heading for each section; lines of a bullet belong to it; HTML and headings are text, code is code."""
    page = BOOK.add("# No heading\n<b>x</b> but `a < b`").to_markdown()
    assert page.splitlines() == [
        "## TOOLS",
        "",
        "- **[tool-00001]** Log in first. *(helpful 3, harmful 1, for react)*",
        "- **[tool-00002]** Read all pages.",
        "",
        "      for page in pages: … *(helpful 1, harmful 0)*",
        "",
        "## OTHERS",
        "",
        "- **[misc-00007]** Be brief.",
        "- **[misc-00010]** \\# No heading",
        "  &lt;b&gt;x&lt;/b&gt; but `a < b`",
    ]


def test_a_difference_as_markdown_is_one_block() -> None:
    """Backticks in a content do not end it."""
    page = BOOK.diff(BOOK.add("```python\nx\n```")).to_markdown()
    assert page.startswith("1 added\n\n````diff\n+ [misc-00010] (OTHERS) ```python\n")
    assert page.endswith("\n````")


def test_reprs_are_short() -> None:
    """In a terminal and in a debugger a playbook is one line."""
    assert repr(BOOK) == f"Playbook(3 bullets in 2 sections, about {BOOK.tokens()} tokens)"
