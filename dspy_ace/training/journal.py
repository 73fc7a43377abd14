"""One run on disk: open, append, replay. Without a folder the run is kept in memory only.

A run folder holds `run.json` (format, version, fingerprint, settings, versions), `journal.jsonl` (one record a
step, appended and flushed before the run goes on), the best so far as `playbook.json` and `program.json`, and
`lock` while a run is going on. A torn last line is cut on open; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import DeltaError, JournalError
from ..playbook import Playbook, append_line, hold_folder, whole_lines, write_whole
from .history import Record, State

FORMAT = "dspy_ace.run"
VERSION = 1
CLOSED = "examples were forgotten"  # stands where the hash of the trainset stood: no trainset is that one


class Journal:
    """The records of one run, in order. A context manager: leaving it lets go of the folder.

    Use `Journal.open`; `records` are those found on disk, `append` adds one, disk first.
    """

    def __init__(self, folder: Path | None, lock: Any = None) -> None:
        self.folder = folder
        self.records: tuple[Record, ...] = ()
        self._lock = lock

    @classmethod
    def open(
        cls, log_dir: str | Path | None, fingerprint: Mapping[str, str], about: Mapping[str, Any] | None = None
    ) -> Journal:
        """Start a run in `log_dir`, or continue the one that is there.

        Args:
            log_dir: a folder, made if need be; None: in memory.
            fingerprint: what the run depends on, by part (program, data, settings …).
            about: what else `run.json` tells a reader (settings, versions); plain JSON data.

        Raises:
            JournalError: the folder cannot be used, is in use, holds something else, a run of a newer version,
                a run with another fingerprint (the first part that differs is named), or a damaged journal.
        """
        if log_dir is None:
            return cls(None)
        folder = Path(log_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _only_ours(folder)
            lock = hold_folder(folder)
        except OSError as error:
            raise JournalError(f"log_dir={str(folder)!r} cannot be used as a run folder: {error}.") from error
        if lock is None:
            raise JournalError(
                f"The run in {folder} is in use by another process. Wait for it, or give another log_dir."
            )
        journal = cls(folder, lock)
        try:
            if (folder / "run.json").exists():
                _same_run(folder, fingerprint)
            else:
                run = {"format": FORMAT, "version": VERSION, "fingerprint": dict(fingerprint), **(about or {})}
                write_whole(folder / "run.json", json.dumps(run, indent=1, sort_keys=True) + "\n")
            journal.records = _read(folder / "journal.jsonl")
        except OSError as error:
            journal.close()
            raise JournalError(f"log_dir={str(folder)!r} cannot be used as a run folder: {error}.") from error
        except JournalError:
            journal.close()
            raise
        return journal

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def append(self, record: Record) -> None:
        """Write `record` to disk, then keep it. Raises JournalError if the disk refuses it."""
        if self.folder is not None:
            try:
                append_line(self.folder / "journal.jsonl", line_of(record))
            except OSError as error:
                raise JournalError(f"{self.folder}: cannot be written: {error}. The steps before are safe.") from error
        self.records = (*self.records, record)

    def refresh(self) -> None:
        """Read the folder again: an interrupt may have come when a record was on disk and not yet in `records`."""
        if self.folder is not None:
            self.records = _read(self.folder / "journal.jsonl")

    def keep_best(self, playbook: Playbook, save_program: Callable[[Path], None]) -> None:
        """Write the best playbook and program so far, each replaced whole: `playbook.json`, `program.json`.

        Args:
            playbook: the best one.
            save_program: writes the program's state to the path it is given.

        Raises:
            JournalError: the disk refuses.
        """
        if self.folder is None:
            return
        try:
            playbook.save(self.folder / "playbook.json")
            partial = self.folder / "partial.program.json"
            save_program(partial)
            partial.replace(self.folder / "program.json")
        except OSError as error:
            raise JournalError(f"{self.folder}: cannot be written: {error}. The journal is safe.") from error

    def replay(self, state: State) -> State:
        """The state after all records. Raises JournalError if they do not belong to this seed."""
        for record in self.records:
            try:
                state = state.after(record)
            except DeltaError as error:
                raise JournalError(
                    f"{self.folder}, step {record.step}: does not follow from the steps before: {error}"
                ) from error
        return state

    def to_bytes(self) -> bytes:
        """The journal as it stands on disk, or would."""
        return b"".join(line_of(record) for record in self.records)


def line_of(record: Record) -> bytes:
    """One record as a line: JSON with sorted keys, so that equal runs give equal bytes."""
    text = json.dumps(record.to_json(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"  # a lone surrogate becomes its JSON escape


def _only_ours(folder: Path) -> None:
    """Refuse a folder that holds files of somebody else and no run."""
    others = sorted(path.name for path in folder.iterdir() if path.name not in ("lock", "run.json.partial"))
    if others and not (folder / "run.json").exists():
        raise JournalError(
            f"log_dir={str(folder)!r} holds other files ({', '.join(others[:3])}) and no run.json; "
            "give an empty or new folder."
        )


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
    if before.get("trainset") == CLOSED != fingerprint.get("trainset"):
        raise JournalError(
            f"The run in {folder} cannot be continued: {CLOSED} in it. To go on from what it still knows, start a new "
            f"one: ACE(playbook=Playbook.load({str(folder / 'playbook.json')!r}), log_dir=…)."
        )
    for part in sorted({*before, *fingerprint}):
        if before.get(part) != fingerprint.get(part):
            raise JournalError(
                f"The run in {folder} was made with another {part}. To continue it, use the same; to start anew, "
                "give another log_dir."
            )


def _read(path: Path) -> tuple[Record, ...]:
    """The whole records of a journal; a torn last line is cut from the file."""
    records = []
    for number, line in enumerate(whole_lines(path), 1):
        try:
            records.append(Record.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(f"{path}, line {number} is damaged: {error!r}. Give another log_dir.") from error
    return tuple(records)
