"""Forgetting in the folder of a run (`log_dir`): journal, best playbook and best program without what is forgotten."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import JournalError, SettingsError
from ..playbook import (
    PLAYBOOK_HEADER,
    Account,
    Forgotten,
    Playbook,
    Selection,
    counted,
    playbook_block,
    replay,
    rewrite,
)
from .fingerprint import fingerprint
from .history import Record, State
from .journal import CLOSED, Journal, line_of

OURS = ("run.json", "journal.jsonl", "playbook.json", "program.json", "lock")


def forget_run(
    log_dir: str | Path,
    *,
    seed: Playbook | None = None,
    sources: Iterable[str] = (),
    matching: str | re.Pattern[str] | None = None,
    bullets: Iterable[str] = (),
    keep_shared: bool = False,
) -> Account:
    """Take out of a run's folder what some examples taught, or some lessons; an account of it.

    The journal is rewritten as `dspy_ace.forget` does it: steps keep their numbers. Of a forgotten example its place in
    the batches, scores, reflections, votes and failures go as well; from the first step on that met it, so do the
    messages of failures and all rejected operations, which may quote it. Each file is replaced whole; after a
    crash, call it again.

    A run that examples were forgotten in cannot be continued: its trainset is not the same without them. A new one can
    start from its playbook: `ACE(playbook=Playbook.load(".../playbook.json"), log_dir=another)`. One that only lost
    bullets goes on; it may learn them again.

    Args:
        log_dir: the folder; no run may be going on in it.
        seed: the playbook that the run started from; None: an empty one.
        sources, matching, bullets, keep_shared: what is to be forgotten, see `Selection`. A source of a run is the
            position of an example in its trainset, as text: `{"3"}`.

    Raises:
        SettingsError: nothing is selected, something that is not here, or `seed` is not the run's.
        JournalError: no run, one in use or damaged, or a folder that cannot be written.
    """
    selection = Selection(sources, matching, bullets, keep_shared)
    folder, run = Path(log_dir), _run_file(Path(log_dir))
    seed = seed or Playbook()
    _check_seed(run, seed, selection)
    with Journal.open(folder, run["fingerprint"]) as journal:
        before, history = journal.replay(State.of(seed)), [record.delta for record in journal.records]
        trained = {str(position) for record in journal.records for position in record.batch}
        done = rewrite(seed, history, selection, known=trained)
        first = _first_met(journal.records, done.first, selection)
        records = [
            _without(record, delta, selection, first is not None and at >= first)
            for at, (record, delta) in enumerate(zip(journal.records, done.deltas, strict=True))
        ]
        if records == list(journal.records) and not done.found:
            raise SettingsError("Nothing in this run matches; nothing was changed.")
        after = State.of(done.seed)
        for record in records:
            after = after.after(record)
        plan = _Plan(folder, run, selection, done, before, after)
        try:
            kept = _write(plan, [before.best, *(replay(seed, history[:number]) for number in range(len(history) + 1))])
        except OSError as error:
            raise JournalError(f"{folder}: cannot be written: {error}. Call it again when it can.") from error
    return _told(plan, kept)


@dataclass(frozen=True)
class _Plan:
    """The folder and what `run.json` holds, what is forgotten, and the run before and after."""

    folder: Path
    run: dict[str, Any]
    selection: Selection
    done: Forgotten
    before: State
    after: State


def _run_file(folder: Path) -> dict[str, Any]:
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if not isinstance(run["fingerprint"], dict):
            raise TypeError("its fingerprint is none")
    except OSError as error:
        raise JournalError(f"log_dir={str(folder)!r} holds no run that can be read: {error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(f"{folder / 'run.json'} is damaged: {error!r}.") from error
    return dict(run)


def _check_seed(run: Mapping[str, Any], seed: Playbook, selection: Selection) -> None:
    """Raises SettingsError if the run started from another playbook (a first attempt may have cleaned it)."""
    known = run["fingerprint"].get("playbook")
    hashes = [fingerprint(playbook=p.to_json())["playbook"] for p in (seed, selection.cleaned(seed))]
    if known is not None and known not in hashes:
        raise SettingsError(
            "The run started from another playbook; give it as seed=… (the one ACE or the student had)."
        )


def _first_met(records: Sequence[Record], learned: int | None, selection: Selection) -> int | None:
    """The place of the first record that has to do with what is forgotten; None: none has."""
    met = [at for at, record in enumerate(records) if {str(p) for p in record.batch} & selection.sources]
    return min([*met, *([] if learned is None else [learned])], default=None)


def _without(record: Record, delta: Any, selection: Selection, met: bool) -> Record:
    """A record without what is forgotten; `met`: it is the first that has to do with it, or a later one."""
    places = [at for at, position in enumerate(record.batch) if str(position) not in selection.sources]
    failures = {
        name: {**failure, "message": ""} if met or selection.finds(failure.get("message")) else failure
        for name, failure in record.failures.items()
        if name.split(",")[0] not in selection.sources
    }
    return replace(
        record,
        batch=tuple(record.batch[at] for at in places),
        scores=tuple(record.scores[at] for at in places) if len(record.scores) == len(record.batch) else record.scores,
        failures=failures,
        reflections=tuple(r for r in record.reflections if r.get("example") not in selection.sources),
        delta=delta,
        rejected=() if met else tuple(r for r in record.rejected if not _quotes(r, selection)),
    )


def _quotes(rejected: Mapping[str, Any], selection: Selection) -> bool:
    """Return True if a rejection (as `Rejected.to_json` writes it, its fields of any type) names what is forgotten."""
    operation, reason = rejected.get("operation") or {}, rejected.get("reason", "")
    named = operation.get("sources", [operation.get("source")])
    texts = (operation.get(name) for name in ("content", "section", "reason"))
    return (
        selection.finds(reason, *(text for text in texts if isinstance(text, str)))
        or any(source in selection.sources for source in named if isinstance(source, str))
        or any(re.search(rf"\bexamples? [^:]*\b{re.escape(source)}\b", reason) for source in selection.sources)
    )


def _write(plan: _Plan, shown: Sequence[Playbook]) -> bool:
    """Replace the files, the journal last: until then a second call does all of it again.

    Args:
        plan: what is to stand there.
        shown: the playbooks that the saved program may hold.

    Returns:
        Whether the program's file could be kept.
    """
    folder, best = plan.folder, plan.after.best
    prints = {**plan.run["fingerprint"], "playbook": fingerprint(playbook=plan.done.seed.to_json())["playbook"]}
    if plan.selection.sources:
        prints["trainset"] = CLOSED
    run = json.dumps({**plan.run, "fingerprint": prints}, indent=1, sort_keys=True)
    _put(folder / "run.json", run.encode() + b"\n")
    for left in (*folder.glob("*.partial"), folder / "partial.program.json"):  # of a crash while a file was written
        left.unlink(missing_ok=True)
    if (folder / "playbook.json").exists():
        best.save(folder / "playbook.json")
    kept = _rewrite_program(folder / "program.json", shown, best)
    _put(folder / "journal.jsonl", b"".join(map(line_of, plan.after.records)))
    return kept


def _rewrite_program(path: Path, shown: Sequence[Playbook], best: Playbook) -> bool:
    """Put `best` in the place of the playbook in a program's saved state; remove the file where that cannot be done."""
    if not path.exists():
        return True
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        parts = {"self": state} if "signature" in state else state
        for name, part in parts.items():
            if isinstance(part, dict) and isinstance(part.get("signature"), dict):
                part["signature"]["instructions"] = _instructed(part["signature"]["instructions"], name, shown, best)
    except (ValueError, KeyError, TypeError):
        path.unlink()
        return False
    _put(path, json.dumps(state, indent=2).encode())
    return True


def _instructed(instructions: str, name: str, shown: Sequence[Playbook], best: Playbook) -> str:
    """The instructions with the playbook replaced. Raises ValueError if they hold one that the run did not make."""
    new = playbook_block(best, name)
    blocks = {block for playbook in (best, *shown) if (block := playbook_block(playbook, name))}
    for old in sorted(blocks, key=len, reverse=True):
        if instructions.endswith(old):
            own = instructions[: -len(old)]
            return own + new if new else own.removesuffix("\n\n")
    if PLAYBOOK_HEADER.split("\n")[0] in instructions:  # of another version, or another's
        raise ValueError("a playbook of unknown origin")
    return "\n\n".join(part for part in (instructions, new) if part)


def _put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _told(plan: _Plan, kept: bool) -> Account:
    """The account, with what concerns the run; `kept`: the program's file is there, without what is forgotten."""
    steps = list(zip(plan.before.records, plan.after.records, strict=True))
    dropped = sum(len(old.rejected) - len(new.rejected) for old, new in steps)
    changed = sum(old != new for old, new in steps)
    notes = [*plan.done.account.notes, f"{counted(changed, 'step')} of the journal rewritten."]
    if dropped:
        notes.append(f"{counted(dropped, 'rejected operation')}, kept for readers only, went as well.")
    if plan.before.best_score is not None:
        notes.append("The validation scores in the run were measured with the forgotten lessons in the prompt.")
    if plan.selection.sources:
        notes.append("The run cannot be continued; a new one can start from its playbook.json.")
    else:
        notes.append("The run can be continued, and may learn the same again.")
    if not kept:
        notes.append("program.json was removed: make it anew with with_playbook(program, Playbook.load(…)).")
    return replace(plan.done.account, notes=tuple(notes))
