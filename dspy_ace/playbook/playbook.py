"""The playbook: an ordered set of bullets, as frozen values (ACE §3.1).

A playbook never changes; `dspy_ace.delta.apply` makes the next one. Bullets stand in order of birth,
which their ids tell: `slug-00042`, letters from the section, one counter for the whole playbook, never
reused, not even after the bullet is gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import PlaybookError, SettingsError
from . import text
from .account import Account, Selection, counted
from .bullet import MOST, Bullet, brief, clean_content, number_of, sequence, valid_text
from .files import write_whole

__all__ = ["DEFAULT_SECTIONS", "Bullet", "Playbook", "brief", "clean_content", "valid_text"]

FORMAT = "dspy_ace.playbook"
VERSION = 1

DEFAULT_SECTIONS = (  # ACE, official code: the sections of an empty playbook
    "STRATEGIES & INSIGHTS",
    "FORMULAS & CALCULATIONS",
    "CODE SNIPPETS & TEMPLATES",
    "COMMON MISTAKES TO AVOID",
    "PROBLEM-SOLVING HEURISTICS",
    "CONTEXT CLUES & INDICATORS",
    text.OTHERS,
)

_NUMBER = re.compile(r"\d+$")


@dataclass(frozen=True)
class Playbook:
    """Bullets in order of birth, the sections they stand in, and the highest number ever given.

    Args:
        bullets: any iterable of `Bullet`; ids are unique (case aside). Kept sorted by number.
        sections: sections in the order files list them, also those without a bullet yet; sections of
            bullets that are missing here are added behind.
        high_water: the highest number ever given out, at least that of the newest bullet.

    Raises:
        PlaybookError: two bullets of one id, something that is not a bullet, sections that are not names.
    """

    bullets: tuple[Bullet, ...] = ()
    sections: tuple[str, ...] = ()
    high_water: int = field(default=0)

    def __post_init__(self) -> None:
        bullets = sequence(self.bullets, "bullets")
        for bullet in bullets:
            if not isinstance(bullet, Bullet):
                raise PlaybookError(f"A playbook holds Bullets; got {type(bullet).__name__}.")
        bullets = tuple(sorted(bullets, key=lambda bullet: (bullet.number, bullet.id)))
        object.__setattr__(self, "bullets", bullets)
        known: dict[str, Bullet] = {}
        for position, bullet in enumerate(bullets):
            known[bullet.id.casefold()] = bullet
            if len(known) <= position:
                raise PlaybookError(f"Two bullets share the id {bullet.id!r}; give each an id of its own.")
        named = [text.clean_section(valid_text(name, "a section")) for name in sequence(self.sections, "sections")]
        object.__setattr__(self, "sections", tuple(dict.fromkeys([*named, *(b.section for b in bullets)])))
        if isinstance(self.high_water, bool) or not isinstance(self.high_water, int) or self.high_water >= MOST:
            raise PlaybookError(f"high_water is a number of an id; got {brief(self.high_water)}.")
        newest = bullets[-1].number if bullets else 0
        object.__setattr__(self, "high_water", max(self.high_water, newest))

    @classmethod
    def from_index(
        cls,
        index: dict[str, Bullet],
        sections: tuple[str, ...],
        high_water: int,
        before: Playbook | None = None,
    ) -> Playbook:
        """A playbook of parts that are known to fit, unchecked: `apply` makes one at every step.

        Args:
            index: as `index()` gives it, changed: folded id → bullet, in order of birth. The playbook keeps it.
            sections: clean, without repeats, those of all bullets among them.
            high_water: at least the number of every bullet.
            before: a playbook that reads like this one without its last bullets; None: none is known. What was written
                and counted of it is not written and counted again.
        """
        playbook = object.__new__(cls)
        vars(playbook).update(bullets=tuple(index.values()), _by_id=index, sections=sections, high_water=high_water)
        if before is not None:
            new = playbook.bullets[len(before) :]
            for predictor, written in list(before._renders.items()):  # another thread may be writing a prompt
                blocks = (bullet.block for bullet in new if bullet.is_for(predictor))
                playbook._renders[predictor] = "\n".join(filter(None, (written, *blocks)))
            if "_tokens" in vars(before):
                vars(playbook)["_tokens"] = before._tokens + sum(bullet.tokens for bullet in new)
        return playbook

    def index(self) -> dict[str, Bullet]:
        """A new dict: id without case → bullet, in order of birth."""
        return dict(self._by_id)

    @cached_property
    def _by_id(self) -> dict[str, Bullet]:
        return {bullet.id.casefold(): bullet for bullet in self.bullets}

    @cached_property
    def _renders(self) -> dict[str | None, str]:
        return {}

    @cached_property
    def _tokens(self) -> int:
        return sum(bullet.tokens for bullet in self.bullets)

    def __len__(self) -> int:
        return len(self.bullets)

    def __iter__(self) -> Iterator[Bullet]:
        return iter(self.bullets)

    def __contains__(self, bullet_id: object) -> bool:
        return isinstance(bullet_id, str) and self.get(bullet_id) is not None

    def __getitem__(self, bullet_id: str) -> Bullet:
        bullet = self.get(bullet_id)
        if bullet is None:
            raise KeyError(f"no bullet {bullet_id!r} in this playbook of {len(self)}")
        return bullet

    def __deepcopy__(self, memo: dict[int, Any]) -> Playbook:
        return self  # a frozen value: programs that carry it are copied often

    def get(self, bullet_id: str) -> Bullet | None:
        """The bullet of that id, or None. Brackets, spaces and case do not matter: `"[STR-00042]"` is found."""
        return self._by_id.get(bullet_id.strip().strip("[]()`'\"").strip().casefold())

    def for_predictor(self, predictor: str | None) -> tuple[Bullet, ...]:
        """The bullets a prompt of `predictor` shows: its own and the common ones. None: all."""
        return tuple(bullet for bullet in self.bullets if bullet.is_for(predictor))

    def render(self, predictor: str | None = None) -> str:
        """What a prompt shows: a block a bullet, in order of birth, without counters; `""` if there is none.

        One more bullet only appends, a tag changes nothing: a provider's prompt cache stays warm.
        """
        if predictor not in self._renders:
            self._renders[predictor] = "\n".join(bullet.block for bullet in self.for_predictor(predictor))
        return self._renders[predictor]

    def tokens(self) -> int:
        """Estimated tokens of the whole playbook as rendered (`text.count_tokens`, a bullet at a time)."""
        return self._tokens

    def to_text(self, counters: bool = True) -> str:
        """The paper's text format: with counters its finance dialect, without its AppWorld dialect.

        No bullet, id, section, order or counter is lost (without `counters`: but for the counters);
        `predictor`, `sources` and `high_water` have no place in it. JSON (`save`) is the source of truth.
        """
        return text.write_lines(self.sections, self.bullets, counters=counters)

    @classmethod
    def from_text(cls, source: str) -> Playbook:
        """Read a text that the paper's official code wrote, in either dialect.

        An id that comes twice gets a new number the second time, behind all others; a bullet without
        any content is skipped, its number stays taken.

        Raises:
            PlaybookError: the text is not a str, or not valid Unicode, or an id comes twice and no number is left.
        """
        sections, lines = text.read_lines(valid_text(source, "text"))
        high_water = max((number_of(line.id) for line in lines), default=0)
        bullets: dict[str, Bullet] = {}
        for line in lines:
            if not line.content.strip():
                continue
            name = line.id
            if name.casefold() in bullets:
                high_water += 1
                name = f"{_NUMBER.sub('', name)}{high_water:05d}"
            bullets[name.casefold()] = Bullet(name, line.section, line.content, line.helpful, line.harmful)
        return cls(tuple(bullets.values()), tuple(sections), high_water)

    @classmethod
    def from_program(cls, program: Any) -> Playbook:
        """Read back the playbook that stands in a program's prompts; an empty one if there is none.

        It works for a program loaded from JSON, and after a hand edit of its instructions. Counters and sources are
        there only if `program.playbook` is at hand, which DSPy's JSON state does not keep.

        Example:
            >>> program.load("program.json")
            >>> playbook = Playbook.from_program(program)

        Raises:
            PlaybookError: `program` is no DSPy program.
        """
        from .prompt import playbook_of  # noqa: PLC0415 - prompt.py makes playbooks: at the top it were a circle

        return playbook_of(program)

    def forget(
        self,
        *,
        sources: Iterable[str] = (),
        matching: str | re.Pattern[str] | None = None,
        bullets: Iterable[str] = (),
        keep_shared: bool = False,
    ) -> tuple[Playbook, Account]:
        """The playbook without the bullets that some sources taught, alone or with others, and an account of it.

        A playbook has no history: a bullet of several sources goes as a whole (`keep_shared`: stays as a whole), and
        votes stay in the counters. `dspy_ace.forget` and `PlaybookStore.forget` know the deltas, and lose less.

        Args:
            sources, matching, bullets, keep_shared: what is to be forgotten, see `Selection`.

        Raises:
            SettingsError: nothing is selected, or something that is not here; the known names are listed.
        """
        selection = Selection.of(sources, matching, bullets, keep_shared)
        selection.check_known((s for b in self for s in b.sources), (b.id for b in self))
        kept = self.without(selection)
        removed = tuple(bullet.id for bullet in self if bullet.id not in kept)
        if not removed and not selection.sources:
            raise SettingsError(
                f"No bullet matches {getattr(selection.matching, 'pattern', '')!r}. Nothing was changed."
            )
        notes = ["Votes of forgotten sources stay in the counters: a playbook alone does not say who voted."]
        shared = [b for b in self if b.id not in kept and selection.without(b.sources) != b.sources]
        if several := [b.id for b in shared if selection.without(b.sources)]:
            notes.append(f"{counted(len(several), 'bullet')} of them had other sources as well: {', '.join(several)}.")
        if keep_shared:
            notes.append("Bullets that others taught as well were kept: their texts may hold what is to be forgotten.")
        return kept, Account(removed=removed, operations=len(removed), notes=tuple(notes))

    def without(self, selection: Selection) -> Playbook:
        """The playbook without the bullets of a selection, and without the sections that only these stood in."""
        going = {
            bullet.id
            for bullet in self
            if selection.names(bullet.sources)
            or selection.finds(bullet.content, bullet.section)
            or bullet.id.casefold() in selection.bullets
        }
        kept = [replace(b, sources=selection.without(b.sources)) for b in self if b.id not in going]
        gone = {b.section for b in self if b.id in going} - {b.section for b in kept} - set(DEFAULT_SECTIONS)
        return Playbook(tuple(kept), tuple(name for name in self.sections if name not in gone), self.high_water)

    def to_json(self) -> dict[str, Any]:
        """The playbook as plain JSON data, versioned: what `save` writes."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "high_water": self.high_water,
            "sections": list(self.sections),
            "bullets": [
                {
                    "id": bullet.id,
                    "section": bullet.section,
                    "content": bullet.content,
                    "helpful": bullet.helpful,
                    "harmful": bullet.harmful,
                    "predictor": bullet.predictor,
                    "sources": list(bullet.sources),
                }
                for bullet in self.bullets
            ],
        }

    @classmethod
    def from_json(cls, data: Any) -> Playbook:
        """The playbook that `to_json` wrote.

        Raises:
            PlaybookError: not a playbook, or one of a newer version.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlaybookError(f'Expected the JSON of a playbook ("format": "{FORMAT}"); got {brief(data)}.')
        version = data.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise PlaybookError(
                f"This playbook is of version {brief(version)}; this dspy_ace reads up to {VERSION}. Upgrade dspy_ace."
            )
        try:
            bullets = tuple(Bullet(**item) for item in sequence(data["bullets"], "bullets"))
            return cls(bullets, data.get("sections", ()), data.get("high_water", 0))
        except (KeyError, TypeError, PlaybookError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise PlaybookError(f"The data says it is a playbook, but is damaged: {reason}") from error

    def save(self, path: str | Path) -> None:
        """Write the playbook as JSON (UTF-8). The file is replaced whole: never half a playbook."""
        write_whole(Path(path), json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Playbook:
        """Read what `save` wrote.

        Raises:
            PlaybookError: the file is torn, no playbook, or of a newer version; the message says which.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers or nesting beyond reason
            raise PlaybookError(
                f"{path} is not JSON ({error}): torn, or not a playbook. The paper's text format is read by "
                "Playbook.from_text(open(path).read())."
            ) from error
        return cls.from_json(data)
