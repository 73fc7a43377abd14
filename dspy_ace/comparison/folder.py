"""A comparison on disk: its cells, one line each, appended as they end and never written again.

A folder holds `comparison.json` (what is compared, and under which conditions), `cells.jsonl`, and `lock` while a
comparison goes on in it. A torn last line is cut on open. Of two lines of one method and seed the later one holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import JournalError
from ..output import redacted
from ..playbook import append_line, hold_folder, whole_lines, write_whole

VERSION = 1
HEADER, CELLS = "comparison.json", "cells.jsonl"


class Cells:
    """Header and cells of one comparison, in memory or in a folder. A context manager: leaving it frees the folder.

    Args:
        header: what `comparison.json` says.
        folder: to which `add` appends; None: in memory.
        cells: those that are known; of one method and seed the later one holds.
        lock: of the folder.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        folder: Path | None = None,
        cells: Sequence[Mapping[str, Any]] = (),
        lock: Any = None,
    ) -> None:
        self.header, self.folder, self._lock = dict(header), folder, lock
        self._cells = {(cell["method"], cell["seed"]): dict(cell) for cell in cells}

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
            others = sorted(path.name for path in folder.iterdir() if path.name != "lock" and path.suffix != ".partial")
            if others and HEADER not in others:
                raise JournalError(
                    f"out={str(folder)!r} holds other files ({', '.join(others[:3])}) and no {HEADER}; give an empty "
                    "or new folder."
                )
            lock = hold_folder(folder)
            if lock is None:
                raise JournalError(
                    f"The comparison in {folder} is in use by another process. Wait for it, or give another out=."
                )
            with ExitStack() as on_failure:
                on_failure.callback(lock.release)
                joined = _joined(read_header(folder), header, folder) if HEADER in others else header
                write_whole(folder / HEADER, json.dumps(joined, indent=1, ensure_ascii=False) + "\n")
                cells = cls(joined, folder, read_cells(folder, cut=True), lock)
                on_failure.pop_all()
                return cells
        except OSError as error:
            raise JournalError(f"out={str(folder)!r} cannot be used for a comparison: {error}.") from error

    @classmethod
    def read(cls, out: str | Path) -> Cells:
        """Read the comparison in a folder. Nothing is changed, and it may be going on.

        Raises:
            JournalError: there is none, or it cannot be read.
        """
        folder = Path(out)
        try:
            return cls(read_header(folder), None, read_cells(folder))
        except OSError as error:
            raise JournalError(f"{str(folder)!r} holds no comparison that can be read: {error}.") from error

    @property
    def cells(self) -> tuple[dict[str, Any], ...]:
        """One a method and seed, in the order of the header's methods, then of its seeds."""
        plan = [(method, seed) for method in self.header["methods"] for seed in self.header["seeds"]]
        return tuple(self._cells[key] for key in plan if key in self._cells)

    def get(self, method: str, seed: int) -> dict[str, Any] | None:
        """Return the cell of a method and seed, if there is one."""
        return self._cells.get((method, seed))

    def add(self, cell: Mapping[str, Any]) -> None:
        """Write a cell to disk, then keep it. Raises JournalError if the disk refuses it."""
        cell = redacted(cell)
        if self.folder is not None:
            line = json.dumps(cell, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"
            try:
                append_line(self.folder / CELLS, line.encode())
            except OSError as error:
                raise JournalError(f"{self.folder}: cannot be written: {error}. The cells before are safe.") from error
        self._cells[cell["method"], cell["seed"]] = dict(cell)

    def __enter__(self) -> Cells:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._lock is not None:
            self._lock.release()


def read_header(folder: Path) -> dict[str, Any]:
    """Read `comparison.json`. Raises JournalError if it is damaged or of a newer version."""
    path = folder / HEADER
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
    """Read the whole lines of `cells.jsonl`; a torn last one is left out, and cut from the file if asked for."""
    path = folder / CELLS
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
    lists = {name: [*before.get(name, []), *now.get(name, [])] for name in ("methods", "seeds", "notes")}
    return {
        **before,
        **now,
        "started": before.get("started", now.get("started")),
        "fingerprint": {**first, **second},
        "models": {**before.get("models", {}), **now.get("models", {})},
        **{name: list(dict.fromkeys(items)) for name, items in lists.items()},
    }
