"""Folders that one process holds at a time, and files that are written whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from ..errors import JournalError


def locked(folder: Path) -> IO[str]:
    """The folder's lock file, held until it is closed, also by a crash. Raises JournalError if another run has it."""
    lock = (folder / "lock").open("a+", encoding="utf-8")
    lock.seek(0)
    holder = lock.read().strip() or "unknown"
    try:
        _hold(lock)
    except OSError as error:
        lock.close()
        raise JournalError(
            f"The run in {folder} is in use by process {holder}. Wait for it, or give another log_dir."
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _hold(lock: IO[str]) -> None:
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:  # pragma: no cover - Windows: one run at a time is the user's care
        return
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def replace_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
