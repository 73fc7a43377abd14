"""A playbook in the instructions of a program's predictors: written, recognised, taken out and read back.

Plain text on both sides: a program that was loaded from JSON, or edited by hand, is understood as well as one that
was compiled in this process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ..errors import PlaybookError
from .playbook import Bullet, Playbook
from .text import ID_PATTERN

PLAYBOOK_HEADER = """## Playbook
Lessons learned on earlier cases of this task, one block each: [id] (section) lesson. Before you answer, find
the bullets that apply to the case at hand and follow them; a bullet that fits the case exactly goes before a
general one. Ignore bullets that do not apply."""

# A block is recognised by its title and these words, however its lines are wrapped; by the words alone; or by the title
# right above a bullet. Programs are saved with them: whoever words the header anew keeps these here as an alternative.
_WORDS = r"\s+".join(("Lessons", "learned", "on", "earlier", "cases", "of", "this", "task"))
_TITLE = r"\#{1,6}[^\S\n]+Playbook:?"
_ID = rf"\[\s*{ID_PATTERN}\s*\]"
_OPENS = re.compile(rf"\[\s*({ID_PATTERN})\s*\][^\S\n]*(?:\((.*?)\)(?=\s|$))?[^\S\n]*(.*)")
_LISTED = re.compile(rf"^[-*•]\s+(?:\*\*)?({_ID})(?:\*\*)?(?=[^\S\n]*\()|^\*\*({_ID})\*\*(?=[^\S\n]*\()", re.MULTILINE)
_HEADER = re.compile(
    rf"""(?:\A|(?:\n[ \t]*)?\n)
    (?:{_TITLE}\s+{_WORDS}\b | {_WORDS},\s+one\s+block\s+each\b | {_TITLE}(?=\s*\n{_ID}[^\S\n]*\())
    .*?(?=\n[^\S\n]*\n|\n{_ID}|\Z)""",
    re.DOTALL | re.VERBOSE,
)


class ShownBullet(NamedTuple):
    """A bullet as it stands in instructions, `block` being its lines as they are."""

    id: str
    section: str
    content: str
    block: str


def playbook_block(playbook: Playbook, predictor: str) -> str:
    """Return what stands below the own instructions of `predictor`: the header and its bullets; `""` for no bullet."""
    bullets = playbook.render(predictor)
    return f"{PLAYBOOK_HEADER}\n\n{bullets}" if bullets else ""


def take_out(instructions: str) -> tuple[str, list[ShownBullet] | None]:
    """Take every playbook block out of instructions.

    A block begins with the header, at the top or on a line of its own. It ends with its last bullet: the last line
    that opens with an id, and the indented lines below it. What stands behind that is kept; a line between two
    bullets, as a hand edit may leave it, belongs to the bullet above it. Bullets may be the items of a list.

    Returns:
        The instructions without any block, and the bullets of the last block; None: there was no block.
    """
    found = _HEADER.search(instructions)
    text = instructions
    if found is None or "\r" in found[0]:  # an editor has changed all line ends
        text = instructions.replace("\r\n", "\n").replace("\r", "\n")
    own, *blocks = _HEADER.split(text)
    if not blocks:
        return instructions, None
    shown: list[ShownBullet] = []
    for block in blocks:
        lines = _LISTED.sub(r"\1\2", block).split("\n")
        starts = [at for at, line in enumerate(lines) if _OPENS.match(line)]
        end = _end(lines, starts[-1]) if starts else 1
        shown = [_read([*map(str.rstrip, lines[a:b])]) for a, b in zip(starts, [*starts[1:], end], strict=False)]
        rest = "".join(f"\n{line}" for line in lines[end:])
        own += rest if own else rest.lstrip("\n")
    return own, shown


def _end(lines: list[str], last: int) -> int:
    """Return the place behind the bullet that opens at `last`: further lines of it are indented by two spaces."""
    end = last + 1
    for at in range(end, len(lines)):
        if lines[at].startswith("  ") and lines[at].strip():
            end = at + 1
        elif lines[at].strip():
            break
    return end


def _read(lines: list[str]) -> ShownBullet:
    block = "\n".join(lines).rstrip()
    first, *rest = block.split("\n")
    found = _OPENS.match(first)
    assert found is not None  # noqa: S101 - blocks are cut where it matches
    content = "\n".join([found[3], *(line.removeprefix("  ") for line in rest)])
    return ShownBullet(found[1], found[2] or "", content, block)


def playbook_of(program: Any) -> Playbook:
    """Read the playbook in a program's instructions back: what its prompts say is the truth.

    Counters, sources and the text before it was made safe for a prompt do not stand in prompts. They are taken from
    `program.playbook`, or that of a compiled part, where it is at hand and knows the bullet. One that stands in the
    prompts of all predictors is for all; one that stands in some of them is for each of these, under an id of its own.

    Args:
        program: a DSPy program, compiled, loaded or edited by hand.

    Returns:
        The playbook; an empty one if there is none. Where the prompts hold none at all, `program.playbook` stands: an
        optimizer that writes whole instructions may have removed it.

    Raises:
        PlaybookError: `program` has no predictors to look into.
    """
    if not callable(getattr(program, "named_predictors", None)):
        raise PlaybookError(f"Expected a DSPy program (a dspy.Module); got {type(program).__name__}.")
    kept = getattr(program, "playbook", None)
    known = kept if isinstance(kept, Playbook) else Playbook()
    taken = {name: take_out(str(each.signature.instructions))[1] for name, each in program.named_predictors()}
    shown = {name: bullets for name, bullets in taken.items() if bullets is not None}
    where: dict[ShownBullet, list[str]] = {}
    for name, bullets in shown.items():
        for bullet in bullets:
            where.setdefault(bullet, []).append(name)
    unseen = [bullet for bullet in known if not any(bullet.is_for(name) for name in shown)]
    parts = {(b.id, b.block): b for name in shown for b in _of_part(program, name)} if kept is None else {}
    return _joined(known, parts, unseen, _scoped(known, where, list(taken), list(shown)))


def _of_part(program: Any, predictor: str) -> Playbook:
    """Return the playbook that a compiled part of the program carries; an empty one if that of `predictor` has none."""
    part = program
    for name in predictor.split("."):
        part = getattr(part, name, None)
        if isinstance(found := getattr(part, "playbook", None), Playbook):
            return found
    return Playbook()


def _scoped(
    known: Playbook, where: Mapping[ShownBullet, list[str]], predictors: list[str], shown: list[str]
) -> list[tuple[ShownBullet, str | None]]:
    """Return each bullet with the predictor it is for; None: all."""
    scoped: list[tuple[ShownBullet, str | None]] = []
    for bullet, names in where.items():
        before = known.get(bullet.id)
        if before is not None and [name for name in shown if before.is_for(name)] == names:
            scoped.append((bullet, before.predictor))
        else:
            scoped += [(bullet, name) for name in ([None] if len(names) == len(predictors) else names)]
    return scoped


def _joined(
    known: Playbook,
    parts: Mapping[tuple[str, str], Bullet],
    unseen: list[Bullet],
    scoped: list[tuple[ShownBullet, str | None]],
) -> Playbook:
    """Return the playbook of these bullets; where two have one id, the second gets a new number."""
    bullets = {bullet.id.casefold(): bullet for bullet in unseen}
    high_water = max([known.high_water, *(int(shown.id.rpartition("-")[2]) for shown, _ in scoped)])
    for shown, predictor in scoped:
        name, before = shown.id, known.get(shown.id) or parts.get((shown.id, shown.block))
        if not shown.content.strip():
            continue
        if name.casefold() in bullets:
            high_water += 1
            name = f"{name.rpartition('-')[0]}-{high_water:05d}"
        bullet = before or Bullet(name, shown.section, shown.content)
        if bullet.block != shown.block:
            bullet = replace(bullet, section=shown.section or bullet.section, content=shown.content)
        bullets[name.casefold()] = replace(bullet, id=name, predictor=predictor)
    return Playbook(tuple(bullets.values()), known.sections, high_water)
