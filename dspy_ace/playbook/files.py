"""Files: written whole or not at all, JSON lines that survive a crash, folders that one process holds."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import filelock


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of one.

    Raises:
        OSError: the disk refuses it; the old file is as it was.
    """
    target = path.resolve()  # a link stays a link
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with open(partial, "w", encoding="utf-8", errors="backslashreplace", newline="\n", opener=_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    """Open a file; a new one is for its owner alone, since it may hold prompts."""
    return os.open(path, flags, 0o600)


def append_line(path: Path, line: bytes) -> None:
    """Append one line, which ends with a line feed, and return once it is on disk. Raises OSError."""
    with open(path, "ab", opener=_private) as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path, *, cut: bool = True) -> list[bytes]:
    """Read the lines of a file that `append_line` wrote; none if there is no file.

    A crash can leave a last line without its end. It is left out, and cut from the file: glued to it, the next line
    would be lost. Pass `cut=False` where another process may be writing.

    Raises:
        OSError: the file cannot be read or cut.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if cut and whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
            file.flush()
            os.fsync(file.fileno())
    return data[:whole].splitlines()


def hold_folder(folder: Path) -> filelock.BaseFileLock | None:
    """Take the lock of a folder, until it is released or the process ends.

    Returns:
        The lock, to be released with `.release()`; None: another process or run holds it.

    Raises:
        OSError: the folder cannot be written.
    """
    import filelock  # noqa: PLC0415 - it takes 8 ms, and few who import this package hold a folder

    lock = filelock.FileLock(folder / "lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        return None
    return lock
