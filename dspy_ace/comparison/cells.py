"""The cells of a comparison on disk: one line a finished run, appended as it ends, and never written again.

A folder holds `comparison.json` (what is compared, and under which conditions), `cells.jsonl`, and `lock` while a
comparison goes on in it. A torn last line is cut on open. Of two lines of one method and seed the later one holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import JournalError
from ..playbook import append_line, hold_folder, whole_lines, write_whole

VERSION = 1


class Cells:
    """Header and cells of one comparison. A context manager: leaving it lets go of the folder.

    Use `Cells.open`; `header` and `cells` are what is known, `add` takes one more cell, disk first.
    """

    def __init__(self, header: Mapping[str, Any], folder: Path | None = None, lock: Any = None) -> None:
        self.header = dict(header)
        self.folder = folder
        self._lock = lock
        self._cells: dict[tuple[str, int], dict[str, Any]] = {}

    @classmethod
    def open(cls, out: str | Path | None, header: Mapping[str, Any]) -> Cells:
        """Start a comparison in `out`, or go on with the one that is there.

        Args:
            out: a folder, made if need be; None: in memory.
            header: what `comparison.json` is to say. Methods and seeds that are there already stay; other methods and
                seeds may join them.

        Raises:
            JournalError: the folder cannot be used, is in use, holds something else or a damaged file, or its
                fingerprint differs; the parts that differ are named.
        """
        if out is None:
            return cls(header)
        folder = Path(out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            others = sorted(
                path.name for path in folder.iterdir() if path.name not in ("lock", "comparison.json.partial")
            )
            if others and "comparison.json" not in others:
                raise JournalError(
                    f"out={str(folder)!r} holds other files ({', '.join(others[:3])}) and no comparison.json; give an "
                    "empty or new folder."
                )
            lock = hold_folder(folder)
            if lock is None:
                raise JournalError(
                    f"The comparison in {folder} is in use by another process. Wait for it, or give another out=."
                )
            cells = cls(header, folder, lock)
            try:
                if "comparison.json" in others:
                    cells.header = _joined(read_header(folder), header, folder)
                write_whole(folder / "comparison.json", json.dumps(cells.header, indent=1, ensure_ascii=False) + "\n")
                cells._keep(read_cells(folder, cut=True))
            except BaseException:  # whatever it is: the folder is let go, and it passes on
                cells.close()
                raise
        except OSError as error:
            raise JournalError(f"out={str(folder)!r} cannot be used for a comparison: {error}.") from error
        return cells

    @property
    def cells(self) -> tuple[dict[str, Any], ...]:
        """One a method and seed, in the order of the header's methods, then of its seeds."""
        methods, seeds = list(self.header["methods"]), list(self.header["seeds"])
        known = [key for key in self._cells if key[0] in methods and key[1] in seeds]
        return tuple(self._cells[key] for key in sorted(known, key=lambda k: (methods.index(k[0]), seeds.index(k[1]))))

    def get(self, method: str, seed: int) -> dict[str, Any] | None:
        """The cell of a method and seed, if there is one."""
        return self._cells.get((method, seed))

    def add(self, cell: Mapping[str, Any]) -> None:
        """Write a cell to disk, then keep it. Raises JournalError if the disk refuses it."""
        if self.folder is not None:
            line = json.dumps(cell, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"
            try:
                append_line(self.folder / "cells.jsonl", line.encode())
            except OSError as error:
                raise JournalError(f"{self.folder}: cannot be written: {error}. The cells before are safe.") from error
        self._keep([cell])

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Cells:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _keep(self, cells: Sequence[Mapping[str, Any]]) -> None:
        for cell in cells:
            self._cells[cell["method"], cell["seed"]] = dict(cell)


def read(out: str | Path) -> Cells:
    """The comparison in a folder, to look at: nothing is changed, and it may be going on.

    Raises:
        JournalError: there is none, or it cannot be read.
    """
    folder = Path(out)
    try:
        found = Cells(read_header(folder), None)
        found._keep(read_cells(folder))
    except OSError as error:
        raise JournalError(f"{str(folder)!r} holds no comparison that can be read: {error}.") from error
    return found


def read_header(folder: Path) -> dict[str, Any]:
    """What `comparison.json` says. Raises JournalError if it is damaged or of a newer version."""
    path = folder / "comparison.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version = header["version"]
        complete = {"fingerprint", "methods", "seeds"} <= set(header)
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(f"{path} is damaged: {error!r}. Give another folder.") from error
    if not isinstance(version, int) or version > VERSION or not complete:
        raise JournalError(f"{path} is of version {version!r} or incomplete; this dspy_ace reads up to {VERSION}.")
    return dict(header)


def read_cells(folder: Path, *, cut: bool = False) -> list[dict[str, Any]]:
    """The whole lines of `cells.jsonl`; a torn last one is left out, and cut from the file if asked for."""
    path = folder / "cells.jsonl"
    cells = []
    for number, line in enumerate(whole_lines(path, cut=cut), 1):
        try:
            cell = json.loads(line)
            cell["method"], cell["seed"], cell["status"], cell["test_scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(f"{path}, line {number} is damaged: {error!r}. Give another folder.") from error
        cells.append(cell)
    return cells


def _joined(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The header of a comparison that goes on, perhaps with more methods or seeds."""
    first, second = before["fingerprint"], now["fingerprint"]
    differ = [part for part in first if part in second and first[part] != second[part]]
    if differ:
        raise JournalError(
            f"The comparison in {folder} was made with another {', another '.join(differ)}. To go on with it, use the "
            "same; to start anew, give another folder (or, for a method, another name)."
        )
    return {
        **before,
        **now,
        "started": before.get("started", now.get("started")),
        "fingerprint": {**first, **second},
        **{
            key: list(dict.fromkeys([*before.get(key, []), *now.get(key, [])])) for key in ("methods", "seeds", "notes")
        },
        "models": {**before.get("models", {}), **now.get("models", {})},
    }
