"""The README and the guides are true: their code runs and prints what they show, commands and files exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
SHOWN = re.compile(r"```python\n(.*?)```(?:\n(?:It prints:\n)?```text\n(.*?)```)?", re.DOTALL)
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
END = "-- end of a block --"

# What each block of the README must have reached, beside what it shows.
REACHED = [
    "assert program(ticket='Who sees to a laptop?').team == 'helpdesk' != student(ticket='Who sees to a laptop?').team",
    "of = program.detailed_results; assert of.best_score > of.seed_score and of.validated_on == len(valset)",
    "assert [b.content for b in same] == [b.content for b in program.playbook]",
    "assert answer.team in rules.values() and online.playbook.get('ctx-00005') is None  # forgotten",
    "scores = {row.name: row.score for row in result.rows}; assert scores['ACE'] >= scores['student'], scores",
]


def run(blocks: list[str], folder: Path) -> list[str]:
    """Run blocks of Python one after the other in one process; returns what each has printed."""
    script = "\n".join(f"{block}\nprint({END!r})" for block in blocks)
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split(f"{END}\n")[:-1]


def agrees(shown: str, printed: str) -> bool:
    """Compare what a page shows with what was printed: `…` stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in shown.strip().split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def test_the_blocks_of_the_readme_run_show_what_they_print_and_reach_what_they_promise(tmp_path: Path) -> None:
    """A newcomer who types the blocks one after the other sees what the README shows, and ends where it says."""
    found = SHOWN.findall(README)
    assert len(found) == len(REACHED)
    printed = run([f"{code}\n{reached}" for (code, _), reached in zip(found, REACHED, strict=True)], tmp_path)
    for (code, shown), words in zip(found, printed, strict=True):
        assert not shown or agrees(shown, words), f"{code}\nprinted\n{words}"
    assert printed[2].strip() == "helpdesk"  # the comment beside the last line
    assert "few-shot" in printed[4]
    assert {path.name for path in tmp_path.iterdir()} >= {"program.json", "playbook.json", "memory.db"}


def test_the_blocks_of_the_guides_run_and_show_what_they_print(tmp_path: Path) -> None:
    """A reader who types the guides one after the other sees what they show."""
    found = SHOWN.findall(GUIDES)
    printed = run([code for code, _ in found], tmp_path)
    assert len(found) >= 8
    for (code, shown), words in zip(found, printed, strict=True):
        assert bool(shown.strip()) == bool(words.strip()), f"{code}\nprinted\n{words}"
        assert agrees(shown, words), f"{code}\nprinted\n{words}"


def test_the_block_for_weights_and_biases_runs(tmp_path: Path) -> None:
    """It logs to a run that is kept on disk, without an account and without the network."""
    pytest.importorskip("wandb")
    first = SHOWN.findall(GUIDES)[0][0]
    code, shown = re.findall(r"```python wandb\n(.*?)```\n```text\n(.*?)```", GUIDES, re.DOTALL)[0]
    assert run([first, code], tmp_path)[1].strip() == shown.strip()


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    """Install, make a prompt better, edit it: the commands run as they stand, with an editor that changes nothing."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__", "office"))
    commands = re.findall(r"^dspy-ace (.*?)(?:  +#.*)?$", "\n".join(SHELL.findall(README)), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["optimize", "edit"]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "dspy_ace", *command.split()], check=False, cwd=tmp_path, capture_output=True,
            text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT), "EDITOR": "true"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    better = (tmp_path / "better.txt").read_text(encoding="utf-8")
    assert better.startswith((ROOT / "examples" / "prompt.txt").read_text(encoding="utf-8"))
    assert "## Playbook" in better


def test_what_is_taught_online_is_learned() -> None:
    """The bullet that the README shows says what the user said, not only that the answer was wrong."""
    taught = next(shown for code, shown in SHOWN.findall(README) if "online.tell" in code)
    assert "printer" in taught.splitlines()[0]
    assert "helpdesk" in taught.splitlines()[0]


def test_the_readme_is_short() -> None:
    """A newcomer reads it whole."""
    assert len(README.splitlines()) <= 150


def test_the_commands_are_targets_of_the_makefile() -> None:
    """Each `make x` of the README and of CONTRIBUTING is a target."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([\w-]+)|^make ([\w-]+)", README + contributing, re.MULTILINE))
    assert named
    assert {first or second for first, second in named} <= targets


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "examples/README.md", "comparisons/README.md"])
def test_the_files_it_points_to_exist(page: str) -> None:
    """Links and named files are there."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / page).parent / name).exists(), name
    for name in re.findall(r"`((?:dspy_ace|examples|tests|comparisons)/[\w/]+\.py)`", text):
        assert (ROOT / name).exists(), name
