"""Whatever holds a playbook: its file, a prompt, a saved program, the folder of a run, a store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import PlaybookError, SettingsError
from ..playbook import (
    Add,
    Delete,
    Delta,
    Operation,
    Playbook,
    Tag,
    Update,
    playbook_block,
    take_out,
    write_whole,
)
from ..store import PlaybookStore
from ..training import Results
from .cases import read_text


@dataclass(frozen=True)
class Source:
    """A playbook, and where it is from.

    Args:
        name: the path or URL as the user gave it.
        kind: "playbook" (JSON), "text" (the paper's format), "prompt", "program", "run" or "store".
        playbook: what it holds.
        prompts: the own instructions of each predictor, without the playbook; empty where they are not known.
    """

    name: str
    kind: str
    playbook: Playbook
    prompts: dict[str, str]

    @classmethod
    def open(cls, name: str) -> Source:
        """Read the playbook at a path or a URL.

        Raises:
            PlaybookError, JournalError, StoreError, SettingsError: there is none, or it cannot be read.
        """
        path = Path(name.removeprefix("sqlite:///"))
        if "://" in name and (not name.startswith("sqlite:///") or path.is_file()):
            return cls(name, "store", _in_store(name), {})
        if path.is_dir():
            results = Results.load(path)
            return cls(name, "run", results.playbook, dict(results.about["prompts"]))
        if not path.is_file():
            raise SettingsError(f"There is no {name}; give a playbook, a program, a prompt, a run's folder or a store.")
        with path.open("rb") as file:
            if file.read(16) == b"SQLite format 3\0":
                return cls(name, "store", _in_store(name), {})
        return cls._of_text(name, read_text(path))

    @classmethod
    def _of_text(cls, name: str, text: str) -> Source:
        if text.lstrip().startswith("{"):
            try:
                data = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise PlaybookError(f"{name} is not whole: {error}.") from None
            if "format" in data:
                return cls(name, "playbook", Playbook.from_json(data), {})
            instructions = {name: signature["instructions"] for name, signature in signatures_in(data).items()}
            if not instructions:
                raise PlaybookError(f"{name} is JSON, but neither a playbook nor a saved program.")
            return cls(name, "program", *_taken_out(instructions))
        _, shown = take_out(text)
        if shown is not None:
            return cls(name, "prompt", *_taken_out({"prompt": text.rstrip("\n")}))
        playbook = Playbook.from_text(text)
        if not playbook.sections:
            raise PlaybookError(f"{name} holds no playbook: it is empty.")
        return cls(name, "text", playbook, {})

    def with_prompt(self, playbook: Playbook, predictor: str = "prompt") -> str:
        """Return a predictor's whole prompt with `playbook` in it; the playbook alone where no prompt is known."""
        parts = (self.prompts.get(predictor, ""), playbook_block(playbook, predictor))
        return "\n\n".join(part for part in parts if part)

    def check_writable(self, out: Path | None) -> None:
        """Raise SettingsError for the folder of a run without a file for the result: it records what happened."""
        if self.kind == "run" and out is None:
            raise SettingsError(
                f"{self.name} is the record of a run and is not changed. Name a file for the result with --out."
            )

    def put(self, playbook: Playbook, out: Path | None) -> None:
        """Put `playbook` into a file, or in the place of the one that was read."""
        path = Path(self.name)
        if out is not None:
            save(playbook, out)
        elif self.kind == "store":
            with PlaybookStore(self.name) as store:
                version, latest = store.snapshot()
                if latest != self.playbook:
                    raise SettingsError(f"{self.name} was changed meanwhile; nothing was written. Try again.")
                store.append(changes(latest, playbook), version)
        elif self.kind == "program":
            data = json.loads(read_text(path))
            for name, signature in signatures_in(data).items():
                signature["instructions"] = self.with_prompt(playbook, name)
            write_whole(path, json.dumps(data, ensure_ascii=False, indent=2) + "\n")
        elif self.kind == "prompt":
            write_whole(path, self.with_prompt(playbook) + "\n")
        else:
            save(playbook, path, as_text=self.kind == "text")


def save(playbook: Playbook, path: Path, as_text: bool | None = None) -> None:
    """Write a playbook: as text if the name ends in .txt or .md, else as JSON, which keeps everything."""
    if as_text or (as_text is None and path.suffix.lower() in (".txt", ".md")):
        write_whole(path, playbook.to_text() + "\n")
    else:
        playbook.save(path)


def changes(before: Playbook, after: Playbook) -> Delta:
    """Return the operations that make `after` of `before`; new bullets get the next ids.

    Raises:
        SettingsError: a counter is lower than before: votes are added, never taken back.
    """
    found = before.diff(after)
    operations: list[Operation] = [Delete(old.id, "removed by hand") for old in found.removed]
    operations += [Update(new.id, new.content, new.section) for _, new in found.changed]
    for old, new in (*found.changed, *found.voted):
        votes = (new.helpful - old.helpful, new.harmful - old.harmful)
        if min(votes) < 0:
            raise SettingsError(f"{new.id}: votes in a store can only grow; they were {old.helpful} and {old.harmful}.")
        operations += [Tag(new.id, *votes)] if max(votes) else []
    operations += [Add(new.section, new.content, new.predictor, new.sources) for new in found.added]
    return Delta(tuple(operations))


def signatures_in(state: Any) -> dict[str, dict[str, Any]]:
    """Return the signature of each predictor in a saved program's state, by the predictor's name; empty: it is none."""
    parts = {"self": state, **state} if isinstance(state, dict) else {}
    found = {name: part.get("signature") for name, part in parts.items() if isinstance(part, dict)}
    return {
        n: each for n, each in found.items() if isinstance(each, dict) and isinstance(each.get("instructions"), str)
    }


def _in_store(name: str) -> Playbook:
    with PlaybookStore(name) as store:
        return store.playbook()


def _taken_out(instructions: dict[str, str]) -> tuple[Playbook, dict[str, str]]:
    """Return the playbook in these prompts, and the prompts without it."""
    shaped = [
        (name, SimpleNamespace(signature=SimpleNamespace(instructions=text))) for name, text in instructions.items()
    ]
    program = SimpleNamespace(named_predictors=lambda: shaped)
    return Playbook.from_program(program), {name: take_out(text)[0] for name, text in instructions.items()}
