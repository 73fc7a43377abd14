"""Text of a playbook: sections, the paper's file format (ACE §3.1), token estimates, and `folded` for exact repeats.

What a prompt shows of a bullet is `Bullet.block`. It holds no counters, so that a provider's prompt cache stays valid.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from base64 import b64decode
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import tiktoken

    from .playbook import Bullet

OTHERS = "OTHERS"
ID_PATTERN = r"\w[\w-]*-\d{1,18}"

_HEADED = re.compile(rf"^\[\s*({ID_PATTERN})\s*\](.*)$", re.DOTALL)
_COUNTED = re.compile(r"^\s*helpful=(\d{1,18})\s*harmful=(\d{1,18})\s*::(.*)$", re.DOTALL)
_NEW = re.compile(r"[-*•]\s+\S")
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


def counted(number: int, what: str) -> str:
    """Return `1 bullet`, `3 bullets`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def defuse(text: str) -> str:
    """Take adapter markers in `text` apart, so that no adapter reads them as a field: `[[ ##` → `[ [ ##`."""
    return _MARKERS.sub(lambda found: " ".join(found.group().strip()), text)


def clean_section(section: str) -> str:
    """Return a section's name on one line, without `#` marks before it; an empty name becomes OTHERS."""
    return " ".join(re.sub(r"^[#\s]+", "", section).split()) or OTHERS


def section_key(section: str) -> str:
    """Return a key that all spellings of a section share: case, spaces, `&` for "and" and a last colon do not count."""
    return re.sub(r"[\s_\-]+", "_", section.strip().rstrip(":").casefold().replace("&", " and ")).strip("_")


def section_slug(section: str) -> str:
    """Return the letters that open the ids of a section: `"COMMON MISTAKES TO AVOID"` → `"err"`.

    They depend on the section alone, whatever its spelling.
    """
    key = section_key(section)
    if key in _SLUGS:
        return _SLUGS[key]
    words = [word for word in re.findall(r"[a-z]+", key) if word not in {"and", "the", "of", "to"}]
    if len(words) > 2:
        return "".join(word[0] for word in words)[:4]
    return "".join(words)[:4] or "misc"


# --- exact repeats

CODE_SPAN = re.compile(r"(```.*?```|`[^`]*`)", re.DOTALL)
_QUOTES = str.maketrans({**dict.fromkeys("“”„‟«»「」『』", '"'), **dict.fromkeys("‘’‚‛‹›", "'")})
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―−", "-"))
_WIDE_MARK = re.compile(r"(?<!\d)[。、，；：،؛۔।…]|[。、，；：،؛۔।…](?!\d)|(?<![0-9A-Za-z])！")
_PIECES = re.compile(
    r"""(?P<code>```.*?```|`[^`]*`)
    | (?P<quoted>(?<!\w)(?:'\w+'|"\w+")(?!\w))
    | (?P<indent>\n(?:[ ]{2,}|[ ]*\t)[ \t]*)
    | (?P<unit>(?<=\d)\s+[^\W\d_]{1,3}\b)
    | (?P<word>\w+)
    | (?P<call>(?<=\w)\(\))
    | (?P<mark>(?<=[\w)\]}"'`%\x80-\U0010ffff])[.,;:]+(?=\s|$|[)\]}"']) | (?<=[^\W\d_]{2})!+(?=\s*$|\s+[A-Z]))
    | (?P<space>\s+)""",
    re.VERBOSE | re.DOTALL,
)


def folded(text: str) -> str:
    """Return a form of `text` that exact repeats share; of texts that may mean different things it is different.

    Dropped are: case, extra space, a full stop, comma, semicolon or colon that ends a word, an exclamation mark that
    ends a sentence, `()` behind a name, the shapes of quotes and dashes, and the variants of letters that Unicode NFKC
    unites (full-width letters, ligatures).

    Kept is what can change the meaning:
      - spans in backticks and single words in quotes, as they stand, and the indentation of lines;
      - marks within words and numbers, and all other signs: `5.0`, `a-b`, `-3`, `x > 3`, `50 %`, `why?`, `(a + b)`;
      - capitals in `userId`, in words of two capitals (`US`), in words with a digit or `_`, in a unit behind a number
        (`10 Mb`), and in `True`, `False`, `None`;
      - powers, indices and fractions: `x²`, `½`; and `ß`: German `Maße` are not `Masse`.

    Any str is taken, lone surrogates as well.

    Example:
        >>> folded("Round  ONLY the final result!") == folded("round only the final result.")
        True
        >>> folded("Retry if x > 3.") == folded("Retry if x < 3.")
        False
    """
    parts = CODE_SPAN.split(text)  # code spans stand at the odd places
    parts[::2] = [_normal(part) for part in parts[::2]]
    return _PIECES.sub(_folded_piece, "".join(parts)).strip()


def _normal(text: str) -> str:
    """Write marks, quotes, dashes and letters in one way."""
    if text.isascii():
        return text
    text = _WIDE_MARK.sub(". ", text).translate(_QUOTES).translate(_DASHES)
    runs = groupby(text, key=_is_raised)
    normal = "".join("".join(run) if raised else unicodedata.normalize("NFKC", "".join(run)) for raised, run in runs)
    return "".join(char for char in normal if unicodedata.category(char) != "Cf")  # zero-width and bidi marks


def _is_raised(char: str) -> bool:
    """Say if NFKC would take a power, an index or a fraction for plain digits: `10²` is not `102`."""
    return unicodedata.decomposition(char).startswith(("<super>", "<sub>", "<fraction>"))


def _folded_piece(found: re.Match[str]) -> str:
    kind, piece = found.lastgroup, found.group()
    if kind in ("mark", "call"):
        return ""
    if kind == "space":
        return " "
    if kind == "unit":
        return f" {piece.strip()}"
    return piece.lower() if kind == "word" and not _case_matters(piece) else piece


def _case_matters(word: str) -> bool:
    capitals_within = word[1:] != word[1:].lower() and not word.isupper()
    two_capitals = len(word) == 2 and word.isupper()
    return capitals_within or two_capitals or not word.isalpha() or word in {"True", "False", "None"}


# --- tokens

# the split into words that belongs to cl100k
_WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_PART = 2000  # characters that are counted at a time: a run of one letter would take seconds as a whole


def count_tokens(text: str) -> int:
    """Estimate the tokens of `text`: those of cl100k, which LiteLLM counts by for models it does not know.

    Models differ: newer ones need up to half fewer for scripts other than Latin.
    """
    return _remembered(text) if len(text) <= 2 * _PART else _count(text)  # bullets come again, whole prompts do not


def _count(text: str) -> int:
    parts = (text[start : start + _PART] for start in range(0, len(text), _PART))
    return sum(len(_encoding().encode_ordinary(part)) for part in parts)


_remembered = lru_cache(maxsize=16384)(_count)


@lru_cache(maxsize=1)
def _encoding() -> tiktoken.Encoding:
    """Read the tokens that come with LiteLLM; tiktoken itself would fetch them."""
    import tiktoken  # noqa: PLC0415 - it takes 3 ms, and only prompts are counted

    origin = getattr(importlib.util.find_spec("litellm"), "origin", None) or ""
    name = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # tiktoken's name for the file of cl100k
    lines = (Path(origin).parent / "litellm_core_utils" / "tokenizers" / name).read_bytes().splitlines()
    ranks = {b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    return tiktoken.Encoding("cl100k", pat_str=_WORDS, mergeable_ranks=ranks, special_tokens={})


def cut_middle(text: str, max_tokens: int) -> str:
    """Cut `text` in the middle, visibly, so that it has at most `max_tokens` (as `count_tokens` estimates).

    Head and tail stay: the question, and how it ended. Where there is no room to say how much was cut, `…` stands for
    all of it; with no room at all the text is empty.
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


def fit(parts: dict[str, str], max_tokens: int) -> dict[str, str]:
    """Cut the parts of a prompt so that all of them have at most `max_tokens` together.

    Only the longest are cut, in the middle, visibly: what short parts leave is shared evenly by the long ones.
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


# --- the paper's file format


class Line(NamedTuple):
    """A bullet as a text holds it: `id` is None for a new one (`- text`), `votes` is None where none are shown."""

    id: str | None
    section: str
    content: str
    votes: tuple[int, int] | None
    number: int
    """Where it begins in the text, from 1."""


def write_lines(sections: Iterable[str], bullets: Iterable[Bullet], *, counters: bool = True) -> str:
    """Write the paper's text format: each section once, its bullets below it, no line end behind the last.

    With `counters` a bullet is `[id] helpful=N harmful=N :: content`, else `[id] content`. Further lines of a content
    follow as `    | line`: no reader of the format takes them for a header.
    """
    blocks = {section: [f"## {section}"] for section in sections}
    for bullet in bullets:
        first, *rest = bullet.content.split("\n")
        if counters or first.lstrip().startswith("helpful="):  # a content that looks counted would be read as counters
            first = f"helpful={bullet.helpful} harmful={bullet.harmful} :: {first}"
        blocks[bullet.section] += [f"[{bullet.id}] {first}", *(_CONTINUED + line for line in rest)]
    return "\n\n".join("\n".join(lines) for lines in blocks.values())


def read_lines(text: str, strict: bool) -> tuple[list[str], list[Line], list[str]]:
    """Read a text in the paper's format, in either dialect. A bullet before the first header belongs to OTHERS.

    Args:
        text: any.
        strict: True for the format as `write_lines` writes it, and `- text` for a new bullet. False: a line that is
            neither header nor bullet continues the bullet above it; below a header it is a comment.

    Returns:
        The sections as spelled and the bullets, both in order; and for each line that is not understood what is wrong,
        if `strict`.
    """
    sections: dict[str, None] = {}
    bullets: list[Line] = []
    problems: list[str] = []
    section = ""
    start: tuple[int, str | None, str] | None = None  # number, id and section of the bullet whose lines are read
    lines: list[str] = []
    in_bullet = False
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        headed = _HEADED.match(line) if line[:1] == "[" else None
        if in_bullet and (raw.startswith(_CONTINUED) or raw == _CONTINUED.rstrip()):
            lines.append(raw[len(_CONTINUED) :])
        elif line.startswith("##"):
            section, in_bullet = clean_section(line), False
            sections[section] = None
        elif headed or (strict and _NEW.match(line)):
            if start:
                bullets.append(_read_bullet(*start, lines))
            section, in_bullet = section or OTHERS, True
            sections[section] = None
            start, lines = (number, headed[1] if headed else None, section), [headed[2] if headed else line[1:]]
        elif line and strict:
            problems.append(f"line {number}, {line!r:.80}, is neither a section nor a bullet")
        elif line and in_bullet:
            lines.append(line)
    if start:
        bullets.append(_read_bullet(*start, lines))
    for bullet in bullets if strict else ():
        if not bullet.content.strip():
            problems.append(f"line {bullet.number} has no text; to remove the bullet, delete the line")
        elif bullet.votes is None and bullet.content.lstrip().startswith("helpful="):
            problems.append(f"line {bullet.number} needs its counters as 'helpful=2 harmful=0 :: text'")
    return list(sections), bullets, problems


def _read_bullet(number: int, name: str | None, section: str, lines: list[str]) -> Line:
    counted = _COUNTED.match(lines[0]) if "helpful=" in lines[0] else None
    first = counted[3] if counted else lines[0]
    votes = (int(counted[1]), int(counted[2])) if counted else None
    return Line(name, section, "\n".join([first, *lines[1:]]), votes, number)
