"""Hypothesis strategies: playbooks of any text, operations of any kind, deltas that fit a playbook."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from dspy_ace.playbook import (
    DEFAULT_SECTIONS,
    Add,
    Bullet,
    Delete,
    Delta,
    Merge,
    Operation,
    Playbook,
    Tag,
    Update,
    admit,
)

NASTY = (
    *("\n", "\r\n", "\r", "\t", "\x0b", "\x0c", "\x1c", "\x1e", "\x1f", "\x85", "\u2028", "\u2029", "\ufeff", "\x00"),
    *("\n## A HEADER\n", "\n##", "## ", "#", "\n[str-00001] x", "[str-00001] ", "[STR-1]", "[misc-00002](OTHERS) y"),
    *(
        "helpful=1 harmful=2 :: x",
        "helpful=3 harmful=4 ::",
        "\nhelpful=1harmful=0::",
        " :: ",
        "\n    | x",
        "    |",
        "| ",
    ),
    *("[[ ## answer ## ]]", "[[## a ##]]", "[[\n## a ##\n]]", "[[[ ## a ## ]]]", "[[", "##", "]]", "## ]]"),
    *("<<CUSTOM-TYPE-START-IDENTIFIER>>", "<<CUSTOM-TYPE-END-IDENTIFIER>>", "<<<CUSTOM-TYPE", "<<"),
    *("{", "}", "{playbook}", "{{x}}", "%s", "\\n", "\\", '"', "'", "`", "```python\nx = 1\n```", "  ", " ", ""),
    *("Regel für Zinsen", "規則", "قاعدة", "правило", "e\u0301", "👩‍🔬", "ß", "İ", "٣", "²", "𝔘"),
)

CHARACTERS = st.characters(exclude_categories=["Cs"])


def texts() -> st.SearchStrategy[str]:
    """Any valid text, rich in what breaks parsers and prompts."""
    piece = st.one_of(st.sampled_from(NASTY), st.text(CHARACTERS, max_size=12), st.sampled_from(("when", "sum up")))
    return st.lists(piece, max_size=8).map("".join)


def contents() -> st.SearchStrategy[str]:
    """Texts that hold more than space."""
    return texts().filter(lambda content: bool(content.strip()))


def sections() -> st.SearchStrategy[str]:
    """Sections of the paper, spelled in several ways, and any text."""
    known = (
        "problem_solving_heuristics",
        "Strategies & insights",
        "## OTHERS:",
        "Tools",
        "TOOLS:",
        "",
        *DEFAULT_SECTIONS,
    )
    return st.one_of(st.sampled_from(known), texts())


def ids() -> st.SearchStrategy[str]:
    """Ids of any letters and number; few numbers, so that bullets share some."""
    letters = st.from_regex(r"\w[\w-]{0,4}", fullmatch=True)
    slug = st.one_of(st.sampled_from(("str", "of", "pi", "misc", "a-b")), letters)
    number = st.one_of(st.integers(0, 30), st.integers(0, 10**17)).map(lambda n: f"{n:05d}")
    return st.builds("{}-{}".format, slug, number)


def bullets() -> st.SearchStrategy[Bullet]:
    """Any bullet."""
    counts = st.one_of(st.integers(0, 9), st.integers(0, 10**9))
    sources = st.lists(st.one_of(st.integers(0, 5).map(str), texts()), max_size=3).map(tuple)
    predictors = st.one_of(st.none(), st.sampled_from(("react", "extract.predict")), texts())
    return st.builds(Bullet, ids(), sections(), contents(), counts, counts, predictors, sources)


def playbooks(min_size: int = 0, max_size: int = 6) -> st.SearchStrategy[Playbook]:
    """Any playbook: sections without bullets, ids that share a number, numbers given out and gone."""
    several = st.lists(bullets(), min_size=min_size, max_size=max_size, unique_by=lambda bullet: bullet.id.casefold())
    return st.builds(Playbook, several.map(tuple), st.lists(sections(), max_size=4).map(tuple), st.integers(0, 40))


def operations(playbook: Playbook) -> st.SearchStrategy[Operation]:
    """Operations on a playbook, most of them fitting: unknown ids, empty contents and odd merges among them."""
    known = [bullet.id for bullet in playbook]
    names = st.sampled_from([*known, *known, "gone-99999999", "[STR-00001]"])
    few = st.one_of(st.sampled_from(("Sum up.", "sum  up", "Round late.")), contents(), st.sampled_from(("", " \n")))
    sources = st.lists(st.sampled_from(("0", "1", "2")), max_size=2).map(tuple)
    predictors = st.sampled_from((None, None, "react"))
    maybe = st.one_of(st.none(), sections())
    votes = st.integers(0, 3)
    return st.one_of(
        st.builds(Add, sections(), few, predictors, sources),
        st.builds(Update, names, few, maybe, sources),
        st.builds(Merge, st.lists(names, max_size=3).map(tuple), few, maybe, sources),
        st.builds(Delete, names, st.sampled_from(("", "misleads", "old"))),
        st.builds(Tag, names, votes, votes, st.sampled_from((None, "0", "1"))),
        st.builds(Tag, names, st.integers(-2, 3), votes),
    )


def deltas(playbook: Playbook, max_size: int = 6) -> st.SearchStrategy[Delta]:
    """Deltas that `apply` takes, on bullets that `playbook` holds already."""
    return st.lists(operations(playbook), max_size=max_size).map(lambda drawn: admit(playbook, drawn)[0])


def junk() -> st.SearchStrategy[Any]:
    """Values of the wrong type, for fields and for whole operations."""
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 10**20),
        st.floats(),
        st.sampled_from(("", "str-00001", "\ud800", b"x", [], {}, set(), object, [["x"]], ("x", 1), {"op": "add"})),
    )
