"""Threads that several kinds of work share: who goes first, and what a failure does to the others."""

from __future__ import annotations

import threading
import time

import pytest

from dspy_ace.program.parallel import WHENEVER, Crew


def test_the_lowest_rank_goes_first() -> None:
    """What waits for a thread begins by rank, and within a rank as it came; work of rank WHENEVER at the very last."""
    begun: list[str] = []
    go = threading.Event()
    with Crew(1 + 1) as crew:
        blockers = crew.submit_all(lambda _: go.wait(10), [0, 1])
        late = crew.of_rank(WHENEVER).submit_all(begun.append, ["whenever 1", "whenever 2"])
        second = crew.of_rank(2).submit_all(begun.append, ["second"])
        first = crew.of_rank(1).submit_all(begun.append, ["first 1", "first 2"])
        go.set()
        crew.results([*blockers, *late, *second, *first])  # type: ignore[list-item]
    assert [name.split()[0] for name in begun] == ["first", "first", "second", "whenever", "whenever"]


def test_restrained_work_leaves_threads_free_until_other_work_comes() -> None:
    """Of rank WHENEVER so many are under way at once, until anything of another rank is handed in."""
    running, most, lock = [0], [0], threading.Lock()

    def work(_: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.005)
        with lock:
            running[0] -= 1

    with Crew(6) as crew:
        crew.restrain(2)
        crew.of_rank(WHENEVER).map(work, range(8))
        assert most[0] == 2
        crew.map(lambda _: None, [0])
        crew.of_rank(WHENEVER).map(work, range(24))
    assert 2 < most[0] <= 6


def test_a_failure_stops_the_whole_crew() -> None:
    """What a job raises reaches whoever waits for work that has not begun, and whoever hands in more."""
    begun: list[int] = []

    def fail() -> None:
        time.sleep(0.02)
        raise ValueError("of the job")

    def work(n: int) -> None:
        begun.append(n)
        time.sleep(0.005)

    def both() -> None:
        with crew:
            crew.begin(fail)
            crew.map(work, range(500))

    crew = Crew(2)
    with pytest.raises(ValueError, match="of the job"):
        both()
    assert len(begun) < 500
    with pytest.raises(ValueError, match="of the job"):
        crew.map(work, [0])
