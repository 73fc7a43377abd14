"""How many writes a `PlaybookStore` takes: `python -m comparisons.performance.stores [URL …]`.

Processes write as fast as they can, for some seconds: records that are told, then deltas that are appended. Beside each
write stands its time from the call to the answer; then it is on disk. Without a URL a new SQLite file is measured, in
`--folder`; a URL names a database of its own (`postgresql+psycopg://user@host/database`), whose store is emptied.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

from dspy_ace import PlaybookStore
from dspy_ace.playbook import Delta, Tag

from .lessons import lessons, playbook_of
from .timing import machine

RECORD = {"question": "Which desk?", "answer": "Maple", "feedback": "Mails on refunds are for Cedar. " * 10}


def written(url: str, kind: str, bullet: str, seconds: float) -> list[float]:
    """Write until the time is over, once all writers are there; return the seconds of each write."""
    taken = []
    with PlaybookStore(url, timeout=120) as store:
        store.playbook()
        _ready[0].wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            asked = time.perf_counter()
            if kind == "tell":
                store.tell(RECORD)
            else:
                store.append(Delta((Tag(bullet, 1, 0, "user"),)))
            taken.append(time.perf_counter() - asked)
    return taken


_ready: list[Barrier] = []  # of a writer's process: where all writers meet


def _meet_at(barrier: Barrier) -> None:
    _ready.append(barrier)


def measured(url: str, kind: str, bullet: str, writers: int, seconds: float) -> list[float]:
    """Return the seconds of all writes of so many processes, in order of their length."""
    spawn = multiprocessing.get_context("spawn")
    ready = (spawn.Barrier(writers),)
    with ProcessPoolExecutor(writers, mp_context=spawn, initializer=_meet_at, initargs=ready) as pool:
        made = [pool.submit(written, url, kind, bullet, seconds) for _ in range(writers)]
        return sorted(one for each in made for one in each.result())


def emptied(url: str) -> str:
    """Drop the tables of a store on a server."""
    import sqlalchemy  # noqa: PLC0415 - an extra

    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        for table in ("ace_head", "ace_events", "ace_tells"):
            connection.execute(sqlalchemy.text(f"DROP TABLE IF EXISTS {table}"))
    engine.dispose()
    return url


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("urls", nargs="*", metavar="URL", help="of a database without a store")
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 4, 16, 32], help="processes")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default: 5)")
    parser.add_argument("--bullets", type=int, default=100, help="of the playbook (default: 100)")
    parser.add_argument("--folder", help="of the SQLite file (default: a temporary folder)")
    args = parser.parse_args(argv)
    print(f"{machine()}\n\n| store | write | writers | a second | ms, median | ms, 99 of 100 |\n{6 * '|---'}|")
    seed = playbook_of(lessons(), args.bullets)
    plan = [(url, kind, n) for url in (None, *args.urls) for kind in ("tell", "append") for n in args.writers]
    for url, kind, writers in plan:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            store = emptied(url) if url else str(Path(folder) / "store.db")
            PlaybookStore(store, seed=seed).close()
            taken = measured(store, kind, seed.bullets[0].id, writers, args.seconds)
        name = url.partition(":")[0].partition("+")[0] if url else "SQLite"
        rate, middle = len(taken) / args.seconds, 1000 * statistics.median(taken)
        slow = 1000 * taken[int(0.99 * (len(taken) - 1))]
        print(f"| {name} | {kind} | {writers} | {rate:,.0f} | {middle:.1f} | {slow:.1f} |", flush=True)


if __name__ == "__main__":
    main()
