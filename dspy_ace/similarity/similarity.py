"""Near-duplicates among the contents of bullets: cosine first, then the guard (ACE §3.3).

Two texts are duplicates when their vectors are close *and* `differences.difference` finds nothing that
sets them apart; exact repeats (case, punctuation and space aside) need no vectors, but pass the guard as
well. What met before is not compared again: a step costs what is new in it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping

from .vectors import Embedder, Vectors

__all__ = ["EMBEDDED_THRESHOLD", "LEXICAL_THRESHOLD", "Duplicates", "Embedder", "Vectors"]

LEXICAL_THRESHOLD = 0.65  # nearly all rewordings that the guard lets pass lie above it
EMBEDDED_THRESHOLD = 0.8


class Duplicates:
    """Which texts of a collection say the same, while texts come and go.

    Args:
        embedder: where vectors come from, see `Vectors`; None: lexical ones.
        threshold: cosine in 0…1 from which a pair is looked at; None: the usual one for the kind of vectors.

    Attributes:
        vectors: those of the texts; `vectors.computed` says how many were computed so far.
    """

    def __init__(self, embedder: Embedder | None = None, threshold: float | None = None) -> None:
        self.vectors = Vectors(embedder)
        usual = LEXICAL_THRESHOLD if embedder is None else EMBEDDED_THRESHOLD
        self.threshold = usual if threshold is None else threshold
        self._start()

    def _start(self) -> None:
        self._rows: dict[str, int] = {}  # of the texts that are here now
        self._texts: dict[int, str] = {}  # the same, the other way round
        self._folded: dict[bytes, set[str]] = {}
        self._same: dict[str, set[str]] = {}

    def __len__(self) -> int:
        """How many different texts were there in the last call."""
        return len(self._rows)

    def among(self, texts: Collection[str]) -> Mapping[str, Collection[str]]:
        """Every text that has duplicates among `texts`, with them.

        The same for the same texts in every process, whatever was asked before; good until the next call.

        Args:
            texts: all texts that are there now; repeats of the very same text are one.

        Raises:
            EmbedderError: see `Vectors.places`.
        """
        try:
            new = list(dict.fromkeys([text for text in texts if text not in self._rows]))
            if len(self._rows) + len(new) != len(texts):  # some are gone, or come twice
                self._leave(self._rows.keys() - set(texts))
            self._enter(new)
        except BaseException:
            self._start()  # stopped halfway: the vectors are kept, the texts meet anew
            raise
        return self._same

    def _leave(self, texts: Iterable[str]) -> None:
        for text in texts:
            del self._texts[self._rows.pop(text)]
            key = _fold(text)
            self._folded[key].discard(text)
            if not self._folded[key]:
                del self._folded[key]
            for other in self._same.pop(text, ()):
                self._same[other].discard(text)
                if not self._same[other]:
                    del self._same[other]
        if self.vectors.forget_all_but(self._rows):
            known = list(self._rows)
            self._rows = dict(zip(known, self.vectors.places(known), strict=True))
            self._texts = {row: text for text, row in self._rows.items()}

    def _enter(self, new: list[str]) -> None:
        rows = dict(zip(new, self.vectors.places(new), strict=True))
        self._rows.update(rows)
        self._texts.update({row: text for text, row in rows.items()})
        for text in new:
            self._folded.setdefault(_fold(text), set()).add(text)
        pairs = {
            (min(row, other), max(row, other))
            for row, other, _ in self.vectors.close(rows.values(), self.threshold)
            if other in self._texts
        }
        for text, row in rows.items():
            repeats = (self._rows[other] for other in self._folded[_fold(text)] if other != text)
            pairs.update((min(row, other), max(row, other)) for other in repeats)
        for first, second in sorted(pairs):
            self._compare(self._texts[first], self._texts[second])

    def _compare(self, one: str, other: str) -> None:
        from . import differences  # noqa: PLC0415  (the tables of its words are built on import: on first use only)

        if differences.difference(one, other) is None:
            self._same.setdefault(one, set()).add(other)
            self._same.setdefault(other, set()).add(one)


def _fold(text: str) -> bytes:
    """A key that texts share if they are equal but for case, punctuation and space."""
    folded = " ".join(re.findall(r"\w+", text.casefold()))
    return hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=16).digest()
