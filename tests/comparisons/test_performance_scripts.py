"""The benchmarks of hostile text, look-alikes and settings: what they count; no time is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from comparisons.performance import hostile, scale_out, schedule, settings, stores, thresholds
from comparisons.performance.schedule import Span
from comparisons.performance.settings import GRIDS, Outcome
from dspy_ace import ACE, Bullet, Playbook
from paths import SHARED

SHARED = SHARED / "data"
SAME = ("Ask for the order number first.", "First ask for the order number.")
OTHER = ("Retry a failed upload 3 times.", "Retry a failed upload 4 times.")
ODD = ("Check the date.", "Look the total up.")


def cells(out: str) -> list[list[str]]:
    """The rows of the table in a text, its head and rule first."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]


# --- hostile text


def test_the_benchmark_of_hostile_text_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Under the name of the machine: a row for each input, three times and two growths in it."""
    hostile.main(["--size", "200", "--repetitions", "1"])
    out = capsys.readouterr().out
    assert "cores" in out.splitlines()[0]
    head, _, *rows = cells(out)
    assert head[1] == "n = 200: ms"
    assert [row[0] for row in rows] == [case.what for case in hostile.INPUTS]
    for row in rows:
        assert all(float(time) > 0 for time in row[1:4])
        assert len(row[4].replace("✗", "").split(",")) == 2


@pytest.mark.parametrize("case", hostile.INPUTS, ids=lambda case: case.what)
def test_hostile_inputs_grow_with_the_size(case: hostile.Input) -> None:
    """An input of twice the size is about twice as long, so that 2 is the growth of linear work."""
    lengths = []
    for made in (case.make(4_000), case.make(8_000)):
        bullets = made if isinstance(made, Playbook) else [made] if isinstance(made, Bullet) else ()
        lengths.append(len(made) if isinstance(made, str) else sum(len(bullet.content) for bullet in bullets))
    assert 1.8 < lengths[1] / lengths[0] < 2.3
    assert 0.4 * 4_000 < lengths[0] < 2 * 4_000


@pytest.mark.parametrize(("power", "marked"), [(1, ""), (2, " ✗")])
def test_growth_is_told_from_times(power: int, marked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear times double; quadratic ones grow fourfold and are marked."""
    monkeypatch.setattr(hostile, "lowest", lambda case, size, repetitions: 1e-2 * (size / 100) ** power)
    assert hostile.line(hostile.Input("it", str, str), 100, 1).endswith(f"| {2.0**power}, {2.0**power}{marked} |")


# --- look-alikes


def test_the_benchmark_of_look_alikes_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each threshold, then one for each language; what pairs have is told apart from what strangers have."""
    thresholds.main([])
    out = capsys.readouterr().out
    rows = cells(out)
    assert [row[0] for row in rows[2:8]] == ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8"]
    assert rows[4][1:] == ["100.0%", "100.0%", "0.1%", "100.0%", "100.0%", "0.0%"]  # at the Curator's threshold
    assert [row[0] for row in rows[10:]] == ["en", "de", "es", "zh", "ja", "ko", "fr", "ru"]
    assert list(thresholds.strangers([SAME, OTHER])) == list(thresholds.strangers([OTHER, SAME]))


# --- settings


@pytest.mark.parametrize("name", GRIDS)
def test_all_settings_of_the_grids_go_together(name: str) -> None:
    """Each entry of a grid has arguments that ACE takes, and none comes twice."""
    shown = []
    for entry in GRIDS[name]:
        ACE(lambda example, prediction: 1, **{key: value for key, value in entry.items() if key != "valset"})
        shown.append(settings.named(entry))
    assert len(set(shown)) == len(shown)


def test_a_row_of_settings() -> None:
    """Means over seeds; the difference is paired, with an interval as soon as there are two seeds."""
    base = [
        Outcome((1.0, 0.0), 30, 10, 4, 44, 7, 3, 500.0, 1.0, 0.5),
        Outcome((1.0, 1.0), 32, 12, 6, 50, 9, 3, 500.0, 1.0, 0.5),
    ]
    best = [
        Outcome((1.0, 1.0), 30, 10, 4, 44, 7, 3, 500.0, 1.0, 0.5),
        Outcome((1.0, 1.0), 30, 10, 2, 42, 9, 3, 500.0, 1.0, 0.5),
    ]
    assert settings.line("a", base, base) == "| a | 0.750 | – | 8 | 3.0 | 500 | 31 | 11 | 5 | 47 |"
    assert settings.line("b", best, base) == "| b | 1.000 | +0.250 ± 3.177 | 8 | 3.0 | 500 | 30 | 10 | 3 | 43 |"
    assert settings.line("c", best[:1], base[:1]) == "| c | 1.000 | +0.500 | 7 | 3.0 | 500 | 30 | 10 | 4 | 44 |"


@pytest.mark.slow
def test_the_benchmark_of_settings_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Calls by role stand beside scores; a row for each entry of the grid, the default first."""
    settings.main(["default", "--seeds", "0"])
    head, _, *rows = cells(capsys.readouterr().out)
    assert head[-4:] == ["rollouts", "reflections", "curations", "LM calls"]
    assert [row[0] for row in rows] == ["the default", "batch_size=1"]
    for row in rows:
        rollouts, reflections, curations, calls = map(int, row[-4:])
        assert reflections > curations > 0
        assert rollouts + reflections + curations <= calls


@pytest.mark.slow
def test_the_benchmark_of_the_wall_clock_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each batch size asked for; ratios are to the first, and CPU time stands beside."""
    settings.main(["wall", "--sizes", "2", "16", "--scale", "0.001"])
    out = capsys.readouterr().out
    assert "latencies × 0.001" in out.splitlines()[0]
    head, _, *rows = cells(out)
    assert [row[0] for row in rows] == ["2", "16"]
    assert (rows[0][2], rows[0][-1]) == ("1.00", "1.00")
    assert all(row[head.index("CPU")].endswith("%") for row in rows)


# --- the critical path


def test_a_step_takes_its_slowest_example_and_the_curation() -> None:
    """Rollout, reflection and retry of an example follow each other; examples do not wait for one another."""
    slow = [Span("rollout", "a", 1.0), Span("reflect", "a", 2.0), Span("rollout", "a", 1.0)]
    part = [*slow, Span("rollout", "b", 2.0), Span("reflect", "b", 0.5), Span("curate", "", 3.0)]
    assert schedule.shortest(part, threads=16) == 7.0
    assert schedule.shortest(part, threads=1) == 9.5  # all of the work


def test_a_validation_takes_its_slowest_rollout() -> None:
    """Seed and last playbook meet side by side: two rollouts of one example do not follow each other."""
    part = [Span("rollout", "a", 1.0), Span("rollout", "a", 2.0), Span("rollout", "b", 0.5)]
    assert schedule.shortest(part, threads=16) == 2.0
    assert schedule.shortest(part, threads=1) == 3.5
    assert schedule.critical_path([part, part, []], threads=16) == 4.0


@pytest.mark.slow
def test_the_benchmark_of_the_critical_path_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each setting and number of threads, and the CPU of a rollout."""
    schedule.main(["--scale", "0.01", "--threads", "8", "--repeats", "1"])
    out = capsys.readouterr().out
    assert [row[0] for row in cells(out)[2:]] == ["default", "auto=light", "batch_size=8"]
    assert "CPU of a rollout" in out


def test_workers_are_busy_until_the_coordinator_is_the_limit() -> None:
    """The simulation agrees with what can be worked out by hand."""
    assert scale_out.busy(1, 10, 0.0, 2.0, 0.0) == (1.0, 1.0)
    assert scale_out.busy(10, 10, 0.0, 2.0, 2.0) == (1.0, 0.5)
    during, _ = scale_out.busy(100, 1000, 0.1, 2.0, 0.0)  # 10 rollouts a second keep 20 workers busy
    assert 0.15 < during < 0.45


@pytest.mark.slow
def test_the_benchmark_of_workers_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints what it measured and what it simulated."""
    scale_out.main(["--examples", "4", "--seconds", "0.05", "--rollouts", "5", "--latency", "0.01"])
    out = capsys.readouterr().out
    assert "Measured" in out
    assert "| 1000 | 2048 |" in out


@pytest.mark.slow
def test_the_benchmark_of_stores_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each kind of write and number of writers; without a server SQLite alone."""
    stores.main(["--writers", "1", "2", "--seconds", "0.1", "--folder", str(tmp_path)])
    rows = [row[:3] for row in cells(capsys.readouterr().out)[2:]]
    assert rows == [["SQLite", kind, writers] for kind in ("tell", "append") for writers in ("1", "2")]
