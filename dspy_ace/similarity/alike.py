"""Look-alikes among bullets, and the guard before two texts are merged (ACE §3.3).

Equal texts are found by `folded` in `playbook/text.py`; `roles/refine.py` merges both kinds.
"""

from __future__ import annotations

import logging
import re
import threading
import unicodedata
from functools import lru_cache
from os.path import commonprefix
from typing import Any, NamedTuple

from ..errors import EmbedderError
from ..playbook import Bullet, Playbook
from .vectors import UNSPACED, Embedder, Vectors, cosines

logger = logging.getLogger("dspy.ace")

_ROWS = 256  # new texts compared with all others at a time: bounds the memory


class Pair(NamedTuple):
    """Two bullets of one scope that look alike, the older one first, and the cosine of their contents."""

    older: Bullet
    newer: Bullet
    cosine: float


class LookAlikes:
    """Finds the bullets that look alike, in any language. It does not say if they mean the same.

    Each text is embedded once and compared once with each other text. What is found depends on the playbook alone.
    Threads may share it; a copy starts without what was computed.

    Args:
        embedder: `list[str]` → array-like (n, d); None: lexical vectors.
        threshold: cosine from 0 to 1 from which two contents look alike.
    """

    def __init__(self, embedder: Embedder | None, threshold: float) -> None:
        self.embedder, self.threshold = embedder, threshold
        self._vectors = Vectors(embedder)
        self._near: dict[str, dict[str, float]] = {}  # text → the texts near it, with the cosine
        self._failed = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.embedder, self.threshold)

    def pairs(self, playbook: Playbook) -> list[Pair]:
        """Return all pairs of bullets of one scope (`predictor`) that look alike, the closest first.

        If the embedder fails, that is logged and there are no pairs this time: it must not end a run. Only an answer
        that is not one finite vector a text raises EmbedderError.
        """
        with self._lock:
            self._update(list(dict.fromkeys(bullet.content for bullet in playbook)))
            found = []
            holders: dict[tuple[str | None, str], list[Bullet]] = {}
            for bullet in playbook:
                scope, content = bullet.predictor, bullet.content
                for text, cosine in ((content, 1.0), *self._near.get(content, {}).items()):
                    found += [Pair(older, bullet, cosine) for older in holders.get((scope, text), ())]
                holders.setdefault((scope, content), []).append(bullet)
        return sorted(found, key=lambda pair: (-pair.cosine, pair.newer.id, pair.older.id))

    def _update(self, texts: list[str]) -> None:
        """Forget the texts that are gone, and compare those that are new with all."""
        for text in self._near.keys() - set(texts):
            for other in self._near.pop(text):
                self._near.get(other, {}).pop(text, None)
        new = [at for at, text in enumerate(texts) if text not in self._near]
        if not new or len(texts) == 1:
            return
        try:
            matrix = self._vectors.of(texts)
            self._failed = False
        except EmbedderError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the user's embedder raises: a service may be down
            if not self._failed:  # one warning for failures in a row
                logger.warning("The embedder failed (%s: %s). Bullets are not compared.", type(error).__name__, error)
            self._failed = True
            return
        found: dict[str, dict[str, float]] = {texts[at]: {} for at in new}
        for start in range(0, len(new), _ROWS):
            some = new[start : start + _ROWS]
            close = cosines(matrix[some], matrix)
            for row, at in zip(*(close >= self.threshold).nonzero(), strict=True):
                one, other = texts[some[row]], texts[at]
                if one != other:
                    found[one][other] = float(close[row, at])
                    self._near.get(other, {})[one] = float(close[row, at])
        self._near.update(found)


# The common words for what vectors hardly see: "Delete old logs." and "Do not delete old logs." are neighbours in all.
# Number words that are articles as well are left out; above ten most texts write figures.
_FACTS_OF_WORDS = {
    word: fact
    for fact, words in {
        "not": "not no never none nothing neither nor without cannot unless except nicht nichts kein keine keinen "
        "keinem keiner keines nie niemals ohne weder außer nunca jamás sin ningún ninguno ninguna nada tampoco ni "
        "salvo excepto ne n pas jamais sans aucun aucune sauf não nem sem nenhum nenhuma exceto non mai senza nessun "
        "nessuno nessuna né niet geen nooit zonder nigdy bez inte aldrig utan не нет ни никогда без нельзя кроме "
        "değil asla لا لم لن ليس بدون",
        "only": "only nur ausschließlich solo solamente sólo únicamente seulement apenas somente soltanto только",
        "2": "two zwei dos deux dois due два",
        "3": "three drei tres trois três tre три",
        "4": "four vier cuatro quatre quatro quattro четыре",
        "5": "five fünf cinco cinq cinque пять",
        "6": "six sechs seis sei шесть",
        "7": "seven sieben siete sept sete sette семь",
        "8": "eight acht ocho huit oito otto восемь",
        "9": "nine neun nueve neuf nove девять",
        "10": "ten zehn diez dix dez dieci десять",
    }.items()
    for word in words.split()
}
# The same where words are not set apart by spaces, or are built of many parts.
_WITHIN = re.compile(
    "(?P<negation>[不没沒無无非未勿別别莫]|ない|ません|なく|なけ|않|안|못|없|말[고아라지]|아니|ไม่|ห้าม|नहीं|मत)"
    "|(?P<only>[只仅僅]|だけ|のみ|오직|만)|[〇一二三四五六七八九十百千万萬億亿两兩]|[둘셋넷]째|다섯|여섯|일곱|여덟|아홉"
)
_FACT = re.compile(
    r"""
    `(?P<code>[^`]+)`
  | (?P<quoted>"[^"\n]{1,120}"|“[^”\n]{1,120}”|«[^»\n]{1,120}»|「[^」\n]{1,120}」|(?<!\w)'[^'\n]{1,120}'(?!\w))
  | (?P<path>(?<![\w.~+-])(?:(?:https?:/|[\w.~-]*)(?:/[\w.*{}-]+)+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+))
  | (?P<name>[A-Za-z_]\w*(?:(?:\.|::|_)\w+)+|[A-Za-z]*[a-z][A-Z]\w*|[A-Z]{2,}\w*|(?<=[a-z,]\ )[A-Z]\w*)
  | (?P<number>(?:(?<![\w)])[-+])?\d(?:[\d.,:]*\d)?)
  | (?P<sign><=|>=|==|!=|=>|->|[<>=^±≤≥≠%$€£¥₩]|(?<=\s)[*/+-](?=\s))
  | (?P<word>(?:[^\W\d_]|[\u0900-\u0eff])+(?:['’]\w+)?)  # with the vowel signs of India and Thailand
    """,
    re.VERBOSE,
)


def agree(one: str, other: str) -> bool:
    """Return True if two texts that an embedder puts close together may be one: the guard before a merge by code.

    They must name the same numbers, negations, names and code literals, in the same order: vectors hardly see these.
    And they must differ in more than one place. Texts that differ in one place only ("before" for "after", one more
    condition), or in the order of their words, differ on purpose, in any language. The guard leans to False: a repeat
    that stays costs some tokens, a difference that is merged away is lost.

    Example:
        >>> agree("Retry a failed upload 3 times.", "If an upload fails, retry three times.")
        True
        >>> agree("Retry a failed upload 3 times.", "If an upload fails, retry five times.")
        False
    """
    return _facts(one) == _facts(other) and not _differ_in_one_place(_words(one), _words(other))


def _words(text: str) -> list[str]:
    """Return the words in order; characters where words are not set apart by spaces."""
    pattern = rf"{UNSPACED}|\w+|[^\w\s!-/:-@\[-`{{-~]"  # and signs such as ✅
    return re.findall(pattern, unicodedata.normalize("NFKC", text).casefold())


def _differ_in_one_place(one: list[str], other: list[str]) -> bool:
    if sorted(one) == sorted(other):
        return one != other
    start = len(commonprefix([one, other]))  # noqa: RUF071 - of words, not of paths
    one, other = one[start:], other[start:]
    end = len(commonprefix([one[::-1], other[::-1]]))  # noqa: RUF071 - as above
    return set(one[: len(one) - end]).isdisjoint(other[: len(other) - end])


@lru_cache(maxsize=4096)
def _facts(text: str) -> tuple[str, ...]:
    """Return the numbers, negations, names and code literals of a text, in order, each in one spelling."""
    facts: list[str] = []
    for match in _FACT.finditer(unicodedata.normalize("NFKC", text)):
        kind = str(match.lastgroup)
        found = match[kind]
        if kind == "word":
            facts += _facts_of_word(found.casefold())
        elif kind == "number":
            facts.append(re.sub(r",(?=\d{3}(?!\d))", "", found))
        else:
            facts.append({"≤": "<=", "≥": ">=", "≠": "!="}.get(found, found.strip("\"'“”«»「」 ").removesuffix("()")))
    return tuple(facts)


def _facts_of_word(word: str) -> list[str]:
    if word.endswith(("n't", "n’t")):
        return ["not"]
    fact = _FACTS_OF_WORDS.get(re.split("['’]", word)[0])
    return [fact] if fact else [str(found.lastgroup or found[0]) for found in _WITHIN.finditer(word)]
