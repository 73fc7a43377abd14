"""Text of a playbook: the block a prompt shows, and the paper's file format (ACE §3.1).

Two texts, two purposes:

* `render_bullets` writes what a model reads. Append-only and without counters, so that what a
  provider has cached stays cached. A bullet is one block whatever it contains.
* `write_lines` / `read_lines` are the text format of the paper's official code, in both dialects
  (`[id] helpful=N harmful=N :: content` and `[id] content`), in one canonical layout.

This room knows the fields of a bullet and nothing else of the house.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

OTHERS = "OTHERS"
ID_PATTERN = r"\w[\w-]*-\d{1,18}"

_HEADED = re.compile(rf"^\[\s*({ID_PATTERN})\s*\](.*)$", re.DOTALL)
_COUNTED = re.compile(r"^\s*helpful=(\d{1,18})\s*harmful=(\d{1,18})\s*::(.*)$", re.DOTALL)
_CONTINUED = "    | "
_MARKERS = re.compile(r"\[\[(?=\s*##)|(?<=##)\s*\]\]|<<(?=CUSTOM-TYPE)")
_SLUGS = {  # ACE, official code: the letters of the sections in its two initial playbooks
    "strategies_and_insights": "str",
    "formulas_and_calculations": "calc",
    "code_snippets_and_templates": "code",
    "common_mistakes_to_avoid": "err",
    "problem_solving_heuristics": "prob",
    "context_clues_and_indicators": "ctx",
    "strategies_and_hard_rules": "shr",
    "apis_to_use_for_specific_information": "api",
    "useful_code_snippets_and_templates": "code",
    "common_mistakes_and_correct_strategies": "cms",
    "problem_solving_heuristics_and_workflows": "psw",
    "verification_checklist": "vc",
    "troubleshooting_and_pitfalls": "ts",
    "others": "misc",
}
_PIECES = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d{1,3}|_|[^\w\s]+|[^\W\d_]|\s+")


class BulletLike(Protocol):
    """The fields of a bullet that its text needs."""

    @property
    def id(self) -> str:
        """Letters, a hyphen and a number."""

    @property
    def section(self) -> str:
        """One line."""

    @property
    def content(self) -> str:
        """Any text."""

    @property
    def helpful(self) -> int:
        """How often it helped."""

    @property
    def harmful(self) -> int:
        """How often it misled."""


class Line(NamedTuple):
    """One bullet as a file of the text format states it."""

    id: str
    section: str
    content: str
    helpful: int
    harmful: int


def defuse(text: str) -> str:
    """`text` with adapter markers taken apart, so that no reader takes it for a field: `[[ ##` → `[ [ ##`."""
    return _MARKERS.sub(lambda found: " ".join(found.group().strip()), text)


def render_bullet(bullet: BulletLike) -> str:
    """One bullet as a prompt shows it: `[id] (SECTION) content`, further lines indented below."""
    first, *rest = defuse(bullet.content).expandtabs(4).splitlines() or [""]
    return "\n".join([f"[{bullet.id}] ({defuse(bullet.section)}) {first}", *(f"  {line}".rstrip() for line in rest)])


def render_bullets(bullets: Iterable[BulletLike]) -> str:
    """The bullets as a prompt shows them, in the order given; `""` for none."""
    return "\n".join(render_bullet(bullet) for bullet in bullets)


def clean_section(section: str) -> str:
    """A section's name on one line, without a header's marks; an empty one is OTHERS."""
    return " ".join(re.sub(r"^[#\s]+", "", section).split()) or OTHERS


def section_key(section: str) -> str:
    """What makes two spellings the same section: case, spaces, `&`/and and a last colon do not."""
    return re.sub(r"[\s_\-]+", "_", section.strip().rstrip(":").casefold().replace("&", " and ")).strip("_")


def section_slug(section: str) -> str:
    """The letters of a section that open its ids: `"COMMON MISTAKES TO AVOID"` → `"err"`, `"Unit prices"` → `"unit"`.

    They depend on the section alone, whatever its spelling.
    """
    key = section_key(section)
    if key in _SLUGS:
        return _SLUGS[key]
    words = [word for word in re.findall(r"[a-z]+", key) if word not in {"and", "the", "of", "to"}]
    if len(words) > 2:
        return "".join(word[0] for word in words)[:4]
    return "".join(words)[:4] or "misc"


def fold(text: str) -> str:
    """`text` without extra space, for telling exact repeats from new lessons; case may matter in code."""
    return " ".join(text.split())


def count_tokens(text: str) -> int:
    """An estimate of the tokens of `text`, within about a quarter of cl100k on English, code and tags.

    Pure and fast, no tokenizer to download. Other scripts are counted one token a character.
    """
    return _remembered(text) if len(text) <= 4000 else _count(text)  # bullets come again, whole prompts do not


def _count(text: str) -> int:
    total = 0
    for piece in _PIECES.findall(text):
        if piece[0].isspace():
            total += "\n" in piece or len(piece) > 4
        elif piece.isascii() and piece.isalpha():
            total += 1 + (len(piece) - 1) // 8
        else:
            total += (len(piece) + 2) // 3 if piece.isascii() else len(piece)
    return total


_remembered = lru_cache(maxsize=16384)(_count)


def cut_middle(text: str, max_tokens: int) -> str:
    """`text` within `max_tokens` (as `count_tokens` estimates), cut in the middle, visibly.

    The head and the tail are kept: what was asked, and how it ended. Where there is no room to say how much
    was cut, `…` stands for it all; with no room at all the text is empty.
    """
    size = count_tokens(text)
    if size <= max_tokens:
        return text
    keep = max(0, int(len(text) * max_tokens / size))
    while True:
        head, tail = text[: (keep + 1) // 2], text[len(text) - keep // 2 :]
        cut = f"{head}\n[… {len(text) - keep} characters cut …]\n{tail}"
        size = count_tokens(cut)
        if size <= max_tokens:
            return cut
        if keep == 0:
            return "…" if max_tokens > 0 else ""
        keep = min(keep * 9 // 10, int(keep * max(max_tokens, 0) / size))


def write_lines(sections: Sequence[str], bullets: Sequence[BulletLike], *, counters: bool = True) -> str:
    """The canonical layout of the text format: every section once, its bullets below it, no last newline.

    `counters=True` writes `[id] helpful=N harmful=N :: content`, `False` writes `[id] content`.
    Further lines of a content follow as `    | line`, which no reader of the format takes for a header.
    """
    blocks = {section: [f"## {section}"] for section in sections}
    for bullet in bullets:
        blocks.setdefault(bullet.section, [f"## {bullet.section}"]).append(_write_line(bullet, counters))
    return "\n\n".join("\n".join(lines) for lines in blocks.values())


def _write_line(bullet: BulletLike, counters: bool) -> str:
    first, *rest = bullet.content.split("\n")
    if counters or _COUNTED.match(first):  # a content that looks counted would be read as counters
        first = f"helpful={bullet.helpful} harmful={bullet.harmful} :: {first}"
    return "\n".join([f"[{bullet.id}] {first}", *(_CONTINUED + line for line in rest)])


def read_lines(text: str) -> tuple[list[str], list[Line]]:
    """Sections (as spelled, in order) and bullets of a text in the paper's format, either dialect.

    Total: any text is read. A bullet before the first header belongs to OTHERS. A line that is neither
    header nor bullet continues the bullet above it; below a header it is a comment. A missing counter
    is read as 0.
    """
    sections: dict[str, None] = {}
    found: list[tuple[str, str, list[str]]] = []  # id, section, lines
    section, in_bullet = "", False
    for raw in text.removeprefix("\ufeff").replace("\r\n", "\n").strip().split("\n"):
        line = raw.strip()
        headed = _HEADED.match(line)
        if in_bullet and f"{raw} ".startswith(_CONTINUED):
            found[-1][2].append(raw[len(_CONTINUED) :])
        elif line.startswith("##"):
            section, in_bullet = clean_section(line), False
            sections[section] = None
        elif headed is not None:
            section, in_bullet = section or OTHERS, True
            sections[section] = None
            found.append((headed[1], section, [headed[2]]))
        elif line and in_bullet:
            found[-1][2].append(line)
    return list(sections), [_read_line(*parts) for parts in found]


def _read_line(name: str, section: str, lines: list[str]) -> Line:
    counted = _COUNTED.match(lines[0])
    helpful, harmful, first = counted.groups() if counted else (0, 0, lines[0])
    return Line(name, section, "\n".join([first, *lines[1:]]), int(helpful), int(harmful))


def fit(parts: dict[str, str], max_tokens: int) -> dict[str, str]:
    """The parts of a prompt within `max_tokens` together; only the longest are cut, in the middle, visibly.

    Short parts are kept whole; what they leave is shared evenly by the long ones.
    """
    sizes = {name: count_tokens(part) for name, part in parts.items()}
    left, open_parts = max_tokens, len(parts)
    fitted: dict[str, str] = {}
    for name in sorted(parts, key=lambda name: (sizes[name], name)):
        allowed = left // open_parts
        fitted[name] = cut_middle(parts[name], allowed)
        left -= min(sizes[name], allowed)
        open_parts -= 1
    return {name: fitted[name] for name in parts}
