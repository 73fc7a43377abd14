"""One run on disk: open, append, replay. Without a folder the run is kept in memory only.

A run folder holds `run.json` (format, version, fingerprint) and `journal.jsonl` (one record a step,
appended and flushed before the run goes on). A torn last line is cut on open; nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import DeltaError, JournalError
from .history import Record, State

FORMAT = "dspy_ace.run"
VERSION = 1


class Journal:
    """The records of one run, in order.

    Use `Journal.open`; `records` are those found on disk, `append` adds one, disk first.
    """

    def __init__(self, path: Path | None, records: tuple[Record, ...] = ()) -> None:
        self._path = path
        self.records = records

    @classmethod
    def open(cls, log_dir: str | Path | None, fingerprint: Mapping[str, str]) -> Journal:
        """Start a run in `log_dir`, or continue the one that is there.

        Args:
            log_dir: a folder, made if need be; None: in memory.
            fingerprint: what the run depends on, by part (program, data, settings …).

        Raises:
            JournalError: the folder cannot be used, holds something else, a run of a newer version, a run
                with another fingerprint (the first part that differs is named), or a damaged journal.
        """
        if log_dir is None:
            return cls(None)
        folder = Path(log_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "run.json").exists():
                _same_run(folder, fingerprint)
            else:
                _new_run(folder, fingerprint)
            return cls(folder / "journal.jsonl", _read(folder / "journal.jsonl"))
        except OSError as error:
            raise JournalError(f"log_dir={str(folder)!r} cannot be used as a run folder: {error}.") from error

    def append(self, record: Record) -> None:
        """Write `record` to disk, then keep it. Raises JournalError if the disk refuses it."""
        if self._path is not None:
            try:
                with self._path.open("ab") as file:
                    file.write(line_of(record))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise JournalError(
                    f"{self._path} cannot be written: {error}. What was learned before is safe."
                ) from error
        self.records = (*self.records, record)

    def replay(self, state: State) -> State:
        """The state after all records. Raises JournalError if they do not belong to this seed."""
        for record in self.records:
            try:
                state = state.after(record)
            except DeltaError as error:
                raise JournalError(
                    f"{self._path}, step {record.step}: does not follow from the steps before: {error}"
                ) from error
        return state

    def to_bytes(self) -> bytes:
        """The journal as it stands on disk, or would."""
        return b"".join(line_of(record) for record in self.records)


def line_of(record: Record) -> bytes:
    """One record as a line: JSON with sorted keys, so that equal runs give equal bytes."""
    text = json.dumps(record.to_json(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"  # a lone surrogate becomes its JSON escape


def _new_run(folder: Path, fingerprint: Mapping[str, str]) -> None:
    others = sorted(path.name for path in folder.iterdir() if path.name != "run.json.partial")
    if others:
        raise JournalError(
            f"log_dir={str(folder)!r} holds other files ({', '.join(others[:3])}) and no run.json; "
            "give an empty or new folder."
        )
    data = {"format": FORMAT, "version": VERSION, "fingerprint": dict(fingerprint)}
    partial = folder / "run.json.partial"
    partial.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(folder / "run.json")


def _same_run(folder: Path, fingerprint: Mapping[str, str]) -> None:
    try:
        data: Any = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise JournalError(f"{folder / 'run.json'} is damaged: {error}. Give another log_dir.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise JournalError(f"{folder / 'run.json'} is not a run of dspy_ace. Give another log_dir.")
    if not isinstance(data.get("version"), int) or data["version"] > VERSION:
        raise JournalError(
            f"The run in {folder} is of version {data.get('version')!r}; this dspy_ace reads up to {VERSION}."
        )
    before = data.get("fingerprint", {})
    for part in sorted({*before, *fingerprint}):
        if before.get(part) != fingerprint.get(part):
            raise JournalError(
                f"The run in {folder} was made with another {part}. To continue it, use the same; to start anew, "
                "give another log_dir."
            )


def _read(path: Path) -> tuple[Record, ...]:
    """The whole records of a journal; a torn last line is cut from the file."""
    if not path.exists():
        return ()
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    records = []
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            records.append(Record.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(f"{path}, line {number} is damaged: {error!r}. Give another log_dir.") from error
    return tuple(records)
