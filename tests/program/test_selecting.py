"""Playbooks that outgrow a prompt: each call shows the bullets that matter for its inputs, in playbook order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE, OnlineACE, Playbook, with_playbook
from dspy_ace.errors import SettingsError
from dspy_ace.program.rollout import rollouts
from dspy_ace.testing import OfflineLM
from tasks import Route, accuracy, desk_metric, messages

pytestmark = pytest.mark.compat
RULES = Playbook.from_text(
    "## S\n[s-00001] Messages about a refund or chargeback go to Harbor.\n"
    "[s-00002] Messages about a password or login go to Maple.\n"
    "[s-00003] Messages about a parcel or delivery go to Summit.\n"
    "[s-00004] Messages about an invoice or receipt go to Lantern."
)
TEST = messages(24, 3)


def prompts(lm: OfflineLM) -> list[str]:
    """What the model was asked, as text."""
    return [str(record.request) for record in lm.log]


def shown(prompt: str) -> list[str]:
    """The ids of the bullets in a prompt, in order."""
    return [bullet.id for bullet in RULES if f"[{bullet.id}]" in prompt]


@pytest.mark.parametrize("student", [dspy.Predict, dspy.ChainOfThought])
def test_a_call_shows_what_matters_for_it(student: Any) -> None:
    """One rule of four is shown, the right one, and the program is as good as with all of them."""
    lm = OfflineLM()
    program = with_playbook(student(Route), RULES, prompt_bullets=1)
    with dspy.context(lm=lm):
        few = accuracy(program, TEST)
        assert few == accuracy(with_playbook(student(Route), RULES), TEST) == 1.0
    assert all(len(shown(prompt)) == 1 for prompt in prompts(lm)[: len(TEST)])
    assert all(len(shown(prompt)) == 4 for prompt in prompts(lm)[len(TEST) :])


def test_only_what_was_shown_counts_as_shown_and_cited() -> None:
    """A trajectory names the bullets that stood in its prompts, not those that were left out."""
    program = with_playbook(dspy.ChainOfThought(Route), RULES, cite=True, prompt_bullets=2)
    lm = OfflineLM()
    with dspy.context(lm=lm):
        made = rollouts(program, TEST, desk_metric, num_threads=4)
    assert all(len(trajectory.shown) == 2 and set(trajectory.cited) <= set(trajectory.shown) for trajectory in made)
    assert any(trajectory.cited for trajectory in made)
    assert len({trajectory.shown for trajectory in made}) > 1


def test_what_is_saved_holds_the_whole_playbook(tmp_path: Path) -> None:
    """A plain program loads it and shows all; `with_playbook` makes it select again."""
    program = with_playbook(dspy.ChainOfThought(Route), RULES, prompt_bullets=1)
    program.save(str(tmp_path / "program.json"))
    loaded, lm = dspy.ChainOfThought(Route), OfflineLM()
    loaded.load(str(tmp_path / "program.json"))
    with dspy.context(lm=lm):
        loaded(message=TEST[0].message)
        with_playbook(dspy.ChainOfThought(Route), RULES, prompt_bullets=1)(message=TEST[0].message)
    assert [len(shown(prompt)) for prompt in prompts(lm)] == [4, 1]


def test_a_compile_selects_from_the_first_batch_on_and_so_does_its_result() -> None:
    """No prompt of the task shows more bullets than allowed; another playbook put into the result keeps to it."""
    lm = OfflineLM()
    with dspy.context(lm=lm):
        optimizer = ACE(desk_metric, prompt_bullets=2, batch_size=8, num_threads=4)
        program = optimizer.compile(dspy.ChainOfThought(Route), messages(32, 1), valset=messages(8, 2))
        task = [record for record in lm.log if record.role == "task"]
        assert len(program.playbook) > 2
        for record in task:
            assert sum(f"[{bullet.id}]" in str(record.request) for bullet in program.playbook) <= 2
        before = lm.calls
        assert accuracy(with_playbook(program, RULES), TEST) == 1.0
    assert all(len(shown(prompt)) <= 2 for prompt in prompts(lm)[before:])
    assert not hasattr(dspy.ChainOfThought(Route), "dspy_ace_prompt_bullets")


def test_learning_online_selects_as_well() -> None:
    """The hot path shows what matters for the call."""
    lm = OfflineLM()
    with dspy.context(lm=lm), OnlineACE(dspy.ChainOfThought(Route), playbook=RULES, prompt_bullets=1) as online:
        assert [online(message=e.message).desk for e in TEST] == [e.desk for e in TEST]
    assert all(len(shown(prompt)) == 1 for prompt in prompts(lm)[: len(TEST)])


@pytest.mark.parametrize("limit", [0, -1, True, 2.5])
def test_numbers_that_are_none_are_refused(limit: Any) -> None:
    """Before any LM call."""
    with pytest.raises(SettingsError, match="prompt_bullets must be"):
        with_playbook(dspy.Predict(Route), RULES, prompt_bullets=limit)
    lm = OfflineLM()
    with dspy.context(lm=lm), pytest.raises(SettingsError, match="prompt_bullets must be"):
        ACE(desk_metric, prompt_bullets=limit).compile(dspy.Predict(Route), messages(4, 1))
    assert lm.calls == 0
