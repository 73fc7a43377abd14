"""Forgetting in the folder of a run: journal, programs and playbooks, and the run that goes on."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE, Bullet, Playbook, with_playbook
from dspy_ace.errors import JournalError, SettingsError
from dspy_ace.playbook import Delta, Rejected, Selection, Tag, replay
from dspy_ace.testing import OfflineLM
from dspy_ace.training.erase_run import _quotes, forget_run
from dspy_ace.training.history import Record, Validation
from dspy_ace.training.journal import Journal
from edits import CANARY, add
from tasks import Route, desk_metric, messages

LESSON = re.compile(r"Harbor|Maple|Summit|Lantern")


def ran(folder: Path, **settings: Any) -> tuple[Any, list[dspy.Example]]:
    """A short run with the offline model in a folder."""
    trainset = messages(16, 1)
    with dspy.context(lm=OfflineLM()):
        optimizer = ACE(desk_metric, epochs=1, batch_size=4, num_threads=1, log_dir=folder, **settings)
        return optimizer.compile(dspy.ChainOfThought(Route), trainset, valset=messages(6, 2)), trainset


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "1"
    ran(folder)
    return folder


def test_a_source_is_forgotten_in_the_folder_of_a_run(kept_run: Path, tmp_path: Path) -> None:
    """Journal, best playbook and best program hold nothing of it; the run is closed, a new one takes its playbook."""
    folder = tmp_path / "1"
    shutil.copytree(kept_run, folder)
    before = Playbook.load(folder / "playbook.json")
    source = next(s for b in before for s in b.sources)
    texts = [b.content for b in before if source in b.sources]
    assert texts
    (folder / "playbook.json.0badcafe.partial").write_text(texts[0])
    account = forget_run(folder, sources={source})
    held = "".join(path.read_text() for path in folder.iterdir())
    for text in texts:
        assert json.dumps(text)[1:-1] not in held
        assert json.dumps(text, ensure_ascii=False)[1:-1] not in held
    now = Playbook.load(folder / "playbook.json")
    assert [b for b in before if source not in b.sources] == [
        replace(b, helpful=before[b.id].helpful, harmful=before[b.id].harmful) for b in now
    ]
    records = [Record.from_json(json.loads(line)) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert all(int(source) not in record.batch and len(record.batch) == len(record.scores) for record in records)
    assert replay(Playbook(), [record.delta for record in records]) == now or len(now) <= len(before)
    program = dspy.ChainOfThought(Route)
    program.load(str(folder / "program.json"))
    assert (
        program.predict.signature.instructions
        == with_playbook(dspy.ChainOfThought(Route), now).predict.signature.instructions
    )
    assert "cannot be continued" in str(account)
    with pytest.raises(JournalError, match="examples were forgotten"):
        ran(folder)
    with pytest.raises(SettingsError, match=f"No such sources: '{source}'"):
        forget_run(folder, sources={source})


def test_a_crash_while_a_run_folder_is_rewritten_is_made_good_by_a_second_call(kept_run: Path, tmp_path: Path) -> None:
    """The journal is replaced last: with the other files rewritten or not, the same call ends in the same bytes."""
    source = Playbook.load(kept_run / "playbook.json").bullets[0].sources[0]
    shutil.copytree(kept_run, tmp_path / "whole")
    forget_run(tmp_path / "whole", sources={source})
    names = ["run.json", "playbook.json", "program.json"]
    for written in range(len(names) + 1):
        folder = tmp_path / str(written)
        shutil.copytree(kept_run, folder)
        for name in names[:written]:
            shutil.copy(tmp_path / "whole" / name, folder / name)
        forget_run(folder, sources={source})
        for path in folder.iterdir():
            if path.name != "lock":
                assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes(), path.name


def test_a_program_that_cannot_be_cleaned_is_removed(kept_run: Path, tmp_path: Path) -> None:
    """A saved program with a playbook that the run did not make does not stay behind unseen."""
    folder = tmp_path / "1"
    shutil.copytree(kept_run, folder)
    saved = (folder / "program.json").read_text()
    (folder / "program.json").write_text(saved.replace("## Playbook", f"## Playbook\\n{CANARY}"))
    source = Playbook.load(folder / "playbook.json").bullets[0].sources[0]
    account = forget_run(folder, sources={source})
    assert "program.json was removed" in str(account)
    assert not (folder / "program.json").exists()


def test_a_run_that_lost_a_bullet_goes_on(kept_run: Path, tmp_path: Path) -> None:
    """Nothing of its data has changed: it is continued from the rewritten journal."""
    folder = tmp_path / "1"
    shutil.copytree(kept_run, folder)
    bullet = Playbook.load(folder / "playbook.json").bullets[0]
    account = forget_run(folder, bullets={bullet.id})
    assert bullet.id in account.removed
    assert "can be continued" in str(account)
    program, _ = ran(folder)
    assert bullet.id not in program.playbook
    assert program.playbook == Playbook.load(folder / "playbook.json")


def test_a_journal_keeps_no_message_that_may_quote(tmp_path: Path) -> None:
    """Failures and rejections of the example go; from its step on those of others lose their words."""
    said = {"kind": "format", "message": f"reply: {CANARY}"}
    records = [
        Record(0, validation=Validation((0.5,))),
        Record(1, 1, (1,), (0.0,), {"1": {"kind": "format", "message": "harmless"}}, delta=Delta((add("mine", "1"),))),
        Record(
            2, 1, (3, 2), (0.0, 1.0), {"3": said, "3, retry 1": said, "2": said, "valset 0": said},
            ({"example": "3", "insights": 1, "verified": None}, {"example": "2", "insights": 0, "verified": None}),
            Delta((add(CANARY, "3"), Tag("s-00001", 1, 0, "3"))),
            ({"operation": None, "reason": f"curation of examples 3 failed: {CANARY}"},),
        ),
        Record(3, 1, (4,), (1.0,), rejected=({"operation": {"op": "update", "content": CANARY}, "reason": "long"},)),
    ]  # fmt: skip
    with Journal.open(tmp_path / "run", {"trainset": "x"}) as journal:
        for record in records:
            journal.append(record)
        with pytest.raises(JournalError, match="in use"):
            forget_run(tmp_path / "run", sources={"3"})
    account = forget_run(tmp_path / "run", sources={"3"})
    held = (tmp_path / "run" / "journal.jsonl").read_text()
    assert CANARY not in held
    assert "harmless" in held
    kept = [Record.from_json(json.loads(line)) for line in held.splitlines()]
    assert (kept[2].batch, kept[2].scores, list(kept[2].failures)) == ((2,), (1.0,), ["2", "valset 0"])
    assert [r["example"] for r in kept[2].reflections] == ["2"]
    assert (account.votes, account.operations) == (1, 1)
    assert "2 rejected operations" in str(account)


def test_mistakes_with_a_run_folder_are_said(kept_run: Path, tmp_path: Path) -> None:
    """No run there, another seed, unknown names: each says so, no byte is changed."""
    before = {path.name: path.read_bytes() for path in kept_run.iterdir()}
    for mistake, error, words in (
        (lambda: forget_run(tmp_path, sources={"1"}), JournalError, "holds no run"),
        (lambda: forget_run(kept_run, sources={"99"}), SettingsError, "No such sources: '99'; known are '0', '1'"),
        (lambda: forget_run(kept_run, matching="zebra"), SettingsError, "Nothing in this run matches"),
        (lambda: forget_run(kept_run), SettingsError, "Nothing is selected"),
        (
            lambda: forget_run(kept_run, seed=Playbook((Bullet("s-00001", "S", "x"),)), sources={"1"}),
            SettingsError,
            "another playbook",
        ),
    ):
        with pytest.raises(error, match=words):
            mistake()
    after = {path.name: path.read_bytes() for path in kept_run.iterdir()}
    assert {**after, "lock": b""} == {**before, "lock": b""}


@pytest.mark.parametrize(
    ("reason", "quoted"),
    [
        ("reflection on example 17 failed: ValueError", True),
        ("curation of examples 3, 17, 8 failed: no reply", True),
        ("reflection on example 171 failed: ValueError", False),
        ("curation of examples 3, 8 failed: 17 tokens over", False),
        ("no bullet 's-00017' in the playbook", False),
    ],
)
def test_a_rejection_whose_reason_names_a_forgotten_example_goes_with_it(reason: str, quoted: bool) -> None:
    """The reason of a failed reflection or curation names its examples: it may hold their words."""
    assert _quotes(Rejected(None, reason).to_json(), Selection({"17"})) is quoted
