"""The README is true: its code runs, its commands and files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_blocks_run_as_typed_one_after_the_other(tmp_path: Path) -> None:
    """A newcomer who types them gets a playbook, a table of calls, an answer, and two files."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks("python"))],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[" in done.stdout
    assert "reflector" in done.stdout
    assert "logistics" in done.stdout.splitlines()  # the end of the ten lines
    assert "few-shot" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} >= {"program.json", "playbook.json"}


def test_the_commands_are_targets_of_the_makefile() -> None:
    """Each `make x` of the README is a target."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake (\w+)", "\n".join(blocks("sh"))))
    assert named
    assert named <= targets


def test_the_files_it_points_to_exist() -> None:
    """Links and named files are there."""
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"`(examples/\w+\.py)`", README):
        assert (ROOT / name).exists(), name
