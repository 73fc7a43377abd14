"""Bullets and the playbook, as frozen values (ACE §3.1).

A playbook never changes: `apply` makes the next one. Bullets stand in the order in which they were added. Their ids
tell it: `slug-00042` is letters of the section and a number. One counter serves the whole playbook, and no number is
given twice, even after its bullet is gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Location, PlaybookError, brief, checked
from ..output import printable, redact
from . import text
from .files import write_whole

if TYPE_CHECKING:
    from .forgetting import Account
    from .operations import Operation
    from .views import Difference

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
_MOST = 10**18  # ids and counters have at most 18 digits
_ID = re.compile(text.ID_PATTERN)


@dataclass(frozen=True, repr=False)
class Bullet:
    r"""One piece of advice: a strategy, a concept, a common mistake, a snippet.

    Args:
        id: `slug-00042`; bullets are ordered by the number.
        section: one line; an empty one becomes OTHERS.
        content: any text; line ends are `\n`, space at line ends and around the text is dropped, secrets are redacted.
        helpful, harmful: how often the Reflector found that it helped or misled; 0 to 10**18 − 1.
        predictor: name of the predictor (its path in the program) that it is for; None: for all.
        sources: names of the training examples that it was learned from.

    Raises:
        PlaybookError: a field of the wrong type, an id without a number, an empty content, a text that
            is not valid Unicode.

    Example:
        >>> Bullet("str-00001", "STRATEGIES & INSIGHTS", "Read the unit first.", helpful=2).block
        '[str-00001] (STRATEGIES & INSIGHTS) Read the unit first.'
    """

    id: str
    section: str
    content: str
    helpful: int = 0
    harmful: int = 0
    predictor: str | None = None
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _ID.fullmatch(self.id):
            raise PlaybookError(f"A bullet's id is letters, a hyphen and a number, like 'str-00042'; got {self.id!r}.")
        object.__setattr__(self, "section", text.clean_section(redact(valid_text(self.section, "section"))))
        object.__setattr__(self, "content", clean_content(self.content))
        for name in ("helpful", "harmful"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < _MOST:
                raise PlaybookError(f"Bullet {self.id}: {name} is a count, 0 or more; got {brief(count)}.")
        if self.predictor is not None:
            valid_text(self.predictor, f"Bullet {self.id}: predictor")
        if not isinstance(self.sources, (tuple, list)):
            raise PlaybookError(
                f"Bullet {self.id}: sources is a tuple of names of examples; got {brief(self.sources)}."
            )
        object.__setattr__(self, "sources", tuple(dict.fromkeys(map(writable, self.sources))))

    @classmethod
    def unchecked(cls, **fields: Any) -> Bullet:
        """Make a bullet of all its fields, known to be right: of a text of 100,000 bullets checks would take longer."""
        bullet = object.__new__(cls)
        vars(bullet).update(fields)
        return bullet

    @property
    def number(self) -> int:
        """The number in the id; of two bullets the older has the lower one."""
        return number_of(self.id)

    def __repr__(self) -> str:
        names = ("helpful", "harmful", "predictor", "sources")
        more = [f", {name}={value!r}" for name in names if (value := getattr(self, name))]
        return printable(f"Bullet({self.id!r}, {brief(self.section)}, {brief(self.content)}{''.join(more)})")

    def is_for(self, predictor: str | None) -> bool:
        """Return True if a prompt of `predictor` shows this bullet. None stands for the whole playbook."""
        return predictor is None or self.predictor is None or self.predictor == predictor

    @cached_property
    def block(self) -> str:
        """The bullet as a prompt shows it: `[id] (SECTION) content`, further lines indented below. No counters."""
        first, *rest = text.defuse(self.content).expandtabs(4).splitlines() or [""]
        head = f"[{self.id}] ({text.defuse(self.section)}) {first}"
        return "\n".join(line.rstrip() for line in (head, *(f"  {line}" for line in rest)))

    @cached_property
    def tokens(self) -> int:
        """Estimated tokens of the block (`count_tokens`)."""
        return text.count_tokens(self.block)


@dataclass(frozen=True, repr=False)
class Playbook:
    """Bullets in the order in which they were added, their sections, and the highest number ever given.

    Args:
        bullets: any iterable of `Bullet`, with unique ids (case aside). They are kept sorted by number.
        sections: names, in the order in which files list them; a section may be empty. Sections of bullets that are
            missing here are added at the end.
        high_water: the highest number ever given; at least that of the newest bullet.

    Raises:
        PlaybookError: two bullets share an id, something is no bullet, a section is no text.

    Example:
        >>> playbook = Playbook([Bullet("str-00001", "TOOLS", "Call `search` before `book`.")])
        >>> playbook.render()
        '[str-00001] (TOOLS) Call `search` before `book`.'
    """

    bullets: tuple[Bullet, ...] = ()
    sections: tuple[str, ...] = ()
    high_water: int = 0

    def __post_init__(self) -> None:
        bullets = _sequence(self.bullets, "bullets")
        for bullet in bullets:
            if not isinstance(bullet, Bullet):
                raise PlaybookError(f"A playbook holds Bullets; got {type(bullet).__name__}.")
        bullets = tuple(sorted(bullets, key=lambda bullet: (bullet.number, bullet.id)))
        known: dict[str, Bullet] = {}
        for bullet in bullets:
            if bullet.id.casefold() in known:
                raise PlaybookError(f"Two bullets share the id {bullet.id!r}; give each an id of its own.")
            known[bullet.id.casefold()] = bullet
        names = [redact(valid_text(name, "a section")) for name in _sequence(self.sections, "sections")]
        if isinstance(self.high_water, bool) or not isinstance(self.high_water, int) or self.high_water >= _MOST:
            raise PlaybookError(f"high_water is a number of an id; got {brief(self.high_water)}.")
        newest = bullets[-1].number if bullets else 0
        sections = tuple(dict.fromkeys([*map(text.clean_section, names), *(bullet.section for bullet in bullets)]))
        self._set(known, sections, max(self.high_water, newest))

    @classmethod
    def unchecked(cls, index: dict[str, Bullet], sections: Iterable[str], high_water: int) -> Playbook:
        """Make a playbook of parts that are known to fit. `apply` does so at each step: checks would take longer.

        Args:
            index: id in lower case (`casefold`) → bullet, in order of the numbers. The playbook keeps this dict.
            sections: clean and without repeats, those of all bullets among them.
            high_water: at least the number of each bullet.
        """
        playbook = object.__new__(cls)
        playbook._set(index, tuple(sections), high_water)
        return playbook

    def _set(self, index: dict[str, Bullet], sections: tuple[str, ...], high_water: int) -> None:
        vars(self).update(bullets=tuple(index.values()), sections=sections, high_water=high_water, _index=index)

    def index(self) -> dict[str, Bullet]:
        """Return a new dict: id in lower case (`casefold`) → bullet, in order of the numbers."""
        return dict(vars(self)["_index"])

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
        """Return the bullet of that id, or None. Brackets, spaces and case do not matter: `"[STR-00042]"` is found."""
        found: Bullet | None = vars(self)["_index"].get(bullet_id.strip().strip("[]()`'\"").strip().casefold())
        return found

    def for_predictor(self, predictor: str | None) -> tuple[Bullet, ...]:
        """Return the bullets that a prompt of `predictor` shows: its own and those for all. None: every bullet."""
        return tuple(bullet for bullet in self.bullets if bullet.is_for(predictor))

    def render(self, predictor: str | None = None) -> str:
        """Return what a prompt of `predictor` shows: the blocks of its bullets, oldest first; `""` if there is none.

        A new bullet is appended and a vote changes nothing, so a provider's prompt cache stays valid.
        """
        return "\n".join(bullet.block for bullet in self.for_predictor(predictor))

    def add(self, content: str, *, section: str = text.OTHERS, predictor: str | None = None) -> Playbook:
        """Return the playbook with a new bullet at its end. Raises DeltaError for an empty content.

        Example:
            >>> Playbook().add("Name the unit.", section="TOOLS").render()
            '[tool-00001] (TOOLS) Name the unit.'
        """
        from .operations import Add  # noqa: PLC0415 - operations are built on playbooks

        return self._done(Add(section, content, predictor))

    def edit(self, bullet_id: str, content: str | None = None, *, section: str | None = None) -> Playbook:
        """Return the playbook with another content or section of one bullet. Raises DeltaError for an unknown id."""
        from .operations import Update  # noqa: PLC0415 - as above

        bullet = self.get(bullet_id)
        kept = "" if bullet is None else bullet.content
        return self._done(Update(bullet.id if bullet else bullet_id, kept if content is None else content, section))

    def remove(self, *bullet_ids: str) -> Playbook:
        """Return the playbook without these bullets; no id is given again. Raises DeltaError: an id is unknown.

        What was learned from a source is removed by `forget`.
        """
        from .operations import Delete  # noqa: PLC0415 - as above

        found = [(self.get(name), name) for name in bullet_ids]
        return self._done(*(Delete(bullet.id if bullet else name) for bullet, name in found))

    def _done(self, *operations: Operation) -> Playbook:
        from .operations import Delta, apply  # noqa: PLC0415 - as above

        return apply(self, Delta(operations))

    def diff(self, other: Playbook) -> Difference:
        """Return what is different in `other`: `print(before.diff(after))`.

        Example:
            >>> print(Playbook().diff(Playbook().add("Name the unit.")))
            1 added
            + [misc-00001] (OTHERS) Name the unit.
        """
        from .views import Difference  # noqa: PLC0415 - as above

        return Difference.between(self, other)

    def to_markdown(self) -> str:
        """Return the playbook as a Markdown page: a heading for each section, an item for each bullet, its votes."""
        from .views import markdown_of  # noqa: PLC0415 - as above

        return markdown_of(self)

    def _repr_html_(self) -> str:
        from .views import html_of  # noqa: PLC0415 - as above

        return html_of(self)

    def __repr__(self) -> str:
        bullets, sections = text.counted(len(self), "bullet"), text.counted(len(self.sections), "section")
        return f"Playbook({bullets} in {sections}, about {self.tokens()} tokens)"

    def tokens(self) -> int:
        """Estimate the tokens of the whole playbook in a prompt, one bullet at a time (`count_tokens`)."""
        return sum(bullet.tokens for bullet in self.bullets)

    def to_text(self, counters: bool = True) -> str:
        """Write the paper's text format: with counters as for its finance tasks, without as for AppWorld.

        Ids, sections, contents, order and (with `counters`) counters are kept. `predictor`, `sources` and `high_water`
        have no place in the format: use `save` to keep everything.
        """
        return text.write_lines(self.sections, self.bullets, counters=counters)

    @classmethod
    def from_text(cls, source: str, *, strict: bool = True, base: Playbook | None = None) -> Playbook:
        r"""Read the text format of `to_text` and of the paper's official code, with or without counters.

        `- text` below a header is a new bullet, and gets an id. An id that comes twice gets a new number the second
        time, above all others.

        Args:
            source: the text, edited by hand perhaps.
            strict: True: a line that is not understood is an error. False, for files of the official code: it continues
                the bullet above it, or is a comment below a header; a bullet without content is skipped.
            base: the playbook that the text was made of: its bullets keep what the text does not show (`predictor`,
                `sources`, counters), and no id is given again.

        Raises:
            PlaybookError: no str, not valid Unicode, no number is left for an id, or a line is not understood; the
                message has its number.

        Example:
            >>> text = "## TOOLS\n[tool-00001] Log in first.\n- Name the unit."
            >>> [bullet.id for bullet in Playbook.from_text(text)]
            ['tool-00001', 'tool-00002']
        """
        sections, lines, problems = text.read_lines(valid_text(source, "text"), strict)
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise PlaybookError(
                f"The text is no playbook: {'; '.join(problems[:5])}{more}. Expected are '## SECTION', '[id] text', "
                "'- text' for a new bullet, and '    | text' for a further line of the bullet above."
            )
        known = cls() if base is None else base
        high_water = max([known.high_water, *(number_of(line.id) for line in lines if line.id)])
        safe = {name: text.clean_section(redact(name)) for name in sections}  # each once: there may be many bullets
        slugs = {name: text.section_slug(safe[name]) for name in sections}
        bullets: dict[str, Bullet] = {}
        for line in lines:
            if not line.content.strip():
                continue
            before = known.get(line.id) if line.id else None
            name, key = line.id, (line.id or "").casefold()
            if name is None or key in bullets:
                high_water += 1
                if high_water >= _MOST:
                    raise PlaybookError(f"No number above {high_water - 1} is left for a new bullet; lower that one.")
                name, before = f"{name.rpartition('-')[0] if name else slugs[line.section]}-{high_water:05d}", None
                key = name.casefold()
            votes = line.votes or ((before.helpful, before.harmful) if before else (0, 0))
            bullets[key] = Bullet.unchecked(
                id=name,
                section=safe[line.section],
                content=clean_content(line.content),
                helpful=votes[0],
                harmful=votes[1],
                predictor=before.predictor if before else None,
                sources=before.sources if before else (),
            )
        index = dict(sorted(bullets.items(), key=lambda item: (item[1].number, item[1].id)))
        return cls.unchecked(index, dict.fromkeys(safe.values()), high_water)

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
        """Forget without a history: return the playbook without the selected bullets, and an account of what was done.

        The arguments are those of `dspy_ace.playbook.forget`, which knows each operation and loses less: here a bullet
        of several sources goes (with `keep_shared`: stays) as a whole, and votes stay in the counters.

        Raises:
            SettingsError: nothing is selected, or a name is unknown; the message lists the known names.
        """
        from .forgetting import forget  # noqa: PLC0415 - forgetting is built on playbooks

        done = forget((), self, sources=sources, matching=matching, bullets=bullets, keep_shared=keep_shared)
        return done.playbook, done.account

    def to_json(self) -> dict[str, Any]:
        """Return the playbook as plain JSON data with a format version: what `save` writes."""
        names = [field.name for field in fields(Bullet)]
        return {
            "format": FORMAT,
            "version": VERSION,
            "high_water": self.high_water,
            "sections": list(self.sections),
            "bullets": [
                {**{name: getattr(bullet, name) for name in names}, "sources": list(bullet.sources)}
                for bullet in self.bullets
            ],
        }

    @classmethod
    def from_json(cls, data: Any) -> Playbook:
        """Return the playbook that `to_json` wrote. A bullet without an id, written by hand, gets one.

        Raises:
            PlaybookError: not a playbook, a damaged one, or one of a newer version.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlaybookError(f'Expected the JSON of a playbook ("format": "{FORMAT}"); got {brief(data)}.')
        version = data.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise PlaybookError(
                f"This playbook is of version {brief(version)}; this dspy_ace reads up to {VERSION}. Upgrade dspy_ace."
            )
        try:
            items = [dict(item) for item in _sequence(data["bullets"], "bullets")]
            known = cls(tuple(Bullet(**item) for item in items if item.get("id")), (), data.get("high_water", 0))
            unnamed = [item for item in items if not item.get("id")]
            for number, item in enumerate(unnamed, known.high_water + 1):
                item["id"] = f"{text.section_slug(str(item.get('section')))}-{number:05d}"
            bullets = (*known.bullets, *(Bullet(**item) for item in unnamed))
            return cls(bullets, data.get("sections", ()), known.high_water)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise PlaybookError(f"The data says it is a playbook, but is damaged: {reason}") from error

    def save(self, path: str | Path) -> None:
        """Write the playbook as JSON (UTF-8). After a crash the file holds the old playbook or the new one, whole."""
        checked("path", path, Location)
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


def writable(name: object) -> str:
    r"""Return the name of a source as it is kept: a lone surrogate, as file names hold it, becomes `\udc80` in words.

    Raises:
        PlaybookError: it is not text.
    """
    if not isinstance(name, str):
        raise PlaybookError(f"A source is named by a text (str); got {brief(name)}.")
    return name.encode("utf-8", "backslashreplace").decode()


def valid_text(value: object, name: str) -> str:
    """Return `value` if it is a str that can be written as UTF-8. `name` is what the message calls it.

    Raises:
        PlaybookError: it is not.
    """
    if not isinstance(value, str):
        raise PlaybookError(f"{name} must be text (str); got {type(value).__name__}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PlaybookError(f"{name} is not valid Unicode (a lone surrogate at {error.start}); repair it.") from error
    return value


def clean_content(content: object) -> str:
    r"""Return the content of a bullet as it is kept: line ends `\n`, no space at line ends or around the text.

    Raises:
        PlaybookError: not text, not valid Unicode, or empty.
    """
    cleaned = redact(valid_text(content, "content"))
    if "\n" in cleaned or "\r" in cleaned:
        lines = cleaned.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        cleaned = "\n".join(line.rstrip() for line in lines)
    cleaned = cleaned.strip()
    if not cleaned:
        raise PlaybookError("A bullet needs a content; got an empty text.")
    return cleaned


def number_of(bullet_id: str) -> int:
    """Return the number at the end of an id."""
    return int(bullet_id[bullet_id.rindex("-") + 1 :])


def _sequence(values: Any, name: str) -> tuple[Any, ...]:
    """Return the values of an iterable as a tuple. A text or a mapping is refused: one value was meant."""
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
        raise PlaybookError(f"{name} is a sequence; got {brief(values)}.")
    return tuple(values)
