"""A playbook in instructions: recognised for certain, taken out whole, read back."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dspy_ace import Bullet, Playbook
from dspy_ace.errors import PlaybookError
from dspy_ace.playbook import PLAYBOOK_HEADER, playbook_block, take_out
from strategies import playbooks, texts

RULES = Playbook(
    (
        Bullet("str-00001", "RULES", "Read twice.", helpful=3, harmful=1, sources=("4",)),
        Bullet("str-00002", "RULES (OLD)", "First line.\n\n  second\nthird", predictor="a"),
        Bullet("cmt-00007", "OTHERS", "Only for b.", predictor="b"),
    )
)


class Program:
    """What is asked of a program: predictors with instructions, and perhaps a playbook."""

    def __init__(self, playbook: Playbook | None = None, **instructions: str) -> None:
        self.instructions = instructions
        if playbook is not None:
            self.playbook = playbook

    def named_predictors(self) -> list[tuple[str, Any]]:
        signatures = {name: SimpleNamespace(instructions=text) for name, text in self.instructions.items()}
        return [(name, SimpleNamespace(signature=signature)) for name, signature in signatures.items()]


def shown(playbook: Playbook, *names: str, own: str = "Do it.") -> dict[str, str]:
    """The instructions of predictors that show a playbook."""
    return {name: "\n\n".join(filter(None, (own, playbook_block(playbook, name)))) for name in names}


def plain(playbook: Playbook) -> list[tuple[str, str, str, str | None]]:
    return [(bullet.id, bullet.section, bullet.content, bullet.predictor) for bullet in playbook]


def test_what_stands_around_a_block_is_kept() -> None:
    """Own instructions above, text that somebody wrote below; nothing of the block."""
    block = playbook_block(RULES, "a")
    for above in (
        "",
        "Do it.",
        "Do it.\n\n\n",
        "## Playbook\nmy own heading",
        "[str-00009] (S) no bullet",
    ):
        for below in ("", "\n\nBe brief.", "\nBe brief.\n  - a list\n", "\n\n## Examples\n1 + 1 = 2"):
            own, bullets = take_out("\n\n".join(filter(None, (above, block))) + below)
            assert own == above + (below if above else below.lstrip("\n"))
            assert bullets is not None
            assert [bullet.id for bullet in bullets] == ["str-00001", "str-00002"]


def test_instructions_without_a_block_are_left_alone() -> None:
    """Also where they speak of a playbook."""
    for text in (
        "",
        "Do it.",
        "## Playbook\nRead it.",
        "Lessons learned on earlier cases of this task",
        "[str-00001] (S) x",
    ):
        assert take_out(text) == (text, None)


@pytest.mark.parametrize(
    "edit",
    [
        lambda block: block.replace("\n", "\r\n"),
        lambda block: " ".join(block.split("\n\n", 1)[0].split()) + "\n\n" + block.split("\n\n", 1)[1],
        lambda block: block.replace("one block each", "one a block"),
        lambda block: block.replace("\n\n[", "\n[", 1),
        lambda block: block.replace("[str-00002] (", "\n[ str-00002 ] ("),
        lambda block: block.replace("[str-00002] (RULES (OLD))", "A line between.\n[str-00002] (RULES (OLD))"),
    ],
)
def test_a_block_edited_by_hand_is_recognised(edit: Any) -> None:
    """Other line ends, a header that was wrapped or worded anew, blank lines, a line between two bullets."""
    own, bullets = take_out(f"Do it.\n\n{edit(playbook_block(RULES, 'a'))}\n\nBe brief.")
    assert own.replace("\r", "") == "Do it.\n\nBe brief."
    assert bullets is not None
    assert [bullet.id for bullet in bullets] == ["str-00001", "str-00002"]
    assert "Read twice." in bullets[0].content


def test_of_two_blocks_both_go_and_the_last_one_counts() -> None:
    """What a program held twice is held no more."""
    old = Playbook((Bullet("old-00001", "S", "Old."),))
    own, bullets = take_out(f"Do it.\n\n{playbook_block(old, 'a')}\n\nBe brief.\n\n{playbook_block(RULES, 'a')}")
    assert own == "Do it.\n\nBe brief."
    assert bullets is not None
    assert [bullet.id for bullet in bullets] == ["str-00001", "str-00002"]


@given(playbooks(), texts())
def test_any_playbook_is_taken_out_whole(playbook: Playbook, own: str) -> None:
    """Whatever stands in bullets and instructions: the own text comes back, and each bullet once."""
    for name in ("react", "other"):
        instructions = shown(playbook, name, own=own)[name]
        assert take_out(instructions)[0] == own
        bullets = take_out(instructions)[1]
        assert [bullet.id for bullet in bullets or ()] == [bullet.id for bullet in playbook.for_predictor(name)]
        assert [bullet.block for bullet in bullets or ()] == [b.block.rstrip() for b in playbook.for_predictor(name)]


@given(playbooks())
@example(Playbook((Bullet("str-00001", "S", "0 \x0b##"),)))
def test_what_is_read_back_reads_the_same(playbook: Playbook) -> None:
    """A program loaded from JSON: the playbook read back gives each predictor the very same prompt."""
    instructions = shown(playbook, "react", "extract.predict")
    again = Playbook.from_program(Program(**instructions))
    assert shown(again, "react", "extract.predict") == instructions


@given(playbooks())
def test_with_its_values_at_hand_nothing_is_lost(playbook: Playbook) -> None:
    """Counters, sources, sections, scopes and bullets that no prompt shows come from `program.playbook`."""
    program = Program(playbook, **shown(playbook, "react", "other"))
    assert Playbook.from_program(program) == playbook


def test_scopes_are_read_from_the_prompts() -> None:
    """In all predictors: for all. In one of several: for that one. A program of one predictor has no scopes."""
    read = Playbook.from_program(Program(**shown(RULES, "a", "b")))
    assert plain(read) == plain(RULES)
    assert [bullet.helpful for bullet in read] == [0, 0, 0]
    assert [bullet.predictor for bullet in Playbook.from_program(Program(**shown(RULES, "a")))] == [None, None]


def test_a_hand_edit_is_the_truth() -> None:
    """A bullet that was changed keeps its counters, one that was deleted is gone, a new one is there."""
    instructions = shown(RULES, "a", "b")
    instructions["a"] = instructions["a"].replace("Read twice.", "Read it three times.")
    instructions["b"] = instructions["b"].replace("Read twice.", "Read it three times.")
    instructions["b"] = instructions["b"].replace("[cmt-00007] (OTHERS) Only for b.", "[new-00009] Mind the units.")
    read = Playbook.from_program(Program(RULES, **instructions))
    assert plain(read) == [
        ("str-00001", "RULES", "Read it three times.", None),
        ("str-00002", "RULES (OLD)", "First line.\n\n  second\nthird", "a"),
        ("new-00009", "OTHERS", "Mind the units.", "b"),
    ]
    assert (read["str-00001"].helpful, read["str-00001"].sources) == (3, ("4",))


@pytest.mark.parametrize("known", [RULES, None])
def test_a_bullet_deleted_from_one_prompt_stays_out_of_it(known: Playbook | None) -> None:
    """It was for all; now it is for those whose prompts still show it."""
    instructions = shown(RULES, "a", "b", "c")
    instructions["b"] = instructions["b"].replace("[str-00001] (RULES) Read twice.\n", "")
    read = Playbook.from_program(Program(known, **instructions))
    assert "Read twice." not in shown(read, "b")["b"]
    assert all("Read twice." in text for text in shown(read, "a", "c").values())
    assert len({bullet.id for bullet in read}) == len(read) == 4


def test_one_id_for_two_texts_becomes_two_ids() -> None:
    """Sub-programs that were compiled apart may share ids."""
    one, two = (Playbook((Bullet("str-00001", "S", text),)) for text in ("One.", "Two."))
    read = Playbook.from_program(Program(**shown(one, "x.self"), **shown(two, "y.self")))
    assert plain(read) == [("str-00001", "S", "One.", "x.self"), ("str-00002", "S", "Two.", "y.self")]


def test_a_prompt_that_an_optimizer_wrote_anew_leaves_the_values() -> None:
    """Without any block `program.playbook` stands, and with none of both there is an empty playbook."""
    assert Playbook.from_program(Program(RULES, a="Found by a search.", b="Too.")) == RULES
    partly = Program(RULES, a="Found by a search.", b=shown(RULES, "b")["b"])
    assert Playbook.from_program(partly) == RULES
    assert Playbook.from_program(Program(a="Do it.")) == Playbook()
    with pytest.raises(PlaybookError, match=r"Expected a DSPy program .*; got str"):
        Playbook.from_program("program.json")


def test_a_bullet_without_a_text_is_none() -> None:
    """A hand edit that left the id alone, or all bullets out."""
    block = f"{PLAYBOOK_HEADER}\n\n[str-00001] (S) \n[str-00002] (S) Mind the units."
    assert plain(Playbook.from_program(Program(a=block))) == [("str-00002", "S", "Mind the units.", None)]
    assert Playbook.from_program(Program(RULES, a=PLAYBOOK_HEADER, b=PLAYBOOK_HEADER)) == Playbook(
        (), RULES.sections, 7
    )


@pytest.mark.parametrize("text", ["\n", " \n", "## Playbook\n", "[a-1", "[" + "a-1" * 9, "\n[a-00001] (", "  x\n"])
def test_long_instructions_are_read_in_linear_time(text: str) -> None:
    """A hundred thousand characters of what a block is made of take well below a second."""
    started = time.perf_counter()
    take_out(f"{PLAYBOOK_HEADER}\n\n[a-00001] (S) x\n" + text * (100_000 // len(text)))
    take_out(text * (100_000 // len(text)))
    assert time.perf_counter() - started < 2


@given(st.text(max_size=300))
def test_any_text_has_instructions_and_perhaps_a_block(text: str) -> None:
    """Total on any text, and what was taken out leaves nothing to take out."""
    own, _ = take_out(f"{text}\n\n{PLAYBOOK_HEADER}\n\n[a-00001] (S) x{text}")
    assert take_out(own) == (own, None)
