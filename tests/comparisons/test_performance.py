"""The benchmarks run and tell what they measure; no time is asserted."""

from __future__ import annotations

import pytest

from comparisons.performance import straight
from comparisons.performance.__main__ import main
from comparisons.performance.lessons import additions, lessons, playbook_of
from dspy_ace import GrowAndRefine
from dspy_ace.playbook import Add, Delta, apply, count_tokens


@pytest.mark.slow
def test_the_benchmark_at_scale_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """At a small size it gives one table of times with ratios, and one of memory, under the name of the machine."""
    sizes = ["--sizes", "40", "60", "--all-up-to", "40", "--repetitions", "2", "--plain", "1", "--steps", "5"]
    assert main(["scale", *sizes]) == 0
    out = capsys.readouterr().out
    assert "cores" in out.splitlines()[0]
    assert "2 repetitions" in out.splitlines()[0]
    rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {8, 4}
    assert [row[0].strip() for row in rows if "a delta of 3: do" in row[0]] == [
        f"{size} bullets, a delta of 3: do, refine, write, count" for size in (40, 60)
    ]
    assert [row[4].strip() != "" for row in rows if "a delta of 3: do" in row[0]] == [True, False]
    assert any("resume a journal of 5 steps (15 bullets)" in row[0] for row in rows)
    assert [row[0].strip() for row in rows if len(row) == 4][2:] == ["40", "40"]


@pytest.mark.slow
def test_the_benchmark_of_the_start_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """It tells what the import costs over DSPy's, each process started anew."""
    assert main(["startup", "--processes", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 processes" in out
    assert "| import dspy_ace, over import dspy |" in out


def test_lessons_are_the_same_in_every_run() -> None:
    """The texts depend on the seed alone, and no two are the same."""
    first, second = ([next(texts) for _ in range(200)] for texts in (lessons(), lessons()))
    assert first == second
    assert len(set(first)) == 200
    assert first[0] != next(lessons(1))


def test_the_straightforward_version_does_the_same() -> None:
    """What ours is measured against merges the same bullets and writes the same prompt."""
    texts = lessons()
    playbook = playbook_of(texts, 50)
    repeated = playbook.bullets[7].content.rstrip(".")
    delta = additions(texts, 2) + Delta((Add("COMMON MISTAKES TO AVOID", f"{repeated[0].lower()}{repeated[1:]}"),))
    grown = apply(playbook, delta)
    ours = apply(grown, GrowAndRefine()(grown))
    assert len(ours) == 52
    prompt, tokens = straight.step(playbook, delta)
    assert prompt == ours.render()
    assert tokens == count_tokens(prompt)


def test_the_straightforward_version_says_what_it_cannot_do() -> None:
    """It only adds; anything else is told by name."""
    playbook = playbook_of(lessons(), 3)
    from dspy_ace.playbook import Delete

    with pytest.raises(TypeError, match="delete"):
        straight.step(playbook, Delta((Delete(playbook.bullets[0].id),)))
