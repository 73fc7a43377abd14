"""One playbook in a prompt, ever: loaded from JSON, edited by hand, nested, compiled again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE, Bullet, Playbook, with_playbook
from dspy_ace.testing import OfflineLM
from tasks import Route, desk_metric, messages

pytestmark = pytest.mark.compat
TITLE = "## Playbook"
OLD = Playbook(
    (
        Bullet("str-00001", "RULES", "Refunds go to Harbor.", helpful=4),
        Bullet("str-00002", "RULES", "Parcels go to Lantern."),
    )
)
NEW = Playbook((Bullet("str-00002", "RULES", "Parcels go to Summit."),))


class Two(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """A program of two predictors, one of them within another program."""

    def __init__(self, route: Any = None) -> None:
        super().__init__()
        self.route = route or dspy.ChainOfThought(Route)
        self.check = dspy.Predict("message, desk -> fine: bool")

    def forward(self, message: str) -> Any:
        desk = self.route(message=message).desk
        self.check(message=message, desk=desk)
        return dspy.Prediction(desk=desk)


def prompts(program: dspy.Module) -> dict[str, str]:
    return {name: predictor.signature.instructions for name, predictor in program.named_predictors()}


def loaded(program: dspy.Module, build: Any, folder: Path, edit: Any = str) -> dspy.Module:
    """The program as another process loads it, perhaps after a hand edit of its file."""
    path = folder / "program.json"
    program.save(str(path))
    state = json.loads(path.read_text())
    for part in state.values():
        if isinstance(part, dict) and "signature" in part:
            part["signature"]["instructions"] = edit(part["signature"]["instructions"])
    path.write_text(json.dumps(state))
    fresh: dspy.Module = build()
    fresh.load(str(path))
    return fresh


@pytest.mark.parametrize("build", [Two, lambda: dspy.ChainOfThought(Route), lambda: Two(Two())])
def test_a_loaded_program_takes_another_playbook(build: Any, tmp_path: Path) -> None:
    """The prompts are those of the student with the new playbook alone, and the values can be read back."""
    fresh = loaded(with_playbook(build(), OLD), build, tmp_path)
    assert not hasattr(fresh, "playbook")
    assert [(b.id, b.content, b.predictor) for b in Playbook.from_program(fresh)] == [
        (b.id, b.content, None) for b in OLD
    ]
    assert prompts(with_playbook(fresh, NEW)) == prompts(with_playbook(build(), NEW))
    assert prompts(with_playbook(fresh, Playbook())) == prompts(build())


def test_a_hand_edit_of_the_file_is_replaced_and_read(tmp_path: Path) -> None:
    """A bullet that was deleted from the file does not come back; text below the playbook stays."""

    def edit(text: str) -> str:
        return text.replace("[str-00001] (RULES) Refunds go to Harbor.\n", "") + "\n\nBe brief."

    fresh = loaded(with_playbook(Two(), OLD), Two, tmp_path, edit)
    assert [bullet.content for bullet in Playbook.from_program(fresh)] == ["Parcels go to Lantern."]
    for name, text in prompts(with_playbook(fresh, NEW)).items():
        own = prompts(Two())[name]
        assert text.startswith(f"{own}\n\nBe brief.\n\n{TITLE}")
        assert text.count(TITLE) == 1
        assert "Lantern" not in text


def test_a_hand_edit_in_this_process_is_read_with_its_counters() -> None:
    """What the prompt says is the truth; `program.playbook` knows the votes of what was left alone."""
    program = with_playbook(dspy.Predict(Route), OLD)
    text = program.signature.instructions.replace("Parcels go to Lantern.", "Parcels go to Summit.")
    program.signature = program.signature.with_instructions(text)
    read = Playbook.from_program(program)
    assert [bullet.content for bullet in read] == ["Refunds go to Harbor.", "Parcels go to Summit."]
    assert read["str-00001"].helpful == 4


@pytest.mark.parametrize("by_hand", [False, True])
def test_compiling_a_loaded_program_goes_on_with_its_playbook(by_hand: bool, tmp_path: Path) -> None:
    """One block in each prompt; what it knew is the seed, and what was deleted by hand is gone."""

    def edit(text: str) -> str:
        return text.replace("\n[str-00002] (RULES) Parcels go to Lantern.", "") if by_hand else text

    fresh = loaded(with_playbook(Two(), OLD), Two, tmp_path, edit)
    with dspy.context(lm=OfflineLM()):
        program = ACE(desk_metric, num_threads=2, max_reflection_rounds=0).compile(fresh, messages(8, 1))
    assert program.playbook.get("str-00001") is not None
    assert (program.playbook.get("str-00002") is None) == by_hand
    assert all(text.count(TITLE) <= 1 for text in prompts(program).values())
    assert any(text.count("[str-00001]") == 1 for text in prompts(program).values())


def by_line(change: Any) -> Any:
    return lambda text: "\n".join(map(change, text.split("\n")))


@pytest.mark.parametrize("at_hand", [True, False])
@pytest.mark.parametrize("own", ["Route it.", "## Playbook\nOur own, by hand.\n\n## Rules\n- [rfc-1] Be kind.", ""])
@pytest.mark.parametrize(
    ("edit", "left"),
    [
        (lambda text: text.replace("\n", "\r\n"), "{}"),
        (lambda text: text.replace("\n", "\r"), "{}"),
        (by_line(lambda line: f"{line}  "), None),
        (by_line(lambda line: f"    {line}"), "{}"),
        (lambda text: f"<task>\n{text}\n</task>\nAnswer in one word.", "<task>\n{}\n</task>\nAnswer in one word."),
        (lambda text: f"{text}\n\n{text}", None),
        (lambda text: text.replace(f"{TITLE}\nLessons", "Lessons"), "{}"),
        (lambda text: text.replace(f"{TITLE}\nLessons", "### Playbook:\nLessons"), "{}"),
        (lambda text: re.sub(r"Lessons learned.*?apply\.\n\n?", "", text, flags=re.DOTALL), "{}"),
        (lambda text: text.replace("[str-", "- [str-"), "{}"),
        (lambda text: re.sub(r"(\[str-\d+\])", r"* **\1**", text), "{}"),
        (lambda text: text.replace("\n[str-", "\n\n\n[str-"), "{}"),
    ],
)
def test_a_block_is_known_after_a_hand_edit(edit: Any, left: str | None, own: str, at_hand: bool) -> None:
    """Line ends, spaces, title, lists, text around it: no bullet is lost, and another playbook takes its place."""
    student = dspy.Predict(Route.with_instructions("x"))
    student.signature.instructions = own
    program = with_playbook(student, OLD)
    text = edit(program.signature.instructions)
    program = program if at_hand else dspy.Predict(Route)
    program.signature = program.signature.with_instructions("x")
    program.signature.instructions = text
    read = Playbook.from_program(program)
    assert [(b.id, b.content, b.helpful) for b in read] == [(b.id, b.content, b.helpful if at_hand else 0) for b in OLD]
    again = with_playbook(program, NEW).signature.instructions
    assert again.count("Lessons learned on earlier cases") == 1
    assert "Harbor" not in again
    assert "Lantern" not in again
    if left is not None and own:
        assert with_playbook(program, Playbook()).signature.instructions == left.format(own)


def test_a_compiled_part_of_a_program_is_read_and_replaced() -> None:
    """The outer program has no playbook of its own: that of its part is found, and replaced in its prompt."""
    student = Two(with_playbook(dspy.ChainOfThought(Route), OLD))
    read = Playbook.from_program(student)
    assert {bullet.predictor for bullet in read} == {"route.predict"}
    assert prompts(with_playbook(student, read)) == prompts(student)
    assert prompts(with_playbook(student, NEW)) == prompts(with_playbook(Two(), NEW))
    assert Playbook.from_program(with_playbook(student, NEW)) == NEW


@pytest.mark.parametrize("loads", [False, True])
def test_what_a_compiled_part_carries_is_used(loads: bool, tmp_path: Path) -> None:
    """Its votes are kept while its values are at hand; once the whole has a playbook, the part has none of its own."""
    part = with_playbook(dspy.ChainOfThought(Route), OLD)
    student = Two(loaded(part, lambda: dspy.ChainOfThought(Route), tmp_path) if loads else part)
    read = Playbook.from_program(student)
    assert [(b.id, b.helpful) for b in read] == [("str-00001", 0 if loads else 4), ("str-00002", 0)]
    program = with_playbook(student, read.edit("str-00002", "Parcels go to Summit."))
    assert not hasattr(program.route, "playbook")
    assert hasattr(student.route, "playbook") != loads
    assert Playbook.from_program(program) == program.playbook
