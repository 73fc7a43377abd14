"""One run on disk: open, append, replay. Without a folder the run is kept in memory only.

A run folder holds `run.json` (format, version, fingerprint, settings, versions), `journal.jsonl` (one record a line,
on disk before the run goes on), `spent.json` (what the limits count), the best so far as `playbook.json` and
`program.json`, and `lock`. When it has ended, `results.json` (why, and what was used) and `run.html` (a page for
readers) are there as well. Nothing is pickled.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pydantic

from ..errors import DeltaError, JournalError, expected
from ..lm import Spent
from ..output import redacted
from ..playbook import Playbook, append_line, hold_folder, whole_lines, write_whole
from .state import Record, State

logger = logging.getLogger("dspy.ace")

FORMAT = "dspy_ace.run"
VERSION = 3
MAY_GROW = {"epochs"}  # settings that a run may be continued with a larger value of


class Journal:
    """The records of one run, in order. A context manager: leaving it releases the folder.

    `Journal.open` opens one on disk, `Journal(None)` one in memory. `records` are those found on disk; `append` adds
    one, to the disk first.
    """

    def __init__(self, folder: Path | None, lock: Any = None) -> None:
        self.folder = folder
        self.path = (folder or Path()) / "journal.jsonl"
        self.records: tuple[Record, ...] = ()
        self._lock = lock

    @classmethod
    def open(
        cls,
        log_dir: str | Path,
        fingerprint: Mapping[str, str],
        about: Mapping[str, Any] | None = None,
        *,
        free: Collection[str] = (),
    ) -> Journal:
        """Start a run in `log_dir`, or continue the one that is there.

        Args:
            log_dir: a folder, made if need be.
            fingerprint: what the run depends on, by name, each as a text that differs if it does; see `described`.
            about: `settings` by name, and what else `run.json` tells a reader; plain JSON data.
            free: names of settings that a run may be continued with other values of.

        Raises:
            JournalError: the folder cannot be used, is in use, or holds something else: another run (the difference is
                named), one of another version, a damaged journal.
        """
        folder = Path(log_dir).absolute()  # a tool may change the working directory
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_ours(folder)
            lock = hold_folder(folder)
        except OSError as error:
            raise _unusable(folder, error) from error
        if lock is None:
            raise JournalError(
                f"The run in {folder} is in use by another process. Wait for it, or give another log_dir."
            )
        journal = cls(folder, lock)
        try:
            run = {"format": FORMAT, "version": VERSION, "settings": {}, **redacted(about or {})}
            run["fingerprint"] = dict(fingerprint)
            before = journal.about()
            if (folder / "run.json").exists():
                _check_same(folder, before, run, free)
            if before != run:
                write_whole(folder / "run.json", json.dumps(run, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
            journal.refresh()
        except OSError as error:
            journal.close()
            raise _unusable(folder, error) from error
        except JournalError:
            journal.close()
            raise
        return journal

    @classmethod
    def read(cls, log_dir: str | Path) -> Journal:
        """Read the run in a folder, finished or not, without holding it. Raises JournalError if there is none."""
        journal = cls(Path(log_dir).absolute())
        about = journal.about()
        if not about:
            raise JournalError(f"{log_dir} is no run of dspy_ace: it has no run.json.")
        _check_format(journal.path.parent, about)
        journal.records = journal._read(cut=False)
        return journal

    def about(self) -> dict[str, Any]:
        """Return what `run.json` tells a reader; empty without one. Raises JournalError for a damaged file."""
        return _read_json(self.folder, "run.json")

    def ended(self) -> dict[str, Any]:
        """Return what `end` wrote; empty: the run has not ended."""
        return _read_json(self.folder, "results.json")

    def end(self, results: Mapping[str, Any], page: str) -> None:
        """Write how the run ended: `results.json`, and `run.html` for readers. A disk that refuses is warned of."""
        if self.folder is not None:
            try:
                write_whole(self.folder / "results.json", json.dumps(results) + "\n")
                write_whole(self.folder / "run.html", page)
            except OSError as error:  # the program is made, and the journal is whole: nothing is lost but a page
                logger.warning("ACE: %s: cannot be written: %s. The journal is safe.", self.folder, error)

    def close(self) -> None:
        """Release the folder."""
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
                (self.folder / "results.json").unlink(missing_ok=True)  # of a finished run that goes on
                append_line(self.path, line_of(record, len(self.records) + 1))
            except OSError as error:
                raise JournalError(f"{self.folder}: cannot be written: {error}. The steps before are safe.") from error
        self.records = (*self.records, record)

    def refresh(self) -> None:
        """Read the folder again: an interrupt may have come when a record was on disk and not yet in `records`."""
        if self.folder is not None:
            self.records = self._read()

    def keep_spent(self, spent: Spent) -> None:
        """Write what the run has spent of its limits: `spent.json`, beside the journal.

        It is no part of the journal: seconds and the dollars of a half-done step differ between equal runs.
        """
        if self.folder is not None:
            try:
                write_whole(self.folder / "spent.json", json.dumps(asdict(spent)) + "\n")
            except OSError as error:
                raise JournalError(f"{self.folder}: cannot be written: {error}. The journal is safe.") from error

    def spent(self) -> Spent:
        """Return what earlier processes of this run have spent. Raises JournalError for a damaged file."""
        path = None if self.folder is None else self.folder / "spent.json"
        if path is None or not path.exists():
            return Spent()
        try:
            return pydantic.TypeAdapter(Spent).validate_json(path.read_bytes(), strict=True)
        except pydantic.ValidationError as error:
            raise JournalError(f"{path} is damaged: {expected(error)} Give another log_dir.") from error

    def keep_best(self, playbook: Playbook, save_program: Callable[[Path], None]) -> None:
        """Write the best playbook and program so far: `playbook.json` and `program.json`.

        Args:
            playbook: the best one.
            save_program: writes the program's state to the path that it is given.

        Raises:
            JournalError: the disk refuses.
        """
        if self.folder is None:
            return
        try:
            playbook.save(self.folder / "playbook.json")
            partial = self.folder / "partial.program.json"
            save_program(partial)
            write_whole(self.folder / "program.json", partial.read_text(encoding="utf-8"))
            partial.unlink()
        except OSError as error:
            raise JournalError(f"{self.folder}: cannot be written: {error}. The journal is safe.") from error

    def replay(self, state: State) -> State:
        """Return the state after all records. Raises JournalError if they do not follow from this seed."""
        for number, record in enumerate(self.records, 1):
            try:
                if record.step != state.step + bool(record.batch):
                    raise DeltaError(f"it is of step {record.step}, after step {state.step}")
                state = state.after(record)
            except DeltaError as error:
                raise self._damaged(number, f"does not follow from the lines before: {error}") from error
        return state

    def how_to_go_on(self) -> str:
        """Say where the run is and how it is continued; `""` for one in memory."""
        if self.folder is None:
            return ""
        return f"The run is in {str(self.folder)!r}; to go on, compile again with it as log_dir."

    def to_bytes(self) -> bytes:
        """Return the journal as it stands on disk, or would."""
        return b"".join(line_of(record, number) for number, record in enumerate(self.records, 1))

    def _read(self, *, cut: bool = True) -> tuple[Record, ...]:
        """Return the whole records of a journal. Raises JournalError for a line that is none, or not in its place."""
        records = []
        for number, line in enumerate(whole_lines(self.path, cut=cut), 1):
            try:
                data = json.loads(line)
                place = data.pop("line")
                records.append(Record.from_json(data))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise self._damaged(number, f"is damaged: {error}") from error
            if place != number:
                raise self._damaged(number, f"says that it is line {place}: a line is missing, doubled or swapped")
        return tuple(records)

    def _damaged(self, number: int, problem: str) -> JournalError:
        return JournalError(
            f"{self.path}, line {number} {problem}. Put the file back as it was, or cut it before this line to go on "
            "from there; or give another log_dir."
        )


def line_of(record: Record, number: int = 1) -> bytes:
    """Return one record as a line: JSON with sorted keys, so that equal runs give equal bytes.

    Args:
        record: the record.
        number: of the line, from 1: a line that is missing, doubled or swapped is noticed.
    """
    data = {"line": number, **record.to_json()}
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"  # a lone surrogate becomes its JSON escape


def _unusable(folder: Path, error: OSError) -> JournalError:
    return JournalError(f"log_dir={str(folder)!r} cannot be used as a run folder: {error}.")


def _check_ours(folder: Path) -> None:
    """Raise JournalError for a folder that holds files of somebody else and no run."""
    others = sorted(path.name for path in folder.iterdir() if path.name != "lock" and path.suffix != ".partial")
    if others and not (folder / "run.json").exists():
        raise JournalError(
            f"log_dir={str(folder)!r} holds other files ({', '.join(others[:3])}) and no run.json; "
            "give an empty or new folder."
        )


def _check_same(folder: Path, data: Mapping[str, Any], run: Mapping[str, Any], free: Collection[str]) -> None:
    """Raise JournalError unless `data`, what `run.json` holds, is this very run."""
    _check_format(folder, data)
    before, now = map(_texts, (data, run))
    for name in [*now, *(name for name in before if name not in now)]:
        texts = [before.get(name, "nothing"), now.get(name, "nothing")]
        hashes = [text.rpartition(" #")[2] for text in texts]  # the words before them may be redacted
        grown = name in MAY_GROW and all(map(str.isdigit, texts)) and int(texts[0]) < int(texts[1])
        if name in free or hashes[0] == hashes[1] or grown:
            continue
        shown = [text.rpartition(" #")[0] or text for text in texts]
        old, new = shown if shown[0] != shown[1] else texts
        raise JournalError(
            f"The run in {folder} was made with {name}={old}; now {name}={new}. To continue it, use the same; to start "
            "anew, give another log_dir."
        )


def _check_format(folder: Path, data: Mapping[str, Any]) -> None:
    """Raise JournalError unless `data`, what `run.json` holds, is a run that this version reads."""
    if data.get("format") != FORMAT:
        raise JournalError(f"{folder / 'run.json'} is not a run of dspy_ace. Give another log_dir.")
    if data.get("version") != VERSION:
        raise JournalError(
            f"The run in {folder} is of version {data.get('version')!r}; this dspy_ace reads version {VERSION}. "
            "Give another log_dir."
        )
    if not all(isinstance(data.get(part), dict) for part in ("settings", "fingerprint")):
        raise JournalError(f"{folder / 'run.json'} is damaged: it names no settings. Give another log_dir.")


def _texts(run: Mapping[str, Any]) -> dict[str, str]:
    """Return what a run was made with, by name: settings as they are, other things as `described` words them."""
    settings = {name: repr(value) for name, value in run["settings"].items()}
    return settings | {name: str(text) for name, text in run["fingerprint"].items()}


def _read_json(folder: Path | None, name: str) -> dict[str, Any]:
    """Return the object in a file of a run; empty without the file. Raises JournalError for anything else."""
    try:
        found = {} if folder is None else json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise JournalError(f"{folder}: {name} is damaged: {error}. Give another folder.") from error
    if not isinstance(found, dict):
        raise JournalError(f"{folder}: {name} is damaged: expected an object. Give another folder.")
    return found
